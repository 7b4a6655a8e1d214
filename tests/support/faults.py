"""Real faults: disks that are full, read-only or lose power, system calls that fail, processes that are killed.

``Machine`` makes them and takes everything back at its end, in reverse order, whatever happened: mounts, loop devices,
children. Disks are loop-mounted images or tmpfs, so mounting needs root.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.components import missing, need

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN of ext4 and XFS
_WITHOUT_FLUSHING = struct.pack("I", 2)

WORKED = 0
FAILED_AS_IT_SHOULD = 3  # a child's exit status: one of the errors it may raise
FAULT = 4  # a child's exit status: anything else; its traceback is on standard error


def run(*command: str | os.PathLike[str]) -> None:
    """Run a program of the machine; an error tells what it said."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    )
    if done.returncode:
        raise OSError(f"{' '.join(str(word) for word in command)}: {done.stdout.strip()}")


@dataclass
class Disk:
    """A file system of its own, mounted at ``path``. ``image`` is empty for a tmpfs."""

    path: Path
    image: Path | None
    options: str

    def mount(self) -> None:
        if self.image:
            run("mount", "-o", f"loop,{self.options}", self.image, self.path)
        else:
            run("mount", "-t", "tmpfs", "-o", self.options, "holdfast-test", self.path)

    def unmount(self) -> None:
        """Waits for whoever is still letting go of a file. The loop device goes with the mount."""
        for _ in range(50):
            with contextlib.suppress(OSError):
                run("umount", self.path)
                return
            time.sleep(0.02)
        run("umount", "-l", self.path)

    def cut_power(self, just_before: Callable[[], object] = lambda: None) -> None:
        """From now on every access is an error, and what was not flushed is lost (as `xfs_io -x -c shutdown` does it).

        ``just_before`` runs microseconds before. What a program says later does not count: the real cut would have
        ended it, but here it lives on, and XFS, shut down, answers the fsync of a folder with success.
        """
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            just_before()
            fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_FLUSHING)
        finally:
            os.close(fd)

    def come_back(self) -> None:
        """As after the next boot."""
        self.unmount()
        self.mount()

    def set(self, options: str) -> None:
        """Remount with other options, as ``ro`` or ``size=9m``, waiting for writers to close their files."""
        for attempt in range(200):
            try:
                return run("mount", "-o", f"remount,{options}", self.path)
            except OSError:
                if attempt == 199:
                    raise
                time.sleep(0.005)


@dataclass
class Machine:
    """Makes disks and children below ``folder``, and takes them back in ``close``."""

    folder: Path
    _disks: list[Disk] = field(default_factory=list)
    _children: list[int] = field(default_factory=list)

    def tmpfs(self, **options: object) -> Disk:
        """``tmpfs(size="1m", nr_inodes=10)``."""
        return self._add(None, ",".join(f"{k}={v}" for k, v in options.items()))

    def disk(self, kind: str, megabytes: int = 0, *make: str) -> Disk:
        """A loop-mounted ext4 or xfs (which needs 300 MB; the image is sparse). ``make``: options of mkfs."""
        megabytes = megabytes or {"ext4": 64, "xfs": 320}[kind]
        program = need(f"mkfs.{kind}")
        image = self.folder / f"image-{len(self._disks)}"
        with image.open("wb") as f:
            f.truncate(megabytes << 20)
        run(program, "-q", *make, image)
        return self._add(image, "noatime")

    def child(self, work: Callable[[], object], fine: tuple[type[BaseException], ...] = ()) -> int:
        """A forked process that does the work and ends with one of the statuses above; its id."""
        pid = os.fork()
        if pid == 0:
            status = FAULT
            try:
                faulthandler.dump_traceback_later(20, file=2)  # for one that hangs
                work()
                status = WORKED
            except fine:
                status = FAILED_AS_IT_SHOULD
            except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(status)
        self._children.append(pid)
        return pid

    def end(self, pid: int, sign: int = signal.SIGKILL, *, seconds: float = 0.0) -> int:
        """Give the child so many seconds to end by itself, then send it the signal; its exit status, or -signal."""
        deadline = time.monotonic() + seconds
        ended, status = os.waitpid(pid, os.WNOHANG)
        while not ended and time.monotonic() < deadline:
            time.sleep(0.005)
            ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, sign)
            _, status = os.waitpid(pid, 0)
        self._children.remove(pid)
        return os.waitstatus_to_exitcode(status)

    def wait(self, pid: int) -> int:
        """The child's exit status; it is killed after half a minute."""
        return self.end(pid, seconds=30)

    def close(self) -> None:
        for pid in list(self._children):
            with contextlib.suppress(OSError):
                self.end(pid)
        for disk in reversed(self._disks):
            with contextlib.suppress(OSError):
                disk.unmount()

    def _add(self, image: Path | None, options: str) -> Disk:
        path = self.folder / f"disk-{len(self._disks)}"
        path.mkdir()
        disk = Disk(path, image, options)
        try:
            disk.mount()
        except OSError as e:
            missing(f"nothing can be mounted here: {e}")
        self._disks.append(disk)
        return disk


@contextlib.contextmanager
def machine_in(folder: Path) -> Iterator[Machine]:
    """A Machine for the time of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = Machine(folder)
    try:
        yield machine
    finally:
        machine.close()


# -- the command line, with system calls that fail ---------------------------------------------------------------------


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


def injected(*faults: str) -> list[str]:
    """The beginning of a command whose system calls fail: ``injected("writev:error=ENOSPC:when=2+")``. The count is
    each thread's own.
    """
    names = ",".join(fault.partition(":")[0] for fault in faults)
    command = [need("strace"), "-f", "--seccomp-bpf", "-qqq", "-o", "/dev/null", "-e", f"trace={names}"]
    return [*command, *(word for fault in faults for word in ("-e", f"inject={fault}"))]


def start_holdfast(
    *words: str | os.PathLike[str], env: Mapping[str, str], before: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start the command line as a process of its own."""
    command = [*before, sys.executable, "-m", "holdfast", *[os.fspath(word) for word in words]]
    return subprocess.Popen(
        command,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def holdfast(*words: str | os.PathLike[str], env: Mapping[str, str], before: Sequence[str] = ()) -> Ended:
    """Run the command line to its end."""
    with start_holdfast(*words, env=env, before=before) as process:
        out, err = process.communicate(timeout=120)
    return Ended(process.returncode, out, err)
