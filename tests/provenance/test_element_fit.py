"""Which models make a child's sampled elements: to half a unit in the last place, in one rounding or in several."""

import families
import numpy as np
import pytest
import torch
from gram_families import NAMES, NUMELS, Family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinbase.provenance.recipes.arithmetic import written
from kinbase.provenance.recipes.element_fit import ElementFit
from kinbase.provenance.recipes.elements import Elements
from kinbase.provenance.recipes.least_squares import BITS
from kinbase.provenance.recipes.verdict import COPY, MERGE, UNDECIDABLE, judge

GROUP = np.repeat(np.arange(len(NAMES)), NUMELS)


def sampler_of(family, child, dtype=None):
    """What reads the elements of a child and of a family's models, which are called by their numbers."""
    bits = np.full(len(GROUP), BITS[dtype or family.dtype])

    def sampler(names):
        models = {name: np.concatenate(family.models[int(name)]) for name in names}
        return Elements(np.concatenate(child), np.concatenate(family.base), models, bits, GROUP)

    return sampler


def judged(family, child):
    return judge(*family.grams(child), sampler_of(family, child))


def parents(finding):
    return {int(p.parent): p.coefficient for p in finding.parents}


@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(["BF16", "F16", "F32"]), share=st.floats(0.15, 0.6))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_another_merge_in_a_parents_place_misses_a_quarter_of_its_share(seed, dtype, share):
    family = Family(dtype, 0.1, count=3, seed=seed)
    family.models.append(family.mix({0: 0.45, 1: 0.55}))
    child = family.mix({0: 0.45 * share, 1: 0.55 * share, 2: 1 - share})
    fit = ElementFit(sampler_of(family, child))
    assert fit.outside(["0", "1", "2"]) == 0
    # Half a unit of rounding beside `share` of another such: of a trapezium, share / 4 lies outside. Their units are one where
    # their exponents are, and half or double where those are next to each other.
    assert 0.05 * share < fit.outside(["2", "3"]) < 0.5 * share
    assert fit.is_made(["2", "3"]) is False


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_merge_beside_merges_of_the_same_models_has_its_own_parents(dtype):
    family = Family(dtype, 0.05, count=4, seed=5)
    truth = []
    for shares in (
        {0: 0.5, 1: 0.5},
        {0: 0.3, 1: 0.7},
        {4: 0.6, 2: 0.4},
        {4: 0.4, 5: 0.6},
        {6: 0.5, 5: 0.3, 3: 0.2},
    ):
        family.models.append(family.mix(shares))
        truth.append(shares)
    for i, shares in enumerate(truth, 4):
        others = [j for j in range(len(family.models)) if j != i]
        sums, zeros = family.grams(family.models[i])
        finding = judge(sums.of(others), zeros[:, [*others, -1]], sampler_of(family, family.models[i]))
        found = parents(finding)
        made_later = {4 + k for k, some in enumerate(truth) if i in some}
        assert finding.verdict == MERGE, (i, finding.reason)
        assert found.keys() == shares.keys() or found.keys() & made_later, (i, found, shares)
        finding = judge(sums.of(range(i)), zeros[:, [*range(i), -1]], sampler_of(family, family.models[i]))
        assert parents(finding) == pytest.approx(shares, abs=0.03), (i, finding.reason)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_sums_rounded_at_each_step_are_run_again_in_any_order(dtype, order):
    family = Family(dtype, 0.05, count=3, seed=2)
    code = families.TORCH_DTYPES[dtype]
    weights = {0: 0.5, 1: 0.3, 2: 0.2}
    child = []
    for t in range(len(NAMES)):
        total = torch.zeros(NUMELS[t], dtype=code)
        for i in order:
            total += weights[i] * torch.from_numpy(family.models[i][t]).to(code)
        child.append(total.double().numpy())
    fit = ElementFit(sampler_of(family, child))
    names = ["0", "1", "2"]
    assert fit.is_made(names) is False
    assert fit.is_made_in_steps(names, written(np.array([0.5, 0.3, 0.2]), 0.0, np.full(3, 0.01)))
    assert not fit.is_made_in_steps(names, written(np.array([0.5, 0.25, 0.25]), 0.0, np.full(3, 0.01)))
    assert parents(judged(family, child)).keys() == {0, 1, 2}


def test_a_merge_by_way_of_a_missing_one_is_told_by_what_that_was_made_of_or_not_at_all():
    right = 0
    for seed in range(6):
        family = Family("F32", 0.05, count=4, seed=seed)
        gone = family.mix({0: 0.6, 1: 0.4})
        family.models.append(family.mix({0: 0.35, 1: 0.65}))
        child = family.rounded([0.15 * g + 0.85 * w for g, w in zip(gone, family.models[2], strict=True)])
        finding = judged(family, child)
        if finding.verdict == MERGE:
            assert parents(finding).keys() == {0, 1, 2}
            assert any("not here" in note for note in finding.notes)
            right += 1
        else:
            assert finding.verdict == UNDECIDABLE
    assert right > 0


def test_numbers_that_differ_in_a_few_last_places_are_no_copy():
    family = Family("F32", 0.01, count=3, seed=4)
    near = [w.copy() for w in family.models[0]]
    for w in near:
        w[::3] = np.nextafter(w[::3].astype(np.float32), np.float32(9)).astype(float)
    assert judged(family, near).verdict != COPY
    assert judged(family, family.models[0]).verdict == COPY


def test_nothing_is_said_of_what_cannot_be_read_or_is_on_no_floating_point_grid():
    family = Family("BF16", 0.05, count=3, seed=1)
    child = family.mix({0: 0.5, 1: 0.5})
    assert ElementFit(lambda names: None).is_made(["0", "1"]) is None
    assert ElementFit(sampler_of(family, child, "Q8_0")).is_made(["0", "1"]) is None
    assert ElementFit(sampler_of(family, child)).is_made(["0", "1"]) is True
