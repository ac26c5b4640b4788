"""Plots: what is drawn is what the views say, files are well formed and self-contained, and no name does anything."""

import asyncio
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import pytest
from browser import needs_chromium, page
from hypothesis import given, settings
from hypothesis import strategies as st

from kinbase.errors import KinbaseError, UsageError
from kinbase.plotting import figure, gains, heatmap, layout

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"

HOSTILE = [
    "<script>document.title='owned'</script>",
    "</script><img src=x onerror=\"document.title='owned'\">",
    "<!-- ]]> &amp; &lt;",
    r"$\frac{1}{2}$ and $",
    "_underscore",
    "ctrl\x1b]0;owned\x07\x00\x9b31m",
    "rtl\u202egpj.exe\u2066",
    "not in xml \ufffe\uffff",
    "模型/名前-이름",
    "long" + "g" * 500,
]


@pytest.fixture
def hostile(empty):
    """A family whose names are HOSTILE: pairs, a merge of everybody, scores, a run."""
    with empty.store.writing() as con:
        con.execute("insert into raw.model (model_id, name, digest) values (1, 'the <b>base</b> $x$', 'd')")
        for i, name in enumerate(HOSTILE, 2):
            con.execute(
                "insert into raw.model (model_id, name, digest, base_id) values (?, ?, ?, 1)",
                [i, name, str(i)],
            )
            con.execute(
                "insert into raw.claim (child_id, parent_id, relation, evidence) values (?, 1, 'finetune', 'card')",
                [i],
            )
            con.execute(
                "insert into raw.score (model_id, benchmark, metric, value) values (?, '$b<i>', 'acc', ?)",
                [i, 0.5 + i / 100],
            )
        con.execute("insert into raw.tensor values (1, 1, 'model.layers.0.mlp.up_proj.weight', 10)")
        ids = range(2, len(HOSTILE) + 2)
        for i in ids:
            con.execute("insert into raw.delta values (?, 1, 1, 10, 0, 1, 1, 0, 0)", [i])
        for a in ids:
            for b in range(a + 1, len(HOSTILE) + 2):
                dot = 1 / (1 + b - a)
                con.execute("insert into raw.pair values (?, ?, 1, 10, 0, 0, 1, 1, ?, [?])", [a, b, dot, dot])
        for child, name in enumerate(("_merge $a$", "<i>merge</i>", "merge"), 20):
            con.execute("insert into raw.model (model_id, name, base_id) values (?, ?, 1)", [child, name])
            for parent in (child - 18, child - 16):
                con.execute(
                    "insert into raw.claim (child_id, parent_id, relation, method, weight, evidence) "
                    "values (?, ?, 'merge', '_$m$<b>', 0.5, 'config')",
                    [child, parent],
                )
            con.execute(
                "insert into raw.score (model_id, benchmark, metric, value) values (?, '$b<i>', 'acc', ?)",
                [child, 0.6 + child % 2 / 10],
            )
        _run(con, "_run <b> $r$", ids=list(ids)[:3])
    return empty


def _run(con, name, ids, scores=((0.5, 0.6), (0.7,), (0.65, 0.75))):
    """A run over existing models: `scores` of the children, generation by generation."""
    con.execute(
        "insert into raw.run (name, strategy, status, config) values (?, 'greedy', 'running', '{}')",
        [name],
    )
    ((run,),) = con.execute("select run_id from raw.run where name = ?", [name]).fetchall()
    for generation, values in enumerate(scores):
        con.execute(
            "insert into raw.generation (run_id, generation, top_ids, top_kinship, reason, ended_at) "
            "values (?, ?, ?, ?, 'go on', now()::timestamp)",
            [run, generation, ids, 0.1 + 0.3 * generation],
        )
        for position, value in enumerate(values):
            con.execute(
                "insert into raw.offspring (run_id, generation, position, child, child_id, parent_ids, role, reason, kinship, "
                "status, score, kept) values (?, ?, ?, ?, null, ?, ?, 'because <b>', 0.2, 'scored', ?, ?)",
                [run, generation, position, f"{name} {generation}-{position}", ids[:2] if generation else [],
                 "pair" if generation else "start", value, position == 0],
            )  # fmt: skip


def texts(plot):
    return [
        text.get_text()
        for text in plot.findobj(lambda artist: hasattr(artist, "get_text"))
        if text.get_text()
    ]


def square(plot):
    """The cells of a heatmap: float64[n, n], NaN where nothing is drawn."""
    return np.ma.filled(plot.axes[0].images[0].get_array().astype(float), np.nan)


# The heatmap.


def test_heatmap_draws_the_values_of_the_view_in_the_order_of_its_rows(db):
    plot = db.plot("heatmap")
    names = list(plot.grid.names)
    assert sorted(names) == ["ft_a", "ft_b", "ft_c", "merge_ab"]
    cells = square(plot)
    for a, b, pcc in db.kinship().select("model_a", "model_b", "pcc").iter_rows():
        i, j = names.index(a), names.index(b)
        assert cells[i, j] == cells[j, i] == pcc
        assert plot.grid.texts[min(i, j), max(i, j)] == f"pcc {pcc:.4f} (exact)"
    # ft_c is akin to nobody: it stands at an end, and the merge between or beside its parents.
    assert names.index("ft_c") in (0, 3)
    drawn = texts(plot)
    for number, name in enumerate(names, 1):
        assert f"{number}  {name}" in drawn
    assert "6 of 6 pairs known (exact); ordered by average linkage" in drawn


@pytest.mark.parametrize("metric", ["pcc", "cs", "ed"])
def test_heatmap_of_a_block_and_of_a_layer(db, metric):
    plot = db.plot("heatmap", "ft_a", "ft_b", "ft_c", metric=metric, block="attn")
    names, cells = plot.grid.names, square(plot)
    rows = db.sql(f"select model_a, model_b, {metric} from kinship_by_block where block = 'attn'").rows()
    for a, b, value in rows:
        if {a, b} <= set(names):
            assert cells[names.index(a), names.index(b)] == pytest.approx(value, rel=1e-12)
    layer = db.plot("heatmap", "ft_a", "ft_b", metric=metric, block="mlp", layer=1)
    ((value,),) = db.sql(
        f"select {metric} from kinship_by_layer where model_a = 'ft_a' and model_b = 'ft_b' and block = 'mlp' and layer = 1"
    ).rows()
    assert square(layer)[0, 1] == pytest.approx(value, rel=1e-12)


def test_pairs_that_are_not_known_are_no_zeros(published):
    plot = published.plot("heatmap")
    cells = square(plot)
    known = published.kinship().filter(~published.kinship()["pcc"].is_null()).height
    assert np.isnan(cells).sum() == cells.size - len(cells) - 2 * known
    assert len(plot.grid.texts) == known
    drawn = texts(plot)
    assert "not known" in drawn and any("taken as unrelated" in text for text in drawn)


def test_one_model_is_drawn_with_its_kin_and_a_base_with_its_family(db, published):
    assert set(db.plot("heatmap", "base").grid.names) == {"ft_a", "ft_b", "ft_c", "merge_ab"}
    names = published.plot("heatmap", "WizardLM-2").grid.names
    assert set(names) == {"WizardLM-2", *published.nearest_kin("WizardLM-2")["model"]}


def test_clusters_stand_together_and_the_unknown_apart():
    similar = np.full((7, 7), np.nan)
    for group in ((0, 2, 4), (1, 3, 5)):
        for i in group:
            for j in group:
                similar[i, j] = 0.9
    order, links = heatmap.clustered(similar, "pcc")
    places = [order.index(i) for i in range(7)]
    for group in ((0, 2, 4), (1, 3, 5)):
        assert max(places[i] for i in group) - min(places[i] for i in group) == 2
    assert links.shape == (6, 4)


def test_two_hundred_models_fit(empty):
    with empty.store.writing() as con:
        con.execute(
            "insert into raw.model (model_id, name) select 1000 + i, 'lab/model-' || i from range(200) t(i)"
        )
        con.execute(
            "insert into raw.estimate (a_id, b_id, method, pcc) select 1000 + a, 1000 + b, 'reported', "
            "if(a % 4 = b % 4, 0.9, 0.1) from range(200) x(a), range(200) y(b) where a < b"
        )
    plot = empty.plot("heatmap")
    axes = plot.axes[0]
    rows = [t for t in axes.texts if "lab/model-" in t.get_text()]
    assert len(rows) == 200
    # A row is higher than its letters: labels do not run into each other.
    row = plot.get_size_inches()[1] * axes.get_position().height / 200 * 72
    assert row > max(text.get_fontsize() for text in rows)
    groups = [int(name.rpartition("-")[2]) % 4 for name in plot.grid.names]
    assert sum(a != b for a, b in pairwise(groups)) == 3


# The tree.


def test_tree_draws_every_model_and_every_edge_but_the_bases_of_merges(published, db):
    db.link("merge_ab", ["ft_a", "ft_b"], method="linear", weights=[0.6, 0.4])
    plot = db.plot("tree", "base")
    points = [spot for spot in plot.spots if len(spot.x) == 1]
    edges = [spot.lines[0] for spot in plot.spots if len(spot.x) > 1]
    assert sorted(spot.lines[0] for spot in points) == ["base", "ft_a", "ft_b", "ft_c", "merge_ab"]
    assert sorted(edges) == [
        "base → ft_a",
        "base → ft_b",
        "base → ft_c",
        "ft_a → merge_ab",
        "ft_b → merge_ab",
    ]
    place = {spot.lines[0]: spot.x[0] for spot in points}
    assert place["base"] < place["ft_a"] == place["ft_b"] == place["ft_c"] < place["merge_ab"]
    merge = next(spot for spot in points if spot.lines[0] == "merge_ab")
    assert "from ft_a 0.6" in merge.lines and "from ft_b 0.4" in merge.lines
    drawn = texts(plot)
    assert "0.6" in drawn and "0.4" in drawn and "merge linear" in drawn

    plot = published.plot("tree", "YamshadowExp28")
    assert sum(len(spot.x) == 1 for spot in plot.spots) == 29  # its 28 ancestors and itself


def test_tree_tells_scores_and_circles(published, empty):
    plot = published.plot("tree", "model-5-1")
    node = next(spot for spot in plot.spots if spot.lines[0] == "model-5-1")
    assert "score 69.1300" in node.lines  # as the paper prints it
    with empty.store.writing() as con:
        con.execute("insert into raw.model (model_id, name) values (1, 'a'), (2, 'b')")
        con.execute(
            "insert into raw.claim (child_id, parent_id, relation, evidence) "
            "values (1, 2, 'finetune', 'card'), (2, 1, 'finetune', 'card')"
        )
    assert any("in a circle" in text for text in texts(empty.plot("tree", "a")))


@st.composite
def graphs(draw):
    number = draw(st.integers(2, 25))
    pairs = [(a, b) for a in range(number) for b in range(a + 1, number)]
    edges = draw(st.lists(st.sampled_from(pairs), max_size=60))
    graph = nx.DiGraph()
    graph.add_nodes_from(f"n{i}" for i in range(number))
    graph.add_edges_from((f"n{a}", f"n{b}") for a, b in edges)
    return graph


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_every_layout_keeps_order_and_distance(graph):
    found = layout.layered(graph)
    column = {node: number for number, nodes in enumerate(found.columns) for node in nodes}
    assert set(column) == set(graph) and set(found.ways) == set(graph.edges)
    for (parent, child), way in found.ways.items():
        # One station a column, from the parent's to the child's.
        assert [station for station, _ in way] == list(range(column[parent], column[child] + 1))
        assert way[0][1] == found.height[parent] and way[-1][1] == found.height[child]
    for nodes in found.columns:
        heights = sorted(found.height[node] for node in nodes)
        assert all(b - a > 1 - 1e-9 for a, b in pairwise(heights))
    assert min(found.height.values()) >= 0


def test_a_tree_is_drawn_without_crossings_and_parents_amid_their_children():
    found = layout.layered(nx.balanced_tree(3, 3, create_using=nx.DiGraph))
    assert found.crossings == 0
    for parent in range(13):
        children = [found.height[3 * parent + i] for i in (1, 2, 3)]
        assert found.height[parent] == pytest.approx(np.mean(children), abs=1e-6)


def test_who_has_no_known_past_stands_beside_the_first_child():
    graph = nx.DiGraph([("base", "a"), ("a", "b"), ("b", "c"), ("stranger", "c"), ("base", "c")])
    columns = layout.columns_of(graph)
    assert columns == {"base": 0, "a": 1, "b": 2, "stranger": 2, "c": 3}


# Layers.


def test_layers_draw_the_view(db):
    plot = db.plot("layers", "ft_a", "ft_b", metric="cs")
    rows = db.sql("from kinship_by_layer where model_a = 'ft_a' and model_b = 'ft_b'").rows(named=True)
    assert len(plot.spots) == len(rows)
    lines = {line.get_label(): line for line in plot.axes[0].lines}
    for block, word in (("attn", "attention"), ("mlp", "mlp"), ("norm", "norms")):
        expected = sorted(
            (r["layer"], r["cs"]) for r in rows if r["block"] == block and r["layer"] is not None
        )
        assert list(zip(*lines[word].get_data(), strict=True)) == expected
    assert [tick.get_text() for tick in plot.axes[0].get_xticklabels()] == [
        "0",
        "1",
        "embedding",
        "norms",
        "head",
    ]
    ((whole,),) = db.sql("select cs from kinship where model_a = 'ft_a' and model_b = 'ft_b'").rows()
    assert f"all tensors  {whole:.3f}" in texts(plot)


# Evolution.


def test_evolution_draws_best_mean_and_kinship_by_generation(db):
    with db.store.writing() as con:
        _run(con, "one", [2, 3, 4])
        _run(con, "two", [2, 3, 4], scores=((0.1,), (0.2,)))
    plot = db.plot("evolution", "one")
    scores, kinship = plot.axes[:2]
    lines = {line.get_linestyle(): line for line in scores.lines if line.get_linestyle() != "None"}
    assert list(lines["-"].get_ydata()) == [0.6, 0.7, 0.75]  # the best so far
    assert list(lines[":"].get_ydata()) == pytest.approx([0.55, 0.7, 0.7])  # of each generation
    assert list(kinship.lines[0].get_ydata()) == pytest.approx([0.1, 0.4, 0.7])
    assert any("one: best one 2-1 with 0.750 in generation 2 of 2" in text for text in texts(plot))
    kept = [spot for spot in plot.spots if spot.axes is scores]
    assert len(kept) == 3  # children; those it started from are none
    both = db.plot("evolution")
    assert {"one", "two"} <= set(texts(both))
    with pytest.raises(KinbaseError, match="no run three: there are one, two"):
        db.plot("evolution", "three")


# Gains.


def test_gains_give_the_papers_correlation(published):
    """Path 1, PCC against the signed gain: r = -0.50, p = 0.063 in the paper's table 2; its own tables give -0.511, 0.062."""
    plot = published.plot("gains", source="Model Kinship, path 1")
    assert sum(len(spot.x) == 1 for spot in plot.spots) == 14
    x, y = (np.array([getattr(s, axis)[0] for s in plot.spots]) for axis in "xy")
    found = gains.fit(x, y)
    assert (round(found.r, 3), round(found.p, 3), found.n) == (-0.511, 0.062, 14)
    (told,) = [text for text in texts(plot) if text.startswith("r = ")]
    assert told.startswith("r = -0.511, n = 14, p = 0.062 (two-sided")
    # Printed gains are drawn hollow.
    assert plot.axes[0].lines[0].get_markerfacecolor() == "white"


def test_the_fit_is_that_of_least_squares():
    x, y = np.array([0.0, 1.0, 2.0, 4.0]), np.array([1.0, 2.9, 5.1, 8.8])
    found = gains.fit(x, y)
    slope, intercept = np.polyfit(x, y, 1)
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept))
    assert found.r == pytest.approx(np.corrcoef(x, y)[0, 1])
    rs = [np.corrcoef(np.delete(x, i), np.delete(y, i))[0, 1] for i in range(4)]
    assert (found.least, found.most) == pytest.approx((min(rs), max(rs)))
    assert gains.fit(x[:2], y[:2]) is None and gains.fit(np.ones(4), y) is None


def test_gains_of_scores_here(db):
    db.link("merge_ab", ["ft_a", "ft_b"])
    with db.store.writing() as con:
        con.execute(
            "insert into raw.score (model_id, benchmark, metric, value) select model_id, 'mmlu', 'acc', "
            "case name when 'merge_ab' then 0.65 when 'ft_a' then 0.5 else 0.6 end from raw.model where name <> 'base'"
        )
    plot = db.plot("gains", "base")
    (spot,) = plot.spots
    ((pcc,),) = db.sql("select pcc from kinship where model_a = 'ft_a' and model_b = 'ft_b'").rows()
    assert (spot.x[0], spot.y[0]) == pytest.approx((pcc, 0.65 - 0.55))
    assert "too few merges, or too alike, for a correlation" in texts(plot)


# Files.

KINDS = {
    "heatmap": (), "tree": ("the <b>base</b> $x$",), "layers": (HOSTILE[0], HOSTILE[3]), "evolution": (), "gains": (),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_well_formed_self_contained_and_take_any_name(hostile, tmp_path, kind):
    plot = hostile.plot(kind, *KINDS[kind], **({"benchmark": "$b<i>"} if kind == "gains" else {}))
    for ending in figure.ENDINGS:
        plot.save(tmp_path / f"x{ending}")
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    assert root.tag == f"{SVG}svg"
    assert not root.findall(f".//{SVG}script") and not root.findall(f".//{SVG}a")
    written = " ".join(text for text in root.itertext())
    if kind in ("heatmap", "tree"):
        assert r"$\frac{1}{2}$ and $" in written and "<script>document." in written
    assert "\u202e" not in written and "\x1b" not in written
    html = (tmp_path / "x.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:|["']?#)\w+:""", html)
    assert not re.search(r"url\((?!#|['\"]?#)", html)
    assert html.count("</script>") == 2  # its data and its script: nothing of a name closes either
    found = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])
    assert found["spots"] or found["grid"]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))


def test_a_figure_comes_out_alike_each_time(db, tmp_path):
    for name in ("one", "two"):
        for ending in figure.ENDINGS:
            db.plot("heatmap").save(tmp_path / f"{name}{ending}")
    for ending in figure.ENDINGS:
        assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()


def test_names_are_cut_in_the_middle():
    assert figure.label("a" * 30 + "b" * 30, 21) == "a" * 12 + "…" + "b" * 8
    assert figure.label("short", 21) == "short"


@needs_chromium
def test_a_browser_tells_what_is_under_the_pointer_and_runs_no_name(hostile, tmp_path):
    hostile.plot("heatmap").save(tmp_path / "x.html")
    hostile.plot("tree", "the <b>base</b> $x$").save(tmp_path / "tree.html")

    async def look():
        async with page((tmp_path / "x.html").as_uri()) as tab:
            x, y = await tab.evaluate(
                "(() => {const g = data.grid, n = g.names.length;"
                "const p = new DOMPoint(g.x + 1.5 * g.width / n, g.y + 0.5 * g.height / n)"
                ".matrixTransform(svg.getScreenCTM()); return [p.x, p.y]})()"
            )
            await tab.point(x, y)
            await tab.until("tip.style.display === 'block'")
            told = await tab.evaluate("tip.innerText")
            names, text = await tab.evaluate("[data.grid.names, data.grid.texts['0,1']]")
            assert told.splitlines()[-1] == text and names[0][:20] in told
            assert await tab.evaluate("document.title") != "owned"
            assert all(url.startswith(("file:", "data:")) for url in tab.asked)
        async with page((tmp_path / "tree.html").as_uri()) as tab:
            await tab.evaluate("document.getElementById('find').focus()")
            await tab.type("onerror")
            await tab.until("count.textContent === '1 found'")
            assert await tab.evaluate("document.title") != "owned"
            assert await tab.evaluate("document.querySelectorAll('img, b, i').length") == 0

    asyncio.run(look())


# The command.


def test_the_command_writes_and_says_so(db, cli, tmp_path):
    run = cli("plot", "heatmap", "ft_a", "ft_b", "ft_c", "--metric", "cs", "-o", "k.svg")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "wrote k.svg\n")
    assert ElementTree.parse(tmp_path / "k.svg").getroot().tag == f"{SVG}svg"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("heatmap", "-o", "x.pdf"), 2, "a plot ends in .svg, .png, .html"),
        (("heatmap", "-o", "x"), 2, "does not say what to write"),
        (("heatmap", "base", "ft_a", "-o", "x.svg"), 1, "no kinship is known among these"),
        (("heatmap", "nobody", "-o", "x.svg"), 1, "there is no model 'nobody'"),
        (("heatmap", "-o", "none/x.svg"), 1, "none/x.svg cannot be written: No such file"),
        (("tree", "ft_c", "--depth", "0", "-o", "x.svg"), 2, "Invalid value"),
        (("layers", "ft_a", "ft_a", "-o", "x.svg"), 2, "a layer profile is of two"),
        (("layers", "ft_a", "base", "-o", "x.svg"), 1, "no kinship by layer is known"),
        (("evolution", "-o", "x.svg"), 1, "there is no run of evolution"),
        (("gains", "-o", "x.svg"), 1, "no merge here has the kinship of its parents"),
        (("heatmap",), 2, "Missing option"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_line(db, cli, tmp_path, arguments, code, said):
    run = cli("plot", *arguments)
    assert run.returncode == code
    assert said in run.stderr
    assert code == 2 or run.stderr.count("\n") == 1
    assert not list(tmp_path.glob("x*"))


def test_unknown_kinds_and_metrics_are_refused(db):
    for kind, options in (
        ("pie", {}),
        ("heatmap", {"metric": "r"}),
        ("heatmap", {"block": "nose"}),
        ("gains", {"metric": "r"}),
    ):
        with pytest.raises(UsageError, match="choose of"):
            db.plot(kind, **options)


def test_plots_load_no_tensor_library(db):
    script = (
        "import sys, kinbase; kinbase.open(sys.argv[1]).plot('heatmap');"
        "print(sorted({'torch', 'textual', 'click', 'numba'} & {m.partition('.')[0] for m in sys.modules}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, db.store.path], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


# The pictures of the documents.


def test_the_pictures_are_those_the_script_draws(tmp_path):
    """Alike in what they say; the lines themselves move a little with the libraries."""
    subprocess.run([sys.executable, ROOT / "docs" / "pictures.py", tmp_path], check=True, capture_output=True)
    kept = sorted(path.name for path in (ROOT / "docs" / "pictures").glob("*"))
    assert kept == sorted(path.name for path in tmp_path.glob("*"))
    for name in kept:
        assert (ROOT / "docs" / "pictures" / name).stat().st_size < 150_000
        words, old = (
            sorted(
                "".join(text.itertext()).strip()
                for text in ElementTree.parse(folder / name).iter(f"{SVG}text")
            )
            for folder in (tmp_path, ROOT / "docs" / "pictures")
        )
        assert words == old, name
