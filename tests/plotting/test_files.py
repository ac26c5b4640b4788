"""Files of plots: well formed, self-contained, the same each time, whatever the names."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import needs_chromium, page
from plotted import put_run

from kinbase.errors import UsageError
from kinbase.plotting import figure

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
        put_run(con, "_run <b> $r$", ids=list(ids)[:3])
    return empty


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
