"""``/api/v1.0/file`` and ``/shares`` of a real server: answers as the document has them, once, nothing in the log."""

from __future__ import annotations

import concurrent.futures
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.server import Running, running
from tests.support.shares import API, CONTENT, demand_error, page_of, share, sharer

ROBOTS = [
    "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)", "Twitterbot/1.0", "TelegramBot (like TwitterBot)",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)", "WhatsApp/2.23.20.0",
    "Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)", "SkypeUriPreview Preview/0.5",
    "LinkedInBot/1.0 (compatible; Mozilla/5.0)", "Mozilla/5.0 (compatible; Googlebot/2.1)", "Iframely/1.3.1",
]  # fmt: skip


@pytest.fixture(scope="module")
def ann(server: Running) -> Iterator[httpx2.Client]:
    with sharer(server, "ann") as client:
        yield client


@pytest.fixture
def new(server: Running, name: str) -> Iterator[httpx2.Client]:
    """Somebody who has no shares."""
    with sharer(server, name) as client:
        yield client


@pytest.fixture(scope="module")
def anybody(server: Running) -> Iterator[httpx2.Client]:
    with server.anonymous() as client:
        yield client


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.05)


# -- as the document has it --------------------------------------------------------------------------------------------


def test_a_file_goes_in_and_comes_out_once(ann: httpx2.Client, anybody: httpx2.Client):
    made = ann.put(API, files={"file": ("photo.png", CONTENT)})
    assert (made.status_code, made.headers["content-type"]) == (201, "application/json")
    assert set(made.json()) == {"status", "url"} and made.json()["status"] == "File Uploaded Successfully"
    url = made.json()["url"]
    assert url.rpartition("/")[0] == str(ann.base_url).rstrip("/") + API and len(url.rpartition("/")[2]) == 32
    got = anybody.get(url)
    assert (got.status_code, got.content, got.headers["content-type"]) == (200, CONTENT, "image/png")
    assert got.headers["content-disposition"] == 'attachment; filename="photo.png"'
    for _ in range(3):
        demand_error(anybody.get(url), 410, "Gone")


def test_the_documents_base_path_does_the_same(ann: httpx2.Client, anybody: httpx2.Client):
    made = ann.put("/vimeo/api/v1.0/file", files={"file": ("a.txt", CONTENT)}, data={"password": "hello world"})
    url = made.json()["url"]
    assert "/vimeo/api/v1.0/file/" in url
    assert anybody.get(url, params={"password": "hello world"}).content == CONTENT
    demand_error(anybody.get(url), 410, "Gone")


def test_no_two_addresses_tell_of_each_other(ann: httpx2.Client):
    ids = {share(ann, b"the same", "same.txt").rpartition("/")[2] for _ in range(20)}
    assert len(ids) == 20 and all(set(id_) <= set("0123456789abcdef") for id_ in ids)


def test_who_is_not_logged_in_or_may_not_puts_nothing_in(server: Running, anybody: httpx2.Client, name: str):
    answer = anybody.put(API, files={"file": ("a", b"a")})
    demand_error(answer, 401, "Unauthorized")
    assert "Bearer" in answer.headers["www-authenticate"]
    demand_error(anybody.put(API, files={"file": ("a", b"a")}, auth=("admin", "wrong")), 401, "Unauthorized")
    with sharer(server, name, "shares:read", "files:write") as reader:
        demand_error(reader.put(API, files={"file": ("a", b"a")}), 403, "Forbidden")
    with server.client() as admin:
        headers = {"Origin": "https://elsewhere.example"}
        demand_error(admin.put(API, files={"file": ("a", b"a")}, headers=headers), 403, "Forbidden")


@pytest.mark.parametrize("base", ["/api/v1.0", "/vimeo/api/v1.0"])
def test_what_is_not_there_and_what_cannot_be_done_is_said_as_the_document_says_it(ann: httpx2.Client, base: str):
    for method in ("GET", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
        answer = ann.request(method, f"{base}/file")
        demand_error(answer, 405, "Method not Allowed")
        assert answer.headers["allow"] == "PUT"
    for method in ("PUT", "POST", "DELETE", "PATCH", "OPTIONS"):
        answer = ann.request(method, f"{base}/file/{'0' * 32}")
        demand_error(answer, 405, "Method not Allowed")
        assert answer.headers["allow"] == "GET, HEAD"
    assert ann.head(f"{base}/file").status_code == 405
    for path in (f"file/{'0' * 32}", "file/", "file/0", f"file/{'A' * 32}", f"file/{'0' * 33}", "files", "", "file/a/b",
                 "file/%2e%2e%2fetc", f"file/{'0' * 31}%00"):  # fmt: skip
        demand_error(ann.get(f"{base}/{path}"), 404, "Not Found")


def test_a_query_that_makes_no_sense_is_a_bad_request(ann: httpx2.Client):
    url = share(ann)
    for query in ("password=a&password=b", "password=%ff"):
        demand_error(ann.get(f"{url}?{query}"), 400, "Bad Request")
    assert ann.get(f"{url}?unknown=1").content == CONTENT


# -- what spends nothing -----------------------------------------------------------------------------------------------


def test_head_spends_nothing_and_tells_what_get_would(ann: httpx2.Client, anybody: httpx2.Client):
    url = share(ann, name="a.png")
    for _ in range(3):
        head = anybody.head(url)
        assert head.status_code == 200 and head.content == b""
    got = anybody.get(url)
    assert got.content == CONTENT
    changing = {"date", "x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in changing} == {
        k: v for k, v in got.headers.items() if k not in changing
    }
    assert anybody.head(url).status_code == 410


def test_head_needs_the_password_too(ann: httpx2.Client, anybody: httpx2.Client):
    url = share(ann, password="secret")
    assert anybody.head(url).status_code == 401
    assert anybody.head(url, params={"password": "secret"}).status_code == 200


@pytest.mark.parametrize("robot", ROBOTS)
def test_robots_that_make_previews_are_led_to_the_page(ann: httpx2.Client, anybody: httpx2.Client, robot: str):
    url = share(ann)
    for method in ("GET", "HEAD"):
        answer = anybody.request(method, url, headers={"User-Agent": robot})
        assert (answer.status_code, answer.headers["location"]) == (303, page_of(url))
        assert answer.headers["cache-control"] == "no-store"
    assert anybody.get(page_of(url), headers={"User-Agent": robot}).status_code == 200
    assert anybody.get(url).content == CONTENT


@pytest.mark.parametrize(
    "headers",
    [
        {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, {"Accept": "*/*, TEXT/HTML;q=0.1"},
        {"Sec-Purpose": "prefetch;prerender"}, {"Purpose": "prefetch"},
    ],
)  # fmt: skip
def test_browsers_are_led_to_the_page(ann: httpx2.Client, anybody: httpx2.Client, headers: dict[str, str]):
    url = share(ann, password="secret")
    answer = anybody.get(url, params={"password": "secret"}, headers=headers)
    assert (answer.status_code, answer.headers["location"]) == (303, page_of(url))  # the password goes nowhere
    assert anybody.get(url, params={"password": "secret"}).content == CONTENT


@pytest.mark.parametrize("agent", ["curl/8.5.0", "python-requests/2.31.0", "Wget/1.21", "robotic-arm/1 Abbott"])
def test_programs_get_the_file(ann: httpx2.Client, anybody: httpx2.Client, agent: str):
    assert anybody.get(share(ann), headers={"User-Agent": agent, "Accept": "*/*"}).content == CONTENT


@pytest.mark.parametrize("range_", ["bytes=0-0", "bytes=5-", "bytes=-1", "bytes=999999-"])
def test_a_range_is_ignored(ann: httpx2.Client, anybody: httpx2.Client, range_: str):
    got = anybody.get(share(ann), headers={"Range": range_, "If-Range": '"x"', "If-None-Match": "*"})
    assert (got.status_code, got.content, got.headers["accept-ranges"]) == (200, CONTENT, "none")


# -- passwords ---------------------------------------------------------------------------------------------------------


def test_a_missing_and_a_wrong_password_are_answered_alike(ann: httpx2.Client, anybody: httpx2.Client):
    url = share(ann, password="pa ss/wörd")
    answers = [
        anybody.get(url), anybody.get(url, params={"password": ""}), anybody.get(url, params={"password": "pa"}),
        anybody.get(url, headers={"X-Share-Password": "other"}),
    ]  # fmt: skip
    for answer in answers:
        demand_error(answer, 401, "Unauthorized")
    kept = [{k: v for k, v in a.headers.items() if k not in ("date", "x-request-id")} for a in answers]
    assert kept == [kept[0]] * 4
    assert anybody.get(url, params={"password": "pa ss/wörd"}).content == CONTENT


def test_a_missing_password_takes_as_long_as_a_wrong_one(ann: httpx2.Client, anybody: httpx2.Client):
    url = share(ann, password="secret")

    def seconds(**params: str) -> float:
        began = time.perf_counter()
        assert anybody.get(url, params=params).status_code == 401
        return time.perf_counter() - began

    missing, wrong = [seconds() for _ in range(4)], [seconds(password="x") for _ in range(4)]
    assert min(missing) > min(wrong) / 3 and min(wrong) > min(missing) / 3


@pytest.mark.parametrize("sent", ["secret", "pässwörd ✓".encode(), b"s" * 1024])
def test_the_password_may_stand_in_a_header(ann: httpx2.Client, anybody: httpx2.Client, sent: str | bytes):
    raw = sent if isinstance(sent, bytes) else sent.encode()
    url = share(ann, password=raw.decode())
    demand_error(anybody.get(url, headers={"X-Share-Password": "wrong"}), 401, "Unauthorized")
    assert anybody.get(url, headers=[(b"X-Share-Password", raw)]).content == CONTENT


def test_an_empty_password_is_none(ann: httpx2.Client, anybody: httpx2.Client):
    assert anybody.get(share(ann, password="")).content == CONTENT


def test_wrong_passwords_in_a_burst_are_slowed_down(ann: httpx2.Client, anybody: httpx2.Client):
    url = share(ann, password="secret")
    answers = [anybody.get(url, params={"password": f"guess {n}"}) for n in range(8)]
    assert [a.status_code for a in answers] == [401] * 5 + [429] * 3
    demand_error(answers[-1], 429, "Too Many Requests")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 900
    demand_error(anybody.get(url, params={"password": "secret"}), 429, "Too Many Requests")
    page = anybody.post(page_of(url), data={"password": "secret"})
    assert page.status_code == 429 and int(page.headers["retry-after"]) >= 1


def test_a_burst_of_guesses_keeps_no_log_in_waiting(server: Running, ann: httpx2.Client):
    urls = [share(ann, password="secret") for _ in range(3)]
    with server.anonymous() as guesser, concurrent.futures.ThreadPoolExecutor(32) as pool:
        guesses = [pool.submit(guesser.get, urls[n % 3], params={"password": str(n)}) for n in range(15)]
        began = time.monotonic()
        with server.client() as admin:
            assert admin.get("/accounts/me").status_code == 200
        passed = time.monotonic() - began
        assert [g.result().status_code for g in guesses].count(401) > 8
        assert passed < time.monotonic() - began


# -- owners ------------------------------------------------------------------------------------------------------------


def test_owners_see_and_end_their_own(server: Running, new: httpx2.Client, anybody: httpx2.Client, name: str):
    url = share(new, name="mine.txt", password="x", expires="1d", downloads="3")
    (mine,) = new.get("/shares").json()["shares"]
    assert (mine["name"], mine["password"], mine["downloads"], mine["taken"]) == ("mine.txt", True, 3, 0)
    assert (mine["state"], mine["stored"], mine["size"]) == ("open", True, len(CONTENT))
    assert url.rpartition("/")[2] not in new.get("/shares").text
    with sharer(server, name + "-other") as bob:
        assert bob.get("/shares").json() == {"shares": [], "next": None}
        assert bob.delete(f"/shares/{mine['number']}").status_code == 404
    assert new.delete(f"/shares/{mine['number']}").status_code == 204
    demand_error(anybody.get(url), 410, "Gone")
    assert new.get("/shares").json()["shares"] == []
    (ended,) = new.get("/shares", params={"all": "true"}).json()["shares"]
    assert ended["state"] == "ended"


def test_the_list_comes_in_pages(new: httpx2.Client):
    for n in range(5):
        share(new, name=f"{n}.txt")
    first = new.get("/shares", params={"limit": 3}).json()
    rest = new.get("/shares", params={"limit": 3, "before": first["next"]}).json()
    assert [s["name"] for s in first["shares"] + rest["shares"]] == ["4.txt", "3.txt", "2.txt", "1.txt", "0.txt"]
    assert rest["next"] is None


def test_lists_need_their_scope(server: Running, name: str):
    with sharer(server, name, "shares:write") as writer:
        assert writer.get("/shares").json()["code"] == "forbidden"
    with sharer(server, name + "-2", "shares:read") as reader:
        assert reader.get("/shares").status_code == 200
        assert reader.delete("/shares/1").json()["code"] == "forbidden"


def test_what_is_shared_counts_and_the_quota_holds(server: Running, name: str):
    with server.user(name) as ann, server.client() as admin:
        changed = admin.patch(f"/accounts/users/{name}", json={"quota": {"bytes": 3 * len(CONTENT)}})
        assert changed.status_code == 200, changed.text
        share(ann), share(ann)
        usage = ann.get("/accounts/me").json()["usage"]
        assert (usage["bytes"], usage["objects"]) == (2 * len(CONTENT), 2)
        demand_error(ann.put(API, files={"file": ("x", CONTENT * 2)}), 507, "Insufficient Storage")
        share(ann)
        demand_error(ann.put(API, files={"file": ("x", b"x")}), 507, "Insufficient Storage")


# -- the log, and the end ----------------------------------------------------------------------------------------------


def test_the_log_has_no_address_and_no_password(server: Running, ann: httpx2.Client, anybody: httpx2.Client):
    url = share(ann, password="a-very-secret-word")
    id_ = url.rpartition("/")[2]
    anybody.get(url, params={"password": "a-very-wrong-word"})
    anybody.get(f"{url}/", params={"password": "a-very-secret-word"})
    anybody.get(url[:-1])
    anybody.post(url)
    anybody.get(page_of(url) + "/x")
    anybody.post(page_of(url), data={"password": "another-wrong-word"})
    anybody.get(f"//{id_}")
    anybody.get(url, params={"password": "a-very-secret-word"})
    last = anybody.get("/healthz").headers["x-request-id"]
    wait_until(lambda: any(last in line for line in server.log))
    log = "".join(server.log)
    for secret in (id_, id_[:-1], "a-very-secret-word", "a-very-wrong-word", "another-wrong-word"):
        assert secret not in log
    with server.client() as admin:
        assert id_ not in admin.get("/metrics").text


def test_files_are_removed_in_time_also_after_a_restart(tmp_path: Path):
    data, soon = tmp_path / "data", {"HOLDFAST_SHARES__REMOVE_AFTER": "1"}

    def files() -> list[Path]:
        return [path for path in (data / "shares").rglob("*") if path.is_file()]

    with running(data, HOLDFAST_SHARES__REMOVE_AFTER="3600") as server, server.client() as admin:
        url = share(admin)
        assert admin.get(url).status_code == 200
        assert len(files()) == 1
        server.process.kill()
    path = httpx2.URL(url).path
    with running(data, **soon) as server, server.client() as admin:
        wait_until(lambda: not files())
        demand_error(admin.get(path), 410, "Gone")
        expiring = share(admin, expires="1")
        wait_until(lambda: admin.head(expiring).status_code == 410)
        wait_until(lambda: not files())
        wait_until(lambda: admin.get("/accounts/me").json()["usage"]["objects"] == 0)


@pytest.mark.slow
def test_a_share_outlives_a_server_that_was_killed_while_it_was_sent(tmp_path: Path):
    data = tmp_path / "data"
    with running(data) as server, server.client() as admin:
        url = share(admin, bytes(12 << 20))
        path, there = httpx2.URL(url).path, httpx2.URL(server.url)
        with socket.create_connection((there.host, there.port or 80)) as line:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert line.recv(1000).startswith(b"HTTP/1.1 200")
            demand_error(admin.get(url), 410, "Gone")
            server.process.kill()
            server.process.wait()
    with running(data) as server, server.anonymous() as anybody:
        assert anybody.get(path).content == bytes(12 << 20)


def test_a_damaged_file_is_a_fault_and_is_not_spent(server: Running, ann: httpx2.Client, anybody: httpx2.Client):
    content = b"like no other " * 1000
    url = share(ann, content)
    (path,) = [p for p in (server.data / "shares").iterdir() if p.is_file() and p.read_bytes() == content]
    path.write_bytes(b"X" + content[1:])
    demand_error(anybody.get(url), 500, "Internal Server Error")
    path.write_bytes(content)
    assert anybody.get(url).content == content
    assert any("is not what was put in" in line for line in server.log)
