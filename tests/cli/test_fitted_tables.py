"""Tables on a terminal: as wide as it is, names cut in the middle, NULL apart from an empty text."""

import io

from hypothesis import given, settings
from hypothesis import strategies as st

from kinbase.text import NARROWEST, fitted, middle, write_rows

NAMES = [
    "org/a-very-long-name-of-a-model-7b-instruct-v0.1",
    "org/a-very-long-name-of-a-model-7b-instruct-v0.2",
]


def table(fit, rows):
    out = io.StringIO()
    write_rows(["name", "license", "score"], rows, "table", out, fit=fit)
    return out.getvalue().splitlines()


def test_the_longest_texts_give_way_and_keep_both_ends():
    lines = table(50, [(NAMES[0], "mit", 61.5), (NAMES[1], "", 71.25)])
    assert all(len(line) <= 50 for line in lines)
    assert lines[2].startswith("org/a-very") and "v0.1  mit" in lines[2] and lines[2].endswith("61.50")
    assert "v0.2" in lines[3]


def test_elsewhere_nothing_is_cut_and_null_is_empty():
    assert NAMES[0] in "".join(table(None, [(NAMES[0], None, None)]))
    assert "·" not in "".join(table(None, [("a", None, None)]))


def test_null_is_not_an_empty_text():
    rows = table(80, [("a", None, None), ("b", "", 1.0)])[2:]
    assert rows[0].split() == ["a", "·", "·"]
    assert rows[1].split() == ["b", "1.0"]


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.lists(st.tuples(st.integers(1, 200), st.booleans()), min_size=1, max_size=12),
    st.integers(10, 300),
)
def test_a_table_fits_where_it_can(columns, fit):
    widths, fixed = [w for w, _ in columns], [f for _, f in columns]
    found = fitted(widths, fixed, fit)
    total = sum(found) + 2 * (len(found) - 1)
    assert all(new == old if f or old <= NARROWEST else NARROWEST <= new <= old
               for new, old, f in zip(found, widths, fixed, strict=True))  # fmt: skip
    movable = [new for new, f in zip(found, fixed, strict=True) if not f]
    assert total <= fit or all(new <= NARROWEST for new in movable)
    if sum(widths) + 2 * (len(widths) - 1) <= fit:
        assert found == widths


@settings(max_examples=100, deadline=None, database=None)
@given(st.text(alphabet="aé漢字z-", max_size=40), st.integers(NARROWEST, 30))
def test_a_cut_text_is_no_wider(text, width):
    from kinbase.text import _width

    cut = middle(text, width)
    assert _width(cut) <= width
    assert cut == text or "…" in cut
