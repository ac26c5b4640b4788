"""What a database holds, to compare two."""


def stored(db):
    """Every row of every table, but for times and the journal, which has the words of the command."""
    tables = {}
    with db.store.reading() as con:
        listed = con.execute(
            """
            select table_name, list(column_name order by column_index) from duckdb_columns()
            where schema_name = 'raw' and data_type not like 'TIMESTAMP%' group by table_name
            """
        ).fetchall()
        for name, columns in listed:
            if name not in ("migration", "act"):
                tables[name] = con.execute(
                    f"select {', '.join(columns)} from raw.{name} order by all"
                ).fetchall()
        tables["kinship"] = con.execute("from kinship_all order by all").fetchall()
    return tables
