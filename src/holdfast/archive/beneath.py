"""Opening paths below a folder without ever leaving it: no symbolic link is followed, no ``..`` climbs out.

Linux's openat2 does it in one call; where it is missing, each component is opened from its parent with O_NOFOLLOW.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_SYS_OPENAT2 = 437
_RESOLVE = 0x08 | 0x04 | 0x02  # RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_HOW = struct.Struct("=QQQ")
_LONGEST = 4000  # bytes of a path the kernel takes at once
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
_BLOCKED = {errno.ENOSYS, errno.EPERM}  # an old kernel, or a sandbox's filter


def open_beneath(folder: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open ``path``, relative to the open folder, with O_CLOEXEC; its file descriptor.

    OSError as openat's; ELOOP when a component is a symbolic link, EXDEV when the path leads out.
    """
    if not path:
        path = b"."
    if b"\0" in path:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    if len(path) > _LONGEST:
        return _open_in_steps(folder, path, flags, mode)
    how = _HOW.pack(flags | os.O_CLOEXEC, mode, _RESOLVE)
    while True:
        fd = _syscall(_SYS_OPENAT2, folder, path, how, len(how))
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code == errno.EAGAIN:  # something was renamed meanwhile; the kernel asks to try again
            continue
        if code in _BLOCKED:
            return _walk(folder, path, flags, mode)
        raise OSError(code, os.strerror(code), path)


def _open_in_steps(folder: int, path: bytes, flags: int, mode: int) -> int:
    """A path longer than the kernel takes, a piece at a time."""
    cut = path.rfind(b"/", 0, _LONGEST)
    if cut <= 0:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    inner = open_beneath(folder, path[:cut], os.O_PATH | os.O_DIRECTORY)
    try:
        return open_beneath(inner, path[cut:].lstrip(b"/"), flags, mode)
    finally:
        os.close(inner)


def _walk(folder: int, path: bytes, flags: int, mode: int) -> int:
    *parents, last = [p for p in path.split(b"/") if p and p != b"."] or [b"."]
    if b".." in parents or last == b".." or path.startswith(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    at = os.dup(folder)
    try:
        for part in parents:
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=at)
    finally:
        os.close(at)
