"""The verbs of Kinbase in Python: a database that answers with Polars frames.

    import kinbase

    db = kinbase.open("kinbase.duckdb")
    db.import_(["models/base", "models/tuned"], base="base")
    db.kinship(["tuned"])

Each verb opens the file for one unit of work. All raise DatabaseError when it cannot be used and
KinbaseError for an unknown model.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from kinbase.acts import Acts
from kinbase.answers import Answers
from kinbase.checkpoint.open import Tell, elsewhere, is_whole
from kinbase.errors import UsageError
from kinbase.ingest.engines import choose_engine
from kinbase.ingest.missing import measure_missing
from kinbase.ingest.parts import Part, are_parts, import_parts, measure_part
from kinbase.ingest.pipeline import import_sources
from kinbase.ingest.replacing import import_replacing
from kinbase.ingest.steps import ImportOptions, Outcome
from kinbase.ingest.steps import OnProgress as Report
from kinbase.query import runs
from kinbase.query.frames import (
    IMPORTED,
    INFERRED,
    PLANNED,
    RECIPE,
    REPLAYED,
    SUGGESTED,
)
from kinbase.store import Store
from kinbase.store import names as naming
from kinbase.store.worker import Worker

if TYPE_CHECKING:  # a graph costs the import of networkx, which the other verbs need not pay
    from kinbase.plotting.figure import Plot


class Kinbase(Acts, Answers):
    """The database at `path`.

    `wait` bounds, in seconds, how long another process's lock is waited for; `log` hears of it in a line.
    """

    def __init__(
        self,
        path: str | Path = "kinbase.duckdb",
        *,
        wait: float = 60.0,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.store = Store(path, wait=wait, log=log)
        self._worker: Worker | None = None

    # In.

    def _import_whole(self, sources: Sequence[str], trust: bool, with_options: bool) -> pl.DataFrame:
        from kinbase.store import archive

        whole = next(filter(is_whole, sources))
        if len(sources) > 1 or with_options:
            raise UsageError(f"{whole} is a whole database: import it by itself, without --base or --name")
        notes = archive.read_all(self.store, whole, trust=trust)
        return pl.DataFrame([(whole, None, "records", None, notes)], schema=IMPORTED, orient="row")

    def import_(
        self, sources: Sequence[str | Path], *, base: str | Path | None = None, name: str | None = None, device: str = "auto",
        metadata_only: bool = False, kinship: bool = True, sample: float | None = None, stderr: float | None = None,
        stream: bool = False, sketch: bool = False, children: bool = False, parents: bool = False, depth: int = 1,
        limit: int = 1000, relations: Sequence[str] = (), key: str | None = None, replace: bool = False,
        engine: str | None = None, address: str | None = None, trust: bool = False, report: Report = lambda done, total: None,
        tell: Tell = lambda what, done, total: None,
    ) -> pl.DataFrame:  # fmt: skip
        """Import checkpoints and records: one row a source with source, model, status, base and notes.

        The files of all parts that `measure_part` wrote are a source together. `engine` "ray", or "ray:ADDRESS", measures
        families on that cluster; `address` is where it is (default: $RAY_ADDRESS, or this machine).
        `key` chooses one of several state dicts in a torch file; with `replace`, new weights take the name of a model
        that is here, which stays as NAME@DATE with its edges and scores. With `trust`, the evidence in a whole database
        that was exported elsewhere counts as this program's; otherwise it is `reported`.
        See `kinbase.ingest.steps.ImportOptions`; with `children` or `parents`, `kinbase.ingest.relatives.import_family`,
        which brings in metadata, after which `sample` or `stream` go on with all that was met. A source that
        fails has status "failed" and the reason in its notes.
        """
        self.store.fill()
        if any(is_whole(str(source)) for source in sources):
            return self._import_whole(
                [str(source) for source in sources], trust, with_options=bool(base or name)
            )
        if trust:
            raise UsageError("--trust is for a whole database (.kinbase): leave it out")
        labels = [f"{s}#{key}" if key else str(s) for s in sources]
        found: list[Outcome] = []
        options = ImportOptions(
            base=str(base) if base else None, name=name, device=device, is_metadata_only=metadata_only,
            has_kinship=kinship, sample=sample, stderr=stderr, is_streamed=stream, is_sketched=sketch,
            engine=choose_engine(engine, address), on_progress=report, log=tell,
        )  # fmt: skip
        if are_parts(labels):
            if children or parents or replace:
                raise UsageError("parts of a pass are imported as they are: leave out the other options")
            found = import_parts(self.store, labels, options)
        elif children or parents or (metadata_only and not name and not base and all(map(elsewhere, labels))):
            from kinbase.ingest.relatives import import_family

            if name:
                raise UsageError("--name names one model, not a family: leave it out")
            found = import_family(
                self.store, labels, children=children, parents=parents, depth=depth, limit=limit,
                relations=relations, on_progress=report, log=tell,
            )  # fmt: skip
            labels = [s.source for s in found if not s.is_failed]
        if not found or ((sample is not None or stream) and labels):
            failed = [s for s in found if s.is_failed]
            imported = import_replacing if replace else import_sources
            found = failed + imported(self.store, labels, options)
        rows = [(s.source, s.name, s.status, s.base, list(s.notes)) for s in found]
        return pl.DataFrame(rows, schema=IMPORTED, orient="row")

    def measure_part(
        self,
        sources: Sequence[str | Path],
        out: str | Path,
        *,
        part: int = 1,
        parts: int = 1,
        base: str | Path | None = None,
        device: str = "auto",
        stream: bool = False,
        report: Report = lambda done, total: None,
        tell: Tell = lambda what, done, total: None,
    ) -> Part:
        """Measure part `part` of `parts` of the pass over `sources` and write its sums to the file `out`.

        Needs no database; `import_` of the files of all parts stores the family. See `kinbase.ingest.parts`.
        """
        options = ImportOptions(
            base=str(base) if base else None, device=device, is_streamed=stream, on_progress=report, log=tell
        )
        return measure_part([str(s) for s in sources], Path(out), options, part=part, parts=parts)

    def merge(
        self,
        config: "str | Path | Mapping[str, object]",
        out: str | Path,
        *,
        name: str | None = None,
        backend: str = "kinbase",
        seed: int = 0,
        device: str = "auto",
        import_: bool = True,
        align: bool | Sequence[str | Path] = False,
        report: Report = lambda done, total: None,
    ) -> pl.DataFrame:
        """Merge models into a new checkpoint folder `out` and import it: one row as `import_` gives, or status "merged".

        `config` is mergekit's YAML, a file or plain values; its models are paths or names in this database.
        `backend` is kinbase, or mergekit for the methods that are not built in; `seed` is of the masks that
        some draw; `device` is where kinship is measured; with `align`, parents are put into one order of units first, by the
        files given or as is found (docs/alignment.md); `report(done, total)` hears of the bytes written,
        then of those measured. See `kinbase.merging`.
        """
        from kinbase.ingest import merged as merges

        wanted = merges.read(config, backend, align=align)
        places = merges.located(self.store, wanted.models)
        if import_ and not merges.is_unfinished(wanted, out, places, backend, seed):
            merges.refuse_namesake(self.store, name or Path(out).name)
        merged = merges.merge(wanted, out, places, backend, seed, report)
        row: tuple[Any, ...] = (str(merged.folder), None, "merged", None, list(merged.notes))
        if import_:
            options = ImportOptions(name=name, device=device, on_progress=report)
            child = merges.record(self.store, merged, places, options)
            row = (str(merged.folder), child.name, child.status, child.base, list(child.notes))
        merges.finish(merged)
        return pl.DataFrame([row], schema=IMPORTED, orient="row")

    # Evolution.

    def evolve(
        self,
        config: str | Path | None = None,
        *,
        name: str | None = None,
        resume: str | None = None,
        trust: bool = False,
        tell: Callable[[str], None] = lambda line: None,
        report: Report = lambda done, total: None,
    ) -> pl.DataFrame:
        """Begin the run that a YAML file asks for, or resume one by its name, to its end: its rows of `generations`.

        `name` is the run's, else that in the file, else the file's stem; `tell` hears a line a generation. A run that
        was not begun on this machine is resumed with `trust` only: the programs it names are run.
        Raises KinbaseError for a wrong configuration and when a merge or an evaluation fails; then, and after
        KeyboardInterrupt, the run can be resumed. `kinbase.evolution.run.evolve` is the same as a generator.
        """
        from kinbase.evolution import beginning
        from kinbase.evolution import run as running
        from kinbase.evolution.config import read

        if (config is None) == (resume is None):
            raise UsageError("name a configuration, or a run to resume")
        if config is not None:
            resume, trust = beginning.begin(self.store, read(config, name)).name, True
        assert resume is not None
        for _ in running.evolve(self.store, resume, trusted=trust, tell=tell, report=report):
            pass
        return self.store.ask(runs.generation_rows, resume)

    def first_generation(
        self, config: str | Path, *, name: str | None = None, tell: Callable[[str], None] = lambda line: None
    ) -> pl.DataFrame:
        """What a run would do first, without doing it: child, parents, role, method, seed, kinship, reason, problem."""
        from kinbase.evolution import beginning
        from kinbase.evolution.config import read

        matings, left_out = beginning.first_plan(self.store, read(config, name))
        for line in left_out:
            tell(line)
        rows = [
            (child, list(m.parents), m.role, m.method, m.seed, m.kinship, m.reason, problem)
            for child, m, problem in matings
        ]
        return pl.DataFrame(rows, schema=PLANNED, orient="row")

    # Out.

    def check(
        self,
        models: Sequence[str] = (),
        *,
        tolerance: float = 0.02,
        device: str = "auto",
        deep: bool = False,
        report: Report = lambda done, total: None,
        looked: Report = lambda done, total: None,
    ) -> pl.DataFrame:
        """What is claimed of `models` (none: of all) against what it follows from: subject, claim, verdict, detail.

        See `kinbase.provenance.claims.findings`; `tolerance` is in percent. Pairs that the claims about `models` hang on
        are measured; of all models, what is stored decides. `report(done, total)` hears of the bytes measured,
        `looked` of the models held against their weights. With `deep` the rows are held against each other too, and
        sums, products and digests made again from the files; see `kinbase.provenance.claims.deep`.
        """
        from kinbase.provenance.claims import findings as checking

        with self.store.reading() as con:
            names = [naming.resolve(con, model) for model in models]
        if names:
            from kinbase.provenance.recipes import search as finding

            for name in names:
                finding.measure(self.store, name, device=device, report=report)
        with self.store.reading() as con:
            rows = checking.findings(con, tolerance, names, looked)
        if deep:
            from kinbase.provenance.claims import deep as deeper

            rows = [*deeper.findings(self.store, names, looked), *rows]
        return pl.DataFrame(
            rows, schema=dict.fromkeys(("subject", "claim", "verdict", "detail"), pl.String), orient="row"
        )

    def prove(
        self,
        models: Sequence[str],
        *,
        config: str | None = None,
        seed: int = 0,
        report: Report = lambda done, total: None,
    ) -> pl.DataFrame:
        """The claimed recipes of `models` run again and compared bit by bit: rows as `check` gives them.

        The recipe is the merge configuration `config`, else the one beside the weights, else an adapter that was merged.
        Details begin with proved, proved up to rounding, differs, or nothing was applied. Raises KinbaseError for a
        recipe that cannot be run again. See `kinbase.provenance.proof.replay`.
        """
        from kinbase.provenance.proof.replay import replay

        rows = [replay(self.store, model, config=config, seed=seed, report=report).row() for model in models]
        return pl.DataFrame(
            rows, schema=dict.fromkeys(("subject", "claim", "verdict", "detail"), pl.String), orient="row"
        )

    def infer(
        self,
        models: Sequence[str] = (),
        *,
        among: Sequence[str] = (),
        record: bool = False,
        blind: bool = False,
        quick: bool = False,
        aligned: bool = False,
        least: float = 0.0,
        device: str = "auto",
        report: Report = lambda done, total: None,
    ) -> tuple[pl.DataFrame, list[str]]:
        """The history of `models` (none: all) from their weights: its edges, and lines on what was left out.

        Columns: parent, child, relation, confidence, weight (a merge's coefficient), distance, family (its root),
        evidence. `among` may be parents too; edges of a confidence below `least` are left out; `record` stores the
        others as claims of evidence weights. See `kinbase.provenance.phylogeny.infer.infer`.
        """
        from kinbase.provenance.phylogeny import infer as inferring

        found, notes = inferring.infer(
            self.store,
            models,
            among=among,
            blind=blind,
            quick=quick,
            aligned=aligned,
            device=device,
            report=report,
        )
        chosen = set(self.resolved(models))
        rows = [
            (e.parent, e.child, e.relation, e.confidence, e.weight, e.distance, family.root, e.evidence)
            for family in found for e in family.edges
            if e.confidence >= least and (not chosen or e.child in chosen)
        ]  # fmt: skip
        notes += [f"{f.root} stands alone: nothing here is akin to it" for f in found if len(f.members) == 1]
        if record:
            notes += inferring.record(self.store, [(*row[:4], row[4], row[7]) for row in rows])
        return pl.DataFrame(rows, schema=INFERRED, orient="row"), notes

    def recipe(
        self,
        model: str,
        among: Sequence[str] = (),
        *,
        record: bool = False,
        device: str = "auto",
        report: Report = lambda done, total: None,
    ) -> pl.DataFrame:
        """What `model` was made of, by its weights: one row of model, verdict, residual, floor, parents and more.

        `among` names the candidates (none: the family); with `record`, the edges are stored with evidence
        "weights". See `kinbase.provenance.recipes.search.recover` and docs/recipes.md.
        """
        from kinbase.provenance.recipes import search as finding

        found = finding.recover(self.store, model, among=among, device=device, report=report)
        if record:
            finding.record(self.store, found)
        return pl.DataFrame([found.as_dict()], schema=RECIPE)

    def suggest(
        self,
        family: str | None = None,
        *,
        k: int = 10,
        top: int = 3,
        threshold: float = 0.9,
        patience: int = 2,
    ) -> tuple[pl.DataFrame, list[str]]:
        """The k merges most worth making in a family, with the evidence, and a line on its saturation: heuristics.

        See `kinbase.evolution.suggest`: `top` of the best models are saturated when their mean kinship stays above
        `threshold` for `patience` generations.
        """
        from kinbase.evolution import suggest as advice

        with self.store.reading() as con:
            population = advice.load(con, family)
        steps = advice.trend(population, top)
        notes = [advice.saturation(steps, threshold, patience), population.evidence()]
        if population.weak:
            pair = " and ".join(sorted(min(population.weak, key=sorted)))
            notes.append(
                f"left out, compared by less than half of the base's parameters: {len(population.weak)} pairs (first {pair})"
            )
        rows = advice.suggest(population, k)
        if rows and population.is_hopeless():
            notes.append("nothing here beats the best parent, by what merges of this family gained so far")
        return pl.DataFrame(rows, schema=SUGGESTED, orient="row"), notes

    def replay(self, name: str, *, top: int = 3, threshold: float = 0.9, patience: int = 2) -> pl.DataFrame:
        """What each stop rule would have saved and lost on a run, a numbered path, or the merges that led to a model.

        See `kinbase.evolution.replay`.
        """
        from kinbase.evolution import replay as replays
        from kinbase.query import history

        with self.store.reading() as con:
            told = history.load(con, name, top)
        rows = replays.replay(told, threshold=threshold, patience=patience)
        return pl.DataFrame(rows, schema=REPLAYED, orient="row")

    def export(self, path: str | Path, models: Sequence[str] = ()) -> None:
        """Write the lineage of `models`, or of all, as the ending of `path` says; .kinbase: the whole database.

        See `kinbase.query.export` and `kinbase.store.archive`.
        """
        from kinbase.query.export import write_graph
        from kinbase.store import archive

        path = str(path)
        if not path.rstrip("/").endswith(archive.FOLDER):
            write_graph(self.graph(models), path)
        elif models:
            raise UsageError(f"{path} takes the whole database, not some models of it")
        else:
            archive.write_all(self.store, path.rstrip("/"))

    def plot(self, kind: str, *names: str, **options: Any) -> "Plot":
        """A figure of `kind`: heatmap, tree, layers, evolution or gains; its `save(path)` writes .svg, .png or .html.

        `names` and `options` are those of `draw` in the module of that name in `kinbase.plotting`:
        plot("heatmap", "a", "b", "c", metric="cs"), plot("tree", "base"), plot("layers", "a", "b").
        """
        from kinbase import plotting

        return plotting.draw(self.store, kind, *names, **options)

    def measure(
        self,
        models: Sequence[str],
        *,
        exact: bool = False,
        device: str = "auto",
        report: Report = lambda done, total: None,
    ) -> list[str]:
        """Measure the pairs among `models` that have no kinship yet, of one model with all its family; lines on those
        that could not be. `exact` measures those too that are only estimated by sketches.
        """
        return measure_missing(self.store, models, exact=exact, device=device, on_progress=report)
