"""``holdfast blob`` as its users call it, against a real server: options, output, exit status."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.inside import Inside
from tests.support.proxy import proxy_to
from tests.support.server import Running, running

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server")) as found:
        yield found


def commands(server: Running, folder: Path, name: str, url: str = "") -> Inside:
    with server.user(name) as client:
        token = client.post("/accounts/tokens", json={"name": "t", "scopes": ["blobs:read", "blobs:write"]}).json()
    settings = {"HOLDFAST_SERVER": url or server.url, "HOLDFAST_TOKEN": token["token"]}
    return Inside(Path(), Path(), folder, settings | {"HOLDFAST_REPOSITORY": "", "HOLDFAST_KEY_FILE": ""})


@pytest.fixture
def ann(server: Running, tmp_path: Path, request: pytest.FixtureRequest) -> Inside:
    return commands(server, tmp_path, f"ann{abs(hash(request.node.name))}")


@pytest.fixture
def bucket(ann: Inside, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.name))}"
    assert ann("blob", "bucket", "make", name).text == f"Made the bucket {name}.\n"
    return name


def test_a_file_goes_in_and_comes_back(ann: Inside, bucket: str, tmp_path: Path) -> None:
    source, back = tmp_path / "film", tmp_path / "back"
    source.write_bytes(os.urandom(5 * MIB + 3))
    assert "5.0 MiB, SHA-1" in ann("blob", "put", source, f"{bucket}/films/").text
    ann("blob", "get", f"{bucket}/films/film", "-o", back)
    assert back.read_bytes() == source.read_bytes()
    assert [line.split()[-1] for line in ann("blob", "ls", bucket).lines] == ["films/film"]


def test_standard_input_becomes_a_blob(ann: Inside, bucket: str, tmp_path: Path) -> None:
    piped = tmp_path / "piped"
    os.mkfifo(piped)
    writer = threading.Thread(target=piped.write_bytes, args=(b"streamed" * 100_000,))
    writer.start()
    ann("blob", "put", piped, f"{bucket}/stream")
    writer.join()
    ann("blob", "get", f"{bucket}/stream", "-o", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"streamed" * 100_000


def test_odd_keys_mean_what_they_say(ann: Inside, bucket: str, tmp_path: Path) -> None:
    keys = ["a", "a/b", "a//b", "a/", "%2e%2e", "with space", "q?x=1#f", "ünï 💾", "+plus"]
    for key in keys:
        (tmp_path / "one").write_text(key)
        where = f"{bucket}/{key}" + ("" if not key.endswith("/") else "one")
        ann("blob", "put", tmp_path / "one", where)
        ann("blob", "get", where, "-o", tmp_path / "two")
        assert (tmp_path / "two").read_text() == key
    assert len(ann("blob", "ls", bucket).lines) == len(keys)
    assert ann("blob", "put", tmp_path / "one", f"{bucket}/../x", status=2).error


def test_lists_are_sorted_limited_and_grouped(ann: Inside, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("x")
    for key in ("d/1", "d/2", "a", "z"):
        ann("blob", "put", tmp_path / "one", f"{bucket}/{key}")
    assert [one["key"] for one in ann("blob", "ls", bucket, "--sort", "-key", "--json").json] == [
        "z",
        "d/2",
        "d/1",
        "a",
    ]
    assert [one["key"] for one in ann("blob", "ls", f"{bucket}/d", "--limit", "1", "--json").json] == ["d/1"]
    assert ann("blob", "ls", bucket, "-d", "/", "--json").json[0] == {"prefix": "d/"}
    assert any(one["name"] == bucket for one in ann("blob", "ls", "--json").json)


def test_only_what_is_new_is_put_if_asked(ann: Inside, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("first")
    ann("blob", "put", "--if-new", tmp_path / "one", f"{bucket}/k")
    (tmp_path / "one").write_text("second")
    assert "If-None-Match" in ann("blob", "put", "--if-new", tmp_path / "one", f"{bucket}/k", status=1).error
    ann("blob", "get", f"{bucket}/k", "-o", tmp_path / "two")
    assert (tmp_path / "two").read_text() == "first"


def test_a_blob_that_is_not_there_leaves_no_file(ann: Inside, bucket: str, tmp_path: Path) -> None:
    assert "There is no blob" in ann("blob", "get", f"{bucket}/no", "-o", tmp_path / "out", status=1).error
    assert list(tmp_path.iterdir()) == []


def test_a_download_goes_on_where_it_broke(server: Running, tmp_path: Path) -> None:
    with proxy_to(server.url) as proxy:
        bob = commands(server, tmp_path, "bobbroken", proxy.url)
        bob("blob", "bucket", "make", "broken")
        (tmp_path / "one").write_bytes(os.urandom(9 * MIB))
        bob("blob", "put", tmp_path / "one", "broken/k")
        proxy.back_budgets[:] = [2 * MIB, 3 * MIB]
        bob("blob", "get", "broken/k", "-o", tmp_path / "two")
        assert proxy.broken == 2
        assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


def test_a_bucket_is_shared_and_no_longer(server: Running, ann: Inside, bucket: str, tmp_path: Path) -> None:
    eve = commands(server, tmp_path, "eve")
    (tmp_path / "one").write_text("x")
    ann("blob", "put", tmp_path / "one", f"{bucket}/k")
    assert "There is no bucket" in eve("blob", "ls", bucket, status=1).error
    assert ann("blob", "bucket", "grant", bucket, "eve=read,list", "*=list").lines == ["*: list", "eve: read, list"]
    assert len(eve("blob", "ls", bucket).lines) == 1
    assert "may not" in eve("blob", "put", tmp_path / "one", f"{bucket}/k", status=1).error
    assert ann("blob", "bucket", "grant", bucket, "eve=", "*=").lines == []
    assert "There is no bucket" in eve("blob", "ls", bucket, status=1).error


@pytest.mark.parametrize("filesystem", ["disk", "repository"])
def test_a_bucket_is_backed_up_and_restored(ann: Inside, tmp_path: Path, filesystem: str) -> None:
    name, one = f"saved-{filesystem}", tmp_path / "one"
    ann("blob", "bucket", "make", name, "--filesystem", filesystem)
    keys = ["a", "a/b", "a//b", "big", "x" * 300]
    for key in keys:
        one.write_bytes(key.encode() * (100_000 if key == "big" else 1))
        ann("blob", "put", one, f"{name}/{key}")
    saved = ann("blob", "bucket", "backup", name, "--json").events[-1]
    assert (saved["objects"], saved["bytes"]) == (5, 300_000 + 1 + 3 + 4 + 300)
    ann("blob", "rm", f"{name}/a", f"{name}/big", f"{name}/{'x' * 300}")
    one.write_text("changed")
    ann("blob", "put", one, f"{name}/a//b")
    ann("blob", "put", one, f"{name}/later")
    done = ann("blob", "bucket", "restore", name, "--json").events[-1]
    assert (done["objects"], done["unchanged"]) == (4, 1)
    for key in keys:
        ann("blob", "get", f"{name}/{key}", "-o", one)
        assert one.read_bytes() == key.encode() * (100_000 if key == "big" else 1)
    ann("blob", "get", f"{name}/later", "-o", one)
    assert one.read_text() == "changed"
    assert len(ann("blob", "bucket", "snapshots", name).lines) == 1


def test_a_bucket_with_blobs_is_not_deleted(ann: Inside, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("x")
    ann("blob", "put", tmp_path / "one", f"{bucket}/k")
    assert "There are blobs" in ann("blob", "bucket", "rm", bucket, status=1).error
    assert ann("blob", "rm", "--dry-run", f"{bucket}/k").text.startswith("Would delete")
    ann("blob", "rm", f"{bucket}/k")
    ann("blob", "bucket", "rm", bucket)


@pytest.mark.parametrize(
    "words", [["put", "/nowhere/file", "b/k"], ["get", "b"], ["rm", "b"], ["put", "/etc/hosts", "/k"]]
)
def test_what_makes_no_sense_is_refused_with_a_sentence(ann: Inside, words: list[str]) -> None:
    assert ann("blob", *words, status=2).error.startswith("holdfast: ")
