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


def test_committed_artefacts_can_be_read():
    store, read = Store(records.repository() / "results"), 0
    for one in store.records():
        for name in one.artefacts: read += bool(store.artefact(one, name))
    assert read > 500


PNG = b"\x89PNG\r\n\x1a\n"


def whole(seed=0, profile="quick", **fields):
    "A record that may be promoted."
    return replace(record(seed), profile=profile, commit="c" * 40, dirty=False, **fields)


def test_records_of_two_profiles_keep_their_artefacts(tmp_path):
    store = Store(tmp_path)
    quick, full = (store.append(whole(profile=p), {"a.png": PNG + p.encode()}) for p in ("quick", "full"))
    assert quick.key == full.key and [store.artefact(r, "a.png")[8:] for r in (quick, full)] == [b"quick", b"full"]
    assert records.inspect_records(tmp_path) == []
    results = Store(tmp_path / "results")
    assert records.promote(store, results.path) == [quick, full]
    assert [results.artefact(r, "a.png")[8:] for r in (quick, full)] == [b"quick", b"full"]
    again = store.append(whole(), {"a.png": PNG + b"quick, again"})
    assert [store.artefact(r, "a.png")[8:] for r in (quick, full, again)] == [b"quick", b"full", b"quick, again"]
    assert len(list(tmp_path.glob("artefacts/*/*"))) == 3
    assert store.append(whole(), {"a.png": PNG + b"full"}).artefacts == full.artefacts  # the same content, once more
    assert [store.artefact(r, "a.png")[8:] for r in (quick, full)] == [b"quick", b"full"]


def test_an_older_artefact_outlives_a_kill_before_the_new_line(tmp_path, monkeypatch):
    store = Store(tmp_path)
    first = store.append(whole(), {"a.png": PNG + b"first"})
    monkeypatch.setattr(records, "append_line", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError): store.append(whole(), {"a.png": PNG + b"second"})
    assert store.artefact(first, "a.png") == PNG + b"first"


def test_nothing_is_promoted_where_one_record_cannot_be(tmp_path):
    own, results = tmp_path / "own", tmp_path / "results"
    Store(own).append(whole(0))
    long = to_line(whole(1, time="2026-01-02")).replace(b'"accuracy":0.1', b'"accuracy":[' + b"0," * 40_000 + b"0]")
    with open(own / "demo.jsonl", "ab") as file: file.write(long)  # longer than a line of ours may be
    with pytest.raises(records.RecordError, match="nothing was promoted:\n- demo .* takes 80 kB"):
        records.promote(Store(own), results)
    assert not results.exists()


@pytest.mark.parametrize("change", [dict(seconds=float("nan")), dict(device={"cpu": 3}), dict(data="<b>")], ids=str)
def test_what_could_not_be_read_is_not_written(change, tmp_path):
    with pytest.raises(records.RecordError, match="a record of demo: "):
        Store(tmp_path).append(record(**change), {"a.png": PNG})
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_a_name_has_a_row():
    table = records.frame([record(device={"cpu": None, "threads": 2, "gpu": None})])
    assert table.device.tolist() == ["unknown, 2 threads"]


def test_a_store_may_be_a_link_to_a_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "store").symlink_to("real")
    kept = Store(tmp_path / "store").append(record(), {"a.png": PNG})
    assert Store(tmp_path / "real").records() == [kept] and Store(tmp_path / "real").artefact(kept, "a.png") == PNG


@pytest.mark.parametrize("make, words", [
    (lambda path: path.symlink_to("nowhere"), "a link that leads nowhere"),
    (lambda path: path.write_bytes(b""), "a file"), (os.mkfifo, "a pipe or a device"),
    (lambda path: path.symlink_to(path), "a link that leads nowhere"),
])
@pytest.mark.parametrize("inside", ["", "artefacts", f"artefacts/{record().key}"])
def test_a_store_that_is_no_folder_is_named(make, words, inside, tmp_path):
    path = tmp_path / "store" / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    with pytest.raises(records.RecordError, match=f"{path} is {words}; records go into a folder"):
        Store(tmp_path / "store").append(record(), {"a.png": PNG})
    assert not (tmp_path / "nowhere").exists() and not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("inside", ["artefacts", f"artefacts/{record().key}", "demo.jsonl"])
def test_nothing_is_written_through_a_link_out_of_the_store(inside, tmp_path):
    store, outside = tmp_path / "store", tmp_path / "outside"
    (store / inside).parent.mkdir(parents=True)
    outside.write_bytes(b"a letter\nthat is not done") if inside.endswith("l") else outside.mkdir()
    (store / inside).symlink_to(outside)
    with pytest.raises(records.RecordError, match=f"{store / inside}.* is a link to {outside}"):
        Store(store).append(record(), {"a.png": PNG})
    assert list(outside.iterdir()) == [] if outside.is_dir() else outside.read_bytes() == b"a letter\nthat is not done"


def test_a_rounding_is_never_told_as_less_than_it_is():
    way = [dict(canaries=3, rounded={"numbers": 2, "largest": 1.5e-08}), dict(canaries=4)]
    assert records.attested(way) == "3 canaries, summaries rounded otherwise by at most 2e-08 of their size"
    for number in (1e-08, 1.0000001e-08, 9.5e-12, 5e-324, 0.1 + 0.2, 7, 10**20 + 1):
        assert number <= float(records.rounded_up(number)) < 2.1 * number or number == 5e-324
    assert records.rounded_up(9.5e-12) == "1e-11" and records.rounded_up(1e-08) == "1e-08"


def test_imports_behind_a_colon_count():
    sources = {"data": "", "models": "", "site": "", "blur": ""}
    text = "if x: from robustnb import data\ntry: import robustnb.models; from .site import y\nexcept E: pass\n"
    assert records.imports_in(text, "study", sources) == ["data", "models", "site"]


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
