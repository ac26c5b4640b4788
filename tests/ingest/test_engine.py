"""Engines that are not there, or go with nothing else that was asked; tests/ingest/test_ray.py has the one there is."""

import sys

import pytest

from kinbase.errors import UsageError
from kinbase.ingest.engines import choose_engine


def test_an_engine_that_is_not_there_is_a_line(empty, family, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"the engine ray needs Ray \(.*\): pip install 'kinbase\[ray\]'"):
        empty.import_(family.values(), base="base", engine="ray")
    for name, address in (("spark", None), ("ray:10.0.0.1:6379", "10.0.0.2:6379")):
        with pytest.raises(UsageError, match="there is no engine"):
            empty.import_(family.values(), base="base", engine=name, address=address)
    with pytest.raises(UsageError, match="--address is where a cluster is"):
        empty.import_(family.values(), base="base", address="10.0.0.1:6379")
    assert choose_engine(None) is None


@pytest.mark.parametrize(
    "depth", [{"sample": 0.1}, {"metadata_only": True}, {"kinship": False}, {"sketch": True}]
)
def test_an_engine_goes_with_no_other_depth(empty, family, monkeypatch, depth):
    monkeypatch.setattr("kinbase.database.choose_engine", lambda name, address: object())
    with pytest.raises(UsageError, match="--engine measures all weights of a family"):
        empty.import_(family.values(), base="base", engine="ray", **depth)
