"""One file of a commit on the Hub, read in ranges: its page asked once, then the storage it redirects to."""

import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

from kinbase.checkpoint.files import shown
from kinbase.checkpoint.limits import LIMITS
from kinbase.errors import CheckpointError
from kinbase.importers.hub.client import REDIRECTS, TRIES, Hub, Repo, refuse_failed, whole_number
from kinbase.importers.ranges import Piece


class HubFile:
    """One file of a commit, read in ranges: `piece` is what RangedFile takes, `chunks` what a download takes.

    The storage that the Hub redirects to is asked directly from then on, without the account's token.
    """

    def __init__(self, hub: Hub, repo: Repo, name: str) -> None:
        from huggingface_hub import hf_hub_url

        self.hub, self.repo, self.name = hub, repo, name
        self.path = f"hf:{repo.name}@{repo.commit}/{name}"
        self._page = hf_hub_url(repo.name, name, revision=repo.commit, endpoint=hub.endpoint)
        self._storage: str | None = None
        self._identity: str | None = None  # as the Hub tells it
        self._stored: str | None = None  # as the storage tells it

    def piece(self, start: int, stop: int) -> Piece:
        """The bytes from `start` to `stop`, fewer where the file ends before; raises CheckpointError."""
        told: list[tuple[int, str]] = []
        data = b"".join(self.chunks(start, stop, told.append))
        length, identity = told[-1]
        if len(data) < min(stop, length) - start:
            raise CheckpointError(
                f"{self.hub.endpoint} sent {len(data)} of {min(stop, length) - start} bytes of {shown(self.path)}; "
                "try again later"
            )
        return Piece(data, length, identity)

    def chunks(
        self, start: int, stop: int, told: Callable[[tuple[int, str]], None] = lambda about: None
    ) -> Iterator[bytes]:
        """The bytes from `start` to `stop` as they come; a cut connection goes on where it was cut.

        `told` is given the length and identity of the whole file with every answer. Raises CheckpointError.
        """
        import httpx2

        failures, spent, first = 0, 0.0, start
        while True:
            with self.hub.sensible(self.path):
                response = self.hub.asked(lambda begin=start: self._answer(begin, stop), self.path)  # type: ignore[misc]
            began = time.monotonic()
            try:
                told(self._about(response, start, stop))
                if response.status_code == 416:
                    return  # nothing is there; what comes is the server's words on it
                for data in response.iter_raw():
                    if start >= stop:
                        return  # more than was asked for
                    if spent + time.monotonic() - began > (longest := LIMITS.arrival(start - first)):
                        raise self.hub.too_slow(self.path, longest)
                    data = data[: stop - start]
                    if data:
                        start, failures = start + len(data), 0
                        yield data
                return  # an answer that was read to its end leaves its connection to the next request
            except httpx2.HTTPError as error:
                failures += 1
                if failures >= TRIES - isinstance(error, httpx2.TimeoutException):
                    raise self.hub.unreachable(error, self.path) from None
            finally:
                response.close()
            spent += time.monotonic() - began
            time.sleep(0.25 * 2**failures)

    def _answer(self, start: int, stop: int) -> Any:
        """An open response with the file's bytes from `start` on: the storage's, or the Hub's."""
        from huggingface_hub.utils import build_hf_headers, get_session

        asked = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        client = get_session()
        account = build_hf_headers(library_name="kinbase") | asked
        anonymous = {key: value for key, value in account.items() if key.lower() != "authorization"}
        url, ours = (self._storage, False) if self._storage else (self._page, True)
        refused = False
        for _ in range(REDIRECTS):
            request = client.build_request(
                "GET", url, headers=account if ours else anonymous, timeout=self.hub.timeout
            )
            response = client.send(request, stream=True, follow_redirects=False)
            if response.status_code == 416:
                return response
            if self._storage and url == self._storage and response.status_code in (401, 403, 404, 410):
                response.close()
                if refused:
                    raise CheckpointError(
                        f"{urlsplit(url).hostname}, where {self.hub.endpoint} keeps {shown(self.path)}, refuses it "
                        f"({response.status_code}): look whether a proxy or firewall lets it through; log in again "
                        "(`hf auth login`) if the model is gated"
                    )
                # The address is good for an hour or so; another is asked for once.
                refused = True
                self._storage, (url, ours) = None, (self._page, True)
                continue
            if not response.has_redirect_location:
                refuse_failed(response)
                return response
            if ours:
                self._identify(_etag(response.headers.get("X-Linked-Etag")))
            target = urljoin(url, response.headers["Location"])
            ours = ours and urlsplit(target)[:2] == urlsplit(self.hub.endpoint)[:2]
            if not ours:
                self._storage = target
            response.close()  # its body may have no end
            url = target
        raise CheckpointError(
            f"{self.hub.endpoint} redirects {shown(self.path)} in a circle; try again later"
        )

    def _identify(self, etag: str | None) -> None:
        if etag is not None:
            if self._identity not in (None, etag):
                raise CheckpointError(f"{shown(self.path)} changed while it was read; import it again")
            self._identity = etag

    def _about(self, response: Any, start: int, stop: int) -> tuple[int, str]:
        """Length and identity of the whole file, from one answer."""
        told = response.headers.get("Content-Range", "")
        length = told.rpartition("/")[2]
        if response.status_code == 200:
            length = response.headers.get("Content-Length", "")
            if start > 0 or whole_number(length) is None or int(length) > stop:
                raise CheckpointError(
                    f"{self.hub.endpoint} sends no part of {shown(self.path)}, only the whole; import it without "
                    "--sample and --stream"
                )
        if response.status_code == 206 and not told.startswith(f"bytes {start}-"):
            raise CheckpointError(
                f"{self.hub.endpoint} sends another part of {shown(self.path)} than was asked for; try again later"
            )
        if whole_number(length) is None:
            raise CheckpointError(
                f"{self.hub.endpoint} does not say how long {shown(self.path)} is; try again later"
            )
        etag = _etag(response.headers.get("ETag"))
        if self._storage is None:
            self._identify(etag)
        elif etag is not None:
            if self._stored not in (None, etag):
                raise CheckpointError(f"{shown(self.path)} changed while it was read; import it again")
            self._stored = etag
        return int(length), self._identity or self._stored or ""


def _etag(header: str | None) -> str | None:
    return header.removeprefix("W/").strip('"') if header else None
