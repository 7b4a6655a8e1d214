"""Which command lives in which module, and its one-line help: everything ``--help`` and completion need."""

from __future__ import annotations

from importlib import import_module

import click

# name -> (module and function, help)
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("keeping:init", "Make a new repository."),
    "backup": ("backing:backup", "Back files and folders up into a new snapshot."),
    "snapshots": ("browsing:snapshots", "List snapshots."),
    "ls": ("browsing:ls", "List what a snapshot holds."),
    "find": ("browsing:find", "Find files by name in all snapshots."),
    "diff": ("browsing:diff", "Show what changed between two snapshots."),
    "restore": ("restoring:restore", "Bring files back."),
    "dump": ("reading:dump", "Write one file, or a folder as tar, to standard output."),
    "mount": ("reading:mount", "Mount the repository to browse it (FUSE)."),
    "forget": ("pruning:forget", "Remove snapshots by rules."),
    "prune": ("pruning:prune", "Free the space that no snapshot needs."),
    "check": ("checking:check", "Verify the repository."),
    "repair": ("checking:repair", "Mend the index, snapshots and packs as far as can be."),
    "stats": ("browsing:stats", "Show sizes."),
    "copy": ("keeping:copy", "Copy snapshots to another repository."),
    "key": ("keys:key", "List, add, remove, change and export keys."),
    "tag": ("browsing:tag", "Change the tags of snapshots."),
    "serve": ("serving:serve", "Run the server: backups over HTTP."),
    "login": ("login:login", "Log in to a server, with a browser anywhere."),
    "logout": ("login:logout", "End the log-in to a server."),
    "manifest": ("manifests:manifest", "Push folders to a server, and pull them back."),
    "blob": ("blobs:blob", "Keep blobs in buckets on a server."),
    "share": ("sharing:share", "Share a file by a link that counts once."),
    "bench-storage": ("storages:bench_storage", "Measure how quick a storage is."),
    "self-test": ("checking:self_test", "Back up, verify and restore a small tree on this machine."),
    "completion": ("checking:completion", "Print a shell's completion script."),
}


def load_command(name: str) -> click.Command | None:
    """Import the module of a command and give the command."""
    found = COMMANDS.get(name)
    if found is None:
        return None
    module, function = found[0].split(":")
    command = getattr(import_module(f"holdfast.cli.{module}"), function)
    assert isinstance(command, click.Command)
    return command
