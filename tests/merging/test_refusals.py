"""Configurations that are wrong and parents that do not fit are named in one line."""

import json
import shutil

import pytest
import torch
from merges import NORM, delta_config, merged, models
from safetensors.torch import load_file, save_file

from kinbase import merging
from kinbase.errors import KinbaseError
from kinbase.merging import streaming

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
