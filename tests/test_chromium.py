"""The browser behind `miniwob`: what it answers, that it cannot reach a network, how it dies, and that nothing stays behind."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from browsers import comes_true, leftovers, main_process, needs_browser, processes, renderer
from whet.envs import chromium, chromium_process
from whet.envs.chromium import ANSWER, Browser, BrowserHung, BrowserLost, Page, evaluation, open_page, value_of
from whet.errors import EnvError, MissingExtra

slow = pytest.mark.slow
ENDLESS = "(() => { for (;;); })()"


@pytest.fixture
def pages():
    """Opens pages, closes them after the test, and then finds nothing of their browsers."""
    opened: list[Page] = []
    before = leftovers()

    def opening(script: str = "") -> Page:
        opened.append(open_page(script))
        return opened[-1]

    yield opening
    for page in opened:
        page.close()
    browsers = {page.browser for page in opened}
    assert comes_true(lambda: not any(processes(browser) for browser in browsers)), [processes(browser) for browser in browsers]
    assert leftovers() <= before


# -- without a browser -----------------------------------------------------------------------------------------------------


def test_without_a_browser_the_error_names_the_command_that_installs_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtra, match=r"no browser found \(looked for chromium, .*apt-get install -y chromium"):
        chromium_process.executable()


def test_what_is_no_browser_is_an_error_with_its_last_words(monkeypatch, tmp_path):
    fake = tmp_path / "chromium"
    fake.write_text("#!/bin/sh\necho cannot open display >&2\nexit 7\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = leftovers()
    with pytest.raises(EnvError, match=r"chromium did not start: the browser [^\n]*ended[^\n]*\ncannot open display"):
        open_page()
    assert comes_true(lambda: leftovers() <= before)


def test_values_and_exceptions_of_scripts():
    assert value_of({"result": {"value": [1, {"a": None}]}}) == [1, {"a": None}]
    assert value_of({"result": {"type": "undefined"}}) is None
    with pytest.raises(EnvError, match="a script on the page failed: TypeError: x is not a function"):
        value_of({"result": {}, "exceptionDetails": {"exception": {"description": "TypeError: x is not a function"}}})
    assert evaluation("1 + 1")[1]["expression"] == "1 + 1"


def test_the_profile_lies_where_a_sockets_path_is_short_enough(monkeypatch, tmp_path):
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    profile = chromium_process.profile()
    os.rmdir(profile)
    assert len(f"{profile}/org.chromium.Chromium.XXXXXX/SingletonSocket") < 108


# -- pages -----------------------------------------------------------------------------------------------------------------


@needs_browser
@slow
def test_a_page_answers(pages, tmp_path):
    (tmp_path / "a.html").write_text("<title>A</title><script>var own = seen + 1;</script>")
    page = pages("window.seen = 41;")
    page.load((tmp_path / "a.html").as_uri())
    assert page.evaluate("document.title") == "A"
    assert page.evaluate("own") == 42, "the script that was given ran before the page's own"
    assert page.evaluate("new Promise((resolve) => setTimeout(resolve, 20, [1, 'é']))") == [1, "é"]
    with pytest.raises(EnvError, match="ReferenceError: nothing is not defined"):
        page.evaluate("nothing")
    with pytest.raises(EnvError, match=r"refused Page\.fly"):
        page.do(("Page.fly", {}))
    with pytest.raises(EnvError, match=r"cannot open file://.*missing\.html: net::ERR_FILE_NOT_FOUND"):
        page.load((tmp_path / "missing.html").as_uri())
    assert page.alive
    assert page.evaluate("'x'.repeat(3_000_000).length") == 3_000_000
    assert len(page.evaluate("'x'.repeat(3_000_000)")) == 3_000_000, "answers longer than a pipe holds"
    assert page.evaluate(f"{'x' * 3_000_000!r}.length") == 3_000_000, "and questions"


@needs_browser
@slow
def test_pages_share_a_browser_which_ends_with_its_last(pages, monkeypatch):
    monkeypatch.setattr(chromium, "PAGES_PER_BROWSER", 2)
    first, second, third = pages(), pages(), pages()
    assert first.browser is second.browser is not third.browser
    assert first.browser.profile != third.browser.profile
    first.close()
    assert second.evaluate("1") == 1
    fourth = pages()
    assert fourth.browser is second.browser, "the place of a closed page is free again"
    for page in (second, fourth):
        page.close()
        page.close()
    assert not fourth.browser.alive
    assert not Path(fourth.browser.profile).exists()
    with pytest.raises(BrowserLost, match="is closed"):
        fourth.evaluate("1")
    assert third.evaluate("1") == 1


@needs_browser
@slow
def test_a_browser_that_has_opened_enough_takes_no_more(pages, monkeypatch):
    monkeypatch.setattr(chromium, "RETIRE_AFTER", 2)
    first, second = pages(), pages()
    second.close()
    assert pages().browser is not first.browser
    assert first.evaluate("1") == 1


@needs_browser
@slow
def test_every_page_is_in_front(pages):
    """A tab behind another one is shown a frame once a second, and whatever waits for a frame would wait for that."""
    opened = [pages() for _ in range(3)]
    for page in opened:
        begin = time.monotonic()
        page.evaluate("new Promise((r) => { let n = 0; const next = () => (n++ < 10 ? requestAnimationFrame(next) : r(n)); next(); })")
        assert time.monotonic() - begin < 3.0


@needs_browser
@slow
def test_pages_are_used_from_many_threads(pages):
    opened = [pages() for _ in range(3)]
    wrong: list[object] = []

    def ask(page, number):
        wrong.extend(got for i in range(100) if (got := page.evaluate(f"{number} * 1000 + {i}")) != number * 1000 + i)

    threads = [threading.Thread(target=ask, args=(page, number)) for number, page in enumerate(opened)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- the network -----------------------------------------------------------------------------------------------------------


class Listener:
    """A TCP and a UDP port of this machine, and what came in there."""

    def __init__(self):
        self.heard: list[str] = []
        self._tcp = socket.create_server(("0.0.0.0", 0))
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("0.0.0.0", 0))
        self.tcp, self.udp = self._tcp.getsockname()[1], self._udp.getsockname()[1]
        for listen in (self._accept, self._receive):
            threading.Thread(target=listen, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            connection.settimeout(1.0)
            try:
                self.heard.append(f"tcp {connection.recv(200)[:40]!r}")
            except OSError:
                self.heard.append("tcp connection")
            connection.close()

    def _receive(self):
        while True:
            try:
                self.heard.append(f"udp {self._udp.recv(2000)[:20]!r}")
            except OSError:
                return

    def close(self):
        for one in (self._tcp, self._udp):
            one.close()


@pytest.fixture
def listener():
    listener = Listener()
    yield listener
    listener.close()


# Each ends by itself, whatever comes of it.
PEER = """new Promise((r) => {{
  const peer = new RTCPeerConnection({{ iceServers: [{{ urls: '{server}', username: 'a', credential: 'b' }}] }});
  peer.createDataChannel('a');
  peer.createOffer().then((offer) => peer.setLocalDescription(offer));
  setTimeout(() => {{ peer.close(); r(1); }}, 1500);
}})"""
LOADED = "new Promise((r) => {{ const x = document.createElement('{tag}'); x.onload = x.onerror = () => r(1); x.src = '<WEB>'; {then} }})"
SENT = "fetch('<WEB>', { mode: 'no-cors' }).catch(() => 0)"
ATTEMPTS = {
    "fetch": f"{SENT}.then(() => 1)",
    "XMLHttpRequest": "new Promise((r) => { const x = new XMLHttpRequest(); x.open('GET', '<WEB>'); x.onloadend = () => r(1); x.send(); })",
    "image": LOADED.format(tag="img", then=""),
    "script": LOADED.format(tag="script", then="document.head.append(x);"),
    "frame": LOADED.format(tag="iframe", then="document.body.append(x);"),
    "beacon": "navigator.sendBeacon('<WEB>', 'x')",
    "WebSocket": "new Promise((r) => { const x = new WebSocket('ws://<HOST>:<TCP>/'); x.onopen = x.onerror = () => r(1); })",
    "EventSource": "new Promise((r) => { const x = new EventSource('<WEB>'); x.onerror = () => { x.close(); r(1); }; })",
    "worker": 'new Promise((r) => { const code = new Blob(["' + SENT + '.then(() => postMessage(1))"]);'
    " new Worker(URL.createObjectURL(code)).onmessage = () => r(1); })",
    "STUN": PEER.format(server="stun:<HOST>:<UDP>"),
    "TURN": PEER.format(server="turn:<HOST>:<TCP>?transport=tcp"),
    "WebTransport": "(async () => { try { await new WebTransport('https://<HOST>:<UDP>/').ready; } catch (error) {} return 1; })()",
    "navigation": "(location.href = '<WEB>', 1)",
}


def try_all(page: Page, listener: Listener, host: str, blank: str) -> dict[str, list[str]]:
    """What the listener heard of each attempt."""
    told = {}
    for name, script in ATTEMPTS.items():
        page.load(blank)
        listener.heard.clear()
        for word, meaning in (("<WEB>", "http://<HOST>:<TCP>/a"), ("<HOST>", host), ("<TCP>", listener.tcp), ("<UDP>", listener.udp)):
            script = script.replace(word, str(meaning))
        page.evaluate(script)
        comes_true(lambda: listener.heard, 1.5)
        told[name] = list(listener.heard)
    return told


@needs_browser
@slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_pages_reach_no_network(pages, listener, tmp_path, host):
    (tmp_path / "blank.html").write_text("<body></body>")
    told = try_all(pages(), listener, host, (tmp_path / "blank.html").as_uri())
    assert not any(told.values()), told


@needs_browser
@slow
def test_without_the_flags_every_one_of_these_attempts_arrives(pages, listener, tmp_path, monkeypatch):
    """So the test above tries what works."""
    walls = ("--host-resolver-rules", "--proxy", "--webrtc", "--disable-quic")
    monkeypatch.setattr(chromium_process, "FLAGS", tuple(flag for flag in chromium_process.FLAGS if not flag.startswith(walls)))
    (tmp_path / "blank.html").write_text("<body></body>")
    told = try_all(pages(), listener, "127.0.0.1", (tmp_path / "blank.html").as_uri())
    assert all(told.values()), told


@needs_browser
@slow
def test_the_browser_itself_listens_nowhere(pages):
    page = pages()
    listening = [c for p in processes(page.browser) for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert not listening


# -- what goes wrong -------------------------------------------------------------------------------------------------------


@needs_browser
@slow
def test_a_script_that_never_ends_is_given_up_and_ends_with_its_tab(pages):
    hung, other = pages(), pages()
    assert hung.browser is other.browser
    process = renderer(hung)
    begin = time.monotonic()
    with pytest.raises(BrowserHung, match=f"did not answer Runtime.evaluate within {ANSWER:g} s"):
        hung.evaluate(ENDLESS)
    assert ANSWER <= time.monotonic() - begin < ANSWER + 5
    assert other.evaluate("1 + 1") == 2, "its neighbour goes on meanwhile"
    assert process.is_running()
    hung.close()
    assert comes_true(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE), "its process ends, too"
    assert other.evaluate("1 + 1") == 2


@needs_browser
@slow
def test_a_page_that_never_finishes_loading(pages, tmp_path):
    (tmp_path / "a.html").write_text("<script>for (;;);</script>")
    page = pages()
    with pytest.raises(BrowserHung):
        page.load((tmp_path / "a.html").as_uri(), timeout=2.0)


@needs_browser
@slow
def test_a_killed_tab_is_told_at_once_and_alone(pages):
    lost, other = pages(), pages()
    victim = renderer(lost)
    threading.Timer(0.5, victim.kill).start()
    begin = time.monotonic()
    with pytest.raises(BrowserLost, match="page ended before it answered"):
        lost.evaluate("new Promise(() => {})")
    assert time.monotonic() - begin < ANSWER / 2, "it does not wait for the deadline"
    assert not lost.alive
    with pytest.raises(BrowserLost, match="has crashed"):
        lost.evaluate("1")
    assert other.alive
    assert other.evaluate("1 + 1") == 2


@needs_browser
@slow
def test_a_killed_browser_is_told_at_once_and_takes_its_profile_with_it(pages):
    page = pages()
    browser = page.browser
    threading.Timer(0.5, main_process(browser).kill).start()
    begin = time.monotonic()
    with pytest.raises(BrowserLost, match="browser ended before it answered"):
        page.evaluate("new Promise(() => {})")
    assert time.monotonic() - begin < ANSWER / 2
    assert not page.alive
    assert comes_true(lambda: not processes(browser))
    assert comes_true(lambda: not Path(browser.profile).exists()), "before anybody closes anything"
    assert pages().browser is not browser


@needs_browser
@slow
def test_one_that_does_not_end_when_told_is_killed(pages):
    page = pages()
    main_process(page.browser).send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    page.browser.close()
    assert time.monotonic() - begin < 3 * chromium.EXIT
    assert comes_true(lambda: not processes(page.browser))
    assert not Path(page.browser.profile).exists()


OWNER = """
import os, signal, sys, time
from whet.envs.chromium import open_page
page = open_page()
print(page.browser._pid, page.browser.profile, flush=True)
{ending}
"""


@needs_browser
@slow
@pytest.mark.parametrize(
    "ending",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "sys.exit()",
        "if os.fork():\n    os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(5)",
    ],
    ids=["killed", "exit without closing", "killed, with a forked child that lives on"],
)
def test_the_browser_does_not_outlive_its_process(ending):
    before = leftovers()
    child = subprocess.Popen([sys.executable, "-c", OWNER.format(ending=ending)], stdout=subprocess.PIPE, text=True)
    group, profile = child.stdout.readline().split()
    child.wait()

    def left():
        found = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == int(group) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, ProcessLookupError):
                continue
        return found

    assert comes_true(lambda: not left(), 4.0), left()
    assert comes_true(lambda: not Path(profile).exists())
    assert leftovers() <= before


@needs_browser
@slow
def test_a_forked_child_has_browsers_of_its_own(pages):
    page = pages()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            own = open_page()
            os.write(write, f"{own.browser._pid} {own.evaluate('1 + 1')}".encode())
            own.close()
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    group, value = os.read(read, 100).decode().split()
    os.close(read)
    assert int(group) != page.browser._pid
    assert value == "2"
    assert page.evaluate("1 + 1") == 2


@needs_browser
@slow
def test_open_files_and_threads_go_with_the_browser(pages):
    def usage():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    pages().close()
    before = usage()
    for _ in range(3):
        page = open_page()
        page.close()
    assert comes_true(lambda: usage() <= before), (usage(), before)
    assert isinstance(page.browser, Browser)
