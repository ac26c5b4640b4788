"""Digests: the same for the same content, others for any other."""

import families
import torch
from gaussian import checkpoint, gaussian_family, vocabulary_family

from kinbase.checkpoint import Tensor
from kinbase.checkpoint.digest import LEAF, model_digest, tensor_digest
from kinbase.kinship.stream import Plan, run


def digest_of(tensors):
    plan = Plan(checkpoint(tensors), hash_base=True)
    return plan.model_digests(run(plan))[0]


def test_a_digest_is_the_same_alone_in_a_family_and_by_hand():
    base, members = vocabulary_family()
    plan = Plan(base, members, hash_base=True)
    together = plan.model_digests(run(plan))
    for one, digest in zip([base, *members], together, strict=True):
        alone = Plan(one, hash_base=True)
        assert alone.model_digests(run(alone)) == [digest]
    import xxhash

    by_hand = []
    for t in members[2].tensors:
        data = bytearray(t.nbytes)
        t.read(0, memoryview(data))
        step = LEAF * t.nbytes // t.numel
        leaves = [xxhash.xxh3_128(data[k : k + step]).digest() for k in range(0, len(data), step)]
        by_hand.append(tensor_digest(t, leaves))
    assert model_digest(by_hand) == together[3]


def test_a_digest_does_not_depend_on_shards_order_or_metadata(tmp_path):
    (weights,) = gaussian_family({"a": (700, 500), "b": (3, 5), "c": (11,)}, 1)[1]
    families.write_safetensors(tmp_path / "one" / "model.safetensors", weights, {"format": "pt"})
    for k, name in enumerate(["c", "a", "b"]):
        families.write_safetensors(
            tmp_path / "many" / f"{k}.safetensors", {name: weights[name]}, {"other": "x" * k}
        )
    digests = set()
    for folder in ("one", "many"):
        opened = families.open_checkpoint(tmp_path / folder)
        plan = Plan(opened, hash_base=True)
        digests |= set(plan.model_digests(run(plan)))
        opened.close()
    assert digests == {digest_of(weights), digest_of(dict(reversed(weights.items())))}
    assert len(digests) == 1


def test_every_part_of_the_content_changes_the_digest():
    w = torch.arange(24, dtype=torch.float32)
    one_bit = w.clone()
    one_bit.view(torch.int32)[23] ^= 1
    variants = [
        {"w": w},
        {"v": w},
        {"w": w.view(4, 6)},
        {"w": w.view(6, 4)},
        {"w": one_bit},
        {"w": w.view(torch.int32).view(torch.int64).view(torch.float64)},
        {"w": w[:23]},
        {"w": w, "v": w},
        {"w": w[:12], "wF32": w[12:]},
        {"wF32": w[:12], "w": w[12:]},
        {"w": torch.empty(0)},
        {},
    ]
    assert len({digest_of(v) for v in variants}) == len(variants)


def test_no_name_can_imitate_another_tensor():
    def tensor(name, dtype, shape=(2,)):
        return Tensor(name, dtype, shape, lambda start, out: None)

    tensors = [
        tensor("wF", "32"),
        tensor("w", "F32"),
        tensor("", "wF32"),
        tensor("w\0", "F32"),
        tensor("\ud800", "F32"),
    ]
    assert len({tensor_digest(t, [b"x" * 16]) for t in tensors}) == len(tensors)
