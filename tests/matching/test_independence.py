"""p-values: uniform for independent models, tiny for a fine-tune, and as scipy and plain permutation have them."""

import math

import disguises
import numpy as np
import pytest
from scipy import stats

from kinbase.errors import KinbaseError
from kinbase.matching.independence import RELATED, combined, layer_test, same_order, spearman
from kinbase.matching.match import independence


def uneven(seed):
    """A random model whose units and channels differ much in size, its gates as its ups: independent, but not plain."""
    model = disguises.llama(seed)
    rng = np.random.default_rng(1000 + seed)
    channels = np.exp(rng.standard_normal(disguises.HIDDEN)).astype(np.float32)
    for layer in range(disguises.LAYERS):
        units = np.exp(rng.standard_normal(disguises.UNITS)).astype(np.float32)[:, None]
        for part in ("gate", "up"):
            model[f"model.layers.{layer}.mlp.{part}_proj.weight"] *= units * channels
    return model


@pytest.mark.parametrize("make", [disguises.llama, uneven])
def test_p_is_uniform_for_independent_models(make):
    values = []
    for seed in range(0, 200, 2):
        values.append(independence(disguises.roles(make(seed)), disguises.roles(make(seed + 1))).p)
    assert (
        stats.kstest(values, "uniform").pvalue > 0.01
    )  # fails one family of seeds in a hundred; these are fixed
    assert min(values) > RELATED / 10


def test_p_is_tiny_for_a_fine_tune_however_it_is_disguised():
    model = disguises.llama(1)
    tuned = disguises.tuned(model, 2, size=0.1)  # as large as the weights themselves
    masked = disguises.disguised(tuned, 3, "units", "heads", "channels", "signs", "up", "gains")
    for other in (tuned, masked):
        assert independence(disguises.roles(model), disguises.roles(other)).p < 1e-6


def test_spearman_is_scipys_and_its_p_that_of_permutations():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.permutation(30), rng.permutation(30)
        log_p, rho = spearman(x, y)
        expected = stats.spearmanr(x, y, alternative="greater")
        assert (rho, math.exp(log_p)) == pytest.approx((expected.statistic, expected.pvalue), abs=1e-12)
    order = np.arange(30)
    permutations = [rng.permutation(30) for _ in range(4000)]
    drawn = np.corrcoef(np.array([order, *permutations]))[0, 1:]
    for at in np.argsort(drawn)[[400, 2000, 3600]]:
        log_p, rho = spearman(order, permutations[at])
        assert rho == pytest.approx(drawn[at], abs=1e-12)
        # The share of 4,000 draws has a standard error of at most 0.008; four of them.
        assert math.exp(log_p) == pytest.approx((drawn >= rho).mean(), abs=0.032)


def test_p_is_never_below_the_share_of_one_matching():
    assert spearman(range(8), range(8)) == same_order(8)
    assert same_order(8)[0] == pytest.approx(-math.log(math.factorial(8)))
    assert same_order(7) is None and spearman([1, 2], [1, 2]) is None


def test_layers_are_combined_as_fisher_does():
    logs = [(math.log(p), 0.1) for p in (0.2, 0.03, 0.5)]
    expected = stats.combine_pvalues([0.2, 0.03, 0.5], method="fisher").pvalue
    assert combined(logs).p == pytest.approx(expected, rel=1e-12)
    assert combined([]).p is None and not combined([]).is_related


def test_units_that_are_zero_in_either_model_say_nothing():
    rng = np.random.default_rng(3)
    gate, up = (rng.standard_normal((40, 40)).astype(np.float32) for _ in range(2))
    whole = layer_test(gate[:30, :30], up[:30, :30])
    for cosines in (gate, up):
        cosines[30:] = 0
        cosines[:, 30:] = 0
    assert layer_test(gate, up) == whole


def test_models_of_other_sizes_have_no_test():
    with pytest.raises(KinbaseError, match="their sizes must agree"):
        independence(disguises.roles(disguises.llama(1)), disguises.roles(disguises.llama(1, 2), groups=2))
