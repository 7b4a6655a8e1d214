"""One server, spoken to with patience: a request that fails in a way that may pass is made again, later each time.

Any thread may use it. ``stop`` ends everybody's waiting; what waits then, or asks from then on, is Stopped.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, TypeVar

import httpx2
import msgspec
import tenacity

from holdfast.errors import AccountError, HoldfastError, StorageError, StorageFull, StorageUnavailable
from holdfast.remote.credentials import Credentials
from holdfast.remote.http import ANSWER_MOST, Again, body_of, error_of, pieces_of, unreachable

TRIES = 10  # without getting any further; with the pauses between them about a minute
FEW_TRIES = 3  # when nothing was ever heard from the server: somebody sits there and waits
_SHORTEST_S, _LONGEST_S, _ASKED_MOST_S = 0.25, 20.0, 300.0

T = TypeVar("T")
Body = bytes | Callable[[], Iterator[bytes]]


class Stopped(StorageUnavailable):
    """Somebody else has ended the work."""


class Answer(msgspec.Struct, frozen=True):
    """A whole answer. ``headers`` are asked for in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body, which must be a JSON object."""
        try:
            found = msgspec.json.decode(self.body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            found = None
        if not isinstance(found, dict):
            raise StorageError("The server does not answer as a Holdfast server does.", "Is the address right?")
        return found


class Server:
    """See the module. ``url``: its address; ``close`` it, or use it as a context."""

    def __init__(self, url: str, http: httpx2.Client, credentials: Credentials) -> None:
        self.url, self._http, self._credentials = url, http, credentials
        self._stop = threading.Event()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def stop(self) -> None:
        self._stop.set()

    def demand_running(self) -> None:
        """Stopped when somebody has ended the work."""
        if self._stop.is_set():
            raise Stopped("It was stopped.")

    def who(self) -> dict[str, Any]:
        """The account one is known as; soon, or not at all."""
        return self.patiently(lambda: self.once("GET", "accounts/me"), tries=FEW_TRIES).json()

    def once(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        params: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request and its whole answer. ``Again`` when it may succeed later, else the error it stands for."""
        with self.answering(method, path, headers, body, params) as answer:
            return Answer(answer.status_code, answer.headers, b"" if method == "HEAD" else body_of(answer))

    @contextlib.contextmanager
    def answering(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        params: Mapping[str, str] | None = None,
    ) -> Iterator[httpx2.Response]:
        """The same with the answer's body still to come."""
        self.demand_running()
        token = self._credentials.token()
        shown = {**(headers or {}), "Authorization": f"Bearer {token}"}
        content = body if isinstance(body, bytes) else body()
        try:
            with self._http.stream(method, path, headers=shown, content=content, params=params) as answer:
                self._demand_good(answer, token)
                yield answer
        except httpx2.TransportError as e:
            raise unreachable(self.url, e) from None

    def patiently(self, act: Callable[[], T], *, tries: int = TRIES, progress: Callable[[], int] = lambda: 0) -> T:
        """Do it until it does not raise ``Again``. Patience ends after so many tries since ``progress`` last moved."""
        since, seen = 0, progress()

        def in_vain(state: tenacity.RetryCallState) -> int:
            nonlocal since, seen
            if (now := progress()) != seen:
                since, seen = state.attempt_number - 1, now
            return state.attempt_number - since

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.after if isinstance(error, Again) else 0.0
            own = min(_SHORTEST_S * 2.0 ** (in_vain(state) - 1), _LONGEST_S)
            return min(max(asked, own), _ASKED_MOST_S)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Again), stop=lambda state: in_vain(state) >= tries,
            wait=pause, sleep=self._pause, reraise=True,
        )  # fmt: skip
        return retrying(act)

    def fetch_into(
        self, file: BinaryIO, path: str, most: int, params: Mapping[str, str] | None = None
    ) -> Mapping[str, str]:
        """A large answer into a file, from its beginning; the answer's headers."""

        def act() -> Mapping[str, str]:
            file.seek(0)
            file.truncate()
            with self.answering("GET", path, params=params) as answer:
                for piece in pieces_of(answer, most):
                    file.write(piece)
                return answer.headers

        found = self.patiently(act)
        file.seek(0)
        return found

    def _demand_good(self, answer: httpx2.Response, token: str) -> None:
        if answer.is_success:
            return
        if answer.status_code == 401 and self._credentials.renew(token):
            raise Again("The log-in had to be renewed.")
        raise error_of(answer, body_of(answer, ANSWER_MOST))

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped("It was stopped.")


def is_fatal(error: HoldfastError) -> bool:
    """Whether no other request to the server would fare better."""
    return isinstance(error, AccountError | StorageFull | StorageUnavailable)
