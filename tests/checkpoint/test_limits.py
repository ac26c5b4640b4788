"""The bounds on strangers' files: the manual says the figures that the readers take."""

from dataclasses import asdict
from pathlib import Path

from kinbase.checkpoint.limits import LIMITS

MANUAL = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
TOLD = {
    "config_bytes": "10 MiB", "card_bytes": "4 MiB", "yaml_chars": "1 MiB of YAML",
    "yaml_nodes": "200,000 nodes", "depth": "50 levels",
    "results_bytes": "64 MiB", "json_items": "1,000,000 values", "header_bytes": "100 MB", "header_items": "2,000,000 values",
    "pickle_bytes": "32 MiB", "pickle_steps": "4,000,000 steps", "pickle_calls": "100,000 calls", "table_bytes": "1 GiB",
    "table_rows": "5,000,000 rows", "table_columns": "10,000 columns", "cell_chars": "64 KiB", "gguf_bytes": "256 MiB",
    "gguf_values": "5,000,000 values", "gguf_text": "64 KiB", "name_chars": "1,000 characters", "seconds": "3 s",
    "memory": "200 MiB and sixteen times the file", "answer_bytes": "32 MiB unpacked", "plain_bytes": "256 MiB",
    "network_seconds": "60 s", "network_rate": "16 KiB that came", "listing_names": "100,000 files", "listing_seconds": "600 s",
}  # fmt: skip
"""How the manual says each figure."""
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "MB": 10**6}
INSIDE = {"parquet_memory", "parents"}
"""Bounds within another one, which the manual does not list."""


def test_the_manual_says_every_bound():
    limits = asdict(LIMITS)
    assert limits.keys() == TOLD.keys() | INSIDE
    for name, words in TOLD.items():
        assert words in MANUAL, name
        number, _, unit = words.partition(" ")
        assert int(number.replace(",", "")) * UNITS.get(unit.split()[0], 1) == limits[name], name
