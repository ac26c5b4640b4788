"""Merges of known coefficients give them back: the arithmetic of recipes, without a database."""

import numpy as np
import pytest
from gram_families import NAMES, Family, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from kinbase.provenance.recipes import by_depth, rounding
from kinbase.provenance.recipes.least_squares import Normal, find_parents, nonnegative, solve
from kinbase.provenance.recipes.verdict import COPY, MERGE, NONE, SELECTED, TRAINED, UNDECIDABLE, judge


@pytest.fixture(scope="module")
def bf16():
    return Family()


@pytest.fixture(scope="module")
def f32():
    return Family("F32", seed=1)


def coefficients(finding):
    return {int(p.parent): p.coefficient for p in finding.parents}


# Least squares on Gram matrices.


@given(st.integers(0, 10_000), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_nonnegative_least_squares_is_scipys(seed, size):
    from scipy.optimize import nnls

    rng = np.random.default_rng(seed)
    columns, target = rng.standard_normal((30, size)), rng.standard_normal(30)
    expected, _ = nnls(columns, target)
    got = nonnegative(columns.T @ columns, columns.T @ target)
    # Normal equations square the condition number, here below 1e2: 1e-12 at worst.
    assert np.allclose(got, expected, atol=1e-10)


def test_least_squares_ends_at_the_noise_and_after_enough_columns():
    """Two of 300 columns and noise of 0.01 an element: the other columns gain what chance gives them, 1e-4 each."""
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((2000, 300))
    target = columns[:, 3] + 0.5 * columns[:, 7] + 0.01 * rng.standard_normal(2000)
    gram, cross = columns.T @ columns, columns.T @ target
    assert np.count_nonzero(nonnegative(gram, cross)) > 100
    # The largest of 300 chances is within six standard errors; a parent gains thousands.
    assert set(np.flatnonzero(nonnegative(gram, cross, enough=36e-4))) == {3, 7}
    assert np.count_nonzero(nonnegative(gram, cross, most=20)) == 20


def test_columns_without_length_get_nothing():
    gram = np.diag([4.0, 0.0, 1.0])
    assert np.allclose(solve(gram, np.array([2.0, 0.0, 3.0])), [0.5, 0, 3])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_rounding_is_torchs(dtype):
    values = np.random.default_rng(0).standard_normal(2000)
    assert np.array_equal(rounding.to_dtype(values, dtype), stored(values, dtype))


# Verdicts.


@pytest.mark.parametrize(
    "shares",
    [{0: 0.6, 3: 0.4}, {1: 0.5, 2: 0.5}, {0: 0.5, 1: 0.3, 2: 0.2}, {2: 0.9, 5: 0.1}, dict.fromkeys(range(8), 1 / 8)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_linear_merges_come_back(dtype, shares, bf16, f32):
    family = {"BF16": bf16, "F32": f32}[dtype]
    found = family.judge(family.mix(shares))
    assert (found.verdict, found.method) == (MERGE, "linear")
    got = coefficients(found)
    assert got.keys() == shares.keys()
    # Rounding noise over the deltas, 0.1 in bf16 and 1e-6 in float32, divided by sqrt(75,000 elements),
    # times 4 standard errors and 8 for small shares; bending adds a few thousandths in bf16.
    assert all(abs(got[i] - a) < {"BF16": 0.01, "F32": 1e-6}[dtype] for i, a in shares.items())
    assert 0.9 < found.ratio < 1.1  # what is left is rounding: one draw of 75,000 elements is that near


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_task_arithmetic_with_a_negative_weight(dtype, bf16, f32):
    family = {"BF16": bf16, "F32": f32}[dtype]
    truth = {0: 0.7, 1: 0.5, 4: -0.3}
    found = family.judge(family.mix(truth))
    assert (found.verdict, found.method) == (MERGE, "task_arithmetic")
    assert coefficients(found) == pytest.approx(truth, abs={"BF16": 0.01, "F32": 1e-6}[dtype])
    assert found.base == pytest.approx(1 - 0.9, abs=0.02)


def test_intervals_cover_what_was_mixed():
    """95 in 100 were promised; of 200 coefficients fewer than 180 are covered once in 500 such tests (binomial)."""
    inside = total = 0
    for seed in range(5):
        family = Family(seed=100 + seed)
        for _ in range(10):
            shares = dict(
                zip(family.rng.choice(8, 4, replace=False), family.rng.dirichlet([4] * 4), strict=True)
            )
            for p in family.judge(family.mix(shares)).parents:
                total += 1
                inside += p.low <= shares.get(int(p.parent), 0.0) <= p.high
    assert total > 190
    assert inside / total > 0.9


def test_rounding_bends_coefficients_and_is_straightened():
    """At 0.5% of bf16 weights, 0.3 and 0.7 read about 0.285 and 0.715 by least squares alone."""
    family = Family(size=0.005, count=2, seed=3)
    sums, _ = family.grams(family.mix({0: 0.3, 1: 0.7}))
    bent = Normal.of(sums).solve([0, 1])[0]
    assert abs(bent[0] - 0.3) > 0.01
    found = judge(sums)
    assert found.verdict == MERGE
    assert coefficients(found) == pytest.approx({0: 0.3, 1: 0.7}, abs=0.005)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_slerp_with_lists_over_depth(dtype):
    family = Family(dtype, seed=5)
    attention, mlp = [0, 0.5, 0.3, 0.7, 1], [1, 0.5, 0.7, 0.3, 0]
    child = []
    for t, name in enumerate(NAMES):
        a, b = family.models[0][t], family.models[1][t]
        share = attention[t // 3] if "self_attn" in name else mlp[t // 3] if "mlp" in name else 0.5
        cosine = a @ b / np.sqrt((a @ a) * (b @ b))
        angle = np.arccos(min(cosine, 0.9999999))
        first, second = np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle)
        child.append((1 - share) * a + share * b if cosine > 0.9995 else first * a + second * b)
    found = family.judge(family.rounded(child))
    assert (found.verdict, found.method) == (MERGE, "slerp")
    turned = found.parents[0].parent == "1"
    truth = {"self_attn": np.array(attention), "mlp": np.array(mlp)}
    for place, value in zip(found.gradient.places, found.gradient.values[:, 0], strict=True):
        if place.block in truth:
            t = truth[place.block][place.layer]
            assert value == pytest.approx(1 - t if turned else t, abs={"BF16": 0.02, "F32": 1e-5}[dtype])
    for block, t in truth.items():
        assert np.allclose(found.gradient.lists[block][:, 0], 1 - t if turned else t, atol=0.02)


def test_no_parents_for_models_that_are_none(bf16):
    strangers = {
        "unrelated": bf16.tune(),
        "sibling": bf16.tune(0.5),
        "merge with somebody else": [
            0.5 * m + 0.5 * w for m, w in zip(bf16.models[0], bf16.tune(), strict=True)
        ],
    }
    for name, weights in strangers.items():
        found = bf16.judge(bf16.rounded(weights))
        assert (found.verdict, found.parents) == (NONE, []), name
        assert found.rho > 1.5  # what a merge may leave


def test_training_on_one_parent(bf16):
    found = bf16.judge(bf16.rounded(bf16.tune(start=bf16.models[2], amount=0.5)))
    assert found.verdict == TRAINED
    # The new delta is as good as orthogonal: 3 / sqrt(75,000) of its length, half the parent's.
    assert coefficients(found) == pytest.approx({2: 1.0}, abs=0.01)


def test_the_parent_of_two_in_a_line_is_the_last_of_which_all_is_there():
    family = Family(seed=7, count=3)
    second = family.rounded(family.tune(start=family.models[0], amount=0.5))
    third = family.tune(start=second, amount=0.5)
    cousin = family.tune(start=family.models[0], amount=0.2)
    family.models += [second, family.rounded(cousin)]
    assert coefficients(family.judge(family.rounded(third))).keys() == {3}


def test_dare_and_ties_are_seen_by_the_elements_they_leave_out(bf16):
    rng = np.random.default_rng(1)
    child = [
        b + sum((rng.random(len(b)) < 0.5) * (bf16.models[i][t] - b) for i in (0, 2))
        for t, b in enumerate(bf16.base)
    ]
    found = bf16.judge(bf16.rounded(child))
    assert found.verdict == SELECTED
    assert coefficients(found).keys() == {0, 2}
    assert "left out" in found.reason


def test_a_cast_is_a_copy():
    family = Family("F32", seed=9)
    found = family.judge([stored(w, "BF16") for w in family.models[1]], dtype="BF16")
    assert found.verdict == COPY
    assert coefficients(found) == {1: 1.0}


def test_the_same_weights_and_the_base_itself(bf16):
    assert bf16.judge(bf16.models[3]).verdict == COPY
    assert bf16.judge(bf16.base).verdict == COPY


def test_a_parent_is_not_made_of_its_child():
    """A = (C - 0.1 B) / 0.9 fits nearly as well as C = 0.9 A + 0.1 B, with a coefficient above 1 and one below 0."""
    family = Family("F32", seed=11, count=4)
    child = family.mix({0: 0.9, 1: 0.1})
    found = family.judge(family.models[0], [*family.models[1:], child])
    assert found.verdict == NONE
    assert any("merge of this model" in note for note in found.notes)


def test_an_equation_that_reads_both_ways_is_undecidable():
    family = Family("F32", seed=12, count=4)
    child = family.mix({0: 1.0, 1: 1.0})
    found = family.judge(family.models[0], [*family.models[1:], child])
    assert (found.verdict, found.parents) == (UNDECIDABLE, [])
    assert "dates or lineage" in found.reason


def test_a_near_duplicate_does_not_take_the_parents_place():
    family = Family(seed=13, count=4)
    twin = family.rounded(family.tune(start=family.models[0], amount=0.1))
    family.models.append(twin)
    assert coefficients(family.judge(family.mix({0: 0.6, 1: 0.4}))).keys() == {0, 1}


@pytest.mark.parametrize("seed", range(4))
def test_another_merge_of_the_same_parents_is_no_third_parent(seed):
    # It lies in their span but for its own rounding, and rounding of like sums is alike: 0.6 and 0.4 beside 0.7 and 0.3.
    family = Family(seed=20 + seed, size=0.02, count=4)
    child = family.mix({0: 0.6, 1: 0.4})
    family.models.append(family.mix({0: 0.7, 1: 0.3}))
    found = family.judge(child)
    assert (found.verdict, coefficients(found).keys()) == (MERGE, {0, 1})


def test_a_change_shorter_than_rounding_is_not_decided():
    family = Family(size=0.0005, count=4, seed=15)
    assert family.judge(family.rounded(family.tune())).verdict in (UNDECIDABLE, NONE)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_order_of_candidates_and_tensors_does_not_matter(seed):
    family = Family(count=5, seed=17)
    rng = np.random.default_rng(seed)
    sums, _ = family.grams(family.mix({0: 0.6, 3: 0.4}))
    order = [int(i) for i in rng.permutation(5)]
    tensors = rng.permutation(len(NAMES))
    found = judge(sums.of(order).at(tensors))
    assert found.verdict == MERGE
    assert {int(p.parent) for p in found.parents} == {0, 3}
    assert set(find_parents(Normal.of(sums.of(order)))) == {order.index(0), order.index(3)}


def test_interpolation_is_mergekits():
    """mergekit: scaled = t (n - 1), between the two values around it."""
    at = np.array([0.0, 0.25, 0.5, 0.9, 1.0])
    for length in (1, 2, 3, 5):
        values = np.arange(length, dtype=float) ** 2
        expected = [
            values[int(t * (length - 1))] * (1 - t * (length - 1) % 1)
            + values[min(length - 1, int(t * (length - 1)) + 1)] * (t * (length - 1) % 1)
            for t in at
        ]
        assert np.allclose(by_depth._interpolation(at, length) @ values, expected)
