"""Attestations on a toy package: what is compared, what is refused, what is written."""
import json
import math
import subprocess
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from robustnb.lab import canaries, records
from robustnb.lab.canaries import Canary, CanaryError, compare_packages, changed, compare_results, run_under, unseen
from robustnb.lab.provenance import Package, closure, sources_in
from robustnb.lab.records import Record, RecordError, Store, chain

RECORDS = """
    import dataclasses
    class Store:
        def __init__(self, path): pass
    def record_key(experiment, cell): return "k"
    def decode(name, content): return content
"""
EXPERIMENTS = """
    import dataclasses, types
    @dataclasses.dataclass
    class Job: cell: object; key: str
    @dataclasses.dataclass
    class Plan: experiment: str; function: object; store: object; profile: str; data: str; workers: int; cache: object
    def attempt(job, plan, write):
        context = types.SimpleNamespace(artefacts={}, cache=plan.cache)
        return types.SimpleNamespace(metrics=plan.function(job.cell, context)), context.artefacts
"""
TOY = """
    import dataclasses
    @dataclasses.dataclass(frozen=True)
    class Cell:
        x: float = 1.0
        raised: bool = False
        kept: bool = False
    def rise(x): return x * 3
    def mix(x): return x + 0.1
    def bake(cell: Cell, context):
        "Bread."
        context.artefacts["crumb.png"] = b"brown"
        folder = context.cache / "checkpoints/toy/k-code"
        folder.mkdir(parents=True, exist_ok=True)
        if cell.kept:
            import torch
            torch.save({"w": torch.full((2,), cell.x), "seconds": id(folder)}, folder / "model.pt")
        return dict(size=rise(mix(cell.x)) if cell.raised else mix(cell.x), seconds=id(context))
"""
TORCH = """
    import pickle
    from numpy import full
    def save(value, path): path.write_bytes(pickle.dumps(value))
    def load(path, **options): return pickle.loads(path.read_bytes())
"""  # what the toy needs of it: the true one takes seconds to import, in each fresh interpreter
FLAT, RISEN = (Canary("toy", "robustnb.toy:bake", {"x": 2.0, "raised": raised}) for raised in (False, True))


@pytest.fixture
def bakery(tmp_path):
    "Makes a folder with a toy package; edits are pairs of text."
    def make(name, *edits):
        folder = tmp_path / name / "robustnb"
        folder.mkdir(parents=True)
        toy = textwrap.dedent(TOY)
        for then, after in edits:
            assert then in toy
            toy = toy.replace(then, after)
        for module, text in dict(
            __init__="", records=textwrap.dedent(RECORDS), experiments=textwrap.dedent(EXPERIMENTS), toy=toy
        ).items():
            (folder / f"{module}.py").write_text(text)
        return folder.parent
    return make


def pieces_changed(old, new):
    packages = [Package(sources_in(folder / "robustnb")) for folder in (old, new)]
    return changed(*packages, *(closure(p, "robustnb.toy:bake").definitions for p in packages))


def test_equal_code_gives_equal_bits_and_the_trace_names_what_ran(bakery):
    differs, added, ran, digests, rounded = compare_packages(
        bakery("old"), bakery("new", ('"Bread."', '"Other words."')), [FLAT]
    )
    assert not differs and not added and not rounded and len(digests) == 2
    assert {(m, n) for m, n, _ in ran} >= {("toy", "bake"), ("toy", "mix")} and ("toy", "rise") not in {
        (m, n) for m, n, _ in ran
    }


def test_another_number_is_named(bakery):
    old, new = bakery("old"), bakery(
        "new", ("x + 0.1", "x + 0.1 + 1e-15"), ('b"brown"', 'b"white"'),
        ("torch.full((2,), cell.x)", "torch.full((2,), -cell.x)")
    )
    for folder in (old, new): (folder / "torch.py").write_text(textwrap.dedent(TORCH))
    differs, *_ = compare_packages(old, new, [FLAT._replace(cell={"x": 2.0, "kept": True})])
    assert [text.split(":")[1].strip() for text in differs] == ["size", "crumb.png", "toy/k/model.pt.w"]


def test_an_additional_number_is_told_and_a_missing_one_refused(bakery):
    old, more = bakery("old"), bakery("more", ("return dict(", "return dict(new=1, "))
    assert compare_packages(old, more, [FLAT])[:2] == ([], ["canary 1: new"])
    assert "nothing now" in compare_packages(more, old, [FLAT])[0][0]


def test_a_changed_definition_that_did_not_run_is_refused(bakery):
    old, new = bakery("old"), bakery("new", ("x * 3", "3 * x"))
    wanted = pieces_changed(old, new)
    assert [p.name for p in wanted] == ["rise"]
    assert [p.name for p in unseen(wanted, compare_packages(old, new, [FLAT])[2])] == ["rise"]
    assert not unseen(wanted, compare_packages(old, new, [FLAT, RISEN])[2])


def test_a_moved_function_has_not_changed_and_a_method_counts_by_itself(bakery):
    old, new = bakery("old"), bakery("new", ("def rise(x): return x * 3", "from .flour import rise"))
    (new / "robustnb/flour.py").write_text("def rise(x): return x * 3\n")
    assert pieces_changed(old, new) == []
    lines = (
        "class Oven:\n    def heat(self): return 1\n    def cool(self): return 0\n"
        "def rise(x): return x * 3 * Oven().heat()"
    )
    then, after = bakery("then", ("def rise(x): return x * 3", lines)), bakery(
        "after", ("def rise(x): return x * 3", lines.replace("return 0", "return -1"))
    )
    assert [p.name for p in pieces_changed(then, after)] == ["Oven.cool"]


def test_what_is_newly_called_and_stood_there_has_not_changed(bakery):
    "But who calls it has."
    spare = "def rise(x)", "def spare(x): return x\ndef rise(x)"
    then, after = bakery("then", spare), bakery("after", spare, ("return x + 0.1", "return spare(x) + 0.1"))
    assert [p.name for p in pieces_changed(then, after)] == ["mix"]
    negative = spare[0], spare[1].replace("return x", "return -x")
    other = bakery("other", negative, ("return x + 0.1", "return spare(x) + 0.1"))
    assert [p.name for p in pieces_changed(then, other)] == ["mix", "spare"]


def test_a_lambda_in_a_constant_must_run(bakery):
    lines = "RISE = {1: lambda x: x * 3}\ndef rise(x): return RISE.get(x, abs)(x)"
    then, after = bakery("then", ("def rise(x): return x * 3", lines)), bakery(
        "after", ("def rise(x): return x * 3", lines.replace("x * 3", "3 * x"))
    )
    wanted = pieces_changed(then, after)
    assert [p.name for p in wanted] == ["RISE.<lambda>"] and unseen(
        wanted, compare_packages(then, after, [RISEN])[2]
    ) == wanted


def test_a_failing_canary_says_where_and_why(bakery):
    with pytest.raises(CanaryError, match="salt"):
        run_under(bakery("old"), [Canary("toy", "robustnb.toy:bake", {"salt": 1})])


def question_about(bakery, monkeypatch, edit, cells, raised=True):
    old, new = bakery("old"), bakery("new", edit)
    packages = [Package(sources_in(folder / "robustnb")) for folder in (old, new)]
    addresses = [closure(p, "robustnb.toy:bake").address for p in packages]
    for name, value in dict(
        package_at=lambda *_: packages[0],
        package_today=lambda: packages[1],
        unpack=lambda *_: old,
        today_of=lambda f: f,
        pairs_of=lambda *_: [addresses],
        tries=lambda *_: [cells],
        robustnb=SimpleNamespace(__file__=str(new / "robustnb/__init__.py")),
    ).items():
                                monkeypatch.setattr(canaries, name, value)
    record = Record(
        "toy", {"x": 1.0, "raised": raised}, {"size": 1.1}, "quick", commit="c" * 40, function="robustnb.toy:bake",
        address=addresses[0]
    )
    return canaries.question("toy", record.function, [record], Path.cwd()), addresses


def test_the_note_is_one_that_a_chain_reads(bakery, monkeypatch):
    verdict, (then, today) = question_about(bakery, monkeypatch, ("x * 3", "3 * x"), [FLAT, RISEN])
    assert verdict.equal and verdict.note["changed"] == ["toy.rise"] and verdict.note["canaries"] == 2
    note = json.loads(json.dumps(verdict.note))
    assert chain(then, {today}, [note]) == [note] and note["because"] == "" and note["commits"][0] == "c" * 40


def test_one_change_alone_may_be_asked_about(bakery, monkeypatch):
    _, (then, today) = question_about(bakery, monkeypatch, ("x * 3", "3 * x"), [FLAT, RISEN])
    monkeypatch.setattr(records, "package_today", canaries.package_today)
    monkeypatch.setattr(canaries, "commit_of", lambda *_: "d" * 40)
    old = Record("toy", {"x": 1.0, "raised": True}, {}, "quick", function="robustnb.toy:bake", address="0" * 16)
    asked, = canaries.changed_groups([old], Path.cwd(), "v1")
    assert asked == (old.function, "d" * 40)
    note = canaries.question("toy", old.function, [old], Path.cwd(), asked[1]).note
    assert note["same"] == [[then, today]] and note["commits"][0] == "d" * 40
    earlier = dict(note, same=[[old.address, then]])  # what joined the record to the code of that revision
    assert chain(old.address, {today}, [earlier, note]) == [earlier, note]
    monkeypatch.setattr(canaries, "package_at", lambda *_: canaries.package_today())
    assert canaries.changed_groups([old], Path.cwd(), "v1") == {}


@pytest.mark.parametrize("then, today, unseen", [(b"rye", b"rye", []), (b"rye", b"oat", ["asset dough.txt"]),
                                                 (None, b"rye", ["asset dough.txt"])])
def test_an_asset_that_stood_there_and_is_read_now_has_not_changed(bakery, monkeypatch, then, today, unseen):
    edit = "return x + 0.1", 'return x + 0.1 + 0 * len(("assets", "dough.txt"))'
    def with_dough(name, *edits):
        folder, content = bakery(name, *edits), then if name == "old" else today
        (folder / "robustnb/assets").mkdir()
        if content: (folder / "robustnb/assets/dough.txt").write_bytes(content)
        return folder
    verdict, _ = question_about(with_dough, monkeypatch, edit, [FLAT, RISEN])
    assert verdict.unseen == unseen and not verdict.differs


def test_no_note_where_a_number_differs_or_a_definition_was_not_met(bakery, monkeypatch, tmp_path):
    unmet, _ = question_about(bakery, monkeypatch, ("x * 3", "3 * x"), [FLAT])
    assert not unmet.equal and unmet.unseen == ["toy.rise"] and not unmet.differs
    monkeypatch.setattr(canaries, "stale_groups", lambda *_: {("f", "c"): []})
    monkeypatch.setattr(canaries, "git_state", lambda _: ("c", False))
    monkeypatch.setattr(canaries, "question", lambda *_: unmet)
    assert canaries.attest("toy", tmp_path) == [unmet] and not (tmp_path / "attested.jsonl").exists()
    monkeypatch.setattr(canaries, "question", lambda *_: unmet._replace(unseen=[]))
    canaries.attest("toy", tmp_path)
    assert records.notes("attested", tmp_path)[0]["experiment"] == "toy"


def test_a_definition_that_no_record_can_have_called_is_named_and_left_aside(bakery, monkeypatch):
    verdict, (then, today) = question_about(bakery, monkeypatch, ("x * 3", "3 * x"), [FLAT], raised=False)
    assert verdict.equal and verdict.note["uncalled"] == ["toy.rise"]
    assert records.attested([verdict.note]) == "1 canaries, 1 changed definition that no cell calls"


@pytest.mark.parametrize("more, kept, equal", [("1e-8", False, True), ("1e-3", False, False), ("1e-8", True, False)])
def test_a_summary_may_be_rounded_otherwise_but_no_weight(bakery, monkeypatch, more, kept, equal):
    edit = ("x + 0.1", f"x + 0.1 + {more}"), ("torch.full((2,), cell.x)", f"torch.full((2,), cell.x + {more})")
    pair = bakery("then"), bakery("now", *edit[:1 + kept])
    for folder in pair: (folder / "torch.py").write_text(textwrap.dedent(TORCH))
    differs, *_, rounded = compare_packages(*pair, [FLAT._replace(cell={"x": 2.0, "kept": True})], canaries.ROUNDING)
    assert (not differs) == equal and bool(rounded) == (more == "1e-8")
    if kept: assert len(differs) == 1 and "model.pt.w" in differs[0]


def test_uncommitted_code_is_not_attested(monkeypatch, tmp_path):
    monkeypatch.setattr(canaries, "git_state", lambda _: ("c", True))
    with pytest.raises(RecordError, match="uncommitted"): canaries.attest("toy", tmp_path)


def test_bits_count_and_so_do_types():
    assert compare_results({"a": 0.1}, {"a": 0.1 + 2 ** -58}).differs == [] and compare_results(
        {"a": 1.0}, {"a": 1.0 + 2 ** -52}
    ).differs
    assert compare_results({"a": None}, {"a": 1.0}).largest == math.inf


def test_replay_counts_equal_cells_and_the_largest_difference(monkeypatch, tmp_path):
    from robustnb.papers.dem_hec.baseline import BaselineCell, run_baseline_cell

    made = [
        Record(
            "baseline", replace(BaselineCell(), seed=s), {"test": 0.5 + s / 100}, "quick",
            function="robustnb.papers.dem_hec.baseline:run_baseline_cell", seconds=s + 1
        )
        for s in range(3)
    ]
    store = Store(tmp_path / "results")
    for r in made: store.append(r)
    def again(job, plan, write):
        assert plan.function is run_baseline_cell and isinstance(job.cell, BaselineCell)
        return Record(
            "baseline", job.cell, {"test": 0.5}, plan.profile, key=job.key, address="a" * 16, commit="c" * 40
        ), {}
    monkeypatch.setattr(canaries, "attempt", again)
    note, = canaries.replay("baseline", 2, store.path, tmp_path / "new", cache=tmp_path)
    assert (note["cells"], note["within"], note["of"]) == (1, 1, 2) and note["largest"] == pytest.approx(0.01) and note[
        "address"
    ] == "a" * 16
    assert records.notes("replayed", store.path) == [note] and len(Store(tmp_path / "new").records("baseline")) == 2


@pytest.mark.parametrize("second, word, text", [
    (0.50, "replayed", "2 of 2 cells equal"),
    (0.52, "replayed", "1 of 2 cells equal, 1 within the sampling error, largest difference 0.02"),
    (0.60, "replayed: differs", "1 of 2 cells equal, largest difference 0.1")])
def test_a_replay_vouches_only_within_the_sampling_error(monkeypatch, tmp_path, second, word, text):
    # 400 images at 0.5: a standard error of 0.025
    from robustnb.papers.dem_hec.baseline import BaselineCell, run_baseline_cell

    function = f"{run_baseline_cell.__module__}:{run_baseline_cell.__name__}"
    made = [
        Record(
            "baseline",
            replace(BaselineCell(), seed=s),
            {"test": 0.5, "n_test": 400},
            "quick",
            function=function,
            seconds=s + 1,
            address="1" * 16,
        )
        for s in range(2)
    ]
    store = Store(tmp_path / "results")
    for r in made: store.append(r)
    def again(job, plan, write):
        test = second if job.cell.seed else 0.5
        return Record(
            "baseline", job.cell, {"test": test, "n_test": 400}, plan.profile, key=job.key, address="2" * 16,
            commit="c" * 40
        ), {}
    monkeypatch.setattr(canaries, "attempt", again)
    note, = canaries.replay("baseline", 2, store.path, tmp_path / "new", cache=tmp_path)
    monkeypatch.setattr(records, "notes", lambda kind: [note] if kind == "replayed" else [])
    monkeypatch.setattr(records, "addresses_today", lambda *_: {"2" * 16})
    found = records.state(made[0])
    assert found == (word, text) and records.stale(made[0]) == (word != "replayed")


def test_a_refused_attestation_says_why_records_stay_stale(bakery, monkeypatch, tmp_path):
    unmet, (then, today) = question_about(bakery, monkeypatch, ("x * 3", "3 * x"), [FLAT])
    record = Record("toy", {"x": 1.0}, {"size": 1.1}, "quick", function="robustnb.toy:bake", address=then, commit="c")
    monkeypatch.setattr(canaries, "stale_groups", lambda *_: {("f", "c"): [record]})
    monkeypatch.setattr(canaries, "git_state", lambda _: ("c", False))
    def failing(*_): raise CanaryError("canaries failed under the old code")
    differing = unmet._replace(differs=["canary 1: size: 1.1 then, 1.2 now"])
    reasons = []
    for answer in (failing, lambda *_: differing, lambda *_: unmet):
        monkeypatch.setattr(canaries, "question", answer)
        canaries.attest("toy", tmp_path)
        reasons.append(records.notes("refused", tmp_path)[-1]["why"])
    assert reasons == [
        "canaries failed under the old code", "1 number of canaries differs, e.g. size: 1.1 then, 1.2 now",
        "no canary ran toy.rise"
    ]
    note = records.notes("refused", tmp_path)[-1]
    assert note["addresses"] == [then]
    monkeypatch.setattr(records, "notes", lambda kind: [note] if kind == "refused" else [])
    assert str(records.state(record)) == "stale (no canary ran toy.rise)"


def test_a_canary_that_the_old_code_refuses_is_left_out(bakery, monkeypatch):
    edit = ("x * 3", "3 * x"), ("x: float = 1.0", "x: float = 1.0\n    salted: bool = False")
    old, new = bakery("old"), bakery("new", *edit)
    salted, wanted = RISEN._replace(cell={**RISEN.cell, "salted": True}), pieces_changed(old, new)
    for name, value in dict(
        package_at=lambda *_: Package(sources_in(old / "robustnb")), package_today=lambda: None, unpack=lambda *_: old,
        vocabulary=lambda *_: set(), strange=lambda *_: False, tries=lambda *_: [asked],
        robustnb=SimpleNamespace(__file__=str(new / "robustnb/__init__.py"))
    ).items(): monkeypatch.setattr(canaries, name, value)
    asked = [RISEN, salted]
    assert canaries.ask_in_turn("robustnb.toy:bake", "robustnb.toy:bake", "c", wanted, Path.cwd())[1] == [RISEN]
    asked = [salted]  # nothing is left to compare
    with pytest.raises(CanaryError, match="salted"):
        canaries.ask_in_turn("robustnb.toy:bake", "robustnb.toy:bake", "c", wanted, Path.cwd())


def test_it_is_told_when_others_are_asked_and_about_what(bakery, monkeypatch, capsys):
    old, new = bakery("old"), bakery("new", ("x * 3", "3 * x"))
    for name, value in dict(
        package_at=lambda *_: Package(sources_in(old / "robustnb")), package_today=lambda: None, unpack=lambda *_: old,
        vocabulary=lambda *_: set(), strange=lambda *_: False, tries=lambda *_: [[FLAT], [RISEN]],
        robustnb=SimpleNamespace(__file__=str(new / "robustnb/__init__.py"))
    ).items(): monkeypatch.setattr(canaries, name, value)
    question = "robustnb.toy:bake", "robustnb.toy:bake", "c", pieces_changed(old, new), Path.cwd()
    assert canaries.ask_in_turn(*question, show=True)[1] == [FLAT, RISEN]
    assert capsys.readouterr().err == "no canary has run toy.rise yet; those of robustnb.toy:bake are asked\n"
    canaries.ask_in_turn(*question)
    assert capsys.readouterr().err == ""


def test_a_line_names_a_function_as_then_or_as_today():
    old, today = "robustnb.baselines:run_baseline_cell", "robustnb.papers.dem_hec.baseline:run_baseline_cell"
    assert canaries.goes_by(old, old) and canaries.goes_by(old, today) and not canaries.goes_by(today, old)
    assert not canaries.goes_by("robustnb.gone:run_gone_cell", today)


@pytest.fixture(scope="module")
def line():
    notes = records.notes("attested")
    return min((n for n in notes if not n["because"]), key=lambda n: n["canaries"])


def test_an_attestation_is_checked_against_git(line):
    root = records.repository()
    try: assert canaries.faults(line, root / "results", root) == []
    except LookupError as error: pytest.skip(f"not in this clone: {error}")
    (then, now), *rest = line["same"]
    moved = line | dict(same=[["0" * 16, now], *rest])
    assert "no address" in canaries.faults(moved, root / "results", root)[0]
    silent = line | dict(changed=line["changed"][1:])
    assert canaries.faults(silent, root / "results", root) == [f"{line['changed'][0]} has changed and is not named"]
    salted = line | dict(
        cells=[line["cells"][0] | dict(cell=line["cells"][0]["cell"] | dict(salt=1)), *line["cells"][1:]]
    )
    assert "salt" in canaries.faults(salted, root / "results", root)[0]
    assert "canaries are named" in canaries.faults(line | dict(canaries=9), root / "results", root)[0]


# settings that stand for a long training, or for a set that does not ship
HOURS = {"run_attention_cell": "protocol", "run_weights_cell": "base net hardened", "run_transfer_cell": "source"}


def test_canaries_take_every_decision_of_their_records():
    store, by_function = Store(records.repository() / "results"), {}
    measured = ("survival", "fuzzing", "real-size", "real-size-wall")  # of a machine, as timings are
    for r in store.records():
        if not records.is_timing(r) and r.experiment not in measured: by_function.setdefault(r.function, []).append(r.cell)
    for function, cells in by_function.items():
        lacking = canaries.untried(cells, (c.cell for c in canaries.offered(canaries.today_of(function))))
        known = HOURS.get(function.partition(":")[2], "").split()
        assert {text.partition(" ")[0].partition(".")[0] for text in lacking} <= {*known}, (function, lacking)


def test_lines_that_this_branch_adds_are_checked():
    """The merge base is that with origin's main or with main; where this is main itself, the newest three lines are
    looked at (`robustnb records verify` looks at all, two CPU seconds each)."""
    root = records.repository()
    git = lambda *words: subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True).stdout.strip()
    bases = (git("merge-base", "HEAD", name) for name in ("origin/main", "main"))
    base = next((b for b in bases if b and b != git("rev-parse", "HEAD")), None)
    for note in canaries.added_notes(root, base)[0 if base else -3:]:
        try: assert canaries.faults(note, root / "results", root) == []
        except LookupError as error: pytest.skip(f"not in this clone: {error}")


def test_only_lines_that_a_revision_lacks_are_new(tmp_path):
    git = lambda *words: subprocess.run(
        ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True,
        capture_output=True
    )
    file = tmp_path / "results/attested.jsonl"
    file.parent.mkdir()
    one, two = (
        dict(experiment="toy", time=f"2026-01-0{day}", commit="", same=[], canaries=0, because="a name") for day in "12"
    )
    file.write_text(json.dumps(one) + "\n")
    git("init"), git("add", "."), git("commit", "-m", "first")
    file.write_text(json.dumps(one) + "\n" + json.dumps(two) + "\n")
    assert canaries.added_notes(tmp_path, "HEAD") == [two] and canaries.added_notes(tmp_path) == [one, two]
    file.write_text(json.dumps(one) + '\n{"n":2}\n')
    with pytest.raises(RecordError, match="attested.jsonl:2: the field 'experiment' is missing"):
        canaries.added_notes(tmp_path, "HEAD")
    git("branch", "young")
    for name in ("yuong", "--yuong", "young:results"):
        with pytest.raises(RecordError, match="no such revision '-*yuong'; did you mean 'young'|known: HEAD, .*young"):
            canaries.added_notes(tmp_path, name)


def test_records_that_an_answer_joins_to_todays_code_are_not_asked_about(monkeypatch, tmp_path):
    old, young = (Record("toy", {"x": x}, {"size": 1.0}, "quick", commit="c", address=address, time=time)
                  for x, address, time in ((1.0, "a", "2026-01-01"), (2.0, "b", "2026-02-01")))
    asked, stale = [], {"a", "b"}
    def answer(experiment, function, records, root, since, show):
        asked.append(records[0].address)
        stale.clear()  # a line of long ago says that a is b
        return canaries.Verdict("toy", function, "c", [], [], dict(same=[["b", "today"]]))
    monkeypatch.setattr(canaries, "stale_groups", lambda *_: {("f", "c1"): [old], ("f", "c2"): [young]})
    monkeypatch.setattr(canaries, "git_state", lambda _: ("c", False))
    monkeypatch.setattr(canaries, "stale", lambda record: record.address in stale)
    monkeypatch.setattr(canaries, "question", answer)
    canaries.attest("toy", tmp_path)
    assert asked == ["b"]


@pytest.mark.parametrize("paper", ["eriep", "dem_hec"])
def test_of_two_functions_of_a_name_the_one_of_the_same_paper_is_meant(paper):
    old, new = f"robustnb.{paper}_checks:run_invariant_cell", f"robustnb.papers.{paper}.checks:run_invariant_cell"
    assert canaries.today_of(old) == new
