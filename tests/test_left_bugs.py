"""The bugs that were once left in for the records' sake: each with the test that failed before it was mended.

Four stand elsewhere: archives before Python 3.11.4 in test_data.py, the frozen batch norm of a foreign network and the
decay of a part in test_training.py, another frozen policy and another teacher in nbs/41_eriep and test_training.py.
"""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustnb import blur, digital, noise, weather
from robustnb.corruptions import corrupt, corruption_names
from robustnb.epm import FixedPolicy, Policy, SearchRecipe, Step, discretise, search
from robustnb.eriep import ERIEP, eriep, gradient_cosine
from robustnb.images import ImageSet, sample
from robustnb.levels import correct_at_levels
from robustnb.operations import OPERATIONS
from robustnb.training import Recipe, accuracy, fit

X = sample("cifar10").take(slice(0, 4)).float()
FEW = sample("mnist").take(slice(0, 20))


def draws(seed=0): return torch.Generator().manual_seed(seed)
def policy(names=("flip", "invert"), seed=0): return Policy(l=2, k=1, operations=names, generator=draws(seed))


class Linear(nn.Module):
    "The smallest network there is."

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(784, 10)

    def forward(self, x): return self.head(x.flatten(1))


def test_a_distance_that_no_gradient_reaches_is_counted_not_refused():
    "Level 12 along the white-box gradient of a network that is sure: its sign is 0 everywhere."
    still, net = torch.zeros(20, 1, 28, 28), Linear()
    with pytest.raises(ValueError): correct_at_levels(net, FEW, still, (12.0,))
    right = correct_at_levels(net, FEW, still, (12.0,), unreachable="nearest")
    with torch.no_grad(): assert right[0].tolist() == (net(FEW.float()).argmax(1) == FEW.y).tolist()


@pytest.mark.parametrize(
    "apply", [lambda x: policy(("contrast", "color"))(x, draws()), lambda x: OPERATIONS["contrast"](x, 0.7)],
    ids=["policy", "contrast"]
)
def test_operations_keep_full_precision_under_autocast(apply):
    with torch.autocast("cpu", dtype=torch.bfloat16): mixed = apply(X)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, apply(X))


def test_a_search_among_operations_without_a_magnitude():
    "No loss depends on the magnitudes then, and the optimiser met parameters without a gradient."
    tiny = SearchRecipe(epochs=1, batch=20)
    found = search(sample("cifar10").take(slice(0, 20)), policy(), recipe=tiny, device="cpu", progress=False)
    assert len(found.rows) == 1 and torch.isfinite(found.policy.weights).all()


def test_stretching_a_nearly_flat_image_has_a_small_gradient():
    "The factor 1 / (highest - lowest) was a million where they differ by a millionth."
    nearly = torch.full((1, 1, 4, 4), 0.5)
    nearly[0, 0, 0, 0] += 1e-6
    nearly.requires_grad_()
    assert torch.autograd.grad(OPERATIONS["auto_contrast"](nearly, 1.0).sum(), nearly)[0].abs().max() <= 510


def test_the_name_of_an_objective_tells_policies_apart():
    names = [ERIEP(discretise(policy(seed=seed)), epm_update="frozen").name for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_another_frozen_policy_is_another_training(tmp_path):
    def train(seed):
        objective = ERIEP(discretise(policy(seed=seed)), epm_update="frozen")
        fit(
            Linear(), FEW, objective, Recipe(epochs=1, batch=10), checkpoint=tmp_path / "t.pt", device="cpu",
            progress=False
        )
    train(0)
    with pytest.raises(ValueError, match="another training"): train(1)


def test_the_check_of_a_discrete_policy_can_fail(monkeypatch):
    "ALG-04 compared an argmax with the same argmax; now each stage is held against its operation."
    from robustnb.papers.eriep.checks import acts_alone

    fixed = FixedPolicy(((Step("invert", 1.0, 1.0),),))
    assert acts_alone(fixed, 0)
    monkeypatch.setattr(FixedPolicy, "stages", lambda self, x, generator, which: x)
    assert not acts_alone(fixed, 0)


def test_a_cosine_stays_within_one():
    "The cosine of a long gradient with itself came out as 1.0000019."
    net = nn.Linear(3000, 10)
    for seed in range(20):
        loss = net(torch.rand(8, 3000, generator=draws(seed))).square().sum()
        for sign in (1, -1): assert gradient_cosine(loss, sign * loss, net).item() == sign


@pytest.mark.parametrize("kept", [True, False])
def test_eriep_with_and_without_a_checkpoint(tmp_path, kept):
    options = dict(checkpoint=tmp_path / "eriep.pt") if kept else {}
    found = eriep(
        Linear(), FEW, Recipe(epochs=1, batch=10), searching=SearchRecipe(epochs=1, batch=20), device="cpu",
        progress=False, **options
    )
    assert len(found.history.rows) == 1 and (tmp_path / "eriep.pt").is_file() == kept


def test_an_accuracy_is_a_quotient_of_whole_numbers():
    "A third came out as 0.3333333432674408, the nearest float32."
    class Zero(nn.Module):
        def forward(self, x): return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10).float()
    three = ImageSet(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 2]), tuple("0123456789"), "three")
    assert accuracy(Zero(), three) == 1 / 3


def test_a_policys_state_holds_its_operations():
    "Loaded into one with another order it printed flip for invert."
    stored, other = policy(("flip", "invert")), policy(("invert", "flip"), seed=1)
    other.load_state_dict(stored.state_dict())
    assert str(discretise(other)) == str(discretise(stored))
    with pytest.raises((ValueError, RuntimeError)):
        policy(("flip", "invert", "rotate")).load_state_dict(stored.state_dict())


def test_weight_decay_leaves_a_policy_alone():
    "The recipe's decay shrank W, P and M, which Algorithm 1 updates by its loss only."
    given = policy()
    objective = ERIEP(given, reading="augment")  # nothing is learned: whatever moves, decay moved
    fit(
        Linear(), FEW, objective, Recipe(epochs=1, batch=10, optimizer="sgd", lr=0.1, weight_decay=0.5), device="cpu",
        progress=False
    )
    for name in ("weights", "probabilities", "magnitudes"):
        assert torch.equal(getattr(objective.policy, name), getattr(given, name))


def fresh_memories():
    "Forget what the corruptions keep for the next call."
    for module in (blur, digital, noise, weather):
        for kept in vars(module).values():
            if hasattr(kept, "cache_clear"): kept.cache_clear()


@pytest.mark.parametrize("name", corruption_names())
@pytest.mark.parametrize("severity, benchmark", [(1, "cifar10-c"), (3, "imagenet-c"), (5, "imagenet-c")])
def test_gradients_pass_after_a_call_under_inference_mode(name, severity, benchmark):
    x = F.interpolate(sample("cifar10", "test").take(slice(2)).float(), size=48).clamp(0, 1)
    fresh_memories()
    with torch.inference_mode(): first = corrupt(x, name, severity, benchmark, generator=draws())
    z = x.clone().requires_grad_()
    then = corrupt(z, name, severity, benchmark, generator=draws())
    assert torch.equal(first, then.detach())
    if then.requires_grad:
        then.sum().backward()
        assert z.grad.isfinite().all()
