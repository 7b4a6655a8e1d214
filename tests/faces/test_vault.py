"""``/vault`` over HTTP, against a real server: restic's protocol, its answers, and everything that is asked wrongly."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.support.server import Running
from tests.support.trees import noise
from tests.support.vaults import V2, Person, ask, folder_of, listed, person, put, sha256

MIB = 1 << 20
KINDS = ("data", "keys", "locks", "snapshots", "index")
HEX = "ab" * 32


@pytest.fixture(scope="module")
def ann(server: Running) -> Iterator[Person]:
    with contextlib.closing(person(server)) as found:
        yield found


@pytest.fixture
def vault(ann: Person) -> Iterator[str]:
    made = ann.vault()
    yield made
    ann.program.delete(made)


@pytest.fixture(scope="module")
def v(ann: Person) -> str:
    """A vault of that name, with something in it."""
    put(ann.program, made := ann.vault("v"), b"something")
    return made


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


# -- vaults ------------------------------------------------------------------------------------------------------------


def test_a_vault_is_made_by_the_other_program_as_often_as_it_likes(ann: Person):
    for _ in range(2):
        assert ann.program.post("/vault/laptop/?create=true").status_code == 200
    assert ann.about("/vault/" + ann.name + "/laptop/")["objects"] == 0
    assert ann.program.head("/vault/laptop/config").status_code == 404
    for kind in KINDS:
        assert ann.program.get(f"/vault/laptop/{kind}/").json() == []


@pytest.mark.parametrize("query", ["", "?create=false", "?create=", "?create=1"])
def test_a_vault_is_made_only_when_that_is_asked(ann: Person, query: str):
    assert code(ann.program.post(f"/vault/tower/{query}")) == (400, "usage")
    assert ann.program.get("/vault/tower/data/").status_code == 404


def test_a_vault_is_deleted_by_its_owner_with_all_that_is_in_it(ann: Person, vault: str):
    put(ann.program, vault, b"something")
    folder = folder_of(ann.server, vault)
    used = ann.used()
    assert ann.program.delete(vault).status_code == 200
    assert ann.program.get(f"{vault}data/").status_code == 404 and ann.used() == (used[0] - 9, used[1] - 1)
    deadline = time.monotonic() + 10
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ann.program.delete(vault).status_code == 404


def test_a_vault_that_is_made_anew_under_an_old_name_is_empty(ann: Person, vault: str):
    put(ann.program, vault, b"something")
    ann.program.delete(vault)
    assert ann.vault(vault.split("/")[-2]) == vault
    assert listed(ann.program, vault) == {} and ann.about(vault)["objects"] == 0


# -- objects -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, MIB, MIB + 1, 9 * MIB])
@pytest.mark.parametrize("kind", KINDS)
def test_an_object_goes_in_and_out(ann: Person, vault: str, kind: str, size: int):
    data, address = noise(size), f"{vault}{kind}/{sha256(noise(size))}"
    assert ann.program.head(address).status_code == 404
    done = put(ann.program, vault, data, kind)
    assert (done.status_code, done.content) == (200, b""), done.text  # anything but 200 is an error for restic
    head, got = ann.program.head(address), ann.program.get(address)
    assert (got.status_code, got.content) == (200, data)
    assert (head.status_code, head.headers["content-length"]) == (200, str(size))
    for answer in (head, got):
        assert answer.headers["etag"] == f'"{sha256(data)}"' and answer.headers["accept-ranges"] == "bytes"
        assert "immutable" in answer.headers["cache-control"] and "private" in answer.headers["cache-control"]
    assert listed(ann.program, vault, kind) == {sha256(data): size}
    assert ann.program.delete(address).status_code == 200
    assert ann.program.delete(address).status_code == 404 and listed(ann.program, vault, kind) == {}


def test_the_config_may_be_anything_and_stays_until_the_vault_goes(ann: Person, vault: str):
    assert ann.program.post(f"{vault}config", content=b"{}").status_code == 200
    assert ann.program.get(f"{vault}config").content == b"{}"
    assert ann.program.head(f"{vault}config").headers["content-length"] == "2"
    assert code(ann.program.post(f"{vault}config", content=b"other")) == (403, "exists")
    assert code(ann.program.delete(f"{vault}config")) == (403, "forbidden")
    assert ann.program.get(f"{vault}config").content == b"{}"


def test_nothing_is_replaced_and_that_is_told_apart(ann: Person, vault: str):
    put(ann.program, vault, b"once")
    assert code(put(ann.program, vault, b"once")) == (403, "exists")  # 403 is what restic does not try again
    large = noise(3 * MIB)
    assert put(ann.program, vault, large).status_code == 200
    assert code(put(ann.program, vault, large)) == (403, "exists")
    assert ann.about(vault)["objects"] == 2 and ann.about(vault)["bytes"] == 4 + len(large)


def test_of_several_who_put_one_object_at_once_one_does(ann: Person, vault: str):
    data = noise(3 * MIB)
    with ThreadPoolExecutor(6) as pool:
        answers = [a.status_code for a in pool.map(lambda _: put(ann.program, vault, data), range(6))]
    assert sorted(answers) == [200, 403, 403, 403, 403, 403]
    assert listed(ann.program, vault) == {sha256(data): len(data)}
    assert (ann.about(vault)["bytes"], ann.about(vault)["objects"]) == (len(data), 1)


@pytest.mark.parametrize("size", [5, 5 * MIB])
def test_bytes_that_are_not_what_their_name_says_are_not_kept(ann: Person, vault: str, size: int):
    used = ann.used()
    wrong = ann.program.post(f"{vault}data/{sha256(b'right')}", content=noise(size))
    assert code(wrong) == (422, "wrong-content")
    assert listed(ann.program, vault) == {} and ann.used() == used
    assert put(ann.program, vault, b"right").status_code == 200


def test_a_body_of_unknown_length_is_taken_and_counted(ann: Person, vault: str):
    data = noise(5 * MIB)
    pieces = (data[at : at + 100_000] for at in range(0, len(data), 100_000))
    assert ann.program.post(f"{vault}data/{sha256(data)}", content=pieces).status_code == 200
    assert ann.program.get(f"{vault}data/{sha256(data)}").content == data
    assert ann.about(vault)["bytes"] == len(data)


def test_a_body_that_says_it_is_compressed_is_kept_as_it_came(ann: Person, vault: str):
    data = b"\x1f\x8b not really"
    assert put(ann.program, vault, data, headers={"Content-Encoding": "gzip"}).status_code == 200
    got = ann.program.get(f"{vault}data/{sha256(data)}", headers={"Accept-Encoding": "gzip"})
    assert got.content == data and "content-encoding" not in got.headers


@pytest.mark.parametrize("size", [300, 3_000_000])
@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("0-0", 0, 1), ("100-199", 100, 200), ("-5", -5, None), ("290-", 290, None), ("0-99999999", 0, None)],
)
def test_a_range_is_given(ann: Person, vault: str, size: int, asked: str, start: int, stop: int | None):
    data = noise(size)
    put(ann.program, vault, data)
    got = ann.program.get(f"{vault}data/{sha256(data)}", headers={"Range": f"bytes={asked}"})
    assert (got.status_code, got.content) == (206, data[start:stop])
    first = start % size
    assert got.headers["content-range"] == f"bytes {first}-{first + len(got.content) - 1}/{size}"
    assert int(got.headers["content-length"]) == len(got.content)


@pytest.mark.parametrize("asked", ["4-", "4-4", "99999999999-", "-0", "999-1000"])
def test_a_range_beyond_the_end_is_refused(ann: Person, vault: str, asked: str):
    put(ann.program, vault, b"0123")
    got = ann.program.get(f"{vault}data/{sha256(b'0123')}", headers={"Range": f"bytes={asked}"})
    assert code(got) == (416, "out-of-range") and got.headers["content-range"] == "bytes */4"


@pytest.mark.parametrize("asked", ["bytes=3-2", "x", "bytes", "bytes=0-1,3-4", "bytes=-", "items=0-1", "bytes=٣-٤"])
def test_a_range_that_makes_no_sense_is_ignored(ann: Person, vault: str, asked: str):
    put(ann.program, vault, b"0123")
    got = ann.program.get(f"{vault}data/{sha256(b'0123')}", headers={b"Range": asked.encode()})
    assert (got.status_code, got.content) == (200, b"0123")


def test_what_one_has_is_not_sent_again(ann: Person, vault: str):
    put(ann.program, vault, b"0123")
    tag = f'"{sha256(b"0123")}"'
    got = ann.program.get(f"{vault}data/{sha256(b'0123')}", headers={"If-None-Match": tag})
    assert (got.status_code, got.content) == (304, b"")


# -- lists -------------------------------------------------------------------------------------------------------------


def test_a_list_is_of_names_or_of_sizes_and_times_too(ann: Person, vault: str):
    put(ann.program, vault, b"something")
    names = ann.program.get(f"{vault}data/")
    assert names.headers["content-type"] == "application/vnd.x.restic.rest.v1"
    assert names.json() == [sha256(b"something")]
    before = time.time_ns()
    (item,) = ann.program.get(f"{vault}data/", headers={"Accept": V2}).json()
    assert item.keys() == {"name", "size", "stored"} and (item["name"], item["size"]) == (sha256(b"something"), 9)
    assert before - 60 * 10**9 < item["stored"] <= time.time_ns()
    head = ann.program.head(f"{vault}data/{sha256(b'something')}")
    assert head.headers["x-stored-ns"] == str(item["stored"])
    assert ann.program.get(f"{vault}data").json() == names.json()  # without the slash


def test_ten_thousand_names_are_listed(ann: Person, vault: str):
    put(ann.program, vault, b"something")
    folder = folder_of(ann.server, vault) / "data"
    names = [sha256(str(number).encode()) for number in range(10_300)]
    for name in names:
        (folder / name[:2] / name).write_bytes(b"12")
    (folder / "ab" / "not-an-object").write_bytes(b"12")
    (folder / "ab" / f"{HEX[:-1]}X").write_bytes(b"12")
    found = listed(ann.program, vault)
    assert found.keys() == {*names, sha256(b"something")} and found[names[0]] == 2
    assert set(ann.program.get(f"{vault}data/").json()) == found.keys()


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        f"/vault/v/data/{HEX.upper()}", f"/vault/v/data/{HEX}a", f"/vault/v/data/{HEX[:-1]}", "/vault/v/data/..",
        "/vault/v/data/%2e%2e", f"/vault/v/data/{HEX[:-1]}%00", f"/vault/v/data/{HEX[:-1]}%C3%A4", "/vault/v/keys/x",
    ],
)  # fmt: skip
def test_what_is_no_name_of_an_object_is_refused(ann: Person, v: str, path: str):
    for method in ("GET", "POST", "DELETE"):
        status, _, body = ask(ann, method, path)
        assert (status, json.loads(body)["code"]) == (400, "usage"), method


@pytest.mark.parametrize(
    "path",
    [
        "/vault/..%2f..%2fetc/passwd", "/vault/v/..%2f..%2fkey", "/vault/v/data/..%2f..%2fvault.json",
        "/vault/%2e%2e/v/", f"/vault/v/data/..%2fdata%2f{HEX}", f"/vault/v//data/{HEX}", f"/vault//v/data/{HEX}",
        "/vault/v/tmp/", "/vault/v/vault.json", f"/vault/v/tmp/{HEX}", f"/vault/v/data/ab/{HEX}",
        f"/vault/v/Data/{HEX}", "/vault/data/", f"/vault/v/config/{HEX}", "/vault/.v/", "/vault/%00/",
        "/vault/v%00/config", "/vault/v/%252e%252e/config", f"/vault/{'v' * 65}/config", "/vault//", "/vault/",
        f"/vault/v/data/{HEX}//", "/vault/a/b/c/d/e", "/vault/v/data%2f%2e%2e%2fconfig",
        f"/vault/v/keys/../data/{HEX}",
    ],
)  # fmt: skip
def test_an_address_that_no_vault_has_leads_nowhere(ann: Person, v: str, path: str):
    def there() -> set[Path]:
        return {*ann.server.data.glob("[!c]*"), *ann.server.data.parent.glob("*"), *folder_of(ann.server, v).rglob("*")}

    before = there()
    for method in ("GET", "HEAD", "POST", "DELETE"):
        status, _, body = ask(ann, method, f"{path}?create=true" if method == "POST" else path)
        assert status in (400, 404, 405), (method, body)
    assert there() == before


def test_a_slash_may_come_encoded_and_is_decoded_once(ann: Person, v: str):
    path = f"/vault/v%2Fdata%2f{sha256(b'something')}"
    assert ask(ann, "GET", path)[2] == b"something"


@pytest.mark.parametrize(
    ("path", "methods"),
    [("", "DELETE, POST"), ("data/", "GET"), ("config", "DELETE, GET, HEAD, POST"),
     (f"data/{HEX}", "DELETE, GET, HEAD, POST")],
)  # fmt: skip
def test_a_method_that_is_not_there_is_told_which_are(ann: Person, vault: str, path: str, methods: str):
    for method in ("PUT", "PATCH", "OPTIONS"):
        answer = ann.program.request(method, vault + path)
        assert answer.status_code == 405 and answer.headers["allow"] == methods


# -- trouble below -----------------------------------------------------------------------------------------------------


def test_what_goes_wrong_on_the_disk_is_told_without_saying_where_that_is(ann: Person, vault: str):
    put(ann.program, vault, b"something")
    name = sha256(b"something")
    path = (home := folder_of(ann.server, vault)) / "data" / name[:2] / name
    path.unlink()
    path.mkdir()
    answer = ann.program.get(f"{vault}data/{sha256(b'something')}")
    assert answer.status_code == 502 and str(ann.server.data) not in answer.text
    gone = home.with_name("elsewhere")
    home.rename(gone)  # as when its disk is not mounted
    for asked in (f"{vault}data/", f"{vault}keys/{HEX}"):
        answer = ann.program.get(asked)
        assert code(answer) == (503, "unavailable") and str(ann.server.data) not in answer.text
    assert ann.program.head(f"{vault}keys/{HEX}").status_code == 503
    assert put(ann.program, vault, b"other").status_code == 503 and not home.exists()
    gone.rename(home)
    assert put(ann.program, vault, b"other").status_code == 200
    assert [line for line in ann.server.log if "is not there" in line]


def test_files_of_vaults_are_nobody_elses(ann: Person, vault: str):
    put(ann.program, vault, b"something")
    folder = folder_of(ann.server, vault)
    found = [folder, *folder.parents[:1], *folder.rglob("*")]
    assert {path.stat().st_mode & 0o077 for path in found} == {0}
