"""The pages that `show`, `recipe` and `demo` print to a person."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kinbase.cli.tables import fitted_table
from kinbase.text import NARROWEST, cell, count, family_tree, middle, safe, size, table_lines, text_width

if TYPE_CHECKING:
    import polars as pl

    from kinbase.database import Kinbase


CHILDREN = 50
"""Children that a model's page lists."""


def model_page(about: dict[str, Any], fit: int | None = None) -> Iterator[str]:
    """Lines that tell one model's row of `Kinbase.show`; its tables fit into `fit` characters."""
    yield safe(about["name"])
    for name, text in _facts(about):
        if text:
            yield f"  {name:<13}{text}"
    sections = (
        ("other names", "aliases", ("alias", "kind", "source")),
        ("parents", "parents", ("parent", "relation", "method", "weight", "evidence")),
        ("children", "children", ("child", "relation", "method", "weight", "evidence")),
        (
            "scores",
            "scores",
            ("benchmark", "metric", "value", "stderr", "n_shot", "split", "template", "source"),
        ),
        ("nearest kin", "kin", ("model", "pcc", "cs", "ed", "coverage", "method")),
        ("not finite", "nonfinite", ("tensor", "nonfinite")),
        ("without a delta", "skipped", ("tensor", "reason")),
    )
    for title, key, every in sections:
        if about[key]:
            # What a test was of is told where it is known of any.
            unsaid = {c for c in ("split", "template") if all(row.get(c) is None for row in about[key])}
            columns = [column for column in every if column not in unsaid]
            rows = _listed(about[key], columns)
            is_cut = key == "children" and len(rows) > CHILDREN
            yield ""
            yield title
            listed = rows[:CHILDREN] if is_cut else rows
            lines_of = table_lines(columns, listed) if fit is None else fitted_table(columns, listed, fit - 2)
            yield from ("  " + line for line in lines_of)
            if is_cut:
                quoted = about["name"].replace("'", "''")
                yield safe(
                    f"  and more: kinbase sql \"from lineage where parent = '{quoted}'\" lists them all"
                )


FACTS = ("digest", "base", "family", "relation", "architecture", "dtype", "license", "revision", "source", "created_at",
         "imported_at", "tags", "notes")  # fmt: skip


def _facts(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of the model itself, in the order in which it is shown."""
    lines = [(name, cell(about[name])) for name in FACTS if about[name] is not None]
    lines.insert(4, ("parameters", count(about["parameters"])))
    if about.get("same_as"):
        forms = {"layout": "in another layout", "dtype": "in another dtype", "names": "under other names"}
        how = forms.get(about["same_how"], "the same bytes, with a card of its own")
        lines.append(("same as", f"{about['same_as']} ({how})"))
    if about.get("to_reread"):
        told = "taken by an earlier version, which did not cover all its files hold: import it again"
        lines.append(("identity", told))
    lines.insert(5, ("size", size(about["bytes"])))
    if about["coverage"] is not None:
        lines.append(("coverage", f"{about['coverage']:.4f} of the base's parameters"))
    if not about["has_weights"]:
        lines.append(("weights", "none here: known by name or metadata only"))
    return lines


def _listed(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[list[Any]]:
    """The rows of a section; what several kinds of evidence say alike is one row that names them all."""
    if "evidence" not in columns:
        return [[row[column] for column in columns] for row in rows]
    said: dict[tuple[Any, ...], dict[str, None]] = {}
    for row in rows:
        said.setdefault(tuple(row[c] for c in columns if c != "evidence"), {})[row["evidence"]] = None
    return [[*rest, ", ".join(evidence)] for rest, evidence in said.items()]


def recipe_page(recipe: Mapping[str, Any]) -> Iterator[str]:
    """The lines that tell a person of `Recipe.as_dict()`: verdict, parents with intervals, what they rest on."""
    method = f" ({recipe['method']})" if recipe["method"] else ""
    yield safe(f"{recipe['model']}: {recipe['verdict']}{method}")
    yield safe(f"  {recipe['reason']}")
    if recipe["parents"]:
        yield ""
        mean = "mean coefficient" if recipe["by"] else "coefficient"
        yield from table_lines(
            ["parent", mean, "low", "high"],
            [[p[key] for key in ("parent", "coefficient", "low", "high")] for p in recipe["parents"]],
        )
    if recipe["verdict"] == "merge" and recipe["base_weight"]:
        yield safe(f"and {recipe['base_weight']:.4g} of the base {recipe['base']}")
    for entry in recipe["lists"]:
        what = entry["parent"] if entry["parent"] == "t" else f"weight of {entry['parent']}"
        values = ", ".join(f"{value:.3g}" for value in entry["values"])
        yield safe(f"{entry['block']}: {what} = [{values}]")
    yield ""
    facts = [
        ("residual", recipe["residual"], "of the length of its change"),
        ("floor", recipe["floor"], "what rounding to its dtype leaves"),
        ("rho", recipe["rho"], "residual / floor"),
        ("expected", recipe["expected"], "what rounding this very merge would leave"),
        ("ratio", recipe["ratio"], "residual / expected"),
        ("condition", recipe["condition"], "of the parents' Gram matrix: 1 unrelated, large near twins"),
    ]
    width = max(len(cell(value)) for _, value, _ in facts)
    for name, value, meaning in facts:
        if value is not None:
            yield f"{name:10} {cell(value):>{width}}  {meaning}"
    known = f"{recipe['candidates']} candidate{'' if recipe['candidates'] == 1 else 's'} of the family of {recipe['base']}"
    yield safe(f"from {known}, over {recipe['coverage']:.1%} of the parameters")
    for note in recipe["notes"]:
        yield safe(f"note: {note}")


def demo_page(db: "Kinbase", root: str) -> Iterator[str]:
    """Lines that show the demo's family: its tree, accuracies, kinship, what merging gained, what to merge next."""
    yield "\nWho came from whom"
    yield from family_tree(db.tree(root))
    yield "\nAccuracy on held-out exercises, percent"
    yield from _table(db.accuracies())
    yield "\nKinship: Pearson correlation of what two models changed in the base"
    pairs = db.kinship()
    values = {(a, b): pcc for a, b, pcc in pairs.select("model_a", "model_b", "pcc").iter_rows()}
    names = sorted({*pairs["model_a"], *pairs["model_b"]})
    yield from matrix(names, values | {(b, a): pcc for (a, b), pcc in values.items()}, "pcc")
    yield "\nWhat merging gained: average accuracy over the parents' mean, and over the better parent"
    yield from _table(db.average_gains())
    yield "\nWorth merging next, and whom the child would be most akin to (a heuristic, no promise)"
    worth = db.suggest(root, k=3)[0]
    yield from _table(
        worth.select("parent_a", "parent_b", "kinship", "nearest", "predicted_kinship", "reason")
    )


def evolution_page(db: "Kinbase", run: str, folder: str) -> Iterator[str]:
    """Lines that show what the demo's run of evolution tried, and where to go on."""
    from kinbase.query import runs

    yield "\nEvolution: the best pairs merged, and the best with its least kin; score: average accuracy"
    yield from _table(db.store.ask(runs.tried, run))
    path = safe(db.store.path)
    yield f"\nThe models are in {safe(folder)}/models, the database is {path}. Go on with"
    yield f"  kinbase --db {path} recipe digits-all"
    yield f"  kinbase --db {path} kin digits-sort digits-rank --by block"
    yield f'  kinbase --db {path} sql "select * from lineage"'


def _table(frame: "pl.DataFrame") -> Iterator[str]:
    return table_lines(frame.columns, frame.iter_rows())


def matrix(
    names: Sequence[str],
    values: dict[tuple[str, str], float | None],
    title: str,
    marks: Mapping[tuple[str, str], str] = MappingProxyType({}),
    *,
    fit: int | None = None,
) -> Iterator[str]:
    """Lines of a matrix of `values` by pair of names: rows carry the names, columns their numbers.

    `marks` are put behind the values of pairs that need a word. Wider than `fit` characters, it goes in blocks of
    columns, and names are cut in their middles.
    """
    label = max((text_width(safe(name)) for name in names), default=0)
    digits = len(str(len(names)))
    if fit is not None:
        label = min(label, max(NARROWEST, fit // 3))
    per = len(names) if fit is None else max(1, (fit - label - digits - 1) // 8)
    for start in range(0, len(names), max(per, 1)):
        columns = names[start : start + per]
        if start:
            yield ""
        numbers = "".join(f"{i:>8}" for i in range(start + 1, start + len(columns) + 1))
        yield f"{title:<{label + digits + 1}}{numbers}"
        for i, row in enumerate(names, 1):
            texts = (
                "." if row == column else _short(values.get((row, column))) + marks.get((row, column), "")
                for column in columns
            )
            name = middle(safe(row), label)
            figures = "".join(f"{text:>8}" for text in texts)
            yield f"{i:>{digits}} {name}{' ' * (label - text_width(name))}{figures}"


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"
