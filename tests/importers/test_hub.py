"""Models of the Hub, read from a real server on loopback by the real client: every depth, every way to fail."""

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import test_sampling
import torch
from families import write_safetensors
from hub_server import TOKEN, Hub

import kinbase
from kinbase.importers import hub as hub_importer
from kinbase.importers import ranges, url
from kinbase.importers.hub import client as hub_client
from kinbase.importers.hub.file import HubFile
from kinbase.ingest import remote
from kinbase.store import Store

CARD = "---\nbase_model: {base}\nbase_model_relation: {relation}\nlicense: mit\n---\n# A model\n"
ADAPTERS = Path(__file__).parents[1] / "data" / "adapters"
STORAGE = "GET /blobs/"


def card(base, relation="finetune", more=""):
    return f"---\nbase_model: {base}\nbase_model_relation: {relation}\nlicense: mit\n{more}---\n# A model\n".encode()


def files_of(folder, **more):
    files = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    return files | {name.replace("__", "."): data for name, data in more.items()}


@pytest.fixture
def hub(family, tmp_path, monkeypatch):
    """A Hub with the family as org/*, the cache and the account of nobody."""
    with Hub() as server:
        server.put("org/base", files_of(family["base"]))
        for name in ("ft_a", "ft_b", "ft_c"):
            server.put(f"org/{name}", files_of(family[name], README__md=card("org/base")))
        merged = card("\n- org/ft_a\n- org/ft_b", "merge")
        server.put("org/merge_ab", files_of(family["merge_ab"], README__md=merged))
        environment = {
            "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "hf" / "token"), "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture
def db(tmp_path):
    return kinbase.open(tmp_path / "kin.duckdb")


def rows(found):
    return {row["model"] or row["source"]: row for row in found.to_dicts()}


def kinship(db):
    """Each pair once, without the organisation; 12 digits, because either may be the first of the two."""
    found = db.sql("select model_a, model_b, pcc, cs, ed from kinship").rows()
    pairs = [
        (a.removeprefix("org/"), b.removeprefix("org/"), *(round(v, 12) for v in values))
        for a, b, *values in found
    ]
    return sorted(pair for pair in pairs if pair[0] < pair[1])


def asked(hub, pattern=""):
    """Requests but for the one in which the client asks for the names of agents."""
    return [seen for seen in hub.requests(pattern) if "agent-harnesses" not in seen.path]


# Metadata.


def test_a_lineage_node_costs_a_few_kilobytes(hub, db, family):
    results = b"- dataset: {id: org/gpqa, task_id: diamond}\n  value: 41.5\n  date: '2026-01-02'\n"
    index = "model-index:\n- name: x\n  results:\n  - task: {type: t}\n    dataset: {name: ARC, type: arc}\n"
    index += "    metrics:\n    - {type: acc, value: 0.61}\n"
    files = files_of(family["ft_a"], README__md=card("org/base", more=index))
    commit = hub.put("org/node", files | {".eval_results/gpqa.yaml": results})
    found = db.import_(["hf:org/node"], metadata_only=True)
    assert rows(found)["org/node"]["status"] == "metadata", found.to_dicts()
    model = db.models("org/node").row(0, named=True)
    local = kinbase.open(db.store.path.with_name("local.duckdb"))
    local.import_([family["ft_a"]], metadata_only=True)
    same = local.models("ft_a").row(0, named=True)
    for column in ("architecture", "parameters", "dtype", "bytes"):
        assert model[column] == same[column], column
    assert (model["license"], model["relation"], model["has_weights"]) == ("mit", "finetune", False)
    assert (model["revision"], str(model["created_at"])) == (commit, "2026-01-02 03:04:05")
    assert db.sql("select parent, relation, evidence from lineage").rows() == [
        ("org/base", "finetune", "card")
    ]
    scores = db.sql("select benchmark, value from scores order by all").rows()
    assert scores == [("ARC", 0.61), ("org/gpqa/diamond", 41.5)]
    assert ("org/node@" + commit, "revision") in db.sql("select alias, kind from aliases").rows()
    # The model's page, config, card, results, and the first bytes of the weights through their redirect.
    assert len(asked(hub)) == 6
    assert hub.nbytes(STORAGE) == ranges.HEAD
    assert hub.nbytes() < ranges.HEAD + 4096


def test_what_is_read_does_not_grow_with_the_weights(hub, db, tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"w": torch.zeros(4 << 20)})
    hub.put("org/large", {"model.safetensors": (tmp_path / "m.safetensors").read_bytes()})
    db.import_(["hf:org/large"], metadata_only=True)
    assert db.models("large")["parameters"].to_list() == [4 << 20]
    assert hub.nbytes(STORAGE) == ranges.HEAD


def test_a_long_header_takes_a_second_request(hub, db, tmp_path):
    tensors = {f"a_tensor_with_quite_a_long_name.{i:05}": torch.zeros(1) for i in range(400)}
    path = write_safetensors(tmp_path / "m.safetensors", tensors)
    hub.put("org/wide", {"model.safetensors": path.read_bytes()})
    db.import_(["hf:org/wide"], metadata_only=True)
    assert db.models("wide")["parameters"].to_list() == [400]
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert length > ranges.HEAD
    assert hub.nbytes(STORAGE) == 8 + length


@pytest.mark.parametrize("how", [{"metadata_only": True}, {"stream": True}, {}])
def test_an_unchanged_commit_costs_one_answer(hub, db, how):
    everybody = ["hf:org/base", "hf:org/ft_a"]
    db.import_(everybody, **how)
    hub.heal()
    again = db.import_(everybody, **how)
    assert again["status"].to_list() == ["unchanged"] * 2
    assert len(asked(hub)) == 2
    assert all(seen.path.startswith("/api/models/") for seen in asked(hub))


# Weights.


@pytest.fixture
def local(tmp_path, family):
    """The family imported from its folders."""
    db = kinbase.open(tmp_path / "local.duckdb")
    db.import_(family.values(), base="base")
    return db


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


def shards(family, name, index_says=None):
    """The files of a model in two shards and an index."""
    from safetensors.torch import load_file, save

    tensors = load_file(family[name] / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    weight_map = {tensor: file for file, held in parts.items() for tensor in held} | (index_says or {})
    files = {file: save({t: tensors[t] for t in held}) for file, held in parts.items()}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files | {
        "model.safetensors.index.json": index,
        "config.json": (family[name] / "config.json").read_bytes(),
    }


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


# Samples.


@pytest.fixture
def larger(hub, tmp_path):
    """A family of 1.6 MB a model on the Hub as big/*, and its folders."""
    folders = {}
    for name, tensors in test_sampling.weights().items():
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


# Names and versions.


def test_a_renamed_model_keeps_its_old_name_as_an_alias(hub, db, family):
    db.import_(["hf:org/ft_a"], metadata_only=True)  # its card names org/base, known by name alone
    hub.rename("org/base", "org/renamed")
    (row,) = db.import_(["hf:org/base"], metadata_only=True).to_dicts()
    assert row["model"] == "org/renamed"
    assert ("org/base", "org/renamed", "redirect") in db.sql("from aliases").rows()
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


# Access.


def test_the_token_goes_to_the_hub_alone_and_is_nowhere_kept(hub, cli, tmp_path, family):
    hub.put("org/gated", files_of(family["ft_a"]), gated="manual")
    hub.put("org/private", files_of(family["ft_b"]), private=True)
    for depth in (["--metadata-only"], ["--stream"], []):
        done = cli(
            "import", "hf:org/gated", "hf:org/private", "hf:org/nothing", *depth, env={"HF_TOKEN": TOKEN}
        )
        assert done.returncode == 1 and "hf:org/nothing failed" in done.stderr
        assert done.stderr.count("failed") == 2  # that line, and the tally
        assert TOKEN not in done.stdout + done.stderr
    assert {seen.authorised for seen in hub.requests(STORAGE)} == {False}
    assert all(seen.authorised for seen in hub.requests("/(api/models|org)/"))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("token", [None, "hf_somebodyElse000000000000000000000"])
@pytest.mark.parametrize("depth", ["--stream", "--sample=0.5", None])
def test_without_access_there_is_a_clear_word(hub, cli, db, family, token, depth):
    hub.put("org/gated", files_of(family["ft_a"]), gated="auto")
    hub.put("org/private", files_of(family["ft_b"]), private=True)
    env = {"HF_TOKEN": token} if token else {}
    done = cli(
        "import", "hf:org/gated", "hf:org/private", "hf:org/base", *([depth] if depth else []), env=env
    )
    assert done.returncode == 1
    gated, private = (
        next(li for li in done.stderr.splitlines() if f"{name} failed" in li) for name in ("gated", "private")
    )
    assert "is gated" in gated and "accept its terms" in gated
    assert "is private" in private
    assert ("with the account" in gated) == bool(token)
    if token:
        assert token not in done.stderr
    assert db.sql("select name from models").rows() == [("org/base",)]


def test_of_a_gated_model_the_lineage_is_kept(hub, db, family):
    hub.put("org/gated", files_of(family["ft_a"], README__md=card("org/base")), gated="manual")
    (row,) = db.import_(["hf:org/gated"], metadata_only=True).to_dicts()
    assert row["status"] == "metadata" and "gated" in row["notes"][0]
    assert db.sql("select parent, child from lineage").rows() == [("org/base", "org/gated")]
    model = db.models("gated").row(0, named=True)
    assert (model["license"], model["parameters"]) == ("mit", 24736)


# Bad input.


def lines(done, names):
    """The line that tells of each; everything else imported."""
    told = {}
    for name in names:
        (told[name],) = [line for line in done.stderr.splitlines() if line.startswith(f"hf:{name} failed: ")]
    return told


def test_each_bad_model_gets_its_line_and_the_others_go_on(hub, cli, db, family):
    good = (family["ft_a"] / "model.safetensors").read_bytes()
    hub.put("org/pickles", {"pytorch_model.bin": b"x" * 100, "config.json": b"{}"})
    hub.put("org/gguf", {"model-q4.gguf": b"GGUF" + b"\0" * 64})
    hub.put("org/nothing-in-it", {"README.md": b"# hello\n"})
    hub.put("org/longer", {"model.safetensors": struct.pack("<Q", 1 << 40) + good[8:]})
    hub.put("org/beyond", {"model.safetensors": struct.pack("<Q", len(good)) + good[8:]})
    hub.put("org/cut", {"model.safetensors": good[:-10]})
    hub.put("org/empty", {"model.safetensors": b""})
    hub.put("org/config", {"model.safetensors": good, "config.json": b"{"})
    bad = {
        "org/unknown": "is not on the Hub", "org/base@gone": "this revision is not",
        "org/pickles": "only pickled weights", "org/gguf": "only GGUF files", "org/nothing-in-it": "no weights",
        "org/longer": "claims a header of", "org/beyond": "claims a header of", "org/cut": "truncated, or lying",
        "org/empty": "no safetensors header", "org/config": "not valid JSON", "org/a/b": "write hf:ORG/NAME",
        "../etc": "write hf:ORG/NAME",
    }  # fmt: skip
    for depth in ("--stream", "--metadata-only"):
        done = cli("import", "hf:org/base", *(f"hf:{name}" for name in bad), "hf:org/ft_a", depth)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        expected = dict(bad)
        if depth == "--metadata-only":  # a node needs no weights
            for name in ("org/pickles", "org/gguf", "org/nothing-in-it"):
                assert f"{name}, without its weights" in done.stderr
                del expected[name]
        told = lines(done, expected)
        for name, words in expected.items():
            assert words in told[name], told[name]
            assert "/tmp" not in told[name], told[name]
    names = set(db.sql("select name from models")["name"])
    assert names == {"org/base", "org/ft_a", "org/pickles", "org/gguf", "org/nothing-in-it"}


@pytest.mark.parametrize("depth", ["--stream", "--sample=0.9"])
def test_a_file_that_changes_while_it_is_read(hub, cli, db, depth, tmp_path, family):
    # Beyond its first bytes, which are remembered.
    hub.put("org/base", files_of(family["base"]))
    hub.fail(STORAGE, etag="another", after=6)
    done = cli("import", "hf:org/ft_a", "hf:org/ft_b", "--base", "hf:org/base", depth)
    assert done.returncode == 1
    assert "changed while it was read" in done.stderr and "Traceback" not in done.stderr
    assert not db.store.path.exists() or db.sql("select count(*) from kinship").item() == 0


def test_a_server_that_stalls_is_given_up_in_seconds(hub, cli, db):
    for pattern in ("/api/models/org/ft_a", "resolve/.*/README.md", STORAGE):
        hub.heal()
        hub.fail(f"GET .*{pattern}" if pattern != STORAGE else pattern, stall=60)
        done = cli("import", "hf:org/ft_a", "--stream", env={"HF_HUB_DOWNLOAD_TIMEOUT": "1"})
        assert done.returncode == 1
        assert "stopped answering" in done.stderr and "waited 1 s" in done.stderr, done.stderr
    assert not db.store.path.exists()


def test_a_download_that_stalls_is_given_up_in_seconds(hub, cli, db):
    for pattern in ("HEAD .*safetensors", STORAGE):
        hub.heal()
        hub.fail(pattern, stall=60)
        done = cli("import", "hf:org/ft_a", env={"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"})
        assert done.returncode == 1 and "stopped answering" in done.stderr, done.stderr


def test_without_a_network(hub, cli, db, family):
    done = cli("import", "hf:org/ft_a", family["ft_b"], env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert done.returncode == 1
    assert lines(done, ["org/ft_a"])["org/ft_a"].count("cannot be reached") == 1
    assert "imported ft_b" in done.stderr
    done = cli("import", "hf:org/ft_a", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 1 and "HF_HUB_OFFLINE" in done.stderr


def test_an_endpoint_that_is_no_hub(hub, cli):
    hub.fail("/api/models/", body=b"<html>hello</html>", status=0)
    hub.fail("/api/models/org/ft_a", status=200)
    done = cli("import", "hf:org/ft_a", "--metadata-only")
    assert done.returncode == 1 and "is HF_ENDPOINT a Hub?" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "1"},
        {"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'},
        {},
    ],
)
@pytest.mark.parametrize("where", ["/api/models/org/ft_a", "resolve/.*/config.json", STORAGE])
def test_a_rate_limit_is_waited_out_as_its_headers_say(hub, db, headers, where):
    hub.fail(where, status=429, headers=headers, times=1)
    told = []
    found = db.import_(["hf:org/ft_a"], metadata_only=True, tell=lambda what, done, total: told.append(what))
    assert found["status"].to_list() == ["metadata"]
    assert any("pause" in what for what in told)


def test_a_server_error_is_tried_again(hub, db):
    hub.fail("/api/models/org/ft_a", status=503, times=1)
    hub.fail(STORAGE, status=500, times=2)
    assert db.import_(["hf:org/ft_a"], metadata_only=True)["status"].to_list() == ["metadata"]
    hub.fail("/api/models/org/ft_b", status=502)
    (row,) = db.import_(["hf:org/ft_b"], metadata_only=True).to_dicts()
    assert row["status"] == "failed" and "answers 502" in row["notes"][0]
    assert len(hub.requests("/api/models/org/ft_b")) == hub_client.TRIES


@pytest.mark.parametrize("depth", ["--stream", "--sketch"])
def test_a_storage_that_refuses_is_told(hub, cli, depth):
    hub.fail(STORAGE, status=403)
    done = cli("import", "hf:org/ft_a", depth, env={"HF_TOKEN": "hf_secret"})
    assert done.returncode == 1
    assert "refuses" in done.stderr and "(403)" in done.stderr and "circle" not in done.stderr
    assert "signature" not in done.stderr and "hf_secret" not in done.stderr
    assert len(hub.requests("/blobs/")) <= 2


def test_a_page_that_refuses_is_told(hub, cli):
    hub.fail("(GET|HEAD) /org/ft_a/resolve/.*", status=403)
    done = cli("import", "hf:org/ft_a", "--stream")
    assert done.returncode == 1 and "refuses 'hf:org/ft_a@" in done.stderr


def test_a_small_file_is_as_long_as_is_said(hub, db):
    hub.fail("GET .*/config.json", status=206, body=b"{}", headers={"Content-Range": "bytes 0-1/300"})
    (row,) = db.import_(["hf:org/ft_a"], stream=True).to_dicts()
    assert row["status"] == "failed" and "sent 2 of 300 bytes" in row["notes"][-1], row


def test_an_address_of_the_storage_that_has_run_out_is_asked_for_again(hub, db, local):
    hub.fail(STORAGE, status=403, times=1, after=2)
    db.import_(["hf:org/base", "hf:org/ft_a", "hf:org/ft_b"], stream=True)
    assert kinship(db) == [row for row in kinship(local) if set(row[:2]) == {"ft_a", "ft_b"}]


# Downloads.


def test_a_download_cut_at_random_points_reads_no_byte_twice(hub, db, family):
    size = (family["ft_a"] / "model.safetensors").stat().st_size
    chance = random.Random(1)
    at = sorted(chance.sample(range(1, size), 5))
    for cut in reversed([b - a for a, b in zip([0, *at], at, strict=False)]):
        hub.fail(STORAGE, cut=cut, times=1)
    assert db.import_(["hf:org/ft_a"])["status"].to_list() == ["imported"]
    assert len(hub.requests(STORAGE)) == 6
    assert hub.nbytes(STORAGE) == size


def test_a_download_that_was_given_up_goes_on_where_it_was(hub, cli, db, family, tmp_path):
    size = (family["ft_a"] / "model.safetensors").stat().st_size
    hub.fail(STORAGE, status=500)  # after three pieces
    for cut in (9_000, 7_001, 1):
        hub.fail(STORAGE, cut=cut, times=1)
    done = cli("import", "hf:org/ft_a")
    assert done.returncode == 1 and "answers 500" in done.stderr
    assert not db.store.path.exists()
    assert sum(r.nbytes for r in hub.requests(STORAGE) if r.status < 400) == 16_002
    hub.faults.clear()
    assert cli("import", "hf:org/ft_a").returncode == 0
    assert sum(r.nbytes for r in hub.requests(STORAGE) if r.status < 400) == size
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
    # What lies in the cache now is what the client itself would have put there.
    from huggingface_hub import try_to_load_from_cache

    commit = hub.repos["org/ft_a"].refs["main"]
    path = try_to_load_from_cache("org/ft_a", "model.safetensors", tmp_path / "hf" / "hub", commit)
    assert Path(path).read_bytes() == (family["ft_a"] / "model.safetensors").read_bytes()


def test_an_interrupted_download_goes_on_where_it_was(hub, cli, db, tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"w": torch.randn(1 << 20)})
    hub.put(
        "org/large", {"model.safetensors": (tmp_path / "m.safetensors").read_bytes(), "config.json": b"{}"}
    )
    hub.fail(STORAGE, slow=0.2)  # 13 seconds in all
    environment = {**os.environ, "KINBASE_DB": str(db.store.path)}
    running = subprocess.Popen([sys.executable, "-m", "kinbase", "import", "hf:org/large"], env=environment)
    while running.poll() is None and not any(
        p.stat().st_size for p in (tmp_path / "hf").rglob("*.incomplete")
    ):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    (part,) = (tmp_path / "hf").rglob("*.incomplete")
    have = part.stat().st_size
    assert 0 < have < 4 << 20 and not db.store.path.exists()
    hub.heal()
    assert cli("import", "hf:org/large").returncode == 0
    assert [seen.range.partition("-")[0] for seen in hub.requests(STORAGE)] == [f"bytes={have}"]


def test_a_download_that_is_not_what_was_promised_is_removed(hub, db, family, tmp_path):
    good = (family["ft_a"] / "model.safetensors").read_bytes()
    hub.fail(STORAGE, body=good[:-1] + bytes([good[-1] ^ 1]), times=1)
    (row,) = db.import_(["hf:org/ft_a"]).to_dicts()
    assert row["status"] == "failed" and "sha256 differs" in row["notes"][-1]
    assert not [p for p in (tmp_path / "hf").rglob("*") if p.is_file() and p.stat().st_size == len(good)]
    assert db.import_(["hf:org/ft_a"])["status"].to_list() == ["imported"]


# Families.


@pytest.fixture
def tree(hub):
    """org/root with 9 children (three adapters), each with two of its own, and one parent above."""
    leaf = {"config.json": b"{}"}
    hub.put("org/above", leaf)
    hub.put("org/root", leaf | {"README.md": card("org/above")})
    for i in range(9):
        relation = "adapter" if i < 3 else "finetune"
        hub.put(f"org/child{i}", leaf | {"README.md": card("org/root", relation)})
        for j in range(2):
            hub.put(f"org/grandchild{i}{j}", leaf | {"README.md": card(f"org/child{i}")})
    return hub


class CountingStore(Store):
    """A store that counts its transactions."""

    written = 0

    def writing(self):
        self.written += 1
        return super().writing()


def test_children_breadth_first(tree, db):
    db.store = CountingStore(db.store.path)
    found = db.import_(["hf:org/root"], children=True)
    assert set(found["status"]) == {"metadata"} and found.height == 10
    assert db.store.written == 2  # a generation fits in a batch
    assert db.descendants("org/root").height == 9
    assert len(asked(tree, "/api/models/org/grandchild")) == 0
    found = db.import_(["hf:org/root"], children=True, depth=2)
    assert found.height == 28
    assert db.descendants("org/root").height == 27


def test_a_family_that_is_stored_costs_its_listings(tree, db):
    db.import_(["hf:org/root"], children=True, depth=2)
    tree.seen.clear()
    again = db.import_(["hf:org/root"], children=True, depth=2)
    assert set(again["status"]) == {"unchanged"} and again.height == 28
    listings = asked(tree, "GET /api/models$")
    # One answer for the root, and pages of three: of the root's nine children, of two for each of them.
    assert len(listings) == 3 + 9 and len(asked(tree)) == 1 + len(listings)


def test_a_walk_that_is_broken_off_goes_on(tree, db):
    tree.fail("/api/models/org/grandchild[5-8]", status=500)
    found = db.import_(["hf:org/root"], children=True, depth=2)
    tally = found["status"].value_counts()
    assert dict(tally.iter_rows()) == {"metadata": 20, "failed": 8}
    tree.faults.clear()
    tree.seen.clear()
    found = db.import_(["hf:org/root"], children=True, depth=2)
    assert dict(found["status"].value_counts().iter_rows()) == {"unchanged": 20, "metadata": 8}
    assert len(asked(tree, "/api/models/org/grandchild")) == 8


def test_a_rate_limit_in_a_listing(tree, db):
    tree.fail("GET /api/models$", status=429, headers={"Retry-After": "0"}, times=1, after=1)
    told = []
    found = db.import_(["hf:org/root"], children=True, tell=lambda what, done, total: told.append(what))
    assert found.height == 10 and any("pause" in what for what in told)


@pytest.mark.parametrize("where", ["http://localhost:9/api/models", "/api/models", "http://["])
@pytest.mark.parametrize("body", [b"[]", b"{}"])
def test_a_listing_without_an_end(tree, db, where, body):
    tree.fail("GET /api/models$", status=200, headers={"Link": f'<{where}?cursor=1>; rel="next"'}, body=body)
    found = db.import_(["hf:org/root"], children=True, limit=20)
    assert found["status"].to_list() == ["metadata"]
    # Each page was asked of the Hub, not of where the listing leads.
    assert 1 <= len(tree.requests("GET /api/models$")) <= 22


@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("GET /api/models$", ("hf:org/root", "--children")),
        ("GET /api/models/org/child1", ("hf:org/child0", "hf:org/child1", "--metadata-only")),
        ("GET /api/models/org/child1", ("hf:org/child0", "hf:org/child1", "--sample=0.1")),
        (STORAGE, ("hf:org/ft_a",)),
    ],
)
def test_a_pause_of_minutes_can_be_interrupted(tree, db, where, how):
    tree.fail(where, status=429, headers={"Retry-After": "600", "RateLimit": '"api";r=0;t=99999999999999999'})
    environment = {**os.environ, "KINBASE_DB": str(db.store.path)}
    running = subprocess.Popen([sys.executable, "-m", "kinbase", "import", *how], env=environment)
    while not any(seen.status == 429 for seen in tree.seen):
        assert running.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    assert running.wait(20) == 130


def test_limit_and_relation(tree, db):
    found = db.import_(["hf:org/root"], children=True, depth=2, limit=4)
    assert found.height == 5 and "more relatives than --limit 4" in found["notes"][0][-1]
    found = db.import_(["hf:org/root"], children=True, relations=["adapter"])
    assert sorted(found["model"]) == ["org/child0", "org/child1", "org/child2", "org/root"]
    assert found["notes"].to_list() == [[]] * 4 or not any(
        "limit" in n for notes in found["notes"] for n in notes
    )


def test_parents(tree, db):
    found = db.import_(["hf:org/grandchild10"], parents=True, depth=5)
    assert found["model"].to_list() == ["org/grandchild10", "org/child1", "org/root", "org/above"]
    assert db.ancestors("org/grandchild10").height == 3
    tree.seen.clear()
    found = db.import_(["hf:org/grandchild10"], parents=True, depth=5)
    assert found["status"].to_list() == ["unchanged"] * 4 and len(asked(tree)) == 4


def test_a_circle_ends(hub, db):
    hub.put("org/x", {"README.md": card("org/y"), "config.json": b"{}"})
    hub.put("org/y", {"README.md": card("org/x"), "config.json": b"{}"})
    for how in ({"children": True}, {"parents": True}, {"children": True, "parents": True}):
        assert sorted(db.import_(["hf:org/x"], depth=9, **how)["model"]) == ["org/x", "org/y"]


def test_models_are_asked_for_side_by_side(tree, db):
    tree.latency = 0.05
    db.import_(["hf:org/root"], children=True)
    assert 4 < tree.most_at_once <= remote.AT_ONCE


def test_usage(hub, cli, family):
    for arguments, words in {
        ("--sample", "0.1", "--stream"): "different depths",
        ("--sample", "1.5"): "between 0 and 1",
        ("--stderr", "0.1"): "give both",
        ("--children", "--relation", "cousin"): "no relation 'cousin'",
        ("--children", "--name", "x"): "--name names one model",
        ("--children", "--depth", "-1"): "cannot be negative",
    }.items():
        done = cli("import", "hf:org/ft_a", *arguments)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    done = cli("import", family["ft_a"], "--children")
    assert done.returncode == 2 and "no relatives to follow" in done.stderr


# Any URL.


def put_memory(path, folder):
    import fsspec

    store = fsspec.filesystem("memory")
    for file in Path(folder).iterdir():
        store.pipe_file(f"/{path}/{file.name}", file.read_bytes())
    return f"memory://{path}"


def test_weights_in_any_store(hub, db, local, family, tmp_path):
    sources = {
        "base": put_memory("models/base", family["base"]),
        "ft_a": f"file://{family['ft_a']}",
        "ft_b": f"{hub.url}/org/ft_b/resolve/main",
    }
    found = db.import_(list(sources.values()), base=sources["base"])
    assert found["status"].to_list() == ["imported"] * 3, found.to_dicts()
    assert found["model"].to_list() == ["base", "ft_a", "main"]
    digests = "select digest from models where digest is not null and name in ('base', 'ft_a', 'ft_b', 'main') order by 1"
    assert db.sql(digests).rows() == local.sql(digests).rows()
    assert [row[2:] for row in kinship(db)] == [
        row[2:] for row in kinship(local) if set(row[:2]) == {"ft_a", "ft_b"}
    ]
    again = db.import_(list(sources.values()), base=sources["base"])
    assert again["status"].to_list() == ["unchanged"] * 3
    assert not list(tmp_path.rglob("*.incomplete"))


def test_one_file_and_an_index_at_a_url(hub, db, local, family):
    hub.put("org/sharded", shards(family, "ft_a"))
    found = db.import_(
        [f"{hub.url}/org/sharded/resolve/main", f"{hub.url}/org/base/resolve/main/model.safetensors"],
        stream=True,
    )
    assert found["status"].to_list() == ["imported"] * 2 and found["model"].to_list() == ["main", "model"]
    digest = "select digest from models where name = ?"
    assert db.sql(digest, ["main"]).item() == local.sql(digest, ["ft_a"]).item()
    assert db.sql(digest, ["model"]).item() == local.sql(digest, ["base"]).item()


def test_a_url_that_cannot_be_read(hub, db, family, tmp_path):
    hub.fail("resolve/secret", status=403)
    (tmp_path / "none").mkdir()
    bad = {
        "memory://nothing/here": "is not there",
        f"file://{tmp_path}/none": "no .safetensors",
        f"{hub.url}/org/nothing/resolve/main/model.safetensors": "is not there",
        f"{hub.url}/org/base/resolve/secret/model.safetensors?key={TOKEN}": "is not there, or may not be read",
        f"{hub.url}/org/base/resolve/none/model.safetensors?key={TOKEN}": "is not there",
        "http://127.0.0.1:9/model.safetensors": "is not there, or may not be read",
        "nosuchstore://x/model.safetensors": "could not be asked",
    }
    for source, words in bad.items():
        (row,) = db.import_([source]).to_dicts()
        assert row["status"] == "failed" and words in row["notes"][-1], row
        assert TOKEN not in str(row)
    assert not db.store.path.exists()


def test_a_url_whose_server_knows_no_ranges(hub, db):
    """It sends the whole file whatever was asked for: its beginning must not pass for another part."""
    hub.fail("GET /blobs/", whole=True)
    size = ranges.BLOCK + 40_000
    header = json.dumps({"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    hub.put("org/plain", {"model.safetensors": struct.pack("<Q", len(header)) + header + bytes(size)})
    (row,) = db.import_([f"{hub.url}/org/plain/resolve/main/model.safetensors"], stream=True).to_dicts()
    assert row["status"] == "failed" and "sends no parts of files" in row["notes"][-1], row
    assert not db.store.path.exists()


def test_a_part_that_was_not_asked_for_is_refused(hub, db):
    hub.fail("GET /blobs/.*", shift=8, after=1)
    (row,) = db.import_(["hf:org/ft_a"], stream=True).to_dicts()
    assert row["status"] == "failed" and "sends another part" in row["notes"][-1], row


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 0-29/\u00b2"},
        {"Content-Range": "bytes 0-29/" + "9" * 5000},
        {"Content-Range": "bytes 0-29/-30"},
        {"Content-Range": "bytes */30"},
        {"Content-Length": "-1"},
        {"Content-Range": "x" * 200_000},
    ],
)
def test_headers_that_lie_are_refused_in_one_line(hub, cli, db, headers):
    hub.fail("resolve/.*/README.md", status=206, headers=headers)
    done = cli("import", "hf:org/ft_a", "hf:org/ft_b", "--metadata-only")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert set(lines(done, ["org/ft_a", "org/ft_b"])) == {"org/ft_a", "org/ft_b"}
    assert not db.store.path.exists()


@pytest.mark.parametrize(
    "target", ["file:///etc/hostname", "http://[", "ftp://127.0.0.1/x", "//", "data:,{}"]
)
@pytest.mark.parametrize("depth", ["--metadata-only", "--stream", "--sketch"])
def test_a_redirect_to_what_is_no_server_is_not_followed(hub, cli, db, target, depth):
    hub.fail("(GET|HEAD) /org/ft_a/resolve/.*", status=302, headers={"Location": target})
    done = cli("import", "hf:org/ft_a", depth)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert lines(done, ["org/ft_a"])
    assert not db.store.path.exists()


@pytest.mark.parametrize(
    "answer",
    [
        b"[]", b"7", b"{}", b"not json", b'{"id": 5, "sha": 7}', b'{"id": "org/ft_a", "sha": "../../x"}',
        b'{"id": "org/ft_a", "sha": "%s", "siblings": 3}' % (b"a" * 40), b"[" * 100_000,
        b'{"id": "org/ft_a", "sha": "%s", "gguf": [1], "siblings": [{"rfilename": 5}]}' % (b"a" * 40),
        b'{"id": "org/ft_a", "sha": "%s", "createdAt": "yesterday"}' % (b"a" * 40),
    ],
    ids=range(10),
)  # fmt: skip
def test_an_answer_that_is_no_model_is_told_in_one_line(hub, cli, db, answer):
    hub.fail("/api/models/org/ft_a", status=200, headers={"Content-Type": "application/json"}, body=answer)
    done = cli("import", "hf:org/ft_a", "hf:org/ft_b", "--stream")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert lines(done, ["org/ft_a"])
    assert db.sql("select name from models where parameters > 0")["name"].to_list() == ["org/ft_b"]


def test_names_that_no_table_can_hold_are_left_out(hub, db):
    hub.put("org/shut", {"README.md": b""}, gated=True)
    answer = {"id": "org/shut", "sha": hub.repos["org/shut"].refs["main"], "gated": "auto"}
    answer |= {
        "siblings": [
            {"rfilename": "README.md"},
            {"rfilename": "\ud800"},
            {"rfilename": "../../x.safetensors"},
        ]
    }
    answer |= {"tags": ["license:\ud800", 5, "base_model:finetune:../x"], "gguf": {"architecture": "a\x00b"}}
    hub.fail("/api/models/org/shut", status=200, body=json.dumps(answer).encode())
    assert db.import_(["hf:org/shut"], metadata_only=True)["status"].to_list() == ["metadata"]
    assert db.sql("select name, license, architecture from models").rows() == [("org/shut", None, None)]


def test_the_token_follows_no_redirect_of_an_answer(hub, cli):
    for where in ("/api/models/org/ft_a", "/api/models$"):
        hub.heal()
        hub.fail(f"GET {where}", status=307, headers={"Location": f"{hub.storage}/elsewhere"})
        done = cli("import", "hf:org/ft_a", "--children", env={"HF_TOKEN": TOKEN})
        (there,) = hub.requests("GET /elsewhere")
        assert not there.authorised and TOKEN not in done.stderr and "Traceback" not in done.stderr
        assert any(seen.authorised for seen in hub.requests("GET /api/models"))


def test_an_empty_file_is_empty_whatever_the_server_says_of_it(hub):
    hub.put("org/empty", {"README.md": b""})
    there = hub_client.Hub()
    piece = HubFile(there, there.repo("org/empty", None), "README.md").piece(0, 100)
    assert (piece.data, piece.size) == (b"", 0)


def test_a_commit_or_name_that_leads_elsewhere_is_none(hub):
    from huggingface_hub.hf_api import ModelInfo

    assert hub_client.repo_of(ModelInfo(id="org/x", sha="a" * 40)) is not None
    for name, commit in (("org/x", "../" * 13 + "a"), ("org/../x", "a" * 40), ("/etc", "a" * 40)):
        assert hub_client.repo_of(ModelInfo(id=name, sha=commit)) is None


def test_no_part_of_a_password_is_shown():
    assert url.public("https://me:p@ss@host/x?key=y") == "https://host/x"
    assert url.public("s3://bucket/a@b/x") == "s3://bucket/a@b/x"


def test_a_signature_is_not_stored(hub, db, tmp_path):
    source = f"{hub.url}/org/base/resolve/main/model.safetensors?signature={TOKEN}"
    assert db.import_([source])["status"].to_list() == ["imported"]
    assert all(TOKEN not in str(row) for row in db.sql("from models").rows() + db.sql("from aliases").rows())
    assert TOKEN.encode() not in db.store.path.read_bytes()
    assert hub.requests("resolve/main/model.safetensors")[-1].query == f"signature={TOKEN}"


def test_a_file_at_a_url_that_changes_under_the_pass(db, family, tmp_path):
    import fsspec

    source = put_memory("changing", family["ft_a"])
    store = fsspec.filesystem("memory")
    from kinbase.checkpoint.open import read

    opened = read(source, depth="stream").checkpoint
    opened.verify()
    store.pipe_file("/changing/model.safetensors", (family["ft_b"] / "model.safetensors").read_bytes())
    with pytest.raises(kinbase.errors.CheckpointError, match="changed while it was read"):
        opened.verify()


def test_local_imports_never_load_the_client(tmp_path, family):
    code = (
        "import sys, kinbase\n"
        f"kinbase.open({str(tmp_path / 'x.duckdb')!r}).import_([{str(family['base'])!r}], device='cpu')\n"
        "print([m for m in ('huggingface_hub', 'fsspec', 'httpx2', 'aiohttp') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_server_is_one_that_the_client_knows(hub, tmp_path, family):
    """The client's own helpers read from it what was put there."""
    from huggingface_hub import HfApi, snapshot_download

    api = HfApi(endpoint=hub.url, token=False)
    assert api.get_safetensors_metadata("org/base").parameter_count == {"BF16": 24736}
    assert len(list(api.list_models())) == 5  # two pages
    assert [m.id for m in api.list_models(filter="base_model:merge:org/ft_a")] == ["org/merge_ab"]
    path = snapshot_download("org/ft_a", endpoint=hub.url, cache_dir=tmp_path / "c", token=False)
    assert Path(path, "model.safetensors").read_bytes() == (family["ft_a"] / "model.safetensors").read_bytes()


def test_sources_that_are_the_hubs(tmp_path):
    assert hub_importer.recognises("hf:a/b") and not hub_importer.recognises("a/b")
    assert hub_importer.source_of("org/name") == "hf:org/name"
    commit = 40 * "a"
    pages = {"": "", "/": "", "/tree/main": "@main", f"/commit/{commit}": f"@{commit}"}
    for end, version in pages.items():
        page = f"https://huggingface.co/org/name{end}"
        assert hub_importer.recognises(page) and hub_importer.public(page) == f"hf:org/name{version}"
    for page in (
        "https://huggingface.co/datasets/org/name",
        "https://huggingface.co/org/name/resolve/main/m.safetensors",
    ):
        assert not hub_importer.recognises(page)
    for label in ("name", "/tmp/x/y", "./a/b", "a/b/c", "org/na me"):
        assert hub_importer.source_of(label) is None
