"""GGUF files for tests, written as ggml's docs/gguf.md lays them out, and their blocks decoded by the book."""

import struct

import numpy as np

TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
}
BLOCKS = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q4_K": (256, 144),
    "Q5_K": (256, 176), "Q6_K": (256, 210),
}  # fmt: skip


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def write(path, tensors, architecture="llama", heads=(4, 2), **more):
    """A file of tensors by name: (type, shape, bytes). `more` are numbers of the header, "__" for a dot."""
    pairs = [("general.architecture", 8, text(architecture))]
    for key, value in zip(("head_count", "head_count_kv"), heads, strict=True):
        pairs.append((f"{architecture}.attention.{key}", 4, struct.pack("<I", value)))
    pairs += [(key.replace("__", "."), 4, struct.pack("<I", value)) for key, value in more.items()]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    header += b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in pairs)
    data = b""
    for name, (form, shape, content) in tensors.items():
        header += (
            text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        )
        header += struct.pack("<IQ", TYPES.get(form, form), len(data))
        data += content + bytes(-len(content) % 32)
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


def plain(array):
    return "F32", array.shape, array.astype(np.float32).tobytes()


def q8_0(weights):
    """Quantised as ggml does; the bytes, and the values they stand for."""
    blocks = weights.reshape(-1, 32)
    d = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    codes = np.round(blocks / np.maximum(d.astype(np.float64), 1e-30)).clip(-127, 127)
    content = np.concatenate([d.view(np.uint8), codes.astype(np.int8).view(np.uint8)], axis=1)
    return ("Q8_0", weights.shape, content.tobytes()), (codes * d.astype(np.float64)).reshape(weights.shape)


def random_blocks(form, count, seed=0):
    """Blocks of any codes, with scales of a few thousandths."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, BLOCKS[form][1])).astype(np.uint8)
    for at in {"Q6_K": (208,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,)}.get(form, (0, 2)):
        blocks[:, at : at + 2] = rng.uniform(1e-3, 5e-3, (count, 1)).astype(np.float16).view(np.uint8)
    return blocks


def decoded(block, form):
    """One block's values as ggml-quants.c gives them, element by element, in float64."""
    half = lambda at: float(block[at : at + 2].view(np.float16)[0])  # noqa: E731
    byte = [int(b) for b in block]
    if form == "Q8_0":
        return [half(0) * int(np.int8(b)) for b in block[2:].view(np.int8)]
    if form in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        head = 2 if form.endswith("0") else 4
        low = head + (4 if form.startswith("Q5") else 0)
        fifth = int.from_bytes(bytes(byte[head : head + 4]), "little") if form.startswith("Q5") else 0
        middle = {"Q4_0": 8, "Q5_0": 16}.get(form, 0)
        codes = [byte[low + j] & 15 for j in range(16)] + [byte[low + j] >> 4 for j in range(16)]
        codes = [code + 16 * (fifth >> j & 1) - middle for j, code in enumerate(codes)]
        return [half(0) * code + (half(2) if head == 4 else 0) for code in codes]
    if form == "Q6_K":
        values = []
        for i in range(256):
            part, quarter, at = i // 128, i % 128 // 32, i % 32
            low = byte[64 * part + 32 * (quarter % 2) + at] >> (4 * (quarter // 2)) & 15
            high = byte[128 + 32 * part + at] >> (2 * quarter) & 3
            scale = int(block[192 + i // 16 : 193 + i // 16].view(np.int8)[0])
            values.append(half(208) * scale * ((low | high << 4) - 32))
        return values
    values = []
    packed = byte[4:16]
    for i in range(256):
        group, at = i // 32, i % 32
        if group < 4:
            scale, least = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            least = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        code = byte[(16 if form == "Q4_K" else 48) + 32 * (group // 2) + at] >> (4 * (group % 2)) & 15
        if form == "Q5_K":
            code |= (byte[16 + at] >> group & 1) << 4
        values.append(half(0) * scale * code - half(2) * least)
    return values
