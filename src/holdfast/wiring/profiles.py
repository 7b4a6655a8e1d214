"""A profile named as a place: ``@NAME`` is the repository of that profile of the settings file.

What the profile says of its repository, its credential and its storage counts there, whatever the environment and the
command line say of others: so several repositories with passwords and log-ins of their own can be named at once. What
it does not say is as for any place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from holdfast.errors import UsageError
from holdfast.settings import Settings, load

SIGN = "@"
_COMMON = ("config", "limit_upload", "limit_download", "no_cache")  # the options that count for every place
_OF_ONE_PLACE = (
    "HOLDFAST_REPOSITORY",
    *("HOLDFAST_PASSWORD", "HOLDFAST_PASSWORD_FILE", "HOLDFAST_PASSWORD_COMMAND", "HOLDFAST_KEY_FILE"),
)


def settings_at(loaded: Settings, options: Mapping[str, str], environment: Mapping[str, str] | None = None) -> Settings:
    """``loaded``, or those of the profile that its repository names. ``options``: the command line's."""
    if not loaded.repository.startswith(SIGN):
        return loaded
    name = loaded.repository.removeprefix(SIGN)
    if not name:
        raise UsageError(f"{SIGN} is no place: write {SIGN}NAME for the repository of a profile.")
    env = {k: v for k, v in (os.environ if environment is None else environment).items() if k not in _OF_ONE_PLACE}
    mine = {k: v for k, v in options.items() if k in _COMMON and v} | {"profile": name}
    found = load(mine, env)
    if not found.repository or found.repository.startswith(SIGN):
        raise UsageError(f"The profile {name!r} of the settings file says no repository's address.")
    alone = load(mine, {k: v for k, v in env.items() if k not in found.storage})  # its own variables, nobody else's
    found = msgspec.structs.replace(found, storage=found.storage | alone.storage)
    if found.has_credential:
        return found
    given = ("password", "password_file", "password_command", "key_file")
    return msgspec.structs.replace(found, **{field: getattr(loaded, field) for field in given})
