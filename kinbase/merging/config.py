"""A merge configuration in mergekit's YAML, read strictly: what is not understood is refused by name.

    merge_method: slerp
    slices:
      - sources:
          - {model: models/a, layer_range: [0, 32]}
          - {model: models/b, layer_range: [0, 32]}
    base_model: models/a
    parameters:
      t:
        - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
        - {value: 0.5}
    dtype: bfloat16

`models: [{model, parameters}]` stands for one slice over all layers. A parameter is a number, a list
(a gradient over depth) or a list of {filter, value}; beside a source it wins over the slice's, and that
over the configuration's. The importer of merge configurations reads the same YAML for lineage only: it
takes what it can from strangers' files and must not fail, this one must, so they share how a model is
referred to and no more.
"""

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kinbase.checkpoint.files import read_bounded, shown
from kinbase.checkpoint.merge_config import METHODS as MERGEKIT_METHODS
from kinbase.checkpoint.merge_config import Reference, reference, uses
from kinbase.checkpoint.yaml import load as load_yaml
from kinbase.errors import KinbaseError

Setting = bool | int | float | Sequence["Setting"] | Mapping[str, "Setting | str | None"]
Parameters = Mapping[str, Setting]

PARAMETERS: dict[str, tuple[str, ...]] = {
    "linear": ("weight", "normalize"),
    "slerp": ("t",),
    "task_arithmetic": ("weight", "normalize", "lambda"),
    "ties": ("weight", "density", "normalize", "rescale", "lambda"),
    "dare_linear": ("weight", "density", "normalize", "rescale", "lambda"),
    "dare_ties": ("weight", "density", "normalize", "rescale", "lambda"),
}
"""The built-in methods and the parameters that each reads."""

METHODS = tuple(PARAMETERS)
NEEDS_BASE = tuple(method for method in METHODS if method != "linear")
SWITCHES = ("normalize", "rescale", "int8_mask")
"""Parameters that are true or false."""

KNOWN = (*dict.fromkeys(name for names in PARAMETERS.values() for name in names), "int8_mask")
"""Parameters of some built-in method. One of another method is no mistake: configurations are passed on."""

DTYPES = ("float32", "float16", "bfloat16", "float64")
LIMIT = 1 << 20
"""Bytes of a configuration file."""

LARGEST = sys.float_info.max
"""Largest parameter: a whole number in YAML has no bound."""

OTHERWISE = "--backend mergekit (the extra kinbase[mergekit])"

KEYS = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template", "modules", "name", "align",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Input:
    """One model of a slice; `layers` are the layers first..last+1 taken from it, None all."""

    model: Reference
    layers: tuple[int, int] | None
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers of the child, and the inputs they are merged from."""

    inputs: tuple[Input, ...]
    base: Reference | None
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class MergeConfig:
    """One merge. `document` is the YAML as it was given, `ignored` names parameters that the method does not read.

    `base` is a configuration-wide base_model, which a slice's own replaces. `dtype` is what the inputs
    are rounded to before they are merged (None: the widest of theirs), `out_dtype` what is written.
    `models` are all that it names, adapters included. `is_aligned`: the inputs are put into one order of units first,
    where one of the files `alignments` has it, by that.
    """

    method: str
    slices: tuple[Slice, ...]
    base: Reference | None
    parameters: Parameters
    dtype: str | None
    out_dtype: str | None
    tokenizer: Reference | str | None
    document: Mapping[str, object]
    ignored: tuple[str, ...] = ()
    models: tuple[str, ...] = field(default=())
    is_aligned: bool = False
    alignments: tuple[str, ...] = ()

    @property
    def donor(self) -> Reference:
        """The model whose configuration and tokenizer the child gets: the base, or else the first input."""
        return self.base or self.slices[0].inputs[0].model


def load(path: str | Path, *, any_method: bool = False) -> MergeConfig:
    """The configuration in a YAML file. Raises KinbaseError in one line when it is not one; see `parse`."""
    documents = load_yaml(read_bounded(path, LIMIT).decode("utf-8", "replace"), shown(path))
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise KinbaseError(
            f"{shown(path)} is no merge configuration: one YAML mapping with merge_method was expected"
            + (" (mergekit-multi runs several)" if len(documents) > 1 else "")
        )
    return parse(documents[0], shown(path), any_method=any_method)


def parse(
    document: Mapping[str, object], where: str = "the merge configuration", *, any_method: bool = False
) -> MergeConfig:
    """A configuration from its YAML as plain values; `where` begins every message.

    Raises KinbaseError naming the key, model or method that is wrong and the nearest right ones. With
    `any_method` only the method and the models are read, and `slices` is empty: mergekit judges the rest.
    """
    reader = _Reader(where)
    if any_method:
        return _for_mergekit(document, reader)
    reader.keys(document, KEYS, "")
    method = reader.method(document.get("merge_method"))
    if document.get("modules"):
        raise reader.wrong("modules", f"is merged by mergekit itself only: {OTHERWISE}")
    given = [key for key in ("models", "slices") if document.get(key) is not None]
    if len(given) != 1:
        raise reader.wrong("", "needs models or slices, and not both" if given else "needs models or slices")
    base = None
    if document.get("base_model") is not None:
        base = reader.model(document["base_model"], "base_model")
    config = MergeConfig(
        method=method,
        slices=reader.slices(document, given[0], base),
        base=base,
        parameters=reader.parameters(document.get("parameters"), "parameters"),
        dtype=reader.dtype(document.get("dtype"), "dtype"),
        out_dtype=reader.dtype(document.get("out_dtype"), "out_dtype"),
        tokenizer=reader.tokenizer(document),
        document=document,
        ignored=tuple(dict.fromkeys(name for name in reader.seen if name not in PARAMETERS[method])),
        models=tuple(dict.fromkeys(reader.models)),
        is_aligned=document.get("align") not in (None, False),
        alignments=reader.alignments(document.get("align")),
    )
    _check_inputs(config, reader)
    return config


def _for_mergekit(document: Mapping[str, object], reader: "_Reader") -> MergeConfig:
    method = document.get("merge_method")
    if not isinstance(method, str) or method not in MERGEKIT_METHODS:
        near = difflib.get_close_matches(str(method), MERGEKIT_METHODS, 3, 0.5) or MERGEKIT_METHODS
        raise reader.wrong("", f"has no known merge_method {shown(method)}: nearest are {', '.join(near)}")
    refused: list[str] = []
    found = uses(dict(document), refused)
    if refused:
        raise reader.wrong("", f"cannot be read: {refused[0]}")
    models = [model for use in found for model in (use.reference, use.base) if model]
    names = tuple(dict.fromkeys(name for model in models for name in (model.model, model.lora) if name))
    base = next((use.base for use in found if use.base), None)
    return MergeConfig(method, (), base, {}, None, None, None, document, models=names)


def _check_inputs(config: MergeConfig, reader: "_Reader") -> None:
    for index, part in enumerate(config.slices):
        at = f"slices[{index}]" if len(config.slices) > 1 else ""
        models = [entry.model for entry in part.inputs]
        if len(set(models)) < len(models):
            twice = next(m for m in models if models.count(m) > 1)
            raise reader.wrong(
                at, f"lists {shown(twice.model)} twice: give it once, with the sum of its weights"
            )
        if config.method in NEEDS_BASE and part.base is None:
            raise reader.wrong("base_model", f"is missing: {config.method} needs one")
        others = [model for model in models if model != part.base]
        if config.method == "slerp" and len(others) != 1:
            raise reader.wrong(
                at,
                f"has {len(others)} models beside the base: slerp merges exactly two, one of them the base_model",
            )
        if config.method != "linear" and not others:
            raise reader.wrong(at, "lists no model beside the base")
        spans = {entry.layers[1] - entry.layers[0] for entry in part.inputs if entry.layers}
        if len(spans) > 1:
            raise reader.wrong(at, "takes different numbers of layers from its sources")


class _Reader:
    """What the functions below share: where the document is from, and what was met in it."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.seen: list[str] = []
        self.models: list[str] = []

    def wrong(self, at: str, fault: str) -> KinbaseError:
        return KinbaseError(f"{self.where}: {at} {fault}" if at else f"{self.where} {fault}")

    def keys(self, mapping: Mapping[str, object], known: Sequence[str], at: str) -> None:
        for key in mapping:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1, 0.5)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise self.wrong("", f"has an unknown key {shown(f'{at}{key}')}: {hint}")

    def method(self, value: object) -> str:
        if isinstance(value, str) and value in METHODS:
            return value
        if value is None:
            raise self.wrong("merge_method", f"is missing: {', '.join(METHODS)} are built in")
        if value in MERGEKIT_METHODS:
            raise self.wrong(
                "", f"wants {value}, which only mergekit does: {OTHERWISE}; built in are {', '.join(METHODS)}"
            )  # fmt: skip
        near = difflib.get_close_matches(str(value), METHODS, 1, 0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise self.wrong(
            "", f"has no known merge_method {shown(value)}: {hint}built in are {', '.join(METHODS)}; for others {OTHERWISE}"
        )  # fmt: skip

    def slices(self, document: Mapping[str, object], kind: str, base: Reference | None) -> tuple[Slice, ...]:
        entries = document[kind]
        if not isinstance(entries, list) or not entries:
            raise self.wrong(kind, "is no list of sources")
        if kind == "models":
            inputs = [self.input(entry, f"models[{i}]", None) for i, entry in enumerate(entries)]
            if base is not None and base not in [entry.model for entry in inputs]:
                inputs.append(Input(base, None, {}))
            return (Slice(tuple(inputs), base, {}),)
        found = []
        for i, entry in enumerate(entries):
            at = f"slices[{i}]"
            if not isinstance(entry, dict):
                raise self.wrong(at, "is no mapping with sources")
            self.keys(entry, ("sources", "base_model", "residual_weight", "parameters"), f"{at}.")
            if entry.get("residual_weight") is not None:
                raise self.wrong(
                    at, "has a residual_weight, which mergekit does not read either: leave it out"
                )
            sources = entry.get("sources")
            if not isinstance(sources, list) or not sources:
                raise self.wrong(at, "has no list of sources")
            own = base
            if entry.get("base_model") is not None:
                own = self.model(entry["base_model"], f"{at}.base_model")
            inputs = [self.input(each, f"{at}.sources[{j}]", "layer_range") for j, each in enumerate(sources)]
            found.append(
                Slice(tuple(inputs), own, self.parameters(entry.get("parameters"), f"{at}.parameters"))
            )
        return tuple(found)

    def input(self, entry: object, at: str, layers: str | None) -> Input:
        if isinstance(entry, str) and layers is None:
            entry = {"model": entry}
        if not isinstance(entry, dict):
            raise self.wrong(at, "is no mapping with a model")
        self.keys(entry, ("model", "parameters", *([layers] if layers else [])), f"{at}.")
        if entry.get("model") is None:
            raise self.wrong(at, "names no model")
        span = None
        if layers:
            span = entry.get(layers)
            if not _is_span(span):
                raise self.wrong(f"{at}.{layers}", "is no pair of layers [first, end]")
        return Input(
            self.model(entry["model"], f"{at}.model"),
            (span[0], span[1]) if span else None,
            self.parameters(entry.get("parameters"), f"{at}.parameters"),
        )

    def model(self, value: object, at: str) -> Reference:
        refused: list[str] = []
        found = reference(value, refused)
        if found is None:
            raise self.wrong(at, f"names no model: {'; '.join(refused) or shown(value)}")
        self.models += [name for name in (found.model, found.lora) if name]
        return found

    def alignments(self, value: object) -> tuple[str, ...]:
        """The files of `align: true`, `align: FILE` or `align: [FILE, ...]`."""
        files = [value] if isinstance(value, str) else [] if value in (None, True, False) else value
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise self.wrong(
                "align",
                f"is {shown(value)}: say true, or name files that `kinbase kin --aligned --save` wrote",
            )
        return tuple(dict.fromkeys(files))

    def dtype(self, value: object, at: str) -> str | None:
        if value is None:
            return None
        dtype = str(value).removeprefix("torch.")
        if dtype not in DTYPES:
            raise self.wrong(at, f"is {shown(value)}: give one of {', '.join(DTYPES)}")
        return dtype

    def tokenizer(self, document: Mapping[str, object]) -> Reference | str | None:
        """Where the tokenizer comes from: base, union, a model, or None for the donor's as it is."""
        source = document.get("tokenizer_source")
        if document.get("chat_template") not in (None, "auto"):
            raise self.wrong("chat_template", f"is set by mergekit itself only: {OTHERWISE}, or leave it out")
        detailed = document.get("tokenizer")
        if detailed is not None and source is not None:
            raise self.wrong("", "has both tokenizer and tokenizer_source: give one")
        if isinstance(detailed, dict):
            self.keys(detailed, ("source", "tokens", "pad_to_multiple_of"), "tokenizer.")
            if detailed.get("tokens") or detailed.get("pad_to_multiple_of"):
                raise self.wrong("tokenizer", f"changes tokens, which only mergekit does: {OTHERWISE}")
            source = detailed.get("source", "union")
        elif detailed is not None:
            raise self.wrong("tokenizer", "is no mapping with a source")
        if source in (None, "base", "union"):
            return source if isinstance(source, str) else None
        return self.model(source, "tokenizer_source")

    def parameters(self, value: object, at: str) -> Parameters:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(at, "is no mapping of parameters")
        self.keys(value, KNOWN, f"{at}.")
        for name, setting in value.items():
            self.setting(setting, name, f"{at}.{name}")
        self.seen += value
        return value

    def setting(self, value: object, name: str, at: str) -> None:
        """Check one parameter: a number or switch, a list of them, or conditions with such a value each."""
        if isinstance(value, dict):
            value = [value]
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for i, item in enumerate(value):
                self.keys(item, ("filter", "value"), f"{at}[{i}].")
                if "value" not in item:
                    raise self.wrong(f"{at}[{i}]", "has no value")
                if item.get("filter") is not None and not isinstance(item["filter"], str):
                    raise self.wrong(f"{at}[{i}].filter", "is no part of a tensor's name")
                if isinstance(item["value"], dict):
                    raise self.wrong(f"{at}[{i}].value", "is no number and no list of numbers")
                self.setting(item["value"], name, f"{at}[{i}].value")
            return
        for item in value if isinstance(value, list) else [value]:
            if name in SWITCHES:
                if not isinstance(item, bool):
                    raise self.wrong(at, f"is {shown(item)}, where true or false was expected")
            elif isinstance(item, bool) or not isinstance(item, int | float) or not abs(item) <= LARGEST:
                raise self.wrong(at, f"is {shown(item)}, where a number was expected")
            elif name == "density" and not 0 <= item <= 1:
                raise self.wrong(at, f"is {item}: a density lies between 0 and 1")
        if isinstance(value, list) and not value:
            raise self.wrong(at, "is an empty list")


def _is_span(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(end) is int for end in value)
        and 0 <= value[0] < value[1] <= 100_000
    )
