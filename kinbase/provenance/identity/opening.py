"""A model to be looked at, stored or only lying in a folder: its weights, and what the database knows of it."""

from dataclasses import dataclass
from pathlib import Path

from kinbase.checkpoint import Checkpoint
from kinbase.checkpoint.open import read
from kinbase.errors import KinbaseError
from kinbase.ingest.stored import open_stored
from kinbase.store import Store
from kinbase.store import names as naming


@dataclass(frozen=True, slots=True)
class Model:
    """Opened weights under the name the person gave; `member` is the row of a stored model."""

    label: str
    checkpoint: Checkpoint
    member: naming.Member | None = None


def open_model(store: Store, label: str) -> Model:
    """A stored model by name, alias or prefix, or else a source; the caller closes it.

    Raises KinbaseError for one that is neither, whose files are gone, or that has no weights of its own.
    """
    member = _member(store, label)
    if member is not None:
        opened, gone = open_stored([member])
        if gone:
            raise KinbaseError(
                f"{member.name}: its files are gone or changed: `kinbase status` says where they were"
            )
        checkpoint = opened[member.name]
    else:
        source = read(label)
        if source.checkpoint is None:
            raise KinbaseError(f"{label}: {source.last_word or 'it has no weights'}")
        checkpoint = source.checkpoint
    if checkpoint.delta_of is not None:
        checkpoint.close()
        raise KinbaseError(
            f"{label} is an adapter: merge it into its model first (`kinbase merge MODEL+ADAPTER OUT`)"
        )
    return Model(member.name if member else label, checkpoint, member)


def _member(store: Store, label: str) -> naming.Member | None:
    """The stored model that a label means; None where it is a path or a source. Raises KinbaseError for nothing known."""
    if not store.path.exists():
        return None
    with store.reading() as con:
        name = naming.meant(con, label)
        if name is None:
            if not Path(label).exists() and ":" not in label:
                naming.resolve(con, label)
            return None
        member = next((m for m in naming.members(con) if m.name == name), None)
    if member is None and not Path(label).exists():
        raise KinbaseError(f"{name} is known by name only: import its checkpoint first")
    return member


def base_of(store: Store, *models: Model) -> naming.Member | None:
    """The base that all of the models are stored with, if there is one and it has weights; a base's is itself."""
    members = [model.member for model in models]
    if not all(members):
        return None
    ids = {m.base_id for m in members if m is not None}
    if len(ids) != 1 or None in ids:
        return None
    with store.reading() as con:
        return next((m for m in naming.members(con) if m.model_id in ids), None)
