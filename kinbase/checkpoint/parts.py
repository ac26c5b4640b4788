"""Which part of one model another one is: the vision tower of a multimodal model, an encoder, a model inside a wrapper.

Where names meet hardly at all as they are, they may once what stands before them is taken off: `vision_tower.` of
`vision_tower.encoder.layers.0.mlp.fc1.weight`. What stands there is told by the whole model, not tensor by tensor: a
picture tower and a language model have layers of the same names, and only one of them has all that the other model has.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kinbase.checkpoint import FLOAT_DTYPES, Tensor
from kinbase.checkpoint.names import bare, is_other_tower

Fits = Callable[[Tensor, Tensor], bool]

_NUMBER = re.compile(r"(^|\.)\d+\.")
_EXPERT = re.compile(r"(^|\.)experts?(\.|_)")
_PATCHES = re.compile(r"patch|pixel|\bmel")

MUCH = 2.0
"""How many times as many elements must meet below a prefix as without one, for the one model to be a part of the other."""

WHOLLY = 0.999
"""Share of the elements below a prefix that must meet for nothing to be there beside the part."""


@dataclass(frozen=True, slots=True)
class Part:
    """The smaller model lies below `prefix` in the larger: in the base, or else in the member.

    `names` gives each tensor of the larger model that can meet, by its own name, the name that it goes by in the smaller.
    """

    in_base: bool
    prefix: str
    names: Mapping[str, str]


def is_numbered(prefix: str) -> bool:
    """Whether what stands before a name leads into a layer: `stages.1.layers.0.`."""
    return _NUMBER.search(prefix) is not None


def part_of(
    base: Sequence[Tensor], member: Sequence[Tensor], fits: Fits
) -> tuple[Part | None, frozenset[str]]:
    """Where one of two models lies in the other, None where their names meet as they are; and what could be several.

    The second are names of tensors of the base, where two places are as good. `fits(base's, member's)` is whether two tensors
    of one name can be compared. Nothing is read.
    """
    ours, theirs = _floats(base), _floats(member)
    whole = min(sum(t.numel for t in ours.values()), sum(t.numel for t in theirs.values()))
    exact = sum(t.numel for name, t in ours.items() if name in theirs and fits(t, theirs[name]))
    if 2 * exact >= whole:
        return None, frozenset()
    ours, theirs = _by_bare_name(ours), _by_bare_name(theirs)
    plain = sum(t.numel for name, t in ours.items() if name in theirs and fits(t, theirs[name]))
    if 2 * plain >= whole:
        return None, frozenset()
    ranked = sorted(
        (_Place(in_base, prefix, found, *((theirs, ours) if in_base else (ours, theirs)))
         for in_base in (True, False)
         for prefix, found in _places(ours, theirs, fits, in_base=in_base).items()),
        key=lambda place: (-place.numel, place.share < WHOLLY, place.prefix),
    )  # fmt: skip
    if not ranked or ranked[0].numel <= MUCH * plain:
        return None, frozenset()
    best = ranked[0]
    rivals = [place for place in ranked[1:] if place.is_rival_of(best)]
    if rivals:
        several = [best, *rivals]
        doubtful = {place.larger[n].name for place in several for n in place.found.values() if place.in_base}
        doubtful |= {place.smaller[n].name for place in several for n in place.found if not place.in_base}
        return None, frozenset(doubtful)
    return Part(best.in_base, best.prefix, dict(best.renamed())), frozenset()


@dataclass(frozen=True, slots=True)
class _Place:
    """A prefix below which tensors of the `larger` model meet the `smaller`: `found` is {smaller's bare name: larger's}."""

    in_base: bool
    prefix: str
    found: Mapping[str, str]
    smaller: Mapping[str, Tensor]
    larger: Mapping[str, Tensor]

    @property
    def numel(self) -> int:
        """Elements that meet."""
        return sum(self.smaller[name].numel for name in self.found)

    @property
    def share(self) -> float:
        """Of the elements below the prefix, those that meet."""
        below = sum(t.numel for name, t in self.larger.items() if name.startswith(self.prefix))
        return self.numel / max(below, 1)

    def is_rival_of(self, best: "_Place") -> bool:
        """Whether nothing says that the smaller model is the best place's, and not this one's.

        A place inside the other is the same wrapper's. One at which less of the smaller model is than at the best is none; nor,
        for a part of the base, is one at which there is more than the part.
        """
        if self.in_base != best.in_base or 2 * self.numel <= best.numel:
            return False
        if self.prefix.startswith(best.prefix) or best.prefix.startswith(self.prefix):
            return False
        if self.found.keys() < best.found.keys():
            return False
        is_more = best.in_base and best.share >= WHOLLY > self.share
        return not (self.found.keys() == best.found.keys() and is_more)

    def renamed(self) -> Iterator[tuple[str, str]]:
        """(a tensor's name in the larger model, what it goes by in the smaller).

        Wrappers are nested: `m.lm_head` beside `m.llm.layers`. What stands outside keeps its name where nothing below the
        prefix has it.
        """
        parts = self.prefix.split(".")[:-1]
        around = [".".join(parts[:count]) + "." for count in range(len(parts), 0, -1)]
        taken: set[str] = set(self.found)
        for name, tensor in self.larger.items():
            inside = next((prefix for prefix in around if name.startswith(prefix)), "")
            short = name[len(inside) :]
            if inside == self.prefix:
                yield tensor.name, short
            elif short not in taken and (inside or short in self.smaller):
                taken.add(short)
                yield tensor.name, short


def _floats(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {t.name: t for t in tensors if t.dtype in FLOAT_DTYPES}


def _by_bare_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose bare names are theirs alone."""
    groups: defaultdict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in tensors.items():
        groups[bare(name)].append(tensor)
    return {name: group[0] for name, group in groups.items() if len(group) == 1}


def _places(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], fits: Fits, *, in_base: bool
) -> dict[str, dict[str, str]]:
    """{prefix in the larger model: {the smaller's name: the larger's}} of what meets and fits."""
    smaller, larger = (theirs, ours) if in_base else (ours, theirs)
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name, tensor in larger.items():
        at = name.find(".")
        while 0 <= at < len(name) - 1:
            other = smaller.get(name[at + 1 :])
            if other is not None and (fits(tensor, other) if in_base else fits(other, tensor)):
                found[name[: at + 1]][name[at + 1 :]] = name
            at = name.find(".", at + 1)
    return {
        prefix: names
        for prefix, names in found.items()
        if not is_other_tower(prefix) or any(_is_of_signals(smaller[name]) for name in names)
    }


def _is_of_signals(tensor: Tensor) -> bool:
    """Whether a tensor reads pictures or sound, as a kernel or by patches: language models have none such."""
    is_kernel = len(tensor.shape) > 2 and _EXPERT.search(tensor.name) is None
    return is_kernel or _PATCHES.search(tensor.name) is not None
