"""The children of a generation before they are made: the strategy's choice, named, held against budgets and twins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinbase.evolution import duplicates as twins
from kinbase.evolution import journal
from kinbase.evolution import mating as strategies
from kinbase.evolution import merge_child as breeding
from kinbase.evolution.config import Config
from kinbase.evolution.mating import Mating
from kinbase.query.kinship import known_pairs
from kinbase.query.models import digests
from kinbase.query.models import sources as places
from kinbase.store import runs

if TYPE_CHECKING:
    from kinbase.evolution.journal import Run
    from kinbase.store import Connection

Planned = tuple[str, Mating, str | None]
"""A child's name, its parents and why, and why it is skipped (None: it is not)."""


@dataclass(frozen=True, slots=True)
class Open:
    """A generation that is planned and not closed.

    `sources` says where the weights of its models and their parents are, `digests` what the weights are that the
    database knows.
    """

    run: "Run"
    sources: Mapping[str, str]
    digests: frozenset[str]


def open_next(con: "Connection", name: str) -> Open | None:
    """The open generation of a run, planned now if it is not yet; None when nothing is left, and the run is over."""
    run = journal.read(con, name)
    if run.status == "finished":
        return None
    if run.generation and not run.of(run.generation):
        chosen, left_out = matings(con, run)
        if not chosen:
            runs.end(con, name, "finished", f"nothing is left to merge: {'; '.join(left_out)}")
            return None
        journal.plan(con, run, chosen, "; ".join(left_out) or None)
        run = journal.read(con, name)
    needed = {model for child in run.of(run.generation) for model in (child.model, *child.parents)}
    where = places(con, [*needed, *filter(None, [run.config.base])])
    sources = {model: source for model, (source, _) in where.items() if source}
    return Open(run, sources, digests(con))


def matings(con: "Connection", run: "Run") -> tuple[list[Planned], list[str]]:
    """Names, matings and problems of the next generation's children; and what was left out."""
    config, scores = run.config, run.scores
    kin = known_pairs(con, [*scores, *config.explore.also], config.metric)
    sizes = {model: size for model, (_, size) in places(con, list(scores)).items()}
    products = twins.gram(con, list(scores)) if config.twins is not None else None
    chosen, left_out = strategies.STRATEGIES[config.strategy](journal.population(run), kin, scores, config)
    budget = Budget(run)
    found = []
    for number, mating in enumerate(chosen, 1):
        problem = None
        if products is not None:
            problem = _twin(config, mating, list(scores), products)
        if problem is None:
            problem = budget.refused(max(sizes.get(parent, 0) for parent in mating.parents))
        found.append((_name(run, number, mating), mating, problem))
    return found, left_out


def _name(run: "Run", number: int, mating: Mating) -> str:
    if mating.role == "grid":
        return f"{run.config.name}-{mating.method}-{len(mating.parents)}-s{mating.seed}"
    return f"{run.config.name}-{run.generation}-{'exp' if mating.role == 'explore' else number}"


def _twin(config: Config, mating: Mating, models: Sequence[str], products: "twins.FloatArray") -> str | None:
    coefficients = twins.weights(breeding.document(config, mating.parents, mating.method, config.base))
    if coefficients is None or not set(mating.parents) <= set(models):
        return None
    near = twins.nearest(products, [models.index(p) for p in mating.parents], coefficients)
    assert config.twins is not None
    if near is None or near[1] < config.twins:
        return None
    return f"it would be a near twin of {models[near[0]]}: cosine {near[1]:.4g}, as their stored sums predict"


class Budget:
    """What a run may still merge, evaluate and write; each child that is planned takes of it."""

    def __init__(self, run: "Run") -> None:
        stop = run.config.stop
        made = [c for c in run.children if c.status not in ("skipped", "unrecorded")]
        merges = sum(c.role != "start" for c in made)
        self.left: dict[str, tuple[float, float]] = {}
        for word, bound, used in (
            ("merges", stop.merges, merges),
            ("evaluations", stop.evaluations, len(made)),
            ("bytes of disk", stop.disk_bytes(), sum(c.bytes for c in made if c.folder and not c.deleted)),
        ):
            if bound is not None:
                self.left[word] = (bound - used, bound)

    def refused(self, size: int) -> str | None:
        """Why one more child of `size` bytes cannot be made; None when it can, and then it is counted."""
        for word, (left, bound) in self.left.items():
            if left < (size or 1 if word == "bytes of disk" else 1):
                return f"the budget of {bound:,} {word} is used up"
        for word, (left, bound) in self.left.items():
            self.left[word] = (left - (size if word == "bytes of disk" else 1), bound)
        return None
