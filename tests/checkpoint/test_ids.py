"""Ids in all their spellings, and what is a path."""

import pytest

from kinbase.checkpoint.ids import canonical, folded, hub_id, is_path, revised


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name", "org/name"),
        ("HTTPS://HuggingFace.co/org/name/", "org/name"),
        ("hf:org/name@v1", "org/name@v1"),
        ("https://huggingface.co/org/name/blob/v2/README.md", "org/name@v2"),
        ("https://huggingface.co/org/name/resolve/main/f.gguf", "org/name/f.gguf"),
        ("hf.co/org/name:Q4_K_M", "org/name:Q4_K_M"),
        ("org/name.git", "org/name"),
        ("https://huggingface.co/gpt2", "gpt2"),
        ("gpt2", None),
        ("https://huggingface.co/datasets/org/name", None),
        ("https://example.org/org/name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("org/name/more", None),
        ("org/../name", None),
    ],
)
def test_an_id_is_found_in_every_spelling(text, found):
    assert hub_id(text) == found
    assert canonical(text) == (found or text)


@pytest.mark.parametrize(
    "text", ["/a/b", "./a", "../a", ".", "..", "~/a", "C:\\a", "c:/a", "a\\b", "a/b/c", "file:///a/b"]
)
def test_a_place_on_a_disk_is_a_path(text):
    assert is_path(text)


@pytest.mark.parametrize(
    "text", ["a", "a/b", "a/b@r", "a/b@refs/pr/1", "a/b/c.gguf", "https://example.org/a/b/c", ".a/b"]
)
def test_a_name_is_none(text):
    assert not is_path(text)


def test_case_is_folded_in_ids_alone():
    assert folded("Org/Name") == folded("https://hf.co/org/NAME/") == "org/name"
    assert folded("Org/Name@V1") == "org/name@V1" != folded("org/name@v1")
    assert folded("Org/Name/A-Q4.gguf") == "org/name/A-Q4.gguf"
    assert folded("Base") == "Base" and folded("/Data/Base") == "/Data/Base"


def test_main_is_no_revision():
    assert revised("o/n", "main") == revised("o/n", None) == "o/n"
    assert revised("o/n", "step10") == "o/n@step10"
