"""Families so large that their products lie in a file and their pairs are stored in slices: nothing else changes."""

import errno
import os

import families
import pytest

import kinbase
from kinbase.errors import DiskError
from kinbase.ingest import family_pass, finished, persist, stored_sums
from kinbase.kinship import sums
from kinbase.store import kinship as stored
from kinbase.store.names import missing_pairs

PAIRS = "select * exclude (dots) from raw.pair order by a_id, b_id"
DOTS = "select a_id, b_id, unnest(dots) from raw.pair order by all"


def rows(db, query):
    with db.store.reading() as con:
        return con.execute(query).fetchall()


@pytest.fixture
def small(tmp_path, members):
    """The same family, stored in one transaction."""
    db = kinbase.open(tmp_path / "small.duckdb")
    assert set(db.import_(members, base="base")["status"]) == {"imported"}
    return db


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A database for which every family is a large one."""
    monkeypatch.setattr(sums, "IN_MEMORY", 0)
    monkeypatch.setattr(sums, "BLOCK_BYTES", 1)
    for module in (persist, stored_sums):
        monkeypatch.setattr(module, "SLICE_BYTES", 0)
    monkeypatch.setattr(stored_sums, "GIVE_WAY", 0.0)
    return kinbase.open(tmp_path / "large.duckdb")


def test_a_large_family_is_stored_as_a_small_one(small, large, members):
    assert set(large.import_(members, base="base")["status"]) == {"imported"}
    for query in (PAIRS, DOTS, "from raw.pair_part order by all", "from raw.delta order by all"):
        assert rows(large, query) == rows(small, query)
    assert rows(large, "from raw.unfinished") == []
    # The two shorter ones share fewer rows than the other has, with each of the six others and each other.
    assert len(rows(large, "from raw.pair_part")) == 2 * 6 + 1


def test_readers_come_to_their_turn_between_slices(large, members, monkeypatch):
    """Every slice is a connection of its own, and what it wrote is there before the next."""
    seen = []
    put_pairs = stored.put_pairs

    def counting(con, base_id, block):
        seen.append(con.execute("select count(*) from raw.pair").fetchall()[0][0])
        put_pairs(con, base_id, block)

    monkeypatch.setattr(stored, "put_pairs", counting)
    opened = []
    writing = large.store.writing
    monkeypatch.setattr(type(large.store), "writing", lambda store: opened.append(seen[-1:]) or writing())
    large.import_(members, base="base")
    count = len(members) - 1
    assert len(seen) == count - 1 and len(opened) == len(seen) + 2
    assert seen == [sum(count - 1 - k for k in range(i)) for i in range(count - 1)]


def test_an_import_killed_between_slices_goes_on(small, large, members, monkeypatch):
    put_pairs, blocks = stored.put_pairs, []

    def interrupted(con, base_id, block):
        blocks.append(block)
        if len(blocks) == 3:
            raise KeyboardInterrupt
        put_pairs(con, base_id, block)

    monkeypatch.setattr(stored, "put_pairs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        large.import_(members, base="base")
    assert 0 < len(rows(large, PAIRS)) < len(rows(small, PAIRS))
    assert len(rows(large, "from raw.unfinished")) == len(members) - 1
    monkeypatch.setattr(stored, "put_pairs", put_pairs)
    assert large.import_(members, base="base")["status"].to_list() == ["unchanged"] + ["imported"] * 8
    assert rows(large, PAIRS) == rows(small, PAIRS)
    assert rows(large, "from raw.unfinished") == []
    assert set(large.import_(members, base="base")["status"]) == {"unchanged"}


def test_a_pass_over_a_large_family_goes_on(small, large, members, monkeypatch):
    monkeypatch.setattr(finished, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(finished, "SAVED_AT_ONCE", 1)
    run, positions = family_pass.run, []

    def interrupted(plan, **options):
        for number, tensor in enumerate(run(plan, **options)):
            if number == 7:
                raise KeyboardInterrupt
            yield tensor

    def watched(plan, **options):
        for tensor in run(plan, **options):
            positions.append(tensor.position)
            yield tensor

    monkeypatch.setattr(family_pass, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        large.import_(members, base="base")
    assert rows(large, "select count(*) from raw.pass where position >= 0") == [(7,)]
    monkeypatch.setattr(family_pass, "run", watched)
    large.import_(members, base="base")
    assert positions and 6 not in positions
    assert rows(large, PAIRS) == rows(small, PAIRS) and rows(large, DOTS) == rows(small, DOTS)
    assert rows(large, "select sums from raw.sketch order by model_id") == rows(
        small, "select sums from raw.sketch order by model_id"
    )
    assert rows(large, "from raw.pass") == []


def test_no_room_for_the_products_is_told_with_the_place(large, members, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskError, match=r"cannot be kept in .*: No space left on device; make room there"):
        large.import_(members, base="base")
    assert not large.store.path.exists() or rows(large, "from raw.model") == []


def test_pairs_are_missing_as_the_definition_says(small, family, tmp_path):
    """Without their sums, or with an estimate in place of them, of one model or among several."""
    names = sorted(name for name, base in rows(small, "select name, base from models") if base)
    with small.store.writing() as con:
        con.execute("delete from raw.pair where (a_id + b_id) % 3 = 0")
    known = {
        frozenset(pair) for pair in rows(small, "select model_a, model_b from kinship where method = 'exact'")
    }
    pairs = {frozenset((a, b)) for a in names for b in names if a < b}
    assert known and pairs - known
    with small.store.reading() as con:
        for chosen in ([names[0]], [names[3]], names[:4], names):
            found = missing_pairs(con, chosen, exact=True)
            asked = {p for p in pairs if (p & set(chosen) if len(chosen) == 1 else p <= set(chosen))}
            assert {frozenset(pair) for pair in found.get("base", [])} == asked - known
        assert missing_pairs(con, ["base"]) == {} == missing_pairs(con, [*names[:1], "base"])


def test_families_of_the_fixture_have_no_large_products(family):
    """What the tests above force is not the rule: a family like this is kept in memory."""
    assert 8 * 20 * len(families.llama_shapes()) * 8 < sums.IN_MEMORY
