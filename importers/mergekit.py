"""mergekit configurations: `mergekit_config.yml` beside a merge, or a recipe standing alone.

Every model that is merged gives one edge of relation "merge"; the base of a delta method (TIES,
task arithmetic, DARE, ...) gives one of relation "base" and is not a parent even where it is
listed, while the base_model of slerp, nearswap and arcee_fusion is one of the merged models.
A reference `model+lora` names two parents, the model and the adapter; the model is not repeated
where it is the base. `weight` is a parent's coefficient where it is one number; the parameters as
written (gradients, filters, density, t, layer ranges, revisions) are the edge's detail, under
"uses" where a model comes in several times.

Several documents (mergekit-multi), or several recipes in one card, are stages. A recipe that takes a folder
(./first) takes what another one made: the one whose caption names that folder, or else the one that is left. The
unnamed one that no other uses, or else the only one, is the model the file lies beside. The other stages become
models of their own, called `<name>#<hash of the recipe>`, because two recipes in one database may both have a stage
"first". Files in one folder are merges of their own where their names say so (see `NAMES`).
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from kinbase.checkpoint import Edge, Facts, Problem, Record
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.checkpoint.files import is_file, shown
from kinbase.checkpoint.ids import hub_id, is_path, last_part
from kinbase.checkpoint.merge_config import BASE_IS_PARENT, METHODS, MIXES_WEIGHTS, Use, uses, weights
from kinbase.checkpoint.untrusted import head, name, problems, read_text
from kinbase.errors import CheckpointError
from kinbase.importers import card_header

NAMES = ("mergekit_config.yml", "mergekit_config.yaml", "mergekit_moe_config.yml")
_LIMIT = 1024 * 1024
_EXPERTS = re.compile(rb"^experts[ \t]*:", re.MULTILINE)

_Said = tuple[Use, float | None, Mapping[str, object]]
"""One use of a model: where, its coefficient, and how the model is referred to."""


def recognises(source: str) -> bool:
    """A mergekit file by its name, or any YAML file that names a merge method, or experts and their models, near its top."""
    path = Path(source)
    if path.suffix.lower() not in (".yml", ".yaml") or not is_file(source):
        return False
    begins = head(source, 65536)
    is_moe = _EXPERTS.search(begins) is not None and b"source_model" in begins
    return path.name in NAMES or b"merge_method" in begins or is_moe


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
    card = card_header.beside(path)
    if card is not None and _is_of_another(card, documents):
        yield from of_copied(card, documents, path.name)
        return
    yield from claims(documents, "config", path.name)


def of_copied(card: card_header.Card, documents: Sequence[object], where: str) -> Iterator[Record]:
    """What recipes that lie with a model made from another say: of a quantised copy's source they are reported.

    A recipe that takes that model itself made something else, and one beside a fine-tune may be anybody's: both are told.
    """
    configs = [each for each in documents if isinstance(each, dict) and is_config(each)]
    source = card.bases[0]
    is_sources = card.is_copy and source not in Recipe(configs).everything
    yield Problem(card_header.said_of_copy(card, where, is_kept=is_sources))
    for record in claims(configs, "reported", where) if is_sources else ():
        if isinstance(record, Edge):
            yield replace(record, child=record.child or source)


def _is_of_another(card: card_header.Card, documents: Sequence[object]) -> bool:
    """Whether the card beside a configuration tells of a model that was made from what the configuration made."""
    if card.is_copy:
        return True
    configs = [each for each in documents if isinstance(each, dict) and is_config(each)]
    stated = card.is_stated and card.relation != "merge"
    return bool(stated) and len(card.bases) == 1 and card.bases[0] not in Recipe(configs).everything


def is_config(document: object) -> bool:
    """Whether a YAML document is a merge configuration."""
    return isinstance(document, dict) and bool(
        document.keys() & {"merge_method", "models", "slices", "modules", "experts"}
    )


class Recipe:
    """Configurations of one file or card as stages of one merge; `captions` are the texts before each.

    `labels` are what each makes (None: the file's subject), `by_reference` the labels by what the stages are called.
    Raises CheckpointError for stages that need each other in a circle.
    """

    def __init__(
        self, configs: Sequence[dict[str, object]], captions: Sequence[str] = (), where: str = "card"
    ) -> None:
        self.refused: list[str] = []
        self.everything = set().union(*(models(config) for config in configs))
        captions = captions or [""] * len(configs)
        names = [name(config.get("name"), self.refused) for config in configs]
        makes = {stage: index for index, stage in enumerate(names) if stage}
        makes |= _folders(configs, names, captions, makes)
        used = set(makes.values())
        loose = [i for i, stage in enumerate(names) if stage is None and i not in used]
        if len(loose) > 1:
            # Of merges that nothing ties together one made the model: the last.
            self.refused.append(
                f"{len(loose) - 1} of {len(configs)} merges without a name that no other takes; the last of them was read"
            )
        kept = [i for i in range(len(configs)) if i not in loose[:-1]]
        place = {index: new for new, index in enumerate(kept)}
        self.configs = [configs[index] for index in kept]
        self.mentioned = set().union(*(models(config) for config in self.configs))
        makes = {reference: place[index] for reference, index in makes.items() if index in place}
        self.labels, self.by_reference = _stages(self.configs, [names[i] for i in kept], makes, where)


def _folders(
    configs: Sequence[dict[str, object]],
    names: Sequence[str | None],
    captions: Sequence[str],
    named: Mapping[str, int],
) -> dict[str, int]:
    """Which unnamed configuration made each folder that another one takes, as far as the file tells."""
    found: dict[str, int] = {}
    for taker, config in enumerate(configs):
        open_ones = [i for i, stage in enumerate(names) if stage is None and i != taker]
        taken = [m for m in sorted(models(config)) if m not in named and m not in found and hub_id(m) is None]
        for folder in list(taken):
            word = re.compile(rf"(?<![\w-]){re.escape(last_part(folder))}(?![\w-])", re.IGNORECASE)
            told = [i for i in open_ones if word.search(captions[i]) and i not in found.values()]
            if last_part(folder) and len(told) == 1:
                found[folder] = told[0]
                taken.remove(folder)
        left = [i for i in open_ones if i < taker and i not in found.values()]
        if left and len(left) == len(taken) and all(is_path(folder) or len(taken) == 1 for folder in taken):
            text = json.dumps(config)
            found |= zip(sorted(taken, key=text.find), left, strict=True)
    return found


def claims(
    documents: Sequence[object], evidence: str, where: str, recipe: Recipe | None = None
) -> Iterator[Record]:
    """Facts, edges and problems out of the documents of one file or one card."""
    refused: list[str] = []
    configs: list[dict[str, object]] = []
    for document in documents:
        if isinstance(document, dict) and is_config(document):
            configs.append(document)
        elif document is not None:
            refused.append(f"{shown(document)}, which is no merge configuration")
    recipe = recipe or Recipe(configs, where=where)
    for config, child in zip(recipe.configs, recipe.labels, strict=True):
        yield Facts(child, relation="merge")
        yield from _edges(config, child, recipe.by_reference, evidence, where, refused)
    yield from problems(where, [*recipe.refused, *refused])


def _stages(
    configs: list[dict[str, object]], names: list[str | None], makes: Mapping[str, int], where: str
) -> tuple[list[str | None], dict[str, str]]:
    """What each configuration makes (None: the file's subject), and the labels by what the stages are called."""
    needs = [{makes[model] for model in models(config) if model in makes} for config in configs]
    taken = set().union(*needs) if needs else set()
    finals = [i for i, stage in enumerate(names) if stage is None and i not in taken] or [
        i for i in range(len(names)) if i not in taken
    ]
    try:
        order = list(TopologicalSorter(dict(enumerate(needs))).static_order())
    except CycleError as error:
        raise CheckpointError(f"{where}: the stages of the merge need each other in a circle") from error
    digests: dict[int, str] = {}
    for index in order:
        recipe = json.dumps([configs[index], sorted(digests[i] for i in needs[index])], sort_keys=True)
        digests[index] = hashlib.sha256(recipe.encode()).hexdigest()[:8]
    folder = {index: last_part(reference) for reference, index in makes.items()}
    labels = [
        None if finals == [index] else f"{stage or folder.get(index, 'unnamed')}#{digests[index]}"
        for index, stage in enumerate(names)
    ]
    return labels, {reference: label for reference, index in makes.items() if (label := labels[index])}


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
    if method in BASE_IS_PARENT and inputs and not any(use.is_end() for use in inputs):
        # It may be left out of the list of inputs, and is merged all the same.
        inputs += [Use(base, ("", -1), {}, inputs[0].parameters, base, inputs[0].shared) for base in bases]
    at_base = {base.key() for base in bases}
    parents: dict[str, list[_Said]] = {}
    for use, weight in zip(inputs, weights(method, inputs), strict=True):
        said = use.reference
        model, lora = said.key()
        if use.is_base(method):
            continue
        if lora:
            adapter = {"model": said.model, "revision": said.lora_revision}
            parents.setdefault(lora, []).append((use, weight, adapter))
        if not lora or method in BASE_IS_PARENT + MIXES_WEIGHTS or (model, None) not in at_base:
            parents.setdefault(model, []).append((use, weight, said.detail()))
    for parent, found in parents.items():
        coefficient, detail = _one_edge(found)
        yield Edge(stages.get(parent, parent), "merge", evidence, child, method, coefficient, detail)
    for base in bases:
        label = base.key()[0]
        if method not in BASE_IS_PARENT and not (method in MIXES_WEIGHTS and label in parents):
            yield Edge(stages.get(label, label), "base", evidence, child, method, None, base.detail())
            if base.lora:  # the deltas are taken against both together
                told: dict[str, object] = {"model": base.model}
                told |= {"revision": base.lora_revision} if base.lora_revision else {}
                yield Edge(str(base.key()[1]), "base", evidence, child, method, None, told)


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
