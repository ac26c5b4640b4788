"""Layers matched by content: a frankenmerge repeats them, a pruned model lacks some, and their numbers tell nothing.

A few short runs of a few matrices of each layer are read of the base and of a member. Layers of one training, tuned
or not, correlate above 0.8 at the same places; others hardly. Where a member's layers are not the base's by number,
each is compared with the one that it is.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.adapters import elements
from kinbase.checkpoint.alignment import meet
from kinbase.checkpoint.names import bare, layer_of

Vector = NDArray[np.float64]

PROBES = 3
"""Matrices of a layer of which something is read: those that all layers of both models have, the largest first."""
RUNS, RUN = 4, 512
"""Runs of a matrix, and their elements: so many of unrelated layers correlate below 0.05 (four standard errors)."""
RELATED = 0.3
"""Correlation from which two layers, or tensors, are of one training."""
IN_ORDER = 0.5
"""Correlation of a run from which a layer is the base's of its number, and nothing more is read."""
PLAINLY = 0.2
"""By how much another layer must be nearer than the one of the same number."""

Layers = dict[int, dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Match:
    """A member's layer, the base's that it is made from (None: none of them), and how they correlate."""

    layer: int
    base: int | None
    correlation: float


def place_all(base: Checkpoint, members: Sequence[Checkpoint]) -> dict[str, list[str]]:
    """Let members' layers meet those of the base that they are, by `Checkpoint.placed`; lines on what was found, by name.

    Nothing is read of adapters, of files elsewhere, and of models without numbered layers. May raise CheckpointError.
    """
    base_stacks = stacks(base)
    read: dict[tuple[str, ...], Vector] = {}
    found: dict[str, list[str]] = {}
    for member in members:
        found[member.name] = []
        if member.delta_of is not None or any(f.elsewhere for c in (base, member) for f in c.files):
            continue
        own = stacks(member)
        alike: dict[str, list[int]] = {}
        for stack, ours in base_stacks.items():
            if stack in own:
                matched = matches(ours, own[stack], stack, read)
                found[member.name] += _place(member, own[stack], matched)
                alike[stack] = [m.layer for m in matched if m.layer == m.base]
        found[member.name] += _strange(base, member, {} if member.placed else alike, read)
    return found


def stacks(checkpoint: Checkpoint) -> dict[str, Layers]:
    """{what stands before the numbers, bare: {number: {rest of the name: tensor}}} of stacks of two layers and more."""
    found: defaultdict[str, Layers] = defaultdict(dict)
    for tensor in checkpoint.tensors:
        place = layer_of(bare(tensor.name)) if tensor.dtype in FLOAT_DTYPES else None
        if place:
            found[place[0]].setdefault(place[1], {})[place[2]] = tensor
    return {stack: layers for stack, layers in found.items() if len(layers) > 1}


def are_numbered_alike(base: Checkpoint, member: Checkpoint) -> bool:
    """Whether the layers of two models have the same numbers in every stack; nothing is read."""
    ours, theirs = (
        {stack: layers.keys() for stack, layers in stacks(checkpoint).items()}
        for checkpoint in (base, member)
    )
    return ours == theirs


def matches(
    ours: Layers, theirs: Layers, stack: str = "", read: dict[tuple[str, ...], Vector] | None = None
) -> list[Match]:
    """Each layer of a member with the base's that is nearest by content; none where there is nothing to compare by.

    What is read of the base is kept in `read`.
    """
    probes = _probes(ours, theirs)
    if not probes:
        return []
    read = {} if read is None else read
    if _are_in_order(ours, theirs, probes[0], stack, read):
        return [Match(layer, layer, 1.0) for layer in sorted(theirs)]
    key = (stack, *probes)
    if key not in read:
        read[key] = np.stack([_layer(ours[i], probes) for i in sorted(ours)])
    base = read[key]
    member = np.stack([_layer(theirs[i], probes) for i in sorted(theirs)])
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.nan_to_num(_unit(member) @ _unit(base).T)
    numbers = sorted(ours)
    result = []
    for row, layer in zip(found, sorted(theirs), strict=True):
        best = int(row.argmax())
        own = numbers.index(layer) if layer in ours else None
        if own is not None and row[own] >= row[best] - PLAINLY:
            best = own
        nearest = float(row[best])
        result.append(Match(layer, numbers[best] if nearest > RELATED else None, nearest))
    return result


def moved(base: Checkpoint, member: Checkpoint) -> list[tuple[int, int]]:
    """(layer, the base's that it is by content) of a member's layers that are not the base's of their number."""
    ours, theirs = stacks(base), stacks(member)
    found = [m for stack in ours.keys() & theirs for m in matches(ours[stack], theirs[stack], stack)]
    return sorted((m.layer, m.base) for m in found if m.base is not None and m.base != m.layer)


def _are_in_order(
    ours: Layers, theirs: Layers, probe: str, stack: str, read: dict[tuple[str, ...], Vector]
) -> bool:
    """Whether every layer is plainly the base's of its number, by one run of each: so it is of nearly all models."""
    if ours.keys() != theirs.keys():
        return False
    key = ("one run", stack, probe)
    if key not in read:
        read[key] = np.stack([_run(ours[layer][probe]) for layer in sorted(ours)])
    member = np.stack([_run(theirs[layer][probe]) for layer in sorted(theirs)])
    return bool((np.einsum("ij,ij->i", _unit(read[key]), _unit(member)) > IN_ORDER).all())


def _run(tensor: Tensor) -> Vector:
    """One run from the middle of a tensor."""
    length = min(2 * RUN, tensor.numel)
    return np.nan_to_num(elements(tensor, (tensor.numel - length) // 2, length), posinf=0, neginf=0)


def _place(member: Checkpoint, theirs: Layers, found: Sequence[Match]) -> list[str]:
    moved = [m for m in found if m.base is not None and m.base != m.layer]
    lines = []
    if moved:
        first: dict[int, Match] = {}
        for match in sorted(found, key=lambda m: (-m.correlation, m.layer)):
            if match.base is not None:
                first.setdefault(match.base, match)
        for match in found:
            if match.base is None:
                continue
            is_first = first[match.base] is match
            for tensor in theirs[match.layer].values():
                new = _renumbered(tensor.name, match.layer, match.base)
                member.placed[tensor.name] = new if is_first else ""
        told = ", ".join(f"layer {m.layer} is the base's layer {m.base}" for m in moved[:8])
        more = f" and {len(moved) - 8} more" if len(moved) > 8 else ""
        lines.append(f"{member.name}: layers matched by content, not by number: {told}{more}")
    strangers = [m.layer for m in found if m.base is None]
    if strangers and len(strangers) < len(found):
        lines.append(
            f"{member.name}: layers {', '.join(map(str, strangers[:8]))} have nothing in common with any of the base's"
        )
    return lines


def _renumbered(name: str, old: int, new: int) -> str:
    parts = name.split(".")
    for at, part in enumerate(parts):
        if at and part == str(old):
            return ".".join([*parts[:at], str(new), *parts[at + 1 :]])
    return name


def _strange(
    base: Checkpoint,
    member: Checkpoint,
    alike: Mapping[str, Sequence[int]],
    read: dict[tuple[str, ...], Vector],
) -> list[str]:
    """A line on matrices that have nothing in common with the base's, whatever they are called.

    Those outside the layers, and those of the middle one of the layers that are `alike` in both, by stack, which stand for
    their like in the others. Of those too small to tell nothing is read; what is read of the base is kept in `read`.
    """
    strange, numel = [], 0
    middle = {stack: layers[len(layers) // 2] for stack, layers in alike.items() if layers}

    def is_looked_at(tensor: Tensor) -> bool:
        place = layer_of(bare(tensor.name))
        return len(tensor.shape) > 1 and (place is None or middle.get(place[0]) == place[1])

    outside = [replace(c, tensors=list(filter(is_looked_at, c.tensors))) for c in (base, member)]
    aligned, _ = meet(*outside)
    total = sum(t.numel for t in base.tensors if t.dtype in FLOAT_DTYPES)
    for tensor, match in zip(outside[0].tensors, aligned, strict=True):
        if match is None:
            continue
        both = min(tensor.numel, match.numel)
        if both < RUNS * RUN:
            continue
        key = ("outside", tensor.name, str(both))
        if key not in read:
            read[key] = _unit(_sampled(tensor, both)[None])
        x, y = read[key], _unit(_sampled(match, both)[None])
        if abs(float((x @ y.T)[0, 0])) < RELATED and x.any() and y.any():
            place = layer_of(bare(tensor.name))
            strange.append(tensor.name)
            numel += both * (len(alike[place[0]]) if place else 1)
    if not strange:
        return []
    like = ", with their like in other layers" if any(layer_of(bare(name)) for name in strange) else ""
    return [
        f"{member.name}: {', '.join(strange[:3])}{', ...' * (len(strange) > 3)} ({numel / max(total, 1):.1%} of the base's "
        f"parameters{like}) have nothing in common with the base's: in another order, transposed, or of another training?"
    ]


def origins(member: Checkpoint, others: Sequence[Checkpoint]) -> Iterator[tuple[int, str, int]]:
    """(layer, model, its layer) of a member's layers that are another model's to the bit, where their numbers differ."""
    known: dict[bytes, tuple[str, int]] = {}
    for stack, theirs in stacks(member).items():
        for other in others:
            ours = stacks(other).get(stack, {})
            probes = _probes(ours, theirs) if ours else []
            for number, tensors in ours.items():
                if probes:
                    known.setdefault(_layer(tensors, probes).tobytes(), (other.name, number))
            for number, tensors in theirs.items():
                found = known.get(_layer(tensors, probes).tobytes()) if probes else None
                if found and found[0] == other.name:
                    yield number, *found


def told_origins(base: Checkpoint, members: Sequence[Checkpoint], member: Checkpoint) -> list[str]:
    """A line on the layers of a member, matched by content, that are another model's to the bit."""
    if not member.placed:
        return []
    others = [base, *(m for m in members if m is not member and m.delta_of is None and not m.placed)]
    others = [m for m in others if not any(f.elsewhere for f in m.files)]
    found = sorted({(layer, name, number) for layer, name, number in origins(member, others)})
    if not found:
        return []
    told = ", ".join(f"layer {layer} is {name}'s layer {number}" for layer, name, number in found[:12])
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    return [f"{member.name}: {told}{more}, to the bit where they were read"]


def _probes(ours: Layers, theirs: Mapping[int, Mapping[str, Tensor]]) -> list[str]:
    """The rests of names of matrices that all layers of both have in one shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    layers = [*ours.values(), *theirs.values()]
    for rest, tensor in layers[0].items():
        if len(tensor.shape) > 1 and all(
            rest in layer and layer[rest].shape == tensor.shape for layer in layers
        ):
            shapes[rest] = tensor.shape
    return sorted(shapes, key=lambda rest: (-layers[0][rest].numel, rest))[:PROBES]


def _layer(tensors: Mapping[str, Tensor], probes: Sequence[str]) -> Vector:
    return np.concatenate([_centred(_sampled(tensors[rest], tensors[rest].numel)) for rest in probes])


def runs(tensor: Tensor, numel: int) -> Vector:
    """Runs spread over the first `numel` elements of a tensor, RUNS * RUN at most."""
    length = min(RUN, max(1, numel // RUNS))
    starts = [k * (numel - length) // max(RUNS - 1, 1) for k in range(RUNS)] if numel else []
    return np.concatenate([np.zeros(0), *(elements(tensor, start, min(length, numel)) for start in starts)])


def _sampled(tensor: Tensor, numel: int) -> Vector:
    """`runs` to correlate, where what is not finite is nothing."""
    return np.nan_to_num(runs(tensor, numel), posinf=0, neginf=0)


def _centred(values: Vector) -> Vector:
    return np.asarray(values - values.mean())


def _unit(rows: Vector) -> Vector:
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.where(length > 0, length, 1))
