"""The pages of shares, as a browser without scripts uses them, and as somebody else's page cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.browser import Browser, form_of
from tests.support.server import Running
from tests.support.shares import CONTENT, FORM, form, page_of, part, share, sharer

PASSWORD = "correct horse"
OURS = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def ann(server: Running) -> Iterator[httpx2.Client]:
    with sharer(server, "ann") as client:
        yield client


@pytest.fixture
def browser(server: Running) -> Iterator[Browser]:
    """Somebody who is logged in."""
    with Browser(server.url) as found:
        found.log_in("ann", PASSWORD, "/share")
        yield found


@pytest.fixture
def visitor(server: Running) -> Iterator[Browser]:
    """Somebody who got a link."""
    with Browser(server.url) as found:
        yield found


def put(browser: Browser, content: bytes = CONTENT, name: str = "a.txt", headers: Any = OURS, **typed: str):
    """Fill in the form and send it."""
    fields = form_of(browser.open("/share")).fields
    del fields["file"]
    return browser.client.post("/share", data={**fields, **typed}, files={"file": (name, content)}, headers=headers)


def link_in(page: httpx2.Response) -> str:
    return page.text.partition('<p class="link"><a href="')[2].partition('"')[0]


def test_sharing_leads_to_the_log_in_and_back(ann: httpx2.Client, visitor: Browser):
    page = visitor.open("/share")
    assert page.url.path == "/login"
    back = visitor.submit(page, username="ann", password=PASSWORD)
    assert back.url.path == "/share" and "<h1>Share a file</h1>" in back.text


def test_somebody_shares_a_file_and_somebody_gets_it(ann: httpx2.Client, browser: Browser, visitor: Browser):
    made = put(browser, name="for you.txt", password="", downloads="1", expires="1d")
    assert made.status_code == 201 and "for you.txt" in made.text
    link = link_in(made)
    page = visitor.open(link)
    assert page.status_code == 200 and "for you.txt" in page.text and "13.7 KiB" in page.text
    for _ in range(3):
        assert visitor.client.head(link).status_code == 200
    got = visitor.submit(page)
    assert (got.status_code, got.content) == (200, CONTENT)
    assert got.headers["content-disposition"] == 'attachment; filename="for you.txt"'
    gone = visitor.open(link)
    assert gone.status_code == 410 and "The file is gone." in gone.text
    assert visitor.submit(page).status_code == 410


def test_a_page_with_a_password(ann: httpx2.Client, browser: Browser, visitor: Browser):
    link = link_in(put(browser, name="secret plan.txt", password="open sesame", downloads="2"))
    page = visitor.open(link)
    assert "secret plan" not in page.text and 'type="password"' in page.text
    wrong = visitor.submit(page, password="close sesame")
    assert wrong.status_code == 401 and "not the share" in wrong.text and "close sesame" not in wrong.text
    assert visitor.submit(wrong, password="open sesame").content == CONTENT
    assert visitor.submit(page, password="open sesame").content == CONTENT
    assert visitor.submit(page, password="open sesame").status_code == 410


def test_what_was_never_shared_has_no_page(visitor: Browser):
    for path in ("/share/" + "0" * 32, "/share/x", "/share/" + "F" * 32):
        assert visitor.open(path).status_code == 404
        assert visitor.client.post(path, data={}).status_code == 404


def test_names_do_nothing_in_pages(ann: httpx2.Client, browser: Browser, visitor: Browser):
    evil = '"><img src=x onerror=alert(1)>.txt'
    made = put(browser, name=evil)
    page = visitor.open(link_in(made))
    for shown in (made, page):
        assert "<img" not in shown.text and "&lt;img" in shown.text
        policy = shown.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script" not in policy and "frame-ancestors 'none'" in policy


def test_the_pages_address_is_told_to_nobody(ann: httpx2.Client, visitor: Browser):
    page = visitor.open(page_of(share(ann)))
    assert (page.headers["referrer-policy"], page.headers["cache-control"]) == ("no-referrer", "no-store")
    assert page.headers["x-robots-tag"] == "noindex"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"downloads": "0"}, "number of downloads"), ({"expires": "soon"}, "How long it is kept"),
        ({"downloads": "1001"}, "number of downloads"), ({"password": "x" * 1025}, "1024 characters"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said_in_the_form(ann: httpx2.Client, browser: Browser, typed: Any, said: str):
    answer = put(browser, **typed)
    assert answer.status_code == 400 and said in answer.text and "<h1>Share a file</h1>" in answer.text


def test_no_file_and_a_file_that_is_too_large_are_said_in_the_form(ann: httpx2.Client, browser: Browser):
    csrf = part("csrf", form_of(browser.open("/share")).fields["csrf"].encode())
    none = browser.client.post("/share", content=form(csrf, part("file", b"", ""))["content"], headers=FORM | OURS)
    assert none.status_code == 400 and "no name" in none.text
    large = put(browser, bytes((16 << 20) + 1))
    assert large.status_code == 413 and "at most 16777216 bytes" in large.text


def test_nobody_elses_page_shares_a_file(ann: httpx2.Client, browser: Browser, server: Running):
    before = ann.get("/shares").json()
    for headers in ({"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert put(browser, headers=headers).status_code == 403
    assert put(browser, csrf="0" * 64).status_code == 403
    without = browser.client.post("/share", **form(part("file", b"x", "a.txt")))
    assert without.status_code == 403
    assert ann.get("/shares").json() == before
    files = [path for path in (server.data / "shares").rglob("*") if path.is_file()]
    assert all(path.read_bytes() != b"x" for path in files)


def test_who_has_no_session_shares_nothing_by_the_page(ann: httpx2.Client, server: Running, visitor: Browser):
    for client in (visitor.client, ann, server.client("ann", PASSWORD)):
        answer = client.post("/share", content=form(part("file", b"x", "a"))["content"], headers={**FORM, **OURS})
        assert answer.status_code == 401 and "not logged in" in answer.text
        if client not in (visitor.client, ann):
            client.close()
