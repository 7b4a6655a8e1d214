"""Manifests: kept to the letter, their availability worked out, versions, lists, snapshots."""

from __future__ import annotations

import json

import pytest

from holdfast.errors import NoContent, QuotaFull, TooLarge, UsageError
from holdfast.repository.check import check
from holdfast.repository.pages import Tree, join
from tests.manifests.making import Room, entry, sha256

SAMPLE = """{
    "name": "my_backup",
    "timestamp": "1985-10-26T21:45:00",
    "base": "/var/www/edgiese.com/public",
    "omit": ["tmp/*", ".git/*"],
    "files": {
        "./index.php": {
            "hash": "1234567890ABCDEF1234567890ABCDEF12345678",
            "timestamp": "2015-04-15T00:00:00+0000",
            "is_available": false,
            "available_bytes": [[0, 5000], [10000, 12344]],
            "size":12345,
            "user":"iansltx",
            "group":"iansltx",
            "permissions":777
        },
        "./subdir/blah.php": {
            "hash": "1234567890ABCDEF1234567890ABCDEF12345678",
            "timestamp": "2015-04-15T00:00:00+0000",
            "is_available": true,
            "size": 24488,
            "user":"edgiese",
            "group":"apache",
            "permissions":644
        }
    },    "omit": ["tmp/*", ".git/*"],

    "directories": {
        "./subdir": {
            "timestamp": "2015-04-15T00:00:00+0000",
            "user":"edgiese",
            "group":"apache",
            "permissions":644
        }
    }
}"""


def test_the_sample_is_accepted_and_comes_back(room: Room):
    made = room.post(room.ann, SAMPLE.encode())
    assert (made.name, made.version, made.files, made.available, made.content_bytes) == ("my_backup", 1, 2, 0, 36833)
    expected = json.loads(SAMPLE)
    for file in expected["files"].values():
        file.pop("available_bytes", None)
        file["is_available"] = False
    assert room.read(room.ann, "my_backup") == expected


def test_unknown_keys_numbers_and_texts_come_back_to_the_letter(room: Room):
    body = {
        "name": "ümläut 名", "custom": {"deep": [1, 2.50, None, True, "ä\u2028", -0.0, 12345678901234567890123]},
        "files": {"a\tb": entry(b"", permissions="0644", timestamp="2020-01-01", note=[[]])},
        "directories": {"d": {}, ".": {"permissions": 755}},
    }  # fmt: skip
    room.post(room.ann, body)
    body["files"]["a\tb"]["is_available"] = False  # type: ignore[index]
    assert room.read(room.ann, "ümläut 名") == body


def test_availability_is_worked_out_at_each_reading(room: Room):
    data, other = b"0123456789" * 100, b"other"
    room.post(room.ann, {"name": "m", "files": {"a": entry(data), "b": entry(other), "c": entry(data)}})
    room.put_part(room.ann, data, 0, 100)
    room.put_part(room.ann, data, 300, 400)
    files = room.read(room.ann, "m")["files"]
    assert files["a"]["available_bytes"] == [[0, 99], [300, 399]] == files["c"]["available_bytes"]
    assert files["b"] == entry(other, is_available=False)
    numbers = room.read(room.ann, "m", as_number=True)["files"]
    assert [numbers[name]["availability"] for name in "abc"] == [100, 0, 100]
    room.put(room.ann, data)
    assert room.manifests.named(room.ann, "m").available == 2
    assert room.read(room.ann, "m")["files"]["a"] == entry(data, is_available=True)
    assert room.read(room.ann, "m", as_number=True)["files"]["c"]["availability"] == -1
    assert room.complete == []
    room.put(room.ann, other)
    assert room.complete == [room.manifests.named(room.ann, "m").id]
    assert all(f["is_available"] for f in room.read(room.ann, "m")["files"].values())


def test_files_that_are_here_already_are_available_at_once(room: Room):
    room.put(room.ann, b"x")
    made = room.post(room.ann, {"name": "m", "files": {"a": entry(b"x"), "b": entry(b"x")}})
    assert (made.files, made.available) == (2, 2)
    assert room.complete == [made.id]


def test_an_entry_of_another_size_is_not_available(room: Room):
    room.put(room.ann, b"x")
    room.post(room.ann, {"name": "m", "files": {"a": {"hash": sha256(b"x"), "size": 2}}})
    assert room.read(room.ann, "m")["files"]["a"]["is_available"] is False


def test_another_accounts_files_are_not_available_nor_its_manifests_seen(room: Room):
    room.put(room.ben, b"secret")
    room.post(room.ben, {"name": "of ben", "files": {}})
    made = room.post(room.ann, {"name": "m", "files": {"a": entry(b"secret")}})
    assert made.available == 0
    assert room.read(room.ann, "m")["files"]["a"]["is_available"] is False
    with pytest.raises(NoContent):
        room.manifests.named(room.ann, "of ben")
    room.put(room.ben, b"secret")
    assert room.manifests.named(room.ann, "m").available == 0


def test_a_name_posted_again_is_the_next_version(room: Room):
    for number in range(3):
        assert room.post(room.ann, {"name": "m", "number": number, "files": {}}).version == number + 1
    assert room.read(room.ann, "m")["number"] == 2
    assert room.read(room.ann, "m", 1)["number"] == 0
    with pytest.raises(NoContent):
        room.manifests.named(room.ann, "m", 4)
    assert room.post(room.ben, {"name": "m", "files": {}}).version == 1


def test_the_list_has_the_newest_of_each_name_page_by_page(room: Room):
    for name in ("a", "b", "a", "c"):
        room.post(room.ann, {"name": name, "files": {}})
    first = room.manifests.page(room.ann, limit=2, before=None, name=None)
    assert [(m.name, m.version) for m in first.manifests] == [("c", 1), ("a", 2)]
    second = room.manifests.page(room.ann, limit=2, before=first.next, name=None)
    assert [(m.name, m.version) for m in second.manifests] == [("b", 1)] and second.next is None
    versions = room.manifests.page(room.ann, limit=9, before=None, name="a")
    assert [m.version for m in versions.manifests] == [2, 1]


BAD = {
    "nothing": b"",
    "a list": b"[]",
    "no name": b'{"files": {}}',
    "a name with a slash": b'{"name": "a/b", "files": {}}',
    "a long name": b'{"name": "' + b"x" * 256 + b'", "files": {}}',
    "a number for a name": b'{"name": 1, "files": {}}',
    "files that are a list": b'{"name": "m", "files": []}',
    "an entry that is a number": b'{"name": "m", "files": {"a": 1}}',
    "no hash": b'{"name": "m", "files": {"a": {"size": 1}}}',
    "a hash that is none": b'{"name": "m", "files": {"a": {"hash": "xyz", "size": 1}}}',
    "no size": json.dumps({"name": "m", "files": {"a": {"hash": "0" * 64}}}).encode(),
    "a negative size": json.dumps({"name": "m", "files": {"a": {"hash": "0" * 64, "size": -1}}}).encode(),
    "true for a size": json.dumps({"name": "m", "files": {"a": {"hash": "0" * 64, "size": True}}}).encode(),
    "a huge size": json.dumps({"name": "m", "files": {"a": {"hash": "0" * 64, "size": 1 << 63}}}).encode(),
    "permissions": json.dumps({"name": "m", "files": {"a": entry(b"", permissions=888)}}).encode(),
    "a timestamp": json.dumps({"name": "m", "files": {"a": entry(b"", timestamp="yesterday")}}).encode(),
    "an own timestamp": b'{"name": "m", "timestamp": 5, "files": {}}',
    "omit": b'{"name": "m", "omit": "x", "files": {}}',
    "a key twice": b'{"name": "m", "base": "a", "base": "b", "files": {}}',
    "a deep nest": b'{"name": "m", "x": ' + b"[" * 200 + b"]" * 200 + b"}",
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_a_bad_manifest_is_refused(room: Room, body: bytes):
    with pytest.raises(UsageError):
        room.post(room.ann, body)
    assert room.manifests.page(room.ann, limit=1, before=None, name=None).manifests == []


@pytest.mark.parametrize("path", ["/etc/passwd", "..", "a/../b", "../x", "a\0b", "", ".", "a/", "x" * 5000])
def test_a_path_that_leads_astray_is_refused_by_name(room: Room, path: str):
    with pytest.raises(UsageError, match="The entry"):
        room.post(room.ann, {"name": "m", "files": {path: entry(b"")}})


@pytest.mark.parametrize("path", ["%2e%2e/x", "a\\..\\b", "...", "a b", "-rf", "~", "./.hidden"])
def test_odd_paths_are_ordinary_names(room: Room, path: str):
    room.post(room.ann, {"name": "m", "files": {path: entry(b"")}})
    assert list(room.read(room.ann, "m")["files"]) == [path]


def test_a_path_named_twice_must_be_the_same_entry(room: Room):
    one, two = json.dumps(entry(b"1")), json.dumps(entry(b"2"))
    body = f'{{"name": "m", "files": {{"a": {one}, "a": {one}}}}}'
    assert room.post(room.ann, body.encode()).files == 1
    with pytest.raises(UsageError, match="twice"):
        room.post(room.ann, f'{{"name": "m", "files": {{"a": {one}, "./a": {two}}}}}'.encode())


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"name": "m",\n "files": {},}', "line 2, column 14"),
        (b'{"name": "m"\n\n  "files": {}}', "line 3, column 9"),
        (b'{"name": "m", "files": {}} x', "line 1, column 28"),
        (b'{"name": "m", "files": {"a": nul}}', "line 1"),
        (b'{"name": "m", "files": {', "line 1, column 25"),
        (b'{"name": "' + b"\n" * 3 + b'"}', "line 1"),
        (b'{"name": "\xff", "files": {}}', "line 1"),
        (b'{"pad": "' + b"x" * 200_000 + b'",\n\n  !}', "line 3, column 3"),
    ],
)  # fmt: skip
def test_broken_json_is_refused_with_its_place(room: Room, body: bytes, place: str):
    with pytest.raises(UsageError, match=place):
        room.post(room.ann, body)


def test_what_would_fill_the_memory_is_refused(room: Room):
    with pytest.raises(TooLarge):
        room.post(room.ann, {"name": "m", "files": {"a": entry(b"", x=list(range(20_000)))}})
    with pytest.raises(TooLarge):
        room.post(room.ann, {"name": "m", "x": "y" * (2 << 20), "files": {}})


def test_a_complete_manifest_becomes_a_snapshot(room: Room):
    contents = {"b/c/file": b"1" * 3000, "a": b"2", "b/zero": b"", "z/y/x/w": b"1" * 3000}
    files = {
        f"./{path}": entry(data, permissions=640, timestamp="2020-02-03T04:05:06.789+01:00", user="nobody", group="7")
        for path, data in contents.items()
    }
    for data in contents.values():
        room.put(room.ann, data)
    made = room.post(room.ann, {"name": "m/m".replace("/", " "), "base": "/srv", "files": files, "directories": {
        "b": {"permissions": "700"}, "empty": {"timestamp": "2001-01-01T00:00:00Z"},
    }})  # fmt: skip
    snapshot_id = room.maker.make(made.id)
    stored = next(s for s in room.repo.snapshots() if s.id == snapshot_id)
    assert (stored.snapshot.base, stored.snapshot.user, stored.snapshot.tags[0]) == (b"/srv", "ann", "manifest")
    found = {join(d, e.name): e for d, entries in Tree(room.shelf.read, stored.snapshot.root).runs() for e in entries}
    folders = {b"", b"b", b"b/c", b"empty", b"z", b"z/y", b"z/y/x"}
    assert found.keys() == folders | {path.encode() for path in contents}
    one = found[b"b/c/file"]
    assert (one.kind, one.mode, one.gid, one.size) == ("f", 0o640, 7, 3000)
    assert one.mtime_ns == 1_580_699_106_789_000_000
    assert found[b"b"].mode == 0o700 and found[b"b/c"].mode == 0o755
    assert found[b"empty"].mtime_ns == 978_307_200_000_000_000
    assert room.manifests.named(room.ann, "m m").snapshot == snapshot_id
    assert check(room.repo, read_data=1.0).good


def test_manifests_are_there_after_a_restart(room: Room):
    room.post(room.ann, {"name": "m", "files": {"a": entry(b"x")}})
    room.stop()
    room.start()
    room.put(room.ann, b"x")
    assert room.read(room.ann, "m")["files"]["a"]["is_available"] is True


def test_a_manifest_counts_in_the_quota(room: Room):
    room.house.directory.change(room.house.admin, "ann", {"quota_bytes": 1000})
    with pytest.raises(QuotaFull):
        room.post(room.ann, {"name": "m", "files": {f"{n}": entry(b"") for n in range(20)}})
    assert room.manifests.page(room.ann, limit=9, before=None, name=None).manifests == []
    made = room.post(room.ann, {"name": "m", "files": {"a": entry(b"")}})
    account = room.house.directory.account(room.ann, "ann")
    assert (account.used_bytes, account.used_objects) == (made.size, 1)
