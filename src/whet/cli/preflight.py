"""`whet preflight`: whether an environment bears training: its speed, errors, replay and leaks, over many episodes at once."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from whet.cli.common import Parser, count, positive
from whet.errors import ConfigError

SLOW_INLINE = 0.01
"""Seconds of an inline step above which every other episode is held up."""
NEAR = 0.5
"""Share of a deadline that the slowest percent of calls may take."""
SHARE = 0.01
"""Of episodes or calls: what fails more often than this distorts a run, and what fails less often is worth knowing."""
COUNTS = 3
"""Processes, files or threads that may come on top without being called a leak."""
MEMORY = 16 << 20
"""Bytes that may come on top over the second half of the episodes."""


@dataclass(frozen=True)
class Finding:
    """What was seen that matters, and what to do about it. An `error` fails the preflight."""

    level: Literal["error", "warning", "note"]
    what: str
    fix: str


def parser(command: str) -> Parser:
    p = Parser(
        command,
        "Play many episodes of an environment at training concurrency, in a process of their own, and say what would go wrong in "
        "training: slow calls, errors, replays that diverge, and what is left behind. Exit code 1 where something would.",
    )
    p.add_argument("env", metavar="ENV", help="a name with options, such as search:hops=1-3, or path/to/file.py:MyEnv")
    p.add_argument("--episodes", type=positive, default=1000, metavar="N", help="how many are played")
    p.add_argument("--concurrency", type=positive, default=64, metavar="N", help="how many at once, as in training")
    p.add_argument(
        "--policy",
        choices=("mixed", "expert", "random"),
        default="mixed",
        help="who acts; mixed is mostly the expert, and made-up calls act where there is neither",
    )
    p.add_argument("--seed", type=count, default=0, metavar="N")
    p.add_argument("--json", default=None, metavar="FILE", help="write everything that was measured there")
    return p


def main(args: argparse.Namespace) -> int:
    if args.episodes < 4 * args.concurrency:
        raise ConfigError(
            f"--episodes is {args.episodes} and --concurrency {args.concurrency}; expected at least {4 * args.concurrency} episodes, so "
            "that leaks show between one full load and the next"
        )
    from whet.envs import load_env

    load_env(args.env)  # what is wrong with the name is said here, before a process is started
    request = {key: getattr(args, key) for key in ("env", "episodes", "concurrency", "policy", "seed")}
    record = measure(request)
    found = findings(record)
    print("\n".join(lines(record, found)))
    if args.json:
        Path(args.json).write_text(json.dumps(record | {"findings": [asdict(f) for f in found]}, indent=1) + "\n")
    return 1 if any(f.level == "error" for f in found) else 0


# -- the process ---------------------------------------------------------------------------------------------------------


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Examine an environment in a process with a temporary directory of its own, and look at what outlives it."""
    from whet.rollout.health import finish

    with tempfile.TemporaryDirectory(prefix="whet-preflight-", ignore_cleanup_errors=True) as root:
        scratch, out = Path(root, "tmp"), Path(root, "out.json")
        scratch.mkdir()
        code = f"import sys; sys.path[:] = {sys.path!r}; from whet.rollout.health import worker; worker()"
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(out)],
            stdin=subprocess.PIPE,
            stdout=2,  # what environments print is not the report
            env=os.environ | {"TMPDIR": str(scratch)},
            start_new_session=True,
        )
        try:
            ended = finish(child, json.dumps(dict(request)), out)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
            raise
        finally:
            left = list(_outlived(child.pid, str(scratch)))
            for pid, _ in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        record: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
        record["exit"] = ended
        record["processes_left"] = [command for _, command in left]
        record["files_left"] = sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*"))
        return record


def _outlived(session: int, mark: str) -> Iterator[tuple[int, str]]:
    """Processes of the session, or with its temporary directory in their environment, that are still there."""
    from whet.rollout.health import living

    for pid, _, theirs in living() if Path("/proc/self").exists() else ():
        with contextlib.suppress(OSError):
            told = theirs == session or mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
            if told and pid != session:
                yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:100]


# -- the verdict ---------------------------------------------------------------------------------------------------------


def findings(record: Mapping[str, Any]) -> list[Finding]:
    """What a record says about training in this environment, errors first."""
    found = [*_ends(record), *_failures(record), *_calls(record), *_replays(record), *_leaks(record), *_speed(record)]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda f: order.index(f.level))


def _ends(record: Mapping[str, Any]) -> Iterator[Finding]:
    if record["exit"] is None:
        told = f"the program does not end, because threads go on that are no daemons: {', '.join(record['threads_left'][:3])}"
        yield Finding("error", told, "End them in close() or with atexit, or make them daemons.")
    elif record["exit"]:
        ended = f"signal {-record['exit']}" if record["exit"] < 0 else f"exit code {record['exit']}"
        fix = "What it printed stands above; a signal 9 is usually the system running out of memory, 11 a fault in native code."
        yield Finding("error", f"the process that played the episodes died of {ended}", fix)
    if record.get("broken"):
        yield Finding("error", f"the episodes were given up: {record['broken']}", "Mend this first; `whet.check_env` looks closer.")
    if record["processes_left"]:
        told = f"{len(record['processes_left'])} processes outlived the program, such as {record['processes_left'][0]!r}"
        yield Finding("error", told, "Start them through whet.envs.pool, which ends them at exit, or end them in close and with atexit.")
    if record["files_left"]:
        told = f"{len(record['files_left'])} files outlived the program in the temporary directory, such as {record['files_left'][0]!r}"
        yield Finding("warning", told, "Remove them in close(), which is called whatever happens to the episode.")


def _failures(record: Mapping[str, Any]) -> Iterator[Finding]:
    fixes = {
        "reset_deadline": "Raise reset_timeout if it is slow, or find what it waits for.",
        "step_deadline": "Raise step_timeout if it is slow, or find what it waits for; give what waits a limit of its own.",
    }
    other = "A model's mistake must come back as an observation (ToolError); what may pass is tried again in training, the rest mended."
    for reason, n in record.get("errors", {}).items():
        message = (record["examples"].get(reason) or reason).splitlines()[0]
        told = f"{n} of {record['played']} episodes failed with {reason}: {message}"
        yield Finding("error" if n > SHARE * record["played"] else "warning", told, fixes.get(reason, other))


def _calls(record: Mapping[str, Any]) -> Iterator[Finding]:
    calls = sum(record.get("tools", {}).values())
    fixes = {
        "timeout": "Tools take longer than tool_timeout under load: raise it, make them faster, or set max_concurrent.",
        "infrastructure": "A tool raised something other than ToolError; raise ToolError for what the model did wrong.",
        "tool_error": "Some of what the expert does, or chance, is answered with an error; see that this is meant.",
        "bad_arguments": "Calls made by code do not fit the tools' schemas: mend the expert or random_action, or the annotations.",
        "unknown_tool": "The expert or random_action calls a tool that the environment does not list.",
        "malformed": "The expert or random_action makes calls with `error` set.",
    }
    for outcome, n in record.get("tools", {}).items():
        if outcome in fixes and n > SHARE * calls:
            level: Literal["warning", "note"] = "note" if outcome in ("tool_error", "bad_arguments") else "warning"
            yield Finding(level, f"{n} of {calls} tool calls ended as {outcome}", fixes[outcome])


def _replays(record: Mapping[str, Any]) -> Iterator[Finding]:
    fix = "Draw everything from random.Random(task.seed), keep state on self only, or set replayable = False."
    for where, told in (("here", "alone, in the same process"), ("elsewhere", "in another process")):
        diverged = record.get("replayed", {}).get(where, [])
        if diverged:
            yield Finding("error", f"{len(diverged)} of {record['n_replayed']} episodes went otherwise {told}: {diverged[0]}", fix)
    for env, facts in record.get("facts", {}).items():
        if not facts["replayable"]:
            yield Finding("note", f"{env} cannot replay", "Methods that begin in the middle of an episode will refuse it.")


def _leaks(record: Mapping[str, Any]) -> Iterator[Finding]:
    fixes = {
        "processes": "End them in close(), or lend them out with whet.envs.pool.Pool.",
        "files": "Close files, sockets and databases in close(); it is called whatever happens to the episode.",
        "threads": "End threads in close(); a call that hangs keeps its thread, too.",
        "temporary": "Remove temporary files in close(), or make them in a TemporaryDirectory.",
    }
    for key, fix in fixes.items():
        if (rate := grown(record.get("vitals", []), key, COUNTS)) is not None:
            name = {"temporary": "temporary files", "files": "open files"}.get(key, key)
            yield Finding("error", f"{name} leak: {rate * 1000:,.0f} more for every 1,000 episodes", fix)
    for key, whose in (("memory", "the process"), ("process_memory", "its child processes")):
        rate = grown(record.get("vitals", []), key, MEMORY if key == "memory" else 4 * MEMORY)
        if rate is not None:
            fix = "Look for what outlives an episode: caches, class attributes, reference cycles with large objects."
            fix = fix if key == "memory" else "Let the pool replace processes after some uses (Pool(recycle=...)), or bound their heaps."
            level: Literal["error", "warning"] = "error" if key == "memory" else "warning"
            told = f"the memory of {whose} grows by {rate / 1024:,.0f} KiB an episode, {rate * 10_000 / (1 << 20):,.0f} MiB in 10,000"
            yield Finding(level, told, fix)


def grown(vitals: Sequence[Mapping[str, Any]], key: str, least: int) -> float | None:
    """How much more there is per episode, where it keeps growing: by at least `least`, and in both halves; else None.

    The start, before anything was played, and the first chunk are left out: caches and pools fill up then. A count that ends at a
    bound, such as a pool's size, grows in the first half only.
    """
    points = [(int(v["episodes"]), int(v[key])) for v in vitals[2:] if v[key] is not None]
    if len(points) < 3:
        return None
    (first_at, first), (_, middle), (last_at, last) = points[0], points[len(points) // 2], points[-1]
    if last - first < least or last - middle < max(1, least / 4) or middle - first < max(1, least / 4):
        return None
    return float((last - first) / (last_at - first_at))


def _speed(record: Mapping[str, Any]) -> Iterator[Finding]:
    for env, facts in record.get("facts", {}).items():
        for name in ("reset", "step"):
            calls = record["seconds"].get(env, {}).get(name, [])
            if not calls:
                continue
            half, slowest = quantile(calls, 0.5), quantile(calls, 0.99)
            if facts["inline"] and half > SLOW_INLINE:
                told = f"{name} of {env} takes {1000 * half:.0f} ms at the median, and every other episode waits for it"
                yield Finding("warning", told, "Set inline = False, which runs it on a thread, or make it faster.")
            if slowest > NEAR * facts[f"{name}_timeout"]:
                told = f"the slowest percent of {name} of {env} takes {slowest:.1f} s or more, and {name}_timeout is"
                fix = f"Raise {name}_timeout, or bound how many run at once (max_concurrent)."
                yield Finding("warning", f"{told} {facts[f'{name}_timeout']:g} s", fix)
        if facts["max_concurrent"] is not None and facts["max_concurrent"] < record["concurrency"]:
            told = f"{env} allows {facts['max_concurrent']} episodes at once, so {record['concurrency']} were never reached"
            yield Finding("note", told, "Nothing, if that is all that the machine bears; it is what bounds the speed.")


# -- output --------------------------------------------------------------------------------------------------------------


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share `q` of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(q * 1000) * len(ordered) // 1000) - 1)]


def lines(record: Mapping[str, Any], found: Sequence[Finding]) -> Iterator[str]:
    """What is printed."""
    if "played" in record:
        yield from _measured(record)
    for f in found:
        yield f"{f.level:<8} {f.what}\n         {f.fix}"
    errors = sum(f.level == "error" for f in found)
    verdict = f"not ready: {errors} error{'s' if errors > 1 else ''}" if errors else "ready"
    yield f"verdict: {verdict}"


def _measured(record: Mapping[str, Any]) -> Iterator[str]:
    wall = max(record["wall"], 1e-9)
    yield (
        f"{record['env']}: {record['played']:,} episodes, {record['concurrency']} at once, by policy {record['policy']}: "
        f"{record['played'] / wall:,.1f} episodes/s, {record['steps'] / wall:,.0f} steps/s, "
        f"{record['succeeded'] / max(1, record['played']):.0%} succeeded"
    )
    yield f"ends: {_counts(record['stops'])}"
    yield f"tool calls: {_counts(record['tools']) or 'none'}"
    yield f"{'':<30}{'calls':>9}{'p50':>10}{'p95':>10}{'p99':>10}{'longest':>10}   (ms)"
    for env, kinds in record["seconds"].items():
        for name, calls in kinds.items():
            if calls:
                shown = [f"{1000 * quantile(calls, q):.2f}" for q in (0.5, 0.95, 0.99, 1.0)]
                yield f"{env[:23] + ' ' + name:<30}{len(calls):>9,}" + "".join(f"{text:>10}" for text in shown)
    diverged = {where: len(told) for where, told in record["replayed"].items()}
    yield f"replay: {record['n_replayed']} episodes, {diverged['here']} diverged here, {diverged['elsewhere']} in another process"
    vitals = record["vitals"]
    yield f"{'after episodes':<18}" + "".join(f"{v['episodes']:>8,}" for v in vitals)
    for key in ("processes", "files", "threads", "temporary", "memory", "process_memory"):
        name = key.replace("_", " of ") if key != "process_memory" else "their memory"
        unit = 1 << 20 if "memory" in key else 1
        shown = ["?" if v[key] is None else f"{v[key] // unit:,}" for v in vitals]
        yield f"{name + (' MiB' if unit > 1 else ''):<18}" + "".join(f"{text:>8}" for text in shown)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
