"""Models as people have them: hubs by stand-ins, and the packages themselves where they are installed."""
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robustnb import hubs
from robustnb.hubs import find_hub, prepared_source
from robustnb.images import ImageSet, sample
from robustnb.models import create
from robustnb.onnx_nets import OnnxNet
from robustnb.opening import Answering, check_model, opened
from robustnb.scorecard import identity
from robustnb.sources import ModelError, as_source

PHOTOS = sample("cifar10", "test").take(slice(0, 6))
MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.5, 0.25)


class Linear(nn.Module):
    "Answers with the mean colour of an image in ten columns."
    def __init__(self, classes=10):
        super().__init__()
        self.linear = nn.Linear(3, classes)
    def forward(self, x): return self.linear(x.mean((2, 3)))


def module(patch, name, **content):
    patch.setitem(sys.modules, name, types.ModuleType(name))
    vars(sys.modules[name]).update(content)
    return sys.modules[name]


@pytest.fixture
def timm(monkeypatch):
    "A stand-in for timm with one network of ten outputs."
    made = []
    def create_model(name, pretrained, num_classes=10, in_chans=3):
        if pretrained and name == "broken": raise OSError("no route\nto host")
        torch.manual_seed(7)
        made.append((name, pretrained, num_classes))
        net = Linear(num_classes)
        net.pretrained_cfg = dict(url="x" * (name != "bare"), num_classes=10, label_names=None)
        return net
    config = dict(
        input_size=(3, 24, 24), interpolation="bicubic", mean=MEAN, std=STD, crop_pct=0.75, crop_mode="center"
    )
    data = types.SimpleNamespace(resolve_model_data_config=lambda net: config)
    fake = module(
        monkeypatch, "timm", create_model=create_model, is_model=lambda n: n in ("tiny", "broken", "bare"),
        list_models=lambda: ["tiny", "broken"], data=data
    )
    fake.made = made
    return fake


def test_timm_brings_its_preparation(timm, tmp_path):
    hub = find_hub("timm:tiny")
    assert (hub.preparation.size, hub.preparation.resize, hub.outputs) == ((24, 24), 32, 10)
    state = torch.random.get_rng_state()
    net, said = opened(hub, PHOTOS)
    assert timm.made[-1] == ("tiny", True, 10)
    torch.random.set_rng_state(state)
    resized = nn.functional.interpolate(
        PHOTOS.float(), (24, 24), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    plain = (resized - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(net(PHOTOS.float()), timm.create_model("tiny", True)(plain))
    assert "bicubic" in said["preparation"] and "timm" in said["preparation"] and "class 9 is truck" in said[
        "class order"
    ] and said["outputs"].startswith("10")
    assert find_hub("timm:tiny", size=12).preparation.resize == 16


def test_pictures_are_cut_as_the_hub_says(timm, tmp_path):
    from torchvision import transforms

    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(rng.integers(256, size=(140, 160, 3), dtype=np.uint8)).save(tmp_path / name / "x.png")
    data = prepared_source(as_source(tmp_path), find_hub("timm:tiny").preparation).head()
    theirs = transforms.Compose([
        transforms.Resize(32, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(24),
        transforms.PILToTensor(),
    ])
    assert torch.equal(data.x[1], theirs(Image.open(tmp_path / "b/x.png")))


def test_a_network_of_timm_with_weights_of_ones_own(timm, tmp_path):
    own = Linear(4)
    torch.save({"state_dict": {f"model.{k}": v for k, v in own.state_dict().items()}}, tmp_path / "mine.ckpt")
    four = ImageSet(PHOTOS.x, PHOTOS.y % 4, tuple("abcd"), "four")
    net, _ = opened("timm:tiny", four, tmp_path / "mine.ckpt")
    assert timm.made[-1] == ("tiny", False, 4) and torch.equal(net.net.linear.weight, own.linear.weight)
    for spec, data, weights, normalize, words in (
            ("timm:tiny", four, None, None, "10 outputs, the images have 4 classes"), (
                "timm:tinny", four, None, None, "did you mean 'tiny'"
            ),
            ("timm:broken", PHOTOS, None, None, r"cannot be had \(OSError: no route\)"), (
                "timm:bare", PHOTOS, None, None, "no weights for bare"
            ),
            ("timm:tiny", PHOTOS, None, "cifar10", "normalises its pixels itself"), (
                "hf:a/b", four, tmp_path / "mine.ckpt", None, "brings its own weights"
            ),
            ("timm:tiny", PHOTOS, tmp_path / "mine.ckpt", None, "other shapes")):
        with pytest.raises(ModelError, match=words): opened(spec, data, weights, normalize)
    with pytest.raises(FileNotFoundError): opened("timm:tiny", four, tmp_path / "gone")


@pytest.mark.parametrize(
    "spec, package", [("timm:x", "timm"), ("hf:a/b", "transformers"), ("robustbench:x", "robustbench")]
)
def test_what_is_missing_is_named(monkeypatch, spec, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=f"{spec} needs the package .*pip install {package}"): opened(spec, PHOTOS)


@pytest.fixture
def transformers(monkeypatch):
    @dataclass
    class Output:
        logits: Tensor
        hidden_states: tuple | None = None

    class Net(Linear):
        def forward(self, pixel_values): return Output(super().forward(pixel_values))

    labels = {str(i): name for i, name in enumerate(PHOTOS.classes)}
    loader = lambda thing: types.SimpleNamespace(from_pretrained=lambda name: thing(name))
    processor = types.SimpleNamespace(
        to_dict=lambda: dict(size={"height": 32, "width": 32}, resample=2, image_mean=MEAN, image_std=STD)
    )
    config = types.SimpleNamespace(id2label=labels)
    module(
        monkeypatch, "transformers", AutoConfig=loader(lambda name: config),
        AutoImageProcessor=loader(lambda name: processor), AutoModelForImageClassification=loader(lambda name: Net())
    )
    return config


def test_hugging_face_brings_labels_and_logits(transformers):
    net, said = opened("hf:org/name", PHOTOS)
    assert net(PHOTOS.float()).shape == (6, 10) and "same order" in said[
        "class order"
    ] and "logits of the Output" in said["outputs"]
    transformers.id2label |= {"3": "dog", "5": "cat"}
    with pytest.raises(ModelError, match="output 3 is 'dog', class 3 is 'cat'"): opened("hf:org/name", PHOTOS)


def test_torch_hub_must_be_told_the_normalisation(tmp_path, monkeypatch):
    (tmp_path / "hubconf.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n"
    )
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    spec = f"torchhub:{tmp_path}:net"
    with pytest.raises(
        ModelError,
        match="does not say how pixels are normalised; say it: --normalize cifar10, cifar100, imagenet, or none"
    ):
        opened(spec, PHOTOS)
    assert "0..1" in opened(spec, PHOTOS, normalize="none")[1]["preparation"]
    assert "as was asked for" in opened(spec, PHOTOS, normalize="cifar10")[1]["preparation"]
    with pytest.raises(ModelError, match="did you mean 'cifar10'"): opened(spec, PHOTOS, normalize="cifar11")
    with pytest.raises(ModelError, match="name the repository"): opened("torchhub:net", PHOTOS)


def test_torchvision_by_its_weights(monkeypatch):
    from torchvision import models

    hub, whole = find_hub("resnet18"), models.get_model
    assert hub.facts["published accuracy"].startswith("0.698") and find_hub("resnet20") is None and find_hub(
        "resnet18", Path("w.pt")
    ) is None
    with pytest.raises(ModelError, match="did you mean 'IMAGENET1K_V1'"): find_hub("resnet18:IMAGENET1K_V2")
    monkeypatch.setattr(models, "get_model", lambda name, weights: whole(name))
    many = ImageSet(PHOTOS.x, PHOTOS.y, tuple(map(str, range(1000))), "many")
    net, said = opened(find_hub("resnet18", size=32), many)
    assert net(PHOTOS.float()).shape == (6, 1000) and "tench" in said["class order"] and "published accuracy" in said
    def offline(name, weights): raise OSError("offline")
    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(ModelError, match="download them elsewhere"): opened("resnet18", many)


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda y: (y, y), "first of 2"),
        (lambda y: [y[:, :3], y], "1 of the list"),
        (lambda y: {"pred": y, "loss": y.mean()}, "pred of the dict"),
        (lambda y: y.softmax(1), "logarithm"),
        (lambda y: {"probs": y.softmax(1).half()}, "logarithm"),
    ],
)
def test_answers_of_many_kinds(answer, words):
    torch.manual_seed(0)
    net = create("resnet20", seed=0).eval()
    model, said = opened_function(lambda x: answer(net(x)))
    assert words in said["outputs"]
    torch.testing.assert_close(
        model(PHOTOS.float()).float().softmax(1), net(PHOTOS.float()).softmax(1), atol=2e-3, rtol=0
    )


def opened_function(function):
    from robustnb.opening import checked
    return checked(function, PHOTOS, "it")


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda x: {}, "no tensor"), (lambda x: (x, x), r"0 \(2, 3, 32, 32\)"), (lambda x: None, "NoneType"),
        (lambda x: x[:, 0, 0, :7], "7 outputs")
    ]
)
def test_answers_without_logits(answer, words):
    with pytest.raises(ModelError, match=words): check_model(answer, PHOTOS, "it")


def test_modes_and_weights_stay_visible():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.Dropout()).train()
    model = Answering(net, "it")
    assert check_model(model, PHOTOS, "it") is model and not net.training and sum(
        p.numel() for p in model.parameters()
    ) == 30730
    first = identity("it", model, PHOTOS)
    with torch.no_grad(): net[1].bias += 1
    assert identity("it", model, PHOTOS) != first


def test_onnxruntime_itself(tmp_path):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper, save

    torch.manual_seed(0)
    net = Linear().eval()
    weights = [
        numpy_helper.from_array(v.detach().numpy(), n) for n, v in (("w", net.linear.weight), ("b", net.linear.bias))
    ]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["m", "w", "b"], ["y"], transB=1)
    ]
    def written(batch, side):
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
            weights,
        )
        save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
            tmp_path / f"{batch}.onnx"
        )
        return str(tmp_path / f"{batch}.onnx")
    model, said = opened(written("n", "s"), PHOTOS)
    torch.testing.assert_close(model(PHOTOS.float()), net(PHOTOS.float()))
    assert "any number at a time" in said["preparation"]
    model, said = opened(written(4, 32), PHOTOS, normalize="cifar10")
    assert model(PHOTOS.float()).shape == (6, 10) and "4 at a time" in said[
        "preparation"
    ] and "statistics of cifar10" in said["preparation"]
    one, two = (identity(str(tmp_path / f"{b}.onnx"), model, PHOTOS) for b in ("n", "4"))
    assert one != two
    (tmp_path / "bad.onnx").write_bytes(b"hello")
    with pytest.raises(ModelError, match="cannot be loaded as an ONNX model"):
        opened(str(tmp_path / "bad.onnx"), PHOTOS)


def test_onnx_without_onnxruntime(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(b"hello")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match="pip install onnxruntime"): OnnxNet(tmp_path / "net.onnx")
    with pytest.raises(FileNotFoundError, match="no model file"): opened("gone.onnx", PHOTOS)


def test_timm_itself(tmp_path):
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet10t", num_classes=10).eval()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    hub = find_hub("timm:resnet10t", tmp_path / "w.pt", size=32)
    model, said = opened(hub, PHOTOS, tmp_path / "w.pt")
    config = timm.data.resolve_model_data_config(net)
    mean, std = (torch.tensor(config[k])[:, None, None] for k in ("mean", "std"))
    torch.testing.assert_close(model(PHOTOS.float()), net((PHOTOS.float() - mean) / std))
    whole = find_hub("timm:resnet10t")
    assert whole.preparation.size == config["input_size"][1:] and whole.outputs == 1000
    theirs = timm.data.create_transform(**config, is_training=False)
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(300, 411, 3), dtype=np.uint8))
    picture.save(tmp_path / "x.png")
    ours = hubs.open_prepared(tmp_path / "x.png", whole.preparation).float() / 255
    torch.testing.assert_close((ours - mean) / std, theirs(picture))


def test_transformers_itself(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic",
        id2label=dict(enumerate(PHOTOS.classes)), label2id={n: i for i, n in enumerate(PHOTOS.classes)}
    )
    net = transformers.ResNetForImageClassification(config).eval()
    net.save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor(
        size={"shortest_edge": 32}, crop_pct=0.875, image_mean=MEAN, image_std=STD
    ).save_pretrained(tmp_path)
    model, said = opened(f"hf:{tmp_path}", PHOTOS)
    x = (PHOTOS.float() - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(model(PHOTOS.float()), net(x).logits)
    assert "same order" in said["class order"] and find_hub(f"hf:{tmp_path}").preparation.resize == 36


# the command line
FACTORY = """
import torch
from torch import nn
calls = 0
class Net(nn.Module):
    def __init__(self): super().__init__(); self.linear = nn.Linear(3, 10)
    def forward(self, x):
        global calls
        calls += 1
        if calls > LIMIT: raise RuntimeError("CUDA out of memory. Tried")
        return {"logits": self.linear(x.mean((2, 3)))}
def net(): return Net()
"""


@pytest.fixture
def robustnb(monkeypatch, capsys, tmp_path):
    import signal

    from robustnb import cli
    monkeypatch.chdir(tmp_path)
    def run(*words):
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["robustnb", *map(str, words)])
        with pytest.raises(SystemExit) as ended: cli.main()
        signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err, said.err
    return run


def test_a_model_that_fails_midway_ends_in_a_sentence(robustnb, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in "abcdefghij":
        (tmp_path / "digits" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(tmp_path / "digits" / name / "x.png")
    for limit in (2, 99): (tmp_path / f"fails{limit}.py").write_text(FACTORY.replace("LIMIT", str(limit)))
    asked = ("--corruptions", "contrast", "--severities", "1,2,3", "--batch", 10, "--workers", 0)
    status, said, error = robustnb("evaluate", "fails2:net", "./digits", *asked)
    assert status == 1 and "Traceback" not in error and (
        "fails2:net failed on 10 images of shape (3, 32, 32): RuntimeError: CUDA out of memory. Tried "
        "(a smaller --batch needs less memory); answered blocks are kept"
    ) in error
    status, said, error = robustnb("evaluate", "fails99:net", "./digits", *asked, "--out", "report")
    assert (
        status == 0
        and "outputs: 10; logits: logits of the dict" in said
        and "class 9 is j" in said
        and "logits of the dict" in (tmp_path / "report/report.html").read_text()
    )
    assert "note:" not in said and (
        "note: digits is the data set of that name; the folder digits that lies here is ./digits"
        in robustnb("evaluate", "fails99:net", "digits", "--images", 5)[1]
    )
    status, said, error = robustnb("evaluate", "fails99:net", "./digits", *asked, "--expect", "0.99")
    assert status == 2 and "10 clean images, and 0.99 was expected" in error


def test_data_that_cannot_be_had_end_in_a_sentence(robustnb, monkeypatch):
    from robustnb import cli
    from robustnb.formats import DataError

    def fail(): raise DataError("set x: truncated")
    monkeypatch.setattr(cli, "notebooks", fail)
    assert robustnb("list")[::2] == (2, "error: set x: truncated\n")
