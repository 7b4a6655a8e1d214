"""A repository, open: its storage, its secrets, and the parts built from them.

``create`` and ``open_repository`` are the two ways in. ``writing`` and ``reading`` hold the lease that prune respects,
load the index, and give the parts a backup or a restore works with.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from holdfast.errors import (
    Damaged,
    NoRepository,
    ObjectExists,
    ObjectMissing,
    RepositoryExists,
    StorageError,
    UnknownVersion,
)
from holdfast.repository import keys
from holdfast.repository.crypto import Secrets
from holdfast.repository.format import NO_SENSE, VERSION, Argon2, Chunker, Config, Snapshot
from holdfast.repository.index import Index, Loaded, load_index
from holdfast.repository.leases import Hold, Leases, Owner
from holdfast.repository.packs import pack_name
from holdfast.repository.pages import Tree
from holdfast.repository.reader import BLOCK_CACHE, ChunkReader
from holdfast.repository.snapshots import Stored, put_snapshot, read_snapshots
from holdfast.repository.writer import ChunkWriter
from holdfast.storage.base import CONFIG, Storage
from holdfast.storage.parallel import answers

FORMAT = "holdfast repository"
CONFIG_MOST = 64 << 10
FEW_PACKS = 32
LONG_S = 20


@dataclass
class Repository:
    """An open repository. ``key_id``: the key it was opened with, empty for a recovery sheet."""

    storage: Storage
    secrets: Secrets
    config: Config
    key_id: str
    owner: Owner
    now_ns: Callable[[], int]

    @property
    def id(self) -> str:
        return self.config.repository

    @property
    def leases(self) -> Leases:
        return Leases(self.storage, self.secrets, self.owner, self.now_ns)

    def snapshots(self, damaged: list[str] | None = None) -> list[Stored]:
        """Every snapshot, oldest first."""
        return read_snapshots(self.storage, self.secrets, damaged)

    @contextlib.contextmanager
    def writing(self, work: str = "backup", *, level: int = 3) -> Iterator[Session]:
        """Hold a lease and give what a writer needs. Chunks of condemned packs count as absent."""
        with self.leases.hold(work) as hold:
            locks = self.leases.survey()
            if locks.condemned:
                hold.put(frozenset(locks.condemned))
            loaded = load_index(self.storage, self.secrets, condemned=locks.condemned_packs())
            writer = ChunkWriter(self.storage, self.secrets, loaded.index, level=level)
            for record in loaded.adopted:
                if record.name not in locks.condemned_packs():
                    writer.take_pack(record)
            try:
                yield Session(self, hold, loaded, writer)
            finally:
                writer.close()

    @contextlib.contextmanager
    def reading(self, work: str = "restore", *, contents: bool = False) -> Iterator[ChunkReader]:
        """Hold a lease where the storage can be written to, and give a reader. Far away, where every question costs
        time, a lease is put only when the work takes long: until then the deadline of condemned packs protects it.
        """
        far = self.storage.connections > 1
        with self.leases.hold(work, needed=False, after_s=LONG_S if far else 0):
            yield self.reader(contents=contents)

    def reader(self, *, contents: bool = False, cache: int = BLOCK_CACHE) -> ChunkReader:
        """A reader without a lease, for looks that end at once. ``contents``: it can tell what is in each pack;
        ``cache``: the bytes of blocks it keeps.
        """
        condemned = self.leases.survey().condemned_packs()
        load = functools.partial(load_index, self.storage, self.secrets, condemned=condemned, with_condemned=True)
        far = self.storage.connections > 1  # there, packs are not listed as long as the index has what is wanted
        index = load(survey=not far, contents=contents).index
        survey = functools.partial(load, survey=True, contents=True) if far else None
        return ChunkReader(self.storage, self.secrets, index, cache=cache, survey=survey)


@dataclass
class Session:
    """One piece of writing work: the lease held, the index as loaded, the writer."""

    repository: Repository
    hold: Hold
    loaded: Loaded
    writer: ChunkWriter

    @property
    def index(self) -> Index:
        return self.loaded.index

    def tree(self, root: bytes) -> Tree:
        """Read a tree of pages through this session's index."""
        repo = self.repository
        return Tree(ChunkReader(repo.storage, repo.secrets, self.index).read, root)

    def lost(self, used: set[int]) -> set[bytes]:
        """Packs among ``used`` (numbers of the index) that cannot be relied on: condemned since the work began, or not
        in storage in their size. To be asked before the snapshot is put, and again after: a prune that took this lease
        for over and read snapshots in between deletes its lists after their packs, so one of the two is seen.
        """
        condemned = self.repository.leases.survey().condemned_packs()
        records = [self.index.packs[n] for n in used]
        sizes = self._sizes([pack_name(r) for r in records])
        return {r.name for r in records if r.name in condemned or sizes.get(pack_name(r)) != r.size}

    def _sizes(self, names: list[str]) -> dict[str, int]:
        """What storage has of these packs: each asked for, or all listed where that is less to ask and can be believed.
        What a listing lacks is asked for.
        """
        storage, found = self.repository.storage, dict[str, int]()
        if len(names) > FEW_PACKS and not storage.lists_late:
            found = {i.name: i.size for i in storage.list("data")}
        for name, info in answers(storage, [n for n in names if n not in found], storage.stat):
            with contextlib.suppress(ObjectMissing):
                found[name] = info().size
        return found

    def drop(self, packs: set[bytes]) -> None:
        """Count what lies in those packs as absent, also in those stored by this very session."""
        self.writer.packs -= {number for name in packs if (number := self.index.number_of(name)) is not None}
        self.index.drop_packs(packs)

    def commit(self, snapshot: Snapshot) -> str:
        """Make everything durable, then the snapshot; its id."""
        self.writer.flush()
        return put_snapshot(self.repository.storage, self.repository.secrets, snapshot)


def create(
    storage: Storage,
    credential: keys.Password | keys.KeyFile,
    owner: Owner,
    now_ns: Callable[[], int],
    *,
    label: str = "",
    argon2: Argon2 | None = None,
    chunker: Chunker | None = None,
) -> Repository:
    """Make a new repository in an empty storage. The config is stored last: until then there is none."""
    if _exists(storage):
        raise RepositoryExists(f"There is a repository at {storage.place} already.")
    if any(True for folder in ("data", "index", "snapshots") for _ in storage.list(folder)):
        raise RepositoryExists(
            f"At {storage.place} lie the objects of a repository whose config is missing.",
            "Restore `config` from a copy of it, or choose another place.",
        )
    config = Config(FORMAT, VERSION, os.urandom(16).hex(), chunker or Chunker())
    bundle = keys.new_bundle(config.repository)
    secrets = Secrets(bundle)
    key = keys.add_key(storage, bundle, credential, label=label or owner.host, now_ns=now_ns(), argon2=argon2)
    line = msgspec.json.encode(config) + b"\n"
    try:
        storage.put(CONFIG, [line, secrets.config_mac(line).encode() + b"\n"])
    except StorageError as e:
        exists = isinstance(e, ObjectExists)
        with contextlib.suppress(StorageError):
            if exists or not _exists(storage):  # a put whose answer was lost is done: then the key is needed
                storage.delete(f"keys/{key.id}")
        if not exists:
            raise
        raise RepositoryExists(f"There is a repository at {storage.place} already.") from None
    return Repository(storage, secrets, config, key.id, owner, now_ns)


def open_repository(
    storage: Storage,
    credential: keys.Credential,
    owner: Owner,
    now_ns: Callable[[], int],
    found: tuple[bytes, str] | None = None,
) -> Repository:
    """Open the repository in a storage. Its version is checked before a password is worked on. ``found``: what
    ``read_config`` has given already.
    """
    line, mac = found or read_config(storage)
    config = parse_config(line, storage.place)
    bundle, key_id = keys.open_bundle(storage, credential, config.repository)
    secrets = Secrets(bundle)
    if bundle.repository != config.repository or secrets.config_mac(line) != mac:
        raise Damaged(
            f"The config of the repository at {storage.place} is not the one that was stored.",
            "Do not write to it; restore `config` from a copy of the repository.",
        )
    return Repository(storage, secrets, config, key_id, owner, now_ns)


def read_config(storage: Storage) -> tuple[bytes, str]:
    """The config's first line, and its proof."""
    try:
        data = storage.get(CONFIG)
    except ObjectMissing:
        raise NoRepository(
            f"There is no repository at {storage.place}.", "Make one with `holdfast init`, or check the address."
        ) from None
    line, newline, proof = data[:CONFIG_MOST].partition(b"\n")
    return line + newline, proof.decode("ascii", "replace").removesuffix("\n") if proof.endswith(b"\n") else ""


def parse_config(line: bytes, place: str) -> Config:
    """Understand a config, telling apart what is newer, what is damaged and what is something else."""
    version = re.search(rb'"format":"holdfast repository","version":(\d{1,9})', line)
    if version and int(version[1]) > VERSION:
        raise UnknownVersion(
            f"The repository at {place} has format version {int(version[1])}; this Holdfast knows {VERSION}.",
            "Use a newer Holdfast.",
        )
    try:
        config = msgspec.json.decode(line, type=Config)
    except NO_SENSE:
        config = None
    if config is not None and config.chunker.algorithm != Chunker().algorithm:
        raise UnknownVersion(
            f"The repository at {place} is cut in a way this Holdfast does not know.", "Use a newer one."
        )
    if config is None or config.format != FORMAT or not config.chunker.is_sane:
        raise Damaged(f"The config at {place} cannot be understood: it is damaged, or not a Holdfast repository.")
    return config


def _exists(storage: Storage) -> bool:
    try:
        storage.stat(CONFIG)
    except ObjectMissing:
        return False
    return True
