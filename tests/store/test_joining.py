"""Two databases joined: what both know is one, what disagrees is told and kept apart, and undo takes all of it back."""

import json
import shutil

import numpy as np
import pytest
from stored import rows

import kinbase
from kinbase.errors import KinbaseError
from kinbase.store import integrity


def without_acts(db):
    """What is stored but for the acts: their moments differ."""
    return {table: found for table, found in rows(db).items() if table not in ("act", "change")}


@pytest.fixture(scope="session")
def sides(tmp_path_factory, family):
    """Two databases that know the base and ft_b by different names, and one model each that the other does not."""
    root = tmp_path_factory.mktemp("sides")
    ours, theirs = kinbase.open(root / "ours.duckdb"), kinbase.open(root / "theirs.duckdb")
    ours.import_([family[name] for name in ("base", "ft_a", "ft_b")], base="base")
    theirs.import_([family["ft_c"]], name="third", kinship=False)  # so that their numbers are not ours
    theirs.import_([family["base"]], name="foundation")
    theirs.import_([family[name] for name in ("ft_c", "ft_b")], base="foundation")
    return ours.store.path, theirs.store.path


@pytest.fixture
def ours(sides, tmp_path):
    return kinbase.open(shutil.copy(sides[0], tmp_path / "ours.duckdb"))


@pytest.fixture
def theirs(sides, tmp_path):
    return kinbase.open(shutil.copy(sides[1], tmp_path / "theirs.duckdb"))


def hear(db, tmp_path, child, parent):
    """A table that says who was made from whom, of models that may be new."""
    table = tmp_path / f"{child}.json"
    table.write_text(json.dumps([{"child": child, "parent": parent, "relation": "finetune"}]))
    db.import_([table])


def joined(ours, theirs, tmp_path, name="team"):
    """What is told of theirs coming into ours."""
    folder = tmp_path / f"{name}.kinbase"
    if not folder.exists():
        theirs.export(folder)
    return ours.import_([folder])["notes"].item().to_list()


def test_what_both_measured_is_one_family(ours, theirs, tmp_path, family):
    notes = joined(ours, theirs, tmp_path)
    assert notes[0].startswith("joined: 2 models were here (2 by their weights, 0 by name), 1 are new")
    assert sorted(ours.names()) == ["base", "ft_a", "ft_b", "third"]
    assert ours.resolved(["foundation"]) == ["base"]
    # Their pair, and then those between the two sides, are what one import of all measures.
    at_once = kinbase.open(tmp_path / "at_once.duckdb")
    at_once.import_([family[name] for name in ("base", "ft_a", "ft_b")], base="base")
    at_once.import_([family["ft_c"]], name="third", base="base")
    query = "select model_a, model_b, base, pcc, cs, ed, coverage, method from kinship where method = 'exact' order by all"
    assert set(ours.sql(query).rows()) <= set(at_once.sql(query).rows())
    assert ours.sql(query).height == 4
    assert ours.measure(["ft_a", "ft_b", "third"]) == []
    np.testing.assert_array_equal(ours.sql(query)["pcc"].to_numpy(), at_once.sql(query)["pcc"].to_numpy())
    assert ours.sql("from deltas order by all").equals(at_once.sql("from deltas order by all"))
    with pytest.raises(KinbaseError, match="cannot be undone"):  # measured since then
        ours.undo()
    assert ours.names() == ["base", "ft_a", "ft_b", "third"]


def test_undo_takes_all_of_it_back(ours, theirs, tmp_path):
    theirs.link("third", ["ft_b", "ghost"], weights=[0.5, 0.5])
    theirs.score("third", "mmlu", 61.5)
    theirs.set("ft_b", license="mit", notes="theirs")
    theirs.tag("foundation", ["keep"])
    before = rows(ours)
    joined(ours, theirs, tmp_path)
    assert ours.models("ft_b")["license"].item() == "mit"
    assert ours.models("base")["tags"].to_list() == [["keep"]]
    assert rows(ours) != before
    assert len(ours.undo()) == 1
    assert rows(ours) == before


def test_joining_again_adds_nothing(ours, theirs, tmp_path):
    ours.link("ft_b", ["ft_a"])
    theirs.link("ft_b", ["third", "ghost"], weights=[0.5, 0.5])
    ours.score("ft_b", "mmlu", 60)
    theirs.score("ft_b", "mmlu", 61)
    theirs.link("foundation", ["/data/merged"])
    joined(ours, theirs, tmp_path)
    once = without_acts(ours)
    notes = joined(ours, theirs, tmp_path)
    assert "0 are new; nothing else added" in notes[0]
    assert without_acts(ours) == once


def test_a_name_of_other_weights_is_kept_apart(ours, theirs, tmp_path):
    theirs.rename("third", "ft_a")
    theirs.score("ft_a", "mmlu", 61.5)
    notes = joined(ours, theirs, tmp_path)
    assert "ft_a is another model here than there: theirs is ft_a@team" in notes
    assert ours.sql("select model, value from scores").rows() == [("ft_a@team", 61.5)]
    assert (
        ours.sql("select count(distinct digest) from models where name in ('ft_a', 'ft_a@team')").item() == 2
    )


def test_a_mere_name_becomes_whole_and_keeps_what_was_said_of_it(empty, theirs, tmp_path):
    hear(empty, tmp_path, "third", "foundation")
    empty.set("third", license="mit")
    theirs.set("third", license="apache-2.0")
    notes = joined(empty, theirs, tmp_path)
    assert notes[0].startswith("joined: 2 models were here (0 by their weights, 2 by name), 1 are new")
    assert any("third: license is 'mit' here and 'apache-2.0' there" in note for note in notes)
    (model,) = empty.models("third").to_dicts()
    assert model["has_weights"] and model["license"] == "mit" and model["base"] == "foundation"
    assert empty.sql("select count(*) from kinship").item() == 2


def test_claims_and_scores_that_disagree_stand_beside(ours, theirs, tmp_path):
    for db, parent, value in ((ours, "ft_a", 60.0), (theirs, "third", 61.0)):
        db.link("ft_b", [parent], relation="finetune")
        db.score("ft_b", "mmlu", value)
        db.score("ft_b", "gsm8k", 50.0)
    notes = joined(ours, theirs, tmp_path)
    assert any("ft_b: parents by user are others" in note for note in notes)
    assert any("ft_b: mmlu acc of user is another" in note for note in notes)
    claims = "select parent, evidence, source from lineage where child = 'ft_b' order by all"
    assert ours.sql(claims).rows() == [("ft_a", "user", None), ("third", "reported", "team: user")]
    assert ours.sql("select benchmark, value, source from scores order by all").rows() == [
        ("gsm8k", 50.0, "user"), ("mmlu", 60.0, "user"), ("mmlu", 61.0, "team: user"),
    ]  # fmt: skip


def test_two_strangers_paths_are_two_models(empty, theirs, tmp_path):
    hear(empty, tmp_path, "mine", "elsewhere")
    empty.link("mine", ["/data/merged"])
    theirs.link("third", ["/data/merged"])
    joined(empty, theirs, tmp_path)
    assert {"/data/merged", "/data/merged@team"} <= set(empty.names())
    assert empty.sql("select parent from lineage where child = 'third'").rows() == [("/data/merged@team",)]


def test_a_name_taken_here_is_told(ours, theirs, tmp_path):
    theirs.alias("third", "ft_a")
    notes = joined(ours, theirs, tmp_path)
    assert "ft_a is another model here: there it is a name of third" in notes
    assert ours.resolved(["ft_a"]) == ["ft_a"]


def test_what_was_measured_against_another_base_is_left_out_and_told(theirs, tmp_path, family):
    ours = kinbase.open(tmp_path / "other.duckdb")
    ours.import_([family["ft_a"], family["ft_b"]], base=family["ft_a"])
    deltas = ours.sql("from deltas order by all")
    notes = joined(ours, theirs, tmp_path)
    assert any("ft_b is measured against ft_a here and against foundation there" in note for note in notes)
    assert ours.sql("from deltas where model = 'ft_b' order by all").equals(deltas)
    assert ours.sql("select count(*) from kinship where 'ft_b' in (model_a, model_b)").item() == 0
    assert not (ours.check()["verdict"] == "contradicted").any()


def test_runs_keep_their_children_and_a_run_of_the_same_name_is_another(ours, theirs, tmp_path):
    insert = """
        insert into raw.run (name, strategy, status, config, started_at) values ('r', 'greedy', 'finished', '{}', $1);
    """
    for db, parents, moment in (
        (ours, ["ft_a", "ft_b"], "2026-01-01"),
        (theirs, ["third", "ft_b"], "2026-01-02"),
    ):
        with db.store.writing() as con:
            con.execute(insert.replace("$1", f"'{moment}'"))
            ids = [con.execute("select resolve(?)", [p]).fetchall()[0][0] for p in parents]
            con.execute(
                "insert into raw.offspring (run_id, generation, position, child, parent_ids, role, reason, status) "
                "select run_id, 1, 0, 'child', ?::integer[], 'pair', 'best', 'planned' from raw.run",
                [ids],
            )
    notes = joined(ours, theirs, tmp_path)
    assert "the run r is another one here than there: theirs is r@team" in notes
    query = "select run, parents from offspring order by all"
    assert ours.sql(query).rows() == [("r", ["ft_a", "ft_b"]), ("r@team", ["third", "ft_b"])]
    once = without_acts(ours)
    joined(ours, theirs, tmp_path)
    assert without_acts(ours) == once


def test_damage_leaves_everything_as_it_was(ours, theirs, tmp_path):
    with theirs.store.writing() as con:  # what no Kinbase writes
        con.execute(
            "insert into raw.claim (child_id, parent_id, relation, evidence) values (999, 998, 'x', 'user')"
        )
    before = rows(ours)
    theirs.export(tmp_path / "team.kinbase")
    shutil.copytree(tmp_path / "team.kinbase", tmp_path / "half.kinbase")
    (tmp_path / "half.kinbase" / "score.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(KinbaseError, match=r"score\.parquet"):
        ours.import_([tmp_path / "half.kinbase"])
    assert rows(ours) == before
    joined(ours, theirs, tmp_path)  # rows that lead nowhere are left out
    with ours.store.reading() as con:
        assert integrity.dangling(con) == []


def test_the_command_line_tells_and_undoes(ours, theirs, tmp_path, cli):
    theirs.export(tmp_path / "team.kinbase")
    run = cli("--db", ours.store.path, "import", "team.kinbase")
    assert run.returncode == 0 and "joined: 2 models were here" in run.stderr
    run = cli("--db", ours.store.path, "undo")
    assert run.returncode == 0 and "import team.kinbase" in run.stderr + run.stdout
    run = cli("--db", ours.store.path, "import", "team.kinbase", "--name", "x")
    assert run.returncode == 2 and "by itself" in run.stderr
