"""Graph files that other programs read, whatever the names; a whole database that comes back equal."""

import html
import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import networkx as nx
import polars as pl
import pytest

import kinbase
from kinbase.errors import KinbaseError, UsageError
from kinbase.store.lineage import put_link
from kinbase.store.names import named

EXAMPLE = Path(__file__).parents[2] / "examples" / "model-kinship"
HOSTILE = [
    'a "quoted" ]name[',
    "line\nbreak",
    "</title><script>alert(1)</script>",
    "back\\slash\\",
    "#quot; & <b> &amp;",
    "```",
    "end",
    "x`y`",
    "\x1b[31mred\x07",
    "{curly}|pipe|",
    "%% comment",
    "\\N \\G",
    "\ufffe odd",
    "--> b",
    "**bold** _it_",
    "1. list",
    "☃ 雪",
    "\u202eevil",
    "'; drop table",
    "line\\x0abreak",  # looks as "line\nbreak" does once that is made safe to show
]


@pytest.fixture
def hostile(empty):
    """A chain of hostile names, each merged into the next by a hostile method."""
    with empty.store.writing() as con:
        for parent, child in pairwise(HOSTILE):
            put_link(con, child, parent, "merge", 'sl"e]r|p<b>', 0.5)
    return empty


def test_graphml_is_what_networkx_reads(published, tmp_path):
    published.export(tmp_path / "g.graphml")
    graph = nx.read_graphml(tmp_path / "g.graphml")
    models = published.models()
    assert set(graph) == set(models["name"])
    edges = published.sql("select distinct parent, child from lineage").rows()
    assert set(graph.edges) == set(edges)
    edge = graph.edges["model-2-1", "model-3-3"]
    assert (edge["relation"], edge["method"], edge["evidence"]) == ("merge", "slerp", "reported")
    assert graph.edges["model-2-1", "model-3-2"]["relation"] == "merge"
    assert graph.nodes["Turdus"]["architecture"] == "MistralForCausalLM"
    assert graph.nodes["Turdus"]["has_weights"] is False


def test_json_is_networkx_node_link_data_with_every_claim(published, tmp_path):
    published.export(tmp_path / "g.json")
    graph = nx.node_link_graph(json.loads((tmp_path / "g.json").read_text()), edges="edges")
    claims = graph.edges["shadow-clown-7B-slerp", "YamShadow-7B"]["claims"]
    assert {claim["detail"]["table"] for claim in claims} == {"path 1", "path 2", "sampled merges"}
    assert (
        graph.number_of_edges() == published.sql("select count(distinct (parent, child)) from lineage").item()
    )


def test_some_models_are_written_with_what_is_above_and_below_them(published, tmp_path):
    published.export(tmp_path / "g.json", ["model-4-3", "Turdus"])
    graph = nx.node_link_graph(json.loads((tmp_path / "g.json").read_text()), edges="edges")
    whole = published.graph()
    want = {"model-4-3", "Turdus"}
    for model in ("model-4-3", "Turdus"):
        want |= nx.ancestors(whole, model) | nx.descendants(whole, model)
    assert set(graph) == want != set(whole)
    assert set(graph.edges) == set(whole.subgraph(want).edges)


def test_a_circle_of_claims_is_written_as_it_is(empty, tmp_path):
    with empty.store.writing() as con:
        for parent, child in (("a", "b"), ("b", "a")):
            con.execute(
                "insert into raw.claim (child_id, parent_id, relation, evidence) values (?, ?, 'merge', 'card')",
                [named(con, child), named(con, parent)],
            )
    empty.export(tmp_path / "g.graphml")
    assert set(nx.read_graphml(tmp_path / "g.graphml").edges) == {("a", "b"), ("b", "a")}


def test_an_unknown_ending_or_model_is_refused(published, tmp_path):
    with pytest.raises(UsageError, match=r"\.graphml"):
        published.export(tmp_path / "g.xyz")
    with pytest.raises(KinbaseError, match="no model"):
        published.export(tmp_path / "g.dot", ["nobody"])
    with pytest.raises(KinbaseError, match="cannot be written"):
        published.export(tmp_path / "nowhere" / "g.dot")
    assert list(tmp_path.iterdir()) == []


def test_hostile_names_come_through_json_as_they_are(hostile, tmp_path):
    hostile.export(tmp_path / "g.json")
    graph = nx.node_link_graph(json.loads((tmp_path / "g.json").read_text()), edges="edges")
    assert set(graph) == set(HOSTILE)
    assert set(graph.edges) == set(pairwise(HOSTILE))


def test_hostile_names_make_no_other_graphml(hostile, tmp_path):
    hostile.export(tmp_path / "g.graphml")
    graph = nx.read_graphml(tmp_path / "g.graphml")
    assert len(graph) == len(HOSTILE)  # two that look alike stay two
    assert nx.is_path(graph, list(nx.topological_sort(graph))) and graph.number_of_edges() == len(HOSTILE) - 1
    assert {name for name in HOSTILE if name.isprintable() and "\ufffe" not in name} <= {
        n.rstrip("'") for n in graph
    }
    assert {edge["method"] for _, _, edge in graph.edges(data=True)} == {'sl"e]r|p<b>'}


STRING = r'"((?:[^"\\]|\\.)*)"'


def test_hostile_names_make_no_other_dot(hostile, tmp_path):
    path = tmp_path / "g.dot"
    hostile.export(path)
    first, _, *lines, last = path.read_text(encoding="utf-8").splitlines()
    assert (first, last) == ("digraph lineage {", "}")
    nodes = [re.fullmatch(rf"  (n\d+) \[label={STRING}\];", line) for line in lines]
    labels = {m[1]: re.sub(r"\\(.)", r"\1", m[2]).replace("&amp;amp;", "&amp;") for m in nodes if m}
    edges = [re.fullmatch(rf"  (n\d+) -> (n\d+) \[label={STRING}\];", line) for line in lines]
    assert len(labels) == len(HOSTILE) and len([m for m in edges if m]) == len(HOSTILE) - 1
    assert len(lines) == 2 * len(HOSTILE) - 1
    assert {name for name in HOSTILE if name.isprintable()} <= set(labels.values())


@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz is not here")
def test_graphviz_draws_hostile_names_as_they_are(hostile, tmp_path):
    hostile.export(tmp_path / "g.dot")
    run = subprocess.run(["dot", "-Tsvg", tmp_path / "g.dot"], capture_output=True, text=True, timeout=600)
    assert (run.returncode, run.stderr) == (0, "")
    texts = re.findall(r"<text[^>]*>(.*?)</text>", run.stdout)
    shown = {html.unescape(text).replace("\xa0", " ") for text in texts}
    assert {name for name in HOSTILE if name.isprintable()} <= shown


def test_hostile_names_make_no_other_mermaid(hostile, tmp_path):
    hostile.export(tmp_path / "g.mmd")
    first, *lines = (tmp_path / "g.mmd").read_text(encoding="utf-8").splitlines()
    assert first == "flowchart TD"
    label = r'"([^"<>&`*]*)"'
    nodes = [m for line in lines if (m := re.fullmatch(rf"  (n\d+)\[{label}\]", line))]
    edges = [m for line in lines if (m := re.fullmatch(rf"  (n\d+) -->\|{label}\| (n\d+)", line))]
    assert len(nodes) == len(HOSTILE) and len(edges) == len(HOSTILE) - 1
    assert len(lines) == len(nodes) + len(edges)
    shown = {re.sub(r"#(\d+);", lambda m: chr(int(m[1])), m[2]) for m in nodes}
    assert {name for name in HOSTILE if name.isprintable()} <= shown
    # what Markdown would take for a list or emphasis is an entity
    assert {m[2] for m in nodes} >= {"1#46; list", "#42;#42;bold#42;#42; #95;it#95;"}


def test_mermaid_in_markdown_is_one_fenced_block(hostile, tmp_path):
    hostile.export(tmp_path / "g.md")
    text = (tmp_path / "g.md").read_text(encoding="utf-8")
    assert text.startswith("```mermaid\nflowchart TD\n") and text.endswith("\n```\n")
    assert text.count("```") == 2


def test_a_base_is_a_dashed_line(db, tmp_path):
    db.export(tmp_path / "g.mmd", ["ft_a"])
    lines = (tmp_path / "g.mmd").read_text().splitlines()
    assert lines[1:] == ['  n0["base"]', '  n1["ft_a"]', "  n0 -.-> n1"]


# The whole database.


def views(db):
    """Every public view as sorted rows."""
    names = db.sql(
        "select view_name from duckdb_views() where not internal and schema_name = 'main' order by 1"
    )["view_name"].to_list()
    assert len(names) >= 15
    with db.store.reading() as con:
        return {name: sorted(con.execute(f"from {name}").fetchall(), key=repr) for name in names}


@pytest.fixture
def everything(db):
    """The fixture family with its weights, the published one, tasks, a card's worth of odd claims."""
    db.import_([EXAMPLE])
    db.link("merge_ab", ["ft_a", "ft_b"], method="linear", weights=[0.6, 0.4])
    with db.store.writing() as con:
        con.execute("insert into raw.task values ('gsm8k', 'math')")
        con.execute("insert into raw.training select model_id, 'gsm8k' from raw.model where name = 'ft_a'")
        con.execute(
            "insert into raw.skipped select model_id, 'odd', 'shape' from raw.model where name = 'ft_a'"
        )
        con.execute("insert into raw.pass (pass_key, position, sums) values ('key', 1, 'ab'::blob)")
        con.execute("update raw.model set created_at = '2024-02-03 04:05:06.789012' where name = 'ft_b'")
    return db


def test_a_whole_database_comes_back_equal(everything, tmp_path):
    everything.export(tmp_path / "all.kinbase")
    other = kinbase.open(tmp_path / "other.duckdb")
    (row,) = other.import_([tmp_path / "all.kinbase"]).to_dicts()
    assert row["status"] == "records" and "models" in row["notes"][0]
    before, after = views(everything), views(other)
    assert before == after
    told = "aliases models lineage scores kinship kinship_by_tensor deltas skipped merge_gains tasks experts"
    assert all(before[name] for name in told.split())
    tables = (
        "select table_name, estimated_size from duckdb_tables() where table_name <> 'migration' order by 1"
    )
    assert everything.sql(tables).rows() == other.sql(tables).rows()
    # and goes on as the first would: new models get new numbers, weights are found again
    other.link("merge_ab", ["somebody new"])
    assert (
        other.sql("select count(*), count(distinct model_id) from raw.model").row(0)
        == (everything.models().height + 1,) * 2
    )
    assert other.measure(["ft_a", "ft_b"]) == []


def test_a_whole_export_is_imported_by_itself(published, db, tmp_path):
    published.export(tmp_path / "all.kinbase")
    with pytest.raises(UsageError, match="by itself"):
        db.import_([tmp_path / "all.kinbase", "elsewhere"])
    with pytest.raises(KinbaseError, match="exists already"):
        published.export(tmp_path / "all.kinbase")
    with pytest.raises(UsageError, match="whole database"):
        published.export(tmp_path / "some.kinbase", ["Turdus"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("kinbase.json", b"{", "does not tell"),
        ("kinbase.json", b'{"migrations": {"migrations/9999_later.sql": "0"}}', "another schema"),
        ("kinbase.json", b"[1]", "does not tell"),
        ("score.parquet", b"PAR1 no, it is not", "score.parquet"),
        ("alias.parquet", None, "alias.parquet"),
    ],
)
def test_a_damaged_export_leaves_nothing_behind(published, empty, tmp_path, file, content, message):
    published.export(tmp_path / "all.kinbase")
    if content is None:
        (tmp_path / "all.kinbase" / file).unlink()
    else:
        (tmp_path / "all.kinbase" / file).write_bytes(content)
    with pytest.raises(KinbaseError, match=message):
        empty.import_([tmp_path / "all.kinbase"])
    assert empty.models().height == 0
    assert empty.sql("select count(*) from raw.score").item() == 0


@pytest.mark.parametrize("column", ["notes", "by_hand"])
def test_an_export_that_is_far_larger_than_its_file_is_refused(published, empty, tmp_path, column):
    """A text of a megabyte, or a list of 100,000 names, that every row repeats: some kilobytes of Parquet."""
    published.export(tmp_path / "all.kinbase")
    path = tmp_path / "all.kinbase" / "model.parquet"
    value = pl.lit("x" * 1_000_000) if column == "notes" else pl.lit(["license"] * 100_000)
    row = pl.read_parquet(path).head(1).with_columns(value.alias(column))
    pl.concat([row] * 1100).write_parquet(path)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(KinbaseError, match=r"model.parquet is far larger than its [\d,]+ bytes"):
        empty.import_([tmp_path / "all.kinbase"])
    assert empty.models().height == 0


@pytest.mark.parametrize("name", ["a [1] * 'b'", "x=1", "☃"])
def test_a_folder_may_be_called_anything(published, empty, tmp_path, name):
    (tmp_path / name).mkdir()
    published.export(tmp_path / name / "all.kinbase")
    empty.import_([tmp_path / name / "all.kinbase"])
    assert empty.names() == published.names()


def test_export_on_the_command_line(published, cli, tmp_path):
    run = cli("--db", published.store.path, "export", "-o", "all.kinbase")
    assert (run.returncode, run.stdout) == (0, "")
    run = cli("import", "all.kinbase")
    assert run.returncode == 0 and "models" in run.stderr
    assert cli("export", "-o", "g.nothing").returncode == 2
    assert cli("export").returncode == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.kinbase", "kin.duckdb"]
