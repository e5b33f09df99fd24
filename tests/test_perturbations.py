"""Exact distances: properties over random cases, and all levels of ten thousand images."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from robustnb.images import sample
from robustnb.perturbations import at_distance, gaussian_at_distance, move, normal_direction, perturb, scale_to

@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 0.99), walls=st.sampled_from(["digit", "uniform", "black"]),
       direction=st.sampled_from(["normal", "sign", "sparse", "steep"]))
def test_distance_is_what_was_asked(seed, share, walls, direction):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 1, 6, 6, generator=generator)
    x = {"digit": x * (x > 0.7), "uniform": x, "black": 0 * x}[walls]
    d = torch.randn(x.shape, generator=generator)
    d = {
        "normal": d,
        "sign": d.sign(),
        "sparse": d * (d.abs() > 1),
        "steep": d * 10.0 ** torch.linspace(-6, 6, 36).view(6, 6),
    }[direction]
    reach = torch.where(d > 0, 1 - x, torch.where(d < 0, x, 0)).flatten(1).double().norm(dim=1)
    moved = at_distance(x, d, float(share * reach.min()))
    torch.testing.assert_close(
        (moved - x).flatten(1).double().norm(dim=1), (share * reach.min()).expand(3), atol=2e-6, rtol=0
    )
    assert 0 <= moved.min() and moved.max() <= 1
    assert ((moved - x) * d >= 0).all()  # no pixel moves against its direction
    with pytest.raises(ValueError, match="out of reach"): at_distance(x, d, float(reach.max()) + 0.01)


def test_levels_are_points_of_one_ray():
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    d, levels = normal_direction(x, torch.Generator().manual_seed(1)), [0.0, 0.5, 1.0, 3.0]
    scales = scale_to(x, d, levels)
    assert (scales.diff(dim=0) > 0).all() and (scales[0] == 0).all()
    assert torch.stack([move(x, d, scale) for scale in scales]).equal(at_distance(x, d, levels))
    out = torch.empty(4, *x.shape)
    assert at_distance(x, d, levels, out=out) is out and out.equal(at_distance(x, d, levels))


def test_more_images_than_a_chunk_and_other_memory_layouts():
    x = torch.rand(300, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    d = normal_direction(x, torch.Generator().manual_seed(1))
    whole = at_distance(x, d, 1.5)
    torch.testing.assert_close(whole, torch.cat([at_distance(a, b, 1.5) for a, b in zip(x.split(37), d.split(37))]))
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert at_distance(strided, d, 1.5).equal(whole)


def test_draws_leave_the_global_generator_alone():
    x, state = torch.rand(4, 3, 32, 32), torch.random.get_rng_state()
    for which in (1, 2, 3): perturb(x, which, torch.Generator().manual_seed(0))
    gaussian_at_distance(x, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.random.get_rng_state())


def test_ten_thousand_digits_at_24_levels_are_exact():
    x, levels = sample("mnist", "test").float().repeat(10, 1, 1, 1), [i / 2 for i in range(1, 25)]
    moved = gaussian_at_distance(x, levels, torch.Generator().manual_seed(0))
    assert moved.shape == (24, 10_000, 1, 28, 28)
    for level, z in zip(levels, moved): assert ((z - x).flatten(1).double().norm(dim=1) - level).abs().max() <= 1e-4
