"""A model on the Hub, `hf:ORG/NAME[@REVISION]`, read as deeply as the question needs.

    metadata   card, configs, results and the headers of the weights: a few requests and kilobytes
    sample     the same, with tensors that read here and there when they are asked to
    stream     the same, with tensors that are read from end to end and not kept
    whole      the weights and what lies beside them in the Hub's cache, then as any other folder
    kept       what the cache holds already; nothing is asked for

The first record tells the commit, before anything else is read: a loader that has it may stop there. Nothing
from a repository is ever executed.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from kinbase.checkpoint import Alias, Checkpoint, Commit, Edge, Facts, Problem, Record, Relative
from kinbase.checkpoint.files import CONFIG_LIMIT, shown
from kinbase.checkpoint.untrusted import name as label
from kinbase.errors import CheckpointError, WeightsRefused
from kinbase.importers import adapter, beside, card, eval_results, folder, mergekit, safetensors
from kinbase.importers.hub import cache as hub_cache
from kinbase.importers.hub.client import Hub, Repo, Tell, is_offline
from kinbase.importers.hub.download import fetch
from kinbase.importers.hub.file import HubFile
from kinbase.importers.ranges import Blocks, RangedFile

DEPTHS = ("metadata", "sample", "stream", "whole", "kept")

RELATIONS = ("finetune", "adapter", "merge", "quantized")

_SOURCE = re.compile(
    r"hf:(?://)?(?P<name>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?",
    re.ASCII,
)
_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<name>(?!datasets/|spaces/|api/)[\w.-]+/[\w.-]+)"
    r"(?:/(?:tree|commit)/(?P<revision>[\w.-]+))?/?",
    re.ASCII,
)
"""The address of a model's page, as people copy it."""
_PLAIN = re.compile(r"[\w.+-]+", re.ASCII)
_RESULTS = re.compile(r"\.eval_results/[\w.+-]+\.ya?ml", re.ASCII)
_MOST_RESULTS = 20
"""Files of evaluation results that are read of one model."""

_BESIDE = {"README.md": card, **dict.fromkeys(mergekit.NAMES, mergekit)}
"""What tells of a model beside its weights, with what reads it."""

_GLANCE = 64 << 10
"""Bytes of two tensors that must agree for one to be a copy, where reading all of them costs more than it tells."""

_Fetched = Callable[[str, int], bytes]


def recognises(source: str) -> bool:
    """Whether `source` names something on the Hub."""
    return source.startswith("hf:") or _PAGE.fullmatch(source) is not None


def public(source: str) -> str:
    """The source of a page's address; any other as it is."""
    match = _PAGE.fullmatch(source)
    return source if match is None else "hf:" + "@".join(filter(None, (match["name"], match["revision"])))


def open(source: str, depth: str = "whole", tell: Tell = lambda what, done, total: None) -> Iterator[Record]:
    """What the Hub says of a model, as deep as `depth`; raises CheckpointError."""
    name, revision = _parse(source)
    if depth == "kept":
        yield from _kept(name, revision)
        return
    where = f"{name}@{revision}" if revision else name
    if depth == "whole" and is_offline() and hub_cache.recognises(where):
        yield from hub_cache.open(where)
        return
    hub = Hub(tell)
    repo = hub.repo(name, revision)
    yield Commit(repo.name, repo.commit, is_pinned=revision not in (None, "main"))
    if repo.name != name:
        yield Alias(name, kind="redirect")
    if revision not in (None, repo.commit):
        yield Alias(f"{repo.name}@{revision}", kind="revision")
    yield Facts(revision=repo.commit, created_at=repo.created_at)
    if depth == "whole":
        yield from _whole(hub, repo)
    else:
        yield from _ranged(hub, repo, depth)


def relatives(
    source: str, relation: str | None = None, limit: int = 1000, tell: Tell = lambda what, done, total: None
) -> Iterator[Relative]:
    """The models whose cards name this one as their base model, with their commits; raises CheckpointError."""
    for repo in Hub(tell).children(_parse(source)[0], relation, limit):
        yield Relative(f"hf:{repo.name}", repo.name, repo.commit, has_children=repo.children != 0)


def source_of(label: str) -> str | None:
    """The source that a parent's name means; None for one that can be no model of the Hub's."""
    return f"hf:{label}" if "/" in label and _SOURCE.fullmatch(f"hf:{label}") else None


def _parse(source: str) -> tuple[str, str | None]:
    match = _SOURCE.fullmatch(public(source))
    if match is None:
        raise CheckpointError(
            f"{shown(source)} is no model of the Hub: write hf:ORG/NAME or hf:ORG/NAME@REVISION"
        )
    return match["name"], match["revision"]


def _kept(name: str, revision: str | None) -> Iterator[Record]:
    snapshot = hub_cache.snapshot(f"{name}@{revision}" if revision else name)
    for record in _opened(str(snapshot), name, {}):
        if isinstance(record, Checkpoint):
            record.source = f"hf:{name}@{snapshot.name}"
        yield record


def _opened(
    path: str, name: str, elsewhere: Mapping[str, folder.Opener], enough: int | None = None
) -> Iterator[Record]:
    if adapter.holds_adapter(path, elsewhere):
        return adapter.open_as(path, name, elsewhere)
    return folder.open_as(path, name, elsewhere, enough)


def _beside(repo: Repo) -> list[str]:
    """The files of a repository that tell of its model, those that many libraries write not among them."""
    results = sorted(file for file in repo.files if _RESULTS.fullmatch(file))
    return [file for file in _BESIDE if file in repo.files] + results[:_MOST_RESULTS]


def _told(path: Path, repo: Repo) -> Iterator[Record]:
    """The records of the files beside the weights; one that cannot be read does not keep the others out."""
    for file in _beside(repo):
        module = _BESIDE.get(file, eval_results)
        try:
            yield from module.open(str(path / file))
        except CheckpointError as error:
            yield Problem(str(error))


def _whole(hub: Hub, repo: Repo) -> Iterator[Record]:
    """Download, then as any folder."""
    plain = [file for file in repo.files if _PLAIN.fullmatch(file)]
    configs = [file for file in ("config.json", folder.ADAPTER_CONFIG) if file in plain]
    if folder.ADAPTER_CONFIG in plain and any(file in plain for file in adapter.FILES):
        weights, index = [file for file in adapter.FILES if file in plain][:1], None
    else:
        _refuse_unreadable(repo, plain)
        weights, index = folder.chosen(plain, f"hf:{repo.name}")
    if index:
        path = fetch(hub, repo, [index])
        weights = sorted(folder.shards(str(path), index))
        absent = [file for file in weights if file not in plain]
        if absent:
            raise CheckpointError(
                f"hf:{repo.name}: its index names {shown(absent[0])}, which the repository lacks"
            )
    path = fetch(hub, repo, [*configs, *_beside(repo), *weights, *beside.parts(plain)])
    refused: CheckpointError | None = None
    try:
        for record in _opened(str(path), repo.name, {}):
            if isinstance(record, Checkpoint):
                record.source = f"hf:{repo.name}@{repo.commit}"
            yield record
    except CheckpointError as error:
        refused = error
    yield from _told(path, repo)
    if refused:
        raise WeightsRefused(str(refused))


def _ranged(hub: Hub, repo: Repo, depth: str) -> Iterator[Record]:
    """Small files into a folder of the moment, weights by their headers."""
    plain = [file for file in repo.files if _PLAIN.fullmatch(file)]
    ranged = [file for file in plain if file.endswith(".safetensors")]
    blocks = Blocks() if depth == "stream" else None

    def opener(file: str) -> folder.Opener:
        def opened() -> Checkpoint:
            remote = HubFile(hub, repo, file)
            return safetensors.of_file(
                RangedFile(remote.path, remote.piece, blocks), Path(file).stem, remote.path
            )

        return opened

    with TemporaryDirectory(prefix="kinbase-") as path:
        small = [file for file in ("config.json", folder.ADAPTER_CONFIG) if file in plain]
        small += [file for file in plain if file.endswith(".safetensors.index.json")][:4]
        try:
            for file in small + _beside(repo):
                target = Path(path, file)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(HubFile(hub, repo, file).piece(0, CONFIG_LIMIT + 1).data)
        except CheckpointError as error:
            if depth != "metadata" or not repo.gated:
                raise
            yield from _seen_from_outside(repo, str(error))
            return
        found: list[Record] = []
        try:
            if ranged or folder.ADAPTER_CONFIG in plain:
                elsewhere = {file: opener(file) for file in ranged}
                found += _opened(path, repo.name, elsewhere, _GLANCE if depth != "stream" else None)
            elif depth != "metadata":
                _refuse_unreadable(repo, plain, pickles_too=True)
            else:
                found.append(Facts(architecture=repo.architecture, parameters=repo.parameters))
                found.append(Problem(_without_headers(repo, plain)))
        except CheckpointError as error:
            raise CheckpointError(_public(str(error), path, repo)) from None
        for record in [*found, *_told(Path(path), repo)]:
            if isinstance(record, Checkpoint):
                record.source = f"hf:{repo.name}@{repo.commit}"
                # The config of an adapter is in the folder of the moment; its commit says which it is.
                record.files = [stamp for stamp in record.files if stamp.elsewhere]
            elif isinstance(record, Problem):
                record = Problem(_public(record.message, path, repo))
            yield record


def _public(message: str, path: str, repo: Repo) -> str:
    """A message about a file in the folder of the moment, about the repository's."""
    return message.replace(str(Path(path).resolve()), f"hf:{repo.name}").replace(path, f"hf:{repo.name}")


def _seen_from_outside(repo: Repo, why: str) -> Iterator[Record]:
    """What can be known of a gated model without access to its files: what the Hub makes of its card."""
    said = {key: value for key, _, value in (tag.partition(":") for tag in repo.tags) if value}
    yield Facts(
        license=label(said.get("license"), []), parameters=repo.parameters, architecture=repo.architecture
    )
    for tag in repo.tags:
        kind, _, rest = tag.partition(":")
        relation, _, parent = rest.partition(":")
        if kind == "base_model" and relation in RELATIONS and source_of(parent):
            yield Edge(parent, relation, "card")
    yield Problem(f"only what the Hub shows of it was read: {why}")


def _refuse_unreadable(repo: Repo, plain: list[str], *, pickles_too: bool = False) -> None:
    """Raises CheckpointError when the repository holds no weights that can be read."""
    if not any(
        file.endswith((".safetensors", *(() if pickles_too else (".bin", ".pt", ".pth")))) for file in plain
    ):
        raise CheckpointError(
            f"{_without_headers(repo, plain)}{'' if pickles_too else '; --metadata-only keeps it'}"
        )


def _without_headers(repo: Repo, plain: list[str]) -> str:
    if any(file.endswith((".bin", ".pt", ".pth")) for file in plain):
        return (
            f"hf:{repo.name} has only pickled weights, of which no parts can be read; "
            "import it without --sample, --stream and --metadata-only to download it whole"
        )
    if any(file.endswith(".gguf") for file in repo.files):
        return f"hf:{repo.name} has only GGUF files, which hold no plain weights to compare"
    return f"hf:{repo.name} has no weights at the top of its repository (*.safetensors)"
