"""Sampled kinship: the estimate meets the exact value within its error, and says so when it cannot know."""

import math

import numpy as np
import pytest
import torch
from families import TORCH_DTYPES, open_checkpoint, write_safetensors
from sampled import SHAPES, normal, weights

import kinbase
from kinbase.checkpoint import Checkpoint, Tensor
from kinbase.errors import KinbaseError
from kinbase.kinship import sampling


def in_memory(name, tensors, delta_of=None):
    """A Checkpoint of tensors in memory, which counts the bytes read of it."""
    read = []

    def reader(raw):
        def one(start, out):
            assert start + len(out) <= len(raw)
            out[:] = raw[start : start + len(out)]
            read.append(len(out))

        return one

    codes = {dtype: code for code, dtype in TORCH_DTYPES.items()}
    found = [
        Tensor(n, codes[t.dtype], tuple(t.shape), reader(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()))
        for n, t in tensors.items()
    ]  # fmt: skip
    return Checkpoint(name, name, found, delta_of=delta_of), read


def exact(made, x="a", y="b"):
    """pcc, cs and ed in float64."""
    d = [
        torch.cat([(made[m][t].double() - made["base"][t].double()).reshape(-1) for t in made[m]]).numpy()
        for m in (x, y)
    ]
    cs = d[0] @ d[1] / np.linalg.norm(d[0]) / np.linalg.norm(d[1])
    return np.corrcoef(*d)[0, 1], cs, np.linalg.norm(d[0] - d[1])


@pytest.fixture(scope="module")
def made():
    return weights()


def sample(made, share=0.4, names=("a", "b"), **how):
    base, *members = (in_memory(name, made[name])[0] for name in ("base", *names))
    return sampling.estimate(base, members, share, **how)


@pytest.mark.parametrize("code", TORCH_DTYPES)
def test_every_dtype_as_torch_reads_it(code):
    bits = torch.arange(256, dtype=torch.uint8).repeat(8)
    expected = bits.view(TORCH_DTYPES[code]).double().numpy()
    np.testing.assert_array_equal(sampling.decoded(bits.numpy().tobytes(), code), expected)


def test_the_whole_is_the_exact_value(made):
    found = sample(made, 0.999999)
    (one,) = found.estimates
    # Everything was read once; ed is a sum of 786,000 squares in float64.
    assert (one.pcc, one.cs, one.ed) == pytest.approx(exact(made), rel=1e-9)
    assert one.coverage == 1.0
    assert found.nbytes == 3 * sum(t.numel() * 2 for t in made["base"].values())


def test_the_interval_holds_the_exact_value(made):
    """Of right intervals 95 in 100 do; benchmarks/sampling.py asks many more. The seeds are fixed."""
    hits = total = 0
    for family in range(3):
        these = made if family == 0 else weights(family)
        pcc, cs, _ = exact(these)
        for seed in range(20):
            (one,) = sample(these, 0.2, seed=seed).estimates
            hits += abs(one.pcc - pcc) <= 1.96 * one.stderr and abs(one.cs - cs) <= 1.96 * one.stderr
            total += 1
    assert total == 60 and hits / total >= 0.93


def test_no_more_is_read_than_was_asked_for(made):
    opened = {name: in_memory(name, made[name]) for name in ("base", "a", "b")}
    checkpoints = [checkpoint for checkpoint, _ in opened.values()]
    found = sampling.estimate(checkpoints[0], checkpoints[1:], 0.6)
    size = checkpoints[0].nbytes
    for _, read in opened.values():
        assert sum(read) <= 0.601 * size
        assert max(read) <= 256 * found.run_bytes
    assert found.nbytes == sum(sum(read) for _, read in opened.values())
    # Runs that lie together are read together.
    assert len(opened["a"][1]) < found.runs


def test_it_stops_when_it_is_sure(made):
    whole = sample(made, 0.9).estimates[0]
    early = sample(made, 0.9, stderr=2 * whole.stderr)
    assert early.estimates[0].stderr <= 2 * whole.stderr
    assert early.runs < 0.6 * round(0.9 * 1536)
    never = sample(made, 0.5, stderr=1e-9)
    assert never.runs == sample(made, 0.5).runs


def test_the_same_seed_reads_the_same(made):
    assert sample(made, seed=3).estimates == sample(made, seed=3).estimates
    assert sample(made, seed=3).estimates != sample(made, seed=4).estimates


def test_a_stratum_is_whole_tensors_of_enough_runs():
    position = np.random.default_rng(0).permutation(np.repeat(np.arange(40), np.arange(40) % 23))
    strata = sampling._strata(position)
    assert sorted(np.concatenate(strata)) == list(range(len(position)))
    assert all(len(stratum) >= sampling.STRATUM for stratum in strata)
    held = [set(position[stratum]) for stratum in strata]
    assert sum(map(len, held)) == len(set.union(*held))


def test_what_differs_between_tensors_alone_is_no_error():
    """An even sample takes as many runs of each tensor every time; only what differs within one is left to chance."""
    runs = np.repeat([[1.0, 0, 0, 1, 1, 0.9], [1.0, 0, 0, 4, 4, -0.5]], 200, axis=0)
    noisy = runs + [0, 0, 0, 0, 0, 0.1] * np.random.default_rng(0).standard_normal((400, 1))
    tensors = np.repeat([0, 1], 200)
    between, within = sampling._errors([lambda: runs, lambda: noisy], tensors, 0)
    # Products of sd 0.1 a run, 400 runs, over squares of 1,000: 0.1 * 20 / 1000; the drawn sd is good to 5 in 100.
    assert between < 1e-12 and within == pytest.approx(0.002, rel=0.15)
    (mixed,) = sampling._errors([lambda: runs], np.zeros(400, int), 0)
    assert mixed > 0.01


def test_few_runs_state_nothing(made):
    found = sample(made, 0.1)
    assert found.runs < sampling.LEAST_RUNS
    assert not found.estimates and "too few" in found.notes[0]


@pytest.mark.parametrize("share", [0.0, 1.0, -1, float("nan")])
def test_a_share_is_a_share(made, share):
    with pytest.raises(KinbaseError, match="between 0 and 1"):
        sample(made, share)


# What hides.


def changed(made, change):
    """A model that is the base but for what `change(name, tensor)` returns."""
    return {name: change(name, t.clone()) for name, t in made["base"].items()}


def test_a_copy_of_the_base_is_told_but_not_as_one(made):
    found = sample(made | {"copy": changed(made, lambda name, t: t)}, names=("a", "copy"))
    assert not found.estimates
    assert "none of" in found.notes[1] and "it is the base, or" in found.notes[1]
    assert 0 not in found.notes


def test_rows_of_an_embedding_hide(made):
    def rows(name, t):
        if "embed" in name:
            t[:20] += 0.5
        return t

    found = sample(made | {"rows": changed(made, rows)}, names=("a", "rows"))
    assert not found.estimates and found.notes[1]


def test_a_few_tensors_hide(made):
    """What adapters on the queries alone do: 4 of 17 tensors, a twelfth of the elements."""
    generator = torch.Generator().manual_seed(1)

    def queries(name, t):
        if "q_proj" in name:
            t += (normal(generator, (128, 4)) @ normal(generator, (4, 128)) * 1e-3).bfloat16()
        return t

    found = sample(made | {"lora": changed(made, queries)}, names=("a", "lora"))
    assert not found.estimates and "differ from the base" in found.notes[1]


def test_a_heavy_row_under_a_light_delta_hides(made):
    heavy = {name: t.clone() for name, t in made["b"].items()}
    heavy["model.embed_tokens.weight"][:8] += 30
    found = sample(made | {"heavy": heavy}, 0.9, names=("a", "heavy"))
    assert not found.estimates and "carry nearly all" in found.notes[1]


def test_numbers_that_are_not_finite(made):
    broken = {name: t.clone() for name, t in made["b"].items()}
    broken["model.layers.0.mlp.up_proj.weight"][:] = float("nan")
    (one,) = sample(made | {"broken": broken}, 0.5, names=("a", "broken")).estimates
    assert math.isfinite(one.pcc) and one.coverage < sample(made, 0.5).estimates[0].coverage
    nothing = {name: torch.full_like(t, float("inf")) for name, t in broken.items()}
    found = sample(made | {"nothing": nothing}, 0.5, names=("a", "nothing"))
    assert not found.estimates and "not finite" in found.notes[1]


# What does not match.


def test_a_longer_vocabulary_and_a_missing_tensor(made):
    other = dict(made["b"])
    embed = other["model.embed_tokens.weight"]
    other["model.embed_tokens.weight"] = torch.cat([embed, torch.ones(100, 128).bfloat16()])
    del other["model.layers.3.mlp.up_proj.weight"]
    (one,) = sample(made | {"other": other}, 0.9, names=("a", "other")).estimates
    kept = {m: {n: t for n, t in made[m].items() if n in other} for m in ("base", "a", "b")}
    pcc, cs, ed = exact(kept)
    assert abs(one.pcc - pcc) <= 3 * one.stderr and abs(one.cs - cs) <= 3 * one.stderr
    # The distance over what both have; 90% of it was read.
    assert one.ed == pytest.approx(ed, rel=0.05)


def test_a_member_in_another_dtype(made):
    (one,) = sample(
        made | {"wide": {n: t.float() for n, t in made["b"].items()}}, names=("a", "wide")
    ).estimates
    (same,) = sample(made).estimates
    assert one.pcc == same.pcc


def test_an_adapter_is_its_own_delta(made):
    """Deltas that come as such, on all matrices, against the same changes written into weights (float32: unrounded)."""
    base = {n: t.float() for n, t in made["base"].items()}
    delta = {n: (made["b"][n].float() - base[n]) for n in base if len(SHAPES[n]) == 2}
    tuned = {n: base[n].double() + delta[n].double() if n in delta else base[n].double() for n in base}
    checkpoints = [in_memory("base", base)[0], in_memory("a", made["a"])[0]]
    adapter = in_memory("lora", delta, delta_of="base")[0]
    (one,) = sampling.estimate(checkpoints[0], [checkpoints[1], adapter], 0.6).estimates
    (two,) = sampling.estimate(checkpoints[0], [checkpoints[1], in_memory("tuned", tuned)[0]], 0.6).estimates
    assert one.pcc == pytest.approx(two.pcc, abs=1e-9) and one.ed == pytest.approx(two.ed, rel=1e-9)


# Through the import.


@pytest.fixture(scope="module")
def folders(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled")
    for name, tensors in made.items():
        write_safetensors(folder / name / "model.safetensors", tensors)
        (folder / name / "config.json").write_text("{}")
    return {name: folder / name for name in made}


def test_folders_are_sampled_as_well(folders, made, tmp_path):
    db = kinbase.open(tmp_path / "x.duckdb")
    found = db.import_([folders["a"], folders["b"]], base=folders["base"], sample=0.4)
    assert found["status"].to_list() == ["metadata", "sampled", "sampled"]
    (row,) = db.sql("from kinship_all where model_a < model_b").to_dicts()
    assert (row["model_a"], row["model_b"], row["base"], row["method"]) == ("a", "b", "base", "sampled")
    pcc, cs, _ = exact(made)
    assert abs(row["pcc"] - pcc) < 4 * row["stderr"] and abs(row["cs"] - cs) < 4 * row["stderr"]
    assert 0.39 < row["coverage"] < 0.41 and "runs of" in row["source"]
    assert db.sql("select count(*) from models where has_weights").item() == 0
    # Sampled again, it is replaced; measured, the exact value counts.
    db.import_([folders["a"], folders["b"]], base="base", sample=0.5)
    assert db.sql("select count(*) from raw.estimate").item() == 1
    db.import_([folders[name] for name in ("base", "a", "b")], base="base")
    (row,) = db.sql("from kinship where model_a < model_b").to_dicts()
    assert row["method"] == "exact" and row["pcc"] == pytest.approx(pcc, abs=1e-9)
    assert db.sql("select count(*) from kinship_all where model_a < model_b").item() == 2


def test_a_stored_member_meets_the_sampled_ones(folders, made, tmp_path):
    db = kinbase.open(tmp_path / "x.duckdb")
    db.import_([folders["base"], folders["a"]], base="base")
    found = db.import_([folders["b"]], base="base", sample=0.4)
    assert found["status"].to_list() == ["sampled"]
    (row,) = db.sql("from kinship where model_a < model_b").to_dicts()
    assert row["method"] == "sampled" and abs(row["pcc"] - exact(made)[0]) < 4 * row["stderr"]


def test_what_hides_is_said_on_the_command_line(folders, cli, made, tmp_path):
    write_safetensors(tmp_path / "copy" / "model.safetensors", {**made["base"], "extra": torch.ones(3)})
    done = cli("import", folders["a"], tmp_path / "copy", "--base", folders["base"], "--sample", "0.4")
    assert done.returncode == 0, done.stderr
    assert "sampled copy against base" in done.stderr and "none of" in done.stderr
    assert "MB of 3 models" in done.stderr
    assert kinbase.open(tmp_path / "kin.duckdb").sql("select count(*) from kinship").item() == 0
    done = cli(
        "import", folders["a"], folders["b"], "--base", "base", "--sample", "0.9", "--stderr", "0.02", "-h"
    )
    assert done.returncode == 0


def test_the_exact_pass_agrees(folders, made):
    """The same deltas as the pass: its reader is another one."""
    opened = [open_checkpoint(folders[name]) for name in ("base", "a", "b")]
    (one,) = sampling.estimate(opened[0], opened[1:], 0.5).estimates
    (two,) = sample(made, 0.5).estimates
    # Both sort differently by file; the sample of places is of the base's own order, so only statistics agree.
    assert abs(one.pcc - two.pcc) < 4 * math.hypot(one.stderr, two.stderr)
