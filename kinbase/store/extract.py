"""What is stored of a few models besides weights, as a database of its own in memory.

Views over all models compute for all of them whatever is asked of one: over two million that takes minutes. A question
about one that its ancestors and children answer is asked of an extract, whose views are the same.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

from kinbase.store import migrations
from kinbase.store.connection import READING, Connection, as_stream

_OF = {"model": "model_id", "alias": "model_id", "score": "model_id", "training": "model_id"}
"""Tables of which an extract has the rows of its models, and the column that tells them."""


@contextmanager
def extract(con: Connection, model_ids: Collection[int]) -> Iterator[Connection]:
    """Within the block, a connection to an extract: models, their other names, results and trainings, claims among them."""
    part = duckdb.connect()
    try:
        migrations.migrate(part)
        ids = "(select unnest($1::integer[]))"
        wanted = {table: f"{column} in {ids}" for table, column in _OF.items()}
        wanted["claim"] = f"child_id in {ids} and parent_id in {ids}"
        for table, condition in wanted.items():
            rows = con.sql(f"from raw.{table} where {condition}", params=[list(model_ids)])
            part.register("rows", as_stream(rows))
            part.execute(f"insert into raw.{table} by name from rows")
            part.unregister("rows")
        part.execute(f"set memory_limit = '{READING['memory_limit']}'")
        yield part
    finally:
        part.close()


def with_kin(con: Connection, names: Collection[str]) -> list[int]:
    """The ids of models, of everything that they were made from, and of what is made from them at first hand."""
    own = _ids(con, "select model_id from raw.model where list_contains($1, name)", list(names))
    line, front = set(own), list(own)
    while front:
        front = list(_ids(con, _ABOVE, front) - line)
        line.update(front)
    return sorted(line | _ids(con, _BELOW, list(own)))


_ABOVE = """
select parent_id from raw.claim where child_id in (select unnest($1::integer[]))
union select base_id from raw.model where model_id in (select unnest($1::integer[])) and base_id is not null
"""
_BELOW = """
select child_id from raw.claim where parent_id in (select unnest($1::integer[]))
union select model_id from raw.model where base_id in (select unnest($1::integer[]))
"""


def _ids(con: Connection, query: str, asked: list[Any]) -> set[int]:
    return {model_id for (model_id,) in con.execute(query, [asked]).fetchall()}
