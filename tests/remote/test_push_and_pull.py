"""Folders to a real server and back."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from tests.remote.visiting import MIB, Visitor, described, noise, requests_of, sha256, small_tree, visitor, warnings
from tests.support.proxy import proxy_to
from tests.support.server import Running


@pytest.fixture
def tree(ann: Visitor) -> Path:
    return small_tree(ann.tree)


def aged(root: Path) -> None:
    """Let so much time pass that what was written before can be told from what is written later."""
    time.sleep(2.1)


def test_what_was_pushed_comes_back_as_it_was(ann: Visitor, tree: Path) -> None:
    pushed = ann.push()
    assert (pushed["version"], pushed["complete"], pushed["files"], pushed["errors"]) == (1, True, 6, 0)
    assert pushed["directories"] == 3 and pushed["symlinks"] == 2 and pushed["name"] == "tree"
    assert pushed["files_sent"] == 5  # twins are sent once
    pulled = ann.pull()
    assert (pulled["files_pulled"], pulled["version"], pulled["errors"]) == (6, 1, 0)
    assert described(ann.out) == described(tree)


@pytest.mark.needs_root
def test_root_gets_owners_back_and_bits_that_lend_their_rights(ann: Visitor, tree: Path) -> None:
    os.chown(tree / "plain", 12345, 54321)
    os.chown(tree / "sub", 1, 1)
    os.chown(tree / "dangling", 12345, 1, follow_symlinks=False)
    os.chmod(tree / "plain", 0o4755)
    ann.push()
    ann.pull()
    assert described(ann.out) == described(tree)
    assert (ann.out / "plain").stat().st_mode & 0o7777 == 0o4755


@pytest.mark.needs_root
def test_an_owner_that_nobody_knows_here_lends_nothing(ann: Visitor, tree: Path) -> None:
    (tree / "plain").chmod(0o4755)
    ann.push()
    with ann_client(ann) as client:
        document = client.get("/manifests/tree").json()
        document["files"]["./plain"]["user"] = "nobody-of-that-name"
        assert client.post("/manifests", json=document).status_code == 201
    done = ann.call("manifest", "pull", "tree", "-t", ann.out)
    assert "nobody-of-that-name" in done.error
    assert (ann.out / "plain").stat().st_mode & 0o7777 == 0o755 and (ann.out / "plain").stat().st_uid == os.geteuid()


def test_the_document_is_as_the_format_has_it(ann: Visitor, tree: Path) -> None:
    ann.push("--omit", "*.tmp")
    with ann_client(ann) as client:
        document = client.get("/manifests/name/tree").json()
    assert document["base"] == str(tree) and document["omit"] == ["*.tmp"]
    entry = document["files"]["./sub/script"]
    assert entry["hash"] == sha256(b"#!/bin/sh\n") and entry["size"] == 10 and entry["permissions"] == 755
    assert entry["is_available"] is True and entry["timestamp"].startswith("2001-02-03T04:05:")
    assert entry["timestamp"].endswith("+00:00") and "user" in entry and "group" in entry
    assert set(document["directories"]) == {"./sub", "./sub/deep", "./empty"}
    assert document["symlinks"]["./sub/link"]["target"] == "../plain"


def test_a_second_push_sends_nothing_and_reads_nothing(ann: Visitor, tree: Path) -> None:
    aged(tree)
    ann.push()
    again = ann.push()
    assert (again["files_sent"], again["files_hashed"], again["bytes_hashed"]) == (0, 0, 0)
    assert (again["version"], again["complete"], again["files"]) == (2, True, 6)


def test_what_changed_is_read_and_sent_alone(ann: Visitor, tree: Path) -> None:
    aged(tree)
    ann.push()
    (tree / "sub" / "new").write_bytes(b"new")
    (tree / "plain").write_bytes(noise(5000, "other"))
    again = ann.push()
    assert (again["files_hashed"], again["files_sent"]) == (2, 2)


def test_a_file_that_was_just_written_is_not_trusted_to_stay(ann: Visitor, tree: Path) -> None:
    (tree / "now").write_bytes(b"a")
    ann.push()
    assert ann.push()["files_hashed"] == ann.push()["files_hashed"] > 0


def test_a_pull_over_what_is_there_fetches_what_differs(ann: Visitor, tree: Path, server: Running) -> None:
    ann.push()
    ann.pull()
    before = len(list(requests_of(server, "GET", "/files/")))
    again = ann.pull()
    assert (again["files_pulled"], again["files_unchanged"]) == (0, 6)
    assert len(list(requests_of(server, "GET", "/files/"))) == before
    (ann.out / "plain").unlink()
    (ann.out / "sub" / "twin").write_bytes(b"x")
    (ann.out / "sub" / "script").chmod(0o600)
    os.utime(ann.out / "sub" / "deep" / "large")
    third = ann.pull()
    assert (third["files_pulled"], third["files_unchanged"]) == (2, 4)
    assert described(ann.out) == described(tree)


def test_pulling_over_the_pushed_tree_itself_changes_nothing(ann: Visitor, tree: Path) -> None:
    os.utime(tree / "plain", ns=(0, 1_234_567_890_123_456_789))  # finer than a manifest can say
    ann.push()
    before = (tree / "plain").stat()
    done = ann.call("manifest", "pull", "tree", "--target", tree, "--json")
    assert done.events[-1]["files_unchanged"] == 6
    after = (tree / "plain").stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_verify_finds_what_size_and_time_hide(ann: Visitor, tree: Path) -> None:
    ann.push()
    ann.pull()
    st = (ann.out / "plain").stat()
    (ann.out / "plain").write_bytes(noise(5000, "damaged"))
    os.utime(ann.out / "plain", ns=(0, st.st_mtime_ns))
    assert ann.pull()["files_pulled"] == 0
    assert ann.pull("--verify")["files_pulled"] == 1
    assert described(ann.out) == described(tree)


def test_an_older_version_can_be_pulled(ann: Visitor, tree: Path) -> None:
    ann.push()
    older = described(tree)
    (tree / "plain").write_bytes(b"newer")
    ann.push()
    assert ann.pull("--version", 1)["version"] == 1
    assert described(ann.out) == older
    assert ann.pull()["version"] == 2
    assert described(ann.out) == described(tree)
    assert "no version 7" in ann.call("manifest", "pull", "tree", "-t", ann.out, "--version", 7, status=1).error


def test_what_is_omitted_is_not_pushed(ann: Visitor, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "specs").write_text("# a comment\n\nsub/deep/\n")
    ann.push("--omit", "tw*", "--omit-file", tmp_path / "specs")
    ann.pull()
    assert not (ann.out / "sub" / "deep").exists() and not (ann.out / "sub" / "twin").exists()
    assert (ann.out / "plain").exists() and (ann.out / "sub" / "script").exists()


def test_what_is_omitted_is_neither_touched_nor_removed_by_a_pull(ann: Visitor, tree: Path) -> None:
    ann.push()
    with ann_client(ann) as client:
        document = client.get("/manifests/tree").json()
        document["omit"] = ["plain", "kept/"]
        assert client.post("/manifests", json=document).status_code == 201
    (ann.out / "kept").mkdir(parents=True)
    (ann.out / "kept" / "mine").write_text("mine")
    (ann.out / "plain").write_text("mine too")
    (ann.out / "extra").mkdir()
    (ann.out / "extra" / "file").write_text("goes")
    (ann.out / "sub").mkdir()
    (ann.out / "sub" / "stranger").write_text("goes")
    foreseen = ann.call("manifest", "pull", "tree", "-t", ann.out, "--delete", "--dry-run").lines
    assert "delete  extra" in foreseen and "delete  sub/stranger" in foreseen and "new     nothing" in foreseen
    assert not any("kept" in line or "plain" in line for line in foreseen)
    assert (ann.out / "extra" / "file").exists() and not (ann.out / "nothing").exists()
    pulled = ann.pull("--delete")
    assert pulled["files_deleted"] == 3 and pulled["errors"] == 0
    assert (ann.out / "kept" / "mine").read_text() == "mine" and (ann.out / "plain").read_text() == "mine too"
    assert not (ann.out / "extra").exists() and not (ann.out / "sub" / "stranger").exists()
    assert (ann.out / "sub" / "deep" / "large").exists()


def test_a_folder_in_the_way_of_a_file_goes_only_with_delete(ann: Visitor, tree: Path) -> None:
    ann.push()
    (ann.out / "plain" / "inner").mkdir(parents=True)
    done = ann.call("manifest", "pull", "tree", "-t", ann.out, status=3)
    assert "plain: a folder is in its place" in done.error and (ann.out / "plain" / "inner").is_dir()
    ann.pull("--delete")
    assert described(ann.out) == described(tree)


def test_a_dry_run_of_a_push_sends_nothing(ann: Visitor, tree: Path, server: Running) -> None:
    foreseen = ann.push("--dry-run")
    assert foreseen["files_to_send"] == 5 and foreseen["version"] == 0
    with ann_client(ann) as client:
        assert client.get("/manifests").json()["manifests"] == []
    ann.push()
    (tree / "one more").write_text("one more")
    assert ann.push("--dry-run")["files_to_send"] == 1


def test_what_a_manifest_cannot_hold_is_named_and_the_rest_is_taken(ann: Visitor, tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    os.link(tree / "plain", tree / "second name")
    with open(os.fsencode(tree) + b"/\xff", "wb"):
        pass
    os.mkdir(os.fsencode(tree) + b"/\xfe")
    with open(os.fsencode(tree) + b"/\xfe/inside", "wb"):
        pass
    os.setxattr(tree / "plain", "user.note", b"x")
    done = ann.call("manifest", "push", tree)
    assert "pipe is a pipe, which a manifest cannot hold" in done.error
    assert "\\xff has a name that is no UTF-8 text" in done.error and "inside" not in done.error
    assert "2 names are hard links" in done.error and "have extended attributes" in done.error
    told = ann.push()
    assert (told["left_out"], told["errors"], told["files"]) == (3, 0, 7)


def test_more_links_than_a_manifest_has_room_for_are_named(ann: Visitor) -> None:
    for number in range(2500):
        (ann.tree / f"link {number:04d}").symlink_to("x" * 500)
    done = ann.call("manifest", "push", ann.tree, "--json")
    told = done.events[-1]
    assert told["symlinks"] > 1000 and told["symlinks"] + told["left_out"] == 2500
    assert "is a symbolic link more than the manifest has room for" in warnings(done)[0]
    ann.pull()
    assert len(list(ann.out.iterdir())) == told["symlinks"]


@pytest.mark.needs_root
def test_what_cannot_be_read_is_named_and_the_status_is_3(ann: Visitor, tree: Path, need: Callable[[str], str]) -> None:
    for path in (tree / "plain", tree / "sub" / "deep"):
        path.chmod(0)
        os.chown(path, 12345, 12345)
    caps = "-dac_override,-dac_read_search"
    within = [need("setpriv"), f"--bounding-set={caps}", f"--inh-caps={caps}"]
    command = [*within, *ann.apart.command("manifest", "push", tree, "--json")]
    done = subprocess.run(command, env=ann.apart.environment, stdout=subprocess.PIPE, timeout=60)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    named = sorted(e["message"] for e in events if e["message_type"] == "warning")
    assert (done.returncode, named) == (3, ["plain: Permission denied", "sub/deep: Permission denied"])
    assert (events[-1]["errors"], events[-1]["files"], events[-1]["complete"]) == (2, 4, True)


def test_a_file_that_the_server_does_not_have_is_named(ann: Visitor, tree: Path) -> None:
    ann.push()
    with ann_client(ann) as client:
        document = client.get("/manifests/tree").json()
        document["files"]["./missing"] = {"hash": sha256(b"nobody has it"), "size": 13}
        assert client.post("/manifests", json=document).status_code == 201
    done = ann.call("manifest", "pull", "tree", "-t", ann.out, "--json", status=3)
    assert warnings(done) == ["missing: the server does not have all of it yet"]
    assert done.events[-1]["files_pulled"] == 6 and not (ann.out / "missing").exists()
    (ann.out / "missing").write_bytes(b"nobody has it")
    assert ann.pull()["errors"] == 0  # what is here already is not needed from there


def test_a_manifest_without_times_modes_and_owners_is_pulled(ann: Visitor) -> None:
    with ann_client(ann) as client:
        for data in (b"one", b"two"):
            client.put(f"/files/{sha256(data)}", content=data)
        files = {f"./a//{data.decode()}": {"hash": sha256(data).upper(), "size": 3} for data in (b"one", b"two")}
        assert client.post("/manifests", json={"name": "tree", "files": files}).status_code == 201
    ann.pull()
    assert (ann.out / "a" / "one").read_bytes() == b"one" and (ann.out / "a" / "two").read_bytes() == b"two"
    assert ann.pull()["files_unchanged"] == 2
    (ann.out / "a" / "one").write_bytes(b"eno")
    assert ann.pull()["files_pulled"] == 1


def test_a_file_that_changes_while_it_is_pushed_is_taken_again(ann: Visitor) -> None:
    target, changed = ann.tree / "large", noise(20 * MIB, "changed")
    target.write_bytes(noise(20 * MIB))
    (ann.tree / "small").write_bytes(b"small")
    with proxy_to(ann.url) as proxy:
        proxy.holds = [5 * MIB]
        slow = replace(ann, url=proxy.url).apart
        command = slow.command("manifest", "push", ann.tree, "--json")
        with subprocess.Popen(command, env=slow.environment, stdout=subprocess.PIPE) as process:
            assert proxy.held.wait(60)
            target.write_bytes(changed)
            proxy.go.set()
            out, _ = process.communicate(timeout=100)
    told = json.loads(out.splitlines()[-1])
    assert (process.returncode, told["version"], told["complete"], told["errors"]) == (0, 2, True, 0)
    ann.pull()
    assert (ann.out / "large").read_bytes() == changed


def test_a_file_that_shrinks_or_goes_while_it_is_pushed_is_noticed(ann: Visitor) -> None:
    (ann.tree / "shrinks").write_bytes(noise(20 * MIB))
    (ann.tree / "goes").write_bytes(noise(2 * MIB))
    with proxy_to(ann.url) as proxy:
        proxy.holds = [5 * MIB]
        slow = replace(ann, url=proxy.url).apart
        command = slow.command("manifest", "push", ann.tree, "--json")
        with subprocess.Popen(command, env=slow.environment, stdout=subprocess.PIPE) as process:
            assert proxy.held.wait(60)
            (ann.tree / "shrinks").write_bytes(b"short")
            (ann.tree / "goes").unlink()
            proxy.go.set()
            out, _ = process.communicate(timeout=100)
    told = json.loads(out.splitlines()[-1])
    assert (process.returncode, told["complete"], told["files"]) == (0, True, 1)
    ann.pull()
    assert (ann.out / "shrinks").read_bytes() == b"short"


def test_manifests_are_listed(ann: Visitor, tree: Path) -> None:
    assert "There are no manifests" in ann.call("manifest", "list").text
    ann.push()
    ann.push("--name", "another one")
    lines = ann.call("manifest", "list").lines
    assert len(lines) == 3 and lines[1].startswith("another one") and lines[2].startswith("tree")
    (first, second) = ann.call("manifest", "list", "--json").json
    assert (second["name"], second["version"], second["files"], second["available"]) == ("tree", 1, 6, 6)
    assert first["name"] == "another one"


def test_a_snapshot_of_the_command_line_is_told_from_ones_own(server: Running, ann: Visitor, tmp_path: Path) -> None:
    ann.push()
    other_home = tmp_path / "other"
    other_home.mkdir()
    bob = visitor(server, f"{ann.name}-bob", other_home)
    assert bob.call("manifest", "list", "--json").json == []
    assert "no manifest 'tree'" in bob.call("manifest", "pull", "tree", "-t", bob.out, status=1).error


def ann_client(ann: Visitor) -> httpx2.Client:
    return httpx2.Client(base_url=ann.url, headers={"Authorization": f"Bearer {ann.token}"}, timeout=60)
