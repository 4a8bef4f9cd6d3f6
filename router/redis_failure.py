"""What goes wrong with Redis, in a few words that show no address's password, no key and no value."""

from __future__ import annotations

import os
import ssl

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

# What a connection may raise. The built-in TimeoutError is an OSError; a ValueError is a name of a host that cannot be
# one; a RuntimeError is what uvloop says of a transport that was closed meanwhile.
FAILURES = (RedisError, OSError, ValueError, RuntimeError)
# Error replies that say the server cannot serve anyone now; every other one is about the command that was sent.
SERVER_ERRORS = (ReadOnlyError, ClusterDownError, MasterDownError)


class RedisUnavailable(Exception):
    """Redis gave no reply to use: too late, no connection, an error reply, or the link rests.

    `reason` is a few words without credentials, keys or values. `is_reply` says that the server answered with an error
    to this very command. Unless the link rested, the command may have been carried out.
    """

    def __init__(self, reason: str, *, is_reply: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_reply = is_reply


class LoopLate(Exception):
    """No reply within the limit, but this process was held up itself meanwhile: that says nothing of the server."""


def is_about_the_command(outcome: object) -> bool:
    """Whether an outcome is an error reply of a server that can serve others."""
    return isinstance(outcome, ResponseError) and not isinstance(outcome, SERVER_ERRORS)


def why(exc: BaseException, deadline_s: float) -> str:
    """A failure in a few words; never the library's text, which may repeat what was sent."""
    seen: BaseException | None = exc
    while seen is not None:  # the library wraps what the system said
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"the certificate is not accepted: {seen.verify_message}"
        if isinstance(seen, ssl.SSLError):
            return "the TLS handshake failed"
        if isinstance(seen, AuthenticationError):
            return "the server does not accept the credentials, or asks for some"
        if isinstance(seen, BusyLoadingError):
            return "the server is still loading its data"
        if isinstance(seen, LoopLate):
            return f"no answer within {deadline_s * 1000:.0f} ms, in which this process was held up itself"
        if isinstance(seen, TimeoutError | RedisTimeout):
            return f"no answer within {deadline_s * 1000:.0f} ms"
        if isinstance(seen, OSError) and seen.errno is not None:
            # Not `strerror`, which names the address in one event loop and not in the other. Negative: of a name.
            return "cannot connect: " + (os.strerror(seen.errno).lower() if seen.errno > 0 else "unknown host")
        seen = seen.__cause__ or seen.__context__
    if isinstance(exc, RedisUnavailable):
        return exc.reason
    if isinstance(exc, ResponseError):
        code = exc.status_code or str(exc).partition(" ")[0]
        is_code = code.isascii() and code.isalpha() and code.isupper()
        return f"error reply `{code}`" if is_code and len(code) <= 20 else "an error reply"
    return "the connection was lost"
