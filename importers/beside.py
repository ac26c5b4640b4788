"""Files of weights in a folder beside those that its model is read from: parts of it, adapters on it, copies of it.

Libraries load the model and leave the rest to whoever knows of it: the head that a reward model is trained with, layers
that predict several tokens ahead, averages. What has tensors of its own makes another model of the same weights, so it is
part of the identity; nothing is computed of it. What has the model's own tensors once more is named and not read.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from kinbase.checkpoint import Blob, Checkpoint
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.lora import is_adapter
from kinbase.checkpoint.names import bare
from kinbase.errors import CheckpointError

HEADS = re.compile(
    r"(value_head|v_head|reward_head|medusa_lm_head|non_lora_trainables|mm_projector|new_embeddings)"
    r"\.(safetensors|bin|pt|pth)"
)
"""Parts that trainers save by themselves: TRL and LLaMA-Factory, Medusa, LLaVA, tokens that were added."""

_ADAPTERS = re.compile(r"(adapter_model|pytorch_lora_weights)\.(safetensors|bin)")
_MOST = 32


def parts(names: Iterable[str]) -> list[str]:
    """The files of a folder that are known parts of a model, by their names."""
    return sorted(name for name in names if HEADS.fullmatch(name))


def join(
    whole: Checkpoint, names: Iterable[str], others: Sequence[str], open_file: Callable[[str], Checkpoint]
) -> None:
    """Add what lies beside the weights of `whole` to its identity, or a note on it.

    `names` are all files of the folder, `others` those that could be weights and were not read.
    """
    known = {bare(tensor.name) for tensor in whole.tensors} | {bare(name) for name in whole.skipped}
    adapters = sorted(name for name in names if _ADAPTERS.fullmatch(name))
    copies: list[str] = []
    for file in sorted(others)[:_MOST]:
        try:
            part = open_file(file)
            part.close()
        except CheckpointError as error:
            whole.notes.append(f"{shown(file)} lies beside the weights and cannot be read: {error}")
            continue
        if is_adapter(part.tensors):
            adapters.append(file)
        elif known.isdisjoint(bare(tensor.name) for tensor in part.tensors):
            add(whole, part, file)
        else:
            copies.append(file)
    if copies:
        whole.notes.append(
            f"{_some(copies)} beside the weights: an average or a variant, which was not read; import the one you mean by "
            "its own path"
        )
    if adapters:
        whole.notes.append(
            f"{_some(adapters)} beside the weights: an adapter, which is not merged into them; merge it, or import it by its "
            "own path"
        )


def add(whole: Checkpoint, part: Checkpoint, file: str) -> None:
    """Make the bytes of a part belong to the identity of a model, or of an adapter; with a note."""
    whole.blobs += [*map(Blob.of, part.tensors), *part.blobs]
    whole.files += part.files
    whole.notes.append(
        f"{shown(file)} lies beside the weights: it is part of what the model is, and is compared with nothing "
        f"(tensors: {len(part.tensors) + len(part.blobs)})"
    )
    close = whole.close

    def both() -> None:
        close()
        part.close()

    whole.close = both


def _some(files: Sequence[str]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f"{', '.join(map(shown, files[:3]))}{more} {'lie' if len(files) > 1 else 'lies'}"
