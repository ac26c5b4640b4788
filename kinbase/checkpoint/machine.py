"""What this machine remembers of its own: a key that never leaves it, and what is signed with it (HMAC, RFC 2104)."""

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path


def home() -> Path:
    """Where this machine remembers things; raises RuntimeError where there is no home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    place = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return place / "kinbase"


def signed(told: str) -> str | None:
    """A keyed digest of a text, in hexadecimal; None where no key can be kept."""
    key = _key()
    return hmac.new(key, told.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest() if key else None


def is_signed(told: str, mark: object) -> bool:
    """Whether `mark` is what this machine's key makes of a text."""
    wanted = signed(told)
    return wanted is not None and hmac.compare_digest(
        str(mark).encode("utf-8", "surrogatepass"), wanted.encode()
    )


def _key() -> bytes | None:
    """The key, made when first asked for; None where none can be kept."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        place = home() / "key"
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            part = place.with_name(f"key.{os.getpid()}")
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            with contextlib.suppress(FileExistsError):  # another process was first: its key counts
                os.link(part, place)
            part.unlink()
        key = bytes.fromhex(place.read_text())
        return key if len(key) == 32 else None
    return None
