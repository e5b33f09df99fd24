"""Properties that hold for every series, and errors that name what was wrong."""
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from statsmodels.stats.multitest import multipletests

from robustnb.resampling import resample_weights
from robustnb.statistics import (attainable, bootstrap_ci, expected_R, hedges_g, holm, multiple_correlation, p_of_R,
                                 p_of_r, pearson, permutation_p, spearman, strength, theil_sen)

series = arrays(np.float64, st.integers(4, 12), elements=st.integers(0, 20).map(float))


@settings(max_examples=60, deadline=None)
@given(series, st.randoms(use_true_random=False))
def test_spearman_is_scipys_and_sees_only_the_order(y, random):
    x = np.array(random.sample(range(100), len(y)), dtype=float)
    r, p = spearman(x, y)
    if np.ptp(y) == 0:
        assert math.isnan(r) and math.isnan(p)
        return
    reference = stats.spearmanr(x, y)
    assert math.isclose(r, reference.statistic, abs_tol=1e-12)
    if abs(r) < 1 - 1e-9: assert math.isclose(p, reference.pvalue, rel_tol=1e-6)
    assert spearman(x, np.exp(y / 20)) == (r, p) and math.isclose(spearman(-x, y)[0], -r, abs_tol=1e-12)


@settings(max_examples=10, deadline=None)
@given(arrays(np.float64, 5, elements=st.integers(0, 4).map(float)))
def test_exact_p_is_scipys_permutation_test(y):
    if np.ptp(y) == 0: return
    x = np.arange(5.0)
    listed = stats.permutation_test(
        (y,),
        lambda order: abs(stats.spearmanr(x, order).statistic),
        permutation_type="pairings",
        n_resamples=np.inf,
        alternative="greater",
    )
    assert permutation_p(x, y) == (pytest.approx(listed.pvalue), 0.0)


def test_exact_and_drawn_p_agree_where_both_exist():
    generator = np.random.default_rng(3)
    x, y = np.arange(11), generator.normal(size=11) + np.arange(11) / 6
    exact, zero = permutation_p(x, y)
    drawn, error = permutation_p(x, y, exact_to=8, draws=40_000, generator=torch.Generator().manual_seed(0))
    assert zero == 0 and 0 < error and abs(exact - drawn) < 4 * error
    with pytest.raises(ValueError, match="up to 18"): permutation_p(x, y, exact_to=40)


@settings(max_examples=8, deadline=None)  # each call of statsmodels' takes a fifth of a second
@given(st.lists(st.sampled_from(np.linspace(0, 1, 201).tolist()), min_size=1, max_size=30))
def test_holm_is_statsmodels_and_keeps_the_order(p):
    adjusted = holm(p)
    assert np.allclose(adjusted, multipletests(p, method="holm")[1])
    assert (adjusted >= p).all() and (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_one_predictor_is_the_simple_correlation():
    x, y = np.random.default_rng(0).normal(size=(2, 20))
    R, p = multiple_correlation(x[:, None], y)
    r, p_simple = pearson(x, y)
    assert math.isclose(R, abs(r)) and math.isclose(p, p_simple) and math.isclose(p_of_R(R, 20, 1), p_of_r(r, 20))


def test_expected_R_against_simulation():
    generator = np.random.default_rng(1)
    for n, k in ((36, 2), (25, 4), (9, 1)):
        R, _ = multiple_correlation(generator.normal(size=(n, k)), generator.normal(size=(n, 5000)))
        assert abs(R.mean() - expected_R(n, k)) < 4 * R.std() / math.sqrt(5000)


def test_columns_are_series_of_their_own():
    generator = np.random.default_rng(2)
    X, Y = generator.normal(size=(12, 3)), generator.normal(size=(12, 5))
    Y[:, 2] = 0.5
    for together, alone in (
        (spearman(X[:, 0], Y), lambda y: spearman(X[:, 0], y)),
        (multiple_correlation(X, Y), lambda y: multiple_correlation(X, y)),
    ):
        assert np.allclose(together, np.transpose([alone(y) for y in Y.T]), equal_nan=True) and np.isnan(together[0][2])
    assert np.allclose(theil_sen(X[:, 0], Y), [theil_sen(X[:, 0], y) for y in Y.T])


def test_bootstrap_is_repeatable_and_pairs_images():
    generator = torch.Generator()
    a = np.random.default_rng(0).random((4, 300)) < 0.9
    runs = [bootstrap_ci(a, resamples=200, generator=generator.manual_seed(5)) for _ in range(2)]
    assert runs[0] == runs[1]
    # the same images for all seeds: the difference of two equal models never moves
    twins = np.stack([a[0], a[0]])
    assert bootstrap_ci(twins, lambda sample: sample[0].mean() - sample[1].mean(), resamples=50) == (0, 0)


def test_coverage_of_the_bootstrap():
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    weights = resample_weights(200, 400, generator).numpy()
    covered = 0
    for _ in range(300):
        low, high = np.quantile(weights @ (rng.random(200) < 0.8), [0.025, 0.975])
        covered += low <= 0.8 <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_errors_name_what_was_wrong():
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"): spearman([1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(ValueError, match="at least 3"): spearman([1, 2], [1, 2])
    with pytest.raises(ValueError, match="NaN"): spearman([1, 2, 3], [1, math.nan, 3])
    with pytest.raises(ValueError, match="dependent"): multiple_correlation(np.ones((9, 1)), np.arange(9))
    with pytest.raises(ValueError, match="cannot fit"): multiple_correlation(np.eye(4), np.arange(4))
    with pytest.raises(ValueError, match="level=95"): bootstrap_ci([1, 2, 3], level=95)
    with pytest.raises(ValueError, match="empty"): bootstrap_ci([])
    with pytest.raises(ValueError, match="0..1"): holm([0.5, 1.5])
    with pytest.raises(ValueError, match="not a correlation"): strength(1.5)
    with pytest.raises(ValueError, match="at least 2"): hedges_g([1], [2, 3])
    with pytest.raises(ValueError, match="more than"): expected_R(5, 4)


def test_attainable_knows_every_untied_value():
    for n in (4, 5, 6):
        values = {f"{spearman(range(n), order)[0]:.3f}" for order in itertools.permutations(range(n))}
        assert all(attainable(value, n) for value in values)
    assert not attainable("0.950", 5) and not attainable("0.85", 6)
