"""A reader that is watched ends within its bounds, and nothing of the watch is left behind."""

import cProfile
import re
import signal
import threading
import time
from dataclasses import replace

import pytest

from kinbase.checkpoint.guard import watched
from kinbase.checkpoint.limits import LIMITS
from kinbase.errors import CheckpointError


def endless():
    while True:
        pass


def swallowing():
    for _ in range(2):
        try:
            endless()
        except BaseException:  # as a library might
            continue


def test_what_never_ends_is_refused_and_the_next_reader_is_not():
    short = replace(LIMITS, seconds=0.1)
    for read in (endless, swallowing):
        with pytest.raises(CheckpointError, match=r"takes more time than a file of its size is worth"):
            watched(read, "/nowhere", short)
            raise AssertionError(read.__name__)
    assert [watched(lambda i=i: sum(range(1000)) + i, "/nowhere") for i in range(3)] == [
        499500 + i for i in range(3)
    ]


def test_what_grows_is_refused():
    def growing():
        held = []
        while True:
            held.append(bytearray(1 << 20))

    with pytest.raises(CheckpointError, match=r"takes more memory than a file of its size is worth"):
        watched(growing, "/nowhere", replace(LIMITS, memory=32 << 20))


def test_what_the_process_once_had_is_no_room_for_a_reader():
    once = [bytearray(1 << 20) for _ in range(1024)]
    del once
    held = []

    def growing():
        while True:
            held.append(bytearray(1 << 20))
            time.sleep(0.001)  # the watch has its turn on a busy machine too

    with pytest.raises(CheckpointError, match=r"takes more memory than a file of its size is worth"):
        watched(growing, "/nowhere", replace(LIMITS, memory=32 << 20))
    assert len(held) < 512  # 32 and what comes in between two looks; without the bound 1,024


def test_a_reader_under_a_profiler_is_left_as_it_was():
    """An asynchronous exception that is taken back makes CPython 3.11 turn for ever under a tracer."""
    with cProfile.Profile():
        assert [watched(lambda: len("four"), "/nowhere") for _ in range(200)] == [4] * 200


@pytest.mark.parametrize("in_main", [True, False])
def test_a_reader_in_any_thread_is_stopped(in_main):
    said = []

    def ask():
        with pytest.raises(CheckpointError) as error:
            watched(endless, "/nowhere", replace(LIMITS, seconds=0.1))
        said.append(str(error.value))

    if in_main:
        ask()
    else:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert "takes more time" in said[0]


def test_an_expression_that_tries_for_ever_is_stopped():
    """Two to the power of sixty ways to try, in one call into C."""
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(CheckpointError, match="takes more time"):
        watched(lambda: re.match("(a|a)*b", "a" * 60), "/nowhere", replace(LIMITS, seconds=0.1))
    assert signal.getsignal(signal.SIGVTALRM) is before
