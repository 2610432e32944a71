"""What confines a process: the filters' programs, kernels that offer less, and what is not trusted to have worked."""

import re
import struct
from pathlib import Path

import pytest

from whet.cli import doctor
from whet.tools.sandbox import SandboxUnavailable, landlock, open_sandbox, process, syscalls

confining = pytest.mark.skipif(bool(process.offers()[1]), reason="this machine cannot confine a process")


# The filters, run by an interpreter of our own for both architectures, since only one of them is here.

ALLOW, KILL = "allow", "kill"


def verdict(machine: str, rules: syscalls.Rules, number: int, *arguments: int, arch: int | None = None) -> str | int:
    """What the program says to a call: allow, kill, or the errno."""
    given = [a & (2**64 - 1) for a in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("<iIQ6Q", number - (1 << 32) if number >= 1 << 31 else number, arch or syscalls.ARCHITECTURES[machine], 0, *given)
    code = syscalls.program(machine, rules)
    at, accumulator = 0, 0
    while True:
        operation, yes, no, value = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x54:
            accumulator &= value
        elif operation in (0x15, 0x35, 0x45):
            held = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            at += yes if held else no
        else:
            assert operation == 0x06
            return {0x7FFF0000: ALLOW, 0x80000000: KILL}.get(value) or (value & 0xFFFF if value >> 16 == 5 else "?")


STRICT = syscalls.Rules()
CALLS = {  # from the kernel's tables, by hand: x86-64, aarch64
    "read": (0, 63), "openat": (257, 56), "clone": (56, 220), "clone3": (435, 435), "execve": (59, 221), "socket": (41, 198),
    "socketpair": (53, 199), "kill": (62, 129), "tgkill": (234, 131), "fcntl": (72, 25), "ioctl": (16, 29), "prctl": (157, 167),
    "prlimit64": (302, 261), "sendto": (44, 206), "truncate": (76, 45), "ptrace": (101, 117), "mmap": (9, 222), "setsid": (112, 157),
    "fchmodat": (268, 53), "io_uring_setup": (425, 425), "bpf": (321, 280), "unshare": (272, 97), "memfd_create": (319, 279),
}  # fmt: skip


@pytest.mark.parametrize(("column", "machine"), enumerate(syscalls.ARCHITECTURES))
def test_what_the_filters_say(column, machine):
    def told(name, *arguments, rules=STRICT):
        return verdict(machine, rules, CALLS[name][column], *arguments)

    eperm, enotty, enosys = 1, 25, 38
    assert told("read") == told("mmap") == told("openat", 0, 0, 0o1000) == ALLOW
    for name in ("socket", "ptrace", "execve", "setsid", "fchmodat", "io_uring_setup", "bpf", "unshare", "memfd_create"):
        assert told(name) == eperm, name
    assert told("clone3") == enosys
    assert verdict(machine, STRICT, 451) == verdict(machine, STRICT, 9999) == enosys
    thread, fork, namespace = 0x3D0F00, 0x1200011, 0x10000000 | 17
    assert told("clone", thread) == ALLOW
    assert told("clone", fork) == told("clone", thread | 0x10000000) == eperm
    tree = syscalls.Rules(fork=True, execute=True, signals=True)
    assert told("execve", rules=tree) == told("kill", 1, rules=tree) == ALLOW
    assert told("clone", fork, rules=tree) == told("clone", thread, rules=tree) == ALLOW
    trusted = syscalls.Rules(trusted=True)
    assert told("clone", fork, rules=trusted) == told("setsid", rules=trusted) == told("prctl", 1, rules=trusted) == ALLOW
    assert told("execve", rules=trusted) == told("socket", rules=trusted) == told("clone", namespace, rules=trusted) == eperm
    assert told("clone", namespace, rules=tree) == told("clone", 0x8011, rules=tree) == told("setsid", rules=tree) == eperm
    assert told("kill", syscalls.OWN_PID) == told("kill", 0) == told("tgkill", syscalls.OWN_PID, 5) == ALLOW
    assert told("kill", 1) == told("kill", -1) == told("tgkill", 0) == told("tgkill", 1, 1) == eperm
    assert told("socketpair", 1, 1) == told("socketpair", 1, 1 | 0o2000000) == ALLOW
    assert told("socketpair", 1, 2) == told("socketpair", 1, 5) == told("socketpair", 2, 1) == eperm
    assert told("sendto", 3, 0, 1, 0, 0) == ALLOW
    assert told("sendto", 3, 0, 1, 0, 0x1234) == told("sendto", 3, 0, 1, 0, 1 << 32) == eperm
    assert told("prlimit64", 0, 7, 0) == ALLOW
    assert told("prlimit64", 0, 7, 0x1000) == told("prlimit64", 77, 7, 0) == told("prlimit64", 0, 7, 1 << 40) == eperm
    assert [told("fcntl", 3, command) for command in (0, 1, 3, 1030)] == [ALLOW] * 4
    assert [told("fcntl", 3, command) for command in (8, 10, 15, 1024, 1026, 1031)] == [eperm] * 6
    assert told("ioctl", 0, 0x5401) == ALLOW
    assert told("ioctl", 0, 0x5412) == enotty
    assert told("prctl", 15) == ALLOW
    assert told("prctl", 1) == told("prctl", 22) == eperm
    old = syscalls.Rules(truncates=False)
    assert told("openat", 0, 0, 0o1000, rules=old) == told("truncate", rules=old) == eperm
    assert told("openat", 0, 0, 0o1001, rules=old) == told("openat", 0, 0, 0, rules=old) == ALLOW
    assert verdict(machine, STRICT, 0, arch=0x40000003) == KILL
    assert machine != "x86_64" or verdict(machine, STRICT, 0x40000000) == enosys


def test_numbers_are_those_of_the_headers():
    headers = {"x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), "aarch64": Path("/usr/include/asm-generic/unistd.h")}
    if not all(path.exists() for path in headers.values()):
        pytest.skip("the kernel's headers are not installed")
    text = " ".join((syscalls._PLAIN, syscalls._CHECKED, syscalls._MISSING, syscalls._TRUSTED))
    for machine, path in headers.items():
        found = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())}
        found |= {"newfstatat": found.get("newfstatat", found.get("fstatat", 0))}
        ours = syscalls.numbers(text, machine)
        assert len(ours) > 150
        assert {name: number for name, number in ours.items() if found[name] != number} == {}


# Kernels that offer less.


@confining
@pytest.mark.parametrize("abi", [1, 2, 3, 4, 5, 6, 7])
def test_older_landlock(abi, monkeypatch, tmp_path):
    """A kernel accepts the rules of the versions before its own, so that each version's can be tried."""
    if abi > landlock.abi():
        pytest.skip(f"this kernel has Landlock ABI {landlock.abi()}")
    monkeypatch.setattr(landlock, "abi", lambda: abi)
    monkeypatch.setattr(process, "_tested", set())
    victim = tmp_path / "victim"
    victim.write_text("kept")
    code = f"""
import os
target = {str(victim)!r}
for attempt in (lambda: open(target), lambda: open(target, "w"), lambda: os.truncate(target, 0), lambda: os.open(target, os.O_TRUNC),
                lambda: os.rename(target, "x"), lambda: os.link(target, "y"), lambda: os.kill(os.getppid(), 0), lambda: os.chmod(target, 0),
                ):
    try:
        attempt()
        print("WORKED")
    except OSError:
        print("refused")
os.mkdir("d"); open("a", "w").write("long"); os.truncate("a", 1) if {abi} >= 3 else open("a", "w").write("l")
print(open("a").read())
"""
    with open_sandbox() as sandbox:
        assert sandbox.run(code).stdout == "refused\n" * 8 + "l\n"
        assert sandbox.capabilities.details[0] == f"Landlock ABI {abi}"
    with open_sandbox("zygote") as sandbox:
        assert sandbox.run(code).stdout == "refused\n" * 8 + "l\n"
    with open_sandbox(processes=4) as sandbox:
        assert sandbox.run(argv=["sh", "-c", "echo a | cat; kill -9 $PPID || echo kept"]).stdout == "a\nkept\n"
    assert victim.read_text() == "kept"


@confining
@pytest.mark.parametrize("lacking", ["landlock", "seccomp", "table"])
def test_a_kernel_that_offers_too_little_is_refused(lacking, monkeypatch):
    if lacking == "landlock":
        monkeypatch.setattr(landlock, "abi", lambda: 0)
    elif lacking == "seccomp":
        monkeypatch.setattr(process, "_has_seccomp", lambda: False)
    else:
        monkeypatch.setattr(process.platform, "machine", lambda: "riscv64")
    for kind in ("process", "zygote"):
        with pytest.raises(SandboxUnavailable, match=r"cannot confine a process; it lacks .*allow_weak=True"):
            open_sandbox(kind)
        with open_sandbox(kind, allow_weak=True) as weak:
            assert weak.capabilities.isolation == "weak"
            assert weak.capabilities.gaps
            assert weak.run("print(1)").stdout == "1\n"
            assert weak.run("while True: pass", timeout=0.2).killed_by == "timeout"
    assert next(state for state, _ in doctor.sandboxes().values()) == "-"


@confining
def test_a_process_that_cannot_be_confined_runs_nothing(monkeypatch, tmp_path):
    cold = open_sandbox()
    marker = tmp_path / "ran"
    monkeypatch.setattr(cold, "_filter", lambda rules: b"\xff" * 16)
    with pytest.raises(SandboxUnavailable, match="a process could not be confined: OSError"):
        cold.run(f"open({str(marker)!r}, 'w')")
    assert not marker.exists()


@confining
def test_a_sandbox_that_does_not_hold_is_not_opened(monkeypatch):
    """What is in force is tried, not believed."""
    everything = (b"/etc", landlock.READ, False)
    plan = landlock.plan
    monkeypatch.setattr(landlock, "plan", lambda *a, **k: landlock.Plan([*plan(*a, **k).rules, everything], [], []))
    monkeypatch.setattr(process, "_tested", set())
    with pytest.raises(SandboxUnavailable, match="test of itself failed: not confined"):
        open_sandbox()
