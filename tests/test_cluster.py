"""Cells on a Ray cluster of two nodes, one of which is lost: nothing is lost with it, nothing is recorded twice.

`ROBUSTNB_KILLS` is twice the number of moments at which a node is killed, at most 10 (1 here; `make test-faults` goes on while its share of
the time lasts). Ray is no part of the environment that `make setup` makes: without it, this is skipped.
"""
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from robustnb.images import sample
from robustnb.lab.experiments import CellsFailed
from robustnb.sources import as_source
from robustnb.streaming import Journal, Settings, answer_blocks
from test_experiments import lines, made, run  # noqa: F401 - made is a fixture
from test_kills import count
from test_streaming import images

ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'robustnb[cluster]' to try it")
MOMENTS = min(10, max(1, int(os.environ.get("ROBUSTNB_KILLS", 2)) // 2))
ROWS = [("clean", 0), ("shot_noise", 3), ("fog", 1)]
SLOW = """
import os
import time
from pathlib import Path

import torch

class Sums(torch.nn.Module):  # whole numbers as logits: exact in any order
    def __init__(self):
        super().__init__()
        self.weight = torch.randint(0, 3, (3072, 10), generator=torch.Generator().manual_seed(0)).double()

    def forward(self, x): return ((x * 255).round().double().flatten(1) @ self.weight).remainder(64).float() / 8

class Slow(Sums):
    def forward(self, x):
        here = Path(__file__).parent
        if len(x) > 16:  # not when it is tried
            with open(here / "started", "a") as file: file.write(f"{os.getpid()}\\n")
            time.sleep(0.3)
            told = len((here / "started").read_text().split())
            while (here / "most").exists() and told > int((here / "most").read_text()): time.sleep(0.1)
        return super().forward(x)

def factory(): return Slow()
"""


def node(**more):
    "A small one. Its ports are chosen here: else its start fails where its helpers need longer than 15 s to choose them."
    names = "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port"
    free = [socket.create_server(("", 0)) for _ in names]
    ports = [server.getsockname()[1] for server in free]
    for server in free: server.close()
    return dict(num_cpus=1, object_store_memory=80_000_000) | dict(zip(names, ports)) | more


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    slow = dict(
        RAY_raylet_start_wait_time_s="300", RAY_agent_register_timeout_ms="300000",
        RAY_prestart_worker_first_driver="0", RAY_enable_metrics_collection="0",
    )
    before = dict(os.environ)
    os.environ.update(slow)
    found = Cluster(initialize_head=True, head_node_args=node(num_cpus=0, include_dashboard=False))
    try:
        for _ in range(2): found.add_node(**node())
        os.environ["RAY_ADDRESS"] = found.address
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def on_cluster(cluster, tmp_path):
    "Workers import the cells' module by its path; a connection of its own for each test."
    ray.shutdown()
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}},
    )
    return cluster


def started(folder): return len(lines(folder / "started"))


@contextmanager
def losing_a_node(cluster, folder, chance, tasks):
    "A node is killed when some of so many tasks have begun, and another comes in its place at the end."
    after, wait = started(folder) + chance.randrange(1, tasks), chance.uniform(0, 0.4)
    lost = chance.choice(sorted(cluster.worker_nodes, key=str))

    def kill():
        while started(folder) < after: time.sleep(0.01)
        time.sleep(wait)
        cluster.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield
    thread.join()
    cluster.add_node(**node())
    count("a node of a cluster")


@pytest.fixture
def slow(tmp_path, monkeypatch):
    "A model that takes its time and leaves word of it, in a module that workers can import."
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("slow", None)
    import slow

    yield slow
    sys.modules.pop("slow", None)


def test_a_lost_node_loses_no_cell(on_cluster, tmp_path, made, turns):  # noqa: F811
    chance = random.Random(0)
    for moment in turns(MOMENTS):
        seeds = list(range(100 * moment, 100 * moment + 6))
        with losing_a_node(on_cluster, tmp_path, chance, 6):
            table = run(made, [made.Cell(seed, "linger") for seed in seeds], executor="ray")
        assert list(table.twice) == [2 * seed for seed in seeds]
        kept = [
            json.loads(line)
            for file in (tmp_path / "records").glob("*.jsonl")
            for line in file.read_text().splitlines()
        ]
        assert sorted(r["cell"]["seed"] for r in kept if r["cell"]["seed"] in seeds) == seeds  # each once


def test_a_lost_node_loses_no_block(on_cluster, tmp_path, slow, turns):
    "The answers are those of this machine to the byte, and each block's are kept once."
    chance, source = random.Random(1), as_source(images())
    def told(folder, model, **options):
        settings, journal = Settings("cifar10-c", show=False, **options), Journal(tmp_path / folder)
        answers, kept = answer_blocks(model, source, ROWS, settings, kept=journal), journal.file.read_bytes()
        journal.settle()
        blocks = [json.loads(line)["block"] for line in kept.split(b"\n") if line]
        return answers, (tmp_path / folder / "answers.jsonl").read_bytes(), sorted(blocks)
    here, text, blocks = told("here", slow.Sums())
    for moment in turns(MOMENTS):
        with losing_a_node(on_cluster, tmp_path, chance, 6):
            answers, *kept = told(f"there-{moment}", slow.factory(), executor="ray")
        assert torch.equal(answers, here) and kept == [text, blocks] and blocks == list(range(6))


def test_a_cell_that_raises_is_told_and_one_whose_worker_dies_is_tried_again(on_cluster, tmp_path, made):  # noqa: F811
    with pytest.raises(CellsFailed, match="(?s)1 of 3 cells.*ValueError: no good"):
        run(made, [made.Cell(0), made.Cell(1, "raise"), made.Cell(2, "die once")], executor="ray")
    assert (tmp_path / "started").read_text().split().count("2") == 2


def test_what_no_node_has_is_said_at_once(on_cluster, made):  # noqa: F811
    with pytest.raises(ValueError, match="no node of the cluster has that"):
        run(made, [made.Cell(0)], executor="ray", needs=lambda cell: {"gpus": 1})


def test_an_evaluation_on_the_cluster_is_the_local_one_to_the_byte(on_cluster, tmp_path, slow):
    "Three blocks on two nodes; and what is kept is not asked again, so a cluster takes over what this machine began."
    source, model = as_source(sample("cifar10", "test").take(slice(0, 150))), slow.Sums()
    def told(folder, rows=ROWS, **options):
        return answer_blocks(
            model, source, rows, Settings("cifar10-c", show=False, **options), kept=Journal(tmp_path / folder)
        )
    here, there = told("here"), told("there", executor="ray")
    told("begun", ROWS[:2])
    assert torch.equal(told("begun", executor="ray"), here) and torch.equal(there, here)
    for name in ("here", "there", "begun"): Journal(tmp_path / name).settle()
    first, *others = ((tmp_path / name / "answers.jsonl").read_bytes() for name in ("here", "there", "begun"))
    assert first and all(other == first for other in others)


def test_an_evaluation_that_is_interrupted_or_loses_the_head_goes_on_from_its_blocks(cluster, tmp_path, slow):
    "Paths are relative, as people give them. The head is lost for good, so this comes last; the rest is asked here."
    ray.shutdown()
    for n, (picture, label) in enumerate(zip(images().x, images().y)):
        file = tmp_path / f"set/{int(label)}/{n:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)
    words = "evaluate slow:factory set --size 32 --benchmark cifar10-c --corruptions shot_noise,fog --severities 1".split()
    def begin(*more):
        program = [sys.executable, "-W", "ignore", "-m", "robustnb.cli", *words, *more]
        return subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    def kept(): return sum(len(Journal(folder).read()) for folder in (tmp_path / "there/answers").glob("*"))
    def interrupt(program): program.send_signal(signal.SIGINT)
    def behead(program): cluster.remove_node(cluster.head_node, allow_graceful=False)
    for stop, status, said in (
        (interrupt, 130, "interrupted: answered blocks are kept"),
        (behead, 2, "the cluster is gone .* finished blocks are kept"),
    ):
        least = kept() + 1  # a block of this program: it has found the cluster
        (tmp_path / "most").write_text(str(started(tmp_path) + 2))  # whatever begins later waits to be stopped
        program = begin("--out", "there", "--engine", "ray", "--address", cluster.address)
        late = time.monotonic() + 240
        while kept() < least and program.poll() is None and time.monotonic() < late: time.sleep(0.05)
        stop(program)
        text = program.communicate(timeout=300)[0]
        assert program.returncode == status and re.search(said, text) and "Traceback" not in text, text
        assert least <= kept() < 6
    (tmp_path / "most").unlink()
    before = 6 - kept()
    for folder, asked in (("there", before), ("here", 6)):
        program = begin("--out", folder)
        text = program.communicate(timeout=300)[0]
        assert program.returncode == 0, text
        assert lines(tmp_path / "started").count(str(program.pid)) == asked  # what is kept is not asked again
    for name in ("table.csv", "table.json", "summary.json", "answers.npz"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
