"""Answers that lie, lead elsewhere or are no model are refused in one line."""

import json

import pytest
from hub_models import lines

from kinbase.importers.hub import client as hub_client
from kinbase.importers.hub.file import HubFile


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 0-29/\u00b2"},
        {"Content-Range": "bytes 0-29/" + "9" * 5000},
        {"Content-Range": "bytes 0-29/-30"},
        {"Content-Range": "bytes */30"},
        {"Content-Length": "-1"},
        {"Content-Range": "x" * 200_000},
    ],
)
def test_headers_that_lie_are_refused_in_one_line(hub, inline_cli, db, headers):
    hub.fail("resolve/.*/README.md", status=206, headers=headers)
    done = inline_cli("import", "hf:org/ft_a", "hf:org/ft_b", "--metadata-only")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert set(lines(done, ["org/ft_a", "org/ft_b"])) == {"org/ft_a", "org/ft_b"}
    assert not db.store.path.exists()


@pytest.mark.parametrize(
    "target", ["file:///etc/hostname", "http://[", "ftp://127.0.0.1/x", "//", "data:,{}"]
)
@pytest.mark.parametrize("depth", ["--metadata-only", "--stream", "--sketch"])
def test_a_redirect_to_what_is_no_server_is_not_followed(hub, inline_cli, db, target, depth):
    hub.fail("(GET|HEAD) /org/ft_a/resolve/.*", status=302, headers={"Location": target})
    done = inline_cli("import", "hf:org/ft_a", depth)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert lines(done, ["org/ft_a"])
    assert not db.store.path.exists()


@pytest.mark.parametrize(
    "answer",
    [
        b"[]", b"7", b"{}", b"not json", b'{"id": 5, "sha": 7}', b'{"id": "org/ft_a", "sha": "../../x"}',
        b'{"id": "org/ft_a", "sha": "%s", "siblings": 3}' % (b"a" * 40), b"[" * 100_000,
        b'{"id": "org/ft_a", "sha": "%s", "gguf": [1], "siblings": [{"rfilename": 5}]}' % (b"a" * 40),
        b'{"id": "org/ft_a", "sha": "%s", "createdAt": "yesterday"}' % (b"a" * 40),
    ],
    ids=range(10),
)  # fmt: skip
def test_an_answer_that_is_no_model_is_told_in_one_line(hub, inline_cli, db, answer):
    hub.fail("/api/models/org/ft_a", status=200, headers={"Content-Type": "application/json"}, body=answer)
    done = inline_cli("import", "hf:org/ft_a", "hf:org/ft_b", "--stream")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert lines(done, ["org/ft_a"])
    assert db.sql("select name from models where parameters > 0")["name"].to_list() == ["org/ft_b"]


def test_names_that_no_table_can_hold_are_left_out(hub, db):
    hub.put("org/shut", {"README.md": b""}, gated=True)
    answer = {"id": "org/shut", "sha": hub.repos["org/shut"].refs["main"], "gated": "auto"}
    answer |= {
        "siblings": [
            {"rfilename": "README.md"},
            {"rfilename": "\ud800"},
            {"rfilename": "../../x.safetensors"},
        ]
    }
    answer |= {"tags": ["license:\ud800", 5, "base_model:finetune:../x"], "gguf": {"architecture": "a\x00b"}}
    hub.fail("/api/models/org/shut", status=200, body=json.dumps(answer).encode())
    assert db.import_(["hf:org/shut"], metadata_only=True)["status"].to_list() == ["metadata"]
    assert db.sql("select name, license, architecture from models").rows() == [("org/shut", None, None)]


def test_an_empty_file_is_empty_whatever_the_server_says_of_it(hub):
    hub.put("org/empty", {"README.md": b""})
    there = hub_client.Hub()
    piece = HubFile(there, there.repo("org/empty", None), "README.md").piece(0, 100)
    assert (piece.data, piece.size) == (b"", 0)


def test_a_commit_or_name_that_leads_elsewhere_is_none(hub):
    from huggingface_hub.hf_api import ModelInfo

    assert hub_client.repo_of(ModelInfo(id="org/x", sha="a" * 40)) is not None
    for name, commit in (("org/x", "../" * 13 + "a"), ("org/../x", "a" * 40), ("/etc", "a" * 40)):
        assert hub_client.repo_of(ModelInfo(id=name, sha=commit)) is None
