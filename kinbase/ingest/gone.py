"""Bases whose files are gone or changed: what is remembered of them, and what cannot be told without them."""

from collections.abc import Collection, Sequence

from kinbase.checkpoint import Checkpoint, Tensor
from kinbase.checkpoint.alignment import labels
from kinbase.errors import CheckpointError
from kinbase.ingest.stored import members_of, open_stored
from kinbase.store import Store

MOST_SIBLINGS = 3
"""Members of a family that are opened to match layers with."""


def remembered(base: str, listed: Sequence[tuple[str, str, int]], member: Checkpoint) -> Checkpoint:
    """A base whose files are gone, as far as its tensors' names and sizes tell how a member fits it."""

    def gone(start: int, out: memoryview) -> None:
        raise CheckpointError(f"the files of {base} are gone or changed")

    ours = {label: name for name, label in labels(member.tensors).items()}
    by_name = {tensor.name: tensor for tensor in member.tensors}
    tensors = []
    for label, dtype, numel in listed:
        match = by_name.get(ours.get(label, ""))
        row = 1
        for extent in match.shape[1:] if match else ():
            row *= extent
        is_whole = match is not None and len(match.shape) > 0 and row > 0 and numel % row == 0
        shape = (numel // row, *match.shape[1:]) if match and is_whole else (numel,)
        tensors.append(Tensor(ours.get(label, label), dtype, shape, gone))
    return Checkpoint(base, base, tensors)


def layers_by_number(store: Store, base: Checkpoint, member: Checkpoint) -> tuple[bool, str | None]:
    """Whether a member's layers are those of the gone `base` that have their numbers, and what is to be said of it.

    They are matched by content with those of another member whose files are here and whose layers are numbered as the
    base's: of one training layers are alike, tuned or not. Without one they are taken by their numbers, and a line says so.
    """
    from kinbase.kinship.layers import are_numbered_alike, moved, stacks

    if not stacks(member):
        return True, None
    with store.reading() as con:
        stored = [m for m in members_of(con, base.name) if m.name not in (base.name, member.name)]
    here = [m for m in stored if not any(file.elsewhere for file in m.files)]
    opened = open_stored([m for m in here if all(f.as_it_was for f in m.files)][:MOST_SIBLINGS])[0]
    moves: dict[str, list[tuple[int, int]]] = {}
    try:
        for sibling in opened.values():
            if sibling.delta_of is None and are_numbered_alike(base, sibling):
                moves[sibling.name] = moved(sibling, member)
    except CheckpointError:
        pass  # what cannot be read tells nothing
    finally:
        for sibling in opened.values():
            sibling.close()
    if not all(moves.values()):
        return True, None
    for name, found in moves.items():
        told = ", ".join(f"layer {own} is {name}'s layer {theirs}" for own, theirs in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        return False, (
            f"{member.name}: its layers are in another order ({told}{more}), and the files of {base.name} are gone or "
            "changed: no sketch of its change"
        )
    return True, (
        f"{member.name}: its layers are compared by their numbers: whether they are the layers of {base.name} that have "
        "these numbers cannot be told without its files"
    )


def gone_notes(gone: Sequence[str], unsketched: Collection[str]) -> list[str]:
    """What to say of members whose files are not there."""
    notes = [f"no kinship with {name}: its files are gone or changed" for name in gone if name in unsketched]
    by_sketch = [name for name in gone if name not in unsketched]
    if by_sketch:
        others = f" and {len(by_sketch) - 3} more" if len(by_sketch) > 3 else ""
        notes.append(
            f"kinship with {', '.join(by_sketch[:3])}{others} is estimated by sketches: their files are gone or changed"
        )
    return notes
