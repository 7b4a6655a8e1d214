"""What commands share: options, the opened repository, output for people and for programs, progress.

For people: text on standard output, progress and warnings on standard error. For programs (``--json``): commands that
list print one JSON document; commands that run print lines with a ``message_type``, the last one ``summary``.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import click

from holdfast import settings
from holdfast.errors import UsageError
from holdfast.repository.repository import Repository
from holdfast.repository.snapshots import INTERNAL, Filter, Stored
from holdfast.wiring import app as wiring
from holdfast.wiring.profiles import settings_at

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Output:
    """Where and how a command speaks, and the way to its repository; to each of ``apps`` where it takes several."""

    apps: list[wiring.App]
    as_json: bool
    quiet: bool

    @property
    def app(self) -> wiring.App:
        return self.apps[0]

    def open(self, *, dry_run: bool = False) -> Repository:
        return self.app.open(dry_run=dry_run)

    def snapshots(self, repo: Repository) -> list[Stored]:
        """Every snapshot that can be read, oldest first; a warning for each that cannot. One bad object, which anybody
        who can write to the storage can plant, must not keep people from the good ones.
        """
        damaged: list[str] = []
        found = repo.snapshots(damaged)
        for sentence in damaged:
            self.warn(sentence)
        return found

    def document(self, content: Any) -> None:
        """The one JSON document of a command that lists."""
        click.echo(json.dumps(content, indent=None, ensure_ascii=True))

    def event(self, message_type: str, **fields: Any) -> None:
        """A JSON line of a command that runs."""
        if self.as_json:
            click.echo(json.dumps({"message_type": message_type, **fields}))

    def line(self, text: str = "") -> None:
        """A line of the result, for people."""
        if not self.as_json:
            click.echo(text)

    def note(self, text: str) -> None:
        """Something a person may like to know; on standard error, silenced by --quiet."""
        if not self.as_json and not self.quiet:
            click.echo(text, err=True)

    def warn(self, text: str) -> None:
        """Something that went wrong without ending the command."""
        if self.as_json:
            click.echo(json.dumps({"message_type": "warning", "message": text}))
        else:
            click.echo(f"holdfast: {text}", err=True)

    @property
    def shows_progress(self) -> bool:
        return sys.stderr.isatty() and not self.as_json and not self.quiet


def command(name: str, *, several: bool = False, **kwargs: Any) -> Callable[[F], click.Command]:
    """A click command whose function gets an Output first; it also takes the global options. ``several``: it works on
    all the repositories that are named, not only on one.
    """

    def decorate(function: F) -> click.Command:
        @wraps(function)
        @click.pass_context
        def run(ctx: click.Context, /, **options: Any) -> Any:
            return ctx.invoke(function, make_output(ctx, options, several=several), **options)

        made: Any = run  # click's decorators are typed more loosely than this module
        for option in reversed(_GLOBAL):
            made = option(made)
        result: click.Command = click.command(name, cls=click.Command, **kwargs)(made)
        return result

    return decorate


_GLOBAL = [
    click.option("-r", "--repo", "g_repository", multiple=True, hidden=True),
    click.option("--password-file", "g_password_file", hidden=True),
    click.option("--password-command", "g_password_command", hidden=True),
    click.option("--key-file", "g_key_file", hidden=True),
    click.option("--profile", "g_profile", hidden=True),
    click.option("--config", "g_config", hidden=True),
    click.option("--limit-upload", "g_limit_upload", hidden=True),
    click.option("--limit-download", "g_limit_download", hidden=True),
    click.option("--no-cache", "g_no_cache", is_flag=True, hidden=True),
    click.option("--json", "g_as_json", is_flag=True, help="Print JSON for programs."),
    click.option("-q", "--quiet", "g_quiet", is_flag=True, hidden=True),
]


def make_output(ctx: click.Context, options: dict[str, Any], *, several: bool = False) -> Output:
    """Take the global options out of ``options``, wherever on the line they stood, and build the Output."""
    chosen = dict(ctx.find_root().obj or {})
    places = dict.fromkeys(p for p in (*chosen.pop("repository", ()), *options.pop("g_repository", ())) if p)
    if len(places) > 1 and not several:
        raise UsageError(f"{ctx.command_path} works on one repository: give -r once.", "Only backup takes several.")
    for name in [n for n in options if n.startswith("g_")]:
        value = options.pop(name)
        if value:
            chosen[name[2:]] = value
    as_json, quiet = bool(chosen.pop("as_json", False)), bool(chosen.pop("quiet", False))
    given = {k: v for k, v in chosen.items() if v}
    ask = _ask if len(places) < 2 else functools.cache(_ask)  # all of several have the same password

    def tell(text: str) -> None:
        if not as_json and not quiet:
            click.echo(f"holdfast: {text}", err=True)

    found = [settings_at(settings.load(given | {"repository": place}), given) for place in places or [""]]
    return Output([wiring.App(loaded, ask, tell=tell) for loaded in found], as_json, quiet)


def _ask(prompt: str) -> str | None:
    if not sys.stdin.isatty():
        return None
    new = prompt.startswith("New")
    text: str = click.prompt(prompt, hide_input=True, confirmation_prompt=new, err=True)
    return text


def filter_options(function: F) -> F:
    """--host, --path, --tag: which snapshots."""
    made: Any = function
    made = click.option("--tag", "tags", multiple=True, metavar="TAG[,TAG]", help="Only those with all these tags.")(
        made
    )
    made = click.option("--path", "paths", multiple=True, metavar="PATH", help="Only those of this path.")(made)
    result: F = click.option("-H", "--host", "hosts", multiple=True, metavar="HOST", help="Only those of this host.")(
        made
    )
    return result


def given_tags(groups: tuple[str, ...]) -> list[str]:
    """Tags for a snapshot, as options name them. UsageError for one that is the server's own."""
    tags = list(dict.fromkeys(t for group in groups for t in group.split(",") if t))
    if own := [t for t in tags if t.startswith(INTERNAL)]:
        raise UsageError(
            f"The tag {own[0]} is the server's own: lists would leave the snapshot out.", "Choose another."
        )
    return tags


def make_filter(hosts: tuple[str, ...], paths: tuple[str, ...], tags: tuple[str, ...]) -> Filter:
    return Filter(
        hosts=hosts,
        paths=tuple(os.fsencode(os.path.abspath(p)) for p in paths),
        tags=tuple(tuple(t for t in group.split(",") if t) for group in tags),
    )


@contextmanager
def progress_bar(out: Output, what: str, poll: Callable[[], tuple[float, float, str]]) -> Iterator[None]:
    """Show progress while the block runs: ``poll`` gives done, expected (0: unknown) in bytes and a text."""
    if not out.shows_progress:
        with _status_lines(out, poll):
            yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=8) as bar:
        task = bar.add_task(what, total=None, text="")

        def show() -> None:
            done, expected, text = poll()
            bar.update(task, completed=done, total=max(expected, done) if expected else None, text=printable(text))

        with _every(0.125, show):
            yield


@contextmanager
def _status_lines(out: Output, poll: Callable[[], tuple[float, float, str]]) -> Iterator[None]:
    if not out.as_json:
        yield
        return

    def show() -> None:
        done, expected, text = poll()
        out.event("status", bytes_done=int(done), bytes_expected=int(expected), current=printable(text))

    with _every(1.0, show):
        yield


@contextmanager
def _every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(seconds):
            act()

    thread = threading.Thread(target=loop, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# -- how things look ---------------------------------------------------------------------------------------------------


def size_text(size: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def time_text(time_ns: int) -> str:
    """A time for people, in their own zone."""
    return datetime.datetime.fromtimestamp(time_ns / 1e9, datetime.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def time_json(time_ns: int) -> str:
    """A time for programs: RFC 3339, UTC, nanoseconds."""
    whole = datetime.datetime.fromtimestamp(time_ns // 1_000_000_000, datetime.UTC)
    return whole.strftime("%Y-%m-%dT%H:%M:%S") + f".{time_ns % 1_000_000_000:09d}Z"


def printable(path: bytes | str) -> str:
    """A path that can be printed: control signs and bytes that are no text are escaped."""
    text = os.fsdecode(path) if isinstance(path, bytes) else path
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(sign: str) -> str:
    code = ord(sign)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else sign.encode("unicode_escape").decode()
