"""What reads the tensors of a pass: this process, or machines of a cluster, which hand back what they finished as rows."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from kinbase.ingest.finished import Row
from kinbase.kinship.plan import Plan

OnBytes = Callable[[int], None]


class Engine(Protocol):
    """Machines that measure a family together."""

    def run(
        self, plan: Plan, positions: Collection[int], device: str, on_bytes: OnBytes
    ) -> Iterator[Sequence[Row]]:
        """The rows of some tensors at a time (`finished`: the sum of their sketches first), until all `positions` are done.

        `device` is what the person named. Raises KinbaseError, one line, when a machine cannot do its part. Closing
        the generator, or an interrupt, stops the machines.
        """

    def close(self) -> None:
        """Let go of the machines."""
