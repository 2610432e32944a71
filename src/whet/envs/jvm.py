"""A Java virtual machine behind environments: a process with py4j's gateway in it, and the static fields of what runs there.

Where a program keeps something once for all its objects (a random generator, a counter), episodes that share a machine would
change it for each other. A `Static` names such a field; every server then has a value of its own, which is put in place before
it is asked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.errors import EnvError, MissingExtra

if TYPE_CHECKING:
    from whet.envs.java import Server

OPTIONS = ("-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
"""Few threads and little warming up: a machine answers one short question at a time."""

# What py4j logs, with tracebacks, when a machine has died becomes an EnvError here, which says it once. Some of it is logged
# by the root logger.
logging.getLogger("py4j").setLevel(logging.CRITICAL)
logging.getLogger().addFilter(lambda record: os.path.basename(os.path.dirname(record.pathname)) != "py4j")


class JavaRaised(EnvError):
    """A Java method raised an exception; the machine goes on."""


@dataclass(frozen=True, slots=True)
class Static:
    """A field that a program has once for all its objects."""

    holder: str
    """Class of the Scala object that has it, which ends in `$`."""
    name: str
    initial: int | str
    """A number, or the Java class whose new object it is at first."""


class Machine:
    """A running Java virtual machine with py4j's gateway in it, reached over a local port that asks for a secret."""

    def __init__(self, name: str, jar: str, *, options: Sequence[str], statics: Sequence[Static], start_s: float, answer_s: float) -> None:
        """Raises EnvError where it is not up after `start_s` seconds, MissingExtra without a Java runtime."""
        from py4j.java_gateway import GatewayParameters, JavaGateway, find_jar_path

        java = shutil.which("java", path=_paths())
        if java is None:
            told = f"the environment {name!r} runs on a Java runtime (8 or later), and there is no program 'java'"
            raise MissingExtra(f"{told}. Install one, such as: apt-get install default-jre-headless")
        self.name, self.answer_s = name, answer_s
        self.users = self.served = 0
        self.lock = threading.Lock()
        self.statics = Statics(self, statics) if statics else None
        self._classes: dict[str, Any] = {}
        self._kept: dict[str, list[Any]] = {}
        self._said: deque[str] = deque(maxlen=8)
        self._up = False
        command = [java, *OPTIONS, *options, "-classpath", os.pathsep.join((find_jar_path(), jar))]
        # It leaves when its standard input ends, that is with this process, and lives in a session of its own, so that
        # Ctrl-C reaches only the rollout, which closes it in good order.
        self.process = subprocess.Popen(
            [*command, "py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=os.path.dirname(jar),
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            port, secret = self._greeting(start_s)
            parameters = GatewayParameters(port=port, auth_token=secret, read_timeout=answer_s)
            self.gateway = JavaGateway(gateway_parameters=parameters)
        except BaseException:
            self.kill()
            raise

    def _greeting(self, seconds: float) -> tuple[int, str]:
        """Port and secret: two lines that the gateway prints, behind whatever Java has to say first."""
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(lines,), daemon=True, name=f"java-{self.name}").start()
        until, port = time.monotonic() + seconds, ""
        while True:
            try:
                line = lines.get(timeout=max(0.0, until - time.monotonic())).strip()
            except queue.Empty:
                raise EnvError(f"Java for the environment {self.name!r} was not up after {seconds:g} s") from None
            if not line:
                raise EnvError(f"Java for the environment {self.name!r} ended at its start. It said: {self.said}")
            if port:
                self._said.clear()
                self._up = True
                return int(port), line
            if line.isdecimal():
                port = line

    def _listen(self, lines: queue.SimpleQueue[str]) -> None:
        """Read what Java prints to its end, since a full pipe would stop it; the last lines are kept for messages."""
        stdout = self.process.stdout
        assert stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed under us
            for line in stdout:
                if line.strip():
                    if not self._up:
                        lines.put(line)
                    self._said.append(line.strip())
        lines.put("")

    @property
    def said(self) -> str:
        """The last lines that Java printed."""
        return " / ".join(self._said) or "nothing"

    def alive(self) -> bool:
        return self.process.poll() is None

    def keep(self, key: str, thing: Any) -> None:
        """Put a Java object aside for whoever asks for this key next."""
        with self.lock:
            self._kept.setdefault(key, []).append(thing)

    def kept(self, key: str) -> Any:
        """A Java object that was put aside, or None."""
        with self.lock:
            things = self._kept.get(key)
            return things.pop() if things else None

    def cls(self, name: str) -> Any:
        """The constructor of a Java class, or its companion object where the name ends in `$`."""
        if name not in self._classes:
            found: Any = self.gateway.jvm
            for part in name.split("."):
                found = getattr(found, part)
            self._classes[name] = found
        return self._classes[name]

    def kill(self) -> None:
        """End it at once; it holds nothing that would have to be saved."""
        if hasattr(self, "gateway"):
            # Else py4j would tell it, from within Python's garbage collection, which of its objects are not needed any more.
            self.gateway._gateway_client.is_connected = False
        self.process.kill()
        self.process.wait(10)
        if hasattr(self, "gateway"):
            with contextlib.suppress(Exception):
                self.gateway.close()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _paths() -> str:
    """Where `java` is looked for: JAVA_HOME first."""
    home = os.environ.get("JAVA_HOME")
    return os.pathsep.join(([os.path.join(home, "bin")] if home else []) + [os.environ.get("PATH", os.defpath)])


class Statics:
    """The static fields of a machine, of which every server has values of its own. One server's calls are made at a time."""

    def __init__(self, machine: Machine, fields: Sequence[Static]) -> None:
        self._machine, self._fields = machine, fields
        self._turn = threading.RLock()
        self._found: dict[Static, tuple[Any, Any]] = {}
        self._present: Server | None = None

    @contextlib.contextmanager
    def of(self, server: Server) -> Iterator[None]:
        """Nobody else calls meanwhile, and the fields hold this server's values; those of the one before are put aside."""
        with self._turn:
            if server is not self._present:
                if self._present is not None:
                    self._present.values = [self._get(static) for static in self._fields]
                for static, value in zip(self._fields, server.values or map(self._initial, self._fields)):
                    self._set(static, value)
                self._present = server
            yield

    @contextlib.contextmanager
    def renewed(self, static: Static) -> Iterator[None]:
        """The field has its initial value meanwhile, and afterwards the one that it had. Within `of`."""
        own = self._get(static)
        self._set(static, self._initial(static))
        try:
            yield
        finally:
            self._set(static, own)

    def _initial(self, static: Static) -> Any:
        return self._machine.cls(static.initial)() if isinstance(static.initial, str) else static.initial

    def _get(self, static: Static) -> Any:
        field, holder = self._field(static)
        return field.get(holder)

    def _set(self, static: Static, value: Any) -> None:
        field, holder = self._field(static)
        field.set(holder, value)

    def _field(self, static: Static) -> tuple[Any, Any]:
        """Java's handle of the field, which may be final and inherited, and the Scala object that has it."""
        if static not in self._found:
            holder = getattr(self._machine.cls(static.holder), "MODULE$")
            cls = holder.getClass()
            while cls is not None and static.name not in [field.getName() for field in cls.getDeclaredFields()]:
                cls = cls.getSuperclass()
            if cls is None:
                told = f"{static.holder} has no field {static.name!r}"
                raise EnvError(f"{told}, which the environment {self._machine.name!r} relies on; is its package of another version?")
            field = cls.getDeclaredField(static.name)
            field.setAccessible(True)
            self._found[static] = field, holder
        return self._found[static]
