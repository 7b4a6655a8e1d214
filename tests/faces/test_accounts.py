"""``/accounts`` over HTTP: users, one's own account, API tokens, OAuth2 clients, the audit log."""

from __future__ import annotations

import asyncio
import datetime
import io
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from starlette.types import Message, Receive, Scope, Send

from holdfast.faces.watching import Metrics, Watch, make_log
from tests.support.server import ADMIN_PASSWORD, Running

PASSWORD = "correct horse"


@pytest.fixture
def admin(server: Running) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def user(server: Running, name: str) -> Iterator[httpx2.Client]:
    with server.user(name) as client:
        yield client


def problem(answer: httpx2.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert answer.json()["status"] == answer.status_code
    return answer.status_code, answer.json()["code"]


# -- users -------------------------------------------------------------------------------------------------------------


def test_an_administrator_makes_reads_changes_and_removes_an_account(admin: httpx2.Client, name: str) -> None:
    about = {"username": name, "password": PASSWORD, "email": "ann@example.org", "name": "Ann", "role": "user"}
    made = admin.post("/accounts/users", json=about)
    assert (made.status_code, made.headers["location"]) == (201, f"/accounts/users/{name}")
    created = datetime.datetime.fromisoformat(made.json()["created"])
    assert made.json() == {
        "username": name, "email": "ann@example.org", "name": "Ann", "role": "user", "disabled": False,
        "created": made.json()["created"], "usage": {"bytes": 0, "objects": 0},
        "quota": {"bytes": None, "objects": None},
    }  # fmt: skip
    assert created.utcoffset() == datetime.timedelta(0)
    assert made.json() in admin.get("/accounts/users").json()["users"]
    changed = admin.patch(f"/accounts/users/{name}", json={"name": "Ann B", "quota": {"bytes": 1000}})
    assert changed.status_code == 200
    assert changed.json() == made.json() | {"name": "Ann B", "quota": {"bytes": 1000, "objects": None}}
    assert admin.patch(f"/accounts/users/{name}", json={"quota": {"bytes": None}}).json()["quota"]["bytes"] is None
    assert admin.get(f"/accounts/users/{name}").json() == made.json() | {"name": "Ann B"}
    gone = admin.delete(f"/accounts/users/{name}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert problem(admin.get(f"/accounts/users/{name}")) == (404, "no-account")


def test_a_name_can_be_had_once(admin: httpx2.Client, user: httpx2.Client, name: str) -> None:
    again = admin.post("/accounts/users", json={"username": name, "password": PASSWORD})
    assert problem(again) == (409, "account-exists")


@pytest.mark.parametrize(
    "body",
    [
        {}, {"username": "ann"}, {"username": "", "password": PASSWORD}, {"username": "a b", "password": PASSWORD},
        {"username": "ann", "password": "short"}, {"username": 5, "password": PASSWORD},
        {"username": "ann", "password": PASSWORD, "role": "root"}, {"username": "ann", "password": PASSWORD, "id": 1},
        {"username": "ann", "password": PASSWORD, "email": "nobody"},
        {"username": "ann", "password": PASSWORD, "name": "a\nb"}, {"username": "ann\n", "password": PASSWORD},
        {"username": "ann", "password": "p" * 1025}, {"username": "a\0", "password": PASSWORD}, [], "ann", 5, None,
    ],
)  # fmt: skip
def test_an_account_that_makes_no_sense_is_refused(admin: httpx2.Client, body: Any) -> None:
    assert problem(admin.post("/accounts/users", json=body)) == (400, "usage")


@pytest.mark.parametrize(
    "content", [b'{"username": ', b"", b"\xff", b'{"\\ud800": 1}', b'{"username": "\\ud800"}', b"nan"]
)
def test_a_body_that_is_no_json_is_refused(admin: httpx2.Client, content: bytes) -> None:
    answer = admin.post("/accounts/users", content=content, headers={"Content-Type": "application/json"})
    assert problem(answer)[0] == 400


def test_a_body_that_is_too_long_is_not_read_to_its_end(server: Running) -> None:
    """Whoever sends it, and whether it says so or not."""
    with server.anonymous() as nobody:
        for content in (b"[" * 70_000, iter([b"[" * 10_000] * 8)):
            answer = nobody.post("/accounts/users", content=content, headers={"Content-Type": "application/json"})
            assert problem(answer) == (413, "too-large")


@pytest.mark.parametrize(
    "body",
    [
        {"role": "root"}, {"disabled": "yes"}, {"disabled": 1}, {"quota": {"bytes": -1}}, {"quota": {"bytes": 1.5}},
        {"quota": {"bytes": 1 << 63}}, {"quota": {"bytes": True}}, {"quota": 5}, {"quota": {"files": 1}},
        {"username": "new"}, {"password": "short"}, {"password": None}, {"usage": {"bytes": 0}},
    ],
)  # fmt: skip
def test_a_change_that_makes_no_sense_is_refused(
    admin: httpx2.Client, user: httpx2.Client, name: str, body: dict[str, Any]
) -> None:
    assert problem(admin.patch(f"/accounts/users/{name}", json=body)) == (400, "usage")


@pytest.mark.parametrize("username", ["nobody", "%00", "a%2Fb", "%F0%9F%98%80", "x" * 500, "..", "%ff"])
def test_an_account_that_is_not_there_is_not_found(admin: httpx2.Client, username: str) -> None:
    for answer in (
        admin.get(f"/accounts/users/{username}"),
        admin.patch(f"/accounts/users/{username}", json={"name": "x"}),
        admin.delete(f"/accounts/users/{username}"),
    ):
        assert answer.status_code in (404, 405), answer.text


def test_what_is_for_administrators_is_not_for_users(user: httpx2.Client, name: str) -> None:
    for answer in (
        user.get("/accounts/users"),
        user.post("/accounts/users", json={"username": "eve", "password": PASSWORD}),
        user.patch(f"/accounts/users/{name}", json={"role": "admin"}),
        user.delete(f"/accounts/users/{name}"),
        user.get("/accounts/audit"),
    ):
        assert problem(answer) == (403, "forbidden")
    assert user.get(f"/accounts/users/{name}").json()["username"] == name
    assert problem(user.get("/accounts/users/admin")) == (404, "no-account")


def test_nothing_is_answered_without_a_log_in(server: Running) -> None:
    with server.anonymous() as nobody:
        for method, path in [
            ("GET", "/accounts/users"), ("POST", "/accounts/users"), ("GET", "/accounts/users/admin"),
            ("PATCH", "/accounts/users/admin"), ("DELETE", "/accounts/users/admin"), ("GET", "/accounts/me"),
            ("PUT", "/accounts/me/password"), ("GET", "/accounts/tokens"), ("POST", "/accounts/tokens"),
            ("DELETE", "/accounts/tokens/1"), ("GET", "/accounts/clients"), ("POST", "/accounts/clients"),
            ("DELETE", "/accounts/clients/x"), ("GET", "/accounts/audit"), ("GET", "/metrics"),
        ]:  # fmt: skip
            answer = nobody.request(method, path)
            assert answer.status_code in (400, 401), (method, path)
            if method in ("GET", "DELETE"):
                assert problem(answer) == (401, "not-logged-in") and "www-authenticate" in answer.headers


def test_a_disabled_account_is_out_at_once(
    server: Running, admin: httpx2.Client, user: httpx2.Client, name: str
) -> None:
    token = user.post("/accounts/tokens", json={"name": "t", "scopes": ["files:read"]}).json()["token"]
    with server.with_token(token) as program:
        assert program.get("/accounts/me").status_code == 200
        assert admin.patch(f"/accounts/users/{name}", json={"disabled": True}).json()["disabled"]
        assert problem(program.get("/accounts/me")) == (401, "not-logged-in")
        assert problem(user.get("/accounts/me")) == (401, "not-logged-in")


# -- one's own ---------------------------------------------------------------------------------------------------------


def test_one_sees_ones_own_account(user: httpx2.Client, name: str) -> None:
    me = user.get("/accounts/me").json()
    assert (me["username"], me["usage"], me["quota"], me["via"]) == (
        name, {"bytes": 0, "objects": 0}, {"bytes": None, "objects": None}, "login",
    )  # fmt: skip
    assert "files:read" in me["scopes"] and "admin" not in me["scopes"]


def test_one_changes_ones_password(server: Running, user: httpx2.Client, name: str) -> None:
    wrong = user.put("/accounts/me/password", json={"old": "a wrong guess", "new": "another password"})
    assert problem(wrong) == (401, "not-logged-in")
    weak = user.put("/accounts/me/password", json={"old": PASSWORD, "new": "short"})
    assert problem(weak) == (400, "usage")
    assert user.put("/accounts/me/password", json={"old": PASSWORD, "new": "another password"}).status_code == 204
    assert user.get("/accounts/me").status_code == 401
    with server.client(name, "another password") as again:
        assert again.get("/accounts/me").status_code == 200


def test_after_ten_wrong_passwords_one_must_wait(server: Running, user: httpx2.Client, name: str) -> None:
    with server.client(name, "a wrong guess") as guesser:
        assert [guesser.get("/accounts/me").status_code for _ in range(10)] == [401] * 10
    user.headers["X-Forwarded-For"] = "198.51.100.7"  # nobody believes it
    answer = user.get("/accounts/me")
    assert problem(answer) == (429, "too-many-attempts")
    assert 0 < int(answer.headers["retry-after"]) <= 900


def test_who_was_right_just_before_must_wait_too(server: Running, user: httpx2.Client, name: str) -> None:
    assert user.get("/accounts/me").status_code == 200
    with server.client(name, "a wrong guess") as guesser:
        assert [guesser.get("/accounts/me").status_code for _ in range(10)] == [401] * 10
        assert problem(guesser.get("/accounts/me")) == (429, "too-many-attempts")
    assert problem(user.get("/accounts/me")) == (429, "too-many-attempts")


@pytest.mark.parametrize(
    "header",
    [b"Basic \xe9", b"Basic \xc3\xa9", b"Basic", b"Basic !!!", b"Basic YQ==", b"Basic /////w==", b"Bearer \xe9"],
)
def test_an_authorization_that_is_none_is_refused(server: Running, header: bytes) -> None:
    with server.anonymous() as nobody:
        answer = nobody.get("/accounts/me", headers=[(b"Authorization", header)])
    assert problem(answer) == (401, "not-logged-in")


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_a_token_is_made_shown_once_used_and_revoked(server: Running, user: httpx2.Client, name: str) -> None:
    made = user.post("/accounts/tokens", json={"name": "laptop", "scopes": ["files:read"], "expires_in": 3600})
    assert made.status_code == 201 and made.headers["cache-control"] == "no-store"
    kept = dict(made.json())
    secret = kept.pop("token")
    assert secret.startswith("hft_") and kept["scopes"] == ["files:read"] and kept["used"] is None
    assert made.headers["location"] == f"/accounts/tokens/{kept['id']}"
    with server.with_token(secret) as program:
        me = program.get("/accounts/me").json()
        assert (me["username"], me["scopes"], me["via"]) == (name, ["files:read"], "token")
        one = user.get(made.headers["location"]).json()
        assert one["used"] is not None and one | {"used": None} == kept
        assert user.get("/accounts/tokens").json()["tokens"] == [one]
        assert user.delete(made.headers["location"]).status_code == 204
        assert problem(program.get("/accounts/me")) == (401, "not-logged-in")
    assert problem(user.get(made.headers["location"])) == (404, "no-account")
    assert secret not in "".join(server.log)


def test_one_accounts_tokens_are_not_anothers(server: Running, user: httpx2.Client, name: str) -> None:
    made = user.post("/accounts/tokens", json={"name": "laptop", "scopes": ["files:read"]})
    with server.user(f"{name}-other") as other:
        assert problem(other.get(made.headers["location"])) == (404, "no-account")
        assert problem(other.delete(made.headers["location"])) == (404, "no-account")


def test_a_token_makes_none_that_may_more(server: Running, user: httpx2.Client) -> None:
    secret = user.post("/accounts/tokens", json={"name": "t", "scopes": ["files:read"]}).json()["token"]
    with server.with_token(secret) as program:
        wide = program.post("/accounts/tokens", json={"name": "u", "scopes": ["files:read", "files:write"]})
        assert problem(wide) == (403, "forbidden")
        assert program.post("/accounts/tokens", json={"name": "u", "scopes": ["files:read"]}).status_code == 201
        for answer in (
            program.put("/accounts/me/password", json={"old": PASSWORD, "new": "another password"}),
            program.post(
                "/accounts/clients", json={"name": "c", "redirect_uris": ["https://a/"], "scopes": ["files:read"]}
            ),
        ):
            assert problem(answer) == (403, "forbidden")


@pytest.mark.parametrize(
    "body",
    [
        {"name": "t"}, {"name": "", "scopes": ["files:read"]}, {"name": "t", "scopes": []},
        {"name": "t", "scopes": ["files"]}, {"name": "t", "scopes": "files:read"},
        {"name": "t", "scopes": ["files:read"], "expires_in": 0},
        {"name": "t", "scopes": ["files:read"], "expires_in": 1 << 70},
        {"name": "t", "scopes": ["files:read"], "expires_in": "60"}, {"name": "t\0", "scopes": ["files:read"]},
    ],
)  # fmt: skip
def test_a_token_that_makes_no_sense_is_refused(user: httpx2.Client, body: dict[str, Any]) -> None:
    assert problem(user.post("/accounts/tokens", json=body)) == (400, "usage")


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", str(1 << 63), "9" * 400])
def test_a_number_that_no_token_has_is_refused(user: httpx2.Client, number: str) -> None:
    for act in (user.get, user.delete):
        assert problem(act(f"/accounts/tokens/{number}")) == (400, "usage")
    assert problem(user.get(f"/accounts/tokens/{(1 << 63) - 1}")) == (404, "no-account")


# -- clients -----------------------------------------------------------------------------------------------------------


def test_a_client_is_registered_listed_and_removed(user: httpx2.Client) -> None:
    about = {"name": "an app", "redirect_uris": ["https://app.example.org/cb"], "scopes": ["files:read"]}
    made = user.post("/accounts/clients", json=about)
    assert made.status_code == 201
    kept = dict(made.json())
    assert kept.pop("client_secret").startswith("hfs_") and kept["grants"] == ["authorization_code"]
    assert user.get("/accounts/clients").json() == {"clients": [kept]}
    public = user.post("/accounts/clients", json={**about, "public": True, "grants": ["device_code"]}).json()
    assert public["client_secret"] is None and public["public"] is True
    for one in (kept, public):
        assert user.delete(f"/accounts/clients/{one['client_id']}").status_code == 204
        assert problem(user.delete(f"/accounts/clients/{one['client_id']}")) == (404, "no-account")


@pytest.mark.parametrize(
    "change",
    [
        {"redirect_uris": ["http://app.example.org/"]}, {"redirect_uris": ["javascript:alert(1)"]},
        {"redirect_uris": "https://a/"}, {"grants": ["password"]}, {"grants": []}, {"scopes": []}, {"public": "yes"},
        {"name": ""}, {"secret": "mine"}, {"redirect_uris": ["https://a/\x00"]}, {"redirect_uris": []},
    ],
)  # fmt: skip
def test_a_client_that_makes_no_sense_is_refused(user: httpx2.Client, change: dict[str, Any]) -> None:
    about = {"name": "an app", "redirect_uris": ["https://app.example.org/cb"], "scopes": ["files:read"]}
    assert problem(user.post("/accounts/clients", json={**about, **change})) == (400, "usage")
    admin_scope = user.post("/accounts/clients", json={**about, "scopes": ["admin"]})
    assert problem(admin_scope) == (403, "forbidden")


# -- the audit log, and the contract -----------------------------------------------------------------------------------


def test_the_audit_log_is_read_in_pieces(admin: httpx2.Client, user: httpx2.Client, name: str) -> None:
    first = admin.get("/accounts/audit", params={"limit": 1}).json()
    assert len(first["entries"]) == 1 and first["next"] == first["entries"][0]["id"]
    rest = admin.get("/accounts/audit", params={"limit": 1000, "before": first["next"]}).json()
    assert rest["next"] is None and all(e["id"] < first["next"] for e in rest["entries"])
    everything = first["entries"] + rest["entries"]
    made = [e for e in everything if e["subject"] == name]
    assert [(e["actor"], e["action"], e["address"]) for e in made] == [("admin", "account made", "127.0.0.1")]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "before=0", f"before={1 << 63}", "before="])
def test_a_piece_of_the_log_that_makes_no_sense_is_refused(admin: httpx2.Client, query: str) -> None:
    assert problem(admin.get(f"/accounts/audit?{query}")) == (400, "usage")


def test_no_secret_stands_in_the_servers_log(server: Running, admin: httpx2.Client) -> None:
    admin.get("/accounts/me")
    assert "/accounts/me" in "".join(server.log) and ADMIN_PASSWORD not in "".join(server.log)


def test_a_fault_leaves_no_secret_in_the_log() -> None:
    """A traceback tells where it was, and nothing that stood in a variable there."""
    log, sent = io.StringIO(), list[Message]()

    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        password = (await receive())["body"].decode()
        raise ValueError(f"A password of {len(password)} letters broke it.")

    async def receive() -> Message:
        return {"type": "http.request", "body": PASSWORD.encode()}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": "/accounts/me", "query_string": b"code=a+secret+code",
        "headers": [(b"authorization", b"Bearer hft_a-secret-token")], "client": ("192.0.2.1", 1),
    }  # fmt: skip
    asyncio.run(Watch(breaks, make_log(log), Metrics())(scope, receive, send))
    assert sent[0]["status"] == 500
    for told in ("ValueError", "13 letters", "breaks", "192.0.2.1"):
        assert told in log.getvalue()
    for secret in (PASSWORD, "a-secret-token", "secret+code"):
        assert secret not in log.getvalue()


def test_the_document_names_every_answer_of_every_endpoint(server: Running) -> None:
    with server.anonymous() as nobody:
        document = nobody.get("/openapi.json").json()
    ours = {path: item for path, item in document["paths"].items() if path.startswith(("/accounts", "/oauth2"))}
    assert len(ours) >= 13
    for path, item in ours.items():
        for method, operation in item.items():
            assert {"400", "503"} <= operation["responses"].keys(), (method, path)
            assert "422" not in operation["responses"]
