"""A form with a file (``multipart/form-data``), read while it comes.

What is promised: of the file no more than a piece stands in memory and nothing on the disk but what its taker writes;
of everything else there are at most MOST_PARTS parts, each with short headers and at most FIELD_MOST bytes. A field or
the file that stands twice is refused, as is a body that ends before its form does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from holdfast.errors import BrokenOff, UsageError
from holdfast.storage.base import Buffer

MOST_PARTS = 20
FIELD_MOST = 8 << 10
OVERHEAD = 256 << 10  # more than all of a form but its file can have
_HEADER_MOST = 32 << 10  # names of files may be long, and what is kept of them is not
_BOUNDARY = re.compile(rb"[ -~]{1,70}")
_ESCAPED = {"%22": '"', "%0D": "\r", "%0A": "\n"}  # as browsers write them in names, and nothing else
_ESCAPE = re.compile("|".join(_ESCAPED), re.IGNORECASE)
_silent = logging.Logger("multipart", level=logging.CRITICAL + 1)  # noqa: LOG001 - what is wrong is told to the client


class Taker(Protocol):
    """Who takes the file."""

    def feed(self, piece: Buffer) -> None: ...

    def abandon(self) -> None: ...


class FileForm:
    """A form whose file stands in the field ``name``. ``begin`` is called with the file's name and declared type when
    it begins, and gives who takes it. ``feed`` the body, then ``finish``, or ``abandon``. One thread's at a time.
    """

    def __init__(self, content_type: str, name: str, begin: Callable[[str, str], Taker]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not _BOUNDARY.fullmatch(boundary):
            raise UsageError("The body must be a form with a file.", "Send it as multipart/form-data.")
        self.fields: dict[str, str] = {}
        self._name, self._begin = name, begin
        self._taker: Taker | None = None
        self._in_file = self._is_over = False
        self._parts, self._field = 0, ""
        self._header, self._value, self._content = bytearray(), bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins, "on_header_field": self._header_field,
                "on_header_value": self._header_value, "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end, "on_part_data": self._data,
                "on_part_end": self._part_ends, "on_end": self._end,
            },
            max_header_size=_HEADER_MOST,
        )  # fmt: skip
        self._parser.logger = _silent

    def feed(self, data: bytes) -> None:
        """UsageError when it is no form; and what the taker raises. What follows the form is ignored."""
        if self._is_over:
            return
        try:
            self._parser.write(data)
        except FormParserError:
            raise UsageError("The body is not the form that its Content-Type says.") from None

    def finish(self) -> None:
        """BrokenOff when the form has not ended, UsageError when there was no file in it."""
        if not self._is_over:
            raise BrokenOff("The body ended before all of the form had come.")
        if self._taker is None:
            raise UsageError(f"The form has no file in its field {self._name!r}.", "Choose one.")

    def abandon(self) -> None:
        """It may be called twice, and after ``finish``."""
        if self._taker is not None:
            self._taker.abandon()

    # -- what the parser calls -------------------------------------------------------------------------------------

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise UsageError(f"The form has more than {MOST_PARTS} parts.")
        self._headers.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field = options.get(b"name", b"").decode(errors="replace")
        if self._field != self._name or b"filename" not in options:
            return
        if self._taker is not None:
            raise UsageError("The form has more than one file.", "Send one at a time.")
        name = _ESCAPE.sub(lambda found: _ESCAPED[found[0].upper()], options[b"filename"].decode(errors="replace"))
        declared = self._headers.get(b"content-type", b"").decode("latin-1")
        self._taker, self._in_file = self._begin(name, declared), True

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file and self._taker is not None:
            self._taker.feed(memoryview(data)[start:end])
            return
        self._content += data[start:end]
        if len(self._content) > FIELD_MOST:
            raise UsageError(f"A field of the form has more than {FIELD_MOST} bytes.")

    def _part_ends(self) -> None:
        if self._in_file:
            self._in_file = False
            return
        if self._field in self.fields:
            raise UsageError(f"The field {self._field[:40]!r} stands there more than once.")
        try:
            self.fields[self._field] = self._content.decode()
        except UnicodeDecodeError:
            raise UsageError(f"The field {self._field[:40]!r} is no UTF-8 text.") from None
        self._content.clear()

    def _end(self) -> None:
        self._is_over = True
