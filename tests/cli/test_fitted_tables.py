"""Tables on a terminal: as wide as it is, names cut in the middle, NULL apart from an empty text."""

import io

from hypothesis import given, settings
from hypothesis import strategies as st

from kinbase.cli.pages import matrix
from kinbase.cli.tables import blocks_of, fitted_table, wrapped
from kinbase.text import NARROWEST, count, fitted, middle, size, text_width, write_rows

NAMES = [
    "org/a-very-long-name-of-a-model-7b-instruct-v0.1",
    "org/a-very-long-name-of-a-model-7b-instruct-v0.2",
]


def table(fit, rows):
    return list(fitted_table(["name", "license", "score"], rows, fit))


def test_the_longest_texts_give_way_and_keep_both_ends():
    lines = table(50, [(NAMES[0], "mit", 61.5), (NAMES[1], "", 71.25)])
    assert all(len(line) <= 50 for line in lines)
    assert lines[2].startswith("org/a-very") and "v0.1  mit" in lines[2] and lines[2].endswith("61.50")
    assert "v0.2" in lines[3]


def test_elsewhere_nothing_is_cut_and_null_is_empty():
    out = io.StringIO()
    write_rows(["name", "license", "score"], [(NAMES[0], None, None)], "table", out)
    assert NAMES[0] in out.getvalue() and "·" not in out.getvalue()


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
    gaps = 2 * (len(found) - 1)
    assert all(new == old if f else min(NARROWEST, old) <= new <= old
               for new, old, f in zip(found, widths, fixed, strict=True))  # fmt: skip
    if sum(widths) + gaps <= fit:
        assert found == widths
    if sum(w if f else min(w, NARROWEST) for w, f in zip(widths, fixed, strict=True)) + gaps <= fit:
        assert sum(found) + gaps <= fit


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(10, 100))
def test_blocks_hold_every_column_once_and_fit_where_a_column_does(widths, fit):
    blocks = blocks_of(widths, fit)
    assert [i for block in blocks for i in block[block is not blocks[0] :]] == list(range(len(widths)))
    for block in blocks:
        total = sum(widths[i] for i in block) + 2 * (len(block) - 1)
        assert total <= fit or len(block) <= 2


def test_a_table_of_many_columns_goes_in_blocks_that_begin_with_the_name():
    columns = ["name", *(f"column_{i}" for i in range(12))]
    lines = list(fitted_table(columns, [("a", *range(12)), ("b", *range(12))], 40))
    assert all(len(line) <= 40 for line in lines)
    assert sum(line.startswith("name  ") for line in lines) == lines.count("") + 1 > 1
    assert [word for line in lines if line.startswith("name") for word in line.split()[1:]] == columns[1:]


def test_blocks_begin_with_all_columns_that_tell_the_rows_apart():
    columns = ["parent", "child", *(f"column_{i}" for i in range(12))]
    rows = [("base", "one", *range(12)), ("base", "two", *range(12))]
    lines = list(fitted_table(columns, rows, 40))
    assert all(len(line) <= 40 for line in lines)
    assert sum(line.split()[:2] == ["base", "two"] for line in lines) == lines.count("") + 1 > 1


def test_a_sentence_goes_beneath_its_row_whole():
    detail = "the scores it is the average of are not here, and neither are those of its parents"
    rows = [(NAMES[0], "gain 1.01", detail), (NAMES[1], "average", None)]
    lines = list(fitted_table(["subject", "claim", "detail"], rows, 80))
    assert all(len(line) <= 80 for line in lines)
    assert NAMES[0] in lines[3] and lines[1] == "  detail" and NAMES[1] in lines[-1]
    assert " ".join(line.strip() for line in lines[4:-1]) == detail
    wide = list(fitted_table(["subject", "claim", "detail"], rows, 200))
    assert wide[0].split() == ["subject", "claim", "detail"] and detail in wide[2]


def test_several_sentences_beneath_a_row_carry_their_names():
    said = "one two three four five six seven eight nine ten"
    lines = list(fitted_table(["act", "said", "changed"], [(1, said, said), (2, said, said)], 40))
    assert [word for line in lines for word in line.split()[:1] if word in ("said", "changed")] == [
        "said",
        "changed",
    ] * 2
    assert all(len(line) <= 40 for line in lines)


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.lists(st.text(alphabet="aé漢-/", min_size=1, max_size=30), min_size=1, max_size=20),
    st.integers(20, 60),
)
def test_wrapped_lines_are_broken_at_blanks_alone(words, fit):
    lines = list(wrapped(" ".join(words), fit, "- ", "  "))
    assert [word for line in lines for word in line[2:].split(" ")] == words
    assert all(text_width(line) <= fit or " " not in line[2:] for line in lines)


def test_a_matrix_goes_in_blocks_of_columns():
    names = [f"org/model-with-a-long-name-{i}" for i in range(15)]
    values = {(a, b): i / 100 for i, a in enumerate(names) for b in names}
    lines = list(matrix(names, values, "pcc", fit=80))
    assert all(len(line) <= 80 for line in lines)
    assert [n for line in lines if line.startswith("pcc") for n in line.split()[1:]] == [
        str(i + 1) for i in range(15)
    ]
    assert len(list(matrix(names, values, "pcc"))) == 16


def test_sizes_have_one_spelling():
    assert [count(n) for n in (None, 0, 999, 24_736, 7_000_000_000, 1_100_000_000_000)] == [
        "", "0", "999", "24.7K", "7.0B", "1.1T",
    ]  # fmt: skip
    assert [size(n) for n in (None, 512, 49_472, 14_000_000_000, 999_960)] == [
        "", "512 B", "49.5 KB", "14.0 GB", "1.0 MB",
    ]  # fmt: skip


@settings(max_examples=100, deadline=None, database=None)
@given(st.text(alphabet="aé漢字z-", max_size=40), st.integers(NARROWEST, 30))
def test_a_cut_text_is_no_wider(text, width):
    cut = middle(text, width)
    assert text_width(cut) <= width
    assert cut == text or "…" in cut
