"""Several imports at once: nothing is lost, and what is an estimate for their sake is said."""

import kinbase
from kinbase.ingest import family_pass


def test_members_that_came_in_meanwhile_are_named(tmp_path, family, monkeypatch):
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([family["base"], family["ft_c"]], base="base")
    run, others = family_pass.run, [family["ft_b"]]

    def slow(*arguments, **options):
        """Another import comes to its end while this one reads."""
        if others:
            assert db.import_([others.pop()], base="base")["notes"].to_list() == [[]]
        return run(*arguments, **options)

    monkeypatch.setattr(family_pass, "run", slow)
    report = db.import_([family["ft_a"]], base="base")
    assert report["notes"].to_list() == [
        [
            "kinship with ft_b is estimated by sketches, for they were imported at the same time: "
            "`kinbase kin MODEL --exact` measures it"
        ]
    ]
    methods = db.sql("select model_b, method from kinship where model_a = 'ft_a' order by 1").rows()
    assert methods == [("ft_b", "sketch"), ("ft_c", "exact")]
    assert db.measure(["ft_a"], exact=True) == []
    assert set(db.sql("from kinship")["method"]) == {"exact"}
    assert db.import_([family["merge_ab"]], base="base")["notes"].to_list() == [[]]
