"""``holdfast share``: a file for somebody else, by a link that counts once; ``share ls`` and ``share rm``."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from holdfast.cli.login import connected, insecure_option, server_option
from holdfast.cli.output import Output, command, printable, size_text
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.remote.sharing import Row

_MOST_PASSWORD = 1024


class _Share(click.Group):
    """``share FILE`` is ``share send FILE``: that is what it is nearly always called for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["send", *args]
        return super().parse_args(ctx, args)


@click.group("share", cls=_Share, context_settings={"help_option_names": ["-h", "--help"]})
def share() -> None:
    """Share a file by a link that counts once: `holdfast share FILE`.

    The server is the one named, or HOLDFAST_SERVER, or the only one you are logged in to (`holdfast login`). The token
    may also come from HOLDFAST_TOKEN. A file called like a command: `holdfast share send ls`.
    """


@command("send")
@click.argument("file", metavar="FILE")
@click.option("--password", "with_password", is_flag=True, help="Ask for a password (or read a line of input).")
@click.option(
    "--expires", default="", metavar="TIME", help="How long it is kept: 3600, 90m, 1h, 1d, 2w. [default: ever]"
)
@click.option("--downloads", type=click.IntRange(1, 1000), default=1, help="How often it may be had. [default: 1]")
@server_option
@insecure_option
def send(
    out: Output, file: str, with_password: bool, expires: str, downloads: int, url: str | None, insecure: bool
) -> int:
    """Share FILE: print the link, and on a terminal its QR code. It is told this once only."""
    name = os.path.basename(os.path.abspath(file))
    with _opened(file) as source, connected(out, url, insecure) as server:
        from holdfast.remote import sharing as room

        server.who()
        password = _password() if with_password else ""
        fields = {"expires": expires, "downloads": str(downloads), "password": password}
        size = os.fstat(source.fileno()).st_size
        link = printable(room.put(server, source, name, {k: v for k, v in fields.items() if v}))
    out.event("summary", url=link, name=name, size=size, downloads=downloads, expires=expires, password=bool(password))
    out.line(link)
    if sys.stdout.isatty() and not out.as_json and not out.quiet:
        _show_code(out, link)
    often = "once" if downloads == 1 else f"{downloads} times"
    out.note(f"{printable(name)}, {size_text(size)}, can be downloaded {often} by whoever has the link.")
    return 0


@command("ls")
@click.option("--all", "everything", is_flag=True, help="Also those that have ended.")
@server_option
@insecure_option
def ls(out: Output, everything: bool, url: str | None, insecure: bool) -> int:
    """List your shares. Their links are not kept anywhere."""
    with connected(out, url, insecure) as server:
        from holdfast.remote import sharing as room

        found = list(room.listed(server, everything=everything))
    if out.as_json:
        import msgspec

        out.document([msgspec.to_builtins(row) for row in found])
    elif found:
        _tell_rows(out, found)
    else:
        out.line("There are no shares.")
    return 0


@command("rm")
@click.argument("numbers", metavar="NUMBER...", type=click.IntRange(1, (1 << 53) - 1), nargs=-1, required=True)
@server_option
@insecure_option
def rm(out: Output, numbers: tuple[int, ...], url: str | None, insecure: bool) -> int:
    """End shares, by the numbers that `share ls` shows: nobody gets them any more."""
    with connected(out, url, insecure) as server:
        from holdfast.remote import sharing as room

        for number in dict.fromkeys(numbers):
            room.end(server, number)
    out.event("summary", numbers=list(dict.fromkeys(numbers)))
    out.line(f"Ended {', '.join(map(str, dict.fromkeys(numbers)))}.")
    return 0


share.add_command(send)
share.add_command(ls)
share.add_command(rm)


@contextlib.contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"{printable(name)} is a folder: only a file can be shared.", "Make an archive of it.")
    try:
        file = path.open("rb")
    except OSError as e:
        raise UsageError(f"{printable(name)} cannot be read: {e.strerror}.") from None
    with file:
        if not path.is_file():
            raise UsageError(f"{printable(name)} is not a file.")
        yield file


def _password() -> str:
    """Typed twice, or a line of input; never an argument, which every program on this machine could read."""
    if sys.stdin.isatty():
        typed: str = click.prompt("Password for the share", hide_input=True, confirmation_prompt=True, err=True)
    else:
        typed = sys.stdin.readline().rstrip("\r\n")
    if not 1 <= len(typed) <= _MOST_PASSWORD:
        raise UsageError(f"A share's password has 1 to {_MOST_PASSWORD} characters.", "Leave --password out for none.")
    return typed


def _show_code(out: Output, link: str) -> None:
    try:
        import segno
    except ModuleNotFoundError:
        out.note("For a QR code beside it: pip install 'holdfast[qr]'")
        return
    drawn = io.StringIO()
    segno.make(link, micro=False).terminal(drawn, compact=True)
    out.line(drawn.getvalue())


def _tell_rows(out: Output, rows: list[Row]) -> None:
    width = max(4, *(len(printable(row.name)) for row in rows))
    out.line(f"number  {'name':{width}}  {'size':>10}  taken    expires              state")
    for row in rows:
        expires = printable(row.expires or "never")[:19].replace("T", " ")
        state = printable(row.state) + (", with a password" if row.password else "")
        about = f"{size_text(row.size):>10}  {f'{row.taken}/{row.downloads}':7}  {expires:19}  {state}"
        out.line(f"{row.number:6}  {printable(row.name):{width}}  {about}")
