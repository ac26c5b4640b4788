"""When a run stops: each rule of the configuration against the generations so far, and what it says of them.

The literal rule of the paper (stop at the first kinship above 0.9) loses 1.7 to 1.8 points on its own merging
paths; asked to stay there for two generations it loses 0.2 to 0.3. So saturation wants patience, and a mean that
is not wholly known stops nothing.
"""

from collections.abc import Sequence

from kinbase.evolution.config import Config

Top = tuple[Sequence[str], float | None]
"""The k best after a generation, best first, and their mean pairwise kinship (None: not all known)."""


def verdict(config: Config, tops: Sequence[Top], spent: str | None) -> tuple[bool, str]:
    """Whether the run ends after the last of `tops` (generation 0 first), and what each rule says.

    `spent` says which budget is used up, if one is.
    """
    stop, done = config.stop, len(tops) - 1
    said, over = [], []
    still, saturated = _unchanged(tops), _saturated(config, tops)
    if done and stop.unchanged is not None:
        same = f"the {config.k} best are the same" + (f" for {still} generations" if still > 1 else "")
        said.append(same if still else f"the {config.k} best changed")
        over += [same] * (still >= stop.unchanged)
    mean = tops[-1][1]
    if stop.kinship is not None and config.strategy != "grid":
        beyond = "below" if config.metric == "ed" else "above"
        if mean is None:
            said.append("their mean kinship is not known")
        else:
            text = f"their mean kinship is {mean:.3g}"
            if saturated:
                text += f", {beyond} {stop.kinship:g} for {saturated} generation{'s' * (saturated > 1)}"
            said.append(text)
            over += [text] * (done > 0 and saturated >= stop.patience)
    if spent:
        over.append(spent)
    elif stop.generations is not None and done >= stop.generations:
        over.append(f"{done} generations were asked for")
    return bool(over), "; ".join(dict.fromkeys([*said, *over]))


def _unchanged(tops: Sequence[Top]) -> int:
    """How many generations in a row left the k best as they were."""
    count = 0
    for before, after in zip(tops[-2::-1], tops[:0:-1], strict=True):
        if set(before[0]) != set(after[0]):
            break
        count += 1
    return count


def _saturated(config: Config, tops: Sequence[Top]) -> int:
    """For how many generations in a row the mean kinship of the k best was beyond the threshold."""
    threshold, count = config.stop.kinship, 0
    for _, mean in reversed(tops[1:]):
        if threshold is None or mean is None:
            break
        if not (mean < threshold if config.metric == "ed" else mean > threshold):
            break
        count += 1
    return count
