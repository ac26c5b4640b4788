"""Texts of a drawing, and a run of two generations to draw."""


def put_run(con, name, ids, scores=((0.5, 0.6), (0.7,), (0.65, 0.75))):
    """A run over existing models: `scores` of the children, generation by generation."""
    con.execute(
        "insert into raw.run (name, strategy, status, config) values (?, 'greedy', 'running', '{}')",
        [name],
    )
    ((run,),) = con.execute("select run_id from raw.run where name = ?", [name]).fetchall()
    for generation, values in enumerate(scores):
        con.execute(
            "insert into raw.generation (run_id, generation, top_ids, top_kinship, reason, ended_at) "
            "values (?, ?, ?, ?, 'go on', now()::timestamp)",
            [run, generation, ids, 0.1 + 0.3 * generation],
        )
        for position, value in enumerate(values):
            con.execute(
                "insert into raw.offspring (run_id, generation, position, child, child_id, parent_ids, role, reason, kinship, "
                "status, score, kept) values (?, ?, ?, ?, null, ?, ?, 'because <b>', 0.2, 'scored', ?, ?)",
                [run, generation, position, f"{name} {generation}-{position}", ids[:2] if generation else [],
                 "pair" if generation else "start", value, position == 0],
            )  # fmt: skip


def texts(plot):
    return [
        text.get_text()
        for text in plot.findobj(lambda artist: hasattr(artist, "get_text"))
        if text.get_text()
    ]
