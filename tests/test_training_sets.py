"""Training sets at MNIST's own size: totals, balance, pairing across levels, distances."""
import itertools

import pytest
import torch
from torch import nn

from robustnb.images import ImageSet, sample
from robustnb.training_sets import add_both, add_perturbed, balanced_choice, four_factor, imbalance, mislabel, orthogonal_array

COUNTS = torch.tensor([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])  # study, section 2.1
DIGITS = tuple("0123456789")


def seeded(seed=0): return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def labels():
    "A set of MNIST's size and labels whose images are one numbered pixel: cheap, and each can be told apart."
    y = torch.arange(10).repeat_interleave(COUNTS)[torch.randperm(60000, generator=seeded())]
    return ImageSet((torch.arange(60000) / 60000).view(-1, 1, 1, 1), y, DIGITS, "labels of MNIST")


@pytest.fixture(scope="module")
def train(): return sample("mnist", "train")


@pytest.fixture(scope="module")
def source():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    model[1].weight.data = torch.randn(10, 784, generator=seeded())
    return model


def test_a_perturbed_set_has_80000_images_and_its_control_is_clean(labels):
    made = add_perturbed(labels, "gaussian", 0.0)
    assert len(made) == 80000 and torch.equal(made.y.bincount(), COUNTS + 2000)
    assert torch.equal(made.x[:60000], labels.x) and made.x[60000:].unique().numel() == 20000  # no image twice
    assert len(add_perturbed(labels, "gaussian", 0.0, mode="replace")) == 60000
    assert len(add_both(labels, (0.0, 0.0))) == 80000


@pytest.mark.parametrize("ci", [0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6])
def test_imbalance_keeps_the_largest_class(ci, labels):
    made, cut = imbalance(labels, ci, seeded()), round(6742 * (1 - ci))
    assert made.y.bincount().tolist() == [min(cut, n) if n != 6742 else n for n in COUNTS.tolist()]
    assert torch.equal(labels.y[(made.x.flatten() * 60000).round().long()], made.y)  # images kept their labels


@pytest.mark.parametrize("ld", [round(0.05 * i, 2) for i in range(1, 11)])
def test_wrong_labels_are_even_and_class_totals_stay(ld, labels):
    made = mislabel(labels, ld, seeded())
    wrong = made.y != labels.y
    table = (labels.y * 10 + made.y)[wrong].bincount(minlength=100).view(10, 10)
    others = table[~torch.eye(10, dtype=torch.bool)]
    assert torch.equal(made.y.bincount(), COUNTS) and torch.equal(made.x, labels.x)
    assert wrong.sum() == round(60000 * ld) and (table.sum(1) == 6000 * ld).all() and (table.sum(0) == 6000 * ld).all()
    assert others.max() - others.min() <= 1


def test_levels_of_a_factor_are_nested(labels):
    kept = [set(imbalance(labels, ci, seeded(5)).x.flatten().tolist()) for ci in (0.3, 0.45, 0.6)]
    assert kept[0] > kept[1] > kept[2]
    wrong = [
        set((mislabel(labels, ld, seeded(5)).y != labels.y).nonzero().flatten().tolist()) for ld in (0.05, 0.2, 0.5)
    ]
    assert wrong[0] < wrong[1] < wrong[2]


def test_all_levels_move_the_same_images_the_same_way(train):
    index, x = balanced_choice(train, 10, seeded(3)), train.float()
    near, far = (
        add_perturbed(train, "gaussian", level, 10, images=seeded(3), noise=seeded(4)).x[2000:] - x[index]
        for level in (2.0, 12.0)
    )
    for moved, level in ((near, 2.0), (far, 12.0)): assert (moved.flatten(1).norm(dim=1) - level).abs().max() < 1e-4
    assert (near * far >= 0).all() and (far.abs() >= near.abs() - 1e-6).all()
    other = add_perturbed(train, "gaussian", 2.0, 10, images=seeded(3), noise=seeded(5)).x[2000:] - x[index]
    assert not torch.allclose(other, near)


def test_both_kinds_hold_their_distances_on_different_images(train, source):
    made = add_both(train, (4.0, 8.0), per_class=20, source=source)
    index = balanced_choice(train, 40, seeded()).view(10, 2, 20)
    assert len(index.unique()) == 400
    moved = [
        (made.x[2000 + 200 * k:2200 + 200 * k] - train.float()[index[:, k].flatten()]).flatten(1).norm(dim=1)
        for k in (0, 1)
    ]
    assert (moved[0] - 4).abs().max() < 1e-4 and (moved[1] - 8).abs().max() < 1e-4


def test_four_factors_meet_their_rates_and_spoil_copies_too(train, source):
    clean, made = (four_factor(train, (8.0, 8.0, 0.4, ld), per_class=20, source=source) for ld in (0.0, 0.2))
    assert torch.equal(clean.x, made.x) and torch.equal(clean.y.bincount(), made.y.bincount())
    wrong = clean.y != made.y
    assert len(made) == 200 + 9 * 120 + 400 and abs(wrong.float().mean() - 0.2) < 0.005
    assert wrong[-400:].any() and wrong[:-400].any()


@pytest.mark.parametrize("levels, factors", [(2, 3), (3, 4), (5, 4), (5, 6), (7, 5)])
def test_every_pair_of_factors_meets_every_pair_of_levels_once(levels, factors):
    rows = [tuple(map(int, row)) for row in orthogonal_array(levels, factors)]
    for i, j in itertools.combinations(range(factors), 2):
        assert sorted((row[i], row[j]) for row in rows) == list(itertools.product(range(levels), repeat=2))


def test_bad_requests_say_what_would_do(train, labels, source):
    for call, said in [
        (lambda: add_perturbed(train, "gausian", 1.0, 5), "did you mean 'gaussian'"),
        (lambda: balanced_choice(train, 500, seeded()), "only 200"),
        (lambda: add_perturbed(train, "fgsm", 1.0, 5), "source=MODEL"),
        (lambda: imbalance(train, 1.2), r"\[0,1\)"),
        (lambda: mislabel(labels, 0.95), "at most LD 0.90"),
        (lambda: orthogonal_array(4), "prime"),
        (lambda: add_perturbed(train, "gaussian", -1.0, 5), ">= 0"),
    ]:
        with pytest.raises(ValueError, match=said): call()


def test_nothing_touches_the_global_generator_or_the_original(train, source):
    state, x, y = torch.random.get_rng_state(), train.x.clone(), train.y.clone()
    for mode in ("add", "replace"):
        add_perturbed(train, "gaussian", 2.0, 5, mode), add_perturbed(train, "fgsm", 2.0, 5, mode, source=source)
    mislabel(imbalance(train, 0.4), 0.1)
    assert torch.equal(state, torch.random.get_rng_state()) and torch.equal(train.x, x) and torch.equal(train.y, y)
    assert all(p.grad is None for p in source.parameters())
