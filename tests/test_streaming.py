"""Streams of corrupted images: the same bits whoever makes them, killed, divided or whole; flat memory; sets."""
import ctypes
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import memory
from processes import started
from test_experiments import FakeRay

from robustnb import corrupted_sets, streaming
from robustnb.cluster import ClusterGone
from robustnb.corrupted_sets import write_set
from robustnb.corruptions import CORRUPTIONS, EXTRA, corrupt
from robustnb.images import ImageSet, sample
from robustnb.robustness import evaluate, measure
from robustnb.scorecard import open_images
from robustnb.sources import Held, as_source
from robustnb.streaming import (
    BlockJob, Journal, Settings, Work, answer_blocks, ask_piece, corrupt_unit, loader, pieces, stream_seed,
    unit_of, complete_units,
)

ROWS = [("clean", 0), ("shot_noise", 3), ("glass_blur", 1)]


class Sums(nn.Module):
    "Whole numbers as logits: exact in any order, so that equal images have equal answers whatever the batch."

    def __init__(self, side=32, channels=3):
        super().__init__()
        self.weight = torch.randint(0, 3, (channels * side**2, 10), generator=torch.Generator().manual_seed(0)).double()

    def forward(self, x): return ((x * 255).round().double().flatten(1) @ self.weight).remainder(64).float() / 8


def images(n=330, side=32):
    draw = torch.Generator().manual_seed(1)
    return ImageSet(
        torch.randint(0, 256, (n, 3, side, side), generator=draw, dtype=torch.uint8),
        torch.arange(n) % 10,
        tuple("0123456789"),
        "made",
    )


def forked(work, *arguments):
    "Run a function in a process of its own; its exit status, negative where a signal ended it."
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None, "hangs"
    return process.exitcode


def ended(process):
    process.join(300)
    assert process.exitcode == 0, "hangs" if process.exitcode is None else f"ended with {process.exitcode}"


def folder_bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def pictures(folder, n=70, side=32, suffix=".png", **options):
    for i, (x, y) in enumerate(zip(*(lambda d: (d.x, d.y))(images(n, side)))):
        path = Path(folder) / str(y.item()) / f"{i:04}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(path, **options)
    return Path(folder)


# --- draws ---

@pytest.mark.parametrize(
    "name, side",
    [(name, 96) for name in CORRUPTIONS + EXTRA]
    + [(name, 32) for name in ("shot_noise", "motion_blur", "elastic_transform")],
)
def test_an_image_does_not_depend_on_its_company(name, side):
    "A part of a block, in small batches and another order of conditions, is the block's part; bytes hang on no threads."
    data, places = images(20, side), (3, 4, 17)
    unit = unit_of((3, side, side))
    def made(places, batch, rows):
        every, out = complete_units(places, unit, 20), {}
        for piece in pieces(BlockJob(0, places, rows), data.x[every], data.y[every], 20, unit, "imagenet-c", 0, batch):
            for k in range(len(piece.x)):
                out[rows[piece.rows[k // len(piece.y)]], places[piece.start + k % len(piece.y)]] = piece.x[k]
        return out
    whole = made(tuple(range(20)), 256, ((name, 2), (name, 5)))
    part = made(places, 2, ((name, 5),))
    assert all(torch.equal(part[(name, 5), p], whole[(name, 5), p]) for p in places)


def test_a_worker_draws_as_the_process_that_asks():
    "Where `corrupt` alone would make another stream of a generator in a loader's process."
    data = as_source(images(64))
    work = Work(data, [BlockJob(0, tuple(range(64)), (("gaussian_noise", 3),))], 64, "cifar10-c", 5, 256)
    here, there = next(iter(loader(work, 0))).x, next(iter(loader(work, 1))).x
    generator = torch.Generator().manual_seed(stream_seed("gaussian_noise", 3, 5, 0))
    assert (
        torch.equal(here, there)
        and torch.equal(here, corrupt(data.data.x, "gaussian_noise", 3, "cifar10-c", generator))
    )


@pytest.mark.parametrize(
    "options", [dict(workers=2), dict(workers=3, batch=9), dict(batch=1), dict(batch=5000)], ids=str
)
def test_workers_and_batches_do_not_matter(options):
    data, model = images(), Sums()
    one = measure(model, data, ["shot_noise", "glass_blur"], [2], show=False, workers=0)
    other = measure(model, data, ["shot_noise", "glass_blur"], [2], show=False, **options)
    assert torch.equal(one.correct, other.correct) and torch.equal(one.confidence, other.confidence)
    assert one.correct.float().mean() < 0.5 and one.confidence.unique().numel() > 50  # the model tells images apart


@pytest.mark.parametrize("side", [32, 64, 160])
def test_a_subset_answers_as_the_whole(side):
    data, model = images(80, side), Sums(side)
    whole = measure(model, data, ["frost", "impulse_noise"], [4], show=False)
    for positions in ([0], [79, 5, 70], range(1, 80, 9)):
        some = measure(model, data, ["impulse_noise"], [4], positions=positions, show=False)
        assert (
            torch.equal(some.correct, whole.correct[[0, 2]][:, sorted(positions)])
            and torch.equal(some.confidence, whole.confidence[[0, 2]][:, sorted(positions)])
        )


def test_the_global_generator_stays_and_the_source_is_not_written_to():
    data, state = images(70), torch.get_rng_state()
    before = data.x.clone()
    evaluate(lambda x: Sums()(x.mul_(1)), data, ["contrast"], [1], workers=2, show=False)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(data.x, before) and not streaming.STREAMS


# --- devices, without one ---

def on_a_card(large):
    "In a child: all corruptions on a graphics card that the CPU plays, and an evaluation there."
    from card import CARD, Card, Checked, Draws, OnCard, on_card

    Real = torch.Generator
    class Generator(Real):
        def __new__(cls, device="cpu"): return Draws() if on_card(device) else Real(device)
    torch.Generator = Generator
    def shown(name, x): return corrupt(x, name, 3, "imagenet-c", torch.Generator(x.device).manual_seed(0))
    with Checked(), Card():
        for mistake in (
            lambda: torch.ones(2, device=CARD) + torch.ones(2),
            lambda: torch.rand(2, device=CARD, generator=Real()),
            lambda: torch.ones(2, device=CARD).numpy(),
            lambda: torch.ones(2)[torch.ones(1, device=CARD, dtype=torch.long)],
        ):
            with pytest.raises((RuntimeError, TypeError)): mistake()
        for name in CORRUPTIONS + EXTRA:
            for x in (large, large.float() / 255):
                # motion blur there by another order of sums
                y, bound = shown(name, x.to(CARD)), (1.0 if x.dtype == torch.uint8 else 1 / 255) * (name == "motion_blur")
                assert (
                    isinstance(y, OnCard)
                    and (y.cpu().float() - shown(name, x).float()).abs().max() <= bound + 1e-6
                ), name
    source, rows, asked = (
        as_source(images(9)),
        [("clean", 0), *((name, 3) for name in CORRUPTIONS + EXTRA if name != "motion_blur")],
        set(),
    )
    expected = answer_blocks(Sums(), source, rows, Settings("cifar10-c", show=False))
    for place in ("device", "cpu"):
        settings = Settings(
            "cifar10-c", corrupt_on=place, channels_last=True, dtype=torch.bfloat16, show=False, device="cuda",
            workers=0,
        )
        with Checked(), Card():
            weight = Sums().weight.to(CARD)
            def model(x):
                asked.add((x.device, x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
                return ((x * 255).round().double().flatten(1) @ weight).remainder(64).float() / 8
            few = len(rows) if place == "device" else 3
            assert torch.equal(answer_blocks(model, source, rows[:few], settings), expected[:few])
    assert asked == {(CARD, torch.float32, True)}


def test_no_tensor_stays_behind_on_the_cpu():
    assert forked(
        on_a_card,
        torch.randint(0, 256, (1, 3, 96, 96), generator=torch.Generator().manual_seed(2), dtype=torch.uint8),
    ) == 0


# --- kills, shards ---

def killed_at(call, folder, workers=0):
    "An evaluation whose model ends its process when it is asked for the n-th time."
    calls = []
    class Deadly(Sums):
        def forward(self, x):
            calls.append(1)
            if len(calls) == call: os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(x)
    answer_blocks(
        Deadly(),
        as_source(images()),
        ROWS,
        Settings("cifar10-c", batch=40, workers=workers, show=False),
        kept=Journal(folder),
    )
    Journal(folder).settle()


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_many_moments_it_resumes_to_identical_bytes(tmp_path, workers):
    assert forked(killed_at, 0, tmp_path / "whole") == 0
    # each time from where the last one ended: within conditions and blocks and at their edges
    for call in (1, 2, 6, 7, 5)[2 * bool(workers):]:
        assert forked(killed_at, call, tmp_path / "torn", workers) == -signal.SIGKILL
    assert 4 < sum(map(len, Journal(tmp_path / "torn").read().values())) < 18  # of 6 blocks under 3 conditions
    file, = (tmp_path / "torn").glob("blocks-*")
    file.write_bytes(file.read_bytes()[:-70])  # and in the middle of a line
    assert forked(killed_at, 0, tmp_path / "torn", workers) == 0
    assert folder_bytes(tmp_path / "torn") == folder_bytes(tmp_path / "whole") != {}


SLOW = """
import time, torch
from pathlib import Path
asked = []
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.at = torch.nn.Parameter(torch.linspace(0, 1, 10))
    def forward(self, x):
        asked.append(1)
        if len(asked) > 4 and Path("slow").exists(): time.sleep(0.3)
        return -100 * (x.mean((1, 2, 3))[:, None] - self.at) ** 2
def net():
    if Path("slow").exists() and Path("stuck").exists():
        Path("here").touch()
        time.sleep(60)
    return Net()
"""

def typed(words, folder):
    "The program, as a terminal starts it: a group of processes of its own that Ctrl-C reaches as a whole."
    from robustnb import cli

    os.setsid()
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, str(folder))
    for number in (1, 2): os.dup2(os.open(folder / "said", os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    sys.argv = ["robustnb", *map(str, words)]
    cli.out.file = cli.err.file = sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)
    cli.main()


@pytest.mark.parametrize("moment", ["midway", "opening"])
def test_ctrl_c_ends_an_evaluation_in_a_sentence(tmp_path, moment):
    (tmp_path / "slow_nets.py").write_text(SLOW)
    pictures(tmp_path / "pictures", 130)
    words = [
        "evaluate", "slow_nets:net", "pictures", "--corruptions", "contrast,fog", "--severities", "1,2",
        "--workers", 2, "--out", "torn",
    ]
    (tmp_path / "slow").touch()
    if moment == "opening": (tmp_path / "stuck").touch()
    process = multiprocessing.get_context("fork").Process(target=typed, args=(words, tmp_path))
    process.start()
    kept = lambda: [line for f in tmp_path.glob("torn/answers/**/blocks-*") for line in f.read_text().split()]
    while process.is_alive() and not (len(kept()) > 2 or (tmp_path / "here").exists()): time.sleep(0.02)
    for _ in range(2):  # impatiently
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    process.join(60)
    said, before = (tmp_path / "said").read_text(), len(kept())
    assert process.exitcode == 130 and "Traceback" not in said and "interrupted" in said, said
    with pytest.raises(ProcessLookupError): os.killpg(process.pid, 0)  # nobody is left behind
    if moment == "opening": return
    assert "the same command goes on from there" in said and before > 2
    (tmp_path / "slow").unlink()
    assert forked(typed, words, tmp_path) == 0 and (tmp_path / "torn/report.html").exists()
    asked = Journal(next((tmp_path / "torn/answers").iterdir())).read()
    assert len(asked) == 3 and all(len(found) == 5 for found in asked.values())


def test_shards_in_any_number_make_the_bytes_of_one_run(tmp_path):
    data, model = as_source(images()), Sums()
    whole = answer_blocks(model, data, ROWS, Settings("cifar10-c", show=False), kept=Journal(tmp_path / "one"))
    Journal(tmp_path / "one").settle()
    for n in (2, 5):
        for i in reversed(range(n)):
            answer_blocks(
                model,
                data,
                ROWS,
                Settings("cifar10-c", shard=(i, n), show=False),
                kept=Journal(tmp_path / str(n), (i, n)),
            )
        Journal(tmp_path / str(n)).settle()
        assert folder_bytes(tmp_path / str(n)) == folder_bytes(tmp_path / "one")
    # nobody is asked again
    assert torch.equal(
        answer_blocks(None, data, ROWS, Settings("cifar10-c", show=False), kept=Journal(tmp_path / "5")), whole
    )
    with pytest.raises(ValueError, match="holds no images for shard 6 of 7"):
        answer_blocks(model, data, ROWS, Settings("cifar10-c", shard=(6, 7), show=False))


# --- sources ---

class Items(Dataset):
    "PIL images and labels."
    def __init__(self, data): self.data, self.targets, self.classes = data, data.y.tolist(), data.classes
    def __len__(self): return len(self.data)
    def __getitem__(self, i): return Image.fromarray(self.data.x[i].permute(1, 2, 0).numpy()), self.targets[i]


def test_every_kind_of_source_gives_the_same_answers(tmp_path):
    data = images(130)
    items = Items(data)
    bytes_of = lambda batch: (
        torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p, _ in batch]),
        torch.tensor([y for _, y in batch]),
    )
    told = lambda given, **options: measure(
        Sums(), as_source(given, classes=data.classes), ["shot_noise"], [3], show=False, **options
    )
    expected = told(data)
    for given, options in (
        (items, dict(workers=2)),
        (DataLoader(items, batch_size=7, num_workers=2), dict(workers=1)),
        (DataLoader(items, batch_size=50, collate_fn=bytes_of), dict(workers=2)),
        (Subset(items, range(130)), {}),
        (Held(data), {}),
    ):
        assert torch.equal(told(given, **options).confidence, expected.confidence), given
    floats = told(TensorDataset(data.float(), data.y))
    assert torch.equal(floats.correct[0], expected.correct[0])


def test_what_breaks_in_a_worker_is_told_as_it_is(tmp_path):
    folder = pictures(tmp_path / "set", 70)
    (folder / "3" / "9999.png").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="9999.png: no readable picture"):
        measure(Sums(), as_source(str(folder), size=32), ["fog"], [1], workers=2, show=False)


def test_exif_turns_pictures_everywhere(tmp_path):
    "By the tag, in `open_images`, in the stream and in what `corrupt` writes."
    exif = Image.Exif()
    exif[0x0112] = 8  # turn by 270 degrees clockwise: right becomes top
    lying = np.zeros((30, 50, 3), np.uint8)
    lying[:, 25:, 1] = 255  # green on the right
    (tmp_path / "set/a").mkdir(parents=True)
    Image.fromarray(lying).save(tmp_path / "set/a/1.png", exif=exif)
    x, _ = as_source(str(tmp_path / "set"), size=30).block(0)
    assert (
        torch.equal(x, open_images(str(tmp_path / "set"), size=30).x)
        and x[0, 1, :14].min() > 250
        and x[0, 1, 16:].max() < 5
    )
    write_set(str(tmp_path / "set"), tmp_path / "out", ["brightness"], [1], form="png", own_size=True, show=False)
    with Image.open(tmp_path / "out/brightness/1/a/1.png") as picture:
        assert picture.size == (30, 50) and np.array(picture)[5, 5, 1] > 200 and not picture.getexif().get(0x0112)


# --- memory ---

@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's /proc")
def test_memory_stays_flat(tmp_path):
    "512 pictures of 224 pixels are 77 MB, 231 in three conditions: later ones take no more than the first."
    draw, content = np.random.default_rng(0), []
    for _ in range(16):  # that many different ones are enough: what counts is that they are read
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (28, 28, 3), dtype=np.uint8)).resize((224, 224)).save(file, "JPEG")
        content.append(file.getvalue())
    (tmp_path / "set/a").mkdir(parents=True)
    for i in range(512): (tmp_path / f"set/a/{i:04}.jpg").write_bytes(content[i % 16])
    code = (
        f"from memory import held_while_asked; held_while_asked({str(tmp_path / 'set')!r}, "
        f"{str(tmp_path / 'looks')!r})"
    )
    # afresh, as memory that is shared with a parent counts by halves
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, timeout=300)
    looks = json.loads((tmp_path / "looks").read_text())
    assert len(looks) == 96 and max(looks) < 200, looks
    # as low as it falls; 256 pictures lie between, and both workers are at work
    early, late = min(looks[12:36]), min(looks[60:84])
    assert late - early < 20, looks  # those pictures would be 38 MB, and 115 in all conditions


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc only"
)
def test_free_memory_is_given_back_where_the_c_library_keeps_it(tmp_path):
    "Two batches of 9.6M samples are more than the 2**24 after which it is given back; and it is at the end."
    # what is told to glibc holds for a whole process
    ended(started(memory.freed_and_kept, 320, 2**24, tmp_path / "looks"))
    first, second, third, fourth, _, last = json.loads((tmp_path / "looks").read_text())
    assert second - first > 150 and fourth - third > 150, "glibc did not keep the buffer, so there is nothing to see"
    for now in (third, last): assert now - first < 100, f"{now - first:.0f} MB that nothing needs are kept"


# --- sets on disk ---

def set_killed_at(block, source, out, *options):
    "Writing that ends its process when the n-th block is to be entered."
    entered, count = corrupted_sets.enter, []
    def enter(*what):
        count.append(1)
        if len(count) == block: os.kill(os.getpid(), signal.SIGKILL)
        entered(*what)
    corrupted_sets.enter = enter
    write_set(source, out, ["shot_noise", "fog"], [1, 5], workers=options[0], form="png", show=False)


@pytest.mark.parametrize("kind", ["arrays", "pictures"])
def test_a_set_is_written_to_identical_bytes_whatever_happens(tmp_path, kind):
    source = images(130) if kind == "arrays" else str(pictures(tmp_path / "set", 130))  # three blocks
    assert forked(set_killed_at, 0, source, tmp_path / "whole", 0) == 0
    for block, workers in ((1, 0), (2, 2), (2, 0)):
        assert forked(set_killed_at, block, source, tmp_path / "torn", workers) == -signal.SIGKILL
        assert not (tmp_path / "torn/manifest.json").exists()
    assert forked(set_killed_at, 0, source, tmp_path / "torn", 2) == 0
    whole = folder_bytes(tmp_path / "whole")
    assert folder_bytes(tmp_path / "torn") == whole and not any(name.startswith(".") for name in whole)
    assert len(whole) == (4 if kind == "arrays" else 130 * 4 + 4 + 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_published_layout_of_arrays_reads_back(tmp_path, channels):
    "Five severities one after the other, channels last, labels as often; as `evaluate` corrupts, image by image."
    data = sample("mnist" if channels == 1 else "cifar10", "test").take(slice(0, 66))
    manifest = write_set(data, tmp_path / "c", ["impulse_noise"], show=False)
    array, labels = np.load(tmp_path / "c/impulse_noise.npy"), np.load(tmp_path / "c/labels.npy")
    side = data.x.shape[-1]
    assert (
        array.shape == (5 * 66, side, side, channels)
        and array.dtype == np.uint8
        and labels.tolist() == 5 * data.y.tolist()
    )
    for severity in (1, 4):
        again = torch.from_numpy(array[66 * (severity - 1):66 * severity]).permute(0, 3, 1, 2)
        assert torch.equal(again[64:], corrupt_unit(data.x[64:], 64, "impulse_noise", severity, "cifar10-c"))
    assert (
        set(manifest["files"]) == {"impulse_noise.npy", "labels.npy"}
        and manifest["constants"]["impulse_noise"]["1"] == [0.01]
    )
    assert json.loads((tmp_path / "c/manifest.json").read_text()) == manifest


def test_large_pictures_keep_their_size_and_jpeg_is_imagenet_cs(tmp_path):
    draw = np.random.default_rng(0)
    (tmp_path / "set/dog").mkdir(parents=True)
    Image.fromarray(
        draw.integers(0, 256, (30, 45, 3), dtype=np.uint8)
    ).resize((900, 600)).save(tmp_path / "set/dog/x.jpeg")
    write_set(str(tmp_path / "set"), tmp_path / "out", ["frost", "snow", "zoom_blur"], [3], own_size=True, show=False)
    for name in ("frost", "snow", "zoom_blur"):
        with Image.open(tmp_path / f"out/{name}/3/dog/x.JPEG") as picture:
            # 16 of the standard's table at quality 85: (16 * 30 + 50) // 100
            assert picture.size == (900, 600) and picture.format == "JPEG" and picture.quantization[0][0] == 5


def test_ray_spreads_blocks(monkeypatch, tmp_path):
    "On a cluster that is played by this process: the same bytes; what is kept is not asked again, be it a condition."
    monkeypatch.setitem(sys.modules, "ray", ray := FakeRay())
    data, model = as_source(images()), Sums()
    def told(folder, rows=ROWS, **options):
        settings = Settings("cifar10-c", show=False, **options)
        return answer_blocks(model, data, rows, settings, kept=Journal(tmp_path / folder))
    whole, spread = told("one"), told("ray", executor="ray")
    assert torch.equal(spread, whole) and len(ray.work) == 6
    assert torch.equal(told("ray", executor="ray"), whole) and len(ray.work) == 6
    told("begun", ROWS[:1])
    told("begun", shard=(1, 3))
    assert torch.equal(told("begun", executor="ray"), whole) and len(ray.work) == 6 + 4  # of 6 blocks 2 were whole
    for name in ("one", "ray", "begun"): Journal(tmp_path / name).settle()
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "begun")


def test_what_goes_wrong_on_a_cluster_is_said_as_it_is_here(monkeypatch, tmp_path):
    "A task's own error comes without Ray around it; a lost head and a lost task keep what was answered."
    class Wrapped(FakeRay.exceptions.RayTaskError): cause = ValueError("no picture")
    data, model, settings = as_source(images()), Sums(), Settings("cifar10-c", show=False, executor="ray")
    for raised, error, said, cancelled in (
        (Wrapped("ray::on_worker"), ValueError, "^no picture$", 4),
        (FakeRay.exceptions.RaySystemError("gone"), ClusterGone, "cluster is gone .gone.; finished blocks are kept", 0),
        (MemoryError("worker"), ClusterGone, "lost 4 times .* .MemoryError: worker.; finished blocks are kept", 4),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$", 5),
    ):
        monkeypatch.setitem(sys.modules, "ray", ray := FakeRay())
        fetch, journal = ray.get, Journal(tmp_path / type(raised).__name__)
        def get(ref, timeout):
            if ref < 5: raise raised  # after the first that ends
            return fetch(ref, timeout)
        ray.get = get
        with pytest.raises(error, match=said): answer_blocks(model, data, ROWS, settings, kept=journal)
        assert list(journal.read()) == [5] and len(ray.cancelled) == cancelled
    def unsent(value): raise TypeError("cannot pickle 'Session' object")
    ray.put = unsent
    with pytest.raises(ValueError, match="cannot be sent to a cluster .*'Session'.* by --shard"):
        answer_blocks(model, data, ROWS, settings, kept=Journal(tmp_path / "unsent"))


def test_every_unit_has_draws_of_its_own():
    "One grey picture: the noise on it differs between images, units, blocks, corruptions, severities and seeds."
    x = torch.full((64, 3, 32, 32), 128, dtype=torch.uint8)
    made = lambda position=0, name="gaussian_noise", severity=3, seed=0: streaming.corrupt_unit(
        x, position, name, severity, "cifar10-c", seed
    )
    first = made()
    assert first.equal(made()) and not first[0].equal(first[1])
    others = [made(64), made(128), made(6400), made(seed=1), made(severity=4), made(name="speckle_noise")]
    for i, one in enumerate([first, *others]):
        for other in others[i:]: assert (one != other).float().mean() > 0.5
