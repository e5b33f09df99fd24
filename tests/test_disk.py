"""A disk that fails: every write, fsync, rename and new file of what this package keeps, one after the other.

Either the n-th operation fails (a bad disk), or all that need room do from the n-th on (a full one). Whatever fails, it is
said, nothing that was acknowledged before is lost, no temporary file stays, and the next run gives what an unbroken one gives.
"""
import builtins
import errno
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustnb import basics, cli, data, scorecard, streaming, weights
from robustnb.basics import atomic_write, cache_dir
from robustnb.corrupted_sets import write_set
from robustnb.formats import DataError
from robustnb.images import CLASSES, ImageSet
from robustnb.lab import records, site
from robustnb.lab.records import Record, Store
from robustnb.robustness import measure
from robustnb.sources import ModelError, TarFiles, as_source
from test_hostile import picture, tar

# a line per failure, for the long form
COUNTS = Path(os.environ["ROBUSTNB_FAULTS"]) / "writes" if "ROBUSTNB_FAULTS" in os.environ else None


class Disk:
    "Counts operations; the n-th fails, or with `full` all from the n-th on that need room."

    def __init__(self, monkeypatch, at=None, full=False):
        self.at, self.full, self.count, self.failed = at, full, 0, False
        for name in ("write", "pwrite", "fsync", "replace", "rename", "mkdir"):
            monkeypatch.setattr(os, name, self.guarded(getattr(os, name), name not in ("replace", "rename")))
        opened, plain = os.open, io.open
        def make(path, flags, *more, **options):
            if flags & os.O_CREAT: self.step(True)
            return opened(path, flags, *more, **options)
        def file(path, mode="r", *more, **options):
            if not set(mode) & set("wax+") or isinstance(path, int): return plain(path, mode, *more, **options)
            self.step(True)
            binary = mode.replace("t", "").replace("b", "")
            raw = Raw(path, binary)
            raw.disk = self
            whole = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return whole if "b" in mode else io.TextIOWrapper(whole, options.get("encoding") or "utf-8")
        monkeypatch.setattr(os, "open", make)
        monkeypatch.setattr(io, "open", file)
        monkeypatch.setattr(builtins, "open", file)

    def step(self, room):
        "Count an operation, or fail it."
        if self.at is None: return
        self.count += 1
        if self.count == self.at or self.full and self.failed and room:
            self.failed = True
            raise OSError(
                errno.ENOSPC if self.full else errno.EIO,
                "No space left on device" if self.full else "Input/output error",
            )

    def guarded(self, function, room):
        def call(*arguments, **options):
            self.step(room)
            return function(*arguments, **options)
        return call


class Raw(io.FileIO):
    "A file whose writes are operations of the disk; the failing one writes a half."

    def write(self, content):
        try: self.disk.step(True)
        except OSError:
            super().write(bytes(content)[:len(content) // 2])
            raise
        return super().write(content)


def files(folder):
    "Every file below a folder: path -> bytes."
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith(".lock")
    }


def temporary(folder, mine=()):
    return [
        p
        for p in files(folder)
        if (p.endswith((".part", ".tmp")) or "/.out." in f"/{p}") and not p.endswith(tuple(mine))
    ]


# --- what is tried: (prepare(folder), do(folder), check(folder, prepared)); `check` says that nothing acknowledged is lost

RECORD = Record(
    "demo", {"seed": 0}, {"accuracy": 0.5}, "quick", time="2026-01-02T03:04:05Z", commit="c" * 40, dirty=False
)
PNG = b"\x89PNG\r\n\x1a\n"


def one(seed): return replace(RECORD, cell={"seed": seed}, key="", time=f"2026-01-02T03:04:{seed:02}Z")


def some_records(folder, name="own"):
    store = Store(folder / name)
    store.append(one(0), {"a.png": PNG + b"0"})
    return store


def seeds(folder):
    store = Store(folder)
    return (
        {r.cell["seed"] for r in store.records("demo") if not r.artefacts or store.artefact(r, "a.png")}
        if (folder / "demo.jsonl").exists()
        else set()
    )


def append(folder): Store(folder / "own").append(one(1), {"a.png": PNG + b"1"})


def two_to_promote(folder):
    some_records(folder).append(one(1))
    records.promote(Store(folder / "own"), folder / "results", experiment="demo")
    Store(folder / "own").append(one(2), {"a.png": PNG + b"2"})
    Store(folder / "own").append(one(3))


def promote(folder): records.promote(Store(folder / "own"), folder / "results")


SET = ImageSet(
    (torch.arange(70 * 3 * 64) % 256).to(torch.uint8).view(70, 3, 8, 8),
    torch.arange(70) % 10,
    CLASSES["cifar10"],
    "cifar10",
)


def fetch(folder): data.load("cifar10", "test", cache=folder, progress=False)


def evaluate(folder):
    answers = measure(
        lambda x: x.flatten(1)[:, :10],
        SET,
        ["brightness"],
        [1, 2],
        "cifar10-c",
        folder / "answers",
        workers=0,
        batch=32,
    )
    streaming.Journal(folder / "answers").settle()
    card = scorecard.Scorecard("a on b", {"model": "a"}, answers)
    card.figures = dict
    scorecard.write_report(card, scorecard.report_folder(folder / "report", "a", "b"))


def arrays(folder):
    write_set(
        SET.take(slice(0, 4)),
        folder / "set",
        ["brightness", "jpeg_compression"],
        [1],
        "cifar10-c",
        workers=0,
        show=False,
    )


def in_tar(folder):
    (folder / "in.tar").write_bytes(
        tar({f"{i % 2}/{i}.{e}": c for i in range(3) for e, c in (("png", picture("PNG")), ("cls", b"%d" % (i % 2)))})
    )


def pictures(folder):
    write_set(TarFiles([folder / "in.tar"]), folder / "set", ["brightness"], [1], "cifar10-c", workers=0, show=False)


STATES = [weights.half_precision_bytes({"w": torch.full((3,), float(i))}) for i in range(2)]


def shipping(i):
    import hashlib

    def ship(folder):
        weights.ship(
            STATES[i],
            dict(net="n", weights="w", sha256=hashlib.sha256(STATES[i]).hexdigest(), number=i),
            folder / "ship",
        )
    return ship


def a_site(folder, text="old"):
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out" / "index.html").write_text(text)
    (folder / "out" / site.MARK).touch()


def place(folder):
    shutil.rmtree(folder / "built", ignore_errors=True)
    (folder / "built").mkdir()
    (folder / "built/index.html").write_text("new")
    site.recover(folder / "out")
    site.put_in_place(folder / "built", folder / "out")


def pair(folder):
    "A file of weights and its card are of one another."
    import hashlib

    card = json.loads((folder / "ship/n-w.json").read_text())
    assert hashlib.sha256((folder / "ship/n-w.safetensors").read_bytes()).hexdigest() == card["sha256"]


TRIED = {  # name -> prepare, do, what holds whenever something failed, files of an interrupted run that stay for the next one
    "append a record": (some_records, append, lambda f: {0} <= seeds(f / "own") or pytest.fail("lost"), ()),
    "the first record": (lambda f: None, lambda f: some_records(f), lambda f: None, ()),
    "records promote": (
        two_to_promote,
        promote,
        lambda f: {0, 1} <= seeds(f / "results") and seeds(f / "own") == {0, 1, 2, 3} or pytest.fail("lost"),
        (),
    ),
    "data fetch": (lambda f: None, fetch, lambda f: None, ()),
    "evaluate": (lambda f: None, evaluate, lambda f: None, ()),
    "corrupt to arrays": (lambda f: None, arrays, lambda f: None, (".npy.part",)),
    "corrupt to pictures": (in_tar, pictures, lambda f: None, (".txt.part",)),
    "weights that ship": (shipping(0), shipping(1), pair, ()),
    "the site in its place": (
        a_site,
        place,
        lambda f: (f / "out/index.html").read_text() in ("old", "new") or pytest.fail("lost"),
        (),
    ),
}


@pytest.fixture
def fake(monkeypatch):
    "A network that has the set."
    monkeypatch.setattr(data, "fetch", lambda name, stage, tried: {"train": SET, "test": SET})
    monkeypatch.setattr(data, "PUBLISHED", {})
    monkeypatch.setenv("ROBUSTNB_PROGRESS", "0")
    monkeypatch.delenv("ROBUSTNB_DATA", raising=False)


def same(what, folder, whole):
    "What a run left that was disturbed and begun again is what an unbroken one leaves."
    if what == "evaluate":
        for name in ("answers/answers.jsonl", "report/table.csv"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes()
    else:
        one, other = ({k: v for k, v in files(f).items() if "demo.jsonl" not in k} for f in (folder, whole))
        assert one == other
    for place in ("own", "results"): assert seeds(folder / place) == seeds(whole / place)


@pytest.mark.parametrize("full", [False, True], ids=["bad", "full"])
@pytest.mark.parametrize("what", TRIED)
def test_every_operation_that_fails(what, full, tmp_path, fake, monkeypatch, request):
    prepare, do, holds, stay = TRIED[what]
    whole = tmp_path / "whole"
    whole.mkdir()
    prepare(whole), do(whole)
    n, disturbed, late, until = 0, True, False, float(os.environ.get("ROBUSTNB_UNTIL", 0))
    while disturbed:
        if until and not late and time.time() > until:
            late = True
            (COUNTS.parent / "short").open("a").write(request.node.name + "\n")
        # the short form leaves out ever more, the long one where its time is over
        n += 1 if COUNTS and not late else 1 + n // 4
        folder = tmp_path / str(n)
        folder.mkdir()
        prepare(folder)
        with monkeypatch.context() as patched:
            disk = Disk(patched, n, full)
            try: do(folder)
            except (OSError, DataError, ModelError) as error: assert cli.mendable(error) and str(error)
            disk.at, disturbed = None, disk.failed
        assert not temporary(folder, stay)
        holds(folder)
        do(folder)  # the next run
        assert not temporary(folder)
        holds(folder)
        same(what, folder, whole)
        shutil.rmtree(folder)
        if COUNTS and disturbed:
            with open(COUNTS, "a") as file: file.write(what + "\n")
    assert n > 3


@pytest.fixture
def small(tmp_path):
    "A file system of 4 MB of its own, where this user may mount one."
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], stderr=subprocess.DEVNULL
    ).returncode
    if not mounted: pytest.skip("only root mounts a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("what", TRIED)
def test_a_file_system_that_is_full(what, small, tmp_path, fake):
    "The system itself says that there is no room: a file takes all but so many pages, and is then removed."
    prepare, do, holds, stay = TRIED[what]
    whole, refused = tmp_path / "whole", 0
    whole.mkdir()
    prepare(whole), do(whole)
    for pages in (0, 1, 2, 3, 5, 8, 13, 21) if COUNTS else (0, 2, 8):
        folder, filler = small / str(pages), small / "filler"
        folder.mkdir()
        prepare(folder)
        with open(filler, "wb") as file:
            left = os.statvfs(small)
            os.posix_fallocate(file.fileno(), 0, max(1, left.f_bavail - pages) * left.f_frsize)
        try: do(folder)
        except (OSError, DataError, ModelError) as error:
            assert cli.mendable(error) and str(error)
            refused += 1
        assert not temporary(folder, stay)
        holds(folder)
        filler.unlink()
        do(folder)  # the next run
        assert not temporary(folder)
        same(what, folder, whole)
        shutil.rmtree(folder)
        if COUNTS:
            with open(COUNTS, "a") as file: file.write(f"{what}, on a full file system\n")
    assert refused


# --- odd places


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    old, held, fresh = (tmp_path / f".file.{name}.part" for name in ("old", "held", "fresh"))
    for part in (old, held, fresh): part.write_text("half")
    for part in (old, held): os.utime(part, (time.time() - 60,) * 2)
    import fcntl

    with open(held) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # its writer lives
        atomic_write(tmp_path / "file", b"whole")
    # the fresh one may not have its lock yet
    assert {p.name for p in tmp_path.iterdir()} == {"file", held.name, fresh.name}


def test_a_clock_that_was_set_back(tmp_path, monkeypatch):
    part = tmp_path / ".file.x.part"
    part.write_text("half")
    os.utime(part, (time.time() + 3600,) * 2)
    atomic_write(tmp_path / "file", b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {"file"}
    store = Store(tmp_path / "own")
    store.append(one(1))
    monkeypatch.setattr(records, "now", lambda: "2020-01-01T00:00:00.000Z")
    store.append(replace(one(1), metrics={"accuracy": 0.9}, time=""))  # made later, dated earlier
    assert (
        [r.metrics["accuracy"] for r in store.records("demo")] == [0.5]
        and len((tmp_path / "own/demo.jsonl").read_text().splitlines()) == 2
    )


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_read_only_cache_is_named(tmp_path):
    (tmp_path / "cache/data").mkdir(parents=True)
    for folder in (tmp_path / "cache/data", tmp_path / "cache"): folder.chmod(0o555)
    tmp_path.chmod(0o755)
    code = "from robustnb.data import load; load('mnist', 'test')"
    words = ["setpriv", "--reuid=65534", "--clear-groups"] * (os.geteuid() == 0)
    above = [p for p in tmp_path.parents if not p.stat().st_mode & stat.S_IXOTH]
    if os.geteuid() == 0 and above: pytest.skip(f"nobody may look into {above[0]}")
    run = subprocess.run(
        [*words, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "ROBUSTNB_CACHE": str(tmp_path / "cache"),
            "ROBUSTNB_OFFLINE": "1",
            "ROBUSTNB_DATA": "",
            "MPLCONFIGDIR": "/tmp",
        },
    )
    if "ModuleNotFoundError" in run.stderr or "Permission denied: '/" in run.stderr and "cache" not in run.stderr:
        pytest.skip("nobody may read this checkout")
    assert "cannot be written" in run.stderr and "ROBUSTNB_CACHE" in run.stderr, run.stderr


def test_no_home_is_said(monkeypatch):
    monkeypatch.delenv("ROBUSTNB_CACHE", raising=False)
    def nowhere(): raise RuntimeError("Could not determine home directory.")
    monkeypatch.setattr(basics.Path, "home", nowhere)
    with pytest.raises(FileNotFoundError, match="ROBUSTNB_CACHE=FOLDER") as error: cache_dir()
    assert cli.mendable(error.value)


def test_a_cache_with_spaces_and_umlauts(tmp_path, fake, monkeypatch):
    folder = tmp_path / "mein Ordner, größer [als] 'andere'"
    monkeypatch.setenv("ROBUSTNB_CACHE", str(folder))
    assert (
        len(data.load("cifar10", "test", progress=False)) == 70
        and len(data.load("cifar10", "train", progress=False)) == 70
    )
    arrays(folder), evaluate(folder), append(folder)
    assert (
        sorted(p.name for p in folder.iterdir()) == ["answers", "data", "own", "report", "set"]
        and not temporary(folder)
    )


# --- two users, a dead worker


def as_nobody(do, *arguments):
    "What another user gets: what a call returns, or what the command line says of its error."
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([]), os.setgid(65534), os.setuid(65534)
            try: said = f"done: {do(*arguments)}"
            except Exception as error:
                said = f"{'told' if cli.mendable(error) else 'traceback'}: {cli.error_message(error)}"
            os.write(write, said.encode())
        finally: os._exit(0)
    os.close(write)
    with open(read, closefd=True) as answer: said = answer.read()
    os.waitpid(pid, 0)
    return said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_two_users_on_one_cache_and_one_store(fake):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are private
        folder = Path(name)
        folder.chmod(0o755)
        ours = lambda: len(data.load("cifar10", "test", cache=folder / "cache", progress=False))
        again = lambda: evaluate(folder)
        assert ours() == ours() == 70  # twice: nobody may not be able to import what reading needs
        some_records(folder), evaluate(folder)
        # what one made, another reads
        assert as_nobody(ours) == "done: 70" and as_nobody(seeds, folder / "own") == "done: {0}"
        for refused in (lambda: append(folder), lambda: some_records(folder, "theirs"), lambda: arrays(folder), again):
            said = as_nobody(refused)
            assert (
                said.startswith("told: Permission denied: /")
                and "belongs to root" in said
                and "the same command goes on" in said
            ), said
        for path in (folder / "own", folder / "cache", *(folder / "cache").iterdir()): path.chmod(0o777)
        assert as_nobody(
            lambda: Store(folder / "own").append(replace(one(7), experiment="other", key=""))
        ).startswith("done")
        Store(folder / "own").append(replace(one(8), experiment="other", key=""))  # root writes to nobody's file
        assert (
            {r.cell["seed"] for r in Store(folder / "own").records("other")} == {7, 8}
            and seeds(folder / "own") == {0}
        )
        part = folder / "own/.demo.x.part"
        part.write_text("half")
        os.utime(part, (time.time() - 60,) * 2)
        # beside what root left half done
        assert as_nobody(lambda: atomic_write(folder / "own/demo.txt", b"x")) == "done: None"
        kept = next((folder / "cache").rglob("*-test.npz"))
        kept.chmod(0o600)
        assert as_nobody(ours).startswith("told: Permission denied") and kept.exists()  # not taken for a damaged one


class Deadly(torch.utils.data.Dataset):
    "Its worker is killed, as by a system that is out of memory."
    classes = tuple("abcdefghij")

    def __len__(self): return 70

    def __getitem__(self, i):
        if i == 40 and torch.utils.data.get_worker_info(): os.kill(os.getpid(), 9)
        return SET.x[i], int(SET.y[i])


def test_a_worker_of_an_evaluation_that_dies(tmp_path):
    asked = lambda workers: measure(
        lambda x: x.flatten(1)[:, :10].float(),
        as_source(Deadly()),
        ["brightness"],
        [1],
        "cifar10-c",
        tmp_path / "answers",
        workers=workers,
        batch=8,
        show=False,
    )
    with pytest.raises(RuntimeError, match="DataLoader worker") as error: asked(1)
    assert cli.mendable(error.value) and "ended from outside" in cli.error_message(error.value)
    whole = measure(
        lambda x: x.flatten(1)[:, :10].float(),
        SET,
        ["brightness"],
        [1],
        "cifar10-c",
        workers=0,
        batch=8,
        show=False,
    )
    assert torch.equal(asked(0).correct, whole.correct)  # and the next run goes on
