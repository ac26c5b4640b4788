"""Evaluators: functions and programs that answer, fail, hang or lie."""

import stat
import sys
import textwrap

import pytest
from evolving import RUN, evolved, refused

import kinbase
from kinbase.errors import KinbaseError
from kinbase.evolution import config, evaluators
from kinbase.evolution.subprocesses import Caller


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


def program(place, text, timeout=300):
    """Write an evaluator program; the part of a configuration that calls it."""
    path = place / "program"
    head = "import sys, json, os, time\nfrom pathlib import Path\nfolder = Path(sys.argv[1])\n"
    path.write_text(f"#!{sys.executable}\n{head}{textwrap.dedent(text)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f'{{by: command, command: [{path}, "{{model}}"], timeout: {timeout}}}'


def patience(said):
    """Seconds to wait: little for an answer that never comes, else more than a busy machine takes."""
    return 1 if "no answer" in said else 300


RIGHT = 'print("some talk")\nprint(json.dumps({"near": len(folder.name)}))\n'


def judged(place, by):
    """What an evaluator gives for a folder, or the error it ends in."""
    (place / "run.yaml").write_text(RUN.replace('{by: python, function: "evaluator:near"}', by))
    caller = Caller(str(place))
    try:
        return evaluators.begin(config.read(place / "run.yaml"), "x", str(place / "x"), caller)()[0]
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
        ("time.sleep(60)", "gave no answer in 1 s"),
        ("import subprocess; subprocess.Popen(['sleep', '60']); time.sleep(60)", "gave no answer in 1 s"),
        ("sys.stdout.write('x' * 20_000_000)", "printed more than 16 MiB"),
    ],
)
def test_a_program_that_fails_is_one_line(tmp_path, text, said):
    with pytest.raises(KinbaseError) as raised:
        judged(tmp_path, program(tmp_path, text, patience(said)))
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
        ("import time; time.sleep(60)", "gave no answer in 1 s"),
        ("return float('nan')", "was expected"),
        ("return {'near': float('inf')}", "'inf' on 'near'"),
        ("return object()", "TypeError"),
    ],
)
def test_a_function_that_fails_is_one_line(tmp_path, body, said):
    (tmp_path / "judge.py").write_text(f"def near(folder):\n    {body}\n")
    with pytest.raises(KinbaseError) as raised:
        judged(tmp_path, f"{{by: python, function: 'judge:near', timeout: {patience(said)}}}")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_timeout_may_be_of_years(tmp_path):
    """A system's clock for pipes counts milliseconds to 25 days."""
    by = program(tmp_path, "time.sleep(0.2)\n" + RIGHT, "1.0e+12")
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
