"""A mergekit configuration that would make a model again, from its recipe."""

import math
from collections.abc import Mapping, Sequence
from io import StringIO

from kinbase.errors import KinbaseError
from kinbase.provenance.recipes.recipe import Recipe
from kinbase.provenance.recipes.verdict import ADAPTER, COPY, MERGE, SELECTED, Parent

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def config(recipe: Recipe, paths: Mapping[str, str], dtype: str | None) -> str:
    """The configuration as YAML: `paths` are where models lie by name, `dtype` the child's safetensors code.

    Coefficients are rounded as far as their intervals allow. Raises KinbaseError where there is nothing to
    make again: no merge, or one that left out elements nobody knows.
    """
    found = recipe.finding
    if found.verdict == SELECTED:
        raise KinbaseError(
            f"{recipe.model} looks like TIES or DARE: which elements they kept is not known, so it cannot be made again"
        )
    if found.verdict not in (MERGE, ADAPTER, COPY) or not found.parents:
        raise KinbaseError(
            f"the verdict on {recipe.model} is {found.verdict!r}: there is no merge to make again"
        )
    if found.method == "passthrough":
        raise KinbaseError(
            f"{recipe.model} is a stack, whose slices are for a person to write: {found.reason}"
        )
    document = _document(recipe, paths)
    document |= {"dtype": "float32", "out_dtype": DTYPES.get(dtype or "", "float32")}
    from ruamel.yaml import YAML

    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = None
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    out = StringIO()
    writer.dump(document, out)
    return out.getvalue()


def _document(recipe: Recipe, paths: Mapping[str, str]) -> dict[str, object]:
    found = recipe.finding
    if found.verdict == COPY:
        return {"merge_method": "passthrough", "models": [{"model": paths[found.parents[0].parent]}]}
    if found.method == "slerp":
        first, second = (paths[p.parent] for p in found.parents)
        return {
            "merge_method": "slerp", "base_model": first, "models": [{"model": first}, {"model": second}],
            "parameters": {"t": _filters(recipe, "t")},
        }  # fmt: skip
    models: list[dict[str, object]] = [
        {"model": paths[p.parent], "parameters": {"weight": _weight(recipe, p)}} for p in found.parents
    ]
    if found.method == "model_stock":
        return {
            "merge_method": "model_stock", "base_model": paths[recipe.base],
            "models": [{"model": paths[p.parent]} for p in found.parents],
        }  # fmt: skip
    if found.method == "linear":
        return {"merge_method": "linear", "models": models, "parameters": {"normalize": True}}
    return {
        "merge_method": "task_arithmetic", "base_model": paths[recipe.base], "models": models,
        "parameters": {"normalize": False, "lambda": 1.0},
    }  # fmt: skip


def _weight(recipe: Recipe, parent: Parent) -> object:
    if recipe.finding.gradient is None:
        return nearest_round(parent.coefficient, parent.low, parent.high)
    return _filters(recipe, parent.parent)


def _filters(recipe: Recipe, name: str) -> list[dict[str, object]]:
    """The lists of one value by block, those with a filter before the rest."""
    entries = [e for e in recipe.lists() if e["parent"] == name]
    entries.sort(key=lambda e: e["block"] == "rest")
    result: list[dict[str, object]] = []
    for entry in entries:
        places = [r for r in recipe.table() if r["block"] == entry["block"] and r["parent"] == name]
        error = max(float(str(r["high"])) - float(str(r["coefficient"])) for r in places)
        values = [nearest_round(v, v - error, v + error) for v in _numbers(entry["values"])]
        value: object = values[0] if len(set(values)) == 1 else values
        block = {} if entry["block"] == "rest" else {"filter": entry["block"]}
        result.append(block | {"value": value})
    return result


def _numbers(values: object) -> Sequence[float]:
    assert isinstance(values, list)
    return [float(v) for v in values]


def nearest_round(value: float, low: float, high: float) -> float:
    """The number of fewest decimals in an interval, the nearest to `value` among them."""
    for decimals in range(1, 17):
        rounded = round(value, decimals)
        if low <= rounded <= high:
            return rounded if rounded or not math.copysign(1, rounded) < 0 else 0.0
    return value
