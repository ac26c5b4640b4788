"""The same weights in another layout: fused or split, stacked or separate, transposed. Views, no copies.

Both sides are taken apart into atoms, the matrices that a model computes with: a fused `qkv_proj` is three row ranges,
a stack of experts one matrix an expert. A tensor of the base is then a row of byte ranges of the member's tensors.
What is needed is read when the view is read; a transposed matrix is turned in memory, a few at a time.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod

import numpy as np

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES, Grid, Tensor
from kinbase.checkpoint.names import bare

_QKV = {"qkv_proj", "qkv", "Wqkv", "wqkv", "W_pack", "query_key_value", "in_proj", "c_attn"}
_GROUPED = {"query_key_value", "wqkv"}
"""Fused by group of heads (GPT-NeoX, BLOOM, Falcon, InternLM 2): the queries of a group, its key, its value."""
_GATE_UP = {"gate_up_proj", "input_linear", "gate_up"}
_DOWN = {"down_proj", "output_linear"}

_CONTAINERS = {
    "self_attn": "attn", "self_attention": "attn", "attention": "attn",
    "block_sparse_moe": "mlp", "moe": "mlp", "feed_forward": "mlp", "ffn": "mlp",
}  # fmt: skip
_TERMS = {
    "query": "q_proj", "key": "k_proj", "value": "v_proj", "wq": "q_proj", "wk": "k_proj", "wv": "v_proj",
    "q_lin": "q_proj", "k_lin": "k_proj", "v_lin": "v_proj", "to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj",
    "wo": "o_proj",
}  # fmt: skip
_META = {"tok_embeddings": "embed_tokens", "output": "lm_head", "embed_out": "lm_head"}
_META_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
"""Of Llama's and Mistral's own files (consolidated.*), whose other names are among the rest."""
_PAIRED = re.compile(r"(^|\.)(attention\.w[qk]|sa_norm)\.")
"""Names in models whose rotary pairs lie side by side: Llama's and Mistral's own files, and torchtune's."""
_PHRASES = tuple(
    (re.compile(pattern), term)
    for pattern, term in (
        (r"^encoder\.layer(?=\.\d)", "layers"),
        (r"\.(gate_up|down)_projs\.(\d+)(?=\.(weight|bias)$)", r".\2.\1_proj"),
        (r"\.attn\.(output\.dense|out_proj|proj)\b", ".attn.o_proj"),
        (r"(?<=\d)\.intermediate\.dense\b", ".mlp.fc1"),
        (r"(?<=\d)\.output\.dense\b", ".mlp.fc2"),
        (r"\.router(\.layer)?(?=\.weight$)", ".gate"),
        (r"(\.(gate|moe_statics|router))+\.e_score_correction_bias$", ".e_score_correction_bias"),
    )
)
"""What is called in several words, or in others, by models that transformers 5 saves under their old names."""
_LLAMA_MLP = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_QUERY_OR_KEY = re.compile(r"\.attn\.[qk]_proj\.(weight|bias)$")
_SINKS = re.compile(r"(^|\.)(self_)?attn\.sinks$")
"""A tensor of gpt-oss, whose gates and ups lie row by row in turn."""
_CONV1D = re.compile(r"(^|\.)(c_attn|c_fc|c_proj|q_attn)\.weight$")

MOST_EXPERTS = 4096
"""Experts of a layer at most: a first axis that is longer is something else."""

Turned = Callable[[Tensor], bytes]


@dataclass(frozen=True, slots=True)
class Part:
    """A byte range of a tensor."""

    tensor: Tensor
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Build:
    """What a model's tensors tell together of how each of them is laid out.

    `is_paired`: rotary pairs of queries and keys lie side by side, and not half a head apart; `is_interleaved`: gates and ups
    lie in turn; `turned`: names of stacks of experts that are [experts, in, out].
    """

    is_paired: bool
    is_interleaved: bool
    turned: frozenset[str]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Build":
        """The build of a model, by names and shapes."""
        names = [tensor.name for tensor in tensors]
        return cls(any(map(_PAIRED.search, names)), any(map(_SINKS.search, names)), turned_stacks(tensors))


@dataclass(frozen=True, slots=True)
class Atom:
    """One matrix or vector as a row of parts; `origin` is the tensor it is in."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    origin: Tensor


def views(
    base: Sequence[Tensor], member: Sequence[Tensor], heads: tuple[int, int] | None = None
) -> tuple[list[Tensor], set[str]]:
    """What of the `base` can be read out of the `member`, as tensors with the base's names; and whose bytes those are.

    Both are what is left when names have met. `heads` are the numbers of query and of key-value heads.
    """
    if not base or not member:
        return [], set()
    turned = lru_cache(maxsize=4)(_turn)
    mine = _atoms(member, _plain_shapes(base), heads, turned)
    build = Build.of(base)
    found: list[Tensor] = []
    used: set[str] = set()
    known = {name: atom.shape for name, atom in mine.items() if atom is not None}
    for tensor in base:
        if tensor.dtype not in FLOAT_DTYPES:
            continue
        is_turned = tensor.name in build.turned
        laid = replace(tensor, shape=(tensor.shape[0], *tensor.shape[:0:-1])) if is_turned else tensor
        wanted = list(_taken_apart(laid, known, heads, build))
        atoms = [mine.get(name) for name, _, _ in wanted]
        if not atoms or any(a is None or a.shape != s for a, (_, s, _) in zip(atoms, wanted, strict=True)):
            continue
        view = _put_together(laid, [a for a in atoms if a], [ranges for _, _, ranges in wanted])
        if view is not None:
            found.append(turned_experts(view) if is_turned else view)
            used |= {a.origin.name for a in atoms if a}
    return found, used


def canonical(name: str) -> str:
    """A bare name in the words of Llama's: `block_sparse_moe.experts.0.w1` is `mlp.experts.0.gate_proj`."""
    parts = bare(name).removesuffix(".weight").split(".")
    weight = bare(name).endswith(".weight")
    if parts[-1] in ("in_proj_weight", "in_proj_bias"):
        leaf = parts[-1].removeprefix("in_proj_")
        parts, weight = [*parts[:-1], "in_proj"], leaf == "weight"
        parts += [] if weight else ["bias"]
    llama = any(part in ("block_sparse_moe", "feed_forward") for part in parts)
    if len(parts) == 1:
        parts = [_META.get(parts[0], parts[0])]
    parts[-1] = _META_NORMS.get(parts[-1], parts[-1])
    words = [_CONTAINERS.get(p) or _TERMS.get(p) or (_LLAMA_MLP.get(p, p) if llama else p) for p in parts]
    words = [
        w for at, w in enumerate(words) if not (w in ("self", "attn") and at and words[at - 1] == "attn")
    ]  # BERT
    name = ".".join(words) + (".weight" if weight else "")
    for pattern, term in _PHRASES:
        name = pattern.sub(term, name)
    return name


def is_conv1d(name: str) -> bool:
    """Whether a weight is called as those of GPT-2's Conv1D, which are [in, out] where Linear's are [out, in]."""
    return _CONV1D.search(name) is not None


def transposed(tensor: Tensor, name: str) -> Tensor:
    """A matrix turned as it is read, called `name`; in memory while it is."""
    turned = lru_cache(maxsize=1)(_turn)

    def read(start: int, out: memoryview) -> None:
        out[:] = memoryview(turned(tensor))[start : start + len(out)]

    return Tensor(name, tensor.dtype, tensor.shape[::-1], read, grid=tensor.grid)


def _turn(tensor: Tensor) -> bytes:
    raw = bytearray(tensor.nbytes)
    tensor.read(0, memoryview(raw))
    width = DTYPE_BYTES[tensor.dtype]
    return np.ascontiguousarray(np.frombuffer(raw, f"V{width}").reshape(tensor.shape).T).tobytes()


def _plain_shapes(tensors: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    return {canonical(t.name): t.shape for t in tensors}


def _atoms(
    tensors: Sequence[Tensor],
    other: Mapping[str, tuple[int, ...]],
    heads: tuple[int, int] | None,
    turned: Turned,
) -> dict[str, Atom | None]:
    """The atoms of a model by canonical name; None for a name that two have."""
    found: dict[str, Atom | None] = {}
    build = Build.of(tensors)
    for tensor in tensors:
        if tensor.dtype not in FLOAT_DTYPES:
            continue
        faces = [turned_experts(tensor)] if tensor.name in build.turned else _faces(tensor, other, turned)
        for source in faces:
            pieces = list(_taken_apart(source, other, heads, build))
            if len(pieces) > 1 or source is tensor:
                for name, shape, ranges in pieces:
                    parts = tuple(Part(source, start, nbytes) for start, nbytes in ranges)
                    found[name] = None if name in found else Atom(shape, parts, tensor)
                break
    return found


def _faces(tensor: Tensor, other: Mapping[str, tuple[int, ...]], turned: Turned) -> Iterator[Tensor]:
    """A tensor as it lies, or first turned where it is fused along its columns (GPT-2's c_attn)."""
    stem = canonical(tensor.name)
    if is_conv1d(tensor.name) and len(tensor.shape) == 2 and tensor.shape[1] == 3 * tensor.shape[0]:
        q = other.get(_sibling(stem, "q_proj"))
        if q == (tensor.shape[0], tensor.shape[0]):

            def read(start: int, out: memoryview) -> None:
                out[:] = memoryview(turned(tensor))[start : start + len(out)]

            yield Tensor(tensor.name, tensor.dtype, tensor.shape[::-1], read)
    yield tensor


Piece = tuple[str, tuple[int, ...], list[tuple[int, int]]]
"""Canonical name, shape, and the byte ranges (start, length) of an atom in its tensor."""


def turned_stacks(tensors: Sequence[Tensor]) -> frozenset[str]:
    """The stacks of experts that are [experts, in, out]: of a module whose gates and ups end in as many as twice its downs begin
    with."""
    stacks: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        if len(tensor.shape) == 3 and (stack := _experts(tensor, canonical(tensor.name))):
            stacks.setdefault(stack[0], {})["down" if stack[1] == "down_proj" else stack[1]] = tensor
    found: set[str] = set()
    for module in stacks.values():
        fused = [module[leaf] for leaf in _GATE_UP if leaf in module]
        if len(fused) == 1 and "down" in module:
            (_, ins, outs), (_, inner, width) = fused[0].shape, module["down"].shape
            if ins == width and outs == 2 * inner:
                found |= {fused[0].name, module["down"].name}
    return frozenset(found)


def turned_experts(tensor: Tensor) -> Tensor:
    """A stack of matrices with each of them turned as it is read, one expert in memory at a time."""
    experts, rows, columns = tensor.shape
    size = tensor.nbytes // experts
    turned = lru_cache(maxsize=2)(lambda expert: _turn(_slice(tensor, expert, (rows, columns))))

    def read(start: int, out: memoryview) -> None:
        while out:
            expert, within = divmod(start, size)
            length = min(len(out), size - within)
            out[:length] = memoryview(turned(expert))[within : within + length]
            out, start = out[length:], start + length

    return Tensor(tensor.name, tensor.dtype, (experts, columns, rows), read, grid=tensor.grid)


def _slice(tensor: Tensor, expert: int, shape: tuple[int, ...]) -> Tensor:
    """One matrix of a stack."""
    size = tensor.nbytes // tensor.shape[0]
    return Tensor(
        tensor.name, tensor.dtype, shape, lambda start, out: tensor.read(expert * size + start, out)
    )


def _unpaired(tensor: Tensor, name: str, heads: tuple[int, int] | None) -> Iterator[Piece]:
    """Queries or keys whose pairs lie side by side, as row ranges with the first of all pairs before the second.

    Row h * 2 half + t * half + j is stored as row h * 2 half + 2 j + t: nothing where the heads are not known.
    """
    count = 0 if heads is None else heads[".k_proj." in f".{name}."]
    rows = tensor.shape[0] if tensor.shape else 0
    if not count or rows % (2 * count):
        return
    half, row = rows // count // 2, tensor.nbytes // rows
    at = (h * 2 * half + 2 * j + t for h in range(count) for t in range(2) for j in range(half))
    yield name, tensor.shape, [(number * row, row) for number in at]


def _taken_apart(
    tensor: Tensor, other: Mapping[str, tuple[int, ...]], heads: tuple[int, int] | None, build: Build
) -> Iterator[Piece]:
    """The atoms that a tensor consists of: itself, where it is one."""
    name = canonical(tensor.name)
    if build.is_paired and _QUERY_OR_KEY.search(name):
        yield from _unpaired(tensor, name, heads)
        return
    stacked = _experts(tensor, name)
    if stacked:
        prefix, leaf, count = stacked
        shape = tensor.shape[1:]
        size = prod(shape) * DTYPE_BYTES[tensor.dtype]
        end = "bias" if len(shape) == 1 else "weight"
        for expert in range(count):
            one = Tensor(f"{prefix}.{expert}.{leaf}.{end}", tensor.dtype, shape, tensor.read)
            for atom, extents, ranges in _matrix(one, one.name, other, heads, build):
                yield atom, extents, [(expert * size + start, length) for start, length in ranges]
    else:
        yield from _matrix(tensor, name, other, heads, build)


def _experts(tensor: Tensor, name: str) -> tuple[str, str, int] | None:
    """(what stands before the number, what after it, experts) of a stack [experts, out, in], or of biases [experts, out]."""
    parts = name.removesuffix(".weight").split(".")
    is_inside = len(parts) > 1 and parts[-2] == "experts"
    is_bias = len(tensor.shape) == 2 and parts[-1].endswith("_bias") and is_inside
    leaf = parts[-1].removesuffix("_bias") if is_bias else parts[-1]
    leaf = {"fc1": "gate_up_proj", "fc2": "down_proj"}.get(leaf, leaf) if is_inside else leaf
    if not (len(tensor.shape) == 3 or is_bias) or not 0 < tensor.shape[0] <= MOST_EXPERTS:
        return None
    if leaf not in _GATE_UP | _DOWN | {"gate_proj", "up_proj"}:
        return None
    prefix = parts[:-1] if is_inside else [*parts[:-1], "experts"]
    return ".".join(prefix), "down_proj" if leaf in _DOWN else leaf, tensor.shape[0]


def _matrix(
    tensor: Tensor,
    name: str,
    other: Mapping[str, tuple[int, ...]],
    heads: tuple[int, int] | None,
    build: Build,
) -> Iterator[Piece]:
    """The atoms of one matrix (or bias) called `name`, by its rows."""
    parts = name.split(".")
    end = parts[-1] if parts[-1] in ("weight", "bias") else ""
    leaf = parts[-2] if end and len(parts) > 1 else parts[-1]
    row = prod(tensor.shape[1:]) * DTYPE_BYTES[tensor.dtype]
    rows = tensor.shape[0] if tensor.shape else 0
    if leaf in _GATE_UP and rows and rows % 2 == 0 and not build.is_interleaved:
        half = rows // 2
        for number, word in enumerate(("gate_proj", "up_proj")):
            yield _sibling(name, word), (half, *tensor.shape[1:]), [(number * half * row, half * row)]
        return
    if leaf in _QKV:
        cut = _heads_cut(leaf, rows, _sizes(name, rows, other), heads)
        if cut:
            for word, ranges in cut.items():
                shape = (sum(length for _, length in ranges), *tensor.shape[1:])
                yield _sibling(name, word), shape, [(first * row, length * row) for first, length in ranges]
            return
    yield name, tensor.shape, [(0, tensor.nbytes)]


def _sizes(name: str, rows: int, other: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int] | None:
    """Rows of query, key and value as the other side has them, if they add up."""
    shapes = [other.get(_sibling(name, word)) for word in ("q_proj", "k_proj", "v_proj")]
    sizes = [shape[0] for shape in shapes if shape]
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 and sum(sizes) == rows else None


def _heads_cut(
    leaf: str, rows: int, sizes: tuple[int, int, int] | None, heads: tuple[int, int] | None
) -> dict[str, list[tuple[int, int]]] | None:
    """Rows (first, count) of query, key and value in a fused matrix; None where that is not known."""
    if sizes is None:
        return None
    words = ("q_proj", "k_proj", "v_proj")
    if leaf not in _GROUPED:
        return {
            word: [(sum(sizes[:at]), size)] for at, (word, size) in enumerate(zip(words, sizes, strict=True))
        }
    if heads is None or min(heads) < 1 or heads[0] % heads[1] or rows % (heads[0] + 2 * heads[1]):
        return None
    queries, groups = heads
    size = rows // (queries + 2 * groups)
    each = queries // groups
    if sizes != (queries * size, groups * size, groups * size):
        return None
    step = (each + 2) * size
    return {
        "q_proj": [(g * step, each * size) for g in range(groups)],
        "k_proj": [(g * step + each * size, size) for g in range(groups)],
        "v_proj": [(g * step + (each + 1) * size, size) for g in range(groups)],
    }


def _sibling(name: str, word: str) -> str:
    """The name of another module beside this one: `attn.qkv_proj.bias` -> `attn.q_proj.bias`."""
    parts = name.split(".")
    if parts[-1] in ("weight", "bias"):
        return ".".join([*parts[:-2], word, parts[-1]])
    return ".".join([*parts[:-1], word])


def _put_together(
    tensor: Tensor, atoms: Sequence[Atom], ranges: Sequence[Sequence[tuple[int, int]]]
) -> Tensor | None:
    """The view called as the base's `tensor`: its atoms laid where the base has them; None when dtypes differ."""
    dtypes = {atom.origin.dtype for atom in atoms}
    if len(dtypes) > 1:
        return None
    (dtype,) = dtypes
    ours, theirs = DTYPE_BYTES[tensor.dtype], DTYPE_BYTES[dtype]
    placed: list[tuple[int, Part]] = []
    for atom, spans in zip(atoms, ranges, strict=True):
        source = list(atom.parts)
        for start, length in spans:
            left = length // ours * theirs
            at = start // ours * theirs
            while left:
                part = source.pop(0)
                taken = min(left, part.nbytes)
                placed.append((at, Part(part.tensor, part.start, taken)))
                if taken < part.nbytes:
                    source.insert(0, Part(part.tensor, part.start + taken, part.nbytes - taken))
                at, left = at + taken, left - taken
    placed.sort(key=lambda item: item[0])
    parts = [part for _, part in placed]
    read = partial(_read, parts, [at for at, _ in placed])
    return Tensor(tensor.name, dtype, tensor.shape, read, grid=_grid(atoms))


def _grid(atoms: Sequence[Atom]) -> Grid | None:
    """The grid of what is put together, if any of it is dequantised: of each tensor's steps the share that is in it."""
    grids = [(atom.origin.grid, prod(atom.shape) / max(atom.origin.numel, 1)) for atom in atoms]
    found = [(grid, share) for grid, share in grids if grid is not None]
    if not found:
        return None
    return Grid(found[0][0].name, lambda: sum(grid.steps() * share for grid, share in found))


def _read(parts: Sequence[Part], starts: Sequence[int], start: int, out: memoryview) -> None:
    """Fill `out` from the parts in a row, whose places are `starts`."""
    at = bisect_right(starts, start) - 1
    while out:
        part, offset = parts[at], start - starts[at]
        length = min(len(out), part.nbytes - offset)
        part.tensor.read(part.start + offset, out[:length])
        out, start, at = out[length:], start + length, at + 1
