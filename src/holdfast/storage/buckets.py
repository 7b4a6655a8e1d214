"""Storages in buckets of Google Cloud Storage and Azure Blob Storage, through obstore.

============================  ======================================================================================
``gs://BUCKET/PREFIX``        GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT: a file;
                              GOOGLE_SERVICE_ACCOUNT_KEY: its content; GOOGLE_BASE_URL: another server
``az://CONTAINER/PREFIX``     AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or
                              AZURE_STORAGE_CLIENT_ID, …_CLIENT_SECRET and …_TENANT_ID; AZURE_STORAGE_ENDPOINT
============================  ======================================================================================

Promises beyond the contract: an object is sent in one request, and created only where there is none: both kinds of
server see to that at once, so that one of many who put one name wins. A bucket must be there: it is not made.

obstore reads the environment for whatever the variables of ``Access`` do not say; these go first. It tells a server's
status and code only in the text of its errors: that is where they are read from.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore

from holdfast.errors import (
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
    UsageError,
)
from holdfast.storage.base import CONFIG, Buffer, ObjectInfo, check_folder, check_name, check_range
from holdfast.storage.layout import name_of, path_of
from holdfast.storage.select import Access

_ADDRESS = re.compile(r"(?:gs|az)://([A-Za-z0-9][A-Za-z0-9._-]{1,221})(?:/([A-Za-z0-9._/ -]*))?")
_STATUS = re.compile(r"status code: (\d{3})")
_SECOND_NS = 1_000_000_000
_PAGE = 1000
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_NO_CONTAINER = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist", "ContainerBeingDeleted")
_SERVERS = {"gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
_CONNECT, _WHOLE = timedelta(seconds=15), timedelta(minutes=15)
_AZURE = {
    "account_name": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"),
    "account_key": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCESS_KEY"),
    "sas_key": ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_ACCOUNT_SAS"),
    "client_id": ("AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID"),
    "client_secret": ("AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET"),
    "tenant_id": ("AZURE_STORAGE_TENANT_ID", "AZURE_TENANT_ID"),
    "endpoint": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_GOOGLE = {
    "service_account": ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"),
    "service_account_key": ("GOOGLE_SERVICE_ACCOUNT_KEY",),
    "application_credentials": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "base_url": ("GOOGLE_BASE_URL",),
}


def open_at(address: str, access: Access) -> BucketStorage:
    """The storage at an address that begins with ``gs:`` or ``az:``."""
    kind, found = address[:2], _ADDRESS.fullmatch(address)
    prefix = ((found[2] or "") if found else "").strip("/")
    if not found or (prefix and not {"", ".", ".."}.isdisjoint(prefix.split("/"))):
        raise UsageError(
            f"That is not the address of a bucket with {kind}:.",
            f"It is written {kind}://BUCKET/PREFIX; a prefix has letters, digits, spaces and ._- only.",
        )
    try:
        store = (_azure if kind == "az" else _google)(found[1], access)
    except (BaseError, ValueError, OSError):
        raise UsageError(
            f"The variables for {_SERVERS[kind]} make no sense as they stand.",
            "Check that what they name is there; docs/storage.md has them all.",
        ) from None
    return BucketStorage(store, kind, found[1], prefix and f"{prefix}/", access.connections)


def _azure(container: str, access: Access) -> Any:
    config = _config(_AZURE, access)
    if "account_name" not in config:
        raise UsageError("It is not known whose container that is.", "Set AZURE_STORAGE_ACCOUNT_NAME.")
    return AzureStore(container, config=config, **_on_the_way(config.get("endpoint", ""), access))


def _google(bucket: str, access: Access) -> Any:
    config = _config(_GOOGLE, access)
    return GCSStore(bucket, config=config, **_on_the_way(config.get("base_url", ""), access))


def _config(known: dict[str, tuple[str, ...]], access: Access) -> Any:
    return {key: value for key, names in known.items() if (value := access.get(*names))}


def _on_the_way(url: str, access: Access) -> Any:
    """What obstore is told about connections: nothing is tried again, and http is allowed where it is asked for."""
    options: dict[str, Any] = {"connect_timeout": _CONNECT, "timeout": _WHOLE}
    if url.startswith("http://"):
        options["allow_http"] = True
    if ca_file := access.get("HOLDFAST_CA_FILE", "SSL_CERT_FILE"):
        options["root_certificate"] = Path(ca_file).read_bytes()
    return {"client_options": options, "retry_config": {"max_retries": 0, "retry_timeout": _WHOLE}}


class BucketStorage:
    """Over one store of obstore. ``kind``: gs or az. ``prefix``: empty, or ends in ``/``."""

    lists_late = False

    def __init__(self, store: Any, kind: str, bucket: str, prefix: str, connections: int) -> None:
        self._store, self._server, self._bucket = store, _SERVERS[kind], bucket
        self._prefix, self._place = prefix, f"{kind}://{bucket}/{prefix}".rstrip("/")
        self._at_once = connections
        self._slots = threading.BoundedSemaphore(max(1, connections))

    @property
    def place(self) -> str:
        return self._place

    @property
    def connections(self) -> int:
        return self._at_once

    def create(self) -> None:
        """See that the bucket is there."""
        self._need_bucket()

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        path, thing = self._path(name), self._thing(name)
        if self._look(name) is None:
            body = bytes(parts[0]) if len(parts) == 1 else b"".join(memoryview(p).cast("B") for p in parts)
            with contextlib.suppress(AlreadyExistsError, PreconditionError), self._asking(thing):
                obstore.put(self._store, path, body, mode="create", use_multipart=False)
                return
        raise ObjectExists(f"{thing} is there already.")

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        path, thing = self._path(name), self._thing(name)
        check_range(start, length)
        if length == 0:
            self._need_bytes(name, start)
            return b""
        end = None if length is None else start + length
        wanted: Any = {"range": {"offset": start} if end is None else (start, end)} if start or end is not None else {}
        try:
            with self._asking(thing):
                answer = obstore.get(self._store, path, options=wanted)
                size, first = answer.meta["size"], answer.range[0]
                data = bytes(answer.bytes())
        except _BeyondTheEnd:
            if self._need_bytes(name, start if end is None else end) > start:
                raise StorageUnavailable(f"{thing}: it was not there yet.", "Try again.") from None
            return b""
        except ObjectMissing:
            self._need_bucket()  # not every server says which of the two is missing
            raise
        if end is not None and end > size:
            raise _truncated(thing, end)
        if first != start or len(data) != (size if end is None else end) - start:
            raise StorageUnavailable(f"{thing}: other bytes came than were asked for.", "Try again.")
        return data

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        prefix, lead = f"{self._prefix}{check_folder(folder)}", len(self._prefix)
        pages, empty = obstore.list(self._store, prefix, chunk_size=_PAGE), True
        while True:
            with self._asking(f"{self._place}: {folder}/"):
                page = next(pages, None)
            if page is None:
                if empty:
                    self._look(CONFIG)  # obstore takes a web page for an empty listing, but not for an object
                return
            for entry in page:
                empty = False
                if name := name_of(entry["path"][lead:], folder):
                    yield _info(name, entry)

    def stat(self, name: str) -> ObjectInfo:
        info = self._look(name)
        if info is None:
            self._need_bucket()
            raise ObjectMissing(f"{self._thing(name)} is not there.")
        return info

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            with self._asking(self._thing(name)):
                obstore.delete(self._store, path)
        except ObjectMissing:
            self._need_bucket()

    def free_space(self) -> int | None:
        return None

    def close(self) -> None:
        """obstore closes its connections when it is let go of."""

    # -- what is there -----------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return self._prefix + path_of(check_name(name))

    def _thing(self, name: str) -> str:
        return f"{self._place}: {name}"

    def _look(self, name: str) -> ObjectInfo | None:
        """The object; None when it is not there, or not even its bucket."""
        path = self._path(name)
        with contextlib.suppress(ObjectMissing), self._asking(self._thing(name)):
            return _info(name, obstore.head(self._store, path))
        return None

    def _need_bytes(self, name: str, end: int) -> int:
        """The size of an object, which has bytes up to there; StorageError when it has fewer."""
        size = self.stat(name).size
        if end > size:
            raise _truncated(self._thing(name), end)
        return size

    def _need_bucket(self) -> None:
        try:
            with self._asking(f"The bucket {self._bucket}"):
                next(obstore.list(self._store, f"{self._prefix}keys", chunk_size=1), None)
        except ObjectMissing:
            raise self._no_bucket() from None

    def _no_bucket(self) -> StorageError:
        return StorageError(
            f"There is no bucket {self._bucket} at {self._server}.", "Check its name and the account, or make it first."
        )

    # -- errors ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _asking(self, thing: str) -> Iterator[None]:
        """Ask as one of so many at once; failures become errors of the contract, but for AlreadyExistsError and
        PreconditionError, which only a put can meet.
        """
        try:
            with self._slots:
                yield
        except (AlreadyExistsError, PreconditionError):
            raise
        except (NotFoundError, FileNotFoundError) as e:
            if any(code in str(e) for code in _NO_CONTAINER):
                raise self._no_bucket() from None
            raise ObjectMissing(f"{thing} is not there.") from None
        except (BaseError, ValueError, OSError) as e:
            raise self._failure(e, thing) from None

    def _failure(self, error: Exception, thing: str) -> Exception:
        text = str(error)
        found = _STATUS.search(text)
        status = int(found[1]) if found else 0
        if status == 416 or (not status and "Wanted range" in text):
            return _BeyondTheEnd()
        if status == 404:  # of a listing: an object would be NotFoundError
            return self._no_bucket()
        if status == 507 or "Quota" in text:
            return StorageFull(f"{thing}: the storage is full.", "Raise its quota, or free some space there.")
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
            return StorageDenied(
                f"{thing}: {self._server} does not allow this.",
                "Check the credentials, and that they may list, read, write and delete in the bucket.",
            )
        if not status and ("ertificate" in text or "UnknownIssuer" in text):
            return StorageDenied(
                f"The certificate of the server behind {self._place} cannot be verified.",
                "Check the address, or name the file of its certificate authority in HOLDFAST_CA_FILE.",
            )
        if not status and "InvalidMessage" in text:
            return StorageError(
                f"The server behind {self._place} does not speak TLS.", "Is its address one with http:?"
            )
        if status in _PASSING_STATUS:
            return StorageUnavailable(f"{thing}: {self._server} cannot serve this now (HTTP {status}).", "Try again.")
        if not status and "HTTP error" in text:
            return StorageUnavailable(f"{self._server} cannot be reached.", "Check the address and the network.")
        if not status:
            return StorageError(f"{thing}: what answers does not speak {self._server}'s protocol.")
        return StorageError(f"{thing}: {self._server} refuses this (HTTP {status}).")


class _BeyondTheEnd(Exception):
    """The object has none of the bytes that were asked for."""


def _info(name: str, entry: Any) -> ObjectInfo:
    return ObjectInfo(name, entry["size"], int(entry["last_modified"].timestamp()) * _SECOND_NS)


def _truncated(thing: str, end: int) -> StorageError:
    return StorageError(f"{thing} ends before byte {end}: it is truncated.")
