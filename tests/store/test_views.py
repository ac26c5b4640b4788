"""Views and macros against algebra on a small family, written straight into the tables."""

import numpy as np
import pytest

from kinbase.store import Store

# Two tensors of 6 and 4 elements in two blocks; deltas of four models. `still` never moved.
NAMES = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"]
DELTAS = {
    "a": [np.array([1.0, 2, -1, 0, 3, 1]), np.array([1.0, 1, 0, -2])],
    "b": [np.array([2.0, 1, -2, 1, 2, 0]), np.array([0.0, 1, 1, -1])],
    "c": [np.array([-1.0, 0, 1, 0, 2, 2]), None],  # has no second tensor
    "still": [np.zeros(6), np.zeros(4)],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("views") / "kin.duckdb")
    with store.writing() as con:
        con.execute("insert into raw.model (model_id, name, digest) values (1, 'base', 'd0')")
        con.executemany("insert into raw.tensor values (1, ?, ?, ?)", [[1, NAMES[0], 6], [2, NAMES[1], 4]])
        ids = {name: number for number, name in enumerate(DELTAS, 2)}
        for name, tensors in DELTAS.items():
            con.execute(
                "insert into raw.model (model_id, name, digest, base_id) values (?, ?, ?, 1)",
                [ids[name], name, name],
            )
            for position, d in enumerate(tensors, 1):
                if d is not None:
                    row = [
                        ids[name],
                        position,
                        len(d),
                        d.sum(),
                        (d**2).sum(),
                        abs(d).max(),
                        int((d == 0).sum()),
                    ]
                    con.execute("insert into raw.delta values (?, 1, ?, ?, ?, ?, ?, ?, 0)", row)
        for a in DELTAS:
            for b in DELTAS:
                if ids[a] < ids[b]:
                    x, y = together(a, b)
                    dots = [
                        None if p is None or q is None else float(p @ q)
                        for p, q in zip(DELTAS[a], DELTAS[b], strict=True)
                    ]
                    con.execute(
                        "insert into raw.pair values (?, ?, 1, ?, ?, ?, ?, ?, ?, ?)",
                        [ids[a], ids[b], len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y, dots],
                    )
    return store


def together(a, b):
    both = [(x, y) for x, y in zip(DELTAS[a], DELTAS[b], strict=True) if x is not None and y is not None]
    return np.concatenate([x for x, _ in both]), np.concatenate([y for _, y in both])


def query(store, text, *parameters):
    with store.reading() as con:
        return con.execute(text, list(parameters)).fetchall()


def expected(x, y):
    return np.corrcoef(x, y)[0, 1], x @ y / np.linalg.norm(x) / np.linalg.norm(y), np.linalg.norm(x - y)


@pytest.mark.parametrize(("a", "b"), [("a", "b"), ("b", "a"), ("a", "c"), ("c", "b")])
def test_kinship_is_the_correlation_of_what_both_have(store, a, b):
    x, y = together(a, b)
    ((pcc, cs, ed, coverage, method),) = query(
        store, "select pcc, cs, ed, coverage, method from kinship where model_a = ? and model_b = ?", a, b
    )
    # float64 sums of at most ten small integers: rounding only
    assert (pcc, cs, ed) == pytest.approx(expected(x, y), abs=1e-14)
    assert (coverage, method) == (len(x) / 10, "exact")


def test_a_model_equal_to_its_base_has_a_distance_but_no_kinship(store):
    rows = query(store, "select pcc, cs, ed from kinship where model_a = 'still' and model_b = 'a'")
    assert rows == [(None, None, pytest.approx(np.sqrt(22), abs=1e-14))]


def test_kinship_has_every_ordered_pair_and_no_self(store):
    rows = query(store, "select model_a, model_b from kinship")
    assert sorted(rows) == sorted((a, b) for a in DELTAS for b in DELTAS if a != b)


def test_kinship_by_tensor_and_by_layer_agree_with_their_tensor(store):
    for position, (name, layer, block) in enumerate([(NAMES[0], 0, "attn"), (NAMES[1], 1, "mlp")]):
        x, y = DELTAS["a"][position], DELTAS["b"][position]
        want = pytest.approx(expected(x, y), abs=1e-14)
        pair = "where model_a = 'a' and model_b = 'b'"
        assert query(store, f"select pcc, cs, ed from kinship_by_tensor {pair} and tensor = ?", name) == [
            want
        ]
        assert query(
            store,
            f"select pcc, cs, ed from kinship_by_layer {pair} and layer = ? and block = ?",
            layer,
            block,
        ) == [want]
        assert query(store, f"select pcc, cs, ed from kinship_by_block {pair} and block = ?", block) == [want]


def test_a_tensor_one_of_them_lacks_is_not_compared(store):
    assert query(store, "select tensor from kinship_by_tensor where model_a = 'a' and model_b = 'c'") == [
        (NAMES[0],)
    ]


def test_sums_of_tensors_give_the_global_value(store):
    rows = query(
        store,
        """
        select k.pcc, pearson(sum(t.numel), sum(t.sum_a), sum(t.sum_b), sum(t.sumsq_a), sum(t.sumsq_b), sum(t.dot))
        from kinship k join kinship_by_tensor t using (model_a, model_b) group by k.pcc, model_a, model_b
        """,
    )
    for whole, parts in rows:
        assert (whole is None and parts is None) or whole == pytest.approx(parts, abs=1e-14)


def test_deltas_tell_each_tensor(store):
    ((mean, std, l2, largest, zeros),) = query(
        store, "select mean, std, l2, max_abs, zeros from deltas where model = 'a' and tensor = ?", NAMES[0]
    )
    d = DELTAS["a"][0]
    assert (mean, std, l2, largest, zeros) == pytest.approx(
        (d.mean(), d.std(), np.linalg.norm(d), 3, 1), abs=1e-14
    )


def test_nearest_kin_are_in_order(store):
    names = [name for (name,) in query(store, "select model from nearest_kin('a', 2)")]
    by_pcc = sorted(("b", "c"), key=lambda m: -expected(*together("a", m))[0])
    assert names == by_pcc


def test_group_kinship_is_the_mean_over_pairs(store):
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    want = np.mean([expected(*together(*pair)) for pair in pairs], axis=0)
    rows = query(store, "select pcc, cs, ed, pairs, models from group_kinship(['a', 'b', 'c'])")
    assert rows == [pytest.approx((*want, 3, 3), abs=1e-14)]


def test_the_best_method_is_shown_and_all_are_kept(tmp_path):
    store = Store(tmp_path / "kin.duckdb")
    with store.writing() as con:
        con.execute("insert into raw.model (model_id, name) values (1, 'a'), (2, 'b')")
        con.executemany(
            "insert into raw.estimate values (1, 2, null, ?, ?, null, null, ?, null, null)",
            [["reported", 0.1, None], ["sketch", 0.2, 0.01], ["sampled", 0.3, 0.005]],
        )
    assert query(store, "select pcc, method from kinship where model_a = 'b'") == [(0.3, "sampled")]
    assert len(query(store, "from kinship_all where model_a = 'b'")) == 3


def chain(tmp_path, edges):
    store = Store(tmp_path / "kin.duckdb")
    names = sorted({name for edge in edges for name in edge})
    with store.writing() as con:
        for number, name in enumerate(names, 1):
            con.execute("insert into raw.model (model_id, name) values (?, ?)", [number, name])
        for parent, child in edges:
            con.execute(
                "insert into raw.claim (child_id, parent_id, relation, evidence) values (?, ?, 'finetune', 'card')",
                [names.index(child) + 1, names.index(parent) + 1],
            )
    return store


def test_closures_count_the_fewest_steps(tmp_path):
    store = chain(tmp_path, [("r", "x"), ("x", "y"), ("r", "y"), ("y", "z")])
    assert query(store, "from ancestors('z')") == [("y", 1), ("r", 2), ("x", 2)]
    assert query(store, "from descendants('r')") == [("x", 1), ("y", 1), ("z", 2)]
    assert query(store, "from ancestors('nobody')") == []


def test_closures_end_on_a_cycle(tmp_path):
    store = chain(tmp_path, [("a", "b"), ("b", "c"), ("c", "a")])
    assert query(store, "from ancestors('a')") == [("c", 1), ("b", 2)]
    assert query(store, "from descendants('a')") == [("b", 1), ("c", 2)]


def test_a_model_without_claimed_parents_hangs_under_its_base(store):
    assert ("base", "a", "base", "user") in query(
        store, "select parent, child, relation, evidence from lineage"
    )
    assert query(store, "select model from descendants('base')") == [("a",), ("b",), ("c",), ("still",)]
    assert {name for (name,) in query(store, "select name from family('a')")} == {"base", *DELTAS}


@pytest.mark.parametrize(
    ("tensor", "layer", "block"),
    [
        ("model.layers.3.self_attn.q_proj.weight", 3, "attn"),
        ("model.layers.0.mlp.gate_proj.weight", 0, "mlp"),
        ("model.layers.1.input_layernorm.weight", 1, "norm"),
        ("model.layers.0.self_attn.q_norm.weight", 0, "norm"),
        ("model.norm.weight", None, "norm"),
        ("model.embed_tokens.weight", None, "embed"),
        ("lm_head.weight", None, "head"),
        ("transformer.h.11.attn.c_attn.weight", 11, "attn"),
        ("transformer.h.3.ln_1.weight", 3, "norm"),
        ("transformer.h.3.mlp.c_proj.bias", 3, "mlp"),
        ("transformer.wte.weight", None, "embed"),
        ("encoder.layer.0.attention.output.LayerNorm.weight", 0, "norm"),
        ("encoder.layer.0.output.dense.weight", 0, "mlp"),
        ("model.layers.2.block_sparse_moe.experts.1.w1.weight", 2, "mlp"),
        ("gpt_neox.layers.1.attention.query_key_value.weight", 1, "attn"),
        ("something.else", None, "other"),
    ],
)
def test_layers_and_blocks_follow_the_usual_names(store, tensor, layer, block):
    assert query(store, "select tensor_layer(?), tensor_block(?)", tensor, tensor) == [(layer, block)]
