"""Files stay open between reads, but never more than the process may hold."""

import os
import random
import threading
from pathlib import Path

import pytest

from kinbase.checkpoint import descriptors
from kinbase.checkpoint.files import WeightsFile

SIZE = 4096
READERS = 4


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{i}.bin" for i in range(12)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * SIZE)
    files = [WeightsFile(path) for path in paths]
    yield files
    for file in files:
        file.close()


def held(files):
    """The descriptors of this process that lead to these files."""
    ours = {os.path.realpath(file.path) for file in files}
    links = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(link))  # noqa: PTH115
        except FileNotFoundError:  # closed since it was listed
            continue
    return sum(link in ours for link in links)


def test_the_least_lately_read_are_closed_and_read_again(files, monkeypatch):
    monkeypatch.setattr(descriptors, "most", lambda: 3)
    wrong, counts = [], []

    def read(seed):
        order = random.Random(seed)
        for _ in range(200):
            i = order.randrange(len(files))
            out = bytearray(64)
            files[i].read(order.randrange(SIZE - 64), memoryview(out))
            if out != bytes([i]) * 64:
                wrong.append(i)
            if order.random() < 0.05:
                files[i].close()
                counts.append(held(files))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    # Each reader may hold one in use, and one that it has just opened, beyond the three.
    assert counts and max(counts) <= 3 + 2 * READERS
    for file in files:
        file.close()
    assert held(files) == 0


def test_one_in_use_is_closed_when_its_reader_is_done(files):
    with files[0].borrow() as fd:
        files[0].close()
        assert os.pread(fd, 4, 0) == bytes(4)
        assert held(files) == 1
    assert held(files) == 0


def test_the_limit_is_the_process_s(monkeypatch):
    import resource

    for soft, kept in {1024: 512, 8: descriptors.LEAST, resource.RLIM_INFINITY: 1 << 16}.items():
        monkeypatch.setattr(resource, "getrlimit", lambda kind, soft=soft: (soft, soft))
        assert descriptors.most() == kept
