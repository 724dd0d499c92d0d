"""Open a page in a real browser and return its console output, its network requests and the resulting HTML."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")


@dataclass(frozen=True)
class Shown:
    """`html`: the page after its scripts have run; `console`: lines of its console; `asked`: requested external addresses."""

    html: str
    console: list[str]
    asked: list[str]

    def tiles(self) -> list[str]:
        """The ids of the visible images, in order."""
        figures = re.findall(r"<figure class=\"tile\"([^>]*)>", self.html)
        return [re.search(r'data-id="([^"]*)"', figure)[1] for figure in figures if " hidden" not in figure]


def show(page: Path, tmp_path: Path, address: str = "", script: str = "", width: int = 1200, real_time: bool = False) -> Shown:
    """Open a page with `address` (for example `#show=worst`) appended to its path, and run `script` in it.

    `real_time`: for scripts that measure time; otherwise the browser's clock is virtual.
    """
    if script:
        page = Path(shutil.copy(page, tmp_path / "acted.html"))
        page.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    log = tmp_path / "net.json"
    clock = [] if real_time else ["--virtual-time-budget=5000"]
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                           "--disable-component-update", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}",
                           "--enable-logging=stderr", f"--log-net-log={log}", f"--window-size={width},1000",
                           *clock, "--dump-dom", f"file://{page}{address}"],
                          capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    starts = re.findall(r'"initiator":"([^"]*)"[^\n]*?"url":"(https?://[^"]*)"', log.read_text())   # one event per line
    asked = [url for initiator, url in starts if initiator != "not an origin"]   # without requests of the browser itself
    return Shown(done.stdout, re.findall(r"^.*CONSOLE.*$", done.stderr, re.M), sorted(set(asked)))
