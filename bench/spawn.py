"""Runs one command and writes down what it cost; started by `bench.measure` as a process of its own.

    python -I -S spawn.py RESULT PROGRAM ARGUMENT ...

Promise: RESULT gets one JSON list [wall, user, system, peak, status]: seconds, and the largest resident set
in bytes of any one process of the command's tree. It is kept small on purpose: the kernel counts the memory
of the process that starts a program into that program's peak, so this file must import next to nothing (its
floor is about 10 MB).
"""

import os
import sys
import time


def main() -> None:
    """Start, wait, write."""
    result, argv = sys.argv[1], sys.argv[2:]
    start = time.perf_counter()
    pid = os.posix_spawnp(argv[0], argv, os.environ)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    with open(result, "w", encoding="ascii") as out:
        out.write(f"[{wall:.6f}, {usage.ru_utime:.6f}, {usage.ru_stime:.6f}, {usage.ru_maxrss * 1024}, {code}]")


if __name__ == "__main__":
    main()
