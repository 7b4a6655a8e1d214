"""A room of manifests and files over a real repository and catalog, for two accounts."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.accounts.directory import Identity
from holdfast.catalog.database import Database
from holdfast.catalog.holdings import Manifest
from holdfast.manifests.files import Files, State
from holdfast.manifests.manifests import Manifests
from holdfast.manifests.removing import Remover
from holdfast.manifests.snapshots import SnapshotMaker
from holdfast.manifests.tidying import Tidier
from holdfast.repository.repository import Repository
from holdfast.shelf.shelf import Shelf
from tests.accounts.making import House

MOST = 1 << 30


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry(data: bytes, **about: Any) -> dict[str, Any]:
    return {"hash": sha256(data), "size": len(data), **about}


@dataclass
class Room:
    """``ann`` and ``ben`` are accounts. ``start`` and ``stop`` may be repeated: what is durable is there again."""

    database: Database
    repo: Repository
    folder: Path
    complete: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.house = House(self.database)
        self.ann, self.ben = self.house.user("ann"), self.house.user("ben")
        self.start()

    def start(self) -> None:
        self.shelf = Shelf(self.repo, self.database, "tests")
        self.files = Files(self.shelf, self.database, self.repo.now_ns, MOST, self.complete.extend)
        self.manifests = Manifests(self.shelf, self.files, self.database, self.repo.now_ns, self.complete.extend)
        folder, now_ns = str(self.folder), self.repo.now_ns
        self.remover = Remover(self.shelf, self.manifests, self.database, folder, now_ns, lambda: None)
        self.tidier = Tidier(self.shelf, self.manifests, self.database, folder, now_ns)
        self.maker = SnapshotMaker(self.shelf, self.files, self.manifests, self.database, folder, "tests")

    def stop(self) -> None:
        self.manifests.close()
        self.shelf.close()

    def put(self, by: Identity, data: bytes, hash_: str = "") -> bool:
        """Put a small file; whether it is new."""
        future, arrival = self.files.put(by, hash_ or sha256(data), data, sha256(data))
        future.result(60)
        return arrival.created

    def put_large(self, by: Identity, data: bytes, piece: int = 1 << 20) -> bool:
        upload = self.files.receive(sha256(data))
        for at in range(0, len(data), piece):
            upload.feed(data[at : at + piece])
        future, arrival = self.files.put(by, sha256(data), *upload.finish())
        future.result(60)
        return arrival.created

    def put_part(self, by: Identity, data: bytes, start: int, stop: int, hash_: str = "") -> State:
        """Put the bytes ``start`` to ``stop`` of data as a part."""
        hash_ = hash_ or sha256(data)
        self.files.demand_room(by, hash_, len(data))
        upload = self.files.receive(None)
        upload.feed(data[start:stop])
        content, _ = upload.finish()
        self.files.put_part(by, hash_, start, len(data), content).result(60)
        return self.files.finish(by, hash_)

    def get(self, by: Identity, data: bytes, start: int = 0, stop: int | None = None) -> bytes:
        return b"".join(self.files.pieces(self.files.file(by, sha256(data)), start, stop))

    def post(self, by: Identity, manifest: dict[str, Any] | bytes) -> Manifest:
        body = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        return self.manifests.receive(by, io.BytesIO(body))

    def read(self, by: Identity, name: str, version: int | None = None, *, as_number: bool = False) -> Any:
        found = self.manifests.named(by, name, version)
        return json.loads(b"".join(self.manifests.render(by, found, as_number=as_number)))
