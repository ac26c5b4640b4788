"""A pass on a Ray cluster (the extra kinbase[ray]): each task measures some tensors, as a part does.

A task opens the family on its node, by the paths or addresses that the driver has, and hands back the rows of its
tensors; no weights travel. Ray runs a task again whose worker or node was lost; what came back is kept by the driver
as in any pass, so that one that was interrupted goes on.
"""

import os
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from kinbase.checkpoint import Checkpoint
from kinbase.checkpoint.open import read as open_source
from kinbase.errors import KinbaseError, UsageError
from kinbase.ingest.engine import OnBytes
from kinbase.ingest.finished import ALGORITHM, Finished, Row
from kinbase.ingest.part_files import Model, split
from kinbase.ingest.stored import whole
from kinbase.kinship.layout import BUCKETS
from kinbase.kinship.plan import Plan

CORES = 4
"""Cores of a task, or all of the smallest node: fewer tasks than cores, for each holds tiles and sketches of all members."""

PER_WORKER = 4
"""Parts for each task that can run at a time: so that what is lost with a node, and waited for at the end, is small."""

SKETCHES = 4 << 30
"""Bytes of the sketches of all parts together, which every part hands back whole: more members, fewer parts."""

RETRIES = 5
"""Times that a part is begun again whose worker or node was lost."""

ANSWER = 10.0
"""Seconds in which a cluster has to answer."""

VERSION = f"{ALGORITHM} {BUCKETS}"


@dataclass(frozen=True, slots=True)
class Task:
    """A family as its nodes open it: the base and the members, the first `new` of them new, and what they have to be."""

    models: tuple[Model, ...]
    new: int
    hash_base: bool
    is_streamed: bool
    device: str
    cores: int
    version: str = VERSION


@dataclass(frozen=True, slots=True)
class Answer:
    """What a task did: the rows of its tensors, or why there are none, and the node it ran on."""

    node: str
    rows: tuple[Row, ...] = ()
    problem: str | None = None


class RayEngine:
    """The cluster at `address`, else the one of $RAY_ADDRESS or of this machine, else one that is started on it."""

    def __init__(self, address: str | None = None) -> None:
        self._ray = _ray()
        self._address = address
        self._is_ours = False

    def run(
        self, plan: Plan, positions: Collection[int], device: str, on_bytes: OnBytes
    ) -> Iterator[Sequence[Row]]:
        """See `kinbase.ingest.engine.Engine`."""
        ray = self._ray
        self._connect()
        wants_gpu = device.startswith("cuda")
        cores, slots = self._room(wants_gpu)
        task = Task(
            tuple(map(Model.of, (plan.base, *plan.members))), plan.new, plan.hashed[:1] == [plan.base],
            any(f.elsewhere for c in (plan.base, *plan.members) for f in c.files),
            device if wants_gpu else "cpu", cores,
        )  # fmt: skip
        most = max(slots, SKETCHES // max(1, 8 * BUCKETS * len(plan.hashed)))
        parts = iter([part for part in split(plan, min(PER_WORKER * slots, most), positions) if part])
        remote = ray.remote(num_cpus=cores, num_gpus=float(wants_gpu), max_retries=RETRIES)(measure)
        family = ray.put(task)
        running: dict[Any, list[int]] = {}
        try:
            while True:
                # No more than what is about to run: answers wait in memory.
                for part in islice(parts, max(0, 2 * slots - len(running))):
                    running[remote.remote(family, part)] = part
                if not running:
                    return
                done, _ = ray.wait(list(running), timeout=0.5)
                for reference in done:
                    part = running.pop(reference)
                    yield self._answer(reference).rows
                    on_bytes(sum(plan.jobs[position].nbytes for position in part))
        finally:
            for reference in running:
                with suppress(Exception):
                    ray.cancel(reference, force=True)

    def _answer(self, reference: Any) -> Answer:
        try:
            answer: Answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, ModuleNotFoundError):
                raise KinbaseError(
                    f"a node of the cluster lacks {cause.name}: install the same Kinbase on all of them"
                ) from None
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise KinbaseError(
                f"the cluster gave up a part ({type(error).__name__}: {first[:200]}): what is finished is kept, "
                "run it again"
            ) from None
        if answer.problem:
            raise KinbaseError(f"on the node {answer.node}: {answer.problem}")
        return answer

    def _connect(self) -> None:
        ray = self._ray
        if ray.is_initialized():
            return
        address = self._address or os.environ.get("RAY_ADDRESS")
        where = address or "this machine"
        try:
            _answers(address)
            ray.init(
                address=self._address, log_to_driver=False, logging_level="ERROR", configure_logging=False,
                **({} if self._address else {"include_dashboard": False}),
            )  # fmt: skip
        except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise KinbaseError(f"no Ray cluster can be had at {where}: {first[:300]}") from None
        self._is_ours = True

    def _room(self, wants_gpu: bool) -> tuple[int, int]:
        """Cores of a task, and how many tasks can run at a time."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        nodes = [node for node in nodes if node.get("CPU", 0) >= 1 and (node.get("GPU", 0) or not wants_gpu)]
        if not nodes:
            what = "a GPU" if wants_gpu else "a core to give"
            raise KinbaseError(f"no node of the Ray cluster has {what}")
        cores = min(CORES, *(int(node["CPU"]) for node in nodes))
        per_node = [
            min(int(node["CPU"]) // cores, int(node["GPU"]) if wants_gpu else 1 << 20) for node in nodes
        ]
        return cores, max(1, sum(per_node))

    def close(self) -> None:
        """Leave the cluster, and end one that was started here."""
        if self._is_ours:
            self._ray.shutdown()
            self._is_ours = False


def _answers(address: str | None) -> None:
    """Raise OSError where nothing answers at HOST:PORT, which Ray itself would try for minutes."""
    host, mark, port = (address or "").removeprefix("ray://").rpartition(":")
    if mark and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"the engine ray needs Ray ({error}): pip install 'kinbase[ray]'") from None
    return ray


# On the nodes.

_opened: dict[int, tuple[Task, Plan]] = {}
"""The family that this worker has open: opening thousands of files takes longer than many a part."""


def measure(task: Task, positions: Sequence[int]) -> Answer:
    """Measure the tensors at `positions` of a family, on the node where this runs."""
    from kinbase.ingest.family_pass import read, refuse_changed

    node = socket.gethostname()
    try:
        import ray

        node = f"{node} ({ray.util.get_node_ip_address()})"
        plan = _plan(task)
        finished = Finished(plan, _Nowhere())
        try:
            read(plan, finished, positions, device=task.device, threads=task.cores)
            for checkpoint in (plan.base, *plan.members):
                refuse_changed(checkpoint)
            return Answer(node, tuple(finished.all_rows()))
        finally:
            finished.close()
    except (KinbaseError, OSError) as error:
        _close()
        return Answer(node, problem=" ".join(str(error).split()))


class _Nowhere:
    """A task keeps nothing: its rows go back."""

    folder = Path()
    where = ""

    def rows(self) -> Iterator[Row]:
        return iter(())

    def save(self, finished: Finished) -> None:
        pass


def _plan(task: Task) -> Plan:
    """The family's plan, opened once a worker."""
    if _opened and _opened[0][0] == task:
        return _opened[0][1]
    _close()
    if getattr(task, "version", "") != VERSION:
        raise KinbaseError("another version of Kinbase is installed than where the import was begun")
    from kinbase.ingest.family_pass import planned
    from kinbase.kinship.gpu import resolve_device

    resolve_device(task.device)
    opened: list[Checkpoint] = []
    try:
        for model in task.models:
            source = open_source(model.source, model.name, depth="stream" if task.is_streamed else "kept")
            if source.checkpoint is None:
                raise KinbaseError(source.last_word or f"{model.source} holds no weights")
            opened.append(source.checkpoint)
        base, *members = opened
        members = whole(None, members, base.name)
        for expected, checkpoint in zip(task.models, (base, *members), strict=True):
            if told := expected.difference(Model.of(checkpoint)):
                raise KinbaseError(told)
        plan, _ = planned(base, members, new=task.new, hash_base=task.hash_base)
    except BaseException:
        for checkpoint in opened:
            checkpoint.close()
        raise
    _opened[0] = (task, plan)
    return plan


def _close() -> None:
    for _, plan in _opened.values():
        for checkpoint in (plan.base, *plan.members):
            checkpoint.close()
    _opened.clear()
