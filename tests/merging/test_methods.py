"""Merge methods: what algebra says, element by element."""

import math

import families
import pytest
import torch
from merges import Bare, delta_config, merged, models, weights

from kinbase.merging import methods


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_weights_one_and_nothing_give_the_parent_back(tmp_path, dtype):
    family = families.make_family(tmp_path / "family", dtype=dtype)
    child = merged({"merge_method": "linear", "models": models(family, ft_a=1, ft_b=0)}, tmp_path / "child")
    parent = weights(family["ft_a"])
    assert child.keys() == parent.keys()
    assert all(torch.equal(child[name], parent[name]) for name in parent)


@pytest.mark.parametrize("t, parent", [(0, "ft_a"), (1, "ft_b")])
def test_slerp_ends_at_its_parents(tmp_path, family, t, parent):
    config = {"merge_method": "slerp", "base_model": str(family["ft_a"]), "parameters": {"t": t}}
    child = merged({**config, "models": [str(family["ft_a"]), str(family["ft_b"])]}, tmp_path / "child")
    assert all(torch.equal(child[name], tensor) for name, tensor in weights(family[parent]).items())


def test_a_linear_merge_in_float32_is_the_exact_one_rounded_once(tmp_path, family):
    config = {
        "merge_method": "linear",
        "models": models(family, ft_a=0.5, ft_b=0.25, ft_c=0.25),
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    child = merged(config, tmp_path / "child")
    a, b, c = (weights(family[name]) for name in ("ft_a", "ft_b", "ft_c"))
    for name, tensor in child.items():
        # Powers of two times eight bits: float32 holds these sums exactly, so there is one rounding.
        assert torch.equal(
            tensor, (a[name].double() / 2 + b[name].double() / 4 + c[name].double() / 4).bfloat16()
        )


def test_normalize_divides_by_the_sum_of_the_weights(tmp_path, family):
    twice = models(family, ft_a=1.5, ft_b=0.5)
    whole = merged({"merge_method": "linear", "models": models(family, ft_a=0.75, ft_b=0.25)}, tmp_path / "a")
    divided = merged({"merge_method": "linear", "models": twice}, tmp_path / "b")
    doubled = merged(
        {"merge_method": "linear", "models": twice, "parameters": {"normalize": False}}, tmp_path / "c"
    )
    for name in whole:
        assert torch.equal(divided[name], whole[name])
        assert torch.equal(doubled[name], 2 * whole[name])  # a power of two: exact


def test_slerp_is_shoemakes_formula(tmp_path):
    family = families.make_family(tmp_path / "family", dtype="F32")
    child = merged(
        {
            "merge_method": "slerp",
            "base_model": str(family["ft_a"]),
            "models": [str(family["ft_a"]), str(family["ft_b"])],
            "parameters": {"t": 0.3},
        },
        tmp_path / "child",
    )
    a, b = weights(family["ft_a"]), weights(family["ft_b"])
    fell_back = 0
    for name, tensor in child.items():
        x, y = a[name].double(), b[name].double()
        cosine = float((x * y).sum() / (x.norm() * y.norm()))
        angle = math.acos(cosine)
        arc = (math.sin(0.7 * angle) * x + math.sin(0.3 * angle) * y) / math.sin(angle)
        wanted = arc if abs(cosine) <= 0.9995 else 0.7 * x + 0.3 * y
        fell_back += abs(cosine) > 0.9995
        # The coefficients are float32 and three roundings follow; the tensors have a few thousand elements.
        assert float((tensor - wanted).abs().max()) < 4e-7 * float(torch.maximum(x.abs(), y.abs()).max())
    assert 0 < fell_back < len(child)  # the norms are nearly parallel, the matrices are not


def test_task_arithmetic_adds_what_was_changed(tmp_path):
    family = families.make_family(tmp_path / "family", dtype="F32")
    config = delta_config(family, "task_arithmetic", parameters={"lambda": 0.5})
    child = merged(config, tmp_path / "child")
    base, a, b = (weights(family[name]) for name in ("base", "ft_a", "ft_b"))
    for name, tensor in child.items():
        theta = base[name].double()
        wanted = theta + 0.5 * (0.7 * (a[name].double() - theta) + 0.4 * (b[name].double() - theta))
        assert torch.allclose(
            tensor.double(), wanted, rtol=0, atol=4e-7
        )  # weights of about 1: a few units of 1.2e-7


TIES = {"normalize": True, "rescale": False, "lambda": 1.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_ties_by_hand(dtype):
    base = torch.zeros(8, dtype=dtype)
    a = torch.tensor([4, -3, 2, 1, 0, -0.5, 8, 2], dtype=dtype)
    b = torch.tensor([-2, -5, 1, 3, 7, 0.5, 2, 2], dtype=dtype)
    look = Bare([base, a, b], TIES, ({}, {"weight": 1.0, "density": 0.5}, {"weight": 1.0, "density": 0.5}))
    # Of a the largest four are 8, 4, 3 and the first of the two 2s; of b 7, 5, 3 and the first 2.
    # Elected signs: 4 - 2 > 0, -3 - 5 < 0, then +; means are over those that agree.
    wanted = torch.tensor([4, -4, 2, 3, 7, 0, 8, 0], dtype=dtype)
    assert torch.equal(look.result(methods.ties), wanted)


def test_ties_keeps_one_element_at_least_and_none_at_density_nothing():
    base, a = torch.zeros(5), torch.tensor([1.0, -3, 2, 0, 1])
    for density, wanted in ((0.01, [0, -3, 0, 0, 0]), (0, [0, 0, 0, 0, 0]), (1, [1, -3, 2, 0, 1])):
        look = Bare([base, a], TIES, ({}, {"weight": 0.5, "density": density}))
        assert torch.equal(look.result(methods.ties), torch.tensor(wanted, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.97])
def test_the_cut_is_the_exact_kth_largest(dtype, density):
    generator = torch.Generator().manual_seed(3)
    base = torch.zeros(5000, dtype=dtype)
    a = torch.randn(5000, generator=generator, dtype=torch.float64).to(dtype)
    look = Bare([base, a], {**TIES, "normalize": False}, ({}, {"weight": 1.0, "density": density}), step=700)
    order = torch.argsort(a.abs().float(), descending=True, stable=True)[: int(density * 5000)]
    wanted = torch.zeros_like(a)
    wanted[order] = a[order]
    assert torch.equal(look.result(methods.ties), wanted)


def test_rescaled_ties_has_the_sum_of_magnitudes_it_had():
    a = torch.tensor([4.0, -3, 2, 1, -2, 0])
    look = Bare([torch.zeros(6), a], {**TIES, "rescale": True}, ({}, {"weight": 1.0, "density": 0.5}))
    wanted = torch.tensor([4.0, -3, 2, 0, 0, 0]) * (12 / 9)
    assert torch.allclose(look.result(methods.ties), wanted, rtol=2**-22)


def test_dare_with_a_given_mask_is_the_formula():
    base, a, b = torch.ones(4), torch.tensor([2.0, 3, 0, 1]), torch.tensor([1.0, -1, 3, 5])
    masks = [torch.tensor([1.0, 0, 1, 1]), torch.tensor([0.0, 1, 1, 0])]
    shared = {"normalize": False, "rescale": True, "lambda": 1.0}
    look = Bare([base, a, b], shared, ({}, {"weight": 0.5, "density": 0.6}, {"weight": 1.0, "density": 0.6}))
    got = look.result(
        methods.dare, elect=False, mask=lambda _, i, stretch: masks[i][stretch.start : stretch.stop]
    )
    # Changes of a are 1, 2, -1, 0 (sum of magnitudes 4, 2 of it left); of b 0, -2, 2, 4 (8, 4 left).
    wanted = 1 + 0.5 * 2 * torch.tensor([1.0, 0, -1, 0]) + 2 * torch.tensor([0.0, -2, 2, 0])
    assert torch.equal(got, wanted)


def test_dare_masks_have_their_density_and_are_drawn_anew_for_each_input_and_seed():
    n = 400_000
    target = Bare(
        [torch.zeros(n), torch.zeros(n), torch.zeros(n)], {}, ({}, {"density": 0.3}, {"density": 0.3}), step=n
    )
    first, again, other = (methods.drawn_mask(target, i, target.stretches[0]) for i in (0, 0, 1))
    target.seed = 1
    reseeded = methods.drawn_mask(target, 0, target.stretches[0])
    assert torch.equal(first, again)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    for mask in (first, other, reseeded):
        assert abs(float(mask.mean()) - 0.3) < 5 * math.sqrt(0.3 * 0.7 / n)
    for mask in (other, reseeded):  # independent ones agree on both kept with probability 0.09
        assert abs(float((first * mask).mean()) - 0.09) < 5 * math.sqrt(0.09 * 0.91 / n)


def test_a_seed_gives_the_same_child_whatever_the_threads_and_shards(tmp_path, family):
    config = delta_config(family, "dare_ties")
    one = merged(config, tmp_path / "one", seed=5, threads=1)
    again = merged(config, tmp_path / "again", seed=5, threads=4, shard_bytes=9000)
    other = merged(config, tmp_path / "other", seed=6)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert len(list((tmp_path / "again").glob("model-*-of-*.safetensors"))) > 1
