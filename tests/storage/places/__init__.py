"""The places the conformance suite runs over. A new storage joins by one more module here, with PLACES of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from holdfast.storage.base import Storage
from holdfast.storage.select import Access, open_storage


@dataclass
class Place:
    """A storage under test. ``again`` gives another client of the same place. ``root``: its folder, if it is in one.
    ``outlives_process``: whether what a killed process stored can be looked at afterwards. ``address`` and ``access``:
    how another process reaches it, where it is not a folder. ``one_wins``: of many who put one name at the same moment
    exactly one succeeds. ``whole``: nobody sees a part of an object, whatever is killed.
    ``filled``: has many tiny objects of these names by a quicker way than a put of each.
    """

    storage: Storage
    again: Callable[[], Storage]
    root: Path | None = None
    outlives_process: bool = True
    address: str = ""
    access: Access | None = None
    one_wins: bool = True
    whole: bool = True
    filled: Callable[[Iterable[str]], None] | None = None
    opened: list[Storage] = field(default_factory=list)

    def close(self) -> None:
        """Close every client there was."""
        for storage in self.opened:
            storage.close()

    def fill(self, names: Iterable[str]) -> None:
        """Have many tiny objects, by the quickest way there is."""
        if self.filled is not None:
            self.filled(names)
        elif self.root is None:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda name: self.storage.put(name, [b"x"]), names))
        else:
            fill_folder(self.root, names)


Open = Callable[[pytest.FixtureRequest], Iterator[Place]]


def fill_folder(root: Path, names: Iterable[str]) -> None:
    """The same in a folder laid out as a repository is."""
    for name in names:
        folder, _, digits = name.partition("/")
        path = root / folder / (digits[:2] if folder == "data" else "") / digits
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def at(
    address: str,
    access: Access,
    *,
    one_wins: bool,
    whole: bool = True,
    filled: Callable[[Iterable[str]], None] | None = None,
) -> Place:
    """A place that is reached by an address, made ready."""
    opened: list[Storage] = []

    def again() -> Storage:
        opened.append(open_storage(address, access))
        return opened[-1]

    storage = again()
    storage.create()
    return Place(
        storage,
        again,
        opened=opened,
        address=address,
        access=access,
        one_wins=one_wins,
        whole=whole,
        filled=filled,
    )
