"""One test for each kind of fault that users of robustness tools reported, on inputs of our own."""
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from robustnb import scorecard
from robustnb.attacks import fgsm
from robustnb.corruptions import CORRUPTIONS, EXTRA, Corrupt, corrupt
from robustnb.images import ImageSet, sample
from robustnb.metrics import calibration_error
from robustnb.models import create
from robustnb.levels import fgsm_levels
from robustnb.robustness import Answers, benchmark_for, difference, evaluate, summarise
from robustnb.scorecard import ModelError, open_images, open_model, report_folder
from robustnb.statistics import bootstrap_ci
from robustnb.training import Recipe, accuracy, fit, predict


def two_classes(x, name="two"):
    return ImageSet(x, torch.arange(len(x)) % 2, ("a", "b"), name)


def linear(pixels, classes=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))


def picture(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8) if array is None else array).save(path, **options)
    return path


# what is done to the caller's tensors
def test_a_model_that_writes_into_its_input_harms_nobody():
    data = two_classes(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    before, net = data.x.clone(), linear(768)
    evaluate(lambda x: net(x.sub_(0.5)), data, ("fog",), (1,), show=False)
    predict(
        type("Writes", (nn.Sequential,), {"forward": lambda self, x: super(type(self), self).forward(x.mul_(2))})(
            nn.Flatten(), nn.Linear(768, 2)
        ),
        data
    )
    assert torch.equal(data.x, before)


def test_floats_outside_of_the_unit_range_are_refused():
    with pytest.raises(ValueError, match=r"\[0,1\]"):
        evaluate(linear(768), two_classes(255 * torch.rand(4, 3, 16, 16)), ("fog",), (1,), show=False)


# models that know no modes
def test_exported_programs_inside_other_networks():
    program = torch.export.export(
        linear(768).eval(), (torch.rand(2, 3, 16, 16),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    ).module()
    net, data = nn.Sequential(nn.Dropout(0.5), program, nn.Dropout(0.5)), two_classes(torch.rand(5, 3, 16, 16))
    assert torch.equal(predict(net, data), predict(program, data)) and net[0].training and net[2].training
    assert len(evaluate(net, data, ("fog",), (1,), show=False)) == 2
    assert fgsm(net, data.x, data.y, 0.1).shape == data.x.shape and len(fgsm_levels(net, data, (0.1,), show=False)) == 1


# sums over many images
def test_sums_are_exact():
    n = 60_001
    right = torch.rand(n, generator=torch.Generator().manual_seed(1)) < 0.9
    answers = lambda *rows: Answers(
        [("clean", 0), ("fog", 1)], torch.stack(rows), torch.full((2, n), 0.7).half(), "cifar10-c"
    )
    gain = difference(answers(right, right), answers(~right, right), resamples=5)
    assert gain.value.tolist()[:2] == [(2 * right.sum().item() - n) / n, 0.0]
    every = torch.ones(n, dtype=torch.bool)
    assert bootstrap_ci(every, resamples=20) == (1.0, 1.0)
    assert abs(calibration_error(torch.full((n,), 0.7, dtype=torch.float64), every) - 0.3) < 1e-12
    table = pd.DataFrame(dict(corruption=["clean", "fog"], severity=[0, 1], accuracy=[1 - 1 / 3, 0.5]))
    assert summarise(answers(right, right), table, resamples=5).set_index("quantity").value["mCE"] == pytest.approx(
        (~right).sum().item() / n / 0.5, abs=1e-14
    )


# image sizes
@pytest.mark.parametrize("height, width", [(8, 8), (20, 20), (96, 140), (260, 260)])
def test_every_size_gets_every_corruption(height, width):
    x = torch.randint(256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in CORRUPTIONS + EXTRA:
        assert corrupt(
            x, name, 5, benchmark_for(two_classes(x)), torch.Generator().manual_seed(0)
        ).shape == x.shape, name


# answers that are no logits
@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda x: x.flatten(1)[:, :2] / 0, "not finite"), (lambda x: x.flatten(1)[:, :2].softmax(1), "probabilities"),
        (lambda x: x.flatten(1)[:, :1], "1 outputs"), (lambda x: x, "logits")
    ]
)
def test_answers_that_are_no_logits(answer, said):
    with pytest.raises(ValueError, match=said):
        evaluate(answer, two_classes(torch.rand(4, 3, 16, 16)), ("fog",), (1,), show=False)
    net = linear(768)
    nn.init.constant_(net[1].bias, float("inf"))
    with pytest.raises(ValueError, match="not finite"): accuracy(net, two_classes(torch.rand(4, 3, 16, 16)))


# batch sizes
@pytest.mark.parametrize("images, batch, accumulate", [(5, 2, 1), (9, 4, 4), (3, 2, 8)])
def test_batch_normalisation_never_gets_one_image(images, batch, accumulate):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
    fit(
        net, sample("cifar10").take(slice(0, images)), recipe=Recipe(epochs=2, batch=batch, accumulate=accumulate),
        device="cpu", progress=False
    )
    with pytest.raises(ValueError, match="batch normalisation cannot be trained on 1 image"):
        fit(net, sample("cifar10").take(slice(0, 3)), recipe=Recipe(epochs=1, batch=1), device="cpu", progress=False)


# randomness in worker processes
class Grey(torch.utils.data.Dataset):
    def __init__(self, change): self.change = change
    def __len__(self): return 4
    def __getitem__(self, i): return self.change(torch.full((3, 8, 8), 0.5))


@pytest.mark.parametrize("persistent", [True, False])
def test_no_draw_comes_twice_over_workers_and_epochs(persistent):
    generator = torch.Generator().manual_seed(0)
    loader = torch.utils.data.DataLoader(
        Grey(Corrupt("speckle_noise", 3, generator=generator)), 1, num_workers=2, persistent_workers=persistent
    )
    seen = torch.cat([x for epoch in range(2) for x in loader]).flatten(1)
    assert len(seen.unique(dim=0)) == 8 and torch.equal(
        generator.get_state(), torch.Generator().manual_seed(0).get_state()
    )


# what a picture file says of its pixels
def test_pictures_are_read_as_seen(tmp_path):
    deep = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    picture(tmp_path / "a/deep.png", deep)
    assert (open_images(str(tmp_path)).x[0, 0] - torch.from_numpy(np.round(deep / 257))).abs().max() == 0
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:4] = [10, 20, 30, 255]
    picture(tmp_path / "a/deep.png", clear)
    assert open_images(str(tmp_path)).x[0, :, [0, 7], 0].T.tolist() == [[10, 20, 30], [255] * 3]


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_a_broken_picture_is_named(tmp_path, content):
    picture(tmp_path / "a/x.png"), picture(tmp_path / "b/x.png")
    (tmp_path / "b/bad.webp").write_bytes(content)
    with pytest.raises((ModelError, RuntimeError), match="bad.webp"): open_images(str(tmp_path))


# which output a subfolder is
def test_a_class_index_may_leave_outputs_out(tmp_path):
    for name in ("b", "a"): picture(tmp_path / "pets" / name / "x.png")
    (tmp_path / "index.json").write_text('{"b": 4, "a": 1}')
    data = open_images(str(tmp_path / "pets"), class_index=tmp_path / "index.json")
    assert sorted(data.y.tolist()) == [1, 4]
    sys.modules["five"] = type(sys)("five")
    sys.modules["five"].make = lambda: linear(192, 7)
    with pytest.raises(ModelError, match="7 outputs"): open_model("five:make", data)
    assert open_model("five:make", data, any_outputs=True)(data.float()).shape == (2, 7)
    with pytest.raises(ModelError, match="7 outputs"): open_model("five:make", open_images(str(tmp_path / "pets")))


# options that would change nothing, or too much
def test_options_without_effect_are_refused(tmp_path):
    data = sample("cifar10", "test").take(slice(0, 4))
    torch.jit.trace(create("resnet20", seed=0).eval(), data.float()).save(tmp_path / "net.pt")
    for spec in ("resnet20", str(tmp_path / "net.pt")):
        with pytest.raises(ModelError, match="normalises"): open_model(spec, data, normalize="imagenet")
    with pytest.raises(ModelError, match="class index is for folders"):
        open_images("mnist", class_index=tmp_path / "net.pt")


# where reports go, and mistakes that can be mended
def test_reports_stay_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = (report_folder(None, "net-on-set", number) for number in ("1" * 16, "2" * 16))
    assert one != two and scorecard.is_report(one)
    with pytest.raises(ModelError, match="another evaluation"): report_folder(one, "", "3" * 16)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/table.csv").write_text("my own table")
    with pytest.raises(ModelError, match="another evaluation"): report_folder(tmp_path / "mine", "", "1" * 16)


@pytest.mark.parametrize(
    "content, said", [(b"", "empty"), (b"<html>", "cannot be read as weights"), (None, "is a folder")]
)
def test_files_that_are_no_weights(tmp_path, content, said):
    path = tmp_path / "w.pt"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ModelError, match=said): open_model("lenet5", sample("mnist", "test").take(slice(0, 2)), path)


def test_safetensors_and_other_outputs(tmp_path):
    from safetensors.torch import save_file

    digits = sample("mnist", "test").take(slice(0, 2))
    net = create("lenet5", seed=3).eval()
    save_file({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "w.safetensors")
    assert torch.equal(open_model("lenet5", digits, tmp_path / "w.safetensors")(digits.float()), net(digits.float()))
    torch.save(create("lenet5", classes=7).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(ModelError, match="7 outputs, .* has 10 classes"):
        open_model("lenet5", digits, tmp_path / "seven.pt")
