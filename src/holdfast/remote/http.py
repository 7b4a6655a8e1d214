"""HTTP as the rest of this room uses it: one client, bodies with a limit, and answers turned into errors.

What is promised: nothing is sent to any address but the server's own (redirects are not followed, no proxy is taken
from the environment); what a server says is shown only as far as it can be printed.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2
import msgspec

from holdfast import __version__
from holdfast.errors import (
    ConditionFailed,
    ContentError,
    Contradiction,
    Forbidden,
    HoldfastError,
    NoContent,
    NotLoggedIn,
    OutOfRange,
    QuotaFull,
    StorageError,
    StorageFull,
    StorageUnavailable,
    TooLarge,
    WrongContent,
)

ANSWER_MOST = 4 << 20  # bytes of an answer that is held in memory
_SAID_MOST = 300
_CONNECT_S, _SILENCE_S = 15.0, 600.0  # a server may need minutes to check the hash of a file that has just come whole
_KINDS: Mapping[int, type[HoldfastError]] = {
    401: NotLoggedIn, 403: Forbidden, 404: NoContent, 409: Contradiction, 412: ConditionFailed, 413: TooLarge,
    416: OutOfRange, 422: WrongContent,
}  # fmt: skip
_PASSING = frozenset({429, 502, 503, 504})


class Again(StorageUnavailable):
    """The server cannot do it now. ``after``: seconds it asks to wait, 0 if it does not say."""

    def __init__(self, sentence: str, hint: str = "", *, after: float = 0.0) -> None:
        super().__init__(sentence, hint)
        self.after = after


def make_client(url: str) -> httpx2.Client:
    """A client of one server. Whoever asked for it closes it."""
    return httpx2.Client(
        base_url=url, verify=ssl.create_default_context(), trust_env=False, follow_redirects=False,
        headers={"User-Agent": f"holdfast/{__version__}", "Accept-Encoding": "identity"},
        timeout=httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S),
    )  # fmt: skip


def body_of(answer: httpx2.Response, most: int = ANSWER_MOST) -> bytes:
    """The whole body of a streamed answer. StorageError when it has more than ``most`` bytes."""
    return b"".join(pieces_of(answer, most))


def pieces_of(answer: httpx2.Response, most: int) -> Iterator[bytes]:
    """The body as it comes, never more of it than ``most`` bytes."""
    total = 0
    for piece in answer.iter_raw():
        total += len(piece)
        if total > most:
            raise StorageError("The server answers with more than was asked for.")
        yield piece


def said(text: object) -> str:
    """What a server said, as far as it can be shown to a person."""
    shown = "".join(c if c.isprintable() else "?" for c in str(text))
    return shown[:_SAID_MOST].rstrip(". ")


def unreachable(url: str, error: httpx2.TransportError) -> Again:
    """The error for a connection that could not be made, or broke."""
    reason = said(error) or type(error).__name__
    return Again(f"The server {url.rstrip('/')} cannot be reached: {reason}.", "Is it running, and the address right?")


def error_of(answer: httpx2.Response, body: bytes) -> HoldfastError:
    """The error that an answer stands for; ``Again`` where the same request may succeed later."""
    status, told = answer.status_code, _problem(body)
    sentence, hint = said(told.get("detail") or told.get("description") or ""), said(told.get("hint", ""))
    sentence = f"The server says: {sentence}." if sentence else f"The server answers {status}."
    if status in _PASSING:
        return Again(sentence, hint, after=_retry_after(answer))
    if status == NotLoggedIn.http_status:
        return NotLoggedIn("The server does not accept the log-in.", "Run `holdfast login` again.")
    if status == StorageFull.http_status:
        return (QuotaFull if told.get("code") == QuotaFull.code else StorageFull)(sentence, hint)
    if kind := _KINDS.get(status):
        return kind(sentence, hint)
    if 300 <= status < 400:
        return StorageError("The server leads to another address.", "Give the address it really has.")
    return StorageError(sentence, hint) if status >= 500 else ContentError(sentence, hint)


def _problem(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _retry_after(answer: httpx2.Response) -> float:
    """Seconds; the other form, a date, is left to our own patience."""
    text = answer.headers.get("retry-after", "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 0.0
