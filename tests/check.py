"""`make test`: every check that a change must pass, in order of cost, each with its name and seconds.

A failing check does not stop the later ones; the exit status is 1 when any failed.
"""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORES = os.cpu_count() or 2


def run(*command, cwd=ROOT, **env):
    "Run a command with this environment's programs first; its exit status 0 is a pass."
    return subprocess.run(command, cwd=cwd, env={**os.environ, **env}).returncode == 0


def digests(folder: Path, pattern: str) -> dict[str, str]:
    "Digest of each file below `folder` that fits `pattern`."
    files = [
        p
        for p in sorted(folder.rglob(pattern))
        if not any(part.startswith(".") for part in p.relative_to(folder).parts)
    ]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def same(before: dict, after: dict, advice: str) -> bool:
    "Name the files that differ, with what to do about it."
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in changed: print(f"  {name}: {advice}")
    return not changed


def in_copy(command: str, folder: str, pattern: str, advice: str) -> bool:
    "Run an nbdev command on a copy of the checkout: it must change nothing."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / "copy"
        copy.mkdir()
        for name in ("nbs", "robustnb"):
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            )
        for name in ("settings.ini", "pyproject.toml", "README.md"): shutil.copy(ROOT / name, copy / name)
        before = digests(copy / folder, pattern)
        return run(command, cwd=copy) and same(before, digests(copy / folder, pattern), advice)


def no_nbdev_site() -> bool:
    "nbdev's site commands write these over our arrangement."
    found = [name for name in ("nbs/_quarto.yml", "nbs/nbdev.yml") if (ROOT / name).exists()]
    for name in found: print(f"  {name}: written by nbdev_docs or nbdev_preview; delete it (the site is `make site`)")
    return not found


CHECKS = {
    "no second site description": no_nbdev_site,
    "exported package in sync": lambda: in_copy(
        "nbdev_export", "robustnb", "*.py", "differs from its notebook; run nbdev_export"
    ),
    "notebooks clean": lambda: in_copy("nbdev_clean", "nbs", "*.ipynb", "carries metadata; run nbdev_clean"),
    "layers": lambda: run("lint-imports", "--no-cache"),
    "notebooks run (nbdev_test)": lambda: run(sys.executable, "tests/notebooks.py", OMP_NUM_THREADS="1"),
    # one process more than cores: tests of kills, locks and clients wait for most of their time
    "pytest": lambda: run(
        sys.executable, "-m", "pytest", "-n", str(CORES + 1), "--dist", "loadfile", "--no-loadscope-reorder",
        "--durations=8", OMP_NUM_THREADS="1",
    ),
}


def main() -> int:
    "Run all checks, or those whose name contains the first argument."
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = {name: check for name, check in CHECKS.items() if wanted in name}
    if not chosen: sys.exit(f"no check is named like {wanted!r}; known: {', '.join(CHECKS)}")
    results = {}
    for name, check in chosen.items():
        print(f"\n--- {name}", flush=True)
        start = time.monotonic()
        ok = check()
        results[name] = ok, time.monotonic() - start
        print(f"--- {name}: {'passed' if ok else 'FAILED'} in {results[name][1]:.0f} s", flush=True)
    print(
        "\n"
        + "\n".join(
            f"{'passed' if ok else 'FAILED'}  {seconds:4.0f} s  {name}" for name, (ok, seconds) in results.items()
        )
    )
    failed = sum(not ok for ok, _ in results.values())
    print(f"\n{len(results) - failed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__": sys.exit(main())
