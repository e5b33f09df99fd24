"""Odd images and numbers through all that is registered: it works, or raises the package's own error.

Nothing here names an entry of a registry: a newcomer is tried unasked. `tests/odd.py` holds the inputs and what is looked at.
"""
import importlib
import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from odd import TRIED, Odd, arguments, attempt, batches, count, drawn, print_of, print_of_model, worldly
from robustnb import (
    adversarial, attacks, augment, calibration, contrastive, dem_hec, domain, entropy, gradcam, levels, metrics,
    resampling, robustness, statistics, training, uncertainty, worst_case,
)
from robustnb.corruptions import REGISTRY, contributed, corrupt, find_contributed
from robustnb.operations import OPERATIONS
from robustnb.perturbations import PERTURBATIONS, at_distance, gaussian_at_distance, perturb
from robustnb.digital import jpeg_codec
from robustnb.epm import Policy, discretise
from robustnb.images import ImageSet
from robustnb.layers import seeded
from robustnb.models import MODELS, create
from test_every_objective import KINDS, made, small


for warm in ("torchvision.transforms.v2", "captum.attr", "accelerate", "torchmetrics", "scipy.stats"):
    importlib.import_module(warm)  # these change filters and environment once, when they are first imported
jpeg_codec()


STEP = training.Recipe(epochs=1, batch=8, optimizer="sgd", lr=0.02)


def seeds(seed=0): return torch.Generator().manual_seed(seed)


class Any(nn.Module):
    "A network for images of every size and number of channels, with all that could be changed behind a caller's back."
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop, self.head = nn.Linear(1, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(
            6, 4
        )
        with torch.no_grad():
            for i, p in enumerate(self.parameters()): p.copy_(torch.randn(p.shape, generator=seeds(i)))

    def embed(self, x): return self.drop(self.norm(self.first(x.float().mean((1, 2, 3))[:, None]).tanh()))
    def forward(self, x): return self.head(self.embed(x))


NET = Any()
NET.norm.eval()  # a mode of its own


# --- from images to images

for name in contributed(): find_contributed(name)
POLICY = Policy(2, 2, generator=seeds(1)).requires_grad_(False)
FIXED = discretise(POLICY)
TRANSFORMS = {
    **{
        f"corruption {name}": (
            lambda x, g, name=name: corrupt(x, name, 1 + len(x) % 5, next(iter(REGISTRY[name].severities)), g)
        )
        for name in REGISTRY
    },
    **{f"operation {name}": (lambda x, g, name=name: OPERATIONS[name](x, 0.4, generator=g)) for name in OPERATIONS},
    **{
        f"operation {name}, no strength": (lambda x, g, name=name: OPERATIONS[name](x, 0.0, generator=g))
        for name in OPERATIONS
    },
    **{f"perturbation {which}": (lambda x, g, which=which: perturb(x, which, g)) for which in PERTURBATIONS},
    **{
        f"augmentation {name}": (lambda x, g, name=name: getattr(augment, name)()(x, g))
        for name in augment.__all__
        if inspect.isclass(getattr(augment, name))
        and issubclass(getattr(augment, name), augment.Augmentation)
        and "apply" in vars(getattr(augment, name)) | vars(getattr(augment, name).__mro__[1])
        and name not in ("Augmentation", "Mixture")
    },
    "gaussian_at_distance": lambda x, g: gaussian_at_distance(x, 0.1, g, "nearest"),
    "policy": lambda x, g: POLICY(x, g),
    "fixed policy": lambda x, g: FIXED(x, g),
}


def like(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(
        a.detach().double(), b.detach().double(),
        atol=2e-3 if a.dtype == torch.float16 else 2 if a.dtype == torch.uint8 else 1e-4, equal_nan=True
    )


def hold_transform(name, odd: Odd):
    change, before, kept = TRANSFORMS[name], worldly(), print_of(odd.x)
    out, error = attempt(lambda: change(odd.x, seeds(1)))
    after = worldly()
    assert before == after, [k for k in before if before[k] != after[k]]
    assert print_of(odd.x) == kept, "the caller's images changed"
    if error is not None:
        assert not odd.sound or odd.x.dtype == torch.uint8 or min(odd.x.shape[2:]) < 8, f"refused: {error}"
        return error
    assert odd.sound, "was taken though it is not in [0,1]"
    assert out.shape == odd.x.shape and out.dtype == odd.x.dtype, (out.shape, out.dtype)
    assert out.isfinite().all() and (
        not out.numel() or out.min() >= -1e-6 and out.max() <= (255 if out.dtype == torch.uint8 else 1 + 1e-3)
    )
    assert (
        not out.numel() or out.untyped_storage().data_ptr() != odd.x.untyped_storage().data_ptr()
    ), "the result lies in the caller's memory"
    assert like(out, change(odd.plain, seeds(1))), "another layout, another result"


@pytest.mark.parametrize("name", TRANSFORMS)
def test_images_to_images(name, turns):
    def each(odd):
        count("images")
        hold_transform(name, odd)
    drawn(batches(), each, turns)


# --- models with images

class Float(nn.Module):
    def forward(self, x): return x.float().expand(-1, 3, -1, -1)


CNN = nn.Sequential(
    Float(), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
).requires_grad_()
ATTACKS = {
    name: getattr(module, name)
    for module in (attacks, worst_case)
    for name in module.__all__
    if inspect.isfunction(found := getattr(module, name))
    and list(inspect.signature(found).parameters)[:2] == ["model", "x"]
    and name != "autoattack"
}
GIVEN = dict(eps=0.05, step=0.02, steps=2, distance=0.1, batch=2, queries=3, unreachable="nearest")


def attacked(attack, x, y, g):
    known = inspect.signature(attack).parameters
    return attack(NET, x, **{key: value for key, value in {**GIVEN, "y": y, "generator": g}.items() if key in known})


def as_set(x, y): return ImageSet(x, y, tuple("abcd"), "odd")


BAYES = uncertainty.bayesian(NET)
ASKED = {
    **{
        f"attack {name}": (lambda x, y, g, attack=attack: attacked(attack, x, y, g)) for name, attack in ATTACKS.items()
    },
    "predict": lambda x, y, g: training.predict(NET, x, batch=2),
    "predict a set": lambda x, y, g: training.predict(NET, as_set(x, y), batch=2),
    "accuracy": lambda x, y, g: training.accuracy(NET, as_set(x, y), batch=2),
    "layer_entropy": lambda x, y, g: entropy.layer_entropy(NET, x, batch=2),
    "universal": lambda x, y, g: entropy.universal(NET, as_set(x, y), epochs=1, batch=2, generator=g),
    "grad_cam": lambda x, y, g: gradcam.grad_cam(CNN, x, y, batch=2, size="image"),
    "attention_drift": lambda x, y, g: gradcam.attention_drift(CNN, x, x.flip(-1), y, batch=2),
    "mc_dropout": lambda x, y, g: uncertainty.mc_dropout(NET, x, 2, g, batch=2),
    "variational": lambda x, y, g: uncertainty.variational(BAYES, x, 2, g, batch=2),
    "adapt_batchnorm": lambda x, y, g: (lambda norm: (norm.running_mean, norm.running_var))(
        augment.adapt_batchnorm(NET, x).norm
    ),
    "gradient_alignment": lambda x, y, g: adversarial.gradient_alignment(NET, x, y, 0.05, g),
    "loss_surface": lambda x, y, g: adversarial.loss_surface(NET, x, y, 0.05, 3, g),
    "features": lambda x, y, g: domain.features(NET, x, batch=2),
    "tent": lambda x, y, g: domain.tent(NET, as_set(x, y), batch=2).head.weight.detach(),
    "temperature_scale": lambda x, y, g: uncertainty.temperature_scale(NET, as_set(x, y)).temperature,
    "evaluate": lambda x, y, g: robustness.evaluate(NET, as_set(x, y), ["brightness"], [1], resamples=4, show=False),
    "robust_accuracy": lambda x, y, g: worst_case.robust_accuracy(
        NET, as_set(x, y), 0.05, steps=2, batch=2, progress=False
    ),
    "gaussian_levels": lambda x, y, g: levels.gaussian_levels(NET, as_set(x, y), (0.1, 0.2), g, show=False),
    "fgsm_levels": lambda x, y, g: levels.fgsm_levels(NET, as_set(x, y), (0.1, 0.2), show=False),
}


def same(a, b):
    return (
        a.equals(b) if hasattr(a, "equals")
        else torch.equal(a, b) if isinstance(a, torch.Tensor)
        else type(a) is type(b) and (a == b or a != a) if not isinstance(a, (dict, tuple, list))
        else all(same(p, q) for p, q in zip(a.values(), b.values())) if isinstance(a, dict)
        else all(map(same, a, b))
    )


def tensors(found):
    if isinstance(found, torch.Tensor): yield found
    elif isinstance(found, (tuple, list, dict)):
        for part in found.values() if isinstance(found, dict) else found: yield from tensors(part)


def hold_asked(name, odd: Odd):
    ask, net = ASKED[name], CNN if name in ("grad_cam", "attention_drift") else NET
    y = torch.arange(len(odd.x)) % 4
    if odd.layout in ("inference", "within"):
        with torch.inference_mode(): y = y.clone()
    before, kept = worldly(), (
        print_of(odd.x), print_of(y), print_of_model(NET), print_of_model(CNN), print_of_model(BAYES)
    )
    with torch.inference_mode(odd.layout == "within"): out, error = attempt(lambda: ask(odd.x, y, seeds(1)))
    after = worldly()
    assert before == after, [k for k in before if before[k] != after[k]]
    assert kept == (
        print_of(odd.x), print_of(y), print_of_model(NET), print_of_model(CNN), print_of_model(BAYES)
    ), "the caller's images, labels or network changed"
    assert all(p.grad is None for net in (NET, CNN, BAYES) for p in net.parameters())
    if error is not None:
        small = min(odd.x.shape[2:]) < 8 or len(odd.x) < 2
        assert not odd.sound or small or odd.x.dtype != torch.float32, f"refused: {error}"
        return
    for part in tensors(out):
        assert not part.requires_grad and (part.isfinite().all() or not odd.sound) and part.is_inference() <= (
            odd.layout == "within"
        )
    if odd.x.dtype in (torch.float32, torch.uint8):
        assert all(
            like(a, b) for a, b in zip(tensors(out), tensors(ask(odd.plain, y.clone(), seeds(1))))
        ), "another layout, another result"


@pytest.mark.parametrize("name", ASKED)
def test_models_with_images(name, turns):
    def each(odd):
        count("images")
        hold_asked(name, odd)
    drawn(batches(), each, turns)


# --- objectives and networks

def net_for(kind, outputs):
    "The network of `small` with another number of outputs."
    net = small()
    with seeded(0): net.head = nn.Linear(64, outputs)
    return uncertainty.bayesian(net) if issubclass(kind, uncertainty.ELBO) else net


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_objectives(name, turns):
    "A step of training on odd images is the step of plain ones; the caller's set and the state of the process stay."
    kind = KINDS[name]
    outputs = 4 if kind is contrastive.UniCL else 10  # one is the class vectors' head; others have some to spare

    def step(x):
        net = net_for(kind, outputs)
        history = training.fit(
            net, as_set(x, torch.arange(len(x)) % 4), made(kind), STEP, seed=1, device="cpu", progress=False
        )
        return [v for row in history.rows for k, v in row.items() if isinstance(v, float) and k != "seconds"], [
            p.detach() for p in net.parameters()
        ]

    def each(odd):
        count("objectives")
        before, kept = worldly(), print_of(odd.x)
        found, error = attempt(lambda: step(odd.x))
        assert before == worldly() and print_of(odd.x) == kept
        if error is not None: assert not odd.sound or not len(odd.x), f"refused: {error}"
        if error is not None or not odd.sound: return
        (numbers, weights), (other, plain) = found, step(odd.plain)
        assert other == pytest.approx(numbers, rel=1e-4, abs=1e-6, nan_ok=True) and all(
            torch.allclose(a, b, atol=1e-4, equal_nan=True) for a, b in zip(weights, plain)
        )
    drawn(
        batches(channels=(3,), dtypes=("float32", "uint8"), sides=(32,), sizes=(0, 2, 5)), each, turns,
        max(1, TRIED // 3)
    )


@pytest.mark.filterwarnings("ignore")
def test_images_that_require_a_gradient_get_none():
    "Neither those that are trained on nor those of another domain."
    def images(): return torch.rand(8, 3, 32, 32, generator=seeds(), requires_grad=True)
    own, other = images(), images()
    labels, quiet = torch.arange(8) % 4, dict(device="cpu", progress=False)
    training.fit(net_for(training.CrossEntropy, 10), as_set(own, labels), None, STEP, **quiet)
    training.fit(net_for(domain.DANN, 10), as_set(own, labels), domain.DANN(as_set(other, labels)), STEP, **quiet)
    domain.tent(NET, other, batch=2, passes=2)
    assert all(x.grad is None and x.requires_grad for x in (own, other))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_objectives_with_too_few_outputs(name):
    "No training on labels that the network cannot give, but where the head is not asked."
    kind, few = KINDS[name], as_set(torch.rand(8, 3, 32, 32, generator=seeds()), torch.arange(8) % 4)
    for net in (net_for(kind, 3), nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))):
        if isinstance(net, nn.Sequential) and kind.__name__ not in ("CrossEntropy", "Mixup", "CutMix"):
            continue  # others ask for stages
        before = worldly()
        history, error = attempt(lambda: training.fit(net, few, made(kind), STEP, device="cpu", progress=False))
        assert before == worldly() and (error is None) == (not kind.needs_outputs) and (
            error is None or "output" in str(error)
        )


@pytest.mark.parametrize("name", MODELS)
def test_networks(name, turns):
    "Logits of odd images, as of plain ones; no image, no logits. Larger networks of the same code without weights."
    large = name.startswith(("vgg", "repvgg", "cnn1", "resnet5"))
    with torch.device("meta" if large else "cpu"):
        net = create(name, seed=None if large else 0, **{"statistics": None} if large else {}).eval()
    channels, side = next(m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)), 28 if name.startswith(
        ("lenet", "alexnet")
    ) else 32
    if large:
        with torch.device("meta"):
            assert all(net.train(mode)(torch.zeros(0, channels, side, side)).shape == (0, 10) for mode in (True, False))
        return

    def each(odd):
        count("networks")
        before, kept = worldly(), (print_of(odd.x), print_of_model(net))
        # PyTorch's own rule for every module: a tensor of inference mode meets weights that want a gradient under no_grad only
        with torch.inference_mode(odd.layout == "within"), torch.set_grad_enabled(odd.layout != "inference"):
            out = net(odd.x)
        assert before == worldly() and kept == (print_of(odd.x), print_of_model(net)) and out.shape == (
            len(odd.x), net.head.out_features
        )
        if odd.sound: assert like(out, net(odd.plain)) and out.isfinite().all()
    drawn(batches(channels=(channels,), dtypes=("float32",), sides=(side,)), each, turns)


# --- numbers to numbers

COMMON = dict(
    probs="probs", logits="logits", y="labels", confidence="confidence", correct="correct", values="series",
    p="p-values", sets="sets", bins="bins", resamples="few", draws="few", level="share", alpha="share",
    coverage="part", threshold="threshold", tau="temperature", temperature="temperature", r="correlation",
    n="points", v="embeddings", w="embeddings", z="embeddings",
)
SERIES = dict(x="series", y="series")
OWN = {  # what the names of some arguments mean there
    "statistics": {**SERIES, "X": "table", "a": "series", "b": "series"},
    "statistics.coefficients": dict(y="long series"), "statistics.multiple_correlation": dict(y="long series"),
    "statistics.p_range": dict(r="printed"), "statistics.attainable": dict(r="printed"),
    "statistics.printed_range": dict(text="printed"),
    "gradcam": dict(a="maps", b="maps", clean_maps="maps", perturbed_maps="maps", q="part"),
    "attacks.softmax_entropy": dict(z="logits"), "dem_hec.distillation": dict(
        student="logits", teacher="logits"
    ), "entropy.activation_entropy": dict(a="logits"),
    "eriep.final_loss": dict(clean="confidence", perturbed="confidence"), "adversarial.divergence": dict(
        other="logits"
    ), "contrastive.unicl_loss": dict(u="embeddings"),
}
MODULES = (metrics, calibration, statistics, uncertainty, contrastive)
MORE = {
    "attacks.softmax_entropy": attacks,
    "worst_case.margin": worst_case,
    "dem_hec.distillation": dem_hec,
    "entropy.activation_entropy": entropy,
    "adversarial.divergence": adversarial,
    **{f"gradcam.{name}": gradcam for name in ("rank_correlation", "overlap", "cosine", "drift")},
}
INNER = {  # get what one of the others has checked
    "metrics.guesses", "metrics.check_logits", "metrics.check_probabilities", "metrics.confusion",
    "metrics.published_errors", "metrics.corruption_errors", "calibration.in_bins",
    "calibration.reliability_picture", "calibration.under_shift", "contrastive.similarities",
    "contrastive.embedding_width", "contrastive.projection", "contrastive.linear_head", "contrastive.write_head",
    "metrics.check_answers", "calibration.check_resampling",
}


def kinds_of(path, function):
    "Argument -> kind of what it takes; None where one that is needed is not known."
    module, found = path.split(".")[0], {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = {**COMMON, **OWN.get(module, {}), **OWN.get(path, {})}.get(name)
        if kind: found[name] = kind
        elif parameter.default is parameter.empty: return None
    return found


def functions():
    every = {
        f"{module.__name__.split('.')[-1]}.{name}": getattr(module, name)
        for module in MODULES
        for name in module.__all__
    } | {path: getattr(module, path.split(".")[1]) for path, module in MORE.items()}
    return {
        path: found
        for path, found in every.items()
        if inspect.isfunction(found) and path not in INNER and kinds_of(path, found)
    }


FUNCTIONS = functions()


def draws_for(name):
    notes = {key: str(p.annotation) for key, p in inspect.signature(FUNCTIONS[name]).parameters.items()}
    return arguments(
        kinds_of(name, FUNCTIONS[name]),
        [key for key, note in notes.items() if "ndarray" in note or "ArrayLike" in note or "_Buffer" in note]
    )


def numbers(found):
    if isinstance(found, (tuple, list)): return [n for part in found for n in numbers(part)]
    if isinstance(found, dict): return numbers(list(found.values()))
    if hasattr(found, "to_numpy"): return [float(n) for n in found.select_dtypes("number").to_numpy().ravel()]
    if isinstance(found, torch.Tensor): found = found.detach().numpy()
    return [] if isinstance(found, str) else [float(n) for n in np.ravel(found)]


def hold_number(name, made):
    given, sound = made
    more = {"generator": seeds()} if "generator" in inspect.signature(FUNCTIONS[name]).parameters else {}
    before, kept = worldly(), {key: print_of(value) for key, value in given.items() if hasattr(value, "shape")}
    def call():
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            return FUNCTIONS[name](**given, **more)
    try: out, error = attempt(call)
    except (RuntimeError, IndexError, TypeError) as raised:
        if name not in LOSSES or sound and "same dtype" not in str(raised): raise
        out, error = None, raised
    after = worldly()
    assert before == after, [k for k in before if before[k] != after[k]]
    assert kept == {
        key: print_of(value) for key, value in given.items() if hasattr(value, "shape")
    }, "an argument changed"
    if isinstance(error, (RuntimeError, IndexError)): return
    if sound and error is not None:
        least = lambda v: len(v) < 4 or name in UNDEFINED and len(set(v.flatten().tolist())) == 1
        assert any(least(v) for v in given.values() if hasattr(v, "shape")), f"refused: {error}"
    if not sound and error is None: assert name in LOSSES or name in ALONE, "was taken"
    if sound and error is None:
        assert not any(n != n for n in numbers(out)) or name in UNDEFINED, "not a number, from sound input"


LOSSES = {  # run in every step of a training: what does not fit is left to PyTorch's own errors
    "contrastive.info_nce", "contrastive.supcon_loss", "contrastive.unicl_loss", "attacks.softmax_entropy",
    "worst_case.margin", "dem_hec.distillation", "adversarial.divergence", "entropy.activation_entropy",
}
ALONE = {"statistics.mean_variance", "statistics.hedges_g", "statistics.bootstrap_ci"}  # take a row of any length
# of constant series
UNDEFINED = {
    "statistics.p_of_r", "statistics.pearson", "statistics.spearman", "statistics.multiple_correlation",
    "statistics.hedges_g", "statistics.theil_sen",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers_to_numbers(name, turns):
    def each(made):
        count("numbers")
        hold_number(name, made)
    drawn(draws_for(name), each, turns)


# --- what was found so, by its words

HALF = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize("call, said", [
    (lambda: metrics.calibration_error(HALF, torch.tensor([True])), r"both be \[N\], got \(2,\) and \(1,\)"),
    (lambda: metrics.reliability(HALF + 0.6, HALF > 0), r"lie in \[0,1\], these span 1.1..1.1"),
    (lambda: metrics.reliability(torch.tensor([math.nan]), torch.tensor([True])), r"lie in \[0,1\]"),
    (lambda: calibration.ece_floor(HALF[None], bins=0), "at least 1, got 0"),
    (
        lambda: calibration.ece_interval(HALF[None], torch.tensor([0]), level=95),
        "between 0 and 1, such as 0.95, got 95"
    ),
    (lambda: calibration.set_coverage(HALF[None] > 0, torch.tensor([2])), r"labels must lie in 0..1, these span 2..2"),
    (lambda: calibration.conformal_sets(HALF[None], math.nan), "NaN"),
    (lambda: statistics.p_of_r(0.5, 2), "2 points"), (lambda: statistics.p_of_r(1.5, 9), "lies in -1..1, got 1.5"), (
        lambda: statistics.p_of_R(0.5, 4, 3), "n=4, k=3"
    ),
    (lambda: statistics.printed_range("about 0.7"), "'about 0.7' is no printed number"), (
        lambda: statistics.attainable("0.5", 1), "1 points"
    ),
    (lambda: statistics.mean_variance([1, math.nan]), "NaN"), (
        lambda: statistics.hedges_g([1, 2], 3), r"shapes \(2,\) and \(\)"
    ), (lambda: statistics.permutation_p([1, 2, 3], [1, 2, 3], 1, 0), "draws=0"),
    (lambda: gradcam.grad_cam(CNN, torch.zeros(0, 3, 8, 8)), "no images"), (
        lambda: adversarial.gradient_alignment(
            NET, torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2).long(), 0.1
        ),
        "floats"
    ),
    (lambda: adversarial.loss_surface(NET, torch.zeros(0, 3, 4, 4), torch.zeros(0).long(), 0.1), "at least one image"),
    (lambda: perturb(torch.zeros(1, 1, 1, 4), 3), "at least 2 pixels a side, got 1 x 4"), (
        lambda: augment.adapt_batchnorm(NET, torch.zeros(1, 3, 4, 4)), "at least two images, got 1"
    ),
    (
        lambda: uncertainty.best_temperature(HALF, torch.tensor([0])),
        r"finite logits \[N,K\] of at least one image, got \(2,\)"
    ),
    (lambda: uncertainty.best_temperature(HALF[None], torch.tensor([2])), r"labels in 0..1, got \(1,\) from 2 to 2"),
    (
        lambda: worst_case.standing(NET, torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2).long(), 0.1),
        "floats in"
    ),
])
def test_what_cannot_be_is_said(call, said):
    with pytest.raises((ValueError, TypeError), match=said): call()


def test_gradients_of_what_was_made_under_inference_mode():
    x, y = torch.rand(4, 3, 8, 8, generator=seeds(3)), torch.arange(4) % 4
    plain = gradcam.grad_cam(CNN, x, y), adversarial.loss_surface(
        NET, x, y, 0.1, 3, seeds()
    ), adversarial.gradient_alignment(NET, x, y, 0.1, seeds())
    with torch.inference_mode():
        z, labels = x.clone(), y.clone()
        within = gradcam.grad_cam(CNN, z, labels), adversarial.loss_surface(
            NET, z, labels, 0.1, 3, seeds()
        ), adversarial.gradient_alignment(NET, z, labels, 0.1, seeds())
    after = gradcam.grad_cam(CNN, z, labels), adversarial.loss_surface(
        NET, z, labels, 0.1, 3, seeds()
    ), adversarial.gradient_alignment(NET, z, labels, 0.1, seeds())
    assert all(a.equal(b) and a.equal(c) for a, b, c in zip(plain, within, after))


def test_numbers_of_a_gradient_are_taken():
    x = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    assert statistics.spearman(x, x * 2)[0] == 1.0 and statistics.mean_variance(x)[0] == pytest.approx(
        7 / 3
    ) and statistics.holm(x.detach().requires_grad_() / 10)[0] == pytest.approx(0.3)
