"""Sharing and redeeming in a real browser (Chromium), with scripts and without."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page

from tests.faces.test_in_a_browser import DESK, PASSWORD, PHONE, chromium
from tests.support.server import Running
from tests.support.shares import CONTENT

__all__ = ["chromium"]  # the fixture


@pytest.fixture(params=[(DESK, True), (PHONE, False)], ids=["at a desk", "on a phone, without scripts"])
def page(chromium: Browser, server: Running, name: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """It fits its window, its console has nothing to say, and nobody else was asked for anything."""
    size, scripts = request.param
    with server.user(name):
        context = chromium.new_context(viewport=size, java_script_enabled=scripts, color_scheme="light")
        found, troubles, elsewhere = context.new_page(), list[str](), list[str]()
        found.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        found.on("request", lambda r: None if r.url.startswith(server.url) else elsewhere.append(r.url))
        yield found
        context.close()
    assert not [text for text in troubles if "401" not in text and "410" not in text] and not elsewhere


@pytest.fixture
def pictures(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder to look at them in."""
    return Path(os.environ.get("PAGES", tmp_path))


def press(page: Page, button: str) -> None:
    with page.expect_navigation():
        page.get_by_role("button", name=button).click()


def picture(page: Page, pictures: Path, name: str) -> None:
    size = page.viewport_size or {"width": 0}
    page.screenshot(path=pictures / f"{name}-{size['width']}.png", full_page=True)
    wide = page.locator("main").bounding_box()
    assert wide is not None and wide["x"] >= 0 and wide["x"] + wide["width"] <= size["width"]


def test_a_file_is_shared_and_got_once(page: Page, server: Running, name: str, pictures: Path, tmp_path: Path):
    here = tmp_path / "Grüße an alle.txt"
    here.write_bytes(CONTENT)
    page.goto(server.url + "/share")
    page.get_by_label("User name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    press(page, "Log in")
    picture(page, pictures, "share")
    page.get_by_label("File").set_input_files(here)
    page.get_by_label("Password").fill("open sesame")
    page.get_by_label("Keep it").select_option("1d")
    press(page, "Share it")
    assert page.get_by_role("heading", level=1).inner_text() == "Your file is shared"
    picture(page, pictures, "share-made")
    link = page.locator("p.link a").inner_text()
    page.goto(link)
    picture(page, pictures, "share-redeem-password")
    page.get_by_label("Password").fill("wrong")
    press(page, "Download")
    assert page.get_by_role("alert").is_visible()
    picture(page, pictures, "share-redeem-wrong")
    page.get_by_label("Password").fill("open sesame")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == here.name
    assert Path(download.value.path()).read_bytes() == CONTENT
    page.goto(link)
    assert "The file is gone." in page.inner_text("main")
    picture(page, pictures, "share-gone")


def test_the_link_of_the_api_is_for_browsers_too(page: Page, server: Running, name: str, pictures: Path):
    with server.client(name, PASSWORD) as ann:
        url = ann.put("/api/v1.0/file", files={"file": ("evil.html", b"<script>document.title='ran'</script>")}).json()[
            "url"
        ]
        page.goto(url)  # a browser that only goes there has got nothing
        page.reload()
        assert httpx2.URL(page.url).path.startswith("/share/")
        picture(page, pictures, "share-redeem")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").click()
        assert download.value.suggested_filename == "evil.html"
        assert "ran" not in page.title()
        assert ann.get(url).status_code == 410
