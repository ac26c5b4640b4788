"""Random tables with good and bad rows, against a reference that reads them row by row in plain Python.

The reference asks the same rules of single cells (`untrusted`, `ids`), and derives everything else by itself: which rows
and cells are left out and in which words, what names mean, and what is stored in the end.
"""

import csv
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kinbase
from kinbase.checkpoint import relations
from kinbase.checkpoint.ids import canonical, folded
from kinbase.checkpoint.untrusted import count, model_id, name, number
from kinbase.importers import columns as columns_of
from kinbase.importers import frames

NAMES = ["o/a", "o/b", "O/A", "https://huggingface.co/o/c", "o/c/", "plain", "Plain", " plain ", "none", "", None, "a\nb",
         "x" * 1001, "o/d.git", "datasets/x", "o/e@main", "o/e@v1", "hf:o/a", "unknown", "naïve/é", "o/" + "y" * 97]  # fmt: skip
TEXTS = ["", None, "N/A", "mit", "apache-2.0", "a\nb", "NaN", "z" * 1001]
NUMBERS = ["", None, "0.5", "71%", "many", "-3", "inf", "7", "1e400"]
CELLS = {
    **dict.fromkeys(("parent", "child", "name", "base", "model", "model_a", "model_b", "alias"), NAMES),
    **dict.fromkeys(("weight", "parameters", "value", "stderr", "pcc", "ed"), NUMBERS),
    **dict.fromkeys(("license", "source", "evidence"), TEXTS),
    "relation": ["merge", "fine-tuned", "Finetune", "uncle", "", None, "a\nb"],
    "detail": ['{"t": 1}', "oops", "[1]", "", None, '{"source": "mine", "n": null}'],
    "benchmark": ["gsm8k", "MMLU", "", None, "my own"],
    "metric": ["acc", "", None],
    "kind": ["name", "redirect", "path", ""],
}
KINDS = {
    "lineage": ["parent", "child", "relation", "weight", "evidence", "detail", "source"],
    "models": ["name", "base", "license", "parameters"],
    "scores": ["model", "benchmark", "value", "metric", "stderr", "source"],
    "kinship": ["model_a", "model_b", "pcc", "ed", "base", "source"],
}
FORMS = ["csv", "jsonl", "parquet"]


@st.composite
def tables(draw):
    kind = draw(st.sampled_from(list(KINDS)))
    row = st.fixed_dictionaries({column: st.sampled_from(CELLS[column]) for column in KINDS[kind]})
    return kind, draw(st.sampled_from(FORMS)), draw(st.lists(row, min_size=1, max_size=12))


class Reference:
    """A database as the rows make it, one by one; models are numbers in the order in which they came."""

    def __init__(self):
        self.models, self.claims, self.scores, self.kinships = [], {}, [], {}

    def named(self, label):
        known = [i for i, model in enumerate(self.models) if model["name"] == label]
        known = known or [i for i, model in enumerate(self.models) if folded(model["name"]) == folded(label)]
        if not known:
            self.models.append({"name": canonical(label), "license": None, "parameters": None})
        return known[0] if known else len(self.models) - 1

    def read(self, path, kind, rows):
        self.reasons = {}
        said = [each for at, row in enumerate(rows, 1) if (each := getattr(self, f"_{kind}")(at, row))]
        parts = []
        for reason, at in self.reasons.items():
            more = f" and {len(at) - 5} more" if len(at) > 5 else ""
            parts.append(f"row{'s' * (len(at) > 1)} {', '.join(map(str, at[:5]))}{more}: {reason}")
        notes = [f"{path.name}: {'; '.join(parts)}"] if parts else []
        edges = [e for each in said for e in each.get("edges", [])]
        for facts in (each["facts"] for each in said if "facts" in each):
            model = self.models[self.named(facts["name"])]
            model |= {key: facts[key] for key in ("license", "parameters") if facts[key] is not None}
        new, before = {}, dict(self.scores_now())
        for test, value in (each["score"] for each in said if "score" in each):
            new[(self.named(test[0]), *test[1:])] = value
        self.scores += [
            (test, value) for test, value in new.items() if before.get(test, (None,))[0] != value[0]
        ]
        ids = [(self.named(e["child"]), self.named(e["parent"]), e) for e in edges]
        self.claims[str(path)] = [(c, p, e) for c, p, e in ids if c != p]
        loops = list(dict.fromkeys(e["child"] for c, p, e in ids if c == p))
        if loops:
            more = f" and {len(loops) - 1} more" if len(loops) > 1 else ""
            notes.append(f"{path.name}: left out: {loops[0]}{more} as a parent of its own")
        pairs = {}
        for a, b, base, told, numbers in (each["pair"] for each in said if "pair" in each):
            a, b = self.named(a), self.named(b)
            base = self.named(base) if base else None
            if a != b:
                pairs[min(a, b), max(a, b), told or str(path)] = (base, numbers)
        self.kinships = {k: v for k, v in self.kinships.items() if k[2] != str(path)} | pairs
        return notes

    def scores_now(self):
        return self.scores  # later statements come later, and win in a dict

    def refuse(self, at, reason):
        self.reasons.setdefault(reason, []).append(at)

    def label(self, at, row, column):
        found = model_id(row[column], [])
        if found is None:
            self.refuse(at, f"no {column} that can be a name, left out")
        return found

    def is_silent(self, value):
        words = ("", "n/a", "na", "nan", "none", "null", "-")
        return value is None or (isinstance(value, str) and value.strip().lower() in words)

    def text(self, at, row, column):
        if self.is_silent(row[column]):
            return None
        if (found := name(row[column], [])) is None:
            self.refuse(at, f"a {column} with a line break, NUL or too long, left out")
        return found

    def cell(self, at, row, column, rule, what):
        if self.is_silent(row[column]):
            return None
        if (found := rule(row[column])) is None:
            self.refuse(at, f"{column} is no {what}, cell left out")
        return found

    def _lineage(self, at, row):
        if (parent := self.label(at, row, "parent")) is None or (
            child := self.label(at, row, "child")
        ) is None:
            return None
        if (relation := self.text(at, row, "relation")) is None:
            return self.refuse(at, "no relation, left out")
        if parent == child:
            return self.refuse(at, "a model as its own parent, left out")
        relation = relations.stated(relation) or relation
        if relation not in relations.KNOWN:
            self.refuse(at, f"relation {relation!r} is none that is known, kept as stated")
        evidence = self.text(at, row, "evidence")
        detail = {}
        try:
            detail = {} if self.is_silent(row["detail"]) else json.loads(row["detail"])
        except ValueError:
            self.refuse(at, "detail is no JSON, cell left out")
        if not isinstance(detail, dict):
            self.refuse(at, "detail is no JSON object, cell left out")
            detail = {}
        detail = {key: value for key, value in detail.items() if value is not None}
        if evidence not in (None, "reported"):
            self.refuse(at, "evidence that a table can only report: the word is kept in detail")
            detail.setdefault("evidence", evidence)
        if source := self.text(at, row, "source"):
            detail.setdefault("source", source)
        weight = self.cell(at, row, "weight", number, "number")
        edge = {"parent": parent, "child": child, "relation": relation, "weight": weight, "detail": detail}
        return {"edges": [edge]}

    def _models(self, at, row):
        if (label := self.label(at, row, "name")) is None:
            return None
        facts = {"name": label, "license": self.text(at, row, "license")}
        facts["parameters"] = self.cell(at, row, "parameters", count, "whole number")
        base = self.text(at, row, "base")
        edge = {"parent": base, "child": label, "relation": "base", "weight": None, "detail": {}}
        return {"facts": facts, "edges": [edge] if base and base != label else []}

    def _scores(self, at, row):
        if (label := self.label(at, row, "model")) is None:
            return None
        benchmark, value = self.text(at, row, "benchmark"), number(row["value"])
        lacking = [word for word, said in (("benchmark", benchmark), ("value", value)) if said is None]
        if lacking:
            return self.refuse(at, f"no {' and no '.join(lacking)}, left out")
        metric = self.text(at, row, "metric") or columns_of.usual_metric(benchmark)
        stderr = self.cell(at, row, "stderr", number, "number")
        return {"score": ((label, benchmark, metric, self.text(at, row, "source")), (value, stderr))}

    def _kinship(self, at, row):
        if (a := self.label(at, row, "model_a")) is None or (b := self.label(at, row, "model_b")) is None:
            return None
        pcc, ed = (self.cell(at, row, column, number, "number") for column in ("pcc", "ed"))
        base, source = self.text(at, row, "base"), self.text(at, row, "source")
        if a == b:
            return self.refuse(at, "a model and itself, left out")
        if (pcc is not None and abs(pcc) > 1) or (ed is not None and ed < 0):
            return self.refuse(at, "a correlation beyond 1 or a negative distance, left out")
        if pcc is None and ed is None:
            return self.refuse(at, "neither pcc nor cs nor ed, left out")
        return {"pair": (min(a, b), max(a, b), base, source, (pcc, ed))}

    def state(self):
        """What the queries of `stored` answer."""
        at = [model["name"] for model in self.models]
        claims = [
            (at[c], at[p], e["relation"], e["weight"], json.dumps(e["detail"], sort_keys=True), source)
            for source, said in self.claims.items() for c, p, e in said
        ]  # fmt: skip
        return [
            sorted(map(repr, said))
            for said in (
                [tuple(model.values()) for model in self.models],
                claims,
                [(at[test[0]], *test[1:], *value) for test, value in self.scores],
                [(*sorted((at[a], at[b])), base if base is None else at[base], *numbers, told)
                 for (a, b, told), (base, numbers) in self.kinships.items()],
            )
        ]  # fmt: skip


def stored(con):
    models = con.execute("select name, license, parameters from raw.model").fetchall()
    claims = con.execute(
        """
        select c.name, p.name, k.relation, weight, coalesce(detail, '{}'), k.source from raw.claim k
        join raw.model c on c.model_id = child_id join raw.model p on p.model_id = parent_id where evidence = 'reported'
        """
    ).fetchall()
    claims = [(*row[:4], json.dumps(json.loads(row[4]), sort_keys=True), row[5]) for row in claims]
    scores = con.execute(
        "select name, benchmark, metric, s.source, value, stderr from raw.score s join raw.model using (model_id)"
    ).fetchall()
    pairs = con.execute(
        """
        select least(a.name, b.name), greatest(a.name, b.name), c.name, pcc, ed, e.source from raw.estimate e
        join raw.model a on a.model_id = a_id join raw.model b on b.model_id = b_id
        left join raw.model c on c.model_id = e.base_id
        """
    ).fetchall()
    return [sorted(map(repr, said)) for said in (models, claims, scores, pairs)]


def written(path: Path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pl.DataFrame(rows, schema=dict.fromkeys(rows[0], pl.String)).write_parquet(path)
    return path


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(tables(), min_size=1, max_size=3))
def test_tables_are_stored_as_row_by_row(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("tables")
    db, reference = kinbase.open(folder / "x.duckdb"), Reference()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "BATCH", 4)
        for at, (kind, form, rows) in enumerate(drawn):
            path = written(folder / f"{at}.{form}", rows)
            told = reference.read(path, kind, rows)
            answer = db.import_([str(path)])
            assert answer["status"].to_list() == ["records"]
            notes = [note for note in answer["notes"][0] if note.startswith(path.name)]
            assert notes == told
            with db.store.reading() as con:
                assert stored(con) == reference.state()
