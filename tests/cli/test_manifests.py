"""``holdfast manifest``, ``login`` and ``logout`` as their users call them: options, output, exit status."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.inside import demand_error, demand_run
from tests.remote.visiting import Visitor, visitor
from tests.support.server import Running, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def ann(server: Running, tmp_path: Path, request: pytest.FixtureRequest) -> Visitor:
    found = visitor(server, f"ann{abs(hash(request.node.name))}", tmp_path)
    (found.tree / "file").write_bytes(b"content" * 1000)
    (found.tree / "folder").mkdir()
    return found


def test_what_a_push_prints(ann: Visitor) -> None:
    done = ann.call("manifest", "push", ann.tree)
    assert done.lines == [
        "Content: 6.8 KiB in 1 files, 6.8 KiB read",
        "Sent:    1 files, 6.8 KiB; the server had the others",
        f"Pushed {ann.tree} as tree, version 1, complete.",
    ]
    assert done.error == ""
    assert "would be sent" in ann.call("manifest", "push", ann.tree, "--dry-run").text


def test_what_a_pull_prints(ann: Visitor) -> None:
    ann.call("manifest", "push", ann.tree)
    foreseen = ann.call("manifest", "pull", "tree", "-t", ann.out, "--dry-run")
    assert foreseen.lines == [
        "new     folder", "new     file", "2 changes, 0 unchanged. Nothing was written: this was a dry run.",
    ]  # fmt: skip
    assert not ann.out.exists()
    done = ann.call("manifest", "pull", "tree", "-t", ann.out)
    assert done.lines == [f"Pulled tree, version 1, to {ann.out}: 1 files (6.8 KiB), 0 unchanged."]
    (ann.out / "extra").write_text("x")
    done = ann.call("manifest", "pull", "tree", "-t", ann.out, "--delete")
    assert done.lines == [f"Pulled tree, version 1, to {ann.out}: 0 files (0 B), 1 unchanged, 1 deleted."]


def test_what_programs_get(ann: Visitor) -> None:
    pushed = demand_run(ann.call("manifest", "push", ann.tree, "--json"))
    assert pushed["files"] == 1 and pushed["bytes_total"] == 7000
    pulled = demand_run(ann.call("manifest", "pull", "tree", "-t", ann.out, "--json"))
    assert pulled["files_pulled"] == 1
    (listed,) = ann.call("manifest", "list", "--json").json
    assert (listed["name"], listed["version"], listed["bytes"]) == ("tree", 1, 7000)


def test_a_target_that_is_a_file_is_left_alone(ann: Visitor) -> None:
    ann.call("manifest", "push", ann.tree)
    ann.out.write_text("mine")
    assert "is not a folder" in ann.call("manifest", "pull", "tree", "-t", ann.out, status=2).error
    assert ann.out.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["push", "TREE/nowhere"], "usage"), (["push", "TREE", "--name", "a/b"], "usage"),
        (["push", "TREE", "--omit", "!"], "usage"), (["push", "TREE", "--omit-file", "TREE/nowhere"], "usage"),
        (["push", "TREE", "--to", "ftp://x"], "usage"), (["push", "/"], "usage"),
        (["pull", "nothing", "-t", "OUT"], "no-content"), (["pull", "a/b", "-t", "OUT"], "usage"),
        (["list", "--from", "http://example.org"], "usage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)  # fmt: skip
def test_what_makes_no_sense_is_said(ann: Visitor, words: list[str], code: str) -> None:
    said = [w.replace("TREE", str(ann.tree)).replace("OUT", str(ann.out)) for w in words]
    error = demand_error(ann.call("manifest", *said, "--json", status=None), code)
    assert error["message"].endswith(".")


def test_a_server_that_is_not_there_is_said_soon(ann: Visitor) -> None:
    done = ann.call("manifest", "list", "--from", "http://127.0.0.1:1", "--json", status=1)
    assert "cannot be reached" in demand_error(done, "unavailable")["message"]


def test_a_server_that_is_none_is_told_from_one_that_is(ann: Visitor, tmp_path: Path) -> None:
    from tests.support.hostile import hostile_server

    with hostile_server() as other:
        other.answers["/accounts/me"] = [(200, {}, b"<html>")]
        done = ann.call("manifest", "list", "--from", other.url, status=1)
        assert "does not answer as a Holdfast server does" in done.error


def test_versions_are_listed_and_deleted(ann: Visitor) -> None:
    for _ in range(3):
        ann.call("manifest", "push", ann.tree)
    assert [line.split()[:2] for line in ann.call("manifest", "list", "tree").lines[1:]] == [
        ["tree", "3"], ["tree", "2"], ["tree", "1"],
    ]  # fmt: skip
    dry = ann.call("manifest", "delete", "tree", "--all-versions", "--dry-run")
    assert dry.lines == ["Would delete tree, versions 1, 2, 3. Nothing was: this was a dry run."]
    assert ann.call("manifest", "delete", "tree", "--version", "2").lines == ["Deleted tree, version 2."]
    demand_error(ann.call("manifest", "delete", "tree", "--version", "2", "--json", status=1), "no-content")
    gone = demand_run(ann.call("manifest", "delete", "tree", "--all-versions", "--json"))
    assert gone["versions"] == [1, 3]
    assert ann.call("manifest", "list", "tree").lines == ["There is no manifest tree."]
    assert ann.call("manifest", "list").lines == ["There are no manifests."]


@pytest.mark.parametrize("words", [[], ["--version", "1", "--all-versions"]])
def test_what_to_delete_must_be_said(ann: Visitor, words: list[str]) -> None:
    demand_error(ann.call("manifest", "delete", "tree", *words, "--json", status=2), "usage")
