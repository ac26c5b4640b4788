"""Whose weights are whose: copies with a card of their own, bytes that are not read, and identities that were taken in part."""

import json
import shutil
import struct

import pytest
import torch
from families import write_safetensors
from safetensors.torch import load_file

import kinbase
from kinbase.store import Store

CARD = "---\nbase_model: {parent}\nlicense: {license}\n---\n"


@pytest.fixture
def db_of(tmp_path):
    return kinbase.open(tmp_path / "kb.duckdb")


def card(folder, parent="ft_a", license="other"):
    (folder / "README.md").write_text(CARD.format(parent=parent, license=license))


def facts(db, name):
    return db.sql("select license, same_as, has_weights from models where name = ?", [name]).rows()


def test_a_copy_keeps_its_card_and_the_original_its_own(db, family, tmp_path):
    mirror = shutil.copytree(family["base"], tmp_path / "mirror")
    card(mirror)
    (row,) = db.import_([mirror]).to_dicts()
    assert row["status"] == "copy" and "the same weights as base" in row["notes"][0]
    assert facts(db, "mirror") == [("other", "base", True)] and facts(db, "base") == [(None, None, True)]
    assert db.sql("select parent from lineage where child = 'base'").rows() == []
    assert db.sql("select parent from lineage where child = 'mirror'").rows() == [("ft_a",)]
    assert db.sql("select count(distinct digest) from models where name in ('base', 'mirror')").rows() == [
        (1,)
    ]
    assert db.import_([mirror])["status"].to_list() == ["unchanged"]
    assert facts(db, "mirror") == [("other", "base", True)]


def test_a_copy_that_says_nothing_else_is_another_name(db, family, tmp_path):
    plain = shutil.copytree(family["ft_a"], tmp_path / "plain")
    assert db.import_([plain])["status"].to_list() == ["alias"]
    card(family_copy := shutil.copytree(family["ft_a"], tmp_path / "told"), "base", "mit")
    assert db.import_([family_copy])["status"].to_list() == ["copy"]
    assert facts(db, "ft_a") == [(None, None, True)]


def test_what_was_said_of_a_name_before_its_copy_came_stays_with_it(db, family, tmp_path):
    db.import_([write_card(tmp_path / "mirror", "ft_b", "cc0")])
    assert db.sql("select parent from lineage where child = 'mirror'").rows() == [("ft_b",)]
    shutil.copytree(family["base"], tmp_path / "mirror", dirs_exist_ok=True)
    db.import_([tmp_path / "mirror"])
    assert db.sql("select child from lineage where parent = 'ft_b'").rows() == [("mirror",)]
    assert facts(db, "mirror") == [("cc0", "base", True)]


def write_card(folder, parent, license):
    folder.mkdir()
    card(folder, parent, license)
    return folder


def test_kinship_of_a_copy_is_that_of_its_weights(db, family, tmp_path):
    mirror = shutil.copytree(family["ft_a"], tmp_path / "mirror")
    card(mirror, "ft_b")
    db.import_([mirror])
    assert db.nearest_kin("mirror").rows() == db.nearest_kin("ft_a").rows() != []


def relabelled(path, name, dtype, flip=False):
    """Give a tensor of a file a dtype that is not read; `flip` one of its bits."""
    raw = bytearray(path.read_bytes())
    (size,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    entry = header[name]
    entry["dtype"] = dtype
    body[entry["data_offsets"][1] - 1] ^= flip
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize("dtype", ["X16", "BF15"])
def test_bytes_that_are_not_read_tell_models_apart(db, family, tmp_path, dtype):
    for name, flip in (("one", False), ("two", True), ("one_again", False)):
        folder = shutil.copytree(family["ft_c"], tmp_path / name)
        relabelled(folder / "model.safetensors", "model.norm.weight", dtype, flip)
    found = db.import_([tmp_path / n for n in ("one", "two", "one_again")], base="base")
    assert found["status"].to_list() == ["imported", "imported", "alias"]
    reasons = db.sql("select distinct reason from skipped where tensor = 'model.norm.weight'").rows()
    assert reasons == [(f"dtype '{dtype}' is not read",)]


def test_modules_of_sentence_transformers_are_part_of_the_model(tmp_path, family, db_of):
    for name, seed in (("one", 1), ("two", 2)):
        folder = shutil.copytree(family["base"], tmp_path / name)
        (folder / "modules.json").write_text(json.dumps([
            {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        ]))  # fmt: skip
        weights = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))
        write_safetensors(folder / "2_Dense" / "model.safetensors", {"linear.weight": weights})
    assert db_of.import_([tmp_path / "one", tmp_path / "two"])["status"].to_list() == ["imported"] * 2
    parameters = sum(t.numel() for t in load_file(family["base"] / "model.safetensors").values())
    assert db_of.sql("select distinct parameters from models").rows() == [(parameters + 64,)]


def test_weights_beside_an_adapters_factors_tell_adapters_apart(tmp_path, family, db_of):
    db_of.import_([family["base"]])
    config = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "lora_alpha": 4}
    factor = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    at = "base_model.model.model.layers.0.self_attn.o_proj."
    for name, value in (("one", 0.0), ("two", 1.0)):
        write_safetensors(tmp_path / name / "adapter_model.safetensors", {
            at + "lora_A.weight": factor, at + "lora_B.weight": factor.T,
            "base_model.model.lm_head.weight": torch.full((96, 32), value),
        })  # fmt: skip
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    assert db_of.import_([tmp_path / "one", tmp_path / "two"])["status"].to_list() == ["imported"] * 2


def stored_before(path, names):
    """As an earlier version would have stored models: digests of other bytes, to be taken again."""
    with Store(path).writing() as con:
        for name in names:
            con.execute("update raw.model set digest = md5(name), to_reread = true where name = ?", [name])


def test_an_identity_taken_in_part_is_taken_again_under_the_same_name(db, family):
    before = db.sql("select name, digest from models order by name").rows()
    kinship = db.sql("select model_a, model_b, pcc from kinship order by all").rows()
    db.link("ft_a", ["base"])
    stored_before(db.store.path, ["ft_a", "base"])
    assert db.sql("select name from models where to_reread order by name").rows() == [("base",), ("ft_a",)]
    found = db.import_(family.values(), base="base")
    assert dict(found.select("model", "status").rows()) == {
        n: "imported" if n in ("ft_a", "base") else "unchanged" for n in family
    }
    assert all("read again" in notes[0] for notes in found.filter(status="imported")["notes"])
    assert db.sql("select name, digest from models order by name").rows() == before
    assert db.sql("select model_a, model_b, pcc from kinship order by all").rows() == kinship
    assert db.sql(
        "select child from lineage where evidence = 'user' and parent = 'base' and child = 'ft_a'"
    ).height
    assert set(db.import_(family.values(), base="base")["status"]) == {"unchanged"}


def test_names_that_were_joined_by_a_part_are_parted_when_both_are_read_again(db_of, family, tmp_path):
    """Two files were one model, because only a tensor beside the weights had been read."""
    for name, model in (("x", "ft_a"), ("y", "ft_b")):
        torch.save(load_file(family[model] / "model.safetensors"), tmp_path / f"{name}.pt")
    db_of.import_([tmp_path / "x.pt"])
    with Store(db_of.store.path).writing() as con:
        ((model_id,),) = con.execute("select model_id from raw.model").fetchall()
        con.execute("insert into raw.alias values ('y', ?, 'name'), (?, ?, 'path')",
                    [model_id, str(tmp_path / "y.pt"), model_id])  # fmt: skip
    stored_before(db_of.store.path, ["x"])
    found = db_of.import_([tmp_path / "x.pt"])
    assert "y may be of other weights" in found["notes"].item()[0]
    assert db_of.import_([tmp_path / "y.pt"])["status"].to_list() == ["imported"]
    assert db_of.sql("select count(distinct digest) from models").rows() == [(2,)]
