"""The importer of tables: each view by its columns."""

import json
from datetime import UTC, datetime

import polars as pl
import pytest
from records import only, problem, read

from kinbase.checkpoint import Alias, Edge, Facts, Problem, ReportedKinship, Score
from kinbase.errors import CheckpointError
from kinbase.importers import leaderboard, table


def test_each_view_by_its_columns(write):
    lineage = 'parent,child,relation,method,weight,evidence,detail,source\n' \
        'o/a,o/m,merge,slerp,0.5,card,"{""t"": 0.5}",paper\no/b,o/m,merge,slerp,N/A,rumour,oops,\n'  # fmt: skip
    records = read(table, write("1.csv", lineage))
    assert only(Edge, records) == [
        Edge(
            "o/a", "merge", "reported", "o/m", "slerp", 0.5, {"t": 0.5, "evidence": "card", "source": "paper"}
        ),
        Edge("o/b", "merge", "reported", "o/m", "slerp", None, {"evidence": "rumour"}),
    ]
    assert sorted(p.message.split(":")[1] for p in only(Problem, records)) == [" rows 1, 2"]

    scores = "model,benchmark,metric,value,n_shot,evaluated_at\nm,gsm8k,acc,70.5,5,2024-01-02\n"
    assert read(table, write("2.csv", scores)) == [
        Score("gsm8k", "acc", 70.5, "m", n_shot=5, evaluated_at=datetime(2024, 1, 2, tzinfo=UTC))
    ]
    kinship = "model_a,model_b,base,pcc,cs,ed\nx,y,b,0.9,,4.5\ny,x,b,0.9,,4.5\n"
    assert read(table, write("3.csv", kinship)) == [ReportedKinship("x", "y", "b", 0.9, None, 4.5)]
    aliases = '{"alias": "old", "model": "new", "kind": "redirect"}\n{"alias": "new", "model": "new", "kind": "name"}\n'
    assert read(table, write("4.jsonl", aliases)) == [Alias("old", "new", "redirect")]
    models = [
        {"name": "m", "base": "b", "license": "mit", "parameters": 7, "digest": "ff"},
        {"name": "b", "base": None},
    ]
    assert read(table, write("5.json", json.dumps(models))) == [
        Facts("m", license="mit", parameters=7),
        Facts("b"),
        Edge("b", "base", "reported", "m"),
    ]


def test_parquet_keeps_its_types(tmp_path):
    when = datetime(2024, 1, 2, 3, 4)
    frame = pl.DataFrame(
        {
            "model": ["m"],
            "benchmark": ["b"],
            "metric": ["acc"],
            "value": [1.5],
            "evaluated_at": [when],
            "n_shot": [0],
        }
    )
    frame.write_parquet(tmp_path / "scores.parquet")
    assert read(table, tmp_path / "scores.parquet") == [
        Score("b", "acc", 1.5, "m", n_shot=0, evaluated_at=when.replace(tzinfo=UTC))
    ]


def test_rows_without_a_score_are_named_and_the_rest_is_read(write):
    bad = "".join(
        f"m{i},b,acc,{value}\n" for i, value in enumerate(["1", "NaN", "N/A", "", "inf", "many", "-", "2"])
    )
    records = read(table, write("scores.csv", "model,benchmark,metric,value\n" + bad + ",b,acc,3\n"))
    assert [(s.model, s.value) for s in only(Score, records)] == [("m0", 1.0), ("m7", 2.0)]
    assert [p.message for p in only(Problem, records)] == [
        "scores.csv: rows 2, 3, 4, 5, 6 and 1 more: no value, left out; row 9: no model that can be a name, left out"
    ]


def test_missing_and_extra_columns(write):
    with pytest.raises(CheckpointError, match=r"lacks the column value"):
        read(table, write("a.csv", "model,benchmark,metrics\nm,b,acc\n"))
    with pytest.raises(CheckpointError, match="none of the columns pcc, cs, ed"):
        read(table, write("a.csv", "model_a,model_b\nx,y\n"))
    records = read(table, write("b.csv", "model,benchmark,metric,value,colour\nm,b,acc,1,red\n"))
    assert "'colour'" in problem(records) and len(only(Score, records)) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.csv", "a,b\n1,2\n"),
        ("model.safetensors.index.json", '{"metadata": {}, "weight_map": {}}'),
        ("samples_arc.jsonl", '{"doc_id": 0, "target": "x", "metrics": ["acc"]}\n'),
        ("bad.parquet", b"PAR1" + b"\xff" * 50),
        ("bad.json", "[" * 100_000),
        ("empty.csv", ""),
        ("names.csv", "name\nx\n"),
    ],
)
def test_other_peoples_tables_are_not_recognised(write, name, content):
    assert not table.recognises(str(write(name, content)))
    assert not leaderboard.recognises(str(write(name, content)))


def test_a_table_that_is_none_is_one_line(write):
    with pytest.raises(CheckpointError) as error:
        read(table, write("a.csv", "parent,child,relation\nx,y,merge\nx,y,merge,z\n"))
    assert "\n" not in str(error.value)
    unclosed = read(table, write("c.csv", 'parent,child,relation\n"a,b,merge\nx,y,merge\n'))
    assert not only(Edge, unclosed) and "no rows" in problem(unclosed)
    with pytest.raises(CheckpointError):
        read(table, write("b.jsonl", '{"alias": "x", "model": "y"}\n{"alias": '))


def test_names_in_tables(write):
    rows = [
        {"alias": "[/]\x1b[31m", "model": "m"},
        {"alias": "a\nb", "model": "m"},
        {"alias": "c\x00", "model": "m"},
    ]
    records = read(table, write("aliases.json", json.dumps(rows)))
    assert only(Alias, records) == [Alias("[/]\x1b[31m", "m")]
    assert problem(records) == "aliases.json: rows 2, 3: no alias that can be a name, left out"


def test_kinship_beyond_its_range(write):
    rows = "x,y,1.2\nx,x,0.5\nx,z,NaN\nx,w,1\n"
    records = read(table, write("k.csv", "model_a,model_b,pcc\n" + rows))
    assert only(ReportedKinship, records) == [ReportedKinship("w", "x", None, 1.0)]
    assert all(f"row {i}" in problem(records) for i in (1, 2, 3))
