"""Trees of files: one that holds everything a Linux tree can hold, and an exact comparison of two trees.

``everything(root)`` makes the tree; ``differences(a, b)`` says in sentences how two trees differ, nothing when they are
the same to the last bit, nanosecond and hole. Nothing of Holdfast is used here.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
SECOND = 1_000_000_000
NAME_MOST = 255
_LONGEST = 4000  # bytes of a path the kernel takes at once
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def noise(size: int, seed: object = 0) -> bytes:
    """Bytes that do not compress, always the same for the same seed."""
    return random.Random(f"{seed} {size}").randbytes(size)


# -- making ------------------------------------------------------------------------------------------------------------


def everything(root: Path, *, privileged: bool | None = None) -> Path:
    """Make a tree with one of everything below ``root``; what only root can make too, unless told otherwise."""
    root.mkdir(parents=True, exist_ok=True)
    _plain_files(root)
    _names(root)
    _links(root)
    _sparse_files(root)
    _modes_and_times(root)
    _attributes(root)
    if os.geteuid() == 0 if privileged is None else privileged:
        _what_only_root_can_make(root)
    date_folders(root)
    return root


def _plain_files(root: Path) -> None:
    sizes = [0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1]
    files = root / "files"
    files.mkdir()
    for size in sizes:
        (files / f"of {size} bytes").write_bytes(noise(size))
    (files / "zeros").write_bytes(bytes(3 * MIB))
    (files / "twin").write_bytes(noise(8 * MIB))
    (root / "empty folder").mkdir()
    (root / "folder" / "in" / "a folder").mkdir(parents=True)
    (root / "folder" / "in" / "a folder" / "file").write_text("deep\n")
    (root / "folder!").mkdir()  # sorts between "folder" and "folder/in" for those who compare whole paths
    (root / "folder!" / "file").write_text("beside\n")
    os.mkfifo(root / "pipe")
    os.mknod(root / "socket", stat.S_IFSOCK | 0o755)


def _names(root: Path) -> None:
    top = os.fsencode(root / "names")
    os.mkdir(top)
    odd = [b"\xff\xfe not UTF-8", b"new\nline", b"trailing newline\n", b" spaces ", b"-rf", b"*", b"a\\b", b"\x01\x7f"]
    odd += [b"...", b".hidden", b"\xed\xa0\x80", "Größe ✓".encode(), b"n" * NAME_MOST, b"'\"$(x)`"]
    for name in odd:
        with open(os.path.join(top, name), "wb") as f:
            f.write(name)
    os.mkdir(os.path.join(top, b"folder\n\xff"))
    with open(os.path.join(top, b"folder\n\xff", b"inside"), "wb") as f:
        f.write(b"inside")


def _links(root: Path) -> None:
    top = root / "links"
    (top / "other").mkdir(parents=True)
    (top / "dangling").symlink_to("nowhere")
    (top / "absolute").symlink_to("/etc/passwd")
    (top / "to a folder").symlink_to("../folder")
    (top / "to itself").symlink_to("to itself")
    os.symlink(b"\xff\n", os.fsencode(top / "odd"))
    (top / "long").symlink_to("x" * 4000)
    (top / "first").write_bytes(noise(5000))
    os.link(top / "first", top / "second")
    os.link(top / "first", top / "other" / "third")
    (top / "large").write_bytes(noise(3 * MIB, "large"))
    os.link(top / "large", top / "other" / "large too")
    os.mkfifo(top / "pipe")
    os.link(top / "pipe", top / "other" / "pipe too")
    os.link(top / "dangling", top / "other" / "dangling too", follow_symlinks=False)


def _sparse_files(root: Path) -> None:
    top = root / "sparse"
    top.mkdir()
    sparse(top / "leading", 4 * MIB, [(3 * MIB, noise(MIB))])
    sparse(top / "middle", 4 * MIB, [(0, noise(64 * KIB, 1)), (4 * MIB - 64 * KIB, noise(64 * KIB, 2))])
    sparse(top / "trailing", 5 * MIB + 123, [(0, noise(2 * MIB, 3))])
    sparse(top / "all hole", 3 * MIB + 1, [])
    sparse(top / "small hole", 5000, [])
    sparse(top / "small", 64 * KIB, [(32 * KIB, noise(4 * KIB, 4))])
    sparse(top / "many", 600 * 64 * KIB, [(i * 64 * KIB, noise(4 * KIB, i)) for i in range(1, 600, 2)])
    sparse(top / "many, trailing", 600 * 64 * KIB, [(i * 64 * KIB, noise(4 * KIB, i)) for i in range(300)])
    sparse(top / "huge", 1 << 40, [(1 << 39, b"far out" * 1000)])


def sparse(path: Path, size: int, data: Iterable[tuple[int, bytes]]) -> None:
    """A file of that size with data at those offsets and holes elsewhere."""
    with path.open("wb") as f:
        f.truncate(size)
        for offset, content in data:
            os.pwrite(f.fileno(), content, offset)


def _modes_and_times(root: Path) -> None:
    top = root / "modes"
    top.mkdir()
    for mode in (0o000, 0o400, 0o444, 0o600, 0o644, 0o666, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o6711, 0o7777):
        path = top / f"{mode:04o}"
        path.write_text(f"{mode:o}")
        path.chmod(mode)
        folder = top / f"folder {mode:04o}"
        folder.mkdir()
        if os.geteuid() == 0 or mode & 0o700 == 0o700:
            (folder / "inside").write_text("inside")
        folder.chmod(mode)
    top = root / "times"
    top.mkdir()
    for number, time_ns in enumerate((0, 1, -1, -(10**15) - 1, 999_999_999, 4_102_444_800 * SECOND + 123_456_789)):
        path = top / f"file {number}"
        path.write_text("when?")
        os.utime(path, ns=(0, time_ns))
        os.symlink("x", top / f"link {number}")
        os.utime(top / f"link {number}", ns=(0, time_ns), follow_symlinks=False)
        (top / f"folder {number}").mkdir()
        os.utime(top / f"folder {number}", ns=(0, time_ns))


ACL = struct.pack(
    "<I" + 5 * "HHI",
    2,
    *(0x01, 7, 0xFFFFFFFF),  # the owner: rwx
    *(0x02, 5, 12345),  # a user by number: r-x
    *(0x04, 5, 0xFFFFFFFF),  # the group: r-x
    *(0x10, 7, 0xFFFFFFFF),  # the mask: rwx
    *(0x20, 1, 0xFFFFFFFF),  # others: --x
)


def _attributes(root: Path) -> None:
    top = root / "attributes"
    top.mkdir()
    (top / "file").write_text("with attributes")
    os.setxattr(top / "file", "user.text", b"value")
    os.setxattr(top / "file", "user.binary", bytes(range(256)))
    os.setxattr(top / "file", "user.empty", b"")
    (top / "shut").write_text("cannot be written to")
    os.setxattr(top / "shut", "user.text", b"value")
    (top / "shut").chmod(0o444)
    (top / "folder").mkdir()
    os.setxattr(top / "folder", "user.text", b"of a folder")
    (top / "acl").write_text("with an ACL")
    os.setxattr(top / "acl", "system.posix_acl_access", ACL)
    (top / "acl folder").mkdir()
    (top / "acl folder" / "before").write_text("made before the default ACL")
    os.setxattr(top / "acl folder", "system.posix_acl_access", ACL)
    os.setxattr(top / "acl folder", "system.posix_acl_default", ACL)
    (top / "acl folder" / "after").write_text("inherits")
    (top / "acl folder" / "inner").mkdir()


def _what_only_root_can_make(root: Path) -> None:
    top = root / "root"
    top.mkdir()
    for uid, gid in ((1, 2), (65534, 65534), (123456, 4_000_000_000)):
        path = top / f"of {uid} and {gid}"
        path.write_text("somebody else's")
        os.chown(path, uid, gid)
        os.symlink("target", top / f"link of {uid}")
        os.chown(top / f"link of {uid}", uid, gid, follow_symlinks=False)
        (top / f"folder of {uid}").mkdir(mode=0o750)
        os.chown(top / f"folder of {uid}", uid, gid)
    (top / "set-user-id").write_text("#!/bin/sh\n")
    os.chown(top / "set-user-id", 1, 2)
    (top / "set-user-id").chmod(0o6755)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "disk", stat.S_IFBLK | 0o660, os.makedev(250, 70_000))
    os.chown(top / "disk", 0, 6)
    (top / "trusted").write_text("trusted")
    os.setxattr(top / "trusted", "trusted.overlay", b"y")
    os.symlink("x", top / "trusted link")
    os.setxattr(top / "trusted link", "trusted.note", b"on a link", follow_symlinks=False)
    (top / "capable").write_text("may open raw sockets")
    (top / "capable").chmod(0o755)
    os.chown(top / "capable", 7, 7)
    os.setxattr(top / "capable", "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))


def date_folders(root: Path, time_ns: int = 1_500_000_000_123_456_789) -> None:
    """Give every folder a time of its own, none that making files in it would give."""
    for number, (top, folders, _) in enumerate(os.walk(root, topdown=False)):
        if not (folders and top.endswith("times")):
            os.utime(top, ns=(0, time_ns + number))


def deep(root: Path, levels: int, name: str = "d", content: bytes = b"at the bottom") -> bytes:
    """A chain of folders far deeper than a path may be long, a file at its end; the file's path relative to root."""
    root.mkdir(parents=True, exist_ok=True)
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=at)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = inner
    with open(os.open("file", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=at), "wb") as f:
        f.write(content)
    os.close(at)
    return b"/".join([os.fsencode(name)] * levels + [b"file"])


def open_far(root: Path, path: bytes, flags: int = _READ) -> int:
    """Open a path of any length below a folder."""
    at = os.open(root, os.O_PATH | os.O_DIRECTORY)
    while len(path) > _LONGEST:
        head, _, tail = path[:_LONGEST].rpartition(b"/")
        inner = os.open(head, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
        os.close(at)
        at, path = inner, tail + path[_LONGEST:]
    fd = os.open(path or b".", flags, dir_fd=at)
    os.close(at)
    return fd


# -- comparing ---------------------------------------------------------------------------------------------------------


@dataclass
class Facts:
    """All that a tree says of one thing. ``names``: all paths of a thing with several, in order."""

    kind: str
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    device: int
    target: bytes
    xattrs: dict[bytes, bytes]
    content: str
    data: list[tuple[int, int]]
    names: list[bytes] = field(default_factory=list)


def facts(root: Path) -> dict[bytes, Facts]:
    """Everything in a tree, by path relative to it; the root itself is b""."""
    found: dict[bytes, Facts] = {}
    groups: dict[tuple[int, int], list[bytes]] = {}
    for path, st, above in _walk(root):
        found[path] = _facts(path, st, above)
        if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode):
            group = groups.setdefault((st.st_dev, st.st_ino), [])
            group.append(path)
            found[path].names = group
    for group in groups.values():
        group.sort()
    return found


def _walk(root: Path) -> Iterator[tuple[bytes, os.stat_result, int]]:
    """(path, lstat, open folder it lies in), the root's first."""
    above = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield b"", os.fstat(above), above
    os.close(above)
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        fd = open_far(root, folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        for name in sorted(os.fsencode(n) for n in os.listdir(fd)):
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            path = folder + b"/" + name if folder else name
            yield path, st, fd
            if stat.S_ISDIR(st.st_mode):
                waiting.append(path)
        os.close(fd)


def _facts(path: bytes, st: os.stat_result, above: int) -> Facts:
    name = path.rpartition(b"/")[2] or b"."
    at = b"/proc/self/fd/%d/%s" % (above, name)
    kind = stat.S_IFMT(st.st_mode)
    content, data = "", []
    if kind == stat.S_IFREG:
        fd = os.open(name, _READ, dir_fd=above)
        data = data_map(fd, st.st_size)
        digest = hashlib.sha256()
        for start, end in data:
            digest.update(b"%d %d " % (start, end))
            while start < end:
                piece = os.pread(fd, min(end - start, 4 * MIB), start)
                digest.update(piece)
                start += len(piece)
        os.close(fd)
        content = digest.hexdigest()
    return Facts(
        kind=stat.filemode(st.st_mode)[0],
        mode=stat.S_IMODE(st.st_mode),
        owner=(st.st_uid, st.st_gid),
        mtime_ns=st.st_mtime_ns,
        size=0 if kind == stat.S_IFDIR else st.st_size,
        device=st.st_rdev,
        target=os.readlink(name, dir_fd=above) if kind == stat.S_IFLNK else b"",
        xattrs={
            os.fsencode(x): os.getxattr(at, x, follow_symlinks=False) for x in os.listxattr(at, follow_symlinks=False)
        },
        content=content,
        data=data,
    )


def data_map(fd: int, size: int) -> list[tuple[int, int]]:
    """(start, end) of each run of data; what lies between is holes."""
    found, at = [], 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        found.append((start, at))
    return found


def differences(a: Path, b: Path, *, but: Iterable[str] = (), of: Iterable[bytes] | None = None) -> list[str]:
    """How two trees differ, as sentences. ``but``: facts that do not count (``owner``, ``mode`` …); ``of``: only these
    paths are looked at.
    """
    left, right = facts(a), facts(b)
    ignored = set(but)
    paths = sorted(left.keys() | right.keys()) if of is None else sorted(of)
    found = []
    for path in paths:
        if path not in left or path not in right:
            found.append(f"{path!r} is only in {b if path not in left else a}.")
            continue
        for fact in Facts.__dataclass_fields__:
            one, other = getattr(left[path], fact), getattr(right[path], fact)
            if fact not in ignored and one != other:
                found.append(f"{path!r} differs in {fact}: {one!r}, not {other!r}.")
    return found


def contents(root: Path) -> dict[str, str]:
    """A simple tree as a dictionary: text of files by path, ``->target`` of links, folders left out."""
    found = {}
    for path, st, above in _walk(root):
        name = path.rpartition(b"/")[2]
        if stat.S_ISLNK(st.st_mode):
            found[os.fsdecode(path)] = "->" + os.fsdecode(os.readlink(name, dir_fd=above))
        elif stat.S_ISREG(st.st_mode):
            with open(os.open(name, _READ, dir_fd=above), "rb") as f:
                found[os.fsdecode(path)] = os.fsdecode(f.read())
    return found


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Make a simple tree of such a dictionary; a path that ends in a slash is a folder."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str) and content.startswith("->"):
            path.symlink_to(content[2:])
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root
