"""ZeroGPU on loopback: the environment of such a Space, and the service that lends GPUs, which lends none."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@contextmanager
def zero_gpu() -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yield (environment variables, paths of the requests so far)."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.path.partition("?")[0])
            self.send_response(200 if self.path == "/startup-report" else 503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": url}, requests
        server.shutdown()
