"""The same cell gives the same numbers twice in a process; in `make test-faults` in fresh ones, on one thread and two.

What is compared is every number of the record, every artefact and every weight of the checkpoints, to the bit.
"""
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from robustnb.lab.canaries import compare_results, leaves
from robustnb.lab.experiments import Context
from robustnb.lab.registry import experiments, find_experiment
from robustnb.lab.records import repository

# a line per comparison, for the long form
COUNTS = Path(os.environ["ROBUSTNB_FAULTS"]) / "twice" if "ROBUSTNB_FAULTS" in os.environ else None
LESS = {"dem-hec-cifar100", "survival", "fuzzing", "real-size"}  # no data of that name here; tests themselves; times


def cells() -> dict[str, tuple]:
    "A cell of each experiment, the last of its smoke profile; those that share a function are tried once, timings never."
    found = {}
    for name in experiments():
        described = find_experiment(name)
        path = f"{described.function.__module__}:{described.function.__name__}"
        if not name.startswith("benchmark-") and name not in LESS:
            found.setdefault(path, (name, path, asdict(described.cells("smoke")[-1])))
    return {name: (name, path, json.loads(json.dumps(settings))) for name, path, settings in found.values()}


FEW = ("study", "weights")  # all that is tried where no time is given; they come first
CELLS = {name: cell for name, cell in sorted(cells().items(), key=lambda item: (FEW + (item[0],)).index(item[0]))}
TOOK = [0.0]  # seconds of the last one
asked = lambda cell, cache: dict(folder=str(repository()), trace=False, cache=str(cache), canaries=[cell])


def test_twice_in_one_process(tmp_path):
    described, threads = find_experiment("study"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, two = (
            leaves(
                described.function(
                    described.cells("smoke")[0],
                    Context("study", "", tmp_path / str(i), "code", "key", "smoke", 1),
                )
            )
            for i in range(2)
        )
    finally: torch.set_num_threads(threads)
    assert len(one) > 20 and not compare_results(one, two).differs


PROGRAM = (
    "import json, sys, torch; torch.set_num_threads(int(sys.argv[1])); "
    "from robustnb.lab.canaries import answer_request; "
    "print('\\n' + json.dumps(answer_request(json.loads(sys.stdin.read()))))"
)


def fresh(name, threads, hashes, cache):
    "The leaves of a cell's record and of its checkpoints, from a process of its own; `hashes`: the seed of Python's."
    told = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": hashes, "ROBUSTNB_PROGRESS": "0"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(threads)],
        input=json.dumps(asked(CELLS[name], cache)),
        capture_output=True,
        text=True,
        env=told,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    return found["cells"][0] | {f"kept {k}": v for k, v in found["kept"].items()}


@pytest.mark.skipif(not COUNTS, reason="the long form: make test-faults")
@pytest.mark.parametrize("name", CELLS)
def test_twice_in_fresh_processes(name, tmp_path, request):
    now, until = time.time(), float(os.environ.get("ROBUSTNB_UNTIL", 0))
    # the first is tried anyway
    if name != next(iter(CELLS)) and (name not in FEW if not until else now + TOOK[-1] > until):
        if until: (COUNTS.parent / "short").open("a").write(request.node.name + "\n")
        pytest.skip("the time for this was over")
    first, other = (fresh(name, threads, str(threads), tmp_path / str(threads)) for threads in (1, 2))
    other = compare_results(first, other)
    if other.differs:  # by the threads alone
        assert not (differs := compare_results(first, fresh(name, 1, "3", tmp_path / "3")).differs), differs[:5]
    with open(COUNTS, "a") as file:
        file.write(
            f"{name}: {'equal' if not other.differs else f'{len(other.differs)} of {len(first)} numbers differ'}"
            " on two threads\n"
        )
    TOOK.append(time.time() - now)
