"""Weights of the Hub, streamed, downloaded or sampled: the same as those of the folder."""

from pathlib import Path

import pytest
import sampled
from families import write_safetensors
from hub_models import STORAGE, asked, card, files_of, kinship, shards

import kinbase
from kinbase.importers import ranges

ADAPTERS = Path(__file__).parents[2] / "data" / "adapters"
EVERYBODY = [f"hf:org/{name}" for name in ("base", "ft_a", "ft_b", "ft_c", "merge_ab")]


@pytest.mark.parametrize("stream", [False, True])
def test_the_weights_are_those_of_the_folder(hub, db, local, stream, tmp_path):
    found = db.import_(EVERYBODY, stream=stream)  # the cards lead to the base
    assert set(found["status"]) == {"imported"}
    digests = "select replace(name, 'org/', '') as name, digest from models order by name"
    assert db.sql(digests).rows() == local.sql(digests).rows()
    assert kinship(db) == kinship(local)
    kept = list((tmp_path / "hf").rglob("*.safetensors"))
    assert len(kept) == (0 if stream else 5)


def test_a_streamed_model_is_read_again_only_when_asked(hub, db, local, family):
    db.import_(["hf:org/base", "hf:org/ft_a"], stream=True)
    db.import_(["hf:org/ft_b"], base="org/base", stream=True)  # opens base and ft_a where they lie
    expected = [row for row in kinship(local) if set(row[:2]) == {"ft_a", "ft_b"}]
    assert kinship(db) == expected
    hub.heal()
    notes = db.import_([family["ft_c"]], base="org/base")["notes"].to_list()
    assert not asked(hub)
    assert any("gone or changed" in note for note in notes[0])
    db.measure(["org/ft_a", "ft_c"])
    assert not asked(hub)


def test_a_downloaded_model_is_opened_again_without_the_network(hub, db, local, family):
    db.import_(["hf:org/base", "hf:org/ft_a"])
    hub.heal()
    db.import_([family["ft_b"]], base="org/base")
    assert not hub.seen
    expected = [row for row in kinship(local) if set(row[:2]) == {"ft_a", "ft_b"}]
    assert kinship(db) == expected


@pytest.mark.parametrize("how", [{"stream": True}, {}])
def test_shards_are_the_same_model(hub, db, local, family, how):
    hub.put("org/sharded", shards(family, "ft_a"))
    db.import_(["hf:org/sharded"], **how)
    digest = "select digest from models where name like '%{}'"
    assert db.sql(digest.format("sharded")).rows() == local.sql(digest.format("ft_a")).rows()


@pytest.mark.parametrize("how", [{"stream": True}, {}, {"metadata_only": True}])
def test_an_index_that_names_what_is_not_there(hub, db, family, how):
    hub.put("org/sharded", shards(family, "ft_a", {"extra": "../../etc/passwd"}))
    (row,) = db.import_(["hf:org/sharded"], **how).to_dicts()
    assert row["status"] == "failed" and "/tmp" not in row["notes"][-1]


@pytest.mark.parametrize("how", [{"stream": True}, {}, {"metadata_only": True}])
def test_an_adapter(hub, db, how):
    hub.put("org/lora", ADAPTERS / "rslora")
    (row,) = db.import_(["hf:org/lora"], **how).to_dicts()
    assert row["status"] == ("metadata" if how.get("metadata_only") else "imported"), row
    local = kinbase.open(db.store.path.with_name("local.duckdb"))
    local.import_([ADAPTERS / "rslora"], metadata_only=bool(how.get("metadata_only")))
    columns = "select digest, relation, parameters, dtype, bytes from models where relation = 'adapter'"
    assert db.sql(columns).rows() == local.sql(columns).rows()


@pytest.fixture
def larger(hub, tmp_path):
    """A family of 1.6 MB a model on the Hub as big/*, and its folders."""
    folders = {}
    for name, tensors in sampled.weights().items():
        folders[name] = tmp_path / "larger" / name
        write_safetensors(folders[name] / "model.safetensors", tensors)
        (folders[name] / "config.json").write_text('{"tie_word_embeddings": false}')
        beside = {} if name == "base" else {"README__md": card("big/base")}
        hub.put(f"big/{name}", files_of(folders[name], **beside))
    return folders


def test_a_sample_is_that_of_the_folder_and_reads_no_more(hub, db, larger, tmp_path):
    found = db.import_(["hf:big/a", "hf:big/b"], base="hf:big/base", sample=0.3)
    assert found["status"].to_list() == ["metadata", "sampled", "sampled"]
    local = kinbase.open(tmp_path / "local.duckdb")
    local.import_([larger["a"], larger["b"]], base=larger["base"], sample=0.3)
    query = "select pcc, cs, ed, stderr, coverage, source from kinship_all where method = 'sampled' and model_a < model_b"
    assert db.sql(query).rows() == local.sql(query).rows()
    sampled = int(db.sql(query)["source"].item().split(", ")[1].split()[0])
    assert sampled <= 0.301 * sum((f / "model.safetensors").stat().st_size for f in larger.values())
    # What was sampled, and the three heads, in which some of the runs lie.
    assert sampled - 3 * ranges.HEAD <= hub.nbytes(STORAGE) <= sampled + 3 * ranges.HEAD
    assert db.models("big/")["base"].to_list().count("big/base") == 2
    assert not list((tmp_path / "hf").rglob("*.safetensors"))


def test_a_sample_meets_what_is_stored(hub, db, larger):
    db.import_(["hf:big/base", "hf:big/a"])
    hub.heal()
    found = db.import_(["hf:big/b"], sample=0.3)  # its card leads to the base
    assert found["status"].to_list() == ["sampled"]
    assert db.sql("select model_a, method from kinship where model_b = 'big/a'").rows() == [
        ("big/b", "sampled")
    ]
    paths = {seen.path for seen in hub.requests("GET /big/")}
    assert all(path.startswith("/big/b/") for path in paths)  # the others lie in the cache


def test_a_family_is_sampled_after_its_walk(hub, db, larger):
    found = db.import_(["hf:big/base"], children=True, sample=0.3, base="hf:big/base")
    assert sorted(found["status"]) == ["metadata", "sampled", "sampled"]
    assert db.sql("select count(*) from kinship where method = 'sampled'").item() == 2
