"""Odd inputs and what must hold for them, shared by the property tests: images and numbers of every kind, and the state that a call leaves alone.

`ROBUSTNB_PROPERTIES` is the number of inputs for each operation (few here, hundreds in `make test-faults`).
"""
import os
import random
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from robustnb.training import Diverged

TRIED = int(os.environ.get("ROBUSTNB_PROPERTIES", 6))
COUNTS = Path(os.environ["ROBUSTNB_FAULTS"]) / "odd" if "ROBUSTNB_FAULTS" in os.environ else None  # a line per input, for the long form


def tried(examples=TRIED):
    "Hypothesis' settings: the same examples each time, no clock, no store of failures."
    return settings(deadline=None, max_examples=examples, derandomize=True, database=None, suppress_health_check=list(HealthCheck), print_blob=False)


ROUND, SURE, SEED = 40, 25, int(os.environ.get("ROBUSTNB_SEED", 0))


def drawn(strategy, check, turns, least=TRIED):
    "Check what is drawn: `least` inputs, the same each time (SURE in the long form); then others by the round, until the share of the time is over."
    first, turn = min(least, SURE) if turns.timed else least, 0
    for turn in turns(1):
        if not turn: tried(first)(given(strategy)(check))()
        else: settings(tried(ROUND), derandomize=False)(seed(10**6 * SEED + turn)(given(strategy)(check)))()
    if first + ROUND * turn < least: turns.short()


def count(kind):
    if COUNTS:
        with open(COUNTS, "a") as file: file.write(kind + "\n")


# --- what a call must leave as it was


def worldly() -> dict:
    "The state that belongs to everybody in this process."
    backends = torch.backends
    return dict(
        torch=torch.random.get_rng_state().numpy().tobytes(), numpy=repr(np.random.get_state()), python=random.getstate(), dtype=torch.get_default_dtype(),
        grad=torch.is_grad_enabled(), inference=torch.is_inference_mode_enabled(), threads=torch.get_num_threads(), deterministic=torch.are_deterministic_algorithms_enabled(),
        cudnn=(backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic, backends.cudnn.allow_tf32), matmul=torch.get_float32_matmul_precision(),
        anomaly=torch.is_anomaly_enabled(), autocast=torch.is_autocast_enabled("cpu"), filters=list(warnings.filters), folder=os.getcwd(), environment=dict(os.environ), errors=np.geterr())


def print_of(tensor) -> tuple:
    "All that a caller can see of a tensor or array, without its meaning."
    if isinstance(tensor, np.ndarray): return tensor.tobytes(), tensor.shape, tensor.dtype
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return content, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad, tensor.is_leaf, tensor.grad is None


def print_of_model(model) -> list:
    state = [(name, print_of(value)) for name, value in (*model.named_parameters(), *model.named_buffers())]
    return [state, [(name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()]]


def own(error: Exception) -> bool:
    "Whether an error is one that this package raises with a sentence, not one that fell out of a library below it."
    last = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, (ValueError, TypeError, Diverged)) and "/robustnb/" in last.filename and len(str(error)) > 10


def attempt(call):
    "The result, or the package's own error; every other error goes through."
    try: return call(), None
    except Exception as error:
        if not own(error): raise
        return None, error


# --- images

DTYPES = {"float32": torch.float32, "uint8": torch.uint8, "float64": torch.float64, "float16": torch.float16}
CONTENTS = ("noise", "noise", "photo", "black", "white", "edge", "nan", "inf", "beyond", "tiny")
LAYOUTS = ("plain", "channels_last", "strided", "turned", "expanded", "offset", "inference", "within", "grad", "readonly")
SIDES = (1, 2, 3, 5, 8, 17, 32)


@dataclass(frozen=True)
class Odd:
    "A batch of images: as drawn, and the same values in a plain tensor."
    x: torch.Tensor  # as the operation gets it
    plain: torch.Tensor  # contiguous, alone in its memory
    content: str
    layout: str

    @property
    def sound(self) -> bool: return self.content not in ("nan", "inf", "beyond")

    def __repr__(self): return f"Odd({self.content}, {self.layout}, {self.x.dtype}, {tuple(self.x.shape)})"


def filled(content, shape, dtype, seed):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    if content == "photo": x = torch.linspace(0, 1, shape[-1]).expand(shape).contiguous()
    if content in ("black", "white"): x = torch.full(shape, float(content == "white"))
    if content == "edge": x = (x > 0.5).float()
    if content == "tiny": x = x * 1e-38
    if dtype == torch.uint8: return (x * 255).round().to(torch.uint8)
    x = x.to(dtype)
    if x.numel() and content in ("nan", "inf", "beyond"): x.view(-1)[len(x.view(-1)) // 2] = {"nan": float("nan"), "inf": float("inf"), "beyond": 1.5}[content]
    return x


def laid_out(plain, layout):
    "The same values in another arrangement."
    if layout == "channels_last": return plain.clone(memory_format=torch.channels_last)
    if layout == "strided":
        wide = torch.zeros(*plain.shape[:-1], plain.shape[-1] * 2, dtype=plain.dtype)
        wide[..., ::2] = plain
        return wide[..., ::2]
    if layout == "turned": return plain.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "offset": return torch.cat([plain[:1], plain])[1:] if len(plain) else plain.clone()
    if layout in ("inference", "within"):
        with torch.inference_mode(): return plain.clone()
    if layout == "grad" and plain.is_floating_point(): return plain.clone().requires_grad_()
    if layout == "expanded" and len(plain): return plain[:1].clone().expand(plain.shape)
    if layout == "readonly":
        array = plain.numpy().copy()
        array.setflags(write=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.from_numpy(array)
    return plain.clone()


@st.composite
def batches(draw, channels=(1, 3), dtypes=tuple(DTYPES), sides=SIDES, contents=CONTENTS, sizes=(0, 1, 2, 5)):
    "A batch of odd images."
    content, layout, dtype = draw(st.sampled_from(contents)), draw(st.sampled_from(LAYOUTS)), DTYPES[draw(st.sampled_from(dtypes))]
    if dtype == torch.uint8 and content in ("nan", "inf", "beyond", "tiny"): content = "noise"
    shape = draw(st.sampled_from(sizes)), draw(st.sampled_from(channels)), draw(st.sampled_from(sides)), draw(st.sampled_from(sides))
    if not shape[0] and content in ("nan", "inf", "beyond"): content = "noise"
    plain = filled(content, shape, dtype, draw(st.integers(0, 3)))
    if layout == "expanded": plain = filled(content, (min(1, shape[0]), *shape[1:]), dtype, 0).repeat(max(1, shape[0]), 1, 1, 1)[:shape[0]]  # all alike
    return Odd(laid_out(plain, layout), plain, content, layout)


# --- numbers: each kind is drawn for a size (N rows, K columns), sound or not


def arrays(draw, x, foreign):
    "A sound array, handed over as callers do; with `foreign` also as NumPy's."
    form = draw(st.sampled_from(["tensor", "tensor", "wide", "turned", "grad", "inference", *["numpy", "readonly"] * foreign]))
    if form == "numpy": return x.numpy().copy()
    if form == "readonly":
        found = x.numpy().copy()
        found.setflags(write=False)
        return found
    if form == "wide": return x.double() if x.is_floating_point() else x.clone()
    if form == "turned" and x.ndim == 2: return x.T.contiguous().T
    if form == "grad" and x.is_floating_point(): return x.clone().requires_grad_()
    if form == "inference":
        with torch.inference_mode(): return x.clone()
    return x.clone()


def spoiled(draw, x, kinds=("nan", "inf", "empty", "flat", "deep", "short")):
    "An array as no caller should hand it over."
    kind, x = draw(st.sampled_from(kinds)), x.clone()
    if kind == "empty": return x[:0]
    if kind == "flat": return x.reshape(-1)[0]
    if kind == "deep": return x[None].repeat(2, *[1] * x.ndim)
    if kind == "short": return x[1:]
    if kind == "half": return x + 0.5
    if not x.is_floating_point(): return x - 100
    x.view(-1)[0] = {"nan": float("nan"), "inf": float("inf"), "below": -0.5, "above": 1.5}[kind]
    return x


def uniform(draw, *shape): return torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 5))))


KINDS = {  # name -> sound value of size (n, k), ways to spoil it
    "probs": (lambda draw, n, k: (4 * uniform(draw, n, k)).softmax(1), ("nan", "inf", "empty", "flat", "deep", "below", "above")),
    "logits": (lambda draw, n, k: 8 * uniform(draw, n, k) - 4, ("nan", "inf", "flat", "deep", "short")),
    "labels": (lambda draw, n, k: (uniform(draw, n) * k).long(), ("flat", "deep", "short", "below", "half")),
    "confidence": (lambda draw, n, k: draw(st.sampled_from([lambda u: u, torch.round, torch.ones_like]))(uniform(draw, n)), ("nan", "empty", "flat", "deep", "short")),
    "correct": (lambda draw, n, k: uniform(draw, n) < draw(st.sampled_from([0.5, 0.0, 1.0])), ("empty", "flat", "deep", "short")),
    "series": (lambda draw, n, k: draw(st.sampled_from([lambda u: u, lambda u: u.round(), lambda u: 1e6 * u - 3]))(uniform(draw, max(4, n))).double(), ("nan", "inf", "empty", "flat", "short")),
    "table": (lambda draw, n, k: uniform(draw, n + k + 3, k).double(), ("nan", "inf", "empty", "flat")),
    "long series": (lambda draw, n, k: uniform(draw, n + k + 3).double(), ("nan", "inf", "empty", "flat", "short")),
    "p-values": (lambda draw, n, k: uniform(draw, n).double(), ("inf", "flat", "deep", "below", "above")),
    "maps": (lambda draw, n, k: uniform(draw, n, 4, k + 1), ("nan", "flat", "deep", "short")),
    "sets": (lambda draw, n, k: uniform(draw, n, k) < 0.5, ("empty", "flat", "short")),
    "embeddings": (lambda draw, n, k: uniform(draw, n, k + 1) - 0.5, ("empty", "flat", "deep", "short")),
}
NUMBERS = {  # name -> sound values, others
    "share": ([0.5, 0.05, 0.95], [0.0, 1.0, -1.0, 2.0, float("nan"), float("inf")]),
    "part": ([0.5, 0.05, 1.0], [0.0, -1.0, 2.0, float("nan"), float("inf")]),
    "threshold": ([0.5, 0.0, 1.0, float("inf")], [float("nan")]),
    "bins": ([1, 15, 4], [0, -3]),
    "few": ([1, 8], [0, -1]),
    "temperature": ([0.1, 1.0, 5.0], [0.0, -1.0, float("nan"), float("inf")]),
    "correlation": ([0.0, 0.5, -1.0, 1.0], [1.5, float("inf")]),
    "points": ([3, 4, 12], [0, 2, -1]),
    "printed": (["0.73", "-0.730", "1.00"], ["", "x", "nan", "inf", "1e999"]),
}


@st.composite
def arguments(draw, kinds, foreign=()):  # name of the argument -> kind; those that may be NumPy's
    "Arguments of a call, and whether all are sound; at most one is not."
    n, k = draw(st.sampled_from([1, 2, 7, 30])), draw(st.sampled_from([1, 2, 4]))
    bad, given = draw(st.sampled_from([None, None, *kinds])), {}
    for name, kind in kinds.items():
        if kind in NUMBERS: given[name] = draw(st.sampled_from(NUMBERS[kind][name == bad]))
        else:
            value = KINDS[kind][0](draw, n, k)
            given[name] = spoiled(draw, value, KINDS[kind][1]) if name == bad else arrays(draw, value, name in foreign)
    return given, bad is None
