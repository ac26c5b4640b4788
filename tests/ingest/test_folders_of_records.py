"""Folders that hold more than one model: merge configurations and GGUF files."""

import shutil
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
RECIPE = "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: o/%s}, {model: o/%s}]\n"


def edges(db):
    return {tuple(row) for row in db.sql("select parent, child, relation from lineage").rows()}


def test_several_configurations_are_several_merges(empty, tmp_path):
    (tmp_path / "one.yml").write_text(RECIPE % ("a", "b"))
    (tmp_path / "two.yaml").write_text(RECIPE % ("c", "d"))
    empty.import_([str(tmp_path)])
    assert edges(empty) == {
        ("o/a", "one", "merge"),
        ("o/b", "one", "merge"),
        ("o/c", "two", "merge"),
        ("o/d", "two", "merge"),
    }


def test_one_configuration_is_the_folders(empty, tmp_path):
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "recipe.yml").write_text(RECIPE % ("a", "b"))
    empty.import_([str(folder)])
    assert edges(empty) == {("o/a", "merged", "merge"), ("o/b", "merged", "merge")}


def test_beside_others_mergekits_own_is_the_folders(empty, tmp_path):
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "mergekit_config.yml").write_text(RECIPE % ("a", "b"))
    (folder / "older.yml").write_text(RECIPE % ("c", "d"))
    empty.import_([str(folder)])
    assert ("o/a", "merged", "merge") in edges(empty) and ("o/c", "older", "merge") in edges(empty)


def test_gguf_files_are_models_of_their_own(empty, tmp_path):
    folder = tmp_path / "chat-GGUF"
    folder.mkdir()
    for name in ("chat-Q4_K_M.gguf", "chat-copy.gguf"):
        shutil.copy(DATA / "gguf" / "chat-Q4_K_M.gguf", folder / name)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    empty.import_([str(folder)])
    assert {child for _, child, _ in edges(empty)} == {
        "chat-GGUF/chat-Q4_K_M.gguf",
        "chat-GGUF/chat-copy.gguf",
    }
