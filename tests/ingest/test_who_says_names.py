"""`show` and the view aliases tell who says a name."""


def test_who_says_a_name(empty, tmp_path):
    table = tmp_path / "aliases.csv"
    table.write_text("alias,model\nother,org/m\n")
    empty.import_([str(table)])
    empty.import_([str(table)])
    rows = empty.sql("select alias, model, kind, source from aliases where alias <> model").rows()
    assert rows == [("other", "org/m", "name", str(table))]
    (about,) = empty.show("org/m").to_dicts()
    assert [(each["alias"], each["source"]) for each in about["aliases"]] == [("other", str(table))]


def test_show_prints_it(empty, cli, tmp_path):
    table = tmp_path / "aliases.csv"
    table.write_text("alias,model\nother,org/m\n")
    cli("import", str(table))
    assert "aliases.csv" in cli("show", "other").stdout
