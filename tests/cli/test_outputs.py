"""What a command writes lies where it was told to lie, and nowhere else: links and devices in its way."""

import os
import subprocess
import sys

import pytest

COMMANDS = [
    ["sql", "-o", "OUT.csv", "from models"],
    ["sql", "-o", "OUT.parquet", "from models"],
    ["ls", "-o", "OUT.parquet"],
    ["ls", "-o", "OUT.json"],
    ["export", "-o", "OUT.json"],
    ["plot", "tree", "b", "-o", "OUT.svg"],
    ["plot", "tree", "b", "-o", "OUT.png"],
]


def kinbase(folder, *words):
    command = [sys.executable, "-m", "kinbase", "--db", "kin.duckdb", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    (folder / "lineage.csv").write_text("parent,child,relation\na,b,finetune\n")
    assert kinbase(folder, "import", "lineage.csv").returncode == 0
    return folder


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_a_link_beside_the_output_is_not_followed(folder, words):
    """A folder that somebody else made may hold a link under the name of the half-written file."""
    name = next(word for word in words if word.startswith("OUT"))
    precious = folder / "precious"
    precious.write_text("precious")
    for link in (folder / f"{name}.part", folder / name):
        link.symlink_to(precious)
    done = kinbase(folder, *words)
    assert done.returncode == 0, done.stderr
    assert precious.read_text() == "precious"
    assert (folder / name).stat().st_size > 0 and not (folder / name).is_symlink()
    assert not os.path.lexists(folder / f"{name}.part")
    (folder / name).unlink()


def test_a_device_is_not_replaced_by_a_file(folder):
    os.mkfifo(folder / "pipe.parquet")
    done = kinbase(folder, "ls", "-o", "pipe.parquet")
    assert done.returncode == 1 and "no regular file" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (folder / "pipe.parquet").is_fifo()


def test_a_pipe_as_a_source_is_refused(folder):
    """Opening one waits for a writer, who may never come."""
    os.mkfifo(folder / "pipe")
    done = kinbase(folder, "import", "pipe")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
