"""Finding entries in many snapshots. A page is read and matched once, however many snapshots share it: equal pages
have equal results.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence

from holdfast.archive.listing import Listed, listed
from holdfast.errors import UsageError
from holdfast.repository.format import Entry, Leaf
from holdfast.repository.pages import Tree, join

MOST_KEPT = 100_000  # matches kept for the next snapshot; pages whose matches are too many are read again

Matches = Callable[[bytes, Entry], bool]


class Search:
    """Looks for what ``matches`` (a directory and an entry in it), in one snapshot after the other."""

    def __init__(self, matches: Matches) -> None:
        self._matches = matches
        self._leaves: dict[bytes, list[Listed]] = {}
        self._nodes: dict[bytes, list[bytes]] = {}  # only the pages below that hold matches
        self._kept = 0

    def run(self, tree: Tree) -> Iterator[Listed]:
        """The snapshot's matching entries, in order."""
        return self._page(tree, tree.root)

    def _page(self, tree: Tree, page: bytes) -> Iterator[Listed]:
        known = self._leaves.get(page)
        if known is not None:
            yield from known
            return
        below = self._nodes.get(page)
        if below is None:
            content = tree.page(page)
            if isinstance(content, Leaf):
                yield from self._leaf(page, content)
                return
            below = [child.page for child in content.children]
        fruitful = []
        for child in below:
            any_found = False
            for match in self._page(tree, child):
                any_found = True
                yield match
            if any_found:
                fruitful.append(child)
        self._nodes[page] = fruitful

    def _leaf(self, page: bytes, leaf: Leaf) -> list[Listed]:
        matches = self._matches
        found = [
            listed(leaf, directory, e) for directory, entries in leaf.runs for e in entries if matches(directory, e)
        ]
        if self._kept + len(found) <= MOST_KEPT:
            self._kept += len(found)
            self._leaves[page] = found
        return found


def name_matcher(patterns: Sequence[str], *, ignore_case: bool = False) -> Matches:
    """A test by globs. Without a slash a pattern is matched with the name; with one, with the path or its end (from the
    base on when it begins with a slash). ``*`` and ``?`` stop at slashes, ``**`` does not.
    """
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
    by_name = [glob_regex(p) for p in patterns if "/" not in p]
    by_path = [glob_regex(p) for p in patterns if "/" in p]
    name_fits = re.compile("|".join(by_name), flags).fullmatch if by_name else None
    path_fits = re.compile("|".join(by_path), flags).fullmatch if by_path else None

    def matches(directory: bytes, entry: Entry) -> bool:
        if name_fits is not None and name_fits(os.fsdecode(entry.name)):
            return bool(entry.name)
        return path_fits is not None and bool(path_fits(os.fsdecode(join(directory, entry.name)))) and bool(entry.name)

    return matches


def glob_regex(pattern: str) -> str:
    """A glob as a regular expression for a name or a path relative to the base."""
    if not pattern.strip("/"):
        raise UsageError(f"{pattern!r} is no pattern.", "Give a name or a path with * and ? in it.")
    start = "" if pattern.startswith("/") or "/" not in pattern else "(?:.*/)?"
    parts = []
    for part in pattern.strip("/").split("/"):
        parts.append("(?:.*/)?" if part == "**" else _component(part) + "/")
    if parts[-1] == "(?:.*/)?":
        return start + "".join(parts[:-1]) + ".+"
    return start + "".join(parts).removesuffix("/")


def _component(part: str) -> str:
    out, i = "", 0
    while i < len(part):
        sign = part[i]
        i += 1
        if sign == "*":
            stars = len(part[i:]) - len(part[i:].lstrip("*"))
            i += stars
            out += ".*" if stars else "[^/]*"
        elif sign == "?":
            out += "[^/]"
        elif sign == "[" and (end := part.find("]", i + 1 + part[i : i + 1].count("!"))) > 0:
            out += _set(part[i:end])
            i = end + 1
        else:
            out += re.escape(sign)
    return out


def _set(signs: str) -> str:
    """What stands between brackets, as a set of a regular expression; it never holds the slash."""
    negated = signs.startswith("!")
    inner = re.sub(r"([\\\[\]^&~|])", r"\\\1", signs[1:] if negated else signs).replace("--", r"-\-")
    try:
        re.compile(f"[{inner}]")
    except re.error:
        raise UsageError(f"[{signs}] is no set of characters.") from None
    return f"[^/{inner}]" if negated else f"[{inner}]"
