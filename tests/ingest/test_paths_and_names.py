"""One thing has one name and two things have two: ids in any spelling, paths, and weights that cannot be read."""

import json

import pytest


@pytest.fixture
def db(empty):
    return empty


def card(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{text}\n---\n")
    return str(folder)


def parents(db, child):
    rows = db.sql("select parent, relation from lineage where child = ? order by all", [child]).rows()
    return [tuple(row) for row in rows]


def notes(found):
    return " ".join(note for row in found["notes"] for note in row)


def test_spellings_of_one_id_are_one_model(db, tmp_path):
    spellings = ["Org/Base", "org/base", "https://huggingface.co/ORG/base/", "hf.co/org/Base"]
    db.import_([card(tmp_path / f"m{i}", f"base_model: {s}") for i, s in enumerate(spellings)])
    assert db.sql("select distinct parent from lineage").rows() == [("Org/Base",)]
    for spelling in ("oRG/bASE", "https://hf.co/org/base"):
        assert db.resolved([spelling]) == ["Org/Base"]
    db.import_([card(tmp_path / "later", "base_model: ORG/BASE")])
    assert parents(db, "later") == [("Org/Base", "finetune")]


def test_revisions_are_models_of_their_own(db, tmp_path):
    db.import_([card(tmp_path / "a", "base_model: org/b@v1"), card(tmp_path / "b", "base_model: org/b@main")])
    assert parents(db, "a") == [("org/b@v1", "finetune")]
    assert parents(db, "b") == [("org/b", "finetune")]


def test_the_same_path_of_two_strangers_is_two_models(db, tmp_path):
    found = db.import_([card(tmp_path / name, "base_model: ./merged") for name in ("a", "b")])
    ((a, _),), ((b, _),) = parents(db, "a"), parents(db, "b")
    assert a != b and a.startswith("./merged#") and b.startswith("./merged#")
    assert "path on its author's disk" in notes(found)
    again = db.sql("select count(*) from models").item()
    db.import_([str(tmp_path / "a")])
    assert db.sql("select count(*) from models").item() == again


@pytest.mark.parametrize(
    "path", ["/home/somebody/models/base", "../base", "C:\\models\\base", "~/base", "runs/1/base"]
)
def test_a_path_of_an_authors_disk_is_no_name(db, tmp_path, path):
    db.import_([card(tmp_path / "a", f"base_model: '{path}'")])
    (((parent, _),)) = parents(db, "a")
    assert parent.startswith(path + "#")


def test_a_path_that_is_a_source_of_the_import_is_that_model(db, tmp_path):
    base = card(tmp_path / "base", "license: mit")
    child = card(tmp_path / "models" / "child", "base_model: ../../base")
    db.import_([base, child])
    assert parents(db, "child") == [("base", "finetune")]


def test_a_refused_adapters_path_is_read_from_its_own_folder(db, tmp_path):
    card(tmp_path / "runs" / "base", "license: mit")
    for name, base in (("a", "../base"), ("b", "./merged"), ("c", "./merged")):
        (tmp_path / "runs" / name).mkdir()
        settings = {"peft_type": "VERA", "base_model_name_or_path": base, "r": 4}
        (tmp_path / "runs" / name / "adapter_config.json").write_text(json.dumps(settings))
    db.import_([tmp_path / "runs" / name for name in ("a", "b", "c", "base")])
    assert parents(db, "a") == [("base", "adapter")]
    assert parents(db, "b") != parents(db, "c")  # two folders, two models


def test_a_card_beside_an_adapter_speaks_of_an_adapter(db, tmp_path):
    settings = json.dumps({"peft_type": "LORA", "use_dora": True, "base_model_name_or_path": "org/b", "r": 4})
    for name in ("adapter", "merged", "said"):
        said = "\nbase_model_relation: finetune" if name == "said" else ""
        card(tmp_path / name, f"base_model: org/b{said}")
        (tmp_path / name / "adapter_config.json").write_text(settings)
    (tmp_path / "merged" / "model.safetensors").write_bytes(b"not read")
    db.import_([tmp_path / name for name in ("adapter", "merged", "said")], metadata_only=True)
    cards = "select child, relation from lineage where evidence = 'card' order by all"
    assert db.sql(cards).rows() == [("adapter", "adapter"), ("merged", "finetune"), ("said", "finetune")]


def test_a_path_as_it_is_typed_is_that_source(db, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card(tmp_path / "x" / "base", "license: mit")
    card(tmp_path / "y" / "child", "base_model: ./x/base")
    db.import_(["x/base", "y/child"])
    assert parents(db, "child") == [("base", "finetune")]


def test_a_place_on_this_machine_joins_what_is_imported_from_there_later(db, tmp_path, family):
    base = str(family["base"])
    db.import_([card(tmp_path / "child", f"base_model: {base}")])
    db.import_([base])
    assert parents(db, "child") == [("base", "finetune")]


def test_what_is_said_of_a_model_by_itself_is_told(db, tmp_path):
    found = db.import_([card(tmp_path / "a", "base_model: [a, org/b]\nbase_model_relation: finetune")])
    assert parents(db, "a") == [("org/b", "finetune")]
    assert "a as a parent of its own" in notes(found)


def adapter(folder, config, weights=b"x"):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return str(folder)


@pytest.mark.parametrize(
    "kind", ["LOHA", "LOKR", "IA3", "ADALORA", "OFT", "BOFT", "PROMPT_TUNING", "PREFIX_TUNING", "VERA"]
)
def test_adapters_of_every_kind_keep_what_they_say(db, tmp_path, kind):
    config = {"peft_type": kind, "base_model_name_or_path": "org/base", "r": 4, "target_modules": ["q_proj"]}
    found = db.import_([adapter(tmp_path / "a", config)])
    assert found["status"].to_list() == ["refused"]
    assert kind in notes(found) and "merge it into its base" in notes(found)
    (row,) = db.sql(
        "select parent, relation, method, detail->>'r', detail->>'target_modules' from lineage"
    ).rows()
    assert row == ("org/base", "adapter", kind.lower(), "4", '["q_proj"]')
    assert db.sql("select relation, has_weights from models where name = 'a'").rows() == [("adapter", False)]


def test_the_base_asked_for_stands_for_one_that_is_not_said(db, tmp_path):
    card(tmp_path / "base", "license: mit")
    db.import_([str(tmp_path / "base")])
    nothing = adapter(tmp_path / "a", {"peft_type": "LOHA", "base_model_name_or_path": None})
    elsewhere = adapter(
        tmp_path / "b", {"peft_type": "LOHA", "base_model_name_or_path": "/other/machine/base"}
    )
    db.import_([nothing, elsewhere], base="base")
    assert parents(db, "a") == [("base", "adapter")] == parents(db, "b")
    assert db.sql("select count(*) from models").item() == 3


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4976698672\n"


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_clone_without_its_weights_keeps_its_card(db, tmp_path, file):
    folder = card(tmp_path / "m", "base_model: org/base\nlicense: mit")
    (tmp_path / "m" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "m" / file).write_text(POINTER)
    found = db.import_([folder])
    assert found["status"].to_list() == ["refused"] and "git lfs pull" in notes(found)
    assert parents(db, "m") == [("org/base", "finetune")]
    assert db.sql("select license from models where name = 'm'").item() == "mit"


def test_weights_that_are_refused_with_nothing_beside_them_fail(db, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").write_text(POINTER)
    assert db.import_([str(folder)])["status"].to_list() == ["failed"]


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("base_model: [ORG/m, org/base]", [("org/base", "finetune")]),
        ("base_model: [org/m, org/base]\nlibrary_name: peft", [("org/base", "adapter")]),
        ("base_model: [org/m, org/base]\ntags: [gguf]", [("org/base", "quantized")]),
        ("base_model: [org/m, org/base]\ntags: [merge]", [("org/base", "merge")]),
        ("base_model: [org/m, org/a, org/b]", [("org/a", "merge"), ("org/b", "merge")]),
        ("base_model: org/m", []),
    ],
)
def test_a_model_does_not_count_among_its_own_parents(db, tmp_path, header, found):
    told = db.import_([card(tmp_path / "m", header)], name="org/m")
    assert parents(db, "org/m") == found
    assert "org/m as a parent of its own" in notes(told)


def test_a_recipe_that_takes_the_model_itself_did_not_make_it(db, tmp_path):
    folder = tmp_path / "m"
    card(folder, "base_model: org/base")
    with (folder / "README.md").open("a") as file:
        file.write(
            "Merge it with its base:\n\n```yaml\nmodels: [{model: org/m}, {model: org/base}, {model: org/c}]\n"
            "merge_method: linear\nparameters: {weight: 1}\n```\n"
        )
    told = db.import_([str(folder)], name="org/m")
    assert parents(db, "org/m") == [("org/base", "finetune")]
    assert "the merge that takes 'org/m', and so made another model" in notes(told)
    assert db.sql("select relation from models where name = 'org/m'").rows() == [("finetune",)]


def test_results_by_themselves_that_name_no_model_say_whose_they_are_taken_as(db, tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    results = folder / "results_1.json"
    results.write_text(json.dumps({"results": {"t": {"acc,none": 0.5}}, "config": {"model": "Mine"}}))
    assert "does not say which model was tested: taken as downloads" in notes(db.import_([str(results)]))
    assert "does not say" not in notes(db.import_([str(results)], name="org/m"))
    assert db.sql("select model from scores order by all").rows() == [("downloads",), ("org/m",)]
    (folder / "config.json").write_text("{}")
    assert "does not say" not in notes(db.import_([str(results)]))


COMMIT = "0" * 39 + "1"


@pytest.mark.parametrize(
    ("path", "parent"),
    [
        ("/home/ada/models/Base-7B/", "org/base-7b"),
        ("C:\\models\\base-7b", "org/base-7b"),
        (f"/home/ada/.cache/huggingface/hub/models--org--x/snapshots/{COMMIT}", f"org/x@{COMMIT}"),
    ],
)
def test_a_path_is_the_model_whose_name_it_ends_in(db, tmp_path, path, parent):
    """Of the model that the card beside an adapter names; a place in a cache of the Hub says itself which it is."""
    folder = tmp_path / "m"
    source = adapter(folder, {"peft_type": "LORA", "r": 1, "base_model_name_or_path": path})
    if parent == "org/base-7b":
        card(folder, "base_model: org/base-7b\nlibrary_name: peft")
    assert "disk" not in notes(db.import_([source]))
    assert set(parents(db, "m")) == {(parent, "adapter")}


def test_two_files_that_name_two_bases_of_an_adapter_are_told(db, tmp_path):
    folder = tmp_path / "m"
    source = adapter(folder, {"peft_type": "LORA", "r": 1, "base_model_name_or_path": "org/b"})
    card(folder, "base_model: org/a\nlibrary_name: peft")
    assert "org/b and org/a are both named as what it adapts" in notes(db.import_([source]))
    assert parents(db, "m") == [("org/a", "adapter"), ("org/b", "adapter")]
