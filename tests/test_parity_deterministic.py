"""Corruptions without draws give the published generators' bytes (tests/reference/deterministic.json says how made).

Off by one in at most 0.5% of the samples of a corruption, severity and benchmark, and never by more. The reference holds
256 or 512 pixels of each of 8 images, a third of them near the border, and the sum of each channel of the whole image,
which finds what lies between those pixels.
"""
from pathlib import Path

import numpy as np
import pytest
import torch

from robustnb import blur
from robustnb.corruptions import CORRUPTIONS, EXTRA, corrupt
from reference.pictures import SIZES, images

HERE = Path(__file__).parent / "reference"
DETERMINISTIC = (
    "defocus_blur", "zoom_blur", "gaussian_blur", "brightness", "contrast", "pixelate", "saturate", "jpeg_compression",
)
ALLOWED = 0.005  # share of samples that may be off by one


@pytest.fixture(scope="module")
def reference():
    torch.set_num_threads(1)
    with np.load(HERE / "deterministic.npz") as file:
        return {key: torch.from_numpy(file[key].astype(np.int64)) for key in file.files}


def compare(out: torch.Tensor, reference: dict, benchmark: str, name: str, severity: int) -> tuple[float, int, float]:
    "Share of differing samples, largest difference, mean shift of the channels' means in grey levels."
    flat = out.flatten(2).long()
    theirs = reference[f"{benchmark}/{name}/pixels"][severity - 1]
    gap = (flat[:, :, reference[f"{benchmark}/at"]].mT - theirs).abs()
    shift = (flat.sum(2) - reference[f"{benchmark}/{name}/sums"][severity - 1]).abs() / flat.shape[2]
    return float((gap > 0).float().mean()), int(gap.max()), float(shift.mean())


@pytest.mark.parametrize("benchmark", SIZES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_same_bytes(name, benchmark, reference):
    pictures = images(benchmark)
    for severity in (1, 2, 3, 4, 5):
        out = corrupt(pictures, name, severity, benchmark)
        assert out.dtype == torch.uint8 and out.shape == pictures.shape
        share, worst, shift = compare(out, reference, benchmark, name, severity)
        assert worst <= 1, f"severity {severity}: off by {worst} grey levels"
        assert share <= ALLOWED, f"severity {severity}: {share:.2%} of the samples differ"
        assert shift <= ALLOWED, f"severity {severity}: the channels' means are off by {shift:.4f} grey levels"


def test_every_corruption_has_a_parity_test():
    from test_parity_stochastic import STOCHASTIC
    assert sorted(DETERMINISTIC + STOCHASTIC) == sorted(CORRUPTIONS + EXTRA)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_comparison_sees_a_wrong_severity(name, reference):
    for severity in (1, 2, 3, 4):
        out = corrupt(images("cifar10-c"), name, severity, "cifar10-c")
        share, _, _ = compare(out, reference, "cifar10-c", name, severity + 1)
        assert share > 10 * ALLOWED


def test_the_comparison_sees_rounding(reference):
    "Rounding to bytes instead of truncating shifts the means by half a level."
    x = images("cifar10-c")
    floats = corrupt(x / 255, "contrast", 3, "cifar10-c")
    _, _, shift = compare((floats * 255).round().to(torch.uint8), reference, "cifar10-c", "contrast", 3)
    assert shift > 0.4


def test_zoom_factors_keep_their_rounding_errors(reference, monkeypatch):
    "At factor 1.25 the enlarged side of a 32-pixel image is 32.5; the error in arange's last factor rounds it up."
    plain = blur.centre_zoom
    monkeypatch.setattr(blur, "centre_zoom", lambda x, factor: plain(x, round(factor, 9)))
    out = corrupt(images("cifar10-c"), "zoom_blur", 5, "cifar10-c")
    share, worst, _ = compare(out, reference, "cifar10-c", "zoom_blur", 5)
    assert share > 0.1 and worst > 1
