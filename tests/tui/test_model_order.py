"""Lists of models read once equal those that are asked page by page."""

from driven import names
from terminal import run, type_in

from kinbase.query import filters, models
from kinbase.store import Store
from kinbase.tui.screens.families import FilterInput
from kinbase.tui.widgets import model_tree
from kinbase.tui.widgets.model_tree import ModelTree


def test_lists_are_the_same_when_it_is_known_where_all_models_stand(path):
    with Store(path).writing() as con:
        con.execute(
            "insert into raw.model (name, base_id, parameters) select 'many-' || i, 1, i % 5 from range(900) t(i)"
        )
        con.execute(
            "insert into raw.claim (child_id, parent_id, relation, evidence) "
            "select model_id, 6 + (model_id * 7919) % 37, 'finetune', unnest(['card', 'config']) "
            "from raw.model where model_id > 50"
        )
        con.execute(
            "insert into raw.score (model_id, benchmark, metric, value) "
            "select model_id, 'mmlu', 'acc', model_id % 7 from raw.model where model_id % 3 = 0"
        )
    with Store(path).reading() as con:
        for sort in models.SORTS:
            known = models.ordered(con, sort, None)
            for offset in (0, 200, 400):
                for typed in ("many", "many-1", "a", "license:mit", "gen=2", "gen>0", "nobody"):
                    wanted = filters.parse(typed)
                    page = models.matching(con, wanted, sort, offset, known)
                    assert page.entries == models.matching(con, wanted, sort, offset).entries, (typed, sort)
                    assert page.number == models.count_matching(con, wanted)
                for parent in (1, 7, 900):
                    page = models.children(con, parent, sort, offset, known)
                    assert page.entries == models.children(con, parent, sort, offset).entries, (parent, sort)
                assert (
                    models.roots(con, sort, offset, known).entries == models.roots(con, sort, offset).entries
                )
        assert known.beneath[1] == 4 + 900  # measured against the base
        (first, *_) = models.children(con, 1, "largest").entries
        # Two claims name each child, which counts once.
        assert first.beneath == len(models.children(con, first.id, "name").entries) > 20


def test_an_order_that_is_known_of_one_state_is_added_to(path):
    with Store(path).reading() as con:
        known = models.ordered(con, "name", None)
        assert models.ordered(con, "largest", known) is known and set(known.places) == {"name", "largest"}


def test_where_all_models_stand_is_forgotten_when_the_file_changes(path, monkeypatch):
    monkeypatch.setattr(model_tree, "MANY", 1)

    async def steps(app, pilot):
        assert app.orders is not None
        with Store(path).writing() as con:
            con.execute("insert into raw.model (name) values ('fresh')")
        assert app.orders is None
        await type_in(app, pilot, app.screen.query_one(FilterInput), "fresh")
        assert names(app.screen.query_one(ModelTree)) == ["fresh"]
        await type_in(app, pilot, app.screen.query_one(FilterInput), "")
        assert app.orders is not None and len(app.orders.steps) == 7

    run(path, steps)
