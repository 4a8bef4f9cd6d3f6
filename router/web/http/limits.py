"""What one client may cost: sizes, times and numbers of the listeners. docs/operations.md shows them in a table."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass

MAX_HEAD_BYTES = 64 * 1024  # request line and headers together
MAX_LINE_BYTES = 16 * 1024  # one of them
MAX_HEADERS = 128
READ_BYTES = 64 * 1024  # one read from a socket, and so the most that is decoded in one turn of the event loop
HELD_BYTES = 64 * 1024  # of a body that the application has not taken, or of requests in line: then reading stops
WRITE_BYTES = 16 * 1024  # of an answer that the client has not taken: then the application waits
PIECE_BYTES = 32 * 1024  # of a large answer, handed over at a time
KERNEL_BYTES = 64 * 1024  # of an answer that the kernel holds and has not sent
MAX_CHUNK_LINE_BYTES = 256  # size and extensions of one chunk
MAX_EXTENSION_BYTES = 16 * 1024  # extensions of all chunks of a body
MAX_TRAILER_BYTES = 8 * 1024

# Longer than the balancers of clouds keep a connection: they close idle ones, and no request meets our end of one.
KEEP_ALIVE_S = 650.0

_FILES = 128  # descriptors for traces, policies, Redis, the listeners and the rest
_UPSTREAM = 4096  # the most that the upstream's pool opens


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, rates in bytes a second, and how many connections one listener holds."""

    first_byte_s: float = 10.0  # a new connection that sends nothing
    head_s: float = 10.0  # from the first byte of a head to its last, however they drip
    body_idle_s: float = 30.0  # between two pieces of a body that the application waits for
    body_bytes_per_s: float = 1024.0  # on the average, after the first `body_grace_s` of a body
    body_grace_s: float = 30.0
    # A client that takes no byte of an answer that waits for it. At 1 KB/s the common window opens again in 130 s.
    write_idle_s: float = 180.0
    keep_alive_s: float = KEEP_ALIVE_S
    # While the server ends, after an answer whose head has promised to stay: a proxy may have sent the next request.
    leaving_s: float = 0.5
    linger_s: float = (
        10.0  # a client that has its answer may finish sending: at 50 Mbit/s twice the largest Messages body
    )
    refused_linger_s: float = 1.0  # the same for what was no request
    linger_bytes: int = 512 * 1024 * 1024
    refused_linger_bytes: int = 1024 * 1024
    skipped_bytes: int = 256 * 1024  # of a body that the application did not read: skipped, and the connection kept
    max_connections: int = 10_000


def connections_for(descriptors: int) -> int:
    """How many client connections a process with so many file descriptors can hold.

    Each may need a second one upstream, until the upstream's pool is at its largest. Where there are too few to be
    generous to the rest (under 256), half of them are for it: it has about 30 open.
    """
    spare = descriptors - _FILES
    return max(1, descriptors // 4, spare // 2, spare - _UPSTREAM)


def file_descriptors() -> int:
    """How many this process may open: the soft limit, which is first raised to the hard one where that is allowed."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1 << 20
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # macOS allows less than it says
            pass
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def held_by_kernel(sock: socket.socket) -> int:
    """Bytes of a socket that the other side has not confirmed yet; 0 where the system does not tell."""
    try:
        from fcntl import ioctl
        from termios import TIOCOUTQ

        return int.from_bytes(ioctl(sock.fileno(), TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)
    except (ImportError, OSError, ValueError):  # Windows; macOS; closed
        return 0
