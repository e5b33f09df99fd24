"""`fit` against plain PyTorch, against itself after a kill, and against itself on two processes."""
import dataclasses
import os
import signal
import socket
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from processes import join_pair, started
from torch import nn
from torch.utils.checkpoint import checkpoint

from robustnb.images import ImageSet, sample
from robustnb.layers import Classifier, Dropout, freeze, mode
from robustnb.models import create
from robustnb.sources import as_source
from robustnb.training import (CrossEntropy, Diverged, Loss, Objective, Recipe, accuracy, crop_flip, derive_seed, fit,
                               learning_rate, make_optimizer, predict, read_checkpoint)

QUIET = dict(device="cpu", progress=False)


@pytest.fixture(autouse=True)
def one_thread():
    "Bitwise equality is promised for one number of threads; one is also fastest for networks this small."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return sample("mnist", "train").take(slice(0, 320))


def small(dropout: float = 0.0) -> Classifier:
    "A network with all that a checkpoint must keep: batch norm, dropout of both kinds, a stage to freeze."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU())
        hidden = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * 8 * 8, 32), nn.Tanh(), Dropout(dropout))
        return Classifier({"stem": stem, "hidden": hidden}, nn.Linear(32, 10))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(u, v) for u, v in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def distance(a: nn.Module, b: nn.Module) -> float:
    return max((u - v).abs().max().item() for u, v in zip(a.parameters(), b.parameters(), strict=True))


# --- the plain loop ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["lenet5", "lenet5_relu_max"])
@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_fit_is_the_plain_loop(digits, name, method):
    "The loop written by hand, with PyTorch's own optimiser and the textbook LeNet-5, ends at the same weights."
    ours, plain = create(name, seed=0), create(name, seed=0)
    history = fit(ours, digits, recipe=Recipe(epochs=2, optimizer=method, lr=1e-3, momentum=0.0), seed=5, **QUIET)

    def forward(x):
        f = plain.features
        x = F.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
        act, pool = (torch.tanh, F.avg_pool2d) if name == "lenet5" else (torch.relu, F.max_pool2d)
        for c in (f.c1, f.c3): x = pool(act(F.conv2d(x, c.weight, c.bias)), 2)
        return plain.head(f.f6(f.c5(x)))

    optimizer, means = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[method](plain.parameters(), lr=1e-3), []
    for epoch in range(2):
        losses = []
        order = torch.randperm(320, generator=torch.Generator().manual_seed(derive_seed(5, epoch, "order")))
        for index in order.split(128):
            optimizer.zero_grad()
            loss = F.cross_entropy(forward(digits.x[index] / 255), digits.y[index])
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(index))
        means.append(sum(losses) / 320)
    # Adam divides small gradients, and their rounding, by their size
    assert distance(ours, plain) < {"sgd": 1e-6, "adam": 1e-4}[method]
    assert [row["loss"] for row in history.rows] == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize("recipe", [
    Recipe(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    Recipe(optimizer="sgd", lr=0.1, momentum=0.0),
    Recipe(optimizer="adam", lr=0.01, weight_decay=1e-2),
    Recipe(optimizer="adamw", lr=0.01, weight_decay=1e-2)])
def test_fused_optimisers_are_pytorchs_plain_ones(recipe):
    a, b = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    plain = {
        "sgd": lambda: torch.optim.SGD(
            [b], recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
        ),
        "adam": lambda: torch.optim.Adam([b], recipe.lr, weight_decay=recipe.weight_decay),
        "adamw": lambda: torch.optim.AdamW([b], recipe.lr, weight_decay=recipe.weight_decay),
    }[recipe.optimizer]()
    fused = make_optimizer(recipe, [a])
    for _ in range(20):
        for p, optimizer in ((a, fused), (b, plain)):
            optimizer.zero_grad()
            (p**4 - p).sum().backward()
            optimizer.step()
    assert torch.allclose(a, b, atol=1e-6)


def test_schedules_are_pytorchs():
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

    def rates(make, steps):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
        schedule, out = make(optimizer), []
        for _ in range(steps):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return out

    ours = lambda recipe: [learning_rate(recipe, step, 10) for step in range(recipe.epochs * 10)]
    assert ours(Recipe(epochs=5, lr=0.4, schedule="cosine")) == pytest.approx(
        rates(lambda o: CosineAnnealingLR(o, 50), 50)
    )
    assert ours(Recipe(epochs=5, lr=0.4, schedule="step", milestones=(2, 4), gamma=0.3)) == pytest.approx(
        rates(lambda o: MultiStepLR(o, [20, 40], 0.3), 50)
    )
    warm = lambda o: SequentialLR(o, [LinearLR(o, 1 / 20, 1.0, 19), CosineAnnealingLR(o, 30)], [20])
    assert ours(Recipe(epochs=5, lr=0.4, schedule="cosine", warmup=2)) == pytest.approx(rates(warm, 50))


def test_pieces_of_a_batch_add_up_to_the_batch(digits):
    "96 images in 1, 4 or 5 (unequal) pieces; the last batch of the epoch is smaller."
    models = []
    for pieces in (1, 4, 5):
        models.append(create("lenet5", seed=0))
        fit(models[-1], digits, recipe=Recipe(epochs=1, batch=96, accumulate=pieces, optimizer="sgd", lr=0.1), **QUIET)
    assert distance(models[0], models[1]) < 1e-6 and distance(models[0], models[2]) < 1e-6


def test_overfits_a_few_images(digits):
    model, few = create("lenet5", seed=0), digits.take(slice(0, 20))
    history = fit(model, few, recipe=Recipe(epochs=120, batch=20, lr=5e-3), **QUIET)
    assert history.rows[-1]["loss"] < 0.01 and accuracy(model, few) == 1


# --- same seed, same weights ------------------------------------------------------------------------------------------

def test_seed_decides_and_the_global_generator_is_left_alone(digits):
    "Order of images, augmentation, dropout from PyTorch's generator: all follows the seed, whatever was drawn before."
    recipe, models = Recipe(epochs=1, batch=32, augment=crop_flip), [small(0.3) for _ in range(3)]
    for model, seed, before in zip(models, (1, 1, 2), (10, 11, 12)):
        torch.manual_seed(before)
        state = torch.get_rng_state()
        fit(model, digits, recipe=recipe, seed=seed, **QUIET)
        assert torch.equal(state, torch.get_rng_state())
    assert same(models[0], models[1]) and not same(models[0], models[2])


def test_each_epoch_draws_and_orders_anew(digits):
    "The first draw of the generator and the first images of an epoch differ from those of the epoch before."
    class Notes(CrossEntropy):
        def __init__(self):
            super().__init__()
            self.draws, self.images, self.fresh = [], [], False

        def before_epoch(self, run):
            self.draws.append((torch.rand((), generator=run.generator).item(), torch.rand(()).item()))
            self.fresh = True

        def loss(self, model, x, y):
            if self.fresh: self.images.append(x.sum().item())
            self.fresh = False
            return super().loss(model, x, y)

    notes, again = Notes(), Notes()
    for objective in (notes, again): fit(small(), digits, objective, Recipe(epochs=3, batch=64), **QUIET)
    assert len({d for d, _ in notes.draws}) == len({d for _, d in notes.draws}) == len(set(notes.images)) == 3
    assert notes.draws == again.draws and notes.images == again.images


def test_stored_form_of_images_does_not_matter(digits):
    a, b = small(), small()
    fit(a, digits, recipe=Recipe(epochs=1), **QUIET)
    fit(b, ImageSet(digits.float(), digits.y, digits.classes, "floats"), recipe=Recipe(epochs=1), **QUIET)
    assert same(a, b)


class Probe(CrossEntropy):
    "Cross-entropy with a trained part, a state of its own, draws of its own, and a way to die."

    name = "Probe"

    def __init__(self, stop=None, how=None):
        super().__init__()
        self.stop, self.how, self.seen, self.scale = stop, how, 0, nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.scale.weight)

    def before_fit(self, run): self.run = run
    def parts(self): return {"scale": self.scale}
    def state(self): return {"seen": self.seen}
    def load_state(self, state): self.seen = state["seen"]

    def loss(self, model, x, y):
        if self.run.step == self.stop: self.how()
        self.seen += len(x)
        noisy = x + 0.1 * torch.randn(x.shape, generator=self.run.generator)
        logits = model(noisy)
        total = F.cross_entropy(self.scale(logits.flatten()[:, None]).view_as(logits), y)
        return Loss(total, {"ce": total}, logits)


def stopped_by_exception():
    raise KeyboardInterrupt


def test_interrupted_and_resumed_is_uninterrupted(digits, tmp_path):
    "Stopped in the middle of the third of four epochs; everything that a training has is in play."
    recipe = Recipe(epochs=4, batch=64, augment=crop_flip, schedule="cosine", warmup=1, optimizer="sgd", lr=0.05)
    whole, whole_probe = small(0.2), Probe()
    expected = fit(whole, digits, whole_probe, recipe, seed=3, **QUIET)
    settings = dict(recipe=recipe, seed=3, checkpoint=tmp_path / "c.pt", **QUIET)
    with pytest.raises(KeyboardInterrupt): fit(small(0.2), digits, Probe(12, stopped_by_exception), **settings)
    assert len(read_checkpoint(tmp_path / "c.pt", torch.device("cpu"))["rows"]) == 2
    resumed, probe = create("lenet5"), Probe()
    with pytest.raises(ValueError, match="another network .*Missing key"): fit(resumed, digits, probe, **settings)
    resumed = small(0.2)
    history = fit(resumed, digits, probe, **settings)
    assert same(whole, resumed) and same(whole_probe.scale, probe.scale) and probe.seen == whole_probe.seen == 4 * 320
    keep = lambda h: [{k: v for k, v in row.items() if k != "seconds"} for row in h.rows]
    assert keep(history) == keep(expected) and history.stopped == "epochs"
    again = small()
    assert fit(again, digits, Probe(0, stopped_by_exception), **settings).rows == history.rows and same(again, resumed)


def train_until_killed(digits, file):
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    fit(small(0.2), digits, Probe(12, kill), Recipe(epochs=3, batch=64), checkpoint=file, **QUIET)


def use_autograd_threads():
    "A backward pass within 80 others starts autograd's pool of threads; then a forked copy cannot train."
    net = nn.Identity()
    for _ in range(80): net = partial(checkpoint, net, use_reentrant=True)
    net(torch.ones(3, requires_grad=True)).sum().backward()


def test_killed_process_resumes_bit_by_bit(digits, tmp_path):
    use_autograd_threads()
    file = tmp_path / "killed.pt"
    child = started(train_until_killed, digits, file)
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["killed.pt"]
    whole, resumed = small(0.2), small(0.2)
    fit(whole, digits, Probe(), Recipe(epochs=3, batch=64), **QUIET)
    history = fit(resumed, digits, Probe(), Recipe(epochs=3, batch=64), checkpoint=file, **QUIET)
    assert same(whole, resumed) and len(history.rows) == 3


def test_damaged_checkpoints_are_named_and_not_used(digits, tmp_path):
    file, recipe = tmp_path / "c.pt", Recipe(epochs=1)
    fit(small(), digits, recipe=recipe, checkpoint=file, **QUIET)
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    for damaged in (b"", content[:100], content[: len(content) // 2], content[:-1], bytes(flipped), b"x" * 5000):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match="c.pt is damaged"):
            assert read_checkpoint(file, torch.device("cpu")) is None
    model, fresh = small(), small()
    with pytest.warns(UserWarning, match="training starts anew"):
        fit(model, digits, recipe=recipe, checkpoint=file, **QUIET)
    fit(fresh, digits, recipe=recipe, **QUIET)
    assert same(model, fresh) and file.stat().st_size == len(content)


def test_checkpoint_holds_no_code(digits, tmp_path):
    torch.save({"of": os.system}, tmp_path / "evil.pt")
    with pytest.warns(UserWarning, match="evil.pt is damaged"):
        assert read_checkpoint(tmp_path / "evil.pt", torch.device("cpu")) is None


@pytest.mark.parametrize("change", [dict(recipe=Recipe(epochs=1, lr=0.5)), dict(seed=1), dict(objective=Probe())])
def test_checkpoint_of_another_training_is_refused(digits, tmp_path, change):
    settings = dict(objective=CrossEntropy(), recipe=Recipe(epochs=1), seed=0, checkpoint=tmp_path / "c.pt", **QUIET)
    fit(small(), digits, **settings)
    with pytest.raises(ValueError, match="c.pt belongs to another training"):
        fit(small(), digits, **{**settings, **change})
    with pytest.raises(ValueError, match="data="): fit(small(), digits.take(slice(1, 320)), **settings)


# --- stopping ---------------------------------------------------------------------------------------------------------

class Scripted(Objective):
    "A loss that is told in advance, one value an epoch."

    def __init__(self, *values): self.values = values
    def before_fit(self, run): self.run = run

    def loss(self, model, x, y):
        return Loss(sum(p.sum() for p in model.parameters()) * 0 + self.values[self.run.epoch])


def test_stops_when_the_epochs_bring_nothing(digits, tmp_path):
    recipe = Recipe(epochs=7, patience=2, tolerance=0.1)
    losses = (4.0, 2.0, 1.0, 0.95, 0.93, 0.5, 0.1)
    history = fit(small(), digits, Scripted(*losses), recipe, checkpoint=tmp_path / "c.pt", **QUIET)
    assert history.stopped == "converged" and [row["loss"] for row in history.rows] == pytest.approx(losses[:5])
    # and stays so
    assert len(fit(small(), digits, Scripted(*losses), recipe, checkpoint=tmp_path / "c.pt", **QUIET).rows) == 5
    assert len(fit(small(), digits, Scripted(*losses), dataclasses.replace(recipe, min_epochs=6), **QUIET).rows) == 7
    assert fit(
        small(), digits, Scripted(*losses), dataclasses.replace(recipe, patience=None), **QUIET
    ).stopped == "epochs"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(digits, tmp_path, bad):
    file, recipe = tmp_path / "c.pt", Recipe(epochs=4, batch=64)
    with pytest.raises(
        Diverged,
        match=r"loss of Scripted is not finite in epoch 3, step 1 of 5; the checkpoint .*c.pt of epoch 2 is intact"
    ):
        fit(small(), digits, Scripted(2.0, 1.0, bad, 1.0), recipe, checkpoint=file, **QUIET)
    saved = read_checkpoint(file, torch.device("cpu"))
    assert len(saved["rows"]) == 2 and all(v.isfinite().all() for v in saved["model"].values())


# --- objectives -------------------------------------------------------------------------------------------------------

class Diary(CrossEntropy):
    def __init__(self):
        super().__init__()
        self.lines = []

    def before_fit(self, run): self.lines.append(("before_fit", run.optimizer is None))
    def before_epoch(self, run): self.lines.append(("before_epoch", run.epoch))
    def after_step(self, run): self.lines.append(("after_step", run.step))
    def after_epoch(self, run): self.lines.append(("after_epoch", len(run.history.rows)))
    def after_fit(self, run): self.lines.append(("after_fit", run.history.stopped))


def test_hooks_come_in_order(digits):
    diary = Diary()
    fit(small(), digits, diary, Recipe(epochs=2, batch=160), **QUIET)
    assert diary.lines == [
        ("before_fit", True), ("before_epoch", 0), ("after_step", 0), ("after_step", 1), ("after_epoch", 1),
        ("before_epoch", 1), ("after_step", 2), ("after_step", 3), ("after_epoch", 2), ("after_fit", "epochs")]


class Frozen(CrossEntropy):
    def before_fit(self, run): freeze(run.model, ["stem"])


def test_frozen_in_before_fit_stays_as_it_was(digits):
    model, before = small(), small()
    fit(model, digits, Frozen(), Recipe(epochs=1), **QUIET)
    assert same(model.features.stem, before.features.stem) and not same(model.head, before.head)
    with pytest.raises(ValueError, match="all parameters are frozen"):
        fit(freeze(small(), ["stem", "hidden", "head"]), digits, recipe=Recipe(epochs=1), **QUIET)


def test_precision_and_clipping(digits):
    "bf16 keeps float32 weights and comes near; a tiny gradient norm moves SGD by at most lr times itself a step."
    exact, rough, clipped, start = small(), small(), small(), small()
    recipe = Recipe(epochs=1, optimizer="sgd", lr=0.05, momentum=0.0)
    fit(exact, digits, recipe=recipe, **QUIET)
    fit(rough, digits, recipe=dataclasses.replace(recipe, precision="bf16"), **QUIET)
    assert 0 < distance(exact, rough) < 0.01 and all(p.dtype == torch.float32 for p in rough.parameters())
    fit(clipped, digits, recipe=dataclasses.replace(recipe, clip=1e-3), **QUIET)
    moved = sum((a - b).square().sum() for a, b in zip(clipped.parameters(), start.parameters())).sqrt()
    assert 0 < moved <= 3 * 0.05 * 1e-3 * 1.001


def test_history_measures_what_it_says(digits):
    "With one batch an epoch, the running accuracy is that of the weights before the step, in training mode."
    model, twin = small(), small()
    history = fit(model.eval(), digits, recipe=Recipe(epochs=1, batch=320), validation=digits, **QUIET)
    with mode(twin, training=True), torch.no_grad(): logits = twin(digits.float())
    row = history.rows[0]
    assert row["accuracy"] == pytest.approx((logits.argmax(1) == digits.y).float().mean().item())
    assert row["loss"] == pytest.approx(F.cross_entropy(logits, digits.y).item(), rel=1e-5)
    assert row["validation"] == accuracy(model, digits) and not model.training
    assert torch.allclose(predict(model, digits, batch=7), predict(model, digits.float()), atol=1e-5)


# --- several processes ------------------------------------------------------------------------------------------------

def train_as_one_of_two(rank, port, digits, folder):
    join_pair(rank, port)
    model = create("lenet5", seed=rank)  # different on purpose: the weights of process 0 must win
    recipe = Recipe(epochs=2, batch=64, optimizer="sgd", lr=0.1, accumulate=2)
    history = fit(model, digits, recipe=recipe, progress=False, checkpoint=folder / "c.pt")
    torch.save([model.state_dict(), history.rows], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_what_one_trains(tmp_path):
    "Gradients are summed over the shares of each batch: the model of one process, up to the order of additions."
    digits = sample("mnist", "train").take(slice(0, 323))  # the last batch holds three images: two and one
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    children = [started(train_as_one_of_two, rank, port, digits, tmp_path) for rank in range(2)]
    for child in children: child.join(300)
    for child in children: child.kill()
    assert [child.exitcode for child in children] == [0, 0]
    (first, rows), (second, _) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    alone = create("lenet5", seed=0)
    history = fit(alone, digits, recipe=Recipe(epochs=2, batch=64, optimizer="sgd", lr=0.1), **QUIET)
    assert max((first[k] - v).abs().max().item() for k, v in alone.state_dict().items()) < 1e-5
    for ours, theirs in zip(rows, history.rows, strict=True):
        assert (ours["loss"], ours["accuracy"]) == pytest.approx((theirs["loss"], theirs["accuracy"]), rel=1e-4)


class Beside(Objective):
    "A part whose loss is flat: only weight decay could move it."
    def __init__(self, options): self.options, self.part = options, nn.Linear(3, 3)
    def loss(self, model, x, y):
        return Loss(F.cross_entropy(model(x), y) + 0 * self.part.weight.sum() + 0 * self.part.bias.sum())
    def parts(self): return {"part": self.part}
    def part_options(self): return self.options


@pytest.mark.parametrize("options, factor", [({}, 1.0), ({"part": {"weight_decay": 0.5}}, (1 - 0.1 * 0.5) ** 2)])
def test_weight_decay_reaches_a_part_only_when_asked(options, factor):
    "ERIEP's tables and UniCL's temperature shrank with the model; (1 - lr * decay) a step, by hand, where wanted."
    objective, net = Beside(options), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    before = objective.part.weight.detach().clone()
    recipe = Recipe(epochs=1, batch=10, optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.5)
    fit(net, sample("mnist").take(slice(0, 20)), objective, recipe, device="cpu", progress=False)
    torch.testing.assert_close(objective.part.weight.detach(), before * factor)


def test_a_foreign_networks_frozen_batch_norm_sleeps_through_the_ascent():
    "generate_mode='train' switched the whole network to training, the parts that are frozen too."
    from robustnb.dem_hec import DemHEC

    norm = nn.BatchNorm2d(3)
    net = nn.Sequential(norm, nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    seen = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(module.training))
    fit(
        net, sample("cifar10").take(slice(0, 20)), DemHEC(frozen=("0",), generate_mode="train", steps=1),
        Recipe(epochs=1, batch=10), device="cpu", progress=False
    )
    assert seen and not any(seen)


def test_another_teacher_is_another_training(tmp_path):
    "A checkpoint went on with whatever teacher it held, whichever was given."
    from robustnb.dem_hec import DemHEC

    few = sample("cifar10").take(slice(0, 10))
    def tune(seed):
        objective = DemHEC(create("resnet20", seed=seed), steps=1)
        fit(
            create("resnet20", seed=0), few, objective, Recipe(epochs=1, batch=10), checkpoint=tmp_path / "t.pt",
            **QUIET
        )
    tune(1)
    tune(1)
    with pytest.raises(ValueError, match="another training"): tune(2)


# --- more images than memory holds ------------------------------------------------------------------------------------

class Drawn(torch.utils.data.Dataset):
    "A dataset whose items are made when they are asked for, and whose labels only its items tell."
    classes = tuple("0123456789")
    def __init__(self, images): self.images, self.asked = images, 0
    def __len__(self): return len(self.images)
    def __getitem__(self, i):
        self.asked += 1
        return self.images.x[i], int(self.images.y[i])


def test_a_source_trains_as_the_set_does(digits, tmp_path):
    "The same weights and history, to the bit, also when broken off inside an epoch; each image is read once an epoch."
    few, recipe = digits.take(slice(0, 96)), Recipe(epochs=2, batch=16, augment=crop_flip)
    held, read, resumed = small(0.2), small(0.2), small(0.2)
    expected = fit(held, few, Probe(), recipe, validation=few, **QUIET)
    source = as_source(drawn := Drawn(few))
    history = fit(read, source, Probe(), recipe, validation=source, **QUIET)
    keep = lambda h: [{k: v for k, v in row.items() if k != "seconds"} for row in h.rows]
    assert same(held, read) and keep(history) == keep(expected)
    assert drawn.asked <= 2 * 96 + 2 * 2 * 96 + 16  # training, images and labels of the validation, the fingerprint
    settings = dict(recipe=recipe, validation=source, checkpoint=tmp_path / "c.pt", checkpoint_every=2, **QUIET)
    with pytest.raises(KeyboardInterrupt): fit(small(0.2), source, Probe(9, stopped_by_exception), **settings)
    assert keep(fit(resumed, source, Probe(), **settings)) == keep(expected) and same(held, resumed)


def test_a_loader_that_only_flows_is_refused(digits):
    class Flow(torch.utils.data.IterableDataset):
        classes = digits.classes
        def __len__(self): return 320
        def __iter__(self): return iter(zip(digits.float(), digits.y))

    with pytest.raises(ValueError, match="Flow can be read from its first image to its last only"):
        fit(small(), as_source(torch.utils.data.DataLoader(Flow(), batch_size=40)), recipe=Recipe(epochs=1), **QUIET)
