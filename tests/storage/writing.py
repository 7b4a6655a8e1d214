"""Objects for tests, and a process that stores them until it is killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from holdfast.storage.base import FOLDERS
from holdfast.storage.select import Access, open_storage

ROOT = Path(__file__).parents[2]


def named(data: bytes, folder: str = "data") -> str:
    return f"{folder}/{hashlib.sha256(data).hexdigest()}"


def an_object(folder: str = "data", size: int = 100) -> tuple[str, bytes]:
    data = os.urandom(size)
    return named(data, folder), data


def endless_objects(dice: random.Random) -> Iterator[tuple[str, bytes]]:
    while True:
        yield an_object(dice.choice(FOLDERS), dice.choice([10, 70_000, 3_000_000]))


@contextlib.contextmanager
def another_writer(address: str, access: Access) -> Iterator[int]:
    """A process that stores objects at an address; its pid, once it has stored the first. It is ended at the end."""
    told = {"address": address, "variables": dict(access.variables), "home": str(access.home)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.storage.writing"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin and process.stdout
    try:
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"writing\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    told = json.loads(sys.stdin.readline())
    storage = open_storage(told["address"], Access(told["variables"], Path(told["home"])))
    for number, (name, data) in enumerate(endless_objects(random.Random())):
        storage.put(name, [data[:5], data[5:]])
        if number == 0:
            print("writing", flush=True)


if __name__ == "__main__":
    main()
