"""The ``holdfast`` command: global options, lazily loaded commands, one place where errors become exit codes.

Nothing heavy is imported before it is known which command runs: ``--version`` and completion answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

from holdfast import __version__
from holdfast.cli.commands import COMMANDS, load_command

_EPILOG = (
    "Exit status: 0 good, 1 failed, 2 usage, 3 incomplete, 10 no repository, 11 busy, 12 wrong key, 130 interrupted."
)


class Commands(click.Group):
    """Loads a command's module when it is needed, and shows help without loading any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


@click.group(
    cls=Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="holdfast", message="%(prog)s %(version)s")
@click.option(
    "-r",
    "--repo",
    "repository",
    multiple=True,
    metavar="PLACE",
    help="The repository: a folder, s3:…, @PROFILE, … (HOLDFAST_REPOSITORY); several for backup.",
)
@click.option("--password-file", metavar="FILE", help="A file whose first line is the password.")
@click.option("--password-command", metavar="COMMAND", help="A program whose first line of output is the password.")
@click.option("--key-file", metavar="FILE", help="A key file, or a recovery sheet.")
@click.option("--profile", metavar="NAME", help="A profile of holdfast.toml.")
@click.option("--config", metavar="FILE", help="Another holdfast.toml.")
@click.option("--limit-upload", metavar="SIZE", help="Send at most so much a second (500K, 5M).")
@click.option("--limit-download", metavar="SIZE", help="Get at most so much a second.")
@click.option("--no-cache", is_flag=True, help="Keep nothing of a storage far away on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and what was asked for.")
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """Back up, browse, restore and verify. With no repository named, one in your data folder is used."""
    ctx.obj = options


def main() -> NoReturn:
    """Run the command line and exit as ``errors`` says."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    args = sys.argv[1:]
    as_json = "--json" in args
    try:
        status = cli.main(args=args, prog_name="holdfast", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as e:
        _say(e.format_message(), _usage_hint(e), "usage", as_json)
        status = 2
    except click.Abort:
        status = _interrupted(as_json)
    except KeyboardInterrupt:
        status = _interrupted(as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read our output has seen enough
        status = 1
    except Exception as e:  # noqa: BLE001 - the one edge where errors become text
        status = _failed(e, as_json)
    sys.exit(status if isinstance(status, int) else 0)


def _failed(error: Exception, as_json: bool) -> int:
    from holdfast.errors import HoldfastError

    if isinstance(error, HoldfastError):
        _say(str(error), error.hint, error.code, as_json)
        return error.exit_status
    from holdfast.settings import debug

    if debug():
        raise error
    if isinstance(error, OSError) and error.errno:
        name = f"{error.filename!s}: " if error.filename else ""
        _say(f"{name}{os.strerror(error.errno)}.", "", "system", as_json)
        return 1
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    line = f" (at {os.path.basename(where.tb_frame.f_code.co_filename)}:{where.tb_lineno})" if where else ""
    _say(
        f"This is a fault in Holdfast: {type(error).__name__}{line}.",
        "Set HOLDFAST_DEBUG=1 to see all of it.",
        "bug",
        as_json,
    )
    return 1


def _interrupted(as_json: bool) -> int:
    _say("Interrupted.", "What was stored by now is kept, and the next backup finds it.", "interrupted", as_json)
    return 130


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _usage_hint(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    return f"`{ctx.command_path} --help` tells more." if ctx else ""


def _say(sentence: str, hint: str, code: str, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps({"message_type": "error", "code": code, "message": sentence, "hint": hint}), file=sys.stderr)
        return
    print(f"holdfast: {sentence}" + (f"\n  {hint}" if hint else ""), file=sys.stderr)
