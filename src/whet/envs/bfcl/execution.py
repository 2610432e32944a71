"""What must not happen in this process: calls are executed, conversations judged and expressions evaluated in the sandbox."""

from __future__ import annotations

import ast
import functools
import json
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.errors import EnvError
from whet.tools.sandbox import Sandbox, open_sandbox

WORKER = Path(__file__).with_name("worker.py").read_text()
TIMEOUT = 120.0
"""Seconds of wall-clock time for one visit to the sandbox. Only a machine that is overloaded comes near it; calls that compute
too much run into the worker's own limit, of processor time, long before."""
MEMORY = 1 << 30
"""Bytes."""

Turns = Sequence[Sequence[Sequence[str]]]
"""Calls as Python expressions, by user turn and step."""


class TooMuch(Exception):
    """A model's calls took more processor time or memory than there is for them; the message says which."""


_PACKAGE = "bfcl_eval.eval_checker.multi_turn_eval"
_SIMULATORS = (
    "gorilla_file_system",
    "math_api",
    "message_api",
    "posting_api",
    "ticket_api",
    "trading_bot",
    "travel_booking",
    "vehicle_control",
)
PRELOAD = (
    *("ast", "contextlib", "importlib", "inspect", "json"),
    *(f"{_PACKAGE}.{name}" for name in ("multi_turn_utils", "multi_turn_checker", *(f"func_source_code.{name}" for name in _SIMULATORS))),
)
"""What the sandbox has imported before a visit: each is then a fork of a process that has not yet seen any conversation."""


_opening = threading.Lock()


@functools.cache
def _opened() -> Sandbox:
    return open_sandbox("zygote", packages=("bfcl-eval", "mpmath"), preload=PRELOAD)


def sandbox() -> Sandbox:
    """The sandbox of this process: one, whichever threads come first."""
    with _opening:
        return _opened()


def visit(requests: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Answers of the worker to some requests, from a fresh process.

    Raises TooMuch where a limit ended it, EnvError where it failed for another reason.
    """
    result = sandbox().run(
        WORKER,
        stdin=json.dumps(requests),
        timeout=TIMEOUT,
        memory=MEMORY,
        output=64 << 20,
    )
    limit = "cpu" if result.exit == -signal.SIGPROF else result.killed_by
    if limit in ("cpu", "memory", "output"):
        raise TooMuch(f"the calls were stopped at the sandbox's limit ({limit})")
    if result.killed_by is not None:
        raise EnvError(
            f"BFCL's worker was stopped in the sandbox ({result.killed_by}) after {result.seconds:.0f} s; is the machine overloaded?"
        )
    try:
        answers: list[Any] = json.loads(result.stdout)
    except ValueError:
        last = result.stderr.strip().splitlines()[-1:] or ["no output"]
        raise EnvError(f"BFCL's worker failed in the sandbox (exit {result.exit}): {last[0]}") from None
    return answers


def execute(entry: Mapping[str, Any], turns: Turns) -> list[str]:
    """Results of the last step, after all the steps before it. Raises as `visit`."""
    results: list[str] = visit([_request("execute", entry, turns)])[0]
    return results


def judge(entry: Mapping[str, Any], turns: Turns, gold: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The package's verdict on a conversation: `valid`, `error_type` and `error`. Raises as `visit`."""
    return judge_all([(entry, turns, gold)])[0]


def judge_all(conversations: Sequence[tuple[Mapping[str, Any], Turns, Sequence[Sequence[str]]]]) -> list[dict[str, Any]]:
    """The verdicts on several conversations, from one process, which forgets each before the next. Raises as `visit`."""
    return visit([{**_request("check", entry, turns), "gold": gold} for entry, turns, gold in conversations])


def _request(want: str, entry: Mapping[str, Any], turns: Turns) -> dict[str, Any]:
    kept = {key: entry[key] for key in ("id", "initial_config", "involved_classes")}
    return {"want": want, "entry": kept, "turns": turns, "name": "whet"}


def evaluate(expression: str) -> Any:
    """The value of an arithmetic expression that a model wrote in an argument, such as 3 * 12.

    Raises ValueError where it has none, or none that is a literal; EnvError as `visit`.
    """
    try:
        answer = visit([{"want": "evaluate", "expression": expression}])[0]
        if "value" in answer:
            return ast.literal_eval(answer["value"])
        problem = answer["error"]
    except (TooMuch, SyntaxError) as error:
        problem = str(error)
    raise ValueError(f"{expression[:80]!r} has no value: {problem}")
