"""A comparison of a part of two models says so, is marked below half of them, and takes part in no rank."""

import json

import pytest
import torch
from families import CONFIG, write_safetensors
from safetensors.torch import load_file

import kinbase


def part_of(family, folder, names, source="ft_a"):
    """A copy of a fine-tune of which only some tensors meet the base."""
    tensors = load_file(family[source] / "model.safetensors")
    tensors = {n if names(n) else f"other.part.{i}": t for i, (n, t) in enumerate(tensors.items())}
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def known(db, family, tmp_path):
    """The family, a member of which little more than the norms meets the base, and one of which most does."""
    weak = part_of(family, tmp_path / "weak", lambda n: "norm" in n or "o_proj" in n)
    most = part_of(family, tmp_path / "most", lambda n: "lm_head" not in n, "ft_b")
    db.import_([weak, most], base="base")
    return db


def shares(db, name):
    return {s for (s,) in db.sql("select round(coverage, 6) from kinship where model_a = ?", [name]).rows()}


def expected(family, names):
    tensors = load_file(family["base"] / "model.safetensors")
    return round(
        sum(t.numel() for n, t in tensors.items() if names(n)) / sum(t.numel() for t in tensors.values()), 6
    )


def test_coverage_is_the_share_of_the_bases_parameters(known, family):
    little = expected(family, lambda n: "norm" in n or "o_proj" in n)
    assert shares(known, "weak") == {little} and little < 0.5
    assert expected(family, lambda n: "lm_head" not in n) in shares(known, "most")


def test_ranks_leave_out_what_covers_too_little_and_say_so(known, cli):
    path = str(known.store.path)
    assert "weak" not in known.nearest_kin("ft_a")["model"].to_list()
    assert "most" in known.nearest_kin("ft_a")["model"].to_list()
    run = cli("--db", path, "kin", "ft_a")
    assert "left out, compared by less than half of the base's parameters: weak" in run.stderr
    assert [m for m, _ in known.left_out("ft_a")] == ["weak"]
    run = cli("--db", path, "kin", "weak")
    assert "ft_b" in run.stderr and "ft_b" not in run.stdout


def test_a_matrix_marks_what_covers_too_little_and_says_what_the_others_cover(known, cli):
    run = cli("--db", str(known.store.path), "kin", "ft_a", "ft_b", "weak", "most")
    assert run.returncode == 0, run.stderr
    row = next(line for line in run.stdout.splitlines() if " weak " in line)
    assert row.count("?") == 3
    clean = next(line for line in run.stdout.splitlines() if " ft_b " in line)
    assert clean.count("?") == 1
    assert "weak: compared by" in run.stdout and "? compared by less than half" in run.stdout
    group = known.group_kinship(["ft_a", "ft_b", "weak", "most"]).row(0, named=True)
    assert group["pairs"] == 3
    whole = cli("--db", str(known.store.path), "kin", "ft_a", "ft_b")
    assert "?" not in whole.stdout and "compared by" not in whole.stdout


def test_show_and_json_carry_it(known, cli):
    run = cli("--db", str(known.store.path), "show", "most", "-f", "json")
    (about,) = json.loads(run.stdout)
    assert about["coverage"] < 1 and all(0.5 < kin["coverage"] < 1 for kin in about["kin"])
    run = cli("--db", str(known.store.path), "kin", "ft_a", "weak", "-f", "json")
    assert [row["coverage"] < 0.5 for row in json.loads(run.stdout)] == [True]


def test_recipes_trees_and_advice_take_no_part_in_it(known):
    from kinbase.evolution import suggest
    from kinbase.provenance.phylogeny.infer import infer
    from kinbase.provenance.recipes.search import recover

    assert any("weak" in note and "less than half" in note for note in recover(known.store, "merge_ab").notes)
    told = recover(known.store, "merge_ab")
    assert {p.parent for p in told.finding.parents} == {"ft_a", "ft_b"}
    families, notes = infer(known.store, ["ft_a", "ft_b", "merge_ab", "weak", "base"])
    assert any(note.startswith("weak was compared by") for note in notes)
    assert all("weak" not in f.members for f in families)
    with known.store.reading() as con:
        population = suggest.load(con, "base")
    assert {frozenset(pair) for pair in population.weak} >= {frozenset(("weak", "ft_a"))}
    assert all("weak" not in row[:2] for row in suggest.suggest(population, 50))
    _, notes = known.suggest("base")
    assert any("left out" in note and "weak" in note for note in notes)


def test_a_figure_crosses_out_what_covers_too_little(known):
    from kinbase.plotting import heatmap

    plot = heatmap.draw(known.store, "ft_a", "ft_b", "weak")
    texts = " ".join(t.get_text() for t in plot.texts)
    assert "2 by less than half (crossed)" in texts
    crossed = [p for axes in plot.axes for p in axes.patches if p.get_hatch() == "xx"]
    assert len(crossed) == 4
    assert sum("of the base" in text for text in plot.grid.texts.values()) == 2


def test_a_kinship_of_nothing_said_about_it_counts_as_whole(tmp_path):
    db = kinbase.open(tmp_path / "kb.duckdb")
    (tmp_path / "kin.csv").write_text("model_a,model_b,pcc\na,b,0.5\n")
    db.import_([tmp_path / "kin.csv"])
    assert db.nearest_kin("a")["model"].to_list() == ["b"]
    assert torch.tensor(db.nearest_kin("a")["pcc"].to_list()).tolist() == [0.5]
