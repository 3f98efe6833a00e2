"""TCP ports of the loopback interface: is one free, who holds it, give me a free one.

What belongs here: facts about ports. What does not: which service gets which port (`services`).
"""

import contextlib
import socket

ANSWER_TIMEOUT_SECONDS = 1.0
LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    # macOS lets a second server listen beside one that listens on every address: ask for an answer as well.
    with contextlib.suppress(OSError), connect(port, ANSWER_TIMEOUT_SECONDS):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        # As servers do: a port whose last connections linger in TIME_WAIT counts as free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen(1)
        except OSError:
            return False
    return True


def connect(port: int, timeout_seconds: float) -> socket.socket:
    """A connection to this loopback port. Raises OSError when nobody listens."""
    return socket.create_connection((LOOPBACK, port), timeout_seconds)


def free_port() -> int:
    """A loopback port that nobody listens on. Another process may take it before the caller does."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
    return port


def holder(port: int) -> str:
    """Who listens on this port, as far as this user may know: `python3 (pid 123)`, or `another process`."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr[1:] == (port,)
                and connection.pid is not None
            ):
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        # macOS tells only root about the sockets of others: the port alone must do.
        return "another process"
    return "another process"
