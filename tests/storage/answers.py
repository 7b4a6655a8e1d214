"""What a server of the wrong kind, or in a bad mood, answers; and every use there is of a storage that meets it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.errors import StorageError
from tests.support.pretender import Answer
from tests.support.storages import list_of

NAME = "data/" + "ab" * 32

PAGE = (200, {"Content-Type": "text/html; charset=utf-8"}, b"<!doctype html><title>Log in</title><p>Welcome")
XHTML = (200, {"Content-Type": "text/html", "ETag": '"1"'}, b"<html><body>Welcome</body></html>")
NO_PAGE = (404, {"Content-Type": "text/html"}, b"<html><body>Not found</body></html>")


def failure(call, *args) -> StorageError:
    with pytest.raises(StorageError) as caught:
        call(*args)
    assert "secret" not in f"{caught.value} {caught.value.hint}"
    return caught.value


def every_use(storage) -> list[Callable[[], object]]:
    return [
        lambda: storage.put(NAME, [b"x"]),
        lambda: storage.get(NAME),
        lambda: storage.get(NAME, 0, 0),
        lambda: storage.get(NAME, 3, 4),
        lambda: storage.stat(NAME),
        lambda: list_of(storage, "data"),
        lambda: storage.delete(NAME),
    ]


def an_error(status: int, code: str, more: str = "", **headers: str) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>secret words</Message>{more}</Error>"
    return status, {"Content-Type": "application/xml", **headers}, body.encode()
