"""Whatever is registered is tested unasked: a newcomer meets the contract of its family.

Nothing here names an entry, except to build the objectives that need something to begin with.
"""
import copy
import importlib
import inspect
import pkgutil

import pytest
import torch
from fastcore.docments import docments
from torch import nn

import robustnb
from robustnb import attacks
from robustnb.corruptions import REGISTRY, corrupt, corruption_names, find_contributed
from robustnb.images import sample
from robustnb.models import MODELS, create
from robustnb.operations import OPERATIONS
from robustnb.training import CrossEntropy, Objective, Recipe, fit

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
PHOTOS = sample("cifar10").take(slice(0, 6))


def seeds(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


@pytest.fixture(autouse=True)
def global_generator_stays():
    "Nothing that was given a generator may draw from PyTorch's own."
    before = torch.random.get_rng_state()
    yield
    assert torch.random.get_rng_state().equal(before)


def undocumented(function) -> list[str]:
    "Arguments without a comment that says what they are."
    notes = docments(function, returns=False)
    return [name for name, note in notes.items() if not note and name not in ("self", "args", "kwargs")]


def images(channels, height, width, dtype=torch.float32, device="cpu"):
    x = torch.rand(3, channels, height, width, generator=seeds(1)).to(device)
    return (x * 255).to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", corruption_names())
def test_corruption(name, device):
    find_contributed(name)
    entry = REGISTRY[name]
    assert inspect.getdoc(entry.operation) and not undocumented(entry.operation)
    for benchmark, table in entry.severities.items():
        x = images(3, 32, 32, device=device)
        kept = x.clone()
        first, again, other = (corrupt(x, name, len(table), benchmark, seeds(s, device)) for s in (0, 0, 1))
        assert x.equal(kept) and first.equal(again), "the input changed, or the same seed gave two results"
        assert first.shape == x.shape and first.dtype == x.dtype and first.device == x.device
        assert first.isfinite().all() and first.min() >= 0 and first.max() <= 1 and not first.equal(x)
        draws = not first.equal(other)
        assert draws == (
            not corrupt(x, name, 1, benchmark, seeds(0, device)).equal(corrupt(x, name, 1, benchmark, seeds(1, device)))
        )


@pytest.mark.parametrize("name", corruption_names())
def test_corruption_of_other_images(name):
    find_contributed(name)
    benchmark = next(iter(REGISTRY[name].severities))
    for x in (images(1, 28, 28), images(3, 40, 24), images(3, 32, 32, torch.uint8), images(3, 32, 32, torch.float64)):
        out = corrupt(x, name, 1, benchmark, seeds())
        assert out.shape == x.shape and out.dtype == x.dtype
    assert corrupt(images(3, 32, 32)[:0], name, 1, benchmark, seeds()).shape == (0, 3, 32, 32)
    strided = images(3, 32, 32).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        corrupt(strided, name, 2, benchmark, seeds()), corrupt(images(3, 32, 32), name, 2, benchmark, seeds())
    )
    with pytest.raises(ValueError, match="severity"): corrupt(images(3, 32, 32), name, 99, benchmark)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name, device):
    operation, x = OPERATIONS[name], PHOTOS.float().to(device)
    kept, strength = x.clone(), torch.full((len(x),), 0.4, requires_grad=True, device=device)
    out = operation(x, strength, 1, seeds())
    assert out.shape == x.shape and out.dtype == x.dtype and out.device == x.device and x.equal(kept)
    assert out.detach().min() >= -1e-6 and out.detach().max() <= 1 + 1e-6
    assert out.equal(operation(x, strength, 1, seeds())) and out.isfinite().all()
    if operation.units:  # it has a magnitude: nothing at 0, and a slope
        assert operation(x, 0.0, 1, seeds()).equal(x)
        slope, = torch.autograd.grad((out * torch.rand(x.shape, generator=seeds(2)).to(device)).sum(), strength)
        assert slope.isfinite().all() and slope.ne(0).any()
    grey = operation(x[:, :1], 0.4, 1, seeds())
    assert grey.shape == x[:, :1].shape
    for wrong in (1.5, -0.1):
        with pytest.raises(ValueError, match=name): operation(x, wrong)


SMALL = [name for name in MODELS if not name.startswith(("repvgg_a2", "vgg"))]  # those are the same code, larger


@pytest.mark.parametrize("name", MODELS)
def test_model(name):
    assert inspect.getdoc(MODELS[name])
    if name not in SMALL:
        with torch.device("meta"): net = MODELS[name](classes=7, statistics=None)  # no weight is drawn
        assert set(net.stages) and net.head.out_features == 7 and not net.frozen
        return
    first, again, other = (create(name, classes=7, seed=s) for s in (0, 0, 1))
    assert all(a.equal(b) for a, b in zip(first.parameters(), again.parameters()))
    assert any(not a.equal(b) for a, b in zip(first.parameters(), other.parameters()))
    channels, side = next(
        m.in_channels for m in first.modules() if isinstance(m, nn.Conv2d)
    ), 28 if "lenet" in name or "alexnet8" in name else 32
    x = torch.rand(2, channels, side, side, generator=seeds()).requires_grad_()
    logits, embedding = first.eval()(x), first.embed(x)
    assert logits.shape == (2, 7) and len(embedding) == 2 and logits.dtype == torch.float32
    torch.testing.assert_close(first.head(embedding), logits)
    slope, = torch.autograd.grad(logits.square().sum(), x)
    assert slope.isfinite().all() and slope.ne(0).any()
    twin = create(name, classes=7, seed=5)
    twin.load_state_dict(first.state_dict())
    assert twin.eval()(x).equal(logits)


GIVEN = dict(eps=0.05, step=0.02, steps=2, distance=0.5, batch=4)
ATTACKS = [
    name
    for name in attacks.__all__
    if inspect.isfunction(found := getattr(attacks, name)) and list(inspect.signature(found).parameters)[:2] == [
        "model", "x"
    ]
]


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name):
    attack, net, x, y = getattr(attacks, name), create("lenet5", seed=0), sample("mnist").take(
        slice(0, 6)
    ).float(), sample("mnist").y[:6]
    assert inspect.getdoc(attack) and not undocumented(attack)
    known = inspect.signature(attack).parameters
    words = {key: value for key, value in {**GIVEN, "y": y}.items() if key in known}
    draws = lambda: {"generator": seeds()} if "generator" in known else {}
    net.train()
    net.features[0].eval()
    before, modes, kept = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()], x.clone()
    out = attack(net, x, **words, **draws())
    assert out.shape == x.shape and out.dtype == x.dtype and x.equal(kept) and not out.requires_grad
    assert out.equal(attack(net, x, **words, **draws()))
    assert modes == [m.training for m in net.modules()] and all(before[k].equal(v) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    if name != "loss_sign": assert out.min() >= 0 and out.max() <= 1 and not out.equal(x)


def objectives() -> dict[str, type]:
    "All objectives of the package, by module and name."
    found = {}
    for module in pkgutil.walk_packages(robustnb.__path__, "robustnb."):
        if module.name.startswith(("robustnb.benchmarks", "robustnb.lab", "robustnb.papers")):
            continue  # instruments, not methods
        if module.name.endswith(("_modidx", "cli")): continue
        for name, thing in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(thing) and issubclass(thing, Objective) and thing.__module__ == module.name:
                found[f"{module.name}:{name}"] = thing
    return found


def policy():
    from robustnb.epm import Policy
    return Policy(2, 1, ("brightness", "flip"), generator=seeds())


def base_class(kind: type) -> bool:
    "Has it no loss, or only subclasses to be used?"
    unfinished = any(
        "raise NotImplementedError" in inspect.getsource(f) for f in vars(kind).values() if inspect.isfunction(f)
    )
    return kind.loss is Objective.loss or inspect.getdoc(kind) is None or bool(kind.__subclasses__()) and unfinished


def with_defaults(kind: type, net=lambda: create("resnet20", seed=3)) -> Objective | None:
    "An instance: what its class offers as `example`, or of its arguments at the values that their names call for."
    if hasattr(kind, "example"): return kind.example()
    known = {
        "policy": policy,
        "eps": lambda: 0.03,
        "models": lambda: [net(), net()],
        "target": lambda: sample("cifar10").take(slice(60, 120)),
        "inner": CrossEntropy,
        "teacher": net,
        "augment": lambda: (lambda x, generator: x.flip(-1)),
        "beta": lambda: 1.0,
        "step": lambda: 0.01,
        "steps": lambda: 1,
    }
    needed = {
        n: p
        for n, p in inspect.signature(kind).parameters.items()
        if p.default is p.empty or n == "policy" and p.default is None
    }
    needed = {n: p for n, p in needed.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if not set(needed) <= set(known): return None
    return kind(**{n: known[n]() for n in needed})


def net_for(kind: type) -> nn.Module:
    "A network that an objective can train: with a variational head where weights are distributions."
    from robustnb.uncertainty import ELBO, bayesian

    net = create("resnet20", seed=0)
    if not issubclass(kind, ELBO): return net
    return bayesian(net)


@pytest.mark.parametrize("name", objectives())
def test_objective(name):
    kind = objectives()[name]
    if base_class(kind): pytest.skip("a base class")
    objective = with_defaults(kind)
    if objective is None:
        pytest.fail(f"{name}: give its arguments defaults, or add a classmethod `example()` that builds one")
    nets, histories = [net_for(kind) for _ in range(2)], []
    before = copy.deepcopy(nets[0].state_dict())
    few = sample("cifar10").take(slice(0, 20))
    for net in nets:
        objective = with_defaults(kind)
        assert isinstance(objective.name, str) and objective.name
        histories.append(
            fit(net, few, objective, Recipe(epochs=1, batch=10, lr=1e-3), seed=1, device="cpu", progress=False)
        )
    one, two = (net.state_dict() for net in nets)
    assert all(one[k].equal(two[k]) for k in one), "the same seed trained two networks"
    assert any(not one[k].equal(v) for k, v in before.items()), "nothing was trained"
    assert not nets[0].training and all(p.requires_grad for p in nets[0].parameters()) and nets[0].frozen == ()
    assert histories[0].frame().loss.isna().sum() == 0
