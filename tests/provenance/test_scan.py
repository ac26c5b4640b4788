"""`scan`: the base of a model among known ones, by its weights; strangers of one config, disguises, casts, other sizes."""

import json
import shutil

import disguises
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import kinbase
from kinbase.errors import KinbaseError, UsageError
from kinbase.kinship.layout import BUCKETS
from kinbase.kinship.sketch import SCHEME
from kinbase.matching.independence import Independence
from kinbase.provenance.identity.scan import Hit, _judged
from kinbase.provenance.identity.sketch_file import FORMAT


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of three bases of one configuration, and of models made from the first or from none."""
    place = tmp_path_factory.mktemp("scanned")
    base = disguises.llama(1)
    tuned = disguises.tuned(base, 2)
    weights = {"base": base, "second": disguises.llama(3), "third": disguises.llama(4), "tuned": tuned,
               "masked": disguises.disguised(tuned, 5, "units", "heads", "channels", "signs"),
               "stranger": disguises.llama(6)}  # fmt: skip
    folders = {name: disguises.save(place / name, w) for name, w in weights.items()}
    folders["small"] = disguises.save(place / "small", disguises.llama(7, 1), groups=1)
    folders["cast"] = disguises.save(place / "cast", base, dtype=torch.bfloat16)
    folders["copy"] = shutil.copytree(folders["base"], place / "copy")
    return folders


@pytest.fixture(scope="module")
def known(models, tmp_path_factory):
    """A database of the three bases; only for reading."""
    db = kinbase.open(tmp_path_factory.mktemp("known") / "kin.duckdb")
    db.import_([models[name] for name in ("base", "second", "third")])
    return db


def rows(db, model, **options):
    found, notes = db.scan(str(model), **options)
    return {row["name"]: row for row in found.to_dicts()}, notes


def test_a_fine_tune_has_its_base_and_no_other(known, models):
    found, notes = rows(known, models["tuned"])
    assert next(iter(found)) == "base"
    base = found["base"]
    assert (base["verdict"], base["coverage"], base["direction"]) == ("related", 1, "undecided")
    assert base["p"] < 1e-100
    a, b = disguises.llama(1), disguises.tuned(disguises.llama(1), 2)
    # What the sketch estimates: the cosine less each vector's mean.
    parts = [[w - w.mean() if w.ndim == 1 else w for w in m.values()] for m in (a, b)]
    x, y = (np.concatenate([w.astype(np.float64).ravel() for w in part]) for part in parts)
    assert abs(base["kinship"] - x @ y / np.linalg.norm(x) / np.linalg.norm(y)) < 5 * base["stderr"]
    assert {found[name]["verdict"] for name in ("second", "third")} == {"no sign"}
    assert notes[-1].endswith("tuned is related to base")


def test_another_training_of_the_same_config_is_no_relative(known, models):
    found, notes = rows(known, models["stranger"])
    for row in found.values():
        assert row["verdict"] == "unrelated" and row["p"] > 0.001 and row["direction"] is None
        assert abs(row["kinship"]) < 5 * row["stderr"]  # though gains near 1 are most of these models' length
    assert notes[-1].endswith("none of 3 known models of its size is seen to be related")


def test_a_disguised_fine_tune_is_found_by_the_test(known, models):
    found, notes = rows(known, models["masked"])
    assert found["base"]["verdict"] == "related" and abs(found["base"]["kinship"]) < 0.1
    assert {found[name]["verdict"] for name in ("second", "third")} == {"unrelated"}
    assert notes[-1].endswith("is related to base: its units lie in another order (`kinbase kin --aligned`)")


def test_copies_and_casts_are_told(known, models):
    found, _ = rows(known, models["copy"])
    assert (found["base"]["verdict"], found["base"]["direction"]) == (
        "the same weights",
        "equal, which tells no direction",
    )
    found, _ = rows(known, models["cast"])
    assert (found["base"]["verdict"], found["base"]["direction"]) == (
        "related",
        "made from base: its values rounded",
    )


def test_the_direction_of_a_known_cast_is_the_other_way(models, tmp_path):
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([models["cast"]])
    found, _ = rows(db, models["base"])
    assert found["cast"]["direction"] == "the known one is it, rounded"


def test_values_in_a_wider_dtype_came_later(models, tmp_path):
    coarse = {name: torch.from_numpy(w).bfloat16().float().numpy() for name, w in disguises.llama(1).items()}
    wide = disguises.save(tmp_path / "wide", coarse)
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([models["cast"]])
    assert rows(db, wide)[0]["cast"]["direction"].startswith("made from cast: its values in a wider dtype")
    db = kinbase.open(tmp_path / "other.duckdb")
    db.import_([wide])
    assert rows(db, models["cast"])[0]["wide"]["direction"].startswith(
        "the known one is it: its values in a wider"
    )


def test_another_size_is_left_out_and_that_is_said(known, models):
    found, notes = rows(known, models["small"])
    assert not found
    assert notes[0].startswith("3 of 3 known models differ from") and "not compared" in notes[0]


@pytest.mark.parametrize(
    ("p", "kinship", "verdict"),
    [
        (1e-9, 0.0, "related"), (1e-4, 0.9, "related"), (1e-4, 0.0, "undecided"), (0.5, 0.9, "undecided"),
        (0.5, 0.0, "unrelated"), (None, 0.9, "related"), (None, 0.0, "no sign"),
    ],
)  # fmt: skip
def test_test_and_sketches_are_weighed_together(p, kinship, verdict):
    before = "related" if kinship else "no sign"
    assert _judged(Hit("x", before, kinship, 0.01), Independence(p, 4, None)) == verdict


def test_nothing_is_imported(known, models):
    before = known.models().to_dicts()
    rows(known, models["tuned"])
    assert known.models().to_dicts() == before


def test_a_stored_model_is_not_held_against_itself(known):
    found, _ = rows(known, "second")
    assert set(found) == {"base", "third"}


def test_a_file_of_sketches_does_without_a_database(known, models, tmp_path, cli):
    path = tmp_path / "bases.safetensors"
    assert known.export_sketches(path) == 3
    done = cli("scan", models["tuned"], "--sketches", path, "-f", "json")
    found = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0 and not (tmp_path / "kin.duckdb").exists()
    assert [found[name]["verdict"] for name in ("base", "second", "third")] == [
        "related",
        "no sign",
        "no sign",
    ]
    assert found["base"]["kinship"] == rows(known, models["tuned"])[0]["base"]["kinship"]
    assert found["base"]["p"] is None and found["base"]["coverage"] is None
    done = cli("scan", models["masked"], "--against", path)
    assert "sketches do not see through a disguise" in done.stderr


def test_some_models_are_exported_and_those_without_a_sketch_refused(known, tmp_path, empty):
    assert known.export_sketches(tmp_path / "two.safetensors", ["base", "third"]) == 2
    with pytest.raises(KinbaseError, match="sketch"):
        empty.export_sketches(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": "another"}, "is no file of sketches"),
        ({"scheme": "old"}, "export them again"),
        ({"models": "[]"}, "is no file of sketches"),
        ({"models": "[" * 100_000}, "is no file of sketches"),
        ({"models": '[{"name": "a\\nb", "numel": 1}]'}, "is no file of sketches"),
        ({"models": '[{"name": "a", "numel": -1}]'}, "is no file of sketches"),
    ],
)
def test_a_harmed_file_is_one_line(known, models, tmp_path, change, why):
    path = tmp_path / "harmed.safetensors"
    told = {"format": FORMAT, "scheme": SCHEME, "models": '[{"name": "a", "numel": 1}]'}
    save_file({"sketches": np.zeros((1, BUCKETS), np.float32)}, path, metadata=told | change)
    with pytest.raises(UsageError, match=why) as caught:
        known.scan(str(models["tuned"]), against=path)
    assert "\n" not in str(caught.value)
    assert load_file(path)["sketches"].shape == (1, BUCKETS)


def test_wrong_requests_are_one_line(models, cli):
    for arguments, code, words in [
        (("scan", models["tuned"]), 1, "there is no database"),
        (("scan", "nobody"), 1, "nobody does not exist"),
        (("scan", models["tuned"], "-k", "0"), 2, "-k must be 1 or more"),
        (("scan", models["tuned"], "--sketches", "none"), 2, "cannot read 'none'"),
        (("export", "--sketches", "a", "-o", "b"), 2, "name one file"),
        (("export",), 2, "name one file"),
    ]:
        failed = cli(*arguments)
        assert failed.returncode == code and words in failed.stderr and failed.stderr.count("\n") == 1, (
            failed.stderr
        )
