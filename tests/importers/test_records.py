"""The importers of records side by side: no two take the same file, and recognising raises nothing."""

import json

import pytest
from records import DATA

from kinbase.importers import card, eval_results, gguf, leaderboard, lm_eval, mergekit, table


def test_no_two_importers_take_the_same_file(write):
    importers = [card, eval_results, gguf, leaderboard, lm_eval, mergekit, table]
    scores = json.dumps([{"model": "m", "benchmark": "b", "metric": "acc", "value": 1}])
    folders = ("mergekit", "lm_eval", "gguf", "huggingface_hub", "peft")
    files = [path for folder in folders for path in (DATA / folder).rglob("*") if path.is_file()]
    files.append(write("results.json", scores))
    for path in files:
        assert sum(importer.recognises(str(path)) for importer in importers) == 1, path


@pytest.mark.parametrize("importer", [card, eval_results, gguf, leaderboard, lm_eval, mergekit, table])
def test_recognising_raises_nothing(importer, tmp_path):
    for source in (
        "hf:org/name",
        "",
        "a\0b",
        "x" * 5000,
        str(tmp_path),
        str(tmp_path / "none.csv"),
        "/dev/zero",
    ):
        assert not importer.recognises(source)
