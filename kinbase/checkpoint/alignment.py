"""Which tensor of a member corresponds to which tensor of the base, and why some do not.

Where one model is a part of the other, what stands before the part's names is taken off first (`parts`). Names then meet
in four steps, each with what the one before left: exactly; without what wrappers and classes add (`names.bare`); with an
unknown prefix on one side; and as parts of a tensor in another layout (`layouts`). A step takes only what is unambiguous.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TypeVar

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.layouts import is_conv1d, transposed, turned_experts, turned_stacks, views
from kinbase.checkpoint.names import bare, is_other_tower
from kinbase.checkpoint.parts import Part, is_numbered, part_of

Key = TypeVar("Key")

_VOCABULARY = re.compile(
    r"(^|\.)(embed_tokens|embed_in|embed_out|embed|embedding|embeddings|wte|shared|word_embeddings?|tok_embeddings|"
    r"token_embeddings?|token_embd|tok_embd|word_embedding|lm_head|mlm_head|unembed|output|output_layer|"
    r"vocab_projector|predictions\.decoder|lm_head\.decoder|decoder)\.(weight|bias)$|(^|\.)(predictions|lm_head)\.bias$"
)
"""Tensors whose first axis is the vocabulary: embeddings of tokens, and output heads."""

AMBIGUOUS = "several tensors could be it"
MISSING = "missing"
NOT_IN_THE_BASE = "not in the base"


def align(
    base: Sequence[Tensor],
    member: Sequence[Tensor],
    *,
    adapter: bool = False,
    placed: Mapping[str, str] | None = None,
    heads: tuple[int, int] | None = None,
) -> tuple[list[Tensor | None], dict[str, str]]:
    """Return the member's tensor, or None, for each base tensor, and {name: why it takes no part}.

    A tensor that lies in another layout comes as a view of the member's, under the base's name. Vocabularies may
    differ in size: their common rows are a prefix of both. An adapter need not list every tensor. `placed` gives
    tensors of the member other names, that of nothing for "": layers that stand elsewhere; `heads` are the numbers
    of query and of key-value heads, which some layouts are taken apart by.
    """
    aligned, skipped, reshaped, ambiguous = _counterparts(base, member, placed or {}, heads)
    for position, tensor in enumerate(base):
        match = aligned[position]
        if match is None:
            if not adapter:
                skipped[tensor.name] = AMBIGUOUS if tensor.name in ambiguous else MISSING
            continue
        reason = _mismatch(tensor, match)
        if reason:
            skipped[tensor.name if match.name in reshaped else match.name] = reason
            aligned[position] = None
    return aligned, skipped


def counterparts(
    base: Sequence[Tensor], member: Sequence[Tensor], heads: tuple[int, int] | None = None
) -> list[Tensor | None]:
    """The member's tensor, or None, for each base tensor by their names alone, whatever their shapes and dtypes."""
    return _counterparts(base, member, {}, heads)[0]


Met = tuple[list[Tensor | None], dict[str, str], set[str], set[str]]
"""What meets; what of the member does not, and why; the base's names of views; those that are ambiguous."""


def _counterparts(
    base: Sequence[Tensor],
    member: Sequence[Tensor],
    placed: Mapping[str, str],
    heads: tuple[int, int] | None,
) -> Met:
    part, doubtful = part_of(base, member, _fits)
    if part is None:
        aligned, skipped, reshaped, ambiguous = _met(base, member, placed, heads)
        return aligned, skipped, reshaped, ambiguous | doubtful
    if part.in_base:
        return _met_in_base(part, base, member, placed, heads)
    renamed = [replace(t, name=part.names[t.name]) for t in member if t.name in part.names]
    own = {id(new): t for new, t in zip(renamed, (t for t in member if t.name in part.names), strict=True)}
    names = {part.names[t.name]: t.name for t in own.values()}
    shifted = {part.names[n]: part.names.get(new, new) for n, new in placed.items() if n in part.names}
    found, skipped, reshaped, ambiguous = _met(base, renamed, shifted, heads)
    outside = {t.name: NOT_IN_THE_BASE for t in member if t.name not in part.names}
    aligned = [None if t is None else own.get(id(t), t) for t in found]
    return aligned, {names[n]: why for n, why in skipped.items()} | outside, reshaped, ambiguous


def _met_in_base(
    part: Part,
    base: Sequence[Tensor],
    member: Sequence[Tensor],
    placed: Mapping[str, str],
    heads: tuple[int, int] | None,
) -> Met:
    """What meets where the member is a part of the base."""
    held = [position for position, tensor in enumerate(base) if tensor.name in part.names]
    renamed = [replace(base[p], name=part.names[base[p].name]) for p in held]
    names = {part.names[base[p].name]: base[p].name for p in held}
    found, skipped, reshaped, ambiguous = _met(renamed, member, placed, heads)
    aligned: list[Tensor | None] = [None] * len(base)
    own = {id(tensor) for tensor in member}
    for position, match in zip(held, found, strict=True):
        is_view = match is not None and id(match) not in own
        aligned[position] = replace(match, name=base[position].name) if match and is_view else match
    return aligned, skipped, {names[n] for n in reshaped}, {names[n] for n in ambiguous}


def _met(
    base: Sequence[Tensor],
    member: Sequence[Tensor],
    placed: Mapping[str, str],
    heads: tuple[int, int] | None,
) -> Met:
    by_name = {placed.get(t.name, t.name): t for t in member if placed.get(t.name, t.name)}
    aligned = [by_name.pop(tensor.name, None) for tensor in base]
    names = {t.name: p for p, t in enumerate(base) if aligned[p] is None}
    missing = _by_bare_name(names.items())
    for short, candidates in _by_bare_name((name, name) for name in by_name).items():
        if len(candidates) == 1 and len(missing[short]) == 1:
            aligned[missing[short][0]] = by_name.pop(candidates[0])
    left = {t.name: t for p, t in enumerate(base) if aligned[p] is None}
    met, ambiguous = _by_suffix(left, by_name)
    for name, other in met.items():
        aligned[names[name]] = by_name.pop(other)
    skipped = {t.name: "a layer that is compared once already" for t in member if placed.get(t.name) == ""}
    reshaped = _in_other_layouts(base, aligned, by_name, heads)
    skipped |= {t.name: NOT_IN_THE_BASE for t in by_name.values()}
    return aligned, skipped, reshaped, ambiguous


def meet(base: Checkpoint, member: Checkpoint) -> tuple[list[Tensor | None], dict[str, str]]:
    """`align` of two opened models, with what they tell of their layouts; reasons of the member's own come first."""
    aligned, skipped = align(
        base.tensors,
        member.tensors,
        adapter=member.delta_of is not None,
        placed=member.placed,
        heads=member.heads or base.heads,
    )
    own = {bare(name): reason for name, reason in member.skipped.items()}
    for name, reason in skipped.items():
        if reason == MISSING and bare(name) in own:
            skipped[name] = own[bare(name)]
    return aligned, skipped


def _in_other_layouts(
    base: Sequence[Tensor],
    aligned: list[Tensor | None],
    left: dict[str, Tensor],
    heads: tuple[int, int] | None,
) -> set[str]:
    """Fill `aligned` with views of what is left of the member; the base's names they have."""
    wanted = {t.name: p for p, t in enumerate(base) if aligned[p] is None}
    found, used = views([base[p] for p in wanted.values()], list(left.values()), heads)
    for view in found:
        aligned[wanted[view.name]] = view
    for name in [name for name, tensor in left.items() if tensor.name in used]:
        del left[name]
    turned = _turned(base, aligned) | _turned_stacks(base, aligned)
    return {view.name for view in found} | turned


def _turned_stacks(base: Sequence[Tensor], aligned: list[Tensor | None]) -> set[str]:
    """Turn stacks of experts that are [experts, in, out] on one side and [experts, out, in] on the other, in place."""
    ours = turned_stacks(base)
    theirs = turned_stacks(
        [replace(m, name=t.name) for t, m in zip(base, aligned, strict=True) if m is not None]
    )
    for position, tensor in enumerate(base):
        match = aligned[position]
        if match is not None and tensor.name in ours ^ theirs:
            aligned[position] = replace(turned_experts(match), name=tensor.name)
    return set(ours ^ theirs)


def _turned(base: Sequence[Tensor], aligned: list[Tensor | None]) -> set[str]:
    """Turn what is stored [in, out] where the base has [out, in], in place; the names of what was turned.

    Square matrices do not tell; they follow what is not square of the same kind (the same name in other layers, or
    else any of the model's Conv1D layers).
    """
    pairs = [
        (position, tensor, match)
        for position, (tensor, match) in enumerate(zip(base, aligned, strict=True))
        if match is not None and len(tensor.shape) == len(match.shape) == 2 and is_conv1d(tensor.name)
    ]
    oblong = [(t, m) for _, t, m in pairs if t.shape[0] != t.shape[1]]
    turned = [(t, m) for t, m in oblong if t.shape == m.shape[::-1]]
    if not turned or len(turned) != len(oblong):
        return set()
    for position, tensor, match in pairs:
        aligned[position] = transposed(match, tensor.name)
    return {tensor.name for _, tensor, _ in pairs}


def _by_suffix(base: Mapping[str, Tensor], member: Mapping[str, Tensor]) -> tuple[dict[str, str], set[str]]:
    """{base's name: member's name} of what meets but for a prefix on one side, and the base's names that are ambiguous."""
    met: dict[str, str] = {}
    ambiguous: set[str] = set()
    for theirs_longer in (True, False):
        short, long = (base, member) if theirs_longer else (member, base)
        ends = _suffixes(long)
        votes: Counter[str] = Counter()
        candidates: dict[str, dict[str, str]] = {}
        for name, tensor in short.items():
            for prefix, other in ends.get(bare(name), ()):
                if tensor.dtype in FLOAT_DTYPES and _fits(tensor, long[other]):
                    candidates.setdefault(name, {})[prefix] = other
                    votes[prefix] += tensor.numel
        for name, found in candidates.items():
            best = _chosen(found, votes)
            pair = None if best is None else (name, found[best]) if theirs_longer else (found[best], name)
            if pair is None:
                ambiguous |= {name} if theirs_longer else set(found.values())
            elif pair[0] not in met and pair[1] not in met.values():
                met[pair[0]] = pair[1]
    return met, ambiguous - met.keys()


def _suffixes(tensors: Mapping[str, Tensor]) -> dict[str, list[tuple[str, str]]]:
    """{end of a name: [(what stands before it, the whole name)]}.

    But for what says that it is of another kind of model, or leads into a layer: a norm in there is not the model's.
    """
    ends: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in tensors:
        short = bare(name)
        at = short.find(".")
        while 0 <= at < len(short) - 1:
            prefix = short[: at + 1]
            if not is_other_tower(prefix) and not is_numbered(prefix):
                ends[short[at + 1 :]].append((prefix, name))
            at = short.find(".", at + 1)
    return ends


def _chosen(found: Mapping[str, str], votes: Mapping[str, int]) -> str | None:
    """Of the prefixes that a tensor could have, the one that most weights have; None where two stand beside each other.

    A prefix inside the other (`m.` and `m.llm.`) is the same wrapper's.
    """
    ordered = sorted(found, key=lambda prefix: (-votes[prefix], prefix))
    best = ordered[0]
    rivals = [p for p in ordered[1:] if not best.startswith(p) and 2 * votes[p] > votes[best]]
    return None if rivals else best


def _fits(base: Tensor, member: Tensor) -> bool:
    return base.shape == member.shape or (
        len(base.shape) == len(member.shape)
        and base.shape[1:] == member.shape[1:]
        and is_vocabulary(base.name)
    )


def _by_bare_name(names: Iterable[tuple[str, Key]]) -> defaultdict[str, list[Key]]:
    groups: defaultdict[str, list[Key]] = defaultdict(list)
    for name, value in names:
        groups[bare(name)].append(value)
    return groups


def labels(tensors: Sequence[Tensor]) -> dict[str, str]:
    """The name each floating-point tensor goes by in every file of its model: bare, where that leaves it alone."""
    names = [tensor.name for tensor in tensors if tensor.dtype in FLOAT_DTYPES]
    groups = _by_bare_name((name, name) for name in names)
    return {name: bare(name) if len(groups[bare(name)]) == 1 else name for name in names}


def is_vocabulary(name: str) -> bool:
    """Whether the first axis of a tensor called so is the vocabulary, of which models have more or fewer rows."""
    return _VOCABULARY.search(bare(name)) is not None


def _mismatch(base: Tensor, member: Tensor) -> str | None:
    for tensor in (base, member):
        if tensor.dtype not in FLOAT_DTYPES:
            return f"not floating point ({tensor.dtype})"
    if base.shape == member.shape:
        return None
    if prod(member.shape) == 0:
        return f"empty where the base has {_extents(base)}: saved without gathering its parts?"
    alike = base.shape[1:] == member.shape[1:] and len(base.shape) == len(member.shape) > 0
    if alike and is_vocabulary(base.name):
        return None
    return f"shape {_extents(member)} where the base has {_extents(base)}"


def _extents(tensor: Tensor) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ")"
