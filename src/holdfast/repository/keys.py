"""Keys: the bundle of a repository's secrets, wrapped by a password or a key file; one object per key under ``keys/``.

A key object is two lines: a JSON header, and in base64 nonce and AES-256-GCM ciphertext of the bundle with the header
as associated data. A wrong password costs exactly what a right one does: one Argon2id per password key, tried in the
order of their names. Parameters beyond ARGON2_MOST are refused before they cost anything.
"""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import blake3
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast.errors import (
    Busy,
    Damaged,
    HoldfastError,
    KeyCannotRead,
    ObjectExists,
    ObjectMissing,
    UnknownVersion,
    UsageError,
    WrongKey,
)
from holdfast.repository.crypto import new_epoch, object_digest, public_of
from holdfast.repository.format import NO_SENSE, VERSION, Argon2, Bundle, Epoch, KeyHeader
from holdfast.storage.base import Storage

ARGON2_MOST = Argon2(passes=20, memory=2 << 20, lanes=16)
FORMAT = "holdfast key"
_SALT_SIZE = 32
_FILE_PREFIX = "holdfast-key-1:"
_SHEET_TITLE = "HOLDFAST RECOVERY SHEET"


@dataclass(frozen=True)
class Password:
    """A password, as typed, in UTF-8."""

    text: str


@dataclass(frozen=True)
class KeyFile:
    """The 32 random bytes of a key file."""

    secret: bytes


@dataclass(frozen=True)
class Sheet:
    """A recovery sheet: the bundle itself, no key object needed."""

    bundle: Bundle


Credential = Password | KeyFile | Sheet


@dataclass(frozen=True)
class Key:
    """A key object that lies in the repository: its id (64 hex digits) and what its header says."""

    id: str
    header: KeyHeader


def new_bundle(repository: str) -> Bundle:
    """Fresh secrets for a new repository."""
    return Bundle(repository, os.urandom(32), [new_epoch(1)])


def without_private(bundle: Bundle) -> Bundle:
    """The write-only half of a bundle."""
    return Bundle(bundle.repository, bundle.shared, [Epoch(e.number, e.public, b"") for e in bundle.epochs])


def add_key(
    storage: Storage,
    bundle: Bundle,
    credential: Password | KeyFile,
    *,
    label: str,
    now_ns: int,
    argon2: Argon2 | None = None,
) -> Key:
    """Wrap the bundle and store it as one more key."""
    way = "password" if isinstance(credential, Password) else "file"
    header = KeyHeader(
        format=FORMAT,
        version=VERSION,
        repository=bundle.repository,
        way=way,
        grants="full" if bundle.can_read else "write-only",
        label=label,
        created_ns=now_ns,
        salt=base64.b64encode(os.urandom(_SALT_SIZE)).decode(),
        argon2=(argon2 or Argon2()) if way == "password" else None,
    )
    line = msgspec.json.encode(header) + b"\n"
    nonce = os.urandom(12)
    wrapped = AESGCM(_wrapping_key(Key("", header), credential)).encrypt(nonce, msgspec.msgpack.encode(bundle), line)
    data = line + base64.b64encode(nonce + wrapped) + b"\n"
    name = object_digest([data]).hex()
    try:
        storage.put(f"keys/{name}", [data])
    except ObjectExists:
        raise Busy(f"The key {name[:8]} is there already.") from None
    return Key(name, header)


def read_keys(storage: Storage, damaged: dict[str, str] | None = None) -> Iterator[tuple[Key, bytes]]:
    """Every key with its object's bytes, in the order of their ids. Damaged ones raise when they are met, or stand in
    ``damaged`` when it is given: their ids, with a sentence.
    """
    for name in sorted(info.name for info in storage.list("keys")):
        try:
            yield read_key(storage, name)
        except ObjectMissing:  # removed meanwhile
            continue
        except (Damaged, UnknownVersion) as e:
            if damaged is None:
                raise
            damaged[name[5:]] = str(e)


def read_key(storage: Storage, name: str) -> tuple[Key, bytes]:
    """One key object, its name and its header checked."""
    data = storage.get(name)
    if object_digest([data]).hex() != name[5:]:
        raise Damaged(f"The key object {name} does not have the content its name says.")
    line = data.partition(b"\n")[0]
    try:
        header = msgspec.json.decode(line, type=KeyHeader)
    except NO_SENSE:
        raise Damaged(f"The key object {name} cannot be understood.") from None
    if header.version > VERSION:
        raise UnknownVersion(f"The key object {name} has format version {header.version}.", "Use a newer Holdfast.")
    return Key(name[5:], header), data


def open_bundle(storage: Storage, credential: Credential, repository: str) -> tuple[Bundle, str]:
    """Find the key that this credential opens: its bundle and its id (empty for a recovery sheet).

    Keys of this repository come first: one of another may be left over from an ``init`` that was cut off.
    """
    if isinstance(credential, Sheet):
        return credential.bundle, ""
    way = "password" if isinstance(credential, Password) else "file"
    trouble: HoldfastError | None = None
    found: list[tuple[Key, bytes]] = []
    for name in sorted(info.name for info in storage.list("keys")):
        try:
            found.append(read_key(storage, name))
        except ObjectMissing:  # removed meanwhile
            continue
        except (Damaged, UnknownVersion) as e:  # another key may still open it
            trouble = e
    for key, data in sorted(found, key=lambda f: f[0].header.repository != repository):
        try:
            if key.header.way == way and (bundle := _unwrap(key, data, credential)):
                return bundle, key.id
        except Damaged as e:
            trouble = e
    if trouble:
        raise trouble
    what = "this password" if way == "password" else "this key file"
    raise WrongKey(f"No key of the repository at {storage.place} opens with {what}.", "Check it and try again.")


def remove_key(storage: Storage, key_id: str, used: str) -> None:
    """Delete a key, damaged ones too; neither the one in use nor the last full one."""
    if key_id == used:
        raise UsageError("This is the key you are using now.", "Use another key to remove it, or `key passwd`.")
    others = [k for k, _ in read_keys(storage, {}) if k.id != key_id]
    if not any(k.header.grants == "full" for k in others):
        raise UsageError("This is the last full key: without it nothing could be restored.")
    storage.delete(f"keys/{key_id}")


def _unwrap(key: Key, data: bytes, credential: Password | KeyFile) -> Bundle | None:
    """The bundle, None when this credential does not open it."""
    line, _, rest = data.partition(b"\n")
    wrapping = _wrapping_key(key, credential)
    try:
        blob = base64.b64decode(rest.strip(), validate=True)
        plain = AESGCM(wrapping).decrypt(blob[:12], blob[12:], line + b"\n")
        bundle = msgspec.msgpack.decode(plain, type=Bundle)
    except (InvalidTag, ValueError):
        return None
    return bundle


def _wrapping_key(key: Key, credential: Password | KeyFile) -> bytes:
    """What wraps the bundle. Damaged when the header asks for what no Holdfast ever wrote."""
    header = key.header
    thing = f"The key object keys/{key.id}"
    try:
        salt = base64.b64decode(header.salt, validate=True)
    except ValueError:
        salt = b""
    if len(salt) != _SALT_SIZE:
        raise Damaged(f"{thing} has no salt.")
    if isinstance(credential, KeyFile):
        return blake3.blake3(credential.secret + salt, derive_key_context="Holdfast repository v1 key file").digest()
    from argon2.low_level import Type, hash_secret_raw  # slow to import, needed by passwords only

    cost, most = header.argon2 or Argon2(), ARGON2_MOST
    fits = 0 < cost.passes <= most.passes and 0 < cost.lanes <= most.lanes
    if not (fits and 8 * cost.lanes <= cost.memory <= most.memory):
        raise Damaged(f"{thing} asks for Argon2 work that no Holdfast ever does.")
    secret = credential.text.encode("utf-8", "surrogateescape")
    return hash_secret_raw(secret, salt, cost.passes, cost.memory, cost.lanes, hash_len=32, type=Type.ID)


# -- key files and recovery sheets -----------------------------------------------------------------------------------


def new_key_file() -> str:
    """The text of a fresh key file."""
    return _FILE_PREFIX + base64.b64encode(os.urandom(32)).decode() + "\n"


def parse_key_file(text: str) -> KeyFile | Sheet:
    """Read a key file's text, or a recovery sheet's."""
    stripped = text.strip()
    if stripped.startswith(_FILE_PREFIX):
        try:
            secret = base64.b64decode(stripped[len(_FILE_PREFIX) :], validate=True)
        except ValueError:
            secret = b""
        if len(secret) == 32:
            return KeyFile(secret)
    elif _SHEET_TITLE in text:
        return Sheet(_parse_sheet(text))
    raise UsageError("That file is neither a Holdfast key file nor a recovery sheet.")


def recovery_sheet(bundle: Bundle, place: str) -> str:
    """The bundle as lines to print and lock away; each line has its number and a check of its own."""
    if not bundle.can_read:
        raise KeyCannotRead("A write-only key cannot be exported as a recovery sheet.", "Use a full key.")
    secret = msgspec.msgpack.encode(bundle_without_public := _without_public(bundle))
    assert _with_public(bundle_without_public) == bundle
    text = base64.b32encode(secret).decode().rstrip("=")
    lines = [
        _SHEET_TITLE,
        f"repository {bundle.repository} at {place}",
        "Whoever holds these lines can read every backup in it. Keep them on paper, away from the machine.",
        "To use them: put this text into a file and name it with --key-file.",
        "",
    ]
    for number, start in enumerate(range(0, len(text), 40), 1):
        part = text[start : start + 40]
        groups = " ".join(part[i : i + 8] for i in range(0, len(part), 8))
        lines.append(f"{number:02d} {groups} {_line_check(number, part)}")
    return "\n".join(lines) + "\n"


def _parse_sheet(text: str) -> Bundle:
    parts: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 3 or not words[0].isdecimal():
            continue
        number, part = len(parts) + 1, "".join(words[1:-1]).upper()
        if int(words[0][:9]) != number or words[-1].lower() != _line_check(number, part):
            raise UsageError(f"Line {number:02d} of the recovery sheet is mistyped, missing or out of order.")
        parts.append(part)
    joined = "".join(parts)
    try:
        raw = base64.b32decode(joined + "=" * (-len(joined) % 8))
        return _with_public(msgspec.msgpack.decode(raw, type=Bundle))
    except NO_SENSE:
        raise UsageError(f"The recovery sheet is not complete: it ends with line {len(parts):02d}.") from None


def _line_check(number: int, part: str) -> str:
    return f"{zlib.crc32(f'{number}{part}'.encode()) & 0xFFFF:04x}"


def _without_public(bundle: Bundle) -> Bundle:
    return Bundle(bundle.repository, bundle.shared, [Epoch(e.number, b"", e.private) for e in bundle.epochs])


def _with_public(bundle: Bundle) -> Bundle:
    return Bundle(
        bundle.repository, bundle.shared, [Epoch(e.number, public_of(e.private), e.private) for e in bundle.epochs]
    )
