"""Who may say what: files beside weights speak of those, tables report, and names that chain destroy nothing."""

import json
import shutil

import pytest

from kinbase.checkpoint import Alias, Edge, Facts, Problem, ReportedKinship, Score, Task, Training
from kinbase.checkpoint.authority import within_their_right

STATE = """
select 'model', m.name, m.digest, m.base, m.relation, m.license from models m
union all select 'claim', parent, child, relation, evidence, null from lineage where evidence <> 'reported'
union all select 'score', model, benchmark, metric, value::varchar, source from scores
union all select 'alias', alias, model, null, null, null from aliases where kind <> 'path'
order by all
"""


def speaks(*records, model="own", beside_weights=True):
    kept = within_their_right([("f", r) for r in records], model, beside_weights=beside_weights)
    return [r for _, r in kept if not isinstance(r, Problem)], [
        r.message for _, r in kept if isinstance(r, Problem)
    ]


@pytest.mark.parametrize("evidence", ["user", "run", "weights"])
@pytest.mark.parametrize("beside_weights", [False, True])
def test_no_file_gives_the_evidence_of_the_program(evidence, beside_weights):
    kept, told = speaks(Edge("a", "merge", evidence), beside_weights=beside_weights)
    assert kept == [Edge("a", "merge", "reported")]
    assert len(told) == 1 and "stored as reported" in told[0]


@pytest.mark.parametrize(
    "record",
    [
        Facts("other", license="mit"), Score("b", "acc", 1.0, "other"), Training("b", "other"), Task("b", "maths"),
        Alias("another"), Alias("own", "other"), Alias("another", "other"),
        Edge("a", "merge", "reported", "other"),
    ],
)  # fmt: skip
def test_what_is_said_of_others_beside_weights_is_left_out_and_told(record):
    kept, told = speaks(record)
    assert kept == []
    assert len(told) == 1 and "import the file by itself" in told[0]
    assert speaks(record, beside_weights=False) == ([record], [])


def test_edges_and_kinship_of_others_are_reported():
    kinship = ReportedKinship("x", "y", pcc=0.5)
    kept, told = speaks(Edge("a", "merge", "config", "other"), kinship)
    assert kept == [Edge("a", "merge", "reported", "other"), kinship]
    assert len(told) == 1 and "2 things of others" in told[0]


@pytest.mark.parametrize(
    "record",
    [
        Edge("a", "merge", "config"), Edge("a", "merge", "card", "own"), Score("b", "acc", 1.0),
        Score("b", "acc", 1.0, "own"), Facts(license="mit"), Facts("own"), Alias("own@abc", kind="revision"),
    ],
)  # fmt: skip
def test_of_its_own_model_a_file_may_speak(record):
    assert speaks(record) == ([record], [])


def test_a_gguf_file_speaks_of_itself():
    kept, told = speaks(
        Edge("a", "merge", "gguf", "origin"), Edge("origin", "quantized", "gguf"), beside_weights=False
    )
    assert [edge.evidence for edge in kept] == ["reported", "gguf"]
    assert len(told) == 1


@pytest.fixture
def planted(db, family, tmp_path):
    """A copy of ft_c with other bytes, beside which lie tables of the other models of the database."""
    folder = shutil.copytree(family["ft_c"], tmp_path / "gift")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (folder / "lineage.csv").write_text(
        "parent,child,relation,method,weight,evidence\nft_c,ft_a,merge,slerp,1,user\nft_c,ft_a,finetune,,,weights\n"
        "ft_c,ft_b,merge,linear,0.5,run\nft_b,gift,finetune,,,run\n"
    )
    (folder / "scores.csv").write_text("model,benchmark,metric,value\nft_a,b,acc,0\ngift,b,acc,1\n")
    (folder / "models.csv").write_text("name,base,relation,license\nft_a,ft_c,merge,stolen\n")
    (folder / "aliases.csv").write_text(
        "alias,model,kind\nft_b,gift,path\nbest,gift,name\nold,ft_b,revision\n"
    )
    (folder / "experts.csv").write_text("model,benchmark\nft_a,b\n")
    (folder / "tasks.csv").write_text("benchmark,category\nb,maths\n")
    return folder


def test_tables_in_a_folder_of_weights_leave_the_others_as_they_were(db, planted):
    db_score(db)
    before = db.sql(STATE).rows()
    (row,) = db.import_([planted], base="base").to_dicts()
    assert row["status"] == "imported", row["notes"]
    assert [r for r in db.sql(STATE).rows() if "gift" not in r] == before
    assert db.sql("select value from scores where model = 'gift'").rows() == [(1.0,)]
    told = db.sql("select parent, relation, evidence from lineage where child = 'gift' order by all").rows()
    assert told == [("base", "base", "user"), ("ft_b", "finetune", "reported")]
    assert db.sql("select count(*) from experts").item() == 0
    for file in ("lineage.csv", "scores.csv", "models.csv", "aliases.csv", "experts.csv", "tasks.csv"):
        assert any(note.startswith(file) for note in row["notes"]), (file, row["notes"])


def db_score(db):
    from kinbase.store.scores import put_scores

    with db.store.writing() as con:
        put_scores(con, None, [Score("b", "acc", 0.5, "ft_a"), Score("b", "acc", 0.25, "ft_b")])


@pytest.mark.parametrize(
    "rows", ["b,c\na,b\nx,a", "x,a\na,b\nb,c", "a,b\nb,a\na,c", "b,c\nc,d\nd,a\na,x", "a,a\nb,b"]
)
@pytest.mark.parametrize("known", ["", "abcx", "ax", "c"])
def test_chains_of_names_lose_nothing(empty, write_table, rows, known):
    """Whatever rows become one, all that was said is said of a model that is there, and an import after it works."""
    for name in known:
        empty.import_(
            [write_table(f"s{name}.csv", f"model,benchmark,metric,value\n{name},b,acc,0.{ord(name)}\n")]
        )
        empty.import_([write_table(f"l{name}.csv", f"parent,child,relation\np{name},{name},finetune\n")])
    empty.import_([write_table("aliases.csv", "alias,model\n" + rows + "\n")])
    ids = "(select model_id from raw.model)"
    for table, column in (
        ("score", "model_id"),
        ("claim", "child_id"),
        ("claim", "parent_id"),
        ("alias", "model_id"),
    ):
        query = f"select count(*) from raw.{table} where {column} not in {ids}"
        assert empty.sql(query).item() == 0, (table, column)
    assert empty.sql("select count(*) from raw.score").item() == len(known)
    for name in "abcx":
        empty.import_([write_table("later.csv", f"alias,model\nz{name},{name}\n")])
        assert empty.sql("select count(*) from aliases where alias = ?", [f"z{name}"]).item() == 1


@pytest.fixture
def write_table(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_a_chain_over_models_with_weights_leaves_them(db, write_table):
    before = db.sql("select name, digest from models order by name").rows()
    (row,) = db.import_(
        [write_table("aliases.csv", "alias,model\nft_b,ft_c\nft_a,ft_b\nx,ft_a\n")]
    ).to_dicts()
    assert db.sql("select name, digest from models order by name").rows() == before
    assert db.sql("select model from aliases where alias = 'x'").rows() == [("ft_a",)]
    assert sum("already" in note for note in row["notes"]) == 2


@pytest.mark.parametrize("said", ["bfloat16", "torch.bfloat16", "BF16", "bf16"])
def test_a_dtype_has_one_spelling(empty, tmp_path, said):
    table = tmp_path / "models.json"
    table.write_text(json.dumps([{"name": "one", "dtype": said}]))
    empty.import_([table])
    assert empty.models("one")["dtype"].to_list() == ["BF16"]


def test_an_imported_copy_leaves_the_dtype_as_it_was(db, family, tmp_path):
    before = db.models("ft_a")["dtype"].to_list()
    shutil.copytree(family["ft_a"], tmp_path / "copy")
    db.import_([tmp_path / "copy"])
    assert db.models("ft_a")["dtype"].to_list() == before == ["BF16"]
