"""Model-signing bundles (model_signing, OpenSSF): the digest that was signed becomes a name of the model.

A bundle of sigstore's holds an in-toto statement whose subject is the digest over the model's files. It is kept
beside the digest of the weights, as `sha256:...`, so that the model is found by it. The signature itself is not
verified here: that takes the signer's identity, which `model_signing verify` asks for.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from pathlib import Path

from kinbase.checkpoint import Alias, Problem, Record
from kinbase.checkpoint.files import is_file, parse_object, read_json, shown
from kinbase.errors import CheckpointError

NAMES = ("model.sig", "claims.jsonl.sig")
_DIGEST = re.compile(r"[0-9a-f]{40,128}")


def recognises(source: str) -> bool:
    """A file called as the signer calls its bundles."""
    path = Path(source)
    return (path.name in NAMES or path.name.endswith((".sigstore", ".sigstore.json"))) and is_file(source)


def open(source: str) -> Iterator[Record]:
    """The digests that were signed, as names of the model the bundle lies beside."""
    bundle = read_json(source)
    envelope = bundle.get("dsseEnvelope")
    payload = envelope.get("payload") if isinstance(envelope, dict) else None
    if not isinstance(payload, str):
        raise CheckpointError(
            f"{shown(source)} is no bundle of model signing: it has no dsseEnvelope with a payload"
        )
    try:
        statement = parse_object(
            base64.b64decode(payload, validate=True), f"the statement in {shown(source)}"
        )
    except (binascii.Error, ValueError):
        raise CheckpointError(
            f"{shown(source)} has a payload that is not base64; the bundle is damaged"
        ) from None
    subjects = statement.get("subject")
    found = [
        f"{kind}:{digest}"
        for subject in (subjects if isinstance(subjects, list) else [])
        for kind, digest in (subject.get("digest") or {}).items()
        if isinstance(subject, dict) and isinstance(digest, str) and _DIGEST.fullmatch(digest)
    ]
    if not found:
        raise CheckpointError(f"{shown(source)} signs no digest")
    for label in dict.fromkeys(found[:10]):
        yield Alias(label, kind="signed")
    yield Problem(f"{Path(source).name}: the signed digest is kept, its signature was not verified")
