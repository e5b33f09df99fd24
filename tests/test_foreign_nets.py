"""Networks that write into their input, or whose weights are no float32: images are given back, answers stay."""
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustnb.augment import adapt_batchnorm, jensen_shannon
from robustnb.dem_hec import taught
from robustnb.domain import entropy, features, small_mnist, tent
from robustnb.entropy import layer_entropy
from robustnb.gradcam import attention_drift, grad_cam
from robustnb.images import ImageSet
from robustnb.layers import Dropout
from robustnb.opening import check_model
from robustnb.sources import ModelError
from robustnb.torchvision_nets import Enlarged
from robustnb.uncertainty import Ensemble, LastLayerLaplace, mc_dropout, tune_precision


class Net(nn.Module):
    "A convolution, batch norm, dropout and a head, behind a shift of the pixels, which may be made in place."

    def __init__(self, writes: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop, self.writes = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Dropout(0.5), writes
        self.head = nn.Linear(4, 10)

    def embed(self, x):
        x = x.sub_(0.5) if self.writes else x - 0.5
        return self.drop(self.norm(self.conv(x)).mean((2, 3)))

    def forward(self, x): return self.head(self.embed(x))


def images(seed=0):
    x = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(seed))
    return ImageSet(x, torch.arange(8), tuple("0123456789"), "some")


def laplace(net): return LastLayerLaplace(net, 1.0).fit(images(1))
def statistics(net): return net.norm.running_mean


USES = {
    "mc_dropout": lambda net, data: mc_dropout(net, data.x, 2),
    "Ensemble": lambda net, data: Ensemble([net, net])(data.x),
    "LastLayerLaplace": lambda net, data: laplace(net)(data.x),
    "its fit": lambda net, data: LastLayerLaplace(net, 1.0).fit(data).covariance,
    "tune_precision": lambda net, data: torch.tensor(tune_precision(laplace(net), data, (0.5, 1.0)).nll.to_numpy()),
    "features": features,
    "tent": lambda net, data: tent(net, data, passes=2).norm.weight,
    "adapt_batchnorm": lambda net, data: statistics(adapt_batchnorm(net, data.x)),
    "layer_entropy": lambda net, data: layer_entropy(net, data.x)["output"],
    "grad_cam": lambda net, data: grad_cam(net, data.x, 0),
    "attention_drift": lambda net, data: torch.tensor(
        attention_drift(net, data.x, data.x / 2, data.y).cosine.to_numpy()
    ),
}


@pytest.mark.parametrize("use", USES)
def test_a_network_that_writes_into_its_input(use):
    data, kept = images(), images().x
    found = USES[use](Net(writes=True).eval(), data)
    assert data.x.equal(kept)
    torch.testing.assert_close(found, USES[use](Net().eval(), data), equal_nan=True)


@pytest.mark.parametrize("use", USES)
def test_a_network_of_doubles(use):
    wide, plain = USES[use](Net().double().eval(), images()), USES[use](Net().eval(), images())
    if use != "mc_dropout":  # whose masks are drawn in the type of the weights
        torch.testing.assert_close(wide.float(), plain.float(), atol=1e-4, rtol=1e-3, equal_nan=True)


def test_classes_that_are_ruled_out():
    "A logit of -inf made the entropy NaN, and with it all that Tent learned."
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    assert entropy(logits).item() == pytest.approx(math.log(2))
    assert torch.autograd.grad(entropy(logits).sum(), logits)[0].isfinite().all()
    views = torch.tensor([[[0.0, 0.0, -math.inf]], [[0.0, -math.inf, -math.inf]]])
    middle = [0.75, 0.25]  # by hand: the mean of (1/2, 1/2) and (1, 0)
    by_hand = (0.5 * math.log(0.5 / middle[0]) + 0.5 * math.log(0.5 / middle[1]) + math.log(1 / middle[0])) / 2
    assert jensen_shannon(views).item() == pytest.approx(by_hand)


def test_statistics_are_adapted_by_images_and_a_number():
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, 10)).eval()
    assert adapt_batchnorm(pooled, images().x[:1], math.inf)[1].running_var.item() == 1  # it was NaN
    with pytest.raises(ValueError, match="prior=nan"): adapt_batchnorm(Net(), images().x, math.nan)


def test_arguments_are_refused_in_words():
    net, data = Net().eval(), images()
    for ask in (lambda: layer_entropy(net, data, batch=0), lambda: grad_cam(net, data.x, batch=0),
                lambda: attention_drift(net, data.x, data.x, data.y, batch=-1)):
        with pytest.raises(ValueError, match="batch must be a whole number, at least 1"): ask()
    with pytest.raises(ValueError, match="this layer gives a tuple"):
        layer_entropy(nn.Sequential(nn.Flatten(2), nn.LSTM(144, 3)), data, "1")
    with pytest.raises(TypeError, match=r"whole numbers \[8\], got list"): grad_cam(net, data.x, [0] * 8)
    with pytest.raises(ValueError, match=r"torch.bool \[8\]"): grad_cam(net, data.x, data.y > 3)
    with pytest.raises(ValueError, match=r"must be \[N,1,28,28\]"): small_mnist(data)


def test_no_image_says_nothing_of_a_model():
    "All of no answers look like probabilities, and a logarithm was put around the model."
    with pytest.raises(ModelError, match="some has no images"): check_model(Net(), images().take(slice(0, 0)), "net")


def test_a_low_image_of_the_right_width_is_enlarged_too():
    assert Enlarged(32, nn.Identity())(torch.rand(1, 3, 20, 32)).shape == (1, 3, 32, 32)


def test_every_teacher_is_looked_at():
    "An objective may serve in several trainings, each with a teacher of its own."
    objective, x, logits = SimpleNamespace(teacher=nn.Linear(5, 10)), torch.rand(4, 5), torch.zeros(4, 10)
    assert taught(objective, x, logits).shape == (4, 10)
    objective.teacher = nn.Sequential(nn.Linear(5, 10), nn.Softmax(1))
    with pytest.raises(ValueError, match="probabilities"): taught(objective, x, logits)
    with pytest.raises(ValueError, match="10 outputs"): taught(objective, x, torch.zeros(4, 3))
