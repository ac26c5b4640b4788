"""What does not fit a terminal: names are cut in their middles, cells are whole, and wide characters take their two columns."""

import pytest
from terminal import press, run, screen_text, type_in
from textual.widgets import Static

import kinbase
from kinbase.text import text_width
from kinbase.tui.screens.column_picker import Checks
from kinbase.tui.widgets.editor import Editor
from kinbase.tui.widgets.footer import KeysFooter
from kinbase.tui.widgets.model_table import ModelTable
from kinbase.tui.widgets.paged_table import PagedTable

LONG = "organisation/a-very-long-name-of-a-model-Instruct-7B-v0.1"
WIDE = "日本語-モデル"
SIZES = [(80, 24), (140, 45), (200, 60)]


@pytest.fixture
def odd(path):
    """The family, two of whose models have names that are hard to fit."""
    db = kinbase.open(path)
    db.rename("ft_a", LONG)
    db.rename("ft_b", WIDE)
    return path


def lines_of(widget):
    """The lines of a widget as a terminal would get them."""
    return [
        "".join(s.text for s in widget.render_line(y)) for y in range(widget.scrollable_content_region.height)
    ]


def column_of(line, text):
    """The column of the terminal in which `text` begins."""
    return text_width(line[: line.index(text)])


@pytest.mark.parametrize("size", SIZES)
def test_columns_stand_below_each_other_whatever_the_names(odd, size):
    async def steps(app, pilot):
        await press(app, pilot, "t")
        table = app.screen.query_one(ModelTable)
        heading, *rows = [line for line in lines_of(table) if line.strip()]
        end = column_of(heading, "score▼") + len("score▼")
        for line, i in zip(rows, table._order, strict=True):
            score = table.found.rows[i][2]
            shown = f"{score:.2f}" if score is not None else "-"
            cells = "".join(c + "\0" * (text_width(c) - 1) for c in line)  # a wide character is two of them
            assert cells[:end].endswith(shown), line
            assert text_width(line) == table.size.width

        await press(app, pilot, "f3")
        heatmap = app.screen.query_one("Heatmap")
        assert len({text_width(line) for line in lines_of(heatmap)}) == 1

    run(odd, steps, size)


def test_names_are_cut_in_the_middle_everywhere(odd):
    async def steps(app, pilot):
        await press(app, pilot, "right")
        assert any(
            "organ" in line and "-v0.1" in line and "…" in line for line in screen_text(app).splitlines()
        )
        await press(app, pilot, "t")
        assert any("organ" in line and "-v0.1" in line for line in screen_text(app).splitlines())

    run(odd, steps, (80, 24))


def test_a_copied_row_is_whole(odd):
    async def steps(app, pilot):
        await press(app, pilot, "t")
        table = app.screen.query_one(ModelTable)
        table.go(next(n for n, i in enumerate(table._order) if table.found.models[i].name == LONG))
        assert LONG not in "".join(lines_of(table))
        assert table.row_whole()[0] == LONG

    run(odd, steps, (80, 24))


@pytest.mark.parametrize("size", [(40, 20), *SIZES])
def test_the_footer_shows_whole_keys_and_always_that_of_the_help(odd, size):
    async def steps(app, pilot):
        for screen in ("f2", "f3", "f4", "f5", "f6"):
            await press(app, pilot, screen)
            footer = app.screen.query_one(KeysFooter)
            shown = [key for key in footer.children if not key.has_class("-command-palette")]
            assert any("help" in key.action for key in shown), screen
            palette = next(key for key in footer.children if key.has_class("-command-palette"))
            assert all(key.region.right <= palette.region.x for key in shown), screen

    run(odd, steps, size)


def test_results_fit_and_are_scrolled_by_whole_columns(odd):
    async def steps(app, pilot):
        await press(app, pilot, "f5")
        await type_in(
            app,
            pilot,
            app.screen.query_one(Editor),
            "select name, family, name as again, parameters from models",
        )
        await press(app, pilot, "ctrl+j")
        table = app.screen.query_one(PagedTable)
        head = lines_of(table)[0]
        assert head.split() == ["name", "family", "again", "parameters"]
        assert any(LONG[:8] in line and "…" in line for line in lines_of(table))
        wide = ", ".join(f"name || '{i}' as column_{i}" for i in range(8))
        await type_in(app, pilot, app.screen.query_one(Editor), f"select {wide} from models")
        await press(app, pilot, "ctrl+j")
        seen = []
        for _ in range(8):
            for name in lines_of(table)[0].split():
                assert name in table.columns, "a heading is cut"
                seen.append(name)
            table.action_sideways(1)
        assert list(dict.fromkeys(seen)) == table.columns

    run(odd, steps, (80, 24))


def test_what_a_command_says_fits_its_window(odd):
    async def steps(app, pilot):
        await press(app, pilot, "right", "down", "n")
        told = app.screen.told.splitlines()
        assert not app.screen.code and len(told) > 5
        table = told[next(i for i, line in enumerate(told) if line.startswith("parent_a")) :]
        assert all(text_width(line) <= app.screen.query_one(Static).size.width for line in table)
        text = " ".join(screen_text(app).replace("│", " ").split())
        assert " ".join(told[0].split()[-4:]) in text  # wrapped, and not cut

    run(odd, steps, (80, 24))


def test_the_keys_are_told_whole_in_the_narrowest_terminal(odd):
    async def steps(app, pilot):
        await press(app, pilot, "question_mark")
        shown = " ".join(screen_text(app).replace("│", " ").split())
        assert app.screen.told and all(what.split()[-1] in shown for _, what in app.screen.told)

    run(odd, steps, (60, 50))


def test_chosen_columns_can_be_told_without_colours(odd):
    async def steps(app, pilot):
        await press(app, pilot, "t", "o")
        picker = app.screen.query_one(Checks)
        lines = lines_of(picker)[: picker.option_count]
        names = [picker.get_option_at_index(i).value for i in range(len(lines))]
        marked = ["X" in line.partition(name)[0] for line, name in zip(lines, names, strict=True)]
        assert marked == [name in picker.selected for name in names] and not all(marked)

    run(odd, steps, (80, 24))
