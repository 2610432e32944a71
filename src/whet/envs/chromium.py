"""Headless Chromium over its own pipe: a DevTools connection without sockets, ports, drivers or Python packages.

    page = open_page(script)
    page.load("file:///usr/share/doc/index.html")
    page.evaluate("document.title")
    page.close()

The browser reads commands from its file descriptor 3 and answers on 4, both ends of pipes that only this process holds. So
nobody else can talk to it, and it ends by itself when this process does, however that happens. Several pages share a browser;
a browser that has served enough of them takes no new ones and closes with its last.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from whet.envs.chromium_process import executable, gone, profile, spawn
from whet.errors import EnvError

PAGES_PER_BROWSER = 8
"""Pages that share a browser, so that the loss of one browser costs no more episodes than that."""
RETIRE_AFTER = 64
"""Pages that a browser opens in its life."""
START = 30.0
"""Seconds that a browser may take to start."""
ANSWER = 20.0
"""Seconds that a page may take to answer."""
EXIT = 3.0
"""Seconds that a browser may take to end before it is killed."""

_lock = threading.Lock()
_browsers: list[Browser] = []


class BrowserLost(EnvError):
    """The browser or one of its tabs has ended, however that came about."""


class BrowserHung(EnvError):
    """A page, or the browser, did not answer before its deadline, as where a script on the page never ends."""


def open_page(script: str = "") -> Page:
    """A page in a browser that has room for one, or in a new one. `script` runs in each of its documents before their own.

    Raises EnvError where the browser does not start or does not answer.
    """
    with _lock:
        for browser in _browsers:
            if browser.reserve():
                break
        else:
            browser = Browser()
            browser.reserve()
            _browsers[:] = [b for b in _browsers if b.alive]
            _browsers.append(browser)
    try:
        return Page(browser, script)
    except BaseException:
        browser.release()
        raise


class _Reply:
    """An answer that is awaited."""

    __slots__ = ("done", "message", "session")

    def __init__(self, session: str) -> None:
        self.session = session
        self.done = threading.Event()
        self.message: Mapping[str, Any] | None = None


class Browser:
    """A browser process with an empty profile of its own. Safe to use from many threads."""

    def __init__(self) -> None:
        self.profile = profile()
        self.alive = True
        self._ids = itertools.count(1)
        self._replies: dict[int, _Reply] = {}
        self._pages: weakref.WeakValueDictionary[str, Page] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._open = self._opened = 0
        self._ended = False
        self._owner = os.getpid()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (read where the browser does not start, closed with it)
        try:
            self._pid, self._from, self._to = spawn(self.profile, self._errors.fileno())
        except OSError as error:
            self._errors.close()
            shutil.rmtree(self.profile, ignore_errors=True)
            raise EnvError(f"the browser {executable()} could not be started: {error}") from error
        self._reader = threading.Thread(target=self._read, daemon=True, name="whet-chromium")
        self._reader.start()
        try:
            self.call("Browser.getVersion", timeout=START)
        except EnvError as error:
            told = self._last_words()
            self.close()
            raise EnvError(f"the browser {executable()} did not start: {error}{told}") from error

    def reserve(self) -> bool:
        """Take the place of one page; false where there is none."""
        with self._lock:
            if not self.alive or self._owner != os.getpid() or self._open >= PAGES_PER_BROWSER or self._opened >= RETIRE_AFTER:
                return False
            self._open += 1
            self._opened += 1
            return True

    def release(self) -> None:
        """Give a page's place back. The browser ends with its last page."""
        with self._lock:
            self._open -= 1
            last = not self._open
            self.alive = self.alive and not last
        if last:
            self.close()

    def call(self, method: str, session: str = "", timeout: float = ANSWER, **parameters: Any) -> Mapping[str, Any]:
        """The result of one command (see `calls`)."""
        return self.calls([(method, parameters)], session, timeout)[0]

    def calls(self, commands: Sequence[tuple[str, Mapping[str, Any]]], session: str, timeout: float = ANSWER) -> list[Mapping[str, Any]]:
        """The results of commands that are sent together and carried out in order.

        Raises BrowserLost where the page or the browser ends, BrowserHung where it does not answer within `timeout` seconds,
        and EnvError where it refuses one.
        """
        until = time.monotonic() + timeout
        waiting: list[tuple[int, str, _Reply]] = []
        lines = []
        for method, parameters in commands:
            number, reply = next(self._ids), _Reply(session)
            waiting.append((number, method, reply))
            message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
            lines.append(json.dumps(message).encode() + b"\0")
        with self._lock:
            self._replies.update({number: reply for number, _, reply in waiting})
        try:
            self._write(b"".join(lines))
            return [self._result(method, reply, until, timeout) for _, method, reply in waiting]
        finally:
            with self._lock:
                for number, _, _ in waiting:
                    self._replies.pop(number, None)

    def _result(self, method: str, reply: _Reply, until: float, timeout: float) -> Mapping[str, Any]:
        if not reply.done.wait(max(0.0, until - time.monotonic())):
            raise BrowserHung(f"the browser did not answer {method} within {timeout:g} s")
        if reply.message is None:
            raise BrowserLost(f"the {'page' if self.alive else 'browser'} ended before it answered {method}")
        if "error" in reply.message:
            raise EnvError(f"the browser refused {method}: {reply.message['error'].get('message')}")
        result: Mapping[str, Any] = reply.message["result"]
        return result

    def _write(self, data: bytes) -> None:
        with self._writing:
            if self._ended:
                raise BrowserLost("the browser has ended")
            try:
                while data:
                    data = data[os.write(self._to, data) :]
            except OSError as error:
                raise BrowserLost(f"the browser has ended: {error}") from error

    def _read(self) -> None:
        buffer = b""
        with contextlib.suppress(OSError):
            while chunk := os.read(self._from, 1 << 16):
                *messages, buffer = (buffer + chunk).split(b"\0")
                for message in messages:
                    self._dispatch(json.loads(message))
        self.alive = False
        with self._lock:
            sessions = {reply.session for reply in self._replies.values()}
        for session in sessions:
            self._abandon(session)

    def _abandon(self, session: str) -> None:
        """Nobody will answer what was asked in this session; tell those who wait."""
        with self._lock:
            replies = [reply for reply in self._replies.values() if reply.session == session]
        for reply in replies:
            reply.done.set()

    def _dispatch(self, message: Mapping[str, Any]) -> None:
        if "id" in message:
            with self._lock:
                reply = self._replies.get(message["id"])
            if reply is not None:
                reply.message = message
                reply.done.set()
        elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
            page._heard(message["method"])
            if not page.alive:
                self._abandon(message["sessionId"])

    def _last_words(self) -> str:
        """What the browser wrote on standard error, without its complaints about a missing desktop bus."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        telling = [line for line in lines if line.strip() and "dbus" not in line]
        return "".join(f"\n{line}" for line in telling[-5:])

    def close(self) -> None:
        """End the browser with everything that belongs to it; by force if it does not go at once."""
        self.alive = False
        if self._owner != os.getpid():
            return
        with self._writing:
            if self._ended:
                return
            self._ended = True
            self._errors.close()
            os.close(self._to)  # to the browser, this is the order to end
        if not gone(self._pid, EXIT):
            self.kill()
            gone(self._pid, EXIT)
        self._reader.join(EXIT)
        if not self._reader.is_alive():  # else a process of the browser has survived, and the number must not be used again
            os.close(self._from)
        shutil.rmtree(self.profile, ignore_errors=True)

    def kill(self) -> None:
        """End the browser's processes by force."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)


class Page:
    """One tab. Used by one thread at a time; calls raise BrowserLost where it or its browser is gone, BrowserHung where it is stuck."""

    def __init__(self, browser: Browser, script: str) -> None:
        self.browser = browser
        self._loaded = threading.Event()
        self._crashed = self._closed = False
        # A window of its own: of the tabs in a window, all but one are shown a frame a second only.
        self._target = str(browser.call("Target.createTarget", url="about:blank", newWindow=True)["targetId"])
        self._session = str(browser.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"])
        browser._pages[self._session] = self
        self.do(
            ("Page.enable", {}),
            ("Inspector.enable", {}),
            ("Emulation.setFocusEmulationEnabled", {"enabled": True}),
            ("Page.addScriptToEvaluateOnNewDocument", {"source": script}),
        )

    @property
    def alive(self) -> bool:
        return self.browser.alive and not self._crashed and not self._closed

    def load(self, url: str, timeout: float = ANSWER) -> None:
        """Go to an address and wait until everything on it is loaded."""
        self._loaded.clear()
        result = self.browser.call("Page.navigate", self._session, timeout, url=url)
        if text := result.get("errorText"):
            raise EnvError(f"the browser cannot open {url}: {text}")
        if not self._loaded.wait(timeout) or not self.alive:
            if self.alive:
                raise BrowserHung(f"{url} was not loaded within {timeout:g} s")
            raise BrowserLost(f"the page ended while it loaded {url}")

    def do(self, *commands: tuple[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Results of commands of the DevTools protocol, sent together."""
        if self._closed or self._crashed:
            raise BrowserLost("the page is closed" if self._closed else "the page has crashed")
        return self.browser.calls(commands, self._session)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, through JSON. Raises EnvError where it throws."""
        return value_of(self.do(evaluation(expression))[0])

    def _heard(self, event: str) -> None:
        if event == "Page.loadEventFired":
            self._loaded.set()
        elif event in ("Inspector.targetCrashed", "Inspector.detached"):
            self._crashed = True
            self._loaded.set()

    def close(self) -> None:
        """Close the tab, and with its last tab the browser."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(EnvError):
            if self.browser.alive:
                self.browser.call("Target.closeTarget", targetId=self._target)
        self.browser.release()


def evaluation(expression: str) -> tuple[str, Mapping[str, Any]]:
    """The command that evaluates a JavaScript expression, for `Page.do`; `value_of` reads its result."""
    return "Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True}


def value_of(result: Mapping[str, Any]) -> Any:
    """The value in the result of an evaluation. Raises EnvError where the expression threw."""
    if (thrown := result.get("exceptionDetails")) is not None:
        told = thrown.get("exception", {}).get("description") or thrown.get("text")
        raise EnvError(f"a script on the page failed: {told}")
    return result["result"].get("value")


def _after_fork() -> None:
    """In a child: let go of the parent's browsers, which would otherwise not notice the parent's end."""
    global _lock
    _lock = threading.Lock()
    for browser in _browsers:
        if not browser._ended:
            for fd in (browser._from, browser._to):
                with contextlib.suppress(OSError):
                    os.close(fd)
    _browsers.clear()


os.register_at_fork(after_in_child=_after_fork)
