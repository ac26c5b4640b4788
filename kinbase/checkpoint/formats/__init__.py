"""Quantised checkpoints as weights: which format each module is in, and its tensors dequantised as they are read.

`dequantise` replaces codes and scales by tensors of float32 whose `read` decodes them by position: nothing is
decoded when a checkpoint is opened, and no more than a few panels is held. What the formats' own headers, tables and
configurations say is checked against shapes; what does not fit is refused in one line, of the whole checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kinbase.checkpoint.contract import Blob, Checkpoint, Tensor
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.formats import byte_codes, columns, groups, nibbles
from kinbase.checkpoint.formats.values import Kept, raw
from kinbase.checkpoint.packed import BYTE_FLOATS, Neighbours, config_method, is_scale, module_of, why
from kinbase.errors import CheckpointError

_OF_ACTIVATIONS = ("input", "output", "act", "k_scale", "v_scale")
"""What the names of scales have in them that multiply something else than the weight."""


def dequantise(weights: Checkpoint, config: Mapping[str, Any] | None, codes: Mapping[str, str]) -> None:
    """Replace the `codes` of `weights`, and what belongs to them, by the tensors they stand for.

    `codes` is what `packed` found. Codes and scales become blobs, so the digest is of what is stored. Raises
    CheckpointError, leaving `weights` as it was, when one of them is in no format that is read, or does not fit it.
    """
    opened = _Opened(Neighbours(weights.tensors), config or {})
    for name, reason in codes.items():
        if name not in opened.claimed:
            opened.take(name, {name: reason})
    names = {t.name for t in weights.tensors} - opened.claimed
    for tensor in opened.made:
        if tensor.name in names:
            raise CheckpointError(f"{shown(tensor.name)} is there twice, as codes and as weights")
        names.add(tensor.name)
    plain = [t for t in weights.tensors if t.name not in opened.claimed]
    weights.blobs += [Blob.of(t) for t in weights.tensors if t.name in opened.claimed]
    weights.tensors[:] = plain + opened.made
    files = weights.close

    def close() -> None:
        files()
        opened.kept.clear()

    weights.close = close


@dataclass(slots=True)
class _Opened:
    """The tensors of one checkpoint, those that formats claimed, and the weights made of them."""

    around: Neighbours
    config: Mapping[str, Any]
    claimed: set[str] = field(default_factory=set)
    made: list[Tensor] = field(default_factory=list)
    kept: Kept = field(default_factory=Kept)

    def take(self, name: str, reason: Mapping[str, str]) -> None:
        """The weight of one tensor of codes."""
        tensor = self.around.by_name.get(name)
        module = module_of(name)
        beside = {t.name.rpartition(".")[2]: t for t in self.around.within(module)}
        if tensor is None:
            raise CheckpointError(why(reason, self.config))
        if "qweight" in beside and name.endswith((".qweight", ".qzeros")):
            self._columns(module, beside)
        elif name.endswith(".weight_packed") and "weight_scale" in beside:
            self._packed(module, beside)
        elif tensor.dtype == "U32" and name.endswith(".weight") and {"scales", "biases"} <= beside.keys():
            weight = groups.affine(tensor, beside["scales"], beside["biases"], *self._group(module))
            self._made(weight, [tensor, beside["scales"], beside["biases"]])
        elif name.endswith("_blocks"):
            self._experts(tensor, name.removesuffix("_blocks"))
        elif tensor.dtype == "U8" and any(t.name == name + ".absmax" for t in self.around.within(name)):
            hung = [*self.around.within(name), *self.around.within(name + ".quant_state")]
            self._made(nibbles.four_bits(tensor, {t.name[len(name) + 1 :]: t for t in hung}), [tensor, *hung])
        elif tensor.dtype in BYTE_FLOATS:
            self._bytes(tensor)
        elif tensor.dtype == "I8" and len(tensor.shape) == 2:
            self._integers(tensor, beside, reason)
        else:
            raise CheckpointError(why(reason, self.config))

    def _made(self, weight: Tensor, of: Sequence[Tensor]) -> None:
        self.made.append(weight)
        self.claimed |= {tensor.name for tensor in of}

    def _columns(self, module: str, beside: Mapping[str, Tensor]) -> None:
        said = self._said()
        bits = said.get("bits", said.get("w_bit"))
        second = "gptq_v2" in (said.get("checkpoint_format"), self.config.get("checkpoint_format"))
        weight = columns.packed_columns(
            module + ".weight", beside, self.kept, bits=bits if type(bits) is int else None, second=second
        )
        parts = [beside[key] for key in ("qweight", "qzeros", "scales", "g_idx") if key in beside]
        self._made(weight, parts)

    def _packed(self, module: str, beside: Mapping[str, Tensor]) -> None:
        codes, scale, shape = beside["weight_packed"], beside["weight_scale"], beside.get("weight_shape")
        if {
            "weight_zero_point",
            "weight_g_idx",
            "weight_global_scale",
        } & beside.keys() or codes.dtype != "I32":
            raise CheckpointError(f"{shown(codes.name)} is packed in a way that is not read")
        if shape is None or shape.dtype not in ("I64", "I32") or shape.numel != 2 or len(codes.shape) != 2:
            raise CheckpointError(f"{shown(codes.name)} has no weight_shape of two numbers")
        rows, count = (
            int(n) for n in raw(shape, 0, shape.nbytes).view("<i8" if shape.dtype == "I64" else "<i4")
        )
        if rows != codes.shape[0] or not 0 < count <= 32 * codes.shape[1]:
            raise CheckpointError(
                f"{shown(shape.name)} says {rows} x {count}, which {shown(codes.name)} does not hold"
            )
        weight = groups.symmetric(module + ".weight", codes, scale, count, 32 * codes.shape[1] // count)
        self._made(weight, [codes, scale, shape, *self._extras(module)])

    def _experts(self, codes: Tensor, name: str) -> None:
        scales = self.around.by_name.get(name + "_scales")
        if scales is None:
            raise CheckpointError(f"{shown(codes.name)} has no {shown(name + '_scales')} beside it")
        self._made(nibbles.mx_experts(name, codes, scales, self.kept), [codes, scales])

    def _bytes(self, codes: Tensor) -> None:
        beside = self.around.of(codes)
        block = byte_codes.block_size(self._said())
        scale = _scale_of(codes, beside, block)
        weight = byte_codes.scaled(codes, scale, self.kept, block=block)
        self._made(
            weight, [codes, scale, *(t for t in beside if t.numel <= codes.shape[-2] and t is not scale)]
        )

    def _integers(self, codes: Tensor, beside: Mapping[str, Tensor], reason: Mapping[str, str]) -> None:
        """Signed bytes by row: bitsandbytes' SCB, or the scale of compressed-tensors."""
        scale, layout = beside.get("SCB"), beside.get("weight_format")
        if scale is not None and scale.numel == codes.shape[0]:
            if layout is not None and any(raw(layout, 0, layout.nbytes)):
                raise CheckpointError(f"{shown(codes.name)} is in a layout of one GPU, which is not read")
            weight = byte_codes.scaled(codes, scale, self.kept, divisor=127.0)
            self._made(weight, [codes, scale, *([layout] if layout else [])])
            return
        scale = beside.get("weight_scale")
        if (
            scale is None
            or config_method(self.config) != "compressed-tensors"
            or "weight_zero_point" in beside
        ):
            raise CheckpointError(why(reason, self.config))
        self._made(
            byte_codes.scaled(codes, scale, self.kept), [codes, scale, *self._extras(module_of(codes.name))]
        )

    def _extras(self, module: str) -> list[Tensor]:
        """Scales of activations in a module, which are no weights."""
        return [
            t
            for t in self.around.within(module)
            if t.name.rpartition(".")[2].startswith(("input_", "output_"))
        ]

    def _said(self) -> Mapping[str, Any]:
        """The quantization_config, or nothing."""
        for part in (self.config, self.config.get("text_config")):
            said = part.get("quantization_config") if isinstance(part, dict) else None
            if isinstance(said, dict):
                return said
        return {}

    def _group(self, module: str) -> tuple[int, int | None]:
        """The elements of MLX's groups and the bits of a code, by the configuration; 64 and None where it does not say."""
        said = self.config.get("quantization", self._said())
        said = said if isinstance(said, dict) else {}
        own = said.get(module)
        own = own if isinstance(own, dict) else {}
        size, bits = (own.get(key, said.get(key)) for key in ("group_size", "bits"))
        size = 64 if size is None else size
        if type(size) is not int or not 8 <= size <= 1 << 16:
            raise CheckpointError(f"the config says groups of {shown(size)} for {shown(module)}")
        return size, bits if type(bits) is int else None


def _scale_of(codes: Tensor, beside: Sequence[Tensor], block: Sequence[int] | None) -> Tensor:
    """The one neighbour that multiplies 8-bit floats; raises CheckpointError when that cannot be told.

    Of several bytes are none if they fit no block: those of a text are not exponents.
    """
    if any("zero" in t.name.rpartition(".")[2] for t in beside):
        raise CheckpointError(f"{shown(codes.name)} has zero points, with which 8-bit floats are not read")
    last = {t.name: t.name.rpartition(".")[2] for t in beside}
    found = [
        t for t in beside if is_scale(t, codes) and not any(word in last[t.name] for word in _OF_ACTIVATIONS)
    ]
    if len(found) > 1:
        found = [t for t in found if t.dtype != "U8" or byte_codes.fits(codes, t, block)]
    if len(found) != 1:
        names = ", ".join(shown(t.name) for t in found[:3])
        raise CheckpointError(
            f"{shown(codes.name)} has {f'not one scale but {names}' if names else 'no scale'}"
        )
    return found[0]
