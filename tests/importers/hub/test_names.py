"""Names, addresses, revisions and commits of the Hub."""

import pytest
from hub_models import card, files_of


def test_a_renamed_model_keeps_its_old_name_as_an_alias(hub, db, family):
    db.import_(["hf:org/ft_a"], metadata_only=True)  # its card names org/base, known by name alone
    hub.rename("org/base", "org/renamed")
    (row,) = db.import_(["hf:org/base"], metadata_only=True).to_dicts()
    assert row["model"] == "org/renamed"
    assert ("org/base", "org/renamed", "redirect") in db.sql("select alias, model, kind from aliases").rows()
    assert db.sql("select parent from lineage").rows() == [("org/renamed",)]
    hub.heal()
    assert db.import_(["hf:org/base"], metadata_only=True)["status"].to_list() == ["unchanged"]
    for how in ({"stream": True}, {}):
        assert db.import_(["hf:org/base"], **how)["status"].to_list() == ["imported"]
    assert db.models("base").height == 0 and db.show("org/base")["name"].to_list() == ["org/renamed"]


def test_the_address_of_a_page_is_its_model(hub, db):
    found = db.import_(["https://huggingface.co/org/ft_a"], metadata_only=True)
    assert found.select("source", "model", "status").rows() == [("hf:org/ft_a", "org/ft_a", "metadata")]
    assert db.import_(["hf:org/ft_a"], metadata_only=True)["status"].to_list() == ["unchanged"]


def test_a_revision_is_pinned_to_its_commit(hub, db, family):
    first = hub.put("org/moving", files_of(family["ft_a"]), branch="v1")
    hub.put("org/moving", files_of(family["ft_a"]))
    db.import_(["hf:org/moving@v1"], metadata_only=True)
    assert db.models("moving")["revision"].to_list() == [first]
    aliases = db.sql("select alias from aliases where kind = 'revision' order by 1")["alias"].to_list()
    assert aliases == sorted([f"org/moving@{first}", "org/moving@v1"])
    found = db.import_([f"hf:org/moving@{first}"], metadata_only=True)
    assert found["status"].to_list() == ["unchanged"]


@pytest.mark.parametrize("how", [{"stream": True}, {}])
def test_another_version_of_a_model_is_another_model(hub, db, family, how):
    db.import_(["hf:org/ft_a"], **how)
    before = db.models("org/ft_a").row(0, named=True)
    commit = hub.put("org/ft_a", files_of(family["ft_b"], README__md=card("org/base")))
    (row,) = db.import_(["hf:org/ft_a"], **how).to_dicts()
    assert row["model"] == f"org/ft_a@{commit[:12]}" and row["status"] == "imported"
    assert "another version" in row["notes"][0]
    assert (
        db.sql("select * exclude (imported_at) from models where name = 'org/ft_a'")
        .row(0, named=True)
        .items()
        <= before.items()
    )
    assert db.import_(["hf:org/ft_a"], **how)["status"].to_list() == ["unchanged"]
    assert db.sql("select count(*) from lineage where parent = 'org/base'").item() == 2


def test_a_newer_commit_renews_metadata(hub, db, family):
    db.import_(["hf:org/ft_a"], metadata_only=True)
    commit = hub.put("org/ft_a", files_of(family["ft_a"], README__md=card("org/other")))
    assert db.import_(["hf:org/ft_a"], metadata_only=True)["status"].to_list() == ["metadata"]
    assert db.models("ft_a")["revision"].to_list() == [commit]
    assert db.sql("select parent from lineage where child = 'org/ft_a'").rows() == [("org/other",)]


def test_two_versions_asked_for_are_two_models_by_their_metadata_too(hub, db, family):
    first = hub.put("org/moving", files_of(family["ft_a"], README__md=card("org/base")))
    second = hub.put("org/moving", files_of(family["ft_b"], README__md=card("org/other")), branch="v2")
    found = db.import_([f"hf:org/moving@{first}", "hf:org/moving@v2"], metadata_only=True)
    assert found["status"].to_list() == ["metadata", "metadata"]
    revisions = dict(db.models("org/moving").select("revision", "name").rows())
    # Side by side or not, it is the first that is called as the model.
    assert revisions == {first: "org/moving", second: f"org/moving@{second[:12]}"}
    parents = dict(db.sql("select child, parent from lineage where relation = 'finetune'").rows())
    assert parents == {revisions[first]: "org/base", revisions[second]: "org/other"}
    for label, commit in ((f"org/moving@{first}", first), ("org/moving@v2", second)):
        assert db.show(label)["name"].to_list() == [revisions[commit]]
    again = db.import_([f"hf:org/moving@{first}", "hf:org/moving@v2"], metadata_only=True)
    assert again["status"].to_list() == ["unchanged", "unchanged"]


def test_an_old_version_that_is_asked_for_after_a_renewal_does_not_take_the_new_ones_place(hub, db, family):
    first = hub.put("org/moving", files_of(family["ft_a"]))
    db.import_(["hf:org/moving"], metadata_only=True)
    second = hub.put("org/moving", files_of(family["ft_b"]))
    db.import_(["hf:org/moving"], metadata_only=True)
    (row,) = db.import_([f"hf:org/moving@{first}"], metadata_only=True).to_dicts()
    assert row["model"] == f"org/moving@{first[:12]}" and "another version" in row["notes"][0]
    assert dict(db.models("org/moving").select("name", "revision").rows()) == {
        "org/moving": second,
        f"org/moving@{first[:12]}": first,
    }
    assert db.show(f"org/moving@{first}")["name"].to_list() == [f"org/moving@{first[:12]}"]
