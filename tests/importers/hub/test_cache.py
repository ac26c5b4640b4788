"""The importer of the Hub's local cache."""

import hashlib
from pathlib import Path

import pytest
from checkpoints import ADAPTERS, ALL, contents, opened, quantised_tensors, refused
from families import write_safetensors

from kinbase.checkpoint import Alias, Edge, Facts
from kinbase.errors import CheckpointError
from kinbase.importers import folder
from kinbase.importers.hub import cache as hub_cache

SHA, OLD = "0123456789abcdef" * 2 + "01234567", "f" * 40


def cached(cache, name, source, commit=SHA, ref="main"):
    """A snapshot as huggingface_hub lays it out, of the files in `source`."""
    repository = cache / ("models--" + name.replace("/", "--"))
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    if ref:
        (repository / "refs" / ref).write_text(commit)
    for path in Path(source).iterdir():
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        (repository / "blobs" / blob).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for variable in ("HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_a_snapshot_by_any_of_its_names(cache, family, monkeypatch):
    snapshot = cached(cache, "org/model", family["base"])
    cached(cache, "org/model", family["ft_a"], OLD, ref=None)
    expected = contents(opened(folder, family["base"])[0])
    for source in (snapshot, snapshot.parent.parent, "org/model", f"org/model@{SHA}", "org/model@main"):
        assert [m for m in ALL if m.recognises(str(source))] == [hub_cache]
        checkpoint, facts, rest = opened(hub_cache, source)
        assert checkpoint.name == "org/model" and checkpoint.source == str(snapshot)
        assert contents(checkpoint) == expected
        assert all(Path(stamp.path).parent.name == "blobs" for stamp in checkpoint.files)
        assert rest == [Alias(f"org/model@{SHA}", kind="revision"), Facts(revision=SHA)]
        assert facts.architecture == "LlamaForCausalLM"
    assert contents(opened(hub_cache, f"org/model@{OLD}")[0]) == contents(opened(folder, family["ft_a"])[0])
    monkeypatch.delenv("HF_HUB_CACHE")
    assert not hub_cache.recognises("org/model")
    monkeypatch.setenv("HF_HOME", str(cache.parent))
    assert hub_cache.recognises("org/model")


def test_the_layout_is_the_hubs(cache, family):
    from huggingface_hub import scan_cache_dir

    snapshot = cached(cache, "org/model", family["base"])
    (repository,) = scan_cache_dir(cache).repos
    (revision,) = repository.revisions
    assert (repository.repo_id, revision.commit_hash, revision.refs) == ("org/model", SHA, {"main"})
    assert revision.snapshot_path.resolve() == snapshot.resolve()


def test_a_cached_adapter(cache):
    snapshot = cached(cache, "org/lora", ADAPTERS / "plain")
    assert [m for m in ALL if m.recognises(str(snapshot))] == [hub_cache]
    checkpoint, _, rest = opened(hub_cache, "org/lora")
    assert checkpoint.name == "org/lora" and checkpoint.delta_of == "org/base"
    assert [type(r) for r in rest] == [Edge, Alias, Facts]


def test_a_cached_quantised_model_keeps_its_name(cache, tmp_path):
    write_safetensors(tmp_path / "q" / "model.safetensors", quantised_tensors("gptq"))
    cached(cache, "org/quantised", tmp_path / "q")
    records = list(hub_cache.open("org/quantised"))
    assert {r.model for r in records if isinstance(r, Facts | Alias)} == {"org/quantised"}


def test_links_out_of_the_cache_and_revisions_that_are_not_there(cache, family):
    snapshot = cached(cache, "org/model", family["base"])
    refused(hub_cache, "org/model@v2", "no snapshot 'v2'")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(family["base"] / "model.safetensors")
    with pytest.raises(CheckpointError, match="a link out of its folder"):
        list(hub_cache.open("org/model"))
    (snapshot.parent.parent / "refs" / "main").write_text("../../../etc")
    with pytest.raises(CheckpointError, match="is not a commit"):
        list(hub_cache.open("org/model"))
    for source in (
        "org/absent",
        "../hub/models--org--model",
        "org/..",
        "org/model@..",
        "org/model@../x",
        "a/b/c",
    ):
        assert hub_cache.recognises(source) == (
            source == "../hub/models--org--model" and Path(source).is_dir()
        )
