"""What tests of the browser share: whether there is one, its processes, and what it leaves."""

import glob
import os
import tempfile
import time

import psutil
import pytest

from whet.envs.chromium import Browser, Page
from whet.envs.chromium_process import executable
from whet.errors import MissingExtra


def missing() -> str:
    """Why no browser can be started here; empty where one can."""
    try:
        executable()
    except MissingExtra as error:
        return str(error)
    return ""


needs_browser = pytest.mark.skipif(bool(missing()), reason=missing())


def processes(browser: Browser) -> list[psutil.Process]:
    """The living processes of a browser: those of its group, and those that were told of its profile."""
    found = []
    for process in psutil.process_iter():
        try:
            own = os.getpgid(process.pid) == browser._pid or browser.profile in " ".join(process.cmdline())
            if own and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def main_process(browser: Browser) -> psutil.Process:
    """The browser itself, which is the child of the shell that waits for it."""
    return next(process for process in processes(browser) if process.ppid() == browser._pid)


def renderer(page: Page) -> psutil.Process:
    """The process of one tab: the one that grows when a script on the tab asks for memory."""
    used = {process: process.memory_info().rss for process in processes(page.browser) if "--type=renderer" in process.cmdline()}
    page.evaluate("(window.large = new Uint8Array(2e8).fill(1), 1)")
    found = max(used, key=lambda process: process.memory_info().rss - used[process])
    page.evaluate("(window.large = null, 1)")
    return found


def leftovers() -> set[str]:
    """Directories of browsers, and what a browser writes beside its own."""
    return {path for name in ("whet-chromium-*", "org.chromium.*") for path in glob.glob(os.path.join(tempfile.gettempdir(), name))}


def comes_true(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
