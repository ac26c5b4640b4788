"""Parents that hold one architecture under other names, in another layout, or with what no merge computes."""

import json
import shutil

import pytest
import torch
from merges import merged, weights
from safetensors.torch import load_file, save_file

from kinbase.errors import KinbaseError


def rewritten(source, folder, change, config=None):
    """A copy of a checkpoint folder with its tensors changed by a function of all of them."""
    shutil.copytree(source, folder)
    save_file({n: t.contiguous() for n, t in change(load_file(source / "model.safetensors")).items()},
              folder / "model.safetensors")  # fmt: skip
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def linear(*folders):
    return {
        "merge_method": "linear",
        "models": [{"model": str(f), "parameters": {"weight": 0.5}} for f in folders],
    }


WRAPPED = {
    "compiled": lambda t: {"_orig_mod." + n: v for n, v in t.items()},
    "in blocks": lambda t: {n.replace(".mlp.", "._checkpoint_wrapped_module.mlp."): v for n, v in t.items()},
    "inside a trainer nobody knows": lambda t: {"agent.policy." + n: v for n, v in t.items()},
}


@pytest.mark.parametrize("rename", WRAPPED.values(), ids=WRAPPED)
def test_names_do_not_keep_parents_apart(tmp_path, family, rename):
    wrapped = rewritten(family["ft_b"], tmp_path / "wrapped", rename)
    expected = merged(linear(family["ft_a"], family["ft_b"]), tmp_path / "plain")
    found = merged(linear(family["ft_a"], wrapped), tmp_path / "child")
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


def test_layouts_do_not_keep_parents_apart(tmp_path, family):
    def fused(tensors):
        left = {n: t for n, t in tensors.items() if not any(f".{w}_proj." in n for w in ("q", "k", "v"))}
        for layer in range(2):
            at = f"model.layers.{layer}.self_attn."
            left[at + "qkv_proj.weight"] = torch.cat([tensors[f"{at}{w}_proj.weight"] for w in "qkv"])
        return left

    other = rewritten(family["ft_b"], tmp_path / "fused", fused)
    expected = merged(linear(family["ft_a"], family["ft_b"]), tmp_path / "plain")
    found = merged(linear(family["ft_a"], other), tmp_path / "child")
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


def test_deeper_parents_under_another_name_give_slices(tmp_path, family):
    wrapped = rewritten(
        family["ft_b"], tmp_path / "wrapped", lambda t: {"_orig_mod." + n: v for n, v in t.items()}
    )
    slices = [{"sources": [{"model": str(m), "layer_range": span, "parameters": {"weight": 1}}]} for m, span in
              ((family["ft_a"], [0, 1]), (wrapped, [1, 2]))]  # fmt: skip
    child = merged({"merge_method": "linear", "slices": slices}, tmp_path / "child")
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(child[name], weights(family["ft_b"])[name])


def test_counters_are_the_firsts_and_what_follows_from_the_config_may_be_in_one_alone(tmp_path, family):
    inverse = torch.arange(4.0)
    extra = {
        "a": {"model.bn.num_batches_tracked": torch.tensor(1000), "model.rotary_emb.inv_freq": inverse},
        "b": {"model.bn.num_batches_tracked": torch.tensor(2000)},
    }
    folders = [
        rewritten(family[f"ft_{k}"], tmp_path / k, lambda t, more=more: t | more) for k, more in extra.items()
    ]
    child = merged(linear(*folders), tmp_path / "child")
    assert child["model.bn.num_batches_tracked"] == 1000
    assert torch.equal(child["model.rotary_emb.inv_freq"], inverse)
    other = merged(linear(*folders[::-1]), tmp_path / "other")
    assert other["model.bn.num_batches_tracked"] == 2000 and "model.rotary_emb.inv_freq" not in other


def test_integers_that_are_no_counter_have_to_agree(tmp_path, family):
    folders = [
        rewritten(family["ft_a"], tmp_path / str(k), lambda t, k=k: t | {"table": torch.arange(4) + k})
        for k in range(2)
    ]
    with pytest.raises(KinbaseError, match="integers cannot be merged"):
        merged(linear(*folders), tmp_path / "child")


@pytest.mark.parametrize("where", [None, "text_config"])
def test_a_trained_head_stays_though_the_config_says_tied(tmp_path, family, where):
    tied = {"tie_word_embeddings": True}
    config = {where: tied} if where else tied
    folders = [rewritten(family[f"ft_{k}"], tmp_path / k, lambda t: t, config) for k in "ab"]
    expected = merged(linear(family["ft_a"], family["ft_b"]), tmp_path / "plain")
    found = merged(linear(*folders), tmp_path / "child")
    assert torch.equal(found["lm_head.weight"], expected["lm_head.weight"])
    said = json.loads((tmp_path / "child" / "config.json").read_text())
    assert (said[where] if where else said)["tie_word_embeddings"] is False
