"""An import goes on after anything that one of its sources holds, and says what that was."""

import errno
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

import kinbase
from kinbase.checkpoint import Facts, Score, Tensor
from kinbase.errors import DatabaseError
from kinbase.importers import folder
from kinbase.store import Store, connection


class Panic(BaseException):
    """As libraries written in Rust raise it: no Exception."""


@pytest.fixture
def sources(family, tmp_path):
    bad = shutil.copytree(family["ft_b"], tmp_path / "bad")
    return [family["base"], family["ft_a"], bad, family["ft_c"]]


@pytest.fixture
def hostile(monkeypatch):
    """Has the importer of folders yield, for the folder `bad`, what a function makes of each record."""
    opened = folder.open

    def set_to(change):
        def changed(source):
            for record in opened(source):
                yield from change(record) if str(source).endswith("bad") else [record]

        monkeypatch.setattr(folder, "open", changed)

    return set_to


def imported(tmp_path, sources):
    db = kinbase.open(tmp_path / "kin.duckdb")
    report = db.import_(sources, base="base")
    assert report["status"].to_list() == ["imported", "imported", "failed", "imported"]
    assert db.sql("select name from models where has_weights order by name")["name"].to_list() == [
        "base",
        "ft_a",
        "ft_c",
    ]
    assert db.sql("from kinship where model_a = 'ft_a' and model_b = 'ft_c' and method = 'exact'").height == 1
    (said,) = report["notes"].to_list()[2][-1:]
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("a\nb"), r"importers\.folder failed \(ValueError: a b\); .* please report it"),
        (RecursionError("deep"), r"failed \(RecursionError: deep\)"),
        (Panic("range end index 7 out of range"), r"failed \(Panic: range end index 7 out of range\)"),
        (MemoryError(), "more memory than there is"),
        (OSError(errno.EIO, "Input/output error", "/mnt/x"), r"Input/output error \(/mnt/x\)"),
    ],
)
def test_an_importer_that_fails_fails_its_source(tmp_path, sources, hostile, error, told):
    def fail(record):
        raise error

    hostile(fail)
    said = imported(tmp_path, sources)
    assert re.search(told, said), said


def test_a_disk_that_fails_under_the_pass_fails_the_sources_on_it(tmp_path, sources, hostile):
    def unreadable(record):
        if not hasattr(record, "tensors"):
            return [record]

        def read(start, out):
            sources[2].joinpath("model.safetensors").touch()  # and so it is no longer as it was
            raise OSError(errno.EIO, "Input/output error")

        tensors = [Tensor(t.name, t.dtype, t.shape, read) for t in record.tensors]
        return [replace(record, tensors=tensors)]

    hostile(unreadable)
    assert "Input/output error" in imported(tmp_path, sources)


@pytest.mark.parametrize(
    "record",
    [
        Score("mmlu", "acc", 0.5, n_shot=2**70),
        Facts(license="\ud800"),
    ],
)
def test_what_cannot_be_stored_fails_its_source(tmp_path, sources, hostile, record):
    hostile(lambda yielded: [yielded, record] if hasattr(yielded, "tensors") else [yielded])
    assert "what it says cannot be stored" in imported(tmp_path, sources)


def test_a_wait_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "MOMENT", 0.1)
    store = Store(tmp_path / "kin.duckdb")
    with store.writing():
        pass
    code = (
        f"import duckdb, time; c = duckdb.connect({str(store.path)!r}); print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    told = []
    try:
        holder.stdout.readline()
        waiting = Store(store.path, wait=0.6, log=told.append)
        with pytest.raises(DatabaseError, match="longer with --wait"), waiting.reading():
            pass
    finally:
        holder.kill()
        holder.wait()
    assert told == [f"waiting for {store.path}, in use by process PID {holder.pid} (at most 0.6 s)"]
