"""Parents put into one order of units before they are merged, as they are read: Git Re-Basin (arXiv 2209.04836).

The order is the base's, or else the first model's. Permutations and signs are exact; scales round once.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kinbase.checkpoint import Checkpoint
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.merge_config import Reference
from kinbase.errors import UsageError
from kinbase.matching.architecture import Architecture, architecture
from kinbase.matching.fingerprint import fingerprint
from kinbase.matching.match import match, refuse_misfit
from kinbase.matching.relabelled import relabelled
from kinbase.matching.symmetry import Symmetry, load, metadata
from kinbase.merging.config import MergeConfig
from kinbase.merging.plan import Parent

Report = Callable[[int, int], None]

SAME = ("model_fingerprint", "onto_fingerprint")


def in_one_order(
    config: MergeConfig, parents: dict[Reference, Parent], report: Report = lambda done, total: None
) -> list[str]:
    """Replace every parent by itself in the donor's order of units; a line on each.

    Orders are read from the files that the configuration names where they are of these models, and found otherwise.
    Raises KinbaseError for an architecture that is not supported, and UsageError for a file that is of no parent.
    """
    onto = parents[config.donor]
    roles = _roles(onto)
    told = {path: metadata(path) for path in config.alignments}
    used: set[str] = set()
    notes = []
    for reference, parent in parents.items():
        if parent is onto:
            continue
        own = _roles(parent)
        path = _file_of(told, parent.checkpoint, onto.checkpoint) if told else None
        if path is not None:
            refuse_misfit(roles, own)
            used.add(path)
            symmetry = load(path, own)
            notes.append(f"{parent.label}: {_moved(symmetry)}, as {shown(path)} says")
        else:
            found = match(roles, own, partial(_in_bytes, report, parent.checkpoint.nbytes))
            symmetry = found.symmetry
            notes += found.notes
            p = "no test" if found.test.p is None else f"p = {found.test.p:.2g}"
            doubt = (
                ""
                if found.test.is_related and found.is_converged
                else "not aligned, merged in the best order found: "
            )
            notes.append(f"{parent.label}: {doubt}{_moved(symmetry)} ({p})")
        parents[reference] = replace(parent, tensors=relabelled(parent.tensors, own, symmetry))
    idle = next((path for path in told if path not in used), None)
    if idle is not None:
        says = told[idle]
        raise UsageError(
            f"{shown(idle)} puts {shown(says.get('model'))} into the order of {shown(says.get('onto'))}: "
            f"no parent here is the one, or {onto.label} is not the other"
        )
    return notes


def _in_bytes(report: Report, nbytes: int, done: int, total: int) -> None:
    """Tell layers as their share of a model's bytes, as a merge tells what it writes."""
    report(nbytes * done // max(total, 1), nbytes)


def _roles(parent: Parent) -> Architecture:
    return architecture(list(parent.tensors.values()), parent.config, parent.label)


def _file_of(told: dict[str, dict[str, str]], model: Checkpoint, onto: Checkpoint) -> str | None:
    """The file that puts `model` into the order of `onto`, by the content of both."""
    both = {"model_fingerprint": fingerprint(model.tensors), "onto_fingerprint": fingerprint(onto.tensors)}
    return next(
        (path for path, says in told.items() if all(says.get(key) == both[key] for key in SAME)), None
    )


def _moved(symmetry: Symmetry) -> str:
    """What is elsewhere, in words."""
    counts = {kind: count for kind, count in symmetry.counts().items() if count}
    words = {"units": "MLP units", "values": "units inside heads", "flipped": "signs", "scaled": "scales"}
    if not counts:
        return "all units are in place"
    return ", ".join(f"{count} {words.get(kind, kind)}" for kind, count in counts.items()) + " changed"
