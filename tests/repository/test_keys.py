"""Keys: who gets in, who does not, and at what price."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable

import argon2.low_level
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Damaged, HoldfastError, KeyCannotRead, ObjectMissing, UnknownVersion, UsageError, WrongKey
from holdfast.repository import keys
from holdfast.repository.check import check
from holdfast.repository.copy import copy_snapshots
from holdfast.repository.crypto import Secrets
from holdfast.repository.format import Argon2, Bundle
from holdfast.repository.keys import (
    Credential,
    Key,
    KeyFile,
    Password,
    Sheet,
    add_key,
    new_key_file,
    open_bundle,
    parse_key_file,
    read_keys,
    recovery_sheet,
    remove_key,
    without_private,
)
from holdfast.repository.prune import Request, prune
from holdfast.repository.repair import repair_snapshots
from holdfast.repository.repository import Repository, create, open_repository
from tests.repository.making import (
    KEY,
    QUICK,
    Clock,
    an_owner,
    memory,
    names,
    new_repository,
    read_back,
    store,
    write_only,
)
from tests.support.storages import MemoryStorage, Misbehaving, fails


def add(repo: Repository, credential: Password | KeyFile, *, reads: bool = True) -> Key:
    bundle = repo.secrets.bundle if reads else without_private(repo.secrets.bundle)
    return add_key(repo.storage, bundle, credential, label="another", now_ns=1, argon2=QUICK)


def opened(repo: Repository, credential: Credential) -> Repository:
    return open_repository(repo.storage, credential, an_owner(), Clock())


# -- the right key, the wrong key -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["x", "correct horse", "pässwörd", "with space at the end ", "\udcff not utf-8", "🔑" * 500]
)
def test_a_password_opens_what_it_locked(text: str) -> None:
    repo = create(MemoryStorage(), Password(text), an_owner(), Clock(), argon2=QUICK)
    assert opened(repo, Password(text)).secrets.bundle == repo.secrets.bundle
    for other in (text + " ", text[:-1], text.upper() if text.upper() != text else "other", ""):
        with pytest.raises(WrongKey, match="this password"):
            opened(repo, Password(other))


def test_a_key_file_opens_what_it_locked() -> None:
    read = parse_key_file(new_key_file())
    assert isinstance(read, KeyFile)
    repo = create(MemoryStorage(), read, an_owner(), Clock())
    assert opened(repo, read).key_id == repo.key_id
    with pytest.raises(WrongKey, match="this key file"):
        opened(repo, KeyFile(bytes(32)))


def test_each_of_many_keys_opens_the_same() -> None:
    repo = new_repository()
    passwords: list[Credential] = [Password(f"password {n}") for n in range(5)]
    ids = {add(repo, p).id for p in passwords if isinstance(p, Password)}
    assert {opened(repo, p).key_id for p in passwords} == ids
    assert {opened(repo, p).secrets.bundle.shared for p in [*passwords, KEY]} == {repo.secrets.bundle.shared}


@pytest.fixture
def argon2_runs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one for every run of Argon2."""
    runs: list[object] = []
    real = argon2.low_level.hash_secret_raw

    def counted(*args: object, **kwargs: object) -> bytes:
        runs.append(args)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(argon2.low_level, "hash_secret_raw", counted)
    return runs


def test_a_wrong_password_costs_as_much_as_the_right_one_of_the_last_key(argon2_runs: list[object]) -> None:
    repo = new_repository()
    by_id = {add(repo, Password(f"password {n}")).id: Password(f"password {n}") for n in range(4)}
    add(repo, KeyFile(b"another" + bytes(25)))
    argon2_runs.clear()
    opened(repo, by_id[max(by_id)])
    right = len(argon2_runs)
    argon2_runs.clear()
    with pytest.raises(WrongKey):
        opened(repo, Password("wrong"))
    assert len(argon2_runs) == right == 4


def test_a_key_file_costs_no_argon2_at_all(argon2_runs: list[object]) -> None:
    repo = new_repository()
    add(repo, Password("password"))
    argon2_runs.clear()
    opened(repo, KEY)
    assert not argon2_runs


def test_a_damaged_key_object_does_not_keep_others_from_opening() -> None:
    repo = new_repository()
    first, second = add(repo, Password("first")), add(repo, Password("second"))
    name = f"keys/{first.id}"
    memory(repo).overwrite(name, repo.storage.get(name)[:-1])
    assert opened(repo, Password("second")).key_id == second.id
    with pytest.raises(Damaged, match=first.id):
        opened(repo, Password("first"))
    damaged: dict[str, str] = {}
    assert first.id not in {k.id for k, _ in read_keys(repo.storage, damaged)} and list(damaged) == [first.id]


def test_a_key_that_is_removed_while_keys_are_read_is_no_error() -> None:
    repo = new_repository()
    add(repo, Password("password"))
    storage = Misbehaving(repo.storage, [fails("get", 1, ObjectMissing, folder="keys")])
    assert len(list(read_keys(storage))) == 1
    for nth in (1, 2):
        storage = Misbehaving(repo.storage, [fails("get", nth, ObjectMissing, folder="keys")])
        try:
            open_bundle(storage, KEY, repo.id)
        except WrongKey:
            continue


# -- what a storage may try -------------------------------------------------------------------------------------------


def planted(repo: Repository, change: Callable[[dict[str, object]], None]) -> str:
    """A key object that somebody made of a good one, under the name that its bytes give it."""
    key = add(repo, Password("planted"))
    data = repo.storage.get(f"keys/{key.id}")
    repo.storage.delete(f"keys/{key.id}")
    line, rest = data.split(b"\n", 1)
    header = msgspec.json.decode(line)
    change(header)
    data = msgspec.json.encode(header) + b"\n" + rest
    name = hashlib.sha256(data).hexdigest()
    repo.storage.put(f"keys/{name}", [data])
    return name


HOSTILE_COSTS = [
    {"passes": 21, "memory": 8, "lanes": 1},
    {"passes": 1, "memory": (2 << 20) + 1, "lanes": 1},
    {"passes": 1, "memory": 1 << 40, "lanes": 1},
    {"passes": 1, "memory": 4096, "lanes": 17},
    {"passes": 1 << 40, "memory": 8, "lanes": 1},
    {"passes": 0, "memory": 8, "lanes": 1},
    {"passes": 1, "memory": 7, "lanes": 1},
    {"passes": 1, "memory": 8, "lanes": 0},
    {"passes": 1, "memory": 8, "lanes": 2},
    {"passes": -1, "memory": -8, "lanes": -1},
]


@pytest.mark.parametrize("cost", HOSTILE_COSTS)
def test_an_argon2_bomb_is_refused_before_it_costs_anything(argon2_runs: list[object], cost: dict[str, int]) -> None:
    repo = new_repository()
    name = planted(repo, lambda header: header.update(argon2=cost))
    argon2_runs.clear()
    with pytest.raises(Damaged, match=name):
        opened(repo, Password("planted"))
    assert not argon2_runs
    assert opened(repo, KEY).id == repo.id


@pytest.mark.parametrize("salt", ["", "c2hvcnQ=", "not base64!", base64.b64encode(bytes(100_000)).decode()])
@pytest.mark.parametrize("way", ["password", "file"])
def test_a_salt_that_no_holdfast_writes_is_damage(salt: str, way: str) -> None:
    repo = new_repository()
    name = planted(repo, lambda header: header.update(salt=salt, way=way))
    credential: Credential = Password("planted") if way == "password" else KeyFile(bytes(32))
    with pytest.raises(Damaged, match=name):
        opened(repo, credential)


@pytest.mark.parametrize(
    "change",
    [
        {"grants": "write-only"}, {"label": "mine"}, {"repository": "00" * 16}, {"created_ns": 5}, {"more": 1},
        {"argon2": {"passes": 2, "memory": 8, "lanes": 1}}, {"argon2": None, "way": "file"}, {"way": "telepathy"},
    ],
)  # fmt: skip
def test_a_changed_header_does_not_open(change: dict[str, object]) -> None:
    repo = new_repository()
    planted(repo, lambda header: header.update(change))
    for credential in (Password("planted"), KeyFile(b"planted" + bytes(25))):
        with pytest.raises(WrongKey):
            opened(repo, credential)


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"[]", b"\xff\xfe", b'{"format":"holdfast key"}\nAAAA\n'])
def test_a_key_object_that_is_none_is_damage(data: bytes) -> None:
    repo = new_repository()
    repo.storage.put(f"keys/{hashlib.sha256(data).hexdigest()}", [data])
    with pytest.raises(Damaged, match="cannot be understood"):
        opened(repo, Password("x"))
    assert opened(repo, KEY).id == repo.id


@pytest.mark.parametrize("rest", [b"", b"\n", b"AAAA\n", b"*\n", base64.b64encode(bytes(12)) + b"\n"])
def test_a_wrapped_bundle_that_is_none_opens_nothing(rest: bytes) -> None:
    repo = new_repository()
    key = add(repo, Password("password"))
    data = repo.storage.get(f"keys/{key.id}").split(b"\n", 1)[0] + b"\n" + rest
    repo.storage.delete(f"keys/{key.id}")
    repo.storage.put(f"keys/{hashlib.sha256(data).hexdigest()}", [data])
    with pytest.raises(WrongKey):
        opened(repo, Password("password"))


def test_a_key_object_of_a_newer_version_is_said_to_be_so() -> None:
    repo = new_repository()
    name = planted(repo, lambda header: header.update(version=2))
    with pytest.raises(UnknownVersion, match=name):
        opened(repo, Password("planted"))
    assert opened(repo, KEY).id == repo.id


# -- adding and removing ----------------------------------------------------------------------------------------------


def test_a_removed_key_opens_nothing_any_more() -> None:
    repo = new_repository()
    key = add(repo, Password("password"))
    remove_key(repo.storage, key.id, repo.key_id)
    with pytest.raises(WrongKey):
        opened(repo, Password("password"))


def test_the_key_in_use_cannot_be_removed() -> None:
    repo = new_repository()
    add(repo, Password("password"))
    with pytest.raises(UsageError, match="using now"):
        remove_key(repo.storage, repo.key_id, repo.key_id)
    assert opened(repo, KEY).id == repo.id


@pytest.mark.parametrize("used", ["a write-only key", "a recovery sheet"])
def test_the_last_full_key_cannot_be_removed(used: str) -> None:
    repo = new_repository()
    other = add(repo, Password("adds only"), reads=False)
    with pytest.raises(UsageError, match="last full key"):
        remove_key(repo.storage, repo.key_id, other.id if used == "a write-only key" else "")
    assert opened(repo, KEY).id == repo.id


def test_a_damaged_key_does_not_count_as_a_full_one_and_can_be_removed() -> None:
    repo = new_repository()
    other = add(repo, Password("other"))
    memory(repo).overwrite(f"keys/{other.id}", b"rubbish")
    with pytest.raises(UsageError, match="last full key"):
        remove_key(repo.storage, repo.key_id, "")
    remove_key(repo.storage, other.id, repo.key_id)
    assert names(repo.storage, "keys") == [f"keys/{repo.key_id}"]
    assert check(repo).good


# -- write-only keys --------------------------------------------------------------------------------------------------


def adder() -> tuple[Repository, Repository, str]:
    """A repository with a snapshot, opened in full and with a write-only key."""
    repo = new_repository()
    first = store(repo, {b"secret": b"nobody's business" * 100})
    add(repo, Password("adds only"), reads=False)
    return repo, opened(repo, Password("adds only")), first


def test_a_write_only_key_holds_no_private_key() -> None:
    _, other, _ = adder()
    assert not other.secrets.can_read
    assert [e.private for e in other.secrets.bundle.epochs] == [b""]


def test_a_write_only_key_adds_backups_that_a_full_key_reads() -> None:
    repo, other, _ = adder()
    new = store(other, {b"more": b"content" * 1000})
    assert read_back(repo, new) == {b"more": b"content" * 1000}
    assert check(repo, read_data=1).good


def test_a_write_only_key_stores_nothing_that_is_there_already() -> None:
    repo, other, _ = adder()
    before = set(names(repo.storage, "data"))
    new = store(other, {b"secret": b"nobody's business" * 100})
    assert set(names(repo.storage, "data")) == before
    assert read_back(repo, new) == {b"secret": b"nobody's business" * 100}


READINGS: dict[str, Callable[[Repository, str], object]] = {
    "snapshots": lambda repo, i: repo.snapshots(),
    "a snapshot": lambda repo, i: read_back(repo, i),
    "check": lambda repo, i: check(repo),
    "check of data": lambda repo, i: check(repo, read_data=1),
    "prune": lambda repo, i: prune(repo, Request(now=True)),
    "repair": lambda repo, i: repair_snapshots(repo, dry_run=False),
    "export": lambda repo, i: recovery_sheet(repo.secrets.bundle, "here"),
    "copy to": lambda repo, i: copy_snapshots(new_repository(), repo, []),
}


@pytest.mark.parametrize("what", READINGS)
def test_a_write_only_key_reads_nothing(what: str) -> None:
    repo, other, snapshot_id = adder()
    before = memory(repo).objects
    with pytest.raises(KeyCannotRead) as caught:
        READINGS[what](other, snapshot_id)
    assert caught.value.exit_status == 12 and "full key" in caught.value.hint
    assert memory(repo).objects == before


def test_no_chunk_and_no_page_can_be_read_with_a_write_only_key() -> None:
    repo, other, _ = adder()
    reader = other.reader()
    ids = list(repo.reader()._index.ids())
    assert ids
    for chunk_id in ids:
        with pytest.raises(KeyCannotRead):
            reader.read(chunk_id)


def test_keys_made_with_a_write_only_key_read_nothing_either() -> None:
    repo, other, _ = adder()
    key = add(other, Password("made by it"))
    assert key.header.grants == "write-only"
    assert not opened(repo, Password("made by it")).secrets.can_read


def test_the_write_only_half_is_equal_however_it_is_come_by() -> None:
    repo, other, _ = adder()
    assert other.secrets.bundle == write_only(repo).secrets.bundle


# -- recovery sheets --------------------------------------------------------------------------------------------------


def sheet_of(repo: Repository) -> str:
    return recovery_sheet(repo.secrets.bundle, "/mnt/disk")


def numbered(sheet: str) -> list[int]:
    """Which lines of the text are the numbered ones."""
    return [i for i, line in enumerate(sheet.splitlines()) if re.match(r"\d\d ", line)]


def test_a_recovery_sheet_opens_everything_without_any_key_object() -> None:
    repo = new_repository()
    snapshot_id = store(repo, {b"file": b"content"})
    read = parse_key_file(sheet_of(repo))
    repo.storage.delete(f"keys/{repo.key_id}")
    again = opened(repo, read)
    assert again.secrets.bundle == repo.secrets.bundle and again.key_id == ""
    assert read_back(again, snapshot_id) == {b"file": b"content"}


def test_a_sheet_may_be_typed_in_small_letters_with_other_spaces_and_remarks() -> None:
    repo = new_repository()
    lines = sheet_of(repo).splitlines()
    typed = "\r\n".join(["  my own remark", *(f" {line.lower().replace(' ', '   ')}  " for line in lines[1:])])
    read = parse_key_file("HOLDFAST RECOVERY SHEET\n" + typed)
    assert isinstance(read, Sheet) and read.bundle == repo.secrets.bundle


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_mistyped_line_is_named_by_its_number(data: st.DataObject) -> None:
    lines = SHEET.splitlines()
    places = numbered(SHEET)
    number = data.draw(st.integers(0, len(places) - 1))
    line = lines[places[number]]
    at = data.draw(st.integers(3, len(line) - 1).filter(lambda i: line[i] != " "))
    other = data.draw(
        st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789").filter(lambda c: c.lower() != line[at].lower())
    )
    lines[places[number]] = line[:at] + other + line[at + 1 :]
    with pytest.raises(UsageError, match=f"Line {number + 1:02d} of the recovery sheet"):
        parse_key_file("\n".join(lines))


@pytest.mark.parametrize("change", ["left out", "twice", "swapped", "number mistyped", "check left out"])
def test_a_line_that_is_out_of_place_is_named_by_its_number(change: str) -> None:
    lines, place = SHEET.splitlines(), numbered(SHEET)[2]
    line = lines[place]
    wanted = "Line 03"
    if change == "left out":
        del lines[place]
    elif change == "twice":
        lines.insert(place, line)
        wanted = "Line 04"
    elif change == "swapped":
        lines[place], lines[place + 1] = lines[place + 1], lines[place]
    elif change == "number mistyped":
        lines[place] = "O3" + line[2:]
    else:
        lines[place] = line[:2]
    with pytest.raises(UsageError, match=wanted):
        parse_key_file("\n".join(lines))


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_sheet_that_ends_too_early_is_not_complete(left: int) -> None:
    lines = SHEET.splitlines()[: numbered(SHEET)[0] + left]
    with pytest.raises(UsageError, match=f"not complete.*{left:02d}"):
        parse_key_file("\n".join(lines))


def test_a_sheet_of_another_repository_does_not_open_this_one() -> None:
    with pytest.raises(Damaged, match="not the one that was stored"):
        opened(new_repository(), parse_key_file(SHEET))


SHEET = sheet_of(new_repository())


@pytest.mark.parametrize(
    "text", ["", "password\n", "holdfast-key-1:", "holdfast-key-1:AAAA", "holdfast-key-2:" + "A" * 44, "²³ a b c"]
)
def test_a_file_that_is_no_key_file_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="neither a Holdfast key file nor a recovery sheet"):
        parse_key_file(text)


@given(st.text(max_size=400))
def test_no_text_makes_the_reading_of_key_files_fail_in_another_way(text: str) -> None:
    for start in ("", "holdfast-key-1:", "HOLDFAST RECOVERY SHEET\n01 ", "HOLDFAST RECOVERY SHEET\n"):
        try:
            parse_key_file(start + text)
        except UsageError:
            continue


# -- the config -------------------------------------------------------------------------------------------------------


def test_secrets_of_one_repository_say_nothing_in_another() -> None:
    one, other = new_repository(), new_repository()
    assert one.secrets.chunk_id(b"same") != other.secrets.chunk_id(b"same")
    sealed = one.secrets.seal(b"snapshot", b"data")
    with pytest.raises(Damaged):
        other.secrets.open_sealed(b"snapshot", sealed, "It")
    with pytest.raises(Damaged):
        other.secrets.open_shared(b"index", one.secrets.share(b"index", b"data"), "It")


def test_an_envelope_opens_only_for_its_own_purpose() -> None:
    secrets = new_repository().secrets
    with pytest.raises(Damaged):
        secrets.open_shared(b"locks", secrets.share(b"index", b"data"), "It")
    with pytest.raises(Damaged):
        secrets.open_sealed(b"index", secrets.seal(b"snapshot", b"data"), "It")


def test_the_public_key_alone_cannot_forge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who knows only what is public seals what nobody accepts: the proof key is missing."""
    bundle = new_repository().secrets.bundle
    thief = Secrets(Bundle(bundle.repository, os.urandom(32), without_private(bundle).epochs))
    with pytest.raises(Damaged):
        Secrets(bundle).open_sealed(b"snapshot", thief.seal(b"snapshot", b"forged"), "It")


@pytest.mark.parametrize("secret", ["shared", "private", "password"])
def test_no_stored_object_holds_a_secret_in_the_clear(secret: str) -> None:
    repo = create(MemoryStorage(), Password("correct horse"), an_owner(), Clock(), argon2=QUICK)
    store(repo, {b"a name": b"content"})
    bundle = repo.secrets.bundle
    secrets = {"shared": bundle.shared, "private": bundle.epochs[0].private, "password": b"correct horse"}[secret]
    stored = b"".join(memory(repo).objects.values())
    assert secrets not in stored and base64.b64encode(secrets)[:40] not in stored
    assert b"a name" not in stored


def test_errors_about_keys_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    repo = create(MemoryStorage(), Password("correct horse"), an_owner(), Clock(), argon2=QUICK)
    with pytest.raises(HoldfastError) as caught:
        opened(repo, Password("battery staple"))
    assert "staple" not in f"{caught.value!r} {caught.value.hint}"


def test_the_real_parameters_are_strong() -> None:
    """RFC 9106's second choice: 64 MiB, 3 passes."""
    assert Argon2() == Argon2(passes=3, memory=64 << 10, lanes=2)
    assert keys.ARGON2_MOST.passes >= 3
