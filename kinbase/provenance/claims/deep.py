"""What is stored of weights against the weights, and the rows against each other: `kinbase check --deep`.

An independent way: tensors are read whole and summed by numpy in float64, where the pass streams them through its
kernels; a seeded sample of each model's, since a family of billions is not to be read again for a doubt.
"""

import random
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from kinbase.checkpoint import Checkpoint, Tensor
from kinbase.checkpoint.adapters import elements
from kinbase.checkpoint.alignment import meet
from kinbase.checkpoint.open import read
from kinbase.errors import KinbaseError
from kinbase.ingest.pipeline import import_sources
from kinbase.ingest.steps import ImportOptions, OnProgress
from kinbase.store import Connection, Store, integrity
from kinbase.store import names as naming
from kinbase.store.names import Member

Finding = tuple[str, str, str, str]

TENSORS = 8
"""Tensors of a model that are summed again."""
PIECE = 1 << 20
"""Elements read at a time."""
TOLERANCE = 1e-6
"""Of the lengths: what the pass promises (docs/kinship.md), which sums its tiles in another order."""


def findings(
    store: Store, names: Sequence[str] = (), on_progress: OnProgress = lambda done, total: None
) -> list[Finding]:
    """Rows of subject, claim, verdict and detail: of the models named, or of all.

    `on_progress` is told how many of how many models were read.
    """
    with store.reading() as con:
        rows = _of_rows(con)
        members = {member.name: member for member in naming.members(con)}
        sums = {name: integrity.stored_sums(con, m.model_id) for name, m in members.items()}
        dots = {name: integrity.stored_dots(con, m.model_id) for name, m in members.items()}
    wanted = [member for name, member in members.items() if not names or name in names]
    for number, member in enumerate(wanted):
        on_progress(number, len(wanted))
        rows += _of_model(member, members, sums[member.name], dots[member.name])
    on_progress(len(wanted), len(wanted))
    return rows


def _of_rows(con: Connection) -> list[Finding]:
    rows: list[Finding] = []
    for lost in integrity.dangling(con):
        detail = f"{lost.rows} lead to {lost.first}, which is not there: `kinbase repair` mends it"
        rows.append((lost.table, f"{lost.column} of its rows", "contradicted", detail))
    for a, b, why in integrity.impossible(con):
        rows.append((a, f"kinship with {b}", "contradicted", why))
    for base, gram in integrity.grams(con):
        least = float(np.linalg.eigvalsh(gram)[0])
        # Rounding moves eigenvalues by less than this share of the largest.
        verdict = "supported" if least >= -1e-9 * float(np.trace(gram)) else "contradicted"
        rows.append(
            (base, f"Gram matrix of {len(gram)} models", verdict, f"its least eigenvalue is {least:.3g}")
        )
    for name in integrity.scripts_changed(con):
        rows.append(("schema", name, "contradicted", "it is not what this Kinbase has: `kinbase migrate`"))
    return rows


def _of_model(
    member: Member, members: dict[str, Member], sums: Sequence[tuple[object, ...]],
    dots: dict[int, list[float | None]],
) -> list[Finding]:  # fmt: skip
    gone = [file.path for file in member.files if not file.as_it_was]
    if gone or not member.files:
        return [
            (
                member.name,
                "files",
                "undecidable",
                f"{gone[0] if gone else member.source} is not as it was read",
            )
        ]
    if any(file.elsewhere for file in member.files):
        return [(member.name, "files", "undecidable", "they lie elsewhere")]
    rows = [_digest(member)]
    base = next((m for m in members.values() if m.model_id == member.base_id), None)
    if base is None or not sums or any(not file.as_it_was or file.elsewhere for file in base.files):
        return rows
    opened, against = read(member.source, depth="kept"), read(base.source, depth="kept")
    with closing(opened), closing(against):
        if opened.checkpoint is None or against.checkpoint is None:
            return [*rows, (member.name, "sums", "undecidable", opened.last_word or "it cannot be opened")]
        other = _other(member, members, dots)
        third = read(other.source, depth="kept") if other else None
        try:
            return rows + _sums(
                member.name, against.checkpoint, opened.checkpoint, third.checkpoint if third else None, sums,
                dots.get(other.model_id) if other else None, other.name if other else "",
            )  # fmt: skip
        finally:
            if third:
                third.close()


def _digest(member: Member) -> Finding:
    """The digest, made again by the one path in, into a database of its own."""
    with tempfile.TemporaryDirectory(prefix="kinbase-") as folder:
        store = Store(Path(folder, "again.duckdb"))
        try:
            (again,) = import_sources(store, [member.source], ImportOptions(has_kinship=False))
            if again.is_failed:
                return member.name, "digest", "undecidable", again.notes[-1]
            with store.reading() as con:
                found = next((m.digest for m in naming.members(con)), None)
        except KinbaseError as error:
            return member.name, "digest", "undecidable", str(error)
    if found is None:
        return member.name, "digest", "undecidable", "its weights cannot be read by themselves"
    if found == member.digest:
        return member.name, "digest", "supported", found
    return member.name, "digest", "contradicted", f"the files give {found}, stored is {member.digest}"


def _other(member: Member, members: dict[str, Member], dots: dict[int, list[float | None]]) -> Member | None:
    """A relative with a stored product whose files are as they were."""
    for each in members.values():
        if each.model_id in dots and all(f.as_it_was and not f.elsewhere for f in each.files) and each.files:
            return each
    return None


def _sums(
    name: str, base: Checkpoint, model: Checkpoint, other: Checkpoint | None, sums: Sequence[tuple[object, ...]],
    dots: list[float | None] | None, other_name: str,
) -> list[Finding]:  # fmt: skip
    """The sums of some tensors, and their products with a relative's, against what is stored."""
    aligned, _ = meet(base, model)
    theirs = meet(base, other)[0] if other else [None] * len(base.tensors)
    floats = [t for t in base.tensors if t.dtype in ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")]
    place = {id(tensor): i for i, tensor in enumerate(base.tensors)}
    chosen = random.Random(name).sample(list(sums), min(TENSORS, len(sums)))
    rows: list[Finding] = []
    checked = products = 0
    for tensor, position, total, square, numel, nonfinite in chosen:
        if nonfinite or total is None or square is None:
            continue
        at = place.get(id(floats[int(str(position)) - 1])) if int(str(position)) <= len(floats) else None
        mine = aligned[at] if at is not None else None
        if at is None or mine is None or mine.numel != numel or base.tensors[at].numel != numel:
            continue  # rows of a resized vocabulary, or a tensor that is part of another here
        twin = theirs[at]
        twin = twin if twin is not None and twin.numel == numel else None
        found = _again(
            base.tensors[at],
            mine,
            twin,
            model.delta_of is not None,
            other is not None and other.delta_of is not None,
        )
        checked += 1
        length = float(np.sqrt(found[1] * max(found[3], 0.0))) if twin is not None else 0.0
        compared = [
            (f"sum of {tensor}", found[0], float(str(total)), np.sqrt(mine.numel * found[1])),
            (f"squares of {tensor}", found[1], float(str(square)), found[1]),
        ]
        stored = dots[int(str(position)) - 1] if dots and int(str(position)) <= len(dots) else None
        if twin is not None and stored is not None:
            products += 1
            compared.append((f"product with {other_name} in {tensor}", found[2], stored, length))
        rows += [
            (name, what, "contradicted", f"the files give {ours:.9g}, stored is {told:.9g}")
            for what, ours, told, scale in compared
            if abs(ours - told) > TOLERANCE * scale + 1e-30
        ]
    if not rows:
        verdict = "supported" if checked else "undecidable"
        with_other = f", {products} products with {other_name}" if products else ""
        rows.append((name, "sums", verdict, f"{checked} of {len(sums)} tensors summed again{with_other}"))
    return rows


def _again(
    base: Tensor, model: Tensor, other: Tensor | None, is_change: bool, is_other_change: bool
) -> tuple[float, float, float, float]:
    """Sum and sum of squares of a tensor's delta, its product with another's, and that one's sum of squares."""
    result = np.zeros(4)
    for first in range(0, base.numel, PIECE):
        count = min(PIECE, base.numel - first)
        ground = elements(base, first, count)
        delta = elements(model, first, count) - (0 if is_change else ground)
        result[:2] += delta.sum(), delta @ delta
        if other is not None:
            its = elements(other, first, count) - (0 if is_other_change else ground)
            result[2:] += delta @ its, its @ its
    total, square, product, theirs = result.tolist()
    return total, square, product, theirs
