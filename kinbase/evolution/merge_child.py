"""A child's merge configuration, and the backend that writes the child.

A merge takes its name when it is whole, so a folder of the child's name is a finished one, whenever the run
was killed.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinbase import merging
from kinbase.checkpoint.files import shown
from kinbase.errors import KinbaseError
from kinbase.evolution import trust
from kinbase.evolution.config import Config

NO_BASE = ("slerp", "nuslerp", "multislerp", "karcher", "linear", "nearswap", "arcee_fusion")
"""Methods that merge weights, not deltas; of slerp and its like the base model is one of the parents."""


def document(config: Config, parents: Sequence[str], method: str, base: str | None) -> dict[str, Any]:
    """The mergekit configuration of one child, naming its parents as the database does.

    The first parent is the t = 0 end of a slerp. A `weight` among the parameters is every parent's; where the
    method wants one and none is given, each has an equal share.
    Raises KinbaseError when the method takes deltas and no base is known.
    """
    merge, parameters = config.merge, dict(config.merge.parameters)
    models: list[dict[str, Any]] = [{"model": parent} for parent in parents]
    found: dict[str, Any] = {"merge_method": method, "models": models}
    if method in ("slerp", "nearswap", "arcee_fusion"):
        found["base_model"] = parents[0]
        if method == "slerp":
            parameters.setdefault("t", 0.5)
    else:
        weight = parameters.pop("weight", 1 / len(parents))
        for model in models:
            model["parameters"] = {"weight": weight}
        if method not in NO_BASE:
            if base is None:
                raise KinbaseError(
                    f"{method} needs the base that the parents were tuned from: say which with `base`"
                )
            found["base_model"] = base
    rest = {
        "parameters": parameters or None,
        "dtype": merge.dtype,
        "out_dtype": merge.out_dtype,
        "tokenizer_source": merge.tokenizer_source,
    }
    return found | {key: value for key, value in rest.items() if value is not None}


def check(config: Config, base: str | None) -> None:
    """Raise KinbaseError now for what would stop the first merge: the method, its parameters, a base it lacks."""
    methods = config.grid.methods if config.strategy == "grid" else (config.merge.method,)
    for method in methods:
        made = document(config, config.models[:2], method, base)
        merging.parse(made, "merge", any_method=config.merge.backend == "mergekit")


def breed(
    config: Config, child: str, made: Mapping[str, Any], sources: Mapping[str, str], seed: int,
    report: Callable[[int, int | None], None],
) -> Path:  # fmt: skip
    """Write the child of a merge configuration to its folder; nothing is done when this run made that already.

    `sources` maps the names in the configuration to folders. Raises KinbaseError when the parents do not fit,
    the disk is full or the backend fails; what was written is taken away again. And when something is in the
    folder's place that this run did not make here.
    """
    folder = own_folder(config, child)
    if os.path.lexists(folder):
        if not trust.made_here(config, child, folder):
            raise KinbaseError(
                f"{shown(str(folder))} is in the way: the run {config.name} did not make it on this machine; move it away"
            )
        return folder
    marks = trust.mark(config, child)
    if config.merge.backend == "mergekit":
        from kinbase.merging import mergekit

        mergekit.merge(merging.parse(made, any_method=True), folder, sources=sources, seed=seed, marks=marks)
    else:
        merging.merge(merging.parse(made), folder, sources=sources, seed=seed, marks=marks, report=report)
    return folder


def own_folder(config: Config, child: str) -> Path:
    """The folder that a run gives a child. Raises KinbaseError for a name that leads out of the run's folder."""
    folder = Path(config.out, child)
    if folder.name != child or folder.parent != Path(config.out) or child == "..":
        raise KinbaseError(f"{shown(child)} is no name of a child's folder: the run's rows are damaged")
    return folder


def refuse_used(config: Config) -> None:
    """Raise KinbaseError when the folder of the children holds anything: what is there would be taken for a child."""
    folder = Path(config.out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KinbaseError(
            f"{shown(str(folder))} is not empty: name a folder of the run's own with `out`, or another --name"
        )


def delete_weights(config: Config, child: str, folder: str) -> None:
    """Delete the weight files of a child's checkpoint; what is said of it in the folder stays.

    Nothing is deleted but in the folder that this machine's own run made for the child and marked, whatever the
    run's rows say.
    """
    try:
        own = own_folder(config, child)
    except KinbaseError:
        return
    if str(own) != folder or not trust.made_here(config, child, own):
        return
    for pattern in ("*.safetensors", "*.safetensors.index.json"):
        for path in own.glob(pattern):
            path.unlink(missing_ok=True)
