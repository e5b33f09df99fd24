"""`make reproduce` on made-up cells: nothing runs without data, what fails is told, the second time nothing runs."""
from dataclasses import dataclass

import pytest

from robustnb import rerun
from robustnb.lab.records import Record, Store


@dataclass(frozen=True)
class Cell:
    seed: int = 0
    good: bool = True
    data: str = "mnist"


def work(cell, context):
    if not cell.good: raise ValueError("no such luck")
    return dict(test=0.5 + cell.seed / 100, n_test=100, history=[dict(loss=0.25, seconds=1.0)])


@pytest.fixture
def stores(tmp_path, monkeypatch):
    "A plan of two cells, one that works and one that need not, with committed records of three seeds."
    def planned(good):
        return lambda seed=0: [
            rerun.Checked("study", f"cell {i}", "pretraining", Cell(seed, good or i == 0, f"set {i}"), work, f"set {i}")
            for i in range(2)
        ]
    def plan(good=True): monkeypatch.setattr(rerun, "planned", planned(good))
    results = Store(tmp_path / "results")
    for good in (False, True):
        plan(good)
        for c in (c for seed in rerun.COMMITTED_SEEDS for c in rerun.planned(seed)):
            results.append(Record(c.experiment, c.cell, work(Cell(c.cell.seed), None), "quick"))
    monkeypatch.setattr(rerun, "stale", lambda record: False)
    own, said = Store(tmp_path / "own"), []
    def run(lacking=None):
        said.clear()
        reasons = rerun.rerun(own, results, tmp_path / "cache", lacking=lacking, tell=said.append)
        return rerun.compare_stores(own, results, reasons), list(said)
    return run, plan


def test_without_data_nothing_runs_and_nothing_is_wrong(stores):
    compared, said = stores[0]({"set 0": "no network", "set 1": "no network"})
    assert said == [] and [x.state for x in compared] == ["not rerun"] * 2 and rerun.sound(compared)
    assert rerun.comparison_text(compared)[-1] == "not rerun: 2 (no data)"


def test_what_runs_is_compared_and_runs_once(stores):
    run, plan = stores
    compared, said = run({"set 1": "gone"})
    assert said == ["[1/1] study, cell 0: done"] and [x.state for x in compared] == ["bit", "not rerun"]
    compared, said = run()
    assert said == ["[1/1] study, cell 1: done"] and [x.state for x in compared] == ["bit", "bit"] and run()[1] == []
    assert rerun.comparison_text(compared)[:3] == [
        "cells rerun: 2 of 2", "agreeing: 2 to the bit, 0 within the spread over seeds", "differing: 0"
    ]


def test_a_cell_that_fails_is_told_and_is_an_error(stores):
    run, plan = stores
    plan(good=False)
    compared, said = run()
    assert "study, cell 1: failed: ValueError: no such luck" in " ".join(said)
    assert [x.state for x in compared] == ["bit", "failed"] and not rerun.sound(compared)
