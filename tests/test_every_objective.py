"""Every objective, unasked: broken off inside an epoch it goes on to the bit; two processes train what one trains.

A new objective is found by `test_registries.objectives`; nothing here names one, except to say what it cannot.
"""
import copy
import functools
import os
import socket

import pytest
import torch
from accelerate.state import AcceleratorState
from processes import join_pair, started
from test_registries import base_class, objectives, with_defaults
from torch import nn

from robustnb.epm import gradient_penalty
from robustnb.images import sample
from robustnb.layers import Classifier, seeded
from robustnb.training import CrossEntropy, Loss, Objective, Recipe, crop_flip, derive_seed, fit, read_checkpoint

QUIET = dict(device="cpu", progress=False)
KINDS = {name: kind for name, kind in objectives().items() if not base_class(kind)}
# 3 steps an epoch
RECIPE = Recipe(epochs=2, batch=8, optimizer="sgd", lr=0.02, schedule="cosine", warmup=0.5, weight_decay=1e-3)
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
    if hasattr(objective, "views"):
        objective.augment = lambda x, generator: x.flip(-1)  # its loss is exact where its views are
    return objective


@functools.cache  # decoding them took a quarter of all the time
def pictures(): return sample("cifar10").take(slice(0, 24))


def recipe_for(kind: type) -> Recipe:
    import dataclasses
    # SupCon makes its own views
    return RECIPE if kind.__name__ == "SupCon" else dataclasses.replace(RECIPE, augment=crop_flip)


def leave_at(objective: Objective, step: int, how) -> Objective:
    "The objective, made to end the training when a step has been made."
    after = objective.after_step
    def after_step(run):
        after(run)
        untouched = torch.Generator().manual_seed(
            derive_seed(run.seed, run.epoch, "draws", run.accelerator.process_index)
        ).get_state()
        objective.draws = not (untouched.equal(run.generator.get_state()) and untouched.equal(torch.get_rng_state()))
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


# --- broken off inside an epoch ---------------------------------------------------------------------------------------

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
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    for part, other in zip(reached.parts().values(), objective.parts().values(), strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(part.state_dict().values(), other.state_dict().values(), strict=True)
        )


# --- two processes ----------------------------------------------------------------------------------------------------

class Slopes(Objective):
    "WGAN-GP's own penalty and its second derivatives; between an image and itself there is one point, however it is drawn."

    def loss(self, model, x, y):
        logits, penalty = model(x), gradient_penalty(lambda between: model(between).logsumexp(1), x, x)
        return Loss(nn.functional.cross_entropy(logits, y) + penalty, {"penalty": penalty}, logits)


ALONE = ("FreeAdversarialTraining",)  # steps the optimiser within its loss
TWO = {name: kind for name, kind in KINDS.items() if kind.__name__ not in ALONE} | {"Slopes": Slopes}


def halves(kind, name, folder, tag):
    "Train with a break inside the second epoch; the rows, and the checkpoint of the break in a file of its own."
    file, net = folder / f"{tag}-{name}.pt", small(kind, dropout=0.0)
    settings = dict(
        checkpoint=file,
        checkpoint_every=1,
        seed=2,
        progress=False,
        **({} if "RANK" in os.environ else dict(device="cpu")),
    )
    try: fit(net, pictures(), objective := leave_at(made(kind), MIDDLE, stop), RECIPE, **settings)
    except Stop: pass
    if os.environ.get("RANK", "0") == "0": (folder / f"{tag}-{name}.middle").write_bytes(file.read_bytes())
    history = fit(net, pictures(), made(kind), RECIPE, **settings)
    return rows(history), copy.deepcopy(net.state_dict()), objective.draws


def carried_on(kind, file):
    "The rows of a training that goes on from a checkpoint."
    return rows(
        fit(
            small(kind, dropout=0.0),
            pictures(),
            made(kind),
            RECIPE,
            checkpoint=file,
            seed=2,
            progress=False,
            **({} if "RANK" in os.environ else dict(device="cpu")),
        )
    )


def one_of_two(rank, port, folder):
    import shutil
    import warnings

    warnings.simplefilter("ignore")
    join_pair(rank, port)
    found = {}
    for name, kind in TWO.items():
        trained, weights, _ = halves(kind, name, folder, "two")
        moved = folder / f"moved-{rank}-{name}.pt"
        shutil.copy(folder / f"one-{name}.middle", moved)
        found[name] = trained, weights, carried_on(kind, moved)
    torch.save(found, folder / f"{rank}.pt")
    torch.save(sharded_with_accelerate(rank) | sharded(rank), folder / f"sharded-{rank}.pt")
    torch.distributed.destroy_process_group()


def three_steps(net, optimizer, x, y, backward=torch.Tensor.backward):
    for _ in range(3):
        backward(nn.functional.cross_entropy(net(x), y))
        optimizer.step(), optimizer.zero_grad()
    return net


def toy():
    "A network, its optimiser and a batch, the same on each process."
    with seeded(0): net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return net, torch.optim.SGD(net.parameters(), 0.1), torch.arange(64.0).view(8, 8) / 64, torch.arange(8) % 4


def sharded(rank):
    "PyTorch's own sharding of parameters (FSDP2) over two processes: trained weights, and how many numbers one kept."
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net, _, x, y = toy()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    three_steps(net, torch.optim.SGD(net.parameters(), 0.1), x.chunk(2)[rank], y.chunk(2)[rank])
    return {
        "sharded": [p.full_tensor().detach() for p in net.parameters()],
        "kept": sum(p.to_local().numel() for p in net.parameters()),
    }


def sharded_with_accelerate(rank):
    "The same asked of Accelerate, which on CPUs answers with copies of the whole (DDP)."
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin

    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(
        cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=True)
    )
    net, optimizer, x, y = toy()
    net, optimizer = accelerator.prepare(net, optimizer)
    three_steps(net, optimizer, x.chunk(2)[rank], y.chunk(2)[rank], accelerator.backward)
    return {"accelerate": [p.detach() for p in accelerator.unwrap_model(net).parameters()], "as": type(net).__name__}


def apart(ours, theirs):
    "The largest difference of two loss curves, as a share of the first loss."
    return max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)) / abs(theirs[0]["loss"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "All objectives on one process, on two, and moved from one to two; one pair of processes for all."
    folder = tmp_path_factory.mktemp("two")
    alone = {name: halves(kind, name, folder, "one") for name, kind in TWO.items()}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    children = [started(one_of_two, rank, port, folder) for rank in range(2)]
    for child in children: child.join(300)
    for child in children: child.kill()
    assert [child.exitcode for child in children] == [0, 0]
    return folder, alone, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TWO)
def test_two_processes_train_what_one_trains(name, trained):
    folder, alone, (first, second) = trained
    back = carried_on(TWO[name], folder / f"two-{name}.middle")
    (ours, weights, moved), (expected, _, draws) = first[name], alone[name]
    assert all(torch.equal(v, second[name][1][k]) for k, v in weights.items()), "the processes hold different models"
    for curve in (ours, moved, back):
        assert apart(curve, expected) < (1e-2 if draws else 1e-6)  # each process draws for itself
    assert len(moved) == len(back) == 2 and moved[0] == expected[0] and back[0] == ours[0]


@pytest.mark.filterwarnings("ignore")
def test_parameters_that_are_sharded_train_as_whole_ones(trained):
    "For networks that do not fit into one device: FSDP2 at toy size, by PyTorch and through Accelerate."
    net, optimizer, x, y = toy()
    expected = list(three_steps(net, optimizer, x, y).parameters())
    found = [torch.load(trained[0] / f"sharded-{rank}.pt", weights_only=True) for rank in range(2)]
    for process in found:
        for way in ("sharded", "accelerate"):
            assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(process[way], expected, strict=True))
    # each number is on one process
    assert sum(process["kept"] for process in found) == sum(p.numel() for p in expected) == 212
    # DDP on CPUs: nothing is sharded there
    assert {process["as"] for process in found} <= {"DistributedDataParallel", "FSDPSequential"}
