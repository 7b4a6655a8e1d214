"""Plans the faults of a version's vectors: what to change in a copy, what must be found then, what may be lost by it.

    .venv/bin/python -m tests.vectors.plan FOLDER        writes FOLDER/faults.json anew, for the v1 and other there

What is lost is derived here from the index and the pages alone, not from what ``check`` says. README.md has the words.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from holdfast.repository.contents import items_of
from holdfast.repository.format import BLOCK, CIPHER_AES, ID_SIZE, PACK_HEADER, Leaf, PackRecord
from holdfast.repository.index import chunks_of, load_index, read_index_object
from holdfast.repository.keys import Sheet, parse_key_file
from holdfast.repository.leases import Owner
from holdfast.repository.pages import Tree, join
from holdfast.repository.reader import ChunkReader
from holdfast.repository.repository import Repository, open_repository
from holdfast.storage.local import LocalStorage

Json = dict[str, Any]
CREDENTIALS = ("password", "write_only_password", "key_file", "sheet")


def write_faults(folder: Path) -> None:
    """Plan every fault; replaces ``faults.json``."""
    faults = Faults(folder)
    for plan in (config_and_keys, envelopes, packs, well_sealed):
        plan(faults)
    assert len({f["name"] for f in faults.found}) == len(faults.found)
    lines = ",\n".join(" " + json.dumps(f, ensure_ascii=False) for f in faults.found)
    sets = ",\n".join(f"  {json.dumps(n)}: {json.dumps(lost, ensure_ascii=False)}" for n, lost in faults.sets.items())
    (folder / "faults.json").write_text(f'{{"faults": [\n{lines}\n],\n"sets": {{\n{sets}\n}}}}\n')


def open_v1(folder: Path) -> Repository:
    """The vector, opened with its recovery sheet."""
    sheet = parse_key_file(json.loads((folder / "v1.json").read_text())["sheet"])
    assert isinstance(sheet, Sheet)
    owner = Owner("vectors", "somebody", "1/2/3", "a boot", lambda lease: False)
    return open_repository(LocalStorage(folder / "v1"), sheet, owner, lambda: 0)


def objects_in(place: Path) -> dict[str, bytes]:
    """A repository in a folder as its objects."""
    found = {}
    for path in sorted(p for p in place.rglob("*") if p.is_file()):
        parts = path.relative_to(place).parts
        found["/".join(parts[:1] if len(parts) == 1 else (parts[0], parts[-1]))] = path.read_bytes()
    return found


def leaves_of(tree: Tree, page: bytes, above: tuple[bytes, ...] = ()) -> Iterator[tuple[tuple[bytes, ...], Leaf]]:
    """Every leaf, with the ids of the pages from the root down to it."""
    content = tree.page(page)
    if isinstance(content, Leaf):
        yield (*above, page), content
    else:
        for child in content.children:
            yield from leaves_of(tree, child.page, (*above, page))


class Faults:
    """Collects faults; knows what of which snapshot depends on what."""

    def __init__(self, folder: Path) -> None:
        self.repo, self.found, self.sets = open_v1(folder), list[Json](), dict[str, Json]()
        self.objects = objects_in(folder / "v1")
        self.others = {f"other/{name}": data for name, data in objects_in(folder / "other").items()}
        loaded = load_index(self.repo.storage, self.repo.secrets, contents=True)
        self.records: dict[bytes, PackRecord] = loaded.records
        self.index_of = {pack: name for name, packs in loaded.packs.items() for pack in packs}
        (self.superseded,) = loaded.objects.keys() - loaded.packs.keys()
        locks = self.repo.leases.survey()
        (self.lease,), (self.condemned,) = {**locks.live, **locks.over}, locks.condemned
        self.reader = ChunkReader(self.repo.storage, self.repo.secrets, loaded.index)
        self.users: dict[bytes, set[tuple[str, str]]] = {}  # chunk -> (snapshot, path) of what is lost without it
        self.snapshots = self.repo.snapshots()
        for stored in self.snapshots:
            for pages, leaf in leaves_of(Tree(self.reader.read, stored.snapshot.root), stored.snapshot.root):
                self._note(stored.id, pages, leaf)

    def _note(self, snapshot: str, pages: tuple[bytes, ...], leaf: Leaf) -> None:
        for directory, entries in leaf.runs:
            for entry in (e for e in entries if e.kind != "d"):
                use = snapshot, quote_from_bytes(join(directory, entry.name), safe="/ ")
                lists = [entry.content[i : i + ID_SIZE] for i in range(0, len(entry.content), ID_SIZE)]
                for chunk in (*pages, *lists, *items_of(entry, self.reader.read)):
                    self.users.setdefault(chunk, set()).add(use)

    def add(
        self,
        name: str,
        *changes: Json,
        found: Iterable[str] = (),
        lost: Iterable[bytes] = (),
        snapshots: Iterable[str] = (),
        opens: dict[str, str] | None = None,
        affected: Iterable[str] = (),
        also: Iterable[str] = (),
    ) -> None:
        """``lost``: chunks that cannot be had. ``snapshots``: those that cannot be read at all. ``opens``: the code of
        the error that each credential meets, none for those that open. ``affected``: objects that are snapshots which
        open, and of which nothing can be had. ``also``: objects that may be named besides.
        """
        by_snapshot: Json = {}
        for snapshot, path in sorted({use for chunk in lost for use in self.users.get(chunk, ())}):
            by_snapshot.setdefault(snapshot, []).append(path)
        by_snapshot |= dict.fromkeys(snapshots, "all")
        fault: Json = {"name": name, "changes": list(changes), "found": list(found)}
        if by_snapshot:
            fault["lost"] = self._set(by_snapshot)
        if opens:
            fault["opens"] = opens
        if affected:
            fault["affected"] = [*affected]
        if also:
            fault["also"] = [*also]
        self.found.append(fault)

    def _set(self, lost: Json) -> str:
        """The name of what is lost: many faults lose the same."""
        known = next((name for name, other in self.sets.items() if other == lost), "")
        name = known or f"set {len(self.sets) + 1}"
        self.sets[name] = lost
        return name

    def pack(self, kind: int, snapshot: int) -> PackRecord:
        """A pack by its kind and the snapshot that brought it: it was named by the same index object as the root."""
        root = self.snapshots[snapshot].snapshot.root
        holder = next(r for r in self.records.values() if root in ids_of(r))
        index = self.index_of[holder.name]
        (found,) = (r for r in self.records.values() if r.kind == kind and self.index_of[r.name] == index)
        return found

    def packs_of(self, index: str) -> list[str]:
        """The packs that an index object names and a snapshot needs."""
        named = (r for r in self.records.values() if self.index_of[r.name] == index)
        return sorted(f"data/{r.name.hex()}" for r in named if not self.users.keys().isdisjoint(ids_of(r)))

    def renamed(self, name: str, data: bytes) -> str:
        return f"{name.split('/')[0]}/{hashlib.sha256(data).hexdigest()}"

    def flipped(self, name: str, at: int, bit: int = 0) -> bytes:
        data = bytearray(self.objects[name])
        data[at] ^= 1 << bit
        return bytes(data)


def ids_of(record: PackRecord) -> set[bytes]:
    return {record.ids[i : i + ID_SIZE] for i in range(0, len(record.ids), ID_SIZE)}


# -- what may be done ------------------------------------------------------------------------------------------------


def flip(name: str, at: int, bit: int = 0) -> Json:
    return {"do": "flip", "object": name, "at": at, "bit": bit}


def cut(name: str, to: int) -> Json:
    return {"do": "cut", "object": name, "to": to}


def write(name: str, at: int, data: bytes) -> Json:
    return {"do": "write", "object": name, "at": at, "hex": data.hex()}


def remove(name: str) -> Json:
    return {"do": "remove", "object": name}


def rename(name: str) -> Json:
    return {"do": "rename", "object": name}


def copy(name: str, to: str) -> Json:
    return {"do": "copy", "object": name, "to": to}


def exchange(one: str, two: str) -> Json:
    return {"do": "exchange", "object": one, "with": two}


def reseal(name: str, purpose: str, path: Sequence[int | str], value: Any) -> Json:
    """Open, change what stands at a path, shut again: a fault made by somebody who holds a key."""
    return {"do": "reseal", "object": name, "purpose": purpose, "path": [*path], "value": value}


def hexed(data: bytes) -> Json:
    return {"hex": data.hex()}


# -- the faults ------------------------------------------------------------------------------------------------------


def config_and_keys(f: Faults) -> None:
    """What keeps a repository from being opened. Without ``found``, nobody but who opens it can see the fault."""
    config = f.objects["config"]
    line = config.index(b"\n")
    damaged, newer, none = (
        dict.fromkeys(CREDENTIALS, code) for code in ("damaged", "unknown-version", "no-repository")
    )
    f.add("config: a bit of the repository's id", flip("config", config.index(b'"repository":"') + 14), opens=damaged)
    f.add("config: a bit of the chunker's sizes", flip("config", config.index(b"16384") + 1), opens=damaged)
    f.add("config: a bit of the proof", flip("config", line + 5), opens=damaged)
    f.add("config: without its proof", cut("config", line + 1), opens=damaged)
    f.add("config: cut in the middle", cut("config", line // 2), opens=damaged)
    f.add("config: empty", cut("config", 0), opens=damaged)
    f.add("config: of a newer version", write("config", config.index(b'"version":1') + 10, b"2"), opens=newer)
    f.add("config: gone", remove("config"), opens=none)
    f.add("config: of another repository", copy("other/config", "config"), opens=damaged)
    _keys(f)


def _keys(f: Faults) -> None:
    keys = [name for name in f.objects if name.startswith("keys/")]
    by_label = {json.loads(f.objects[name].split(b"\n")[0])["label"]: name for name in keys}
    full, weak = by_label["full"], by_label["write-only"]
    data = f.objects[full]
    label, second = data.index(b'"label":"full') + 9, data.index(b"\n") + 1
    bundle = bytearray(base64.b64decode(data[second:]))
    bundle[20] ^= 1
    wrong = {"password": "wrong-key"}
    f.add("key: a bit of the header", flip(full, label), found=[full], opens={"password": "damaged"})
    f.add("key: a bit of the header, and the right name", flip(full, label), rename(full), opens=wrong)
    changed = write(full, second, base64.b64encode(bundle))
    f.add("key: a bit of the bundle, and the right name", changed, rename(full), opens=wrong)
    f.add("key: cut off", cut(full, len(data) - 2), found=[full], opens={"password": "damaged"})
    both = {"password": "damaged", "write_only_password": "damaged"}
    f.add("key: two exchanged", exchange(full, weak), found=[full, weak], opens=both)
    f.add("keys: all gone", *(remove(n) for n in keys), opens=dict.fromkeys(CREDENTIALS[:3], "wrong-key"))
    theirs = next(name for name in f.others if name.startswith("other/keys/"))
    f.add("key: one of another repository with the same password", copy(theirs, theirs[6:]))
    for what, old, new, code in (
        ("asks for ten terabytes", b'"memory":64,', b'"memory":9999999999,', "damaged"),
        ("asks for no memory", b'"memory":64,', b'"memory":0,', "damaged"),
        ("has a short salt", b'"salt":"', b'"salt":"AAAA","was":"', "damaged"),
        ("is of a newer version", b'"version":1', b'"version":2', "unknown-version"),
    ):
        header = data.replace(old, new)
        put = {"do": "put", "object": full, "hex": header.hex()}
        found = [f.renamed(full, header)] if code == "unknown-version" else []
        f.add(f"key: {what}", remove(full), put, rename(full), found=found, opens={"password": code})


def envelopes(f: Faults) -> None:
    """Index objects, snapshots, locks: what stands alone."""
    index, lease, condemned = f.index_of[f.pack(0, 1).name], f.lease, f.condemned
    for what, name in (("index", index), ("lease", lease), ("condemned list", condemned)):
        tag = len(f.objects[name]) - 1
        also = f.packs_of(index) if name == index else []
        one_envelope(f, what, name, {"magic": 0, "version": 7, "salt": 8, "ciphertext": 60, "tag": tag}, [], also)
    f.add("index: one object gone", remove(index), found=f.packs_of(index))
    gone = [remove(name) for name in f.objects if name.startswith("index/")]
    f.add("index: all objects gone", *gone, found=[pack for name in f.objects for pack in f.packs_of(name)])
    f.add("index: the superseded object damaged", flip(f.superseded, 100), found=[f.superseded])
    first, second, third = (f"snapshots/{s.id}" for s in f.snapshots)
    missing = [f.snapshots[1].id]
    parts = {"magic": 0, "version": 7, "epoch": 11, "ML-KEM": 12, "X25519": 1105, "secret": 1140, "ciphertext": 1190}
    one_envelope(f, "snapshot", second, parts | {"tag": len(f.objects[second]) - 1}, missing, [])
    f.add("snapshot: gone, which nobody can see", remove(second), snapshots=missing)
    lost = [f.snapshots[0].id, f.snapshots[2].id]
    f.add("snapshot: two exchanged", exchange(first, third), found=[first, third], snapshots=lost)
    for folder in ("snapshots", "index", "locks", "data"):
        theirs = next(name for name in f.others if name.startswith(f"other/{folder}/"))
        f.add(f"an object of another repository in {folder}", copy(theirs, theirs[6:]), found=[theirs[6:]])
    for name, folder in (
        (second, "index"),
        (index, "locks"),
        (condemned, "index"),
        (index, "snapshots"),
        (lease, "data"),
        (second, "data"),
    ):
        to = f"{folder}/{name.split('/')[1]}"
        f.add(f"an object of {name.split('/')[0]} in {folder}: {to[-4:]}", copy(name, to), found=[to])


def one_envelope(f: Faults, what: str, name: str, parts: dict[str, int], gone: list[str], also: list[str]) -> None:
    size = len(f.objects[name])
    empty = f.renamed(name, b"")
    f.add(f"{what}: a bit", flip(name, size - 20, 3), found=[name], snapshots=gone, also=also)
    f.add(f"{what}: its last byte is missing", cut(name, size - 1), found=[name], snapshots=gone, also=also)
    f.add(f"{what}: empty", cut(name, 0), found=[name], snapshots=gone, also=also)
    f.add(f"{what}: empty, and the right name", cut(name, 0), rename(name), found=[empty], snapshots=gone, also=also)
    for part, at in parts.items():
        new = f.renamed(name, f.flipped(name, at))
        changes = flip(name, at), rename(name)
        f.add(f"{what}: a bit of the {part}, and the right name", *changes, found=[new], snapshots=gone, also=also)


def packs(f: Faults) -> None:
    for what, record in (("data", f.pack(0, 0)), ("tree", f.pack(1, 0)), ("data by ChaCha20", f.pack(0, 1))):
        one_pack(f, f"pack of {what}", record)
    one, two = (f"data/{f.pack(kind, 0).name.hex()}" for kind in (0, 1))
    f.add(
        "packs: two exchanged", exchange(one, two), found=[one, two], lost=ids_of(f.pack(0, 0)) | ids_of(f.pack(1, 0))
    )


def one_pack(f: Faults, what: str, record: PackRecord) -> None:
    name, size, everything = f"data/{record.name.hex()}", record.size, ids_of(record)
    in_block: dict[int, set[bytes]] = {}
    for chunk, where in chunks_of(record):
        in_block.setdefault(where.block, set()).add(chunk)
    last = max(in_block)
    start = PACK_HEADER.size + len(record.sealed)
    offset, stored, _, _ = BLOCK.unpack_from(record.blocks, last * BLOCK.size)
    toc = offset + stored
    parts = {"magic": 0, "version": 7, "kind": 8, "cipher": 9, "sealed length": 11, "epoch": 15, "sealed secret": 500}
    parts |= {"table's magic": toc, "table": toc + 60, "table's length": size - 9, "end": size - 1}
    for part, at in parts.items():
        f.add(f"{what}: a bit of the {part}", flip(name, at), found=[name])
        new = f.renamed(name, f.flipped(name, at))
        f.add(f"{what}: a bit of the {part}, and the right name", flip(name, at), rename(name), found=[name, new],
              lost=everything)  # fmt: skip
    for part, number, at in (("first", 0, start), ("last", last, toc - 1)):
        lost, new = in_block[number], f.renamed(name, f.flipped(name, at))
        f.add(f"{what}: a bit of the {part} block", flip(name, at), found=[name], lost=lost)
        f.add(f"{what}: a bit of the {part} block, and the right name", flip(name, at), rename(name),
              found=[new], lost=lost, also=[name])  # fmt: skip
        copied = copy(name, f"data/{'0' * 64}"), flip(f"data/{'0' * 64}", at), rename(f"data/{'0' * 64}")
        f.add(f"{what}: a copy beside it, the {part} block broken, and the right name", *copied, found=[new])
    f.add(f"{what}: its last byte is missing", cut(name, size - 1), found=[name], lost=everything)
    f.add(f"{what}: empty", cut(name, 0), found=[name], lost=everything)
    f.add(f"{what}: a byte too many", {"do": "append", "object": name, "hex": "00"}, found=[name], lost=everything)
    f.add(f"{what}: gone", remove(name), found=[name], lost=everything)


def well_sealed(f: Faults) -> None:
    """Faults that only a holder of a key can make. Their objects get a new name: in ``found`` it is ``resealed``."""
    record = f.pack(0, 1)
    index, everything = f.index_of[record.name], ids_of(record)
    named = read_index_object(f.repo.storage, f.repo.secrets, index).packs
    number = next(i for i, other in enumerate(named) if other.name == record.name)
    chunks = [chunk for chunk, _ in chunks_of(record)]
    first = {chunk for chunk, where in chunks_of(record) if where.block == 0}

    def says(what: str, field: int, value: Any, lost: Iterable[bytes], found: str = "") -> None:
        change = reseal(index, "index", [0, number, field], value)
        also = f.packs_of(index) if found else []
        f.add(f"index, sealed anew: {what}", change, found=[found or f"data/{record.name.hex()}"], lost=lost, also=also)

    def patched(data: bytes, at: int, new: str) -> Json:
        return hexed(data[:at] + bytes.fromhex(new) + data[at + len(new) // 2 :])

    longer = f"{(record.blocks[11] + 1) % 256:02x}"
    exchanged = record.lengths[4:8] + record.lengths[:4]
    says("a block of 4 GiB", 6, patched(record.blocks, 8, "ffffffff"), (), "resealed")
    says("a block that is a byte longer", 6, patched(record.blocks, 11, longer), (), "resealed")
    says("a block beyond the pack", 6, patched(record.blocks, 0, "ffffff00"), first)
    says("a stored length of 4 GiB", 6, patched(record.blocks, 4, "ffffffff"), first)
    says("an unknown codec", 6, patched(record.blocks, 12, "07"), first)
    says("a chunk beyond its block", 8, patched(record.lengths, 0, "ffffffff"), (), "resealed")
    says("a chunk of no length", 8, patched(record.lengths, 0, "00000000"), (), "resealed")
    says("a chunk too many", 8, hexed(record.lengths + bytes(4)), (), "resealed")
    says("two lengths exchanged", 8, patched(record.lengths, 0, exchanged.hex()), chunks[:2])
    says("two ids exchanged", 7, patched(record.ids, 0, (chunks[1] + chunks[0]).hex()), chunks[:2])
    says("another size", 1, record.size + 1, everything)
    says("another cipher", 3, CIPHER_AES, everything)
    says("an unknown cipher", 3, 9, everything)
    says("the sealed secret of another pack", 5, hexed(f.pack(0, 0).sealed), everything)
    says("no such epoch", 4, 77, everything)
    says("ids with a ragged end", 7, hexed(record.ids[:-1]), (), "resealed")
    says("a name that is too short", 0, hexed(record.name[:-1]), (), "resealed")
    second, gone = f"snapshots/{f.snapshots[1].id}", [f.snapshots[1].id]
    nowhere = reseal(second, "snapshot", ["root"], hexed(b"\x11" * ID_SIZE))
    f.add("snapshot, sealed anew: a root that is nowhere", nowhere, snapshots=gone, affected=["resealed"])
    text = reseal(second, "snapshot", ["root"], "text")
    f.add("snapshot, sealed anew: a root of text", text, found=["resealed"], snapshots=gone)
    f.add("lease, sealed anew: an unknown type", reseal(f.lease, "locks", ["type"], "wish"), found=["resealed"])
    f.add("lease, sealed anew: knows what is no list", reseal(f.lease, "locks", ["knows"], 5), found=["resealed"])


if __name__ == "__main__":
    write_faults(Path(sys.argv[1]))
