"""A claimed recipe run again: `kinbase check MODEL --replay`.

A merge is made again by kinbase.merging, stretch by stretch, and each stretch is held against the child's as it
is made: nothing is written, and what is in memory does not grow with the models. An adapter is added to what it was made for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kinbase.checkpoint import DTYPE_BYTES, Checkpoint, Tensor
from kinbase.checkpoint.alignment import meet
from kinbase.checkpoint.merge_config import Reference
from kinbase.checkpoint.open import read
from kinbase.errors import KinbaseError
from kinbase.ingest import merged as merges
from kinbase.provenance.proof.compare import (
    BROKEN,
    EQUAL,
    OTHER,
    ROUNDING,
    SCALED,
    UNTOUCHED,
    Compared,
    elements,
    floats,
)
from kinbase.query.graph import adapter_in
from kinbase.query.models import source_of
from kinbase.store import Store
from kinbase.store import names as naming

if TYPE_CHECKING:  # merging loads torch, which what cannot be replayed need not wait for
    from kinbase.merging.plan import Target

Report = Callable[[int, int], None]

CONFIGS = ("mergekit_config.yml", "mergekit_config.yaml")

NAMED = 4
"""Tensors that are named one by one."""

STRETCH = 1 << 17

PROVED, NEARLY, DIFFERS, NOTHING = "proved", "proved up to rounding", "differs", "nothing was applied"


@dataclass
class Replay:
    """What a replay found: `outcome` (PROVED, NEARLY, DIFFERS or NOTHING), of which `recipe`, and why in `lines`."""

    model: str
    recipe: str
    outcome: str = PROVED
    lines: list[str] = field(default_factory=list)

    def row(self) -> tuple[str, str, str, str]:
        """As `kinbase check` tells it: subject, claim, verdict, detail."""
        verdict = "supported" if self.outcome in (PROVED, NEARLY) else "contradicted"
        return self.model, f"replay of {self.recipe}", verdict, "; ".join([self.outcome, *self.lines])


def replay(
    store: Store,
    model: str,
    *,
    config: str | None = None,
    seed: int = 0,
    report: Report = lambda done, total: None,
) -> Replay:
    """Run the recipe of `model` again and compare: that of the file `config`, of the merge configuration beside its weights, or
    of the adapter that was merged into it.

    Raises KinbaseError when there is no recipe, or when a part of it is not here: it says which.
    """
    with store.reading() as con:
        name = naming.resolve(con, model)
        source = source_of(con, name)
        adapter = adapter_in(con, name)
    if source is None:
        raise KinbaseError(f"{name} is known without its weights: import its checkpoint")
    child = _opened(source, name)
    try:
        path = config or next((str(p) for f in CONFIGS if (p := Path(source) / f).is_file()), None)
        if path is not None:
            return _merged(store, name, child, path, seed, report)
        if adapter is not None:
            return _adapted(store, name, child, adapter[0], adapter[1], report)
        raise KinbaseError(
            f"{name} has no recipe that can be run again: there is no {CONFIGS[0]} in {source}; give one with --config"
        )
    finally:
        child.close()


def _opened(source: str, name: str) -> Checkpoint:
    opened = read(source, name)
    if opened.checkpoint is None:
        raise KinbaseError(f"{name} cannot be read again: {opened.problem or 'its files are gone'}")
    return opened.checkpoint


def _merged(store: Store, name: str, child: Checkpoint, path: str, seed: int, report: Report) -> Replay:
    """A merge made again from its configuration."""
    from kinbase.merging import child as making
    from kinbase.merging.plan import Parent, in_words_of, opened, targets
    from kinbase.merging.streaming import merge_tensors

    config = merges.read(path, "kinbase")
    here = Path(path).parent
    places = merges.located(store, tuple(m for m in config.models if not (here / m).exists()))
    places |= {m: str((here / m).resolve()) for m in config.models if (here / m).exists()}
    parents: dict[Reference, Parent] = {}
    try:
        making.open_parents(config, places, parents)
        donor: Parent = parents[config.donor]
        planned = targets(config, parents)
        own = in_words_of(donor, opened(name, child, {}))
        found = Replay(name, f"{Path(path).name} ({config.method})")
        kept = [t for t in planned if not t.buffer and own.tensor(t.name) is not None]
        _said_of_names(found, child, planned, own.tensors)
        fitting = [t for t in kept if own.tensor(t.name).shape == t.shape]  # type: ignore[union-attr]
        if len(fitting) < len(kept):
            found.lines.append(f"{_counted(len(kept) - len(fitting), 'tensor')} of other shapes")
        codes = {own.tensor(t.name).dtype for t in fitting}  # type: ignore[union-attr]
        made = {t.out for t in fitting}
        if codes != made:
            found.lines.append(
                f"stored as {', '.join(sorted(codes))} where the recipe makes {', '.join(sorted(made))}"
            )
        stored = [own.tensor(t.name) for t in fitting]
        fitting = [replace(t, out=s.dtype) for t, s in zip(fitting, stored, strict=True) if s is not None]
        sums = _compare(
            fitting, [s for s in stored if s is not None], config.method, seed, report, merge_tensors
        )
        starts = {t.models[0] for t in fitting}
        return _told(found, sums, ", ".join(sorted(starts)))
    finally:
        for parent in parents.values():
            parent.checkpoint.close()


def _said_of_names(
    found: Replay, child: Checkpoint, planned: "list[Target]", own: Mapping[str, Tensor]
) -> None:
    """Tensors that the child lacks, has beside the recipe's, or calls otherwise."""
    wanted = {t.name for t in planned if not t.buffer}
    lacking = sorted(wanted - own.keys())
    if lacking:
        found.outcome = DIFFERS
        found.lines.append(f"{_counted(len(lacking), 'tensor')} of the recipe missing: {_listed(lacking)}")
    beyond = sorted(own.keys() - wanted - {t.name for t in planned})
    if beyond:
        found.lines.append(
            f"{_counted(len(beyond), 'tensor')} that the recipe does not make: {_listed(beyond)}"
        )
    renamed = [t.name for t in child.tensors if t.name not in own]
    if renamed:
        found.lines.append(f"tensors are called otherwise, as {renamed[0]}, and were matched by rule")


def _compare(
    targets: "list[Target]", stored: list[Tensor], method: str, seed: int, report: Report,
    merge_tensors: Callable[..., None],
) -> list[Compared]:  # fmt: skip
    sums = [Compared(t.name, t.numel) for t in targets]

    def held(number: int, byte: int, data: memoryview) -> None:
        target, tensor = targets[number], stored[number]
        own = bytearray(len(data))
        tensor.read(byte, memoryview(own))
        width = DTYPE_BYTES[target.out]
        start = elements(target.inputs[0], byte // width, len(data) // width)
        sums[number].add(
            floats(own, tensor.dtype),
            floats(bytes(data), target.out),
            start,
            target.out,
            bytes(data) == bytes(own),
        )

    merge_tensors(targets, method, held, seed=seed, report=report)
    return sums


def _adapted(store: Store, name: str, child: Checkpoint, adapter: str, onto: str, report: Report) -> Replay:
    """An adapter added again to the model it was made for: rounded once, as most programs do."""
    import torch

    from kinbase.merging.methods import DTYPES

    places = merges.located(store, (adapter, onto))
    change, base = _opened(places[adapter], adapter), _opened(places[onto], onto)
    try:
        deltas, skipped = meet(base, change)
        pairs, _ = meet(base, child)
        found = Replay(name, f"{adapter} merged into {onto}")
        if skipped:
            found.lines.append(
                f"{_counted(len(skipped), 'tensor')} of the adapter not in {onto}: {_listed(sorted(skipped))}"
            )
        lacking = [t.name for t, own in zip(base.tensors, pairs, strict=True) if own is None]
        if lacking:
            found.outcome = DIFFERS
            found.lines.append(f"{_counted(len(lacking), 'tensor')} missing: {_listed(lacking)}")
        sums, total, done = [], sum(t.nbytes for t in base.tensors), 0
        for tensor, delta, own in zip(base.tensors, deltas, pairs, strict=True):
            if own is None or own.shape != tensor.shape:
                continue
            compared = Compared(tensor.name, tensor.numel)
            for first in range(0, tensor.numel, STRETCH):
                count = min(STRETCH, tensor.numel - first)
                start = elements(tensor, first, count)
                made = start if delta is None else start + elements(delta, first, count)
                made = torch.from_numpy(made).to(DTYPES[own.dtype]).double().numpy()
                kept = elements(own, first, count)
                compared.add(kept, made, start, own.dtype, bool((kept == made).all()))
            sums.append(compared)
            done += tensor.nbytes
            report(done, total)
        return _told(found, sums, onto)
    finally:
        change.close()
        base.close()


def _told(found: Replay, sums: list[Compared], start: str) -> Replay:
    """The outcome in words, what is worst first."""
    by_kind: dict[int, list[Compared]] = {}
    for compared in sums:
        by_kind.setdefault(compared.kind, []).append(compared)
    wrong = {kind: some for kind, some in by_kind.items() if kind not in (EQUAL, ROUNDING)}
    moved = [c for c in sums if c.moved]
    if moved and len(by_kind.get(UNTOUCHED, [])) == len(moved) and BROKEN not in wrong:
        found.outcome = NOTHING
        found.lines.insert(0, f"its weights are those of {start}")
        return found
    if wrong or found.outcome == DIFFERS:
        found.outcome = DIFFERS
        found.lines = [*_faults(wrong, start), *found.lines]
    elif ROUNDING in by_kind:
        found.outcome = NEARLY
        off = sum(c.different for c in by_kind[ROUNDING])
        farthest = max(c.units for c in by_kind[ROUNDING])
        found.lines.insert(
            0,
            f"{off:,} of {sum(c.numel for c in sums):,} elements differ, by {farthest:.3g} units in the last place at most",
        )
    else:
        found.lines.insert(
            0, f"all {sum(c.numel for c in sums):,} elements of {_counted(len(sums), 'tensor')} are equal"
        )
    return found


def _faults(wrong: dict[int, list[Compared]], start: str) -> list[str]:
    lines = []
    where = {kind: _listed([c.name for c in some]) for kind, some in wrong.items()}
    number = {kind: _counted(len(some), "tensor") for kind, some in wrong.items()}
    if BROKEN in wrong:
        lines.append(f"NaN or infinity in {where[BROKEN]}")
    if UNTOUCHED in wrong:
        lines.append(f"not applied in {number[UNTOUCHED]}, which are those of {start}: {where[UNTOUCHED]}")
    if some := wrong.get(SCALED):
        scale = sum(c.along for c in some) / sum(c.made for c in some)
        how = "with the sign reversed, at" if scale < 0 else "at"
        lines.append(
            f"applied {how} {scale:.4f} times what the recipe says in {number[SCALED]}: {where[SCALED]}"
        )
    if some := wrong.get(OTHER):
        share = sum(c.different for c in some) / max(sum(c.numel for c in some), 1)
        lines.append(
            f"{number[OTHER]} differ in {share:.0%} of their elements, by up to {max(c.farthest for c in some):.3g}: "
            f"other parents, or another revision of one: {where[OTHER]}"
        )
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
