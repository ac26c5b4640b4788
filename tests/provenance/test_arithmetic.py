"""Merges that torch computes in the models' own dtype, each product and sum rounded: told, with the coefficients written."""

import families
import numpy as np
import pytest
import torch
from gram_families import Family

from kinbase.provenance.recipes.verdict import MERGE, NONE, UNDECIDABLE, judge

DTYPES = families.TORCH_DTYPES


def tensors(family):
    """The base's and the models' weights as torch has them, the base last."""
    return [[torch.from_numpy(w).to(DTYPES[family.dtype]) for w in m] for m in (*family.models, family.base)]


def linear(shares, total=1.0):
    def made(*models):
        result = sum(share * model for share, model in zip(shares, models[:-1], strict=False))
        return result if total == 1 else result / total

    return made


def with_base(*models):
    return 0.5 * models[0] + 0.3 * models[1] + 0.2 * models[-1]


def task_arithmetic(*models):
    base = models[-1]
    return base + (0.7 * (models[0] - base) + 0.6 * (models[1] - base))


def slerp(*models):
    a, b = models[0].float(), models[1].float()
    cosine = ((a / a.norm()) * (b / b.norm())).sum()
    angle = torch.arccos(cosine)
    first, second = (torch.sin(share * angle) / torch.sin(angle) for share in (0.7, 0.3))
    if cosine > 0.9995:  # as mergekit
        first, second = 0.7, 0.3
    return (first * a + second * b).to(models[0].dtype)


FORMS = {
    "two": (linear([0.6, 0.4]), {0: 0.6, 1: 0.4}),
    "three": (linear([0.5, 0.3, 0.2]), {0: 0.5, 1: 0.3, 2: 0.2}),
    "four": (linear([0.25] * 4), dict.fromkeys(range(4), 0.25)),
    "mean of three": (linear([1, 1, 1], 3), dict.fromkeys(range(3), 1 / 3)),
    "two to one": (linear([2, 1], 3), {0: 2 / 3, 1: 1 / 3}),
    "base": (with_base, {0: 0.5, 1: 0.3}),
    "task arithmetic": (task_arithmetic, {0: 0.7, 1: 0.6}),
}


def found(family, form):
    models = tensors(family)
    child = [form(*(m[t] for m in models)).double().numpy() for t in range(len(family.base))]
    return judge(*family.grams(child))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "size"), [("F32", 0.01), ("F32", 0.1), ("F16", 0.03), ("BF16", 0.03)])
def test_merges_in_their_own_dtype(form, dtype, size):
    made, truth = FORMS[form]
    finding = found(Family(dtype, size, seed=4), made)
    assert finding.verdict == MERGE, finding.reason
    assert {int(p.parent) for p in finding.parents} == set(truth)
    # Residuals of 75,064 elements are known to 0.3%; 6% is what a simulated population misses where rounding ties.
    assert abs(np.log(finding.ratio)) < 0.06
    for parent in finding.parents:
        # An interval is of 95%: twice its half width is four standard errors.
        half = (parent.high - parent.low) / 2
        assert abs(parent.coefficient - truth[int(parent.parent)]) <= 2 * half


def test_slerp_in_float32():
    finding = found(Family("F32", 0.05, seed=5), slerp)
    assert finding.verdict == MERGE
    assert {int(p.parent) for p in finding.parents} == {0, 1}
    assert abs(np.log(finding.ratio)) < 0.06


def test_another_parent_in_its_place_is_not_taken_for_rounding_twice():
    """Of a merge's missing parent a merge of it is here: what that one's own rounding leaves is no step of the child's."""
    family = Family("F32", 0.03, seed=6)
    models = tensors(family)
    other = [(0.5 * a.double() + 0.5 * b.double()).float() for a, b in zip(models[1], models[2], strict=True)]
    child = [
        (0.4 * a.double() + 0.3 * b.double() + 0.3 * c.double()).float().double().numpy()
        for a, b, c in zip(*models[:3], strict=True)
    ]
    shown = [family.models[0], *family.models[3:], [w.double().numpy() for w in other]]
    finding = judge(*family.grams(child, shown))
    # It leaves sqrt(1 + 0.6^2) = 1.17 floors where 0.4 and 0.6 in steps leave about 1.23.
    assert finding.ratio > 1.1 or finding.verdict != MERGE


@pytest.mark.parametrize(("parents", "child"), [("BF16", "F32"), ("BF16", "F16"), ("F16", "F32")])
def test_merged_in_fewer_bits_than_it_is_stored_in(parents, child):
    family = Family(parents, 0.03, seed=7)
    models = tensors(family)
    made = [linear([0.6, 0.4])(*(m[t] for m in models)).to(DTYPES[child]) for t in range(len(family.base))]
    finding = judge(*family.grams([w.double().numpy() for w in made], dtype=child))
    assert finding.verdict == MERGE
    assert {int(p.parent) for p in finding.parents} == {0, 1}
    assert "significant bits" in finding.reason


@pytest.mark.parametrize("size", [1e-4, 1e-3, 3e-3, 0.01])
def test_a_small_float32_change_of_a_bf16_base_is_no_rounding(size):
    """Whether or not it is as small as rounding to bf16 is."""
    family = Family("BF16", 0.02, seed=8)
    rng = np.random.default_rng(9)
    child = [
        torch.from_numpy(w + size * w.std() * rng.standard_normal(len(w))).float().double().numpy()
        for w in family.base
    ]
    assert judge(*family.grams(child, dtype="F32")).verdict in (NONE, UNDECIDABLE)
