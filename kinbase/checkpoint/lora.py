"""Factors of low-rank changes by their names, wherever they lie: alone they are an adapter, in a model they are unmerged."""

import re
from collections.abc import Sequence

from kinbase.checkpoint.contract import Tensor

_FACTOR = re.compile(
    r"(^|[._])(lora_(up|down|mid|A|B|embedding_A|embedding_B|magnitude_vector)|lora\.(up|down)|"
    r"(to_[qkv]|to_out)_lora\.(up|down)|hada_w[12]_[ab]|lokr_w[12](_[ab])?|oft_(blocks|diag|R)|ia3_l|dora_scale|"
    r"vera_lambda_[bd])(\.|$)|^(lora|lycoris)_[a-z0-9]+_|\.diff(_b)?$"
)
"""PEFT, kohya's sd-scripts, diffusers, LyCORIS; the last two save whole changes too, under such names."""

_BESIDE = re.compile(r"(^|[._])(alpha|scale)$")


def factors(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that are factors of a change, not weights."""
    return [tensor for tensor in tensors if _FACTOR.search(tensor.name)]


def is_adapter(tensors: Sequence[Tensor]) -> bool:
    """Whether a file holds a change of some model and no model: factors and their scales are most of its tensors."""
    found = factors(tensors)
    plain = [t for t in tensors if not _BESIDE.search(t.name)]
    return bool(found) and 2 * len(found) > len(plain)
