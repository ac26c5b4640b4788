"""A file of sketches: what a model can be held against without a database, and without anybody's weights. 64 KiB a model.

It is safetensors: `sketches` is float32 [models, BUCKETS]; the metadata has the format, the scheme of the sketches, and as
JSON the name, digest and number of elements of each model.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kinbase.checkpoint import own_files
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.limits import refuse_many
from kinbase.checkpoint.untrusted import count
from kinbase.checkpoint.untrusted import name as named
from kinbase.errors import CheckpointError, KinbaseError, UsageError
from kinbase.kinship.layout import BUCKETS
from kinbase.kinship.sketch import SCHEME
from kinbase.store import Store, sketches
from kinbase.store import names as naming

FORMAT = "kinbase-sketches-1"
MOST = 10_000
"""Models of a file: 640 MB of sketches."""
LARGEST = MOST * (BUCKETS * 4 + 2000)


def write(store: Store, path: str | Path, models: Sequence[str] = ()) -> int:
    """Write the sketches of `models`, or of all bases and models without one; how many they are.

    Raises KinbaseError when there is none, or one of `models` has none, and when the file cannot be written.
    """
    with store.reading() as con:
        names = [naming.resolve(con, model) for model in models]
        found = list(sketches.known(con, names))
    missing = sorted(set(names) - {one.name for one in found})
    if missing or not found:
        what = (
            f"{missing[0]} has no sketch of its weights"
            if missing
            else "no model here has a sketch of its weights"
        )
        raise KinbaseError(f"{what}: import its checkpoint, whole or with --stream")
    told = [{"name": one.name, "digest": one.digest, "numel": one.numel} for one in found]
    sums = np.stack([one.sums for one in found]).astype(np.float32)
    own_files.save(path, FORMAT, {"sketches": sums}, {"scheme": SCHEME, "models": json.dumps(told)})
    return len(found)


def read(path: str | Path) -> list[sketches.Known]:
    """The models of a file of sketches. Raises UsageError for another kind of file, and for sketches of another scheme."""
    kind = "no file of sketches: `kinbase export --sketches FILE` writes one"
    wrong = UsageError(f"{shown(path)} is {kind}")
    told, arrays = own_files.read(path, FORMAT, LARGEST, kind)
    if told.get("scheme") != SCHEME:
        raise UsageError(
            f"{shown(path)} holds sketches of the scheme {shown(told.get('scheme'))}, and this version makes {SCHEME}: "
            "export them again"
        )
    try:
        text = told.get("models", "")
        refuse_many(text, shown(path), 4 * MOST)
        listed, sums = json.loads(text), arrays["sketches"]
    except (CheckpointError, ValueError, TypeError, KeyError, RecursionError):
        raise wrong from None
    if sums.shape != (len(listed), BUCKETS) or sums.dtype != np.float32 or not np.isfinite(sums).all():
        raise wrong
    found = []
    for entry, row in zip(listed, sums, strict=True):
        name = named(entry.get("name"), []) if isinstance(entry, dict) else None
        numel = count(entry.get("numel")) if isinstance(entry, dict) else None
        if name is None or numel is None:
            raise wrong
        digest = entry.get("digest")
        found.append(sketches.Known(name, digest if isinstance(digest, str) else None, numel, row))
    return found
