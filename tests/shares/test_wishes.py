"""What is said of a shared file: names, types, durations."""

from __future__ import annotations

import pytest

from holdfast.errors import UsageError
from holdfast.shares.wishes import NAME_MOST, downloads_of, expires_after, name_of, type_of


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("report.xls", "report.xls"), ("a/b/report.xls", "report.xls"), ("C:\\Users\\ann\\report.xls", "report.xls"),
        ("../../etc/passwd", "passwd"), ('quo"te\'s.txt', 'quo"te\'s.txt'), ("a\r\nb\0.txt", "ab.txt"),
        ("  spaced.txt ", "spaced.txt"), ("😀 smile 👩‍👩‍👧.png", "😀 smile 👩‍👩‍👧.png"), ("Grüße.txt", "Grüße.txt"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"), ("\ud800x", "x"), ("line\u2028.txt", "line.txt"),
    ],
)  # fmt: skip
def test_a_name_is_one_step_without_control_characters(given: str, kept: str):
    assert name_of(given) == kept


@pytest.mark.parametrize("given", ["", " ", "/", "a/", "..", "a/..", ".", "\n", "\\", "\u202e"])
def test_a_name_of_which_nothing_is_left_is_none(given: str):
    with pytest.raises(UsageError):
        name_of(given)


@pytest.mark.parametrize(
    "given", ["n" * 4000 + ".tar", "😀" * 4000 + ".jpeg", "é" * 4000, "x" * 300 + "." + "y" * 300, "." + "z" * 4000]
)
def test_a_long_name_keeps_its_ending(given: str):
    kept = name_of(given)
    assert NAME_MOST - 4 <= len(kept.encode()) <= NAME_MOST
    if given.endswith((".tar", ".jpeg")):
        assert kept.rpartition(".")[2] == given.rpartition(".")[2]


@pytest.mark.parametrize(
    ("name", "declared", "found"),
    [
        ("a.png", "text/plain", "image/png"), ("a.html", "", "text/html"), ("A.PDF", "x/y", "application/pdf"),
        ("a.unknown", "image/x-mine", "image/x-mine"), ("a.unknown", "", "application/octet-stream"),
        ("noend", "text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ("noend", "nonsense", "application/octet-stream"), ("noend", "a/b\r\nX: y", "application/octet-stream"),
        ("noend", "text/html; charset=\"\r\n\"", "application/octet-stream"),
        ("a.tar.gz", "", "application/gzip"), ("data:text/html,x", "", "application/octet-stream"),
        ("what?.png", "", "image/png"), ("http://x#.png", "", "image/png"),
    ],
)  # fmt: skip
def test_the_type_is_guessed_from_the_name_or_the_declared_one(name: str, declared: str, found: str):
    assert type_of(name, declared) == found


def test_durations():
    given = ("", " ", "90", "90s", "2m", "1h", "1D", "2w")
    second = 1_000_000_000
    assert [expires_after(text) for text in given] == [
        None, None, 90 * second, 90 * second, 120 * second, 3600 * second, 86400 * second, 14 * 86400 * second,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["0", "-1", "1y", "h", "1.5h", "1h30m", "9" * 20, "4000d", "\u0661"])
def test_what_is_no_duration_is_said(text: str):
    with pytest.raises(UsageError):
        expires_after(text)


def test_numbers_of_downloads():
    assert [downloads_of(text) for text in ("", "1", " 3 ", "1000")] == [1, 1, 3, 1000]
    for text in ("0", "1001", "-1", "x", "1.5", "²", "9" * 5000):
        with pytest.raises(UsageError):
            downloads_of(text)
