"""Published sets in exactly their formats, small: opened, evaluated as they are, compared with our corruptions."""
import shutil
import signal
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from robustnb import published
from robustnb.corrupted_sets import write_set
from robustnb.corruptions import CORRUPTIONS, EXTRA, corrupt
from robustnb.formats import DataError
from robustnb.images import sample
from robustnb.published import open_arrays, open_published, outputs_of
from robustnb.published_scores import DETERMINISTIC, compare_files, measure_published
from robustnb.sources import ModelError, as_source

FEW = sample("cifar10", "test").take(slice(0, 30))
ROWS = FEW.x.permute(0, 2, 3, 1).numpy()
WNIDS = [f"n{i:08}" for i in range(1000)]
FACTORY = """
import torch
from torch import nn
class Mean(nn.Module):
    "The brighter an image, the later its class."
    def __init__(self, classes): super().__init__(); self.at = nn.Parameter(torch.linspace(0, 1, classes))
    def forward(self, x): return -100 * (x.mean((1, 2, 3))[:, None] - self.at) ** 2
def ten(): return Mean(10)
def thousand(): return Mean(1000)
def two(): return Mean(2)
"""


@pytest.fixture
def robustnb(monkeypatch, capsys, tmp_path):
    from robustnb import cli
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTNB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ROBUSTNB_PROGRESS", "0")
    (tmp_path / "my_nets.py").write_text(FACTORY)
    def run(*words):
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["robustnb", *map(str, words)])
        with pytest.raises(SystemExit) as ended: cli.main()
        signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err, said.err  # what was assumed is said beside the answer
    return run


def picture(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def guessed(images, classes):  # what the factory's network answers
    x = torch.from_numpy(np.stack(images)).float() / 255
    return (x.mean((1, 2, 3))[:, None] - torch.linspace(0, 1, classes)).abs().argmin(1)


def table(folder): return pd.read_csv(folder / "table.csv").set_index(["corruption", "severity"])


@pytest.fixture
def cifar10_c(tmp_path):
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(FEW.y.numpy().astype(np.uint8), 5))
    for name in ("brightness", "fog", "spatter", "contrast"):
        made = torch.cat([corrupt(FEW.x, name, s, "cifar10-c", torch.Generator().manual_seed(0)) for s in range(1, 6)])
        np.save(folder / f"{name}.npy", made.permute(0, 2, 3, 1).numpy())
    return folder


def test_cifar10_c(robustnb, tmp_path, cifar10_c):
    status, said, error = robustnb("evaluate", "my_nets:ten", cifar10_c, "--out", "report")
    assert status == 0, error
    assert "lacks 60 of 75 conditions" in said and "clean images: not here" in said
    found = table(tmp_path / "report")
    assert list(found.index) == [(n, s) for n in ("fog", "brightness", "contrast") for s in range(1, 6)]
    assert set(found.columns) == {
        "benchmark", "family", "accuracy", "low", "high", "ece", "ece_low", "ece_high", "confidence", "n"
    } and set(found.benchmark) == {"cifar10-c"}
    images = np.load(cifar10_c / "fog.npy")[60:90]
    assert found.accuracy["fog", 3] == (guessed(images, 10) == FEW.y).double().mean().item()
    status, said, _ = robustnb(
        "evaluate", "my_nets:ten", f"cifar10-c:{cifar10_c}", "--subset", "19x5", "--corruptions", "spatter",
        "--severities", "2,4", "--out", "two"
    )
    assert list(table(tmp_path / "two").index) == [("spatter", 2), ("spatter", 4)]
    assert (tmp_path / "two/report.html").read_text().count("<img") == 2


def test_clean_images_come_first(robustnb, tmp_path, cifar10_c, monkeypatch):
    for i, (x, y) in enumerate(zip(ROWS, FEW.y)): picture(tmp_path / "clean" / str(int(y)) / f"{i:02}.png", x)
    order = as_source(tmp_path / "clean")
    labels = order.labels.numpy()
    for path in cifar10_c.glob("*.npy"):  # in the order of the folder
        old = np.load(path)
        where = np.concatenate([30 * s + np.array([int(p.stem) for p in order.paths]) for s in range(5)])
        np.save(path, old[where])
    status, said, error = robustnb(
        "evaluate", "my_nets:ten", cifar10_c, "--clean", "clean", "--corruptions", "fog", "--out", "report", "--expect",
        "0.1"
    )
    assert status == 0, error
    found = table(tmp_path / "report")
    assert found.index[0] == ("clean", 0) and found.accuracy["clean", 0] == (
        guessed([ROWS[int(p.stem)] for p in order.paths], 10) == torch.from_numpy(labels)
    ).double().mean().item()
    status, _, error = robustnb("evaluate", "my_nets:ten", cifar10_c, "--clean", "clean", "--expect", "1")
    assert status == 2 and "30 clean images, and 1 was expected" in error
    status, said, _ = robustnb("data", "check", cifar10_c, "--clean", "clean")
    assert status == 0 and "0 of 921,600 bytes differ" in said and "brightness" in said and "fog" not in said
    array = np.load(cifar10_c / "contrast.npy")
    array[:30] //= 2
    np.save(cifar10_c / "contrast.npy", array)
    assert "\n0 of" not in robustnb("data", "check", cifar10_c, "--clean", "clean")[1]
    picture(tmp_path / "clean/0/more.png", ROWS[0])
    for words in (("evaluate", "my_nets:ten", cifar10_c), ("data", "check", cifar10_c)):
        status, _, error = robustnb(*words, "--clean", "clean")
        assert status == 2 and "other labels" in error


def test_what_is_changed_is_asked_again(robustnb, tmp_path, cifar10_c):
    one = ("evaluate", "my_nets:ten", cifar10_c, "--corruptions", "fog", "--severities", "5")
    robustnb(*one, "--out", "report")
    np.save(
        cifar10_c / "fog.npy", np.concatenate([np.load(cifar10_c / "fog.npy"), np.zeros((1, 32, 32, 3), np.uint8)])[1:]
    )
    status, _, error = robustnb(*one, "--out", "report")
    assert status == 2 and "another evaluation" in error
    assert robustnb(*one, "--out", "other")[0] == 0


def same_reports(one, other):
    from robustnb.benchmarks.real_size import SAME
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in SAME)


def test_shards_of_published_sets_merge_to_identical_bytes(robustnb, tmp_path):
    some = sample("cifar10", "test").take(slice(0, 150))  # three blocks
    write_set(some, tmp_path / "mine-c", ("fog", "contrast"), (1, 4), show=False)
    for i, (x, y) in enumerate(zip(some.x, some.y)):
        picture(tmp_path / "clean" / str(int(y)) / f"{i:03}.png", x.permute(1, 2, 0).numpy())
    write_set(as_source(tmp_path / "clean"), tmp_path / "files-c", ("fog",), (1, 2), show=False)
    for data, more in (("mine-c", ("--images", 140)), ("files-c", ("--clean", "clean"))):
        name = f"{data}{len(more)}"
        one = "evaluate", "my_nets:ten", data, *more
        assert robustnb(*one, "--out", f"{name}/whole")[0] == 0
        for i in range(2):
            status, said, error = robustnb(*one, "--shard", f"{i}/2", "--out", f"{name}/{i}")
            assert status == 0 and f"shard {i}/2: " in said, error
        status, _, error = robustnb("merge", f"{name}/0", "--out", f"{name}/torn")
        assert status == 2 and "blocks is not answered: 1" in error and not (tmp_path / name / "torn").exists()
        status, said, error = robustnb("merge", f"{name}/0", f"{name}/1", "--out", f"{name}/merged")
        assert status == 0, error
        assert same_reports(tmp_path / name / "merged", tmp_path / name / "whole")
    assert robustnb("merge", "mine-c2/0", "files-c2/1", "--out", "mixed")[0] == 2


def test_cifar100_c_and_faults(tmp_path):
    folder = tmp_path / "CIFAR-100-C"
    folder.mkdir()
    labels = np.arange(30) + 60
    np.save(folder / "labels.npy", np.tile(labels, 5)), np.save(folder / "snow.npy", np.tile(ROWS, (5, 1, 1, 1)))
    found = open_published(str(folder))
    assert found.form == "cifar100-c" and len(found.source(("snow", 1)).classes) == 100 and found.clean == "cifar100"
    with pytest.raises(DataError, match="labels must lie in 0..9"): open_published(f"cifar10-c:{folder}")
    np.save(folder / "labels.npy", np.arange(150))
    with pytest.raises(DataError, match="150 labels are not 5 times the same"): open_arrays(folder)
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(float))
    with pytest.raises(DataError, match="whole numbers"): open_arrays(folder)
    np.save(folder / "labels.npy", np.tile(labels, 5)), np.save(folder / "snow.npy", ROWS.astype(np.float32))
    with pytest.raises(DataError, match="must be uint8"): open_arrays(folder).source(("snow", 1))
    (folder / "snow.npy").write_bytes(b"hello")
    with pytest.raises(DataError, match="snow.npy: no readable array"): open_arrays(folder).source(("snow", 1))


def test_mnist_c(robustnb, tmp_path):
    digits = sample("mnist", "test").take(slice(0, 30))
    for name, change in (("identity", lambda x: x), ("zigzag", lambda x: 255 - x)):
        (tmp_path / "mnist_c" / name).mkdir(parents=True)
        for part in ("train", "test"):
            np.save(
                tmp_path / "mnist_c" / name / f"{part}_images.npy", change(digits.x[:, 0, :, :, None].numpy())
            ), np.save(tmp_path / "mnist_c" / name / f"{part}_labels.npy", digits.y.numpy())
    status, said, error = robustnb("evaluate", "my_nets:ten", tmp_path / "mnist_c", "--out", "report")
    assert status == 0, error
    found = table(tmp_path / "report")
    assert list(found.index) == [("clean", 0), ("zigzag", 1)] and found.family["zigzag", 1] == "other" and found.n[
        "clean", 0
    ] == 30
    assert found.accuracy["zigzag", 1] == (
        guessed(list(255 - digits.x.permute(0, 2, 3, 1).numpy()), 10) == digits.y
    ).double().mean().item()
    status, said, error = robustnb(
        "evaluate", "my_nets:ten", tmp_path / "mnist_c", "--severities", "1,3", "--out", "other"
    )
    assert status == 2 and "no severities" in error and not (tmp_path / "other").exists()


@pytest.mark.parametrize("families", [True, False])
def test_tiny_imagenet_c_and_imagenet_c(robustnb, tmp_path, families):
    side = 64
    big = torch.nn.functional.interpolate(FEW.float(), size=(side, side)).mul(255).round().to(torch.uint8)
    for i, x in enumerate(big[:6]):
        picture(tmp_path / "val" / WNIDS[i % 2] / f"ILSVRC_{i}.JPEG", x.permute(1, 2, 0).numpy(), quality=95)
    clean = as_source(tmp_path / "val", size=side)
    names = ("contrast", "pixelate", "jpeg_compression", "fog")
    write_set(clean, tmp_path / "set", names, (1, 3, 5), benchmark="tiny-imagenet-c", show=False)
    for name in ("manifest.json", "sha256"):
        shutil.rmtree(tmp_path / "set" / name, ignore_errors=True), (tmp_path / "set" / name).unlink(missing_ok=True)
    if families:
        (tmp_path / "set/digital").mkdir()
        for name in names[:3]: shutil.move(tmp_path / "set" / name, tmp_path / "set/digital" / name)
        (tmp_path / "set/weather").mkdir()
        shutil.move(tmp_path / "set/fog", tmp_path / "set/weather/fog")
    found = open_published(str(tmp_path / "set"))
    assert found.form == "tiny-imagenet-c" and len(found.rows) == 12 and found.source(("fog", 3)).shape == (
        3, side, side
    )
    checked = compare_files(found, clean, show=False)
    assert checked.differ.sum() == 0 and len(checked) == 9 and checked.bytes.iloc[0] == 6 * 3 * side * side
    status, said, error = robustnb("evaluate", "my_nets:two", tmp_path / "set", "--subset", "7x3", "--out", "report")
    assert status == 0 and "note: set lacks 15 of 21" in said, error
    assert [i[0] for i in table(tmp_path / "report").index] == ["pixelate"] * 3 + ["jpeg_compression"] * 3
    status, _, error = robustnb(
        "evaluate", "my_nets:two", tmp_path / "set", "--split", "train", "--benchmark", "imagenet-c"
    )
    assert status == 2 and "leave --benchmark and --split out" in error


def test_imagenet_r_takes_its_own_outputs(robustnb, tmp_path, monkeypatch):
    for i in range(8):
        picture(
            tmp_path / "imagenet-r" / WNIDS[100 * (i % 2) + 400] / f"{i}.jpg", np.full((80, 60, 3), 10 * i, np.uint8)
        )
    monkeypatch.setattr(published, "timm_wnids", lambda: [])
    status, _, error = robustnb("evaluate", "my_nets:thousand", f"imagenet-r:{tmp_path / 'imagenet-r'}")
    assert status == 2 and "give ImageNet's classes with --class-index" in error
    (tmp_path / "wnids.txt").write_text("\n".join(WNIDS))
    ask = (
        "evaluate", "my_nets:thousand", f"imagenet-r:{tmp_path / 'imagenet-r'}", "--class-index", "wnids.txt", "--size",
        "32"
    )
    status, said, error = robustnb(*ask, "--out", "report")
    assert status == 0 and "classes: 2 of a model's outputs; the answer is taken among these alone" in said, error
    # all are darker than output 400, so it is the nearer of the two
    assert table(tmp_path / "report").accuracy["imagenet-r", 0] == 0.5
    assert robustnb("evaluate", "my_nets:two", *ask[2:], "--out", "two")[0] == 0  # a model of these classes alone
    monkeypatch.setattr(published, "timm_wnids", lambda: WNIDS)
    assert outputs_of([WNIDS[7], WNIDS[3]]) == [7, 3] and outputs_of(WNIDS) is None
    with pytest.raises(ModelError, match="did you mean 'n00000003'"): outputs_of(["n0000000x3"])


def test_imagenet_v2_sketch_and_cifar10_1(robustnb, tmp_path):
    for i in (0, 10, 9): picture(tmp_path / "v2" / str(i) / "x.jpeg", np.full((40, 40, 3), 90, np.uint8))
    v2 = open_published(f"imagenet-v2:{tmp_path / 'v2'}")
    assert v2.outputs == [0, 9, 10] and v2.source(v2.rows[0]).labels.tolist() == [0, 1, 2]
    for name in WNIDS: (tmp_path / "sketch" / name).mkdir(parents=True), (tmp_path / "sketch" / name / "a.JPEG").touch()
    assert open_published(f"imagenet-sketch:{tmp_path / 'sketch'}").outputs is None
    np.save(tmp_path / "v2/cifar10.1_v6_data.npy", ROWS), np.save(
        tmp_path / "v2/cifar10.1_v6_labels.npy", FEW.y.numpy()
    )
    status, said, error = robustnb("evaluate", "my_nets:ten", f"cifar10.1:{tmp_path / 'v2'}", "--out", "report")
    assert status == 0 and table(tmp_path / "report").accuracy["cifar10.1_v6", 0] == (
        guessed(list(ROWS), 10) == FEW.y
    ).double().mean().item(), error


def test_workers_read_mapped_arrays(cifar10_c):
    found = open_published(str(cifar10_c))
    many, one = (
        measure_published(lambda x: x.mean((2, 3)).repeat(1, 4), found, [("fog", 2)], workers=workers, show=False)
        for workers in (2, 0)
    )
    assert torch.equal(many.confidence, one.confidence)


def test_which_corruptions_draw():
    x = FEW.x[:4]
    for name in CORRUPTIONS + EXTRA:
        a, b = (corrupt(x, name, 3, "cifar10-c", torch.Generator().manual_seed(seed)) for seed in (0, 1))
        assert torch.equal(a, b) == (name in DETERMINISTIC), name
