"""The one path in: what is stored of a family, twice imported, renamed, broken, interrupted."""

import shutil

import families
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import kinbase
from kinbase.checkpoint.open import importers
from kinbase.errors import KinbaseError, UsageError
from kinbase.ingest import family_pass, finished


def rows(db, query, *parameters):
    return db.sql(query, parameters).rows()


def deltas(family, name):
    base, model = (load_file(family[n] / "model.safetensors") for n in ("base", name))
    return np.concatenate([(model[t].double() - base[t].double()).numpy().ravel() for t in sorted(base)])


def copy(family, name, folder):
    return shutil.copytree(family[name], folder)


def snapshot(db):
    """Everything public that does not depend on the moment."""
    tables = ("select name, digest, base, family, parameters, dtype, bytes from models", "from lineage", "from deltas",
              "from kinship", "from kinship_by_tensor", "from skipped", "select alias, model from aliases")  # fmt: skip
    return [sorted(map(str, rows(db, table))) for table in tables]


def test_kinship_of_a_family_is_that_of_its_flattened_deltas(db, family):
    for a, b, pcc, cs, ed in rows(db, "select model_a, model_b, pcc, cs, ed from kinship"):
        x, y = deltas(family, a), deltas(family, b)
        # The differences of 16-bit floats are taken in float32 (6e-8 of an element, mostly exact), the sums in float64.
        assert pcc == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
        assert cs == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-9)
        assert ed == pytest.approx(np.linalg.norm(x - y), rel=1e-9)
    assert len(rows(db, "from kinship")) == 4 * 3


def test_a_model_is_told_in_full(db, family):
    (about,) = db.show("merge_ab").to_dicts()
    assert about["family"] == about["base"] == "base"
    assert about["architecture"] == "LlamaForCausalLM"
    assert about["parameters"] == sum(
        t.numel() for t in load_file(family["merge_ab"] / "model.safetensors").values()
    )
    assert (about["dtype"], about["coverage"], about["has_weights"]) == ("BF16", 1.0, True)
    assert about["kin"][0]["model"] == "ft_a"


def test_importing_twice_is_importing_once(db, family, monkeypatch):
    before = snapshot(db)
    monkeypatch.setattr(family_pass, "run", None)  # unchanged files are not read again
    assert set(db.import_(family.values(), base="base")["status"]) == {"unchanged"}
    assert set(db.import_(family.values())["status"]) == {"unchanged"}
    assert snapshot(db) == before


def test_one_by_one_is_the_same_as_all_at_once(db, family, tmp_path):
    other = kinbase.open(tmp_path / "other.duckdb")
    for name in ("base", "merge_ab", "ft_c", "ft_a", "ft_b"):
        report = other.import_([family[name]], base=None if name == "base" else "base")
        assert report["status"].to_list() == ["imported"]
    assert snapshot(other) == snapshot(db)


def test_the_base_may_be_a_source_and_comes_first(tmp_path, family):
    db = kinbase.open(tmp_path / "kin.duckdb")
    report = db.import_([family["ft_a"]], base=family["base"])
    assert report["model"].to_list() == ["base", "ft_a"]
    assert rows(db, "select base, family from models where name = 'ft_a'") == [("base", "base")]


def test_without_a_base_a_model_is_stored_and_kinship_waits(tmp_path, family):
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([family["ft_a"], family["base"], family["ft_b"]])
    assert rows(db, "select count(*) from models where has_weights and base is null") == [(3,)]
    assert rows(db, "from kinship") == []
    report = db.import_([family["ft_a"], family["ft_b"]], base="base")
    assert report["status"].to_list() == ["imported", "imported"]
    assert len(rows(db, "from kinship")) == 2


def test_the_same_weights_elsewhere_are_the_same_model(db, family, tmp_path):
    before = rows(db, "select name, digest from models order by name")
    again = copy(family, "ft_a", tmp_path / "copy_of_a")
    tensors = load_file(again / "model.safetensors")
    save_file(
        dict(reversed(tensors.items())), again / "model.safetensors", metadata={"format": "pt", "by": "me"}
    )
    report = db.import_([again], base="base")
    assert report.select("model", "status").rows() == [("ft_a", "alias")]
    assert rows(db, "select name, digest from models order by name") == before
    assert db.resolved(["copy_of_a"]) == ["ft_a"]


def test_a_copy_does_not_take_the_place_of_weights_that_are_still_there(db, family, tmp_path):
    place = "select source from raw.model where name = 'ft_a'"
    again = copy(family, "ft_a", tmp_path / "copy_of_a")
    (row,) = db.import_([again], base="base").to_dicts()
    assert rows(db, place) == [(str(family["ft_a"]),)]
    assert row["notes"][-1].startswith(f"read from {family['ft_a']} before")
    assert db.resolved([str(again)]) == ["ft_a"]
    shutil.rmtree(again)
    assert db.measure(["ft_a", "ft_b"]) == []
    assert db.import_([family["ft_a"]], base="base")["status"].to_list() == ["unchanged"]


def test_weights_that_moved_are_found_where_they_are_now(tmp_path, family):
    first, second = (copy(family, "ft_a", tmp_path / place / "a") for place in ("first", "second"))
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([family["base"], first], base="base")
    shutil.rmtree(first)
    assert db.import_([second], base="base")["notes"].to_list() == [[]]
    assert rows(db, "select source from raw.model where name = 'a'") == [(str(second),)]
    assert db.import_([second], base="base")["status"].to_list() == ["unchanged"]


def test_a_taken_name_is_refused_and_nothing_changes(db, family, tmp_path):
    before = snapshot(db)
    stranger = copy(family, "ft_c", tmp_path / "x" / "ft_a")
    tensors = load_file(stranger / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, stranger / "model.safetensors")
    report = db.import_([stranger], base="base")
    assert report["status"].to_list() == ["failed"]
    assert "--name" in report["notes"][0][-1]
    assert snapshot(db) == before
    assert db.import_([stranger], base="base", name="another")["status"].to_list() == ["imported"]


def test_two_sources_of_one_name_do_not_mix(tmp_path, family):
    twin = copy(family, "ft_b", tmp_path / "elsewhere" / "ft_a")
    db = kinbase.open(tmp_path / "kin.duckdb")
    report = db.import_([family["base"], family["ft_a"], twin], base="base")
    assert report["status"].to_list() == ["imported", "imported", "failed"]


def test_a_base_of_other_shapes_is_refused(db, tmp_path):
    before = snapshot(db)
    folder = tmp_path / "stranger"
    families.write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": torch.zeros(3, 5)})
    report = db.import_([folder], base="base")
    assert report["status"].to_list() == ["failed"]
    assert "shares no tensor with base" in report["notes"][0][-1]
    assert snapshot(db) == before


def test_a_bad_source_does_not_keep_the_others_out(tmp_path, family):
    broken = copy(family, "ft_b", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-7])
    db = kinbase.open(tmp_path / "kin.duckdb")
    report = db.import_([family["base"], broken, tmp_path / "nowhere", family["ft_a"]], base="base")
    assert report["status"].to_list() == ["imported", "failed", "failed", "imported"]
    assert rows(db, "select name from models order by name") == [("base",), ("ft_a",)]


def test_a_file_that_changes_under_the_pass_fails_alone(tmp_path, family, monkeypatch):
    moving = copy(family, "ft_b", tmp_path / "moving")
    run = family_pass.run

    def touching(*args, **options):
        if any(checkpoint.name == "moving" for checkpoint in args[0].members):
            with open(moving / "model.safetensors", "ab") as file:
                file.write(b"more")
        return run(*args, **options)

    monkeypatch.setattr(family_pass, "run", touching)
    db = kinbase.open(tmp_path / "kin.duckdb")
    report = db.import_([family["base"], family["ft_a"], moving, family["ft_c"]], base="base")
    assert report["status"].to_list() == ["imported", "imported", "failed", "imported"]
    assert "changed" in report["notes"][2][-1]
    assert rows(db, "select distinct model_a from kinship order by 1") == [("ft_a",), ("ft_c",)]


def test_members_whose_files_are_gone_are_named(tmp_path, family):
    passing = copy(family, "ft_b", tmp_path / "passing")
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([family["base"], family["ft_a"], passing], base="base")
    shutil.rmtree(passing)
    report = db.import_([family["ft_c"]], base="base")
    assert report["notes"].to_list() == [
        ["kinship with passing is estimated by sketches: their files are gone or changed"]
    ]
    assert rows(db, "select model_b, method from kinship where model_a = 'ft_c' order by 1") == [
        ("ft_a", "exact"),
        ("passing", "sketch"),
    ]
    assert len(rows(db, "from kinship where model_a = 'passing' and method = 'exact'")) == 1


def test_an_interrupted_import_leaves_no_model_and_goes_on(db, tmp_path, family, monkeypatch):
    other = kinbase.open(tmp_path / "other.duckdb")
    run = family_pass.run
    seen = []

    def interrupted(*args, **options):
        for number, sums in enumerate(run(*args, **options)):
            if number == 9:
                raise KeyboardInterrupt
            yield sums

    monkeypatch.setattr(family_pass, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.import_(family.values(), base="base")
    assert rows(other, "from models") == []
    assert rows(other, "select count(*) from raw.pass where position >= 0") == [(9,)]

    def watched(*args, **options):
        for sums in run(*args, **options):
            seen.append(sums.position)
            yield sums

    monkeypatch.setattr(family_pass, "run", watched)
    other.import_(family.values(), base="base")
    assert 0 not in seen and len(seen) == len(load_file(family["base"] / "model.safetensors")) - 9
    assert rows(other, "select count(*) from raw.pass") == [(0,)]
    assert snapshot(other) == snapshot(db)


def test_without_kinship_first_and_measured_when_asked(db, tmp_path, family):
    other = kinbase.open(tmp_path / "other.duckdb")
    other.import_(family.values(), base="base", kinship=False)
    assert rows(other, "from kinship") == []
    assert other.measure(["ft_a", "ft_b", "ft_c", "merge_ab"]) == []
    assert rows(other, "from kinship order by all") == rows(db, "from kinship order by all")


def test_measuring_names_what_is_gone(tmp_path, family):
    passing = copy(family, "ft_b", tmp_path / "passing")
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([family["base"], family["ft_a"], passing], base="base", kinship=False)
    shutil.rmtree(passing)
    (note,) = db.measure(["ft_a", "passing"], exact=True)
    assert note.startswith("passing: its files are gone")
    assert rows(db, "select method from kinship where model_a = 'passing'") == [("sketch",)]
    with db.store.writing() as con:
        con.execute("delete from raw.estimate")
        con.execute("delete from raw.sketch")
    (note,) = db.measure(["ft_a", "passing"])
    assert note.startswith("passing: its files are gone")


def test_sketches_of_an_older_scheme_are_made_again(tmp_path, family):
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([family["base"], family["ft_a"]], base="base")
    made = rows(db, "from raw.sketch order by all")
    with db.store.writing() as con:
        con.execute("update raw.sketch set scheme = 'an older one', sums = null")
    db.import_([family["ft_a"]], base="base")
    assert rows(db, "from raw.sketch order by all")[1] == made[1]
    db.import_([family["base"]])
    assert rows(db, "from raw.sketch order by all") == made


def test_a_new_base_moves_the_model_to_its_family(db, family):
    db.import_([family["ft_a"]], base="ft_b")
    assert rows(db, "select base from models where name = 'ft_a'") == [("ft_b",)]
    assert rows(db, "from kinship where model_a = 'ft_a'") == []
    assert len(rows(db, "from kinship where base = 'base'")) == 3 * 2


def test_non_finite_weights_are_counted_and_named(tmp_path, family):
    hurt = copy(family, "ft_a", tmp_path / "hurt")
    tensors = load_file(hurt / "model.safetensors")
    tensors["lm_head.weight"][0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    save_file(tensors, hurt / "model.safetensors")
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([family["base"], family["ft_b"], hurt], base="base")
    (about,) = db.show("hurt").to_dicts()
    assert about["nonfinite"] == [{"tensor": "lm_head.weight", "nonfinite": 3}]
    share = 1 - tensors["lm_head.weight"].numel() / sum(t.numel() for t in tensors.values())
    assert about["coverage"] == pytest.approx(share)
    ((coverage, pcc),) = rows(db, "select coverage, pcc from kinship where model_a = 'hurt'")
    assert coverage == pytest.approx(share) and -1 <= pcc <= 1


def test_resized_vocabularies_use_the_common_rows(tmp_path, family):
    folders = {"base": family["base"], "ft_a": family["ft_a"]}
    for name, source, extra in (("longer", "ft_b", 4), ("shorter", "ft_c", -6)):
        folders[name] = copy(family, source, tmp_path / name)
        tensors = load_file(folders[name] / "model.safetensors")
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            t = tensors[key]
            tensors[key] = (
                torch.cat([t, torch.ones(extra, t.shape[1], dtype=t.dtype)])
                if extra > 0
                else t[:extra].clone()
            )
        save_file(tensors, folders[name] / "model.safetensors")
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_(folders.values(), base="base")
    loaded = {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
    for a, b, pcc, ed in rows(db, "select model_a, model_b, pcc, ed from kinship"):
        x, y = [], []
        for key, base in sorted(loaded["base"].items()):
            rows_ = min(t[key].shape[0] for t in (loaded["base"], loaded[a], loaded[b]))
            x.append((loaded[a][key][:rows_].double() - base[:rows_].double()).flatten())
            y.append((loaded[b][key][:rows_].double() - base[:rows_].double()).flatten())
        x, y = torch.cat(x).numpy(), torch.cat(y).numpy()
        assert pcc == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)  # float32 differences, float64 sums
        assert ed == pytest.approx(np.linalg.norm(x - y), rel=1e-9)
    assert {
        c for (c,) in rows(db, "select coverage from kinship where model_a = 'longer' and model_b = 'ft_a'")
    } == {1.0}
    for (whole,) in rows(
        db,
        "select abs(k.pcc - pearson(sum(t.numel), sum(t.sum_a), sum(t.sum_b), sum(t.sumsq_a), sum(t.sumsq_b), sum(t.dot)))"
        " from kinship k join kinship_by_tensor t using (model_a, model_b) group by k.pcc, model_a, model_b",
    ):
        assert whole < 1e-12


def test_contradictory_arguments_are_usage(db, family):
    with pytest.raises(UsageError, match="--name"):
        db.import_([family["ft_a"], family["ft_b"]], name="x")
    with pytest.raises(KinbaseError, match="there is no model 'nothing'"):
        db.import_([family["ft_a"]], base="nothing")


def test_an_unknown_name_lists_the_near_ones(db):
    with pytest.raises(KinbaseError, match=r"did you mean .*merge_ab"):
        db.show("merge_ba")
    with pytest.raises(KinbaseError, match=r"could be ft_a, ft_b, ft_c"):
        db.show("ft_")
    digest = rows(db, "select digest from models where name = 'ft_b'")[0][0]
    assert db.resolved([digest[:10], "mer"]) == ["ft_b", "merge_ab"]


def test_importers_are_found_by_entry_point():
    names = {module.__name__.rpartition(".")[2] for module in importers()}
    assert {"folder", "safetensors", "pytorch", "adapter", "cache"} <= names


def test_a_chosen_name_for_known_files_is_another_name(db, family):
    (notes,) = db.import_([family["ft_a"]], name="favourite")["notes"].to_list()
    assert notes == ["favourite is another name of ft_a now"]
    assert db.resolved(["favourite"]) == ["ft_a"]
    db.import_([family["ft_b"] / "model.safetensors"])
    with pytest.raises(KinbaseError, match="there is no model 'model'"):
        db.resolved(["model"])


def test_a_long_pass_is_kept_before_the_next_family_begins(tmp_path, family, monkeypatch):
    """Two families in one import, interrupted in the second: the first is not measured again."""
    monkeypatch.setattr(finished, "KEEP_EVERY", 0.0)
    second = {name: copy(family, name, tmp_path / f"other_{name}") for name in ("base", "ft_a")}
    for folder in second.values():
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] += 1
        save_file(tensors, folder / "model.safetensors")
        name = "other_base" if folder is second["base"] else None
        card = f"---\nbase_model: {'other_base' if name is None else 'nobody/knows'}\n---\n"
        (folder / "README.md").write_text(card if name is None else "# a base\n")
    (tmp_path / "ft_c").mkdir()
    first = copy(family, "ft_c", tmp_path / "ft_c" / "ft_c")
    (first / "README.md").write_text("---\nbase_model: base\n---\n")
    sources = [family["base"], first, second["base"], second["ft_a"]]
    run, passes = family_pass.run, []

    def interrupted(plan, **options):
        passes.append((plan.base.name, len(options["done"])))
        for number, sums in enumerate(run(plan, **options)):
            if len(passes) == 2 and number == 3:
                raise KeyboardInterrupt
            yield sums

    monkeypatch.setattr(family_pass, "run", interrupted)
    db = kinbase.open(tmp_path / "kin.duckdb")
    with pytest.raises(KeyboardInterrupt):
        db.import_(sources)
    assert rows(db, "from models") == []
    db.import_(sources)
    tensors = len(load_file(family["base"] / "model.safetensors"))
    assert passes == [("base", 0), ("other_base", 0), ("base", tensors), ("other_base", 3)]
    assert rows(db, "select count(*) from raw.pass") == [(0,)]
    assert rows(db, "select name, base from models where base is not null order by 1") == [
        ("ft_c", "base"),
        ("other_ft_a", "other_base"),
    ]
