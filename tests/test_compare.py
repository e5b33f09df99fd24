"""Reports and models side by side, through the program and by hand."""
import json
import os
import shutil
import signal
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from robustnb import compare
from robustnb.compare import Evaluated, paired_differences, read_reports
from robustnb.images import sample
from robustnb.robustness import Answers
from robustnb.scorecard import ANSWERS, Scorecard, read_answers, write_report
from robustnb.sources import ModelError

FACTORY = """
import torch
from torch import nn
class Near(nn.Module):
    "The nearest of ten greys, after noise of its own making."
    def __init__(self, shift): super().__init__(); self.at = nn.Parameter(torch.linspace(0, 1, 10) + shift)
    def forward(self, x): return -100 * (x.mean((1, 2, 3))[:, None] - self.at) ** 2
def good(): return Near(0.0)
def worse(): return Near(0.08)
def same(): return Near(0.0)
"""


@pytest.fixture
def robustnb(monkeypatch, capsys, tmp_path):
    from robustnb import cli
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTNB_PROGRESS", "0")
    (tmp_path / "two_nets.py").write_text(FACTORY)
    for i in range(10):
        for j in range(4):
            (tmp_path / "greys" / str(i)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 16, 3), round(255 * i / 9) + (-1 if i == 9 else 1) * j, np.uint8)).save(
                tmp_path / "greys" / str(i) / f"{j}.png"
            )
    def run(*words):
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["robustnb", *map(str, words)])
        with pytest.raises(SystemExit) as ended: cli.main()
        signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err, said.err
    return run


ASKED = ("greys", "--corruptions", "brightness,contrast", "--severities", "1,5", "--workers", "0")


def test_several_models_in_one_call_and_reports_afterwards(robustnb, tmp_path):
    status, said, error = robustnb(
        "evaluate", "two_nets:good", *ASKED, "--also", "two_nets:worse", "--also", "two_nets:same", "--out", "all"
    )
    assert status == 0, error
    assert (
        "model 2 of 3: two_nets:worse" in said
        and "3 models, 40 images; comparison: all/compared/report.html" in said
    )
    found = pd.read_csv(tmp_path / "all/compared/differences.csv")
    own = [
        pd.read_csv(tmp_path / f"all/{n}/table.csv").set_index(["corruption", "severity"]).accuracy
        for n in ("1-two_nets-good", "2-two_nets-worse")
    ]
    rows = found[found.model == "two_nets:worse"].set_index(["kind", "name"])
    assert own[0]["clean", 0] == 1 and rows.difference["clean", "clean"] == own[1]["clean", 0] - 1 < 0
    for name in ("brightness", "contrast"):
        assert abs(rows.difference["corruption", name] - (own[1] - own[0])[name].mean()) < 1e-12
    assert rows.better["clean", "clean"] == "two_nets:good"
    same = found[found.model == "two_nets:same"]
    assert (same[["difference", "low", "high"]] == 0).all().all() and same.better.isna().all()
    assert {p.name for p in (tmp_path / "all/compared").iterdir()} == {
        ".robustnb-report", "report.html", "comparison.txt", "differences.png",
        *(f"{n}.{e}" for n in ("differences", "overview") for e in ("csv", "json"))
    }
    status, said, error = robustnb("compare", "all/1-two_nets-good", "all/2-two_nets-worse", "--out", "again")
    assert status == 0 and "two_nets:good is better at" in said, error
    again = pd.read_csv(tmp_path / "again/differences.csv")
    pd.testing.assert_frame_equal(again, found[found.model == "two_nets:worse"])
    json.loads((tmp_path / "again/differences.json").read_text(), parse_constant=lambda word: pytest.fail(word))


def test_mistakes_are_told(robustnb, tmp_path):
    robustnb("evaluate", "two_nets:good", *ASKED, "--out", "one")
    robustnb("evaluate", "two_nets:worse", *ASKED, "--images", "20", "--out", "few")
    robustnb("evaluate", "two_nets:worse", *ASKED, "--benchmark", "imagenet-c", "--out", "other")
    for words, said in (
        (("one",), "at least two"), (("one", "few"), "only answers to the same images"),
        (("one", "other"), "constants of cifar10-c"), (("one", "nowhere"), "no folder of a report"),
        (("one", "greys"), "it is no report")
    ):
        status, _, error = robustnb("compare", *words)
        assert status == 2 and said in error and "Traceback" not in error, words
    status, _, error = robustnb("evaluate", "two_nets:good", *ASKED, "--baseline", "other", "--out", "third")
    assert status == 2 and (
        "constants of imagenet-c, this evaluation has those of cifar10-c; evaluate the baseline with "
        "--benchmark cifar10-c"
    ) in error
    for baseline in ("few", "few/table.csv", "few/table.json"):  # any table with the same constants
        status, said, error = robustnb(
            "evaluate", "two_nets:good", *ASKED, "--baseline", baseline, "--out", f"by-{baseline.replace('/', '-')}"
        )
        assert status == 0 and "\nmCE" in said, error
    (tmp_path / "few/table.json").write_text("[]")
    assert "is no table" in robustnb("evaluate", "two_nets:good", *ASKED, "--baseline", "few/table.json")[2]


def test_a_file_that_is_missing_is_told_before_the_first_model_runs(robustnb, tmp_path):
    for other in ("lenet5=gone.pt", "gone.onnx"):
        status, said, error = robustnb("evaluate", "two_nets:good", *ASKED, "--also", other, "--out", "all")
        assert status == 2 and "there is no file gone" in error and "model 1" not in said and not (
            tmp_path / "all"
        ).exists()
    # nor one that does not fit
    status, said, error = robustnb("evaluate", "two_nets:good", *ASKED, "--also", "two_nets:gone", "--out", "all")
    assert status == 2 and "gone" in error and "model 1" not in said and not (tmp_path / "all").exists()


def made(right, rows, name="m"):
    sure = torch.rand(right.shape, generator=torch.Generator().manual_seed(right.sum().item())).half()
    return Evaluated(name, Answers(rows, right, sure, "cifar10-c"), {})


def test_intervals_of_differences_cover():
    "Of two hundred pairs of models with a true difference of 0.1, at least 90% of the intervals hold it."
    rows, hit, generator = [("clean", 0), ("fog", 1)], 0, torch.Generator().manual_seed(0)
    for trial in range(60):
        ease = torch.rand(2, 200, generator=generator)
        first, other = ease < 0.6, ease < 0.7
        row = paired_differences(made(first, rows), made(other, rows, "o"), resamples=200, seed=trial).iloc[0]
        hit += row.low <= 0.1 <= row.high
    assert hit >= 50


def test_pairing_is_narrower_than_two_intervals():
    ease = torch.rand(1, 500, generator=torch.Generator().manual_seed(0))
    rows = [("clean", 0)]
    row = paired_differences(made(ease < 0.6, rows), made(ease < 0.63, rows, "o")).iloc[0]
    alone = 1.96 * (0.6 * 0.4 / 500 * 2) ** 0.5
    assert row.high - row.low < alone and row.better == "o"
    assert row["first"] == (ease < 0.6).double().mean().item()


def test_kept_answers_survive_and_name_their_damage(tmp_path):
    data = sample("mnist", "test").take(slice(0, 37))  # no multiple of eight
    right = torch.rand(3, 37, generator=torch.Generator().manual_seed(0)) < 0.5
    answers = made(right, [("clean", 0), ("fog", 2), ("snow", 3)]).answers
    write_report(Scorecard("it", {"model": "it", "made": "now", "images": f"mnist: {len(data)}"}, answers), tmp_path)
    again, about = read_answers(tmp_path)
    assert torch.equal(again.correct, answers.correct) and torch.equal(
        again.confidence, answers.confidence
    ) and again.rows == answers.rows
    assert about["facts"] == {"model": "it", "images": "mnist: 37"}
    first = (tmp_path / ANSWERS).read_bytes()
    write_report(Scorecard("it", {"model": "it", "made": "later", "images": f"mnist: {len(data)}"}, answers), tmp_path)
    assert (tmp_path / ANSWERS).read_bytes() == first
    (tmp_path / ANSWERS).write_bytes(first[:-40])
    with pytest.raises(ModelError, match="answers.npz is damaged"): read_reports([tmp_path, tmp_path])


def test_without_clean_images():
    rows = [("fog", 1), ("snow", 1)]
    right = torch.rand(2, 60, generator=torch.Generator().manual_seed(0)) < 0.5
    table = paired_differences(made(right, rows), made(~right, rows, "o"))
    assert "clean" not in set(table.name) and set(compare.overview([made(right, rows)]).quantity) >= {
        "accuracy, corrupted", "AURC, corrupted"
    }


def test_a_class_or_a_report_without_a_name_in_utf8_is_told(robustnb, tmp_path, monkeypatch):
    name = os.fsdecode(b"c\xff")
    assert robustnb("evaluate", "two_nets:good", *ASKED, "--out", "one")[0] == 0
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.copytree(tmp_path / "one", tmp_path / name)
    status, said, _ = robustnb("compare", "one", name)
    assert status == 2 and "(c\\udcff)' has no name in UTF-8, so no page can name it; rename the folder" in said
    assert robustnb("compare", "one", "two", "--out", "page")[0] == 0
    (tmp_path / "greys/3").rename(tmp_path / "greys" / name)
    for command in (("evaluate", "two_nets:good"), ("corrupt",)):
        status, said, _ = robustnb(*command, *ASKED, "--out", "new")
        assert status == 2 and "error: c\\udcff has no name in UTF-8" in said and not (tmp_path / "new").exists()
    (tmp_path / "greys" / name).rename(tmp_path / "greys/3")
    (tmp_path / "greys/3/0.png").rename(tmp_path / "greys/3" / f"{name}.png")
    status, said, _ = robustnb("evaluate", "two_nets:good", *ASKED, "--out", "new")
    assert status == 2 and "c\\udcff.png" in said and "has no name in UTF-8" in said


def test_networks_that_ship_go_by_the_names_of_their_weights(robustnb, tmp_path):
    status, said, error = robustnb(
        "evaluate", "resnet20", *ASKED, "--weights", "cifar10", "--also", "resnet20=cifar10-standard", "--out", "r"
    )
    assert status == 0, error
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["1-resnet20-cifar10", "2-resnet20-cifar10-standard", "compared"]
    assert "resnet20 (2-resnet20-cifar10-standard)" in said
    status, _, error = robustnb("evaluate", "resnet20", *ASKED, "--also", "resnet20=cifar10-standrad", "--out", "s")
    assert status == 2 and "resnet20: there is no file cifar10-standrad; and no such weights of resnet20 'cifar10-standrad'; did you mean 'cifar10-standard'" in " ".join(error.split())
