"""Views of the same weights in another layout give the bytes that the base's layout would have."""

import pytest
import torch

from kinbase.checkpoint import Tensor
from kinbase.checkpoint.alignment import align

HIDDEN, KEYS, INNER, EXPERTS = 8, 4, 6, 3


def tensor(name, values):
    data = values.contiguous().view(torch.uint8).numpy().tobytes()

    def read(start, out):
        assert start >= 0 and start + len(out) <= len(data)
        out[:] = data[start : start + len(out)]

    return Tensor(name, "F32", tuple(values.shape), read)


def model(named):
    return [tensor(name, values) for name, values in named.items()]


def values(t):
    """All elements, read in odd pieces: a view is read from anywhere."""
    raw, start = bytearray(t.nbytes), 0
    while start < t.nbytes:
        stop = min(start + 52, t.nbytes)
        t.read(start, memoryview(raw)[start:stop])
        start = stop
    return torch.frombuffer(raw, dtype=torch.float32).reshape(t.shape)


def assert_same(base, member, heads=None, missing=()):
    """Every tensor of the base is found in the member's layout, with the base's own numbers."""
    aligned, skipped = align(model(base), model(member), heads=heads)
    for (name, expected), found in zip(base.items(), aligned, strict=True):
        assert found is not None, (name, skipped)
        assert found.name == name or found.shape == expected.shape
        assert torch.equal(values(found), expected), name
    assert set(skipped) == set(missing)


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def split(draw):
    attention = {"q": draw(HIDDEN, HIDDEN), "k": draw(KEYS, HIDDEN), "v": draw(KEYS, HIDDEN)}
    tensors = {f"model.layers.0.self_attn.{n}_proj.weight": t for n, t in attention.items()}
    tensors |= {f"model.layers.0.self_attn.{n}_proj.bias": draw(len(t)) for n, t in attention.items()}
    tensors |= {f"model.layers.0.mlp.{n}_proj.weight": draw(INNER, HIDDEN) for n in ("gate", "up")}
    return tensors


def fused(split, prefix="model.layers.0.", attention="self_attn", name="qkv_proj"):
    at = "model.layers.0.self_attn."
    return {
        f"{prefix}{attention}.{name}.{end}": torch.cat([split[f"{at}{n}_proj.{end}"] for n in "qkv"])
        for end in ("weight", "bias")
    } | {
        f"{prefix}mlp.gate_up_proj.weight": torch.cat(
            [split[f"model.layers.0.mlp.{n}_proj.weight"] for n in ("gate", "up")]
        )
    }


def test_fused_and_split_projections_are_one_model_both_ways(split):
    assert_same(split, fused(split))
    assert_same(fused(split), split)
    assert_same(split, fused(split, prefix="layers.0.", attention="attn", name="W_pack"))


def test_queries_fused_by_group_of_heads_are_taken_apart_by_their_heads(split, draw):
    """Four query heads and two key-value heads of size 2: a group is two queries, its key, its value."""
    for heads in ((4, 2), (4, 4), (4, 1)):
        size, groups = HIDDEN // heads[0], heads[1]
        q, k, v = draw(HIDDEN, HIDDEN), draw(groups * size, HIDDEN), draw(groups * size, HIDDEN)
        base = {f"h.0.attention.{n}_proj.weight": t for n, t in zip("qkv", (q, k, v), strict=True)}
        rows = [
            part
            for g in range(groups)
            for part in (
                q[g * len(q) // groups : (g + 1) * len(q) // groups],
                k[g * size : (g + 1) * size],
                v[g * size : (g + 1) * size],
            )
        ]
        member = {"h.0.attention.query_key_value.weight": torch.cat(rows)}
        assert_same(base, member, heads)
        assert_same(member, base, heads)
        # Without the number of heads nobody knows which rows are whose: nothing is compared.
        aligned, skipped = align(model(base), model(member))
        assert aligned == [None] * 3 and skipped["h.0.attention.query_key_value.weight"] == "not in the base"


@pytest.fixture
def experts(draw):
    return {
        f"model.layers.0.block_sparse_moe.experts.{e}.{n}.weight": draw(
            *((HIDDEN, INNER) if n == "w2" else (INNER, HIDDEN))
        )
        for e in range(EXPERTS)
        for n in ("w1", "w2", "w3")
    } | {"model.layers.0.block_sparse_moe.gate.weight": draw(EXPERTS, HIDDEN)}


def stacked(experts, names=("gate_up_proj", "down_proj"), prefix="model.layers.0.mlp.experts."):
    at = "model.layers.0.block_sparse_moe.experts."
    pick = lambda e, n: experts[f"{at}{e}.{n}.weight"]  # noqa: E731
    return {
        prefix + names[0]: torch.stack([torch.cat([pick(e, "w1"), pick(e, "w3")]) for e in range(EXPERTS)]),
        prefix + names[1]: torch.stack([pick(e, "w2") for e in range(EXPERTS)]),
        "model.layers.0.mlp.gate.weight": experts["model.layers.0.block_sparse_moe.gate.weight"],
    }


def test_stacked_and_separate_experts_are_one_model_both_ways(experts):
    assert_same(experts, stacked(experts))
    assert_same(stacked(experts), experts)


def turned(stack):
    """The same stack with each expert's matrices [in, out], as grouped products read them."""
    return {n: t.transpose(1, 2).contiguous() if t.ndim == 3 else t for n, t in stack.items()}


def test_stacks_of_experts_that_are_in_by_out_are_turned_both_ways(experts):
    stack = stacked(experts)
    assert_same(experts, turned(stack))
    assert_same(turned(stack), experts)
    assert_same(stack, turned(stack))
    assert_same(turned(stack), stack)
    grouped = stacked(experts, ("fc1.weight", "fc2.weight"))
    assert_same(turned(grouped), stack)
    assert_same(stack, turned(grouped))


def test_experts_whose_gates_and_ups_lie_in_turn_are_not_parted(draw):
    stack = {
        "model.layers.0.self_attn.sinks": draw(2),
        "model.layers.0.mlp.experts.gate_up_proj": draw(EXPERTS, HIDDEN, 2 * INNER),
        "model.layers.0.mlp.experts.gate_up_proj_bias": draw(EXPERTS, 2 * INNER),
        "model.layers.0.mlp.experts.down_proj": draw(EXPERTS, INNER, HIDDEN),
        "model.layers.0.mlp.experts.down_proj_bias": draw(EXPERTS, HIDDEN),
    }
    at = "model.layers.0.mlp.experts."
    single = {"model.layers.0.self_attn.sinks": stack["model.layers.0.self_attn.sinks"]} | {
        f"{at}{n}_projs.{e}.{end}": one.T.contiguous() if one.ndim == 2 else one
        for n in ("gate_up", "down")
        for end in ("weight", "bias")
        for e, one in enumerate(stack[f"{at}{n}_proj{'_bias' * (end == 'bias')}"])
    }
    assert_same(stack, single)
    assert_same(single, stack)
    halves = {
        name.replace("gate_up_projs", f"{half}_projs"): part.contiguous()
        for name, t in single.items()
        for half, part in zip(("gate", "up"), t.chunk(2), strict=True)
        if "gate_up" in name
    }
    assert all(found is None for found in align(model(stack), model(halves))[0])


def test_a_stack_of_other_experts_is_not_taken_apart(experts):
    fewer = {name: t for name, t in experts.items() if ".experts.2." not in name}
    member = stacked(experts)
    aligned, _ = align(model(stacked(experts)), model(fewer))
    assert [t is None for t in aligned[:2]] == [True, True]
    aligned, skipped = align(model(fewer), model(member))
    assert all(t is not None for t in aligned) and skipped == {}


def test_conv1d_weights_are_turned_and_square_ones_follow_the_others(draw):
    base = {
        "transformer.h.0.attn.c_attn.weight": draw(HIDDEN, 3 * HIDDEN),
        "transformer.h.0.attn.c_proj.weight": draw(HIDDEN, HIDDEN),
        "transformer.h.0.mlp.c_fc.weight": draw(HIDDEN, 4 * HIDDEN),
        "transformer.h.0.ln_1.weight": draw(HIDDEN),
    }
    linear = {name: t.T if "c_" in name else t for name, t in base.items()}
    assert_same(base, linear)
    assert_same(linear, base)
    assert_same(base, base)


def test_parts_of_two_dtypes_are_not_one_tensor(split):
    member = model(split)
    member = [
        Tensor(t.name, "F64" if t.name.endswith("k_proj.weight") else t.dtype, t.shape, t.read)
        for t in member
    ]
    aligned, skipped = align(model(fused(split)), member)
    assert aligned[0] is None and aligned[1] is not None
    assert skipped["model.layers.0.self_attn.qkv_proj.weight"] == "missing"


def paired(weights, heads):
    """Rows of queries or keys as Llama's own files have them: those of a rotary pair side by side."""
    rows = weights.shape[0]
    order = [
        h * rows // heads + t * rows // heads // 2 + j
        for h in range(heads) for j in range(rows // heads // 2) for t in range(2)
    ]  # fmt: skip
    return weights[order]


@pytest.fixture
def llama(draw):
    """A decoder by transformers' names, and as Llama's own files name and order it."""
    at, there = "model.layers.0.", "layers.0."
    names = {
        "model.embed_tokens.weight": ("tok_embeddings.weight", 12, HIDDEN),
        at + "self_attn.q_proj.weight": (there + "attention.wq.weight", HIDDEN, HIDDEN),
        at + "self_attn.k_proj.weight": (there + "attention.wk.weight", KEYS, HIDDEN),
        at + "self_attn.v_proj.weight": (there + "attention.wv.weight", KEYS, HIDDEN),
        at + "self_attn.o_proj.weight": (there + "attention.wo.weight", HIDDEN, HIDDEN),
        at + "mlp.gate_proj.weight": (there + "feed_forward.w1.weight", INNER, HIDDEN),
        at + "mlp.up_proj.weight": (there + "feed_forward.w3.weight", INNER, HIDDEN),
        at + "mlp.down_proj.weight": (there + "feed_forward.w2.weight", HIDDEN, INNER),
        at + "input_layernorm.weight": (there + "attention_norm.weight", HIDDEN),
        at + "post_attention_layernorm.weight": (there + "ffn_norm.weight", HIDDEN),
        "model.norm.weight": ("norm.weight", HIDDEN),
        "lm_head.weight": ("output.weight", 12, HIDDEN),
    }
    ours = {name: draw(*shape) for name, (_, *shape) in names.items()}
    heads = {"wq": 2, "wk": 1}
    theirs = {
        other: paired(ours[name], heads[other.split(".")[-2]])
        if other.split(".")[-2] in heads
        else ours[name]
        for name, (other, *_) in names.items()
    }
    return ours, theirs


def test_the_makers_own_files_are_the_same_model_both_ways(llama):
    ours, theirs = llama
    assert_same(ours, theirs, heads=(2, 1))
    assert_same(theirs, ours, heads=(2, 1))


def test_rows_of_unknown_heads_are_not_compared(llama):
    ours, theirs = llama
    aligned, skipped = align(model(ours), model(theirs))
    missing = [name for name, found in zip(ours, aligned, strict=True) if found is None]
    assert missing == [f"model.layers.0.self_attn.{leaf}_proj.weight" for leaf in "qk"]
    assert {skipped[name] for name in missing} == {"missing"}
