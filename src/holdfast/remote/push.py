"""A folder to a server: its manifest, and of its files those that the server does not have.

What is promised: what is reported as pushed was acknowledged by the server as durable. A push that was cut off goes on
when it is run again: what the server has is not sent again, and what was hashed is not read again. A file that changes
meanwhile is noticed and taken again with a newer version of the manifest, a few times; then it is reported.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import quote

from borghash import HashTable

from holdfast.archive.exclude import matcher
from holdfast.errors import Forbidden, NoContent, StorageError, TooLarge, UsageError
from holdfast.remote.crew import Crew
from holdfast.remote.drafting import MOST_BYTES, Draft, timestamp
from holdfast.remote.http import pieces_of
from holdfast.remote.progress import Progress
from holdfast.remote.reading import FileLine, Manifest
from holdfast.remote.remembered import Remembered
from holdfast.remote.server import Server
from holdfast.remote.survey import Survey
from holdfast.remote.uploading import Uploader

_ROUNDS = 4
_ANSWER_MOST = MOST_BYTES * 2  # the manifest comes back with what is here of each file
_CHANGED_NAMED = 1000


@dataclass(frozen=True)
class Request:
    """What to push. ``folder``: absolute; ``omit``: gitignore pathspecs, which become part of the manifest."""

    folder: bytes
    name: str
    omit: tuple[str, ...] = ()
    dry_run: bool = False


@dataclass(frozen=True)
class Machine:
    """What a push and a pull need of this machine: a folder for what may be forgotten, and a clock."""

    cache: Path
    now_ns: Callable[[], int]

    def scratch(self) -> BinaryIO:
        """A file without a name."""
        self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self.cache)


@dataclass
class Pushed:
    """What came of it. ``version``: of the manifest, 0 after a dry run; ``to_send``: files and bytes that a dry run
    found the newest version not to have; ``complete``: whether the server says that it has every file, None when it
    could not be asked (every file that was sent was acknowledged all the same).
    """

    version: int = 0
    complete: bool | None = None
    to_send: tuple[int, int] = (0, 0)


def push(server: Server, request: Request, progress: Progress, machine: Machine) -> Pushed:
    """Push the folder; what could not be read or sent stands in the progress's ``troubles``. HoldfastError when it
    cannot be done at all.
    """
    matcher(request.omit)  # a spec that is none is said before anything is done
    try:
        base = os.open(request.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise UsageError(f"{os.fsdecode(request.folder)} cannot be pushed: {e.strerror}.") from None
    try:
        return _Push(server, request, progress, machine, base).run()
    finally:
        os.close(base)


class _Push:
    def __init__(self, server: Server, request: Request, progress: Progress, machine: Machine, base: int) -> None:
        self._server, self._request, self._progress = server, request, progress
        self._machine, self._base = machine, base
        self._changed: list[FileLine] = []
        self._some_changed = False

    def run(self) -> Pushed:
        for _ in range(_ROUNDS):
            self._changed, self._some_changed = [], False
            self._progress.forget_survey()
            done = self._round()
            if not self._some_changed:
                return done
        for line in self._changed:
            self._progress.troubles.add(line.path, "it changed each time while it was sent; the server has not got it")
        return done

    def _round(self) -> Pushed:
        with self._draft() as draft:
            if self._request.dry_run:
                return Pushed(to_send=self._compared(draft))
            if draft.size > MOST_BYTES:
                raise TooLarge("The folder has more files than one manifest holds.", "Push its folders one by one.")
            with contextlib.closing(self._machine.scratch()) as answer:
                version = self._posted(draft, answer)
                self._send_missing(answer)
        return Pushed(version, complete=self._is_complete(version))

    # -- the manifest ----------------------------------------------------------------------------------------------

    def _draft(self) -> Draft:
        self._progress.begin("Looking")
        self._machine.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._timestamp = timestamp(self._machine.now_ns())
        header: dict[str, Any] = {"name": self._request.name, "timestamp": self._timestamp}
        header |= _base(self._request.folder) | {"omit": list(self._request.omit)}
        draft = Draft(self._machine.cache, header)
        try:
            with Remembered(self._machine.cache / "hashes", self._request.folder) as known:
                Survey(self._base, self._request.omit, known, self._progress, self._machine.now_ns).into(draft)
                known.commit()
            return draft
        except BaseException:
            draft.__exit__()
            raise

    def _posted(self, draft: Draft, answer: BinaryIO) -> int:
        """Post the manifest; its version. ``answer``: a file that gets it back, with what is there of each file."""
        self._progress.begin("Posting")
        headers = {"Content-Type": "application/json", "Content-Length": str(draft.size)}
        tried = whole = False

        def act() -> int:
            nonlocal tried, whole
            if tried and (known := self._stored()):
                return known
            tried = True
            with self._server.answering("POST", "manifests", headers=headers, body=draft.json) as found:
                version = _version(found.headers.get("x-manifest-version", ""))
                answer.seek(0)
                answer.truncate()
                for piece in pieces_of(found, _ANSWER_MOST):
                    answer.write(piece)
                whole = True
                return version

        version = self._server.patiently(act)
        if not whole:
            which = {"version": str(version)}
            self._server.fetch_into(answer, address_of(self._request.name), _ANSWER_MOST, which)
        return version

    def _stored(self) -> int:
        """The version of our manifest, if it was stored although its answer was lost; else 0."""
        params = {"name": self._request.name, "versions": "all", "limit": "10"}
        try:
            found = self._server.once("GET", "manifests", params=params).json().get("manifests")
        except Forbidden:
            return 0
        for one in found if isinstance(found, list) else []:
            ours = {"timestamp": self._timestamp, "files": self._progress.files}
            if isinstance(one, dict) and ours.items() <= one.items() and type(one.get("version")) is int:
                return int(one["version"])
        return 0

    def _is_complete(self, version: int) -> bool | None:
        """Whether the server says that it has every file of that version; None when it cannot be asked."""
        params = {"name": self._request.name, "versions": "all", "limit": "100"}
        try:
            answer = self._server.patiently(lambda: self._server.once("GET", "manifests", params=params)).json()
        except (Forbidden, StorageError):
            return None
        found = answer.get("manifests")
        for one in found if isinstance(found, list) else []:
            if isinstance(one, dict) and one.get("version") == version:
                return one.get("available") == one.get("files")
        return False

    # -- the files -------------------------------------------------------------------------------------------------

    def _send_missing(self, answer: BinaryIO) -> None:
        """Send every file that is not there, each content once."""
        with Manifest(answer, self._machine.scratch, _refused) as manifest:
            self._progress.begin("Sending", sum(line.size for line in _each_once(manifest.files())))
            with Crew(self._server.stop) as crew:
                uploader = Uploader(self._server, crew, self._base, self._progress, self._note_change)
                for line in _each_once(manifest.files()):
                    uploader.add(line)

    def _note_change(self, line: FileLine) -> None:
        self._some_changed = True
        if len(self._changed) < _CHANGED_NAMED:
            self._changed.append(line)

    def _compared(self, draft: Draft) -> tuple[int, int]:
        """How many files, and bytes, the newest version on the server does not name: at most so much would be sent."""
        known = HashTable(key_size=16, value_size=1)
        with contextlib.closing(self._machine.scratch()) as there, contextlib.closing(self._machine.scratch()) as here:
            for piece in draft.json():
                here.write(piece)
            with contextlib.suppress(NoContent):
                self._server.fetch_into(there, address_of(self._request.name), _ANSWER_MOST)
                with Manifest(there, self._machine.scratch, _ignore) as newest:
                    for line in newest.files():
                        if line.available:
                            known[_short(line)] = b"\1"
            files = size = 0
            with Manifest(here, self._machine.scratch, _refused) as ours:
                for line in _each_once(ours.files(), known):
                    files, size = files + 1, size + line.size
        return files, size


def _each_once(lines: Iterator[FileLine], known: Any = None) -> Iterator[FileLine]:
    """The files that are not there, each content once."""
    seen = HashTable(key_size=16, value_size=1) if known is None else known
    for line in lines:
        if not line.available and seen.get(key := _short(line)) is None:
            seen[key] = b"\1"
            yield line


def _short(line: FileLine) -> bytes:
    return bytes.fromhex(line.hash[:32])


def _base(folder: bytes) -> dict[str, str]:
    """Where it lies, if that is text."""
    try:
        return {"base": folder.decode()}
    except UnicodeDecodeError:
        return {}


def address_of(name: str) -> str:
    """Where a manifest is, below the server's address."""
    return f"manifests/name/{quote(name, safe='')}"


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise StorageError("The server does not answer as a Holdfast server does.", "Is the address right?")
    return int(text)


def _refused(path: str, reason: str) -> NoReturn:
    raise StorageError("The server answers with another manifest than the one it was sent.")


def _ignore(path: str, reason: str) -> None:
    return None
