"""What a person types to filter models, as SQL.

Words must be in the name; `key:text` and `key>number` ask for more, so `merge license:mit mmlu>0.6`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kinbase.query.generations import OPERATORS, generations_where
from kinbase.query.orders import Orders, read_scores
from kinbase.store import Connection

HELP = """\
Words must all be in the name. Besides:

- `license:mit`, `arch:llama`, `relation:merge`, `base:mistral`
- `score>0.6`: its score, as the view model_scores has it; `mmlu>=0.6`: any benchmark by its name
- `params<8b`, `gen=2`: parameters; steps from where its line begins
- `weights:no`: known only by name
- `tag:keep`: has a tag; `notes:draft`: words of its notes
"""

TERM = re.compile(r"(?P<key>[\w.-]+)(?P<op>:|<=|>=|=|<|>)(?P<value>\S+)")
COLUMNS = {
    "license": "license",
    "licence": "license",
    "arch": "architecture",
    "dtype": "dtype",
    "source": "source",
    "notes": "notes",
}
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


@dataclass
class Filter:
    """A condition on `raw.model m`; `complaint` says which part of the text was not understood.

    A parameter may be a function of the connection and of `Orders`, where they are known: what it returns is meant.
    """

    typed: str = ""
    where: str = "true"
    parameters: list[object] = field(default_factory=list)
    complaint: str = ""

    def values(self, con: Connection, known: Orders | None = None) -> list[object]:
        """The parameters, as the query takes them."""
        return [given(con, known) if callable(given) else given for given in self.parameters]


def parse(typed: str) -> Filter:
    """The filter a text stands for."""
    conditions: list[str] = []
    parameters: list[object] = []
    complaint = ""
    for word in typed.split():
        term = TERM.fullmatch(word)
        if term is None:
            conditions.append(_contains("m.name", word, parameters))
            continue
        key, op, value = term["key"].lower(), term["op"], term["value"]
        if key in COLUMNS and op in ":=":
            conditions.append(_contains(f"m.{COLUMNS[key]}", value, parameters))
        elif key == "relation" and op in ":=":
            conditions.append(
                "(m.relation = ? or m.model_id in (select child_id from raw.claim where relation = ?))"
            )
            parameters += [value.lower()] * 2
        elif key == "base" and op in ":=":
            inner = _contains("name", value, parameters)
            conditions.append(f"m.base_id in (select model_id from raw.model where {inner})")
        elif key in ("tag", "tags") and op in ":=":
            conditions.append("m.model_id in (select model_id from raw.tag where lower(tag) = lower(?))")
            parameters.append(value)
        elif key == "weights" and op in ":=":
            conditions.append(
                "m.digest is null" if value.lower() in ("no", "none", "0") else "m.digest is not null"
            )
        else:
            number = _number(value)
            if number is None:
                if op == ":":  # a name may hold a colon
                    conditions.append(_contains("m.name", word, parameters))
                else:
                    complaint = f"{value} is not a number"
                continue
            op = "=" if op == ":" else op
            if key in ("gen", "generation"):
                conditions.append("get_bit(?::bit, m.model_id) = 1")
                parameters.append(_generations(op, number))
            elif key in ("params", "parameters"):
                conditions.append(f"m.parameters {op} ?")
                parameters.append(int(number))
            elif key == "score":
                conditions.append("get_bit(?::bit, m.model_id) = 1")
                parameters.append(_scores(op, number))
            else:
                inner = _contains("benchmark", key, parameters)
                conditions.append(
                    f"m.model_id in (select model_id from raw.score where {inner} group by model_id having avg(value) {op} ?)"
                )
                parameters.append(number)
    return Filter(typed, " and ".join(conditions) or "true", parameters, complaint)


def _generations(op: str, number: float) -> Callable[[Connection, Orders | None], str]:
    def asked(con: Connection, known: Orders | None) -> str:
        return _bits(generations_where(con, op, number, None if known is None else known.steps))

    return asked


def _scores(op: str, number: float) -> Callable[[Connection, Orders | None], str]:
    def asked(con: Connection, known: Orders | None) -> str:
        scores = known.scores.get("score") if known is not None else None
        return _bits(OPERATORS[op](read_scores(con) if scores is None else scores, number))

    return asked


def _bits(wanted: np.ndarray) -> str:
    """What `get_bit(?::bit, model_id) = 1` takes: wanted is bool by model_id."""
    return (wanted.astype(np.uint8) + ord("0")).tobytes().decode()


def _contains(column: str, word: str, parameters: list[object]) -> str:
    # ILIKE is the fastest that ignores case, but _ and % are its wildcards and stand in many names.
    if re.search(r"[%_\\]", word):
        parameters.append(word.lower())
        return f"contains(lower({column}), ?)"
    parameters.append(f"%{word}%")
    return f"{column} ilike ?"


def _number(value: str) -> float | None:
    unit = UNITS.get(value[-1:].lower(), 0)
    try:
        return float(value[:-1]) * unit if unit else float(value)
    except ValueError:
        return None
