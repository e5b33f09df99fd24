"""nbdev_test over all notebooks but the result notebooks, in copies of one process that has imported what many import."""
import importlib
import os
import re
import sys
from pathlib import Path

import nbdev.test

NBS = Path(__file__).resolve().parent.parent / "nbs"
WARM = ("torch", "torchvision", "torch._dynamo", "accelerate", "pandas", "matplotlib.pyplot", "scipy.stats", "sklearn")


def result_notebooks() -> set[str]:
    "Files of papers and benchmarks without a number, whose cells test_smoke.py runs."
    return {p.name for part in ("papers", "benchmarks") for p in (NBS / part).rglob("[!0-9]*.ipynb")}


def skipped() -> str:
    "What the names of files to skip are like; a guide named like a result would be lost, and is refused."
    names = result_notebooks()
    found = [p.relative_to(NBS) for p in NBS.rglob("*.ipynb")]
    lost = sorted(map(str, (p for p in found if p.name in names and p.parts[0] not in ("papers", "benchmarks"))))
    if lost: sys.exit(f"named like a result notebook, so it would not be tested: {', '.join(lost)}")
    return "|".join(["^[_.]", *(f"^{re.escape(name)}$" for name in sorted(names))])


def alone(*args, run=nbdev.test.test_nb, **options):
    "The test of a notebook; what it leaves in the environment ends with it."
    before = dict(os.environ)
    try: return run(*args, **options)
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    import notebooks  # this file by its name: a notebook puts itself in the place of __main__

    nbdev.test.test_nb = notebooks.alone
    for name in WARM: importlib.import_module(name)
    nbdev.test.nbdev_test(n_workers=os.cpu_count() or 2, do_print=True, skip_folder_re="^[_.]", skip_file_re=skipped())
