"""Proof by replay: what a recipe makes is proved to the bit, and each planted fault is named."""

import json

import pytest
import torch
from families import write_safetensors
from ruamel.yaml import YAML
from safetensors.torch import load_file

import kinbase
from kinbase.errors import KinbaseError
from kinbase.provenance.proof.replay import DIFFERS, NEARLY, NOTHING, PROVED, replay

METHODS = {
    "linear": {"models": [("ft_a", {"weight": 0.6}), ("ft_b", {"weight": 0.4})]},
    "slerp": {"models": [("ft_a", {}), ("ft_b", {})], "base_model": "ft_a", "parameters": {"t": [0, 1]}},
    "task_arithmetic": {
        "models": [("ft_a", {"weight": 0.7}), ("ft_c", {"weight": 0.5})],
        "base_model": "base",
    },
    "ties": {
        "models": [("ft_a", {"weight": 0.5, "density": 0.5}), ("ft_b", {"weight": 0.5, "density": 0.6})],
        "base_model": "base",
    },
    "dare_linear": {
        "models": [("ft_a", {"weight": 0.5, "density": 0.5}), ("ft_b", {"weight": 0.5, "density": 0.6})],
        "base_model": "base",
    },
}


def config(path, method, folders):
    recipe = METHODS[method]
    document = {
        "merge_method": method,
        "models": [{"model": str(folders[m]), "parameters": dict(p)} for m, p in recipe["models"]],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    if "base_model" in recipe:
        document["base_model"] = str(folders[recipe["base_model"]])
    if "parameters" in recipe:
        document["parameters"] = recipe["parameters"]
    with path.open("w") as out:
        YAML(typ="safe", pure=True).dump(document, out)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, family):
    """A database of the family and of a task-arithmetic child, and the child's folder."""
    home = tmp_path_factory.mktemp("made")
    db = kinbase.open(home / "kin.duckdb")
    db.import_(family.values(), base="base", kinship=False)
    db.merge(config(home / "merge.yml", "task_arithmetic", family), home / "child")
    return db, home / "child"


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_makes_is_proved(tmp_path, family, method):
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_(family.values(), base="base", kinship=False)
    db.merge(config(tmp_path / "merge.yml", method, family), tmp_path / "child", seed=3)
    found = replay(db.store, "child", seed=3)
    assert found.outcome == PROVED, found.lines
    assert found.row()[2] == "supported"
    if method == "dare_linear":
        assert replay(db.store, "child", seed=4).outcome == DIFFERS


def altered(made, tmp_path, change, name="other"):
    """The child with its tensors changed, imported under another name, its configuration beside it."""
    db, folder = made
    (shard,) = folder.glob("*.safetensors")
    tensors = change(load_file(shard))
    out = tmp_path / name
    write_safetensors(out / "model.safetensors", tensors, metadata={"format": "pt"})
    for file in ("config.json", "mergekit_config.yml"):
        (out / file).write_bytes((folder / file).read_bytes())
    copy = kinbase.open(tmp_path / "kin.duckdb")
    (tmp_path / "kin.duckdb").write_bytes(db.store.path.read_bytes())
    copy.import_([out], kinship=False)
    return replay(copy.store, name)


def scaled(family, by, only=lambda name: True):
    base = load_file(next(family["base"].glob("*.safetensors")))
    return lambda child: {
        n: (base[n].float() + by * (t.float() - base[n].float())).to(t.dtype) if only(n) else t
        for n, t in child.items()
    }


FIRST = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("by", "said"),
    [(2.0, "at 2.00"), (-1.0, "sign reversed"), (0.25, "at 0.25"), (1.05, "at 1.0")],
)
def test_a_change_at_another_scale(made, family, tmp_path, by, said):
    found = altered(made, tmp_path, scaled(family, by))
    assert found.outcome == DIFFERS
    assert said in "; ".join(found.lines), found.lines


def test_a_thousandth_too_much_is_not_rounding(tmp_path, family):
    """In float32 a thousandth of a change is thousands of units; in bfloat16 it only leans on how elements are rounded."""
    from families import make_family

    folders = make_family(tmp_path / "fine", "F32")
    db = kinbase.open(tmp_path / "made.duckdb")
    db.import_(folders.values(), base="base", kinship=False)
    path = config(tmp_path / "merge.yml", "task_arithmetic", folders)
    path.write_text(path.read_text().replace("out_dtype: bfloat16", "out_dtype: float32"))
    db.merge(path, tmp_path / "child")
    found = altered((db, tmp_path / "child"), tmp_path, scaled(folders, 1.001))
    assert found.outcome == DIFFERS
    assert "at 1.0010" in "; ".join(found.lines)


def test_nothing_was_applied(made, family, tmp_path):
    found = altered(made, tmp_path, lambda child: load_file(next(family["base"].glob("*.safetensors"))))
    assert found.outcome == NOTHING
    assert "base" in found.lines[0]


def test_a_layer_without_the_change_is_named(made, family, tmp_path):
    found = altered(made, tmp_path, scaled(family, 0.0, lambda name: "layers.1." in name))
    assert found.outcome == DIFFERS
    assert "not applied in" in found.lines[0]
    assert "layers.1." in found.lines[0]
    assert "layers.0." not in found.lines[0]


def test_a_tensor_that_is_missing_or_holds_nan(made, tmp_path):
    found = altered(made, tmp_path, lambda child: {n: t for n, t in child.items() if n != FIRST})
    assert found.outcome == DIFFERS
    assert any("missing" in line and FIRST in line for line in found.lines)

    def broken(child):
        child[FIRST][0, 0] = float("nan")
        return child

    found = altered(made, tmp_path, broken, "broken")
    assert f"NaN or infinity in {FIRST}" in found.lines


def test_another_prefix_is_said_and_proved(made, tmp_path):
    found = altered(made, tmp_path, lambda child: {f"language_model.{n}": t for n, t in child.items()})
    assert found.outcome == PROVED
    assert any("called otherwise" in line for line in found.lines)


def test_another_dtype_is_said(made, tmp_path):
    found = altered(made, tmp_path, lambda child: {n: t.to(torch.float16) for n, t in child.items()})
    assert found.outcome in (NEARLY, DIFFERS)
    assert any("stored as F16 where the recipe makes BF16" in line for line in found.lines)


def test_another_revision_of_a_parent(made, family, tmp_path):
    other = load_file(next(family["ft_b"].glob("*.safetensors")))
    found = altered(made, tmp_path, lambda child: other)
    assert found.outcome == DIFFERS
    assert "another revision" in "; ".join(found.lines)


@pytest.mark.parametrize(
    ("times", "outcome", "said"), [(1, PROVED, "all"), (2, DIFFERS, "at 2.00"), (0, NOTHING, "base")]
)
def test_an_adapter_that_was_merged(tmp_path, family, times, outcome, said):
    base = load_file(next(family["base"].glob("*.safetensors")))
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(4, 32, generator=generator) / 6, torch.randn(32, 4, generator=generator) / 40
    write_safetensors(
        tmp_path / "lora" / "adapter_model.safetensors",
        {
            f"base_model.model.{FIRST.removesuffix('.weight')}.lora_{part}.weight": tensor
            for part, tensor in (("A", down), ("B", up))
        },
    )
    (tmp_path / "lora" / "adapter_config.json").write_text(
        json.dumps(
            {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 4, "lora_alpha": 8,
             "target_modules": ["q_proj"], "bias": "none"}
        )
    )  # fmt: skip
    merged = base | {
        FIRST: (base[FIRST].double() + times * 2 * up.double() @ down.double()).to(base[FIRST].dtype)
    }
    if not times:
        merged = {name: tensor.clone() for name, tensor in base.items()}
    write_safetensors(tmp_path / "tuned" / "model.safetensors", merged)
    (tmp_path / "tuned" / "config.json").write_bytes((family["base"] / "config.json").read_bytes())
    (tmp_path / "tuned" / "README.md").write_text("---\nbase_model: [base, lora]\ntags: [merge]\n---\n")
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([family["base"]], kinship=False)
    db.import_([tmp_path / "lora", tmp_path / "tuned"], base="base", kinship=False)
    found = replay(db.store, "tuned")
    assert found.recipe == "lora merged into base"
    assert found.outcome == outcome, found.lines
    assert said in "; ".join(found.lines)


def test_without_a_recipe_or_a_parent_it_is_said_in_a_line(made, tmp_path, cli):
    db, _ = made
    with pytest.raises(KinbaseError, match="has no recipe that can be run again"):
        replay(db.store, "ft_a")
    (tmp_path / "gone.yml").write_text(
        "merge_method: linear\nmodels: [{model: nobody, parameters: {weight: 1}}]\n"
    )
    with pytest.raises(KinbaseError, match="nobody"):
        replay(db.store, "child", config=str(tmp_path / "gone.yml"))


def test_on_the_command_line(made, cli):
    db, _ = made
    run = cli("--db", db.store.path, "check", "child", "--replay", "-f", "json")
    (row,) = json.loads(run.stdout)
    assert row["detail"].startswith("proved; all")
    assert "0 contradicted, 0 undecidable, 1 supported" in run.stderr
    assert run.returncode == 0
    run = cli("--db", db.store.path, "check", "--replay")
    assert run.returncode == 2
    assert "named" in run.stderr
