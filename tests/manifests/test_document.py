"""Manifests as JSON: what one body may cost, where it is broken, and what would harm the catalog or a snapshot."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
from typing import Any

import pytest

from holdfast.errors import TooLarge, UsageError
from holdfast.manifests import document
from holdfast.manifests.document import HEADER_MOST, Reading
from tests.manifests.making import entry

MOST_READ = 3 * HEADER_MOST


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.count += len(found)
        return found


def reading(body: bytes | dict[str, Any]) -> Reading:
    """A manifest that was read to its end."""
    found = Reading(io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode()))
    for _ in found.lines():
        pass
    return found


def refusal(body: bytes | dict[str, Any]) -> str:
    with pytest.raises(UsageError) as e:
        reading(body)
    return str(e.value)


def entries(number: int) -> bytes:
    return b",".join(b'"%d":%s' % (i, json.dumps(entry(b"")).encode()) for i in range(number))


# -- what a body may cost ----------------------------------------------------------------------------------------------

GROWING = {
    "white space": (b'{"name":"a","files":{', b" "),
    "a text": (b'{"name":"a","x":"', b"x"),
    "a key": (b'{"name":"a","', b"x"),
    "a key in a value": (b'{"name":"a","x":{"', b"x"),
    "a path": (b'{"name":"a","files":{"', b"x"),
    "a key of an entry": (b'{"name":"a","files":{"a":{"', b"x"),
    "a number": (b'{"name":"a","x":', b"1"),
    "a fraction in an entry": (b'{"name":"a","files":{"a":{"size":0.', b"1"),
    "many keys": (b'{"name":"a","y":0', b',"' + b"x" * 1000 + b'%d":0'),
    "many fractions": (b'{"name":"a","x":[0', b",0." + b"1" * 100_000),
    "many fractions in an entry": (b'{"name":"a","files":{"a":{"a":0', b',"x%d":0.' + b"1" * 50_000),
}


@pytest.mark.parametrize(("start", "more"), GROWING.values(), ids=GROWING)
def test_what_grows_and_grows_is_refused_before_it_is_read(start: bytes, more: bytes):
    pieces = 8 * MOST_READ // len(more)
    source = Counting(start + (b"".join(more % i for i in range(pieces)) if b"%d" in more else more * pieces))
    with pytest.raises(TooLarge):
        for _ in Reading(source).lines():
            pass
    assert source.count <= MOST_READ


def test_much_is_taken_where_nothing_grows():
    gap = b" " * (HEADER_MOST // 2)
    body = b'{"name":"a",' + gap + b'"x":[1,' + gap + b"2," + gap + b'3],"files":{' + gap + entries(9) + gap + b"}}"
    assert reading(body).files == 9
    assert reading({"name": "m", "x": "y" * 1_000_000}).header["x"] == "y" * 1_000_000


def test_there_are_only_so_many_entries(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(document, "ENTRIES_MOST", 3)
    body: dict[str, Any] = {"name": "m", "files": {"a": entry(b""), "b": entry(b"")}, "directories": {"c": {}}}
    assert reading(body).files == 2
    body["directories"]["d"] = {}
    with pytest.raises(TooLarge, match="more than 3 files and directories"):
        reading(body)


def test_errors_repeat_only_the_beginning_of_a_text():
    long = "x" * 50_000
    one, two = json.dumps(entry(b"1")).encode(), json.dumps(entry(b"2")).encode()
    bodies: list[bytes | dict[str, Any]] = [
        {"name": "m", "files": {long: entry(b"")}},
        {"name": "m", "files": {long: 1}},
        {"name": "m", "files": {"a": {"hash": long, "size": 1}}},
        {"name": "m", "files": {"a": entry(b"", permissions=long)}},
        b'{"%s":1,"%s":2}' % (long.encode(), long.encode()),
        b'{"x":{"%s":1,"%s":2}}' % (long.encode(), long.encode()),
        b'{"files":{"%s":%s,"%s":%s}}' % (long[:4000].encode(), one, long[:4000].encode(), two),
    ]
    assert max(len(refusal(body)) for body in bodies) < 400


# -- where it is broken ------------------------------------------------------------------------------------------------


def test_the_place_of_an_error_costs_a_few_readings():
    source = Counting(b'{"name":"a","files":{' + entries(30_000) + b",!")
    size = len(source.getvalue())
    with pytest.raises(UsageError, match=f"line 1, column {size}\\)"):
        for _ in Reading(source).lines():
            pass
    assert source.count <= 5 * size


def test_the_place_is_that_of_the_byte(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(document, "_BLOCK", 64)
    monkeypatch.setattr(document, "_PIECE", 8)
    body = json.dumps({"name": "ä\n", "x": [1.5, True, None], "files": {"a": entry(b"")}}, indent=1).encode()
    for at in random.Random(7).sample(range(len(body)), 60):
        line, column = body.count(b"\n", 0, at) + 1, at - (body.rfind(b"\n", 0, at) + 1) + 1
        assert f"(line {line}, column {column})" in refusal(body[:at] + b"\1" + body[at:])


@pytest.mark.parametrize("number", ["1" * 5000, "-" + "1" * 5000, "1e99999999999999999999", "1e-99999999999999999999"])
def test_numbers_beyond_all_measure_are_refused_with_their_place(number: str):
    for body in (f'{{"name":"m","x":[1,\n{number},2]}}', f'{{"name":"m","files":{{"a":{{"size":\n{number}}}}}}}'):
        column = len(number) + 1
        assert refusal(body.encode()).endswith(f"a number is too large (line 2, column {column}).")


AT_A_BLOCKS_BEGINNING = """
import io, sys
from holdfast.errors import UsageError
from holdfast.manifests.document import Reading
body = b'{"name":"m","x":['
body += b" " * ((64 << 10) - len(body)) + b"1" * 5000 + b"]}"
try:
    list(Reading(io.BytesIO(body)).lines())
except UsageError:
    sys.exit(7)
"""


def test_no_number_brings_the_process_down():
    assert subprocess.run([sys.executable, "-c", AT_A_BLOCKS_BEGINNING], check=False).returncode == 7


# -- text that is none -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "half", [r"\ud800", r"\uDBFF", r"\udc00", r"\ud800A", r"\ud83d\ud83d\ude00", r"\\\ud83d", r"\ud83d\\ude00"]
)
def test_half_a_character_is_refused_wherever_it_stands(half: str):
    for start, end in [
        ('{"name":"', '"}'), ('{"name":"m","base":"', '"}'), ('{"name":"m","', '":1}'), ('{"name":"m","x":["', '"]}'),
        ('{"name":"m","directories":{"', '":{}}}'), ('{"name":"m","directories":{"a":{"user":"', '"}}}'),
    ]:  # fmt: skip
        assert re.search(r"line 1, column \d+", refusal((start + half + end).encode()))


@pytest.mark.parametrize("block", [*range(1, 15), 1 << 16])
def test_half_a_character_is_found_however_the_blocks_lie(monkeypatch: pytest.MonkeyPatch, block: int):
    monkeypatch.setattr(document, "_BLOCK", block)
    fine = r'{"name":"m","x":"\\ud800 \n\ud83d\uDE00\/\\\\ud83d\u00e4ä\ud7ff\ue000\\"'
    assert reading(fine.encode() + b"}").header["x"] == json.loads(fine + "}")["x"]
    assert f"column {len(fine.encode()) + 7}" in refusal(fine.encode() + rb',"y":"\ud800"}')


NUL: dict[str, dict[str, Any]] = {
    "name": {"name": "a\0b"},
    "base": {"name": "m", "base": "a\0b"},
    "timestamp": {"name": "m", "timestamp": "2020-01-01\x0000:00"},
    "user": {"name": "m", "files": {"a": entry(b"", user="a\0b")}},
    "group": {"name": "m", "directories": {"a": {"group": "a\0b"}}},
}


@pytest.mark.parametrize("thing", NUL)
def test_nul_is_refused_and_what_has_it_is_named(thing: str):
    assert thing in refusal(NUL[thing])


# -- times and owners --------------------------------------------------------------------------------------------------

TIMES = [
    "2020-01-01", "20200101", "2020-W01-1", "2020W011", "2020-01-01T10", "2020-01-01 10:11", "20200101T101112Z",
    "2020-01-01T10:11:12.123456789+01:00", "2015-04-15T00:00:00+0000", "2020-01-01T10:11:12,5-03:30",
    "0001-01-01T00:00:00+23:59", "1677-01-01T00:00:00", "2555-01-01T00:00:00Z", "9999-12-31T23:59:59.999999-23:59",
]  # fmt: skip


@pytest.mark.parametrize("text", TIMES)
def test_times_are_kept_to_the_letter(text: str):
    found = Reading(
        io.BytesIO(json.dumps({"name": "m", "timestamp": text, "files": {"a": entry(b"", timestamp=text)}}).encode())
    )
    file, _ = list(found.lines())
    assert json.loads(file[0])[2]["timestamp"] == text == found.header["timestamp"]


@pytest.mark.parametrize(
    "text",
    ["2020-01-01_00:00", "2020-01-01t00:00", "2020-01-01-05:00", "2020-01-01505", "2020W01-05", "2020-01-01\n00",
     "2020-01-01T00:00:00." + "0" * 99, "٢٠٢٠-01-01", "2020-13-01", "", 5],
)  # fmt: skip
def test_other_times_are_refused(text: object):
    assert "The manifest: its timestamp" in refusal({"name": "m", "timestamp": text})
    assert "The entry 'a': its timestamp" in refusal({"name": "m", "directories": {"a": {"timestamp": text}}})


@pytest.mark.parametrize("owner", ["", "ann", "x" * 255, 0, (1 << 32) - 2, "4294967294", "0" * 255, "-1", "٣", "²"])
def test_owners_are_names_or_numbers(owner: object):
    assert reading({"name": "m", "files": {"a": entry(b"", user=owner, group=owner)}}).files == 1


@pytest.mark.parametrize(
    "owner", ["x" * 256, "1" * 5000, "4294967295", -1, (1 << 32) - 1, 1 << 64, 1.5, True, None, []]
)
def test_other_owners_are_refused(owner: object):
    for key in ("user", "group"):
        assert f"The entry 'a': its {key}" in refusal({"name": "m", "files": {"a": entry(b"", **{key: owner})}})
