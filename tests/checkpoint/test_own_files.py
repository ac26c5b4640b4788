"""Files of Kinbase's own: whole or not there, and read with what strangers may have put in their place in mind."""

import os

import numpy as np
import pytest

from kinbase.checkpoint import own_files
from kinbase.errors import KinbaseError, UsageError

VALUES = {"sums": np.arange(6, dtype=np.float32).reshape(2, 3)}


def read(path):
    return own_files.read(path, "form-1", 1 << 16, "no file of sums")


def test_what_was_saved_is_read(tmp_path):
    own_files.save(tmp_path / "a", "form-1", VALUES, {"of": "two models"})
    told, arrays = read(tmp_path / "a")
    assert told == {"format": "form-1", "of": "two models"} and np.array_equal(arrays["sums"], VALUES["sums"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    own_files.save(tmp_path / "a", "form-1", VALUES, {})
    before = (tmp_path / "a").read_bytes()

    def full(arrays, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(KinbaseError, match=r"cannot write .*/a': No space left on device"):
        own_files.save(tmp_path / "a", "form-1", VALUES, {})
    assert (tmp_path / "a").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_not_written_over(tmp_path):
    with pytest.raises(KinbaseError, match="it is no regular file"):
        own_files.save(tmp_path, "form-1", VALUES, {})


def test_another_format_a_large_file_and_garbage_are_refused(tmp_path):
    own_files.save(tmp_path / "a", "form-2", VALUES, {})
    (tmp_path / "b").write_bytes(bytes(1 << 17))
    (tmp_path / "c").write_bytes(b"\xff" * 100)
    for name in "abc":
        with pytest.raises(UsageError, match="is no file of sums"):
            read(tmp_path / name)


def test_a_pipe_and_a_missing_file_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is not a regular file"):
        read(tmp_path / "pipe")
    with pytest.raises(UsageError, match="cannot read"):
        read(tmp_path / "none")
