"""A TCP proxy on loopback with the faults of a network: it drops, delays and resets connections, by a seed."""

import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import sleep

CHUNK_BYTES = 4096
# Closing with this option sends a reset instead of an orderly end.
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Fault:
    """What happens to a connection, once `after_bytes` have passed in both directions together."""

    kind: str
    after_bytes: int = 0
    seconds: float = 0.0


# Everything is dropped from then on, and both ends stay open, so neither notices.
DROP = "drop"
DELAY = "delay"
RESET_BOTH = "reset"
# An orderly end in the middle of a transfer.
END = "end"


def random_faults(seed: int, max_bytes: int, max_delay_seconds: float) -> Callable[[int], list[Fault]]:
    """Return the faults of each connection by its number: perhaps a delay, and one kind of end."""

    def faults_of(number: int) -> list[Fault]:
        choice = random.Random(f"{seed} {number}")  # noqa: S311 - repeatable on purpose
        # Some so early that they hit the handshake or the first query.
        end = choice.randrange(400 if choice.random() < 0.3 else max_bytes)
        faults = [Fault(choice.choice([DROP, RESET_BOTH, END]), end)]
        if choice.random() < 0.5:
            faults.insert(0, Fault(DELAY, choice.randrange(end + 1), choice.uniform(0, max_delay_seconds)))
        return faults

    return faults_of


@dataclass
class _Pair:
    """The two sockets of one connection, and its next faults, in order. A drop is permanent."""

    faults: list[Fault]
    client: socket.socket
    server: socket.socket
    passed_bytes: int = 0
    is_dropping: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def close(self, *, reset: bool = False) -> None:
        for one in (self.client, self.server):
            with contextlib.suppress(OSError):
                if reset:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                one.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
        # A thread in recv() keeps a closed socket alive, so it is woken first.
        for one in (self.client, self.server):
            one.close()


class FaultyProxy:
    """A TCP proxy to a server, with faults. `counts` has the faults that happened, by kind."""

    def __init__(self, server_port: int, faults_of: Callable[[int], list[Fault]] = lambda _: []) -> None:
        self._server_port = server_port
        self._faults_of = faults_of
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.counts: Counter[str] = Counter()
        self.connections = 0
        self._pairs: list[_Pair] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def passed_bytes(self) -> int:
        """Return the bytes that passed, in both directions together."""
        with self._lock:
            return sum(pair.passed_bytes for pair in self._pairs)

    def drop_open_connections(self) -> None:
        """Drop everything on the open connections, in both directions, and keep them open; new ones work."""
        with self._lock:
            for pair in self._pairs:
                pair.is_dropping = True

    def close(self) -> None:
        """End every connection and accept no new ones."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for pair in self._pairs:
                pair.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server_port))
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                pair = _Pair(self._faults_of(self.connections), client, server)
                self.connections += 1
                self._pairs.append(pair)
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(pair, source, target), daemon=True).start()

    def _forward(self, pair: _Pair, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                if not self._let_through(pair, target, data):
                    return
        # While it drops, the other side does not notice the end either.
        if not pair.is_dropping:
            pair.close()

    def _let_through(self, pair: _Pair, target: socket.socket, data: bytes) -> bool:
        """Send the data on, as far as the faults allow; return whether to continue."""
        with pair.lock:
            if pair.is_dropping:
                return True
            room = pair.faults[0].after_bytes - pair.passed_bytes if pair.faults else len(data)
            fault = pair.faults.pop(0) if room < len(data) else None
            pair.passed_bytes += len(data)
            pair.is_dropping = fault is not None and fault.kind == DROP
        if fault is None:
            target.sendall(data)
            return True
        with self._lock:
            self.counts[fault.kind] += 1
        if fault.kind == DELAY:
            sleep(fault.seconds)
            target.sendall(data)
            return True
        target.sendall(data[: max(room, 0)])
        if fault.kind == DROP:
            return True
        pair.close(reset=fault.kind == RESET_BOTH)
        return False
