"""What `suggest` lists, and how far its estimate is to be believed."""

import numpy as np
import pytest

from kinbase.evolution.suggest import ENOUGH, Population, suggest


def population(scores, history=(), lengths=None):
    """Members at right angles to each other."""
    count = len(scores)
    lengths = np.ones(count) if lengths is None else np.asarray(lengths, float)
    gram = np.diag(lengths**2) + 0.1 * np.outer(lengths, lengths) * (1 - np.eye(count))
    scores = np.asarray(scores, float)
    return Population(
        "base", [f"m{i}" for i in range(count)], gram, gram.copy(), gram / np.outer(lengths, lengths), scores,
        scores[:, None], frozenset(), np.zeros(count, np.intp), history=np.asarray(history, float).reshape(-1, 2),
    )  # fmt: skip


def test_the_estimate_is_the_better_parent_and_what_merges_gained():
    history = [(-1.0, 1.0), (-2.0, 0.5), (0.0, 2.0), (-1.0, 1.0), (-1.0, 1.5)]
    found = population([50, 60, 40], history)
    rows = [
        dict(zip(("a", "b"), row[:2], strict=True)) | {"estimate": row[10], "error": row[11]}
        for row in suggest(found)
    ]
    assert rows[0]["estimate"] == pytest.approx(60 - 1)
    # Each merge foretold by the mean of the others: -1 from -1, -2 from -.75, 0 from -1.25.
    assert rows[0]["error"] == pytest.approx((0 + 1.25 + 1.25 + 0 + 0) / 5)
    assert "errs by 0.50" in found.evidence()
    assert "the better parent alone by 1.00" in found.evidence()
    assert "the mean of the parents by 1.20" in found.evidence()
    assert {rows[0]["a"], rows[0]["b"]} & {"m1"}


def test_few_merges_correct_nothing():
    found = population([50, 60], [(-3.0, 1.0)] * (ENOUGH - 1))
    assert found.correction == 0
    assert suggest(found)[0][10] == 60
    assert not found.is_hopeless()


def test_nothing_beats_the_best_parent_when_no_merge_did():
    assert population([50, 60], [(-1.0 - 0.1 * i, 0.5) for i in range(6)]).is_hopeless()
    assert not population([50, 60], [(1.0 - 0.1 * i, 0.5) for i in range(6)]).is_hopeless()


def test_strangers_and_copies_are_left_out():
    found = population([50, 60, 70, 55], lengths=[1, 1, 30, 1])
    assert all("m2" not in row[:2] for row in suggest(found))
    twin = population([50, 60, 55])
    twin.gram[0, 2] = twin.gram[2, 0] = twin.gram[0, 0]
    assert {frozenset(row[:2]) for row in suggest(twin)} == {frozenset(("m0", "m1"))}
