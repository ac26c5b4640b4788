"""lm-evaluation-harness evaluates the children of a run, offline, on tasks of our own; where the extra is installed."""

import json
import sys
from pathlib import Path

import pytest

import kinbase

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "lm-eval"
EXERCISES = 60


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A base and three tunings of it that know a little of two tasks, with tokenizers; the tasks; the example's run."""
    import torch

    monkeypatch.syspath_prepend(EXAMPLE)
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import prepare

    from kinbase.demo.family import CONFIG
    from kinbase.demo.model import Transformer, save, train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = Transformer(CONFIG, 0)
        for seed, name in enumerate(("digits-base", "digits-reverse", "digits-sort", "digits-rank")):
            train(model, {"peak": 0.7, "sort": 0.3}, 8 if seed else 20, 4e-3, seed, batch=64)
            save(model, tmp_path / "models" / name)
            prepare.write_tokenizer(tmp_path / "models" / name)
    finally:
        torch.set_num_threads(threads)
    (tmp_path / "tasks").mkdir()
    for task in ("peak", "sort"):
        prepare.write_task(tmp_path / "tasks", task, EXERCISES)
    text = (EXAMPLE / "evolve.yaml").read_text()
    text = text.replace("[digits_reverse, digits_sort, digits_rank]", "[digits_peak, digits_sort]")
    (tmp_path / "evolve.yaml").write_text(text.replace("generations: 2", "generations: 1"))
    yield tmp_path
    sys.modules.pop("prepare", None)


def test_the_harness_gives_what_the_demo_measures(prepared):
    """The tasks hold the exercises of kinbase.demo.model.evaluate, so the two must agree, up to one near tie."""
    from kinbase.demo.model import evaluate, load

    db = kinbase.open(prepared / "kinbase.duckdb")
    db.import_(sorted((prepared / "models").iterdir()), base="digits-base")
    generations = db.evolve(prepared / "evolve.yaml")
    assert generations["scored"].to_list() == [3, 3]
    rows = db.sql("select model, benchmark, metric, value, source from scores_all").rows()
    assert {(benchmark, metric) for _, benchmark, metric, *_ in rows} == {
        ("digits_peak", "exact_match"),
        ("digits_sort", "exact_match"),
    }
    assert len(rows) == 2 * 6
    folders = dict(db.sql("select name, source from models").rows())
    for model, benchmark, _, value, source in rows:
        assert source == "lm_eval"
        ours, _ = evaluate(load(Path(folders[model])), benchmark.removeprefix("digits_"), EXERCISES)
        assert value == pytest.approx(ours, abs=1 / EXERCISES + 1e-9), (model, benchmark)
    assert max(value for *_, value, _ in rows) > 0.1  # something was learnt, so something was compared
    scores = dict(db.sql("select child, score from offspring").rows())
    for child, score in scores.items():
        assert score == pytest.approx(sum(value for model, _, _, value, _ in rows if model == child) / 2)
        (kept,) = (prepared / "harness" / "results" / child).glob("results_*.json")
        assert "digits_peak" in json.loads(kept.read_text())["results"]


def test_an_unknown_task_is_one_line(prepared, cli):
    db = kinbase.open(prepared / "kin.duckdb")
    db.import_(sorted((prepared / "models").iterdir()), base="digits-base")
    text = (prepared / "evolve.yaml").read_text().replace("digits_peak", "digits_paek")
    (prepared / "evolve.yaml").write_text(text)
    run = cli("evolve", "evolve.yaml")
    assert run.returncode == 1
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("kinbase: ")]
    assert "digits_paek" in line
