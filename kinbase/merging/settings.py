"""What a parameter is for one tensor: filters chosen, gradients interpolated, the nearest scope first.

A list is a gradient: over the n layers of a slice, layer i takes the value at i / (n - 1) of the list,
linearly between its entries (mergekit's rule; the only layer of a slice takes the last entry, tensors
outside the layers the first). Of conditions the first whose filter is part of the tensor's name counts.
"""

from collections.abc import Iterable

from kinbase.errors import KinbaseError
from kinbase.merging.config import Parameters, Setting


def value_at(setting: Setting, tensor: str, depth: float) -> float | bool | None:
    """The value of a setting for the tensor called so, at `depth` in [0, 1]; None when no filter fits."""
    if isinstance(setting, dict):
        setting = [setting]
    if isinstance(setting, bool | int | float):
        return setting
    assert isinstance(setting, list)
    if isinstance(setting[0], dict):
        for condition in setting:
            fits = condition.get("filter")
            if fits is None or fits == "*" or fits in tensor:
                return value_at(condition["value"], tensor, depth)
        return None
    at = depth * (len(setting) - 1)
    before = int(at)
    if isinstance(setting[0], bool):
        return bool(setting[before])
    after = min(len(setting) - 1, before + 1)
    return float((1 - (at - before)) * setting[before] + (at - before) * setting[after])


def resolved(
    name: str, scopes: Iterable[Parameters], tensor: str, depth: float, default: float | bool | None = None
) -> float | bool:
    """The parameter called `name` for a tensor, from the first of `scopes` that has a value for it.

    Raises KinbaseError when none has and there is no default.
    """
    for scope in scopes:
        if name in scope and (value := value_at(scope[name], tensor, depth)) is not None:
            return value
    if default is None:
        raise KinbaseError(
            f"the merge configuration gives no {name} for the tensor {tensor!r}: add a value without a filter"
        )
    return default
