"""Grad-CAM on torchvision's networks, which write in place, and what importing it costs."""
import ast
import inspect

import pytest
import torch

import robustnb.gradcam
from robustnb.gradcam import attention_drift, grad_cam, map_layers, pick_layer
from robustnb.models import create


@pytest.mark.parametrize("name, module", [("resnet18", "layer4"), ("convnext_tiny", "features")])
def test_the_last_map_of_torchvisions_networks(name, module):
    "The layer is the last before pooling; before a linear head its gradient-weighted channels add up to the logit."
    net, x = create(name, classes=4, seed=0), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert pick_layer(net, x) is getattr(net.features.body, module)
    assert map_layers(net, x)[f"features.body.{module}"][1:] == (2, 2)
    raw = grad_cam(net, x, 2, raw=True)
    assert raw.shape == (1, 2, 2) and raw.abs().max() > 0
    if name != "resnet18": return  # a layer norm stands between ConvNeXt's map and its head
    with torch.no_grad(): logit = net.eval()(x)[:, 2] - net.head.bias[2]
    torch.testing.assert_close(raw.sum((1, 2)), logit)


def test_a_network_that_sees_nothing_is_counted_and_not_dropped():
    "An empty map beside a full one is a similarity of 0; two empty maps are NaN."
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 1, 1, bias=False), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False)
    )
    net[0].weight.data.fill_(1.0)
    net[3].weight.data = torch.tensor([[1.0] * 4, [-1.0] * 4])
    bright, dark = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 1, 2, 2)
    lost = attention_drift(net, bright, dark, torch.zeros(3, dtype=torch.long), batch=2)
    assert lost[["rank", "overlap", "cosine"]].eq(
        0
    ).all().all() and lost.empty_perturbed.all() and not lost.empty_clean.any()
    never = attention_drift(net, bright, bright, torch.ones(3, dtype=torch.long))
    assert never[
        ["rank", "overlap", "cosine"]
    ].isna().all().all() and never.empty_clean.all() and not never.right_clean.any()


def test_captum_is_imported_when_first_needed():
    "It takes most of a second, which `import robustnb.gradcam` must not cost."
    names = [
        getattr(node, "module", None) or node.names[0].name
        for node in ast.parse(inspect.getsource(robustnb.gradcam)).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert "torch" in names and not [name for name in names if name.startswith("captum")]
