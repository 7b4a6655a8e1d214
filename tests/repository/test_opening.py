"""Making a repository and opening it: what is one, what is none, what is newer, what is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from holdfast.errors import (
    Damaged,
    HoldfastError,
    NoRepository,
    RepositoryExists,
    StorageDenied,
    StorageUnavailable,
    UnknownVersion,
)
from holdfast.repository.format import VERSION, Chunker
from holdfast.repository.keys import Password
from holdfast.repository.repository import FORMAT, Repository, create, open_repository, read_config
from holdfast.storage.local import LocalStorage
from tests.repository.making import (
    FINE,
    KEY,
    QUICK,
    Clock,
    an_owner,
    memory,
    names,
    new_repository,
    read_back,
    store,
    through,
)
from tests.support.storages import Counting, MemoryStorage, Misbehaving, does, fails


def reopened(repo: Repository) -> Repository:
    return open_repository(repo.storage, KEY, an_owner(), Clock())


def with_config(data: bytes) -> Repository:
    """A repository whose config is these bytes."""
    repo = new_repository()
    memory(repo).overwrite("config", data)
    return repo


# -- making -----------------------------------------------------------------------------------------------------------


def test_a_new_repository_opens_with_what_it_was_made_with() -> None:
    repo = new_repository()
    again = reopened(repo)
    assert (again.config, again.secrets.bundle, again.key_id) == (repo.config, repo.secrets.bundle, repo.key_id)
    assert again.config.chunker == FINE


def test_the_sizes_of_cutting_are_those_of_the_repository() -> None:
    assert create(MemoryStorage(), KEY, an_owner(), Clock()).config.chunker == Chunker()


def test_two_repositories_have_nothing_in_common() -> None:
    one, other = new_repository(), new_repository()
    assert one.id != other.id and one.secrets.bundle.shared != other.secrets.bundle.shared
    assert one.secrets.bundle.epochs != other.secrets.bundle.epochs


def test_where_a_repository_is_none_is_made() -> None:
    repo = new_repository()
    before = memory(repo).objects
    with pytest.raises(RepositoryExists, match="already"):
        new_repository(repo.storage)
    assert memory(repo).objects == before


def test_over_a_repository_that_lost_its_config_none_is_made() -> None:
    repo = new_repository()
    store(repo, {b"file": b"content"})
    repo.storage.delete("config")
    before = memory(repo).objects
    with pytest.raises(RepositoryExists, match="config is missing"):
        new_repository(repo.storage)
    assert memory(repo).objects == before


def test_of_two_that_make_one_at_once_the_second_is_told() -> None:
    inner = MemoryStorage()
    winner: list[Repository] = []
    storage = Misbehaving(inner, [does("put", lambda: winner.append(new_repository(inner)), folder="config")])
    with pytest.raises(RepositoryExists):
        new_repository(storage)
    assert names(inner, "keys") == [f"keys/{winner[0].key_id}"]
    assert reopened(winner[0]).id == winner[0].id


@pytest.mark.parametrize("credential", [KEY, Password("the same again")], ids=["key file", "password"])
def test_making_one_that_was_cut_off_is_made_anew(credential: object) -> None:
    """Also with the same password, whichever of the two key objects comes first."""
    for _ in range(8):
        storage = MemoryStorage()
        with pytest.raises(StorageUnavailable):
            create(Misbehaving(storage, [fails("put", 2)]), credential, an_owner(), Clock(), argon2=QUICK)  # type: ignore[arg-type]
        with pytest.raises(NoRepository):
            open_repository(storage, credential, an_owner(), Clock())  # type: ignore[arg-type]
        repo = create(storage, credential, an_owner(), Clock(), argon2=QUICK)  # type: ignore[arg-type]
        assert open_repository(storage, credential, an_owner(), Clock()).id == repo.id  # type: ignore[arg-type]


# -- what is none -----------------------------------------------------------------------------------------------------


def test_an_empty_storage_is_no_repository() -> None:
    with pytest.raises(NoRepository, match="no repository at memory") as caught:
        open_repository(MemoryStorage(), KEY, an_owner(), Clock())
    assert caught.value.exit_status == 10 and "holdfast init" in caught.value.hint


def test_a_folder_that_is_not_there_or_is_another_one_is_no_repository(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "missing" / "deeper"):
        with pytest.raises(NoRepository):
            open_repository(LocalStorage(folder), KEY, an_owner(), Clock())


def test_no_password_is_worked_on_where_there_is_no_repository() -> None:
    counting = Counting(MemoryStorage())
    with pytest.raises(NoRepository):
        open_repository(counting, Password("x"), an_owner(), Clock())
    assert [n.subject for n in counting.log if n.kind == "get"] == []
    assert counting.calls["list"] == 0


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n", b"{}", b"[1]\n", b"\xff\xfe\n", b"null\n", b"hello", bytes(1000), b"{" * 100_000,
        b'{"format":"something else","version":1,"repository":"00","chunker":{}}\n' + b"0" * 64 + b"\n",
    ],
)  # fmt: skip
def test_a_config_that_is_none_is_said_to_be_damaged(data: bytes) -> None:
    with pytest.raises(Damaged, match="cannot be understood"):
        reopened(with_config(data))


# -- what is newer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [str(VERSION + 1), "17", "999999999", "9" * 40, "9" * 5000], ids=len)
def test_a_newer_repository_is_said_to_be_newer(digits: str) -> None:
    line = f'{{"format":"{FORMAT}","version":{digits},"repository":"00","novelty":true}}\n'
    with pytest.raises(UnknownVersion, match="version") as caught:
        reopened(with_config(line.encode()))
    assert "newer Holdfast" in caught.value.hint


def test_the_version_is_looked_at_before_any_password() -> None:
    repo = with_config(b'{"format":"holdfast repository","version":2}\n')
    counting = Counting(repo.storage)
    with pytest.raises(UnknownVersion):
        open_repository(counting, Password("x"), an_owner(), Clock())
    assert counting.calls["list"] == 0


# -- what is damaged --------------------------------------------------------------------------------------------------


def test_not_one_changed_bit_of_the_config_goes_unnoticed() -> None:
    repo = new_repository()
    good = repo.storage.get("config")
    for bit in range(len(good) * 8):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        memory(repo).overwrite("config", bytes(data))
        with pytest.raises((Damaged, UnknownVersion)):
            reopened(repo)
    memory(repo).overwrite("config", good)
    assert reopened(repo).id == repo.id


def test_a_config_that_is_cut_off_or_longer_is_damaged() -> None:
    repo = new_repository()
    good = repo.storage.get("config")
    for data in [*(good[:n] for n in range(len(good))), good + b"x", good + b"\n", b" " + good, good + good]:
        memory(repo).overwrite("config", data)
        with pytest.raises(Damaged):
            reopened(repo)


def test_a_config_of_another_repository_is_refused_with_what_to_do() -> None:
    repo, other = new_repository(), new_repository()
    memory(repo).overwrite("config", other.storage.get("config"))
    with pytest.raises(Damaged, match="not the one that was stored") as caught:
        reopened(repo)
    assert "copy" in caught.value.hint


def test_a_config_with_other_sizes_is_refused() -> None:
    """Or whoever holds the storage could learn from where content is cut."""
    repo = new_repository()
    line, proof = read_config(repo.storage)
    changed = msgspec.json.decode(line)
    changed["chunker"]["avg_size"] *= 2
    memory(repo).overwrite(
        "config", json.dumps(changed, separators=(",", ":")).encode() + b"\n" + proof.encode() + b"\n"
    )
    with pytest.raises(Damaged):
        reopened(repo)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_storage_that_fails_is_no_missing_repository(nth: int) -> None:
    repo = new_repository()
    with pytest.raises(StorageUnavailable):
        open_repository(Misbehaving(repo.storage, [fails("read", nth)]), KEY, an_owner(), Clock())


def test_who_may_only_read_opens_and_reads() -> None:
    repo = new_repository()
    snapshot_id = store(repo, {b"file": b"content"})
    storage = Misbehaving(repo.storage, [fails("write", 1, StorageDenied, times=None)])
    readable = through(open_repository(storage, KEY, an_owner(), Clock()), storage)
    with readable.reading() as reader:
        assert read_back(readable, snapshot_id, reader) == {b"file": b"content"}
    with pytest.raises(HoldfastError):
        store(readable, {b"other": b"content"})
