"""Sections 4 and 6 of docs/format.md for reader.py: from keys and recovery sheets to secrets; what secrets open.

It shares no code with src/.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from typing import Any, NamedTuple

from argon2.low_level import Type, hash_secret_raw
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.independent.notation import (
    GIB,
    aead,
    decode,
    derive,
    fields,
    from_base64,
    hpke_open,
    keyed,
    need,
    public_key,
    refusing,
    two_lines,
    unzstd,
)

KEY = "format:str version:int repository:str way:str grants:str label:str created_ns:time salt:str argon2:map/nil=None"
ARGON2 = "passes:passes=3 memory:memory=65536 lanes:lanes=2"
BUNDLE, EPOCH = "repository:str shared:bin32 epochs:arrays", "number:epoch public:public private:private"


class Secrets(NamedTuple):
    repository: str
    shared: bytes
    private: dict[int, bytes]  # by epoch; none in a write-only bundle


def bundle_of(data: bytes) -> Secrets:
    bundle, private = fields(decode(data), BUNDLE, dict), {}
    for epoch in [fields(e, EPOCH) for e in bundle.epochs]:
        if epoch.private:
            need(epoch.public in (b"", public_key(epoch.private)), "bundle: a public key of another private key")
            private[epoch.number] = epoch.private
    need(bundle.epochs and re.fullmatch("[0-9a-f]{32}", bundle.repository), "bundle: no epochs, or no id")
    return Secrets(bundle.repository, bundle.shared, private)


def bundle_of_sheet(text: str) -> Secrets:
    lines = [words for words in map(str.split, text.splitlines()) if len(words) >= 3 and words[0].isdecimal()]
    letters = ""
    for place, (number, *groups, check) in enumerate(lines, 1):
        part = "".join(groups).upper()
        need(int(number) == place, f"recovery sheet: line {number} is not in its place")
        need(
            check == f"{zlib.crc32(f'{place}{part}'.encode()) & 0xFFFF:04x}", f"recovery sheet: line {number} is wrong"
        )
        need(len(part) == 40 or (place == len(lines) and 0 < len(part) < 40), f"recovery sheet: line {number} is cut")
        letters += part
    with refusing("recovery sheet", ValueError):
        data = base64.b32decode(letters + "=" * (-len(letters) % 8))
    return bundle_of(data)


def bundle_of_key(stored: bytes, password: str | None, text: str) -> Secrets:
    """From a key object, with the password or, without one, with the text of a key file."""
    key, line, wrapped = two_lines(stored, KEY, "holdfast key")
    need(key.way == ("file" if password is None else "password"), "another way")
    salt, sealed = from_base64(key.salt, 32), from_base64(wrapped)
    if password is None:
        form, _, secret = text.strip().partition(":")
        need(form == "holdfast-key-1", "neither a key file nor a recovery sheet")
        wrapping_key = derive("key file", from_base64(secret, 32) + salt)
    else:
        cost = fields(key.argon2 or {}, ARGON2, dict)
        need(cost.memory >= 8 * cost.lanes, "argon2: too little memory for its lanes")
        costs = cost.passes, cost.memory, cost.lanes
        wrapping_key = hash_secret_raw(password.encode(), salt, *costs, hash_len=32, type=Type.ID, version=0x13)
    return bundle_of(aead(AESGCM, wrapping_key, sealed[:12], sealed[12:], line))


def data_key(secrets: Secrets, epoch: int, sealed: bytes) -> bytes:
    need(len(sealed) == 1168 and epoch in secrets.private, f"no private key of epoch {epoch}")
    info = b"holdfast v1 " + bytes.fromhex(secrets.repository) + struct.pack(">I", epoch)
    return keyed(derive("proof of writers", secrets.shared), hpke_open(secrets.private[epoch], info, sealed))


def open_shared(secrets: Secrets, data: bytes, purpose: bytes) -> Any:
    need(data[:8] == b"HFshare\x01" and len(data) >= 40, "not a shared envelope")
    key = keyed(derive("shared envelopes", secrets.shared), data[8:40])
    return decode(unzstd(aead(AESGCM, key, bytes(12), data[40:], data[:8] + purpose), GIB))


def open_sealed(secrets: Secrets, data: bytes, purpose: bytes) -> Any:
    need(data[:8] == b"HFseal\x00\x01" and len(data) >= 1180, "not a sealed envelope")
    key = data_key(secrets, int.from_bytes(data[8:12], "big"), data[12:1180])
    return decode(unzstd(aead(AESGCM, key, bytes(12), data[1180:], data[:12] + purpose), GIB))
