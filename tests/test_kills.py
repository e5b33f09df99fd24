"""Processes that are killed, stopped or crowded: the next run completes, and its results are those of an unbroken run.

`ROBUSTNB_KILLS` is the number of moments at which each thing is killed (2 here); `make test-faults` kills it once at least, and goes on
until the share of the time is over. The moments are drawn from a seed, over the time that the unbroken run took. What takes few seconds
and is asked for once comes first, so that no kind is left out where the time is short.
"""
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock

from robustnb.lab import records
from robustnb.lab.records import Store
from test_disk import TRIED, arrays, fake, files, one, seeds, temporary  # noqa: F401 - fake is a fixture
from test_experiments import SCRIPT, gone, lines, made  # noqa: F401 - made is a fixture

MOMENTS = int(os.environ.get("ROBUSTNB_KILLS", 2))
# a line per kill, for the long form
COUNTS = Path(os.environ["ROBUSTNB_FAULTS"]) / "kills" if "ROBUSTNB_FAULTS" in os.environ else None
LINUX = pytest.mark.skipif(not Path("/proc").exists(), reason="looks processes up in /proc")


def forked(do, *arguments):
    "A process that does something and ends; a copy of this one, so nothing is imported again."
    pid = os.fork()
    if pid: return pid
    status = 1
    try:
        os.setsid()
        torch.set_num_threads(1)
        do(*arguments)
        status = 0
    finally: os._exit(status)


def ended(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_copy_that_is_killed_while_it_draws_a_bar_stops_no_other():
    "tqdm's own lock would stay taken: then each later bar of this process and its copies waits for ever."
    tqdm(disable=True)  # its lock is there
    def draw():
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    assert ended(forked(draw)) == -signal.SIGKILL
    assert TqdmDefaultWriteLock.mp_lock.acquire(timeout=5)
    TqdmDefaultWriteLock.mp_lock.release()


def count(what):
    if COUNTS:
        with open(COUNTS, "a") as file: file.write(what + "\n")


@pytest.fixture(scope="module")
def unbroken():
    "What an unbroken batch of cells left, and how long it took; kept for all signals."
    return {}


@LINUX
@pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT SIGINT", "SIGKILL"])
def test_a_batch_of_cells_that_is_stopped_at_a_random_moment(sent, tmp_path, made, unbroken, turns):  # noqa: F811
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", tmp_path, "work"]
    key = lambda: {r.key: (r.cell, r.metrics) for r in Store(tmp_path / "records").records("demo")}
    if not unbroken:
        start = time.monotonic()
        assert subprocess.run(command, timeout=300).returncode == 0
        unbroken.update(key=key(), took=time.monotonic() - start)
    took, chance = unbroken["took"], random.Random(sent)
    for _ in turns(max(1, MOMENTS // 2)):
        for place in ("records", "cache"): shutil.rmtree(tmp_path / place, ignore_errors=True)
        (tmp_path / "pids").unlink(missing_ok=True)
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(chance.uniform(0, took))
        for name in sent.split():
            run.send_signal(getattr(signal, name))
            time.sleep(0.05)
        run.wait(300)
        assert gone(lines(tmp_path / "pids")) == []
        if run.returncode: count(f"a batch of cells, by {sent}")
        else: turns.missed()
        took *= 1.1 if run.returncode else 0.8
        again = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert again.returncode == 0, again.stderr
        assert key() == unbroken["key"] and not temporary(tmp_path) and gone(lines(tmp_path / "pids")) == []
        assert not [f for f in records.inspect_records(tmp_path / "records") if f.error]


@LINUX
def test_a_stopped_holder_of_the_lock_is_reported_and_waited_for(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.append(one(0))
    def hold():
        with open(tmp_path / "demo.jsonl") as file, records.locked(file.fileno()): os.kill(os.getpid(), signal.SIGSTOP)
    pid = forked(hold)
    os.waitpid(pid, os.WUNTRACED)
    with monkeypatch.context() as patched:
        patched.setattr(records, "locked", partial(records.locked, timeout=0.1))
        with pytest.raises(TimeoutError, match="is a stopped process holding it"): store.append(one(1))
    os.kill(pid, signal.SIGCONT)
    store.append(one(2))
    assert ended(pid) == 0 and seeds(tmp_path) == {0, 2}


def test_eight_writers_and_eight_readers_on_one_store(tmp_path):
    times = 10 * MOMENTS
    def write(n):
        for i in range(times):
            Store(tmp_path).append(one(0).__class__("demo", {"seed": i, "writer": n}, {"x": i}, "smoke"))
    def read(n):
        known = 0
        for _ in range(times):
            found = len(Store(tmp_path).records("demo"))
            assert found >= known  # what was seen stays
            known = found
    assert [ended(pid) for pid in [forked(do, n) for n in range(8) for do in (write, read)]] == [0] * 16
    assert len(Store(tmp_path).records("demo")) == 8 * times and not records.inspect_records(tmp_path)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    "What a corrupted set needs is imported here, not by each of the forked processes."
    arrays(tmp_path_factory.mktemp("warm"))


@pytest.mark.parametrize("what", TRIED)
def test_killed_at_a_random_moment(what, tmp_path, fake, warm, turns):  # noqa: F811
    prepare, do, holds, _ = TRIED[what]
    whole = tmp_path / "whole"
    whole.mkdir()
    prepare(whole)
    start = time.monotonic()
    assert ended(forked(do, whole)) == 0
    took, chance = time.monotonic() - start, random.Random(what)
    # nine things eleven times, and the batches below: a hundred in `make test-faults`
    for n in turns(MOMENTS + MOMENTS // 4):
        folder = tmp_path / str(n)
        folder.mkdir()
        prepare(folder)
        pid = forked(do, folder)
        time.sleep(chance.uniform(0, took))
        os.kill(pid, signal.SIGKILL)
        status = ended(pid)
        assert status in (0, -signal.SIGKILL)
        # the first run imported something, or the machine is busier now: kills that come too late are none
        took *= 1.1 if status else 0.8
        if what not in ("weights that ship", "the site in its place"):
            holds(folder)  # between two renames these wait for the next run
        for part in folder.rglob("*.part"): os.utime(part, (time.time() - 60,) * 2)  # a minute later
        assert ended(forked(do, folder)) == 0
        assert not temporary(folder) and not list(folder.rglob("*.before"))
        holds(folder)
        if what != "evaluate":
            assert (
                {k: v for k, v in files(folder).items() if "demo.jsonl" not in k}
                == {k: v for k, v in files(whole).items() if "demo.jsonl" not in k}
            )
        else:
            assert all(
                (folder / p).read_bytes() == (whole / p).read_bytes()
                for p in ("answers/answers.jsonl", "report/table.csv")
            )
        for place in ("own", "results"): assert seeds(folder / place) == seeds(whole / place)
        shutil.rmtree(folder)
        if status: count(what)
        else: turns.missed()
