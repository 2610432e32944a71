"""Runs inside the sandbox: executes a model's calls, and judges a whole conversation, by the package's own functions.

    python worker.py < requests.json > answers.json

Each request of the list holds the task's entry, the model's calls turn by turn and step by step, and what is wanted: the results of the
last step (`execute`), the package's verdict (`check`), or the value of an arithmetic expression (`evaluate`). All state is
made anew from the entry, so nothing of another episode can be left in it.

The package executes calls with `eval`. What reaches that here is of one form only: a public method of the task's own
instances, called with literals (or with further such calls). Everything else is answered with the error that Python would
give, and never evaluated, so a model's text can neither run code nor touch the checker that judges it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import json
import signal
import sys
from types import ModuleType
from typing import Any

CPU_SECONDS = 3
"""What a visit may compute; its work takes milliseconds. Unlike wall-clock time this does not depend on what else is running."""
NEVER = "("
"""What is executed in place of a refused call: a syntax error."""


class Refused(Exception):
    """A call that is not evaluated; the message is what the model is told."""


def check_call(processed: str, instances: dict[str, str]) -> None:
    """Raises Refused unless `processed` is a plain call of a method in `instances` (method -> name of its instance)."""
    try:
        tree = ast.parse(processed.lstrip(" \t"), "<string>", mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refused(str(error)) from None
    _check_node(tree.body, instances)


def _check_node(node: ast.expr, instances: dict[str, str]) -> None:
    if isinstance(node, ast.Call):
        function = node.func
        if not (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and instances.get(function.attr) == function.value.id
        ):
            raise Refused(_unknown(function))
        if any(keyword.arg is None for keyword in node.keywords):
            raise Refused("arguments cannot be unpacked here")
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            _check_node(argument, instances)
        return
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise Refused(_unknown(node)) from None


def _unknown(node: ast.expr) -> str:
    """Python's complaint about the first name in it that is not defined."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            return f"name {part.id!r} is not defined"
    return f"{type(node).__name__} is not allowed here"


class Conversation:
    """A task's instances, made by the package, and the model's calls so far."""

    def __init__(self, package: ModuleType, entry: dict[str, Any], name: str) -> None:
        self.package, self.entry, self.name = package, entry, name
        self.long_context = "long_context" in entry["id"] or "composite" in entry["id"]

    def methods(self, *, judging: bool) -> dict[str, str]:
        """Public methods of the instances -> the instance's name, by the package's rule."""
        found = {}
        _, instances = self._run([], judging=judging)
        known = {id(value): name for name, value in vars(self.package).items() if name.endswith("_instance")}
        for instance in instances.values():
            for name, _ in inspect.getmembers(instance, predicate=inspect.ismethod):
                if not name.startswith("_"):
                    found[name] = known[id(instance)]
        return found

    def guard(self, calls: list[str], *, judging: bool) -> tuple[list[str], dict[int, str]]:
        """The calls with a syntax error in place of those that are refused, and what the model is told about these."""
        instances = self.methods(judging=judging)
        safe, told = [], {}
        for index, call in enumerate(calls):
            try:
                check_call(self.package._process_method_calls(call, instances), instances)
                safe.append(call)
            except Refused as refused:
                safe.append(NEVER)
                told[index] = f"Error during execution: {refused}"
        return safe, told

    def step(self, calls: list[str]) -> list[str]:
        """Execute the calls of one step; their results."""
        safe, told = self.guard(calls, judging=False)
        results, _ = self._run(safe, judging=False)
        return [told.get(index, result) for index, result in enumerate(results)]

    def _run(self, calls: list[str], *, judging: bool) -> tuple[list[str], dict[str, Any]]:
        outcome: tuple[list[str], dict[str, Any]] = self.package.execute_multi_turn_func_call(
            func_call_list=calls,
            initial_config=self.entry["initial_config"],
            involved_classes=self.entry["involved_classes"],
            model_name=self.name,
            test_entry_id=self.entry["id"],
            long_context=self.long_context,
            is_evaL_run=judging,
        )
        return outcome

    def forget(self) -> None:
        """Drop every instance, which the package keeps in its globals under the model's name and the task's id."""
        for name in [name for name in vars(self.package) if name.endswith("_instance")]:
            del vars(self.package)[name]


def answer(request: dict[str, Any]) -> Any:
    """What is wanted: results, a verdict or a value."""
    if request["want"] == "evaluate":
        try:
            return {"value": repr(eval(request["expression"]))}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
    base = "bfcl_eval.eval_checker.multi_turn_eval"
    package = importlib.import_module(f"{base}.multi_turn_utils")
    conversation = Conversation(package, request["entry"], request["name"])
    try:
        if request["want"] == "execute":
            results: list[str] = []
            for turn in request["turns"]:
                for calls in turn:
                    results = conversation.step(calls)
            return results
        safe = [[conversation.guard(calls, judging=True)[0] for calls in turn] for turn in request["turns"]]
        checker = importlib.import_module(f"{base}.multi_turn_checker")
        verdict = checker.multi_turn_checker(safe, request["gold"], request["entry"], "", request["name"])
        return {"valid": bool(verdict["valid"]), "error_type": verdict.get("error_type", ""), "error": verdict.get("error_message", "")}
    finally:
        conversation.forget()


def main() -> None:
    requests = json.loads(sys.stdin.read())
    # Python's own handler would wait for a long operation to end; the signal's default action ends the process.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS * len(requests))
    with contextlib.redirect_stdout(sys.stderr):  # the package prints here and there
        answers = [answer(request) for request in requests]
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
