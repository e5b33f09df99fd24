"""Cells on a Ray cluster of two nodes, one of which is lost: nothing is lost with it, nothing is recorded twice.

`ROBUSTNB_KILLS` is the number of moments at which a node is killed (1 here, as many as 10 in `make test-faults`). Ray is no part
of the environment that `make setup` makes: without it, this is skipped.
"""
import json
import os
import random
import threading
import time

import pytest

from robustnb.lab.experiments import CellsFailed
from test_experiments import made, run  # noqa: F401 - made is a fixture
from test_kills import count

ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'robustnb[cluster]' to try it")
MOMENTS = min(10, max(1, int(os.environ.get("ROBUSTNB_KILLS", 2)) // 2))
NODE = dict(num_cpus=1, object_store_memory=80_000_000)  # a small one


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    slow = dict(
        RAY_raylet_start_wait_time_s="300", RAY_agent_register_timeout_ms="300000",
        RAY_prestart_worker_first_driver="0", RAY_enable_metrics_collection="0",
    )
    before = dict(os.environ)
    os.environ.update(slow)
    found = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2): found.add_node(**NODE)
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


def started(folder): return len((folder / "started").read_text().split()) if (folder / "started").exists() else 0


def test_a_lost_node_loses_no_cell(on_cluster, tmp_path, made):  # noqa: F811
    chance = random.Random(0)
    for moment in range(MOMENTS):
        seeds, before, after = list(range(100 * moment, 100 * moment + 6)), started(tmp_path), chance.randrange(1, 6)
        node, wait = next(iter(on_cluster.worker_nodes)), chance.uniform(0, 0.4)

        def kill():
            while started(tmp_path) < before + after: time.sleep(0.01)
            time.sleep(wait)
            on_cluster.remove_node(node, allow_graceful=False)

        thread = threading.Thread(target=kill)
        thread.start()
        table = run(made, [made.Cell(seed, "linger") for seed in seeds], executor="ray")
        thread.join()
        assert list(table.twice) == [2 * seed for seed in seeds]
        kept = [
            json.loads(line)
            for file in (tmp_path / "records").glob("*.jsonl")
            for line in file.read_text().splitlines()
        ]
        assert sorted(r["cell"]["seed"] for r in kept if r["cell"]["seed"] in seeds) == seeds  # each once
        on_cluster.add_node(**NODE)
        count("a node of a cluster")


def test_a_cell_that_raises_is_told_and_one_whose_worker_dies_is_tried_again(on_cluster, tmp_path, made):  # noqa: F811
    with pytest.raises(CellsFailed, match="(?s)1 of 3 cells.*ValueError: no good"):
        run(made, [made.Cell(0), made.Cell(1, "raise"), made.Cell(2, "die once")], executor="ray")
    assert (tmp_path / "started").read_text().split().count("2") == 2


def test_what_no_node_has_is_said_at_once(on_cluster, made):  # noqa: F811
    with pytest.raises(ValueError, match="no node of the cluster has that"):
        run(made, [made.Cell(0)], executor="ray", needs=lambda cell: {"gpus": 1})


def test_an_evaluation_on_the_cluster_is_the_local_one_to_the_byte(on_cluster, tmp_path):
    "Three blocks on two nodes; and what is kept is not asked again, so a cluster takes over what this machine began."
    import torch
    from torch import nn

    from robustnb.images import sample
    from robustnb.sources import as_source
    from robustnb.streaming import Journal, Settings, answer_blocks

    source, rows = (
        as_source(sample("cifar10", "test").take(slice(0, 150))),
        [("clean", 0), ("shot_noise", 3), ("fog", 1)],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    def told(folder, rows=rows, **options):
        return answer_blocks(
            model, source, rows, Settings("cifar10-c", show=False, **options), kept=Journal(tmp_path / folder)
        )
    here, there = told("here"), told("there", executor="ray")
    told("begun", rows[:2])
    assert torch.equal(told("begun", executor="ray"), here) and torch.equal(there, here)
    for name in ("here", "there", "begun"): Journal(tmp_path / name).settle()
    first, *others = ((tmp_path / name / "answers.jsonl").read_bytes() for name in ("here", "there", "begun"))
    assert first and all(other == first for other in others)
