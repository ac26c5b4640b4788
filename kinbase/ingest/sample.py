"""Sampled kinship of sources and what is stored of their families: opened, and sampled with the database closed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kinbase.checkpoint import Checkpoint
from kinbase.checkpoint.alignment import meet
from kinbase.ingest import scales
from kinbase.ingest.bases import Placement
from kinbase.ingest.families import Family, attempt, families, settle
from kinbase.ingest.steps import FamilySample, ImportOptions, Placed, Sampled, Todo
from kinbase.store import Store
from kinbase.text import size

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.kinship.sampling import Sample


def sample_sources(store: Store, placement: Placement, options: ImportOptions) -> Sampled:
    """Sample each family that sources arrive in, with its stored members whose weights are on this machine.

    What cannot be told of a source is among its notes; one without a base is stored by what it says.
    """
    standing = list(placement.sources)
    samples: list[FamilySample] = []
    bases: set[str] = set()
    for family in families(store, standing, first=placement.first, depth="kept", base_depth="sample"):
        bases.add(family.base_name)
        sample, sources = _sample(store, family, options)
        settle(standing, sources)
        samples += [sample] if sample else []
    for i, source in enumerate(standing):
        if source.todo is Todo.READ:
            lonely = source.name not in bases
            why = ["nothing to compare it with: say what it was tuned from with --base"] if lonely else []
            standing[i] = replace(source.noted(*why), todo=Todo.STORE)
    return Sampled(tuple(standing), tuple(samples))


def _sample(
    store: Store, family: Family, options: ImportOptions
) -> tuple[FamilySample | None, tuple[Placed, ...]]:
    """The sample of one family; its sources with what is to be said of them."""
    from kinbase.kinship.layers import place_all
    from kinbase.kinship.sampling import estimate

    base, share = family.base, options.sample
    assert share is not None
    if base is None:
        line = f"the weights of its base {family.base_name} are not here: name its source with --base"
        return None, tuple(source.noted(line) for source in family.sources)

    lines: dict[str, list[str]] = {}

    def work(members: list[Checkpoint], new: tuple[Placed, ...]) -> "tuple[list[str], int, Sample]":
        names = [source.name or "" for source in new] + [m.name for m in members[len(new) :]]
        lines.update(place_all(base, members))  # a few kilobytes a layer, beside the sample
        return (
            names,
            len(new),
            estimate(base, members, share, new=len(new), stderr=options.stderr, report=options.on_progress),
        )

    result, sources = attempt(store, family, work)
    if result is None:
        return None, sources
    names, new, sample = result
    sources = tuple(source.noted(*lines.get(str(source.name), ())) for source in sources)
    sources, refused = _judged_by_scales(base, sources, sample)
    sample.estimates = [e for e in sample.estimates if not refused & {e.i, e.j}]
    told = _told(sources, names, sample, share)
    return FamilySample(family.base_name, tuple(names), new, sample), told


def _judged_by_scales(
    base: Checkpoint, sources: Sequence[Placed], sample: "Sample"
) -> tuple[tuple[Placed, ...], set[int]]:
    """The sources, those left to what they say whose scales do not fit the base, and the positions of these.

    The sources that were sampled come first, in the order of the sample's members.
    """
    judged, refused = list(sources), set[int]()
    for i, source in enumerate(sources):
        member = source.opened.checkpoint
        if source.todo is not Todo.MEASURE or member is None:
            continue
        found = [
            scales.Lengths(match.name, match.numel, theirs, ours)
            for match, (theirs, ours) in zip(
                meet(base, member)[0], sample.squares[:, i].tolist(), strict=True
            )
            if match is not None and scales.is_scaled(match)
        ]
        judged[i] = scales.judged(source, base, found)
        if judged[i].todo is Todo.STORE:
            refused.add(i)
    return tuple(judged), refused


def _told(
    sources: Sequence[Placed], names: Sequence[str], sample: "Sample", share: float
) -> tuple[Placed, ...]:
    """The sources with what the sample says of each; those that failed come after the sampled ones."""
    told = list(sources)
    new = [i for i, source in enumerate(sources) if source.todo is not Todo.FAIL]
    hidden = [names[j] for j in sample.notes if j >= len(new)]
    for i in new:
        if told[i].todo is Todo.STORE:
            continue
        lines = [sample.notes[i]] if i in sample.notes else []
        if hidden:
            lines.append(f"no estimate with {', '.join(hidden[:3])}, whose change hides from a sample")
        told[i] = told[i].noted(*lines)
    told[0] = told[0].noted(
        f"{sample.runs} runs of at most {sample.run_bytes} bytes were read, {size(sample.nbytes)} of "
        f"{len(names) + 1} models (at most {share:.2%} of each)"
        + ("" if len(names) > 1 else ": kinship needs a second model of the family beside it")
    )
    return tuple(told)
