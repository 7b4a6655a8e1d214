"""A storage in a bucket of S3: Amazon's, or any server's that speaks it. ``s3_client`` says how addresses are written.

botocore carries the bytes and not obstore, which stands behind ``gs:`` and ``az:``: it tells a missing bucket from a
missing object, signs the headers of Object Lock, knows profiles with all they can hold, and can be kept from reading
the environment. It costs nothing: 50 objects of 20 MB to and from one server, one thread: 199 and 256 MB/s with 1.3 and
1.1 s of processor time; obstore: 222 and 228 MB/s with 1.0 and 1.7 s.

Promises beyond the contract:

- An object is sent in one request with the SHA-256 of its bytes in the signature: the server takes it whole, or not.
- ``put`` looks first, then asks for ``If-None-Match: *``. Servers that ignore that may let several of those win who put
  one name at the very same moment; who does not know it at all is not asked again.
- HOLDFAST_S3_STORAGE_CLASS is for objects below ``data/`` alone: nothing else may become slow to read.
- HOLDFAST_S3_LOCK_DAYS: see ``object_lock``.

Requests wait for each other where there are more than ``Access.connections`` at once.
"""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3.exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from holdfast.errors import ObjectExists, ObjectMissing, StorageDenied, StorageError, StorageUnavailable, UsageError
from holdfast.storage import s3_errors
from holdfast.storage.base import Buffer, ObjectInfo, check_folder, check_name, check_range
from holdfast.storage.body import Body
from holdfast.storage.layout import name_of, path_of
from holdfast.storage.object_lock import Lock, lock_of
from holdfast.storage.s3_client import S3Address, connect, parse
from holdfast.storage.select import Access

_SECOND_NS = 1_000_000_000
_PIECE = 1 << 20
_CLASS = re.compile(r"[A-Z0-9_-]{1,40}")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_NO_LOCKS = frozenset({"ObjectLockConfigurationNotFoundError", "InvalidRequest"})


def open_at(address: str, access: Access) -> S3Storage:
    """The storage at an address that begins with ``s3:``."""
    return S3Storage(parse(address, access), access)


class S3Storage:
    """See the module. Nothing is asked of anybody before the first call."""

    lists_late = False

    def __init__(self, address: S3Address, access: Access) -> None:
        self._address, self._access = address, access
        self._lock, self._class = lock_of(access), access.get("HOLDFAST_S3_STORAGE_CLASS")
        if self._class and not _CLASS.fullmatch(self._class):
            raise UsageError(f"HOLDFAST_S3_STORAGE_CLASS is {self._class!r}.", "Set it to a class as STANDARD_IA.")
        self._at_once = access.connections
        self._slots = threading.BoundedSemaphore(max(1, access.connections))
        self._connecting = threading.Lock()
        self._client: Any = None
        self._conditional = True  # whether the server knows If-None-Match, as far as is known

    @property
    def place(self) -> str:
        return self._address.place

    @property
    def connections(self) -> int:
        return self._at_once

    def create(self) -> None:
        """Make the bucket, with Object Lock when locks are asked for. One that is there must have it then."""
        at = self._address
        with self._asking(f"The bucket {at.bucket}") as client:
            if not self._has_bucket(client):
                self._make_bucket(client)
                return
        if self._lock.days:
            with self._asking(f"The bucket {at.bucket}", locking=True) as client:
                client.get_object_lock_configuration(Bucket=at.bucket)

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        key, thing = self._key(name), self._thing(name)
        info, server_time = self._look(name)
        if info is not None:
            raise ObjectExists(f"{thing} is there already.")
        body = Body(parts)
        more: dict[str, Any] = {"StorageClass": self._class} if self._class and name.startswith("data/") else {}
        if self._lock.holds(name):
            more |= _locked(self._lock, server_time, body, self._address)
        try:
            with self._asking(thing, locking="ObjectLockMode" in more) as client:
                answer = self._send(client, Bucket=self._address.bucket, Key=key, Body=body, **more)
        except _ThereIsOne as e:
            if e.for_sure or self._look(name)[0] is not None:
                raise ObjectExists(f"{thing} is there already.") from None
            raise StorageUnavailable(f"{thing}: somebody else changes it at this moment.", "Try again.") from None
        if not answer.get("ETag") or s3_errors.is_page(answer):
            raise s3_errors.no_s3(self._address)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        key, thing = self._key(name), self._thing(name)
        check_range(start, length)
        if length == 0:
            self._need_bytes(name, start)
            return b""
        end = None if length is None else start + length
        wanted = {} if not start and end is None else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        try:
            with self._asking(thing) as client:
                answer = client.get_object(Bucket=self._address.bucket, Key=key, **wanted)
                with contextlib.closing(answer["Body"]) as body:
                    self._need_s3(answer)
                    first, size = _extent(answer, start, thing)
                    data: bytes = body.read() if first <= start and (end or start) <= size else b""
        except _BeyondTheEnd:
            size = self._need_bytes(name, start if end is None else end)
            if size > start:
                raise StorageUnavailable(f"{thing}: it was not there yet.", "Try again.") from None
            return b""
        if end is None:
            end = size
        data = data[start - first : end - first] if len(data) != end - start else data
        if end > size:
            raise _truncated(thing, end)
        if len(data) != end - start:
            raise StorageUnavailable(f"{thing}: fewer bytes came than were promised.", "Try again.")
        return data

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        lead, asked = len(self._address.prefix), {"Prefix": f"{self._address.prefix}{check_folder(folder)}/"}
        while True:
            with self._asking(f"{self.place}: {folder}/") as client:
                page = client.list_objects_v2(Bucket=self._address.bucket, **asked)
            if "IsTruncated" not in page:
                raise s3_errors.no_s3(self._address)
            for entry in page.get("Contents", ()):
                if name := name_of(entry["Key"][lead:], folder):
                    yield ObjectInfo(name, entry["Size"], _whole_seconds(entry["LastModified"]))
            following = page.get("NextContinuationToken")
            if not page["IsTruncated"]:
                return
            if not following or following == asked.get("ContinuationToken"):
                raise StorageError(f"{self._address.server} does not say how its listing of {folder}/ goes on.")
            asked["ContinuationToken"] = following

    def stat(self, name: str) -> ObjectInfo:
        info, _ = self._look(name)
        if info is None:
            self._need_bucket()
            raise ObjectMissing(f"{self._thing(name)} is not there.")
        return info

    def delete(self, name: str) -> None:
        key = self._key(name)
        with contextlib.suppress(ObjectMissing), self._asking(self._thing(name)) as client:
            client.delete_object(Bucket=self._address.bucket, Key=key)

    def free_space(self) -> int | None:
        return None

    def close(self) -> None:
        with self._connecting:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    # -- Object Lock (object_lock.Lockable) --------------------------------------------------------------------------

    def locked_until(self, name: str) -> datetime | None:
        """Whoever may not read an object's retention sees none."""
        answer = self._head(name)
        if "ETag" not in answer:
            self._need_bucket()
            raise ObjectMissing(f"{self._thing(name)} is not there.")
        until: datetime | None = answer.get("ObjectLockRetainUntilDate")
        return until

    def lock(self, name: str, until: datetime) -> None:
        key = self._key(name)
        retention = {"Mode": self._lock.mode, "RetainUntilDate": until}
        with self._asking(self._thing(name), locking=True) as client:
            client.put_object_retention(Bucket=self._address.bucket, Key=key, Retention=retention)

    # -- what is there -----------------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return self._address.prefix + path_of(check_name(name))

    def _thing(self, name: str) -> str:
        return f"{self.place}: {name}"

    def _head(self, name: str) -> dict[str, Any]:
        """What the server says of an object. Without an ETag: it is not there, or not even its bucket."""
        key = self._key(name)
        with self._asking(self._thing(name)) as client:
            try:
                answer: dict[str, Any] = client.head_object(Bucket=self._address.bucket, Key=key)
            except ClientError as e:
                if s3_errors.status_of(e) != 404 or s3_errors.is_page(e.response):
                    raise
                answer = e.response
                return answer
        self._need_s3(answer)
        return answer

    def _look(self, name: str) -> tuple[ObjectInfo | None, str]:
        """The object, None when it is not there (or not even its bucket); and the server's time as it writes it."""
        answer = self._head(name)
        server_time = s3_errors.headers_of(answer).get("date", "")
        if "ETag" not in answer:
            return None, server_time
        return ObjectInfo(name, answer["ContentLength"], _whole_seconds(answer["LastModified"])), server_time

    def _need_bytes(self, name: str, end: int) -> int:
        """The size of an object, which has bytes up to there; StorageError when it has fewer."""
        size = self.stat(name).size
        if end > size:
            raise _truncated(self._thing(name), end)
        return size

    def _need_s3(self, answer: dict[str, Any]) -> None:
        """Refuse what only looks like an object: a page of a web server or of a captive portal."""
        if not answer.get("ETag") or "ContentLength" not in answer or s3_errors.is_page(answer):
            raise s3_errors.no_s3(self._address)

    def _need_bucket(self) -> None:
        with self._asking(f"The bucket {self._address.bucket}") as client:
            there = self._has_bucket(client)
        if not there:
            raise s3_errors.no_bucket(self._address)

    def _has_bucket(self, client: Any) -> bool:
        try:
            answer = client.head_bucket(Bucket=self._address.bucket)
        except ClientError as e:
            if s3_errors.status_of(e) != 404:
                raise
            answer = e.response
        if s3_errors.is_page(answer):
            raise s3_errors.no_s3(self._address)
        return "Error" not in answer

    # -- requests ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _asking(self, thing: str, *, locking: bool = False) -> Iterator[Any]:
        """A client to ask with, as one of so many at once, and its failures as errors of the contract. ``locking``:
        whether Object Lock is part of what is asked.
        """
        try:
            with self._slots:
                yield self._connected()
        except ClientError as e:
            code, status = s3_errors.code_of(e), s3_errors.status_of(e)
            if status == 416:
                raise _BeyondTheEnd from None
            if locking and code in _NO_LOCKS:
                raise StorageError(
                    f"The bucket {self._address.bucket} at {self._address.server} has no Object Lock.",
                    "It can be switched on when a bucket is made; or leave out the days to lock.",
                ) from None
            if code == "404" and not s3_errors.is_page(e.response):  # no word about what is missing
                self._need_bucket()
            raise s3_errors.of_the_answer(e, self._address, thing) from None
        except (BotoCoreError, ResponseParserError, urllib3.exceptions.HTTPError, OSError) as e:
            raise s3_errors.of_the_way(e, self._address) from None

    def _connected(self) -> Any:
        with self._connecting:
            if self._client is None:
                self._client = connect(self._address, self._access)
            return self._client

    def _send(self, client: Any, **asked: Any) -> dict[str, Any]:
        """Store an object where the server sees that there is none; _ThereIsOne when it sees one."""
        if self._conditional:
            try:
                asked["Body"].seek(0)
                answer: dict[str, Any] = client.put_object(IfNoneMatch="*", **asked)
                return answer
            except ClientError as e:
                status = s3_errors.status_of(e)
                if status in (409, 412):
                    raise _ThereIsOne(for_sure=status == 412) from None
                if status != 501:
                    raise
                self._conditional = False
        asked["Body"].seek(0)
        answer = client.put_object(**asked)
        return answer

    def _make_bucket(self, client: Any) -> None:
        at, region = self._address, client.meta.region_name
        more: dict[str, Any] = {"ObjectLockEnabledForBucket": True} if self._lock.days else {}
        if region != "us-east-1" and not at.endpoint:
            more["CreateBucketConfiguration"] = {"LocationConstraint": region}
        try:
            client.create_bucket(Bucket=at.bucket, **more)
        except ClientError as e:
            if s3_errors.code_of(e) == "BucketAlreadyOwnedByYou":  # somebody was quicker
                return
            if s3_errors.status_of(e) != 403:
                raise
            raise StorageDenied(
                f"There is no bucket {at.bucket} at {at.server}, and these credentials may not make it.",
                "Have it made, or check the bucket's name.",
            ) from None


class _ThereIsOne(Exception):
    """The server sees an object of that name, or (not ``for_sure``) somebody else who is about to change it."""

    def __init__(self, *, for_sure: bool) -> None:
        super().__init__()
        self.for_sure = for_sure


class _BeyondTheEnd(Exception):
    """The object has none of the bytes that were asked for."""


def _locked(lock: Lock, server_time: str, body: Body, address: S3Address) -> dict[str, Any]:
    """What a put says to have the object locked; such a put must bring its MD5, too."""
    try:
        until = parsedate_to_datetime(server_time) + timedelta(days=lock.days)
    except ValueError:
        raise StorageError(f"{address.server} does not say what time it is: nothing can be locked there.") from None
    md5 = hashlib.md5(usedforsecurity=False)
    body.seek(0)
    while piece := body.read(_PIECE):
        md5.update(piece)
    body.seek(0)
    return {
        "ObjectLockMode": lock.mode,
        "ObjectLockRetainUntilDate": until,
        "ContentMD5": binascii.b2a_base64(md5.digest(), newline=False).decode(),
    }


def _extent(answer: dict[str, Any], start: int, thing: str) -> tuple[int, int]:
    """The first byte that comes, and the object's whole size. Who knows no ranges sends everything."""
    told = answer.get("ContentRange")
    if not told:
        return 0, answer["ContentLength"]
    found = _RANGE.fullmatch(told)
    if not found or int(found[1]) != start or int(found[2]) - start + 1 != answer["ContentLength"]:
        raise StorageError(f"{thing}: other bytes came than were asked for.")
    return start, int(found[3])


def _truncated(thing: str, end: int) -> StorageError:
    return StorageError(f"{thing} ends before byte {end}: it is truncated.")


def _whole_seconds(when: datetime) -> int:
    return int(when.timestamp()) * _SECOND_NS
