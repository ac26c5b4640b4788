"""`kinbase check --deep` finds what the files and the rows do not bear out, and `kinbase repair` mends what is certain."""

import os
import shutil
from pathlib import Path

import duckdb
import pytest

import kinbase


@pytest.fixture
def own(tmp_path, family):
    """A database whose files are the test's own, which it may spoil."""
    folders = [Path(shutil.copytree(folder, tmp_path / "models" / name)) for name, folder in family.items()]
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_(folders, base="base")
    return db


def spoil(db, *statements):
    with duckdb.connect(db.store.path) as con:
        for statement in statements:
            con.execute(statement)


def found(db, *names, verdict="contradicted"):
    """Subject and claim of what `check --deep` says with a verdict, beside what the weights say of lineage."""
    rows = [row for row in db.check(names, deep=True).to_dicts() if row["claim"] != "no parents named"]
    return {(row["subject"], row["claim"]) for row in rows if row["verdict"] == verdict}


def test_a_sound_database_is_supported_through_and_through(own):
    assert found(own) == set()
    supported = found(own, verdict="supported")
    for name in ("ft_a", "ft_b", "ft_c", "merge_ab"):
        assert {(name, "digest"), (name, "sums")} <= supported
    assert ("base", "Gram matrix of 4 models") in supported
    assert own.repair() == []


@pytest.mark.parametrize(
    ("statement", "claim"),
    [
        ("update raw.delta set sum = sum + 0.01 where model_id = {ft_a}", "sum of "),
        ("update raw.delta set sumsq = sumsq * 1.01 where model_id = {ft_a}", "squares of "),
        (
            "update raw.pair set dot = dot + 0.01 * sqrt(sumsq_a * sumsq_b), "
            "dots = list_transform(dots, lambda x: x + 0.01 * sqrt(sumsq_a * sumsq_b) / len(dots)) "
            "where a_id = {ft_a} and b_id = {ft_b}",
            "product with ft_b in ",
        ),
    ],
)
def test_sums_that_the_files_do_not_give_are_contradicted(own, statement, claim):
    ids = dict(own.sql("select name, model_id from raw.model").rows())
    spoil(own, statement.format(**ids))
    claims = {what for subject, what in found(own, "ft_a") if subject == "ft_a"}
    assert claims and all(what.startswith(claim) for what in claims)


def test_weights_changed_behind_their_date_have_another_digest(own, tmp_path):
    path = tmp_path / "models" / "ft_b" / "model.safetensors"
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ("ft_b", "digest") in found(own)
    # A date that moved tells by itself that the sums are of other files.
    os.utime(path)
    assert found(own, "ft_b", verdict="undecidable") == {("ft_b", "files")}


def test_products_that_no_vectors_have_are_contradicted(own):
    ids = dict(own.sql("select name, model_id from raw.model").rows())
    a, b, c = ids["ft_a"], ids["ft_b"], ids["ft_c"]

    def alike(first, second, cosine):
        return (
            f"update raw.pair set dot = {cosine} * sqrt(sumsq_a * sumsq_b), "
            f"dots = list_transform(dots, lambda x: {cosine} * sqrt(sumsq_a * sumsq_b) / len(dots)) "
            f"where a_id = {first} and b_id = {second}"
        )

    # Each pair may be so by itself; all three cannot: two that are near a third are near each other.
    spoil(own, alike(a, b, 0.99), alike(b, c, 0.99), alike(a, c, -0.99))
    assert ("base", "Gram matrix of 4 models") in found(own, "merge_ab")
    spoil(own, alike(a, b, 1.5))
    rows = own.check(["merge_ab"], deep=True)
    (detail,) = rows.filter(subject="ft_a", claim="kinship with ft_b")["detail"]
    assert detail == "their product is larger than their lengths allow"


def test_rows_about_nothing_are_told_and_mended(own):
    own.tag("ft_b", ["good"])
    ids = dict(own.sql("select name, model_id from raw.model").rows())
    spoil(own, f"delete from raw.model where model_id = {ids['merge_ab']}")
    lost = found(own, "ft_b")
    assert ("pair", "b_id of its rows") in lost and ("delta", "model_id of its rows") in lost
    copies = []
    said = own.repair(on_backup=copies.append)
    assert len(copies) == 1 and any(
        "of delta spoke of what is not there (model_id) and went" in s for s in said
    )
    assert found(own) == set()
    assert own.repair() == []
    # What was certain stays: the others, and their kinship.
    assert own.names() == ["base", "ft_a", "ft_b", "ft_c"]
    assert own.sql("select count(*) from kinship where model_a < model_b").item() == 3
    assert own.sql("select tags from models where name = 'ft_b'").item().to_list() == ["good"]
