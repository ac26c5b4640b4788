"""Where every model stands, in arrays: how many are beneath it, how far it is from where its line begins.

A filter sorts hundreds of thousands of matches by what lies beneath them while a person types. Counting that
anew at each key takes most of its time; read once, a state of the file answers until it changes.
"""

from dataclasses import dataclass

import numpy as np

from kinbase.store import Connection

from .generations import generations

MOST = 20_000
"""Candidates that are worth handing to a query; of more it finds the page as fast by itself."""

BENEATH = """
select id, max(n)::integer as n from (
    select parent_id as id, count(*) as n from raw.claim where relation <> 'base' group by 1
    union all
    select base_id, count(*) from raw.model where base_id is not null group by 1
) group by id
"""


@dataclass(frozen=True)
class Standing:
    """By model_id, int32: `beneath` counts what was made from it or is measured against it, `steps` as in `generations`."""

    beneath: np.ndarray
    steps: np.ndarray

    def candidates(self, ids: np.ndarray, number: int) -> np.ndarray | None:
        """Those of `ids` among which the `number` with most beneath them are, ties and all; None when they are too many."""
        if len(ids) > number:
            under = self.beneath[ids]
            ids = ids[under >= np.partition(under, -number)[-number]]
        return ids if len(ids) <= MOST else None


def standing(con: Connection) -> Standing:
    """Read it of all models."""
    steps = generations(con)
    counted = con.execute(BENEATH).fetchnumpy()
    beneath = np.zeros(len(steps), dtype=np.int32)
    beneath[counted["id"]] = counted["n"]
    return Standing(beneath, steps)
