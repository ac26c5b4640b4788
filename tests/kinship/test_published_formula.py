"""Kinbase agrees with the published tool's formulas on small files, where float32 sums have not drifted."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file


def published(d_a, d_b):
    """The three expressions of the tool's metrics/calculate.py on float32 vectors."""
    pcc = torch.corrcoef(torch.stack((d_a, d_b)))[0, 1].item()
    a, b = d_a.numpy(), d_b.numpy()
    cs = np.sqrt(np.dot(a, b) ** 2 / (np.dot(a, a) * np.dot(b, b)))
    return pcc, float(cs), torch.dist(d_a, d_b).item()


@pytest.mark.parametrize(("a", "b"), [("ft_a", "ft_b"), ("ft_a", "merge_ab"), ("ft_b", "ft_c")])
def test_the_same_numbers_but_for_the_sign_of_the_cosine(db, family, a, b):
    weights = {name: load_file(family[name] / "model.safetensors") for name in ("base", a, b)}
    flat = {
        n: torch.cat([w[t].float().flatten() for t in sorted(weights["base"])]) for n, w in weights.items()
    }
    pcc, cs, ed = published(flat[a] - flat["base"], flat[b] - flat["base"])
    ((own_pcc, own_cs, own_ed),) = db.sql(
        "select pcc, cs, ed from kinship where model_a = ? and model_b = ?", [a, b]
    ).rows()
    # 25,000 float32 terms: some 1e-6 of rounding in the tool's sums
    assert (own_pcc, abs(own_cs)) == pytest.approx((pcc, cs), abs=5e-6)
    assert own_ed == pytest.approx(ed, rel=5e-6)
    assert own_cs == pytest.approx(own_pcc, abs=1e-3)  # the deltas' means are all but 0, so the signs agree
