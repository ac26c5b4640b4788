"""Evolution with weights: real merges of tiny models, killed for real, resumed, and given bad input.

The family is made so that a run can be worked out by hand: each model has a place x on a line, an equal-share
linear merge is half-way between its parents, and the score is how near x is to 6.3. All weights are multiples
of 1/64, so that three generations of halves are exact in float32.
"""

import contextlib
import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import duckdb
import families
import numpy as np
import pytest
import torch

import kinbase
from kinbase.errors import KinbaseError
from kinbase.evolution import (
    beginning,
    journal,
    trust,
)
from kinbase.evolution import config as configs
from kinbase.evolution import (
    evaluators as evaluating,
)
from kinbase.evolution import (
    generation as making,
)
from kinbase.evolution import (
    merge_child as breeding,
)
from kinbase.evolution import (
    run as running,
)
from kinbase.evolution import (
    selection as closing,
)
from kinbase.evolution.subprocesses import Caller

PLACES = {"a": 0.0, "b": 4.0, "c": 10.0}
TARGET = 6.3
SHAPES = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (8, 8),
    "lm_head.weight": (16, 8),
}

EVALUATOR = """
    import json, sys
    from pathlib import Path
    from safetensors.numpy import load_file

    def near(folder, log=None):
        x = float(load_file(Path(folder, "model.safetensors"))["lm_head.weight"][0, 0])
        with Path(log or Path(__file__).with_name("calls")).open("a") as calls:
            calls.write(Path(folder).name + "\\n")
        return {"near": {"acc": -abs(x - 6.3), "acc_stderr": 0.0}}
"""

RUN = """
strategy: kinship
models: [a, b, c]
evaluate: {by: python, function: "evaluator:near"}
merge: {method: linear}
stop: {generations: 3, kinship: null}
"""


def write_model(folder, weights):
    families.write_safetensors(folder / "model.safetensors", weights, {"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps(
            {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "tie_word_embeddings": False}
        )
    )


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


def evolved(place, text=None, name=None):
    if text is not None:
        (place / "run.yaml").write_text(text)
    db = kinbase.open(place / "kin.duckdb")
    return db, db.evolve(place / "run.yaml", name=name)


ROWS = """
select run, generation, child, parents, role, method, seed, reason, kinship, status, problem, score, kept, folder,
    deleted, position
from offspring order by generation, position
"""


def story(db):
    """All that a run leaves behind, times aside."""
    return {
        "offspring": db.sql(ROWS).rows(),
        "generations": db.sql("select * exclude (ended_at) from generations order by all").rows(),
        "runs": db.sql("select * exclude (started_at, ended_at) from runs").rows(),
        "models": db.sql("select name, digest, base, relation, bytes from models order by name").rows(),
        "lineage": db.sql("from lineage order by all").rows(),
        "scores": db.sql(
            "select model, benchmark, metric, value, source from scores_all order by all"
        ).rows(),
        "kinship": db.sql("select * from kinship order by model_a, model_b").rows(),
    }


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
    preadv = os.preadv

    def counting(fd, buffers, offset, *flags):
        got = preadv(fd, buffers, offset, *flags)
        if importing and offset >= 8 and got >= 128:
            path = str(Path(f"/proc/self/fd/{fd}").readlink())
            counts.setdefault(path, []).append((offset, got))
        return got

    db = kinbase.open(place / "kin.duckdb")
    import_ = making.import_sources

    def watched(*arguments, **options):
        importing.append(True)
        counts.clear()
        try:
            return import_(*arguments, **options)
        finally:
            importing.pop()
            families_read.append({path: list(reads) for path, reads in counts.items()})

    families_read = []
    monkeypatch.setattr(os, "preadv", counting)
    monkeypatch.setattr(making, "import_sources", watched)
    db.evolve(place / "run.yaml")
    assert len(families_read) == 3  # one import a generation
    for number, reads in enumerate(families_read, 1):
        rows = db.sql("select child, generation from offspring where generation <= ?", [number])
        assert len(reads) == 4 + rows.height  # the base, three models, all children so far
        for path, spans in reads.items():
            weights = sum(4 * int(np.prod(shape)) for shape in SHAPES.values())
            start = os.path.getsize(path) - weights  # noqa: PTH202
            inside = [(offset, got) for offset, got in spans if offset >= start]
            assert sum(got for _, got in inside) <= weights, (path, start, spans)


def test_a_generation_opens_the_database_once_a_child_and_twice(place, monkeypatch):
    """To place the children among what is stored, to store them, and for each score, the last with close and next plan."""
    opened, connect = [], duckdb.connect

    def counting(*arguments, **options):
        opened.append(arguments)
        return connect(*arguments, **options)

    db = kinbase.open(place / "kin.duckdb")
    beginning.begin(db.store, configs.read(place / "run.yaml"))
    counts = []
    monkeypatch.setattr(duckdb, "connect", counting)
    monkeypatch.setattr(making, "SAVE_EVERY", float("inf"))  # however slow the machine
    for generation in running.evolve(db.store, "run"):
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
    monkeypatch.setattr(making, "SAVE_EVERY", float("inf"))
    (place / "run.yaml").write_text(RUN.replace("evaluator:near", "evaluator:patient"))
    assert db.evolve(place / "run.yaml")["generation"].max() == 3


# Killed.

DRIVER = """
    import contextlib, os, signal, sys
    from kinbase.evolution import evaluators
    from kinbase.store import Store
    from kinbase.cli import main

    when, after = sys.argv[1], int(sys.argv[2])
    sys.argv[1:3] = []
    seen = 0

    def die(which):
        if which == when and seen >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    writing = Store.writing

    @contextlib.contextmanager
    def counted(self):
        global seen
        with writing(self) as con:
            yield con
            seen += when in ("before-commit", "after-commit")
            die("before-commit")
        die("after-commit")

    rename, fsync = os.rename, os.fsync
    Store.writing = counted

    def renamed(*arguments, **options):
        global seen
        result = rename(*arguments, **options)
        seen += when == "after-rename"
        die("after-rename")
        return result

    def flushed(fd):
        global seen
        seen += when == "in-merge"
        die("in-merge")
        return fsync(fd)

    def begun(*arguments):
        global seen
        result = begin(*arguments)
        seen += when == "evaluating"
        die("evaluating")
        return result

    os.rename, os.fsync = renamed, flushed
    begin, evaluators.begin = evaluators.begin, begun
    main()
"""


def run_killed(place, when, after, *arguments):
    """Run the command line until it kills itself, by SIGKILL, at the point asked for; whether it did."""
    (place / "driver.py").write_text(textwrap.dedent(DRIVER))
    run = subprocess.run(
        [sys.executable, place / "driver.py", when, str(after), "--db", place / "kin.duckdb", "evolve", *arguments],
        cwd=place, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode in (0, -signal.SIGKILL), run.stderr
    return run.returncode != 0


@pytest.fixture(scope="module")
def unbroken(line_database, tmp_path_factory):
    """The story of a run of two generations that nothing broke, by where it took place; and its evaluations."""
    place = tmp_path_factory.mktemp("unbroken")
    (place / "kin.duckdb").write_bytes(line_database.read_bytes())
    (place / "evaluator.py").write_text(textwrap.dedent(EVALUATOR))
    db, _ = evolved(place, RUN.replace("generations: 3", "generations: 2"))
    return json.loads(json.dumps(story(db), default=str).replace(str(place), "PLACE")), (
        place / "calls"
    ).read_text().split()


# How many transactions, flushes or renames each process lives for: few, so that many points are met, and enough
# to get further each time (a merge flushes seven times).
POINTS = {"before-commit": 5, "after-commit": 6, "in-merge": 12, "after-rename": 2, "evaluating": 3}


@pytest.mark.parametrize("when", POINTS)
def test_killed_again_and_again_it_ends_with_the_same_rows(place, unbroken, when):
    (place / "run.yaml").write_text(RUN.replace("generations: 3", "generations: 2"))
    deaths, finished = 0, []
    killed = run_killed(place, when, POINTS[when], "run.yaml")
    while killed:
        deaths += 1
        db = kinbase.open(place / "kin.duckdb")
        finished.append((
            len((place / "calls").read_text().split()) if (place / "calls").exists() else 0,
            set(db.sql("select model from scores where source = 'evaluator:near'")["model"]),
            {path: path.stat().st_ino for path in place.glob("run/*/model.safetensors") if ".part" not in str(path)},
        ))  # fmt: skip
        begun = db.sql("from runs").height
        killed = run_killed(place, when, POINTS[when], *(["--resume", "run"] if begun else ["run.yaml"]))
        assert deaths < 40
    assert deaths >= 3
    told, calls = unbroken
    db = kinbase.open(place / "kin.duckdb")
    assert json.loads(json.dumps(story(db), default=str).replace(str(place), "PLACE")) == told
    made = (place / "calls").read_text().split()
    assert set(made) == set(calls)
    # each was made once, but for those whose score was being written, or that were under way, at a death
    assert len(made) <= len(calls) + 2 * deaths
    for number, scored, merged in finished:
        assert scored.isdisjoint(
            made[number + 1 :]
        )  # the next line may be of an evaluation that outlived its run
        assert {path: path.stat().st_ino for path in merged} == merged
    assert not list(place.glob("run/*.part"))


def test_a_resumed_run_that_is_finished_says_so(place, cli):
    evolved(place)
    run = cli("evolve", "--resume", "run")
    assert run.returncode == 0
    assert "the run run is finished" in run.stderr


def test_interrupted_by_hand_it_goes_on(place):
    db = kinbase.open(place / "kin.duckdb")
    beginning.begin(db.store, configs.read(place / "run.yaml"))
    steps = running.evolve(db.store, "run")
    next(steps), next(steps)
    steps.close()
    assert db.sql("select status, generations from runs").row(0) == ("interrupted", 1)
    assert [g.number for g in running.evolve(db.store, "run")] == [2, 3]
    assert db.sql("select status from runs").item() == "finished"


def test_only_one_process_is_at_work(place):
    db = kinbase.open(place / "kin.duckdb")
    beginning.begin(db.store, configs.read(place / "run.yaml"))
    steps = running.evolve(db.store, "run")
    next(steps)
    with pytest.raises(KinbaseError, match="another process is at work"):
        next(running.evolve(db.store, "run"))
    steps.close()


# Bad input.


def refused(place, cli):
    """The one line that the command says when a run is refused or stops."""
    run = cli("evolve", "run.yaml")
    assert run.returncode == 1, run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("kinbase: ")]
    assert len(lines) == 1, run.stderr
    assert "Traceback" not in run.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("models: [a, b, c]", "models: [a, b, cc]", "there is no model 'cc'"),
        ("method: linear", "method: liner", "linear"),
        ("method: linear", "method: linear, parameters: {wieght: 1}", "wieght"),
        ("method: linear", "method: ties, dtype: int3", "int3"),
    ],
)
def test_what_can_be_refused_at_once_is(place, old, new, said):
    with pytest.raises(KinbaseError, match=said) as raised:
        evolved(place, RUN.replace(old, new))
    assert "\n" not in str(raised.value)
    assert kinbase.open(place / "kin.duckdb").sql("from runs").is_empty()
    assert not (place / "run").exists()


def program(place, text):
    """Write an evaluator program; the part of a configuration that calls it."""
    path = place / "program"
    head = "import sys, json, os, time\nfrom pathlib import Path\nfolder = Path(sys.argv[1])\n"
    path.write_text(f"#!{sys.executable}\n{head}{textwrap.dedent(text)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f'{{by: command, command: [{path}, "{{model}}"], timeout: 2}}'


RIGHT = 'print("some talk")\nprint(json.dumps({"near": len(folder.name)}))\n'


def judged(place, by):
    """What an evaluator gives for a folder, or the error it ends in."""
    (place / "run.yaml").write_text(RUN.replace('{by: python, function: "evaluator:near"}', by))
    caller = Caller(str(place))
    try:
        return evaluating.begin(configs.read(place / "run.yaml"), "x", str(place / "x"), caller)()[0]
    finally:
        caller.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sys.exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), 9)", "ended by signal 9"),
        ("print('rubbish')", "gave no JSON on stdout: it printed 'rubbish'"),
        ("pass", "it printed nothing"),
        ("print('[1]')", "was expected"),
        ("print('{}')", "was expected"),
        ("print(json.dumps({'near': float('nan')}))", "'nan' on 'near', which is no finite number"),
        ("print(json.dumps({'near': 'good'}))", "'good' on 'near', which is no finite number"),
        ("print(json.dumps({'near': 10**400}))", "on 'near', which is no finite number"),
        ("print(repr(sys.stdin.read()))", "gave no JSON on stdout: it printed \"''\""),
        ("time.sleep(60)", "gave no answer in 2 s"),
        ("import subprocess; subprocess.Popen(['sleep', '60']); time.sleep(60)", "gave no answer in 2 s"),
        ("sys.stdout.write('x' * 20_000_000)", "printed more than 16 MiB"),
    ],
)
def test_a_program_that_fails_is_one_line(tmp_path, text, said):
    with pytest.raises(KinbaseError) as raised:
        judged(tmp_path, program(tmp_path, text))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_program_may_talk_before_it_answers(tmp_path):
    (score,) = judged(tmp_path, program(tmp_path, RIGHT))
    assert (score.benchmark, score.metric, score.value, score.source) == (
        "near",
        "score",
        1.0,
        f"{tmp_path}/program {{model}}",
    )
    metrics = {
        "alias": "task",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "f1,strict": 0.4,
        "f1_stderr,strict": "N/A",
    }
    answer = {"results": {"task": metrics}}
    scores = judged(tmp_path, program(tmp_path, f"print(json.dumps({answer!r}))"))
    assert [(s.metric, s.value, s.stderr) for s in scores] == [("acc", 0.5, 0.1), ("f1,strict", 0.4, None)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("import os; os.abort()", "its process ended"),
        ("import time; time.sleep(60)", "gave no answer in 2 s"),
        ("return float('nan')", "was expected"),
        ("return {'near': float('inf')}", "'inf' on 'near'"),
        ("return object()", "TypeError"),
    ],
)
def test_a_function_that_fails_is_one_line(tmp_path, body, said):
    (tmp_path / "judge.py").write_text(f"def near(folder):\n    {body}\n")
    with pytest.raises(KinbaseError) as raised:
        judged(tmp_path, "{by: python, function: 'judge:near', timeout: 2}")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_timeout_may_be_of_years(tmp_path):
    """A system's clock for pipes counts milliseconds to 25 days."""
    by = program(tmp_path, "time.sleep(0.2)\n" + RIGHT).replace("timeout: 2", "timeout: 1.0e+12")
    assert judged(tmp_path, by)[0].value == 1


def test_settings_are_part_of_what_scores_are_known_by(tmp_path):
    (tmp_path / "judge.py").write_text("def near(folder, n=1, m=1):\n    return {'near': n}\n")
    by = "{by: python, function: 'judge:near'%s}"
    assert judged(tmp_path, by % "")[0].source == "judge:near"
    assert judged(tmp_path, by % ", settings: {n: 2, m: 3}")[0].source == "judge:near(m=3, n=2)"
    assert judged(tmp_path, by % ", settings: {n: 2}, source: mine")[0].source == "mine"
    with pytest.raises(KinbaseError, match=r"evaluate\.settings\.n\.1: nan is no finite number"):
        judged(tmp_path, by % ", settings: {n: [1, .nan]}")


def test_a_program_or_function_that_is_not_there(tmp_path):
    with pytest.raises(KinbaseError, match=r"nowhere' cannot be started: No such file or directory"):
        judged(tmp_path, "{by: command, command: [./nowhere]}")
    (tmp_path / "judge.py").write_text("def near(folder):\n    return {}\n")
    with pytest.raises(KinbaseError, match="has no attribute 'nera'"):
        judged(tmp_path, "{by: python, function: 'judge:nera'}")


def test_a_run_whose_evaluator_fails_is_resumed_when_it_is_mended(place, cli):
    """It answers for the models at the start, and fails on the first child."""
    by = program(place, "if folder.name.startswith('run-'):\n    sys.exit(3)\n" + RIGHT)
    (place / "run.yaml").write_text(RUN.replace('{by: python, function: "evaluator:near"}', by))
    line = refused(place, cli)
    assert "run-1-1" in line
    assert "exit code 3" in line
    assert "kinbase evolve --resume run" in line
    db = kinbase.open(place / "kin.duckdb")
    status, reason = db.sql("select status, reason from runs").row(0)
    assert status == "failed"
    assert "exit code 3" in reason
    program(place, RIGHT)
    before = {path: path.stat().st_ino for path in (place / "run").iterdir()}
    assert len(before) == 3
    assert cli("evolve", "--resume", "run").returncode == 0
    assert db.sql("select status from runs").item() == "finished"
    assert all(path.stat().st_ino == inode for path, inode in before.items())  # no merge was done again


def test_a_parent_of_other_shapes(place):
    write_model(place / "wide", {name: torch.zeros(4, *shape[1:]) for name, shape in SHAPES.items()})
    kinbase.open(place / "kin.duckdb").import_([place / "wide"])
    (place / "evaluator.py").write_text("def near(folder):\n    return {'near': len(folder)}\n")
    with pytest.raises(KinbaseError, match=r"run-1-1: .*shape"):
        evolved(place, RUN.replace("[a, b, c]", "[a, b, wide]\nbase: base"))
    assert not list(place.glob("run/*.part"))
    assert kinbase.open(place / "kin.duckdb").sql("select status from runs").item() == "failed"


def test_children_may_fail_without_the_run(place):
    (place / "evaluator.py").write_text(
        textwrap.dedent(EVALUATOR).replace(
            "    x = ", "    if folder.endswith('run-1-2'): raise ValueError('no')\n    x = "
        )
    )
    db, generations = evolved(place, RUN + "on_error: skip\n")
    row = db.sql("select status, problem, score from offspring where child = 'run-1-2'").row(0)
    assert row == ("failed", "'evaluator:near' failed: ValueError: no", None)
    assert generations["generation"].max() == 3


@pytest.mark.parametrize("how", ["os._exit(3)", "os.write(3, b'{') and os._exit(3)"])
def test_a_crash_fails_one_child_and_not_the_next(tmp_path, how):
    body = f"    import os\n    if folder == 'bad':\n        {how}\n    return {{'near': 1}}\n"
    (tmp_path / "judge.py").write_text(f"def near(folder):\n{body}")
    caller = Caller(str(tmp_path))
    try:
        for folder in ("good", "bad", "good", "bad", "good"):
            if folder == "bad":
                with pytest.raises(KinbaseError, match="its process ended"):
                    caller.call("judge:near", [folder], {}, timeout=20)()
            else:
                assert caller.call("judge:near", [folder], {}, timeout=20)()[0] == {"near": 1}
    finally:
        caller.close()


LIMITED = """
    import resource, signal
    from kinbase import merging
    from kinbase.evolution import journal, run
    import kinbase

    inner = merging.merge

    def limited(*arguments, **options):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
        try:
            return inner(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    merging.merge = limited
    try:
        list(run.evolve(kinbase.open("kin.duckdb").store, "run"))
    except Exception as error:
        print(error)
"""


def test_a_full_disk_in_mid_merge(place):
    """A limit on the size of files stops the writing of a child as a full disk does."""
    db = kinbase.open(place / "kin.duckdb")
    beginning.begin(db.store, configs.read(place / "run.yaml"))
    command = [sys.executable, "-c", textwrap.dedent(LIMITED)]
    run = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert "run-1-1" in run.stdout and "a file of this size is not allowed" in run.stdout, (
        run.stdout,
        run.stderr,
    )
    assert list((place / "run").iterdir()) == []  # no part of a checkpoint is left
    assert db.sql("select status from runs").item() == "failed"
    assert db.evolve(resume="run")["generation"].max() == 3


def test_a_full_disk_is_no_fault_of_the_child(place):
    """Children may fail where the configuration says so; the disk is full for all of them."""
    (place / "run.yaml").write_text(RUN + "on_error: skip\n")
    db = kinbase.open(place / "kin.duckdb")
    beginning.begin(db.store, configs.read(place / "run.yaml"))
    command = [sys.executable, "-c", textwrap.dedent(LIMITED)]
    run = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert "run-1-1: cannot write" in run.stdout, (run.stdout, run.stderr)
    assert db.sql("select status from runs").item() == "failed"
    db.evolve(resume="run")
    assert db.sql("from offspring where status <> 'scored'").is_empty()


def test_children_of_the_same_weights_are_evaluated_once(place):
    """With t = 0 the children of a with b, a with c and b with c are a, a and b, of which the scores are known."""
    text = RUN.replace("strategy: kinship", "strategy: greedy").replace(
        "{method: linear}", "{method: slerp, parameters: {t: 0}}"
    )
    db, _ = evolved(place, text)
    assert (place / "calls").read_text().split() == ["a", "b", "c"]
    # a quarter of the weights of a child and of its twin: made alike by two methods' names, so neither was there before
    twins = "strategy: grid\ngrid: {methods: [linear, task_arithmetic], experts: [2]}\n"
    text = RUN.replace("strategy: kinship\n", twins).replace(
        "{method: linear}", "{parameters: {weight: 0.5}}"
    )
    (place / "calls").unlink()
    db, _ = evolved(place, text, "grid")
    names = db.sql("select child from offspring where run = 'grid' order by position")["child"].to_list()
    assert len(names) == 2
    assert (
        len(set(names)) == 1
    )  # base + (a - base) / 2 + (b - base) / 2 is (a + b) / 2, exact in multiples of 1/64
    assert len((place / "calls").read_text().split()) == 1


def test_a_worker_ends_with_its_run(tmp_path):
    """Whatever it is doing, and with what it has started: nobody waits for its answer."""
    (tmp_path / "judge.py").write_text(
        "import os, subprocess, time\nfrom pathlib import Path\n"
        "def near(folder):\n    child = subprocess.Popen(['sleep', '600'])\n"
        "    Path(folder, 'part').write_text(f'{os.getpid()} {child.pid}')\n"
        "    Path(folder, 'part').rename(Path(folder, 'pids'))\n    time.sleep(600)\n"
    )
    script = (
        "import sys; from kinbase.evolution.subprocesses import Caller\n"
        "Caller('.').call('judge:near', ['.'], {}, timeout=600)()\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    waited_for(lambda: (tmp_path / "pids").exists())
    run.kill()
    run.wait()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    waited_for(lambda: not any(is_alive(pid) for pid in pids))


def waited_for(happened, seconds=60):
    """Return when `happened()`, and fail when it has not in a minute."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# A run of somebody else's.


@pytest.fixture
def sent(place, tmp_path_factory):
    """The database of a run that was stopped after its first generation, exported here and imported elsewhere."""
    db = kinbase.open(place / "kin.duckdb")
    beginning.begin(db.store, configs.read(place / "run.yaml"))
    steps = running.evolve(db.store, "run")
    next(steps), next(steps)
    steps.close()
    db.export(place / "all.kinbase")
    other = kinbase.open(tmp_path_factory.mktemp("sent") / "kin.duckdb")
    other.import_([place / "all.kinbase"])
    return other


def test_a_run_that_was_not_begun_here_is_not_resumed(place, sent, cli, tmp_path_factory):
    """Neither out of an export, nor with its folders: the refusal says what would be run, and what says yes."""
    elsewhere = {"XDG_STATE_HOME": str(tmp_path_factory.mktemp("elsewhere"))}
    calls = (place / "calls").read_text()
    arguments = ["--db", sent.store.path, "evolve", "--resume", "run"]
    run = cli(*arguments, env=elsewhere)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("kinbase: the run run was not begun here: it would call evaluator:near with {}, ")
    assert str(place / "run") in line
    assert line.endswith("`kinbase evolve --resume run --trust` goes on")
    assert (place / "calls").read_text() == calls
    assert sent.sql("select status from runs").item() == "interrupted"
    assert cli(*arguments, "--trust", env=elsewhere).returncode == 0
    assert sent.sql("select status, generations from runs").row(0) == ("finished", 3)


def test_a_yes_is_for_these_words_in_these_folders(place, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    config = configs.read(place / "run.yaml")
    assert not trust.is_known(config)
    trust.remember(config)
    trust.refuse_stranger(config)
    trust.refuse_stranger(dataclasses.replace(config, k=2))
    command = dataclasses.replace(config.evaluate, by="command", command=("rm", "-r", "a b"))
    for other, said in (
        (dataclasses.replace(config, evaluate=command), "run `rm -r 'a b'` in "),
        (dataclasses.replace(config, out="/home"), "delete them in /home"),
        (dataclasses.replace(config, folder="/tmp/x"), "modules in /tmp/x"),
    ):
        with pytest.raises(KinbaseError, match=f"not begun here.*{said}"):
            trust.refuse_stranger(other)
    recorded = dataclasses.replace(config.evaluate, by="recorded")
    trust.refuse_stranger(dataclasses.replace(config, evaluate=recorded))


def test_where_nothing_can_be_remembered_a_run_is_begun_all_the_same(place, monkeypatch):
    (place / "state").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "state"))
    db, generations = evolved(place)
    assert generations["generation"].max() == 3
    (place / "run.yaml").write_text(RUN.replace("c]", "c]\nname: second"))
    beginning.begin(db.store, configs.read(place / "run.yaml"))
    with pytest.raises(KinbaseError, match="not begun here"):
        db.evolve(resume="second")
    assert db.evolve(resume="second", trust=True)["generation"].max() == 3


@pytest.mark.parametrize("row", ["{precious}", "{out}/../precious", "{out}"])
def test_nothing_is_deleted_but_in_a_childs_own_folder(place, row):
    precious = place / "precious"
    precious.mkdir()
    (precious / "model.safetensors").touch()
    config = configs.read(place / "run.yaml")
    folder = row.format(precious=precious, out=config.out)
    for child in ("run-1-1", "../precious", "precious", ""):
        breeding.delete_weights(config, child, folder)
    Path(config.out).mkdir()
    (Path(config.out) / "link").symlink_to(precious)
    breeding.delete_weights(config, "link", f"{config.out}/link")
    assert (precious / "model.safetensors").exists()


def test_a_run_killed_after_its_end_is_swept(place):
    text = RUN.replace("strategy: kinship", "strategy: greedy") + "keep: top_k\n"
    db, _ = evolved(place, text)
    folder = Path(db.sql("select folder from offspring where deleted").row(0)[0])
    (folder / "model.safetensors").touch()
    db.evolve(resume="run")
    assert not (folder / "model.safetensors").exists()


def test_a_folder_in_use_is_not_taken_for_children(place):
    (place / "run").mkdir()
    (place / "run" / "run-1-1").mkdir()
    with pytest.raises(KinbaseError, match="is not empty"):
        evolved(place)


def test_a_name_that_is_taken(place, cli):
    evolved(place)
    assert "there is a run run already (finished)" in refused(place, cli)
    assert cli("evolve", "--resume", "rnu").stderr.startswith("kinbase: there is no run 'rnu': there is run")


# Budgets, twins, deleting, dry run.


def test_budgets_of_merges_and_disk(place):
    db, generations = evolved(place, RUN.replace("kinship: null", "kinship: null, merges: 4"))
    assert db.sql("select merges, reason from runs").row(0) == (
        4,
        "the 3 best changed; the budget of 4 merges is used up",
    )
    assert (
        db.sql("select count(*) from offspring where status = 'skipped'").item()
        == generations["children"].to_list()[2] - 1
    )
    size = db.sql("select bytes from models where name = 'a'").item()
    db, _ = evolved(
        place, RUN.replace("kinship: null", f"kinship: null, disk: {5 * size / 1e9:.9f}GB"), "disk"
    )
    assert db.sql("select merges from runs where run = 'disk'").item() == 5


def test_near_twins_are_not_merged(place, line):
    """Thresholds on both sides of the largest cosine that numpy predicts for the first generation's children."""
    _, deltas = line
    d = list(deltas.values())
    cosines = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        child = (d[i] + d[j]) / 2
        cosines.append(max(child @ m / np.linalg.norm(child) / np.linalg.norm(m) for m in d))
    one = "generations: 1, kinship: null"
    text = RUN.replace("generations: 3, kinship: null", one)
    for threshold, skipped in ((max(cosines) + 1e-9, 0), (max(cosines) - 1e-9, 1), (min(cosines) - 1e-9, 3)):
        db, _ = evolved(place, f"{text}\ntwins: {threshold:.12f}\n", f"t{skipped}")
        rows = db.sql("select problem from offspring where run = ? and status = 'skipped'", [f"t{skipped}"])[
            "problem"
        ]
        assert len(rows) == skipped
        assert all("near twin of" in problem for problem in rows)


def test_weights_of_dropped_children_go_and_their_rows_stay(place):
    text = RUN.replace("strategy: kinship", "strategy: greedy") + "keep: top_k\n"
    db, generations = evolved(place, text)
    rows = db.sql("select child, deleted, folder from offspring").rows()
    best = generations["top"].to_list()[-1]
    assert {c for c, deleted, _ in rows if not deleted} == {m for m in best if m.startswith("run")}
    assert any(deleted for _, deleted, _ in rows)
    for child, deleted, folder in rows:
        assert os.path.exists(f"{folder}/model.safetensors") != deleted  # noqa: PTH110
        assert os.path.exists(f"{folder}/mergekit_config.yml")  # noqa: PTH110
        assert db.show(child).row(0, named=True)["kin"]


def test_weights_of_a_child_that_is_another_model_stay(place):
    """With t = 0 the child of b and c is b to the last bit: b is found in the child's folder then."""
    text = RUN.replace("strategy: kinship", "strategy: greedy").replace(
        "{method: linear}", "{method: slerp, parameters: {t: 0}}"
    )
    db, _ = evolved(place, text + "keep: top_k\nk: 2\n")
    assert db.sql("select child, status from offspring where generation = 1").rows() == [("b", "scored")]
    with db.store.reading() as con:
        run = journal.read(con, "run")
    assert [child.model for child in run.of(1)] == ["b"]
    assert closing._dropped(run, ["a", "c"]) == []
    assert Path(db.sql("select source from models where name = 'b'").item(), "model.safetensors").exists()


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
