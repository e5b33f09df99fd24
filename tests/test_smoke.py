"""Every result notebook runs through papermill at `smoke` size and shows what it promises."""
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from robustnb.lab.records import repository
from robustnb.lab.reproduce import Run, kernels, notebooks, prepare, run_one


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Two groups at once, one of them Dem-HEC's: notebooks of one paper share cells. All kernels are copies of one process."
    folder = tmp_path_factory.mktemp("smoke")
    root, chosen = prepare([], None, "smoke", {})
    run = Run(root, folder / "runs", "smoke", {}, folder / "records", False, 1, False, False, None)
    groups = [[n for n in chosen if (n.paper == "dem_hec") == own] for own in (True, False)]
    with kernels(chosen, run) as run, ThreadPoolExecutor(2) as pool:
        ended = pool.map(lambda group: [run_one(n, run, lambda state: None) for n in group], groups)
        return {o.name: o for group in ended for o in group}


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

def unrecorded() -> list:
    "Pages whose experiments have no committed record, and one that had none on the day it was written."
    with_records = {path.stem for path in (repository() / "results").glob("*.jsonl")}
    new = [n for n in notebooks() if n.experiments and not {*n.experiments} & {"*", *with_records}]
    return [n for n in notebooks() if n in new or n.name == "dem_hec/recipe"]


@pytest.mark.parametrize("notebook", unrecorded(), ids=lambda n: n.name)
def test_a_page_without_records_is_made_all_the_same(tmp_path, monkeypatch, notebook):
    monkeypatch.setenv("ROBUSTNB_COMPUTE", "0")  # as when the site is built
    monkeypatch.delenv("ROBUSTNB_REUSE", raising=False)
    cells = [c for c in json.loads(notebook.path.read_text())["cells"] if c["cell_type"] == "code"]
    space = {"display": lambda *shown: None}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{notebook.name}, code cell {number}", "exec"), space)
        if not number: space |= dict(profile="quick", records=str(tmp_path))
    assert not list(tmp_path.iterdir())
