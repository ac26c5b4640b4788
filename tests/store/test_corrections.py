"""What is said by hand: models removed, renamed, joined, tagged, set and scored."""

import families
import pytest

from kinbase.errors import KinbaseError, UsageError


def facts(db, name):
    return db.sql("from models where name = ?", [name]).row(0, named=True)


def test_a_removed_model_leaves_nothing_where_nothing_speaks_of_it(db, family):
    removed = db.rm(["merge_ab"])
    assert (removed.gone, removed.kept) == (["merge_ab"], [])
    assert "merge_ab" not in db.names()
    assert not db.sql("from kinship where 'merge_ab' in (model_a, model_b)").height
    assert (family["merge_ab"] / "model.safetensors").exists()
    assert db.import_([family["merge_ab"]], base="base")["status"].to_list() == ["imported"]
    assert db.kinship(["merge_ab", "ft_a"])["pcc"][0] > 0.5


def test_children_keep_the_name_of_what_was_removed(db):
    db.link("merge_ab", ["ft_a", "ft_b"])
    assert db.standings(["ft_a"])[0].children == 1
    removed = db.rm(["ft_a"])
    assert removed.kept == ["ft_a"]
    about = facts(db, "ft_a")
    assert (about["has_weights"], about["source"], about["base"], about["parameters"]) == (
        False,
        None,
        None,
        None,
    )
    assert set(db.sql("select parent from lineage where child = 'merge_ab'")["parent"]) == {"ft_a", "ft_b"}


def test_names_that_only_a_removed_model_spoke_of_go_with_it(db):
    db.link("ft_a", ["ghost", "known"])
    db.tag("known", ["keep"])
    assert db.rm(["ft_a"]).orphans == ["ghost"]
    assert "known" in db.names() and "ghost" not in db.names()


def test_a_removed_base_leaves_what_was_measured_against_it(db, family, tmp_path):
    before = db.kinship(["ft_a", "ft_b"])["pcc"][0]
    assert db.standings(["base"])[0].members == 4
    assert db.rm(["base"]).kept == ["base"]
    assert db.kinship(["ft_a", "ft_b"])["pcc"][0] == before
    other = tmp_path / "base"
    families.write_safetensors(other / "model.safetensors", families.family_weights(seed=9)["base"])
    (row,) = db.import_([other]).to_dicts()
    assert row["status"] == "failed" and "other weights for their base" in row["notes"][-1]
    assert db.import_([family["base"]])["status"].to_list() == ["imported"]
    assert db.sql("select base from models where name = 'ft_a'")["base"].to_list() == ["base"]


def test_an_old_name_leads_to_the_model_unless_it_is_forgotten(db):
    db.rename("ft_a", "first")
    assert db.resolved(["ft_a"]) == ["first"]
    db.rename("first", "ft_a")
    assert db.resolved(["first"]) == ["ft_a"]
    db.rename("ft_a", "second", forget=True)
    with pytest.raises(KinbaseError, match="there is no model"):
        db.resolved(["ft_a"])


def test_a_taken_name_is_refused(db):
    for verb in (db.rename, db.alias):
        with pytest.raises(KinbaseError, match="'ft_b' is a name of 'ft_b' already"):
            verb("ft_a", "ft_b")
    db.link("ft_a", ["ghost"])
    with pytest.raises(KinbaseError, match="kinbase alias ft_b ghost"):
        db.rename("ft_b", "ghost")
    with pytest.raises(UsageError, match="letters that can be seen"):
        db.rename("ft_b", "x\x1b[2J")


def test_an_alias_joins_a_name_with_what_was_said_of_it(db):
    db.link("ft_a", ["org/parent"])
    db.tag("org/parent", ["keep"])
    db.set("org/parent", license="mit", notes="of old")
    db.alias("base", "org/parent")
    about = facts(db, "base")
    assert (about["license"], about["notes"], about["tags"]) == ("mit", "of old", ["keep"])
    assert db.unalias("org/parent") == "base"
    for name, words in (("base", "own name"), ("nobody", "no model's other name")):
        with pytest.raises(KinbaseError, match=words):
            db.unalias(name)


def test_no_file_replaces_what_was_set(db, tmp_path):
    db.set("ft_a", license="mit", created_at="2025-03-01T12:00+02:00")
    card = tmp_path / "ft_a" / "README.md"
    card.parent.mkdir()
    card.write_text("---\nlicense: apache-2.0\n---\n# ft_a\n")
    db.import_([card])
    about = facts(db, "ft_a")
    assert (about["license"], str(about["created_at"])) == ("mit", "2025-03-01 10:00:00")
    db.set("ft_a", license="")
    assert facts(db, "ft_a")["license"] is None
    with pytest.raises(UsageError, match="cannot be set"):
        db.set("ft_a", digest="x")
    with pytest.raises(UsageError, match="is no date"):
        db.set("ft_a", created_at="last week")


def test_a_name_is_not_given_to_the_model_that_has_it(db):
    number = db.log().height
    with pytest.raises(KinbaseError, match="is called that already"):
        db.rename("ft_a", "ft_a")
    assert db.log().height == number


def test_a_score_is_of_the_benchmark_that_is_known(db):
    db.score("ft_a", "GSM8K", 61.5, metric="exact_match")
    (row,) = db.score("ft_b", "gsm8k", 60).to_dicts()
    assert (row["benchmark"], row["metric"]) == ("GSM8K", "exact_match")
    db.score("ft_b", "gsm8k", 61, metric="f1")
    with pytest.raises(UsageError, match="exact_match and by f1 here: say which"):
        db.score("ft_c", "Gsm8k", 60)
    assert db.score("ft_c", "new", 1)["metric"].to_list() == ["acc"]
    db.score("ft_c", "gsm8k", 59, metric="acc")
    assert db.score("ft_a", "gsm8k", 58)["metric"].to_list() == ["acc"]


def test_a_score_said_again_is_the_score(db):
    db.score("ft_a", "mmlu", 61.5, date="2026-01-01")
    db.score("ft_a", "mmlu", 71.5)
    db.score("ft_a", "mmlu", 61.5)
    assert db.score("ft_a", "mmlu", 50, n_shot=5)["value"].to_list() == [61.5, 50.0]
    assert db.sql("select distinct source from scores_all")["source"].to_list() == ["user"]
    with pytest.raises(UsageError, match="no result"):
        db.score("ft_a", "mmlu", float("nan"))


def test_tags_filter(db):
    from kinbase.query import filters, models

    db.tag("ft_a", ["keep", "best"])
    db.tag("ft_b", ["keeper"])
    db.set("ft_c", notes="A draft")
    with db.store.reading() as con:
        found = {
            typed: [e.name for e in models.matching(con, filters.parse(typed), "name").entries]
            for typed in ("tag:Keep", "tag:nosuch", "notes:draft")
        }
    assert found == {"tag:Keep": ["ft_a"], "tag:nosuch": [], "notes:draft": ["ft_c"]}
    assert db.untag("ft_a", ["best"]) == ["best"]
    with pytest.raises(KinbaseError, match="has no tag best"):
        db.untag("ft_a", ["best"])
