"""`model-index`, the scores in a model card's header (hub-docs modelcard.md)."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kinbase.checkpoint import Score
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.untrusted import moment, name, number, shots
from kinbase.importers import columns, evaluated

_NO_CONFIG = ("default", "main", "all", "plain_text", "none")
_VARIANT = re.compile(r"(?<![a-z])(macro|micro|weighted|top[-_ ]?\d+)(?![a-z\d])", re.IGNORECASE)
_SHOTS = re.compile(r"\s*\(\s*(\d{1,6})[- ]shots?\s*\)\s*$", re.IGNORECASE)


def scores(index: object, refused: list[str]) -> Iterator[Score]:
    """The scores of a `model-index`, each once; what is no score is said in `refused`."""
    yield from distinct(_scores(index, refused))


def distinct(found: Iterable[tuple[Score, dict[str, str | None]]]) -> Iterator[Score]:
    """Each score once, and none under another's key: a repetition is left out.

    With a score comes what its key does not hold, by the field that can take it. A card often
    holds one result twice, from two leaderboards, and huggingface_hub's writer joins both under
    the first one's source: then nothing but a number is left to tell them apart.
    """
    seen: dict[tuple[object, ...], tuple[float, dict[str, str | None]]] = {}
    repeated: dict[
        tuple[object, ...], _Repeated
    ] = {}  # of each first key: a thousand repetitions cost a thousand steps
    for score, more in found:
        differs: list[str] = []
        if _key(score) in seen:
            others = seen[_key(score)][1]
            differs = [field for field in more if more[field] and more[field] != others.get(field)]
            if differs == ["source"] and score.value == seen[_key(score)][0]:
                continue
            if differs:
                score = _told(score, differs[0], more[differs[0]])
        first = _key(score)
        if first in seen:
            told = repeated.setdefault(first, _Repeated({seen[first][0]}, 2 if differs else 1))
            if score.value in told.values:
                continue
            told.values.add(score.value)
            source = score.source
            while _key(score) in seen:
                told.last += 1
                score = replace(score, source=f"{source} ({told.last})")
        seen[_key(score)] = (score.value, more)
        yield score


@dataclass(slots=True)
class _Repeated:
    """What was met under one key: the values, and the last number behind the source."""

    values: set[float]
    last: int


def _key(score: Score) -> tuple[object, ...]:
    return score.model, score.benchmark, score.metric, score.n_shot, score.split, score.source


def _told(score: Score, field: str, text: str | None) -> Score:
    if field == "source":
        return replace(score, source=f"{score.source} ({text})")
    if field == "metric":
        return replace(score, metric=f"{score.metric} ({text})")
    return replace(score, benchmark=f"{score.benchmark} ({text})")


def _scores(index: object, refused: list[str]) -> Iterator[tuple[Score, dict[str, str | None]]]:
    for model in map(_dict, _list(index)):
        called = name(model.get("name"), [])
        for result in map(_dict, _list(model.get("results"))):
            yield from _of_result(result, called, refused)


def _of_result(
    result: dict[str, object], called: str | None, refused: list[str]
) -> Iterator[tuple[Score, dict[str, str | None]]]:
    """The scores of one result: one dataset, and the metrics on it."""
    dataset, source = _dict(result.get("dataset")), _dict(result.get("source"))
    kind_of_data = name(dataset.get("type"), refused)
    title = name(dataset.get("name"), refused) or kind_of_data
    if title is None:
        refused.append("a result of model-index that names no dataset")
        return
    args = dataset.get("args")
    config = name(dataset.get("config") or (args if isinstance(args, str) else None), refused)
    in_title = _SHOTS.search(title)
    # With the number of examples in it a title is that of a task of a leaderboard, and says what is tested.
    is_task = in_title is not None and in_title.start() > 0
    benchmark = (
        title[: in_title.start()] if in_title and is_task else _with_config(title, kind_of_data, config)
    )
    address = name(source.get("url"), refused) or ""
    for metric in (_dict(each) for each in _list(result.get("metrics"))):
        title_of_metric = name(metric.get("name"), refused)
        kind = name(metric.get("type"), refused) or title_of_metric
        value = number(metric.get("value"))
        if kind is None or value is None:
            refused.append(f"{benchmark} {kind}: {shown(metric.get('value'))} is no score")
            continue
        told = [
            _examples(_dict(metric.get("args"))),
            _examples(_dict(args)),
            shots(in_title.group(1)) if in_title else None,
        ]
        score = Score(
            benchmark=benchmark,
            metric=_with_variant(kind, title_of_metric),
            value=value,
            n_shot=next((number for number in told if number is not None), None),
            split=evaluated.at_revision(
                name(dataset.get("split"), refused), name(dataset.get("revision"), refused)
            ),
            # The query part of a leaderboard's address is this model's own name.
            source=address.partition("?")[0] or name(source.get("name"), refused) or "card",
            evaluated_at=moment(metric.get("date")),
        )
        yield score, {"benchmark": config, "metric": title_of_metric, "source": called}


def _with_config(title: str, kind: str | None, config: str | None) -> str:
    """The name of a dataset with its configuration, where the name alone is that of many tests: GLUE, Common Voice."""
    plain = _squeezed(title)
    is_dataset = kind is None or plain in (_squeezed(kind), _squeezed(kind.rpartition("/")[2]))
    if config is None or not is_dataset or config.lower() in _NO_CONFIG or _squeezed(config) in plain:
        return title
    return f"{title} ({config})"


def _squeezed(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()


def _with_variant(kind: str, title: str | None) -> str:
    """A metric with what its title alone says of how it is averaged, or of how many guesses are right."""
    found = _VARIANT.search(title or "")
    variant = re.sub(r"[\W_]+", "-", found[0]).strip("-").lower() if found else None
    return kind if variant in (None, "top-1") or _VARIANT.search(kind) else f"{kind} ({variant})"


def _examples(args: dict[str, object]) -> int | None:
    """The number of examples in the prompt, by one of the names that it goes by."""
    return next(
        (
            n
            for n in (shots(args.get(key)) for key in ("n_shot", *columns.OTHER_NAMES["n_shot"]))
            if n is not None
        ),
        None,
    )


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
