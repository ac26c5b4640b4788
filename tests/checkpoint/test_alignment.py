"""Which tensors of two checkpoints belong together."""

import pytest

from kinbase.checkpoint import Tensor
from kinbase.checkpoint.alignment import align


def names(tensors):
    return [t and t.name for t in tensors]


def float_tensors(*shapes, dtype="F32"):
    return [Tensor(name, dtype, shape, lambda start, out: None) for name, shape in shapes]


@pytest.mark.parametrize(
    ("base", "member"),
    [
        ("model.layers.0.w", "layers.0.w"),
        ("layers.0.w", "model.layers.0.w"),
        ("transformer.h.0.w", "h.0.w"),
        ("model.layers.0.w", "base_model.model.model.layers.0.w"),
        ("model.layers.0.w", "language_model.model.layers.0.w"),
        ("model.layers.0.w", "model.language_model.layers.0.w"),
    ],
)
def test_known_prefixes_do_not_keep_tensors_apart(base, member):
    aligned, skipped = align(float_tensors((base, (2, 3))), float_tensors((member, (2, 3))))
    assert names(aligned) == [member] and skipped == {}


def test_a_prefix_that_leaves_two_candidates_decides_nothing():
    aligned, skipped = align(
        float_tensors(("model.w", (2,))), float_tensors(("w", (2,)), ("transformer.w", (2,)))
    )
    assert names(aligned) == [None]
    assert skipped == {"w": "not in the base", "transformer.w": "not in the base", "model.w": "missing"}


def test_an_exact_name_goes_before_a_prefixed_one():
    aligned, skipped = align(float_tensors(("w", (2,))), float_tensors(("model.w", (2,)), ("w", (2,))))
    assert names(aligned) == ["w"] and skipped == {"model.w": "not in the base"}


def test_what_does_not_fit_is_skipped_with_its_reason():
    base = float_tensors(("a", (4, 5)), ("b", (4, 5)), ("c", (4,)), ("d", ())) + float_tensors(
        ("i", (3,)), dtype="I64"
    )
    member = float_tensors(("a", (4, 6)), ("b", (20,)), ("d", (1,)), ("x", (1,))) + float_tensors(
        ("c", (4,)), dtype="I32"
    )
    aligned, skipped = align(base, member)
    assert names(aligned) == [None] * 5
    assert skipped == {
        "a": "shape (4, 6) where the base has (4, 5)",
        "b": "shape (20) where the base has (4, 5)",
        "c": "not floating point (I32)",
        "d": "shape (1) where the base has ()",
        "i": "missing",
        "x": "not in the base",
    }
