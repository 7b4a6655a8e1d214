"""A storage in a container of OpenStack Swift (or of another server that speaks its protocol).

Addresses are ``swift://CONTAINER/PREFIX`` and, as restic writes them, ``swift:CONTAINER:/PREFIX``. Objects lie below
the prefix as in a folder: ``data/ab/abcd…``. Who we are stands in the usual variables: see ``swift_login``.

What Swift promises, and what it does not:

- A put is acknowledged when most replicas have flushed it, and whole: the server compares the body with the MD5 that is
  sent along. What was damaged on its way is refused, and is StorageUnavailable here.
- ``If-None-Match: *`` is looked at before the body comes, by each object server for itself: of several who put one name
  at the same moment all may succeed, and the last one stays. A name that is there already is never replaced.
- The listing of a container is written behind its objects. On one node it is right at once; in a cluster a new object
  may be missing in it, and a deleted one still be listed: for a moment as a rule, for hours when something is down.
- A token that has ended is renewed once for a request; a second refusal is StorageDenied.

Redirections are not followed: they would show the token to somebody else.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from typing import Any, TypeVar

import requests
import swiftclient.client as client
import urllib3.exceptions
from swiftclient.exceptions import ClientException

from holdfast.errors import (
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
    UsageError,
)
from holdfast.storage.base import Buffer, ObjectInfo, check_folder, check_name, check_range
from holdfast.storage.layout import name_of, path_of
from holdfast.storage.select import Access
from holdfast.storage.swift_login import CONNECT_SECONDS, NONSENSE, Login, ca_file, login, may_pass, shown, unsafe

T = TypeVar("T")

logging.getLogger("swiftclient").setLevel(logging.WARNING)  # else every request, with the beginning of its token

_ANSWER_SECONDS = 75.0  # a proxy of Swift gives its own servers 60
_PIECE = 256 << 10
_LONGEST = 1024  # bytes of a name in a container
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_LOST = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError)


def open_at(address: str, access: Access) -> SwiftStorage:
    """The storage at an address, with the credentials among the variables; a UsageError where either makes no sense."""
    container, prefix = _container_and_prefix(address)
    return SwiftStorage(container, prefix, login(access), access)


def _container_and_prefix(address: str) -> tuple[str, str]:
    rest = address.removeprefix("swift:")
    if rest.startswith("//"):
        container, _, prefix = rest[2:].partition("/")
        fits = ":" not in container
    else:
        container, colon, prefix = rest.partition(":")
        fits = not colon or prefix.startswith("/")
    prefix = prefix.strip("/")
    steps = prefix.split("/") if prefix else []
    wrong = any(step in ("", ".", "..") for step in (container, *steps)) or "/" in container
    try:
        long = len(container.encode()) > 256 or len(prefix.encode()) > _LONGEST - 100
    except UnicodeEncodeError:
        wrong = long = True
    if wrong or long or not fits or not (container + prefix).isprintable():
        raise UsageError(
            "The address of a container is not written like that.",
            "Write swift://CONTAINER/PREFIX or swift:CONTAINER:/PREFIX; user and password stand in variables (OS_…).",
        )
    return container, prefix


# -- the storage -----------------------------------------------------------------------------------------------------


class SwiftStorage:
    """See the module. Nothing is asked of the network before the first call."""

    lists_late = True

    def __init__(self, container: str, prefix: str, login: Login, access: Access) -> None:
        self._container, self._login = container, login
        self._prefix = f"{prefix}/" if prefix else ""
        self._policy = access.get("HOLDFAST_SWIFT_POLICY")
        self._at_once = access.connections
        self._connections = _Connections(access.connections, ca_file(access))

    @property
    def place(self) -> str:
        return f"swift://{self._container}/{self._prefix}".rstrip("/")

    @property
    def connections(self) -> int:
        return self._at_once

    def create(self) -> None:
        """Make the container, of the storage policy that HOLDFAST_SWIFT_POLICY names; one that is there is kept."""
        with self._errors(self._container):
            if self._container_headers() is not None:
                return
            headers = {"X-Storage-Policy": self._policy} if self._policy else {}
            answer: dict[str, Any] = {}
            try:
                self._ask(
                    lambda at: client.put_container(
                        **at, container=self._container, headers=headers, response_dict=answer
                    )
                )
            except ClientException as e:
                if e.http_status == 400 and self._policy:
                    raise StorageError(
                        f"There is no storage policy {self._policy!r} at {self._connections.host}.",
                        "Check HOLDFAST_SWIFT_POLICY.",
                    ) from None
                if e.http_status != 409:  # somebody else has just made it, of another policy
                    raise
            if answer["status"] not in (201, 202, 409):
                raise self._nonsense()

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        path = self._path(name)
        with self._errors(name):
            there = self._head(name) is not None
            if not there:
                status = self._send(path, [memoryview(part).cast("B") for part in parts])
                there = status in (412, 202)  # 202: somebody's put of this name, at the same moment, has a later time
                if not there and status != 201:
                    raise self._nonsense()
        if there:
            raise ObjectExists(f"{name} is in {self.place} already.")

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        path = self._path(name)
        check_range(start, length)
        if length == 0:
            self._check_end(name, start)
            return b""
        whole = start == 0 and length is None
        asked = {} if whole else {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"}
        answer: dict[str, Any] = {}
        with self._errors(name):
            try:
                headers, data = self._ask(
                    lambda at: client.get_object(
                        **at, container=self._container, name=path, headers=asked, response_dict=answer
                    )
                )
            except ClientException as e:
                if e.http_status == 404:
                    raise self._missing(name) from None
                if e.http_status != 416:
                    raise
                headers, data = {}, b""
        if answer["status"] == 416 and length is None:
            self._check_end(name, start)
            return b""
        if answer["status"] == 416:
            self._check_end(name, start, length or 0)
            raise StorageUnavailable(f"{self._connections.host} has just grown {name}.")
        return self._verified(name, start, length, answer["status"], headers, data)

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        top = f"{self._prefix}{check_folder(folder)}/"
        marker = ""
        while page := self._page(top, marker):
            for entry in page:
                with self._errors(self._container):
                    name, size, when = str(entry["name"]), int(entry["bytes"]), str(entry["last_modified"])
                    if name <= marker or not name.startswith(top):
                        raise ValueError
                    marker = name
                    found = name_of(name.removeprefix(self._prefix), folder)
                    info = ObjectInfo(found, size, _listed_ns(when)) if found else None
                if info is not None:
                    yield info

    def stat(self, name: str) -> ObjectInfo:
        with self._errors(name):
            found = self._head(name)
            if found is None:
                raise self._missing(name)
        return found

    def delete(self, name: str) -> None:
        path = self._path(name)
        answer: dict[str, Any] = {}
        with self._errors(name):
            try:
                self._ask(
                    lambda at: client.delete_object(**at, container=self._container, name=path, response_dict=answer)
                )
            except ClientException as e:
                if e.http_status != 404:
                    raise
                self._missing(name)
                return
            if answer["status"] != 204:
                raise self._nonsense()

    def free_space(self) -> int | None:
        """What the quotas of the container and of the account leave, as far as we may see them."""
        with self._errors(self._container):
            headers = self._container_headers()
            if headers is None:
                raise self._no_container()
            left = [_quota_left(headers, "container")]
            with contextlib.suppress(ClientException):
                left.append(_quota_left(self._ask(lambda at: client.head_account(**at)), "account"))
        return min((n for n in left if n is not None), default=None)

    def close(self) -> None:
        self._connections.close()
        self._login.close()

    # -- names and what is there -----------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return self._prefix + path_of(check_name(name))

    def _head(self, name: str) -> ObjectInfo | None:
        path = self._path(name)
        try:
            headers = self._ask(lambda at: client.head_object(**at, container=self._container, name=path))
        except ClientException as e:
            if e.http_status != 404:
                raise
            return None
        return ObjectInfo(name, int(headers["content-length"]), _stamped_ns(headers["x-timestamp"]))

    def _container_headers(self) -> Mapping[str, str] | None:
        try:
            headers: dict[str, str] = self._ask(lambda at: client.head_container(**at, container=self._container))
        except ClientException as e:
            if e.http_status != 404:
                raise
            return None
        if "x-container-object-count" not in headers:
            raise self._nonsense()
        return headers

    def _missing(self, name: str) -> ObjectMissing:
        """Only in a container that is there can an object be missing."""
        if self._container_headers() is None:
            raise self._no_container()
        return ObjectMissing(f"{name} is not in {self.place}.")

    def _check_end(self, name: str, start: int, length: int = 0) -> None:
        if start + length > (size := self.stat(name).size):
            raise StorageError(f"{name} in {self.place} ends at byte {size}: it is truncated.")

    def _verified(
        self, name: str, start: int, length: int | None, status: int, headers: Mapping[str, str], data: bytes
    ) -> bytes:
        """What came, if it is what was asked for. A server may answer with the whole object."""
        with self._errors(name):
            if status == 206:
                first, size = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers["content-range"]).groups()  # type: ignore[union-attr]
                begin, total = int(first), int(size)
            else:
                begin, total, etag = 0, len(data), headers["etag"].strip('"')
                if status != 200 or not headers["x-timestamp"]:
                    raise self._nonsense()
                if re.fullmatch("[0-9a-f]{32}", etag) and etag != _md5([memoryview(data)]):
                    raise StorageUnavailable(f"{name} was damaged on its way from {self._connections.host}.")
        end = total if length is None else start + length
        if max(start, end) > total:
            raise StorageError(f"{name} in {self.place} ends at byte {total}: it is truncated.")
        part = data[start - begin : end - begin] if begin <= start else b""
        if len(part) != end - start:
            raise StorageUnavailable(f"{self._connections.host} sent less of {name} than was asked for.")
        return part

    def _page(self, top: str, marker: str) -> Sequence[dict[str, Any]]:
        """The next names of a listing, as many as the server gives at once; none behind the last."""
        with self._errors(self._container):
            try:
                headers, page = self._ask(
                    lambda at: client.get_container(**at, container=self._container, prefix=top, marker=marker)
                )
            except ClientException as e:
                if e.http_status == 404:
                    raise self._no_container() from None
                raise
            if "x-container-object-count" not in headers or not isinstance(page, list):
                raise self._nonsense()
            return page

    # -- asking ----------------------------------------------------------------------------------------------------

    def _send(self, path: str, views: Sequence[memoryview]) -> int:
        """Put the views' bytes; the status that is the answer."""
        size, digest = sum(len(view) for view in views), _md5(views)
        answer: dict[str, Any] = {}
        try:
            self._ask(
                lambda at: client.put_object(
                    **at,
                    container=self._container,
                    name=path,
                    contents=_Pieces(views) if size else b"",
                    content_length=size,
                    etag=digest,
                    content_type="application/octet-stream",
                    headers={"If-None-Match": "*"},
                    response_dict=answer,
                )
            )
        except ClientException as e:
            if e.http_status == 404:
                raise self._no_container() from None
            if e.http_status != 412:
                raise
        status: int = answer["status"]
        return status

    def _ask(self, request: Callable[[dict[str, Any]], T]) -> T:
        """One request, as who we are; once more with another token where this one has ended."""
        for last in (False, True):
            url, token = self._login.account()
            try:
                with self._connections.one(url) as connection:
                    return request({"url": url, "token": token, "http_conn": connection})
            except ClientException as e:
                if e.http_status != 401:
                    raise
            if last or not self._login.renew(token):
                break
        raise self._login.denied()

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except ClientException as e:
            raise self._meaning(what, e.http_status) from None
        except requests.exceptions.SSLError as e:
            raise unsafe(self._connections.host, e) from None
        except NONSENSE:  # before the next: what is no URL for requests is both
            raise self._nonsense() from None
        except _LOST:
            raise StorageUnavailable(
                f"{self._connections.host} cannot be reached, or broke off.", "Is it running, and the address right?"
            ) from None

    def _meaning(self, what: str, status: int | None) -> StorageError:
        host = self._connections.host
        if status == 403:
            return StorageDenied(
                f"{host} does not allow this for {what}.", "Check the role of the user in the project."
            )
        if status in (413, 507):
            return StorageFull(f"{host} has no room for {what}.", "Raise the quota, or forget and prune old snapshots.")
        if status == 422:
            return StorageUnavailable(f"{what} was damaged on its way to {host}.")
        if status == 404:
            return self._no_container()
        if status is not None and may_pass(status):
            return StorageUnavailable(f"{host} answers {status} for {what}.")
        return self._nonsense()

    def _no_container(self) -> StorageError:
        return StorageError(
            f"There is no container {self._container!r} at {self._connections.host}.",
            "Check its name and the project; `holdfast init` makes it.",
        )

    def _nonsense(self) -> StorageError:
        return StorageError(
            f"{self._connections.host} does not speak Swift.",
            "Check OS_STORAGE_URL, or the address that the catalog has: something else is there.",
        )


class _Connections:
    """So many connections and no more, each used by one thread at a time and kept open for the next."""

    def __init__(self, most: int, ca_file: str) -> None:
        self.host = "The Swift server"  # as far as is known
        self._ca_file = ca_file
        self._free: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(max(1, most)):
            self._free.put(None)

    @contextlib.contextmanager
    def one(self, url: str) -> Iterator[tuple[Any, Any]]:
        connection, answered = self._free.get(), False
        try:
            connection = connection or self._new(url)
            yield connection.parsed_url, connection
            answered = True
        except ClientException:  # an answer too, read to its end
            answered = True
            raise
        finally:
            if connection is not None:
                if not answered:
                    connection.close()
                connection.resp = None  # it would keep the body that was sent, and later the socket
            self._free.put(connection if answered else None)

    def close(self) -> None:
        """Close those that nobody uses just now."""
        idle = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._free.get_nowait())
        for connection in idle:
            if connection is not None:
                connection.close()
            self._free.put(None)

    def _new(self, url: str) -> Any:
        self.host = shown(url)
        connection = client.HTTPConnection(
            url, cacert=self._ca_file or None, timeout=(CONNECT_SECONDS, _ANSWER_SECONDS)
        )
        connection.requests_args["allow_redirects"] = False
        connection.request_session.trust_env = False
        return connection


class _Pieces:
    """The bytes of some buffers, to be read once and not copied, but for the small ones.

    A piece is as large as it is good for, whatever is asked for: nobody here has a buffer that it must fit into. It is
    small enough to be sent within a time-out, which is for a whole piece.
    """

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._pieces = _pieces(views)

    def read(self, size: int = -1) -> Buffer:
        return next(self._pieces, b"")


def _pieces(views: Sequence[memoryview]) -> Iterator[Buffer]:
    small = bytearray()
    for view in views:
        if len(view) < _PIECE // 16:
            small += view
        if small and (len(view) >= _PIECE // 16 or len(small) >= _PIECE):
            yield bytes(small)
            small.clear()
        if len(view) >= _PIECE // 16:
            for start in range(0, len(view), _PIECE):
                yield view[start : start + _PIECE]
    if small:
        yield bytes(small)


def _md5(views: Sequence[memoryview]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for view in views:
        digest.update(view)
    return digest.hexdigest()


def _stamped_ns(stamp: str) -> int:
    """``1700000000.12345`` in ns, to whole milliseconds: there are servers whose listings have no more digits."""
    seconds, _, digits = stamp.partition(".")
    return (int(seconds) * 1000 + int(digits[:3].ljust(3, "0"))) * 1_000_000


def _listed_ns(when: str) -> int:
    """``2023-11-14T22:13:20.123450`` the same."""
    moment = datetime.fromisoformat(when)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MILLISECOND * 1_000_000


def _quota_left(headers: Mapping[str, str], of: str) -> int | None:
    quota = headers.get(f"x-{of}-meta-quota-bytes", "")
    return max(0, int(quota) - int(headers[f"x-{of}-bytes-used"])) if quota.isdecimal() else None
