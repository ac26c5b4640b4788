"""The verbs of Kinbase that say something of models, correct it, or take it back: acts, kept in a journal."""

from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

import polars as pl

from kinbase.checkpoint import Score
from kinbase.errors import KinbaseError, UsageError
from kinbase.ingest.steps import OnProgress
from kinbase.query import acts, models, scores
from kinbase.query.frames import DIFFERENCE, STAT, STATUS
from kinbase.store import Connection, Store, corrections, journal, removal
from kinbase.store import names as naming
from kinbase.store.lineage import drop_links, put_link

RELATIONS = ("finetune", "merge", "adapter", "quantized", "base")


class Acts:
    """What can be said of the models of the database at `store`, and taken back; and what keeps its file in order."""

    store: Store

    def migrate(
        self, *, backup: bool = True, on_backup: Callable[[Path], None] = lambda path: None
    ) -> list[str]:
        """Bring the file to this version's schema; the names of the scripts that ran.

        With `backup` the file is copied beside itself before tables change, and `on_backup` told the copy.
        """
        return self.store.migrate(backup=backup, on_backup=on_backup)

    def repair(self, *, on_backup: Callable[[Path], None] = lambda path: None) -> list[str]:
        """Mend what is certain in the file; a line for each thing that was. `on_backup` is told the copy made before."""
        from kinbase.store import integrity

        with self.store.mending(on_backup) as con:
            return integrity.mend(con)

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
        with self._existing().writing() as con:
            child = naming.resolve(con, child)
            names = [naming.meant(con, parent) or parent for parent in parents]
            with journal.act(con, "link", _words(child, *names)):
                for i, parent in enumerate(names):
                    put_link(con, child, parent, relation, method, weights[i] if weights else None)
        return self.store.ask(models.parents, child)

    def unlink(self, child: str, parents: Sequence[str] = ()) -> list[str]:
        """Take back what `link` said of a child and `parents` (none: all of them); the parents it was said of.

        What cards, configs and other files claim stays. Raises KinbaseError when there is nothing to take back.
        """
        with self._existing().writing() as con:
            child = naming.resolve(con, child)
            names = [naming.resolve(con, parent) for parent in parents]
            with journal.act(con, "unlink", _words(child, *names)):
                dropped = drop_links(con, child, names)
            missing = [name for name in names if name not in dropped]
            if missing or not dropped:
                whom = ", ".join(missing) or "any parent"
                raise KinbaseError(
                    f"nobody linked {child} to {whom} by hand: what files claim is changed by importing them again"
                )
        return dropped

    def standings(self, names: Sequence[str]) -> list[removal.Standing]:
        """What hangs on models that are to be removed: children, members measured against them, copies."""
        with self.store.reading() as con:
            return removal.standings(con, _resolved(con, names))

    def rm(self, names: Sequence[str]) -> removal.Removed:
        """Remove models: their rows, never their files. One that others speak of stays as a name without weights."""
        with self._existing().writing() as con:
            known = _resolved(con, names)
            with journal.act(con, "rm", _words(*known)):
                return removal.remove(con, known)

    def rename(self, model: str, name: str, *, forget: bool = False) -> str:
        """Give a model another name; the old one, which is returned, stays an alias, unless `forget`."""
        with self._existing().writing() as con:
            old = naming.resolve(con, model)
            with journal.act(con, "rename", _words(old, name)):
                corrections.rename(con, old, name, forget=forget)
        return old

    def alias(self, model: str, name: str) -> str:
        """Give a model one more name; its own is returned. A row known by that name only becomes one with it."""
        with self._existing().writing() as con:
            known = naming.resolve(con, model)
            with journal.act(con, "alias", _words(known, name)):
                corrections.add_alias(con, known, name)
        return known

    def unalias(self, name: str) -> str:
        """Forget another name of a model; its own is returned."""
        with self._existing().writing() as con, journal.act(con, "alias", _words("--rm", name)):
            return corrections.drop_alias(con, name)

    def set(self, model: str, **facts: str | None) -> pl.DataFrame:
        """Set license, created_at, architecture, relation or notes of a model (empty: take it back); its row of `models`.

        What is set here is not replaced by what files say.
        """
        with self._existing().writing() as con:
            known = naming.resolve(con, model)
            told = {key: value or "" for key, value in facts.items()}
            if told.get("relation") and told["relation"] not in RELATIONS:
                raise UsageError(
                    f"there is no relation {told['relation']!r}: choose of {', '.join(RELATIONS)}"
                )
            with journal.act(con, "set", _words(known, *(f"{key}={value}" for key, value in told.items()))):
                corrections.put_said(con, known, told)
        return self.store.ask(models.row, known)

    def tag(self, model: str, tags: Sequence[str]) -> list[str]:
        """Add tags to a model; all that it has now."""
        with self._existing().writing() as con:
            known = naming.resolve(con, model)
            with journal.act(con, "tag", _words(known, *tags)):
                corrections.put_tags(con, known, tags)
        return self.store.ask(models.tags, known)

    def untag(self, model: str, tags: Sequence[str] = ()) -> list[str]:
        """Take tags from a model (none: all); those it had. Raises KinbaseError when it has none of them."""
        with self._existing().writing() as con:
            known = naming.resolve(con, model)
            with journal.act(con, "tag", _words("--rm", known, *tags)):
                dropped = corrections.drop_tags(con, known, tags)
        if not dropped:
            raise KinbaseError(f"{known} has no tag {', '.join(tags)}" if tags else f"{known} has no tags")
        return dropped

    def score(
        self,
        model: str,
        benchmark: str,
        value: float,
        *,
        metric: str | None = None,
        n_shot: int | None = None,
        date: str | None = None,
    ) -> pl.DataFrame:
        """Store a result given by hand, in place of one given so before; the model's rows of `scores` of that test.

        A benchmark that is known is spelled as it is known, and `metric` is by default the one it is measured by here, or
        acc. Its source is "user". `date` is ISO 8601, of the evaluation. Raises UsageError where several metrics are known
        and none is acc.
        """
        if value != value or abs(value) == float("inf"):
            raise UsageError(f"{value} is no result: give a number")
        if n_shot is not None and n_shot < 0:
            raise UsageError("--n-shot counts examples: it cannot be negative")
        moment = corrections.date(date) if date else None
        with self._existing().writing() as con:
            known = naming.resolve(con, model)
            benchmark, metric = corrections.test_meant(con, benchmark, metric)
            with journal.act(con, "score", _words(known, benchmark, f"{value:g}", metric)):
                corrections.put_score(
                    con,
                    known,
                    Score(
                        benchmark, metric, value, n_shot=n_shot, source=corrections.HAND, evaluated_at=moment
                    ),
                )
        return self.store.ask(scores.of_test, known, benchmark, metric)

    def log(self, limit: int = 1_000_000) -> pl.DataFrame:
        """The acts by hand and the imports, newest first: act, acted_at, verb, said, changed, can_be_undone."""
        return self.store.ask(acts.log, limit)

    def undo(self, number: int = 1) -> list[str]:
        """Take back the last `number` acts that can be, all or none; a line for each.

        Imports of weights are skipped. Raises KinbaseError when something that cannot be undone was built on one.
        """
        if number < 1:
            raise UsageError("undo takes back one act or more")
        with self._existing().writing() as con:
            return journal.undo(con, number)

    def diff(
        self,
        a: str | Path,
        b: str | Path,
        *,
        stat: bool = False,
        report: OnProgress = lambda done, total: None,
    ) -> tuple[pl.DataFrame, list[str]]:
        """What differs between two models, stored or only lying in a folder: rows, and lines on what was not compared.

        Columns: part (fact, lineage, score, config, tokenizer, tensor), item, difference, a, b, numel, relative, max_abs,
        changed; with `stat`, counts by part and layer. See `kinbase.ingest.difference`.
        """
        from kinbase.ingest import difference

        rows, notes = difference.differences(self.store, str(a), str(b), on_progress=report)
        if stat:
            return pl.DataFrame(
                [astuple(s) for s in difference.stats(rows)], schema=STAT, orient="row"
            ), notes
        return pl.DataFrame([astuple(row) for row in rows], schema=DIFFERENCE, orient="row"), notes

    def status(
        self,
        relocate: str | Path | None = None,
        *,
        report: OnProgress = lambda done, total: None,
        log: Callable[[str], None] = lambda line: None,
    ) -> pl.DataFrame:
        """Where the files of every model with weights are: model, state (there, moved, changed, gone, elsewhere), source, advice.

        With `relocate`, what is gone or changed is found again by its content under that folder.
        """
        from kinbase.ingest.whereabouts import whereabouts

        found = whereabouts(self.store, str(relocate) if relocate else None, on_progress=report, log=log)
        return pl.DataFrame([astuple(at) for at in found], schema=STATUS, orient="row")

    def _existing(self) -> Store:
        """The database, which none of these verbs makes. Raises DatabaseError when there is none."""
        if not Path(self.store.path).exists():
            with self.store.reading():
                pass
        return self.store


def _words(*words: str) -> str:
    """An act's words, as one would type them."""
    return " ".join(f'"{word}"' if " " in word or not word else word for word in words)


def _resolved(con: Connection, names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(naming.resolve(con, name) for name in names))
