"""Settings: ``holdfast.toml`` and the environment, read here and nowhere else, given on as typed values.

The command line's options win over the environment, the environment over the profile, the profile over the defaults.
A file looks like this; every key is optional, an unknown one is an error that names it::

    [profile.default]
    repository = "/mnt/disk/backup"
    password_file = "/etc/holdfast/password"
    level = 3
    exclude = ["*.tmp", "cache/"]

    [profile.offsite]
    repository = "s3://s3.example.org/backups/laptop"

    [profile.offsite.storage]
    AWS_ACCESS_KEY_ID = "AKIA…"
    AWS_SECRET_ACCESS_KEY = "…"

    [server]
    host = "0.0.0.0"
    port = 8000
    data = "/srv/holdfast"
    database = "postgresql://holdfast@db/holdfast"

    [oidc]
    issuer = "https://login.example.org"
    client_id = "holdfast"
    client_secret_file = "/etc/holdfast/oidc-secret"
    admit = "existing"

    [blobs]
    filesystem = "disk"
    origins = ["https://app.example.org"]

    [shares]
    most_bytes = 16777216
    redis = "unix:///run/redis/redis.sock"

What stands under ``[server]`` can also be given as ``HOLDFAST_SERVER__HOST`` and so on, and likewise for ``[oidc]``,
``[blobs]`` and ``[shares]``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from holdfast.errors import UsageError

NAME = "holdfast"
# Where the variables of storages begin; SSL_CERT_FILE and the like name certificates.
_STORAGE = (
    *("AWS_", "GOOGLE_", "AZURE_", "OS_", "ST_", "SSH_AUTH_SOCK", "SSL_CERT_", "REQUESTS_CA_BUNDLE"),
    *("HOLDFAST_S3_", "HOLDFAST_SWIFT_", "HOLDFAST_SFTP_", "HOLDFAST_REST_", "HOLDFAST_CA_FILE"),
)


class Profile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One ``[profile.NAME]`` table. Paths may begin with ``~``. ``storage``: what the storage's environment variables
    would say, by their names; the environment wins. Limits are sizes a second (``5M``).
    """

    repository: str = ""
    password_file: str = ""
    password_command: str = ""
    key_file: str = ""
    host: str = ""
    level: int = 3
    exclude: tuple[str, ...] = ()
    storage: dict[str, str] = {}
    limit_upload: str = ""
    limit_download: str = ""
    cache: bool = True


class ServerSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The ``[server]`` table. ``data``: the folder of everything the server keeps, empty for the one in the user's data
    folder; ``database``: the catalog's URL, empty for SQLite in that folder; ``url``: how clients reach the server.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    data: str = ""
    database: str = ""
    url: str = ""
    most_bytes: int = 1 << 40  # of one file
    proxies: tuple[str, ...] = ()  # whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses, networks
    patience: Annotated[float, msgspec.Meta(gt=0)] = 30.0  # seconds that a client may be silent where it is its turn
    least_rate: Annotated[int, msgspec.Meta(ge=0)] = 1024  # bytes a second that it must send, or take, then
    connections: Annotated[int, msgspec.Meta(ge=1)] = 1000  # at once
    connections_each: Annotated[int, msgspec.Meta(ge=1)] = 256  # at once, from one address that is no proxy's
    blob_port: Annotated[int, msgspec.Meta(ge=-1, le=65535)] | None = None  # of blobs alone; -1: none; None: 5555
    open: bool = False  # whoever has no log-in uses blobs and shares as the account `anonymous`; on loopback only


class OidcSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The ``[oidc]`` table: an OpenID Connect provider one can log in through; without an ``issuer``: none. ``admit``:
    who gets in, people whose verified e-mail address an account has, or anyone the provider knows.
    """

    issuer: str = ""
    client_id: str = ""
    client_secret_file: str = ""
    scopes: str = "openid email profile"
    admit: Literal["existing", "anyone"] = "existing"


class SharesSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The ``[shares]`` table. ``remove_after``: seconds from the end of a share until its file is removed. ``folder``:
    where the files lie, empty for ``shares`` in the data folder. ``accel``: the location from which nginx serves that
    folder; empty: it does not. ``redis``: the URL of a Redis that several servers share; empty: none.
    """

    most_bytes: Annotated[int, msgspec.Meta(ge=1)] = 16 << 20
    remove_after: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    folder: str = ""
    accel: str = ""
    redis: str = ""


class BlobsSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The ``[blobs]`` table. ``filesystem``: where buckets lie whose maker does not say; ``object``: the address of an
    object store (``s3:``, ``swift:`` …), empty: there is none; ``storage``: its environment variables, by their names;
    ``policies``: a folder of files that describe buckets, which are made at the start; ``origins``: sites whose pages
    may use blobs.
    """

    filesystem: Literal["disk", "object", "repository"] = "disk"
    object: str = ""
    storage: dict[str, str] = {}
    policies: str = ""
    origins: tuple[str, ...] = ()


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    profile: dict[str, Profile] = {}
    server: ServerSettings = ServerSettings()
    oidc: OidcSettings = OidcSettings()
    shares: SharesSettings = SharesSettings()
    blobs: BlobsSettings = BlobsSettings()


class Settings(msgspec.Struct, frozen=True):
    """Everything the outside decides. Folders are absolute; empty strings mean: not given."""

    repository: str
    password: str
    password_file: str
    password_command: str
    key_file: str
    host: str
    time_zone: str
    level: int
    exclude: tuple[str, ...]
    data_folder: Path
    config_folder: Path
    cache_folder: Path
    config_file: str = ""  # the settings file that was named, if one was
    home: Path = Path("/nonexistent")
    storage: dict[str, str] = {}  # what storages are told: variables by their usual names, secrets among them
    limit_upload: str = ""
    limit_download: str = ""
    cache: bool = True

    @property
    def default_repository(self) -> Path:
        return self.data_folder / "repository"

    @property
    def default_key_file(self) -> Path:
        return self.config_folder / "key"

    @property
    def has_credential(self) -> bool:
        return bool(self.password or self.password_file or self.password_command or self.key_file)


def load(options: Mapping[str, str], environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from the command line's options (``repository``, ``profile``, ``config``, ``password_file``,
    ``password_command``, ``key_file``), the environment, and the file. UsageError names what is wrong.
    """
    env = os.environ if environment is None else environment
    home, config_folder = _home(env), _config_folder(env)
    path = options.get("config") or env.get("HOLDFAST_CONFIG") or ""
    profile = _profile(Path(path) if path else config_folder / "holdfast.toml", bool(path), options, env)

    def pick(option: str, variable: str, fallback: str) -> str:
        return options.get(option) or env.get(variable) or fallback

    given = any(options.get(o) for o in ("password_file", "password_command", "key_file"))
    env_given = any(env.get(f"HOLDFAST_{v}") for v in ("PASSWORD", "PASSWORD_FILE", "PASSWORD_COMMAND", "KEY_FILE"))
    lower = {} if given else env  # a credential on the command line makes those below it moot
    profile_credential = Profile() if given or env_given else profile
    return Settings(
        repository=pick("repository", "HOLDFAST_REPOSITORY", profile.repository),
        password=lower.get("HOLDFAST_PASSWORD") or "",
        password_file=options.get("password_file")
        or lower.get("HOLDFAST_PASSWORD_FILE")
        or profile_credential.password_file,
        password_command=options.get("password_command")
        or lower.get("HOLDFAST_PASSWORD_COMMAND")
        or profile_credential.password_command,
        key_file=options.get("key_file") or lower.get("HOLDFAST_KEY_FILE") or profile_credential.key_file,
        host=pick("host", "HOLDFAST_HOST", profile.host),
        time_zone=env.get("TZ") or "",
        level=profile.level,
        exclude=profile.exclude,
        data_folder=_data_folder(env),
        config_folder=config_folder,
        cache_folder=Path(env.get("HOLDFAST_CACHE_DIR") or Path(env.get("XDG_CACHE_HOME") or home / ".cache") / NAME),
        config_file=path,
        home=home,
        storage=profile.storage | {k: v for k, v in env.items() if k.startswith(_STORAGE) and v},
        limit_upload=options.get("limit_upload") or env.get("HOLDFAST_LIMIT_UPLOAD") or profile.limit_upload,
        limit_download=options.get("limit_download") or env.get("HOLDFAST_LIMIT_DOWNLOAD") or profile.limit_download,
        cache=profile.cache and not options.get("no_cache"),
    )


def load_server(options: Mapping[str, object], environment: Mapping[str, str] | None = None) -> ServerSettings:
    """The server's settings: options (by the names of the fields; None: not given) win over the environment, that over
    the file.
    """
    env = os.environ if environment is None else environment
    given = {k: v for k, v in options.items() if v is not None and k in ServerSettings.__struct_fields__}
    table = _with_environment(_content(options, env).server, "SERVER", env)
    if isinstance(table["proxies"], str):
        table["proxies"] = table["proxies"].replace(",", " ").split()
    try:
        found = msgspec.convert(table | given, ServerSettings, strict=False)
    except msgspec.ValidationError as e:
        raise UsageError(f"The server's settings: {e}.") from None
    folder = Path(found.data).expanduser() if found.data else _data_folder(env) / "server"
    return msgspec.structs.replace(found, data=str(folder.absolute()))


def load_oidc(options: Mapping[str, object], environment: Mapping[str, str] | None = None) -> OidcSettings:
    """The outside provider's settings; the environment wins over the file."""
    env = os.environ if environment is None else environment
    table = _with_environment(_content(options, env).oidc, "OIDC", env)
    try:
        found = msgspec.convert(table, OidcSettings, strict=False)
    except msgspec.ValidationError as e:
        raise UsageError(f"The provider's settings: {e}.") from None
    if found.issuer and not (found.client_id and found.client_secret_file and "openid" in found.scopes.split()):
        raise UsageError("[oidc] needs client_id, client_secret_file, and openid among its scopes.")
    return found


def load_shares(options: Mapping[str, object], environment: Mapping[str, str] | None = None) -> SharesSettings:
    """What is set for one-time shares; the environment wins over the file."""
    env = os.environ if environment is None else environment
    table = _with_environment(_content(options, env).shares, "SHARES", env)
    try:
        found = msgspec.convert(table, SharesSettings, strict=False)
    except msgspec.ValidationError as e:
        raise UsageError(f"The settings of shares: {e}.") from None
    if found.accel and not (found.accel.startswith("/") and found.accel.isascii() and found.accel.isprintable()):
        raise UsageError("[shares] accel must be a location of nginx, like /shared-files.")
    folder = str(Path(found.folder).expanduser().absolute()) if found.folder else ""
    return msgspec.structs.replace(found, folder=folder)


def load_blobs(options: Mapping[str, object], environment: Mapping[str, str] | None = None) -> BlobsSettings:
    """What is set for blobs; the environment wins over the file."""
    env = os.environ if environment is None else environment
    table = _with_environment(_content(options, env).blobs, "BLOBS", env)
    if isinstance(table["origins"], str):
        table["origins"] = table["origins"].replace(",", " ").split()
    try:
        found = msgspec.convert(table, BlobsSettings, strict=False)
    except msgspec.ValidationError as e:
        raise UsageError(f"The settings of blobs: {e}.") from None
    around = {k: v for k, v in env.items() if k.startswith(_STORAGE) and v}
    policies = str(Path(found.policies).expanduser().absolute()) if found.policies else ""
    return msgspec.structs.replace(found, policies=policies, storage=found.storage | around)


def admin_password() -> str:
    """The password that the first administrator is to have; empty: a random one."""
    return os.environ.get("HOLDFAST_ADMIN_PASSWORD") or ""


def remote_server() -> str:
    """The address of the server that commands speak to when none is named; may be empty."""
    return os.environ.get("HOLDFAST_SERVER") or ""


def remote_token() -> str:
    """The API token to show to a server; empty: the log-in that was kept for it."""
    return os.environ.get("HOLDFAST_TOKEN") or ""


def child_environment() -> dict[str, str]:
    """The environment for a program we start: ours without our secrets."""
    secret = (
        *(
            "HOLDFAST_PASSWORD",
            "HOLDFAST_ADMIN_PASSWORD",
            "HOLDFAST_SERVER__",
            "HOLDFAST_SHARES__",
            "HOLDFAST_BLOBS__",
            "HOLDFAST_TOKEN",
        ),
        *("HOLDFAST_SFTP_PASSWORD", "HOLDFAST_REST_PASSWORD"),
    )
    return {k: v for k, v in os.environ.items() if not k.startswith(secret)}


def _content(options: Mapping[str, object], env: Mapping[str, str]) -> _File:
    path = str(options.get("config") or "") or env.get("HOLDFAST_CONFIG") or ""
    return _read(Path(path) if path else _config_folder(env) / "holdfast.toml", bool(path)) or _File()


def _with_environment(found: msgspec.Struct, section: str, env: Mapping[str, str]) -> dict[str, object]:
    """A table's values, those that the environment gives instead."""
    table = msgspec.structs.asdict(found)
    return {name: env.get(f"HOLDFAST_{section}__{name.upper()}", value) for name, value in table.items()}


def _home(env: Mapping[str, str]) -> Path:
    return Path(env.get("HOME") or os.path.expanduser("~"))


def _config_folder(env: Mapping[str, str]) -> Path:
    return Path(env.get("XDG_CONFIG_HOME") or _home(env) / ".config") / NAME


def _data_folder(env: Mapping[str, str]) -> Path:
    return Path(env.get("XDG_DATA_HOME") or _home(env) / ".local" / "share") / NAME


def _profile(path: Path, must_exist: bool, options: Mapping[str, str], env: Mapping[str, str]) -> Profile:
    name = options.get("profile") or env.get("HOLDFAST_PROFILE") or ""
    content = _read(path, must_exist or bool(name))
    if content is None:
        return Profile()
    if name and name not in content.profile:
        raise UsageError(f"The settings file {path} has no profile {name!r}.")
    return content.profile.get(name or "default", Profile())


def _read(path: Path, must_exist: bool) -> _File | None:
    """The settings file, checked; None when there is none."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        if must_exist:
            raise UsageError(f"The settings file {path} is not there.") from None
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"The settings file {path} cannot be read: {e}.") from None
    try:
        return msgspec.toml.decode(text, type=_File)
    except msgspec.MsgspecError as e:
        raise UsageError(f"The settings file {path}: {e}.") from None
    except ValueError as e:
        raise UsageError(f"The settings file {path} is not TOML: {e}.") from None


def debug() -> bool:
    """Whether a developer wants to see the whole of an unexpected error."""
    return bool(os.environ.get("HOLDFAST_DEBUG"))


def size_of(text: str) -> int:
    """``10M`` and the like, in bytes (binary units)."""
    units = {"": 0, "B": 0, "K": 1, "M": 2, "G": 3, "T": 4}
    number = text.strip().upper().removesuffix("IB").removesuffix("B") if text.strip().upper() != "B" else ""
    digits, unit = (number[:-1], number[-1]) if number and number[-1] in "KMGT" else (number, "")
    try:
        return int(float(digits) * 1024 ** units[unit])
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is not a size: write it like 500K, 10M or 2G.") from None
