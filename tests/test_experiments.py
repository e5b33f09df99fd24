"""Cells under SIGKILL, Ctrl-C and crashes. The cells themselves send the signals, so no test depends on timing."""
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from robustnb import cluster
from robustnb.lab import experiments
from robustnb.lab.experiments import CellsFailed, run_cells
from robustnb.lab.records import Record, Store

CELLS = """
import os, signal, time
from dataclasses import dataclass
from pathlib import Path

@dataclass(frozen=True)
class Cell:
    seed: int = 0
    does: str = "work"

def note(name, text):
    with open(Path(__file__).parent / name, "a") as file: file.write(f"{text}\\n")

def wait_for(*names):
    deadline = time.monotonic() + 60
    while not all((Path(__file__).parent / n).exists() for n in names):
        assert time.monotonic() < deadline, f"waited in vain for {names}"
        time.sleep(0.01)

def work(cell, context):
    note("started", cell.seed)
    note("pids", os.getpid())
    if cell.does in ("SIGKILL", "SIGINT"):  # to the parent; then linger as long as we are allowed to
        os.kill(os.getppid(), getattr(signal, cell.does))
        time.sleep(120)
    if cell.does == "ignore": os.kill(os.getpid(), signal.SIGINT)
    if cell.does == "die": os.kill(os.getpid(), signal.SIGKILL)
    if cell.does == "exit": os._exit(3)
    if cell.does == "linger": time.sleep(0.5)
    if cell.does == "die once" and Path(__file__).with_name("started").read_text().split().count(str(cell.seed)) == 1: os._exit(3)
    if cell.does == "raise": raise ValueError("no good")
    if cell.does == "keep": context.artefact("kept.npz", [cell.seed])
    return {"twice": 2 * cell.seed, "threads": os.environ.get("OMP_NUM_THREADS")}

def with_parent(cell, context):
    note(f"here-{cell.seed}", "")
    wait_for("here-0", "here-1")  # both workers ask for the parent at the same time
    with context.parent(Cell(seed=99)) as folder:
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # fails if another is inside
        if not (folder / "model").exists():
            note("trained", cell.seed)
            time.sleep(0.3)
            (folder / "model").write_text("weights")
        (folder / "inside").unlink()
    return {"model": (folder / "model").read_text()}
"""
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from made_cells import Cell, work
from robustnb.lab.experiments import run_cells
if __name__ == "__main__":
    here = Path(sys.argv[1])
    cells = [Cell(0), Cell(1), Cell(2), Cell(3, sys.argv[2]), Cell(4), Cell(5)]
    run_cells("demo", cells, work, here / "records", "smoke", workers=2, cache=here / "cache", cost=lambda cell: 9 - cell.seed)
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    "A module with cells that worker processes can import."
    (tmp_path / "made_cells.py").write_text(CELLS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ROBUSTNB_PROGRESS", "0")
    sys.modules.pop("made_cells", None)
    import made_cells

    yield made_cells
    sys.modules.pop("made_cells", None)


def run(made, cells, store="records", function=None, workers=2, **options):
    here = Path(made.__file__).parent
    return run_cells(
        "demo", cells, function or made.work, here / store, "smoke", workers=workers, cache=here / "cache",
        **options,
    )


def lines(path): return path.read_text().split() if path.exists() else []


def gone(pids, seconds=30):
    "Wait until none of the processes is left (a zombie is as good as gone)."
    def alive(pid):
        try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError: return False
    deadline = time.monotonic() + seconds
    while left := [p for p in pids if alive(p)]:
        if time.monotonic() > deadline: return left
        time.sleep(0.05)
    return []


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("sent", ["SIGKILL", "SIGINT"])
def test_a_run_that_is_killed_leaves_no_workers_and_resumes(tmp_path, made, sent):
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path, sent], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == (-9 if sent == "SIGKILL" else -2), ended.stderr
    if sent == "SIGINT": assert "KeyboardInterrupt" in ended.stderr
    pids, started = lines(tmp_path / "pids"), lines(tmp_path / "started")
    assert pids and gone(pids) == []
    kept = [r.cell["seed"] for r in Store(tmp_path / "records").records("demo")]
    assert "3" in started and 3 not in kept and len(started) - len(kept) <= 2  # at most what the two workers were at
    (tmp_path / "started").unlink()
    cells = [made.Cell(seed) for seed in (0, 1, 2, 4, 5)] + [made.Cell(3, "ignore")]
    table = run(made, cells)
    # only what was missing
    assert sorted(map(int, lines(tmp_path / "started"))) == sorted({0, 1, 2, 3, 4, 5} - set(kept))
    assert list(table.twice) == [0, 2, 4, 8, 10, 6] and set(table.threads) == {"1"}


def test_crashes_and_errors_cost_their_own_cell_only(tmp_path, made, capsys):
    cells = [
        made.Cell(0, "die"),
        made.Cell(1),
        made.Cell(2, "exit"),
        made.Cell(3, "raise"),
        made.Cell(4, "die"),
        made.Cell(5),
    ]
    with pytest.raises(CellsFailed) as failed: run(made, cells)
    assert [cell for cell, _ in failed.value.failures] == [cells[0], cells[2], cells[3], cells[4]]
    message = str(failed.value)
    for part in (
        "4 of 6 cells of 'demo' failed",
        "Cell(does='die'): the worker process was killed by SIGKILL (out of memory?)",
        "Cell(seed=2, does='exit'): the worker process ended with exit status 3",
        "Cell(seed=3, does='raise'): ValueError: no good",
    ):
        assert part in message
    assert 'raise ValueError("no good")' in capsys.readouterr().err  # the traceback, at once
    assert sorted(Store(tmp_path / "records").frame("demo").seed) == [1, 5]
    with pytest.raises(CellsFailed, match="1 of 2 cells"): run(made, [made.Cell(3, "raise"), made.Cell(7)], workers=1)


def test_two_workers_that_need_the_same_parent_train_it_once(tmp_path, made):
    table = run(made, [made.Cell(0), made.Cell(1)], function=made.with_parent)
    assert list(table.model) == ["weights", "weights"] and len(lines(tmp_path / "trained")) == 1


def test_the_parent_may_be_a_cell_of_the_grid(tmp_path, made):
    (tmp_path / "here-0").touch(), (tmp_path / "here-1").touch()
    table = run(made, [made.Cell(99), made.Cell(2)], function=made.with_parent)
    assert list(table.model) == ["weights", "weights"] and len(lines(tmp_path / "trained")) == 1


def test_what_runs_again(tmp_path, made, monkeypatch):
    cells = [made.Cell(0), made.Cell(1, "keep")]
    store = Store(tmp_path / "records")
    def seeds(**options):
        (tmp_path / "started").unlink(missing_ok=True)
        run(made, cells, workers=1, **options)
        return lines(tmp_path / "started")
    assert (
        seeds() == ["0", "1"]
        and seeds() == []
        and seeds(data="ab") == ["0", "1"]
        and seeds(resume=False) == ["0", "1"]
    )
    kept = store.find(experiments.record_key("demo", cells[1]))
    file = tmp_path / "records/artefacts" / kept.key / "kept.npz"
    file.write_bytes(b"spoilt")
    assert seeds() == ["1"] and store.artefact(store.find(kept.key), "kept.npz")["array"].tolist() == [1]
    store.append(replace(store.find(experiments.record_key("demo", cells[0])), code="0" * 16, time=""))
    assert seeds() == [] and seeds(stale=True) == ["0"] and seeds(stale=True) == []
    store.append(replace(store.find(experiments.record_key("demo", cells[0])), code="0" * 16, time=""))
    monkeypatch.setenv("ROBUSTNB_STALE", "1")
    assert seeds() == ["0"]


def test_another_process_may_be_faster(tmp_path, made):
    plan = experiments.Plan("demo", made.work, Store(tmp_path / "records"), "smoke", "", 1, tmp_path / "cache")
    (job,) = experiments.missing_jobs([made.Cell(5)], plan)
    plan.store.append(Record("demo", made.Cell(5), {"twice": -1}, "smoke"))  # while we were waiting for the lock
    assert list(experiments.in_process([job], plan)) == [(job, "")] and lines(tmp_path / "started") == []


def test_changed_code_gets_a_fresh_checkpoint_folder(tmp_path, made, monkeypatch):
    folders = []
    def look(cell, context):
        folders.append(context.checkpoint_dir)
        return {}
    run(made, [made.Cell()], function=look, workers=1)
    monkeypatch.setattr(experiments, "code_hash", lambda module: "another")
    run(made, [made.Cell()], function=look, workers=1, resume=False)
    assert len(set(folders)) == 2 and all(f.is_dir() for f in folders)


def test_a_worker_that_cannot_start_is_an_error_not_a_loop(tmp_path, made):
    (tmp_path / "made_cells.py").write_text(
        CELLS + "\nimport multiprocessing\nif multiprocessing.parent_process(): raise OSError('no such library')\n"
    )
    with pytest.raises(RuntimeError, match="(?s)could not start.*no such library"):
        run(made, [made.Cell(0), made.Cell(1)])
    (tmp_path / "script.py").write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    ended = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path, "work"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1 and "a script needs `if __name__ == '__main__':`" in ended.stderr


def test_the_bar_counts_cells(tmp_path, made, monkeypatch, capsys):
    monkeypatch.delenv("ROBUSTNB_PROGRESS")
    run(made, [made.Cell(0), made.Cell(1)], workers=1)
    assert "demo: 100%" in (err := capsys.readouterr().err) and "2/2 cells" in err
    run(made, [made.Cell(0), made.Cell(1)], workers=1)
    assert capsys.readouterr().err == ""  # nothing to do: nothing to show


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("platform", ["linux", "elsewhere"])
def test_die_with_parent(tmp_path, platform):
    child = (
        f"import sys, time; from robustnb.lab.experiments import die_with_parent; sys.platform = {platform!r}; "
        "die_with_parent(int(sys.argv[1])); print('bound', flush=True); time.sleep(120)"
    )
    parent = (
        "import os, signal, subprocess, sys; "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())], stdout=subprocess.PIPE); "
        "p.stdout.readline(); print(p.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == -9 and gone([int(ended.stdout)]) == []


def test_experiments_do_not_load_torch():
    code = "import sys, robustnb.lab.experiments; print({'torch', 'pandas', 'ray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_ray_runs_the_same_cells(tmp_path, made, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'robustnb[cluster]' to try it")
    cells = [made.Cell(0), made.Cell(1, "raise"), made.Cell(2, "keep"), made.Cell(3)]
    # Ray's workers import by it
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    try:
        with pytest.raises(CellsFailed, match="(?s)1 of 4 cells.*ValueError: no good"): run(made, cells, executor="ray")
        table = run(made, [c for c in cells if c.does != "raise"], executor="ray")
    finally: ray.shutdown()
    store = Store(tmp_path / "records")
    assert (
        list(table.twice) == [0, 4, 6]
        and store.artefact(store.find(table.key[1]), "kept.npz")["array"].tolist() == [2]
    )


def test_ray_that_is_missing_is_named(tmp_path, made, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"robustnb\[cluster\]"): run(made, [made.Cell(0)], executor="ray")


class FakeRay:
    "What of Ray is asked for; tasks run when their result is fetched, the last first."
    class exceptions:
        class RayTaskError(Exception): pass
        class RaySystemError(Exception): pass
        class GetTimeoutError(Exception): pass

    def __init__(self, fails=None): self.options, self.cancelled, self.work, self.fails = [], [], {}, fails
    def is_initialized(self): return True
    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    def wait(self, refs, num_returns, timeout): return [refs[-1]], refs[:-1]
    def cancel(self, ref, force): self.cancelled.append(ref)

    def put(self, value): return value

    def get(self, ref, timeout):
        if self.fails: raise self.fails
        return self.work[ref]()

    def remote(self, **shared):
        def wrap(function):
            def options(**needs):
                self.options.append({**shared, **needs})
                def remote(*arguments, **words):
                    self.work[len(self.work)] = lambda: function(*arguments, **words)
                    return len(self.work) - 1
                return type("Task", (), {"remote": staticmethod(remote)})
            return type("Remote", (), {"options": staticmethod(options)})
        return wrap


def test_a_cluster_gets_what_cells_need_and_records_come_home_once(tmp_path, made, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray := FakeRay())
    cells = [made.Cell(0), made.Cell(1, "raise"), made.Cell(2)]
    fetch = ray.get
    def get(ref, timeout):
        if ref == 2 and not (tmp_path / "records").exists(): run(made, [made.Cell(2)])  # another run was faster
        return fetch(ref, timeout)
    ray.get = get
    with pytest.raises(CellsFailed, match="(?s)1 of 3 cells.*ValueError: no good"):
        run(made, cells, executor="ray", needs=lambda cell: {"cpus": 2} if cell.seed else {})
    assert [o["num_cpus"] for o in ray.options] == [1, 2, 2] and {o["max_retries"] for o in ray.options} == {3}
    assert [r.cell["seed"] for r in Store(tmp_path / "records").records("demo", "smoke")] == [2, 0]
    with pytest.raises(ValueError, match="1 gpus .* no node of the cluster has that; they have 2 cpus, 0 gpus"):
        run(made, cells, executor="ray", needs=lambda cell: {"gpus": 1})


def test_a_cluster_that_is_gone_keeps_what_is_recorded(tmp_path, made, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray := FakeRay(FakeRay.exceptions.RaySystemError("head")))
    with pytest.raises(RuntimeError, match=r"the cluster is gone \(head\); finished cells are recorded"):
        run(made, [made.Cell(0), made.Cell(1)], executor="ray")
    assert ray.cancelled == []
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    assert list(run(made, [made.Cell(0), made.Cell(1)], executor="ray").twice) == [0, 2]


def test_a_lost_head_or_ctrl_c_keeps_what_is_recorded(tmp_path, made, monkeypatch):
    "Ray would wait for its head for a minute and then end the process from below, so the head's port is tried."
    def lost(ray):  # after one cell
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        ray.get_runtime_context = lambda: SimpleNamespace(gcs_address=address)
        return [], []
    def interrupted(ray): raise KeyboardInterrupt
    cells = [made.Cell(0), made.Cell(1), made.Cell(2)]
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    for number, (then, error, message, cancelled) in enumerate(
        [
            (lost, cluster.ClusterGone, "its head at .* does not answer.; finished cells are recorded", []),
            (interrupted, KeyboardInterrupt, None, [0]),
        ],
        1,
    ):
        monkeypatch.setitem(sys.modules, "ray", ray := FakeRay())
        ray.wait = lambda refs, num_returns, timeout, whole=len(cells) - number + 1: (
            ([refs[-1]], refs[:-1]) if len(refs) == whole else then(ray)
        )
        with pytest.raises(error, match=message): run(made, cells, executor="ray")
        assert len(Store(tmp_path / "records").records("demo", "smoke")) == number and ray.cancelled == cancelled
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    # none ran twice
    assert list(run(made, cells, executor="ray").twice) == [0, 2, 4] and len(lines(tmp_path / "started")) == 3


def test_a_cell_that_finds_no_network_is_no_lost_cluster(tmp_path, made, monkeypatch):
    "Ray gives an error of a task both classes, its own and the task's."
    class Both(FakeRay.exceptions.RayTaskError, ConnectionError): pass
    monkeypatch.setitem(sys.modules, "ray", FakeRay(Both("no route to host")))
    with pytest.raises(CellsFailed, match="2 of 2 cells.*(?s:.*)no route to host"):
        run(made, [made.Cell(0), made.Cell(1)], executor="ray")


def test_the_head_is_looked_for_while_tasks_end_too(tmp_path, made, monkeypatch):
    "Ray counts down its minute whatever tasks do."
    monkeypatch.setattr(cluster, "LOOK", -1.0)
    monkeypatch.setattr(cluster, "head_answers", lambda address: False)
    monkeypatch.setitem(sys.modules, "ray", ray := FakeRay())
    ray.get_runtime_context = lambda: SimpleNamespace(gcs_address="10.0.0.1:6379")
    with pytest.raises(cluster.ClusterGone, match="its head at 10.0.0.1:6379 does not answer"):
        run(made, [made.Cell(0), made.Cell(1)], executor="ray")


def test_cells_look_for_data_where_their_run_does(tmp_path, made, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray := FakeRay())
    monkeypatch.setenv("ROBUSTNB_DATA", "data")
    run(made, [made.Cell(0)], executor="ray")
    assert ray.options[0]["runtime_env"]["env_vars"]["ROBUSTNB_DATA"] == "data"


def test_an_address_without_a_cluster_is_said(made, monkeypatch):
    "Ray, as it joins, has its own answer to SIGTERM: the caller's is put back."
    def refused(**options):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise ConnectionError("Could not find any running Ray instance.\nmore")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(sys.modules, "ray", ray := FakeRay())
    ray.is_initialized, ray.init = lambda: False, refused
    for address, said in (("auto", "Could not find any running Ray instance."), ("127.0.0.1:1", "nothing listens")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(cluster.ClusterGone, match=f"no Ray cluster answers at {address} .{said}"):
            run(made, [made.Cell(0)], executor="ray")
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConnectionError):
        run(made, [made.Cell(0)], executor="ray")  # a fault of this machine is no question of an address
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_while_workers_are_stopped_leaves_none():
    "An idle worker that is left waits for work, and the exit of its parent waits for it."
    done = []
    def impatient(seconds=None):
        if seconds: raise KeyboardInterrupt
        done.append("joined")
    def worker(job):
        said = lambda word: lambda: done.append(word)
        process = SimpleNamespace(terminate=said("asked"), kill=said("killed"), join=impatient, is_alive=lambda: True)
        return experiments.Worker(process, SimpleNamespace(close=said("closed")), job)
    with pytest.raises(KeyboardInterrupt): experiments.stop_workers([worker(None), worker("a job")])
    assert done == ["closed", "asked", *["closed", "killed"] * 2, "joined", "joined"]  # the idle one is closed first
