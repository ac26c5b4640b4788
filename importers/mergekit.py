"""mergekit configurations: `mergekit_config.yml` beside a merge, or a recipe standing alone.

Every model that is merged gives one edge of relation "merge"; the base of a delta method (TIES,
task arithmetic, DARE, ...) gives one of relation "base" and is not a parent even where it is
listed, while the base_model of slerp, nearswap and arcee_fusion is one of the merged models.
A reference `model+lora` names two parents, the model and the adapter; the model is not repeated
where it is the base. `weight` is a parent's coefficient where it is one number; the parameters as
written (gradients, filters, density, t, layer ranges, revisions) are the edge's detail, under
"uses" where a model comes in several times.

Several documents (mergekit-multi) are stages. The unnamed one, or else the only one that no other
uses, is the model the file lies beside. The other stages become models of their own, called
`<name>#<hash of the recipe>`, because two recipes in one database may both have a stage "first".
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from kinbase.checkpoint import Edge, Facts, Problem, Record
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.checkpoint.files import is_file, shown
from kinbase.checkpoint.merge_config import BASE_IS_PARENT, METHODS, MIXES_WEIGHTS, Use, uses, weights
from kinbase.checkpoint.untrusted import head, name, problems, read_text
from kinbase.errors import CheckpointError

NAMES = ("mergekit_config.yml", "mergekit_config.yaml", "mergekit_moe_config.yml")
_LIMIT = 1024 * 1024

_Said = tuple[Use, float | None, Mapping[str, object]]
"""One use of a model: where, its coefficient, and how the model is referred to."""


def recognises(source: str) -> bool:
    """A mergekit file by its name, or any YAML file that names a merge method near its top."""
    path = Path(source)
    if path.suffix.lower() not in (".yml", ".yaml") or not is_file(source):
        return False
    return path.name in NAMES or b"merge_method" in head(source, 65536)


def open(source: str) -> Iterator[Record]:
    """The claims of one file; its subject is the model it lies beside."""
    path = Path(source)
    text, whole = read_text(path, _LIMIT)
    if not whole:
        raise CheckpointError(f"{shown(source)} is larger than {_LIMIT} bytes; it is no merge configuration")
    documents = safe_yaml.load(text, shown(source))
    if not any(is_config(document) for document in documents):
        raise CheckpointError(
            f"{shown(source)} is no mergekit configuration: no merge_method, models, slices or modules"
        )
    yield from claims(documents, "config", path.name)


def is_config(document: object) -> bool:
    """Whether a YAML document is a merge configuration."""
    return isinstance(document, dict) and bool(
        document.keys() & {"merge_method", "models", "slices", "modules", "experts"}
    )


def claims(documents: Sequence[object], evidence: str, where: str) -> Iterator[Record]:
    """Facts, edges and problems out of the documents of one file or one card."""
    refused: list[str] = []
    configs: list[dict[str, object]] = []
    for document in documents:
        if isinstance(document, dict) and is_config(document):
            configs.append(document)
        elif document is not None:
            refused.append(f"{shown(document)}, which is no merge configuration")
    unnamed = [config for config in configs if "name" not in config]
    if len(unnamed) > 1:
        refused.append(
            f"{len(unnamed) - 1} of {len(unnamed)} merges without a name; the last of them was read"
        )
        configs = [config for config in configs if "name" in config or config is unnamed[-1]]
    labels, by_name = _stages(configs, where, refused)
    for config, child in zip(configs, labels, strict=True):
        yield Facts(child, relation="merge")
        yield from _edges(config, child, by_name, evidence, where, refused)
    yield from problems(where, refused)


def _stages(
    configs: list[dict[str, object]], where: str, refused: list[str]
) -> tuple[list[str | None], dict[str, str]]:
    """What each configuration makes (None: the file's subject), and the labels by stage name."""
    names = [name(config.get("name"), refused) for config in configs]
    index_of = {stage: index for index, stage in enumerate(names) if stage}
    needs = [{index_of[model] for model in models(config) if model in index_of} for config in configs]
    finals = [i for i, stage in enumerate(names) if stage is None] or [
        i for i in range(len(names)) if not any(i in below for below in needs)
    ]
    try:
        order = list(TopologicalSorter(dict(enumerate(needs))).static_order())
    except CycleError as error:
        raise CheckpointError(f"{where}: the stages of the merge need each other in a circle") from error
    digests: dict[int, str] = {}
    for index in order:
        recipe = json.dumps([configs[index], sorted(digests[i] for i in needs[index])], sort_keys=True)
        digests[index] = hashlib.sha256(recipe.encode()).hexdigest()[:8]
    labels = [
        None if finals == [index] else f"{stage or 'unnamed'}#{digests[index]}"
        for index, stage in enumerate(names)
    ]
    return labels, {stage: label for stage, label in zip(names, labels, strict=True) if stage and label}


def models(config: dict[str, object]) -> set[str]:
    """Every model and adapter a configuration names."""
    inputs = uses(config, [])
    found = {use.reference for use in inputs} | {use.base for use in inputs if use.base}
    return {label for each in found for label in (each.model, each.lora) if label}


def _edges(
    config: dict[str, object],
    child: str | None,
    stages: dict[str, str],
    evidence: str,
    where: str,
    refused: list[str],
) -> Iterator[Edge | Problem]:
    """One edge for each model that is merged and one for each base."""
    method = name(config.get("merge_method"), refused) or ("moe" if config.get("experts") else None)
    if method is None:
        yield Problem(f"{where}: no merge_method is given; the parents were read")
    elif method not in (*METHODS, "moe"):
        near = difflib.get_close_matches(method, METHODS, 3, 0.5) or METHODS
        yield Problem(
            f"{where}: no merge method {shown(method)}; nearest: {', '.join(near)}. The parents were read"
        )
    inputs = uses(config, refused)
    bases = list(dict.fromkeys(use.base for use in inputs if use.base))
    if method in BASE_IS_PARENT and not any(use.is_end() for use in inputs):
        # It may be left out of the list of inputs, and is merged all the same.
        inputs += [Use(base, ("", -1), {}, inputs[0].parameters, base) for base in bases]
    parents: dict[str, list[_Said]] = {}
    for use, weight in zip(inputs, weights(method, inputs), strict=True):
        said, lora = use.reference, use.reference.lora
        if use.is_base(method):
            continue
        if lora:
            adapter = {"model": said.model, "revision": said.lora_revision}
            parents.setdefault(lora, []).append((use, weight, adapter))
        if not lora or method in BASE_IS_PARENT + MIXES_WEIGHTS or said.model not in {b.model for b in bases}:
            parents.setdefault(said.model, []).append((use, weight, said.detail()))
    for parent, found in parents.items():
        coefficient, detail = _one_edge(found)
        yield Edge(stages.get(parent, parent), "merge", evidence, child, method, coefficient, detail)
    for base in bases:
        if method not in BASE_IS_PARENT and not (method in MIXES_WEIGHTS and base.model in parents):
            label = stages.get(base.model, base.model)
            yield Edge(label, "base", evidence, child, method, None, base.detail())


def _one_edge(found: list[_Said]) -> tuple[float | None, dict[str, object]]:
    """Weight and detail of a parent from its uses: what they share, and "uses" for what they do not."""
    sums: dict[tuple[str, int], float | None] = {}
    entries = []
    for use, weight, detail in found:
        before = sums.get(use.group, 0.0)
        sums[use.group] = None if weight is None or before is None else before + weight
        said = {key: value for key, value in detail.items() if value is not None}
        entries.append(said | use.place | use.parameters)
    weight = next(iter(sums.values())) if len(set(sums.values())) == 1 else None
    shared = {
        key: value for key, value in entries[0].items() if all(key in e and e[key] == value for e in entries)
    }
    if len(entries) > 1:
        rest = [{key: value for key, value in entry.items() if key not in shared} for entry in entries]
        shared["uses"] = rest
    return weight, shared
