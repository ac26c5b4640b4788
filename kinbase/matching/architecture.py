"""Which tensor of a transformer does what, by its name, shape and configuration: what a relabelling has to move.

A transformer computes the same when its units are put in another order, if every tensor that touches them follows:
the units of an MLP; heads, with the key-value group they belong to; the channels of the residual stream. A `Piece`
is a tensor, or a part of a fused one, with the axes that its rows and columns lie along. Known are Llama and what is
built like it (Mistral, Qwen, Phi-3, Gemma, OLMo 2, with fused or split projections and shared key-value heads), GPT-2,
GPT-NeoX, OPT, BERT, RoBERTa and DistilBERT.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.alignment import is_vocabulary
from kinbase.checkpoint.files import is_file, read_json, shown
from kinbase.checkpoint.layouts import canonical, is_conv1d
from kinbase.checkpoint.names import layer_of
from kinbase.checkpoint.packed import is_mask
from kinbase.checkpoint.untrusted import count
from kinbase.errors import KinbaseError

Positions = NDArray[np.int64]

SUPPORTED = "dense transformers built like Llama, GPT-2, GPT-NeoX, OPT or BERT are supported"

_LAYER = {
    "q": r"attn\.(q_proj|query)",
    "k": r"attn\.(k_proj|key)",
    "v": r"attn\.(v_proj|value)",
    "o": r"attn\.(o_proj|out_proj|out_lin|dense|output\.dense|c_proj)",
    "qkv": r"attn\.(qkv_proj|c_attn|query_key_value|Wqkv|W_pack|qkv)",
    "q_norm": r"attn\.q_norm",
    "k_norm": r"attn\.k_norm",
    "gate": r"mlp\.gate_proj",
    "up": r"mlp\.up_proj",
    "gate_up": r"mlp\.gate_up_proj",
    "fc": r"(mlp\.)?(c_fc|fc1|fc_in|lin1|dense_h_to_4h|intermediate\.dense)",
    "down": r"(mlp\.)?(down_proj|c_proj|fc2|fc_out|lin2|dense_4h_to_h|output\.dense)",
    "norm": r"(.*\.)?\w*(norm|ln_\w+|LayerNorm)",
}
_OUTSIDE = {
    "embed": r"(.*\.)?(wpe|position_embeddings|embed_positions|token_type_embeddings)",
    "head": r"(.*\.)?(score|classifier|qa_outputs|pooler\.dense)",
    "square": r"(.*\.)?(predictions\.transform\.dense|lm_head\.dense|vocab_transform)",
    "norm": r"(.*\.)?\w*(norm|ln_f|LayerNorm)",
}
_PATTERNS = [[(re.compile(pattern), role) for role, pattern in table.items()] for table in (_LAYER, _OUTSIDE)]
_NOT_LEARNT = re.compile(r"(^|\.)(inv_freq|(cos|sin)_cached|masked_bias|position_ids|attn\.bias)$")
_POSITIONS = re.compile(r"(^|\.)(wpe|position_embeddings|embed_positions)(\.|$)")
_FIRST_NORM = ("input_layernorm", "ln_1", "self_attn_layer_norm")
_SECOND_NORM = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "final_layer_norm")
_LAST_NORM = re.compile(r"(norm|ln_f|final_layer_norm|final_layernorm|decoder\.final_layer_norm)")
_PARTIAL = ("rotary_dim", "rotary_pct", "partial_rotary_factor")
_INTERLEAVED = ("gptj", "codegen", "cohere", "cohere2", "glm", "glm4", "chatglm")
_GROUPED = ("query_key_value", "wqkv")
"""Fused by key-value group: its queries, its key, its value."""
_NO_SYMMETRY = ("bloom", "mpt", "t5", "mt5", "falcon", "rw", "deberta", "deberta-v2", "mamba", "rwkv")
"""Types whose heads differ by more than their weights (slopes of positions), or that are built otherwise."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The part of `tensor` that plays `role` in layer `layer` (None: outside the layers).

    As a matrix [out, in] or a vector [out]: `rows` are its positions along the tensor's out axis (None: all), `out` and
    `into` the axes its rows and columns lie along, None for one that nothing moves. `is_turned`: stored [in, out].
    """

    role: str
    layer: int | None
    is_bias: bool
    tensor: Tensor
    out: str | None
    into: str | None
    rows: Positions | None = None
    is_turned: bool = False

    @property
    def key(self) -> tuple[str, int | None, bool]:
        """What tells the piece of one model that corresponds to another's."""
        return self.role, self.layer, self.is_bias


@dataclass(slots=True)
class Architecture:
    """The sizes of a model's groups of units, its pieces by key, and what of its symmetry its parts allow.

    `groups` key-value heads of `queries` query heads each, `head` and `value` units in a key and a value; 0 where the
    configuration does not tell. `has_signs`: channels may change their sign (RMSNorm). `is_rotary`: the units of keys
    keep their order; `has_pairs`: the first half of them is turned with the second. `folds` are the norms that attention,
    MLP and output head alone read through, by their role.
    """

    name: str
    hidden: int
    layers: int
    units: int
    groups: int = 0
    queries: int = 0
    head: int = 0
    value: int = 0
    is_gated: bool = True
    has_signs: bool = False
    is_rotary: bool = True
    has_pairs: bool = True
    has_head_norms: bool = False
    is_turned: bool = False
    folds: dict[str, str] = field(default_factory=dict)
    pieces: dict[tuple[str, int | None, bool], Piece] = field(default_factory=dict)
    others: list[Piece] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def every(self) -> Iterator[Piece]:
        """All pieces, of whatever role."""
        yield from self.pieces.values()
        yield from self.others

    def size(self, axis: str) -> int:
        """Units along an axis: `q.3`, `residual`; 0 for heads that are not known."""
        keys, heads = self.groups, self.groups * self.queries
        sizes = {
            "q": heads * self.head, "k": keys * self.head, "v": keys * self.value, "o": heads * self.value,
            "gate": self.units, "up": self.units, "down": self.units,
        }  # fmt: skip
        return sizes.get(axis.partition(".")[0], self.hidden)

    def shape(self) -> dict[str, int]:
        """What two models must have in common to be matched."""
        return {
            "channels": self.hidden, "layers": self.layers, "MLP units": self.units, "key-value heads": self.groups,
            "queries of a key": self.queries, "units of a head": self.head, "gates": int(self.is_gated),
        }  # fmt: skip


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config.json beside a checkpoint's weights; nothing where there is none. Raises CheckpointError."""
    place = Path(checkpoint.source)
    home = place if place.is_dir() else place.parent
    return read_json(home / "config.json") if is_file(str(home / "config.json")) else {}


def architecture(tensors: Sequence[Tensor], config: Mapping[str, Any], name: str) -> Architecture:
    """The roles of a model's tensors; `name` is what messages call it.

    Raises KinbaseError, in a line that says what is supported, for tensors whose role is not known.
    """
    if not config.get("num_attention_heads") and isinstance(config.get("text_config"), Mapping):
        config = config["text_config"]
    kind = str(config.get("model_type", ""))
    if kind in _NO_SYMMETRY:
        raise KinbaseError(f"{name} cannot be aligned, for it is of type {shown(kind)}: {SUPPORTED}")
    known = [Known(t, *_role(t)) for t in tensors if _is_weight(t)]
    model = _sized(known, config, name)
    for one in known:
        for piece in _pieces(model, one):
            _refuse_misfit(model, piece)
            if piece.role == "other" or piece.key in model.pieces:
                model.others.append(piece)
            else:
                model.pieces[piece.key] = piece
    return model


def _is_weight(tensor: Tensor) -> bool:
    return tensor.dtype in FLOAT_DTYPES and not _NOT_LEARNT.search(tensor.name) and not is_mask(tensor)


@dataclass(frozen=True, slots=True)
class Known:
    """A tensor with its role, its layer, and its name inside that without weight or bias."""

    tensor: Tensor
    role: str | None
    layer: int | None
    stem: str


def _role(tensor: Tensor) -> tuple[str | None, int | None, str]:
    """(role, layer, stem) of a tensor; no role where its name is not known."""
    name = canonical(tensor.name)
    if tensor.shape and is_vocabulary(tensor.name):
        is_output = re.search(r"head|predictions|embed_out|unembed|output|projector", name)
        return ("unembed" if is_output else "embed"), None, name
    place = layer_of(name)
    layer, rest = (place[1], place[2]) if place else (None, name)
    stem = rest.removesuffix(".weight").removesuffix(".bias")
    for pattern, role in _PATTERNS[0 if place else 1]:
        if pattern.fullmatch(stem):
            return role, layer, stem
    return None, layer, stem


def _sized(known: Sequence[Known], config: Mapping[str, Any], name: str) -> Architecture:
    """A model of the sizes that its tensors and its configuration tell. Raises KinbaseError for what is not supported."""
    matrices: dict[str, Tensor] = {}
    for one in known:
        if one.role is None:
            raise _refusal(name, f"the role of {shown(one.tensor.name)} is not known")
        if len(one.tensor.shape) == 2:
            matrices.setdefault(one.role, one.tensor)
    numbers = {one.layer for one in known if one.layer is not None}
    if "embed" not in matrices or not numbers or numbers != set(range(len(numbers))):
        raise _refusal(name, "it has no embedding of tokens, or no layers numbered one by one")
    if not {"down", "o"} <= matrices.keys() or not matrices.keys() & {"gate", "gate_up", "fc"}:
        raise _refusal(name, "its layers lack an MLP or attention")
    tokens = next(one.tensor for one in known if one.role == "embed" and is_vocabulary(one.tensor.name))
    hidden = tokens.shape[1]
    norms = [one for one in known if one.role == "norm"]
    expanding = matrices.get("fc")
    model = Architecture(
        name, hidden, len(numbers), matrices["down"].numel // hidden,
        is_gated="fc" not in matrices,
        has_signs=_are_rms(norms, config),
        is_rotary=not any(_POSITIONS.search(one.tensor.name) for one in known),
        has_pairs=_has_pairs(config),
        has_head_norms=any(one.role in ("q_norm", "k_norm") for one in known),
        is_turned=expanding is not None and is_conv1d(expanding.name) and expanding.shape[0] == hidden,
        folds=_folds({one.stem for one in norms}, matrices, config),
    )  # fmt: skip
    _count_heads(model, matrices, config)
    return model


def _are_rms(norms: Sequence[Known], config: Mapping[str, Any]) -> bool:
    """Whether the norms take no mean away, so that a channel may change its sign: no biases, and no word of LayerNorm."""
    has_bias = any(one.tensor.name.endswith(("bias", "beta")) for one in norms)
    is_layer_norm = any(key.startswith("layer_norm") for key in config) and "rms_norm_eps" not in config
    return bool(norms) and not has_bias and not is_layer_norm


def _has_pairs(config: Mapping[str, Any]) -> bool:
    """Whether the units i and i + h / 2 of a head of size h are turned together, as in Llama."""
    is_partial = any(config.get(key) not in (None, 1, 1.0) for key in _PARTIAL)
    return not is_partial and config.get("model_type") not in _INTERLEAVED


def _refusal(name: str, why: str) -> KinbaseError:
    return KinbaseError(f"{name} cannot be aligned, for {why}: {SUPPORTED}")


def _folds(norms: set[str], matrices: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, str]:
    """{name of a norm: its role} of those whose gain can move into what reads through them, and into nothing else.

    Not where the normed values are also the residual stream (BERT), and not where the stored gain is one less (Gemma).
    """
    if str(config.get("model_type", "")).startswith("gemma") or config.get("do_layer_norm_before") is False:
        return {}
    found = {name: "first" for name in _FIRST_NORM if name in norms}
    second = next((name for name in _SECOND_NORM if name in norms), None)
    if found and second:
        found[second] = "second"
    last = next((name for name in norms if _LAST_NORM.fullmatch(name) and name not in found), None)
    if found and last and "unembed" in matrices:
        found[last] = "last"
    return found


def _count_heads(model: Architecture, matrices: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Fill in the heads, where the configuration tells them and the shapes agree."""
    heads = _number(config, "num_attention_heads", "n_head", "n_heads")
    groups = _number(config, "num_key_value_heads", "num_kv_heads") or (
        1 if config.get("multi_query") else heads
    )
    inner = matrices["o"].numel // model.hidden
    if heads and groups and heads % groups == 0:
        size = _number(config, "head_dim") or inner // heads
        if "k" in matrices and "v" in matrices:
            key, value = (matrices[role].numel // model.hidden for role in "kv")
        else:
            fused = matrices.get("qkv")
            key = value = (fused.numel // model.hidden - heads * size) // 2 if fused else 0
        if key == groups * size and value % groups == 0 and inner == heads * (value // groups):
            model.groups, model.queries = groups, heads // groups
            model.head, model.value = size, value // groups
            return
    why = "its heads do not fit its projections" if heads else "no config.json tells its heads"
    model.notes.append(f"{model.name}: {why}: attention heads are left as they are")


def _number(config: Mapping[str, Any], *keys: str) -> int:
    return next((n for key in keys if (n := count(config.get(key), 1 << 20))), 0)


def _pieces(model: Architecture, one: Known) -> Iterator[Piece]:
    """The pieces of one tensor."""
    tensor, role, layer, is_vector = one.tensor, one.role, one.layer, len(one.tensor.shape) == 1
    is_bias = tensor.name.endswith(("bias", "beta"))
    heads = model.groups > 0
    second = "second" if "second" in model.folds.values() else "first"

    def piece(as_: str, out: str | None, into: str | None, rows: Positions | None = None) -> Piece:
        turned = model.is_turned and is_conv1d(tensor.name)
        return Piece(as_, layer, is_bias, tensor, out, None if is_vector else into, rows, turned)

    if role == "qkv":
        for word, rows in _fused(model, tensor, one.stem).items():
            yield piece(word, f"{word}.{layer}" if heads else None, f"into-first.{layer}", rows)
    elif role in ("q", "k", "v"):
        yield piece(role, f"{role}.{layer}" if heads else None, f"into-first.{layer}")
    elif role == "o":
        yield piece("o", "residual", f"o.{layer}" if heads else None)
    elif role in ("q_norm", "k_norm"):
        whole = heads and tensor.numel == model.size(role[0])
        yield piece("other", f"{role[0]}.{layer}" if whole else None, None)
    elif role == "gate_up":
        half = tensor.shape[0] // 2
        for word, start in (("gate", 0), ("up", half)):
            yield piece(word, f"{word}.{layer}", f"into-{second}.{layer}", np.arange(start, start + half))
    elif role in ("gate", "up", "fc"):
        word = "gate" if role == "fc" else role
        yield piece(word, f"{word}.{layer}", f"into-{second}.{layer}")
    elif role == "down":
        yield piece("down", "residual", f"down.{layer}")
    elif role == "norm":
        fold = model.folds.get(one.stem) if is_vector and tensor.numel == model.hidden else None
        yield piece(fold or "other", f"{fold}.{layer}" if fold else "channels", None)
    elif role == "unembed":
        yield piece(role, None, "into-last.None" if "last" in model.folds.values() else "residual")
    elif role in ("embed", "head"):
        yield piece("embed" if is_vocabulary(tensor.name) else "other", None, "residual")
    else:  # a square matrix of channels before a tied output head
        yield piece("other", "residual", "residual")


def _fused(model: Architecture, tensor: Tensor, stem: str) -> dict[str, Positions]:
    """The rows of query, key and value in a fused projection or its bias."""
    rows = tensor.numel // model.hidden if len(tensor.shape) == 2 else tensor.numel
    queries, keys = model.size("q"), model.size("k")
    if not queries:
        queries = keys = rows // 3
    if queries + 2 * keys != rows:
        raise _refusal(model.name, f"the rows of {shown(tensor.name)} are not those of its heads")
    if not model.groups or stem.rpartition(".")[2] not in _GROUPED:
        cuts = np.split(np.arange(rows), [queries, queries + keys])
        return dict(zip("qkv", cuts, strict=True))
    by_group = np.arange(rows).reshape(model.groups, model.queries + 2, model.head)
    parts = by_group[:, :-2], by_group[:, -2], by_group[:, -1]
    return {word: part.reshape(-1) for word, part in zip("qkv", parts, strict=True)}


def _refuse_misfit(model: Architecture, piece: Piece) -> None:
    """Raise KinbaseError for a tensor whose extents are not those of the axes that its name says."""
    shape = piece.tensor.shape[::-1] if piece.is_turned else piece.tensor.shape
    if len(shape) not in (1, 2):
        raise _refusal(model.name, f"{shown(piece.tensor.name)} has {len(shape)} dimensions")
    out = shape[0] if piece.rows is None else len(piece.rows)
    axes = [(piece.out, out), *([(piece.into, shape[1])] if len(shape) == 2 else [])]
    for axis, extent in axes:
        if axis is not None and extent != model.size(axis):
            raise _refusal(
                model.name,
                f"{shown(piece.tensor.name)} has {extent} units where others have {model.size(axis)}",
            )
