"""The verbs of Kinbase in Python: a database that answers with Polars frames.

    import kinbase

    db = kinbase.open("kinbase.duckdb")
    db.import_(["models/base", "models/tuned"], base="base")
    db.kinship(["tuned"])

Each verb opens the file for one unit of work. All raise DatabaseError when it cannot be used and
KinbaseError for an unknown model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from kinbase import families, importing, naming, records
from kinbase.errors import KinbaseError, UsageError
from kinbase.families import Report
from kinbase.sources import is_whole
from kinbase.store import Connection, Store

if TYPE_CHECKING:  # a graph costs the import of networkx, which the other verbs need not pay
    import networkx as nx

METRICS = ("pcc", "cs", "ed")
RELATIONS = ("finetune", "merge", "adapter", "quantized", "base")
IMPORTED: dict[str, pl.DataType | type[pl.DataType]] = {
    "source": pl.String, "model": pl.String, "status": pl.String, "base": pl.String, "notes": pl.List(pl.String()),
}  # fmt: skip
GROUPINGS = {"tensor": "kinship_by_tensor", "layer": "kinship_by_layer", "block": "kinship_by_block"}


class Kinbase:
    """The database at `path`. `wait` bounds, in seconds, how long another process's lock is waited for."""

    def __init__(self, path: str | Path = "kinbase.duckdb", *, wait: float = 10.0) -> None:
        self.store = Store(path, wait=wait)

    # In.

    def import_(
        self,
        sources: Sequence[str | Path],
        *,
        base: str | Path | None = None,
        name: str | None = None,
        device: str = "auto",
        metadata_only: bool = False,
        kinship: bool = True,
        report: Report = lambda done, total: None,
    ) -> pl.DataFrame:
        """Import checkpoints and records: one row a source with source, model, status, base and notes.

        See `kinbase.importing.import_sources`. A source that fails has status "failed" and the reason in
        its notes.
        """
        whole = [str(source) for source in sources if is_whole(str(source))]
        if whole:
            if len(sources) > 1 or base or name:
                raise UsageError(
                    f"{whole[0]} is a whole database: import it by itself, without --base or --name"
                )
            from kinbase import exporting

            stored = exporting.read_all(self.store, whole[0])
            notes = [
                f"a whole database: {stored['model']} models, {stored['claim']} claims, {stored['score']} scores"
            ]
            return pl.DataFrame([(whole[0], None, "records", None, notes)], schema=IMPORTED, orient="row")
        found = importing.import_sources(
            self.store, [str(s) for s in sources], base=str(base) if base else None, name=name, device=device,
            metadata_only=metadata_only, kinship=kinship, report=report,
        )  # fmt: skip
        rows = [(s.source, s.name, s.status, s.base, s.notes) for s in found]
        return pl.DataFrame(rows, schema=IMPORTED, orient="row")

    def link(
        self,
        child: str,
        parents: Sequence[str],
        *,
        relation: str | None = None,
        method: str | None = None,
        weights: Sequence[float] = (),
    ) -> pl.DataFrame:
        """Say that `child` was made from `parents`: the child's rows of `lineage`.

        `relation` is finetune, merge, adapter, quantized or base; by default merge for several parents,
        finetune for one. `weights` are the parents' coefficients. A parent that is not known yet becomes a
        name without weights. Saying it again replaces what was said.
        """
        relation = relation or ("merge" if len(parents) > 1 else "finetune")
        if relation not in RELATIONS:
            raise UsageError(f"there is no relation {relation!r}: choose of {', '.join(RELATIONS)}")
        if weights and len(weights) != len(parents):
            raise UsageError(f"{len(parents)} parents and {len(weights)} weights: give one each, or none")
        with self.store.reading() as con:
            child = naming.resolve(con, child)
            names = [naming.meant(con, parent) or parent for parent in parents]
        with self.store.writing() as con:
            for i, parent in enumerate(names):
                records.put_link(con, child, parent, relation, method, weights[i] if weights else None)
        return self.sql("from lineage where child = ? order by parent, evidence", [child])

    def unlink(self, child: str, parents: Sequence[str] = ()) -> list[str]:
        """Take back what `link` said of a child and `parents` (none: all of them); the parents it was said of.

        What cards, configs and other files claim stays. Raises KinbaseError when there is nothing to take back.
        """
        with self.store.reading() as con:
            child = naming.resolve(con, child)
            names = [naming.resolve(con, parent) for parent in parents]
        with self.store.writing() as con:
            dropped = records.drop_links(con, child, names)
            missing = [name for name in names if name not in dropped]
            if missing or not dropped:
                whom = ", ".join(missing) or "any parent"
                raise KinbaseError(
                    f"nobody linked {child} to {whom} by hand: what files claim is changed by importing them again"
                )
        return dropped

    def migrate(self) -> list[str]:
        """Bring the file to this version's schema; the names of the scripts that ran."""
        return self.store.migrate()

    # Out.

    def sql(self, query: str, parameters: Sequence[Any] = (), *, timeout: float = 0) -> pl.DataFrame:
        """The result of a read-only query that sees the database and nothing else; `timeout` in seconds."""
        with self.store.bounded(timeout) as con:
            return frame(con, query, parameters)

    def models(self, pattern: str = "") -> pl.DataFrame:
        """The view `models`, those whose name contains `pattern`, by family."""
        query = "from models where contains(lower(name), lower(?)) order by family nulls last, base nulls first, name"
        return self.sql(query, [pattern])

    def show(self, model: str) -> pl.DataFrame:
        """Everything about one model: its row of `models`, with aliases, parents, children, scores, kin, ... as lists."""
        with self.store.reading() as con:
            return frame(con, SHOW, [naming.resolve(con, model)])

    def ancestors(self, model: str) -> pl.DataFrame:
        """What a model was made from: model, generation (fewest steps up)."""
        return self._of(model, "from ancestors(?)")

    def descendants(self, model: str) -> pl.DataFrame:
        """What was made from a model: model, generation (fewest steps down)."""
        return self._of(model, "from descendants(?)")

    def family(self, model: str) -> pl.DataFrame:
        """Rows of `models` measured against the same base, the base included."""
        return self._of(model, "from family(?)")

    def nearest_kin(self, model: str, k: int = 10) -> pl.DataFrame:
        """The k models most akin to one: model, pcc, cs, ed, stderr, coverage, method."""
        return self._of(model, "from nearest_kin(?, ?)", k)

    def kinship(self, models: Sequence[str] = (), *, by: str | None = None) -> pl.DataFrame:
        """Kinship among `models` (none: all), each pair once; `by` tensor, layer or block."""
        if by is not None and by not in GROUPINGS:
            raise UsageError(f"kinship goes by {', '.join(GROUPINGS)}, not by {by!r}")
        with self.store.reading() as con:
            names = [naming.resolve(con, model) for model in models]
            chosen = "" if not names else "and list_contains($1, model_a) and list_contains($1, model_b)"
            order = "order by all" if by else "order by model_a, model_b"
            query = f"from {GROUPINGS[by] if by else 'kinship'} where model_a < model_b {chosen} {order}"
            return frame(con, query, [names] if names else [])

    def group_kinship(self, models: Sequence[str]) -> pl.DataFrame:
        """Mean kinship over all pairs of `models`: pcc, cs, ed, pairs (known ones), models."""
        with self.store.reading() as con:
            return frame(con, "from group_kinship(?)", [[naming.resolve(con, model) for model in models]])

    def tree(self, model: str, *, up: bool = True, down: bool = True, depth: int = 1000) -> "nx.DiGraph":
        """The lineage graph around a model; see `kinbase.lineage.graph`."""
        from kinbase import lineage

        with self.store.reading() as con:
            return lineage.graph(con, model, up=up, down=down, depth=depth)

    def check(self, models: Sequence[str] = (), *, tolerance: float = 0.02) -> pl.DataFrame:
        """What is claimed of `models` (none: of all) against what it follows from: subject, claim, verdict, detail.

        See `kinbase.checking.findings`; `tolerance` is in percent.
        """
        from kinbase import checking

        with self.store.reading() as con:
            names = {naming.resolve(con, model) for model in models}
            rows = [row for row in checking.findings(con, tolerance) if not names or row[0] in names]
        return pl.DataFrame(
            rows, schema=dict.fromkeys(("subject", "claim", "verdict", "detail"), pl.String), orient="row"
        )

    def graph(self, models: Sequence[str] = ()) -> "nx.DiGraph":
        """The lineage of `models`, or of all; see `kinbase.exporting.graph`."""
        from kinbase import exporting

        with self.store.reading() as con:
            return exporting.graph(con, models)

    def export(self, path: str | Path, models: Sequence[str] = ()) -> None:
        """Write the lineage of `models`, or of all, as the ending of `path` says; .kinbase: the whole database.

        See `kinbase.exporting`.
        """
        from kinbase import exporting

        path = str(path)
        if path.rstrip("/").endswith(exporting.FOLDER):
            if models:
                raise UsageError(f"{path} takes the whole database, not some models of it")
            exporting.write_all(self.store, path.rstrip("/"))
        else:
            exporting.write_graph(self.graph(models), path)

    def measure(
        self, models: Sequence[str], *, device: str = "auto", report: Report = lambda done, total: None
    ) -> list[str]:
        """Measure the pairs among `models` that have no exact kinship yet; lines on those that could not be."""
        return families.measure_missing(self.store, models, device=device, report=report)

    def accuracies(self) -> pl.DataFrame:
        """Accuracies in percent, a row a model and a column a benchmark, with their plain mean, best first."""
        return self.sql(ACCURACIES)

    def average_gains(self) -> pl.DataFrame:
        """What each merge gained on average, in percent, with its parents' kinship."""
        return self.sql(AVERAGE_GAINS)

    def unmerged_pairs(self, base: str) -> pl.DataFrame:
        """Of the six most accurate models but `base`, the three least akin pairs that nobody merged: a heuristic."""
        return self.sql(UNMERGED_PAIRS, [base])

    def names(self) -> list[str]:
        """All model names."""
        return self.sql("select name from models order by name")["name"].to_list()

    def resolved(self, models: Sequence[str]) -> list[str]:
        """The names of models given by name, alias or prefix, each once."""
        with self.store.reading() as con:
            return list(dict.fromkeys(naming.resolve(con, model) for model in models))

    def _of(self, model: str, query: str, *parameters: Any) -> pl.DataFrame:
        with self.store.reading() as con:
            return frame(con, query, [naming.resolve(con, model), *parameters])


def frame(con: Connection, query: str, parameters: Sequence[Any] = ()) -> pl.DataFrame:
    """The result of a query as a frame.

    By rows: DuckDB's Arrow stream would be faster for millions of them, but leaves Polars and DuckDB
    printing leak warnings when Python exits (duckdb 2.0, polars 2.1).
    """
    result = con.sql(query, params=list(parameters))
    schema = {name: _polars(kind) for name, kind in zip(result.columns, result.types, strict=True)}
    return pl.DataFrame(result.fetchall(), schema=schema, orient="row")


def _polars(kind: Any) -> pl.DataType | type[pl.DataType]:
    """The Polars type of a DuckDB type; text for what Polars has no counterpart of."""
    if kind.id in ("list", "array"):
        return pl.List(_polars(kind.children[0][1]))
    if kind.id == "struct":
        return pl.Struct({name: _polars(child) for name, child in kind.children})
    if kind.id == "decimal":
        return pl.Decimal(*(value for _, value in kind.children))
    return SCALARS.get(kind.id, pl.String)


SCALARS: dict[str, pl.DataType | type[pl.DataType]] = {
    "boolean": pl.Boolean, "tinyint": pl.Int8, "smallint": pl.Int16, "integer": pl.Int32, "bigint": pl.Int64,
    "hugeint": pl.Int128, "utinyint": pl.UInt8, "usmallint": pl.UInt16, "uinteger": pl.UInt32,
    "ubigint": pl.UInt64, "float": pl.Float32, "double": pl.Float64, "blob": pl.Binary, "date": pl.Date,
    "time": pl.Time, "timestamp": pl.Datetime("us"), "timestamp with time zone": pl.Datetime("us", "UTC"),
    "interval": pl.Duration("us"), "null": pl.Null,
}  # fmt: skip


SHOW = """
select
    m.*,
    (select list({'alias': alias, 'kind': kind} order by alias) from aliases where model = m.name and alias <> m.name) as aliases,
    (select list({'parent': parent, 'relation': relation, 'method': method, 'weight': weight, 'evidence': evidence}
        order by parent, evidence) from lineage where child = m.name) as parents,
    (select list({'child': child, 'relation': relation, 'method': method, 'weight': weight, 'evidence': evidence}
        order by child, evidence) from lineage where parent = m.name) as children,
    (select list({'benchmark': benchmark, 'metric': metric, 'value': value, 'stderr': stderr, 'n_shot': n_shot, 'source': source}
        order by benchmark, metric) from scores where model = m.name) as scores,
    (select list({'model': model, 'pcc': pcc, 'cs': cs, 'ed': ed, 'stderr': stderr, 'method': method})
        from nearest_kin($1, 5)) as kin,
    (select list({'tensor': tensor, 'reason': reason} order by tensor) from skipped where model = m.name) as skipped,
    (select sum(numel) / nullif((select sum(t.numel) from raw.tensor t where t.base_id = any_value(d.base_id)), 0)
        from raw.delta d join raw.model using (model_id) where name = m.name and d.nonfinite = 0) as coverage,
    (select list({'tensor': tensor, 'nonfinite': nonfinite} order by tensor)
        from deltas where model = m.name and nonfinite > 0) as nonfinite
from models m where m.name = $1
"""

ACCURACIES = """
pivot (
    select model, benchmark, 100 * value as value from scores where metric like 'acc%'
    union all
    select model, 'average', 100 * avg(value) from scores where metric like 'acc%' group by model
)
on benchmark using round(any_value(value), 1) order by average desc
"""
AVERAGE_GAINS = """
select
    child, method, array_to_string(parents, ' + ') as parents, round(kinship, 3) as kinship,
    round(100 * score, 1) as average, round(100 * gain, 1) as gain, round(100 * over_best, 1) as over_best
from merge_gains where benchmark = 'average' order by gain desc
"""
UNMERGED_PAIRS = """
with good as (
    select model, round(100 * avg(value), 1) as average from scores
    where metric like 'acc%' and model <> ? group by model order by average desc limit 6
)
select a.model as model_a, a.average as average_a, b.model as model_b, b.average as average_b, round(k.pcc, 3) as kinship
from good a join good b on a.model <> b.model
join kinship k on k.model_a = a.model and k.model_b = b.model
where a.average >= b.average and (a.average > b.average or a.model < b.model)
    and not exists (from lineage x join lineage y using (child) where x.parent = a.model and y.parent = b.model)
    and not exists (from lineage where parent in (a.model, b.model) and child in (a.model, b.model))
order by k.pcc limit 3
"""
