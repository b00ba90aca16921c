"""A relay that holds a transfer back, so that a test sees the page while it lasts."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Event, Thread
from urllib.parse import urlsplit

CHUNK = 4096  # bytes


@contextmanager
def held_uploads(url: str, after: int) -> Iterator[tuple[str, Event]]:
    """Yield a URL of the server at `url` and an event.

    Each connection sends about `after` bytes to the server, and the rest when the event is set.
    """
    release = Event()

    class Relay(BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as server:
                Thread(target=_copy, args=(server, self.request), daemon=True).start()
                _copy(self.request, server, hold=(after, release))

    class Server(ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Relay) as relay:
        Thread(target=relay.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{relay.server_address[1]}", release
        finally:
            release.set()
            relay.shutdown()


def _copy(source: socket.socket, target: socket.socket, hold: tuple[int, Event] | None = None) -> None:
    """Pass on what arrives until one side closes its connection; after `hold` bytes, wait for its event."""
    passed = 0
    with suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
            passed += len(data)
            if hold and passed >= hold[0]:
                hold[1].wait()
        target.shutdown(socket.SHUT_WR)
