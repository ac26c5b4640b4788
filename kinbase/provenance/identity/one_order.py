"""Models put into the order of units of the first they are related to, so that what compares them by place finds them akin."""

from collections.abc import Sequence
from dataclasses import replace

from kinbase.checkpoint import Checkpoint
from kinbase.errors import KinbaseError
from kinbase.ingest.steps import OnProgress
from kinbase.matching.architecture import Architecture, architecture, config_of
from kinbase.matching.match import match
from kinbase.matching.relabelled import relabelled


def in_one_order(
    checkpoints: Sequence[Checkpoint], on_progress: OnProgress = lambda done, total: None
) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints, those with their units elsewhere as they would lie in the order of an earlier one; a line on each such.

    One that is related to none before it, or of which no order was settled on, stays as it is. An architecture that is not
    supported is told. `on_progress` is told models. Raises CheckpointError when one cannot be read.
    """
    leaders: list[Architecture] = []
    result: list[Checkpoint] = []
    notes: list[str] = []
    for number, checkpoint in enumerate(checkpoints):
        on_progress(number, len(checkpoints))
        try:
            roles = architecture(checkpoint.tensors, config_of(checkpoint), checkpoint.name)
        except KinbaseError as error:
            notes.append(str(error))
            result.append(checkpoint)
            continue
        leader, moved = _led(leaders, roles, checkpoint)
        if leader is None:
            leaders.append(roles)
        elif moved is not checkpoint:
            notes.append(f"{checkpoint.name} is compared with its units in the order of {leader}")
        result.append(moved)
    return result, notes


def _led(
    leaders: Sequence[Architecture], roles: Architecture, checkpoint: Checkpoint
) -> tuple[str | None, Checkpoint]:
    """The first of the leaders that a model is related to, and the model in its order."""
    for leader in leaders:
        if leader.shape() != roles.shape():
            continue
        found = match(leader, roles)
        if found.test.is_related and found.is_converged:
            if found.symmetry.is_identity:
                return leader.name, checkpoint
            tensors = relabelled({t.name: t for t in checkpoint.tensors}, roles, found.symmetry)
            # Another source: what is kept of a pass that is interrupted is of this order alone.
            source = f"{checkpoint.source} in the order of {leader.name}"
            return leader.name, replace(checkpoint, tensors=list(tensors.values()), source=source)
    return None, checkpoint
