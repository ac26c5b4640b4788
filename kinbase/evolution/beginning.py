"""A run before its first generation: its configuration held against the database, its row, its first plan."""

from dataclasses import replace
from typing import TYPE_CHECKING

from kinbase.errors import KinbaseError
from kinbase.evolution import journal, planning, trust
from kinbase.evolution import merge_child as breeding
from kinbase.evolution.config import Config
from kinbase.query.models import common_base
from kinbase.query.models import sources as places
from kinbase.store import journal as acts
from kinbase.store.names import resolve

if TYPE_CHECKING:
    from kinbase.evolution.planning import Planned
    from kinbase.store import Store


def begin(store: "Store", config: Config) -> Config:
    """Store a new run; its configuration with the models called by their names.

    Raises KinbaseError for an unknown model or method, and when the name or the folder is taken.
    """
    config = resolved(store, config)
    with store.writing() as con:
        journal.begin(con, config)
        acts.put_skipped_act(con, "evolve", config.name, "a run: what it makes is told as imports")
        if config.evaluate.by != "recorded":
            breeding.refuse_used(config)
    trust.remember(config, store.path)
    return config


def first_plan(store: "Store", config: Config) -> tuple[list["Planned"], list[str]]:
    """The first generation of a run that has not begun: name, mating and why it would be skipped; and what is left out.

    Models without a score yet count as equal; the second list says which.
    """
    config = resolved(store, config)
    with store.reading() as con:
        found = {m: journal.score(con, m, config, config.score.benchmarks)[0] for m in config.models}
        start = [
            journal.Child(
                0, i, m, m, (), "start", "", 0, "", None, "scored", None, found[m] or 0.0, None, False
            )
            for i, m in enumerate(config.models)
        ]
        run = journal.Run(0, config, "running", None, start, [((), None)])
        matings, left_out = planning.matings(con, run)
    bare = [model for model, score in found.items() if score is None]
    return matings, left_out + [f"not scored yet: {', '.join(bare)}; the plan is made when they are"] * bool(
        bare
    )


def resolved(store: "Store", config: Config) -> Config:
    """The configuration with models by their names, checked against the database."""
    with store.reading() as con:
        models = [resolve(con, model) for model in config.models]
        also = [resolve(con, model) for model in config.explore.also]
        base = resolve(con, config.base) if config.base else common_base(con, models)
        where = places(con, models)
    if len(set(models)) < len(models):
        raise KinbaseError("models: two of them are names of one model")
    config = replace(
        config, models=tuple(models), base=base, explore=replace(config.explore, also=tuple(also))
    )
    if config.evaluate.by != "recorded":
        bare = [model for model, (source, _) in where.items() if source is None]
        if bare:
            raise KinbaseError(
                f"the weights of {', '.join(sorted(bare))} are not here: import the checkpoints first"
            )
        breeding.check(config, base)
    return config
