"""The signal beyond depth, against counts of known rates, plain regressions and closed forms."""

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import poisson

from sagefm._depth import (
    MIN_COUNTS,
    N_COLUMNS,
    DepthSpline,
    attainable,
    attainable_by_fold,
    noise_of,
    pearson_beyond_depth,
)

REAL = ["her2st_A1", "CRC_16", "lung_healthy", "synovium_RA4_s1"]


def expected_log1p(rates):
    """Mean of log1p of a Poisson count, summed term by term for some rates and interpolated."""
    grid = np.geomspace(1e-4, max(rates.max(), 1), 300)
    n = np.arange(int(grid[-1] + 12 * np.sqrt(grid[-1]) + 20))
    return np.interp(rates, grid, poisson.pmf(n, grid[:, None]) @ np.log1p(n))


def residuals(values, basis):
    """What a plain regression leaves, of the spots that count."""
    kept = basis.any(axis=1)
    return values[kept] - basis[kept] @ np.linalg.lstsq(basis[kept], values[kept], rcond=None)[0]


def correlate(x, y):
    """Pearson r of columns of mean 0."""
    return (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))


@pytest.fixture(scope="module")
def planted():
    """Genes of known rates on 20,000 spots: log1p counts, and the best prediction of them there is."""
    rng = np.random.default_rng(0)
    depth = np.exp(rng.normal(7, 0.6, 20_000))
    signal = np.exp(rng.normal(0, 1, (len(depth), 60)) * rng.uniform(0, 1, 60))
    rates = depth[:, None] * np.exp(rng.uniform(-8, -5, 60)) * signal
    return np.log1p(rng.poisson(rates)), expected_log1p(rates), depth


def test_the_partial_correlation_is_that_of_a_plain_regression(planted):
    truth, best, depth = planted
    basis = DepthSpline(depth)(depth)
    found = pearson_beyond_depth(best, truth, basis)
    np.testing.assert_allclose(found, correlate(residuals(best, basis), residuals(truth, basis)), atol=1e-8)
    quadratic = np.vander(np.log(depth), 3)
    assert np.abs(found - correlate(residuals(best, quadratic), residuals(truth, quadratic))).max() < 0.05


def test_a_perfect_predictor_reaches_what_is_attainable(planted):
    truth, best, depth = planted
    basis = DepthSpline(depth)(depth)
    found = attainable(sparse.csr_matrix(truth), basis)
    np.testing.assert_allclose(found.detection, (truth > 0).mean(axis=0))
    for r, reached in (
        (found.r, correlate(best - best.mean(0), truth - truth.mean(0))),
        (found.r_beyond_depth, pearson_beyond_depth(best, truth, basis)),
    ):
        high = reached > 0.3
        assert high.sum() > 20
        error = (r - reached)[high]
        assert abs(error.mean()) < 0.003
        assert np.quantile(np.abs(error), 0.9) < 0.02  # what is left is the chance of 20,000 spots
    assert found.significant[found.r_beyond_depth > 0.3].all()


def test_attainable_is_what_splitting_the_counts_says(planted):
    """Two halves of a count, drawn by a coin, correlate by rho; the whole counts by sqrt(2 rho / (1 + rho))."""
    truth, _, depth = planted
    basis, rng = DepthSpline(depth)(depth), np.random.default_rng(1)
    counts = np.rint(np.expm1(truth)).astype(int)
    half = rng.binomial(counts, 0.5)
    rho = correlate(*(residuals(np.log1p(part), basis) for part in (half, counts - half)))
    split = np.sqrt(2 * rho.clip(0) / (1 + rho.clip(0)))
    found = attainable(sparse.csr_matrix(truth), basis).r_beyond_depth
    assert np.abs(split - found)[found > 0.3].max() < 0.06
    assert (split - found)[found > 0.3].mean() > 0.01  # the formula is of counts, not of their logarithms


def test_the_noise_of_a_count_has_no_bias():
    means = np.geomspace(0.01, 3_000, 60)
    for mean in means:
        n = np.arange(poisson.ppf(1 - 1e-12, mean) + 2)
        chance = poisson.pmf(n, mean)
        variance = chance @ np.log1p(n) ** 2 - (chance @ np.log1p(n)) ** 2
        assert chance @ noise_of(np.log1p(n)) == pytest.approx(variance, rel=5e-3)


def test_nothing_is_attainable_where_depth_is_all_there_is():
    rng = np.random.default_rng(2)
    depth = np.exp(rng.normal(6, 1, 3_000))
    truth = np.log1p(rng.poisson(depth[:, None] * np.geomspace(1e-4, 1e-2, 400)))
    found = attainable_by_fold(sparse.csr_matrix(truth), np.arange(400) % 4)
    assert (found.r > 0.1).mean() > 0.8
    assert abs(np.nanmean(np.sign(found.r_beyond_depth))) < 0.15
    assert found.significant.mean() < 0.05
    assert np.isnan(found.share(np.ones(400)))[~found.significant].all()


@pytest.mark.parametrize("name", REAL)
def test_depth_alone_knows_nothing_beyond_depth(section, name):
    """On counts that follow a real depth map, near-empty spots among them."""
    counts = section(name).X
    depth, share = np.asarray(counts.sum(axis=1)).ravel(), np.asarray(counts.sum(axis=0)).ravel() / counts.sum()
    rng = np.random.default_rng(3)
    genes = np.sort(np.argsort(-share)[:1_000])
    truth = np.log1p(rng.poisson(depth[:, None] * share[genes]))
    for alone in (np.log1p(depth), depth, depth.clip(0.2 * depth.mean(), 5 * depth.mean())):
        prediction = np.repeat(alone[:, None], len(genes), axis=1)
        r = pearson_beyond_depth(prediction, truth, DepthSpline(depth)(depth))
        seen = (truth > 0).mean(axis=0) > 0.3
        assert abs(np.nanmean(r[seen])) < 0.02


def test_shallow_spots_are_left_out_and_rows_add_up_to_one():
    depth = np.array([0, 3, 9, 10, 50, 200, 1_000, 5_000.0])
    basis = DepthSpline(depth)(depth)
    assert basis.shape == (8, N_COLUMNS)
    np.testing.assert_allclose(basis.sum(axis=1), depth >= MIN_COUNTS)


@pytest.mark.parametrize("depth", [np.full(50, 200.0), np.full(50, 3.0), np.repeat([100.0, 300.0], 25), np.zeros(0)])
def test_sections_of_few_depths(depth):
    """One depth for all, none that counts, two of them, no spot at all."""
    rng = np.random.default_rng(4)
    basis = DepthSpline(depth)(depth)
    truth = rng.poisson(3, (len(depth), 4)).astype(float)
    noisy = truth + rng.normal(size=truth.shape)
    found = pearson_beyond_depth(noisy, truth, basis)
    if not basis.any():
        assert np.isnan(found).all()
        return
    groups = [part - part.mean(0) for part in (np.array_split(noisy, 2) if np.ptp(depth) else [noisy])]
    truths = [part - part.mean(0) for part in (np.array_split(truth, 2) if np.ptp(depth) else [truth])]
    np.testing.assert_allclose(found, correlate(np.concatenate(groups), np.concatenate(truths)), atol=1e-8)


def test_constant_genes_and_predictions():
    rng = np.random.default_rng(5)
    depth = np.exp(rng.normal(6, 1, 500))
    basis = DepthSpline(depth)(depth)
    truth = np.log1p(rng.poisson(2, (500, 3))).astype(float)
    truth[:, 1] = 0
    constant = np.full_like(truth, 0.7)
    assert pearson_beyond_depth(constant, truth, basis)[[0, 2]].tolist() == [0, 0]
    assert np.isnan(pearson_beyond_depth(truth, truth, basis)[1])
    found = attainable(sparse.csr_matrix(truth), basis)
    assert np.isnan(found.r_beyond_depth[1])
    assert not found.significant[1]


def test_twice_the_spots_say_the_same():
    rng = np.random.default_rng(6)
    depth = np.exp(rng.normal(6, 1, 2_000))
    truth = np.log1p(rng.poisson(depth[:, None] * rng.gamma(2, 0.001, (2_000, 5))))
    prediction = truth + rng.normal(size=truth.shape)
    once, twice = (
        (pearson_beyond_depth(np.tile(prediction, (n, 1)), np.tile(truth, (n, 1)), np.tile(b, (n, 1))), b)
        for n, b in ((1, DepthSpline(depth)(depth)), (2, DepthSpline(np.tile(depth, 2))(depth)))
    )
    np.testing.assert_allclose(once[0], twice[0], atol=1e-6)


@pytest.mark.parametrize("scale", [0.02, 1, 50])
def test_deep_and_shallow_sections_attain_what_their_depth_allows(scale):
    """The same tissue, sequenced less or more."""
    rng = np.random.default_rng(7)
    depth = np.exp(rng.normal(7, 0.5, 5_000)) * scale
    rates = depth[:, None] * np.exp(rng.normal(0, 0.5, (5_000, 40))) * 1e-3
    truth, best = np.log1p(rng.poisson(rates)), expected_log1p(rates)
    basis = DepthSpline(depth)(depth)
    found = attainable(sparse.csr_matrix(truth), basis).r_beyond_depth
    # Squared, as chance is even around a variance and not around its root.
    squared = (np.sign(found) * found**2).mean()
    assert squared == pytest.approx((pearson_beyond_depth(best, truth, basis) ** 2).mean(), abs=0.01)
