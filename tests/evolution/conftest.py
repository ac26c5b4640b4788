"""Fixtures of the evolution tests: a line of tiny models, and a folder with a database of them and a run file."""

import textwrap

import numpy as np
import pytest
from evolving import EVALUATOR, PLACES, RUN, SHAPES, write_model

import kinbase


@pytest.fixture(scope="session")
def line(tmp_path_factory):
    """Folders of a base and three models on a line, with otherwise unlike deltas; and their deltas, flat."""
    folder = tmp_path_factory.mktemp("line")
    rng = np.random.default_rng(3)
    base = {
        name: np.round(64 * rng.normal(size=shape)).astype(np.float32) / 64 for name, shape in SHAPES.items()
    }
    base["lm_head.weight"][0, 0] = 0
    deltas = {}
    for model, x in PLACES.items():
        delta = {
            name: np.round(16 * rng.normal(size=shape)).astype(np.float32) / 64
            for name, shape in SHAPES.items()
        }
        delta["lm_head.weight"][0, 0] = x
        write_model(folder / model, {name: base[name] + delta[name] for name in SHAPES})
        deltas[model] = np.concatenate([delta[name].ravel() for name in SHAPES]).astype(np.float64)
    write_model(folder / "base", base)
    return folder, deltas


@pytest.fixture(scope="session")
def line_database(line, tmp_path_factory):
    path = tmp_path_factory.mktemp("line") / "kin.duckdb"
    folder, _ = line
    found = kinbase.open(path).import_([folder / m for m in ("base", *PLACES)], base="base")
    assert set(found["status"]) == {"imported"}
    return path


@pytest.fixture
def place(tmp_path, line_database):
    """A folder with a copy of the database, the evaluator and the configuration of a run."""
    (tmp_path / "kin.duckdb").write_bytes(line_database.read_bytes())
    (tmp_path / "evaluator.py").write_text(textwrap.dedent(EVALUATOR))
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path
