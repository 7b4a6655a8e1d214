"""Secrets derived, envelopes opened and shut. What is proven here is proven for the whole repository.

Claims (numbered in ``docs/format.md``): an envelope opens only for its own purpose; a pack secret or a snapshot opens
only with the private key; neither can be forged without the shared secret; no nonce is used twice under one key,
because every envelope and every pack has a fresh random key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import blake3
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from holdfast.errors import Damaged, KeyCannotRead, UnknownVersion
from holdfast.repository.format import (
    CIPHER_AES,
    CIPHER_CHACHA,
    ID_SIZE,
    OBJECT_MAX,
    SEALED_MAGIC,
    SHARED_MAGIC,
    Bundle,
    Epoch,
)
from holdfast.storage.base import Buffer

_NONCE_ZERO = bytes(12)
_CONTEXT = "Holdfast repository v1 "
_PUBLIC_MLKEM = 1184
_PRIVATE_MLKEM = 64
SEALED_SECRET_SIZE = 1120 + 32 + 16  # both KEMs' ciphertexts, the secret, the tag


@lru_cache(maxsize=1)
def _suite() -> hpke.Suite:
    return hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def object_digest(parts: list[Buffer]) -> bytes:
    """SHA-256 over the parts: an object's name."""
    h = hashlib.sha256()
    for part in parts:
        h.update(part)
    return h.digest()


def new_epoch(number: int) -> Epoch:
    """A fresh pair of data keys: ML-KEM-768 and X25519, public and private halves concatenated in that order."""
    kem, x = mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate()
    public = kem.public_key().public_bytes_raw() + x.public_key().public_bytes_raw()
    return Epoch(number, public, kem.private_bytes_raw() + x.private_bytes_raw())


def public_of(private: bytes) -> bytes:
    """The public half that belongs to a private one."""
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(private[:_PRIVATE_MLKEM])
    x = x25519.X25519PrivateKey.from_private_bytes(private[_PRIVATE_MLKEM:])
    return kem.public_key().public_bytes_raw() + x.public_key().public_bytes_raw()


def aead(cipher: int, key: bytes) -> AESGCM | ChaCha20Poly1305:
    """The cipher of that number under a 32-byte key."""
    if cipher == CIPHER_AES:
        return AESGCM(key)
    if cipher == CIPHER_CHACHA:
        return ChaCha20Poly1305(key)
    raise UnknownVersion(f"Cipher {cipher} is not known.", "Use a newer Holdfast.")


def preferred_cipher() -> int:
    """AES where the processor helps with it, ChaCha20 elsewhere."""
    try:
        with open("/proc/cpuinfo", "rb") as f:
            return CIPHER_AES if b" aes" in f.read(8192) else CIPHER_CHACHA
    except OSError:
        return CIPHER_AES


class Secrets:
    """Everything a key bundle opens. With a write-only bundle, sealing works and opening raises KeyCannotRead."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._id_key = self._derive("chunk id")
        self._share_key = self._derive("shared envelopes")
        self._proof_key = self._derive("proof of writers")
        self.cut_seed = int.from_bytes(self._derive("page cuts")[:4], "big")
        self._private: dict[int, Any] = {}

    @property
    def can_read(self) -> bool:
        return self.bundle.can_read

    def need_private(self, what: str) -> None:
        """KeyCannotRead, before anything is done, when this key reads nothing."""
        if not self.can_read:
            raise KeyCannotRead(f"A write-only key cannot {what}.", "Use the password or key file of a full key.")

    def has_epoch(self, number: int) -> bool:
        """Whether this key opens what is sealed to that epoch."""
        return any(e.number == number and e.private for e in self.bundle.epochs)

    def _derive(self, purpose: str) -> bytes:
        return blake3.blake3(self.bundle.shared, derive_key_context=_CONTEXT + purpose).digest()

    def chunk_id(self, data: Buffer) -> bytes:
        """BLAKE3 of the data keyed by the repository: ID_SIZE bytes."""
        return blake3.blake3(data, key=self._id_key).digest(ID_SIZE)

    def chunk_hasher(self) -> Callable[[Buffer], bytes]:
        """``chunk_id`` with its look-ups done once, for the loops that hash every file."""
        hasher, key = blake3.blake3, self._id_key
        return lambda data: hasher(data, key=key).digest(ID_SIZE)

    def config_mac(self, line: bytes) -> str:
        """The proof in ``config`` that its first line was written by a key holder: 64 hex digits."""
        return blake3.blake3(line, key=self._derive("config")).hexdigest()

    # -- shared envelopes: every key opens them --------------------------------------------------------------------

    def share(self, purpose: bytes, data: bytes) -> bytes:
        """Shut data for every key holder. ``purpose`` says what it is and must be given again to open it."""
        salt = os.urandom(32)
        key = blake3.blake3(salt, key=self._share_key).digest()
        return SHARED_MAGIC + salt + AESGCM(key).encrypt(_NONCE_ZERO, compress(data), SHARED_MAGIC + purpose)

    def open_shared(self, purpose: bytes, envelope: bytes, thing: str) -> bytes:
        """The reverse of ``share``; Damaged, naming ``thing``, when one bit is not as it was written."""
        if envelope[:8] != SHARED_MAGIC:
            raise Damaged(f"{thing} does not begin as it should.")
        key = blake3.blake3(envelope[8:40], key=self._share_key).digest()
        try:
            packed = AESGCM(key).decrypt(_NONCE_ZERO, envelope[40:], SHARED_MAGIC + purpose)
        except (InvalidTag, ValueError):
            raise Damaged(f"{thing} fails its verification.") from None
        return decompress(packed, OBJECT_MAX, thing)

    # -- sealed secrets and envelopes: only full keys open them -----------------------------------------------------

    def seal_secret(self) -> tuple[int, bytes, bytes]:
        """A fresh data key: (epoch, sealed secret, 32-byte key)."""
        secret, epoch = os.urandom(32), self.bundle.epochs[-1]
        public = hpke.MLKEM768X25519PublicKey(
            mlkem.MLKEM768PublicKey.from_public_bytes(epoch.public[:_PUBLIC_MLKEM]),
            x25519.X25519PublicKey.from_public_bytes(epoch.public[_PUBLIC_MLKEM:]),
        )
        sealed = _suite().encrypt(secret, public, info=self._info(epoch.number))
        return epoch.number, sealed, self._data_key(secret)

    def open_secret(self, epoch: int, sealed: bytes, thing: str) -> bytes:
        """The data key behind a sealed secret."""
        private = self._private.get(epoch) or self._load_private(epoch, thing)
        try:
            secret = _suite().decrypt(sealed, private, info=self._info(epoch))
        except (InvalidTag, ValueError):
            raise Damaged(f"{thing}: its key fails verification.") from None
        return self._data_key(secret)

    def seal(self, purpose: bytes, data: bytes) -> bytes:
        """Shut data so that only a full key opens it."""
        epoch, sealed, key = self.seal_secret()
        head = SEALED_MAGIC + epoch.to_bytes(4, "big") + sealed
        return head + AESGCM(key).encrypt(_NONCE_ZERO, compress(data), head[:12] + purpose)

    def open_sealed(self, purpose: bytes, envelope: bytes, thing: str) -> bytes:
        """The reverse of ``seal``."""
        if envelope[:8] != SEALED_MAGIC:
            raise Damaged(f"{thing} does not begin as it should.")
        split = 12 + SEALED_SECRET_SIZE
        key = self.open_secret(int.from_bytes(envelope[8:12], "big"), envelope[12:split], thing)
        try:
            packed = AESGCM(key).decrypt(_NONCE_ZERO, envelope[split:], envelope[:12] + purpose)
        except (InvalidTag, ValueError):
            raise Damaged(f"{thing} fails its verification.") from None
        return decompress(packed, OBJECT_MAX, thing)

    def _info(self, epoch: int) -> bytes:
        return b"holdfast v1 " + bytes.fromhex(self.bundle.repository) + epoch.to_bytes(4, "big")

    def _data_key(self, secret: bytes) -> bytes:
        """Bind the secret to the repository's writers: the public key alone is not enough to forge."""
        return blake3.blake3(secret, key=self._proof_key).digest()

    def _load_private(self, number: int, thing: str) -> Any:
        epoch = next((e for e in self.bundle.epochs if e.number == number), None)
        if epoch is None:
            raise Damaged(f"{thing} names key epoch {number}, which this repository does not have.")
        if not epoch.private:
            raise KeyCannotRead(
                f"{thing} cannot be read with a write-only key.", "Use the password or key file of a full key."
            )
        self._private[number] = private = hpke.MLKEM768X25519PrivateKey(
            mlkem.MLKEM768PrivateKey.from_seed_bytes(epoch.private[:_PRIVATE_MLKEM]),
            x25519.X25519PrivateKey.from_private_bytes(epoch.private[_PRIVATE_MLKEM:]),
        )
        return private


def compress(data: bytes) -> bytes:
    """One zstd frame that says its content's size."""
    return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(data)


def decompress(frame: Buffer, at_most: int, thing: str) -> bytes:
    """Unpack a frame that must say its size and keep to it; Damaged, naming ``thing``, otherwise."""
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= at_most:
            raise Damaged(f"{thing} claims to unpack to {size} bytes, which is more than it may.")
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)
    except zstandard.ZstdError:
        raise Damaged(f"{thing} does not unpack.") from None
    if len(data) != size:
        raise Damaged(f"{thing} unpacks to {len(data)} bytes instead of {size}.")
    return data
