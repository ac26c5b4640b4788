"""A run by hand: real merges of tiny models, scored by a function of their weights that can be worked out on paper."""

import contextlib
import json
import os
import textwrap
from pathlib import Path

import duckdb
import numpy as np
import pytest
from evolving import EVALUATOR, PLACES, RUN, SHAPES, evolved, story

import kinbase
from kinbase.evolution import beginning, config
from kinbase.evolution.generation import import_sources
from kinbase.evolution.run import evolve
from kinbase.kinship.spans import Spans

TARGET = 6.3


def test_a_run_by_hand(place, line):
    """b 4, c 10, a 0 around 6.3: halves 7, 2, 5; then 6, 5.5, 4.5; and the partner explored is numpy's least akin."""
    db, generations = evolved(place)
    rows = db.sql(
        "select child, parents, role, score, kinship, generation from offspring order by generation, position"
    ).rows()
    _, deltas = line
    x, flat = dict(PLACES), dict(deltas)
    for child, (first, second), _, score, kinship, _ in rows:
        x[child] = (x[first] + x[second]) / 2
        flat[child] = (flat[first] + flat[second]) / 2
        assert score == -abs(x[child] - TARGET), child
        # both from exact weights, summed in float64
        assert kinship == pytest.approx(np.corrcoef(flat[first], flat[second])[0, 1], abs=1e-12), child
    assert [x[c] for c, _, role, *_ in rows if role == "pair"][:6] == [7, 2, 5, 6, 5.5, 4.5]
    born = {c: g for c, *_, g in rows} | dict.fromkeys(PLACES, 0)
    merged = set()
    for child, parents, role, *_, generation in rows:
        if role == "explore":
            best = max((m for m in born if born[m] < generation), key=lambda m: -abs(x[m] - TARGET))
            free = [
                m for m in born if born[m] < generation and m != best and frozenset((best, m)) not in merged
            ]
            assert parents == [best, min(free, key=lambda m: np.corrcoef(flat[best], flat[m])[0, 1])], child
        merged.add(frozenset(parents))
    assert generations["best_so_far"].to_list() == sorted(generations["best_so_far"].to_list())


def test_children_are_models_like_any_other(place):
    db, _ = evolved(place)
    child = db.show("run-1-1").row(0, named=True)
    assert (child["base"], child["relation"], child["has_weights"]) == ("base", "merge", True)
    evidence = {(p["parent"], p["evidence"], p["method"]) for p in child["parents"]}
    assert {
        ("b", "config", "linear"),
        ("c", "config", "linear"),
        ("b", "run", "linear"),
        ("c", "run", "linear"),
    } <= evidence
    gains = db.sql("select gain from merge_gains where child = 'run-1-1' and benchmark = 'average'").item()
    assert gains == pytest.approx(-0.7 - (-2.3 - 3.7) / 2)  # x 7 of 4 and 10 around 6.3
    assert db.tree("run-1-1").has_edge("b", "run-1-1")


def test_same_configuration_and_seed_same_run(place, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for name in ("kin.duckdb", "evaluator.py"):
        (other / name).write_bytes((place / name).read_bytes())
    text = RUN.replace("{method: linear}", "{method: dare_linear, parameters: {density: 0.5, weight: 0.5}}")
    stories = []
    for folder in (place, other):
        db, _ = evolved(folder, text)
        stories.append(story(db))
    digests = [{name: digest for name, digest, *_ in told["models"]} for told in stories]
    assert digests[0] == digests[1]  # the random masks too
    plan = [[row[1:13] for row in told["offspring"]] for told in stories]
    assert plan[0] == plan[1]


def test_each_checkpoint_is_read_at_most_once_a_generation(place, monkeypatch):
    """Bytes asked of each weights file while a generation's children are imported, headers aside."""
    counts, importing = {}, []
    preadv, span = os.preadv, Spans.read

    def counting(fd, buffers, offset, *flags):
        got = preadv(fd, buffers, offset, *flags)
        if importing and offset >= 8 and got >= 128:
            path = str(Path(f"/proc/self/fd/{fd}").readlink())
            counts.setdefault(path, []).append((offset, got))
        return got

    def counting_spans(self, plan, part, start, stop, *rest):
        """The kernel reads by position itself: elements start..stop of each lane, or as many as there are."""
        for lane in part.piece.job.lanes:
            extent, end = lane.tensor.extent, min(stop, lane.numel)
            if importing and extent and end > start:
                with extent.borrow() as fd:
                    path = str(Path(f"/proc/self/fd/{fd}").readlink())
                reads = counts.setdefault(path, [])
                reads.append((extent.offset + start * lane.width, (end - start) * lane.width))
        return span(self, plan, part, start, stop, *rest)

    db = kinbase.open(place / "kin.duckdb")

    def watched(*arguments, **options):
        importing.append(True)
        counts.clear()
        try:
            return import_sources(*arguments, **options)
        finally:
            importing.pop()
            families_read.append({path: list(reads) for path, reads in counts.items()})

    families_read = []
    monkeypatch.setattr(os, "preadv", counting)
    monkeypatch.setattr(Spans, "read", counting_spans)
    monkeypatch.setattr("kinbase.evolution.generation.import_sources", watched)
    db.evolve(place / "run.yaml")
    assert len(families_read) == 3  # one import a generation
    for number, reads in enumerate(families_read, 1):
        rows = db.sql("select child, generation from offspring where generation <= ?", [number])
        assert len(reads) == 4 + rows.height  # the base, three models, all children so far
        for path, spans in reads.items():
            weights = sum(4 * int(np.prod(shape)) for shape in SHAPES.values())
            start = os.path.getsize(path) - weights  # noqa: PTH202
            inside = [(offset, got) for offset, got in spans if offset >= start]
            assert sum(got for _, got in inside) == weights, (path, start, spans)


def test_a_generation_opens_the_database_once_a_child_and_twice(place, monkeypatch):
    """To place the children among what is stored, to store them, and for each score, the last with close and next plan."""
    opened, connect = [], duckdb.connect

    def counting(*arguments, **options):
        opened.append(arguments)
        return connect(*arguments, **options)

    db = kinbase.open(place / "kin.duckdb")
    beginning.begin(db.store, config.read(place / "run.yaml"))
    counts = []
    monkeypatch.setattr(duckdb, "connect", counting)
    monkeypatch.setattr("kinbase.evolution.generation.SAVE_EVERY", float("inf"))  # however slow the machine
    for generation in evolve(db.store, "run"):
        counts.append((len(generation.children), len(opened)))
        opened.clear()
    assert len(counts) == 4
    for children, openings in counts[1:]:
        assert openings == children + 2


def test_what_came_of_a_generation_is_written_while_evaluations_run(place, monkeypatch):
    """Every evaluation but the first waits to be told that what goes before it is written; only then does it answer."""
    (place / "evaluator.py").write_text(
        textwrap.dedent(EVALUATOR)
        + textwrap.dedent("""
            import time

            def patient(folder):
                name, deadline = Path(folder).name, time.monotonic() + 60
                while name.startswith("run-") and not Path(__file__).with_name("written").exists():
                    if time.monotonic() > deadline:
                        raise TimeoutError("nothing was written while it ran")
                    time.sleep(0.01)
                Path(__file__).with_name("written").unlink(missing_ok=True)
                return near(folder)
        """)
    )
    db = kinbase.open(place / "kin.duckdb")
    writing = db.store.writing

    @contextlib.contextmanager
    def told():
        with writing() as con:
            yield con
            during = bool(con.execute("select count(*) from raw.run where status = 'running'").fetchone()[0])
        if during and (place / "run" / "run-1-1").exists():
            (place / "written").touch()

    monkeypatch.setattr(db.store, "writing", told)
    monkeypatch.setattr("kinbase.evolution.generation.SAVE_EVERY", float("inf"))
    (place / "run.yaml").write_text(RUN.replace("evaluator:near", "evaluator:patient"))
    assert db.evolve(place / "run.yaml")["generation"].max() == 3


def test_a_dry_run_writes_nothing(place, cli):
    before = (place / "kin.duckdb").read_bytes()
    run = cli("evolve", "run.yaml", "--dry-run", "-f", "json")
    assert run.returncode == 0, run.stderr
    assert [row["parents"] for row in json.loads(run.stdout)] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert "not scored yet: a, b, c" in run.stderr
    assert (place / "kin.duckdb").read_bytes() == before
    assert not (place / "run").exists()


def test_a_run_tells_a_line_a_generation_and_ends_with_a_table(place, cli):
    run = cli("evolve", "run.yaml", "--name", "other")
    assert run.returncode == 0, run.stderr
    assert [line.partition(":")[0] for line in run.stderr.splitlines()] == [
        f"generation {n}" for n in range(4)
    ]
    assert run.stdout.splitlines()[0].split() == [
        "generation", "children", "scored", "best", "best_score", "best_so_far", "top_kinship", "reason",
    ]  # fmt: skip
    assert cli("evolve").returncode == 2
    assert cli("evolve", "run.yaml", "--resume", "other").returncode == 2
