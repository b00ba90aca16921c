"""Measure the page in Chromium: `python -m benchmarks.page` prints what its first view transfers and costs.

Starts `python app.py` in a process of its own. Every visit has a cold cache. "Usable" is the moment at which
the upload box and all examples are drawn. Linux only.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

from playwright.sync_api import Browser, CDPSession, Page

from benchmarks.serving import cpu_seconds, print_head, print_row, running_app
from tests.helpers import browser as chromium

# Bytes per second and milliseconds, as Lighthouse's "slow 4G"
SLOW_4G = {"downloadThroughput": 1_600_000 / 8, "uploadThroughput": 750_000 / 8, "latency": 150}
NETWORKS: dict[str, dict[str, float] | None] = {"loopback": None, "slow 4G": SLOW_4G}
IDLE_SECONDS = 60
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
EXAMPLES_DRAWN = """() => {
    const images = [...document.querySelectorAll("#examples img")];
    return images.length && images.every(image => image.complete && image.naturalWidth);
}"""


@contextmanager
def open_tab(browser: Browser, network: dict[str, float] | None) -> Iterator[tuple[Page, CDPSession]]:
    """Yield an empty tab with a cold cache on a network."""
    context = browser.new_context(viewport={"width": 1366, "height": 900})
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    if network:
        session.send("Network.emulateNetworkConditions", {"offline": False, **network})
    yield page, session
    context.close()


def measure_first_view(browser: Browser, url: str, network: dict[str, float] | None) -> tuple[float, ...]:
    """Return the requests, the kilobytes, and the seconds until the first paint and until it is usable."""
    with open_tab(browser, network) as (page, session):
        sizes: list[float] = []

        def add(event: dict[str, Any]) -> None:
            sizes.append(event["encodedDataLength"] / 1000)

        session.on("Network.loadingFinished", add)
        start = perf_counter()
        page.goto(url, wait_until="commit")
        page.locator("#upload input[type=file]").wait_for(state="attached", timeout=120_000)
        page.wait_for_function(EXAMPLES_DRAWN)
        usable = perf_counter() - start
        return len(sizes), sum(sizes), page.evaluate(FIRST_PAINT), usable


def measure_idle(browser: Browser, app: Any, url: str) -> float:
    """Return the share of one core that the server uses while a page is open and nothing happens."""
    with open_tab(browser, None) as (page, _):
        page.goto(url)
        page.wait_for_function(EXAMPLES_DRAWN)
        sleep(5)
        before = cpu_seconds(app)
        sleep(IDLE_SECONDS)
        return (cpu_seconds(app) - before) / IDLE_SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--visits", type=int, default=5, help="visits per row; prints the median")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        (Path(folder) / "log.txt").open("w") as log,
        running_app(log) as (app, port),
        chromium.launch() as browser,
    ):
        url = f"http://127.0.0.1:{port}"
        print_head("network", "requests", "transferred (kB)", "first paint (s)", "usable (s)")
        for name, network in NETWORKS.items():
            visits = [measure_first_view(browser, url, network) for _ in range(options.visits)]
            requests, size, paint, usable = map(median, zip(*visits, strict=True))
            print_row(name, f"{requests:.0f}", f"{size:.0f}", f"{paint:.1f}", f"{usable:.1f}")
        print(f"\nAn open, idle page: {measure_idle(browser, app, url):.2%} of a core on the server.")


if __name__ == "__main__":
    main()
