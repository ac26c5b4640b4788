"""Tokens, gates and secrets: where they go, and where they are never kept."""

import pytest
from hub_models import STORAGE, card, files_of
from hub_server import TOKEN

from kinbase.importers import url


def test_the_token_goes_to_the_hub_alone_and_is_nowhere_kept(hub, cli, tmp_path, family):
    hub.put("org/gated", files_of(family["ft_a"]), gated="manual")
    hub.put("org/private", files_of(family["ft_b"]), private=True)
    for depth in (["--metadata-only"], ["--stream"], []):
        done = cli(
            "import", "hf:org/gated", "hf:org/private", "hf:org/nothing", *depth, env={"HF_TOKEN": TOKEN}
        )
        assert done.returncode == 1 and "hf:org/nothing failed" in done.stderr
        assert done.stderr.count("failed") == 2  # that line, and the tally
        assert TOKEN not in done.stdout + done.stderr
    assert {seen.authorised for seen in hub.requests(STORAGE)} == {False}
    assert all(seen.authorised for seen in hub.requests("/(api/models|org)/"))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("token", [None, "hf_somebodyElse000000000000000000000"])
@pytest.mark.parametrize("depth", ["--stream", "--sample=0.5", None])
def test_without_access_there_is_a_clear_word(hub, inline_cli, db, family, token, depth, monkeypatch):
    hub.put("org/gated", files_of(family["ft_a"]), gated="auto")
    hub.put("org/private", files_of(family["ft_b"]), private=True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    done = inline_cli("import", "hf:org/gated", "hf:org/private", "hf:org/base", *([depth] if depth else []))
    assert done.returncode == 1
    gated, private = (
        next(li for li in done.stderr.splitlines() if f"{name} failed" in li) for name in ("gated", "private")
    )
    assert "is gated" in gated and "accept its terms" in gated
    assert "is private" in private
    assert ("with the account" in gated) == bool(token)
    if token:
        assert token not in done.stderr
    assert db.sql("select name from models").rows() == [("org/base",)]


def test_of_a_gated_model_the_lineage_is_kept(hub, db, family):
    hub.put("org/gated", files_of(family["ft_a"], README__md=card("org/base")), gated="manual")
    (row,) = db.import_(["hf:org/gated"], metadata_only=True).to_dicts()
    assert row["status"] == "metadata" and "gated" in row["notes"][0]
    assert db.sql("select parent, child from lineage").rows() == [("org/base", "org/gated")]
    model = db.models("gated").row(0, named=True)
    assert (model["license"], model["parameters"]) == ("mit", 24736)


def test_the_token_follows_no_redirect_of_an_answer(hub, cli):
    for where in ("/api/models/org/ft_a", "/api/models$"):
        hub.heal()
        hub.fail(f"GET {where}", status=307, headers={"Location": f"{hub.storage}/elsewhere"})
        done = cli("import", "hf:org/ft_a", "--children", env={"HF_TOKEN": TOKEN})
        (there,) = hub.requests("GET /elsewhere")
        assert not there.authorised and TOKEN not in done.stderr and "Traceback" not in done.stderr
        assert any(seen.authorised for seen in hub.requests("GET /api/models"))


def test_no_part_of_a_password_is_shown():
    assert url.public("https://me:p@ss@host/x?key=y") == "https://host/x"
    assert url.public("s3://bucket/a@b/x") == "s3://bucket/a@b/x"


def test_a_signature_is_not_stored(hub, db, tmp_path):
    source = f"{hub.url}/org/base/resolve/main/model.safetensors?signature={TOKEN}"
    assert db.import_([source])["status"].to_list() == ["imported"]
    assert all(TOKEN not in str(row) for row in db.sql("from models").rows() + db.sql("from aliases").rows())
    assert TOKEN.encode() not in db.store.path.read_bytes()
    assert hub.requests("resolve/main/model.safetensors")[-1].query == f"signature={TOKEN}"
