"""The blurs with draws, with the draw held fixed (in distribution they are compared in test_parity_stochastic.py).

Motion blur: ImageMagick's own output at 16 directions, motion_blur's and snow's (tests/reference/motion.npz: 128 pixels
of one image a direction, for each benchmark and severity). Glass blur: the published order of copies, pixel by pixel.
"""
from pathlib import Path

import numpy as np
import pytest
import torch

from robustnb.blur import glass_blur, glass_source, motion_blur, one_sided_motion
from robustnb.corruptions import parameters
from robustnb.digital import elastic_transform
from reference.pictures import SIZES, images

HERE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def reference():
    torch.set_num_threads(1)
    with np.load(HERE / "motion.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("benchmark", SIZES)
def test_motion_is_imagemagick(benchmark, by_index, reference):
    angles = reference["angles"]
    x = images(benchmark)[torch.arange(len(angles)) % 8].float() / 255
    if by_index:  # images that want a gradient go the plain way
        if benchmark == "imagenet-c":
            pytest.skip("the plain way is slow at 224; the smaller sizes show that both ways agree")
        x.requires_grad_()
    for severity in (1, 2, 3, 4, 5):
        radius, sigma = parameters("motion_blur", severity, benchmark)
        out = (one_sided_motion(x, radius, sigma, angles).detach() * 255).to(torch.uint8)
        theirs = reference[f"{benchmark}/pixels"][severity - 1]
        gap = (out.flatten(2)[:, :, reference[f"{benchmark}/at"].long()].mT.int() - theirs.int()).abs()
        assert gap.max() <= 1 and (gap > 0).float().mean() <= 1e-3, f"severity {severity}"


def test_motion_test_sees_a_wrong_direction(reference):
    x = images("cifar10-c")[torch.arange(16) % 8].float() / 255
    out = (one_sided_motion(x, 6, 2.0, -reference["angles"]) * 255).to(torch.uint8)
    gap = out.flatten(2)[:, :, reference["cifar10-c/at"].long()].mT.int() - reference["cifar10-c/pixels"][2].int()
    assert (gap != 0).float().mean() > 0.3


@pytest.mark.parametrize("benchmark", ["cifar10-c", "tiny-imagenet-c", "imagenet-c"])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_glass_copies_in_the_published_order(benchmark, severity):
    _, d, iterations = (int(v) for v in parameters("glass_blur", severity, benchmark))
    h, w = 32, 29
    choice = torch.randint(
        0,
        4 * d * d,
        (2, iterations, (h - 2 * d) * (w - 2 * d)),
        generator=torch.Generator().manual_seed(severity),
    )
    ours = glass_source(choice, h, w, d).numpy()
    for source, rounds in zip(ours, choice.numpy()):
        image = np.arange(h * w).reshape(h, w)
        for moves in rounds.reshape(iterations, h - 2 * d, w - 2 * d):
            for i in range(h - d, d, -1):
                for j in range(w - d, d, -1):
                    down, right = divmod(int(moves[i - d - 1, j - d - 1]), 2 * d)
                    image[i, j] = image[i + down - d, j + right - d]
        assert np.array_equal(source, image.ravel())


@pytest.mark.parametrize("call", [
    lambda x, g: motion_blur(x, 6, 2.0, g), lambda x, g: glass_blur(x, 0.4, 2, 2, g),
    lambda x, g: elastic_transform(x, 3.2, 1.28, 1.6, g),
], ids=["motion", "glass", "elastic"])
def test_a_draw_does_not_depend_on_the_neighbours(call):
    "Neither on the images that follow nor on what the others show."
    x = images("cifar10-c").float() / 255
    y = call(x, torch.Generator().manual_seed(5))
    assert torch.allclose(call(x[:3], torch.Generator().manual_seed(5)), y[:3], atol=1e-6)
    other = torch.cat([x[:4].flip(-1), x[4:]])
    assert torch.allclose(call(other, torch.Generator().manual_seed(5))[4:], y[4:], atol=1e-6)
    assert not torch.allclose(call(x[:1].expand(2, -1, -1, -1), torch.Generator().manual_seed(5))[0], y[1], atol=1e-3)
    twins = call(x[:1].expand(2, -1, -1, -1), torch.Generator().manual_seed(5))
    assert not torch.equal(twins[0], twins[1])
    before = torch.random.get_rng_state()
    call(x, torch.Generator().manual_seed(5))
    assert torch.equal(torch.random.get_rng_state(), before)
