"""Adapters of low rank: their delta by its definition, and those that are refused."""

import math
import re

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from checkpoints import ADAPTERS, SETTINGS, changed_adapter, contents, data, opened, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from kinbase.checkpoint import UNSAID, Facts, Problem
from kinbase.errors import CheckpointError
from kinbase.importers import adapter, folder, low_rank

# Adapters made by PEFT 0.21.2 (tests/data/adapters). Their deltas, from the definition:


def by_definition(a, b, scale, turned=False):
    a, b = a.to(torch.float64).numpy(), b.to(torch.float64).numpy()
    delta = scale * np.einsum("or,ri->oi", b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1))
    return delta.T if turned else delta.reshape(b.shape[0], *a.shape[1:])


def scale_of(case, module, rank):
    """alpha / r of each adapter as it was made."""
    if case == "rslora":
        return 4 / math.sqrt(3)
    if case == "patterns":
        alpha = {"q_proj": 6, "up_proj": 7}.get(module.rpartition(".")[2], 4)
        assert rank == {"k_proj": 1, "up_proj": 3}.get(module.rpartition(".")[2], 2)
        return alpha / rank
    return {"plain": 5 / 2}.get(case, 3 / 2)


@pytest.mark.parametrize("case", ["plain", "rslora", "patterns", "embedding", "conv1d", "conv2d", "saved"])
def test_the_delta_of_an_adapter(case):
    factors = safetensors.torch.load_file(ADAPTERS / case / "adapter_model.safetensors")
    expected = {}
    for name, a in factors.items():
        if "_A" in name:
            module = re.sub(r"\.lora_(embedding_)?A(\.weight)?$", "", name).removeprefix("base_model.model.")
            turned = "embedding" in name or case == "conv1d"
            expected[f"{module}.weight"] = by_definition(
                a, factors[name.replace("_A", "_B")], scale_of(case, module, len(a)), turned
            )
    checkpoint, facts, (edge, *rest) = opened(adapter, ADAPTERS / case)
    assert checkpoint.delta_of == "org/base" and checkpoint.name == case
    assert {t.name for t in checkpoint.tensors} == set(expected)
    for tensor in checkpoint.tensors:
        assert tensor.dtype == "F64" and tensor.shape == expected[tensor.name].shape
        delta = np.frombuffer(data(tensor)).reshape(tensor.shape)
        assert np.allclose(delta, expected[tensor.name], rtol=1e-13, atol=1e-13)
    assert (edge.parent, edge.relation, edge.evidence, edge.child) == ("org/base", "adapter", "adapter", None)
    assert edge.detail["r"] == (3 if case == "rslora" else 2)
    assert facts.relation == "adapter" and facts.dtype == "float32"
    if case == "saved":
        assert checkpoint.skipped == {
            "base_model.model.lm_head.weight": "a whole weight, not a change of the base's"
        }
        assert isinstance(rest[0], Problem)
    else:
        assert checkpoint.skipped == {} and rest == []
        assert facts.parameters == sum(t.numel() for t in factors.values())
    assert len(checkpoint.files) == 2
    checkpoint.close()


def test_an_adapter_in_a_pickle_and_under_an_adapters_name(tmp_path):
    source = ADAPTERS / "plain"
    factors = safetensors.torch.load_file(source / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    torch.save(
        {k.replace(".weight", ".default.weight"): v for k, v in factors.items()},
        tmp_path / "adapter_model.bin",
    )
    (tmp_path / "training_args.bin").write_bytes(b"?")
    assert adapter.recognises(str(tmp_path)) and not folder.recognises(str(tmp_path))
    assert contents(opened(adapter, tmp_path)[0]) == contents(opened(adapter, source)[0])


@pytest.mark.parametrize("case", ["dora", "pissa", "ia3"])
def test_adapters_that_are_more_than_two_factors(case):
    assert adapter.recognises(str(ADAPTERS / case))
    words = {"dora": "DoRA", "pissa": "'pissa' changed the base", "ia3": "'IA3'"}[case]
    refused(adapter, ADAPTERS / case, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"init_lora_weights": "olora"}, "'olora' changed the base"),
        ({"init_lora_weights": 1}, "changed the base"),
        ({"layer_replication": [[0, 1]]}, "copies layers"),
        ({"peft_type": "PREFIX_TUNING"}, "'PREFIX_TUNING'"),
        ({"peft_type": None}, "of type 'None'"),
        ({"r": 4}, "r='4'"),
        ({"lora_alpha": "5"}, "is no number"),
        ({"lora_alpha": True}, "is no number"),
        ({"alpha_pattern": [1]}, "alpha_pattern is no object"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "no simple expression"),
        ({"alpha_pattern": {"a*a*a*a*a*b": 1}}, "no simple expression"),
        ({"alpha_pattern": {"(": 1}}, "no simple expression"),
        ({"alpha_pattern": {"(l|l)" * 24 + "b": 1}}, "no simple expression"),
        ({"drop": "q_proj.lora_B"}, "only one factor of 'model.layers.0.self_attn.q_proj'"),
        ({"drop": "lora_"}, "no LoRA factors"),
        ({"add": {"x.lora_magnitude_vector.weight": torch.ones(2)}}, "plain LoRA has not"),
        (
            {"add": {"x.lora_A.weight": torch.ones(2, 3), "x.lora_B.weight": torch.ones(3, 3)}},
            "do not multiply",
        ),
        ({"add": {"x.lora_A.weight": torch.ones(2), "x.lora_B.weight": torch.ones(3, 2)}}, "do not multiply"),
        (
            {"add": {"x.lora_A.a.weight": torch.ones(2, 3), "x.lora_A.weight": torch.ones(2, 3)}},
            "two adapters",
        ),
        ({"add": {"x.lora_A.weight": torch.ones(2, 3).to(torch.int8)}}, "is I8"),
    ],
)
def test_adapters_that_are_refused(tmp_path, change, words):
    refused(adapter, changed_adapter(tmp_path, **change), words)


@pytest.mark.parametrize(
    ("stated", "doubts"),
    [(None, []), ("", []), ("a\nb", [r"'a\nb' cannot be a name"]), (7, ["'7' is not a name"])],
)
def test_an_adapter_that_does_not_say_its_base_is_read_for_one_to_be_given(tmp_path, stated, doubts):
    checkpoint, facts, (edge, *problems) = opened(
        adapter, changed_adapter(tmp_path, base_model_name_or_path=stated)
    )
    assert edge.parent == checkpoint.delta_of == UNSAID and edge.relation == facts.relation == "adapter"
    assert [doubt in problem.message for doubt, problem in zip(doubts, problems, strict=True)] == [
        True
    ] * len(doubts)
    assert contents(checkpoint) == contents(opened(adapter, ADAPTERS / "plain")[0])


def test_a_refused_adapter_keeps_its_edge_and_facts(tmp_path):
    records = adapter.open(
        str(changed_adapter(tmp_path, base_model_name_or_path="org/base", init_lora_weights="olora"))
    )
    edge, facts = next(records), next(records)
    assert (edge.parent, edge.relation, edge.method) == ("org/base", "adapter", "lora")
    assert facts == Facts(relation="adapter")
    with pytest.raises(CheckpointError, match="'olora' changed the base"):
        next(records)


def test_an_adapter_without_weights(tmp_path):
    changed_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    refused(adapter, tmp_path, "holds no adapter_model.safetensors")


def factor(name, values):
    content = memoryview(values.tobytes())

    def read(start, out):
        out[:] = content[start : start + len(out)]

    return low_rank.Tensor(name, "F32", values.shape, read)


@settings(SETTINGS, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**32), st.booleans())
def test_a_product_has_the_same_bits_however_it_is_cut(rows, rank, columns, seed, transposed):
    """Each row read alone equals the whole; both are right, with columns of A and B up to 2**15 apart in size."""
    random = np.random.default_rng(seed)
    sizes = 2.0 ** random.integers(-15, 16, rank)
    left = (random.standard_normal((rows, rank)) * sizes).astype(np.float32)
    right = (random.standard_normal((rank, columns)) / sizes[:, None]).astype(np.float32)
    stored = (left.T.copy(), right.T.copy()) if transposed else (left, right)
    product = low_rank.Factors(factor("l", stored[0]), factor("r", stored[1]), rank, 1 / 3, transposed)
    whole = low_rank.Tensor("d", "F64", (rows, columns), low_rank.reader((rows, columns), product))
    content = data(whole)
    assert content == b"".join(data(whole, 8 * columns * row, 8 * columns) for row in range(rows))
    left, right = left.astype(np.longdouble), right.astype(np.longdouble)
    error = np.abs(np.frombuffer(content).reshape(rows, columns) - left @ right / 3)
    assert (
        error <= 2.0**-35 * rank * np.abs(left * sizes**-1).max() * np.abs(right * sizes[:, None]).max()
    ).all()


def test_factors_that_are_not_finite_mark_their_rows():
    left, right = np.ones((3, 2), np.float32), np.ones((2, 4), np.float32)
    left[1, 0] = np.nan
    left[2, 1] = np.inf
    product = low_rank.Factors(factor("l", left), factor("r", right), 2, 1.0)
    delta = low_rank.Tensor("d", "F64", (3, 4), low_rank.reader((3, 4), product))
    assert np.isfinite(np.frombuffer(data(delta)).reshape(3, 4)).all(axis=1).tolist() == [True, False, False]
