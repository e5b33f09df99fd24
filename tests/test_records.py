"""Records under kills, crowds and full disks: what the notebook cannot show inside its own process."""
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustnb.lab import records
from robustnb.lab.records import Record, Store, append_line, from_line, locked, read_lines, record_key, to_line


def record(seed=0, **fields):
    return Record("demo", {"seed": seed}, {"accuracy": seed / 10}, "smoke", **fields)


def python(code, *arguments):
    "Run code in a fresh interpreter."
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True
    )


DIE_IN = """
    import os, signal, sys
    from robustnb.lab import records
    from robustnb.lab.records import Record, Store
    def die(*a): os.kill(os.getpid(), signal.SIGKILL)
    store, where = Store(sys.argv[1]), sys.argv[2]
    store.append(Record("demo", {"seed": 0}, {"accuracy": 0.0}, "smoke"))
    write, replace = os.write, os.replace
    if where == "write": os.write = lambda fd, line: (write(fd, line[:len(line) // 2]), die())
    if where == "newline": os.write = lambda fd, line: (write(fd, line[:-1]), die())
    if where == "fsync": os.write = lambda fd, line: (write(fd, line), die())
    if where == "artefact": os.replace = die
    if where == "between": records.append_line = die
    store.append(Record("demo", {"seed": 1}, {"accuracy": 0.1}, "smoke"), {"a.png": b"x"})
"""


@pytest.mark.parametrize("where, kept, torn", [("write", [0], True), ("newline", [0], True), ("fsync", [0, 1], False),
                                               ("artefact", [0], False), ("between", [0], False)])
def test_sigkill_while_appending(tmp_path, where, kept, torn):
    run = python(DIE_IN, tmp_path, where)
    assert run.returncode == -signal.SIGKILL, run.stderr
    store = Store(tmp_path)
    if torn:
        with pytest.warns(UserWarning, match=r"demo.jsonl:2: torn last line"): found = store.records("demo")
    else: found = store.records("demo")
    assert [r.cell["seed"] for r in found] == kept
    store.append(record(2))  # repairs, and no warning is left
    assert [r.cell["seed"] for r in store.records("demo")] == [*kept, 2]
    assert (tmp_path / "demo.jsonl").read_bytes().count(b"\n") == len(kept) + 1
    assert not [f for f in records.inspect_records(tmp_path) if f.error]


def test_a_tail_longer_than_a_block_is_found(tmp_path):
    file = tmp_path / "demo.jsonl"
    append_line(file, to_line(record()))
    with open(file, "ab") as f: f.write(b"x" * 20_000)  # 4096 bytes are read at a time
    append_line(file, to_line(record(1)))
    assert [from_line(*line).cell["seed"] for line in read_lines(file)[0]] == [0, 1]


def test_many_processes_append_at_once(tmp_path):
    code = """
        import sys
        from robustnb.lab.records import Record, Store
        for i in range(25): Store(sys.argv[1]).append(Record("demo", {"seed": i, "writer": int(sys.argv[2])}, {}, "smoke"))
    """
    crowd = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(n)]) for n in range(4)]
    assert [p.wait() for p in crowd] == [0] * 4
    assert len(Store(tmp_path).records("demo")) == 100 and not records.inspect_records(tmp_path)


def test_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.append(record())
    before = (tmp_path / "demo.jsonl").read_bytes()
    write = os.write
    monkeypatch.setattr(records.os, "write", lambda fd, line: write(fd, line[:9]))
    with pytest.raises(OSError, match="no room for a record") as error: store.append(record(1))
    assert error.value.errno == errno.ENOSPC and (tmp_path / "demo.jsonl").read_bytes() == before


def test_a_stopped_holder_of_the_lock_is_reported(tmp_path):
    file = tmp_path / "demo.jsonl"
    append_line(file, to_line(record()))
    with open(file) as mine, open(file) as other, locked(mine.fileno()):
        with pytest.raises(TimeoutError, match="stayed locked for 0.05 s"):
            with locked(other.fileno(), shared=True, timeout=0.05): pass
    with open(file) as mine, open(file) as other, locked(mine.fileno(), shared=True), locked(
        other.fileno(), shared=True
    ):
        pass


def test_an_append_waits_for_the_lock(tmp_path):
    file = tmp_path / "demo.jsonl"
    append_line(file, to_line(record()))
    writer = threading.Thread(target=append_line, args=(file, to_line(record(1))))
    with open(file) as mine, locked(mine.fileno(), shared=True):
        writer.start()
        writer.join(0.5)
        assert writer.is_alive() and len(read_lines(file)[0]) == 1  # readers share the lock, the writer waits
    writer.join()
    assert len(read_lines(file)[0]) == 2


def test_a_failing_artefact_write_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*names): raise OSError("no")
    monkeypatch.setattr(records.os, "replace", refuse)
    with pytest.raises(OSError): Store(tmp_path).append(record(), {"a.png": b"x"})
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_records_do_not_load_torch_or_pandas(tmp_path):
    code = (
        "import sys; from robustnb.lab.records import Store, inspect_records; Store(sys.argv[1]).records(); "
        "inspect_records(sys.argv[1]); print({'torch', 'pandas'} & set(sys.modules))"
    )
    assert python(code, tmp_path).stdout == "set()\n"


def test_committed_records_are_sound():
    root = records.repository()
    assert root and [f.text for f in records.inspect_records(root / "results") if f.error] == []


calm = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10**9, 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


@calm
@given(
    st.dictionaries(st.text("abc", min_size=1), values, max_size=4),
    st.dictionaries(st.text("xyz", min_size=1), values, max_size=4)
)
def test_a_line_gives_back_its_record(cell, metrics):
    one = Record("demo", cell, metrics, "smoke")
    line = to_line(one)
    assert line.count(b"\n") == 1 and from_line(line) == one and record_key("demo", json.loads(line)["cell"]) == one.key


@dataclass(frozen=True)
class Cell:
    a: float
    b: tuple


numbers = st.integers(-5, 5) | st.sampled_from([-1.0, 0.0, -0.0, 2.0, 2.5])
cells = st.builds(Cell, numbers, st.tuples(numbers, numbers))


@calm
@given(cells, cells)
def test_cells_share_a_key_exactly_when_they_are_equal(one, other):
    assert (record_key("demo", one) == record_key("demo", other)) == (one == other)


def test_a_dirty_checkout_is_seen_where_code_is(tmp_path):
    def git(*words):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *words], check=True, capture_output=True
        )
    (tmp_path / "robustnb").mkdir()
    (tmp_path / "robustnb/x.py").write_text("x = 1\n")
    git("init", "-q"); git("add", "."); git("commit", "-qm", "first")
    commit, dirty = records.git_state(tmp_path)
    assert len(commit) == 40 and dirty is False
    (tmp_path / "notes.txt").write_text("no code")
    assert records.git_state(tmp_path) == (commit, False)
    (tmp_path / "robustnb/y.py").write_text("y = 1\n")
    assert records.git_state(tmp_path) == (commit, True)


def test_promotion_stops_at_20_MB(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "TOTAL_BYTES", 3000)
    own, results = Store(tmp_path / "own"), tmp_path / "results"
    for seed in range(4):
        own.append(replace(record(seed), profile="quick", commit="c" * 40, dirty=False), {"a.png": b"x" * 1000})
    with pytest.raises(records.RecordError, match="would take 0.0 MB"): records.promote(own, results)
    assert not results.exists()
    monkeypatch.setattr(records, "TOTAL_BYTES", 4000)
    assert len(records.promote(own, results)) == 4


def test_committed_records_stand_in_the_profile_that_their_cells_are_of():
    from robustnb.lab.registry import experiments
    from robustnb.lab.registry import find_experiment

    cells = {}  # (experiment, profile) -> keys
    for described in map(
        find_experiment,
        (
            "eriep", "eriep-depths", "eriep-attention", "pretraining",
            *(n for n in experiments() if n.startswith("dem-hec") and n not in ("dem-hec-large", "dem-hec-invariants"))
        )
    ):
        for profile in ("quick", "reduced"):
            cells.setdefault((described.experiment, profile), set()).update(
                record_key(described.experiment, cell) for cell in described.cells(profile)
            )
    assert not any(cells[name, "quick"] & cells[name, "reduced"] for name, _ in cells)
    for name in {name for name, _ in cells}:
        for record in Store(Path(__file__).parents[1] / "results").records(name):
            other = "reduced" if record.profile == "quick" else "quick"
            assert record.key not in cells[name, other], f"{name} {record.key} is of {other}, not of {record.profile}"
