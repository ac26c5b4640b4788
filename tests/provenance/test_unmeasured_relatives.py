"""After imports without sums a recipe says what it cannot see, and the command it names decides."""

import pytest

import kinbase
from kinbase.errors import KinbaseError


def test_relatives_without_sums_leave_it_undecided_until_they_are_imported(tmp_path, family):
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([family["base"], family["merge_ab"], family["ft_c"]], base="base")
    db.import_([family["ft_a"], family["ft_b"]], base="base", sketch=True)
    (row,) = db.recipe("merge_ab").to_dicts()
    assert row["verdict"] == "undecidable"
    assert "ft_a, ft_b may be in it" in row["reason"]
    with pytest.raises(KinbaseError, match=r"no sums of ft_a .*`kinbase import .*ft_a --base base`"):
        db.recipe("ft_a")
    db.import_([family["ft_a"], family["ft_b"]], base="base")
    (row,) = db.recipe("merge_ab").to_dicts()
    assert row["verdict"] == "merge"
    assert {parent["parent"] for parent in row["parents"]} == {"ft_a", "ft_b"}
