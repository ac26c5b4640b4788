"""What the passes found, to rows: a family's deltas, sketches and pairs, and the estimates of samples.

The functions take a connection of `Store.writing()` and are part of its transaction; the pairs of a large family
are stored in several.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinbase.ingest.steps import FamilySample
from kinbase.store import Connection, Store, models, sketches
from kinbase.store import kinship as sums
from kinbase.store.estimates import put_sampled

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.kinship.sums import FamilySums, PairBlock

Ids = Mapping[str, int | None]
"""The rows of models by the names that the sources of an import have for them; None for one without a row."""

SLICE_BYTES = 64 << 20
"""Products of pairs in one transaction: well under a second of writing, for which readers wait."""

GIVE_WAY = 0.1
"""Seconds between two such transactions, in which others come to their turn."""


@dataclass(frozen=True, slots=True)
class StoredSums:
    """A family of which all but the pairs is stored; `members` are rows' ids, None for a member without one."""

    family: "FamilySums"
    base_id: int
    members: tuple[int | None, ...]

    @property
    def new(self) -> list[int]:
        """The ids of the new members."""
        return [model_id for model_id in self.members[: self.family.new] if model_id is not None]

    def pairs(self) -> "Iterator[PairBlock]":
        """Sums of the pairs with a new member."""
        return self.family.pairs(self.members)

    def put_pairs(self, con: Connection) -> None:
        """Store them, all in the transaction of `con`."""
        for block in self.pairs():
            sums.put_pairs(con, self.base_id, block)


def store_family(con: Connection, family: "FamilySums", ids: Ids) -> None:
    """The sums one pass found, for the members that have a row."""
    stored = store_sums(con, family, ids)
    if stored:
        stored.put_pairs(con)


def store_sums(con: Connection, family: "FamilySums", ids: Ids) -> StoredSums | None:
    """The sums one pass found but for its pairs; None for a pass over a lone checkpoint."""
    members = [ids.get(member.name) for member in family.members]
    base_id = ids.get(family.base.name)
    sums.drop_kept(con, family.key)
    sketches.put_own(con, family, ids)
    if base_id is None or not members:
        return None
    are_others = sums.put_tensors(
        con, base_id, [name for name, _ in family.tensors], [numel for _, numel in family.tensors]
    )
    seen = {base_id}
    for i, model_id in enumerate(members):
        # Weights met twice are one model: the first of them is measured.
        members[i] = None if model_id in seen else model_id
        seen |= {model_id} if model_id is not None else set()
    stored = StoredSums(family, base_id, tuple(members))
    # Where the base's tensors were others before, the sums of all members by their positions are gone.
    measured = {
        model_id: i
        for i, model_id in enumerate(members if are_others else members[: family.new])
        if model_id is not None
    }
    at = list(measured.values())
    models.put_bases(con, dict.fromkeys(measured, base_id))
    sums.put_deltas(
        con, base_id, list(measured), {name: values[:, at] for name, values in family.columns.items()}
    )
    sums.put_skipped(
        con, {id_: {**family.skipped[i], **family.members[i].skipped} for id_, i in measured.items()}
    )
    for name, (other, how, _) in family.same.items():
        model_id, other_id = ids.get(name), ids.get(other)
        if model_id is not None and other_id is not None and model_id != other_id:
            models.put_same(con, model_id, other_id, how)
    return stored


def store_sample(con: Connection, family: FamilySample, ids: Ids) -> None:
    """The estimates of one family, for the members that have a row."""
    members = [ids.get(name) for name in family.members]
    base_id = ids.get(family.base)
    if base_id is None:
        return
    new = [model_id for model_id in members[: family.new] if model_id not in (None, base_id)]
    models.put_bases(con, dict.fromkeys(new, base_id))
    sample = family.sample
    read = f"{sample.run_bytes} bytes a run, {sample.nbytes} bytes in all"
    put_sampled(
        con,
        base_id,
        [
            (members[e.i], members[e.j], e.pcc, e.cs, e.ed, e.stderr, e.coverage, f"{e.runs} runs of {read}")
            for e in sample.estimates
            if None not in (members[e.i], members[e.j]) and members[e.i] != members[e.j]
        ],
    )


def store_pairs(store: Store, families: Sequence[StoredSums]) -> None:
    """The pairs of families, a slice at a time with room for others in between."""
    for family in families:
        for blocks in _slices(family.pairs()):
            time.sleep(GIVE_WAY)
            with store.writing() as con:
                for block in blocks:
                    sums.put_pairs(con, family.base_id, block)


def pair_bytes(family: "FamilySums | FamilySample") -> int:
    """What the products of a family's pairs take."""
    return 0 if isinstance(family, FamilySample) else 8 * family.pair_count() * len(family.tensors)


def _slices(blocks: "Iterator[PairBlock]") -> "Iterator[list[PairBlock]]":
    """Blocks of pairs in lists of at most about SLICE_BYTES."""
    held: list[PairBlock] = []
    for block in blocks:
        held.append(block)
        if sum(block.dots.nbytes for block in held) > SLICE_BYTES:
            yield held
            held = []
    if held:
        yield held
