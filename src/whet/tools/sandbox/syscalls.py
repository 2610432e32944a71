"""Which system calls a confined process may make, as seccomp programs for x86-64 and aarch64.

A list of what is allowed: anything else fails with EPERM, and calls newer than the list with ENOSYS, so that libraries fall
back to older ones. Numbers are those of Linux's asm/unistd_64.h (x86-64) and asm-generic/unistd.h (aarch64).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

EPERM, ENOTTY, ENOSYS = 1, 25, 38
OWN_PID = 0xFFFFFF42
"""Stands in a program for the process's own id, which only the process itself can fill in."""

_PLAIN = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70 preadv2:327:286
pwritev2:328:287 lseek:8:62 sendfile:40:71 copy_file_range:326:285 close:3:57 close_range:436:436
dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59 flock:73:32 stat:4:- fstat:5:80 lstat:6:-
newfstatat:262:79 statx:332:291 statfs:137:43 fstatfs:138:44 access:21:- faccessat:269:48 faccessat2:439:439 readlink:89:-
readlinkat:267:78 getcwd:79:17 chdir:80:49 fchdir:81:50 getdents:78:- getdents64:217:61 umask:95:166 mkdir:83:- mkdirat:258:34
rmdir:84:- unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276 link:86:- linkat:265:37 symlink:88:-
symlinkat:266:36 ftruncate:77:46 fallocate:285:47 fadvise64:221:223 readahead:187:213 sync_file_range:277:84
fsync:74:82 fdatasync:75:83 mmap:9:222 mprotect:10:226 munmap:11:215 mremap:25:216 madvise:28:233 brk:12:214 msync:26:227
mincore:27:232 membarrier:324:283 poll:7:- ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:- epoll_create1:291:20
epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:- eventfd2:290:19 signalfd:282:-
signalfd4:289:74 timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87 timer_create:222:107 timer_settime:223:110
timer_gettime:224:108 timer_getoverrun:225:109 timer_delete:226:111 getitimer:36:102 setitimer:38:103 alarm:37:- pause:34:-
nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113 clock_getres:229:114 gettimeofday:96:169 time:201:- times:100:153
getrusage:98:165 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigtimedwait:128:137
rt_sigsuspend:130:133 sigaltstack:131:132 restart_syscall:219:128 wait4:61:260 waitid:247:95 exit:60:93
exit_group:231:94 futex:202:98 set_robust_list:273:99 get_robust_list:274:100 set_tid_address:218:96 rseq:334:293 arch_prctl:158:-
sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120 sched_get_priority_max:146:125
sched_get_priority_min:147:126 getcpu:309:168 getpid:39:172 gettid:186:178 getppid:110:173 getpgid:121:155 getpgrp:111:-
getsid:124:156 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150
getgroups:115:158 capget:125:90 getpriority:140:141 getrlimit:97:163 uname:63:160 sysinfo:99:179 getrandom:318:278
recvfrom:45:207 recvmsg:47:212 recvmmsg:299:243 sendmsg:46:211 sendmmsg:307:269 shutdown:48:210 getsockname:51:204
getpeername:52:205 getsockopt:55:209
"""
_CHECKED = """
open:2:- openat:257:56 creat:85:- truncate:76:45 fcntl:72:25 ioctl:16:29 prctl:157:167 prlimit64:302:261 kill:62:129 tgkill:234:131
clone:56:220 fork:57:- vfork:58:- execve:59:221 execveat:322:281 socketpair:53:199 sendto:44:206
"""
_MISSING = "clone3:435:435 openat2:437:437"
"""Their arguments lie in memory, where a filter cannot see them; libraries fall back to the older calls."""
_TRUSTED = """
setsid:112:157 setrlimit:160:164 seccomp:317:277 landlock_create_ruleset:444:444 landlock_add_rule:445:445
landlock_restrict_self:446:446
"""
"""What a zygote needs besides, to confine its children; they lose it."""
_NEWEST = 450
"""The newest call that the list takes a stand on."""

_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)
"""Duplicates, flags, record locks, the pipe's size and a memfd's seals, the last two to be read. Without owners and signals
(they reach other processes), leases and directory notes (they touch files outside)."""
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
_PRCTL = (3, 15, 16, 23, 0x53564D41)
"""Get dumpable, set and get the thread's name, read the bounding set, name a mapping."""
_PRCTL_TRUSTED = (1, 22, 38)
"""Set the death signal, seccomp, no new privileges."""
_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
_CLONE_THREAD, _CLONE_PARENT = 0x00010000, 0x00008000
_AF_UNIX, _SOCK_STREAM = 1, 1
_O_TRUNC, _O_ACCMODE = 0o1000, 0o3

_LD, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_NR, _ARCH = 0, 4

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What differs between programs."""

    fork: bool = False
    """Whether new processes may be made; threads always may."""
    execute: bool = False
    """Whether other programs may be run in a process's place; Landlock says which."""
    signals: bool = False
    """Whether signals may go to other processes, because Landlock keeps them inside."""
    truncates: bool = True
    """Whether Landlock handles truncation by path (ABI 3); if not, it is refused here."""
    trusted: bool = False
    """For a zygote, which runs no code of a model itself."""


def numbers(text: str, machine: str) -> dict[str, int]:
    """Name -> number, of the calls that exist on this machine."""
    column = {"x86_64": 1, "aarch64": 2}[machine]
    parts = (item.split(":") for item in text.split())
    return {part[0]: int(part[column]) for part in parts if part[column] != "-"}


def program(machine: str, rules: Rules) -> bytes:
    """The filter as the kernel takes it: 8 bytes an instruction. Raises KeyError for an unknown architecture."""
    code: list[Instruction] = [(_LD, 0, 0, _ARCH), (_JEQ, 1, 0, ARCHITECTURES[machine]), (_RET, 0, 0, _KILL), (_LD, 0, 0, _NR)]
    if machine == "x86_64":  # the x32 calls have numbers of their own
        code += [(_JGE, 0, 1, 0x40000000), _fail(ENOSYS)]
    allowed = list(numbers(_PLAIN + (_TRUSTED if rules.trusted else ""), machine).values())
    for number in allowed:
        code += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ALLOW)]
    for name, number in numbers(_CHECKED, machine).items():
        block = _block(name, rules)
        code += [(_JEQ, 0, len(block), number), *block]
    for number in numbers(_MISSING, machine).values():
        code += [(_JEQ, 0, 1, number), _fail(ENOSYS)]
    code += [(_JGE, 0, 1, _NEWEST + 1), _fail(ENOSYS), _fail(EPERM)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _block(name: str, rules: Rules) -> list[Instruction]:
    """What is done with a call whose arguments decide; always ends by returning."""
    if name in ("open", "openat"):
        return [(_RET, 0, 0, _ALLOW)] if rules.truncates else _no_hidden_truncation(1 if name == "open" else 2)
    if name in ("creat", "truncate"):  # creat opens for writing, which Landlock handles from the start
        return [(_RET, 0, 0, _ALLOW) if rules.truncates or name == "creat" else _fail(EPERM)]
    if name == "fcntl":
        return _one_of(1, _FCNTL)
    if name == "ioctl":
        return _one_of(1, _IOCTL, ENOTTY)
    if name == "prctl":
        return _one_of(0, _PRCTL + (_PRCTL_TRUSTED if rules.trusted else ()))
    if name == "prlimit64":  # limits may be read, not set
        return [(_RET, 0, 0, _ALLOW)] if rules.trusted else [*_zero(0), *_zero(2), (_RET, 0, 0, _ALLOW)]
    if name in ("kill", "tgkill"):
        return [(_RET, 0, 0, _ALLOW)] if rules.signals or rules.trusted else _one_of(0, (OWN_PID, 0) if name == "kill" else (OWN_PID,))
    if name == "clone":
        return _clone(rules.fork or rules.trusted)
    if name in ("fork", "vfork"):
        return [(_RET, 0, 0, _ALLOW) if rules.fork or rules.trusted else _fail(EPERM)]
    if name in ("execve", "execveat"):
        return [(_RET, 0, 0, _ALLOW) if rules.execute else _fail(EPERM)]
    if name == "socketpair":  # asyncio's loop needs one; a connected stream can be aimed at nothing else
        stream = [(_LD, 0, 0, _argument(1)), (_AND, 0, 0, 0xF), (_JEQ, 0, 1, _SOCK_STREAM), (_RET, 0, 0, _ALLOW), _fail(EPERM)]
        return [(_LD, 0, 0, _argument(0)), (_JEQ, 1, 0, _AF_UNIX), _fail(EPERM), *stream]
    assert name == "sendto"
    return [*_zero(4), (_RET, 0, 0, _ALLOW)]


def _clone(fork: bool) -> list[Instruction]:
    """Threads, and processes where they are allowed; never namespaces, nor a process that is somebody else's child."""
    load: Instruction = (_LD, 0, 0, _argument(0))
    refused: list[Instruction] = [load, (_JSET, 0, 1, _NAMESPACES), _fail(EPERM)]
    thread: list[Instruction] = [(_JSET, 0, 1, _CLONE_THREAD), (_RET, 0, 0, _ALLOW)]
    rest: list[Instruction] = [(_JSET, 0, 1, _CLONE_PARENT), _fail(EPERM), (_RET, 0, 0, _ALLOW)] if fork else [_fail(EPERM)]
    return [*refused, *thread, *rest]


def _no_hidden_truncation(flags: int) -> list[Instruction]:
    """Opening for reading with O_TRUNC empties a file; without ABI 3, Landlock does not see it."""
    load: Instruction = (_LD, 0, 0, _argument(flags))
    allow: Instruction = (_RET, 0, 0, _ALLOW)
    return [load, (_JSET, 1, 0, _O_TRUNC), allow, (_AND, 0, 0, _O_ACCMODE), (_JEQ, 1, 0, 0), allow, _fail(EPERM)]


def _one_of(argument: int, values: Sequence[int], error: int = EPERM) -> list[Instruction]:
    """Allowed where the low 32 bits of the argument (all that these calls look at) are one of `values`."""
    code: list[Instruction] = [(_LD, 0, 0, _argument(argument))]
    for value in values:
        code += [(_JEQ, 0, 1, value), (_RET, 0, 0, _ALLOW)]
    return [*code, _fail(error)]


def _zero(argument: int) -> list[Instruction]:
    """Goes on only where all 64 bits of the argument are zero."""
    low = _argument(argument)
    return [(_LD, 0, 0, low), (_JEQ, 1, 0, 0), _fail(EPERM), (_LD, 0, 0, low + 4), (_JEQ, 1, 0, 0), _fail(EPERM)]


def _argument(i: int) -> int:
    """Offset of the low half of an argument in `struct seccomp_data`; both architectures are little-endian."""
    return 16 + 8 * i


def _fail(error: int) -> Instruction:
    return (_RET, 0, 0, 0x00050000 | error)
