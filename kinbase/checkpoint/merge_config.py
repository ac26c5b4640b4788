"""One mergekit configuration, read into the uses it makes of models (mergekit/config.py, 0.1.x).

A configuration lists its inputs under exactly one of `models`, `slices` (each with `sources`) or
`modules` (each with one of the two). A parameter is a number, a list (a gradient over depth) or a
list of {filter, value}; set beside a source it wins over the slice's, the module's and the
configuration's own, in this order, and a list of filters that fits no tensor leaves it to the next. Settings of the
whole merge (t, normalize, lambda) are never taken from beside a source. A base_model that is missing under `models` is
added to them; under `slices` it is not. A model is `path@revision+lora@revision` or a mapping.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from kinbase.checkpoint.files import shown
from kinbase.checkpoint.ids import revised
from kinbase.checkpoint.untrusted import model_id, name

METHODS = (
    "linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties",
    "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "ram", "ramplus_tl", "model_stock",
    "nearswap", "arcee_fusion", "passthrough",
)  # fmt: skip

BASE_IS_PARENT = ("slerp", "nearswap", "arcee_fusion", "moe")
"""Methods whose base_model is one of the merged models. For the others it is what deltas are taken from."""

SHAPES = ("models", "slices", "modules", "experts")
"""Where the inputs stand; one of them."""

MIXES_WEIGHTS = ("linear", "karcher", "passthrough")
"""Methods that take no deltas: a base_model that they list is an input like any other."""


_DECIMAL = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_YES, _NO = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")


@dataclass(frozen=True, slots=True)
class Reference:
    """A model, and the adapter applied to it, as a configuration names them."""

    model: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    def detail(self) -> dict[str, object]:
        """What an edge to the model keeps beside its name."""
        parts = {"revision": self.revision, "lora": self.lora, "lora_revision": self.lora_revision}
        return {key: value for key, value in parts.items() if value}

    def is_same(self, other: "Reference") -> bool:
        """Whether both name one model: main is the revision where none is given."""
        return self.key() == other.key()

    def key(self) -> tuple[str, str | None]:
        """What tells the models of a merge apart: the names of the model and of the adapter, with their revisions."""
        return revised(self.model, self.revision), self.lora and revised(self.lora, self.lora_revision)


@dataclass(frozen=True, slots=True)
class Use:
    """One input: the model, where it goes (module, slice, layer range), the parameters in force there.

    `shared` are those of all inputs of its slice, without what stands beside the source.
    """

    reference: Reference
    group: tuple[str, int]
    place: dict[str, object]
    parameters: dict[str, object]
    base: Reference | None
    shared: dict[str, object] = field(default_factory=dict)

    def is_end(self) -> bool:
        """Whether the input is the configuration's base_model."""
        return self.base is not None and self.reference.is_same(self.base)

    def is_base(self, method: str | None) -> bool:
        """Whether the input is what deltas are taken from, listed for completeness and not merged."""
        return self.is_end() and method not in BASE_IS_PARENT + MIXES_WEIGHTS


def reference(value: object, refused: list[str]) -> Reference | None:
    """The model a configuration's text or mapping stands for; None, said in `refused`, if unclear."""
    lora: object = None
    if isinstance(value, dict):
        lora, value = value.get("lora"), value.get("model", value.get("path"))
    elif isinstance(value, str) and "+" in value:
        value, _, lora = value.partition("+")
    path, revision = _path(value, refused)
    if path is None:
        return None
    lora_path, lora_revision = _path(lora, refused) if lora is not None else (None, None)
    return Reference(path, revision, lora_path, lora_revision)


def _path(entry: object, refused: list[str]) -> tuple[str | None, str | None]:
    value, revision = entry, None
    if isinstance(entry, dict):
        value, revision = entry.get("path"), entry.get("revision")
    elif isinstance(entry, str) and "@" in entry:
        value, _, revision = entry.partition("@")
    path = model_id(value, refused)
    if path and ("+" in path or "@" in str(revision)):
        refused.append(f"the model {shown(value)} has more than one '+' or '@'")
        return None, None
    return path, name(revision, refused)


def uses(config: dict[str, object], refused: list[str]) -> list[Use]:
    """Every input of a configuration, in the order it is written."""
    shapes = [shape for shape in SHAPES if config.get(shape)]
    if not shapes:
        refused.append("no models, slices or modules, so no parents")
        return []
    if len(shapes) > 1:
        refused.append(
            f"{' and '.join(shapes[1:])}, because mergekit takes only one of models, slices, modules"
        )
    base = reference(config["base_model"], refused) if config.get("base_model") else None
    common = _mapping(config.get("parameters"), refused)
    if shapes[0] != "modules":
        inside = {shape: config.get(shape) for shape in (shapes[0], "shared_experts")}
        return list(_inputs(inside, "", common, base, refused))
    found: list[Use] = []
    for module, definition in _mapping(config["modules"], refused).items():
        inside = _mapping(definition, refused)
        settings = _over(common, _mapping(inside.get("parameters"), refused))
        found += _inputs(inside, module, settings, base, refused)
    return found


def _inputs(
    definition: dict[str, object],
    module: str,
    common: dict[str, object],
    base: Reference | None,
    refused: list[str],
) -> Iterator[Use]:
    """The inputs of a configuration or of one of its modules, given as models or as slices."""
    # mergekit itself names the only module of a plain model "default": no news to anybody.
    where: dict[str, object] = {"module": module} if module not in ("", "default") else {}
    slices = [_mapping(part, refused) for part in _list(definition.get("slices"), refused)]
    for index, part in enumerate(slices):
        settings = _over(common, _mapping(part.get("parameters"), refused))
        if part.get("residual_weight") is not None:
            settings = {**settings, "residual_weight": plain(part["residual_weight"])}
        own = reference(part["base_model"], refused) if part.get("base_model") else base
        place = where | ({"slice": index} if len(slices) > 1 else {})
        for source in _list(part.get("sources"), refused):
            yield from _use(source, (module, index), place, settings, own, refused)
    listed: list[Use] = []
    for source in _list(definition.get("models"), refused):
        listed += _use(source, (module, 0), where, common, base, refused)
    if listed and base and not any(use.is_end() for use in listed):
        listed.append(Use(base, (module, 0), where, common, base, common))
    yield from listed
    for source in _list(definition.get("experts"), refused):
        yield from _use(source, (module, 0), where, common, base, refused)
    for source in _list(definition.get("shared_experts"), refused):
        yield from _use(source, (module, 0), {**where, "shared_expert": True}, common, base, refused)


def _use(
    source: object,
    group: tuple[str, int],
    place: dict[str, object],
    common: dict[str, object],
    base: Reference | None,
    refused: list[str],
) -> Iterator[Use]:
    entry = source if isinstance(source, dict) else {"model": source}
    found = reference(entry.get("model", entry.get("source_model")), refused)
    if found is None:
        refused.append(f"the input {shown(source)}, which names no model")
        return
    if entry.get("layer_range") is not None:
        place = {**place, "layer_range": plain(entry["layer_range"])}
    own = _over(common, _mapping(entry.get("parameters"), refused))
    yield Use(found, group, place, own, base, common)


def weights(method: str | None, inputs: list[Use]) -> list[float | None]:
    """The coefficient of each input where the configuration gives it as one number.

    slerp's t is the share of the model that is not the base. linear divides by the sum of the
    weights unless told not to; the task-arithmetic coefficient is scaled by lambda. For the
    methods that select elements it is the weight as written.
    """
    if method == "slerp":
        shares = [_one_number(use.shared.get("t")) for use in inputs]
        return [
            None if t is None or use.base is None else (1 - t if use.is_end() else t)
            for t, use in zip(shares, inputs, strict=True)
        ]
    written = [None if use.is_base(method) else _one_number(use.parameters.get("weight")) for use in inputs]
    if method not in ("linear", "task_arithmetic"):
        return written
    return [
        None if use.is_base(method) else _in_linear(method, use, weight, inputs, written)
        for use, weight in zip(inputs, written, strict=True)
    ]


def _in_linear(
    method: str, use: Use, weight: float | None, inputs: list[Use], written: list[float | None]
) -> float | None:
    """The coefficient of one input of linear or task_arithmetic, where it is one number."""
    scale = _one_number(use.shared.get("lambda", 1.0)) if method == "task_arithmetic" else 1.0
    normalised = _one_truth(use.shared.get("normalize", method == "linear"))
    if normalised is None or scale is None:
        return None
    if not normalised:
        return None if weight is None else weight * scale
    # A listed base has no delta and no weight of its own, so it is not part of the sum.
    group = [u for u in inputs if u.group == use.group and not u.is_base(method)]
    settings = [u.parameters.get("weight") for u in group]
    if settings[0] is not None and all(setting == settings[0] for setting in settings):
        # One setting for all, however it varies: each has an equal share everywhere.
        return None if weight == 0 else scale / len(group)
    others = [w for u, w in zip(inputs, written, strict=True) if u in group]
    if weight is None or None in others:
        return None
    total = math.fsum(w for w in others if w is not None)
    return weight * (scale / total) if total else None


def _over(outer: dict[str, object], inner: dict[str, object]) -> dict[str, object]:
    """The settings in force: the inner ones, and the outer ones where the inner ones do not say, or not for all tensors."""
    result = outer | inner
    for key, setting in inner.items():
        if _is_empty(setting):
            result[key] = outer.get(key, setting)
        elif key in outer and _has_filters(setting) and not _covers(setting):
            rest = outer[key]
            pieces = setting if isinstance(setting, list) else [setting]
            result[key] = [
                *pieces,
                *(rest if _has_filters(rest) and isinstance(rest, list) else [{"value": rest}]),
            ]
    return {key: value for key, value in result.items() if not _is_empty(value)}


def _is_empty(setting: object) -> bool:
    return setting is None or setting == []


def _has_filters(setting: object) -> bool:
    return isinstance(setting, dict) or (
        isinstance(setting, list) and any(isinstance(i, dict) for i in setting)
    )


def _covers(setting: object) -> bool:
    """Whether one of the filters fits every tensor."""
    pieces = setting if isinstance(setting, list) else [setting]
    return any(not isinstance(piece, dict) or piece.get("filter") in (None, "*") for piece in pieces)


def plain(value: object) -> object:
    """`value` as JSON can hold it: NaN and infinity become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def _one_number(setting: object) -> float | None:
    """A parameter that is the same everywhere: a number, or a list that holds nothing else.

    Text that is a number is one, and so are true and false, as for pydantic, which reads them in mergekit.
    """
    if isinstance(setting, dict):
        setting = [setting]
    if isinstance(setting, list) and setting:
        values: list[float | None] = []
        for item in setting:
            values.append(_one_number(item.get("value") if isinstance(item, dict) else item))
            if isinstance(item, dict) and item.get("filter") in (None, "*"):
                break  # the first that fits counts: what follows is never reached
        else:
            # Filters that cover only some tensors leave the rest at a default nobody wrote down.
            if _has_filters(setting):
                return None
        return values[0] if len(set(values)) == 1 else None
    if isinstance(setting, str):
        setting = float(setting) if _DECIMAL.fullmatch(setting.strip()) else None
    if not isinstance(setting, int | float):
        return None
    return float(setting) if math.isfinite(setting) else None


def _one_truth(setting: object) -> bool | None:
    """A yes or no that is the same everywhere, in the spellings that pydantic takes."""
    if isinstance(setting, list | dict):
        pieces = setting if isinstance(setting, list) else [setting]
        values = {_one_truth(piece.get("value") if isinstance(piece, dict) else piece) for piece in pieces}
        return values.pop() if len(values) == 1 and (_covers(setting) or not _has_filters(setting)) else None
    if isinstance(setting, str):
        word = setting.strip().lower()
        return True if word in _YES else False if word in _NO else None
    return bool(setting) if isinstance(setting, int | float) and setting in (0, 1) else None


def _mapping(value: object, refused: list[str]) -> dict[str, object]:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if value is not None:
        refused.append(f"{shown(value)}, where settings were expected")
    return {}


def _list(value: object, refused: list[str]) -> list[object]:
    if isinstance(value, list):
        return value
    if value is not None:
        refused.append(f"{shown(value)}, where a list was expected")
    return []
