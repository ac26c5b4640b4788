"""In which order models are listed, how many are beneath each and in which generation it is: of all models, in arrays.

A filter lists hundreds of thousands of matches while a person types. Counting what lies beneath them, and sorting
them, anew at each key takes most of its time; read once, a state of the file answers until it changes.
"""

from dataclasses import dataclass, field

import numpy as np

from kinbase.query.generations import edges, generations
from kinbase.store import Connection


@dataclass(frozen=True)
class Orders:
    """By model_id, int32: `beneath` counts what was made from it or is measured against it, `steps` as in `generations`.

    `child[i]` was made from `parent[i]`. `places` has each model's place among all, from 0, by the name of the order.
    """

    beneath: np.ndarray
    steps: np.ndarray
    child: np.ndarray
    parent: np.ndarray
    places: dict[str, np.ndarray] = field(default_factory=dict)
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    """Under "score": that of each model as the view `model_scores` has it, float64, NaN where there is none."""

    @property
    def roots(self) -> np.ndarray:
        """Models made from nothing known."""
        return np.flatnonzero(self.steps == 0)

    def children(self, parent: int) -> np.ndarray:
        """What was made from `parent`, each once."""
        return np.unique(self.child[self.parent == parent])

    def place(self, order: str, ids: np.ndarray) -> None:
        """Keep an order; `ids` are all models in it."""
        places = np.zeros(len(self.steps), dtype=np.int32)
        places[ids] = np.arange(len(ids), dtype=np.int32)
        self.places[order] = places

    def page(self, ids: np.ndarray, order: str, offset: int, number: int) -> np.ndarray:
        """Those of `ids` that stand from `offset` on in an order that is kept, `number` of them at most."""
        places, end = self.places[order][ids], offset + number
        if len(ids) > end:
            first = np.argpartition(places, end - 1)[:end]
            ids, places = ids[first], places[first]
        return ids[np.argsort(places)[offset:end]]


def read_scores(con: Connection, size: int = 0) -> np.ndarray:
    """The score of each model by model_id, float64 of `size` or as many as there are; NaN where there is none."""
    if not size:
        ((size,),) = con.execute("select coalesce(max(model_id), 0) + 1 from raw.model").fetchall()
    found = con.execute("select model_id, score from raw.model_score where score is not null").fetchnumpy()
    scores = np.full(size, np.nan)
    scores[found["model_id"]] = found["score"]
    return scores


def read(con: Connection) -> Orders:
    """Read it of all models, without an order yet."""
    found = edges(con)
    # A child that several claims name is one. Sorted by hand: np.unique takes ten times as long.
    told = np.sort(found.parent[found.told].astype(np.int64) << 32 | found.child[found.told])
    parents = told[np.flatnonzero(np.diff(told, prepend=-1))] >> 32
    beneath = np.zeros(found.size, dtype=np.int32)
    for counted in (
        np.bincount(parents, minlength=found.size),
        np.bincount(found.bases, minlength=found.size),
    ):
        np.maximum(beneath, counted, out=beneath, casting="unsafe")
    beneath[0] = 0  # the base of those that have none
    return Orders(beneath, generations(found), found.child, found.parent)
