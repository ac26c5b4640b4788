"""What `kinbase demo` prints: the family it made, and what a run of evolution made of it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kinbase.text import family_tree, matrix, safe, table

if TYPE_CHECKING:
    from kinbase.database import Kinbase


def demo_page(db: "Kinbase", root: str) -> Iterator[str]:
    """Lines that show the demo's family: its tree, accuracies, kinship, what merging gained, what to merge next."""
    yield "\nWho came from whom"
    yield from family_tree(db.tree(root))
    yield "\nAccuracy on held-out exercises, percent"
    yield from table(db.accuracies())
    yield "\nKinship: Pearson correlation of what two models changed in the base"
    pairs = db.kinship()
    values = {(a, b): pcc for a, b, pcc in pairs.select("model_a", "model_b", "pcc").iter_rows()}
    names = sorted({*pairs["model_a"], *pairs["model_b"]})
    yield from matrix(names, values | {(b, a): pcc for (a, b), pcc in values.items()}, "pcc")
    yield "\nWhat merging gained: average accuracy over the parents' mean, and over the better parent"
    yield from table(db.average_gains())
    yield "\nWorth merging next, and whom the child would be most akin to (a heuristic, no promise)"
    worth = db.suggest(root, k=3)[0]
    yield from table(
        worth.select("parent_a", "parent_b", "kinship", "nearest", "predicted_kinship", "reason")
    )


EVOLVED = """
select generation, child, array_to_string(parents, ' + ') as parents, role, round(kinship, 3) as kinship,
    round(score, 3) as score, kept
from offspring where run = ? order by generation, position
"""


def evolution_page(db: "Kinbase", run: str, folder: str) -> Iterator[str]:
    """Lines that show what the demo's run of evolution tried, and where to go on."""
    yield "\nEvolution: the best pairs merged, and the best with its least kin; score: average accuracy"
    yield from table(db.sql(EVOLVED, [run]))
    path = safe(db.store.path)
    yield f"\nThe models are in {safe(folder)}/models, the database is {path}. Go on with"
    yield f"  kinbase --db {path} recipe digits-all"
    yield f"  kinbase --db {path} kin digits-sort digits-rank --by block"
    yield f'  kinbase --db {path} sql "select * from lineage"'
