"""What reading one file of a stranger's may cost: one object, from which every reader takes its figures.

The figures are many times what real files need (docs/security.md has both) and small enough that a file of a
megabyte, whatever it holds, is read or refused within five seconds and 300 MiB.
"""

from dataclasses import dataclass

from kinbase.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one file; bytes are of the file as it lies, unless they say otherwise."""

    config_bytes: int = 10 << 20
    """A JSON configuration, or an index of shards."""
    card_bytes: int = 4 << 20
    yaml_chars: int = 1 << 20
    yaml_nodes: int = 200_000
    """Once aliases are expanded."""
    depth: int = 50
    """Levels of YAML; JSON is bounded by its parser."""
    results_bytes: int = 64 << 20
    json_items: int = 1_000_000
    """Values of a JSON document, as its brackets and commas count them."""
    header_bytes: int = 100_000_000
    """A safetensors header: the format's own limit."""
    header_items: int = 2_000_000
    """Values of a safetensors header; the largest checkpoints have a tenth of it in a file."""
    pickle_bytes: int = 32 << 20
    pickle_steps: int = 4_000_000
    pickle_calls: int = 100_000
    """Objects a pickle builds: two a tensor."""
    table_bytes: int = 1 << 30
    table_rows: int = 5_000_000
    table_columns: int = 10_000
    cell_chars: int = 64 << 10
    parquet_memory: int = 200 << 20
    """Bytes that decoding a Parquet file may take beyond sixteen times its size, in a process of its own."""
    gguf_bytes: int = 256 << 20
    gguf_values: int = 5_000_000
    gguf_text: int = 64 << 10
    name_chars: int = 1000
    parents: int = 1000
    """Models that one card names as its model's."""
    seconds: float = 3.0
    """Processor time of one reader on one file; more by its size (kinbase.checkpoint.guard)."""
    memory: int = 200 << 20
    """Bytes that one reader may add to the process; sixteen times the file's size more."""
    answer_bytes: int = 32 << 20
    """One answer of a site's about a model, or a page of a listing: a hundred thousand files have a fifth of it."""
    plain_bytes: int = 256 << 20
    """A file that a site keeps beside its large ones; the Hub's have 10 MB."""
    network_seconds: float = 60.0
    """Until an answer is whole; more by its bytes."""
    network_rate: float = 16_384.0
    """Bytes a second below which a site is given up."""
    listing_names: int = 100_000
    """Files of a folder elsewhere."""
    listing_seconds: float = 600.0
    """All pages of a listing together."""

    def arrival(self, nbytes: int) -> float:
        """The seconds within which so many bytes have to come over the network."""
        return self.network_seconds + nbytes / self.network_rate


LIMITS = Limits()


def refuse_many(data: bytes | bytearray | str, what: str, limit: int) -> None:
    """Raise CheckpointError for JSON of more than `limit` values, without building them.

    Brackets and commas in texts are counted too: real documents are far below the limits.
    """
    if isinstance(data, str):
        items = data.count(",") + data.count("[") + data.count("{")
    else:
        items = data.count(b",") + data.count(b"[") + data.count(b"{")
    if items > limit:
        raise CheckpointError(f"{what} holds some {items:,} values; at most {limit:,} are read")
