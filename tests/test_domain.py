"""Domain adaptation: what `fit` must give back, what a resumed training must equal, and what nobody may look at."""
import copy

import pytest
import torch
from torch import nn

from robustnb.images import ImageSet
from robustnb.domain import DANN, Mapping, adda, domain_pair, mnist_m, proxy_a_distance, tent
from robustnb.layers import Classifier
from robustnb.training import Recipe, fit

QUIET = dict(device="cpu", progress=False)


@pytest.fixture(autouse=True)
def one_thread():
    "Bitwise equality is promised for one number of threads."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(n: int, shift: float, seed: int) -> ImageSet:
    "Noise of 4 x 4 pixels, brighter below for class 1; the target is brighter throughout."
    x = 0.5 * torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    y = torch.arange(n) % 2
    x[y == 1, :, 2:] += 0.2
    return ImageSet(x + shift, y, ("dark", "bright"), f"noise+{shift}")


def net() -> Classifier:
    "Batch norm and dropout: what a checkpoint must not forget."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2))
        return Classifier({"stem": stem}, nn.Linear(16, 2))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(u, v) for u, v in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def flip(x, generator):
    "An augmentation that draws."
    turn = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
    return torch.where(turn, x.flip(3), x)


SOURCE, TARGET = images(50, 0, 0), images(37, 0.3, 1)
RECIPE = Recipe(epochs=4, batch=16, lr=1e-2, augment=flip)


class Interrupted(Exception): pass


def stop_at(objective, epoch: int):
    "The objective, made to fail when an epoch begins."
    def before_epoch(run):
        if run.epoch == epoch: raise Interrupted
        type(objective).before_epoch(objective, run)
    objective.before_epoch = before_epoch
    return objective


@pytest.mark.parametrize("joint", [False, True])
def test_dann_resumed_is_dann_unbroken(tmp_path, joint):
    whole, broken, resumed = net(), net(), net()
    first, last = DANN(TARGET, joint=joint), DANN(TARGET, joint=joint)
    history = fit(whole, SOURCE, first, RECIPE, seed=3, **QUIET)
    settings = dict(recipe=RECIPE, seed=3, checkpoint=tmp_path / "c.pt", **QUIET)
    with pytest.raises(Interrupted): fit(broken, SOURCE, stop_at(DANN(TARGET, joint=joint), 2), **settings)
    again = fit(resumed, SOURCE, last, **settings)
    assert same(whole, resumed) and same(first.discriminator, last.discriminator)
    assert [row["domain"] for row in history.rows] == [row["domain"] for row in again.rows] and len(again.rows) == 4


def test_another_target_or_setting_is_another_training(tmp_path):
    settings = dict(recipe=Recipe(epochs=1, batch=16), checkpoint=tmp_path / "c.pt", **QUIET)
    fit(net(), SOURCE, DANN(TARGET), **settings)
    for other in (DANN(images(37, 0.3, 2)), DANN(TARGET, joint=False), DANN(TARGET, weight=0.5)):
        with pytest.raises(ValueError, match="belongs to another training"): fit(net(), SOURCE, other, **settings)


def test_target_labels_are_never_looked_at():
    models = [net(), net()]
    for model, y in zip(models, (TARGET.y, 1 - TARGET.y)):
        fit(model, SOURCE, DANN(ImageSet(TARGET.x, y, TARGET.classes, "target")), RECIPE, **QUIET)
    assert same(*models)


def test_global_generator_and_data_stay_as_they_were():
    before, x = torch.random.get_rng_state(), TARGET.x.clone()
    fit(net(), SOURCE, DANN(TARGET.x), RECIPE, **QUIET)
    photos = ImageSet(
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("black",), "black"
    )
    digits = ImageSet((SOURCE.x * 255).to(torch.uint8), SOURCE.y, SOURCE.classes, "digits")
    mnist_m(digits=digits, photos=photos)
    domain_pair("cifar10-corrupted", photos=photos)
    assert torch.equal(before, torch.random.get_rng_state()) and torch.equal(x, TARGET.x)


def test_weight_zero_trains_the_net_as_if_alone():
    "The discriminator watches and nothing flows back: the source's gradient is that of plain cross-entropy."
    class Alone(DANN):
        def loss(self, model, x, y):
            found = super().loss(model, x, y)
            return type(found)(found.terms["labels"], found.terms, found.logits)

    still = lambda: Classifier({"flat": nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh())}, nn.Linear(4, 2))
    torch.manual_seed(0)
    watched = still()
    alone = copy.deepcopy(watched)
    sgd = Recipe(epochs=2, batch=16, optimizer="sgd", lr=0.1)
    fit(watched, SOURCE, DANN(TARGET, weight=0), sgd, **QUIET)
    fit(alone, SOURCE, Alone(TARGET, weight=0), sgd, **QUIET)
    assert same(watched, alone)


def test_discriminator_learns_at_full_rate_from_the_first_step():
    "With lambda 0 throughout it still tells the domains apart; batch norm by domain takes the shift away from it."
    last = {}
    for joint in (True, False):
        objective = DANN(images(37, 0.3, 1), weight=0, joint=joint)
        last[joint] = fit(net(), SOURCE, objective, Recipe(epochs=25, batch=16, lr=1e-2), **QUIET).rows[-1]["domain"]
    assert last[True] < 0.2 and last[False] > 0.5


def test_progress_runs_from_zero_to_one():
    seen = []

    class Watched(DANN):
        def loss(self, model, x, y):
            seen.append(self.progress)
            return super().loss(model, x, y)

    fit(net(), SOURCE, Watched(TARGET), Recipe(epochs=2, batch=25), **QUIET)
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \[1, 4, 4\]"):
        fit(net(), SOURCE, DANN(torch.rand(5, 3, 4, 4)), RECIPE, **QUIET)
    with pytest.raises(ValueError, match="weight is the largest lambda"): DANN(TARGET, weight=-1)


def test_train_and_test_patches_are_apart(monkeypatch):
    "The photographs of a split are asked for by that split, whatever the digits are."
    asked = []

    def load(name, split, progress=True):
        asked.append((name, split))
        side, channels = (32, 3) if name == "cifar10" else (28, 1)
        return ImageSet(
            torch.zeros(3, channels, side, side, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), ("one",), name
        )

    monkeypatch.setattr("robustnb.domain.load", load)
    for split in ("train", "test"): mnist_m(split)
    assert asked == [("mnist", "train"), ("cifar10", "train"), ("mnist", "test"), ("cifar10", "test")]


# --- ADDA and the cheap competitors -----------------------------------------------------------------------------------

def kept(model: nn.Module) -> dict:
    "All of a model that a caller could see change."
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "free": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
    }


def untouched(before: dict, model: nn.Module) -> bool:
    now = kept(model)
    return all(torch.equal(v, now["weights"][k]) for k, v in before["weights"].items()) and all(
        now[k] == before[k] for k in ("modes", "free", "grads")
    )


def partly_frozen() -> Classifier:
    "A net in training mode of which one bias is frozen: states that must survive."
    model = net().train()
    model.features.stem[1].eval()
    model.features.stem[0].bias.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    return model


SHORT = Recipe(epochs=4, batch=16, lr=1e-3)


@pytest.mark.parametrize(
    "method",
    [
        lambda model: adda(model, SOURCE, TARGET, SHORT, hidden=(8,), **QUIET),
        lambda model: tent(model, TARGET, batch=10)
    ]
)
def test_source_model_and_generator_are_untouched(method):
    model, state = partly_frozen(), torch.random.get_rng_state()
    before, free = kept(model), [p.requires_grad for p in model.parameters()]
    adapted = method(model)
    assert untouched(before, model) and not same(model, adapted) and torch.equal(state, torch.random.get_rng_state())
    assert [p.requires_grad for p in adapted.parameters()] == free
    assert torch.equal(model.head.weight, adapted.head.weight) and torch.equal(model.head.bias, adapted.head.bias)
    assert {p.data_ptr() for p in model.parameters()}.isdisjoint(p.data_ptr() for p in adapted.parameters())


def test_adda_resumed_is_adda_unbroken(tmp_path, monkeypatch):
    settings = dict(recipe=SHORT, seed=3, hidden=(8,), **QUIET)
    whole = adda(net(), SOURCE, TARGET, **settings)
    with monkeypatch.context() as patch:
        plain = Mapping.before_epoch
        def before_epoch(self, run):
            if run.epoch == 2: raise Interrupted
            plain(self, run)
        patch.setattr(Mapping, "before_epoch", before_epoch)
        with pytest.raises(Interrupted): adda(net(), SOURCE, TARGET, checkpoint=tmp_path / "c.pt", **settings)
    assert same(whole, adda(net(), SOURCE, TARGET, checkpoint=tmp_path / "c.pt", **settings))
    assert not same(whole, adda(net(), SOURCE, TARGET, **settings | {"seed": 4}))


def test_adda_and_tent_look_at_no_label():
    other = ImageSet(TARGET.x, 1 - TARGET.y, TARGET.classes, "target")
    assert same(*(adda(net(), SOURCE, data, SHORT, hidden=(8,), **QUIET) for data in (TARGET, other)))
    assert same(tent(net(), TARGET), tent(net(), other)) and same(tent(net(), TARGET), tent(net(), TARGET.x))


def test_head_start_leaves_the_encoder_alone():
    "Until it is over only running statistics move."
    model = net()
    adapted = adda(model, SOURCE, TARGET, SHORT, hidden=(8,), head_start=0.99, **QUIET)
    changed = [
        name for name, p in adapted.named_parameters() if not torch.equal(p, dict(model.named_parameters())[name])
    ]
    assert changed == []


def test_tent_ends_with_the_statistics_of_the_target():
    "One batch, one layer: mean and unbiased variance of all images, by torch.var_mean."
    model = Classifier({"norm": nn.BatchNorm2d(1), "flat": nn.Flatten()}, nn.Linear(16, 2))
    adapted = tent(model, TARGET)
    var, mean = torch.var_mean(TARGET.x, dim=(0, 2, 3))
    torch.testing.assert_close(adapted.features.norm.running_mean, mean)
    torch.testing.assert_close(adapted.features.norm.running_var, var)
    assert adapted.features.norm.momentum == model.features.norm.momentum == 0.1


def test_bad_input_is_named():
    for call, match in ((lambda: tent(net(), TARGET, lr=0), "lr=0"), (lambda: tent(net(), TARGET.x[:1]), "1 images"),
                        (lambda: adda(net(), SOURCE, TARGET, head_start=1), r"\[0,1\), got 1"),
                        (lambda: adda(net(), SOURCE, torch.rand(4, 3, 4, 4)), "one shape"),
                        (lambda: proxy_a_distance(torch.rand(3, 2), torch.rand(9, 2)), "got 3 and 9")):
        with pytest.raises(ValueError, match=match): call()
