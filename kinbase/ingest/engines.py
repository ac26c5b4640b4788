"""The engines by name."""

from kinbase.errors import UsageError
from kinbase.ingest.engine import Engine


def choose_engine(name: str | None, address: str | None = None) -> Engine | None:
    """The engine `ray` or `ray:ADDRESS`, None for none; raises UsageError for another and where its extra is not installed."""
    if name is None:
        if address:
            raise UsageError("--address is where a cluster is: it goes with --engine ray")
        return None
    kind, _, where = name.partition(":")
    if kind != "ray" or (where and address and where != address):
        raise UsageError(f"there is no engine {name!r}: give ray, or ray:ADDRESS")
    from kinbase.ingest.ray_engine import RayEngine

    return RayEngine(where or address)
