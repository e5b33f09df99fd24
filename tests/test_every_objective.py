"""Every objective that the package has, unasked: broken off inside an epoch it goes on to the bit, and two processes train what one trains.

A new objective is found by `test_registries.objectives`; nothing here names one, except to say what it cannot.
"""
import copy
import os
import socket

import pytest
import torch
from accelerate.state import AcceleratorState
from processes import started
from test_registries import base_class, objectives, with_defaults
from torch import nn

from robustnb.images import sample
from robustnb.layers import Classifier, seeded
from robustnb.sources import as_source
from robustnb.training import CrossEntropy, Loss, Objective, Recipe, crop_flip, fit, read_checkpoint

QUIET = dict(device="cpu", progress=False)
KINDS = {name: kind for name, kind in objectives().items() if not base_class(kind)}
RECIPE = Recipe(epochs=2, batch=8, optimizer="sgd", lr=0.02, schedule="cosine", warmup=0.5, weight_decay=1e-3)  # 3 steps an epoch
MIDDLE = 4  # the steps that are done when it breaks: one of the second epoch


class Stop(Exception): pass


def small(kind: type = CrossEntropy, dropout: float = 0.2) -> nn.Module:
    "64 features of pictures 32x32x3, with dropout and normalisation that keeps no running statistics."
    from robustnb.uncertainty import ELBO, bayesian

    with seeded(0):
        stem = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.GroupNorm(2, 8), nn.ReLU())
        hidden = nn.Sequential(nn.Flatten(), nn.Linear(8 * 49, 64), nn.ReLU())
        last = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Dropout(dropout))
        net = Classifier({"stem": stem, "hidden": hidden, "last": last}, nn.Linear(64, 10))
        return bayesian(net) if issubclass(kind, ELBO) else net


def made(kind: type) -> Objective:
    "The objective with the settings that remember most: a radius that grows, a cosine now and then."
    objective = with_defaults(kind, net=lambda: small(dropout=0.0))
    if hasattr(objective, "held"): objective.held = pictures()
    for setting, value in dict(ramp=0.7, cosine_every=2, steps=2, watch=4).items():
        if type(getattr(objective, setting, None)) is type(value): setattr(objective, setting, value)
    return objective


def pictures(): return sample("cifar10").take(slice(0, 24))


def recipe_for(kind: type) -> Recipe:
    import dataclasses
    return RECIPE if kind.__name__ == "SupCon" else dataclasses.replace(RECIPE, augment=crop_flip)  # SupCon makes its own views


def leave_at(objective: Objective, step: int, how) -> Objective:
    "The objective, made to end the training when a step has been made."
    after = objective.after_step
    def after_step(run):
        after(run)
        if run.step == step: how()
    objective.after_step = after_step
    return objective


def stop(): raise Stop


def rows(history): return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- broken off inside an epoch -------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_broken_off_inside_an_epoch_it_goes_on_to_the_bit(name, tmp_path):
    kind, settings = KINDS[name], dict(seed=2, **QUIET)
    whole, recipe = small(kind), recipe_for(KINDS[name])
    reached = made(kind)
    expected = fit(whole, pictures(), reached, recipe, **settings)  # without any checkpoint
    kept = dict(checkpoint=tmp_path / "c.pt", checkpoint_every=1, **settings)
    with pytest.raises(Stop): fit(small(kind), pictures(), leave_at(made(kind), MIDDLE, stop), recipe, **kept)
    assert read_checkpoint(tmp_path / "c.pt", torch.device("cpu"))["inside"]["done"] == MIDDLE % 3
    resumed = small(kind)
    nn.init.zeros_(next(resumed.parameters()))  # the weights are the checkpoint's
    history = fit(resumed, pictures(), objective := made(kind), recipe, **kept)
    assert rows(history) == rows(expected) and history.stopped == expected.stopped
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
    for part, other in zip(reached.parts().values(), objective.parts().values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(part.state_dict().values(), other.state_dict().values(), strict=True))
