"""A REST server of restic's protocol: restic's own, rclone's, and Holdfast's vaults.

Addresses: ``rest:https://[USER:PASSWORD@]HOST[:PORT]/PATH`` for any such server, and ``https://HOST/NAME`` (or
``https://HOST/OWNER/NAME``) for a vault of a Holdfast server that one is logged in to. User and password may come from
HOLDFAST_REST_USERNAME and HOLDFAST_REST_PASSWORD, and certificates from HOLDFAST_CA_FILE.

Promises beyond the contract: nothing is sent to any address but the server's own (redirects are not followed, no proxy
is taken from the environment). Such a server tells no times of its objects, but for a vault: ``stored_ns`` is 0 then.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx2
import msgspec

from holdfast import __version__
from holdfast.errors import (
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
    UsageError,
)
from holdfast.storage.base import CONFIG, Buffer, ObjectInfo, check_folder, check_name, check_range, is_name
from holdfast.storage.select import Access, Login

_V2 = "application/vnd.x.restic.rest.v2"
_STORED = "x-stored-ns"  # a vault's answer to HEAD: when the object was stored
_CONNECT_S, _SILENCE_S = 15.0, 120.0
_LIST_MOST = 1 << 30  # bytes of a listing
_PIECE = 128 << 10
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_SPELLING = "It is written rest:https://HOST/PATH, or https://HOST/NAME for a vault."


class _Listed(msgspec.Struct):
    """One object of a listing. ``stored``: ns, from vaults only."""

    name: str
    size: int
    stored: int = 0


def open_at(address: str, access: Access) -> RestStorage:
    """The storage behind ``rest:http…``, or the vault behind ``https://…``."""
    if not address.startswith("rest:"):
        return _vault_at(address, access)
    try:
        parts = urlsplit(address.removeprefix("rest:"))
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or "@" in parts.path:
        raise UsageError("The address of a REST server is not understood.", _SPELLING)
    origin = parts.netloc.rpartition("@")[2]
    url = f"{parts.scheme}://{origin}{parts.path.rstrip('/')}/"
    user = unquote(parts.username or "") or access.get("HOLDFAST_REST_USERNAME")
    password = unquote(parts.password or "") or access.get("HOLDFAST_REST_PASSWORD")
    auth = httpx2.BasicAuth(user, password) if user else None
    return RestStorage(f"rest:{url}", _client(url, access, auth), access.connections)


def _vault_at(address: str, access: Access) -> RestStorage:
    """The vault NAME, or OWNER/NAME, of a server that one is logged in to."""
    found = access.login(address)
    if found is None:
        raise UsageError(
            f"You are not logged in to {_host_of(address)}.",
            "Run `holdfast login https://…` first; another program's REST server is written rest:https://…",
        )
    server, login = found
    names = [unquote(n) for n in address.removeprefix(server).strip("/").split("/")]
    if len(names) not in (1, 2) or not all(names):
        raise UsageError("The address names no vault.", f"It is written {server}/NAME, or {server}/OWNER/NAME.")
    url = f"{server}/vault/{'/'.join(quote(n, safe='') for n in names)}/"
    return RestStorage(f"{server}/{'/'.join(names)}", _client(url, access, _Bearer(login)), access.connections)


def _host_of(address: str) -> str:
    """The server of an address, without what must not be shown."""
    try:
        return urlsplit(address).hostname or "that server"
    except ValueError:
        return "that server"


def _client(url: str, access: Access, auth: httpx2.Auth | None) -> httpx2.Client:
    ca = access.get("HOLDFAST_CA_FILE", "SSL_CERT_FILE")
    try:
        trust = ssl.create_default_context(cafile=ca or None)
    except (OSError, ssl.SSLError):
        raise UsageError(f"The certificates in {ca} cannot be read.", "Check HOLDFAST_CA_FILE.") from None
    return httpx2.Client(
        base_url=url,
        auth=auth,
        verify=trust,
        trust_env=False,
        follow_redirects=False,
        headers={"User-Agent": f"holdfast/{__version__}", "Accept-Encoding": "identity", "Accept": _V2},
        timeout=httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S),
        limits=httpx2.Limits(max_connections=access.connections, max_keepalive_connections=access.connections),
    )


class _Bearer(httpx2.Auth):
    """The token of a log-in, renewed once when the server does not take it any more."""

    def __init__(self, login: Login) -> None:
        self._login = login

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        token = self._login.token()
        request.headers["Authorization"] = f"Bearer {token}"
        answer = yield request
        if answer.status_code == 401 and self._login.renew(token):
            request.headers["Authorization"] = f"Bearer {self._login.token()}"
            yield request


class _Body:
    """A request's body out of parts, which can be gone through a second time (with a renewed token)."""

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self._parts = [memoryview(p).cast("B") for p in parts]
        self.size = sum(len(p) for p in self._parts)

    def __iter__(self) -> Iterator[bytes]:
        # In pieces, each of which has to be taken in time: a whole pack may take a slow line many minutes.
        for part in self._parts:
            for at in range(0, len(part), _PIECE):
                yield part[at : at + _PIECE]  # type: ignore[misc]


class RestStorage:
    """See the module. ``place`` is what people see of it; the client's base ends with a slash."""

    lists_late = False

    def __init__(self, place: str, client: httpx2.Client, connections: int) -> None:
        self._place, self._client, self.connections = place, client, connections

    @property
    def place(self) -> str:
        return self._place

    def create(self) -> None:
        self._need(self._ask("POST", "", params={"create": "true"}), "")

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        check_name(name)
        if self._look(name) is not None:  # servers differ in what a second POST does
            raise self._exists(name)
        body = _Body(parts)
        answer = self._ask("POST", name, content=body, headers={"Content-Length": str(body.size)})
        if answer.status_code in (403, 409, 412) and self._look(name) is not None:
            raise self._exists(name)
        self._need(answer, name)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        check_range(start, length)
        if length is None and start == 0:
            answer = self._ask("GET", name)
            self._need(answer, name)
            return answer.content
        if not length:  # servers differ in what a range without an end, or without a byte, is
            size = self.stat(name).size
            if start > size:
                raise self._ends(name, start)
            length = size - start if length is None else 0
        return self._range(name, start, length) if length else b""

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        check_folder(folder)
        answer = self._ask("GET", f"{folder}/")
        if answer.status_code == 404:
            if self._look(CONFIG) is None:
                raise StorageUnavailable(f"{self._place} holds no repository.", "Is the address right?")
            return
        self._need(answer, "")
        yield from self._listed(folder, answer.content)

    def stat(self, name: str) -> ObjectInfo:
        found = self._look(check_name(name))
        if found is None:
            raise self._missing(name)
        return found

    def delete(self, name: str) -> None:
        answer = self._ask("DELETE", check_name(name))
        if answer.status_code != 404:
            self._need(answer, name)

    def free_space(self) -> int | None:
        return None

    def close(self) -> None:
        self._client.close()

    # -- answers ---------------------------------------------------------------------------------------------------

    def _look(self, name: str) -> ObjectInfo | None:
        """The object's size and time; None when it is not there."""
        answer = self._ask("HEAD", name)
        if answer.status_code == 404:
            return None
        self._need(answer, name)
        size = answer.headers.get("content-length", "")
        if not _is_number(size):
            raise StorageError(f"{self._place} does not tell the size of {name}: it is no REST server.", _SPELLING)
        stored = answer.headers.get(_STORED, "")
        return ObjectInfo(name, int(size), int(stored) if _is_number(stored) else 0)

    def _range(self, name: str, start: int, length: int) -> bytes:
        answer = self._ask("GET", name, headers={"Range": f"bytes={start}-{start + length - 1}"})
        if answer.status_code == 416:
            raise self._ends(name, start + length)
        self._need(answer, name)
        data = answer.content
        if answer.status_code == 200:  # the server knows no ranges, or the object is all that was asked for
            data = data[start : start + length]
        if len(data) != length:
            raise self._ends(name, start + length)
        return data

    def _listed(self, folder: str, body: bytes) -> Iterator[ObjectInfo]:
        try:
            listed = msgspec.json.decode(body or b"[]", type=list[_Listed | str] | None) or []
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise StorageError(f"{self._place} does not speak the REST server's protocol.", _SPELLING) from None
        names = [f"{folder}/{n}" for n in listed if isinstance(n, str)]
        with ThreadPoolExecutor(self.connections, thread_name_prefix="rest") as pool:  # version 1 tells no sizes
            for info in pool.map(self._look, filter(is_name, names)):
                if info is not None:  # deleted while we look
                    yield info
        for found in listed:
            if isinstance(found, _Listed) and is_name(name := f"{folder}/{found.name}") and found.size >= 0:
                yield ObjectInfo(name, found.size, found.stored)

    def _ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        try:
            with self._client.stream(method, path, **more) as answer:
                _read(answer)
                return answer
        except httpx2.TimeoutException:
            raise StorageUnavailable(
                f"{self._place} does not answer.", "Is it running, and the address right?"
            ) from None
        except httpx2.ConnectError as e:
            raise self._unreachable(e) from None
        except (httpx2.TransportError, httpx2.StreamError) as e:
            raise StorageUnavailable(f"The connection to {self._place} broke: {_said(e)}.") from None
        except httpx2.InvalidURL:
            raise StorageError(f"{self._place} is no address.", _SPELLING) from None

    def _unreachable(self, error: httpx2.ConnectError) -> StorageError:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return StorageDenied(
                f"The certificate of {self._place} is not accepted: {_said(cause.verify_message)}.",
                "Check the address, or name the certificate's authority in HOLDFAST_CA_FILE.",
            )
        if isinstance(cause, ssl.SSLError):
            return StorageError(f"{self._place} does not speak TLS.", "Is it http instead of https?")
        return StorageUnavailable(f"{self._place} cannot be reached: {_said(error)}.", "Is the address right?")

    def _need(self, answer: httpx2.Response, name: str) -> None:
        """Raise what an answer stands for when it is not good."""
        status, subject = answer.status_code, f"{self._place}: {name}" if name else self._place
        if 200 <= status < 300:
            return
        if status == 401:
            raise StorageDenied(f"{self._place} does not accept the user or the password.", _CREDENTIALS)
        if status in (403, 405):
            raise StorageDenied(
                f"{subject}: the server does not allow that{_reason(answer)}.", "Is it append-only, or somebody else's?"
            )
        if status == 404:
            raise self._missing(name) if name else self._no_repository()
        if status in (413, 507):
            raise StorageFull(f"{subject}: the server has no space left for it{_reason(answer)}.")
        if status in _PASSING:
            raise StorageUnavailable(f"{subject}: the server answers {status}{_reason(answer)}.")
        if 300 <= status < 400:
            raise StorageError(f"{self._place} leads to another address.", "Give the address it really has.")
        raise StorageError(f"{subject}: the server answers {status}{_reason(answer)}.", _SPELLING)

    def _missing(self, name: str) -> ObjectMissing:
        return ObjectMissing(f"{name} is not in {self._place}.")

    def _exists(self, name: str) -> ObjectExists:
        return ObjectExists(f"{name} is in {self._place} already.")

    def _ends(self, name: str, at: int) -> StorageError:
        return StorageError(f"{name} in {self._place} ends before byte {at}: it is truncated.")

    def _no_repository(self) -> StorageError:
        return StorageError(f"There is nothing at {self._place}.", "Check the address, or make a repository there.")


_CREDENTIALS = "Check HOLDFAST_REST_USERNAME and HOLDFAST_REST_PASSWORD, or run `holdfast login` again."


def _read(answer: httpx2.Response) -> None:
    """Read the body; an answer that was announced longer than it came is an error of httpx."""
    if _is_number(told := answer.headers.get("content-length", "")) and int(told) > _LIST_MOST:
        raise StorageError("The server answers with more than was asked for.")
    answer.read()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _said(error: object) -> str:
    """What a library or a server said, as far as it can be shown."""
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
    shown = "".join(c if c.isprintable() else " " for c in text).strip()
    return shown[:200].rstrip(". ") or type(error).__name__


def _reason(answer: httpx2.Response) -> str:
    """What the server said about it, where it is a sentence and not a page."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
        problem = msgspec.json.decode(answer.content)
        if isinstance(problem, dict) and isinstance(problem.get("detail"), str):
            return f": {_said(problem['detail'])}"
    text = answer.text if len(answer.content) < 200 else ""
    return f": {_said(text.strip())}" if text.strip() and "<" not in text else ""
