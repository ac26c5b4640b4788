"""Which tensors hold codes and not weights, told by shape, dtype, neighbours and configuration, never by a list of names.

A code is a number that becomes a weight only with the scale, table or zero point that lies beside it. Integer
matrices are codes where such a neighbour is there, where they stand for a weight, where they are most of the file,
or where the configuration says that the model is quantised; 8-bit floats are codes where a scale lies beside them,
and weights otherwise, as a plain cast writes them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kinbase.checkpoint.contract import FLOAT_DTYPES, Tensor
from kinbase.checkpoint.files import shown

BYTE_FLOATS = ("F8_E4M3", "F8_E5M2")
"""Floats of 8 bits: weights as they are, or codes where a scale lies beside them."""

_INDICES = ("I64", "U64", "BOOL")
"""What positions, masks and counters are stored in; nothing is packed into them unless scales of rows or most of a file tell."""

_BIAS = "bias"


class Neighbours:
    """The tensors of a checkpoint by the module they belong to.

    A tensor's neighbours share its module (`m.scales` of `m.qweight`), hang below it (`m.weight.absmax` of
    `m.weight`), or go by its name with an ending (`experts.up_proj_scale` of `experts.up_proj`).
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.by_name = {tensor.name: tensor for tensor in tensors}
        self._within: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._below: defaultdict[str, list[str]] = defaultdict(list)
        for tensor in tensors:
            module = module_of(tensor.name)
            if module and module not in self._within:
                self._below[module_of(module)].append(module)
            self._within[module].append(tensor)

    def within(self, module: str) -> list[Tensor]:
        """The tensors directly in a module."""
        return self._within.get(module, [])

    def is_leaf(self, tensor: Tensor) -> bool:
        """Whether no module lies below that of `tensor`, but for those that hang on its own tensors."""
        module = module_of(tensor.name)
        return module != "" and all(below in self.by_name for below in self._below.get(module, []))

    def of(self, tensor: Tensor) -> list[Tensor]:
        """The neighbours of a tensor, its bias left out."""
        return self.of_name(tensor.name)

    def of_name(self, name: str) -> list[Tensor]:
        """The neighbours of the tensor called so, whether or not it could be read."""
        module = module_of(name)
        found, stem, outer = list(self.within(name)), name, self.within(module)
        if name == module + ".weight":
            found += outer
            stem, outer = module, self.within(module_of(module))
        found += [t for t in outer if t.name.startswith(stem + "_")]
        return [t for t in found if t.name != name and not t.name.endswith(_BIAS)]


def module_of(name: str) -> str:
    """The name of the module that a tensor belongs to: what stands before the last dot, "" for none."""
    return name.rpartition(".")[0]


def config_method(config: Mapping[str, Any] | None) -> str | None:
    """What a config.json calls the method its checkpoint is quantised by, "" where it has no name; None: it says nothing."""
    for part in (config or {}, (config or {}).get("text_config")):
        if not isinstance(part, dict):
            continue
        for key in ("quantization_config", "quantization", "compression_config"):
            said = part.get(key)
            if isinstance(said, dict):
                method = said.get("quant_method") or said.get("mode")
                return method if isinstance(method, str) else ""
    return None


def packed(
    tensors: Sequence[Tensor], config: Mapping[str, Any] | None = None, unread: Iterable[str] = ()
) -> dict[str, str]:
    """The tensors that hold codes, each with what tells so, in words that follow "it".

    `unread` are names of tensors in a dtype of less than 8 bits, which are codes where anything lies beside them.
    """
    said = config_method(config) is not None
    around = Neighbours(tensors)
    found = {name: "is of a dtype of less than 8 bits" for name in unread if said or around.of_name(name)}
    for tensor in tensors:
        reason = _reason(tensor, around, said)
        if reason:
            found[tensor.name] = reason
    if not found:
        found |= _most(tensors, around)
    return found


def _reason(tensor: Tensor, around: Neighbours, said: bool) -> str | None:
    if tensor.dtype in BYTE_FLOATS:
        if len(tensor.shape) < 2:
            return None
        scale = next((other for other in around.of(tensor) if is_scale(other, tensor)), None)
        return None if scale is None else f"has to be multiplied by {shown(scale.name)}"
    what = f"holds packed {tensor.dtype}, not plain floats"
    if tensor.dtype in ("I64", "U64") and len(tensor.shape) > 1 and _has_row_scales(tensor, around):
        return what
    if tensor.dtype in FLOAT_DTYPES or is_mask(tensor) or _is_scale_of_codes(tensor, around):
        return None
    if tensor.dtype in _INDICES:
        return what if len(tensor.shape) > 1 and tensor.name.endswith(".weight") else None
    if len(tensor.shape) < 2:
        # A flat one is codes where tables hang on it by its own name; a generator's state has none.
        hung = [t for t in around.within(tensor.name) if t.dtype in FLOAT_DTYPES]
        return what if hung else None
    if said or "weight" in tensor.name.split(
        "."
    ):  # of a weight, or of a tensor that stands for one: weight._data._data
        return what
    return what if _has_scales(tensor, around) else None


def _is_scale_of_codes(tensor: Tensor, around: Neighbours) -> bool:
    """Whether exponents lie beside the codes that they multiply, which are told by themselves."""
    beside = [t for t in around.within(module_of(tensor.name)) if is_scale(tensor, t)]
    return tensor.dtype == "F8_E8M0" and any(
        t.dtype not in FLOAT_DTYPES or t.dtype in BYTE_FLOATS for t in beside
    )


def _has_scales(tensor: Tensor, around: Neighbours) -> bool:
    """Whether smaller tensors lie beside an integer matrix, in a module that has no plain weight of its own."""
    if not around.is_leaf(tensor):
        return bool(_siblings_by_stem(tensor, around))
    beside = [t for t in around.within(module_of(tensor.name)) if t is not tensor]
    if any(t.name.endswith(".weight") and t.dtype in FLOAT_DTYPES and len(t.shape) > 1 for t in beside):
        return False
    beside += around.of(tensor)
    return any(t.numel < tensor.numel and not t.name.endswith(_BIAS) for t in beside)


def _has_row_scales(tensor: Tensor, around: Neighbours) -> bool:
    """Whether a scale for each row lies beside what could else be indices (QuIP#: `SV` of `Qidxs`), and no plain weight."""
    beside = [t for t in around.within(module_of(tensor.name)) if t.dtype in FLOAT_DTYPES]
    is_plain = any(t.name.endswith(".weight") for t in beside)
    rows = [t for t in beside if t.shape == tensor.shape[:1] and not t.name.endswith(_BIAS)]
    return around.is_leaf(tensor) and not is_plain and bool(rows)


def _siblings_by_stem(tensor: Tensor, around: Neighbours) -> list[Tensor]:
    """Smaller tensors of the same module that differ from `tensor` in what follows the last underscore alone."""
    stem, _, ending = tensor.name.rpartition("_")
    if not stem or "." in ending:
        return []
    return [
        t
        for t in around.within(module_of(tensor.name))
        if t is not tensor
        and t.name.startswith(stem + "_")
        and t.numel < tensor.numel
        and not t.name.endswith(_BIAS)
    ]


def is_scale(scale: Tensor, codes: Tensor) -> bool:
    """Whether `scale` can multiply parts of `codes`: wider floats or exponents, and at most half as many."""
    wide = scale.dtype not in BYTE_FLOATS and scale.dtype not in _INDICES
    return wide and 2 * scale.numel <= max(codes.numel, 2)


def is_mask(tensor: Tensor) -> bool:
    """Whether an integer tensor has the shape of an attention mask: square, with nothing before but ones."""
    shape = tensor.shape
    return len(shape) > 2 and shape[-1] == shape[-2] and set(shape[:-2]) == {1}


def _most(tensors: Sequence[Tensor], around: Neighbours) -> dict[str, str]:
    """The integer matrices, if they are most bytes of the checkpoint; those of indices only with scales beside them."""
    matrices = [
        t
        for t in tensors
        if t.dtype not in (*FLOAT_DTYPES, "BOOL")
        and len(t.shape) > 1
        and not is_mask(t)
        and (t.dtype not in _INDICES or _has_scales(t, around))
    ]
    if 2 * sum(t.nbytes for t in matrices) <= sum(tensor.nbytes for tensor in tensors):
        return {}
    return {t.name: f"holds {t.dtype}, as most of the file does" for t in matrices}


def why(codes: Mapping[str, str], config: Mapping[str, Any] | None = None) -> str:
    """One line on why these numbers are not weights, by the first of them."""
    method = config_method(config)
    name = next(iter(codes))
    called = f"quantised ({shown(method)})" if method else "quantised"
    return f"{called} weights: {shown(name)} {codes[name]}"
