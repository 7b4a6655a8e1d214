"""A second reader of Holdfast repositories, to prove that docs/format.md suffices to write one.

It was written from that page alone and shares no code with src/: what it reads is what the page says, not what the
program happens to do. When the two disagree, the page or the program is wrong. Numbers in comments are the page's
sections. It is strict, it reads folders only, and nothing of it is ever used by the program.

Nothing it gives back is unverified. What it refuses raises ``Refused``; or, where one bad object or entry must not
keep others from being read, is noted in ``Repository.refused`` or yielded in the place of the entry.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import struct
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import zstandard
from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
U32, U64, LENGTH, TIME = range(1 << 32), range(1 << 64), range(1 << 63), range(-(1 << 63), 1 << 64)
HEX32, HEX64 = re.compile("[0-9a-f]{32}"), re.compile("[0-9a-f]{64}")
CIPHERS = (AESGCM, ChaCha20Poly1305)
HEADER = 16 + 1168
REQUIRED = object()


class Refused(Exception):
    """What was given is not what the page says."""


class Pack(NamedTuple):  # 7, as in the table "Pack record"
    name: bytes
    size: int
    kind: int
    cipher: int
    epoch: int
    sealed: bytes
    blocks: bytes
    ids: bytes
    places: bytes


class Entry(NamedTuple):  # 9, as in the table "Entries"; the folder and the owners' names come from the leaf
    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    ctime: int
    inode: int
    size: int
    content: bytes
    depth: int
    target: bytes
    device: int
    links: list[int] | None
    xattrs: dict[bytes, bytes] | None
    folder: bytes
    user: str | None
    group: str | None

    @property
    def key(self) -> tuple[bytes, bytes]:
        return self.folder.replace(b"/", b"\0"), self.name


@dataclass
class Repository:
    root: Path
    id: bytes
    shared: bytes
    private: dict[int, bytes]
    refused: dict[str, str] = field(default_factory=dict)
    chunks: dict[bytes, list[tuple[Pack, int]]] = field(default_factory=dict)  # id: packs, and the place as a u64
    tables: bool = False  # all packs' own tables were read
    unsealed: dict[bytes, bytes] = field(default_factory=dict)
    unpacked: dict[tuple[Pack, int], bytes] = field(default_factory=dict)


# --- checks ---------------------------------------------------------------------------------------------------


def need(condition: object, why: str) -> None:
    if not condition:
        raise Refused(why)


@contextmanager
def noting(repository: Repository, what: str) -> Iterator[None]:
    try:
        yield
    except Refused as refusal:
        repository.refused[what] = str(refusal)


def fits(value: Any, kind: Any) -> bool:
    """A type; a range of integers; a number of bytes; a list with one kind of elements; or one of a tuple of those."""
    if isinstance(kind, tuple):
        return any(fits(value, k) for k in kind)
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if isinstance(kind, int):
        return type(value) is bytes and len(value) == kind
    if isinstance(kind, list):
        return type(value) is list and all(fits(v, kind[0]) for v in value)
    return value is None if kind is None else type(value) is kind


def fields(value: Any, table: dict[str, Any], what: str) -> list[Any]:
    """The table's fields, from an array or a map (3); a kind is followed by its default, if it has one."""
    wanted = list if not isinstance(value, dict) else dict
    need(type(value) is wanted, f"{what} is neither an array nor a map")
    found = []
    for number, (name, row) in enumerate(table.items()):
        kind, default = row if type(row) is tuple else (row, REQUIRED)
        here = value[number] if wanted is list and number < len(value) else default
        here = value.get(name, default) if wanted is dict else here
        need(here is default or fits(here, kind), f"{what}: {name} is of a wrong type or size")
        need(here is not REQUIRED, f"{what}: {name} is missing")
        found.append(here)
    return found


def decode(data: bytes, kind: Any, what: str) -> Any:
    try:
        value = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise Refused(f"{what} is not MessagePack: {error}") from error
    need(type(value) is kind, f"{what} is not of the right structure")
    return value


def from_json(line: bytes, what: str, version: int = 1) -> dict[str, Any]:
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise Refused(f"{what} is not JSON") from error
    need(type(value) is dict and value.get("format") == what, f"this is no {what}")
    need(type(value.get("version")) is int and value["version"] == version, f"{what} of another version")
    need(type(value.get("repository")) is str and HEX32.fullmatch(value["repository"]), f"{what}: no id")
    return value


def from_base64(text: Any, size: int | None, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise Refused(f"{what} is not base64") from error
    need(size is None or len(data) == size, f"{what} has a wrong length")
    return data


def two_lines(data: bytes, what: str) -> tuple[bytes, bytes]:
    lines = data.split(b"\n")
    need(len(lines) == 3 and not lines[2], f"{what} is not two lines")
    return lines[0] + b"\n", lines[1]


# --- objects (2) ----------------------------------------------------------------------------------------------


def path_of(root: Path, kind: str, name: str) -> Path:
    return root / kind / name[:2] / name if kind == "data" else root / kind / name


def names(root: Path, kind: str) -> list[str]:
    found = (root / kind).glob("*/*" if kind == "data" else "*")
    return sorted(p.name for p in found if HEX64.fullmatch(p.name) and p == path_of(root, kind, p.name) and p.is_file())


def read_part(path: Path, offset: int, length: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise Refused(f"{path.name}: {error.strerror}") from error
    need(len(data) == length, f"{path.name} is too short")
    return data


def size_of(path: Path, limit: int) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise Refused(f"{path.name}: {error.strerror}") from error
    need(size <= limit, f"{path.name} is larger than it may be")
    return size


def read_object(root: Path, kind: str, name: str, limit: int = GIB + MIB) -> bytes:
    path = path_of(root, kind, name)
    data = read_part(path, 0, size_of(path, limit))
    need(hashlib.sha256(data).hexdigest() == name, f"{kind}/{name}: its SHA-256 is not its name")
    return data


# --- primitives and secrets (3, 4) ----------------------------------------------------------------------------


def keyed(key: bytes, data: bytes) -> bytes:
    return blake3(data, key=key).digest()


def derive(name: str, material: bytes) -> bytes:
    return blake3(material, derive_key_context=f"Holdfast repository v1 {name}").digest()


def aead(cipher: Any, key: bytes, nonce: bytes, data: bytes, extra: bytes, what: str) -> bytes:
    try:
        return bytes(cipher(key).decrypt(nonce, data, extra))
    except (InvalidTag, ValueError) as error:
        raise Refused(f"{what} is not authentic") from error


def unzstd(frame: bytes, limit: int) -> bytes:
    try:
        header = zstandard.get_frame_parameters(frame)
        need(frame[:4] == b"\x28\xb5\x2f\xfd" and header.dict_id == 0, "not a zstd frame without dictionary")
        need(0 < header.content_size <= limit, "a zstd frame of no size, or beyond the limit")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refused("not one zstd frame") from error


def hpke_open(private: bytes, info: bytes, sealed: bytes) -> bytes:
    """RFC 9180 as 3 writes it out, with nothing but the primitives."""
    suite = b"HPKE" + bytes.fromhex("647a00010002")
    x25519, ephemeral = X25519PrivateKey.from_private_bytes(private[64:]), sealed[1088:1120]

    def extract(label: bytes, ikm: bytes, salt: bytes = bytes(32)) -> bytes:
        return hmac.digest(salt, b"HPKE-v1" + suite + label + ikm, "sha256")

    def expand(label: bytes, size: int) -> bytes:
        labelled = struct.pack(">H", size) + b"HPKE-v1" + suite + label + context
        return HKDFExpand(SHA256(), size, labelled).derive(secret)

    try:
        ss_m = MLKEM768PrivateKey.from_seed_bytes(private[:64]).decapsulate(sealed[:1088])
        ss_x = x25519.exchange(X25519PublicKey.from_public_bytes(ephemeral))
    except ValueError as error:
        raise Refused("the sealed secret is malformed") from error
    both = ss_m + ss_x + ephemeral + x25519.public_key().public_bytes_raw() + bytes.fromhex("5c2e2f2f5e5c")
    context = b"\0" + extract(b"psk_id_hash", b"") + extract(b"info_hash", info)
    secret = extract(b"secret", b"", salt=hashlib.sha3_256(both).digest())
    return aead(AESGCM, expand(b"key", 32), expand(b"base_nonce", 12), sealed[1120:], b"", "the sealed secret")


def data_key(repository: Repository, epoch: int, sealed: bytes) -> bytes:
    if sealed not in repository.unsealed:
        need(len(sealed) == 1168, "the sealed secret has a wrong length")
        need(epoch in repository.private, f"no private key of epoch {epoch}")
        info = b"holdfast v1 " + repository.id + struct.pack(">I", epoch)
        secret = hpke_open(repository.private[epoch], info, sealed)
        repository.unsealed[sealed] = keyed(derive("proof of writers", repository.shared), secret)
    return repository.unsealed[sealed]


def bundle_of(data: bytes) -> tuple[str, bytes, dict[int, bytes]]:
    table = {"repository": str, "shared": 32, "epochs": [list]}
    repository, shared, epochs = fields(decode(data, dict, "bundle"), table, "bundle")
    private = {}
    for epoch in epochs:
        rows = {"number": range(1, 1 << 32), "public": ((1216, 0),), "private": ((96, 0),)}
        number, public, secret = fields(epoch, {k: v[0] if type(v) is tuple else v for k, v in rows.items()}, "epoch")
        if secret:
            private[number] = secret
            lattice = MLKEM768PrivateKey.from_seed_bytes(secret[:64]).public_key().public_bytes_raw()
            curve = X25519PrivateKey.from_private_bytes(secret[64:]).public_key().public_bytes_raw()
            need(public in (b"", lattice + curve), "epoch: its public key is another one's")
    need(epochs, "bundle without epochs")
    return repository, shared, private
