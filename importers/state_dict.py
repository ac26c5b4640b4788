"""Which of the mappings in a training checkpoint is the model: the one that most weights are in, under any key.

Beside it lie optimiser states, generators' states, counters and copies of the model, such as moving averages. A copy
is chosen by its key: `PATH#KEY`, which is what `kinbase import PATH --key KEY` means.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from kinbase.checkpoint.files import is_file, is_folder, shown
from kinbase.errors import CheckpointError

_DEEPEST = 8
"""Mappings within mappings that are looked into; training scripts nest two or three."""

_MOST_IN_A_LIST = 64
"""Models of a list that are looked at: an ensemble, the stages of a pipeline."""

_SLOTS = frozenset(
    (
        "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "acc_delta", "sum",
        "step", "step_size", "prev", "state1", "state2", "exp_avg_diff", "exp_inf", "eta", "mu", "ax",
        "exp_avg_sq_row", "exp_avg_sq_col", "row_momentum", "col_momentum",
    )
)  # fmt: skip
"""What optimisers call their moments: a mapping of such names is no model, however large."""

_AVERAGED = ("ema", "swa", "average", "averaged", "shadow", "teacher", "polyak")
"""Words in the keys of copies that are kept beside the model which was trained."""

_NOT_MODELS = ("optim", "scheduler", "scaler", "rng", "random")


class NoWeightsError(CheckpointError):
    """A file that torch reads, in which there is no mapping of names to tensors."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mapping of names to tensors: the keys that lead to it, and the elements of what could be weights.

    Integers count only where there is nothing else: a generator's state is larger than a small model.
    """

    path: tuple[str, ...]
    state: Mapping[Any, Any]
    numel: int

    @property
    def key(self) -> str:
        """The keys that lead to it, with dots between."""
        return ".".join(self.path)

    @property
    def is_float(self) -> bool:
        """Whether any of it is floating-point."""
        return any(getattr(value, "is_floating_point", bool)() for value in self.state.values())

    @property
    def is_averaged(self) -> bool:
        """Whether its keys say that it is an average of models, not one that was trained."""
        words = {word for part in self.path for word in part.lower().replace("-", "_").split("_")}
        return not words.isdisjoint(_AVERAGED)


def split(source: str) -> tuple[str, str | None]:
    """(path, key) of `PATH#KEY`; a path that exists as it is has no key."""
    path, mark, key = source.rpartition("#")
    if not mark or is_file(source) or is_folder(source) or not (is_file(path) or is_folder(path)):
        return source, None
    return path, key


def chosen(loaded: object, key: str | None, what: str) -> tuple[Candidate, list[Candidate]]:
    """The state dict in what was unpickled, and the others that could be meant.

    The largest counts, of those that were trained before averages that are not over twice as large. Raises
    NoWeightsError when there is none, CheckpointError when there is none of that key.
    """
    found = list(_candidates(loaded, (), _DEEPEST))
    if not found:
        raise NoWeightsError(f"{what} holds no state dict (a mapping of names to tensors); nothing to import")
    order = {id(c): at for at, c in enumerate(found)}
    trained = max((c.numel for c in found if c.is_float and not c.is_averaged), default=0)

    def rank(c: Candidate) -> tuple[bool, bool, int, bool, int]:
        # An average may have a tied head once more that the model itself has not.
        return not c.is_float, c.is_averaged and 2 * trained > c.numel, -c.numel, c.is_averaged, order[id(c)]

    ranked = sorted(found, key=rank)
    if key is not None:
        named = [c for c in ranked if c.key == key] or [c for c in ranked if c.path[-1:] == (key,)]
        named = named or [c for c in (_within(c, key) for c in ranked[:1]) if c.numel]
        if len(named) != 1:
            said = "several state dicts" if named else "no state dict"
            keys = ", ".join(shown(c.key) for c in ranked if c.key) or "none with a key"
            raise CheckpointError(f"{what} holds {said} called {shown(key)}: it has {keys}")
        return named[0], []
    best = ranked[0]
    # What is far smaller is a buffer, a head or a part of training, not another model.
    return best, [c for c in [*ranked[1:], *_copies(best)] if 10 * c.numel >= best.numel]


def nameless(loaded: object, numel: int) -> list[tuple[str, int]]:
    """(keys, tensors) of lists of tensors with a tenth of `numel` elements and more, which no names tell what they are.

    So torch_ema keeps its averages.
    """
    return [
        (".".join(path), count) for path, count, size in _lists(loaded, (), _DEEPEST) if 10 * size >= numel
    ]


def _lists(value: object, path: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """(keys, tensors, their elements) of every list of tensors below `value`."""
    import torch

    if isinstance(value, Mapping) and depth and not _is_left_out(path):
        for name, item in value.items():
            if isinstance(name, str):
                yield from _lists(item, (*path, name), depth - 1)
    elif isinstance(value, list | tuple):
        tensors = [item for item in value if isinstance(item, torch.Tensor)]
        if tensors:
            yield path, len(tensors), sum(int(prod(t.shape)) for t in tensors)


def _is_left_out(path: tuple[str, ...]) -> bool:
    return bool(path) and any(word in path[-1].lower() for word in _NOT_MODELS)


def averages(names: Iterable[str]) -> list[str]:
    """First parts of names that say that what follows is an average of the model."""
    prefixes = {name.partition(".")[0] for name in names if "." in name}
    return sorted(p for p in prefixes if Candidate((p,), {}, 0).is_averaged)


def _within(whole: Candidate, prefix: str) -> Candidate:
    """The tensors of a flat state dict whose names begin with `prefix` and a dot, without it."""
    state = {
        name[len(prefix) + 1 :]: value
        for name, value in whole.state.items()
        if isinstance(name, str) and name.startswith(prefix + ".")
    }
    return Candidate((prefix,), state, _numel(state))


def _copies(whole: Candidate) -> list[Candidate]:
    """Averages of the model that lie in the same mapping, under a first part of the names that says so."""
    return [_within(whole, prefix) for prefix in averages(n for n in whole.state if isinstance(n, str))]


def _numel(state: Mapping[Any, Any]) -> int:
    import torch

    tensors = [t for name, t in state.items() if isinstance(name, str) and isinstance(t, torch.Tensor)]
    floats = [t for t in tensors if t.is_floating_point() or t.is_complex()]
    return sum(int(prod(t.shape)) for t in floats or tensors)


def _candidates(value: object, path: tuple[str, ...], depth: int) -> Iterator[Candidate]:
    """Every mapping below `value` that holds tensors, outer ones first."""
    import torch

    if isinstance(value, list | tuple) and path and len(value) <= _MOST_IN_A_LIST:
        value = {str(at): item for at, item in enumerate(value) if isinstance(item, Mapping)}
    if not isinstance(value, Mapping) or depth == 0:
        return
    if _is_left_out(path):
        return
    named = [name for name, item in value.items() if isinstance(name, str) and isinstance(item, torch.Tensor)]
    if named and not _SLOTS.issuperset(named):
        yield Candidate(path, value, _numel(value))
    for name, item in value.items():
        if isinstance(name, str) and isinstance(item, Mapping | list | tuple):
            yield from _candidates(item, (*path, name), depth - 1)
