"""Random corruptions agree in distribution with the published generators (tests/reference/README.md says how).

Every corruption x severity x benchmark runs at the benchmark's own image size. Larger images cost more, so by default
CIFAR-10-C is compared on 4 images, Tiny-ImageNet-C on 2 and ImageNet-C on 1 (another one at each severity), that one with
half the draws; ROBUSTNB_PARITY=full compares all 8 with all draws.
"""
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from robustnb.corruptions import corrupt
from robustnb.weather import frost_source
from reference.measure import NAMES, statistics
from reference.pictures import SIZES, images

HERE = Path(__file__).parent / "reference"
STOCHASTIC = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur",
    "snow", "frost", "fog", "spatter", "elastic_transform",
)
DRAWS, REFERENCE_DRAWS = 60, 200
FULL = os.environ.get("ROBUSTNB_PARITY") == "full"
IMAGES = {"cifar10-c": 4, "tiny-imagenet-c": 2, "imagenet-c": 1}
SHORT = {"imagenet-c": 30}  # draws, where not all are made
SHARES: dict[tuple[str, str], tuple[int, int]] = {}  # filled by the comparisons: values above 3.5, values


@pytest.fixture(scope="module")
def reference():
    with np.load(HERE / "stochastic.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def z_scores(ours: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    "How far our mean lies from the generator's, in standard errors; ours [n,21]."
    spread = std**2 / REFERENCE_DRAWS + ours.var(0) / len(ours) + 1e-6
    return (ours.mean(0) - mean).abs() / spread.sqrt()


@pytest.mark.parametrize("benchmark", SIZES)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_equal_in_distribution(name, benchmark, reference):
    torch.set_num_threads(1)
    pictures = images(benchmark)
    key = f"{benchmark}/{name}" + ("/grown" if name == "frost" and frost_source() == "procedural" else "")
    draws = DRAWS if FULL else SHORT.get(benchmark, DRAWS)
    scores, worst = [], (0.0, "")
    for severity in (1, 2, 3, 4, 5):
        chosen = range(8) if FULL else [(severity - 1 + k * 3) % 8 for k in range(IMAGES[benchmark])]
        for i in chosen:
            generator = torch.Generator().manual_seed(1000 * severity + i)
            out = corrupt(pictures[i].expand(draws, -1, -1, -1), name, severity, benchmark, generator)
            ours = torch.cat([statistics(part, pictures[i]) for part in out.split(10)])
            z = z_scores(ours, reference[key + "/mean"][severity - 1, i], reference[key + "/std"][severity - 1, i])
            scores.append(z)
            worst = max(worst, (float(z.max()), f"severity {severity}, image {i}, {NAMES[int(z.argmax())]}"))
    z = torch.stack(scores)
    assert worst[0] <= 6, f"z = {worst[0]:.1f} at {worst[1]}"
    SHARES[name, benchmark] = (int((z > 3.5).sum()), z.numel())


def test_share_above():
    "At most one percent of all values above 3.5; run last, as the 21 values of an image move together."
    if len(SHARES) < len(STOCHASTIC) * len(SIZES): pytest.skip("only some of the comparisons were run")
    above, total = (sum(part) for part in zip(*SHARES.values()))
    assert total >= 21 * 5 * len(STOCHASTIC) * sum(IMAGES.values())
    assert above <= 0.01 * total, f"{above} of {total} above 3.5: {({key: n for key, (n, _) in SHARES.items() if n})}"


def test_the_measure_sees_a_wrong_constant(reference):
    "The neighbouring severity, rounding for truncation, and another benchmark's constants are all told apart."
    picture = images("cifar10-c")[0]
    mean, std = (reference[f"cifar10-c/gaussian_noise/{part}"][2, 0] for part in ("mean", "std"))
    draws = picture.expand(DRAWS, -1, -1, -1)
    for severity, benchmark in ((2, "cifar10-c"), (4, "cifar10-c"), (3, "imagenet-c")):
        out = corrupt(draws, "gaussian_noise", severity, benchmark, torch.Generator().manual_seed(0))
        assert z_scores(statistics(out, picture), mean, std).max() > 6
    mean, std = (reference[f"cifar10-c/gaussian_noise/{part}"][0, 0] for part in ("mean", "std"))
    floats = corrupt(draws / 255, "gaussian_noise", 1, "cifar10-c", torch.Generator().manual_seed(0))
    assert z_scores(statistics((floats * 255).round().to(torch.uint8), picture), mean, std).max() > 6
    assert z_scores(statistics((floats * 255).to(torch.uint8), picture), mean, std).max() < 6


def test_channels_are_drawn_apart(reference):
    "Noise shared between channels, a fault of some reimplementations, shows at once."
    picture = images("cifar10-c")[0]
    mean, std = (reference[f"cifar10-c/gaussian_noise/{part}"][2, 0] for part in ("mean", "std"))
    noise = torch.randn(DRAWS, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.08
    out = ((picture / 255 + noise).clamp(0, 1) * 255).to(torch.uint8)
    z = z_scores(statistics(out, picture), mean, std)
    assert z[NAMES.index("corr_rg")] > 6
