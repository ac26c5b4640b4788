"""How many steps each model is from where its line begins, for all models at once.

In arrays, because the same as a recursive query takes over a second and 300 MB for a million models, while
a person types. The base a merge was measured from is no parent of it, as in the tree.
"""

import operator
from collections.abc import Callable

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


def generations(con: Connection) -> np.ndarray:
    """Fewest steps from a model without parents, by model_id."""
    models = con.execute("select model_id, coalesce(base_id, 0) as base from raw.model").fetchnumpy()
    claims = con.execute("select child_id, parent_id, relation <> 'base' as told from raw.claim").fetchnumpy()
    size = (
        int(max((part.max() for part in (models["model_id"], claims["child_id"]) if part.size), default=0))
        + 1
    )
    told = np.zeros(size, dtype=bool)
    told[claims["child_id"][claims["told"]]] = True
    claimed = np.zeros(size, dtype=bool)
    claimed[claims["child_id"]] = True
    # Claims that tell a parent; of models with none such, their base.
    real = claims["told"] | ~told[claims["child_id"]]
    measured = (models["base"] != 0) & ~claimed[models["model_id"]]
    child = np.concatenate([claims["child_id"][real], models["model_id"][measured]])
    parent = np.concatenate([claims["parent_id"][real], models["base"][measured]])
    steps = np.full(size, NONE, dtype=np.int32)
    roots = models["model_id"]
    steps[roots[(models["base"] == 0) & ~claimed[roots]]] = 0
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


def bits(op: str, number: float) -> Callable[[Connection, np.ndarray | None], str]:
    """What the condition `get_bit(?::bit, model_id) = 1` takes for models of such a generation; of known steps none are read."""

    def asked(con: Connection, known: np.ndarray | None) -> str:
        steps = generations(con) if known is None else known
        wanted = OPERATORS[op](steps, number) & (steps < NONE)
        return (wanted.astype(np.uint8) + ord("0")).tobytes().decode()

    return asked
