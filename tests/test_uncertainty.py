"""Mechanisms of robustnb.uncertainty: batch norm, modes, torchvision's dropout, `evaluate`, state, generators."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustnb import uncertainty as u
from robustnb.images import sample
from robustnb.layers import Classifier, Dropout, seeded
from robustnb.robustness import evaluate
from robustnb.training import predict

TEST = sample("mnist", "test").take(slice(0, 60))


def net(seed=0, dropout=0.3, classes=10, kind=Dropout):
    with seeded(seed):
        conv = nn.Sequential(nn.Conv2d(1, 4, 5, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), kind(dropout))
        return Classifier({"conv": conv}, nn.Linear(4 * 36, classes))


def snapshot(model):
    return [m.training for m in model.modules()], [v.clone() for v in model.state_dict().values()] + [
        torch.get_rng_state()
    ]


def same(model, before):
    now = snapshot(model)
    return now[0] == before[0] and all(map(torch.equal, now[1], before[1]))


CALLS = {
    "mc_dropout": lambda model: u.mc_dropout(model, TEST.x, 3),
    "ensemble": lambda model: u.Ensemble([model, net(1)])(TEST.float()),
    "laplace": lambda model: u.LastLayerLaplace(model).fit(TEST)(TEST.float()),
    "laplace, sampled": lambda model: u.LastLayerLaplace(model, 1.0, "sampling").fit(TEST)(TEST.float()),
    "temperature": lambda model: u.temperature_scale(model, TEST)(TEST.float()),
    "variational": lambda model: u.variational(u.bayesian(model), TEST.x, 2),
}


@pytest.mark.filterwarnings("ignore:the likelihood of these")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_model_and_global_generator_stay_as_they_are(call, training):
    model = net().train(training)
    model.features.conv[1].eval()  # one module in another mode than the rest
    before = snapshot(model)
    first = CALLS[call](model)
    assert same(model, before) and first.isfinite().all()
    assert torch.equal(first, CALLS[call](model))


@pytest.mark.parametrize("kind", [Dropout, nn.Dropout, nn.AlphaDropout])
def test_all_kinds_of_dropout_sample(kind):
    model = net(kind=kind)
    g = lambda s: torch.Generator().manual_seed(s)
    first = u.mc_dropout(model, TEST.x, 4, g(1))
    assert torch.equal(first, u.mc_dropout(model, TEST.float(), 4, g(1))) and not torch.equal(
        first, u.mc_dropout(model, TEST.x, 4, g(2))
    )
    assert first.std(0).max() > 0.01 and not any(getattr(m, "sampling", False) for m in model.modules())


def test_dropout_ends_also_after_an_error():
    model = net()
    with pytest.raises(RuntimeError): u.mc_dropout(model, torch.rand(2, 3, 28, 28), 2)
    assert torch.equal(predict(model, TEST), predict(model, TEST))


@pytest.mark.parametrize(
    "make",
    [
        lambda: u.Ensemble([net(0), net(1)]),
        lambda: u.LastLayerLaplace(net(), 1.0).fit(TEST),
        lambda: u.Tempered(net(), 2.0),
    ],
)
def test_models_are_evaluated_and_attacked_like_others(make):
    from robustnb.attacks import fgsm

    model = make()
    table = evaluate(model, TEST, ["fog"], [1], resamples=10, show=False)
    clean = (predict(model, TEST).argmax(1) == TEST.y).double().mean().item()
    assert table.accuracy[0] == pytest.approx(clean) and len(table) == 2
    x = TEST.float()
    moved = fgsm(model, x, TEST.y, 0.1)
    assert F.cross_entropy(model(moved), TEST.y) > F.cross_entropy(model(x), TEST.y)


def test_ensemble_does_not_change_a_copy_of_its_members_state():
    members = [net(0), net(1)]
    team = u.Ensemble(members)
    other = u.Ensemble([net(2), net(3)])
    other.load_state_dict(copy.deepcopy(team.state_dict()))
    assert torch.equal(team(TEST.float()), other(TEST.float()))


def test_laplace_needs_no_labels_for_its_covariance_and_knows_any_last_layer():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(784, 5), nn.Tanh(), nn.Linear(5, 10, bias=False))
    one = u.LastLayerLaplace(plain, 0.7).fit(TEST)
    mixed = type(TEST)(TEST.x, TEST.y.flip(0), TEST.classes, TEST.name)
    assert one.covariance.shape == (50, 50) and torch.equal(
        one.covariance, u.LastLayerLaplace(plain, 0.7).fit(mixed).covariance
    )
    assert torch.allclose(one.covariance, one.covariance.T)
    pieces = u.LastLayerLaplace(plain, 0.7).fit(TEST, batch=7)
    assert torch.allclose(one.covariance, pieces.covariance, atol=1e-9)


def test_laplace_doubts_more_with_a_weaker_prior():
    model = net()
    confidence = [
        u.LastLayerLaplace(model, p).fit(TEST)(TEST.float()).exp().max(1).values.mean().item()
        for p in (0.1, 1.0, 10.0, math.inf)
    ]
    assert confidence == sorted(confidence)


def test_too_large_a_last_layer_is_refused_before_any_work():
    wide = nn.Sequential(nn.Flatten(), nn.Linear(784, 20))
    with pytest.raises(ValueError, match="15700 parameters"): u.LastLayerLaplace(wide).fit(TEST)


def test_bayesian_layers_train_and_save():
    model = u.bayesian(net(), "all", std=0.1)
    loss = u.ELBO(images=60).loss(model.train(), TEST.float(), TEST.y).total
    loss.backward()
    layer = u.bayes_layers(model)[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    other = u.bayesian(net(1), "all")
    other.load_state_dict(model.state_dict())
    assert torch.equal(predict(other, TEST), predict(model, TEST))


def test_risk_coverage_takes_any_monotone_score():
    confidence, correct = torch.rand(200), torch.rand(200) < 0.6
    frame, aurc = u.risk_coverage(confidence, correct)
    other, same_aurc = u.risk_coverage(confidence.double().log().numpy(), correct.numpy())
    assert aurc == pytest.approx(same_aurc) and frame.risk.tolist() == pytest.approx(other.risk.tolist())
    assert frame.risk.iloc[-1] == pytest.approx(1 - correct.double().mean().item()) and len(frame) == 200
    assert u.accuracy_at(confidence, correct, 0.8) == pytest.approx(1 - frame.risk.iloc[159])
