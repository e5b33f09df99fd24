"""The house: three storeys, papers that are found by walking, and what a new paper costs."""
import ast
import collections
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {"basics", "cluster", "images", "resampling", "statistics"}  # of the library, for the lab


def modules() -> dict[str, Path]:
    "All modules of the package, by their dotted names without the package's."
    package = ROOT / "robustnb"
    found = {".".join(p.relative_to(package).with_suffix("").parts): p for p in package.rglob("*.py")}
    return {name: path for name, path in found.items() if not name.endswith(("__init__", "_modidx"))}


def imported_by(name: str, path: Path) -> set[str]:
    "Modules of the package that a module imports."
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level and not (node.module or "").startswith("robustnb."):
            continue
        base = name.split(".")[:-node.level] if node.level else []
        found.add(".".join([*base, *((node.module or "").removeprefix("robustnb.").split(".") if node.module else [])]))
    return found


def test_every_library_module_is_closed_to_the_lab_or_allowed():
    "A new module of the library is entered in the contract, else the lab could use it unseen."
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    closed = next(set(c["forbidden_modules"]) for c in config if c.get("source_modules") == ["robustnb.lab"])
    doors = {
        name
        for name, path in modules().items()
        if "." not in name and any(m.startswith(("lab", "papers", "benchmarks")) for m in imported_by(name, path))
    }
    library = {name for name in modules() if "." not in name} - doors
    assert {f"robustnb.{name}" for name in library - ALLOWED} == closed


def test_lab_names_no_paper():
    "Nor does it import one."
    for name, path in modules().items():
        if name.startswith("lab."):
            assert not any(m.startswith(("papers", "benchmarks")) for m in imported_by(name, path)), name


def test_a_notebook_lies_where_its_module_does():
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        relative = path.relative_to(ROOT / "nbs")
        if any(part[0] in "._" for part in relative.parts): continue
        source = "\n".join("".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"])
        module = re.search(r"^#\s*\|\s*default_exp\s+(\S+)", source, re.M)
        if module: assert tuple(module[1].split(".")[:-1]) == relative.parts[:-1], path
        assert bool(module) == bool(re.match(r"\d", path.name)), f"{path}: a number goes with what is exported"


def test_a_notebook_leaves_the_surroundings_as_they_were():
    "Several are tested one after the other in one process; but for bars, no setting goes on to the next."
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        cells = ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        own = [cell for cell in cells if not re.match(r"#\s*\|\s*export", cell)]
        for line in "\n".join(own).splitlines():
            set_here = re.search(r"os\.environ(\[[^]]*\](, os.*)? = |\.update\(|\.setdefault\()", line)
            assert not set_here or re.findall(r"ROBUSTNB_\w+", line) == ["ROBUSTNB_PROGRESS"], f"{path}: {line}"
        patched = set(re.findall(r"^(\w+) = mock\.patch\.dict\(os\.environ", "\n".join(own), re.M))
        for name in patched: assert own[-2].count(f"{name}.stop()") == 1, f"{path}: {name} is not stopped at the end"


def test_no_module_defines_a_name_twice():
    "The second definition would silently stand for the first."
    for path in (ROOT / "robustnb").rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names = collections.Counter(
            n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.decorator_list
        )
        assert not [name for name, count in names.items() if count > 1], path


MAKE = """
import os
from pathlib import Path
from nbdev.config import add_init
from nbdev.export import nb_export
from robustnb.lab.registry import new_paper
new_paper("toy", "Toy paper")
template = Path("nbs/contrib/_template.ipynb").read_text(encoding="utf-8")
Path("nbs/contrib/10_toy_stripes.ipynb").write_text(template.replace("my_corruption", "toy_stripes"), encoding="utf-8")
os.environ["IN_TEST"] = "1"  # nbdev's own switch: the notebooks' last cell exports nothing
for path in sorted([*Path("nbs/papers/toy").glob("[0-9]*.ipynb"), *Path("nbs/contrib").glob("[0-9]*.ipynb")]): nb_export(path)
add_init("robustnb")
"""

TRY = """
import json
import sys
from pathlib import Path
import pytest
import yaml
from robustnb import cli, corruptions
from robustnb.claims import verdicts
from robustnb.images import sample
from robustnb.lab import registry, site
from robustnb.lab.experiments import run_experiment
from robustnb.lab.pages import expand_sidebar
from robustnb.lab.records import Store
from robustnb.lab.reproduce import notebooks
from robustnb.robustness import evaluate
found = {"papers": list(registry.papers()), "experiment": registry.experiments()["toy"]}
run_experiment("toy", Store("mine"), "smoke", progress=False)
found["claims"] = verdicts("toy", Store("mine"), "smoke")[["id", "in_print", "verdict"]].values.tolist()
found["front page"] = site.glance(verdicts(store=Store("mine")), ["papers/toy/table1.ipynb"])
found["sections"] = [s["section"] for s in site.fill_papers(["papers"])]
found["notebooks"] = [n.name for n in notebooks() if n.name.startswith("toy")]
found["asked"] = cli.chosen_conditions("toy_stripes,fog", "1,5", "15x5")
table = evaluate(lambda x: x.mean((2, 3)).repeat(1, 4)[:, :10], sample("cifar10").take(slice(0, 20)), ["toy_stripes"], (1, 5), show=False)
found["table"] = table[["family", "corruption", "severity"]].values.tolist()
found["names"], found["published"] = corruptions.corruption_names(), corruptions.CORRUPTIONS + corruptions.EXTRA
page = Path("nbs/contrib/10_toy_stripes.ipynb")
description = yaml.safe_load(Path("_quarto.yml").read_text(encoding="utf-8"))
sidebar = expand_sidebar(description["website"]["sidebar"]["contents"], {"contrib/10_toy_stripes.ipynb": "Toy stripes"})
found["page"] = [page in site.nbs_files(Path("nbs")), sidebar]
found["registry tests"] = pytest.main(["-q", "-p", "no:cacheprovider", "tests/test_registries.py", "-k", "toy_stripes"])
Path("found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    "A copy of the checkout with a toy paper and a toy corruption from their templates; and a way to run commands in it."
    copy = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "robustnb"): shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("settings.ini", "pyproject.toml", "README.md", "_quarto.yml"): shutil.copy(ROOT / name, copy / name)
    (copy / "tests").mkdir()
    shutil.copy(ROOT / "tests/test_registries.py", copy / "tests")
    env = {**os.environ, "PYTHONPATH": str(copy), "ROBUSTNB_ROOT": str(copy), "ROBUSTNB_CACHE": str(copy / "cache")}

    def run(*command):
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, done.stderr

    before = {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.is_file() and p.name != "_modidx.py"}
    status, _, complaint = run(sys.executable, "-c", MAKE)
    assert not status, complaint
    assert {p: (copy / p).read_bytes() for p in before} == before, "something shared was edited"
    after = {
        p.relative_to(copy)
        for p in (*copy.glob("nbs/**/*"), *copy.glob("robustnb/**/*"))
        if p.is_file() and "__pycache__" not in p.parts
    }
    status, said, complaint = run(sys.executable, "-c", TRY)
    assert not status, said + complaint
    return json.loads((copy / "found.json").read_text()), {
        p.as_posix() for p in after - {*before, Path("robustnb/_modidx.py")}
    }, copy, run


def test_a_fifth_paper_is_one_folder(extended):
    "The template, copied into a checkout and exported, is found by commands, verdicts and site."
    found, new, *_ = extended
    assert {p for p in new if "contrib" not in p} == {
        p for p in new if p.startswith(("nbs/papers/toy/", "robustnb/papers/toy/"))
    }
    assert "toy" in found["papers"] and found["experiment"] == "robustnb.papers.toy.protocol:experiment"
    assert found["claims"] == [["M-01", "yes", "holds"]] and found["notebooks"] == ["toy/table1"]
    assert "Toy paper" in found["front page"] and "Toy paper" in found["sections"]


def test_a_corruption_of_ones_own_is_one_notebook(extended):
    "Commands, evaluation, registry tests and site know it; the published lists are what they were."
    found, new, *_ = extended
    notebook = "nbs/contrib/10_toy_stripes.ipynb"
    assert {p for p in new if "contrib" in p} == {
        notebook, "robustnb/contrib/__init__.py", "robustnb/contrib/toy_stripes.py"
    }
    assert found["names"] == [*found["published"], "toy_stripes"] and len(found["published"]) == 19
    assert found["asked"] == [["toy_stripes", "fog"], [1, 5]]
    assert found["table"] == [["clean", "clean", 0], ["noise", "toy_stripes", 1], ["noise", "toy_stripes", 5]]
    assert found["page"][0] and "10 Toy stripes" in json.dumps(found["page"][1]) and found["registry tests"] == 0


def test_what_is_new_is_held_to_the_contracts(extended):
    "Without a line in pyproject: neither a paper that imports another nor a corruption that imports a model passes."
    *_, copy, run = extended
    status, said, _ = run("lint-imports", "--no-cache")
    assert not status, said
    for file, line in (
        ("papers/toy/protocol.py", "from ..study.protocol import study_cells"),
        ("contrib/toy_stripes.py", "from ..models import create")
    ):
        with open(copy / "robustnb" / file, "a") as end: end.write(f"\n{line}\n")
    status, said, _ = run("lint-imports", "--no-cache")
    assert (
        status
        and "robustnb.papers.toy.protocol -> robustnb.papers.study.protocol" in said
        and "robustnb.contrib.toy_stripes -> robustnb.models" in said
    ), said


def test_the_audit_of_the_lock_is_told_in_a_few_lines():
    from audit import told

    packages = [
        {"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}, {"id": "CVE-1"}, {"id": "CVE-2"}]},
        {"name": "b", "version": "2", "vulns": []}, {"name": "c", "skip_reason": "unknown"}
    ]
    assert told(json.dumps({"dependencies": packages})) == [
        "warning: a 1: CVE-1, CVE-2",
        "3 packages: 1 with known vulnerabilities, 1 that the index of advisories does not know"
    ]
    assert told("") == told("[]") == ["warning: pip-audit could not be had, or could not ask"]
