"""What a confined process may read: the Python installation, shared libraries, chosen packages, a few devices.

Landlock's rights are of its ABIs: 1 files and directories (Linux 5.13), 2 moving between directories (5.19), 3 truncation
(6.2), 4 TCP (6.7), 5 ioctl on devices (6.10), 6 signals and abstract sockets (6.12), 7 a quiet audit log (6.15). What an
older one lacks is refused by seccomp instead.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from whet.errors import ConfigError
from whet.tools.sandbox.base import SandboxUnavailable

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
READ = _READ_FILE | _READ_DIR
RUN = READ | _EXECUTE
OWN = READ | _WRITE_FILE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 13 | 1 << 14
"""In the private directory: everything but running programs and making devices, pipes and sockets."""

Rule = tuple[bytes, int, bool]
"""Path, rights, and whether it is a file."""

_BUNDLED = {"pip", "setuptools", "wheel", "_distutils_hack", "distutils-precedence.pth", "pkg_resources", "__pycache__", "README.txt"}
"""What every Python comes with; with no more in it, a site-packages directory needs no hiding."""

_ASK = """
import platform, sys, sysconfig
paths = sysconfig.get_paths()
names = sysconfig.get_config_vars()
print(repr([platform.python_version(), getattr(sys, "_base_executable", sys.executable) or sys.executable,
    [paths["stdlib"], sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix, "base": sys.base_prefix}) or ""],
    [paths["purelib"], paths["platlib"], *__import__("site").getsitepackages()],
    (names.get("LIBDIR") or "") + "/" + (names.get("INSTSONAME") or "")]))
"""


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter and where its parts lie."""

    version: str
    executable: str
    stdlib: tuple[str, ...]
    site: tuple[str, ...]
    library: str


@functools.cache
def abi() -> int:
    """The Landlock ABI of this kernel; 0 where there is none or it is switched off."""
    if sys.platform != "linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    version: int = libc.syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return max(0, version)


@functools.cache
def python(executable: str) -> Python:
    """The interpreter behind a path, asked once. Raises SandboxUnavailable where it does not run."""
    try:
        told = subprocess.run([executable, "-I", "-c", _ASK], capture_output=True, text=True, timeout=60, check=True, cwd="/").stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxUnavailable(f"{executable} does not run as a Python interpreter: {error}") from error
    version, base, stdlib, site, library = eval(told, {"__builtins__": {}})
    unique = tuple(dict.fromkeys(os.path.realpath(path) for path in stdlib if os.path.isdir(path)))
    return Python(version, os.path.realpath(base), unique, tuple(dict.fromkeys(p for p in site if os.path.isdir(p))), library)


def here() -> str:
    """The interpreter that this process runs in."""
    return sys.executable or sysconfig.get_config_var("BINDIR") + "/python3"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a process may read, and where its Python looks for packages."""

    rules: list[Rule]
    site: list[str]
    hidden: list[str]
    """Packages that lie there and may not be read, so that importing one fails as if it were not installed."""


def plan(interpreter: Python, packages: Sequence[str], read: Sequence[str], *, programs: bool) -> Plan:
    """What may be read.

    `packages` are distributions whose files (and those of what they require) may be read; `*` is all of them. `read` are
    other files and directories. With `programs`, programs in the usual places may be run. Raises ConfigError for a package
    or path that does not exist.
    """
    found: dict[str, int] = {}
    for path in interpreter.stdlib:
        found |= {path: _READ_DIR} | dict.fromkeys(_without_site(path), READ)
    for path in _libraries():
        found[path] = RUN if programs else READ
    found[interpreter.library] = found["/etc/ld.so.cache"] = found["/usr/share/zoneinfo"] = READ
    found["/dev/null"] = READ | _WRITE_FILE
    found |= dict.fromkeys(("/dev/zero", "/dev/urandom", "/dev/random"), READ)
    site = _packages(interpreter, packages, found) if packages else []
    hidden = {name.split(".")[0] for place in site for name in os.listdir(place) if found[place] != READ and f"{place}/{name}" not in found}
    for path in read:
        if not os.path.exists(path):
            raise ConfigError(f"read names {path!r}, which does not exist")
        found[os.path.abspath(path)] = READ
    if programs:
        found |= dict.fromkeys(("/bin", "/usr/bin", "/usr/local/bin", interpreter.executable), RUN)
    return Plan(list(_resolved(found)), site, sorted(hidden))


def own(directory: str, *, programs: bool) -> Rule:
    """Everything in the private directory of a run."""
    return os.fsencode(directory), OWN | (_EXECUTE if programs else 0), False


def _resolved(found: dict[str, int]) -> Iterator[Rule]:
    """As rules: links followed, what is not there left out, what lies in a directory with the same rights dropped."""
    real: dict[str, int] = {}
    for path, rights in found.items():
        if path and os.path.exists(path):
            path = os.path.realpath(path)
            real[path] = real.get(path, 0) | rights
    for path, rights in real.items():
        above = os.path.dirname(path)
        while above != "/" and (real.get(above, 0) & rights) != rights:
            above = os.path.dirname(above)
        if above == "/":
            yield os.fsencode(path), rights, not os.path.isdir(path)


def _without_site(stdlib: str) -> Iterable[str]:
    """The standard library without the packages installed inside it, where there are any."""
    sites = [os.path.join(stdlib, name) for name in ("site-packages", "dist-packages")]
    extra = [n for site in sites if os.path.isdir(site) for n in os.listdir(site) if re.split(r"-\d", n)[0] not in _BUNDLED]
    if not extra:
        return [stdlib]
    return [entry.path for entry in os.scandir(stdlib) if entry.path not in sites]


def _libraries() -> Iterator[str]:
    """Directories that hold nothing but libraries, and libraries that lie beside other things."""
    for top in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"):
        yield from glob.glob(f"{top}/*-linux-*")
        yield from (path for path in glob.glob(f"{top}/*.so*") if os.path.isfile(path))


def _packages(interpreter: Python, packages: Sequence[str], found: dict[str, int]) -> list[str]:
    """Adds the files of `packages` to `found`; returns the directories to search."""
    if "*" in packages:
        found |= dict.fromkeys(interpreter.site, READ)
        return list(interpreter.site)
    finder = importlib.metadata.MetadataPathFinder()
    waiting, seen = [(name, True) for name in packages], set()
    used: dict[str, None] = {}
    while waiting:
        name, asked = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in seen:
            continue
        seen.add(key)
        context = importlib.metadata.DistributionFinder.Context(name=name, path=list(interpreter.site))
        distribution = next(iter(finder.find_distributions(context)), None)
        if distribution is None:
            if asked:
                raise ConfigError(f"no distribution {name!r} is installed in {', '.join(interpreter.site)}; install it there")
            continue  # a requirement of another platform
        site = os.path.normpath(str(distribution.locate_file("")))
        used[site] = None
        found.setdefault(site, _READ_DIR)  # Python lists it to find what is in it
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            found[os.path.join(site, top)] = READ
        needed = [r for r in distribution.requires or () if "extra ==" not in r]
        waiting += [(re.split(r"[^\w.\-]", requirement)[0], False) for requirement in needed]
    return list(used)
