"""Evolution without weights: strategies, stop rules, configurations, and the published experiment replayed.

The populations are small enough to work out by hand; the published figures are those of arXiv 2410.12613.
"""

import math
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

import kinbase
from kinbase.errors import KinbaseError
from kinbase.evolution import config as run_config
from kinbase.evolution import duplicates, mating, stopping
from kinbase.evolution.config import Config, Evaluate, Explore, Grid, Merge, Stop

EXAMPLE = Path(__file__).parents[2] / "examples" / "model-kinship"
BASIS = Config("kinship", ("a", "b", "c"), Evaluate("recorded"), name="r")


def population(scores, merges=()):
    """A graph of models of generation 0, and of children {name: parents} of generation 1."""
    graph = nx.DiGraph()
    for model in scores:
        graph.add_node(model, generation=0)
    for child, parents in merges:
        graph.add_node(child, generation=1)
        graph.add_edges_from(((p, child) for p in parents), method="slerp", seed=0)
    return graph


def kin(**pairs):
    return {frozenset(pair): value for pair, value in pairs.items()}


def parents(plan):
    return [m.parents for m in plan[0]]


SCORES = {"a": 1.0, "b": 4.0, "c": 3.0, "d": 2.0}


def test_greedy_pairs_the_k_best_the_better_first():
    plan = mating.greedy(population(SCORES), {}, SCORES, BASIS)
    assert parents(plan) == [("b", "c"), ("b", "d"), ("c", "d")]
    assert plan[1] == []


def test_a_pair_with_a_child_is_not_merged_again():
    graph = population(SCORES, [("bc", ("b", "c"))])
    plan = mating.greedy(graph, {}, SCORES, BASIS)
    assert parents(plan) == [("b", "d"), ("c", "d")]
    assert plan[1] == ["1 of the 3 pairs of the best were merged before"]
    other = replace(BASIS, merge=Merge("linear"))  # by another method it is another model
    assert len(mating.greedy(graph, {}, SCORES, other)[0]) == 3


def test_of_many_pairs_the_k_with_the_best_parents_or_all():
    four = replace(BASIS, k=4)  # six pairs
    assert parents(mating.greedy(population(SCORES), {}, SCORES, four)) == [
        ("b", "c"), ("b", "d"), ("b", "a"), ("c", "d"),  # sums 7, 6, 5 and 5: of equal ones the first by name
    ]  # fmt: skip
    assert len(mating.greedy(population(SCORES), {}, SCORES, replace(four, pairs="all"))[0]) == 6


def test_exploration_takes_the_least_akin_of_the_pool():
    graph = population(SCORES, [("bc", ("b", "c"))])
    scores = {**SCORES, "bc": 5.0}
    known = kin(bca=0.0) | {
        frozenset(("bc", m)): value for m, value in {"a": 0.1, "b": 0.9, "c": 0.8, "d": 0.4}.items()
    }
    matings, _ = mating.kinship(graph, known, scores, BASIS)
    assert (matings[-1].parents, matings[-1].role, matings[-1].kinship) == (("bc", "a"), "explore", 0.1)
    assert "pcc 0.1" in matings[-1].reason
    assert [m.role for m in matings[:-1]] == ["pair", "pair"]  # bc+b, bc+c; b+c has its child


def variant(**options):
    graph = population(SCORES, [("x", ("a", "b")), ("y", ("a", "c"))])
    scores = {**SCORES, "x": 6.0, "y": 5.0}
    values = {"a": 0.1, "b": 0.2, "c": 0.9, "d": 0.5, "y": 0.7, "z": -0.4}
    known = {frozenset(("x", m)): value for m, value in values.items()}
    metric = options.pop("metric", "pcc")
    config = replace(BASIS, k=2, metric=metric, explore=Explore(**options))
    matings, left_out = mating.kinship(graph, known, scores, config)
    return next((m.parents[1] for m in matings if m.role == "explore"), None), left_out


def test_the_papers_variants_of_exploration():
    assert variant()[0] == "a"
    assert variant(partner="highest")[0] == "c"
    assert variant(also=("z",))[0] == "z"
    assert variant(metric="ed")[0] == "c"  # of distances the largest is the least akin
    # y is the other of the two best and of the newest generation, and a pair of this one already
    for pool in ("top_k", "previous"):
        partner, left_out = variant(pool=pool)
        assert partner is None
        assert left_out[-1].startswith("no exploration: x has no partner")


def test_unknown_kinship_is_no_kinship():
    matings, _ = mating.kinship(population(SCORES), kin(ba=0.5), SCORES, BASIS)
    assert matings[-1].parents == ("b", "a")
    matings, left_out = mating.kinship(population(SCORES), {}, SCORES, BASIS)
    assert all(m.role == "pair" for m in matings)
    assert left_out == [
        "no exploration: b has no partner of known kinship left in the pool; with 1 others its kinship is not known"
    ]


def test_a_grid_has_every_cell_once():
    grid = Grid(("linear", "dare_ties"), (2, 4), (0, 1, 2))
    config = replace(BASIS, strategy="grid", models=tuple("abcd"), grid=grid)
    matings, left_out = mating.grid(population(SCORES), {}, SCORES, config)
    cells = {(m.method, len(m.parents), m.seed) for m in matings}
    # four of four are the same four whatever the seed: linear once, dare_ties with three masks
    assert {c for c in cells if c[1] == 4} == {("linear", 4, 0), *(("dare_ties", 4, s) for s in range(3))}
    assert len(cells) == len(matings)
    chosen = {(m.seed, len(m.parents)): m.parents for m in matings if m.method == "dare_ties"}
    assert all(
        chosen[m.seed, 2] == m.parents for m in matings if m.method == "linear" and len(m.parents) == 2
    )
    assert mating.grid(population(SCORES), {}, SCORES, config) == (
        matings,
        left_out,
    )  # same seed, same plan


# Stopping.


def tops(*generations):
    return [(tuple(models), mean) for models, mean in generations]


def test_an_unchanged_top_k_ends_a_run():
    config = replace(BASIS, stop=Stop(unchanged=2, kinship=None))
    assert not stopping.verdict(config, tops(("abc", None)), None)[0]  # the start is no generation
    assert not stopping.verdict(config, tops(("abc", None), ("cba", None)), None)[0]
    assert stopping.verdict(config, tops(("abc", None), ("cba", None), ("bca", None)), None)[0]
    assert not stopping.verdict(config, tops(("abc", None), ("cba", None), ("abd", None)), None)[0]


def test_saturation_wants_patience_and_every_pair():
    config = replace(BASIS, stop=Stop(unchanged=None, kinship=0.9, patience=2))

    def over(*means):
        return stopping.verdict(
            config, tops(("abc", 0.95), *((f"ab{i}", m) for i, m in enumerate(means))), None
        )[0]

    assert not over(0.95)  # the start does not count
    assert over(0.95, 0.91)
    assert not over(0.95, 0.9)  # above, not at
    assert not over(0.95, None)
    assert not over(0.95, 0.5, 0.95)
    assert over(0.5, 0.95, 0.95)


def test_the_literal_rule_and_patience_on_the_published_path():
    """Path 1's parents' kinship, merge by merge (paper, community experiment): stops at 3, or at 11 with patience.

    The mean of the top k stands for the parents' kinship here; patience counts generations in a row.
    """
    path = [0.82, 0.81, 0.93, 0.90, 0.59, 0.87, 0.84, 0.85, 0.96, 0.97, 0.99, 0.93, 0.97, 0.98]
    for patience, stops in ((1, 3), (2, 10), (3, 11)):
        config = replace(BASIS, stop=Stop(unchanged=None, kinship=0.9, patience=patience, generations=None))
        history = tops(("", None), *((str(i), mean) for i, mean in enumerate(path)))
        ends = [n for n in range(1, len(path) + 1) if stopping.verdict(config, history[: n + 1], None)[0]]
        assert ends[0] == stops


def test_budgets_end_a_run():
    config = replace(BASIS, stop=Stop(generations=2, kinship=None, unchanged=None))
    assert stopping.verdict(config, tops(("a", None), ("b", None), ("c", None)), None)[0]
    assert stopping.verdict(config, tops(("a", None), ("b", None)), "the budget is used up") == (
        True,
        "the budget is used up",
    )


# Twins.


def test_a_linear_childs_kin_is_told_from_its_parents_sums():
    rng = np.random.default_rng(0)
    deltas = rng.normal(size=(4, 1000))
    deltas[3] = 0.5 * deltas[0] + 0.5 * deltas[1] + 0.01 * rng.normal(size=1000)
    child = 0.3 * deltas[0] + 0.7 * deltas[1]
    cosines = deltas @ child / np.linalg.norm(deltas, axis=1) / np.linalg.norm(child)
    found = duplicates.nearest(deltas @ deltas.T, [0, 1], [0.3, 0.7])
    assert found == (
        int(np.argmax(cosines)),
        pytest.approx(cosines.max(), abs=1e-12),
    )  # float64 sums of 1,000
    products = deltas @ deltas.T
    products[0, 1] = products[1, 0] = math.nan
    assert duplicates.nearest(products, [0, 1], [0.3, 0.7]) is None


def test_what_selects_elements_cannot_be_told():
    def made(method, **parameters):
        return {
            "merge_method": method,
            "models": [{"model": m, "parameters": {"weight": 0.5}} for m in "ab"],
            "parameters": parameters,
        }

    assert duplicates.weights(made("linear")) == [0.5, 0.5]
    assert duplicates.weights(made("slerp", t=0.25)) == [0.75, 0.25]
    assert duplicates.weights(made("task_arithmetic", **{"lambda": 2.0})) == [1.0, 1.0]
    assert duplicates.weights(made("slerp", t=[0, 1])) is None
    assert duplicates.weights(made("task_arithmetic", **{"lambda": [0.5, 1]})) is None
    assert duplicates.weights(made("linear", normalize=[{"value": False}])) is None
    assert duplicates.weights(made("ties")) is None


# Configurations.

GOOD = """
strategy: kinship
models: [ft_a, ft_b, ft_c]
evaluate: {by: command, command: [./score, "{model}"]}
"""


def wrong(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(KinbaseError) as raised:
        run_config.read(tmp_path / "run.yaml")
    message = str(raised.value)
    assert "\n" not in message
    assert "run.yaml" in message
    return message


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("exlpore: {pool: all}", "there is no key 'exlpore': did you mean explore?"),
        ("explore: {poool: all}", "there is no key 'explore.poool': did you mean pool?"),
        ("explore: {pool: everything}", "explore.pool: 'everything' is none of all, top_k, previous"),
        ("k: three", "k: 'three' is not a whole number"),
        ("k: true", "k: 'True' is not a whole number"),
        ("k: 1", "k: 1 is less than 2"),
        ("stop: {kinship: .nan}", "stop.kinship: nan is no finite number"),
        ("stop: {disk: lots}", "stop.disk: 'lots' is no size"),
        ("stop: [1]", "stop: '[1]' is no mapping"),
        ("models: [a, 3]", "models[1]: '3' is not text"),
        ("models: [a]", "at least two"),
        ("models: [a, a]", "there twice"),
        ("strategy: gready", "'gready' is none of greedy, kinship, grid: did you mean greedy?"),
        ("strategy: grid", "needs grid.methods"),
        ("evaluate: {by: python}", "evaluate.function"),
        ("evaluate: {by: recorded}", "score.benchmarks"),
        ("evaluate: {}", "the key evaluate.by is missing"),
        ("keep: top_k", "explore.pool"),
        ("name: ../up", "name:"),
        ("nonsense", "YAML"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path, added, said):
    key = added.partition(":")[0]
    kept = "\n".join(line for line in GOOD.splitlines() if not line.startswith(f"{key}:"))
    assert said in wrong(tmp_path, f"{kept}\n{added}\n")


def test_a_configuration_survives_its_row(tmp_path):
    (tmp_path / "run.yaml").write_text(GOOD + "stop: {disk: 1.5GB}\nmerge: {parameters: {t: [0, 0.5, 1]}}\n")
    config = run_config.read(tmp_path / "run.yaml", "other")
    assert (config.name, config.out) == ("other", str(tmp_path / "other"))
    assert config.stop.disk_bytes() == 1_500_000_000
    assert run_config.loads(run_config.dumps(config)) == config


# The published experiment.


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    db = kinbase.open(tmp_path_factory.mktemp("replayed") / "kin.duckdb")
    db.import_([EXAMPLE])
    heard = []
    runs = {s: db.evolve(EXAMPLE / f"{s}.yaml", tell=heard.append) for s in ("greedy", "kinship")}
    return db, runs, heard


def test_the_published_path_is_walked(replayed):
    """66.84, 68.72 and flat for greedy; for kinship 69.06 in the third generation and 69.18 in the fifth."""
    _, runs, _ = replayed
    want = {"greedy": [66.84, 68.72, 68.72, 68.72, 68.72], "kinship": [66.84, 68.72, 69.06, 69.06, 69.18]}
    for strategy, best in want.items():
        rows = runs[strategy].filter(runs[strategy]["generation"] > 0)
        # The paper cuts averages where rounding would go up: 68.7267 is printed 68.72.
        assert rows["best_so_far"].to_list() == pytest.approx(best, abs=0.01)


def test_the_explored_partners_are_those_of_the_published_run(replayed):
    db, _, _ = replayed
    rows = db.sql(
        "select generation, child, parents from offspring where run = 'mistral-kinship' and role = 'explore'"
    )
    assert {(g, c): p[1] for g, c, p in rows.iter_rows()} == {
        (2, "model-2-exp"): "mistralai/Mistral-7B-Instruct-v0.2",
        (3, "model-3-exp"): "model-1-1",
        (4, "model-4-6"): "model-3-1",
    }


def test_a_child_without_record_is_told_and_passed_over(replayed):
    db, _, heard = replayed
    query = "select run, parents, problem from offspring where status = 'unrecorded' order by all"
    rows = db.sql(query).rows()
    assert [(run, parents) for run, parents, _ in rows] == [
        ("mistral-greedy", ["model-2-1", "model-4-3"]),
        ("mistral-greedy", ["model-3-1", "model-4-3"]),
        ("mistral-kinship", ["model-3-3", "model-3-4"]),
    ]
    for _, _, problem in rows:
        assert any(problem in line for line in heard)


def test_every_choice_has_its_reason(replayed):
    db, _, _ = replayed
    assert db.sql("from offspring where length(reason) < 20").is_empty()
    assert db.sql("from generations where generation > 0 and length(reason) < 10").is_empty()
    ended = dict(db.sql("select run, reason from runs").rows())
    assert ended["mistral-greedy"] == "the 3 best are the same"
    assert ended["mistral-kinship"].endswith("5 generations were asked for")
    assert set(db.sql("select status from runs")["status"]) == {"finished"}


def test_a_replay_with_early_stopping(tmp_path, replayed):
    """Greedy's three best have mean kinship 0.94 and 0.97 after generations 2 and 3: it stops there and loses nothing."""
    text = (
        (EXAMPLE / "greedy.yaml")
        .read_text()
        .replace("kinship: null", "kinship: 0.9")
        .replace("mistral-greedy", "early")
    )
    (tmp_path / "early.yaml").write_text(text)
    rows = replayed[0].evolve(tmp_path / "early.yaml")
    assert (rows["generation"].max(), rows["best_so_far"].max()) == (3, pytest.approx(68.7267, abs=1e-4))
    assert rows["top_kinship"].to_list()[2:] == pytest.approx(
        [(0.93 + 0.95 + 0.93) / 3, (0.98 + 0.98 + 0.94) / 3]
    )


def test_runs_go_out_and_in_with_the_whole_database(replayed, tmp_path):
    db, _, _ = replayed
    db.export(tmp_path / "all.kinbase")
    other = kinbase.open(tmp_path / "other.duckdb")
    other.import_([tmp_path / "all.kinbase"])
    for view in ("runs", "generations", "offspring"):
        query = f"from {view} order by all"
        assert other.sql(query).rows() == db.sql(query).rows()
    (tmp_path / "again.yaml").write_text(
        (EXAMPLE / "greedy.yaml").read_text().replace("mistral-greedy", "again")
    )
    other.evolve(tmp_path / "again.yaml")  # its number follows those that came in
    assert other.sql("from runs").height == db.sql("from runs").height + 1


def test_a_name_joined_to_a_model_keeps_its_place_in_a_run(replayed, tmp_path):
    """A row known only by name that turns out to be another's goes with all that was said of it."""
    from kinbase.checkpoint import Alias
    from kinbase.store.aliases import put_alias

    db, _, _ = replayed
    db.export(tmp_path / "all.kinbase")
    other = kinbase.open(tmp_path / "other.duckdb")
    other.import_([tmp_path / "all.kinbase"])
    with other.store.writing() as con:
        ((new,),) = con.execute("insert into raw.model (name) values ('real') returning model_id").fetchall()
        put_alias(con, new, Alias("model-2-1"))
    assert (
        other.sql("from offspring where child = 'real' and score > 68.7").height
        == db.sql("from offspring where child = 'model-2-1'").height
    )
    assert other.sql("from offspring where list_contains(parents, 'real')").height > 0
    assert other.sql("from generations where list_contains(top, 'real')").height > 0
    assert other.sql("from offspring where parents is null or len(parents) < 2").is_empty()
