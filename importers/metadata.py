"""What a .safetensors file says of itself in its header: merges by their parents' hashes, the model spec, training.

    sd_merge_recipe, sd_merge_models    Stable Diffusion web UI: what was merged, with hashes and names
    modelspec.*                         the model metadata standard of Stability AI
    ss_*                                kohya's sd-scripts: what was trained, and on what

`ss_base_model_version` names an architecture ("sd_v1"), not a parent, and is taken for neither.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kinbase.checkpoint import Edge, Facts, Problem, Record
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.untrusted import model_id, moment, number, problems
from kinbase.checkpoint.untrusted import name as label
from kinbase.errors import CheckpointError

_LARGEST = 1 << 20
"""Characters of a field that is JSON; genuine recipes have some thousands."""

_ROLES = ("primary", "secondary", "tertiary")
_ENDS = re.compile(r"\.(safetensors|ckpt|pt|pth|bin)$", re.IGNORECASE)


def told(metadata: Mapping[str, str], model: str) -> Iterator[Record]:
    """The parents and facts in the metadata of the file of `model`; fields that cannot be read are a Problem."""
    refused: list[str] = []
    edges = [*_merged(metadata, refused), *_trained(metadata, refused)]
    yield from (edge for edge in edges if edge.parent != model)
    facts = Facts(
        architecture=label(metadata.get("modelspec.architecture"), refused),
        license=label(metadata.get("modelspec.license"), refused),
        relation="adapter" if "ss_network_module" in metadata else "merge" if _is_merge(edges) else None,
        created_at=_date(metadata),
    )
    if facts != Facts():
        yield facts
    for problem in problems(f"the metadata of {shown(model)}", refused):
        assert isinstance(problem, Problem)
        yield problem


def _is_merge(edges: list[Edge]) -> bool:
    return any(edge.relation == "merge" for edge in edges)


def _date(metadata: Mapping[str, str]) -> Any:
    seconds = number(metadata.get("ss_training_finished_at"))
    return moment(metadata.get("modelspec.date")) or (moment(seconds) if seconds else None)


def _merged(metadata: Mapping[str, str], refused: list[str]) -> list[Edge]:
    recipe = _object(metadata, "sd_merge_recipe", refused)
    models = _object(metadata, "sd_merge_models", refused)
    method = label(recipe.get("interp_method"), refused)
    method = method.lower() if method else None
    share = number(recipe.get("multiplier"))
    found: dict[str, Edge] = {}
    for role in _ROLES:
        digest = label(recipe.get(f"{role}_model_hash"), refused)
        if digest:
            found[digest] = _parent(digest, models, refused, method, _weight(role, method, share))
    for digest in models:
        if digest not in found and not found and label(digest, refused):
            found |= {d: _parent(d, models, refused, None, None) for d in models if label(d, refused)}
    if not found:
        names = (metadata.get("modelspec.merged_from") or "").split(",")
        parents = [model_id(_ENDS.sub("", name.strip()), refused) for name in names if name.strip()]
        return [Edge(parent, "merge", "config") for parent in parents if parent]
    return list(found.values())


def _weight(role: str, method: str | None, share: float | None) -> float | None:
    """The coefficient of a parent: of A and B in A (1 - m) + B m, of A, B and C in A + (B - C) m."""
    if share is None or method not in ("weighted sum", "add difference"):
        return None
    if method == "weighted sum":
        return {"primary": 1 - share, "secondary": share}.get(role)
    return {"primary": 1.0, "secondary": share, "tertiary": -share}[role]


def _parent(
    digest: str, models: Mapping[str, Any], refused: list[str], method: str | None, weight: float | None
) -> Edge:
    entry = models.get(digest)
    said = entry.get("name") if isinstance(entry, dict) else None
    name = label(_ENDS.sub("", said.rpartition("/")[2]) if isinstance(said, str) else None, refused)
    return Edge(name or f"sha256:{digest}", "merge", "config", None, method, weight, {"sha256": digest})


def _trained(metadata: Mapping[str, str], refused: list[str]) -> list[Edge]:
    digest = label(metadata.get("ss_new_sd_model_hash") or metadata.get("ss_sd_model_hash"), refused)
    said = (metadata.get("ss_sd_model_name") or "").replace("\\", "/")
    # A name of the Hub has one slash; a path has its own, and leads nowhere on another machine.
    said = (
        said if re.fullmatch(r"[\w.-]+/[\w.-]+", said) and not _ENDS.search(said) else said.rpartition("/")[2]
    )
    name = model_id(_ENDS.sub("", said), refused) if said else None
    if name is None and digest is None:
        return []
    adapter = "ss_network_module" in metadata
    words = {"network_module": str, "network_dim": str, "network_alpha": str, "output_name": str}
    detail: dict[str, object] = {k: metadata[f"ss_{k}"][:200] for k in words if f"ss_{k}" in metadata}
    if digest:
        detail["hash"] = digest
    return [
        Edge(
            name or f"sha256:{digest}",
            "adapter" if adapter else "finetune",
            "config",
            None,
            None,
            None,
            detail,
        )
    ]


def _object(metadata: Mapping[str, str], key: str, refused: list[str]) -> dict[str, Any]:
    text = metadata.get(key)
    if not text:
        return {}
    try:
        if len(text) > _LARGEST:
            raise CheckpointError("too long")
        value = json.loads(text)
    except (ValueError, RecursionError, CheckpointError):
        refused.append(f"{key} is no JSON")
        return {}
    if not isinstance(value, dict):
        refused.append(f"{key} is no object")
        return {}
    return value
