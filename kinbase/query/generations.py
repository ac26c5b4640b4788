"""How many steps each model is from where its line begins, for all models at once.

In arrays, because the same as a recursive query takes over a second and 300 MB for a million models, while
a person types. The base a merge was measured from is no parent of it, as in the tree.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kinbase.store import Connection

OPERATORS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
NONE = 2**30
"""Of a model that no line leads to: one in a circle of claims."""


@dataclass(frozen=True)
class Edges:
    """Who was made from whom, by model_id, int32: `child[i]` from `parent[i]`, as often as that is claimed.

    `told` marks what a claim says. `models` are all of them and `bases` what each is measured against, 0 for nothing.
    """

    models: np.ndarray
    bases: np.ndarray
    child: np.ndarray
    parent: np.ndarray
    told: np.ndarray

    @property
    def size(self) -> int:
        """Of an array by model_id."""
        return 1 + max(
            (int(part.max()) for part in (self.models, self.child, self.parent) if part.size), default=0
        )


def edges(con: Connection) -> Edges:
    """Every claim that tells a parent; of a model with none such what it is measured against, or is said to be."""
    models = con.execute("select model_id, coalesce(base_id, 0) as base from raw.model").fetchnumpy()
    claims = con.execute("select child_id, parent_id, relation <> 'base' as told from raw.claim").fetchnumpy()
    ids, bases = models["model_id"], models["base"]
    child, parent, told = claims["child_id"], claims["parent_id"], claims["told"]
    tells = np.zeros(1 + max((int(part.max()) for part in (ids, child) if part.size), default=0), dtype=bool)
    tells[child[told]] = True
    real = told | ~tells[child]
    measured = (bases != 0) & ~tells[ids]
    return Edges(
        ids,
        bases,
        np.concatenate([child[real], ids[measured]]),
        np.concatenate([parent[real], bases[measured]]),
        np.concatenate([told[real], np.zeros(np.count_nonzero(measured), dtype=bool)]),
    )


def generations(found: Edges) -> np.ndarray:
    """Fewest steps from a model without parents, by model_id."""
    child, parent = found.child, found.parent
    steps = np.full(found.size, NONE, dtype=np.int32)
    steps[found.models] = 0
    steps[child] = NONE
    generation = 0
    while child.size:
        reached = child[steps[parent] == generation]
        if not reached.size:
            break
        generation += 1
        steps[reached] = np.minimum(steps[reached], generation)
        waiting = steps[child] == NONE
        child, parent = child[waiting], parent[waiting]
    return steps


def generations_where(con: Connection, op: str, number: float, known: np.ndarray | None) -> np.ndarray:
    """Which models are in such a generation: bool by model_id; of `known` steps none are read."""
    steps = generations(edges(con)) if known is None else known
    return OPERATORS[op](steps, number) & (steps < NONE)
