"""Which shares are known to be gone for good, remembered for a while: who asks for one of them asks no database.

What is promised: nothing is noted but what will never be there again; that the memory cannot be used (Redis being down)
fails no request, and slows few of them down. What is remembered are digests, from which no address can be told.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from holdfast.errors import UsageError

KEPT_S = 300
_MOST = 10_000
_REDIS_KEPT_S = 3600
_REDIS_PATIENCE_S = 0.25
_REDIS_PAUSE_S = 2.0  # so long Redis is left alone when it did not answer
_PREFIX = "holdfast:share:gone:"

Tell = Callable[[str, Exception], None]


class Gone(Protocol):
    """A memory. Safe to share between threads."""

    def knows(self, digest: bytes) -> bool: ...

    def note(self, digest: bytes) -> None: ...

    def close(self) -> None: ...


class GoneHere:
    """In this process: the _MOST that were asked for last, for KEPT_S seconds."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, digest: bytes) -> bool:
        with self._lock:
            until = self._until.get(digest)
            if until is None:
                return False
            if until <= time.monotonic():
                del self._until[digest]
                return False
            self._until.move_to_end(digest)
            return True

    def note(self, digest: bytes) -> None:
        with self._lock:
            self._until[digest] = time.monotonic() + KEPT_S
            self._until.move_to_end(digest)
            if len(self._until) > _MOST:
                self._until.popitem(last=False)

    def close(self) -> None:
        """There is nothing open."""


class GoneInRedis:
    """In a Redis that several nodes share. ``tell`` hears that it does not answer, once each time that begins."""

    def __init__(self, url: str, tell: Tell) -> None:
        try:
            import redis
        except ModuleNotFoundError:
            raise UsageError("[shares] redis needs the package redis.", "pip install 'holdfast[scale]'") from None
        self._errors = (redis.RedisError, OSError)
        patience = {"socket_timeout": _REDIS_PATIENCE_S, "socket_connect_timeout": _REDIS_PATIENCE_S}
        try:
            self._redis: Any = redis.Redis.from_url(url, **patience, retry=None)
        except ValueError:
            raise UsageError("[shares] redis must begin with redis://, rediss:// or unix://.") from None
        self._tell, self._again, self._down = tell, 0.0, False

    def knows(self, digest: bytes) -> bool:
        return bool(self._try(lambda: self._redis.exists(_PREFIX + digest.hex())))

    def note(self, digest: bytes) -> None:
        self._try(lambda: self._redis.set(_PREFIX + digest.hex(), b"1", ex=_REDIS_KEPT_S))

    def close(self) -> None:
        self._redis.close()

    def _try(self, act: Callable[[], object]) -> object:
        """What Redis says; None while it does not answer."""
        if time.monotonic() < self._again:
            return None
        try:
            found = act()
        except self._errors as e:
            self._again = time.monotonic() + _REDIS_PAUSE_S
            if not self._down:
                self._down = True
                self._tell("remember shares in Redis", e)
            return None
        self._down = False
        return found
