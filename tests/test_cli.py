"""The program as a user meets it: what it loads, what it says to mistakes, how it ends."""
import json
import os
import signal
import subprocess
import sys
import types
from contextlib import nullcontext
from dataclasses import dataclass

import pytest

from robustnb import cli
from robustnb.lab.experiments import run_cells
from robustnb.lab.records import Record, RecordError, Store, open_store


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "An empty checkout in which the commands run."
    (tmp_path / "settings.ini").touch()
    (tmp_path / "nbs/papers/demo").mkdir(parents=True)
    cells = [dict(cell_type="code", metadata=dict(tags=["parameters"]), source='profile = "smoke"\nrecords = ""\nworkers = 1\nseeds = [0]', outputs=[], execution_count=None)]
    (tmp_path / "nbs/papers/demo/page.ipynb").write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=4)))
    monkeypatch.chdir(tmp_path)
    for name in ("ROBUSTNB_RECORDS", "ROBUSTNB_REUSE", "FORCE_COLOR"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROBUSTNB_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def robustnb(monkeypatch, capsys):
    "Run the program in this process: exit status, what it printed, what it complained."
    def run(*words):
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["robustnb", *map(str, words)])
        with pytest.raises(SystemExit) as ended: cli.main()
        signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err
    return run


@pytest.mark.parametrize("words", [["--help"], ["list"], ["records", "list"], ["run"]])
def test_light_commands_load_nothing_heavy(checkout, words):
    code = "import sys; from robustnb.cli import app; app(sys.argv[1:], standalone_mode=False); print({'torch', 'pandas', 'papermill', 'matplotlib', 'ray'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert ended.stdout.endswith("set()\n"), ended.stdout + ended.stderr


def test_python_dash_m_and_help():
    ended = subprocess.run([sys.executable, "-m", "robustnb.cli", "-h"], capture_output=True, text=True)
    assert ended.returncode == 0
    for name in ("list", "reproduce", "run", "site", "claims", "records", "data"): assert f" {name} " in ended.stdout


@pytest.mark.parametrize("words, said", [
    (["lst"], "Did you mean 'list'?"),
    (["list", "--recods", "x"], "--records"),
    (["reproduce", "--workers", "0"], "got 0; allowed: a whole number from 1 to 1024; nearest: 1"),
    (["reproduce", "--workers", "two"], "got two; allowed: a whole number from 1 to 1024"),
    (["reproduce", "--profile", "quik"], "no such profile 'quik'; did you mean 'quick'? known: smoke, quick, reduced, full"),
    (["reproduce", "demo/pag"], "did you mean 'demo/page'"),
    (["reproduce", "page", "--set", "seed=1"], "no such parameter 'seed'; did you mean 'seeds'"),
    (["reproduce", "page", "--set", "seeds"], "'seeds': a parameter is set by name=value"),
    (["reproduce", "page", "--set", "seeds=7"], "seeds=7 is a int; demo/page has seeds = [0]"),
    (["reproduce", "page", "--set", "profile=full"], "profile is set by --profile"),
    (["reproduce", "--data-dir", "nowhere"], "'nowhere' does not exist"),
    (["run", "study-rq"], "did you mean 'study-rq"),
    (["records", "promot"], "Did you mean 'promote'?"),
    (["records", "promote", "stdy"], "no such experiment 'stdy'; did you mean 'study'"),
    (["records", "promote", "--profile", "ful"], "did you mean 'full'"),
    (["records", "promote", "--profile", "smoke"], "'smoke' cannot be promoted; quick, reduced, full can"),
    (["data", "fetch", "mnst"], "did you mean 'mnist'"),
    (["site", "--port", "99999"], "got 99999; allowed: a whole number from 0 to 65535; nearest: 65535"),
])
def test_mistakes_are_told_with_the_nearest_right_thing(checkout, robustnb, words, said):
    Store(checkout / ".robustnb/records").append(Record("study", {"seed": 0}, {}, "smoke"))
    status, printed, complained = robustnb(*words)
    assert status == 2 and said in " ".join(complained.replace("│", " ").split()) and "Traceback" not in complained


def test_help_tells_defaults_that_are_no_values(robustnb):
    for words, said in ((("evaluate",), "[default: that of the data set]"), (("records", "promote"), "[default: all]")):
        status, printed, _ = robustnb(*words, "-h")
        assert status == 0 and said in " ".join(printed.replace("\u2502", " ").split())


def test_bugs_keep_their_traceback(checkout, monkeypatch):
    monkeypatch.setattr(cli, "notebooks", lambda: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["robustnb", "list"])
    with pytest.raises(ZeroDivisionError): cli.main()


def test_outside_a_checkout(tmp_path, robustnb, monkeypatch):
    monkeypatch.setenv("ROBUSTNB_ROOT", str(tmp_path))
    for command in ("list", "site"): assert robustnb(command) == (2, "", "error: no checkout of robustnb here (settings.ini and nbs/); go there, or set ROBUSTNB_ROOT\n")


@dataclass(frozen=True)
class Cell:
    seed: int = 0
    good: bool = True


def work(cell, context):
    if not cell.good: raise ValueError("no good")
    return {"twice": 2 * cell.seed}


def test_run_without_notebooks(checkout, robustnb, monkeypatch):
    monkeypatch.setenv("ROBUSTNB_CACHE", str(checkout / "cache"))
    demo = types.SimpleNamespace(cells=lambda profile: [Cell(seed) for seed in range({"smoke": 1, "quick": 3}[profile])], function=work)
    spoilt = types.SimpleNamespace(experiment="demo", cells=lambda profile: [Cell(9, good=False)], function=work)
    monkeypatch.setitem(sys.modules, "demos", types.SimpleNamespace(demo=demo, spoilt=spoilt))
    monkeypatch.setattr(cli, "experiments", lambda: {"demo-one": "demos:demo", "demo-two": "demos:spoilt", "demo-three": "demos:nothing"})
    assert robustnb("run", "demo-one", "--profile", "quick", "--workers", 1)[:2] == (0, "3 cells of demo-one (quick) are recorded in .robustnb/records\n")
    assert [r.metrics["twice"] for r in Store(checkout / ".robustnb/records").records("demo", "quick")] == [0, 2, 4]
    status, _, said = robustnb("run", "demo-two", "--workers", 1)
    assert status == 1 and "error: 1 of 1 cells of 'demo' failed" in said and "- Cell(seed=9, good=False): ValueError: no good" in said
    status, _, said = robustnb("run", "demo-three")
    assert status == 2 and "experiment 'demo-three' is not there yet" in said
    assert robustnb("run", "demo-one", "--records", "mine", "--profile", "smoke", "--workers", 1)[0] == 0 and (checkout / "mine/demo.jsonl").exists()


def test_interrupted_commands_tell_how_to_go_on(checkout, robustnb, monkeypatch):
    def interrupted(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(cli, "reproduce", interrupted), monkeypatch.setattr(cli, "run_experiment", interrupted)
    for words in (["reproduce"], ["run", "study-rq1"]):
        status, printed, _ = robustnb(*words)
        assert status == 130 and "finished cells are recorded; the same command goes on from there" in printed


def test_records_check_is_for_ci(checkout, robustnb):
    own = Store(checkout / ".robustnb/records")
    own.append(Record("demo", {"seed": 0}, {}, "quick"))
    assert robustnb("records", "check")[0] == 0
    status, _, said = robustnb("records", "promote")
    assert status == 2 and "made outside a git checkout (--force promotes it all the same)" in said
    assert robustnb("records", "promote", "--force")[1] == "1 records promoted to results/; commit them\n"
    with open(checkout / "results/demo.jsonl", "a") as file: file.write("<<<<<<< ours\n")
    status, printed, _ = robustnb("records", "check")
    assert status == 1 and "error  results/demo.jsonl:2: not JSON" in printed


def test_site_builds_and_serves(checkout, robustnb, monkeypatch):
    calls = []
    def build(out, root, frame):
        calls.append(("build", out, root, frame))
        (out / "x").parent.mkdir(exist_ok=True), (out / "index.html").touch()
        return out / "index.html"
    fake = types.ModuleType("robustnb.lab.site")
    fake.build, fake.serve = build, lambda out, port: calls.append(("serve", out, port))
    fake.verdicts_meanwhile = lambda root: nullcontext(types.SimpleNamespace(result=lambda: "verdicts"))
    fake.refuse_foreign = lambda out, root: None
    monkeypatch.setitem(sys.modules, "robustnb.lab.site", fake), monkeypatch.setattr("robustnb.lab.site", fake, raising=False)
    status, printed, _ = robustnb("site")
    assert status == 0 and "the site is in _docs/index.html" in printed and "make view" in printed
    robustnb("site", "--serve", "--port", 0)  # built already: served as it is
    assert calls == [("build", checkout / "_docs", checkout, "verdicts"), ("serve", checkout / "_docs", 0)]
    robustnb("site", "--serve", "--out", "elsewhere")
    assert [c[0] for c in calls[2:]] == ["build", "serve"]
    def refuse(out, root): raise ValueError("no site built by robustnb")
    fake.refuse_foreign, fake.verdicts_meanwhile = refuse, None  # before pages and verdicts are made
    assert robustnb("site", "--out", "foreign") == (2, "", "error: no site built by robustnb\n") and len(calls) == 4


def test_claims_are_counted(checkout, robustnb, monkeypatch):
    import pandas as pd

    table = pd.DataFrame(dict(id=["S1", "S2", "S3"], reading="literal", verdict=["holds", "fails", "holds"], share=[1.0, 0.0, None],
                              n_seeds=[1, 1, 0], profile=["quick", "quick", None], provisional=[True, True, False]))
    fake = types.ModuleType("robustnb.lab.verdicts")
    monkeypatch.setitem(sys.modules, "robustnb.lab.verdicts", fake)
    def unknown(paper=None, store=None): raise ValueError("no such paper 'stdy'; did you mean 'study'?")
    fake.verdicts = unknown
    assert robustnb("claims", "stdy") == (2, "", "error: no such paper 'stdy'; did you mean 'study'?\n")
    fake.verdicts = lambda paper=None, store=None: table
    status, printed, _ = robustnb("claims", "study")
    assert status == 0 and [line.split()[:3] for line in printed.splitlines()[1:3]] == [["S1", "literal", "holds"], ["S2", "literal", "fails"]]
    assert printed.splitlines()[-2:] == ["reading  holds  fails  ", "literal  2      1      "]


def test_data_fetch_goes_on_after_a_set_that_cannot_be_had_and_tells_of_all_once(checkout, robustnb, monkeypatch):
    monkeypatch.setenv("ROBUSTNB_CACHE", str(checkout / "cache")), monkeypatch.setenv("ROBUSTNB_OFFLINE", "1")
    status, printed, told = robustnb("data", "fetch", "mnist", "digits", "cifar10")
    assert status == 1 and "digits train: 1,000 images, 10 classes" in printed and "digits test: 797 images" in printed
    assert "Cannot be had: mnist, cifar10" in told and told.count("ROBUSTNB_OFFLINE=1") == 1 and len(told.strip().splitlines()) <= 10
    status, printed, told = robustnb("data", "fetch", "digits", "mnst")
    assert status == 2 and not printed and "did you mean 'mnist'" in told  # before anything is fetched


def test_data_where(checkout, robustnb, monkeypatch):
    monkeypatch.setenv("ROBUSTNB_CACHE", str(checkout / "cache")), monkeypatch.delenv("ROBUSTNB_DATA", raising=False)
    (checkout / "cache/data").mkdir(parents=True)
    (checkout / "cache/data/mnist-train.npz").write_bytes(b"x" * 100_000)
    status, printed, _ = robustnb("data", "where")
    assert status == 0 and "(not set)" in printed and "mnist-train.npz  0.1 MB" in printed


def test_a_run_fetches_first_what_its_notebooks_need(monkeypatch, capsys):
    from robustnb import cli, data

    asked = []
    def prepare(names):
        asked.append(names)
        return {name: "" if name == "mnist" else "no network" for name in names}
    monkeypatch.setattr(data, "prepare", prepare)
    ready, without = cli.with_data(["study/rq1", "eriep/fig2", "dem_hec/errata"], "quick")
    assert asked == [["cifar10", "mnist"]]
    assert ready == ["dem_hec/errata", "study/rq1"] and without == ["eriep/fig2"]


def test_the_clean_accuracy_is_the_first_line_of_an_evaluation(tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "bright.py").write_text("def make(): return lambda x: (x.mean((1, 2, 3))[:, None] - 0.5) * __import__('torch').tensor([-1.0, 1.0])\n")
    for shade, name in ((0, "dark"), (255, "light")):
        (tmp_path / f"pictures/{name}").mkdir(parents=True)
        Image.new("RGB", (32, 32), (shade,) * 3).save(tmp_path / f"pictures/{name}/a.png")
    cli.app(["evaluate", "bright:make", "pictures", "--corruptions", "contrast", "--severities", "1"], standalone_mode=False)
    answer, beside = capsys.readouterr()
    assert answer.splitlines()[0].split()[:3] == ["accuracy,", "clean", "1.000"]
    assert "dark" in beside and "dark" not in answer  # the order of the classes is said, elsewhere


@pytest.mark.parametrize("words", [["corrupt", "mnist", "--out"], ["evaluate", "lenet5", "mnist", "--out"], ["site", "--out"], ["records", "list", "--records"]])
def test_links_that_lead_nowhere_are_named(words, robustnb, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop"), (tmp_path / "gone").symlink_to("nowhere")
    for name in ("loop", "gone", "gone/below"):
        status, _, error = robustnb(*words, tmp_path / name)
        assert status == 2 and "alinkthatleadsnowhere" in "".join(c for c in error if c.isalnum()) and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("words, said", [
    (["evaluate", "lenet5", "mnist", "--severities", "1;2"], "severities are whole numbers with commas between, such as 1,3,5; got '1;2'"),
    (["corrupt", "mnist", "--out", "x", "--severities", "\u2460"], "severities are whole numbers"),
    (["corrupt", "pictures", "--out", "x", "--size", "9999999"], "nearest: 8192"),
    (["run", "study", "--minutes", "nan"], "in nan minutes no cell begins; give more than 0"),
])
def test_odd_numbers_are_told(words, said, robustnb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, error = robustnb(*words)
    assert status == 2 and said in " ".join(error.replace("│", " ").split()) and not list(tmp_path.iterdir())


def below(folder): return sorted(folder.rglob("*"))


EVALUATE = ("evaluate", "lenet5", "digits")


@pytest.mark.parametrize("words, said", [
    *(((*EVALUATE, option, given), said) for option, given, said in (
        ("--images", 0, "of at least 1; nearest: 1"), ("--severities", 0, "from 1 to 5, got 0"),
        ("--severities", "9" * 5000, "such as 1,3,5; got '99"), ("--batch", 0, "nearest: 1"),
        ("--size", 0, "nearest: 8"), ("--expect", 76, "nearest: 1.0"),
        ("--expect", -1, "nearest: 0.0"), ("--expect", "nan", "from 0 to 1"),
        ("--workers", 100000, "nearest: 1024"), ("--device", "nosuch", "no such device here 'nosuch'"),
        ("--device", "meta", "known: cpu"), ("--corrupt-on", "gpu", "known: cpu, device"),
        ("--out", "a" * 300, "name a shorter one"),
        *(("--shard", given, "such as 0/2 and 1/2; got")
          for given in ("2/2", "0/0", "a/b", "\u00b2/3", "9" * 5000 + "/1")),
    )),
    *((("corrupt", "digits", "--out", "x", option, given), said) for option, given, said in (
        ("--images", 0, "of at least 1; nearest: 1"), ("--severities", 0, "from 1 to 5, got 0"),
        ("--workers", 100000, "nearest: 1024"),
    )),
    *((("run", "study", "--minutes", given), "give more than 0") for given in (-1, "nan", 0)),
    (("run", "study", "--profile", "huge"), "no such profile"),
    (("rerun", "--workers", 0), "nearest: 1"), (("rerun", "--workers", 10**5), "nearest: 1024"),
    *((("rerun", "--seeds", given), "seeds are whole numbers") for given in ("a", "1.5", "\u00b2")),
    (("rerun", "--seeds", "0,-1"), "from 0 to 4294967295; got -1"),
    *(((*words, "nbs/papers/demo/page.ipynb"), "is a file") for words in (
        (*EVALUATE, "--out"), ("corrupt", "digits", "--out"), ("compare", "A", "B", "--out"), ("site", "--out"),
        ("merge", "nbs", "--out"), ("records", "replay", "study", "--out"), ("records", "promote", "--records"),
        ("data", "fetch", "mnist", "--data-dir"),
    )),
    *((("records", *words), "results holds no records") for words in (
        ("verify",), ("attest",), ("attest", "study"), ("replay", "study"),
    )),
    (("records", "promote", "study", "--records", "nbs"), "nbs holds no records"),
    *(((*EVALUATE, option, given), f"{option} was given nothing") for given in ("", " ") for option in (
        "--out", "--corruptions", "--severities", "--weights", "--clean", "--data-dir", "--class-index", "--also",
        "--normalize", "--baseline", "--device", "--benchmark", "--address", "--split", "--images",
    )),
    ((*EVALUATE, "--out="), "--out was given nothing"), (("corrupt", "", "--out", "x"), "the word after corrupt is nothing"),
    (("records", "list", "--records", ""), "--records was given nothing"), (("data", "check", ""), "after check is nothing"),
    *((("data", "check", option, given), f"{option} compare a published set") for option, given in (
        ("--clean", "digits"), ("--images", 200), ("--benchmark", "cifar10-c"))),
    (("rerun", "--seeds", ""), "--seeds was given nothing"), (("",), "the word after robustnb is nothing"),
    *(((*words.split(), "--records", "nsb"), "no such folder 'nsb'; did you mean 'nbs'?") for words in (
        "list", "claims", "records list", "records promote")),
    *(((*words.split(), "--records", "nbs/../results/mine"), "where committed records are; name another, such as")
      for words in ("run study", "reproduce", "rerun")),
    (("compare", "nbs", "settings.ini"), "is no report"), (("compare", "nbs", "nbs/papers/.."), "was given twice"),
], ids=lambda v: "-".join(map(str, v))[:60] if isinstance(v, tuple) else "")
def test_odd_words_end_before_anything_is_done(checkout, robustnb, words, said):
    before = below(checkout)
    status, printed, told = robustnb(*words)
    assert status == 2 and said in " ".join(told.replace("\u2502", " ").split()) and below(checkout) == before


def test_a_file_that_was_named_for_the_records(checkout, robustnb, monkeypatch):
    monkeypatch.setenv("ROBUSTNB_RECORDS", "settings.ini")
    reading = "list", "claims", "records", "records list", "records check", "records promote"
    for word in (*reading, "run study", "reproduce", "rerun"):
        status, _, told = robustnb(*word.split())
        assert status == 2 and "(ROBUSTNB_RECORDS)" in " ".join(told.replace("\u2502", " ").split()), word


def test_a_run_named_by_the_environment_never_writes_among_the_committed_records(checkout, robustnb, monkeypatch):
    monkeypatch.setenv("ROBUSTNB_RECORDS", "results")
    before = below(checkout)
    for word in ("run study --profile smoke", "reproduce", "rerun"):
        status, _, told = robustnb(*word.split())
        assert status == 2 and "where committed records are" in " ".join(told.replace("\u2502", " ").split()), word
    with pytest.raises(RecordError, match="where committed records are"):  # a notebook on its own, or a script
        run_cells("demo", [Cell()], work, open_store(), "quick", progress=False)
    assert below(checkout) == before and robustnb("records", "list")[0] == 0


def test_no_lock_is_left_in_the_cache(checkout, robustnb, monkeypatch):
    monkeypatch.setenv("ROBUSTNB_CACHE", str(checkout / "cache")), monkeypatch.setenv("ROBUSTNB_OFFLINE", "1")
    for words in (("fetch", "mnist", "tiny_imagenet"), ("check",)):
        assert "annot be had" in "".join(robustnb("data", *words)[1:]) or words == ("check",)
        assert list((checkout / "cache/data").iterdir()) == []


def test_nothing_is_written_among_the_images(checkout, robustnb, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a compiled nets.py is nothing that was written among images
    for shade, name in ((0, "dark"), (255, "light")):
        (checkout / f"pictures/{name}").mkdir(parents=True)
        Image.new("RGB", (16, 16), (shade,) * 3).save(checkout / f"pictures/{name}/a.png")
    (checkout / "nets.py").write_text("def make(): return lambda x: x.mean((2, 3))[:, :2]\n")
    before, net = below(checkout), ("evaluate", "nets:make", "pictures", "--corruptions", "contrast")
    for words, said in (
        *(((*net, "--out", out), "such as --out pictures-report")
          for out in ("pictures", "pictures/x", "pictures/dark")),
        (("evaluate", "nets:make", "digits", "--clean", "pictures", "--out", "pictures/x"), "--out pictures-report"),
        (("corrupt", "pictures", "--out", "pictures/x"), "such as --out pictures-c"),
        (("corrupt", "pictures", "--out", "x", "--images", 10**10), "ask for 2 to 2"),
        ((*net, "--images", 10**10), "ask for 2 to 2"), ((*net, "--shard", "8/9"), "enough for 1 at most, such as 0/1"),
        ((*net, "--baseline", "nosuch"), "no such published baseline 'nosuch'; known: alexnet"),
    ):
        status, _, told = robustnb(*words)
        assert status == 2 and said in told and below(checkout) == before, (words, told)


def test_minutes_without_end():
    from robustnb.lab.experiments import time_limit
    with time_limit(float("inf")): done = True  # longer than a timer holds
    assert done


def test_records_that_cannot_be_kept_are_not_computed(robustnb, tmp_path):
    (tmp_path / "file").write_text("x")
    for place, said in ((tmp_path / "file", "isafile"), (tmp_path / "file/below", "isafile"), ("/proc/none/records", "procnone")):
        status, _, error = robustnb("run", "study", "--profile", "smoke", "--records", place)
        assert status == 2 and said in "".join(c for c in error if c.isalnum())


@pytest.fixture
def nets(checkout, monkeypatch):
    "Ten outputs, of which one is right where an image is bright enough; and such as go wrong."
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("ROBUSTNB_PROGRESS", "0")
    monkeypatch.delitem(sys.modules, "tens", raising=False)
    (checkout / "tens.py").write_text(
        "import torch\ndef ten(): return lambda x: -100 * (x.mean((1, 2, 3))[:, None] - torch.linspace(0, 1, 10)) ** 2\n"
        "def nan(): return lambda x: ten()(x) / (1 if x.shape[0] < 9 else 0) * 0\n"
    )
    return checkout


def shades(folder, names, count=2, size=16):
    from PIL import Image

    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for k in range(count): Image.new("RGB", (size, size), (20 * i + k,) * 3).save(folder / name / f"{k}.png")


def test_what_is_left_out_is_told(nets, robustnb):
    shades(nets / "pictures", "abcdefghij")
    (nets / "pictures/a/x.heic").touch(), (nets / "pictures/b/.y.heic").touch(), (nets / "pictures/z.png").touch()
    (nets / "pictures/b/Thumbs.db").touch()
    told = "left out: 1 file (.heic), 1 picture beside the class folders"
    asked = "pictures", "--corruptions", "contrast", "--severities", "1", "--workers", 0
    status, _, error = robustnb("evaluate", "tens:ten", *asked, "--out", "report")
    assert status == 0 and error.count(told) == 1 and told[10:] in (nets / "report/report.html").read_text()
    status, _, error = robustnb("corrupt", *asked, "--out", "c")
    assert status == 0 and error.count(told) == 1


def test_a_class_index_beyond_the_outputs(nets, robustnb, recwarn):
    shades(nets / "pictures", ("1_a", "2_b", "10_c"))
    asked = "evaluate", "tens:ten", "pictures", "--corruptions", "contrast", "--workers", 0
    assert "is 10_c the last output (by number)" in robustnb(*asked)[2]
    for numbers, said in (
        ((3, 4, 14), "index.json names outputs up to 14 (10_c), and tens:ten has 10: give numbers from 0 to 9"),
        ((3, 4.5, 5), "index.json: 2_b has '4.5'; an output is a whole number"),
        ((3, 3, 5), "1_a and 2_b are both output 3"),
    ):
        (nets / "index.json").write_text(json.dumps(dict(zip(("1_a", "2_b", "10_c"), numbers))))
        status, _, error = robustnb(*asked, "--class-index", "index.json")
        assert status == 2 and said in error
    (nets / "index.json").write_bytes(b'\xef\xbb\xbf{"1_a": 0, "2_b": 1, "10_c": 2}')
    status, _, error = robustnb(*asked, "--class-index", "index.json", "--severities", "1", "--out", "x")
    assert status == 0 and "as the class index says" in error
    assert not [w for w in recwarn if "outputs and the images" in str(w.message)]  # the index says which are meant


def test_a_set_of_some_images_knows_which(nets, robustnb):
    few = "--corruptions", "contrast", "--severities", "1"
    assert robustnb("corrupt", "digits", "--images", 50, *few, "--workers", 0, "--out", "c")[0] == 0
    status, printed, error = robustnb("data", "check", "c", "--clean", "digits")
    assert status == 0 and "0 of 3,200 bytes differ" in printed, error
    status, printed, error = robustnb("evaluate", "tens:ten", "c", "--clean", "digits", *few, "--out", "report", "--workers", 0)
    assert status == 0 and "clean images: digits" in error and "50 images, 2 conditions" in printed
    assert "50 images, 2 conditions" in robustnb("evaluate", "tens:ten", "c", *few, "--out", "r", "--workers", 0)[1]
    manifest = json.loads((nets / "c/manifest.json").read_text())
    (nets / "c/manifest.json").write_text(json.dumps(manifest | {"fingerprint": "0" * 16}))
    for words in (("data", "check", "c"), ("evaluate", "tens:ten", "c", *few)):
        status, _, error = robustnb(*words, "--clean", "digits")
        assert status == 2 and "is not the set that c was made of: its manifest says digits, fingerprint 0000" in error


def test_pictures_of_some_images_know_which(nets, robustnb):
    few = "--corruptions", "contrast", "--severities", "1", "--workers", 0
    shades(nets / "pictures", "abcdefghij", count=3)
    for more in ((), ("--size", 24)):
        out = f"c{len(more)}"
        assert robustnb("corrupt", "pictures", "--images", 20, *few, *more, "--format", "png", "--out", out)[0] == 0
        status, printed, error = robustnb("evaluate", "tens:ten", out, "--clean", "pictures", *few, "--out", f"r{out}")
        assert status == 0 and "20 images, 2 conditions" in printed, error


def test_a_model_that_was_given_twice(nets, robustnb, monkeypatch):
    asked = "digits", "--corruptions", "contrast", "--severities", "1", "--images", 20, "--workers", 0
    def never(*_, **__): raise AssertionError("asked")
    monkeypatch.setattr("robustnb.robustness.measure", never)
    status, _, error = robustnb("evaluate", "tens:ten", *asked, "--also", "tens:nan", "--also", "tens:ten")
    assert status == 2 and "model 3, tens:ten, is given twice; the models of a comparison must be different" in error
    (nets / "a.pt").write_bytes(b"x")
    status, _, error = robustnb("evaluate", "a.pt", *asked, "--also", "./a.pt")
    assert status == 2 and "model 2, ./a.pt, is the same model as a.pt" in error


def test_going_on_is_offered_where_it_can_be(nets, robustnb):
    asked = "digits", "--corruptions", "contrast", "--severities", "1", "--images", 20, "--workers", 0
    status, _, error = robustnb("evaluate", "tens:nan", *asked)
    assert status == 1 and "not finite" in error and "same command" not in error
    blurred = ("digits", "--corruptions", "defocus_blur", "--benchmark", "imagenet-c", "--severities", "1,5", "--workers", 0)
    before = below(nets)
    for words in (("evaluate", "tens:ten"), ("corrupt", "--out", "c")):
        status, _, error = robustnb(*words, *blurred)
        assert status == 2 and "images of at least 13x13, got 8x8; leave defocus_blur 5 out" in error
        assert "same command" not in error and below(nets) == before


@pytest.mark.parametrize("name, text", [
    ("table.csv", "benchmark,corruption,severity,accuracy\ncifar10-c,clean,0,0.9\ncifar10-c,fog,1,0.5\n"),
    ("table.json", json.dumps(dict(rows=[
        dict(benchmark="cifar10-c", corruption=name, severity=s, accuracy=a) for name, s, a in (("clean", 0, 0.9), ("fog", 1, 0.5))
    ]))),
])
def test_a_baseline_that_an_editor_saved(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    table = cli.baseline_of(str(tmp_path / name))
    assert table.columns[0] == "benchmark" and table.accuracy.iloc[-1] == 0.5


def test_words_between_colons_are_no_emoji(checkout, robustnb):
    from rich.table import Table

    status, _, said = robustnb("evaluate", "netz:ten", "mnist:ten:")
    assert status == 2 and "no such data set 'mnist:ten:'" in said
    table = Table("a:ten:")
    table.add_row("b:ten:")
    with cli.out.capture() as caught:
        cli.out.print("c:ten:", markup=False)
        cli.out.print(table)
    assert all(f"{letter}:ten:" in caught.get() for letter in "abc")


def test_of_several_sets_of_weights_a_line_says_which(tmp_path, monkeypatch, robustnb):
    import torch
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "fewnets.py").write_text("from torch import nn\ndef two(): return nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))\n")
    for shade, name in ((0, "dark"), (255, "light")):
        (tmp_path / f"pictures/{name}").mkdir(parents=True)
        Image.new("RGB", (32, 32), (shade,) * 3).save(tmp_path / f"pictures/{name}/a.png")
    state = {"1.weight": torch.tensor([[-1.0], [1.0]]).expand(2, 3072).clone(), "1.bias": torch.tensor([1536.0, -1536.0])}
    torch.save({"state_dict": state, "state_dict_ema": {k: -v for k, v in state.items()}}, "both.pt")
    torch.save({f"{w}.{k}": v + i for i, w in enumerate(("teacher", "student")) for k, v in state.items()}, "twice.pt")
    torch.save(state | {"1.weight": state["1.weight"].to(torch.int8)}, "whole.pt")
    ask = lambda *words: robustnb("evaluate", *words, "--corruptions", "contrast", "--severities", "1")
    status, answer, beside = ask("fewnets:two", "pictures", "--weights", "both.pt")
    assert status == 0 and answer.split()[:3] == ["accuracy,", "clean", "1.000"]
    assert "weights: `state_dict` of both.pt; it also holds `state_dict_ema`\n" in beside
    for words, said in (
        (("fewnets:two", "--weights", "twice.pt"), "under `student.` and under `teacher.`"),
        (("fewnets:two", "--weights", "whole.pt"), "1.weight is int8, the network has float32"),
        (("fewnets:two", "--weights", "boht.pt"), "no file of weights at boht.pt (did you mean 'both.pt'?)"),
        (("lenet5", "--weights", "mnits"), "did you mean 'mnist'? known: mnist"),
        (("fewnets.py:two",), "a factory is named by its module: fewnets:two"),
        (("fewnets.py",), "fewnets.py is Python code; name a function in it that returns the model: fewnets:two"),
        (("pictures/dark/a.png",), "a.png is no model file"),
    ):
        status, _, beside = ask(words[0], "pictures", *words[1:])
        assert status == 2 and said in beside and "Traceback" not in beside, (words, beside)


def test_a_closed_console_is_no_fault(checkout):
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        ended = subprocess.run(
            ["sh", "-c", f'"{sys.executable}" -m robustnb.cli list {closed}'], capture_output=True, text=True
        )
        assert (ended.returncode, ended.stderr) == (0, "")


def test_a_second_sigterm_does_not_break_off_the_end(robustnb, monkeypatch):
    tidied = []
    def app(prog_name):
        with cli.interruptible():
            try: signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)  # while workers are ended
                tidied.append(True)
    monkeypatch.setattr(cli, "app", app)
    assert robustnb("evaluate") == (143, f"\nended: {cli.ON}\n", "") and tidied == [True]


def test_names_that_no_report_can_hold_are_told_before_the_work(checkout, robustnb, monkeypatch):
    monkeypatch.setattr(cli, "evaluate_one", lambda given: pytest.fail("the work began"))
    name = os.fsdecode(b"set\xff")
    (checkout / "s").mkdir()
    for words in (
        ("evaluate", "lenet5", name), ("evaluate", "lenet5", "mnist", "--out", name),
        ("evaluate", "mnist", "mnist", "--weights", f"m:{name}"), ("merge", "s", "--out", name), ("corrupt", "mnist", "--out", name),
    ):
        status, _, said = robustnb(*words)
        assert status == 2 and f"{words[-1] if name in words[-1] else name}".replace("\udcff", "\\udcff") in said
        assert "has no name in UTF-8, so no report can name it; rename it" in said and not (checkout / name).exists()
