"""Which tensor of a member corresponds to which tensor of the base, and why some do not."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

from kinbase.checkpoint import FLOAT_DTYPES, Tensor

Key = TypeVar("Key")

PREFIXES = ("base_model.", "language_model.", "model.", "module.", "transformer.", "_orig_mod.")
"""What wrappers (PEFT, vision-language models, headless classes, DataParallel, compile) put before a name."""


def align(
    base: Sequence[Tensor], member: Sequence[Tensor], *, adapter: bool = False
) -> tuple[list[Tensor | None], dict[str, str]]:
    """Return the member's tensor, or None, for each base tensor, and {name: why it takes no part}.

    Tensors meet by exact name; what is left meets by name without known prefixes, where that leaves one
    on each side. Shapes may differ on the first axis: the common rows are a prefix of both. An adapter
    need not list every tensor.
    """
    by_name = {tensor.name: tensor for tensor in member}
    aligned = [by_name.pop(tensor.name, None) for tensor in base]
    missing = _by_bare_name((t.name, p) for p, t in enumerate(base) if aligned[p] is None)
    for bare, names in _by_bare_name((name, name) for name in by_name).items():
        if len(names) == 1 and len(missing[bare]) == 1:
            aligned[missing[bare][0]] = by_name.pop(names[0])
    skipped = dict.fromkeys(by_name, "not in the base")
    for position, tensor in enumerate(base):
        match = aligned[position]
        if match is None:
            if not adapter:
                skipped[tensor.name] = "missing"
            continue
        reason = _mismatch(tensor, match)
        if reason:
            skipped[match.name] = reason
            aligned[position] = None
    return aligned, skipped


def _by_bare_name(names: Iterable[tuple[str, Key]]) -> defaultdict[str, list[Key]]:
    groups: defaultdict[str, list[Key]] = defaultdict(list)
    for name, value in names:
        groups[bare(name)].append(value)
    return groups


def bare(name: str) -> str:
    """A name without the prefixes that wrappers put before it."""
    while True:
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name = name[len(prefix) :]
                break
        else:
            return name


def labels(tensors: Sequence[Tensor]) -> dict[str, str]:
    """The name each floating-point tensor goes by in every file of its model: bare, where that leaves it alone."""
    names = [tensor.name for tensor in tensors if tensor.dtype in FLOAT_DTYPES]
    groups = _by_bare_name((name, name) for name in names)
    return {name: bare(name) if len(groups[bare(name)]) == 1 else name for name in names}


def _mismatch(base: Tensor, member: Tensor) -> str | None:
    for tensor in (base, member):
        if tensor.dtype not in FLOAT_DTYPES:
            return f"not floating point ({tensor.dtype})"
    if base.shape != member.shape and (not base.shape or base.shape[1:] != member.shape[1:]):
        return f"shape {_extents(member)} where the base has {_extents(base)}"
    return None


def _extents(tensor: Tensor) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ")"
