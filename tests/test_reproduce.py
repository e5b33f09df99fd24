"""The runner under signals: the notebook's own cells send them, so no test depends on timing."""
import os
import signal
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock

import robustnb
from robustnb.lab.records import SOURCES, Store
from robustnb.lab.reproduce import Execution, Kernel, NotebookError, Outcome, failed_copy, reproduce
from test_experiments import gone, lines

MODULE = """
import os, signal, time
from dataclasses import dataclass

@dataclass(frozen=True)
class Cell:
    seed: int = 0

def note(name, text):
    with open(name, "a") as file: file.write(f"{text}\\n")

def work(cell, context):
    note("started", cell.seed)
    note("pids", os.getpid())
    if cell.seed == 3 and os.path.exists("signal"):  # tell the runner to stop, then linger as long as we are allowed to
        os.kill(int(open("runner").read()), getattr(signal, open("signal").read()))
        time.sleep(120)
    return {"twice": 2 * cell.seed}
"""
GRID = """
import os
from pathlib import Path
from made_grid import Cell, note, work
from robustnb.lab.experiments import run_cells
from robustnb.lab.records import open_store
note("pids", os.getpid())
pid = os.getppid()  # the runner is among our ancestors: between us and it stands the process that forks kernels
while pid > 1 and b"--profile" not in Path(f"/proc/{pid}/cmdline").read_bytes(): pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
Path("runner").write_text(str(pid))
table = run_cells("grid", [Cell(seed) for seed in range(6)], work, open_store(records), profile, workers=workers, cache=Path("cache"))
list(table.twice)
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A miniature checkout; `page` adds a notebook to it."
    (tmp_path / "settings.ini").touch()
    (tmp_path / "made_grid.py").write_text(MODULE)
    # kernels import this copy: whoever edits the package meanwhile changes no hash here
    (tmp_path / "robustnb").mkdir()
    for name, source in SOURCES.items():
        file = tmp_path / f"robustnb/{name.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    package = Path(robustnb.__file__).parent
    (tmp_path / "robustnb/assets").mkdir()
    for asset in (package / "assets").iterdir(): (tmp_path / "robustnb/assets" / asset.name).symlink_to(asset)
    for table in package.glob("papers/**/*.csv"):
        file = tmp_path / "robustnb" / table.relative_to(package)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(table.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTNB_ROOT", str(tmp_path))
    def page(name, code, parameters='profile = "smoke"\nrecords = ""\nworkers = 1'):
        path = tmp_path / f"nbs/papers/{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = [
            nbformat.v4.new_markdown_cell(f"# {name}"),
            nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(code),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path
    return tmp_path, page


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "robustnb.cli", "reproduce", "--profile", "smoke", "--workers", "2", *words],
        capture_output=True,
        text=True,
        timeout=180,
    )


def assert_empty(folder): assert [p for p in folder.rglob("*") if p.is_file()] == []


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("sent, status", [("SIGKILL", -9), ("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stopped_runner_leaves_nothing_behind_and_goes_on(checkout, sent, status):
    root, page = checkout
    page("demo/grid", GRID)
    (root / "signal").write_text(sent)
    stopped = command()
    assert stopped.returncode == status, stopped.stdout + stopped.stderr
    if sent == "SIGINT": assert "the same command goes on from there" in stopped.stdout
    assert len(lines(root / "pids")) >= 2 and gone(lines(root / "pids")) == []  # the kernel and its workers
    kept = {r.cell["seed"] for r in Store(root / ".robustnb/records").records("grid")}
    assert 3 not in kept and not (root / ".robustnb/runs/smoke/papers/demo/grid.ipynb").exists()
    if sent != "SIGKILL": return assert_empty(root / ".robustnb/runs/smoke")
    (root / "signal").unlink(), (root / "started").unlink()
    again = command()
    assert again.returncode == 0 and "demo/grid: done" in again.stdout, again.stdout + again.stderr
    assert set(map(int, lines(root / "started"))) == set(range(6)) - kept  # only the cells that were missing
    made = nbformat.read(root / ".robustnb/runs/smoke/papers/demo/grid.ipynb", as_version=4)
    assert (
        made.cells[-1].outputs[-1].data["text/plain"] == "[0, 2, 4, 6, 8, 10]"
        and made.metadata.robustnb.experiments == ["grid"]
    )
    (record, *_) = Store(root / ".robustnb/records").records("grid")
    assert record.notebook == "nbs/papers/demo/grid.ipynb" and record.notebook_hash == made.metadata.robustnb.source
    assert sorted(p.name for p in (root / ".robustnb/runs/smoke/papers/demo").iterdir()) == ["grid.ipynb"]
    assert [o.status for o in reproduce(profile="smoke", workers=7, progress=False)] == ["up to date"]


class LastWords(Execution):
    "Is interrupted, and writes its copy only after it was told to end, as papermill does."
    def run(self):
        told = threading.Event()
        self.kernel = types.SimpleNamespace(signal=lambda number: told.set() if number == signal.SIGKILL else None)
        os.kill(os.getpid(), signal.SIGINT)
        told.wait(), time.sleep(0.3)
        self.part.write_text("{}")
        self.ended.set()

    def stop(self): super().stop(grace=0.1)


def test_a_copy_written_after_the_interruption_goes_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), LastWords(tmp_path, tmp_path / "part", {}, {}, tmp_path) as execution:
        execution.start()
        while not execution.ended.wait(10): pass
    assert execution.ended.is_set() and not (tmp_path / "part").exists()


def test_failures_are_kept_for_reading_and_stop_nobody(checkout):
    root, page = checkout
    offline = (
        "import psutil\n"
        "assert 'ESTABLISHED' not in {c.status for c in psutil.Process().net_connections('inet')}"  # nor loopback
    )
    page(
        "demo/a_crash",
        "import os, signal, pathlib\n"
        f"if pathlib.Path('bad').exists(): os.kill(os.getpid(), signal.SIGKILL)\n{offline}",
    )
    asks = "from robustnb.lab.records import Store\nhelper = lambda shown: Store('.').records(shown)\nhelper('grid')"
    for name, shown in (("b_good", '["bread", "grid"]'), ("c_asks", '["bread"]')):
        page(f"demo/{name}", asks, f'profile = "smoke"\nrecords = ""\nworkers = 1\nexperiments = {shown}')
    (root / "bad").touch()
    crash, good, silent = reproduce(profile="smoke", workers=1, progress=False)
    assert (
        (crash.status, good.status, silent.status) == ("failed", "done", "failed")
        and "DeadKernelError" in crash.error
    )
    assert silent.error == "it asks for records of grid, which its parameter `experiments` does not name"
    kept = failed_copy(good.path.with_name("a_crash.ipynb"))
    assert crash.path == kept and "os.kill" in kept.read_text()
    (root / "bad").unlink()
    assert [
        o.status for o in reproduce(["a_crash", "b_good"], "smoke", workers=1, progress=False)
    ] == ["done", "up to date"]
    assert not kept.exists() and not list(root.rglob("*.part.ipynb"))


def test_stale_records_run_again_when_asked(checkout):
    root, page = checkout
    page("demo/grid", GRID)
    def run(**options):
        (root / "started").unlink(missing_ok=True)
        return (
            [o.status for o in reproduce(["grid"], "smoke", workers=1, progress=False, **options)],
            len(lines(root / "started")),
        )
    assert run() == (["done"], 6)
    store = Store(root / ".robustnb/records")
    store.append(replace(store.records("grid")[0], code="0" * 16, time=""))
    assert run(stale=True) == (["done"], 1) and run(stale=True) == (["up to date"], 0)


def test_what_is_refused_before_anything_runs(checkout):
    root, page = checkout
    page("demo/good", "open('ran', 'w')")
    page("demo/untagged", "1", parameters="x = 1")
    for names, options, message in (
        (["demo"], {}, "untagged.ipynb: the cell tagged `parameters` lacks profile, records, workers"),
        (["god"], {}, "no such notebook 'god'; did you mean"),
        (["good"], dict(parameters={"seeds": 1}), "no such parameter 'seeds'"),
        (["good"], dict(profile="quik"), "did you mean 'quick'"),
    ):
        with pytest.raises(ValueError, match=message):
            reproduce(names, **{"profile": "smoke", "progress": False, **options})
    (root / ".robustnb/runs").mkdir(parents=True)
    with (
        FileLock(root / ".robustnb/runs/.lock"),
        pytest.raises(NotebookError, match="another `robustnb reproduce` is working in .robustnb/runs"),
    ):
        reproduce(["good"], "smoke", progress=False)
    assert not (root / "ran").exists()


def test_stopping_before_the_kernel_is_there():
    Kernel().signal(signal.SIGKILL)  # nothing to signal yet: no error


def test_lines_and_bars(monkeypatch, capsys):
    from robustnb.lab.reproduce import Display

    outcome = Outcome("a/b", "failed", 3.0, Path("x.failed.ipynb"), "In [2]: ValueError: [bold]no[/bold]")
    state = dict(experiment="grid", done=3, total=7, failed=1, eta=200.0)
    display = Display(2)
    display.begin("a/b"), display.update(state, [40.0]), display.end(outcome)
    text = capsys.readouterr().out
    assert (
        "[1/2] a/b: failed in 3 s" in text
        and "[bold]no[/bold]" in text
        and "x.failed.ipynb" in text
        and "cells" not in text
    )
    display.said -= 60
    display.begin("c"), display.update(state, [40.0])
    assert "c: 3 of 7 cells of grid, 1 failed  about 4 min left" in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1"), monkeypatch.delenv("ROBUSTNB_PROGRESS", raising=False)
    bars = Display(2)
    with bars.bars: bars.begin("a/b"), bars.update(state, [40.0]), bars.bars.refresh()
    text = capsys.readouterr().out
    assert "notebooks" in text and "4/7 cells of grid, 1 failed" in text and "about 4 min left" in text
