"""What each rule of stopping would have saved and lost on a history of merging (`kinbase.query.history`).

Rules after arXiv 2410.12613, section 5.2: the literal one stops at the first merge of parents more akin than the
threshold; the others wait.
"""

from collections.abc import Callable, Sequence

from kinbase.query.history import Generation

COLUMNS = (
    "rule", "stops_after", "generations", "score", "lost", "best_so_far", "merges_saved", "merges", "evaluations_saved",
    "evaluations", "reason",
)  # fmt: skip


def replay(
    history: Sequence[Generation], *, threshold: float = 0.9, patience: int = 2
) -> list[tuple[object, ...]]:
    """A row of COLUMNS for each rule: where it stops, what one has there, and what not going on saves."""
    rules: list[tuple[str, Callable[[int], bool], bool, str]] = [
        (
            "literal", lambda i: (history[i].highest or 0) > threshold, any(g.highest is not None for g in history),
            f"parents more akin than {threshold:g}, once",
        ),
        (
            "sustained", lambda i: _lasting([g.kinship for g in history[: i + 1]], threshold, patience),
            any(g.kinship is not None for g in history), f"parents more akin than {threshold:g}, {patience} generations running",
        ),
        (
            "top-k mean", lambda i: _lasting([g.top_kinship for g in history[: i + 1]], threshold, patience),
            any(g.top_kinship is not None for g in history), f"mean kinship of the best above {threshold:g}, {patience} running",
        ),
        (
            "unchanged top-k", lambda i: i > 0 and bool(history[i].top) and set(history[i].top) == set(history[i - 1].top),
            any(g.top for g in history), "the best are the same as a generation before",
        ),
    ]  # fmt: skip
    rows = []
    for rule, stops, known, words in rules:
        at = next((i for i in range(len(history)) if stops(i)), None) if known else None
        rows.append(_outcome(history, rule, at, words if known else f"{words}: not known here"))
    return rows


def _lasting(values: Sequence[float | None], threshold: float, patience: int) -> bool:
    last = values[-patience:]
    return len(last) == patience and all(value is not None and value > threshold for value in last)


def _outcome(history: Sequence[Generation], rule: str, at: int | None, words: str) -> tuple[object, ...]:
    merges, evaluations = sum(g.merges for g in history), sum(g.evaluations for g in history)
    if at is None:
        return (rule, None, history[-1].number, history[-1].score, 0.0, history[-1].best_so_far, 0, merges, 0, evaluations,
                f"never stops: {words}")  # fmt: skip
    here, end = history[at], history[-1]
    lost = round(here.score - end.score, 6) if here.score is not None and end.score is not None else None
    rest = history[at + 1 :]
    return (
        rule, here.number, end.number, here.score, lost, here.best_so_far, sum(g.merges for g in rest), merges,
        sum(g.evaluations for g in rest), evaluations, words,
    )  # fmt: skip
