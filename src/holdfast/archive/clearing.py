"""Removes trees of files that a restore may remove, following no link and leaving what the patterns leave out.

Nothing recurses and one folder is open at a time, so depth costs neither stack nor file descriptors.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection
from typing import Self

from holdfast.archive.beneath import open_beneath
from holdfast.repository.pages import join, split

May = Callable[[bytes, bool], bool]  # may this path (relative to the target; is it a folder) be removed?


def clear(above: int, path: bytes, may: May | None, removed: Callable[[bytes], None], *, dry_run: bool = False) -> bool:
    """Remove the entry at ``path`` (relative to the target; it lies in the open folder ``above``) and all below it
    that ``may`` go; whether nothing of it is left. ``removed`` hears each path, the innermost first.
    """
    outside, name = split(path)
    order, stuck = _listed(above, name), set[bytes]()
    with _Folders(above) as folders:
        for inner, is_folder in reversed(order):
            shown = join(outside, inner)
            if inner in stuck or (may is not None and not may(shown, is_folder)):
                stuck.add(split(inner)[0])
                continue
            if not dry_run:
                folders.remove(inner, is_folder)
            removed(shown)
    return b"" not in stuck


def clear_others(
    target: int,
    folder: bytes,
    names: Collection[bytes],
    may: May | None,
    removed: Callable[[int], None],
    failed: Callable[[bytes, OSError], None],
    *,
    dry_run: bool = False,
) -> list[bytes]:
    """Remove from a folder below the target what has none of these names, as ``clear`` does; what is gone, without
    naming what lay in a folder that is gone too. A folder that is not there, or is none, has nothing to be removed.
    """
    try:
        fd = open_beneath(target, folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return []
    try:
        others = sorted(name for n in os.listdir(fd) if (name := os.fsencode(n)) not in names)
        told: list[bytes] = []
        for path in (join(folder, name) for name in others):
            gone: list[bytes] = []
            try:
                whole = clear(fd, path, may, gone.append, dry_run=dry_run)
            except OSError as e:
                whole = False
                failed(path, e)
            told += [path] if whole else gone
            removed(len(gone))
        return told
    finally:
        os.close(fd)


def _listed(above: int, name: bytes) -> list[tuple[bytes, bool]]:
    """The entry and all below it: (path relative to ``above``, is it a folder), folders before what they hold."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
        return [(name, False)]
    order: list[tuple[bytes, bool]] = []
    folders = [name]
    while folders:
        folder = folders.pop()
        order.append((folder, True))
        fd = open_beneath(above, folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            with os.scandir(fd) as listing:
                for item in listing:
                    inner = join(folder, os.fsencode(item.name))
                    if item.is_dir(follow_symlinks=False):
                        folders.append(inner)
                    else:
                        order.append((inner, False))
        finally:
            os.close(fd)
    return order


class _Folders:
    """Removes entries by path; the folder used last stays open, as its entries come one after the other."""

    def __init__(self, above: int) -> None:
        self._above, self._path, self._fd = above, b"", os.dup(above)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)

    def remove(self, path: bytes, is_folder: bool) -> None:
        directory, name = split(path)
        if directory != self._path:
            fd = open_beneath(self._above, directory, os.O_PATH | os.O_DIRECTORY)
            os.close(self._fd)
            self._path, self._fd = directory, fd
        if is_folder:
            os.rmdir(name, dir_fd=self._fd)
        else:
            os.unlink(name, dir_fd=self._fd)
