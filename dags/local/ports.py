"""TCP ports of the loopback interface: which are free, and which process listens on one."""

import contextlib
import socket

CONNECT_TIMEOUT_SECONDS = 1.0
LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    # macOS lets a server listen on a port on which another one listens on all addresses, so connect as well.
    with contextlib.suppress(OSError), connect(port, CONNECT_TIMEOUT_SECONDS):
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
    """Connect to this loopback port. Raises OSError when no process listens on it."""
    return socket.create_connection((LOOPBACK, port), timeout_seconds)


def free_port() -> int:
    """Return a loopback port on which no process listens. Another process may take it before the caller does."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
    return port


def process_on(port: int) -> str:
    """Return which process listens on this port, such as `python3 (pid 123)`, or `another process` if not visible."""
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
        # macOS shows the sockets of other users to root only.
        return "another process"
    return "another process"
