"""A model of the Hub as a lineage node: what is asked for, and how little of it."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import write_safetensors
from hub_models import STORAGE, asked, card, files_of

import kinbase
from kinbase.importers import hub as hub_importer
from kinbase.importers import ranges


def rows(found):
    return {row["model"] or row["source"]: row for row in found.to_dicts()}


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
