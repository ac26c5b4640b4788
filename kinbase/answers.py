"""The verbs of Kinbase that ask: each opens the file for one unit of work and answers with a Polars frame.

What is asked of the database stands once, in `kinbase.query`, for the command line, the terminal UI and the plots as well.
"""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from kinbase.errors import UsageError
from kinbase.ingest.steps import OnProgress
from kinbase.query import details, kinship, models, scores
from kinbase.query.frames import ALIGNED, ALIGNED_PARTS, SCANNED, frame, framed
from kinbase.query.kinship import KinshipMatrix
from kinbase.store import Store
from kinbase.store import names as naming
from kinbase.store.worker import Worker

if TYPE_CHECKING:  # a graph costs the import of networkx, which the other verbs need not pay
    import networkx as nx


class Answers:
    """What can be asked of the database at `store`."""

    store: Store
    _worker: Worker | None = None

    def sql(self, query: str, parameters: Sequence[Any] = (), *, timeout: float = 0) -> pl.DataFrame:
        """The result of a read-only query that sees the database and nothing else.

        With a `timeout`, in seconds, the query runs in a process of its own, which is killed where DuckDB does not
        stop, and may take 4 GiB and give 1 GiB. Without one it runs in this process, as long as it takes.
        """
        if not timeout:
            with self.store.reading() as con:
                return frame(con, query, parameters)
        if self._worker is None:
            self._worker = Worker(self.store.path, self.store.wait)
        return framed(*self._worker.ask(query, parameters, seconds=timeout))

    def models(self, pattern: str = "") -> pl.DataFrame:
        """The view `models`, those whose name contains `pattern`, by family."""
        return self.store.ask(models.listed, pattern)

    def show(self, model: str, *, most: int | None = None) -> pl.DataFrame:
        """Everything about one model: its row of `models`, with aliases, parents, children, scores, kin, ... as lists.

        Of children at most so many, if `most` is given.
        """
        return self.store.ask(details.show, model, most)

    def ancestors(self, model: str) -> pl.DataFrame:
        """What a model was made from: model, generation (fewest steps up)."""
        return self.store.ask(models.ancestors, model)

    def descendants(self, model: str) -> pl.DataFrame:
        """What was made from a model: model, generation (fewest steps down)."""
        return self.store.ask(models.descendants, model)

    def family(self, model: str) -> pl.DataFrame:
        """Rows of `models` measured against the same base, the base included."""
        return self.store.ask(models.family, model)

    def left_out(self, model: str) -> list[tuple[str, float]]:
        """Models compared with one by so little that `nearest_kin` leaves them out, with their coverage."""
        return self.store.ask(kinship.left_out, model)

    def nearest_kin(self, model: str, k: int = 10) -> pl.DataFrame:
        """The k models most akin to one: model, pcc, cs, ed, stderr, coverage, method."""
        return self.store.ask(kinship.nearest_kin, model, k)

    def why_without_kin(self, model: str) -> str:
        """Why a model has no kinship, and what would give it some, in a line."""
        from kinbase.ingest import estimate as meeting

        with self.store.reading() as con:
            name = naming.resolve(con, model)
            return meeting.why_without_kin(con, name)

    def kinship(self, models: Sequence[str] = (), *, by: str | None = None) -> pl.DataFrame:
        """Kinship among `models` (none: all), each pair once; `by` tensor, layer or block."""
        if by is not None and by not in kinship.GROUPINGS:
            raise UsageError(f"kinship goes by {', '.join(kinship.GROUPINGS)}, not by {by!r}")
        return self.store.ask(kinship.pairs, models, by)

    def kin(
        self,
        models: Sequence[str],
        *,
        aligned: bool = False,
        by: str | None = None,
        save: str | Path | None = None,
        report: OnProgress = lambda done, total: None,
    ) -> pl.DataFrame:
        """Kinship of every pair among `models`; with `aligned`, after the units of the second were put in the first's order.

        Aligned pairs are compared as their files are, stored or not: verdict, Pearson's correlation of the weights and
        of the deltas before and after, a p-value, how many units are elsewhere; `by` tensor or layer their parts.
        `save` is a file for the order found of two models. See `kinbase.provenance.identity.aligned`.
        """
        if not aligned:
            return self.kinship(models, by=by)
        from kinbase.provenance.identity.aligned import aligned_pairs

        found = aligned_pairs(
            self.store, list(models), save_to=str(save) if save else None, on_progress=report
        )
        if by:
            rows = [row for pair in found for row in pair.rows(by)]
            return pl.DataFrame(rows, schema=ALIGNED_PARTS, orient="row")
        return pl.DataFrame([pair.row() for pair in found], schema=ALIGNED, orient="row")

    def scan(
        self,
        model: str,
        *,
        against: str | Path | None = None,
        k: int = 5,
        report: OnProgress = lambda done, total: None,
    ) -> tuple[pl.DataFrame, list[str]]:
        """Which known base a stored model, a folder or a source is, and lines on what was not compared; nothing is stored.

        One row each of the `k` likeliest: name, verdict, kinship of the weights with its stderr, p-value, direction,
        coverage. Known are the bases here, or those of the file of sketches `against`. See
        `kinbase.provenance.identity.scan`.
        """
        from kinbase.provenance.identity.scan import scan

        hits, notes = scan(
            self.store, str(model), against=str(against) if against else None, k=k, on_progress=report
        )
        return pl.DataFrame([astuple(hit) for hit in hits], schema=SCANNED, orient="row"), notes

    def export_sketches(self, path: str | Path, models: Sequence[str] = ()) -> int:
        """Write the sketches of `models`, or of all bases and models without one, for `scan`; how many they are.

        See `kinbase.provenance.identity.sketch_file`.
        """
        from kinbase.provenance.identity import sketch_file

        return sketch_file.write(self.store, path, models)

    def matrix(
        self, models: Sequence[str] = (), *, block: str = "all", layer: int | None = None
    ) -> KinshipMatrix:
        """The square of kinship among `models` (none: all that have any), in the order of its clusters.

        `block` and `layer` take the tensors of one kind and of one layer; see `kinbase.query.kinship.matrix`.
        """
        return self.store.ask(kinship.matrix_of, models, block, layer)

    def group_kinship(self, models: Sequence[str]) -> pl.DataFrame:
        """Mean kinship over all pairs of `models`: pcc, cs, ed, pairs (known ones), models."""
        return self.store.ask(kinship.group, models)

    def tree(
        self, model: str, *, up: bool = True, down: bool = True, depth: int = 1000, most: int | None = None
    ) -> "nx.DiGraph":
        """The lineage graph around a model; see `kinbase.query.graph.around`."""
        from kinbase.query import graph as lineage

        with self.store.reading() as con:
            return lineage.around(con, model, up=up, down=down, depth=depth, most=most)

    def graph(self, models: Sequence[str] = ()) -> "nx.DiGraph":
        """The lineage of `models`, or of all; see `kinbase.query.graph.whole`."""
        from kinbase.query import graph as lineage

        return self.store.ask(lineage.whole, models)

    def accuracies(self) -> pl.DataFrame:
        """Accuracies in percent, a row a model and a column a benchmark, with their plain mean, best first."""
        return self.store.ask(scores.accuracies)

    def average_gains(self) -> pl.DataFrame:
        """What each merge gained on average, in percent, with its parents' kinship."""
        return self.store.ask(scores.average_gains)

    def names(self) -> list[str]:
        """All model names."""
        return self.store.ask(models.all_names)

    def resolved(self, models: Sequence[str]) -> list[str]:
        """The names of models given by name, alias or prefix, each once."""
        with self.store.reading() as con:
            return list(dict.fromkeys(naming.resolve(con, model) for model in models))
