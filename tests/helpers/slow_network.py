"""A slow network in front of a server: a relay on loopback that passes requests on bit by bit."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from urllib.parse import urlsplit

CHUNK = 4096  # bytes


@contextmanager
def slow_uploads(url: str, bytes_per_second: float) -> Iterator[str]:
    """Yield a URL of the server at `url` to which each connection sends so many bytes per second."""

    class Relay(BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as server:
                Thread(target=_copy, args=(server, self.request, 0), daemon=True).start()
                _copy(self.request, server, CHUNK / bytes_per_second)

    class Server(ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Relay) as relay:
        Thread(target=relay.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{relay.server_address[1]}"
        relay.shutdown()


def _copy(source: socket.socket, target: socket.socket, pause: float) -> None:
    """Pass on what arrives, with a pause after each chunk, until one side closes its connection."""
    with suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
            time.sleep(pause)
        target.shutdown(socket.SHUT_WR)
