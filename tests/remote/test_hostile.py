"""A server that means harm: what it sends stays inside the target, and wrong bytes are never put in place."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.remote.visiting import MIB, Visitor, noise, sha256, warnings
from tests.support.hostile import Hostile, hostile_server

DATA = b"harm"


@pytest.fixture
def enemy() -> Iterator[Hostile]:
    with hostile_server() as found:
        found.files[sha256(DATA)] = DATA
        yield found


@pytest.fixture
def bob(enemy: Hostile, tmp_path: Path) -> Visitor:
    """Somebody who pulls from it, in a house where everything is noticed."""
    (tmp_path / "house").mkdir()
    return Visitor(tmp_path / "house", "bob", "a token", enemy.url)


def entry(data: bytes = DATA, **about: Any) -> dict[str, Any]:
    return {"hash": sha256(data), "size": len(data), "is_available": True, **about}


def everything(root: Path) -> dict[str, object]:
    """Every path below a folder, with what would change if somebody wrote there."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        if ".cache" in path.parts:
            continue
        st = path.lstat()
        found[str(path)] = (
            st.st_mode,
            st.st_ino,
            st.st_mtime_ns,
            path.is_file() and not path.is_symlink() and st.st_size,
        )
    return found


HOSTILE_PATHS = [
    "../outside", "/tmp/holdfast-hostile-absolute", "a/../../outside", "./../outside", "..", ".", "", "a/..",
    "sub/../../outside", "a\0b", "x" * 256, "\ud800", ".holdfast-0123456789abcdef.part",
]  # fmt: skip


@pytest.mark.parametrize("section", ["files", "directories", "symlinks"])
@pytest.mark.parametrize("path", HOSTILE_PATHS, ids=[repr(p)[:30] for p in HOSTILE_PATHS])
def test_paths_that_lead_elsewhere_are_refused(enemy: Hostile, bob: Visitor, path: str, section: str) -> None:
    about: dict[str, Any] = {"files": entry(), "directories": {"permissions": 777}, "symlinks": {"target": "/"}}[
        section
    ]
    enemy.manifest = {"name": "tree", "files": {"good": entry()}}
    enemy.manifest.setdefault(section, {})[path] = about
    bob.out.mkdir()
    os.utime(bob.folder, ns=(0, 0))
    done = bob.call("manifest", "pull", "tree", "-t", bob.out, "--json", status=None)
    is_the_target = section == "directories" and path in (".", "", "/")
    if path != "\ud800":  # a JSON reader makes another sign of it
        assert done.status == (0 if is_the_target else 3), done.error
        assert os.listdir(bob.out) == ["good"] and (bob.out / "good").read_bytes() == DATA
        assert len(warnings(done)) == (0 if is_the_target else 1)
    else:
        assert "good" in os.listdir(bob.out)
    assert not Path("/tmp/holdfast-hostile-absolute").exists()
    assert sorted(p.name for p in bob.folder.iterdir() if not p.name.startswith(".")) == ["out"]


def test_a_percent_encoded_path_is_a_name_like_any_other(enemy: Hostile, bob: Visitor) -> None:
    enemy.manifest = {"name": "tree", "files": {"%2e%2e%2foutside": entry()}}
    bob.pull()
    assert os.listdir(bob.out) == ["%2e%2e%2foutside"]


@pytest.mark.parametrize("what", ["a file", "a folder", "a link"])
def test_nothing_goes_through_a_link_in_the_target(enemy: Hostile, bob: Visitor, what: str) -> None:
    victim = bob.folder / "victim"
    victim.mkdir()
    (victim / "inner").mkdir()
    (victim / "mine").write_text("mine")
    bob.out.mkdir()
    (bob.out / "door").symlink_to(victim)
    before = everything(victim)
    section, about = {
        "a file": ("files", entry(permissions=777)), "a folder": ("directories", {"permissions": 777}),
        "a link": ("symlinks", {"target": "/etc/passwd"}),
    }[what]  # fmt: skip
    enemy.manifest = {"name": "tree", "files": {}} | {section: {"door/inner": about, "door/new": about}}
    done = bob.call("manifest", "pull", "tree", "-t", bob.out, "--json", status=3)
    assert all("a symbolic link stands in its way" in w for w in warnings(done)) and warnings(done)
    assert everything(victim) == before
    bob.call("manifest", "pull", "tree", "-t", bob.out, "--delete", "--json", status=None)
    assert everything(victim) == before


def test_a_manifest_cannot_plant_a_link_and_then_write_through_it(enemy: Hostile, bob: Visitor) -> None:
    victim = bob.folder / "victim"
    victim.mkdir()
    before = everything(victim)
    enemy.manifest = {
        "name": "tree", "symlinks": {"door": {"target": str(victim)}, "sub/up": {"target": "../.."}},
        "directories": {"door": {}, "sub": {}}, "files": {"door/file": entry(), "sub/up/file": entry()},
    }  # fmt: skip
    for _ in range(3):
        bob.call("manifest", "pull", "tree", "-t", bob.out, "--delete", status=None)
        assert everything(victim) == before and not (bob.folder / "file").exists()


def test_a_link_in_place_of_a_file_is_replaced_not_followed(enemy: Hostile, bob: Visitor) -> None:
    victim = bob.folder / "victim"
    victim.write_bytes(b"mine")
    victim.chmod(0o600)
    bob.out.mkdir()
    (bob.out / "file").symlink_to(victim)
    enemy.manifest = {"name": "tree", "files": {"file": entry(permissions=777)}}
    bob.pull()
    assert (bob.out / "file").read_bytes() == DATA and not (bob.out / "file").is_symlink()
    assert victim.read_bytes() == b"mine" and victim.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("size", [4, 3 * MIB])
@pytest.mark.parametrize("wrong", ["other bytes", "more", "fewer"])
def test_other_bytes_than_promised_are_never_put_in_place(enemy: Hostile, bob: Visitor, size: int, wrong: str) -> None:
    promised = noise(size)
    sent = {"other bytes": noise(size, "x"), "more": promised + b"x", "fewer": promised[:-1]}[wrong]
    enemy.files[sha256(promised)] = sent
    enemy.manifest = {"name": "tree", "files": {"good": entry(), "bad": entry(promised), "kept": entry(promised)}}
    bob.out.mkdir()
    (bob.out / "kept").write_bytes(b"as it was")
    done = bob.call("manifest", "pull", "tree", "-t", bob.out, "--json", status=3)
    assert len(warnings(done)) == 2
    assert sorted(os.listdir(bob.out)) == ["good", "kept"] and (bob.out / "kept").read_bytes() == b"as it was"


def test_a_file_that_is_not_there_after_all_is_named(enemy: Hostile, bob: Visitor) -> None:
    enemy.manifest = {"name": "tree", "files": {"good": entry(), "bad": entry(b"nowhere")}}
    done = bob.call("manifest", "pull", "tree", "-t", bob.out, "--json", status=3)
    assert warnings(done) == ["bad: The server says: Not here."] and os.listdir(bob.out) == ["good"]


@pytest.mark.parametrize(
    "about",
    [
        {"hash": "../../x"}, {"hash": None}, {"size": -1}, {"size": True}, {"size": 1 << 70}, {"permissions": 888},
        {"permissions": "0o7"}, {"user": -1}, {"user": 1 << 40}, {"user": [1]}, {"timestamp": "yesterday"},
        {"timestamp": 12}, {"size": 4.0},
    ],
    ids=str,
)  # fmt: skip
def test_an_entry_that_no_file_can_have_is_refused(enemy: Hostile, bob: Visitor, about: dict[str, Any]) -> None:
    enemy.manifest = {"name": "tree", "files": {"good": entry(), "bad": entry() | about}}
    done = bob.call("manifest", "pull", "tree", "-t", bob.out, "--json", status=None)
    assert done.status in (1, 3) and "bad" not in os.listdir(bob.out if bob.out.exists() else bob.folder)


@pytest.mark.parametrize(
    "sent",
    [
        b"", b"[]", b"{", b"{}", b'{"files":{"a":', b"\xff", b'{"files":[]}', b'{"files":1}',
        b'{"omit":"x","files":{}}',
        b'{"files":{},"omit":["!"]}', b'{"files":{}', b"[" * 99999, b'{"files":{"a":' + b"[" * 99999, b'[{"files":{}}]',
    ],
    ids=lambda sent: repr(sent)[:30],
)  # fmt: skip
def test_a_manifest_that_is_none_removes_nothing(enemy: Hostile, bob: Visitor, sent: bytes) -> None:
    bob.out.mkdir()
    (bob.out / "mine").write_text("mine")
    enemy.manifest = sent
    done = bob.call("manifest", "pull", "tree", "-t", bob.out, "--delete", status=None)
    assert done.status == 1 and "fault in Holdfast" not in done.error and os.listdir(bob.out) == ["mine"]


@pytest.mark.parametrize("piece", [b'{"a":', b'"x":[],', b"x" * 1000], ids=["deep", "long", "a long text"])
def test_a_manifest_cannot_fill_the_memory(enemy: Hostile, bob: Visitor, piece: bytes) -> None:
    opening = b'{"files":{"a":"' if piece[:1] == b"x" else b'{"files":{"a":{'
    enemy.manifest = opening + piece * (20_000_000 // len(piece))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = bob.call("manifest", "pull", "tree", "-t", bob.out, status=1)
    assert "too deep" in done.error or "too large" in done.error or "not JSON" in done.error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10


@pytest.mark.parametrize("at", [0, 1, 60_000, 65_536, 131_072])
def test_a_number_without_end_is_refused_and_nothing_worse(enemy: Hostile, bob: Visitor, at: int) -> None:
    """In a process of its own: a parser of the past brought it down, at the beginning of a block."""
    opening = b'{"name":"tree","omit":[],"files":{"a":{"size":'
    enemy.manifest = b" " * max(0, at - len(opening)) + opening + b"9" * 5000 + b"}}}"
    done = bob.apart("manifest", "pull", "tree", "-t", bob.out, status=1)
    assert "is not JSON" in done.error


def test_a_server_that_leads_elsewhere_is_not_followed_and_gets_no_token_there(enemy: Hostile, bob: Visitor) -> None:
    with hostile_server() as other:
        enemy.answers["/accounts/me"] = [(307, {"Location": f"{other.url}/accounts/me"}, b"")]
        done = bob.call("manifest", "pull", "tree", "-t", bob.out, status=1)
        assert "leads to another address" in done.error and other.seen == []


def test_what_a_server_says_cannot_play_with_the_terminal(enemy: Hostile, bob: Visitor) -> None:
    enemy.answers["/accounts/me"] = [(403, {}, b'{"detail":"\\u001b[2J\\u0007evil' + b"x" * 5000 + b'"}')]
    done = bob.call("manifest", "pull", "tree", "-t", bob.out, status=1)
    assert "\x1b" not in done.error and "\x07" not in done.error and len(done.error) < 600
    enemy.answers.clear()
    enemy.manifest = {"name": "tree", "files": {"\x1b[2J": entry(b"nowhere")}, "omit": []}
    assert "\x1b" not in bob.call("manifest", "pull", "tree", "-t", bob.out, status=3).error


def test_busy_servers_are_waited_for_as_long_as_they_ask(enemy: Hostile, bob: Visitor) -> None:
    enemy.manifest = {"name": "tree", "files": {"file": entry()}}
    busy, good = (429, {"Retry-After": "1"}, b"{}"), (200, dict[str, str](), DATA)
    enemy.answers[f"/files/{sha256(DATA)}"] = [busy, (503, {}, b"{}"), good]
    bob.pull()
    assert (bob.out / "file").read_bytes() == DATA
    assert enemy.seen.count(f"GET /files/{sha256(DATA)}") == 3


def test_a_token_that_counts_no_more_is_said_and_nothing_is_done(enemy: Hostile, bob: Visitor) -> None:
    enemy.answers["/accounts/me"] = [(401, {}, b"{}")]
    done = bob.call("manifest", "pull", "tree", "-t", bob.out, status=1)
    assert "does not accept the log-in" in done.error and "a token" not in done.error and not bob.out.exists()
