"Adversarial training and the worst case: mechanisms that no notebook needs to show."
import copy
import importlib.util
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustnb.adversarial import (
    AdversarialTraining, Adversarial, Connected, Distillation, Divided, EnsembleAdversarial,
    FreeAdversarialTraining, Trades, distill, gradient_alignment, loss_surface, masking_checks,
)
from robustnb.images import ImageSet
from robustnb.layers import seeded
from robustnb.training import Objective, Recipe, fit
from robustnb.worst_case import apgd, autoattack, margin, parts_for, robust_accuracy, square, standing


def data(n=40, classes=4, size=8, seed=0):
    "Stripes at a place that depends on the label, with noise: easy, not trivial."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = 0.3 * torch.rand(n, 1, size, size, generator=g)
    for i, label in enumerate(y.tolist()): x[i, 0, 2 * label:2 * label + 2] += 0.6
    return ImageSet(x, y, tuple(map(str, range(classes))), "stripes")


def net(classes=4, seed=0):
    with seeded(seed):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, classes)
        )


def objectives(others=()):
    return [
        AdversarialTraining("pgd", 0.1, steps=2, clean_weight=0.3, watch=8),
        AdversarialTraining("fgsm", 0.1, clean_weight=0.5, watch=8),
        AdversarialTraining("fgsm_rs", 0.1, batch_norm="joint", clean_weight=0.5, watch=8),
        FreeAdversarialTraining(0.1, 2, watch=8),
        Trades(1.0, 0.1, steps=2, watch=8),
        EnsembleAdversarial(others or [net(seed=3)], 0.1, watch=8),
        Distillation(net(seed=4), 5.0),
    ]


def quiet_fit(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(*args, device="cpu", progress=False, **options)


@pytest.mark.parametrize("which", range(7))
def test_an_interrupted_training_goes_on_where_it_stopped(which, tmp_path):
    set_, recipe, path = data(), Recipe(epochs=3, batch=16), tmp_path / "run.pt"
    class Stop(Exception): pass
    broken = objectives()[which]
    begin = broken.before_epoch
    def before_epoch(run):
        if run.epoch == 2: raise Stop
        begin(run)
    broken.before_epoch = before_epoch
    with pytest.raises(Stop): quiet_fit(net(), set_, broken, recipe=recipe, checkpoint=path)
    quiet_fit(resumed := net(), set_, objectives()[which], recipe=recipe, checkpoint=path)
    quiet_fit(whole := net(), set_, objectives()[which], recipe=recipe)
    assert all(a.equal(b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values()))


def test_nothing_else_moves():
    set_, other = data(), net(seed=3).train()
    other[0].weight.requires_grad_(False)
    before, state = copy.deepcopy(other.state_dict()), torch.get_rng_state()
    for objective in objectives([other]):
        model = net().train()
        model[1].eval()
        modes, free = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
        objective.loss(model, set_.x, set_.y).total.backward()
        assert modes == [m.training for m in model.modules()] and free == [p.requires_grad for p in model.parameters()]
        assert not objective.parts()
        torch.set_rng_state(state)  # dropout in the model itself draws from the global generator; an attack does not
    quiet_fit(net(), set_, EnsembleAdversarial([other], 0.1), recipe=Recipe(epochs=1, batch=16))
    student = net()
    distill(other, student, set_, 3.0, Recipe(epochs=1, batch=16), device="cpu", progress=False)
    assert all(v.equal(other.state_dict()[k]) for k, v in before.items()) and other.training and not other[
        0
    ].weight.requires_grad
    assert all(p.requires_grad for p in student.parameters()) and torch.get_rng_state().equal(state)


def test_measuring_moves_nothing():
    set_, model, state = data(), net().train(), torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    robust_accuracy(
        model, set_, 0.1, attack=["fgsm", "pgd-margin", "light", "noise"], steps=4, queries=10, restarts=2,
        progress=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = masking_checks(model, set_, 0.1, steps=3, queries=5, progress=False)
    assert list(frame.columns) == ["check", "value", "passed"] and len(frame) == 7
    loss_surface(model, set_.x, set_.y, 0.1, 3, torch.Generator().manual_seed(0))
    gradient_alignment(model, set_.x, set_.y, 0.1, torch.Generator().manual_seed(0))
    assert torch.get_rng_state().equal(state) and model.training and model[1].training
    assert all(v.equal(model.state_dict()[k]) for k, v in before.items()) and all(
        p.grad is None for p in model.parameters()
    )
    with torch.inference_mode(): robust_accuracy(model, set_, 0.1, attack="light", steps=3, queries=5, progress=False)


def test_the_guard_does_not_change_the_training():
    set_, recipe = data(), Recipe(epochs=2, batch=16)
    weights = []
    for watch in (0, 20):
        quiet_fit(model := net(), set_, AdversarialTraining("fgsm_rs", 0.1, watch=watch), recipe=recipe)
        weights.append(model.state_dict())
    assert all(weights[0][k].equal(v) for k, v in weights[1].items())


def test_the_radius_reaches_eps_and_stays():
    seen = []
    class Watching(AdversarialTraining):
        def examples(self, model, x, y):
            seen.append(self.radius)
            return super().examples(model, x, y)
    objective = Watching("fgsm", 0.2, ramp=0.5, watch=0)
    quiet_fit(net(), data(), objective, recipe=Recipe(epochs=2, batch=10))
    assert torch.tensor(seen).allclose(
        torch.tensor([0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.2, 0.2])
    ) and objective.radius == 0.2


def test_names_tell_settings_apart():
    names = {
        o.name
        for o in [
            *objectives(), AdversarialTraining("pgd", 0.2), AdversarialTraining("pgd", 0.1, step=0.03),
            Trades(2.0, 0.1, steps=2)
        ]
    }
    assert len(names) == 10 and all(isinstance(o, Objective) for o in objectives()) and issubclass(Trades, Adversarial)


def test_a_pass_shared_under_dropout_would_be_another_pass():
    model, calls = net().train(), []
    model.register_forward_hook(lambda *_: calls.append(model.training))
    AdversarialTraining("fgsm", 0.1, clean_weight=0.5).loss(model, data().x, data().y)
    assert calls == [False, True, True]


def test_l2_and_few_classes():
    for classes in (2, 3):
        set_, model = data(classes=classes), net(classes).eval()
        row = robust_accuracy(model, set_, 1.0, "l2", attack="light", steps=5, queries=20, progress=False)
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 and row["n"] == 40
    assert parts_for(("apgd-t", "apgd-dlr", "square"), 3) == ["apgd-dlr", "square"]


def test_margin_takes_the_best_other_class_even_when_the_label_leads():
    z = torch.tensor([[3.0, 1.0, 2.5]])
    assert margin(z, torch.tensor([0])).item() == 0.5 and margin(z, torch.tensor([1])).item() == -2.0
    assert z.equal(torch.tensor([[3.0, 1.0, 2.5]]))  # not written to


def test_margin_takes_labels_made_under_inference_mode():
    with torch.inference_mode(): y = torch.tensor([1])
    z = torch.tensor([[1.0, 3.0, 2.5]], requires_grad=True)
    margin(z, y).sum().backward()
    assert z.grad.tolist() == [[0.0, 1.0, -1.0]]


def test_a_model_cut_off_from_its_images_is_reported():
    model, set_ = net().eval(), data()
    cut = lambda z: model((4 * z).round().int() / 4)
    assert torch.equal(Connected(cut)(set_.x), cut(set_.x))
    frame = masking_checks(cut, set_, 0.1, steps=3, queries=10, progress=False).set_index("check")
    assert not frame.passed["zero gradients"] and frame.value["zero gradients"] == 1


def test_errors_name_the_choices():
    set_, model = data(), net()
    for call, words in (
        (lambda: robust_accuracy(model, set_, 0.1, "l1", progress=False), "linf"),
        (lambda: robust_accuracy(model, set_, 0.1, attack="pdg", progress=False), "pgd"),
        (lambda: AdversarialTraining("pgd", -0.1), "radius"),
        (lambda: Trades(-1), "weight"),
        (lambda: EnsembleAdversarial(model, 0.1), "sequence"),
        (lambda: EnsembleAdversarial([], 0.1, include_self=False), "source"),
        (lambda: Divided(model, 0), "above 0"),
        (lambda: masking_checks(model, set_.take(slice(0, 5)), 0.1), "images"),
        (lambda: FreeAdversarialTraining(replays=0), "replays"),
        (lambda: Trades(1, batch_norm="seperate"), "separate"),
    ):
        with pytest.raises(ValueError, match=words): call()


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyautoattack", None)
    with pytest.raises(ImportError, match="robustnb\\[attack\\]"): autoattack(net(), data().x, data().y, 0.1)


@pytest.mark.skipif(importlib.util.find_spec("pyautoattack") is None, reason="needs the extra `attack`")
@pytest.mark.parametrize("norm, eps", [("linf", 0.2), ("l2", 1.0)])
def test_agrees_with_pyautoattack(norm, eps):
    set_, model = data(80, seed=1), net()
    quiet_fit(model, set_, recipe=Recipe(epochs=8, batch=16, lr=0.01))
    state, g = torch.get_rng_state(), lambda: torch.Generator().manual_seed(0)
    theirs = standing(
        model, set_.x, set_.y, eps, norm,
        lambda *a: autoattack(*a[:5], parts=("apgd-ce", "apgd-t"), steps=40, generator=a[5]), generator=g()
    )
    assert torch.get_rng_state().equal(state)
    ours = standing(model, set_.x, set_.y, eps, norm, "light", steps=40, queries=100, generator=g())
    assert 5 < theirs.sum() < 75 and (ours != theirs).sum() <= 2


@pytest.mark.skipif(importlib.util.find_spec("pyautoattack") is None, reason="needs the extra `attack`")
def test_square_is_about_as_strong_as_theirs():
    from pyautoattack.square import SquareAttack
    set_, model = data(80, seed=1), net()
    quiet_fit(model, set_, recipe=Recipe(epochs=8, batch=16, lr=0.01))
    with torch.random.fork_rng(), torch.no_grad():
        theirs = SquareAttack(model, eps=0.3, n_queries=200, seed=0).perturb(set_.x, set_.y)
    ours = square(model, set_.x, set_.y, 0.3, 200, generator=torch.Generator().manual_seed(0))
    right = [int((model(z).argmax(1) == set_.y).sum()) for z in (set_.x, ours, theirs)]
    assert right[0] - right[1] > 3 and abs(right[1] - right[2]) <= 8
    assert (ours - set_.x).abs().max() <= 0.3 + 1e-6


def test_apgd_beats_pgd_of_as_many_steps_on_average():
    set_, model = data(80, seed=1), net()
    quiet_fit(model, set_, recipe=Recipe(epochs=8, batch=16, lr=0.01))
    from robustnb.attacks import pgd
    g = lambda: torch.Generator().manual_seed(0)
    loss = lambda z: F.cross_entropy(model(z), set_.y).item()
    best = apgd(model, set_.x, set_.y, 0.05, 20, generator=g())
    assert loss(best) > 0.9 * loss(pgd(model, set_.x, set_.y, 0.05, 0.0125, 20, generator=g())) > loss(set_.x)
