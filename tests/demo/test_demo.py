"""The demo family, much reduced: the folder contract, the same bytes twice, real learning, exact merges."""

import json
import shutil

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from kinbase.demo.family import FAMILY, FIRST_DATE, LORA_TARGETS, Merged, accuracies, make_family
from kinbase.demo.model import (
    DIGITS,
    FIRST_TASK,
    HELD_OUT,
    TASKS,
    Config,
    Transformer,
    add_lora,
    draw,
    evaluate,
    load,
    save,
    train,
)
from kinbase.errors import UsageError

SMALL = Config(hidden_size=32, intermediate_size=64, layers=2, heads=2)
SCALE = 0.03


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Shrink the models and the examinations of every test here, and leave the other cores alone."""
    monkeypatch.setattr("kinbase.demo.family.CONFIG", SMALL)
    monkeypatch.setattr("kinbase.demo.family.EXAMPLES", 50)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The reduced family's folders by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kinbase.demo.family.CONFIG", SMALL)
        patch.setattr("kinbase.demo.family.EXAMPLES", 50)
        made = make_family(tmp_path_factory.mktemp("demo"), steps_scale=SCALE)
    return {folder.name: folder for folder in made}


def contents(folders):
    """Every file of the folders, as bytes by name."""
    return {
        f"{folder.name}/{path.name}": path.read_bytes() for folder in folders for path in folder.iterdir()
    }


def weights(folder):
    """A checkpoint's tensors in float64."""
    return {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}


# The model and its exercises.


def test_tensor_names_and_shapes_are_llamas():
    shapes = {name: tuple(tensor.shape) for name, tensor in Transformer(SMALL).state_dict().items()}
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (16, 32)
    assert shapes["model.norm.weight"] == (32,)
    assert len(shapes) == 3 + 9 * SMALL.layers
    layer = {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (32, 32),
        "self_attn.v_proj": (32, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (64, 32),
        "mlp.up_proj": (64, 32),
        "mlp.down_proj": (32, 64),
        "input_layernorm": (32,),
        "post_attention_layernorm": (32,),
    }
    assert {name: shapes[f"model.layers.1.{name}.weight"] for name in layer} == layer


def test_forward_is_llama_written_out_in_float64():
    """The published formulas, one position and one head at a time, against the model."""
    model = Transformer(SMALL, seed=3)
    w = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    tokens = draw("sort", 1, torch.Generator().manual_seed(0))[0]
    half, heads, length = SMALL.head_size // 2, SMALL.heads, len(tokens)

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight

    def turn(vector, position):
        angles = position * 10_000.0 ** -(np.arange(half) / half)
        a, b = vector[:half], vector[half:]
        return np.concatenate(
            [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)]
        )

    x = w["model.embed_tokens.weight"][tokens]
    for i in range(SMALL.layers):
        p = f"model.layers.{i}."
        h = norm(x, w[p + "input_layernorm.weight"])
        q, k, v = (
            (h @ w[p + f"self_attn.{part}_proj.weight"].T).reshape(length, heads, 2 * half) for part in "qkv"
        )
        mixed = np.zeros_like(q)
        for head in range(heads):
            for to in range(length):
                logits = np.array(
                    [
                        turn(q[to, head], to) @ turn(k[at, head], at) / np.sqrt(2 * half)
                        for at in range(to + 1)
                    ]
                )
                share = np.exp(logits - logits.max())
                mixed[to, head] = share @ v[: to + 1, head] / share.sum()
        x = x + mixed.reshape(length, -1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate = h @ w[p + "mlp.gate_proj.weight"].T
        x = (
            x
            + (gate / (1 + np.exp(-gate)) * (h @ w[p + "mlp.up_proj.weight"].T))
            @ w[p + "mlp.down_proj.weight"].T
        )
    expected = norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T
    with torch.no_grad():
        np.testing.assert_allclose(model(tokens[None])[0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("reverse", [5, 0, 9, 3, 1, 3]),
        ("sort", [0, 1, 3, 3, 5, 9]),
        ("rank", [2, 1, 2, 5, 0, 4]),
        ("total", [3, 4, 7, 6, 6, 1]),
        ("peak", [3, 3, 3, 9, 9, 9]),
    ],
)
def test_tasks(task, answer):
    assert TASKS[task](torch.tensor([[3, 1, 3, 9, 0, 5]])).tolist() == [answer]


@pytest.mark.parametrize("held_out", [False, True])
def test_examined_exercises_are_never_trained_on(held_out):
    tokens = draw("rank", 2000, torch.Generator().manual_seed(1), held_out=held_out)
    assert tokens.shape == (2000, 2 + 2 * DIGITS)
    assert (tokens[:, 0] == FIRST_TASK + list(TASKS).index("rank")).all()
    numbers = (tokens[:, 1 : 1 + DIGITS] * 10 ** torch.arange(DIGITS - 1, -1, -1)).sum(1)
    assert ((numbers % HELD_OUT == 0) == held_out).all()
    assert numbers.min() < 20_000
    assert numbers.max() > 980_000


def test_training_learns_what_it_is_shown_and_counts_it_rightly():
    model = Transformer(SMALL)
    assert evaluate(model, "peak", 200)[0] < 0.02
    train(model, {"peak": 1.0}, steps=120, lr=1e-2, seed=1)
    accuracy, stderr = evaluate(model, "peak", 200)
    assert accuracy > 0.5
    assert stderr == pytest.approx((accuracy * (1 - accuracy) / 199) ** 0.5)
    assert evaluate(model, "reverse", 200)[0] < 0.02

    # A fault is counted where greedy decoding would make one.
    tokens = draw("peak", 200, torch.Generator().manual_seed(list(TASKS).index("peak")), held_out=True)
    said = tokens[:, :-DIGITS]
    with torch.no_grad():
        for _ in range(DIGITS):
            said = torch.cat((said, model(said)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert (said == tokens).all(1).double().mean().item() == accuracy


def test_saving_rounds_to_bfloat16_and_loading_gives_it_back(tmp_path):
    model = Transformer(SMALL, seed=2)
    save(model, tmp_path)
    assert load(tmp_path).config == SMALL
    for name, tensor in load(tmp_path).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].bfloat16().float())


# The family.


def test_same_seed_same_bytes_and_another_seed_other_weights(folders, tmp_path):
    again = make_family(tmp_path / "again", steps_scale=SCALE)
    assert contents(again) == contents(folders.values())
    other = make_family(tmp_path / "other", steps_scale=0.001, seed=1)
    assert (other[0] / "model.safetensors").read_bytes() != (again[0] / "model.safetensors").read_bytes()


def test_folders_come_parents_first_and_hold_what_a_checkpoint_has(folders):
    assert list(folders) == [recipe.name for recipe in FAMILY]
    seen = set()
    for recipe in FAMILY:
        folder = folders[recipe.name]
        files = {path.name for path in folder.iterdir()}
        results = next(name for name in files if name.startswith("results_"))
        kind = {"README.md", results}
        if isinstance(recipe, Merged):
            parents = {*recipe.parents, *([recipe.base] if recipe.base else [])}
            kind |= {"config.json", "model.safetensors", "mergekit_config.yml"}
        else:
            parents = {recipe.parent} if recipe.parent else set()
            kind |= (
                {"adapter_config.json", "adapter_model.safetensors"}
                if recipe.lora
                else {"config.json", "model.safetensors"}
            )
        assert files == kind
        assert parents <= seen
        seen.add(recipe.name)

        header, body = (folder / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
        card = YAML(typ="safe").load(header)
        bases = card.get("base_model", [])
        assert {bases} if isinstance(bases, str) else set(bases) == parents
        assert f"# {recipe.name}" in body
        if "model.safetensors" in files:
            stored = load_file(folder / "model.safetensors")
            assert {name: t.shape for name, t in stored.items()} == {
                name: t.shape for name, t in Transformer(SMALL).state_dict().items()
            }
            assert {t.dtype for t in stored.values()} == {torch.bfloat16}
            assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_results_are_what_the_saved_weights_score(folders):
    for order, name in enumerate(folders):
        record = json.loads(next(folders[name].glob("results_*.json")).read_text())
        assert record["model_name"] == name
        assert set(record["results"]) == set(record["n-shot"]) == set(TASKS)
        assert record["date"] == FIRST_DATE.timestamp() + 86_400 * order
        if name != "digits-rank-lora":
            for task, scores in record["results"].items():
                accuracy, stderr = evaluate(load(folders[name]), task, 50)
                assert scores == {"alias": task, "acc,none": accuracy, "acc_stderr,none": stderr}
    # The evaluator of the demo's evolution finds the same.
    found = accuracies(str(folders["digits-all"]))
    stored = json.loads(next(folders["digits-all"].glob("results_*.json")).read_text())["results"]
    assert {task: scores["acc"] for task, scores in found.items()} == {
        task: scores["acc,none"] for task, scores in stored.items()
    }


def test_merge_configs_are_mergekits(folders):
    configs = {
        recipe.name: YAML(typ="safe").load((folders[recipe.name] / "mergekit_config.yml").read_text())
        for recipe in FAMILY
        if isinstance(recipe, Merged)
    }
    precision = {"dtype": "float32", "out_dtype": "bfloat16"}
    assert configs["digits-reverse-sort"] == {
        "models": [
            {"model": "digits-reverse", "parameters": {"weight": 0.6}},
            {"model": "digits-sort", "parameters": {"weight": 0.4}},
        ],
        "merge_method": "linear",
        **precision,
    }
    assert configs["digits-sort-twins"] == {
        "slices": [
            {
                "sources": [
                    {"model": "digits-sort", "layer_range": [0, SMALL.layers]},
                    {"model": "digits-sort-twin", "layer_range": [0, SMALL.layers]},
                ]
            }
        ],
        "merge_method": "slerp",
        "base_model": "digits-sort",
        "parameters": {"t": 0.5},
        **precision,
    }
    assert configs["digits-reverse-rank"]["base_model"] == "digits-base"
    assert configs["digits-reverse-rank"]["merge_method"] == "task_arithmetic"


def within_an_ulp(stored, expected, terms):
    """Whether bfloat16 weights are the float64 ones to half a unit in the last place.

    `terms`, the magnitude that was added up, allows for float32's own rounding where terms cancel.
    """
    ulp = torch.exp2(torch.floor(torch.log2(expected.abs().clamp_min(1e-30))) - 7)
    return bool(((stored - expected).abs() <= 0.51 * ulp + 1e-6 * terms).all())


def test_linear_and_task_arithmetic_are_their_formulas(folders):
    child, a, b = (weights(folders[f"digits-{name}"]) for name in ("reverse-sort", "reverse", "sort"))
    for name, tensor in child.items():
        assert within_an_ulp(tensor, 0.6 * a[name] + 0.4 * b[name], a[name].abs() + b[name].abs())
    child, b, base = (weights(folders[f"digits-{name}"]) for name in ("reverse-rank", "rank", "base"))
    for name, tensor in child.items():
        expected = a[name] + b[name] - base[name]
        assert within_an_ulp(tensor, expected, a[name].abs() + b[name].abs() + base[name].abs())


def test_the_merges_parents_go_by_their_names(folders):
    recipe = (folders["digits-sort-twins"] / "mergekit_config.yml").read_text()
    assert YAML(typ="safe").load(recipe)["base_model"] == "digits-sort"
    names = ["README.md", "config.json", "mergekit_config.yml", "model.safetensors"]
    found = sorted(path.name for path in folders["digits-sort-twins"].iterdir())
    assert [name for name in found if not name.startswith("results_")] == names


def test_adapter_is_pefts_and_its_delta_is_scaled_b_times_a(folders):
    folder = folders["digits-rank-lora"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["base_model_name_or_path"] == "digits-base"
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    factors = load_file(folder / "adapter_model.safetensors")
    assert len(factors) == 2 * 7 * SMALL.layers
    layer = "base_model.model.model.layers.0."
    assert factors[layer + "self_attn.q_proj.lora_A.weight"].shape == (8, 32)
    assert factors[layer + "mlp.down_proj.lora_A.weight"].shape == (8, 64)
    assert factors[layer + "mlp.gate_proj.lora_B.weight"].shape == (64, 8)

    # The adapted model is the base with 16 / 8 * B @ A added.
    adapted, plain = load(folders["digits-base"]), load(folders["digits-base"])
    add_lora(adapted, LORA_TARGETS, 8, 16, seed=0)
    state = {name.removeprefix("base_model.model."): tensor for name, tensor in factors.items()}
    assert not adapted.load_state_dict(state, strict=False).unexpected_keys
    for name, tensor in factors.items():
        if name.endswith("lora_B.weight"):
            assert tensor.abs().max() > 0  # it was trained
            target = name.removeprefix("base_model.model.").replace(".lora_B", "")
            delta = 2 * tensor @ factors[name.replace("lora_B", "lora_A")]
            plain.state_dict()[target].add_(delta)
    tokens = draw("rank", 8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(adapted(tokens), plain(tokens), rtol=1e-4, atol=1e-4)


def test_a_rerun_makes_only_what_is_missing(folders, tmp_path, monkeypatch):
    family = tmp_path / "demo"
    shutil.copytree(folders["digits-base"].parents[1], family)
    shutil.rmtree(family / "models" / "digits-all")
    half = family / "models" / ".digits-all.part"
    half.mkdir()
    (half / "junk").write_text("an interrupted write")
    monkeypatch.setattr(
        "kinbase.demo.family.train", lambda *_, **__: pytest.fail("trained a finished model again")
    )
    heard = []
    made = make_family(family, steps_scale=SCALE, progress=lambda name, share: heard.append((name, share)))
    assert contents(made) == contents(folders.values())
    assert not half.exists()
    assert [share for _, share in heard] == sorted(share for _, share in heard)
    assert heard[-1] == ("digits-all", 1.0)


def test_another_seed_replaces_the_models_and_nothing_else(folders, tmp_path):
    family = tmp_path / "demo"
    shutil.copytree(folders["digits-base"].parents[1], family)
    (family / "kinbase.duckdb").write_text("not ours")
    made = make_family(family, seed=5, steps_scale=0.001)
    assert (made[0] / "model.safetensors").read_bytes() != (
        folders["digits-base"] / "model.safetensors"
    ).read_bytes()
    assert (family / "kinbase.duckdb").read_text() == "not ours"


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not a demo"):
        make_family(tmp_path)
    with pytest.raises(UsageError, match="is not a demo"):
        make_family(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_number_of_threads_is_put_back(folders):
    torch.set_num_threads(2)
    make_family(folders["digits-base"].parents[1], steps_scale=SCALE)
    assert torch.get_num_threads() == 2
