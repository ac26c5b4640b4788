"""Kinbase's own small files, of sketches and of permutations: safetensors whose metadata names the format and what it is of."""

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinbase.checkpoint.files import open_regular, shown
from kinbase.errors import CheckpointError, KinbaseError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def save(path: str | Path, form: str, arrays: Mapping[str, "NDArray[Any]"], told: Mapping[str, str]) -> None:
    """Write arrays and `told` as a file of the format `form`, which is at `path` only when it is whole.

    Raises KinbaseError when it cannot be written.
    """
    from safetensors.numpy import save_file

    part = Path(f"{path}.part")
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError(errno.EEXIST, "it is no regular file")
        part.unlink(missing_ok=True)  # a link there would lead elsewhere
        save_file(dict(arrays), part, metadata={**told, "format": form})
        part.replace(path)
    except Exception as error:  # the library raises its own kinds for what the system refuses
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise KinbaseError(f"cannot write {shown(path)}: {why}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def read(
    path: str | Path, form: str, largest: int, otherwise: str
) -> tuple[dict[str, str], dict[str, "NDArray[Any]"]]:
    """The metadata and the arrays of a file of the format `form`, of `largest` bytes at most.

    Raises UsageError for one that cannot be read, and with the words `otherwise` for one that is of another kind.
    """
    from safetensors import SafetensorError, safe_open

    wrong = UsageError(f"{shown(path)} is {otherwise}")
    try:
        descriptor = open_regular(path)
        size = os.fstat(descriptor).st_size
        os.close(descriptor)
        if size > largest:
            raise wrong
        with safe_open(path, framework="numpy") as file:
            told = dict(file.metadata() or {})
            if told.get("format") != form:
                raise wrong
            return told, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except CheckpointError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"cannot read {shown(path)}: {error.strerror or error}") from None
    except (SafetensorError, TypeError, ValueError, KeyError):
        raise wrong from None
