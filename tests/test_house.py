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
ALLOWED = {"basics", "images", "resampling", "statistics"}  # of the library, for the lab


def modules() -> dict[str, Path]:
    "All modules of the package, by their dotted names without the package's."
    package = ROOT / "robustnb"
    found = {".".join(p.relative_to(package).with_suffix("").parts): p for p in package.rglob("*.py")}
    return {name: path for name, path in found.items() if not name.endswith(("__init__", "_modidx"))}


def imported_by(name: str, path: Path) -> set[str]:
    "Modules of the package that a module imports."
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level and not (node.module or "").startswith("robustnb."): continue
        base = name.split(".")[:-node.level] if node.level else []
        found.add(".".join([*base, *((node.module or "").removeprefix("robustnb.").split(".") if node.module else [])]))
    return found


def test_every_library_module_is_closed_to_the_lab_or_allowed():
    "A new module of the library is entered in the contract, else the lab could use it unseen."
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    closed = next(set(c["forbidden_modules"]) for c in config if c.get("source_modules") == ["robustnb.lab"])
    doors = {name for name, path in modules().items() if "." not in name and any(m.startswith(("lab", "papers", "benchmarks")) for m in imported_by(name, path))}
    library = {name for name in modules() if "." not in name} - doors
    assert {f"robustnb.{name}" for name in library - ALLOWED} == closed


def test_lab_names_no_paper():
    "Nor does it import one."
    for name, path in modules().items():
        if name.startswith("lab."): assert not any(m.startswith(("papers", "benchmarks")) for m in imported_by(name, path)), name


def test_a_notebook_lies_where_its_module_does():
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        relative = path.relative_to(ROOT / "nbs")
        if any(part[0] in "._" for part in relative.parts): continue
        source = "\n".join("".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"])
        module = re.search(r"^#\s*\|\s*default_exp\s+(\S+)", source, re.M)
        if module: assert tuple(module[1].split(".")[:-1]) == relative.parts[:-1], path
        assert bool(module) == bool(re.match(r"\d", path.name)), f"{path}: a number goes with what is exported"


def test_no_module_defines_a_name_twice():
    "The second definition would silently stand for the first."
    for path in (ROOT / "robustnb").rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names = collections.Counter(n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.decorator_list)
        assert not [name for name, count in names.items() if count > 1], path


TRY = """
from robustnb.claims import verdicts
from robustnb.lab import registry, site
from robustnb.lab.experiments import run_experiment
from robustnb.lab.records import Store
from robustnb.lab.reproduce import notebooks
print(list(registry.papers()), registry.experiments()["toy"])
run_experiment("toy", Store("mine"), "smoke", progress=False)
table = verdicts("toy", Store("mine"), "smoke")
print(table[["id", "in_print", "verdict"]].values.tolist())
print("Toy paper" in site.glance(verdicts(store=Store("mine")), ["papers/toy/table1.ipynb"]), [s["section"] for s in site.fill_papers(["papers"])])
print([n.name for n in notebooks() if n.name.startswith("toy")])
"""


def test_a_fifth_paper_is_one_folder(tmp_path):
    "The template, copied into a checkout and exported, is found by commands, verdicts, site and contracts."
    for name in ("nbs", "robustnb"): shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "pyproject.toml", "README.md", "_quarto.yml"): shutil.copy(ROOT / name, tmp_path / name)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "_modidx.py"}
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "ROBUSTNB_ROOT": str(tmp_path), "ROBUSTNB_CACHE": str(tmp_path / "cache")}
    run = lambda *command: subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    made = run(sys.executable, "-c", "from robustnb.lab.registry import new_paper; new_paper('toy', 'Toy paper')")
    assert not made.returncode, made.stderr
    for notebook in sorted((tmp_path / "nbs/papers/toy").glob("[0-9]*.ipynb")):
        exported = run("nbdev_export", "--path", str(notebook))
        assert not exported.returncode, exported.stderr
    assert {p: p.read_bytes() for p in before} == before, "something shared was edited"
    said = run(sys.executable, "-c", TRY)
    assert not said.returncode, said.stderr
    lines = said.stdout.splitlines()
    assert "'toy'" in lines[0] and "robustnb.papers.toy.protocol:whole" in lines[0]
    assert lines[1] == "[['M-01', 'yes', 'holds']]"
    assert lines[2].startswith("True") and "Toy paper" in lines[2]
    assert lines[3] == "['toy/table1']"
    linted = run("lint-imports", "--no-cache")
    assert not linted.returncode, linted.stdout
    with open(tmp_path / "robustnb/papers/toy/protocol.py", "a") as file: file.write("\nfrom ..study.protocol import study_cells\n")
    assert run("lint-imports", "--no-cache").returncode, "a paper that imports another must break the build"
