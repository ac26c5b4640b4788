"""A recipe as a short page of text."""

from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

from kinbase.text import cell, safe, write_rows


def recipe_page(recipe: Mapping[str, Any]) -> Iterator[str]:
    """The lines that tell a person of `Recipe.as_dict()`: verdict, parents with intervals, what they rest on."""
    method = f" ({recipe['method']})" if recipe["method"] else ""
    yield safe(f"{recipe['model']}: {recipe['verdict']}{method}")
    yield safe(f"  {recipe['reason']}")
    if recipe["parents"]:
        yield ""
        mean = "mean coefficient" if recipe["by"] else "coefficient"
        yield from _table(
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


def _table(columns: list[str], rows: list[list[Any]]) -> Iterator[str]:
    out = StringIO()
    write_rows(columns, rows, "table", out)
    yield from out.getvalue().splitlines()
