"""``holdfast share`` as its users call it: a link, a code on a terminal, a password that stands nowhere; ls and rm."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.cli.inside import demand_error, demand_run
from tests.remote.visiting import Visitor
from tests.support.components import need_module
from tests.support.server import Running, running
from tests.support.shares import CONTENT, sharer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(scope="module")
def token(server: Running) -> str:
    return token_of(server, "ann", "shares:read", "shares:write")


@pytest.fixture
def ann(server: Running, token: str, tmp_path: Path) -> Visitor:
    """Somebody with a token for shares, and a file ``report.xls``."""
    (tmp_path / "report.xls").write_bytes(CONTENT)
    return Visitor(tmp_path, "ann", token, server.url)


def token_of(server: Running, name: str, *scopes: str) -> str:
    """A token of a new account."""
    with sharer(server, name, *scopes) as client:
        return str(client.headers["authorization"].removeprefix("Bearer "))


def got(link: str, **params: str) -> httpx2.Response:
    return httpx2.get(link, params=params)


def test_a_link_is_printed_and_counts_once(ann: Visitor):
    done = ann.call("share", ann.folder / "report.xls")
    (link,) = done.lines
    assert done.error == "report.xls, 13.7 KiB, can be downloaded once by whoever has the link.\n"
    answer = got(link)
    assert answer.content == CONTENT and 'filename="report.xls"' in answer.headers["content-disposition"]
    assert got(link).status_code == 410


def test_what_programs_get(ann: Visitor):
    done = demand_run(ann.call("share", "--json", "--downloads", "2", "--expires", "1d", ann.folder / "report.xls"))
    assert (done["name"], done["size"], done["downloads"], done["expires"]) == ("report.xls", len(CONTENT), 2, "1d")
    assert [got(done["url"]).status_code for _ in range(3)] == [200, 200, 410]


def test_the_password_comes_from_the_input_and_stands_nowhere(ann: Visitor):
    done = ann.call("share", ann.folder / "report.xls", "--password", stdin=b"open sesame\nmore\n")
    (link,) = done.lines
    assert "sesame" not in done.text + done.error
    assert got(link).status_code == 401 and got(link, password="open sesame").content == CONTENT
    error = demand_error(ann.call("share", ann.folder / "report.xls", "--password", "--json", status=2), "usage")
    assert "password" in error["message"]


def test_on_a_terminal_there_is_a_code_to_take_a_picture_of(ann: Visitor):
    need_module("segno")
    ours, theirs = pty.openpty()
    command = ann.apart.command("share", ann.folder / "report.xls")
    with subprocess.Popen(command, env=ann.apart.environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while piece := _read(ours):
            shown += piece
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0, text
    link = text.splitlines()[0].strip()
    assert sum(line.count("█") + line.count("▄") + line.count("▀") for line in text.splitlines()) > 200
    assert got(link).content == CONTENT


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # so a terminal ends on Linux
        return b""


def test_in_a_pipe_there_is_only_the_link(ann: Visitor):
    done = ann.apart("share", ann.folder / "report.xls")
    assert len(done.lines) == 1 and done.text.startswith("http")


def test_shares_are_listed_and_ended(ann: Visitor, server: Running):
    ann.token = token_of(server, "somebody-new")
    assert ann.call("share", "ls").lines == ["There are no shares."]
    links = [ann.call("share", ann.folder / "report.xls", "--downloads", n).lines[0] for n in (1, 3)]
    got(links[1])
    head, newest, oldest = ann.call("share", "ls").lines
    assert head.split() == ["number", "name", "size", "taken", "expires", "state"]
    assert newest.split()[1:] == ["report.xls", "13.7", "KiB", "1/3", "never", "open"]
    number = oldest.split()[0]
    assert ann.call("share", "rm", number).lines == [f"Ended {number}."]
    assert got(links[0]).status_code == 410
    listed = ann.call("share", "ls", "--json").json
    assert [row["taken"] for row in listed] == [1]
    assert {row["state"] for row in ann.call("share", "ls", "--all", "--json").json} == {"open", "ended"}
    demand_error(ann.call("share", "rm", "999999", "--json", status=1), "no-content")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["FILE/nowhere"], "usage"), (["FOLDER"], "usage"), (["FILE", "--expires", "soon"], "usage"),
        (["FILE", "--downloads", "0"], "usage"), (["FILE", "--downloads", "1001"], "usage"), (["rm"], "usage"),
        (["FILE", "--server", "ftp://x"], "usage"), (["FILE", "--server", "http://127.0.0.1:1"], "unavailable"),
        (["/dev/null"], "usage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)  # fmt: skip
def test_what_makes_no_sense_is_said(ann: Visitor, words: list[str], code: str):
    said = [w.replace("FILE", str(ann.folder / "report.xls")).replace("FOLDER", str(ann.folder)) for w in words]
    error = demand_error(ann.call("share", *said, "--json", status=None), code)
    assert error["message"].endswith(".")


def test_a_file_that_is_too_large_and_a_token_that_may_not_are_said(ann: Visitor, server: Running):
    large = ann.folder / "large.bin"
    with large.open("wb") as file:
        file.truncate((16 << 20) + 1)
    error = demand_error(ann.call("share", large, "--json", status=1), "too-large")
    assert "large.bin is larger" in error["message"]
    ann.token = token_of(server, "reader", "shares:read")
    assert "may not share" in demand_error(ann.call("share", large, "--json", status=1), "forbidden")["message"]


def test_odd_names_arrive(ann: Visitor):
    for name in ('quo"te ✓.txt', "new\nline.txt", "ls", "send"):
        path = ann.folder / name
        path.write_bytes(b"odd")
        link = ann.call("share", path).lines[0]
        assert got(link).content == b"odd"
    assert ann.call("share", "--help").lines[0].startswith("Usage: holdfast share")
