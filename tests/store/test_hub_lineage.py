"""Lineage around a model that hundreds of thousands were made from."""

import subprocess
import sys

CHILDREN = 200_000

ASK = """
import sys
import kinbase

db = kinbase.open(sys.argv[1])
for _ in range(2):  # what crashes there does not do so every time
    count = len(db.sql("from descendants('hub')"))
    assert count == int(sys.argv[2]), count
assert db.sql("from ancestors('child-17')").rows() == [("hub", 1)]
"""


def test_descendants_of_a_hub(empty):
    with empty.store.writing() as con:
        con.execute(
            "insert into raw.model (model_id, name) "
            f"select i, if(i = 0, 'hub', 'child-' || i) from range({CHILDREN} + 1) t(i)"
        )
        con.execute(
            "insert into raw.claim (child_id, parent_id, relation, evidence, source) "
            f"select i, 0, 'finetune', 'reported', 'made' from range(1, {CHILDREN} + 1) t(i)"
        )
    # In a process of its own: a crash there must not end the tests.
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(empty.store.path), str(CHILDREN)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
