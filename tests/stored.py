"""What a database holds, to compare it with what it held."""


def rows(db):
    """{table: its rows, in no order} of everything but the migrations."""
    with db.store.reading() as con:
        tables = con.execute(
            "select table_name from duckdb_tables() where schema_name = 'raw' and table_name <> 'migration'"
        ).fetchall()
        return {
            name: con.execute(f"select r::varchar from (select * from raw.{name}) r order by 1").fetchall()
            for (name,) in tables
        }
