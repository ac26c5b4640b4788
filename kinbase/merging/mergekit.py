"""A merge handed to mergekit (the extra kinbase[mergekit]): for the methods that are not built in.

mergekit reads, merges and writes; around it the child is made as the built-in methods make theirs: under
another name until it is whole, with the configuration and a card beside it.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kinbase.checkpoint import Facts
from kinbase.checkpoint.files import absolute, shown
from kinbase.checkpoint.open import read
from kinbase.errors import KinbaseError, UsageError
from kinbase.merging import folder as beside
from kinbase.merging.child import FULL, Merged, cannot_write, publish, refuse_existing
from kinbase.merging.config import MergeConfig


def merge(
    config: MergeConfig,
    out: str | Path,
    *,
    sources: Mapping[str, str] | None = None,
    seed: int = 0,
    marks: Mapping[str, str] | None = None,
) -> Merged:
    """As `kinbase.merging.merge`, by mergekit: any of its methods, in its own memory and time.

    The models must be on this machine. Raises UsageError when mergekit is not installed, KinbaseError for
    whatever it refuses.
    """
    kit = _mergekit()
    out = absolute(out)
    part = out.with_name(out.name + ".part")
    refuse_existing(out, part)
    found = {}
    for label in config.models:
        source = found[label] = read((sources or {}).get(label, label))
        if source.checkpoint is None:
            raise KinbaseError(f"{label}: {source.last_word or 'it has no weights to merge'}")
        source.checkpoint.close()  # mergekit reads it itself
    places = {label: source.checkpoint.source for label, source in found.items() if source.checkpoint}
    try:
        _run(kit, beside.renamed(config.document, places), part, out, seed)
        licenses = [
            next((f.license for _, f in source.said(Facts) if f.license), None) for source in found.values()
        ]
        labels = {label: str(source.name or label) for label, source in found.items()}
        beside.write_record(part, out.name, config, labels, places, licenses)
        beside.write_marks(part, marks)
        publish(part, out)
    finally:
        beside.remove(part)
    weights = [file for file in out.iterdir() if file.suffix == ".safetensors"]
    return Merged(out, sum(file.stat().st_size for file in weights), None, ())


def _mergekit() -> Any:
    try:
        import mergekit.config
        import mergekit.merge
    except ImportError as error:
        raise UsageError(
            f"the backend mergekit needs mergekit ({error}): pip install 'kinbase[mergekit]'"
        ) from None
    return mergekit


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """No network: the models are here, and whatever mergekit or PEFT would ask for beside them is not needed."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _run(kit: Any, document: object, part: Path, out: Path, seed: int) -> None:
    loud = logging.root.manager.disable
    logging.disable(logging.ERROR)  # its warnings go to a terminal that may belong to somebody else
    try:
        wanted = kit.config.MergeConfiguration.model_validate(document)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as cache, _offline():
            options = kit.merge.MergeOptions(
                quiet=True, write_model_card=False, random_seed=seed, lora_merge_cache=cache
            )
            kit.merge.run_merge(wanted, str(part), options)
    except Exception as error:  # it and what it stands on raise whatever they like
        if isinstance(error, OSError) and error.errno in FULL:
            raise cannot_write(out, error) from None
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise KinbaseError(f"mergekit refused the merge: {shown(first)[1:-1]}") from error
    finally:
        logging.disable(loud)
