"""The streaming pass against float64 references of the flattened weights, and what it promises besides.

References decode with torch and multiply with numpy in float64; the tolerance for products is 1e-9
relative to the norms (float64 sums in another order; the float32 differences of 16- and 8-bit weights are right
to 2**-24 each and average out), far inside the promised 1e-6.
"""

import itertools
import subprocess
import sys
import threading

import families
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.alignment import align
from kinbase.checkpoint.digest import LEAF, model_digest, tensor_digest
from kinbase.errors import CheckpointError, UsageError
from kinbase.kinship import stream as kinship
from kinbase.kinship.gpu import resolve_device
from kinbase.kinship.stream import Plan, run

CODES = {dtype: code for code, dtype in families.TORCH_DTYPES.items()} | {
    torch.int64: "I64",
    torch.bool: "BOOL",
}
TOLERANCE = 1e-9


def checkpoint(tensors, name="model", delta_of=None):
    """A Checkpoint in memory of {name: torch.Tensor}."""

    def reader(data):
        def read(start, out):
            assert start + len(out) <= len(data)
            out[:] = data[start : start + len(out)]

        return read

    return Checkpoint(
        name,
        "memory",
        [
            Tensor(
                key,
                CODES[t.dtype],
                tuple(t.shape),
                reader(t.contiguous().flatten().view(torch.uint8).numpy().tobytes()),
            )
            for key, t in tensors.items()
        ],
        delta_of=delta_of,
    )


def gaussian_family(shapes, count, dtypes=("BF16",), seed=0, scale=2e-3, mean=0.0):
    """A base and `count` members {name: torch.Tensor}; dtypes are dealt out in turn, the base first."""
    g = torch.Generator().manual_seed(seed)
    deal = itertools.cycle(families.TORCH_DTYPES[d] for d in dtypes)
    base = {
        name: 0.02 * torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()
    }
    shared = {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()}
    stored = {name: t.to(dtype) for dtype in [next(deal)] for name, t in base.items()}
    members = []
    for _ in range(count):
        dtype = next(deal)
        members.append(
            {
                name: (base[name] + scale * (mean + 0.5 * shared[name] + torch.randn(shape, generator=g))).to(
                    dtype
                )
                for name, shape in shapes.items()
            }
        )
    return stored, members


def deltas(base, members, name):
    """[N, numel] float64 reference of one tensor."""
    return np.stack([(m[name].double() - base[name].double()).flatten().numpy() for m in members])


def passed(base, members, **options):
    plan = Plan(checkpoint(base), [checkpoint(m) for m in members])
    return list(run(plan, **options))


def total(results, field, *index):
    return sum(getattr(r, field)[index] for r in results)


def metrics(results, i, j):
    """pcc, cs and ed of a pair from the stored sums, as the views derive them."""
    n = total(results, "numel", i)
    g_ij, g_ii, g_jj = (total(results, "dot", *pair) for pair in ((i, j), (i, i), (j, j)))
    s_i, s_j = total(results, "sum", i), total(results, "sum", j)
    pcc = (g_ij - s_i * s_j / n) / np.sqrt((g_ii - s_i * s_i / n) * (g_jj - s_j * s_j / n))
    return pcc, g_ij / np.sqrt(g_ii * g_jj), np.sqrt(max(g_ii + g_jj - 2 * g_ij, 0.0))


def assert_metrics(results, base, members):
    flat = np.concatenate([deltas(base, members, name) for name in base], axis=1)
    for i, j in itertools.combinations(range(len(members)), 2):
        pcc, cs, ed = metrics(results, i, j)
        a, b = flat[i], flat[j]
        assert pcc == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
        assert cs == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
        assert ed == pytest.approx(np.linalg.norm(a - b), rel=1e-6)


def assert_sums(results, base, members, tolerance=TOLERANCE):
    for result in results:
        d = deltas(base, members, result.name)
        gram = d @ d.T
        size = np.sqrt(np.outer(np.diag(gram), np.diag(gram))) + 1e-300
        assert (np.abs(result.dot - gram) / size).max() < tolerance
        assert result.sumsq == pytest.approx(np.diag(gram), rel=tolerance)
        assert (np.abs(result.sum - d.sum(1)) <= tolerance * (np.abs(d).sum(1) + 1e-300)).all()
        # One float32 rounding: the largest delta is not averaged with anything.
        assert result.max_abs == pytest.approx(np.abs(d).max(1), rel=2**-24)
        assert (result.zeros == (d == 0).sum(1)).all()
        assert (result.nonfinite == 0).all()
        assert (result.numel == d.shape[1]).all()


# Several pieces, a last leaf that is short, an odd width, a norm and a scalar.
SHAPES = {"embed": (1100, 1201), "mlp": (513, 129), "norm": (33,), "scale": ()}


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_every_dtype_meets_the_float64_reference(dtype):
    base, members = gaussian_family(SHAPES, 5, (dtype,), scale=2e-2)
    results = passed(base, members)
    assert [r.name for r in results] == list(SHAPES)
    assert_sums(results, base, members)
    assert_metrics(results, base, members)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_every_finite_value_of_a_small_dtype_is_decoded(dtype):
    """All bit patterns, subnormals and both zeros among them, against a base of zeros."""
    width = 1 if dtype.startswith("F8") else 2
    patterns = torch.arange(256**width, dtype=torch.int32).to(torch.uint8 if width == 1 else torch.uint16)
    values = patterns.view(families.TORCH_DTYPES[dtype])
    values = values[values.double().isfinite()]
    # The largest bf16 values have squares that still fit float64 but drown all others: weigh by slices.
    for part in values.split(97):
        base = {"w": torch.zeros(len(part), dtype=part.dtype)}
        (result,) = passed(base, [{"w": part}])
        reference = part.double().numpy()
        assert result.sum[0] == pytest.approx(reference.sum(), rel=1e-12)
        assert result.sumsq[0] == pytest.approx((reference**2).sum(), rel=1e-12, abs=0)
        assert result.zeros[0] == (reference == 0).sum()
        assert result.nonfinite[0] == 0


@pytest.mark.parametrize("count", [1, 2, 3, 6, 9])
def test_families_that_do_not_fill_a_register_tile(count):
    base, members = gaussian_family({"w": (70, 41), "b": (7,)}, count, ("F32",))
    assert_sums(passed(base, members), base, members)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("apart", [1e-2, 1e-3])
def test_near_twins_keep_their_distance(dtype, apart):
    """Twins of kinship about 1 - apart**2 / 2: ed**2 is apart**2 of the sums it is the difference of.

    float64 sums are good to some 1e-15, so 1e-6 holds for ed as long as twins are 1e-4 of a delta apart.
    """
    g = torch.Generator().manual_seed(3)
    stored = families.TORCH_DTYPES[dtype]
    for shape in [(40, 50), (900, 700)]:
        base = {"w": (0.02 * torch.randn(shape, generator=g)).to(stored)}
        first = {"w": (base["w"].double() + 0.05 * torch.randn(shape, generator=g)).to(stored)}
        second = {"w": (first["w"].double() + 0.05 * apart * torch.randn(shape, generator=g)).to(stored)}
        results = passed(base, [first, second])
        assert metrics(results, 0, 1)[0] > 0.9999
        assert_metrics(results, base, [first, second])


def test_pearson_survives_deltas_far_from_zero_mean():
    """With a mean of ten standard deviations the mean's square is subtracted from a hundred times the rest."""
    base, members = gaussian_family({"w": (700, 650), "b": (300,)}, 3, ("F32",), mean=10.0)
    results = passed(base, members)
    assert_metrics(results, base, members)
    pcc, cs, _ = metrics(results, 0, 1)
    assert cs > 0.98 and pcc < 0.5


def test_dtypes_may_differ_within_a_family():
    base, members = gaussian_family(
        {"w": (600, 701)}, 5, ("BF16", "F32", "F16", "F8_E4M3", "F64", "BF16"), scale=1e-2
    )
    assert_sums(passed(base, members), base, members)


def test_a_member_equal_to_the_base_has_zero_sums_not_missing_ones():
    base, members = gaussian_family({"w": (30, 30)}, 1)
    (result,) = passed(base, [base, *members])
    assert result.zeros[0] == result.numel[0] == 900
    assert result.sumsq[0] == result.max_abs[0] == 0
    assert (result.dot[0] == 0).all() and result.dot[1, 1] > 0


def test_only_new_rows_are_computed():
    base, members = gaussian_family({"w": (300, 300), "b": (5,)}, 6)
    checkpoints = [checkpoint(m) for m in members]
    full = list(run(Plan(checkpoint(base), checkpoints)))
    plan = Plan(checkpoint(base), checkpoints, new=2)
    for some, every in zip(run(plan), full, strict=True):
        assert some.dot.shape == (2, 6)
        assert some.dot == pytest.approx(every.dot[:2], rel=1e-12)
        assert some.sumsq == pytest.approx(every.sumsq, rel=1e-12)
        assert some.sum == pytest.approx(every.sum, rel=1e-12)
        assert some.digests == every.digests[:2]


def test_an_adapter_brings_its_delta_and_leaves_the_rest_alone():
    base, (tuned,) = gaussian_family({"w": (50, 40), "b": (40,)}, 1, ("BF16",))
    change = torch.randn((50, 40), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plan = Plan(checkpoint(base), [checkpoint({"w": change}, delta_of="base"), checkpoint(tuned)])
    w, b = run(plan)
    d = np.stack([change.flatten().numpy(), deltas(base, [tuned], "w")[0]])
    assert w.dot == pytest.approx(d @ d.T, rel=TOLERANCE)
    assert b.numel.tolist() == [40, 40] and b.zeros[0] == 40 and b.sumsq[0] == 0
    assert b.dot[0].tolist() == [0, 0] and b.dot[1, 1] > 0
    assert plan.skipped[0] == {}
    assert b.digests[0] == "" and b.digests[1] != ""


@pytest.mark.parametrize("rows", [(90, 100), (120, 110), (90, 120), (100, 64)])
def test_resized_vocabularies_use_the_common_rows(rows):
    """Base of 100 rows, members cut to min(rows, 100); leaves and intervals meet inside one tile."""
    width = 4001
    base = {"e": torch.randn((100, width), generator=torch.Generator().manual_seed(0)).bfloat16()}
    members = [
        {"e": torch.randn((r, width), generator=torch.Generator().manual_seed(r)).bfloat16()}
        for r in (*rows, 100)
    ]
    (result,) = passed(base, members)
    kept = [min(r, 100) * width for r in (*rows, 100)]
    b = base["e"].double().flatten().numpy()
    d = [m["e"].double().flatten().numpy()[:n] - b[:n] for m, n in zip(members, kept, strict=True)]
    assert result.numel.tolist() == kept
    assert result.sum == pytest.approx([x.sum() for x in d], rel=TOLERANCE, abs=1e-6)
    assert result.sumsq == pytest.approx([x @ x for x in d], rel=TOLERANCE)
    expected = {}
    for i, j in itertools.combinations(range(3), 2):
        n = min(kept[i], kept[j])
        x, y = d[i][:n], d[j][:n]
        # Unrelated members: the product is small beside the norms it is compared with.
        assert abs(result.dot[i, j] - x @ y) < TOLERANCE * np.sqrt((x @ x) * (y @ y))
        if kept[i] != kept[j]:
            expected[i, j] = [n, x.sum(), y.sum(), x @ x, y @ y]
    assert {(int(i), int(j)) for i, j, *_ in result.exceptions} == set(expected)
    for i, j, *sums in result.exceptions:
        assert sums == pytest.approx(expected[int(i), int(j)], rel=TOLERANCE, abs=1e-6)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_a_nonfinite_member_spoils_only_its_own_entries(dtype):
    base, members = gaussian_family({"w": (700, 500), "b": (9,)}, 4, (dtype,))
    clean = passed(base, [members[0], members[2], members[3]])
    # A float8_e4m3fn has no infinity.
    bad = [float("nan")] if dtype == "F8_E4M3" else [float("inf"), float("nan"), -float("inf")]
    for k, value in enumerate(bad):
        members[1]["w"].view(-1)[300_001 * k % 350_000] = value
    w, b = passed(base, members)
    rest = [0, 2, 3]
    assert w.nonfinite.tolist() == [0, len(bad), 0, 0]
    assert np.isnan([w.sum[1], w.sumsq[1], w.max_abs[1]]).all()
    assert np.isnan(w.dot[1]).all() and np.isnan(w.dot[:, 1]).all()
    assert w.dot[np.ix_(rest, rest)] == pytest.approx(clean[0].dot, rel=1e-12)
    assert w.sum[rest] == pytest.approx(clean[0].sum, rel=1e-12)
    assert np.isfinite(b.dot).all()


def test_a_nonfinite_base_poisons_every_difference():
    base, members = gaussian_family({"w": (60, 60)}, 2)
    base["w"][3, 3] = float("inf")
    members[0]["w"][3, 3] = float("inf")
    plan = Plan(
        checkpoint(base), [*map(checkpoint, members), checkpoint({"w": torch.ones(60, 60)}, delta_of="base")]
    )
    (result,) = run(plan)
    assert result.nonfinite.tolist() == [1, 1, 0]
    assert np.isnan(result.dot[:2]).all()
    assert result.dot[2, 2] == 3600


def test_a_difference_beyond_float32_is_still_finite():
    big = {"w": torch.full((4000,), 3e38, dtype=torch.bfloat16)}
    (result,) = passed(big, [{"w": -big["w"]}, {"w": big["w"] / 2}])
    d = deltas(big, [{"w": -big["w"]}, {"w": big["w"] / 2}], "w")
    assert result.nonfinite.tolist() == [0, 0]
    assert result.dot == pytest.approx(d @ d.T, rel=TOLERANCE)
    assert result.max_abs == pytest.approx(np.abs(d).max(1), rel=2**-24)


def names(tensors):
    return [t and t.name for t in tensors]


def float_tensors(*shapes, dtype="F32"):
    return [Tensor(name, dtype, shape, lambda start, out: None) for name, shape in shapes]


@pytest.mark.parametrize(
    ("base", "member"),
    [
        ("model.layers.0.w", "layers.0.w"),
        ("layers.0.w", "model.layers.0.w"),
        ("transformer.h.0.w", "h.0.w"),
        ("model.layers.0.w", "base_model.model.model.layers.0.w"),
        ("model.layers.0.w", "language_model.model.layers.0.w"),
        ("model.layers.0.w", "model.language_model.layers.0.w"),
    ],
)
def test_known_prefixes_do_not_keep_tensors_apart(base, member):
    aligned, skipped = align(float_tensors((base, (2, 3))), float_tensors((member, (2, 3))))
    assert names(aligned) == [member] and skipped == {}


def test_a_prefix_that_leaves_two_candidates_decides_nothing():
    aligned, skipped = align(
        float_tensors(("model.w", (2,))), float_tensors(("w", (2,)), ("transformer.w", (2,)))
    )
    assert names(aligned) == [None]
    assert skipped == {"w": "not in the base", "transformer.w": "not in the base", "model.w": "missing"}


def test_an_exact_name_goes_before_a_prefixed_one():
    aligned, skipped = align(float_tensors(("w", (2,))), float_tensors(("model.w", (2,)), ("w", (2,))))
    assert names(aligned) == ["w"] and skipped == {"model.w": "not in the base"}


def test_what_does_not_fit_is_skipped_with_its_reason():
    base = float_tensors(("a", (4, 5)), ("b", (4, 5)), ("c", (4,)), ("d", ())) + float_tensors(
        ("i", (3,)), dtype="I64"
    )
    member = float_tensors(("a", (4, 6)), ("b", (20,)), ("d", (1,)), ("x", (1,))) + float_tensors(
        ("c", (4,)), dtype="I32"
    )
    aligned, skipped = align(base, member)
    assert names(aligned) == [None] * 5
    assert skipped == {
        "a": "shape (4, 6) where the base has (4, 5)",
        "b": "shape (20) where the base has (4, 5)",
        "c": "not floating point (I32)",
        "d": "shape (1) where the base has ()",
        "i": "missing",
        "x": "not in the base",
    }


ARRAYS = ("numel", "sum", "sumsq", "max_abs", "zeros", "nonfinite", "dot", "exceptions")


def bits(results):
    """Everything a run gives, comparable to the bit."""
    return [
        (r.position, r.name, r.digests, *(getattr(r, field).tobytes() for field in ARRAYS)) for r in results
    ]


def vocabulary_family():
    """Tensors of several pieces, some small, one cut short, one outside the base, one of integers."""
    base, members = gaussian_family(
        {"e": (1500, 1001), "n": (17,), "w": (800, 801), "m": (5,)}, 4, ("BF16", "F32")
    )
    members[1]["e"] = members[1]["e"][:1400].clone()
    members[2]["extra"] = torch.ones(300_001)
    members[2]["steps"] = torch.arange(7)
    return checkpoint(base, "base"), [checkpoint(m, f"m{i}") for i, m in enumerate(members)]


def test_threads_and_tile_size_do_not_change_a_bit(monkeypatch):
    base, members = vocabulary_family()
    plan = Plan(base, members, hash_base=True)
    expected = bits(run(plan, threads=1))
    assert bits(run(plan, threads=2)) == expected
    assert bits(run(plan, threads=5)) == expected
    monkeypatch.setattr(kinship, "TILE_BYTES", 1)
    assert bits(run(plan, threads=2)) == expected


def test_a_resumed_run_gives_the_bits_of_an_unbroken_one():
    base, members = vocabulary_family()
    plan = Plan(base, members, hash_base=True)
    unbroken = {r.position: r for r in run(plan)}
    for kept in range(len(unbroken) + 1):
        done = {}
        stream = run(plan)
        for result in itertools.islice(stream, kept):
            done[result.position] = result
        stream.close()
        told = []
        rest = {r.position: r for r in run(plan, done=done, on_bytes=told.append)}
        assert not done.keys() & rest.keys()
        merged = done | rest
        assert bits(merged[p] for p in unbroken) == bits(unbroken.values())
        assert plan.model_digests(merged.values()) == plan.model_digests(unbroken.values())
        assert sum(told) == plan.nbytes


def test_the_bytes_told_are_the_bytes_read():
    base, members = vocabulary_family()
    read = []

    def counted(c):
        c.tensors = [
            Tensor(
                t.name,
                t.dtype,
                t.shape,
                lambda start, out, t=t: (t.read(start, out), read.append(len(out)))[0],
            )
            for t in c.tensors
        ]
        return c

    plan = Plan(counted(base), [counted(m) for m in members], new=2)
    told = []
    list(run(plan, on_bytes=told.append, threads=1))
    assert sum(read) == sum(told) == plan.nbytes


def digest_of(tensors):
    plan = Plan(checkpoint(tensors), hash_base=True)
    return plan.model_digests(run(plan))[0]


def test_a_digest_is_the_same_alone_in_a_family_and_by_hand():
    base, members = vocabulary_family()
    plan = Plan(base, members, hash_base=True)
    together = plan.model_digests(run(plan))
    for one, digest in zip([base, *members], together, strict=True):
        alone = Plan(one, hash_base=True)
        assert alone.model_digests(run(alone)) == [digest]
    import xxhash

    by_hand = []
    for t in members[2].tensors:
        data = bytearray(t.nbytes)
        t.read(0, memoryview(data))
        step = LEAF * t.nbytes // t.numel
        leaves = [xxhash.xxh3_128(data[k : k + step]).digest() for k in range(0, len(data), step)]
        by_hand.append(tensor_digest(t, leaves))
    assert model_digest(by_hand) == together[3]


def test_a_digest_does_not_depend_on_shards_order_or_metadata(tmp_path):
    (weights,) = gaussian_family({"a": (700, 500), "b": (3, 5), "c": (11,)}, 1)[1]
    families.write_safetensors(tmp_path / "one" / "model.safetensors", weights, {"format": "pt"})
    for k, name in enumerate(["c", "a", "b"]):
        families.write_safetensors(
            tmp_path / "many" / f"{k}.safetensors", {name: weights[name]}, {"other": "x" * k}
        )
    digests = set()
    for folder in ("one", "many"):
        opened = families.open_checkpoint(tmp_path / folder)
        plan = Plan(opened, hash_base=True)
        digests |= set(plan.model_digests(run(plan)))
        opened.close()
    assert digests == {digest_of(weights), digest_of(dict(reversed(weights.items())))}
    assert len(digests) == 1


def test_every_part_of_the_content_changes_the_digest():
    w = torch.arange(24, dtype=torch.float32)
    one_bit = w.clone()
    one_bit.view(torch.int32)[23] ^= 1
    variants = [
        {"w": w},
        {"v": w},
        {"w": w.view(4, 6)},
        {"w": w.view(6, 4)},
        {"w": one_bit},
        {"w": w.view(torch.int32).view(torch.int64).view(torch.float64)},
        {"w": w[:23]},
        {"w": w, "v": w},
        {"w": w[:12], "wF32": w[12:]},
        {"wF32": w[:12], "w": w[12:]},
        {"w": torch.empty(0)},
        {},
    ]
    assert len({digest_of(v) for v in variants}) == len(variants)


def test_no_name_can_imitate_another_tensor():
    def tensor(name, dtype, shape=(2,)):
        return Tensor(name, dtype, shape, lambda start, out: None)

    tensors = [
        tensor("wF", "32"),
        tensor("w", "F32"),
        tensor("", "wF32"),
        tensor("w\0", "F32"),
        tensor("\ud800", "F32"),
    ]
    assert len({tensor_digest(t, [b"x" * 16]) for t in tensors}) == len(tensors)


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("kinbase-pass")]


def test_a_failing_read_surfaces_and_leaves_no_thread():
    base, members = vocabulary_family()

    def broken(start, out):
        if start > 1_000_000:
            raise CheckpointError("m0: the file ends before the tensor does")
        out[:] = bytes(len(out))

    e = members[0].tensors[0]
    members[0].tensors[0] = Tensor(e.name, e.dtype, e.shape, broken)
    with pytest.raises(CheckpointError, match="m0: the file ends"):
        list(run(Plan(base, members)))
    assert not workers()


def test_a_file_that_shrinks_is_a_checkpoint_error(tmp_path):
    (weights,) = gaussian_family({"a": (700, 500)}, 1)[1]
    path = families.write_safetensors(tmp_path / "m.safetensors", weights)
    opened = families.open_checkpoint(path)
    with path.open("r+b") as file:
        file.truncate(300_000)
    with pytest.raises(CheckpointError, match="ends before"):
        list(run(Plan(opened, hash_base=True)))
    opened.close()


def test_closing_the_stream_and_interrupting_it_join_the_workers():
    base, members = vocabulary_family()
    stream = run(Plan(base, members))
    next(stream)
    assert workers()
    stream.close()
    assert not workers()

    def interrupt(nbytes):
        if nbytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run(Plan(base, members), on_bytes=interrupt))
    assert not workers()


def test_an_interrupt_does_not_wait_for_the_tensor_to_end():
    """Of a tensor of 40 tiles a worker, few are read once the caller has gone."""
    read = []
    slow = threading.Event()

    def sluggish(start, out):
        read.append(len(out))
        slow.wait(0.01)

    big = Tensor("w", "F64", (1 << 22,), sluggish)
    small = Tensor("a", "F64", (1 << 20,), lambda start, out: None)
    stream = run(Plan(Checkpoint("c", "", [small, big]), hash_base=True), threads=2)
    next(stream)
    stream.close()
    assert sum(read) < big.nbytes / 4
    assert not workers()


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("rows", [2, 9, 33, 300])
def test_tiles_stay_small_however_many_members(rows, threads):
    held = rows * threads * kinship._row_bytes(rows * threads)
    assert held <= max(kinship.TILE_BYTES, rows * threads * (32 << 10))


# --- devices ---


def assert_device_agrees(device, tolerance):
    base, members = vocabulary_family()
    base.tensors[2] = Tensor("renamed", *[getattr(base.tensors[2], f) for f in ("dtype", "shape", "read")])
    members.append(checkpoint({"n": torch.ones(17)}, "adapter", delta_of="base"))
    plan = Plan(base, members, new=3)
    for here, there in zip(run(plan), run(plan, device=device), strict=True):
        scale = np.sqrt(np.outer(here.sumsq[:3], here.sumsq)) + 1e-300
        assert np.array_equal(np.isnan(here.dot), np.isnan(there.dot))
        assert np.nanmax(np.abs(here.dot - there.dot) / scale, initial=0) < tolerance
        for field in ("sum", "sumsq", "max_abs"):
            assert getattr(there, field) == pytest.approx(getattr(here, field), rel=1e-6, abs=1e-6)
        for field in ("numel", "zeros", "nonfinite"):
            assert np.array_equal(getattr(here, field), getattr(there, field))
        assert there.exceptions == pytest.approx(here.exceptions, rel=1e-6, abs=1e-6)
        assert here.digests == there.digests


@pytest.fixture
def torch_on_cpu(monkeypatch):
    from kinbase.kinship import gpu

    monkeypatch.setattr(kinship, "_tiles", lambda device, *size: gpu.TorchTiles("cpu", *size))
    return "torch"


def test_the_torch_arithmetic_agrees_with_the_kernel(torch_on_cpu, monkeypatch):
    from kinbase.kinship import gpu, kernels

    tiles = {"cpu": kernels.CpuTiles, "torch": lambda *size: gpu.TorchTiles("cpu", *size)}
    monkeypatch.setattr(kinship, "_tiles", lambda device, *size: tiles[device](*size))
    assert_device_agrees("torch", TOLERANCE)


def test_the_float32_arithmetic_of_mps_agrees_within_its_bound(monkeypatch):
    """The same code with float64 taken away, as on MPS; 1e-6 is what float32 segments of 1024 keep."""
    from kinbase.kinship import gpu, kernels

    def float32_only(*size):
        tiles = gpu.TorchTiles("cpu", *size)
        tiles._float64 = False
        return tiles

    tiles = {"cpu": kernels.CpuTiles, "mps": float32_only}
    monkeypatch.setattr(kinship, "_tiles", lambda device, *size: tiles[device](*size))
    assert_device_agrees("mps", 1e-6)


def test_torch_tiles_count_nonfinite_deltas_apart(torch_on_cpu):
    base, members = gaussian_family({"w": (60, 50)}, 3)
    members[1]["w"][0, 0] = float("nan")
    (result,) = passed(base, members, device=torch_on_cpu)
    assert result.nonfinite.tolist() == [0, 1, 0]
    assert np.isnan(result.dot[1]).all() and np.isfinite(result.dot[0, 2])
    assert np.isfinite(result.max_abs[[0, 2]]).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_kernel():
    assert_device_agrees("cuda", TOLERANCE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device")
def test_mps_agrees_with_the_kernel():
    assert_device_agrees("mps", 1e-6)


def test_devices_that_are_not_there_are_usage_errors(monkeypatch):
    monkeypatch.setattr("kinbase.kinship.gpu._cuda_devices", lambda: 0)
    monkeypatch.setattr("kinbase.kinship.gpu._has_mps", lambda: False)
    assert resolve_device("auto", 100) == resolve_device("cpu", 1) == "cpu"
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(UsageError, match="--device cpu"):
            resolve_device(name, 4)
    with pytest.raises(UsageError, match="use auto"):
        resolve_device("tpu", 4)


def test_auto_takes_a_gpu_only_for_large_families(monkeypatch):
    monkeypatch.setattr("kinbase.kinship.gpu._cuda_devices", lambda: 1)
    assert resolve_device("auto", 8) == "cpu"
    assert resolve_device("auto", 64) == "cuda"
    assert resolve_device("cuda", 1) == "cuda"
    with pytest.raises(UsageError, match="torch sees 1 CUDA"):
        resolve_device("cuda:1", 1)


def test_neither_the_pass_nor_the_choice_of_device_loads_torch():
    script = (
        "import sys; from kinbase.kinship import gpu, kernels, stream; gpu.DRIVERS.clear(); gpu.resolve_device('auto', 99);"
        "bad = {'torch', 'duckdb', 'click', 'textual'} & sys.modules.keys(); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# --- properties ---


@st.composite
def small_families(draw):
    shapes = draw(
        st.dictionaries(
            st.text(min_size=1, max_size=4),
            st.lists(st.integers(0, 9), max_size=3).map(tuple),
            min_size=1,
            max_size=4,
        )
    )
    count = draw(st.integers(1, 6))
    dtypes = draw(st.lists(st.sampled_from(FLOAT_DTYPES), min_size=1, max_size=count + 1))
    return gaussian_family(
        shapes, count, dtypes, draw(st.integers(0, 99)), scale=draw(st.sampled_from([1e-3, 0.1, 3.0]))
    )


@settings(deadline=None, max_examples=60)
@given(small_families())
def test_streamed_is_flattened(family):
    base, members = family
    results = [r for r in passed(base, members) if r.numel.any()]
    # A handful of elements does not average the 2**-24 of a float32 difference; a product has two.
    assert_sums(results, base, members, tolerance=2**-22)


@settings(deadline=None, max_examples=60)
@given(small_families(), st.randoms(use_true_random=False))
def test_the_gram_is_symmetric_and_positive_and_blind_to_order(family, random):
    base, members = family
    results = {r.name: r for r in passed(base, members)}
    shuffled = [dict(random.sample(list(m.items()), len(m))) for m in members]
    for again in passed(dict(reversed(base.items())), shuffled):
        first = results[again.name]
        assert bits([first])[0][3:] == bits([again])[0][3:]
        assert first.digests == again.digests
        if first.numel.any():
            assert np.array_equal(first.dot, first.dot.T)
            # Rounding can push a zero eigenvalue below zero by a few ulps of the largest.
            assert np.linalg.eigvalsh(first.dot).min() >= -1e-12 * np.trace(first.dot)
