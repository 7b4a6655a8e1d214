"""Section 3 of docs/format.md for reader.py: structures, notation and primitives. It shares no code with src/."""

from __future__ import annotations

import ast
import base64
import hashlib
import hmac
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import msgspec
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
Record = SimpleNamespace  # with the fields of one of the page's tables


class Refused(Exception):
    """What was given is not what the page says."""


def need(condition: object, why: str) -> None:
    if not condition:
        raise Refused(why)


@contextmanager
def refusing(what: str, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise Refused(f"{what}: {error!r}") from error


@contextmanager
def noting(refused: dict[str, str], what: str) -> Iterator[None]:
    try:
        yield
    except Refused as refusal:
        refused[what] = str(refusal)


# A table of the page is a text here, with a field as name:kind or name:kind=default. A kind is a type; a range of
# integers; a number of bytes; a list with the kind of its elements; or a tuple of kinds, any of which will do.
# fmt: off
KINDS: dict[str, Any] = {
    "bin": bytes, "str": str, "int": int, "float": (float, int), "map": dict, "map/nil": (dict, None),
    "bin24": 24, "bin32": 32, "name": (32, 0), "sealed": (1168, 0), "public": (1216, 0), "private": (96, 0),
    "arrays": [list], "strs": [str], "bins": [bytes], "bin32s": [32], "pair/nil": ([range(1 << 64)], None),
    "u32": range(1 << 32), "u64": range(1 << 64), "size": range(1 << 63), "time": range(-1 << 63, 1 << 64),
    "bit": range(2), "mode": range(0o10000), "level": range(1, 12), "epoch": range(1, 1 << 32),
    "passes": range(1, 21), "memory": range(8, 2 * MIB + 1), "lanes": range(1, 17),
    "min": range(64, MIB + 1), "avg": range(256, 4 * MIB + 1), "max": range(KIB, 4 * MIB + 1), "norm": range(4),
}
# fmt: on


def fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return any(fits(value, k) for k in kind)
    if isinstance(kind, list):
        return type(value) is list and all(fits(v, kind[0]) for v in value)
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if isinstance(kind, int):
        return type(value) is bytes and len(value) == kind
    return value is None if kind is None else type(value) is kind


@cache
def rows(table: str) -> list[tuple[str, Any, str]]:
    split = [row.replace("=", ":").split(":") for row in table.split()]
    return [(name, KINDS[kind], default[0] if default else "") for name, kind, *default in split]


def fields(value: Any, table: str, structure: type = list) -> Record:
    """The table's fields, from an array or from a map (``structure=dict``); those it does not have are ignored."""
    need(type(value) is structure, f"no {structure.__name__} of {table.split(':')[0]} …")
    found = {}
    for number, (name, kind, default) in enumerate(rows(table)):
        if name in value if structure is dict else number < len(value):
            found[name] = value[name if structure is dict else number]
            need(fits(found[name], kind), f"{name} is not what it may be")
        else:
            need(default, f"{name} is missing")
            found[name] = ast.literal_eval(default)
    return Record(**found)


def decode(data: bytes) -> Any:
    with refusing("MessagePack", msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return msgspec.msgpack.decode(data)


def from_base64(text: str | bytes, size: int | None = None) -> bytes:
    with refusing("base64", ValueError):
        data = base64.b64decode(text, validate=True)
    need(size in (None, len(data)), "base64 of a wrong length")
    return data


def two_lines(data: bytes, table: str, form: str) -> tuple[Record, bytes, bytes]:
    """``config`` and keys: what line 1 says, line 1 as it is stored, and line 2 without its newline."""
    lines = data.split(b"\n")
    need(len(lines) == 3 and not lines[2], f"{form}: not two lines")
    with refusing(form, ValueError, RecursionError):
        value = json.loads(lines[0].decode())
    need(type(value) is dict and value.get("format") == form, f"not a {form}")
    need(type(value.get("version")) is int and value["version"] == 1, f"{form}: another version")
    return fields(value, table, dict), lines[0] + b"\n", lines[1]


def keyed(key: bytes, data: bytes) -> bytes:
    return blake3(data, key=key).digest()


def derive(name: str, material: bytes) -> bytes:
    return blake3(material, derive_key_context=f"Holdfast repository v1 {name}").digest()


def aead(cipher: Any, key: bytes, nonce: bytes, data: bytes, extra: bytes) -> bytes:
    with refusing("not authentic", InvalidTag, ValueError):
        return bytes(cipher(key).decrypt(nonce, data, extra))


def unzstd(frame: bytes, limit: int) -> bytes:
    with refusing("zstd", zstandard.ZstdError):
        header = zstandard.get_frame_parameters(frame)
        need(frame[:4] == b"\x28\xb5\x2f\xfd" and header.dict_id == 0, "not a zstd frame without dictionary")
        need(0 < header.content_size <= limit, "a zstd frame of no size, of size 0, or beyond the limit")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)


def public_key(private: bytes) -> bytes:
    lattice, curve = MLKEM768PrivateKey.from_seed_bytes(private[:64]), X25519PrivateKey.from_private_bytes(private[64:])
    return lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()


@cache
def hpke_open(private: bytes, info: bytes, sealed: bytes) -> bytes:
    """As the page writes it out, from the primitives alone."""
    suite, ephemeral = b"HPKE" + bytes.fromhex("647a00010002"), sealed[1088:1120]

    def extract(salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")

    def expand(label: bytes, size: int) -> bytes:
        labelled = struct.pack(">H", size) + b"HPKE-v1" + suite + label + context
        return HKDFExpand(SHA256(), size, labelled).derive(secret)

    with refusing("sealed secret", ValueError):
        ss_m = MLKEM768PrivateKey.from_seed_bytes(private[:64]).decapsulate(sealed[:1088])
        ss_x = X25519PrivateKey.from_private_bytes(private[64:]).exchange(X25519PublicKey.from_public_bytes(ephemeral))
    shared = ss_m + ss_x + ephemeral + public_key(private)[1184:] + bytes.fromhex("5c2e2f2f5e5c")
    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(hashlib.sha3_256(shared).digest(), b"secret", b"")
    return aead(AESGCM, expand(b"key", 32), expand(b"base_nonce", 12), sealed[1120:], b"")
