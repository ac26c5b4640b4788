"""Identity by content: digests of tensors and of models.

A tensor's leaves are the xxh3_128 of its bytes, 2**18 elements at a time; its digest covers name, dtype,
shape and leaves; a model's digest covers the sorted digests of its tensors. It is therefore independent
of sharding, tensor order and metadata, and leaves can be taken in any order by any number of threads.
xxh3 runs at memory speed but does not resist a forger; it tells copies apart, not attackers.
"""

import hashlib
from collections.abc import Iterable, Sequence

from kinbase.checkpoint import Tensor

LEAF = 1 << 18
"""Elements in a leaf; the last leaf of a tensor is shorter."""

SPAN = 4 * LEAF
"""Elements of a tensor that one worker reads in a row, and that a sketch adds in float32: whole leaves."""


def tensor_digest(tensor: Tensor, leaves: Sequence[bytes]) -> str:
    """32 hex digits for one tensor; fields are length-prefixed, so no name can imitate another field."""
    state = hashlib.blake2b(digest_size=16)
    for text in (tensor.name, tensor.dtype):
        encoded = text.encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "little") + encoded)
    for number in (len(tensor.shape), *tensor.shape, len(leaves)):
        state.update(number.to_bytes(8, "little"))
    for leaf in leaves:
        state.update(leaf)
    return state.hexdigest()


def model_digest(tensor_digests: Iterable[str]) -> str:
    """32 hex digits for a model, from the digests of all its tensors in any order."""
    state = hashlib.blake2b(digest_size=16)
    for digest in sorted(tensor_digests):
        state.update(bytes.fromhex(digest))
    return state.hexdigest()
