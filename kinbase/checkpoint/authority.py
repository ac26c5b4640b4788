"""Who may say what: a file speaks of the model it lies beside, and evidence is given by the program alone.

Whoever downloads a model to measure it does not mean to be told about all the others. So what lies beside weights
says of other models is reported at most (a stage of its own merge, the source of a conversion, kinship), and what a
table beside weights says of them is left out; and a line tells how much. Somebody who believes such a file imports it by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kinbase.checkpoint.contract import (
    Alias,
    Edge,
    Facts,
    Problem,
    Record,
    ReportedKinship,
    Score,
    Table,
    Task,
    Training,
)
from kinbase.checkpoint.files import shown

OURS = ("user", "run", "weights")
"""Evidence that comes from this program or its user: no file can give it."""

Said = tuple[str, Record]
"""The file that says something, and what it says."""


def within_their_right(records: Sequence[Said], model: str | None, *, beside_weights: bool) -> list[Said]:
    """The records as far as their files may speak, with a Problem that tells what was weakened or left out.

    `model` is what the source's own model is called; `beside_weights` whether its weights are part of the source.
    """
    kept: list[Said] = []
    claimed: dict[str, int] = {}
    strangers: dict[str, dict[str, int]] = {}
    for file, record in records:
        if isinstance(record, Table):
            table, others = _of_a_table(record, model if beside_weights else None)
            kept.append((file, table))
            for label, number in others.items():
                met = strangers.setdefault(file, {})
                met[label] = met.get(label, 0) + number
            continue
        if isinstance(record, Edge) and record.evidence in OURS:
            claimed[file] = claimed.get(file, 0) + 1
            record = replace(record, evidence="reported")
        other = _other(record, model) if beside_weights or _is_gguf(record) else None
        if other is not None:
            met = strangers.setdefault(file, {})
            met[other] = met.get(other, 0) + 1
            if isinstance(record, Edge) and _is_met(record, file):
                record = replace(record, evidence="reported")
            elif isinstance(record, ReportedKinship):
                record = replace(record, source=None)  # another's word is not this file's to replace
            else:
                continue
        kept.append((file, record))
    kept += [(file, problem) for file, problem in _told(claimed, strangers, model)]
    return kept


def _of_a_table(table: Table, model: str | None) -> tuple[Table, dict[str, int]]:
    """A table as far as it may speak, beside the weights of `model` or by itself; and others that it speaks of there.

    The edges of a table are reported, whatever it says of their evidence.
    """
    import polars as pl

    rows = table.rows.drop("evidence", strict=False)
    if model is None:
        return replace(table, rows=rows), {}

    def unless_own(column: str) -> pl.Expr:
        return pl.when(pl.col(column) != model).then(pl.col(column).cast(pl.String))

    if table.kind is ReportedKinship:
        other = pl.coalesce(unless_own("model_a"), pl.col("model_b"))
    elif table.kind is Task:
        other = pl.format("the benchmark {}", pl.col("benchmark").cast(pl.String))
    elif table.kind is Alias:
        named = pl.coalesce(unless_own("model"), unless_own("alias"))
        other = pl.when(pl.col("kind") == "name").then(named)
    else:
        other = unless_own("child" if table.kind is Edge else "model")
    others = rows.select(other.alias("other"))["other"]
    counted = others.to_frame().drop_nulls().group_by("other", maintain_order=True).len()
    told = dict(counted.iter_rows())
    if table.kind is ReportedKinship:
        return replace(
            table, rows=rows.drop("source", strict=False)
        ), told  # another's word is not this file's to replace
    return replace(table, rows=rows.filter(others.is_null())), told


def _is_met(edge: Edge, file: str) -> bool:
    """Whether an edge was read out of a configuration, a card or a header, and not out of a table of anybody's edges."""
    is_table = not file.lower().endswith((".yml", ".yaml", ".md"))
    return edge.evidence not in OURS and not (edge.evidence == "reported" and is_table)


def _is_gguf(record: Record) -> bool:
    """A GGUF file is weights itself, though none that are read."""
    return isinstance(record, Edge) and record.evidence == "gguf"


def _other(record: Record, model: str | None) -> str | None:
    """The other model that a record speaks of; None where it speaks of its own."""
    match record:
        case Edge(child=named) | Facts(model=named) | Score(model=named) | Training(model=named):
            return named if named not in (None, model) else None
        case Alias(kind="name"):
            # A label that the file gives to its own model may be another's in this database.
            if record.model not in (None, model):
                return record.model
            return record.alias if record.alias != model else None
        case ReportedKinship():
            return record.model_a if record.model_a != model else record.model_b
        case Task():
            return f"the benchmark {record.benchmark}"
    return None


def _told(
    claimed: dict[str, int], strangers: dict[str, dict[str, int]], model: str | None
) -> Iterator[tuple[str, Problem]]:
    for file, number in claimed.items():
        yield (
            file,
            Problem(
                f"{_name(file)}: {number} edge{'s' * (number > 1)} with the evidence of this program "
                f"({', '.join(OURS)}): stored as reported"
            ),
        )
    for file, met in strangers.items():
        number = sum(met.values())
        listed = ", ".join(shown(each) for each in list(met)[:3]) + (", ..." if len(met) > 3 else "")
        yield (
            file,
            Problem(
                f"{_name(file)} lies beside the weights of {shown(model)} and says {number} "
                f"thing{'s' * (number > 1)} of others ({listed}): what its configuration says, and kinship, is "
                "stored as reported; the rest is "
                "left out; import the file by itself if you believe it"
            ),
        )


def _name(file: str) -> str:
    return shown(file.rpartition("/")[2] or file)[1:-1]
