"""What a push or a pull has done so far, and what it could not do. Any thread may write into it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

_NAMED_MOST = 1000


class Named:
    """Paths with a reason, as a sentence's end: all are counted, the first ones are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0
        self.first: list[tuple[bytes, str]] = []

    def add(self, path: bytes, reason: str) -> None:
        with self._lock:
            self.count += 1
            if len(self.first) < _NAMED_MOST:
                self.first.append((path, reason))

    def clear(self) -> None:
        with self._lock:
            self.count = 0
            self.first.clear()


def _nobody_listens(what: str, path: bytes) -> None:
    return None


@dataclass
class Progress:
    """``troubles``: what could not be read, sent, had or written. ``left_out``: what a manifest cannot hold.
    ``notes``: what else is to be said, and how often. ``done``, ``expected``: bytes, of the stage that is shown;
    ``size``: bytes of all files; ``moved``: files that were uploaded or downloaded. ``tell`` hears of changes at once,
    as there may be as many of them as files.
    """

    stage: str = ""
    current: bytes = b""
    done: int = 0
    expected: int = 0
    files: int = 0
    directories: int = 0
    links: int = 0
    size: int = 0
    hashed: int = 0
    hashed_bytes: int = 0
    moved: int = 0
    moved_bytes: int = 0
    unchanged: int = 0
    deleted: int = 0
    with_xattrs: int = 0
    troubles: Named = field(default_factory=Named)
    left_out: Named = field(default_factory=Named)
    notes: dict[str, int] = field(default_factory=dict)
    changes: int = 0
    tell: Callable[[str, bytes], None] = _nobody_listens
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, **more: int) -> None:
        """Add to some of the numbers."""
        with self._lock:
            for name, number in more.items():
                setattr(self, name, getattr(self, name) + number)

    def change(self, what: str, path: bytes) -> None:
        """Something is, or in a dry run would be, ``new``, ``changed`` or ``delete``d."""
        self.changes += 1
        self.tell(what, path)

    def note(self, what: str) -> None:
        with self._lock:
            self.notes[what] = self.notes.get(what, 0) + 1

    def begin(self, stage: str, expected: int = 0) -> None:
        """Another stage begins."""
        self.stage, self.done, self.expected = stage, 0, expected

    def forget_survey(self) -> None:
        """A folder is looked at once more: what was counted of it is counted anew."""
        self.files = self.directories = self.links = self.size = self.with_xattrs = 0
        self.notes.clear()
        self.troubles.clear()
        self.left_out.clear()
