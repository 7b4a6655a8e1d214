"""``holdfast snapshots``, ``ls``, ``find``, ``diff``, ``stats``, ``tag``."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from holdfast.archive import diff as changes
from holdfast.archive.attributes import TYPE_OF
from holdfast.archive.listing import Listed, listing, need_entry
from holdfast.archive.search import Matches, Search, name_matcher
from holdfast.archive.tagging import retag
from holdfast.cli.output import (
    Output,
    command,
    filter_options,
    given_tags,
    make_filter,
    printable,
    size_text,
    time_json,
    time_text,
)
from holdfast.cli.restoring import find_snapshot
from holdfast.errors import UsageError
from holdfast.repository.format import Entry
from holdfast.repository.pages import Tree
from holdfast.repository.snapshots import Stored, choose

if TYPE_CHECKING:
    from holdfast.archive.stats import Stats, Stock


@command("snapshots")
@filter_options
def snapshots(out: Output, **options: Any) -> int:
    """List snapshots, oldest first."""
    wanted = make_filter(options["hosts"], options["paths"], options["tags"])
    damaged: list[str] = []
    found = [s for s in out.open().snapshots(damaged) if wanted.matches(s.snapshot)]
    if out.as_json:
        out.document([snapshot_json(s) for s in found])
    else:
        _table(out, found)
    for sentence in damaged:
        click.echo(f"holdfast: {sentence}", err=True)
    return 1 if damaged else 0


def snapshot_json(stored: Stored) -> dict[str, Any]:
    """A snapshot for programs."""
    s = stored.snapshot
    return {
        "id": stored.id,
        "short_id": stored.short,
        "time": time_json(s.time_ns),
        "host": s.host,
        "user": s.user,
        "base": os.fsdecode(s.base),
        "paths": [os.fsdecode(p) for p in s.paths],
        "tags": s.tags,
        "parent": s.parent or None,
        "files": s.totals.files,
        "bytes": s.totals.bytes_total,
        "program": s.program,
    }


def _table(out: Output, found: list[Stored]) -> None:
    rows = [("ID", "Time", "Host", "Tags", "Files", "Size", "Paths")]
    for s in found:
        t = s.snapshot
        rows.append(
            (
                s.short,
                time_text(t.time_ns),
                printable(t.host),
                printable(",".join(t.tags)),
                str(t.totals.files),
                size_text(t.totals.bytes_total),
                " ".join(printable(p) for p in t.paths),
            )
        )
    widths = [max(len(r[i]) for r in rows) for i in range(6)]
    for row in rows:
        out.line(
            "  ".join(
                c.rjust(w) if i in (4, 5) else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=False))
            )
            + "  "
            + row[6]
        )
    out.line(f"{len(found)} snapshots")


@command("ls")
@click.argument("snapshot")
@click.option("-l", "--long", "long", is_flag=True, help="Also mode, owner, size and time.")
@click.option("--recursive/--no-recursive", default=True, show_default=True, help="Folders inside folders too.")
@filter_options
def ls(out: Output, snapshot: str, long: bool, recursive: bool, **options: Any) -> int:
    """List what SNAPSHOT (`latest` or the beginning of an id), or `SNAPSHOT:sub/folder`, holds.

    Paths are relative to the snapshot's base.
    """
    repo = out.open()
    chosen, within = find_snapshot(out, repo, snapshot, options["hosts"], options["paths"], options["tags"])
    tree = Tree(repo.reader().read, chosen.snapshot.root)
    top = need_entry(tree, within)
    found = listing(tree, within, recursive=recursive) if top.entry.kind == "d" else iter([top])
    if out.as_json:
        _json_list(entry_json(item) for item in found)
    else:
        _lines(map(long_line if long else _path_line, found))
    return 0


_TYPES = {"f": "file", "d": "dir", "l": "symlink", "p": "fifo", "s": "socket", "b": "dev", "c": "chardev"}


def entry_json(item: Listed) -> dict[str, Any]:
    """An entry for programs. Bytes of a path that are no text are kept as lone surrogates (PEP 383)."""
    entry = item.entry
    result: dict[str, Any] = {
        "path": os.fsdecode(item.path),
        "type": _TYPES.get(entry.kind, "unknown"),
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "user": item.user,
        "group": item.group,
        "size": entry.size,
        "mtime": time_json(entry.mtime_ns),
    }
    if entry.kind == "l":
        result["target"] = os.fsdecode(entry.target)
    if entry.kind in "bc":
        result["device"] = [os.major(entry.device), os.minor(entry.device)]
    return result


def _path_line(item: Listed) -> str:
    return printable(item.path)


def long_line(item: Listed) -> str:
    """An entry as `ls -l` shows it."""
    entry = item.entry
    target = f" -> {printable(entry.target)}" if entry.kind == "l" else ""
    size = f"{os.major(entry.device)},{os.minor(entry.device)}" if entry.kind in "bc" else str(entry.size)
    mode = stat.filemode(TYPE_OF.get(entry.kind, 0) | entry.mode)
    user, group = printable(item.user) or str(entry.uid), printable(item.group) or str(entry.gid)
    return f"{mode} {user:8} {group:8} {size:>12} {time_text(entry.mtime_ns)} {printable(item.path)}{target}"


def _lines(lines: Iterable[str]) -> int:
    """Print lines, many at a time as a snapshot can have millions; how many there were."""
    waiting, count = iter(lines), 0
    while batch := list(itertools.islice(waiting, 1000)):
        click.echo("\n".join(batch))
        count += len(batch)
    return count


def _json_list(items: Iterable[dict[str, Any]]) -> None:
    """One JSON document, an array, written as it is made."""
    encode, first = json.JSONEncoder(ensure_ascii=True).encode, True
    for item in items:
        click.echo(("[" if first else ",\n") + encode(item), nl=False)
        first = False
    click.echo("[]" if first else "]")


@command("find")
@click.argument("patterns", nargs=-1, required=True, metavar="PATTERN...")
@click.option("-s", "--snapshot", "snapshots", multiple=True, metavar="ID", help="Only in this snapshot (repeatable).")
@click.option("-i", "--ignore-case", is_flag=True, help="Capital and small letters are the same.")
@click.option("--type", "kind", type=click.Choice(["f", "d", "l", "p", "s", "b", "c"]), help="Only of this kind.")
@click.option("--newer", metavar="TIME", help="Only changed at TIME or later (2024-05-31, `2024-05-31 12:00`, 7d).")
@click.option("--older", metavar="TIME", help="Only changed before TIME.")
@click.option("-l", "--long", "long", is_flag=True, help="Also mode, owner, size and time.")
@filter_options
def find(out: Output, patterns: tuple[str, ...], **options: Any) -> int:
    """Find entries in all snapshots by name, or by path where PATTERN has a slash. * ? [abc] and ** as in a shell."""
    repo = out.open()
    wanted = make_filter(options["hosts"], options["paths"], options["tags"])
    chosen = [s for s in out.snapshots(repo) if wanted.matches(s.snapshot)]
    if options["snapshots"]:
        named = {choose(chosen, name).id for name in options["snapshots"]}
        chosen = [s for s in chosen if s.id in named]
    search, reader = Search(_matcher(out, patterns, options)), repo.reader()
    if out.as_json:
        _json_list(_found_json(s, search, Tree(reader.read, s.snapshot.root)) for s in chosen)
        return 0
    total = 0
    for stored in chosen:
        found = search.run(Tree(reader.read, stored.snapshot.root))
        first = next(found, None)
        if first is None:
            continue
        out.line(f"In snapshot {stored.short} of {time_text(stored.snapshot.time_ns)}:")
        show = long_line if options["long"] else _path_line
        total += _lines("  " + show(item) for item in itertools.chain([first], found))
    out.note(f"{total} found in {len(chosen)} snapshots.")
    return 0


def _found_json(stored: Stored, search: Search, tree: Tree) -> dict[str, Any]:
    matches = [entry_json(item) for item in search.run(tree)]
    return {"snapshot": stored.id, "hits": len(matches), "matches": matches}


def _matcher(out: Output, patterns: tuple[str, ...], options: dict[str, Any]) -> Matches:
    named = name_matcher(patterns, ignore_case=options["ignore_case"])
    kind, now = options["kind"], out.app.now_ns()
    newer = parse_time(options["newer"], now) if options["newer"] else None
    older = parse_time(options["older"], now) if options["older"] else None

    def matches(directory: bytes, entry: Entry) -> bool:
        return (
            named(directory, entry)
            and (kind is None or entry.kind == kind)
            and (newer is None or entry.mtime_ns >= newer)
            and (older is None or entry.mtime_ns < older)
        )

    return matches


_AGES = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}


def parse_time(text: str, now_ns: int) -> int:
    """A time in ns: ISO 8601 (the user's own zone where it names none), or an age like 90m, 12h, 7d, 2w, 1y."""
    number, unit = text[:-1], text[-1:]
    if number.isdigit() and unit in _AGES:
        return now_ns - int(number) * _AGES[unit] * 1_000_000_000
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{text!r} is not a time: write 2024-05-31, `2024-05-31 12:00`, or an age like 7d.") from None
    return int(moment.astimezone().timestamp() * 1_000_000_000)


@command("diff")
@click.argument("before", metavar="SNAPSHOT")
@click.argument("after", metavar="SNAPSHOT")
@click.option("--metadata", is_flag=True, help="Also show where only mode, owner, time or attributes changed (U).")
@filter_options
def diff(out: Output, before: str, after: str, metadata: bool, **options: Any) -> int:
    """Show what changed from the first SNAPSHOT to the second; either may be `SNAPSHOT:sub/folder`.

    + added, - removed, M content modified, T another type, U only metadata changed (with --metadata).
    """
    repo = out.open()
    filters = options["hosts"], options["paths"], options["tags"]
    old, new = find_snapshot(out, repo, before, *filters), find_snapshot(out, repo, after, *filters)
    reader, summary = repo.reader(), changes.Summary()
    sides = [changes.Side(Tree(reader.read, stored.snapshot.root), within) for stored, within in (old, new)]

    def lines() -> Iterator[str]:
        for change in changes.diff(sides[0], sides[1], metadata=metadata):
            summary.count(change, reader)
            entry = change.new or change.old
            slash = "/" if entry and entry.kind == "d" else ""
            if out.as_json:
                fields = {"path": os.fsdecode(change.path) + slash, "modifier": change.what}
                yield json.dumps({"message_type": "change", **fields})
            else:
                yield f"{change.what}    {printable(change.path) or '.'}{slash}"

    _lines(lines())
    _tell_diff(out, old[0], new[0], summary)
    return 0


def _tell_diff(out: Output, old: Stored, new: Stored, summary: changes.Summary) -> None:
    flows = {"added": summary.added, "removed": summary.removed}
    out.event(
        "summary",
        source_snapshot=old.id,
        target_snapshot=new.id,
        changed_files=summary.changed,
        changed_metadata=summary.attributes,
        changed_types=summary.types,
        **{
            name: {"files": f.files, "dirs": f.folders, "others": f.others, "bytes": f.bytes}
            for name, f in flows.items()
        },
    )
    out.line()
    for name, f in flows.items():
        out.line(
            f"{name.capitalize() + ':':9}{f.files} files, {f.folders} folders, {f.others} others, {size_text(f.bytes)}"
        )
    out.line(f"Changed: {summary.changed} content, {summary.types} type, {summary.attributes} only metadata")


_MODES = ["restore-size", "raw-data", "files-by-contents"]


@command("stats")
@click.argument("snapshots", nargs=-1, metavar="[SNAPSHOT...]")
@click.option("--mode", type=click.Choice(_MODES), default=_MODES[0], show_default=True, help="What to count.")
@filter_options
def stats(out: Output, snapshots: tuple[str, ...], mode: str, **options: Any) -> int:
    """Show the size of snapshots (all, or those named or filtered), and of the repository.

    restore-size: what restoring each of them would make. raw-data: the chunks they need, each once, and the space they
    take. files-by-contents: files that differ in content, each once.
    """
    from holdfast.archive.stats import Stats

    repo = out.open()
    wanted = make_filter(options["hosts"], options["paths"], options["tags"])
    chosen = [s for s in out.snapshots(repo) if wanted.matches(s.snapshot)]
    if snapshots:
        named = {choose(chosen, name).id for name in snapshots}
        chosen = [s for s in chosen if s.id in named]
    count = Stats(repo)
    sizes, text = _sizes(count, mode, [s.snapshot.root for s in chosen])
    stock = count.stock()
    if out.as_json:
        out.document({"mode": mode, "snapshots": len(chosen), **sizes, "repository": _stock_json(stock)})
        return 0
    out.line(f"{len(chosen)} snapshots ({mode}): {text}")
    out.line(
        f"Repository: {stock.packs} packs, {size_text(stock.stored)} ({size_text(stock.tree_stored)} for folders), "
        f"index {size_text(stock.index_stored)}; {stock.chunks} chunks, {size_text(stock.raw)} ({stock.ratio:.2f} x)"
    )
    if sizes.get("chunks_missing"):
        out.warn(f"{sizes['chunks_missing']} chunks are in no pack; `holdfast check` says which files that means")
    return 0


def _sizes(count: Stats, mode: str, roots: list[bytes]) -> tuple[dict[str, Any], str]:
    """What was asked for, for programs and as text."""
    if mode == "raw-data":
        raw = count.raw_data(roots)
        return {
            "chunks": raw.chunks,
            "bytes": raw.raw,
            "bytes_stored": raw.stored,
            "compression_ratio": round(raw.ratio, 3),
            "chunks_missing": raw.missing,
        }, f"{raw.chunks} chunks, {size_text(raw.raw)}, stored as {size_text(raw.stored)} ({raw.ratio:.2f} x)"
    if mode == "files-by-contents":
        found = count.files_by_contents(roots)
        return {"files": found.files, "bytes": found.bytes}, f"{found.files} files, {size_text(found.bytes)}"
    found = count.restore_size(roots)
    return {
        "files": found.files,
        "dirs": found.folders,
        "others": found.others,
        "bytes": found.bytes,
    }, f"{size_text(found.bytes)} in {found.files} files, {found.folders} folders, {found.others} others"


def _stock_json(stock: Stock) -> dict[str, Any]:
    return {
        "packs": stock.packs,
        "chunks": stock.chunks,
        "bytes": stock.raw,
        "bytes_stored": stock.stored,
        "bytes_stored_trees": stock.tree_stored,
        "compression_ratio": round(stock.ratio, 3),
        "index_objects": stock.index_objects,
        "index_bytes": stock.index_stored,
    }


@command("tag")
@click.argument("snapshots", nargs=-1, required=True, metavar="SNAPSHOT...")
@click.option("--add", "added", multiple=True, metavar="TAG[,TAG]", help="Give these tags.")
@click.option("--remove", "removed", multiple=True, metavar="TAG[,TAG]", help="Take these away.")
@click.option("--set", "new", multiple=True, metavar="TAG[,TAG]", help="Exactly these; '' for none.")
@filter_options
def tag(out: Output, snapshots: tuple[str, ...], **options: Any) -> int:
    """Change the tags of SNAPSHOT... (`latest` or the beginnings of ids). A changed snapshot has a new id."""
    added, removed, new = (given_tags(options[name]) for name in ("added", "removed", "new"))
    if not (options["added"] or options["removed"] or options["new"]):
        raise UsageError("Say what to do with the tags: --add, --remove or --set.")
    if options["new"] and (options["added"] or options["removed"]):
        raise UsageError("--set replaces all tags; it does not go with --add or --remove.")
    repo = out.open()
    wanted = make_filter(options["hosts"], options["paths"], options["tags"])
    changed = 0
    with repo.leases.hold("tag"):  # prune must not look while a snapshot has neither its old nor its new name
        all_of_them = [s for s in out.snapshots(repo) if wanted.matches(s.snapshot)]
        chosen = {s.id: s for s in (choose(all_of_them, name) for name in snapshots)}
        for stored in chosen.values():
            kept = new if options["new"] else [t for t in stored.snapshot.tags if t not in removed]
            tags = kept + [t for t in added if t not in kept]
            if tags == stored.snapshot.tags:
                continue
            new_id = retag(repo, stored, tags)
            changed += 1
            out.event("changed", old_snapshot_id=stored.id, new_snapshot_id=new_id, tags=tags)
            out.line(f"{stored.short} is now {new_id[:8]}, tagged {printable(', '.join(tags)) or 'with nothing'}")
    out.event("summary", changed_snapshots=changed)
    out.line(f"Changed {changed} snapshots.")
    return 0
