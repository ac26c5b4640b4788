"""Fixtures of the Hub tests: a Hub on loopback, a database, and the same models in folders."""

import pytest
from hub_models import card, files_of
from hub_server import Hub

import kinbase


@pytest.fixture
def hub(family, tmp_path, monkeypatch):
    """A Hub with the family as org/*, the cache and the account of nobody."""
    with Hub() as server:
        server.put("org/base", files_of(family["base"]))
        for name in ("ft_a", "ft_b", "ft_c"):
            server.put(f"org/{name}", files_of(family[name], README__md=card("org/base")))
        merged = card("\n- org/ft_a\n- org/ft_b", "merge")
        server.put("org/merge_ab", files_of(family["merge_ab"], README__md=merged))
        environment = {
            "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "hf" / "token"), "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture
def db(tmp_path):
    return kinbase.open(tmp_path / "kin.duckdb")


@pytest.fixture
def local(tmp_path, family):
    """The family imported from its folders."""
    db = kinbase.open(tmp_path / "local.duckdb")
    db.import_(family.values(), base="base")
    return db
