"""How the browser of `whet.envs.chromium` is started, and how it is kept off the network.

The browser reads commands from its file descriptor 3 and answers on 4. A shell stands between it and this process, in a
process group of its own, so that whatever ends the browser, its profile is taken away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time

from whet.errors import MissingExtra

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # its sandbox needs namespaces that containers often lack; the pages are local files
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-breakpad",
    "--disable-dev-shm-usage",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--no-first-run",
    "--no-default-browser-check",
    # The pages are local, and nothing else is to be had: names and addresses resolve to nothing, requests go to a proxy that
    # does not exist, and WebRTC may send nothing around it.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--proxy-server=http://none.invalid:1",
    "--proxy-bypass-list=<-loopback>",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--mute-audio",
    "--hide-scrollbars",
    "--disable-smooth-scrolling",
    "--lang=en-US",
    "--force-device-scale-factor=1",
    "--allow-file-access-from-files",
    "--remote-debugging-pipe",
)
# The shell outlives the browser, whatever ends that, and takes its profile away. `$1` is the profile, the rest the command.
_KEEPER = 'profile=$1; shift; "$@"; code=$?; rm -rf -- "$profile"; exit $code'


def executable() -> str:
    """Path of the browser. Raises MissingExtra, with the command that installs one, where there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise MissingExtra(f"no browser found (looked for {', '.join(NAMES)} on PATH). Run as root: apt-get install -y chromium")


def profile() -> str:
    """An empty directory for everything that a browser writes. It holds a socket, whose path may have 107 bytes at most."""
    return tempfile.mkdtemp(prefix="whet-chromium-", dir=None if len(tempfile.gettempdir()) <= 40 else "/tmp")


def spawn(profile: str, errors: int) -> tuple[int, int, int]:
    """Start a browser: its process id (which is also its group's), the descriptor to read from and the one to write to.

    `errors` is the descriptor that its standard error goes to.
    """
    path = executable()
    command = [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    environment = {**os.environ, "HOME": profile, "TMPDIR": profile, "TZ": "UTC", "LANG": "en_US.UTF-8"}
    for name in ("DBUS_SESSION_BUS_ADDRESS", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "DISPLAY", "WAYLAND_DISPLAY"):
        environment.pop(name, None)
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        (commands, write), (read, answers) = _pipe(), _pipe()
        for fd in (write, read):
            ours.callback(os.close, fd)
        for fd in (commands, answers):
            theirs.callback(os.close, fd)
        # posix_spawn, because code between fork and exec is not safe in a process with threads.
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", _KEEPER, "sh", profile, *command],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, errors, 2),
                (os.POSIX_SPAWN_DUP2, commands, 3),
                (os.POSIX_SPAWN_DUP2, answers, 4),
            ],
            setpgroup=0,
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGPIPE),
        )
        ours.pop_all()
    return pid, read, write


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are above 9, out of the way of the numbers that the browser wants."""
    low = os.pipe()
    try:
        read, write = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in low)
    finally:
        for fd in low:
            os.close(fd)
    return read, write


def gone(pid: int, seconds: float) -> bool:
    """Whether the child has ended within this time; it is then no zombie either."""
    until = time.monotonic() + seconds
    while True:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
