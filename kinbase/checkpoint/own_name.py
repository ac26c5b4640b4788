"""What a file says of its own model as if it were another: a parent that is the child itself.

Whoever reads a card or a configuration does not know what its model is called; whoever imports it does. A card may name
its own model among its base models, and then what was inferred from their number is wrong. A recipe that takes the
model itself is an example of what may be made of it, and made something else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from kinbase.checkpoint.authority import Said
from kinbase.checkpoint.contract import Edge, Facts, Problem
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.ids import folded


def without_itself(records: Sequence[Said], model: str | None) -> list[Said]:
    """The records without the claims that `model` is a parent of its own; each file that makes one is told in a Problem."""
    if model is None:
        return list(records)
    loops: dict[str, list[Edge]] = {}
    for file, record in records:
        if isinstance(record, Edge) and _is_own(record) and folded(record.parent) == folded(model):
            loops.setdefault(file, []).append(record)
    if not loops:
        return list(records)
    kept = [
        (file, record) for file, record in records if not any(record is loop for loop in loops.get(file, ()))
    ]
    for file, edges in loops.items():
        is_recipe = any(edge.method for edge in edges)
        kept = _without_recipe(kept, file) if is_recipe else _of_one_parent(kept, file)
        what = (
            f"the merge that takes {shown(model)}, and so made another model"
            if is_recipe
            else f"{model} as a parent of its own"
        )
        kept.append((file, Problem(f"{Path(file).name}: left out: {what}")))
    return kept


def _is_own(edge: Edge) -> bool:
    """Whether a claim is on the model that the file lies beside."""
    return edge.child is None and bool(edge.parent)


def _without_recipe(records: Iterable[Said], file: str) -> list[Said]:
    """The records without the recipe in one file; of its inputs those stay that the file names as base models as well."""
    kept: list[Said] = []
    for said, record in records:
        if said == file and isinstance(record, Edge) and _is_own(record) and record.method:
            if record.alone is not None:
                kept.append((said, Edge(record.parent, record.alone, record.evidence, record.child)))
        elif said != file or record != Facts(relation="merge"):
            kept.append((said, record))
    return kept


def _of_one_parent(records: Sequence[Said], file: str) -> list[Said]:
    """The records with the relation that one file's only other parent has, where it was inferred from several."""
    left = [each for said, each in records if said == file and isinstance(each, Edge) and _is_own(each)]
    only = left[0] if len(left) == 1 else None
    if only is None or only.alone is None:
        return list(records)
    changed: list[Said] = []
    for said, record in records:
        if record is only:
            record = replace(only, relation=str(only.alone), alone=None)
        elif said == file and isinstance(record, Facts) and record.relation == only.relation:
            record = replace(record, relation=only.alone)
        changed.append((said, record))
    return changed
