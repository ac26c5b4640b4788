"""`model-index`, the scores in a model card's header (hub-docs modelcard.md)."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kinbase.checkpoint import Score
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.untrusted import moment, name, number, shots

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
    if field == "metric":
        return replace(score, metric=f"{score.metric} ({text})")
    return replace(score, benchmark=f"{score.benchmark} ({text})")


def _scores(index: object, refused: list[str]) -> Iterator[tuple[Score, dict[str, str | None]]]:
    for result in (_dict(result) for model in _list(index) for result in _list(_dict(model).get("results"))):
        dataset, source = _dict(result.get("dataset")), _dict(result.get("source"))
        title = name(dataset.get("name"), refused) or name(dataset.get("type"), refused)
        if title is None:
            refused.append("a result of model-index that names no dataset")
            continue
        in_title = _SHOTS.search(title)
        benchmark = title[: in_title.start()] if in_title and in_title.start() else title
        told = shots(_dict(dataset.get("args")).get("num_few_shot"))
        config = name(dataset.get("config"), refused)
        address = name(source.get("url"), refused) or ""
        for metric in (_dict(each) for each in _list(result.get("metrics"))):
            title_of_metric = name(metric.get("name"), refused)
            kind = name(metric.get("type"), refused) or title_of_metric
            value = number(metric.get("value"))
            if kind is None or value is None:
                refused.append(f"{benchmark} {kind}: {shown(metric.get('value'))} is no score")
                continue
            score = Score(
                benchmark=benchmark,
                metric=kind,
                value=value,
                n_shot=shots(in_title.group(1)) if told is None and in_title else told,
                split=name(dataset.get("split"), refused),
                # The query part of a leaderboard's address is this model's own name.
                source=address.partition("?")[0] or name(source.get("name"), refused) or "card",
                evaluated_at=moment(metric.get("date")),
            )
            yield score, {"benchmark": config, "metric": title_of_metric}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
