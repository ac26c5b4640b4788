"""Asking the Hub: huggingface_hub's session, account and cache, with every way it can fail told in one line.

An answer of 429 is waited out as its headers say, by all threads together; a connection that is cut goes on at
the byte it had reached; whatever else fails is tried again a few times, for seconds, not minutes. The account's
token goes to the Hub alone, never to the storage it redirects to, and no message holds any of the client's own
words, which could quote it.
"""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode, urljoin, urlsplit

from kinbase.checkpoint.files import shown
from kinbase.checkpoint.limits import LIMITS, refuse_many
from kinbase.checkpoint.untrusted import name as label
from kinbase.errors import CheckpointError

if TYPE_CHECKING:  # a third of a second, which no import of local files need pay
    from huggingface_hub.hf_api import ModelInfo

Answer = TypeVar("Answer")
Tell = Callable[[str, int, int], None]
"""Told what is going on, and how much of how much is done (0 of 0: not known)."""

ENDPOINT = "https://huggingface.co"
TRIES = 3
"""How often a request is sent before its failure is believed."""

REDIRECTS = 10

LONGEST_WAIT = 900.0
"""Seconds that a rate limit is waited for: three of the Hub's windows."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NUMBER = re.compile(r"[0-9]{1,18}")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?", re.ASCII)

SAID = [
    "sha",
    "siblings",
    "createdAt",
    "gated",
    "private",
    "safetensors",
    "gguf",
    "tags",
    "childrenModelCount",
]
"""What is asked for of a model; spaces and widgets, which can be long, are not."""


class Gate:
    """What all threads that ask one endpoint wait for, once it has asked for a pause."""

    def __init__(self) -> None:
        self.opens_at = 0.0
        self.lock = threading.Lock()

    def hold(self, seconds: float) -> None:
        """Let nobody through for so long."""
        with self.lock:
            self.opens_at = max(self.opens_at, time.monotonic() + seconds)


@lru_cache(maxsize=8)
def gate(endpoint: str) -> Gate:
    """The gate of an endpoint: one for the process, since the endpoint counts what the process asks."""
    return Gate()


@dataclass(frozen=True, slots=True)
class Repo:
    """What the Hub says of a model: its name now, the commit asked for, its files, and its tags."""

    name: str
    commit: str
    files: tuple[str, ...]
    tags: tuple[str, ...]
    gated: bool
    created_at: datetime | None
    parameters: int | None
    architecture: str | None
    children: int | None  # models that name it as their base; None: not said


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE says that nothing is to be asked for; read without loading the client."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


class Hub:
    """One endpoint and one account, as the environment says when it is made."""

    def __init__(self, tell: Tell = lambda what, done, total: None) -> None:
        from huggingface_hub import HfApi, constants

        self.endpoint = (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
        self.api = HfApi(endpoint=self.endpoint, library_name="kinbase")
        self.timeout = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        self.tell = tell
        self.gate = gate(self.endpoint)
        self.stopped = threading.Event()  # nobody waits for the answers any more

    def repo(self, name: str, revision: str | None) -> Repo:
        """What the Hub says of a model at a revision (None: its newest commit); one request."""
        what = f"hf:{name}" + (f"@{revision}" if revision else "")
        from huggingface_hub.hf_api import ModelInfo
        from huggingface_hub.utils import validate_repo_id

        at = f"/revision/{quote(revision, safe='')}" if revision else ""
        with self.sensible(what):
            self.asked(lambda: validate_repo_id(name), what)
            url = f"{self.endpoint}/api/models/{name}{at}?{urlencode([('expand', each) for each in SAID])}"
            found = repo_of(ModelInfo(**self._document(url, what)[0]))  # type: ignore[no-untyped-call]
        if found is None:
            raise CheckpointError(f"the Hub does not say which commit {shown(what)} is; try again later")
        return found

    def children(self, name: str, relation: str | None, limit: int) -> Iterator[Repo]:
        """At most `limit` models whose cards name `name` as base model, by relation or by any."""
        from huggingface_hub.hf_api import ModelInfo

        wanted = f"base_model:{relation}:{name}" if relation else f"base_model:{name}"
        asked = [("filter", wanted), ("limit", str(limit)), *(("expand", each) for each in SAID)]
        page: str | None = f"{self.endpoint}/api/models?{urlencode(asked)}"
        what, seen = f"the children of hf:{name}", 0
        taken = 0.0
        for _ in range(limit):  # a page has at least one, or the listing may have no end
            if page is None or seen >= limit:
                return
            if taken > LIMITS.listing_seconds:
                raise self.too_slow(what, LIMITS.listing_seconds)
            began = time.monotonic()
            with self.sensible(what):
                listed, page = self._page(page, what)
                found = [repo_of(ModelInfo(**each)) for each in listed[: limit - seen]]  # type: ignore[no-untyped-call]
            seen += len(found)
            taken += time.monotonic() - began
            yield from (repo for repo in found if repo is not None)

    def _page(self, url: str, what: str) -> tuple[list[dict[str, Any]], str | None]:
        """One page of a listing and the address of the next."""
        listed, links = self._document(url, what)
        after = links.get("next", {}).get("url")
        if not isinstance(listed, list):
            raise ValueError("no list")
        # Of the next address only the query counts: the account's token goes nowhere but to the endpoint.
        return listed, f"{self.endpoint}/api/models?{urlsplit(after).query}" if after else None

    def _document(self, url: str, what: str) -> tuple[Any, dict[str, dict[str, str]]]:
        """What the Hub answers in JSON, and its links; asked here, since the client takes and waits as much as it is told.

        Raises CheckpointError, and ValueError for what is no JSON.
        """

        def ask() -> tuple[bytes, dict[str, dict[str, str]]]:
            response = self._opened(url, what)
            try:
                return self.taken(response, what, LIMITS.answer_bytes), response.links
            finally:
                response.close()

        data, links = self.asked(ask, what)
        refuse_many(data, shown(what), LIMITS.json_items)
        return json.loads(data), links

    def _opened(self, url: str, what: str) -> Any:
        """An answer whose body was not read; where the endpoint redirects within itself, what it leads to."""
        from huggingface_hub.utils import build_hf_headers, get_session

        client, headers = get_session(), build_hf_headers(library_name="kinbase")
        for _ in range(REDIRECTS):
            request = client.build_request("GET", url, headers=headers, timeout=self.timeout)
            response = client.send(request, stream=True, follow_redirects=False)
            if not response.has_redirect_location:
                refuse_failed(response)
                return response
            response.close()  # its body may have no end
            url = urljoin(url, response.headers["Location"])
            if urlsplit(url)[:2] != urlsplit(self.endpoint)[:2]:
                headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
        raise CheckpointError(f"{self.endpoint} redirects {shown(what)} in a circle; try again later")

    def taken(self, response: Any, what: str, most: int) -> bytes:
        """The body of an answer, of at most so many bytes, unpacked, and within their time; raises CheckpointError."""
        data, began = bytearray(), time.monotonic()
        for piece in response.iter_bytes():
            data += piece
            if len(data) > most:
                raise CheckpointError(
                    f"{self.endpoint} answers more about {shown(what)} than the {most:,} bytes that are read"
                )
            if time.monotonic() - began > (longest := LIMITS.arrival(len(data))):
                raise self.too_slow(what, longest)
        return bytes(data)

    def too_slow(self, what: str, seconds: float) -> CheckpointError:
        """What is said of an answer that comes in drops."""
        return CheckpointError(
            f"{self.endpoint} answers so slowly about {shown(what)} that it was given up after {seconds:.0f} s; "
            "try again later"
        )

    @contextlib.contextmanager
    def sensible(self, what: str) -> Iterator[None]:
        """Answers that are no JSON, or lack what they must have, are no Hub's: the client raises whatever comes."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CheckpointError(
                f"{self.endpoint} gave no answer that makes sense about {shown(what)}: is HF_ENDPOINT a Hub?"
            ) from None

    def asked(self, ask: Callable[[], Answer], what: str) -> Answer:
        """The answer to a request about `what`; raises CheckpointError."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        failures, waited = 0, 0.0
        while True:
            self._wait_turn()
            try:
                return ask()
            except OfflineModeIsEnabled:
                raise CheckpointError(
                    f"{shown(what)} was not asked for: HF_HUB_OFFLINE is set; unset it, or import what the cache has"
                ) from None
            except HFValidationError:
                raise CheckpointError(f"{shown(what)} is no name of a model: write hf:ORG/NAME") from None
            except HfHubHTTPError as error:
                status = error.response.status_code
                if status == 429 and waited < LONGEST_WAIT:
                    waited += self._hold(error.response.headers, waited)
                    continue
                failures += 1
                if (status < 500 and status != 408) or failures >= TRIES:
                    raise self._refused(error, what) from None
            except httpx2.HTTPError as error:
                failures += 1
                if failures >= TRIES - isinstance(error, httpx2.TimeoutException):
                    raise self.unreachable(error, what) from None
            except httpx2.InvalidURL:
                raise CheckpointError(
                    f"HF_ENDPOINT is no address that can be asked: {shown(self.endpoint)}"
                ) from None
            time.sleep(0.25 * 2**failures)

    def _wait_turn(self) -> None:
        while (left := self.gate.opens_at - time.monotonic()) > 0:
            if self.stopped.is_set():
                raise CheckpointError("interrupted")
            self.tell(f"the Hub asks for a pause of {left:.0f} s", 0, 0)
            time.sleep(min(left, 1.0))

    def _hold(self, headers: Any, waited: float) -> float:
        """Make everybody wait as the headers of a 429 say; the seconds."""
        from huggingface_hub.utils import parse_ratelimit_headers

        limit = None
        with contextlib.suppress(ValueError):  # thousands of digits
            limit = parse_ratelimit_headers(headers)
        after = whole_number(headers.get("Retry-After"))
        if limit is not None and limit.remaining == 0:
            seconds = float(min(limit.reset_in_seconds, int(LONGEST_WAIT)))
        elif after is not None:
            seconds = float(after)
        else:
            seconds = min(30.0, max(1.0, waited))
        seconds = min(max(seconds, 0.1), LONGEST_WAIT)
        self.gate.hold(seconds)
        return seconds

    def _refused(self, error: Any, what: str) -> CheckpointError:
        from huggingface_hub.errors import (
            DisabledRepoError,
            GatedRepoError,
            RemoteEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        status = error.response.status_code
        account = (
            "with the account you are logged in to" if self.api.token or _token() else "without logging in"
        )
        if isinstance(error, GatedRepoError):
            return CheckpointError(
                f"{shown(what.partition('@')[0])} is gated and cannot be read {account}: accept its terms on its page at "
                f"{self.endpoint}, then log in (`hf auth login`, or HF_TOKEN)"
            )
        if isinstance(error, DisabledRepoError):
            return CheckpointError(f"{shown(what)} was disabled by the Hub; nobody can read it")
        if isinstance(error, RevisionNotFoundError):
            return CheckpointError(
                f"{shown(what)}: the model is there, this revision is not; leave it out for the newest"
            )
        if isinstance(error, RemoteEntryNotFoundError):
            return CheckpointError(f"{shown(what)} is not there any more; import the model again")
        if isinstance(error, RepositoryNotFoundError):
            return CheckpointError(
                f"{shown(what)} is not on the Hub, or is private and cannot be read {account}: check the name, "
                "or log in (`hf auth login`, or HF_TOKEN)"
            )
        if status == 401:
            return CheckpointError(
                f"{self.endpoint} does not accept your token: log in again (`hf auth login`)"
            )
        if status == 403:
            return CheckpointError(
                f"{self.endpoint} refuses {shown(what)} {account} (403): the token may lack the right to read it, or "
                "a proxy stands between"
            )
        if status == 429:
            return CheckpointError(
                f"{self.endpoint} still refuses more requests after a long wait; go on later"
            )
        return CheckpointError(f"{self.endpoint} answers {status} about {shown(what)}; try again later")

    def unreachable(self, error: Exception, what: str) -> CheckpointError:
        """A connection that failed, as an error that tells of what."""
        import httpx2

        if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
            return CheckpointError(
                f"{self.endpoint} stopped answering about {shown(what)} (waited {self.timeout:g} s); try again later"
            )
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return CheckpointError(
                f"{self.endpoint} cannot be reached for {shown(what)}: is there a network, is HF_ENDPOINT right?"
            )
        return CheckpointError(f"the connection to {self.endpoint} broke again and again over {shown(what)}")


def repo_of(info: "ModelInfo") -> Repo | None:
    """An answer of the Hub as a Repo; None where it names no commit, or nothing that can name a folder."""
    if not info.sha or not _COMMIT.fullmatch(info.sha) or not _NAME.fullmatch(info.id):
        return None
    gguf = info.gguf if isinstance(info.gguf, dict) else {}
    total = info.safetensors.total if info.safetensors else gguf.get("total")
    return Repo(
        name=info.id,
        commit=info.sha,
        files=tuple(s.rfilename for s in info.siblings or () if isinstance(s.rfilename, str)),
        tags=tuple(tag for tag in info.tags or () if isinstance(tag, str)),
        gated=bool(info.gated),
        created_at=info.created_at,
        parameters=total if isinstance(total, int) and 0 < total < 2**53 else None,
        architecture=label(gguf.get("architecture"), []),
        children=info.children_model_count if isinstance(info.children_model_count, int) else None,
    )


def refuse_failed(response: Any) -> None:
    """Raise the client's own error for an answer that is one; what its headers say is enough, its body may have no end."""
    from huggingface_hub.utils import hf_raise_for_status

    if response.status_code >= 400:
        response.close()
    hf_raise_for_status(response)


def whole_number(header: str | None) -> int | None:
    """What a header tells as a number of at most 18 digits; None for anything else."""
    return int(header) if header and _NUMBER.fullmatch(header) else None


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()
