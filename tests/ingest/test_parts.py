"""A pass in parts: the same rows as of one process, and no part taken for what it is not."""

import shutil
from pathlib import Path

import pytest
from contents import stored
from safetensors.torch import load_file, save_file

import kinbase
from kinbase.errors import KinbaseError, UsageError
from kinbase.ingest import family_pass, finished, parts
from kinbase.ingest.part_files import Head, split
from kinbase.store import part_files as files


def measure(sources, folder, number, base="base", **options):
    db = kinbase.open(folder / "not_used.duckdb")
    made = []
    for part in range(1, number + 1):
        made.append(folder / f"sums-{part}.parquet")
        db.measure_part(sources, made[-1], part=part, parts=number, base=base, **options)
    assert not db.store.path.exists()
    return made


@pytest.fixture
def one(tmp_path, members):
    """The family imported by one process."""
    db = kinbase.open(tmp_path / "one.duckdb")
    assert set(db.import_(members, base="base")["status"]) == {"imported"}
    return db


@pytest.mark.parametrize("number", [1, 3, 40])
def test_parts_give_the_rows_of_one_process(one, members, tmp_path, number):
    made = measure(members, tmp_path, number)
    db = kinbase.open(tmp_path / "parts.duckdb")
    report = db.import_(made[::-1])
    assert report["status"].to_list() == ["imported"] * len(members)
    assert stored(db) == stored(one)
    assert (
        report["notes"].to_list()
        == kinbase.open(tmp_path / "again.duckdb").import_(members, base="base")["notes"].to_list()
    )
    assert set(db.import_(made)["status"]) == {"unchanged"}


def test_nothing_of_the_weights_is_read_by_the_import(one, family, tmp_path, monkeypatch):
    made = measure(family.values(), tmp_path, 2)

    def watched(plan, *, done, **options):
        assert done == set(plan.positions)
        return iter(())

    monkeypatch.setattr(family_pass, "run", watched)
    assert set(kinbase.open(tmp_path / "parts.duckdb").import_(made)["status"]) == {"imported"}


def test_a_part_takes_about_its_share_of_the_bytes(members, tmp_path):
    with parts.opened_family([str(m) for m in members], kinbase_options("base")) as (base, others):
        plan, _ = family_pass.planned(base, others, new=len(others), hash_base=True)
        for number in (1, 2, 3, 5):
            chosen = split(plan, number)
            assert sorted(p for part in chosen for p in part) == list(plan.positions)
            loads = [sum(plan.jobs[p].nbytes for p in part) for part in chosen]
            # The largest first to the lightest: no part has more than another and one tensor beside.
            assert max(loads) - min(loads) <= max(job.nbytes for job in plan.jobs)


def kinbase_options(base):
    from kinbase.ingest.steps import ImportOptions

    return ImportOptions(base=base)


def test_members_that_are_stored_meet_the_parts_by_sketches(family, tmp_path):
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([family["base"], family["ft_c"]], base="base")
    made = measure([family["base"], family["ft_a"], family["ft_b"]], tmp_path, 2)
    report = db.import_(made)
    assert report["status"].to_list() == ["unchanged", "imported", "imported"]
    assert report["notes"].to_list()[1] == [
        "kinship with ft_c is estimated by sketches, for the parts are not of them: `kinbase kin MODEL --exact` measures it"
    ]
    methods = db.sql("select model_b, method from kinship where model_a = 'ft_a' order by 1").rows()
    assert methods == [("ft_b", "exact"), ("ft_c", "sketch")]
    # A member that is stored and among the parts is measured with the others.
    (tmp_path / "more").mkdir()
    db.import_(measure(family.values(), tmp_path / "more", 2))
    assert set(db.sql("select method from kinship")["method"]) == {"exact"}
    fresh = kinbase.open(tmp_path / "fresh.duckdb")
    fresh.import_(family.values(), base="base")
    kin = "select model_a, model_b, pcc, ed from kinship order by all"
    assert db.sql(kin).equals(fresh.sql(kin))


def test_an_interrupted_part_goes_on(one, members, tmp_path, monkeypatch):
    monkeypatch.setattr(finished, "KEEP_EVERY", 0.0)
    run, positions = family_pass.run, []

    def interrupted(plan, **options):
        for number, tensor in enumerate(run(plan, **options)):
            if number == 3:
                raise KeyboardInterrupt
            yield tensor

    monkeypatch.setattr(family_pass, "run", interrupted)
    out = tmp_path / "sums-1.parquet"
    with pytest.raises(KeyboardInterrupt):
        measure(members, tmp_path, 2)
    assert not out.exists() and Path(f"{out}.unfinished").exists()
    monkeypatch.setattr(
        family_pass,
        "run",
        lambda plan, **options: (positions.append(t.position) or t for t in run(plan, **options)),
    )
    made = measure(members, tmp_path, 2)
    assert len(positions) == len(set(positions)) == sum(len(head(path).positions) for path in made) - 3
    assert sorted(path.name for path in tmp_path.glob("sums*")) == [path.name for path in made]
    db = kinbase.open(tmp_path / "parts.duckdb")
    db.import_(made)
    assert stored(db) == stored(one)


def head(path):
    return Head.loads(files.text(path))


def test_a_part_that_is_there_is_left_as_it_is(family, tmp_path):
    made = measure(family.values(), tmp_path, 2)
    before = [path.read_bytes() for path in made]
    db = kinbase.open(tmp_path / "kin.duckdb")
    assert db.measure_part(family.values(), made[0], part=1, parts=2, base="base").is_old
    with pytest.raises(KinbaseError, match="is another part \\(it is one of 2 parts, not of 3\\)"):
        db.measure_part(family.values(), made[0], part=1, parts=3, base="base")
    with pytest.raises(KinbaseError, match="is another part \\(it is part 1\\)"):
        db.measure_part(family.values(), made[0], part=2, parts=2, base="base")
    (tmp_path / "table.parquet").write_text("mine")
    with pytest.raises(KinbaseError, match="exists already and is no part"):
        db.measure_part(family.values(), tmp_path / "table.parquet", base="base")
    assert [path.read_bytes() for path in made] == before


def refused(db, sources, match):
    with pytest.raises(KinbaseError, match=match) as caught:
        db.import_(sources)
    assert "\n" not in str(caught.value)
    if db.store.path.exists():
        with db.store.reading() as con:
            assert con.execute("select count(*) from raw.model").fetchall() == [(0,)]


def test_parts_that_are_not_all_of_one_pass_are_refused(empty, family, tmp_path):
    made = measure(family.values(), tmp_path, 3)
    refused(empty, made[:2], "part 3 is missing of 3: measure with `--part 3/3`")
    refused(empty, made[:1], "parts 2, 3 are missing of 3")
    twice = tmp_path / "again.parquet"
    shutil.copy(made[1], twice)
    refused(
        empty, [*made, twice], "'.*sums-2.parquet' and '.*again.parquet' are both part 2 of 3: leave one out"
    )
    refused(empty, [*made, made[0]], "are both part 1 of 3")
    folder = tmp_path / "others"
    folder.mkdir()
    others = measure([family["base"], family["ft_a"], family["ft_c"], family["ft_b"]], folder, 3)
    refused(
        empty,
        [others[0], *made[1:]],
        "is no part of the same pass as .*: its members are others \\(ft_b, not ft_c\\)",
    )
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    others = measure([family["base"], family["ft_a"]], fewer, 3)
    refused(empty, [*made[:2], others[2]], "it is of 1 members, not of 4")
    (tmp_path / "whole").mkdir()
    other_number = measure(family.values(), tmp_path / "whole", 1)
    refused(empty, [*other_number, *made], "it is one of 3 parts, not of 1")


def test_a_file_that_changed_between_parts_is_named(empty, family, tmp_path):
    changing = Path(shutil.copytree(family["ft_a"], tmp_path / "changing"))
    sources = [family["base"], changing, family["ft_b"]]
    db = kinbase.open(tmp_path / "not_used.duckdb")
    made = [tmp_path / "sums-1.parquet", tmp_path / "sums-2.parquet"]
    db.measure_part(sources, made[0], part=1, parts=2, base="base")
    tensors = load_file(changing / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, changing / "model.safetensors", metadata={"format": "pt"})
    db.measure_part(sources, made[1], part=2, parts=2, base="base")
    refused(empty, made, "'model.safetensors' of changing was changed, or is a copy with another time")
    made[0].unlink()
    db.measure_part(sources, made[0], part=1, parts=2, base="base")
    tensors["model.norm.weight"][0] -= 1
    save_file(tensors, changing / "model.safetensors", metadata={"format": "pt"})
    refused(empty, made, "not of the models that are here: 'model.safetensors' of changing was changed")
    shutil.rmtree(changing)
    refused(empty, made, "changing, which the parts are of, cannot be had: .* does not exist")


def test_a_file_that_changes_under_a_part_leaves_no_part(family, tmp_path, monkeypatch):
    changing = Path(shutil.copytree(family["ft_a"], tmp_path / "changing"))
    run = family_pass.run

    def touching(plan, **options):
        with open(changing / "model.safetensors", "ab") as file:
            file.write(b"more")
        return run(plan, **options)

    monkeypatch.setattr(family_pass, "run", touching)
    with pytest.raises(KinbaseError, match="changed while it was read"):
        measure([family["base"], changing], tmp_path, 1)
    assert not (tmp_path / "sums-1.parquet").exists()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_part_that_is_cut_off_is_refused(empty, family, tmp_path, kept):
    made = measure(family.values(), tmp_path, 2)
    data = made[1].read_bytes()
    made[1].write_bytes(data[: int(kept * len(data))])
    refused(
        empty,
        made,
        "sums-2.parquet' is no part of a pass, or was written only in part: measure that part again",
    )


def test_damage_inside_a_part_is_refused(empty, family, tmp_path):
    """Wherever the bytes of the rows are other ones: a checksum, a shape, a name or a key does not fit."""
    made = measure(family.values(), tmp_path, 2)
    data = made[1].read_bytes()
    for at in range(1000, len(data), len(data) // 25):
        made[1].write_bytes(data[:at] + bytes(byte ^ 255 for byte in data[at : at + 64]) + data[at + 64 :])
        try:
            empty.import_(made)
        except KinbaseError as error:
            assert "\n" not in str(error)
        else:
            pytest.fail(f"bytes {at} to {at + 64} are other ones and nobody noticed")


def test_rows_of_another_shape_are_refused(empty, family, tmp_path):
    made = measure(family.values(), tmp_path, 2)
    known, rows = files.text(made[1]), list(files.rows(made[1]))
    for wrong in (
        rows[:-1],
        rows[1:],
        [*rows, rows[0]][1:],
        [rows[0], (rows[1][0], rows[2][1]), *rows[2:]],
        [rows[0], (rows[1][0], b"no rows"), *rows[2:]],
    ):
        files.write(made[1], known, lambda wrong=wrong: wrong)
        refused(empty, made, "is damaged|lack sums of tensors")
    files.write(made[1], known.replace('"positions"', '"places"'), lambda: rows)
    refused(empty, made, "does not say what it is a part of")
    files.write(made[1], known.replace(f'"scheme": "{finished.ALGORITHM} ', '"scheme": "0 '), lambda: rows)
    refused(empty, made, "another version of Kinbase measured it")
    files.write(made[1], known, lambda: rows)
    assert set(empty.import_(made)["status"]) == {"imported"}


def test_parts_of_unlike_machines_are_said(empty, family, tmp_path):
    made = measure(family.values(), tmp_path, 2)
    rows = list(files.rows(made[1]))
    processor = head(made[1]).processor
    files.write(made[1], files.text(made[1]).replace(processor, "znver9/0abc12"), lambda: rows)
    notes = empty.import_(made)["notes"].to_list()
    assert notes[1] == [
        f"the parts were measured on cpu of {min(processor, 'znver9/0abc12')} and cpu of "
        f"{max(processor, 'znver9/0abc12')}: their sums differ in the last bits"
    ]


def test_what_is_no_family_is_not_measured(family, tmp_path):
    db = kinbase.open(tmp_path / "kin.duckdb")
    (tmp_path / "scores.csv").write_text("model,benchmark,value\nft_a,x,1\n")
    out = tmp_path / "sums.parquet"
    for sources, base, match in (
        ([family["base"], tmp_path / "nowhere"], "base", "nowhere cannot be measured: .* does not exist"),
        (
            [family["base"], tmp_path / "scores.csv"],
            "base",
            "scores.csv cannot be measured: it holds no weights",
        ),
        ([family["ft_a"], family["ft_b"]], None, "no base is known for ft_a: say with --base"),
        ([family["ft_a"], family["ft_a"]], family["base"], "is called 'ft_a' too"),
    ):
        with pytest.raises(KinbaseError, match=match):
            db.measure_part(sources, out, base=base)
    with pytest.raises(UsageError, match="--part takes I/N"):
        db.measure_part(family.values(), out, part=3, parts=2, base="base")
    assert not out.exists()


def test_parts_go_with_no_other_options(empty, family, tmp_path):
    made = measure(family.values(), tmp_path, 1)
    for options in ({"base": "base"}, {"kinship": False}, {"sample": 0.1}, {"children": True}):
        with pytest.raises(UsageError, match="parts of a pass"):
            empty.import_(made, **options)
    with pytest.raises(KinbaseError, match="ft_a' is no part of a pass as the others are"):
        empty.import_([*made, family["ft_a"]])


def test_a_killed_saving_counts_for_nothing(family, tmp_path):
    """Sums that were kept without the sketches that belong to them are measured again."""
    with parts.opened_family([str(p) for p in family.values()], kinbase_options("base")) as (base, others):
        plan, _ = family_pass.planned(base, others, new=len(others), hash_base=True)
        store = kinbase.open(tmp_path / "kin.duckdb").store
        kept = finished.InStore(store, "key")
        first = finished.Finished(plan, kept)
        family_pass.read(plan, first, [0, 1, 2])
        first.save()
        family_pass.read(plan, first, [0, 1, 2, 3, 4])
        rows = list(first.new_rows())
        kept._append(rows[:-1])
        again = finished.Finished(plan, kept)
        assert sorted(again.tensors) == [0, 1, 2]
        kept._append(rows)
        kept._append(rows)  # the same once more: an interrupt may come after the last row
        assert sorted(finished.Finished(plan, kept).tensors) == [0, 1, 2, 3, 4]
