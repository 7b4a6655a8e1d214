"""Who may what with vaults: owners, those to whom something was granted, administrators, tokens, everybody else."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import httpx2
import pytest

from tests.support.server import Running, running
from tests.support.vaults import PASSWORD, Person, listed, person, put, sha256

HEX = "ab" * 32
_numbers = count(1)


@dataclass
class People:
    ann: Person
    bob: Person
    admin: httpx2.Client


@pytest.fixture(scope="module")
def people(server: Running) -> Iterator[People]:
    with (
        contextlib.closing(person(server)) as ann,
        contextlib.closing(person(server)) as bob,
        server.client() as admin,
    ):
        yield People(ann, bob, admin)


@pytest.fixture
def vault(people: People) -> Iterator[str]:
    """Ann's."""
    made = people.ann.vault()
    people.ann.program.post(f"{made}config", content=b"{}")
    put(people.ann.program, made, b"something")
    yield made
    people.ann.person.patch(f"/vaults{made[6:-1]}", json={"append_only": False})
    people.ann.program.delete(made)


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def everything_asked(client: httpx2.Client, vault: str) -> dict[str, int]:
    """One of each kind of request, and its status."""
    new, lock = str(next(_numbers)).encode(), f"lock {next(_numbers)}".encode()
    return {
        "list": client.get(f"{vault}data/").status_code,
        "get": client.get(f"{vault}data/{sha256(b'something')}").status_code,
        "head": client.head(f"{vault}config").status_code,
        "lock": put(client, vault, lock, "locks").status_code,
        "unlock": client.delete(f"{vault}locks/{sha256(lock)}").status_code,
        "post": put(client, vault, new).status_code,
        "delete": client.delete(f"{vault}data/{sha256(b'something')}").status_code,
    }


def statuses(*statuses: int) -> dict[str, int]:
    return dict(zip(["list", "get", "head", "lock", "unlock", "post", "delete"], statuses, strict=True))


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ("", statuses(404, 404, 404, 404, 404, 404, 404)),  # and not 403: that would tell that it is there
        ("read", statuses(200, 200, 200, 200, 200, 403, 403)),
        ("append", statuses(200, 200, 200, 200, 200, 200, 403)),
        ("full", statuses(200, 200, 200, 200, 200, 200, 200)),
    ],
)
def test_others_may_what_was_granted_them(people: People, vault: str, allowed: str, expected: dict[str, int]):
    if allowed:
        people.ann.grant(people.bob, allowed, vault)
    assert everything_asked(people.bob.program, vault) == expected
    if allowed:
        assert people.bob.program.post(f"{vault}?create=true").status_code == 200
        assert people.bob.program.delete(vault).status_code == 403
        found = people.bob.person.get("/vaults").json()["vaults"]
        assert [(v["owner"], v["right"]) for v in found] == [(people.ann.name, allowed)]
        assert people.ann.person.delete(f"/vaults{vault[6:]}grants/{people.bob.name}").status_code == 204
    assert people.bob.program.get(f"{vault}data/").status_code == 404
    assert people.bob.program.post(f"{vault}?create=true").status_code == 404


def test_a_vault_is_found_without_its_owners_name_by_the_owner_only(people: People, vault: str):
    short = vault.replace(f"{people.ann.name}/", "")
    people.ann.grant(people.bob, "full", vault)
    assert people.ann.program.get(f"{short}data/").status_code == 200
    assert people.bob.program.get(f"{short}data/").status_code == 404


def test_an_administrator_reads_nothing_but_governs(people: People, vault: str):
    assert set(everything_asked(people.admin, vault).values()) == {404}
    about = f"/vaults{vault[6:-1]}"
    assert people.admin.get(about).json()["right"] == ""
    assert people.admin.patch(about, json={"append_only": True}).json()["append_only"] is True
    assert [v for v in people.admin.get("/vaults?all=true").json()["vaults"] if v["url"] == vault]
    assert people.bob.person.get("/vaults?all=true").status_code == 403


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (["vaults:read"], statuses(200, 200, 200, 200, 200, 403, 403)),
        (["vaults:read", "vaults:write"], statuses(200, 200, 200, 200, 200, 200, 200)),
        (["files:read", "files:write"], statuses(403, 403, 403, 403, 403, 403, 403)),
        (["vaults:write"], statuses(403, 403, 403, 200, 200, 200, 200)),
    ],
)
def test_a_token_may_no_more_than_its_scopes(people: People, vault: str, scopes: list[str], expected: dict[str, int]):
    made = people.ann.person.post("/accounts/tokens", json={"name": "t", "scopes": scopes}).json()
    with people.ann.server.with_token(made["token"]) as client:
        assert everything_asked(client, vault) == expected
        assert client.post("/vault/new/?create=true").status_code == (200 if "vaults:write" in scopes else 403)
    people.ann.program.delete("/vault/new/")
    people.ann.person.delete(f"/accounts/tokens/{made['id']}")


def test_in_an_append_only_vault_nobody_deletes_but_locks(people: People, vault: str):
    about = f"/vaults{vault[6:-1]}"
    assert people.ann.program.patch(about, json={"append_only": True}).status_code == 200
    people.ann.grant(people.bob, "full", vault)
    for who in (people.ann.program, people.ann.person, people.bob.program):
        assert everything_asked(who, vault) == statuses(200, 200, 200, 200, 200, 200, 403)
        assert who.delete(vault).status_code == 403
    assert code(people.ann.person.delete(about, params={"confirm": vault.split("/")[3]})) == (403, "forbidden")
    assert sha256(b"something") in listed(people.ann.program, vault)


def test_only_a_person_turns_append_only_off_deletes_and_grants_and_all_of_it_is_noted(people: People, vault: str):
    ann, about, name = people.ann, f"/vaults{vault[6:-1]}", vault.split("/")[3]
    assert ann.program.patch(about, json={"append_only": True}).status_code == 200
    grant = f"{about}/grants/{people.bob.name}"
    refused = [
        ann.program.patch(about, json={"append_only": False}),
        ann.program.patch(about, json={"append_only": True, "quota_bytes": 10**9}),
        ann.program.patch(about, json={"quota_bytes": None}),
        ann.program.put(grant, json={"allowed": "full"}),
        ann.program.delete(grant),
        ann.program.delete(about, params={"confirm": name}),
    ]
    assert [code(answer) for answer in refused] == [(403, "forbidden")] * 6
    assert ann.about(vault)["quota_bytes"] is None
    assert ann.person.put(grant, json={"allowed": "read"}).status_code == 204
    assert ann.person.put(grant, json={"allowed": "append"}).status_code == 204
    (granted,) = ann.person.get(f"{about}/grants").json()["grants"]
    assert (granted["username"], granted["allowed"]) == (people.bob.name, "append")
    assert people.bob.person.get(f"{about}/grants").status_code == 403
    assert ann.person.delete(grant).status_code == 204 and ann.person.delete(grant).status_code == 404
    assert ann.person.patch(about, json={"append_only": False}).json()["append_only"] is False
    for wrong in ({}, {"confirm": "other"}, {"confirm": ""}):
        assert code(ann.person.delete(about, params=wrong)) == (400, "usage")
    assert ann.person.delete(about, params={"confirm": name}).status_code == 204
    noted = [e for e in people.admin.get("/accounts/audit").json()["entries"] if e["subject"] == vault[7:-1]]
    assert [(e["actor"], e["action"], e["detail"].partition(",")[0]) for e in reversed(noted)] == [
        (ann.name, "vault made", "append-only off"),
        (ann.name, "vault changed", "append-only on"),
        (ann.name, "vault granted", f"{people.bob.name} read"),
        (ann.name, "vault granted", f"{people.bob.name} append"),
        (ann.name, "vault grant ended", people.bob.name),
        (ann.name, "vault changed", "append-only off"),
        (ann.name, "vault deleted", "11 bytes"),
    ]


@pytest.mark.parametrize("who", ["nobody", "%00", "a" * 300, "%C3%A4", "..%2f.."])
def test_nothing_is_granted_to_who_is_not_there(people: People, vault: str, who: str):
    for method, body in (("PUT", {"allowed": "read"}), ("DELETE", None)):
        answer = people.ann.person.request(method, f"/vaults{vault[6:]}grants/{who}", json=body)
        assert answer.status_code == 404


def test_nothing_is_granted_to_the_owner_nor_anything_else(people: People, vault: str):
    grants = f"/vaults{vault[6:]}grants"
    assert people.ann.person.put(f"{grants}/{people.ann.name}", json={"allowed": "read"}).status_code == 409
    bodies: list[object] = [{"allowed": "all"}, {}, {"allowed": "read", "more": 1}, {"allowed": None}, []]
    for body in bodies:
        assert people.ann.person.put(f"{grants}/{people.bob.name}", json=body).status_code == 400
    assert people.bob.person.put(f"{grants}/{people.bob.name}", json={"allowed": "full"}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [{}, {"name": ""}, {"name": "a/b"}, {"name": ".."}, {"name": "data"}, {"name": "config"}, {"name": "a" * 65},
     {"name": "ok", "quota_bytes": -1}, {"name": "ok", "quota_bytes": 1.5}, {"name": "ok", "append_only": "yes"},
     {"name": "ok", "more": 1}, {"name": "a\x00"}, [], {"name": None}],
)  # fmt: skip
def test_a_vault_that_makes_no_sense_is_not_made(people: People, body: object):
    assert code(people.ann.person.post("/vaults", json=body)) == (400, "usage")


def test_a_name_that_is_taken_is_told(people: People, vault: str):
    assert code(people.ann.person.post("/vaults", json={"name": vault.split("/")[3]})) == (409, "contradiction")


@pytest.mark.parametrize("path", ["ann/%00", "%00/v", "ann/..%2fv", f"{'a' * 200}/v", "ä/v", "ann/data"])
def test_what_can_be_no_vault_is_not_there(people: People, path: str):
    for method, body in (("GET", None), ("PATCH", {"append_only": True})):
        assert people.admin.request(method, f"/vaults/{path}", json=body).status_code == 404


def test_who_is_not_known_is_told_nothing(people: People, vault: str):
    with people.ann.server.anonymous() as nobody:
        for path in (
            f"{vault}data/",
            f"{vault}config",
            "/vault/nothing/",
            "/vaults",
            f"/vaults{vault[6:-1]}",
            "/vault/",
        ):
            answer = nobody.get(path)
            assert code(answer) == (401, "not-logged-in") and "Basic" in answer.headers["www-authenticate"]


@pytest.mark.parametrize("name", ["ann", "bob"])
def test_a_token_in_a_passwords_place_is_its_owners_only(people: People, vault: str, name: str):
    username = getattr(people, name).name
    with people.ann.server.client(username, people.ann.token) as client:
        assert client.get(f"{vault}data/").status_code == (200 if name == "ann" else 401)


def test_a_revoked_token_in_a_passwords_place_is_refused(people: People, vault: str):
    made = people.ann.person.post("/accounts/tokens", json={"name": "t", "scopes": ["vaults:read"]}).json()
    with people.ann.server.client(people.ann.name, made["token"]) as client:
        assert client.get(f"{vault}data/").status_code == 200
        people.ann.person.delete(f"/accounts/tokens/{made['id']}")
        assert client.get(f"{vault}data/").status_code == 401
    assert people.ann.person.get("/accounts/me").status_code == 200  # one failure does not shut her out


def test_a_disabled_account_is_out_at_once(people: People):
    with contextlib.closing(person(people.ann.server)) as carl:
        vault = carl.vault()
        assert carl.program.get(f"{vault}data/").status_code == 200
        people.admin.patch(f"/accounts/users/{carl.name}", json={"disabled": True})
        for client in (carl.program, carl.person):
            assert client.get(f"{vault}data/").status_code == 401


def test_a_token_that_has_ended_shuts_nobody_out_however_often_it_is_shown(people: People, vault: str):
    made = people.ann.person.post("/accounts/tokens", json={"name": "t", "scopes": ["vaults:read"]}).json()
    people.ann.person.delete(f"/accounts/tokens/{made['id']}")
    for token in (made["token"], people.bob.token):
        with people.ann.server.client(people.ann.name, token) as cron:
            assert {cron.get(f"{vault}data/").status_code for _ in range(15)} == {401}
    with people.ann.server.client(people.ann.name, PASSWORD) as ann:
        assert ann.get("/accounts/me").status_code == 200


FOREIGN = [
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_foreign_page_has_a_browser_that_knows_the_password_change_nothing(people: People, headers: dict[str, str]):
    with people.ann.server.client(people.ann.name, PASSWORD) as browser:
        for method, path in (("POST", "/vault/forged/?create=true"), ("DELETE", "/vault/forged/")):
            assert code(browser.request(method, path, headers=headers)) == (403, "forbidden")
        assert browser.get("/vault/forged/data/").status_code == 404
        own = {"Origin": people.ann.server.url, "Sec-Fetch-Site": "same-origin"}
        assert browser.post("/vault/forged/?create=true", headers=own).status_code == 200
        assert people.ann.program.delete("/vault/forged/", headers=headers).status_code == 200  # no browser sends those


def test_wrong_passwords_are_slowed_down_on_this_way_too(tmp_path_factory: pytest.TempPathFactory):
    with running(tmp_path_factory.mktemp("guarded")) as server, contextlib.closing(person(server)) as ann:
        vault = ann.vault()
        with server.client(ann.name, "hft_guess") as guesser:
            answers = [guesser.get(f"{vault}data/").status_code for _ in range(12)]
        assert answers[:10] == [401] * 10 and answers[-1] == 429
        with server.client(ann.name, PASSWORD) as right:
            answer = right.get(f"{vault}data/")
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
        assert ann.program.get(f"{vault}data/").status_code == 200  # a token cannot be guessed


def test_who_may_only_read_puts_few_and_small_locks(people: People, vault: str):
    people.ann.grant(people.bob, "read", vault)
    large = random.Random(1).randbytes((64 << 10) + 1)
    assert code(put(people.bob.program, vault, large, "locks")) == (413, "too-large")
    pieces = (large[at : at + 1000] for at in range(0, len(large), 1000))
    unknown = people.bob.program.post(f"{vault}locks/{sha256(large)}", content=pieces)
    assert code(unknown) == (413, "too-large")
    assert put(people.ann.program, vault, large, "locks").status_code == 200
    assert people.bob.program.delete(f"{vault}locks/{sha256(large)}").status_code == 200
    assert people.ann.about(vault)["objects"] == 2


def test_vaults_go_with_their_account(people: People):
    with contextlib.closing(person(people.ann.server)) as carl:
        vault = carl.vault()
        put(carl.program, vault, b"something")
        carl.grant(people.bob, "full", vault)
        assert people.bob.program.get(f"{vault}data/").status_code == 200
        assert people.admin.delete(f"/accounts/users/{carl.name}").status_code == 204
        assert people.bob.program.get(f"{vault}data/").status_code == 404
        people.admin.post("/accounts/users", json={"username": carl.name, "password": PASSWORD})
        with carl.server.client(carl.name, PASSWORD) as again:
            assert again.get(f"{vault}data/").status_code == 404 and again.get("/vaults").json() == {"vaults": []}


def test_an_account_with_an_append_only_vault_is_not_deleted_by_anybody(people: People):
    with contextlib.closing(person(people.ann.server)) as carl:
        vault = carl.vault("backups", append_only=True)
        admin_token = people.admin.post("/accounts/tokens", json={"name": "t", "scopes": ["admin"]}).json()["token"]
        with carl.server.with_token(admin_token) as stolen:
            assert code(stolen.delete(f"/accounts/users/{carl.name}")) == (403, "forbidden")
            changed = stolen.patch(f"/accounts/users/{carl.name}", json={"password": "another password"})
            assert code(changed) == (403, "forbidden")
        refused = people.admin.delete(f"/accounts/users/{carl.name}")
        assert code(refused) == (409, "contradiction") and "backups" in refused.text
        assert listed(carl.program, vault) == {}
        carl.person.patch(f"/vaults{vault[6:-1]}", json={"append_only": False})
        assert people.admin.delete(f"/accounts/users/{carl.name}").status_code == 204
        noted = people.admin.get("/accounts/audit").json()["entries"]
        assert ("vault deleted", vault[7:-1]) in [(e["action"], e["subject"]) for e in noted]


def test_an_account_has_so_many_vaults_and_no_more(people: People):
    with contextlib.closing(person(people.ann.server)) as carl:
        for number in range(100):
            assert carl.program.post(f"/vault/v{number}/?create=true").status_code == 200
        assert code(carl.program.post("/vault/v100/?create=true")) == (403, "forbidden")
        assert carl.program.post("/vault/v7/?create=true").status_code == 200
        assert len(carl.person.get("/vaults").json()["vaults"]) == 100
        assert len(json.dumps(carl.about(f"/vault/{carl.name}/v7/"))) > 0
