"""The built-in merging backend: what algebra says of each method, whole checkpoints, and mergekit itself."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys

import families
import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

import kinbase
from kinbase import merging
from kinbase.checkpoint import Tensor
from kinbase.errors import CheckpointError, KinbaseError, UsageError
from kinbase.merging import methods, streaming
from kinbase.merging.methods import Stretch
from kinbase.merging.plan import Target
from kinbase.merging.settings import value_at

UNIT = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-23}
"""The unit in the last place of 1.0."""


def merged(config, out, **options):
    """Run one merge and read its tensors."""
    merging.merge(merging.parse(config), out, **options)
    return weights(out)


def weights(folder):
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def models(family, **weighted):
    """`models` of a configuration: ft_a=0.6, or ft_a=dict(weight=0.6, density=0.5)."""
    return [
        {"model": str(family[name]), "parameters": given if isinstance(given, dict) else {"weight": given}}
        for name, given in weighted.items()
    ]


def delta_config(family, method, density=0.5, **more):
    wanted = {"weight": 0.7, "density": density}, {"weight": 0.4, "density": density}
    return {
        "merge_method": method,
        "base_model": str(family["base"]),
        "models": models(family, ft_a=wanted[0], ft_b=wanted[1]),
        **more,
    }


# Methods on whole checkpoints.


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


# Methods on a tensor made by hand.


class Bare:
    """A look at tensors in memory, in stretches of a few elements."""

    def __init__(self, tensors, shared, own, step=3, seed=0):
        dtype = {v: k for k, v in methods.DTYPES.items()}[tensors[0].dtype]
        inputs = tuple(Tensor("w", dtype, tuple(t.shape), lambda start, out: None) for t in tensors)
        self.target = Target(
            "w", tuple(tensors[0].shape), inputs, ("base",) * len(inputs), shared, own, dtype, dtype
        )
        self.seed, self.tensors = seed, tensors
        numel = tensors[0].numel()
        self.stretches = [Stretch(i, s, min(s + step, numel)) for i, s in enumerate(range(0, numel, step))]

    def load(self, stretch):
        return [tensor[stretch.start : stretch.stop].clone() for tensor in self.tensors]

    def over(self, seen):
        return iter([seen(stretch) for stretch in self.stretches])

    def result(self, method, **options):
        whole = method(self, **options)
        return torch.cat([whole(stretch) for stretch in self.stretches])


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


# Parameters.


@pytest.mark.parametrize(
    "setting, tensor, depth, wanted",
    [
        (0.5, "x", 0.3, 0.5),
        ([0, 1], "x", 0.25, 0.25),
        ([0, 0.5, 0.3, 0.7, 1], "x", 0.375, 0.4),
        ([0, 0.5, 0.3, 0.7, 1], "x", 1.0, 1.0),
        ([True, False], "x", 0.5, True),
        ([{"filter": "mlp", "value": 2}, {"value": [0, 1]}], "a.mlp.b", 0.5, 2),
        ([{"filter": "mlp", "value": 2}, {"value": [0, 1]}], "a.attn.b", 0.5, 0.5),
        ([{"filter": "mlp", "value": 2}], "a.attn.b", 0.5, None),
        ({"filter": "*", "value": 3}, "a", 0.5, 3),
    ],
)
def test_filters_and_gradients(setting, tensor, depth, wanted):
    got = value_at(setting, tensor, depth)
    assert (
        got is wanted
        if wanted is None or isinstance(wanted, bool)
        else got == pytest.approx(wanted, rel=1e-15)
    )


def test_gradients_run_over_the_layers_and_filters_choose_tensors(tmp_path, family):
    share = {"weight": [{"filter": "mlp", "value": 1}, {"filter": "layers", "value": [0, 1]}, {"value": 1}]}
    rest = {"weight": [{"filter": "mlp", "value": 0}, {"filter": "layers", "value": [1, 0]}, {"value": 0}]}
    child = merged(
        {"merge_method": "linear", "models": models(family, ft_a=share, ft_b=rest)}, tmp_path / "child"
    )
    a, b = weights(family["ft_a"]), weights(family["ft_b"])
    for name, tensor in child.items():
        of_b = (
            "layers.0" in name and "mlp" not in name
        )  # two layers: the first takes the gradient's first end
        assert torch.equal(tensor, (b if of_b else a)[name]), name


def test_slices_renumber_layers(tmp_path, family):
    slices = [
        {"sources": [{"model": str(family[m]), "layer_range": [layer, layer + 1], "parameters": {"weight": w}} for m, w in pair]}
        for layer, pair in (
            (1, (("ft_a", 1), ("ft_b", 0))), (0, (("ft_a", 0), ("ft_b", 1))), (1, (("ft_a", 1), ("ft_b", 0))),
        )
    ]  # fmt: skip
    child = merged({"merge_method": "linear", "slices": slices}, tmp_path / "child")
    a, b = weights(family["ft_a"]), weights(family["ft_b"])
    rest = "self_attn.q_proj.weight"
    for out, source in enumerate(
        (a[f"model.layers.1.{rest}"], b[f"model.layers.0.{rest}"], a[f"model.layers.1.{rest}"])
    ):
        assert torch.equal(child[f"model.layers.{out}.{rest}"], source)
    assert torch.equal(child["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "child" / "config.json").read_text())["num_hidden_layers"] == 3


# Folders.


def test_sharded_parents_and_a_sharded_child_hold_the_same(tmp_path, family):
    split = tmp_path / "split"
    shutil.copytree(family["ft_a"], split)
    tensors = load_file(split / "model.safetensors")
    (split / "model.safetensors").unlink()
    half = len(tensors) // 2
    parts = {
        "model-00001-of-00002.safetensors": list(tensors)[:half],
        "model-00002-of-00002.safetensors": list(tensors)[half:],
    }
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, split / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = merged(
        {"merge_method": "linear", "models": models(family, ft_a=0.6, ft_b=0.4)}, tmp_path / "whole"
    )
    config = {"merge_method": "linear", "models": models({**family, "ft_a": split}, ft_a=0.6, ft_b=0.4)}
    sharded = merged(config, tmp_path / "sharded", shard_bytes=12_000)
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
    written = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert written["weight_map"].keys() == whole.keys()
    assert written["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in whole.values())
    for file in set(written["weight_map"].values()):
        assert (
            tmp_path / "sharded" / file
        ).stat().st_size <= 12_000 + 2000  # bytes of tensors, and the header


def test_dtypes_are_as_the_configuration_says(tmp_path, family):
    config = {"merge_method": "linear", "models": models(family, ft_a=0.6, ft_b=0.4), "dtype": "float32"}
    assert {t.dtype for t in merged(config, tmp_path / "a").values()} == {torch.float32}
    assert {t.dtype for t in merged({**config, "out_dtype": "float16"}, tmp_path / "b").values()} == {
        torch.float16
    }
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == "float16"


def test_a_head_of_its_own_in_one_parent_is_merged_with_the_embedding_of_the_other(tmp_path):
    tensors = {
        "model.embed_tokens.weight": torch.tensor([[1.0, 2], [3, 4]]),
        "model.layers.0.mlp.weight": torch.ones(2),
    }
    head = {"lm_head.weight": torch.tensor([[3.0, 2], [1, 0]])}
    for name, own in (("tied", {}), ("untied", head)):
        families.write_safetensors(tmp_path / name / "model.safetensors", {**tensors, **own})
        (tmp_path / name / "config.json").write_text(
            json.dumps({"tie_word_embeddings": not own, "num_hidden_layers": 1})
        )
    both = models({"tied": tmp_path / "tied", "untied": tmp_path / "untied"}, tied=1, untied=1)
    child = merged({"merge_method": "linear", "models": both}, tmp_path / "child")
    assert torch.equal(child["lm_head.weight"], torch.full((2, 2), 2.0))
    assert json.loads((tmp_path / "child" / "config.json").read_text())["tie_word_embeddings"] is False


def test_integer_buffers_are_copied_when_they_agree(tmp_path):
    for name, ids in (("a", [0, 1]), ("b", [0, 1]), ("c", [0, 2])):
        families.write_safetensors(
            tmp_path / name / "model.safetensors", {"w": torch.ones(2), "ids": torch.tensor(ids)}
        )
    folders = {name: tmp_path / name for name in "abc"}
    child = merged({"merge_method": "linear", "models": models(folders, a=1, b=1)}, tmp_path / "child")
    assert child["ids"].tolist() == [0, 1]
    with pytest.raises(CheckpointError, match=r"buffer 'ids' is not the same in a and c"):
        merged({"merge_method": "linear", "models": models(folders, a=1, c=1)}, tmp_path / "other")


def test_what_lies_beside_the_weights(tmp_path, family):
    folders = {name: shutil.copytree(family[name], tmp_path / name) for name in ("base", "ft_a", "ft_b")}
    for name, license in (("base", "mit"), ("ft_a", "apache-2.0"), ("ft_b", "apache-2.0")):
        (folders[name] / "README.md").write_text(f"---\nlicense: {license}\n---\n")
    (folders["base"] / "tokenizer.json").write_text("{}")
    (folders["base"] / "generation_config.json").write_text('{"top_k": 1}')
    merging.merge(merging.parse(delta_config(folders, "ties")), tmp_path / "child")
    merging.merge(
        merging.parse({"merge_method": "linear", "models": models(folders, ft_a=1, ft_b=1)}),
        tmp_path / "second",
    )
    child = tmp_path / "child"
    assert (child / "tokenizer.json").read_text() == "{}"
    assert (child / "generation_config.json").read_text() == '{"top_k": 1}'
    header = YAML(typ="safe").load((child / "README.md").read_text().split("---\n")[1])
    assert header == {  # the base of a delta method is no parent, and its licence is not the others'
        "base_model": ["ft_a", "ft_b"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["mergekit", "merge"],
    }
    assert (
        YAML(typ="safe").load((tmp_path / "second" / "README.md").read_text().split("---\n")[1])["license"]
        == "apache-2.0"
    )
    recorded = YAML(typ="safe").load((child / "mergekit_config.yml").read_text())
    assert recorded == delta_config(folders, "ties")


# Whole or not at all.


def test_a_link_out_of_a_parent_is_not_followed(tmp_path, family):
    """A stranger's tokenizer.json could be a link to anything here, and the child may be published."""
    folders = {name: shutil.copytree(family[name], tmp_path / name) for name in ("base", "ft_a", "ft_b")}
    (tmp_path / "secret").write_text("mine")
    (folders["base"] / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(KinbaseError, match="is a link out of its folder"):
        merging.merge(merging.parse(delta_config(folders, "ties")), tmp_path / "child")
    assert not (tmp_path / "child").exists() and not (tmp_path / "child.part").exists()


def test_an_interrupted_merge_leaves_nothing(tmp_path, family):
    def interrupt(done, total):
        if done * 2 > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merging.merge(merging.parse(delta_config(family, "ties")), tmp_path / "child", report=interrupt)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from kinbase import merging
def report(done, total):
    if done * 2 > total:
        os.kill(os.getpid(), signal.SIGKILL)
merging.merge(merging.load(sys.argv[1]), sys.argv[2], report=report)
"""


def test_what_a_killed_merge_leaves_is_no_checkpoint_and_in_nobodys_way(tmp_path, family):
    (tmp_path / "merge.json").write_text(json.dumps(delta_config(family, "ties")))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "merge.json"), str(tmp_path / "child")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    left = tmp_path / "child.part"
    assert left.is_dir() and not (tmp_path / "child").exists()
    (row,) = kinbase.open(tmp_path / "kin.duckdb").import_([left]).to_dicts()
    assert row["status"] == "failed"
    merging.merge(merging.load(tmp_path / "merge.json"), tmp_path / "child")
    assert not left.exists() and (tmp_path / "child" / "model.safetensors").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, family, cli):
    (tmp_path / "merge.json").write_text(json.dumps(delta_config(family, "ties")))

    def bounded():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the child has 49,472 bytes of weights

    got = cli("merge", "--no-import", "merge.json", "child", preexec_fn=bounded)
    assert got.returncode == 1
    assert got.stderr.count("\n") == 1 and "a file of this size is not allowed; nothing is left" in got.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["merge.json"]


def test_room_is_looked_for_first(tmp_path, family, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    )
    with pytest.raises(KinbaseError, match=r"takes 0.0 GB and .* has 0.0 GB free: make room"):
        merging.merge(merging.parse(delta_config(family, "ties")), tmp_path / "child")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_touched(tmp_path, family):
    config = merging.parse(delta_config(family, "ties"))
    (tmp_path / "child").mkdir()
    with pytest.raises(UsageError, match=r"exists: name a folder that is not there yet"):
        merging.merge(config, tmp_path / "child")
    (tmp_path / "other.part").mkdir()
    (tmp_path / "other.part" / "thesis.tex").write_text("do not lose")
    with pytest.raises(UsageError, match=r"is in the way"):
        merging.merge(config, tmp_path / "other")
    assert (tmp_path / "other.part" / "thesis.tex").exists()


# Bad input.


GOOD = {"merge_method": "slerp", "base_model": "a", "models": ["a", "b"], "parameters": {"t": 0.5}}


@pytest.mark.parametrize(
    "change, said",
    [
        (
            {"merge_method": "tise"},
            "no known merge_method 'tise': did you mean ties\\? built in are linear, slerp, .*mergekit",
        ),
        ({"merge_method": "della"}, "wants della, which only mergekit does: --backend mergekit"),
        ({"merge_method": None}, "merge_method is missing"),
        ({"paramters": {}}, "unknown key 'paramters': did you mean parameters\\?"),
        ({"models": [{"modle": "a"}, "b"]}, "unknown key 'models\\[0\\].modle': did you mean model\\?"),
        ({"parameters": {"wieght": 1}}, "unknown key 'parameters.wieght': did you mean weight\\?"),
        (
            {"parameters": {"t": [{"fliter": "mlp", "value": 1}]}},
            "'parameters.t\\[0\\].fliter': did you mean filter\\?",
        ),
        ({"parameters": {"t": "half"}}, "parameters.t is 'half', where a number was expected"),
        ({"parameters": {"t": [0, float("nan")]}}, "parameters.t is 'nan', where a number"),
        ({"parameters": {"t": 10**400}}, "where a number was expected"),
        ({"parameters": {"density": 1.5}}, "a density lies between 0 and 1"),
        ({"parameters": {"normalize": 1}}, "where true or false was expected"),
        ({"parameters": {"t": []}}, "parameters.t is an empty list"),
        ({"base_model": None}, "base_model is missing: slerp needs one"),
        ({"models": ["a", "a"]}, "lists 'a' twice"),
        ({"models": ["a", "b", "c"]}, "2 models beside the base: slerp merges exactly two"),
        ({"models": []}, "models is no list of sources"),
        ({"models": None}, "needs models or slices"),
        ({"slices": []}, "needs models or slices, and not both"),
        ({"dtype": "bf16"}, "dtype is 'bf16': give one of float32, float16, bfloat16"),
        ({"chat_template": "chatml"}, "chat_template is set by mergekit itself only"),
        ({"tokenizer": {"source": "base", "tokens": {"<s>": {}}}}, "tokenizer changes tokens"),
        ({"models": None, "modules": {"text": {}}}, "modules is merged by mergekit itself only"),
    ],
)
def test_a_wrong_configuration_is_named(change, said):
    config = {key: value for key, value in (GOOD | change).items() if value is not None}
    with pytest.raises(KinbaseError, match=said) as raised:
        merging.parse(config, "merge.yml")
    assert "\n" not in str(raised.value) and str(raised.value).startswith("merge.yml")


def test_parameters_of_other_methods_are_let_pass_and_told(tmp_path, family):
    config = delta_config(family, "task_arithmetic", parameters={"int8_mask": True, "t": 0.5})
    assert merging.merge(merging.parse(config), tmp_path / "child").notes == (
        "task_arithmetic has no parameter density: left aside",
        "task_arithmetic has no parameter t: left aside",
    )


def test_a_value_for_every_tensor_is_wanted(tmp_path, family):
    only_mlp = {"weight": [{"filter": "mlp", "value": 1}]}
    config = {"merge_method": "linear", "models": models(family, ft_a=1, ft_b=only_mlp)}
    with pytest.raises(
        KinbaseError, match=r"ft_b: .* gives no weight for the tensor .*: add a value without a filter"
    ):
        merging.merge(merging.parse(config), tmp_path / "child")


def broken(family, folder, change):
    """A copy of ft_b with `change` applied to its tensors."""
    shutil.copytree(family["ft_b"], folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda t: t.update({NORM: torch.ones(7)}),
            f"{NORM}' is 32 in ft_a and 7 in odd: models of one shape",
        ),
        (lambda t: t.pop(NORM), f"odd has no tensor '{NORM}', which ft_a has"),
        (lambda t: t[NORM].__setitem__(3, float("nan")), f"odd holds NaN or infinity in '{NORM}'"),
        (lambda t: t[NORM].__setitem__(3, float("inf")), f"odd holds NaN or infinity in '{NORM}'"),
        (
            lambda t: t.update({NORM: torch.ones(32, dtype=torch.int64)}),
            "holds integers in odd and weights in ft_a",
        ),
    ],
    ids=["shape", "missing", "nan", "infinity", "integers"],
)
def test_a_parent_that_does_not_fit_is_named(tmp_path, family, change, said):
    folders = {**family, "odd": broken(family, tmp_path / "odd", change)}
    with pytest.raises(KinbaseError, match=said):
        merged({"merge_method": "linear", "models": models(folders, ft_a=1, odd=1)}, tmp_path / "child")
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


@pytest.mark.parametrize("method", ["slerp", "dare_linear"])
def test_a_broken_parent_is_named_wherever_it_is_broken(tmp_path, family, method, monkeypatch):
    """Both scale a tensor by sums over all of it: a NaN at its end spoils its beginning."""
    monkeypatch.setattr(streaming, "STRETCH", 8)
    odd = broken(family, tmp_path / "odd", lambda t: t[NORM].__setitem__(30, float("nan")))
    folders = {**family, "odd": odd}
    config = {"merge_method": method, "models": models(folders, ft_a=1, odd=1)}
    if method == "slerp":
        config |= {"models": models(folders, ft_a={}, odd={}), "base_model": str(folders["ft_a"])}
        config |= {"parameters": {"t": 0.5}}
    else:
        config |= {"base_model": str(folders["base"]), "parameters": {"density": 0.5}}
    with pytest.raises(KinbaseError, match=f"odd holds NaN or infinity in '{NORM}'"):
        merged(config, tmp_path / "child")


def test_an_overflow_is_told_from_a_broken_parent(tmp_path, family):
    big = broken(family, tmp_path / "big", lambda t: t.update({NORM: t[NORM] * 1e30}))
    with pytest.raises(
        KinbaseError, match=r"'model.norm.weight' overflows when it is merged and stored as F16"
    ):
        merged(
            {
                "merge_method": "linear",
                "models": models({**family, "big": big}, ft_a=1, big=1),
                "out_dtype": "float16",
            },
            tmp_path / "child",
        )


def test_layers_that_are_not_there(tmp_path, family):
    sources = [{"model": str(family[name]), "layer_range": [0, 9]} for name in ("ft_a", "ft_b")]
    config = {"merge_method": "linear", "slices": [{"sources": sources}], "parameters": {"weight": 1}}
    with pytest.raises(KinbaseError, match=r"layer_range \[0, 9\] is asked of ft_a, which has 2 layers"):
        merging.merge(merging.parse(config), tmp_path / "child")


def test_weights_that_add_up_to_nothing(tmp_path, family):
    config = {"merge_method": "linear", "models": models(family, ft_a=1, ft_b=-1)}
    with pytest.raises(KinbaseError, match=r"add up to 0"):
        merging.merge(merging.parse(config), tmp_path / "child")


def test_other_vocabularies_want_mergekit(tmp_path, family):
    folders = {name: shutil.copytree(family[name], tmp_path / name) for name in ("ft_a", "ft_b")}
    for name, words in (("ft_a", {"x": 0, "y": 1}), ("ft_b", {"y": 0, "x": 1})):
        (folders[name] / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}}))
    config = {"merge_method": "linear", "models": models(folders, ft_a=1, ft_b=1), "tokenizer_source": "base"}
    with pytest.raises(KinbaseError, match=r"tokenizers of ft_a and ft_b differ: --backend mergekit"):
        merging.merge(merging.parse(config), tmp_path / "child")


# With a database.


def test_names_become_checkpoints_and_the_child_is_recorded(tmp_path, db, cli):
    (tmp_path / "merge.yml").write_text(
        "merge_method: ties\nbase_model: base\ndtype: bfloat16\nmodels:\n"
        "  - {model: ft_a, parameters: {weight: 0.6, density: 0.5}}\n  - {model: ft_b, parameters: {weight: 0.4, density: 0.5}}\n"
    )
    got = cli("merge", "merge.yml", "out/child")
    assert got.returncode == 0, got.stderr
    assert "merged into out/child, imported as child against base" in got.stderr
    edges = db.sql(
        "select parent, relation, method, weight from lineage where child = 'child' and evidence = 'config' order by all"
    )
    assert edges.rows() == [
        ("base", "base", "ties", None),
        ("ft_a", "merge", "ties", 0.6),
        ("ft_b", "merge", "ties", 0.4),
    ]
    assert db.nearest_kin("child", 1)["method"].to_list() == ["exact"]
    assert set(db.sql("select name from models")["name"]) == {
        "base",
        "ft_a",
        "ft_b",
        "ft_c",
        "merge_ab",
        "child",
    }
    again = cli("merge", "merge.yml", "elsewhere/child")
    assert again.returncode == 1 and "there is a model 'child' already" in again.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_parents_by_path_come_in_with_the_child(tmp_path, empty, family):
    config = {"merge_method": "linear", "models": models(family, ft_a=0.6, ft_b=0.4)}
    (row,) = empty.merge(config, tmp_path / "child").to_dicts()
    assert (row["model"], row["status"]) == ("child", "imported")
    assert empty.names() == ["child", "ft_a", "ft_b"]
    assert set(empty.sql("select parent from lineage where child = 'child'")["parent"]) == {"ft_a", "ft_b"}


def test_without_import_the_database_is_not_made(tmp_path, family, cli):
    (tmp_path / "merge.json").write_text(json.dumps(delta_config(family, "ties")))
    got = cli("merge", "--no-import", "merge.json", "child")
    assert (got.returncode, got.stderr) == (0, "merged into child\n")
    assert not (tmp_path / "kin.duckdb").exists()


@pytest.mark.parametrize(
    "model, said",
    [("ft_aa", "there is no model 'ft_aa': did you mean ft_a"), ("ghost", "known by name only")],
)
def test_unknown_models_are_named(tmp_path, db, model, said):
    db.link("ft_c", ["ghost"])
    with pytest.raises(KinbaseError, match=said):
        db.merge(
            {"merge_method": "linear", "models": [model, "ft_b"], "parameters": {"weight": 1}},
            tmp_path / "child",
        )


def test_the_other_backend_says_how_it_is_had(tmp_path, db):
    if shutil.which("mergekit-yaml") or _has_mergekit():
        pytest.skip("mergekit is installed")
    with pytest.raises(UsageError, match=r"pip install 'kinbase\[mergekit\]'"):
        db.merge(
            {"merge_method": "della", "base_model": "base", "models": ["ft_a", "ft_b"]},
            tmp_path / "child",
            backend="mergekit",
        )


def _has_mergekit():
    from importlib.util import find_spec

    return find_spec("mergekit") is not None


# Against mergekit itself.


@pytest.fixture(scope="module")
def kit():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    pytest.importorskip("mergekit")
    import mergekit.config
    import mergekit.merge

    return mergekit


def by_mergekit(kit, config, out):
    wanted = kit.config.MergeConfiguration.model_validate(config)
    options = kit.merge.MergeOptions(
        quiet=True, write_model_card=False, copy_tokenizer=False, out_shard_size=12_000
    )
    kit.merge.run_merge(wanted, str(out), options)
    return weights(out)


GRADIENT = {
    "t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": [1, 0]}, {"value": 0.5}]
}
PLANS = {
    "linear": ("linear", {}),
    "sum": ("linear", {"normalize": False}),
    "slerp": ("slerp", GRADIENT),
    "task_arithmetic": ("task_arithmetic", {"lambda": 0.7}),
    "mean change": ("task_arithmetic", {"normalize": True}),
    "ties": ("ties", {}),
    "rescaled ties": ("ties", {"rescale": True, "normalize": False, "int8_mask": True}),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("stored, dtype, out", [
    ("BF16", None, None), ("F16", None, None), ("F32", "bfloat16", None), ("BF16", "float32", "bfloat16"), ("F32", None, None),
])  # fmt: skip
def test_equal_to_mergekit(tmp_path, monkeypatch, kit, plan, stored, dtype, out):
    # mergekit keeps whichever of equal magnitudes its unstable sort finds; ours keeps the first.
    sort = torch.argsort
    monkeypatch.setattr(
        torch,
        "argsort",
        lambda x, dim=-1, descending=False: sort(x, dim=dim, descending=descending, stable=True),
    )
    family = families.make_family(tmp_path / "family", dtype=stored)
    method, parameters = PLANS[plan]
    each = {
        "ft_a": {"weight": 0.6, "density": 0.5},
        "ft_b": {"weight": [0.2, 0.5], "density": 0.3},
        "ft_c": {"weight": 0.3, "density": 1},
    }
    config = {"merge_method": method, "models": models(family, **each), "parameters": parameters}
    if method == "slerp":
        config |= {
            "models": [{"model": str(family[name])} for name in ("ft_a", "ft_b")],
            "base_model": str(family["ft_b"]),
        }
    elif method != "linear":
        config["base_model"] = str(family["base"])
    config |= ({"dtype": dtype} if dtype else {}) | ({"out_dtype": out} if out else {})
    theirs = by_mergekit(kit, config, tmp_path / "theirs")
    ours = merged(config, tmp_path / "ours")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        size = 2.0 ** torch.floor(torch.log2(tensor.double().abs().clamp_min(1e-30)))
        assert bool(((ours[name].double() - tensor.double()).abs() <= UNIT[tensor.dtype] * size).all()), name


@pytest.mark.parametrize("method, elect", [("dare_linear", False), ("dare_ties", True)])
@pytest.mark.parametrize("stored", ["BF16", "F16", "F32"])
def test_dare_equals_mergekit_with_the_same_masks(tmp_path, monkeypatch, kit, method, elect, stored):
    drawn = {}
    bernoulli = torch.bernoulli

    def keep(tensor, *rest, **more):
        mask = bernoulli(tensor, *rest, **more)
        drawn.setdefault(tuple(mask.shape), []).append(mask)
        return mask

    family = families.make_family(tmp_path / "family", dtype=stored)
    config = delta_config(family, method)
    monkeypatch.setattr(torch, "bernoulli", keep)
    theirs = by_mergekit(kit, config, tmp_path / "theirs")
    base, a, b = (weights(family[name]) for name in ("base", "ft_a", "ft_b"))
    shared = {"normalize": False, "rescale": True, "lambda": 1.0}
    name = NORM  # the only one of its size but the layers' norms, and merged after them
    masks = drawn[tuple(base[name].shape)]
    fits = []
    for first in range(0, len(masks), 2):
        look = Bare(
            [base[name], a[name], b[name]],
            shared,
            ({}, {"weight": 0.7, "density": 0.5}, {"weight": 0.4, "density": 0.5}),
            step=10,
        )
        pair = masks[first : first + 2]
        got = look.result(
            methods.dare, elect=elect, mask=lambda _, i, s, pair=pair: pair[i][s.start : s.stop].float()
        )
        fits.append(
            bool(((got.double() - theirs[name].double()).abs() <= UNIT[got.dtype]).all())
        )  # norms are near 1
    assert any(fits) and len(fits) == 5


def test_dare_is_equal_to_mergekit_in_distribution(tmp_path, kit):
    family = families.make_family(tmp_path / "family", dtype="F32")
    config = delta_config(family, "dare_linear", density=0.3)
    ours, theirs = merged(config, tmp_path / "ours", seed=1), by_mergekit(kit, config, tmp_path / "theirs")
    base = weights(family["base"])
    # Both of two changes are dropped with probability 0.49, and then the weight is the base's.
    for child in (ours, theirs):
        kept = np.concatenate([(child[name] == base[name]).flatten().numpy() for name in base])
        assert abs(kept.mean() - 0.49) < 5 * math.sqrt(0.49 * 0.51 / len(kept))


def test_the_mergekit_backend(tmp_path, db, kit):
    config = {
        "merge_method": "nuslerp", "base_model": "base", "parameters": {"weight": 0.5},
        "models": ["ft_a", "ft_b"],
    }  # fmt: skip
    config["models"] = [{"model": name, "parameters": {"weight": 0.5}} for name in config["models"]]
    (row,) = db.merge(config, tmp_path / "child", backend="mergekit").to_dicts()
    assert (row["model"], row["base"]) == ("child", "base")
    assert {"ft_a", "ft_b"} <= set(db.sql("select parent from lineage where child = 'child'")["parent"])
    with pytest.raises(KinbaseError, match=r"no known merge_method 'nuslrp': nearest are nuslerp"):
        db.merge({**config, "merge_method": "nuslrp"}, tmp_path / "other", backend="mergekit")
    with pytest.raises(KinbaseError, match=r"mergekit refused the merge: "):
        db.merge(
            {**config, "parameters": {"weight": "x"}, "models": ["ft_a"]},
            tmp_path / "other",
            backend="mergekit",
        )
    assert not list(tmp_path.glob("other*"))
