"""Every result notebook runs through papermill at `smoke` size and shows what it promises."""
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from robustnb.lab.reproduce import notebooks, reproduce


def group(names, folder):
    "Notebooks with a store of their own."
    return reproduce(
        names, profile="smoke", records=folder / "records", runs=folder / "runs", workers=1, progress=False
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Two groups at once, one of them Dem-HEC's: notebooks of one paper share cells."
    groups = [[n.name for n in notebooks() if (n.paper == "dem_hec") == own] for own in (True, False)]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        outcomes = pool.map(group, groups, [tmp_path_factory.mktemp("smoke") for _ in groups])
        return {o.name: o for same in outcomes for o in same}


def test_there_are_result_notebooks():
    found = notebooks()
    assert found and not [n.error for n in found if n.error]


@pytest.mark.parametrize("notebook", notebooks(), ids=lambda n: n.name)
def test_runs(runs, notebook):
    outcome = runs[notebook.name]
    assert outcome.status == "done", outcome.error
    cells = json.loads(outcome.path.read_text())["cells"]
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    shown = [d for o in outputs for d in o.get("data", {})]
    assert (
        "image/png" in shown or "image/svg+xml" in shown or "text/html" in shown
    ), "a result page shows a figure or a table"
    assert not [o for o in outputs if o.get("name") == "stderr"], "warnings and bars do not belong on a page"
