"""A member that is compared by a part of its base: `import` says by how much, and why."""

import families
import pytest
import torch
from safetensors.torch import load_file, save_file

import kinbase

LAYER = "model.layers.1."


def changed(family, folder, change):
    """A copy of ft_a whose tensors `change` has altered."""
    tensors = load_file(family["ft_a"] / "model.safetensors")
    change(tensors)
    folder.mkdir()
    (folder / "config.json").write_text((family["ft_a"] / "config.json").read_text())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def numel(names=lambda name: True):
    sizes = {name: torch.Size(shape).numel() for name, shape in families.llama_shapes().items()}
    return sum(size for name, size in sizes.items() if names(name))


@pytest.fixture
def notes(tmp_path, family):
    def imported(name, change, **options):
        db = kinbase.open(tmp_path / "kin.duckdb")
        db.import_([family["base"]])
        report = db.import_([changed(family, tmp_path / name, change)], base="base", **options)
        assert report["status"].to_list() == ["imported"]
        return report["notes"].to_list()[0]

    return imported


def test_whole_members_have_nothing_to_be_told(db, family, tmp_path):
    more = db.import_(
        [changed(family, tmp_path / "whole", lambda t: t["model.norm.weight"].add_(0.5))], base="base"
    )
    assert more["notes"].to_list() == [[]]


@pytest.mark.parametrize("sketch", [False, True])
def test_missing_layers_are_counted_and_named(notes, sketch):
    def shallow(tensors):
        for name in [name for name in tensors if name.startswith(LAYER)]:
            del tensors[name]

    said = notes("shallow", shallow, sketch=sketch)
    share = 1 - numel(lambda name: name.startswith(LAYER)) / numel()
    about = (
        f"shallow is compared by {share:.1%} of the parameters of base: of its tensors 9 missing in it "
        "(model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight, "
        "model.layers.1.mlp.gate_proj.weight, and 6 more)"
    )
    assert about in said
    layers = "shallow has 1 layer (layers) where base has 2"
    assert sketch or any(line.replace("model.layers", "layers") == layers for line in said)


def test_other_shapes_and_strangers_are_told_apart(notes):
    def other(tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-2].contiguous()
        tensors["model.extra.weight"] = torch.ones(3, dtype=torch.bfloat16)
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].contiguous()

    (said,) = notes("other", other)
    lost = numel(lambda name: name == "lm_head.weight") + families.HIDDEN
    assert said == (
        f"other is compared by {1 - lost / numel():.1%} of the parameters of base: of its tensors "
        "1 not in the base (model.extra.weight); 1 of another shape, left out (lm_head.weight); "
        "1 with fewer rows than the base's (model.embed_tokens.weight)"
    )


def test_a_higher_stack_is_told_though_all_of_the_base_is_in_it(notes):
    def deep(tensors):
        for name in [name for name in tensors if name.startswith(LAYER)]:
            tensors[name.replace(LAYER, "model.layers.2.")] = torch.randn(tensors[name].shape).bfloat16()

    torch.manual_seed(2)
    stranger, said, beyond = notes("deep", deep)
    assert said.startswith("deep has 3 layers (") and said.endswith(") where base has 2")
    assert stranger == "deep: layers 2 have nothing in common with any of the base's"
    assert (
        "of the parameters of deep take no part: 9 of its tensors are not in base (model.layers.2." in beyond
    )


def test_a_layer_repeated_on_top_is_told_with_the_one_that_it_is(notes):
    def deep(tensors):
        for name in [name for name in tensors if name.startswith(LAYER)]:
            tensors[name.replace(LAYER, "model.layers.2.")] = tensors[name] + 0.5

    matched, said = notes("deep", deep)
    assert said.startswith("deep has 3 layers (") and said.endswith(") where base has 2")
    assert matched == "deep: layers matched by content, not by number: layer 2 is the base's layer 1"


@pytest.mark.parametrize("sketch", [False, True])
def test_what_the_base_has_not_is_counted_though_all_of_the_base_is_compared(notes, sketch):
    def more(tensors):
        tensors["vision_tower.patches.weight"] = torch.ones(numel() // 4, 2, dtype=torch.bfloat16)
        tensors["v_head.weight"] = torch.ones(1, families.HIDDEN, dtype=torch.bfloat16)

    said = notes("more", more, sketch=sketch)
    beyond = 2 * (numel() // 4) + families.HIDDEN
    assert said[-1] == (
        f"{beyond / (numel() + beyond):.1%} of the parameters of more take no part: 2 of its tensors are not in base "
        "(v_head.weight, vision_tower.patches.weight)"
    )


def test_a_head_of_its_own_is_too_small_to_be_told(notes):
    assert notes("headed", lambda t: t.update({"v_head.weight": torch.ones(1, families.HIDDEN)})) == []
