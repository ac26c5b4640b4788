"""Which tensors a merge writes, from which tensors of which models, with which parameters.

A tensor in a numbered layer (`model.layers.7.mlp.up_proj.weight`) belongs to the slice its layer comes
from and is renumbered by where the slice lies in the child; the others belong to the first slice, or,
when they come after the layers (norm and head), to the last.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.alignment import counterparts
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.merge_config import Reference
from kinbase.checkpoint.packed import is_mask
from kinbase.checkpoint.tensors import EMBEDDINGS, HEADS
from kinbase.errors import KinbaseError
from kinbase.merging.config import MergeConfig, Parameters, Slice
from kinbase.merging.settings import resolved

CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""safetensors' names of the dtypes that are computed with and written."""

DEFAULTS: dict[str, dict[str, float | bool]] = {
    "linear": {"normalize": True},
    "slerp": {},
    "task_arithmetic": {"normalize": False, "lambda": 1.0},
    "ties": {"density": 1.0, "normalize": True, "rescale": False, "lambda": 1.0},
    "dare_linear": {"density": 1.0, "normalize": False, "rescale": True, "lambda": 1.0},
    "dare_ties": {"density": 1.0, "normalize": False, "rescale": True, "lambda": 1.0},
}
"""mergekit's defaults; what is missing here has to be given."""

OF_EACH_INPUT = ("weight", "density")
SHARED = {
    "linear": ("normalize",),
    "slerp": ("t",),
    "task_arithmetic": ("normalize", "lambda"),
    **dict.fromkeys(("ties", "dare_linear", "dare_ties"), ("normalize", "rescale", "lambda")),
}

_LAYER = re.compile(r"(?P<stack>.*?)\.(?P<index>\d{1,9})\.(?P<rest>.*)")
_DERIVED = re.compile(r"(^|\.)(inv_freq|(cos|sin)_cached|masked_bias|position_ids|token_type_ids)$")
_BEFORE_THE_LAYERS = re.compile(r"embed(?!_out)|wte|wpe|embd|rotary")


@dataclass(frozen=True, slots=True)
class Parent:
    """An opened model. `config` is its config.json, `label` how the configuration calls it."""

    label: str
    checkpoint: Checkpoint
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor | None:
        """The tensor called so; of a head that is tied to the embedding, the embedding."""
        if name in self.tensors:
            return self.tensors[name]
        tied = self.checkpoint.skipped.get(name, "").removeprefix("tied to ")
        if tied in self.tensors:
            return self.tensors[tied]
        if name.endswith(HEADS):
            return next((t for n, t in self.tensors.items() if n.endswith(EMBEDDINGS)), None)
        return None

    def layers(self) -> dict[str, int]:
        """The number of layers of each numbered stack: {"model.layers": 32}."""
        found: dict[str, int] = {}
        for name in self.tensors:
            if match := _LAYER.fullmatch(name):
                found[match["stack"]] = max(found.get(match["stack"], 0), int(match["index"]) + 1)
        return found


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor to be written.

    `inputs` are its sources in the configuration's order, but the base first for every method that has
    one; `models` what they are called. `shared` are the parameters of the tensor and `own` those of each
    input (empty for the base). `dtype` is computed in, `out` written. `buffer`: integers, copied when all agree.
    """

    name: str
    shape: tuple[int, ...]
    inputs: tuple[Tensor, ...]
    models: tuple[str, ...]
    shared: Mapping[str, float | bool]
    own: tuple[Mapping[str, float], ...]
    dtype: str
    out: str
    buffer: bool = False

    @property
    def numel(self) -> int:
        """Elements."""
        return self.inputs[0].numel

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return self.numel * DTYPE_BYTES[self.out]

    def number(self, name: str) -> float:
        """A shared parameter that is a number."""
        return float(self.shared[name])


def targets(config: MergeConfig, parents: Mapping[Reference, Parent]) -> list[Target]:
    """Every tensor of the child, in the order of the donor's.

    Raises KinbaseError naming the tensor that a parent lacks or has in another shape, the layers that
    are not there, or the parameter that has no value.
    """
    donor = parents[config.donor]
    whole = all(entry.layers is None for part in config.slices for entry in part.inputs)
    found = list((_over_all_layers if whole else _by_slices)(config, donor, parents))
    if not found:
        raise KinbaseError(f"{donor.label} has no tensors to merge")
    return found


def _over_all_layers(
    config: MergeConfig, donor: Parent, parents: Mapping[Reference, Parent]
) -> Iterator[Target]:
    part = config.slices[0]
    depths = {stack: max(count - 1, 1) for stack, count in donor.layers().items()}
    one_layer = {stack for stack, count in donor.layers().items() if count == 1}
    for name in _names(donor, parents):
        match = _LAYER.fullmatch(name)
        depth = 0.0
        if match:
            depth = 1.0 if match["stack"] in one_layer else int(match["index"]) / depths[match["stack"]]
        yield _target(config, part, name, [name] * len(part.inputs), depth, parents)


def _by_slices(config: MergeConfig, donor: Parent, parents: Mapping[Reference, Parent]) -> Iterator[Target]:
    stacks = donor.layers()
    if len(stacks) != 1:
        raise KinbaseError(
            f"{donor.label} has {len(stacks)} stacks of layers ({', '.join(sorted(stacks)) or 'none'}): slices fit models with "
            "one; list models instead"
        )
    (stack,) = stacks
    for parent in parents.values():
        if parent.layers().keys() != {stack}:
            raise KinbaseError(
                f"the layers of {parent.label} are not called {shown(stack)} as those of {donor.label}"
            )
    for part in config.slices:
        for entry in part.inputs:
            have = parents[entry.model].layers()[stack]
            if entry.layers and entry.layers[1] > have:
                raise KinbaseError(
                    f"layer_range {list(entry.layers)} is asked of {parents[entry.model].label}, which has {have} layers"
                )
    names = _names(donor, parents)
    after: list[str] = []
    for name in names:
        if _LAYER.fullmatch(name):
            continue
        if _BEFORE_THE_LAYERS.search(name):
            yield _target(config, config.slices[0], name, [name] * len(config.slices[0].inputs), 0.0, parents)
        else:
            after.append(name)
    rests = _rests(donor, stack)
    out = 0
    for part in config.slices:
        spans = [entry.layers or (0, parents[entry.model].layers()[stack]) for entry in part.inputs]
        count = spans[0][1] - spans[0][0]
        for offset in range(count):
            depth = offset / (count - 1) if count > 1 else 1.0
            for rest in rests:
                sources = [f"{stack}.{first + offset}.{rest}" for first, _ in spans]
                yield _target(config, part, f"{stack}.{out}.{rest}", sources, depth, parents)
            out += 1
    for name in after:
        yield _target(config, config.slices[-1], name, [name] * len(config.slices[-1].inputs), 0.0, parents)


def _rests(donor: Parent, stack: str) -> list[str]:
    """What a layer of the donor is made of, after its number. Raises KinbaseError when layers differ."""
    layers: dict[int, list[str]] = {}
    for name in donor.tensors:
        if match := _LAYER.fullmatch(name):
            layers.setdefault(int(match["index"]), []).append(match["rest"])
    first = layers[min(layers)]
    for index, rests in layers.items():
        if set(rests) != set(first):
            odd = min(set(rests) ^ set(first))
            raise KinbaseError(
                f"layers of {donor.label} are not alike ({shown(f'{stack}.{index}.{odd}')}): list models instead of slices"
            )
    return first


def _names(donor: Parent, parents: Mapping[Reference, Parent]) -> list[str]:
    """The child's tensors: the donor's, and a head of its own where one of the parents has one."""
    names = list(donor.tensors)
    says = donor.config.get("tie_word_embeddings")
    if says is not True:
        names += [name for name, reason in donor.checkpoint.skipped.items() if reason.startswith("tied to ")]
    for parent in parents.values():
        names += [name for name in parent.tensors if name.endswith(HEADS) and name not in names]
    return names


def _target(
    config: MergeConfig,
    part: Slice,
    name: str,
    sources: Sequence[str],
    depth: float,
    parents: Mapping[Reference, Parent],
) -> Target:
    order = list(zip(part.inputs, sources, strict=True))
    if config.method != "linear":
        order.sort(key=lambda pair: pair[0].model != part.base)  # stable: the base first
    labels = tuple(parents[entry.model].label for entry, _ in order)
    inputs = _inputs(order, labels, parents)
    floats = [tensor.dtype in FLOAT_DTYPES for tensor in inputs]
    is_counter = not any(floats) and all(tensor.numel == 1 for tensor in inputs)
    if is_counter or len(inputs) < len(order):  # as BatchNorm keeps: nothing is computed with it
        return _buffer(name, inputs[:1], labels[:1])
    if not any(floats):
        return _buffer(name, inputs, labels)
    if not all(floats):
        raise KinbaseError(
            f"the tensor {shown(name)} holds integers in {labels[floats.index(False)]} and weights in "
            f"{labels[floats.index(True)]}"
        )
    dtype = CODES[config.dtype] if config.dtype else promoted([tensor.dtype for tensor in inputs], name)
    out = CODES[config.out_dtype] if config.out_dtype else dtype
    if config.method == "linear" and len(order) == 1 and dtype == out == inputs[0].dtype:
        return _buffer(name, inputs, labels)  # a model with an adapter, which is merged as it is read
    scopes: list[Parameters] = [part.parameters, config.parameters]
    defaults = DEFAULTS[config.method]
    shared = {p: resolved(p, scopes, name, depth, defaults.get(p)) for p in SHARED[config.method]}
    wanted = [p for p in OF_EACH_INPUT if p in defaults or p == "weight"] if config.method != "slerp" else []
    own: list[Mapping[str, float]] = []
    for (entry, source), label in zip(order, labels, strict=True):
        based = config.method != "linear" and entry.model == part.base
        try:
            own.append(
                {} if based else {
                    p: float(resolved(p, [entry.parameters, *scopes], source, depth, defaults.get(p))) for p in wanted
                }
            )  # fmt: skip
        except KinbaseError as error:
            raise KinbaseError(f"{label}: {error}") from None
    return Target(name, inputs[0].shape, tuple(inputs), labels, shared, tuple(own), dtype, out)


def _inputs(
    order: Sequence[tuple[Any, str]], labels: Sequence[str], parents: Mapping[Reference, Parent]
) -> list[Tensor]:
    """A target's tensors in each model; the first alone of what follows from the configuration and one lacks."""
    inputs: list[Tensor] = []
    for (entry, source), label in zip(order, labels, strict=True):
        tensor = parents[entry.model].tensor(source)
        if tensor is None:
            if inputs and _is_derived(inputs[0]):
                return inputs[:1]
            reason = parents[entry.model].checkpoint.skipped.get(source)
            raise KinbaseError(
                f"{label} has no tensor {shown(source)}"
                + (f" ({reason})" if reason else f", which {labels[0]} has: are they of one architecture?")
            )
        if inputs and tensor.shape != inputs[0].shape:
            raise KinbaseError(
                f"the tensor {shown(source)} is {_shape(inputs[0])} in {labels[0]} and {_shape(tensor)} in {label}: "
                "models of one shape can be merged"
                + (
                    ", vocabularies are only aligned by --backend mergekit"
                    if tensor.shape[1:] == inputs[0].shape[1:]
                    else ""
                )
            )
        inputs.append(tensor)
    return inputs


def _buffer(name: str, inputs: Sequence[Tensor], labels: Sequence[str]) -> Target:
    """Integers, or a tensor of one model, copied; several have to agree."""
    dtypes = [tensor.dtype for tensor in inputs]
    if len(set(dtypes)) > 1:
        raise KinbaseError(f"the buffer {shown(name)} has dtypes {', '.join(dtypes)} in {', '.join(labels)}")
    return Target(
        name, inputs[0].shape, tuple(inputs), tuple(labels), {}, (), dtypes[0], dtypes[0], buffer=True
    )


def _is_derived(tensor: Tensor) -> bool:
    """Whether a tensor follows from the configuration, and is in some files and not in others of one model."""
    return _DERIVED.search(tensor.name) is not None or is_mask(tensor)


def promoted(dtypes: Sequence[str], name: str) -> str:
    """The dtype that inputs of several are merged in: the widest; float32 for float16 with bfloat16.

    Raises KinbaseError for 8-bit weights, which nothing is computed in.
    """
    if any(DTYPE_BYTES[dtype] == 1 for dtype in dtypes):
        raise KinbaseError(
            f"the tensor {shown(name)} is stored in 8 bits: say what to merge in, for example `dtype: bfloat16`"
        )
    if len(set(dtypes)) == 1:
        return dtypes[0]
    return "F64" if "F64" in dtypes else "F32"


def layer_count(config: MergeConfig) -> int | None:
    """Layers of the child where the configuration says which are taken; None when it is the donor's."""
    spans = [part.inputs[0].layers for part in config.slices]
    return None if None in spans else sum(span[1] - span[0] for span in spans if span)


def in_words_of(donor: Parent, parent: Parent) -> Parent:
    """A parent with its tensors under the donor's names, in the donor's layout: as an import aligns a model to its base.

    Layers that the donor has not are called as its other ones.
    """
    if parent is donor:
        return parent
    theirs, own = donor.checkpoint, parent.checkpoint
    met = counterparts(theirs.tensors, own.tensors, own.heads or theirs.heads)
    named = {t.name: match for t, match in zip(theirs.tensors, met, strict=True) if match is not None}
    stacks = {}
    for name, match in named.items():
        ours, other = _LAYER.fullmatch(name), _LAYER.fullmatch(match.name)
        if ours and other and ours["index"] == other["index"] and ours["rest"] == other["rest"]:
            stacks[other["stack"]] = ours["stack"]
    used = {id(tensor) for tensor in named.values()}
    for tensor in own.tensors:
        if id(tensor) in used:
            continue
        layer = _LAYER.fullmatch(tensor.name)
        stack = stacks.get(layer["stack"]) if layer else None
        name = f"{stack}.{layer['index']}.{layer['rest']}" if layer and stack else tensor.name
        named.setdefault(name, tensor)
    return replace(parent, tensors=named)


def opened(label: str, checkpoint: Checkpoint, config: Mapping[str, Any]) -> Parent:
    """A parent with its tensors by name."""
    return replace(Parent(label, checkpoint, config), tensors={t.name: t for t in checkpoint.tensors})


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a scalar"
