"""FGSM and PGD against recorded outputs of torchattacks and foolbox (reference/make_attacks.py made them)."""
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from robustnb.attacks import ascend, fgsm, fgsm_at_distance, loss_sign, pgd, raise_entropy

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def recorded():
    "Model, images, labels, settings and the recorded differences."
    spec = importlib.util.spec_from_file_location("make_attacks", REFERENCE / "make_attacks.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    found = dict(np.load(REFERENCE / "attacks.npz"))
    model = maker.lenet().eval()
    model.load_state_dict(
        {k.removeprefix("weight."): torch.tensor(v).double() for k, v in found.items() if k.startswith("weight.")}
    )
    return model, torch.tensor(found["x"]).float().div(255).double(), torch.tensor(found["y"]), found


@pytest.mark.parametrize("library", ["torchattacks", "foolbox"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd", "pgd_l2"])
def test_agrees_with(library, attack, recorded):
    model, x, y, found = recorded
    eps, step, steps, eps_l2, step_l2 = found["settings"].tolist()
    ours = {
        "fgsm": lambda: fgsm(model, x, y, eps),
        "pgd": lambda: pgd(model, x, y, eps, step, int(steps), random_start=False),
        "pgd_l2": lambda: pgd(model, x, y, eps_l2, step_l2, int(steps), norm="l2", random_start=False),
    }[attack]() - x
    theirs = torch.tensor(found[f"{library}.{attack}"])
    assert theirs.abs().max() > 0.05  # the recorded attack moved
    torch.testing.assert_close(ours.float(), theirs, atol=1e-5, rtol=0)


def test_ascent_raises_its_objective_and_stays_in_the_ball(recorded):
    model, x, y, _ = recorded
    objective = lambda z: torch.nn.functional.cross_entropy(model(z), y, reduction="none")
    for norm, eps in (("linf", 0.1), ("l2", 2.0)):
        z = ascend(x, objective, eps, eps / 4, 6, norm, random_start=True, generator=torch.Generator().manual_seed(0))
        away = (z - x).flatten(1)
        assert (objective(z) > objective(x)).all() and z.dtype == x.dtype
        assert (away.abs().amax(1) if norm == "linf" else away.norm(dim=1)).max() <= eps + 1e-9


def test_two_dozen_levels_take_one_gradient(recorded):
    model, x, y, _ = recorded
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    moved = fgsm_at_distance(model, x, y, [i / 2 for i in range(1, 25)])
    handle.remove()
    assert len(calls) == 1 and moved.shape == (24, *x.shape)
    torch.testing.assert_close(
        (moved - x).flatten(2).norm(dim=2), torch.arange(1, 25).double()[:, None].expand(-1, len(x)) / 2, atol=1e-9,
        rtol=0
    )


def test_an_attack_inside_training_keeps_gradients_and_statistics():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5), torch.nn.Flatten(),
        torch.nn.Linear(4 * 36, 10)
    ).train()
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    model(x).sum().backward()
    grads, state = [p.grad.clone() for p in model.parameters()], {k: v.clone() for k, v in model.state_dict().items()}
    for mode in ("eval", "train", "keep"):
        pgd(model, x, y, 0.1, 0.05, 3, mode=mode)
        raise_entropy(model, x, steps=2, mode=mode)
        loss_sign(model, x, y, mode=mode)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and model.training and model[1].training


def test_the_model_is_given_back_when_the_attack_fails():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 3)).train()
    with pytest.raises(ValueError, match="labels"):
        fgsm(model, torch.rand(4, 1, 4, 4), torch.zeros(3, dtype=torch.long), 0.1)
    assert model.training and model[0].num_batches_tracked == 0


def test_a_broken_model_is_not_taken_for_a_robust_one():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    model[1].weight.data[0, 0] = float("nan")
    x, y = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.long)
    for attack in (lambda: fgsm(model, x, y, 0.1), lambda: loss_sign(model, x, y), lambda: raise_entropy(model, x)):
        with pytest.raises(ValueError, match="NaN"): attack()
