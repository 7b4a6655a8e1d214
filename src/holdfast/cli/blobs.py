"""``holdfast blob``: put, get, ls, rm, and ``bucket``: blobs in buckets on a server."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from holdfast.cli.login import connected, insecure_option, server_option
from holdfast.cli.output import Output, command, printable, progress_bar, size_text
from holdfast.errors import UsageError
from holdfast.settings import size_of

if TYPE_CHECKING:
    from holdfast.remote.blobs import Row

ACTS = ("read", "write", "list", "admin")


@click.group("blob")
def blob() -> None:
    """Put blobs into buckets on a server, get them back, list and delete them.

    The server is the one named, or HOLDFAST_SERVER, or the only one you are logged in to (`holdfast login`). The token
    may also come from HOLDFAST_TOKEN.
    """


@command("put")
@click.argument("file", metavar="FILE")
@click.argument("where", metavar="BUCKET/KEY")
@click.option("--if-new", is_flag=True, help="Fail when there is a blob of that key.")
@server_option
@insecure_option
def put(out: Output, file: str, where: str, if_new: bool, url: str | None, insecure: bool) -> int:
    """Store FILE (`-`: standard input) as a blob, in place of what there was.

    A key that ends in a slash gets the file's name added.
    """
    bucket, key = _where(where, file)
    with connected(out, url, insecure) as server, _opened(file) as (source, size):
        from holdfast.remote import blobs as room

        sent = [0]
        with progress_bar(out, "Sending", lambda: (sent[0], size, printable(key)[-40:])):
            stored = room.put(server, source, bucket, key, only_new=if_new, tell=lambda n: _add(sent, n))
    out.event("summary", bucket=bucket, key=stored.key, size=stored.size, sha1=stored.sha1)
    out.line(f"Stored {printable(bucket)}/{printable(key)}: {size_text(stored.size)}, SHA-1 {stored.sha1}")
    return 0


@command("get")
@click.argument("where", metavar="BUCKET/KEY")
@click.option("-o", "--output", "target", metavar="FILE", help="Where to. [default: the last part of the key]")
@server_option
@insecure_option
def get(out: Output, where: str, target: str | None, url: str | None, insecure: bool) -> int:
    """Bring a blob into a file. It is put in place when all of it came and its SHA-1 is right."""
    bucket, key = _where(where)
    target = target or key.rpartition("/")[2]
    if not target or "\0" in target:
        raise UsageError("The key ends in a slash: say where to.", "Give a file's name with -o.")
    with connected(out, url, insecure) as server:
        from holdfast.remote import blobs as room

        came = [0]
        with progress_bar(out, "Receiving", lambda: (came[0], 0, printable(key)[-40:])):
            size = room.get(server, bucket, key, target, lambda n: _add(came, n))
    out.event("summary", bucket=bucket, key=key, size=size, target=target)
    out.line(f"Got {printable(where)}, {size_text(size)}, as {printable(target)}")
    return 0


@command("ls")
@click.argument("where", metavar="[BUCKET[/PREFIX]]", default="")
@click.option("--sort", type=click.Choice(["+key", "-key", "+lastModified", "-lastModified"]), default="+key")
@click.option("--limit", type=click.IntRange(0), metavar="N", help="So many at most.")
@click.option("-d", "--delimiter", default="", metavar="TEXT", help="Show once what keys have in common up to TEXT.")
@server_option
@insecure_option
def ls(out: Output, where: str, url: str | None, insecure: bool, **options: Any) -> int:
    """List blobs, or without an argument the buckets."""
    with connected(out, url, insecure) as server:
        from holdfast.remote import blobs as room

        bucket, _, prefix = where.partition("/")
        if not bucket:
            _tell_buckets(out, room.buckets(server))
            return 0
        _tell_rows(out, room.listed(server, bucket, prefix=prefix, **options))
    return 0


@command("rm")
@click.argument("where", metavar="BUCKET/KEY...", nargs=-1, required=True)
@click.option("-n", "--dry-run", is_flag=True, help="Delete nothing; say what would be.")
@server_option
@insecure_option
def rm(out: Output, where: tuple[str, ...], dry_run: bool, url: str | None, insecure: bool) -> int:
    """Delete blobs."""
    chosen = [_where(one) for one in where]
    with connected(out, url, insecure) as server:
        from holdfast.remote import blobs as room

        for bucket, key in chosen:
            if not dry_run:
                room.delete(server, bucket, key)
            out.event("change", action="deleted", bucket=bucket, key=key, dry_run=dry_run)
            out.line(f"{'Would delete' if dry_run else 'Deleted'} {printable(bucket)}/{printable(key)}")
    out.event("summary", deleted=0 if dry_run else len(chosen), dry_run=dry_run)
    return 0


# -- buckets -----------------------------------------------------------------------------------------------------------


@click.group("bucket")
def bucket() -> None:
    """Make, share and delete buckets; back them up and restore them."""


@command("make")
@click.argument("name", metavar="BUCKET")
@click.option("--filesystem", type=click.Choice(["disk", "object", "repository"]), help="Where its blobs lie.")
@click.option("--quota", metavar="SIZE", help="So much at most, like 10G.")
@click.option("--quota-objects", type=click.IntRange(0), metavar="N", help="So many blobs at most.")
@click.option("--owner", metavar="EMAIL", help="For administrators: whose it is to be.")
@server_option
@insecure_option
def make(out: Output, name: str, url: str | None, insecure: bool, **options: Any) -> int:
    """Make a bucket."""
    limit = None if options["quota"] is None else size_of(options["quota"])
    policy: dict[str, Any] = {"quota": {"bytes": limit, "objects": options["quota_objects"]}}
    if options["filesystem"]:
        policy["filesystem"] = options["filesystem"]
    if options["owner"]:
        policy["owner"] = {"email": {"Address": options["owner"]}}
    with connected(out, url, insecure) as server:
        from holdfast.remote import blobs as room

        made = room.make_bucket(server, name, policy)
    out.event("summary", **made)
    out.line(f"Made the bucket {printable(name)}.")
    return 0


@command("rm")
@click.argument("name", metavar="BUCKET")
@server_option
@insecure_option
def remove(out: Output, name: str, url: str | None, insecure: bool) -> int:
    """Delete a bucket that is empty."""
    with connected(out, url, insecure) as server:
        from holdfast.remote import blobs as room

        room.delete_bucket(server, name)
    out.event("summary", bucket=name)
    out.line(f"Deleted the bucket {printable(name)}.")
    return 0


@command("grant")
@click.argument("name", metavar="BUCKET")
@click.argument("who", metavar="[ACCOUNT=ACT,ACT...]...", nargs=-1)
@server_option
@insecure_option
def grant(out: Output, name: str, who: tuple[str, ...], url: str | None, insecure: bool) -> int:
    """Let others use a bucket (read, write, list, admin); `*=read` is everyone, `ann=` ends what ann may.

    Without accounts it lists who may what.
    """
    with connected(out, url, insecure) as server:
        from holdfast.remote import blobs as room

        found = room.grants(server, name)
        if who:
            found = room.put_grants(server, name, {**found, **dict(_granted(one) for one in who)})
    if out.as_json:
        out.document({"bucket": name, "grants": found})
    for account, acts in found.items():
        out.line(f"{printable(account)}: {', '.join(acts)}")
    return 0


@command("backup")
@click.argument("name", metavar="BUCKET")
@server_option
@insecure_option
def back_up(out: Output, name: str, url: str | None, insecure: bool) -> int:
    """Make a snapshot of everything in a bucket, in the server's repository."""
    with connected(out, url, insecure) as server:
        from holdfast.remote import blobs as room

        done = room.make_snapshot(server, name)
    out.event("summary", **done)
    shown = f"{done.get('objects')} blobs, {size_text(done.get('bytes') or 0)}"
    out.line(f"Snapshot {printable(str(done.get('snapshot'))[:8])} of {printable(name)}: {shown}")
    return 0


@command("snapshots")
@click.argument("name", metavar="BUCKET")
@server_option
@insecure_option
def list_snapshots(out: Output, name: str, url: str | None, insecure: bool) -> int:
    """List the snapshots of a bucket."""
    with connected(out, url, insecure) as server:
        from holdfast.remote import blobs as room

        found = room.snapshots(server, name)
    if out.as_json:
        out.document(found)
    for one in found:
        when = printable(str(one.get("time")))[:19].replace("T", " ")
        shown = printable(str(one.get("snapshot")))[:8]
        out.line(f"{shown}  {when}  {one.get('objects'):10}  {size_text(one.get('bytes') or 0)}")
    return 0


@command("restore")
@click.argument("name", metavar="BUCKET")
@click.argument("snapshot", metavar="SNAPSHOT", default="latest")
@server_option
@insecure_option
def restore(out: Output, name: str, snapshot: str, url: str | None, insecure: bool) -> int:
    """Put every blob of a bucket's snapshot (an id's beginning, or `latest`) again; other blobs stay."""
    with connected(out, url, insecure) as server:
        from holdfast.remote import blobs as room

        done = room.restore(server, name, snapshot)
    out.event("summary", **done)
    shown = f"{done.get('objects')} blobs put again, {size_text(done.get('bytes') or 0)}"
    out.line(f"Restored {printable(name)}: {shown}, {done.get('unchanged')} were the same")
    return 0


for _one in (put, get, ls, rm, bucket):
    blob.add_command(_one)
for _one in (make, remove, grant, back_up, list_snapshots, restore):
    bucket.add_command(_one)


# -- what they share ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file and its size, 0 where nobody knows."""
    if name == "-":
        yield sys.stdin.buffer, 0
        return
    try:
        source = open(name, "rb")  # noqa: SIM115 - closed below
    except OSError as e:
        raise UsageError(f"The file {printable(name)} cannot be read: {e.strerror}.") from None
    with source:
        size = source.seek(0, 2) if source.seekable() else 0
        if source.seekable():
            source.seek(0)
        yield source, size


def _where(text: str, file: str = "") -> tuple[str, str]:
    """Bucket and key. A key that ends in a slash, or is left out, gets the file's name."""
    name, _, key = text.partition("/")
    if file and file != "-" and (not key or key.endswith("/")):
        key += file.rpartition("/")[2]
    if not name or not key:
        raise UsageError(f"{printable(text)!r} names no blob.", "Give BUCKET/KEY.")
    return name, key


def _add(count: list[int], more: int) -> None:
    count[0] += more


def _granted(text: str) -> tuple[str, list[str]]:
    account, equals, acts = text.partition("=")
    given = [act for act in acts.split(",") if act]
    if not account or not equals or any(act not in ACTS for act in given):
        raise UsageError(f"{printable(text)!r} grants nothing.", f"Write ACCOUNT=ACT,ACT with {', '.join(ACTS)}.")
    return account, given


def _tell_buckets(out: Output, found: list[dict[str, Any]]) -> None:
    if out.as_json:
        out.document(found)
    for one in found:
        email = one.get("owner", {}).get("email", {})
        address = f" <{email.get('Address')}>" if email.get("Address") else ""
        out.line(printable(f"{one.get('name')}  {email.get('Name')}{address}"))


def _tell_rows(out: Output, rows: Iterator[Row]) -> None:
    """One line for each; with --json one document."""
    if out.as_json:
        out.document([row.json if row.size is not None else {"prefix": row.key} for row in rows])
        return
    for row in rows:
        if row.size is None:
            out.line(f"{'':10}  {'':19}  {printable(row.key)}")
        else:
            when = printable(row.modified)[:19].replace("T", " ")
            out.line(f"{size_text(row.size):>10}  {when}  {printable(row.key)}")
