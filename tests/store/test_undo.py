"""Every act by hand, and an import of records, can be taken back: then the database is what it was, row for row."""

import json
import shutil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stored import rows

import kinbase
from kinbase.errors import KinbaseError
from kinbase.store import journal


@pytest.fixture(scope="session")
def models(tmp_path_factory, family):
    """The family in a folder of its own, where one of its models may be moved."""
    home = tmp_path_factory.mktemp("models")
    for name, folder in family.items():
        shutil.copytree(folder, home / name)
    return home


@pytest.fixture(scope="session")
def measured(tmp_path_factory, models, family):
    """A database with the whole family measured in it, and claims, to copy."""
    path = tmp_path_factory.mktemp("measured") / "kin.duckdb"
    db = kinbase.open(path)
    db.import_([models / name for name in family], base="base")
    db.link("merge_ab", ["ft_a", "ft_b"], method="linear", weights=[0.6, 0.4])
    return path


@pytest.fixture(scope="session")
def team(tmp_path_factory, family):
    """A whole export of another database, which calls some of the same models otherwise and says other things of them."""
    root = tmp_path_factory.mktemp("team")
    db = kinbase.open(root / "other.duckdb")
    db.import_([family[name] for name in ("base", "ft_b")], base="base")
    db.import_([family["merge_ab"]], name="ft_c", kinship=False)  # ours is another
    db.link("ft_b", ["ghost", "org/other"], method="slerp")
    db.set("ft_b", license="apache-2.0", notes="theirs")
    db.score("base", "mmlu", 7.5)
    db.tag("ft_c", ["x"])
    db.alias("base", "ft_a")
    db.export(root / "team.kinbase")
    return root / "team.kinbase"


NAMES = ["base", "ft_a", "ft_b", "ft_c", "merge_ab", "ghost", "org/other", "it's [new], a \\ name"]
name = st.sampled_from(NAMES)
act = st.one_of(
    st.tuples(st.just("link"), name, st.lists(name, min_size=1, max_size=2)),
    st.tuples(st.just("unlink"), name),
    st.tuples(st.just("rm"), st.lists(name, min_size=1, max_size=3)),
    st.tuples(st.just("rename"), name, name),
    st.tuples(st.just("alias"), name, name),
    st.tuples(st.just("unalias"), name),
    st.tuples(st.just("tag"), name, st.lists(st.sampled_from(["keep", "x", "ü'"]), max_size=2)),
    st.tuples(st.just("untag"), name),
    st.tuples(st.just("set"), name, st.sampled_from(["mit", "", "it's, [odd]"])),
    st.tuples(st.just("score"), name, st.floats(-1e300, 1e300)),
    st.tuples(st.just("import_"), name, name),
    st.just(("join",)),
    st.just(("relocate",)),
)


def move(models):
    """Move the files of ft_b to the other of their two places."""
    here, there = models / "ft_b", models / "moved" / "ft_b"
    there.parent.mkdir(exist_ok=True)
    shutil.move(*((here, there) if here.exists() else (there, here)))


def do(db, folder, models, verb, *told):
    if verb == "relocate":
        move(models)
        db.status(models)
    elif verb == "join":
        db.import_([folder / "team.kinbase"])
    elif verb == "import_":
        child, parent = told
        table = folder / "edges.json"
        table.write_text(json.dumps([{"child": child, "parent": parent, "relation": "finetune"}]))
        db.import_([table])
    elif verb == "set":
        db.set(told[0], license=told[1], notes=told[1] and "of\nlines")
    elif verb == "score":
        db.score(told[0], "mmlu", told[1])
    else:
        getattr(db, verb)(*told)


@settings(max_examples=8, deadline=None, database=None)
@given(acts=st.lists(act, min_size=1, max_size=6))
@example(
    acts=[("rename", "ft_b", "ghost"), ("tag", "base", ["keep"]), ("join",), ("rm", ["ft_b"]), ("join",)]
)
@example(acts=[("relocate",), ("rename", "ft_b", "ghost"), ("relocate",), ("rm", ["ft_b"]), ("relocate",)])
@example(
    acts=[("rm", ["base", "ft_b"]), ("join",), ("score", "base", 1.0), ("unlink", "merge_ab"), ("join",)]
)
def test_undoing_all_acts_gives_the_same_database(measured, models, team, tmp_path_factory, acts):
    folder = tmp_path_factory.mktemp("acts")
    shutil.copytree(team, folder / "team.kinbase")
    db = kinbase.open(shutil.copy(measured, folder / "kin.duckdb"))
    states = [rows(db)]
    for verb, *told in acts:
        is_refused = False
        try:
            do(db, folder, models, verb, *told)
        except KinbaseError:
            is_refused = True
        now = rows(db)
        if now != states[-1]:
            assert not is_refused, "a refused act changed something"
            states.append(now)
    for state in reversed(states[:-1]):
        assert len(db.undo()) == 1
        assert rows(db) == state
    assert sorted(db.log()["can_be_undone"]) == [False, True]  # the family's import, and its link
    if not (models / "ft_b").exists():
        move(models)


def test_many_acts_are_undone_at_once_or_not_at_all(measured, tmp_path):
    db = kinbase.open(shutil.copy(measured, tmp_path / "kin.duckdb"))
    before = rows(db)
    db.tag("ft_a", ["keep"])
    db.rename("ft_a", "first")
    db.score("first", "mmlu", 61.5)
    after = rows(db)
    with pytest.raises(KinbaseError, match="only 4 acts to undo"):
        db.undo(9)
    assert rows(db) == after
    assert [line.split()[1] for line in db.undo(3)] == ["score", "rename", "tag"]
    assert rows(db) == before


def test_acts_that_stay_are_told(measured, models, tmp_path):
    db = kinbase.open(shutil.copy(measured, tmp_path / "kin.duckdb"))
    shutil.copytree(models / "ft_b", tmp_path / "new")
    db.tag("ft_a", ["keep"])
    db.import_([tmp_path / "new"], kinship=False)
    db.set("ft_a", notes="later")
    assert [line.partition(":")[0] for line in db.undo(2)] == ["undone", "stays", "undone"]
    with pytest.raises(KinbaseError, match="is only 1 act to undo: 2 others made or measured weights"):
        db.undo(2)


def test_records_said_again_are_no_act(empty, tmp_path):
    table = tmp_path / "edges.json"
    edges = [
        {"child": "a", "parent": parent, "relation": "merge", "weight": 0.5} for parent in ("b", "b", "c")
    ]
    table.write_text(json.dumps(edges))
    empty.import_([table])
    before = rows(empty)
    assert empty.log().height == 1 and empty.sql("from lineage").height == 3
    empty.import_([table])
    assert rows(empty) == before
    table.write_text(json.dumps(edges[1:]))
    empty.import_([table])
    assert empty.log()["changed"][0] == "claims of parents: 1 taken away"
    assert empty.sql("select parent from lineage order by 1")["parent"].to_list() == ["b", "c"]
    empty.undo()
    assert rows(empty) == before


def test_what_weights_were_built_on_is_not_undone(empty, family, tmp_path):
    table = tmp_path / "edges.json"
    table.write_text(json.dumps([{"child": "ft_a", "parent": "base", "relation": "finetune"}]))
    empty.import_([table])
    empty.import_([family["base"], family["ft_a"]], base="base")
    state = rows(empty)
    with pytest.raises(KinbaseError, match="models it left were changed since"):
        empty.undo()
    assert rows(empty) == state
    assert empty.log()["verb"].to_list() == ["import", "import"]


def test_a_row_that_another_program_changed_is_not_taken_for_the_acts(measured, tmp_path):
    db = kinbase.open(shutil.copy(measured, tmp_path / "kin.duckdb"))
    db.tag("ft_a", ["keep"])
    with db.store.writing() as con:
        con.execute("update raw.tag set tag = 'other'")
    with pytest.raises(KinbaseError, match="tags it left were changed"):
        db.undo()
    assert db.models("ft_a")["tags"].to_list() == [["other"]]


def test_an_act_that_changes_nothing_leaves_no_trace(measured, tmp_path):
    db = kinbase.open(shutil.copy(measured, tmp_path / "kin.duckdb"))
    db.tag("ft_a", ["keep"])
    number = db.log().height
    db.tag("ft_a", ["keep"])
    assert db.log().height == number


def test_the_same_rows_twice_count_as_two(empty):
    """Two equal rows, of which one goes: the other is not taken for it."""
    with empty.store.writing() as con:
        con.execute("insert into raw.tag values (1, 'x'), (1, 'x'), (1, 'y')")
    before = rows(empty)
    with empty.store.writing() as con, journal.act(con, "tag", "half"):
        con.execute("delete from raw.tag where rowid = 0")
        con.execute("insert into raw.tag values (1, 'y')")
    assert empty.log()["changed"].to_list() == ["tags: 1 changed"]
    empty.undo()
    assert rows(empty) == before


def test_what_the_weights_were_heard_to_say_is_taken_back(measured, tmp_path):
    db = kinbase.open(shutil.copy(measured, tmp_path / "kin.duckdb"))
    db.unlink("merge_ab")
    before = rows(db)
    db.recipe("merge_ab", record=True)
    db.infer(record=True)
    assert db.sql("select distinct evidence from lineage where evidence = 'weights'").height == 1
    log = db.log()["verb"].to_list()
    assert log[:2] == ["infer", "recipe"]
    assert len(db.undo(2)) == 2
    after = rows(db)
    # What was read of the weights to tell is knowledge, not an act: it stays.
    assert {table: after[table] for table in ("claim", "model", "act", "change")} == {
        table: before[table] for table in ("claim", "model", "act", "change")
    }
