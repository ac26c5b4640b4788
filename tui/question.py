"""One question to the database: opened, answered and closed in a thread, and cancelled from the screen.

The file is open only while a question is asked. A writer elsewhere is waited for in short turns, so that
a question nobody waits for any more ends at once.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Generic, TypeVar

from kinbase.errors import DatabaseError, KinbaseError
from kinbase.store import Connection, Store

Answer = TypeVar("Answer")

PATIENCE = 120.0
"""Seconds a writer is waited for before the screen gives up and says so."""
TURN = 0.3
"""Seconds of one turn of waiting: how late a cancelled question notices."""


class Cancelled(KinbaseError):
    """Nobody waits for the answer any more."""


class Question(Generic[Answer]):
    """`work` over one guarded read-only connection to the file at `path`."""

    def __init__(self, path: Path, work: Callable[[Connection], Answer], quiet: bool = False) -> None:
        self.store = Store(path, wait=TURN)
        self.work = work
        self.quiet = quiet
        """Whether nobody waits for the answer, so that its taking long is not told."""
        self.since = time.monotonic()
        self.waiting = False
        """Whether a lock of another process stands in the way."""
        self.done = False
        self._cancelled = False
        self._connection: Connection | None = None

    async def answer(self, threads: Executor) -> Answer:
        """What `work` returns. Cancelling the awaiting task interrupts the query."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[Answer] = loop.create_future()

        def tell(answer: Answer) -> None:
            loop.call_soon_threadsafe(told.set_result, answer)

        asked = loop.run_in_executor(threads, self._run, tell)
        asked.add_done_callback(lambda f: f.cancelled() or f.exception())  # nobody asks for it any more
        try:
            await asyncio.wait((told, asked), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if not told.done():
            await asked
        return await told

    def cancel(self) -> None:
        """Stop it wherever it is. To be repeated until `done`: a query that is about to start misses one."""
        self._cancelled = True
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def seconds(self) -> float:
        """How long ago it was asked."""
        return time.monotonic() - self.since

    def _run(self, tell: Callable[[Answer], None]) -> None:
        try:
            while True:
                try:
                    return self._ask(tell)
                except DatabaseError as error:
                    # The store's word for a lock that others hold.
                    if "is in use" not in str(error) or self._cancelled or self.seconds > PATIENCE:
                        raise
                    self.waiting = True
        finally:
            self.done = True

    def _ask(self, tell: Callable[[Answer], None]) -> None:
        if self._cancelled:
            raise Cancelled("cancelled")
        with self.store.reading() as con:
            self.waiting = False
            self._connection = con
            try:
                if self._cancelled:
                    raise Cancelled("cancelled")
                tell(self.work(con))  # before the file is closed, which takes as long as a small question
            finally:
                self._connection = None
