"""Sampled kinship of sources and what is stored of their families: opened, sampled with the database closed, to rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from kinbase.checkpoint.open import Source
from kinbase.errors import CheckpointError
from kinbase.ingest.stored import Report, open_members, whole, without_unreadable
from kinbase.kinship.sampling import Sample, estimate
from kinbase.store import Connection, Store
from kinbase.store import names as naming
from kinbase.store.estimates import put_sampled
from kinbase.store.models import put_base


@dataclass(slots=True)
class Sampled:
    """What a sample of one family found; `members` are names, in the order of its estimates."""

    base: str
    members: list[str]
    sample: Sample


def sample_families(
    store: Store, found: Sequence[Source], share: float, stderr: float | None, report: Report
) -> list[Sampled]:
    """Sample each family that sources arrive in, with its stored members whose weights are on this machine.

    A source gets status "sampled", or "failed" and the reason; what cannot be told of it is among its notes.
    """
    done = []
    bases = dict.fromkeys(s.base for s in found if s.arriving and s.base not in (None, s.name))
    for base_name in bases:
        group = [s for s in found if s.arriving and s.base == base_name and s.name != base_name]
        arriving = next((s for s in found if s.arriving and s.name == base_name), None)
        known, gone = open_members(store, str(base_name), without=[s.name for s in group])
        if base_name in gone and arriving is None:
            opened, _ = open_members(
                store, str(base_name), without=[*known, *(s.name for s in group)], depth="sample"
            )
            known |= {name: checkpoint for name, checkpoint in opened.items() if name == base_name}
        try:
            base = arriving.checkpoint if arriving else known.get(str(base_name))
            others = [checkpoint for name, checkpoint in known.items() if name != base_name]
            while group:
                if base is None:
                    for source in group:
                        source.notes.append(
                            f"the weights of its base {base_name} are not here: name its source with --base"
                        )
                    break
                try:
                    members = whole(
                        store, [s.checkpoint for s in group if s.checkpoint] + others, str(base_name)
                    )
                    sample = estimate(base, members, share, new=len(group), stderr=stderr, report=report)
                except CheckpointError as error:
                    group = without_unreadable(group, error)
                    continue
                names = [s.name or "" for s in group] + [m.name for m in members[len(group) :]]
                _say(group, names, sample, share)
                done.append(Sampled(str(base_name), names, sample))
                break
        finally:
            for checkpoint in known.values():
                checkpoint.close()
    for source in found:
        if source.arriving:
            member = source.base not in (None, source.name)
            source.status = "sampled" if member else "metadata"
            if not member and source.name not in bases:
                source.notes.append("nothing to compare it with: say what it was tuned from with --base")
    return done


def _say(group: Sequence[Source], names: Sequence[str], sample: Sample, share: float) -> None:
    for i, source in enumerate(group):
        if i in sample.notes:
            source.notes.append(sample.notes[i])
        hidden = [names[j] for j in sample.notes if j >= len(group)]
        if hidden:
            source.notes.append(f"no estimate with {', '.join(hidden[:3])}, whose change hides from a sample")
    if group:
        group[0].notes.append(
            f"{sample.runs} runs of at most {sample.run_bytes} bytes were read, {sample.nbytes / 1e6:.1f} MB of {len(names) + 1} "
            f"models (at most {share:.2%} of each)"
            + ("" if len(names) > 1 else ": kinship needs a second model of the family beside it")
        )


def store_sampled(con: Connection, sampled: Sampled, ids: dict[str | None, int | None]) -> None:
    """The estimates of one family, for the members that have a row: `ids` by name, else as stored."""
    members = [ids[name] if name in ids else naming.find(con, name) for name in sampled.members]
    base_id = ids.get(sampled.base) or naming.find(con, sampled.base)
    if base_id is None:
        return
    for source_name, model_id in zip(sampled.members, members, strict=True):
        if model_id is not None and model_id != base_id and source_name in ids:
            put_base(con, model_id, base_id)
    read = f"{sampled.sample.run_bytes} bytes a run, {sampled.sample.nbytes} bytes in all"
    put_sampled(
        con,
        base_id,
        [
            (members[e.i], members[e.j], e.pcc, e.cs, e.ed, e.stderr, e.coverage, f"{e.runs} runs of {read}")
            for e in sampled.sample.estimates
            if None not in (members[e.i], members[e.j]) and members[e.i] != members[e.j]
        ],
    )
