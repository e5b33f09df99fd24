"""`pip install robustnb` alone: what corruptions, attacks, training and `evaluate` need is no extra."""
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IMPORTED_AS = {
    "pyyaml": "yaml", "import-linter": "importlinter", "imagecorruptions-imaug": "imagecorruptions",
    "jupyter-client": "jupyter_client",
}
BLOCKED = """
import sys
class Without:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name): return getattr(self.finder, name)
sys.meta_path[:] = [Without(f) for f in sys.meta_path]
"""
USE = """
import torch
from robustnb.attacks import fgsm
from robustnb.corruptions import corrupt
from robustnb.data import sample
from robustnb.models import create
from robustnb.robustness import evaluate, gaussian_levels
from robustnb.training import Recipe, fit
images, net = sample("mnist", "test").take(slice(0, 20)), create("lenet5", seed=0)
assert corrupt(images.float(), "fog", 3, generator=torch.Generator().manual_seed(0)).shape == images.x.shape
fit(net, images, recipe=Recipe(epochs=1, batch=10), device="cpu", progress=False)
assert fgsm(net, images.float(), images.y, 0.1).shape == images.x.shape
assert len(evaluate(net, images, ("contrast",), (1,), show=False)) == 2 and len(gaussian_levels(net, images, (2.0,), show=False)) >= 1
"""


def name_of(requirement: str) -> str:  # "numpy>=2; extra == 'x'" -> "numpy"
    return re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-")


def brought(names: set[str]) -> set[str]:
    "Distributions and all that they require."
    found, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name in found: continue
        found.add(name)
        try: todo += [name_of(r) for r in metadata.requires(name) or () if "extra ==" not in r]
        except metadata.PackageNotFoundError: pass
    return found


def extras() -> set[str]:
    "Top-level modules that only the extras bring."
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {name_of(text) for group in project["optional-dependencies"].values() for text in group}
    only = named - brought({name_of(text) for text in project["dependencies"]}) - {"setuptools"}
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in only}


def run(code: str, blocked: set[str] | None = None) -> subprocess.CompletedProcess:
    blocked = extras() | {"IPython"} if blocked is None else blocked
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked) + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def bare():
    "One interpreter without any extra: it uses the library, then imports every module, and says how far it came."
    doors = {"cli", "claims", "rerun", "_modidx"}
    names = [p.stem for p in sorted((ROOT / "robustnb").glob("*.py")) if p.stem not in doors | {"__init__"}]
    imports = "".join(f"importlib.import_module('robustnb.{name}')\n" for name in names)
    return run(f"{USE}print('used')\nimport importlib\n{imports}print('imported')\n")


def test_the_library_works_without_any_extra(bare):
    assert {"papermill", "smalldocs", "statsmodels", "kornia"} <= extras()
    assert "used" in bare.stdout.split(), bare.stderr[-2000:]


def test_every_library_module_can_be_imported_without_any_extra(bare):
    assert bare.returncode == 0 and bare.stdout.split()[-1] == "imported", bare.stderr[-2000:]


def test_the_command_line_says_what_is_missing():
    done = run("import robustnb.cli", {"typer"})
    assert done.returncode == 1 and "robustnb[lab]" in done.stderr and "Traceback" not in done.stderr


def test_importing_the_corruptions_brings_little_beside_torch():
    "Each of these takes as long to import as a tenth to the whole of torch."
    code = (
        "import sys, torch; there = set(sys.modules); import robustnb.corruptions; print(*(set(sys.modules) - there))"
    )
    new = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert "robustnb.corruptions" in new
    assert not new & {
        "torchvision", "torch._dynamo", "scipy.stats", "scipy.ndimage", "pandas", "matplotlib", "sklearn",
        "papermill",
    }
