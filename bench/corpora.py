"""The corpora: what the benchmark backs up, built from this machine and from seeds.

`python -m bench.corpora [--quick] [NAME ...]` builds them ahead of time; `bench.run` builds what it lacks.

Promise: the same machine, scale and version give the same bytes. A finished corpus has a marker `NAME.json`
beside it saying what it is and is used again; a half-built one has none and is built anew. Corpora are only
ever changed through `bench.changes`, which puts everything back.

    small     100,000 small files of /usr (or edited variants of them), 965 MB, directories as they were
    random    one file of 2 GiB of seeded random bytes: nothing compresses, nothing repeats
    eighth    the same of 256 MiB: memory must not grow from this one to `random`
    tar       the first 2 GiB of a tar of /usr
    million   1,000,000 entries, mostly empty files, for scanning
    vm        a sparse image of 10 GB, 2 GB of data in extents between holes
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from bench.changes import edited, undo
from bench.work import CHECKOUT, remove, work_folder

VERSION = 1
MIB = 1 << 20
BLOCK = 4096
SOURCE = Path("/usr")
LARGEST_SMALL_FILE = 256 << 10


@dataclass(frozen=True)
class Scale:
    """How large each corpus is."""

    name: str
    files: int
    files_bytes: int
    random_bytes: int
    eighth_bytes: int
    tar_bytes: int
    entries: int
    image_bytes: int
    image_data: int
    snapshots: int


FULL = Scale("full", 100_000, 965_000_000, 2 << 30, 256 << 20, 2 << 30, 1_000_000, 10**10, 2 * 10**9, 1000)
QUICK = Scale("quick", 10_000, 96_500_000, 205 << 20, 26 << 20, 205 << 20, 100_000, 10**9, 2 * 10**8, 100)


class Corpora:
    """Hands out the paths of the corpora of one scale, building each when it is first asked for."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder = folder if scale is FULL else folder / scale.name
        self.scale = scale
        self.builders: dict[str, Callable[[Path, Scale], dict[str, int]]] = {
            "small": build_small,
            "random": lambda path, scale: build_random(path, scale.random_bytes),
            "eighth": lambda path, scale: build_random(path, scale.eighth_bytes),
            "tar": build_tar,
            "million": build_million,
            "vm": self._build_vm,
        }

    def path(self, name: str) -> Path:
        """The corpus, ready and unchanged."""
        path, marker = self.folder / name, self.folder / f"{name}.json"
        wanted = {"version": VERSION, **asdict(self.scale)}
        try:
            ready = path.exists() and json.loads(marker.read_bytes())["wanted"] == wanted
        except (OSError, ValueError, KeyError):
            ready = False
        journal = self.folder / f"{name}.undo"
        if ready:
            undo(journal)
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in (marker, journal, path):
            remove(stale)
        print(f"building corpus {name} ({self.scale.name}) ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        facts = self.builders[name](path, self.scale)
        marker.write_text(json.dumps({"wanted": wanted, "facts": facts}, indent=1) + "\n")
        seconds = time.perf_counter() - start
        print(f"  {path}: {facts} in {seconds:.1f} s", file=sys.stderr, flush=True)
        return path

    def facts(self, name: str) -> dict[str, int]:
        """What the marker of a built corpus says: entries, bytes."""
        found = json.loads((self.folder / f"{name}.json").read_bytes())["facts"]
        return {str(key): int(value) for key, value in found.items()}

    def _build_vm(self, path: Path, scale: Scale) -> dict[str, int]:
        return build_vm(path, scale, self.path("tar"))


# ---- small ------------------------------------------------------------------------------------------------


def build_small(path: Path, scale: Scale) -> dict[str, int]:
    """Copy `scale.files` files of /usr, about `scale.files_bytes` in all; edited variants fill up."""
    found = list(_small_files())
    if not found:
        raise SystemExit(f"no files found in {SOURCE} to build the corpus 'small' from")
    rounds = -(-scale.files // len(found))
    offers = [(variant, name, size) for variant in range(rounds) for name, size in found]
    made = written = 0
    folders: set[Path] = set()
    for variant, name, _ in sorted(_choose(offers, scale.files, scale.files_bytes)):
        target = path / f"variant-{variant}" / name if variant else path / name
        if target.parent not in folders:
            target.parent.mkdir(parents=True, exist_ok=True)
            folders.add(target.parent)
        try:
            written += _copy_variant(SOURCE / name, target, variant)
        except FileNotFoundError:
            continue
        made += 1
    return {"files": made, "bytes": written}


def _small_files() -> Iterator[tuple[str, int]]:
    device = SOURCE.stat().st_dev
    for folder, names, files in os.walk(SOURCE):
        inner = (os.path.join(folder, name) for name in sorted(names))
        names[:] = [os.path.basename(p) for p in inner if p != str(CHECKOUT) and os.lstat(p).st_dev == device]
        for name in sorted(files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST_SMALL_FILE:
                yield os.path.relpath(path, SOURCE), status.st_size


def _choose(offers: list[tuple[int, str, int]], count: int, wanted: int) -> list[tuple[int, str, int]]:
    """Take `count` of the offers by a hash of the name, then swap some until the sum is `wanted`."""

    def order(offer: tuple[int, str, int]) -> bytes:
        return hashlib.blake2b(f"{offer[0]}/{offer[1]}".encode(errors="surrogateescape"), digest_size=16).digest()

    ordered = sorted(offers, key=order)
    chosen, spare = ordered[:count], ordered[count:]
    missing = wanted - sum(size for _, _, size in chosen)
    for place, offer in enumerate(spare[: len(chosen)]):
        gain = offer[2] - chosen[place][2]
        if abs(missing - gain) < abs(missing):
            chosen[place] = offer
            missing -= gain
    return chosen


def _copy_variant(source: Path, target: Path, variant: int) -> int:
    status = source.stat()
    data = source.read_bytes()
    if variant:
        data = edited(data, random.Random(f"variant {variant} {source}"))
    target.write_bytes(data)
    target.chmod(status.st_mode & 0o777 | 0o600)
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
    return len(data)


# ---- random, tar ------------------------------------------------------------------------------------------


def build_random(path: Path, size: int) -> dict[str, int]:
    """`size` seeded random bytes; the seed holds the size, so that two such files share nothing."""
    source = random.Random(f"random {size}")
    with path.open("wb") as out:
        for start in range(0, size, MIB):
            out.write(source.randbytes(min(MIB, size - start)))
    return {"bytes": size}


def build_tar(path: Path, scale: Scale) -> dict[str, int]:
    """The first bytes of a tar of /usr, in the order of the names."""
    argv = ["tar", "-C", str(SOURCE.parent), "--sort=name", "--one-file-system", "-cf", "-", SOURCE.name]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    left = scale.tar_bytes
    with path.open("wb") as out:
        while left and (piece := process.stdout.read(min(MIB, left))):
            out.write(piece)
            left -= len(piece)
    process.stdout.close()
    process.kill()
    process.wait()
    if left:
        print(f"  note: a tar of {SOURCE} is {left} bytes shorter than wanted", file=sys.stderr)
    return {"bytes": scale.tar_bytes - left}


# ---- million ----------------------------------------------------------------------------------------------


def build_million(path: Path, scale: Scale) -> dict[str, int]:
    """`scale.entries` files, symlinks, directories: three levels, 19 in a leaf, 9 of 10 files empty."""
    leaves = max(1, scale.entries // 20)
    folders = {f"{n // 2500:02d}" for n in range(leaves)} | {
        f"{n // 2500:02d}/{n // 50 % 50:02d}" for n in range(leaves)
    }
    names = [f"{n // 2500:02d}/{n // 50 % 50:02d}/{n % 50:02d}" for n in range(leaves)]
    files = scale.entries - len(folders) - len(names)
    path.mkdir()
    for folder in sorted(folders):
        (path / folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        first, last = files * number // leaves, files * (number + 1) // leaves
        leaf = os.path.join(path, name)
        os.mkdir(leaf)
        handle = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _fill_leaf(handle, range(first, last))
        finally:
            os.close(handle)
    return {"entries": files + len(folders) + len(names), "directories": len(folders) + len(names)}


def _fill_leaf(folder: int, numbers: range) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    for number in numbers:
        if number % 50 == 7:
            os.symlink(f"../entry-{number - 1:07d}.txt", f"link-{number:07d}", dir_fd=folder)
            continue
        handle = os.open(f"entry-{number:07d}.txt", flags, 0o644, dir_fd=folder)
        if number % 10 == 0:
            os.write(handle, b"entry %d of the scanning corpus\n" % number)
        os.close(handle)


# ---- vm ---------------------------------------------------------------------------------------------------


def build_vm(path: Path, scale: Scale, content: Path) -> dict[str, int]:
    """A sparse image: extents of 64 KiB to 16 MiB, 3 of 4 continue the tar of /usr, the rest random."""
    source = random.Random("vm")
    lengths: list[int] = []
    left = scale.image_data // BLOCK
    while left:
        lengths.append(min(left, int(2 ** source.uniform(4, 12))))
        left -= lengths[-1]
    weights = [source.expovariate(1.0) for _ in range(len(lengths) + 1)]
    per_weight = (scale.image_bytes - scale.image_data) // BLOCK / sum(weights)
    position = 0
    with path.open("wb") as out, content.open("rb") as tar:
        out.truncate(scale.image_bytes // BLOCK * BLOCK)
        for length, weight in zip(lengths, weights, strict=False):
            position += int(weight * per_weight)
            out.seek(position * BLOCK)
            _write_extent(out, tar, length * BLOCK, source)
            position += length
    status = path.stat()
    return {"bytes": status.st_size, "allocated": status.st_blocks * 512, "extents": len(lengths)}


def _write_extent(out: BinaryIO, tar: BinaryIO, length: int, source: random.Random) -> None:
    if source.random() < 0.25:
        out.write(source.randbytes(length))
        return
    data = tar.read(length)
    out.write(data + source.randbytes(length - len(data)))


# ---- command line -----------------------------------------------------------------------------------------


def need_space(folder: Path, scale: Scale) -> None:
    """Stop with a clear word when the disk is too full for corpora and repositories of this scale."""
    need = 40 * 10**9 if scale is FULL else 5 * 10**9
    free = shutil.disk_usage(folder).free
    if free < need:
        raise SystemExit(f"{folder} has {free / 1e9:.0f} GB free, the {scale.name} benchmark needs {need / 1e9:.0f} GB")


def main() -> None:
    """Build the named corpora, or all."""
    parser = argparse.ArgumentParser(prog="python -m bench.corpora", description="build the benchmark's corpora")
    parser.add_argument("--quick", action="store_true", help="ten times smaller")
    parser.add_argument("names", nargs="*", metavar="NAME", help="small random eighth tar million vm (default: all)")
    options = parser.parse_args()
    corpora = Corpora(work_folder(), QUICK if options.quick else FULL)
    if unknown := set(options.names) - set(corpora.builders):
        parser.error(f"no such corpus: {', '.join(sorted(unknown))}")
    need_space(work_folder(), corpora.scale)
    for name in options.names or corpora.builders:
        print(corpora.path(name))


if __name__ == "__main__":
    main()
