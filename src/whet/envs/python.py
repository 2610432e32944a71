"""Python: mathematics with a Python interpreter as a tool.

    What is the sum of all integers from 17 to 4711, both included, that are divisible by 4 or by 9?
        python("print(sum(n for n in range(17, 4711 + 1) if n % 4 == 0 or n % 9 == 0))")   ->  3698790
        answer("3698790")

Problems are drawn from seeds (problems.py), or come from files in the format of GSM8K (Cobbe et al., arXiv 2110.14168): one
JSON object a line with `question` and `answer`, whose last line is `#### 42`. Code runs in the sandbox, each call in a new
process: no variable and no file is kept from one call to the next.
"""

from __future__ import annotations

import functools
import json
import random
import re
import threading
from fractions import Fraction
from pathlib import Path
from typing import Literal

from whet.envs import problems
from whet.envs.base import Action, Env
from whet.errors import ConfigError, EnvError, ToolError, ToolTimeout, WhetError, did_you_mean
from whet.seeding import derive_seed
from whet.tools.function import tool
from whet.tools.sandbox import Result, Sandbox, open_sandbox
from whet.types import SPLITS, Split, Task, ToolCall

SHOWN = 1000
"""Characters of output that the model is shown; the middle of more is left out."""
_ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_NUMBER = re.compile(r"[-+]?\$?(\d[\d,]*(\.\d*)?|\.\d+)(/\d+)?%?\.?")


class Python(Env):
    """Solve problems with a Python interpreter.

    Options: `kinds` are kinds of problems joined with `+`, or `all`; `data` is a file in GSM8K's format, or a directory with
    `train.jsonl` and `test.jsonl`, instead of these; `sandbox` is where code runs; `packages` are installed distributions that
    it may import besides the standard library, joined with `+`; `seconds` and `megabytes` limit each call.
    """

    name = "python"
    instructions = "Solve the problem. Run Python code that prints what you need, then give the answer. Each run starts afresh."
    max_turns = 6
    max_tokens = 256
    inline = False

    def __init__(
        self,
        kinds: str = "all",
        data: str | None = None,
        sandbox: Literal["zygote", "process", "monty"] = "zygote",
        packages: str = "",
        seconds: float = 5.0,
        megabytes: int = 512,
    ) -> None:
        self._kinds = tuple(problems.KINDS) if kinds == "all" else tuple(kinds.split("+"))
        for kind in self._kinds:
            if kind not in problems.KINDS:
                raise ConfigError(f"unknown kind of problem {kind!r}. {did_you_mean(kind, [*problems.KINDS, 'all'])}")
        if not 0 < seconds <= 20:
            raise ConfigError(f"seconds is {seconds}; expected more than 0 and at most 20, so that a step ends in time")
        if megabytes < 64:
            raise ConfigError(f"megabytes is {megabytes}; Python needs at least 64")
        if packages and sandbox == "monty":
            raise ConfigError("the sandbox 'monty' has no packages; leave `packages` out, or use the sandbox 'zygote'")
        self._data, self._sandbox, self._seconds, self._megabytes = data, sandbox, seconds, megabytes
        self._packages = tuple(filter(None, packages.split("+")))
        self._problem = problems.Problem("", "", "", "")
        self._printed = ""
        self._ran = False

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """Endlessly many drawn problems; those of a file in an order that does not depend on how many are asked for."""
        if self._data is None:
            return super().tasks(split, n, start)
        found = _read(self._data)[split][start : start + n]
        ids = ((i, line) for i, line in enumerate(found, start))
        return [
            Task(id=f"python/{split}/{i}", env=self.name, split=split, seed=derive_seed("task", line), data={"line": line})
            for i, line in ids
        ]

    def reset(self, task: Task) -> str:
        self._problem = _parsed(task.data["line"]) if "line" in task.data else problems.make(task.seed, task.split, self._kinds)
        return self._problem.text

    @tool
    def python(self, code: str) -> str:
        """Run Python code and see what it prints.

        Args:
            code: The code. Print what you want to see; nothing is kept for the next run.
        """
        try:
            box = _sandbox(self._sandbox, self._packages)
            result = box.run(code, timeout=self._seconds, memory=self._megabytes << 20, output=1 << 16)
        except WhetError as error:
            raise EnvError(f"the sandbox failed: {error}") from error
        self._printed, self._ran = result.stdout.strip(), True
        return self._shown(result)

    @tool
    def answer(self, value: str | int | float) -> str:
        """Give the final answer.

        Args:
            value: The number or the text that was asked for, without words around it.
        """
        right = same(str(value), self._problem.answer)
        return self.finish("", reward=float(right), success=right)

    def _shown(self, result: Result) -> str:
        """What the model sees of a run."""
        text = _middle_out(result.stdout) + (_middle_out(result.stderr) if result.stderr else "")
        if result.killed_by == "timeout":
            raise ToolTimeout(f"the code was stopped after {self._seconds:g} s\n{text}".strip())
        if result.killed_by:
            raise ToolError(f"the code was stopped: too much {result.killed_by}\n{text}".strip())
        if result.exit:
            raise ToolError(text.strip() or f"the code ended with exit status {result.exit}")
        return text.rstrip("\n") or "(nothing was printed)"

    def expert(self, rng: random.Random) -> Action:
        """Run the code that solves the problem, then answer with what it printed; with the answer on file where a file gives
        one, since calculations noted there need not end in it."""
        if not self._ran and self._problem.code:
            return _call("python", code=self._problem.code)
        return _call("answer", value=self._problem.answer if self._data else self._printed.splitlines()[-1] if self._printed else "0")

    def random_action(self, rng: random.Random) -> Action:
        """Print or answer with a number."""
        number = str(rng.randint(0, 10 ** rng.randint(1, 5)))
        return _call("python", code=f"print({number})") if rng.random() < 0.5 else _call("answer", value=number)


_BOXES: dict[tuple[str, tuple[str, ...]], Sandbox] = {}
_LOCK = threading.Lock()


def _sandbox(kind: str, packages: tuple[str, ...]) -> Sandbox:
    """The sandbox that all episodes with these options share; opened for the first of them, closed with the interpreter."""
    with _LOCK:
        if (kind, packages) not in _BOXES:
            _BOXES[kind, packages] = open_sandbox(kind, **({} if kind == "monty" else {"packages": packages}))
        return _BOXES[kind, packages]


def same(given: str, gold: str) -> bool:
    """Whether an answer is the right one: the same number, however it is written, or else the same text."""
    left, right = number(given), number(gold)
    return given.strip() == gold.strip() if left is None or right is None else left == right


def number(text: str) -> Fraction | None:
    """The value of `1,234`, `$12.50`, `-3/4`, `40%` (that is 40) or `7.`; None for what is no number."""
    text = text.strip()
    if len(text) > 1000 or not _NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(text.rstrip(".").rstrip("%").replace(",", "").replace("$", ""))
    except (ValueError, ZeroDivisionError):
        return None


def _middle_out(text: str) -> str:
    """At most about `SHOWN` characters: the head and the tail."""
    if len(text) <= SHOWN:
        return text
    head, tail = text[: SHOWN * 2 // 3], text[-SHOWN // 3 :]
    return f"{head}\n[{len(text) - len(head) - len(tail)} characters left out]\n{tail}"


def _call(name: str, **arguments: str) -> Action:
    return Action(tool_calls=(ToolCall(name=name, arguments=arguments, id="call_0"),))


@functools.lru_cache(maxsize=8)
def _read(path: str) -> dict[Split, list[str]]:
    """The lines of each split. A directory's test file is the test split, and a tenth of its train file is dev; a file is cut
    8 to 1 to 1. Which line goes where depends on its question alone. Raises ConfigError for what is not in the format."""
    place = Path(path).expanduser()
    sources = {"train": place / "train.jsonl", "test": place / "test.jsonl"} if place.is_dir() else {"": place}
    lines: dict[Split, list[str]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for source, file in sources.items():
        if not file.is_file():
            raise ConfigError(
                f"data is {path!r}, but {file} does not exist; expected a .jsonl file, or a directory with train.jsonl and test.jsonl"
            )
        for i, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                question = _parsed(line).text
            except ValueError as error:
                raise ConfigError(f"{file}, line {i}: {error}") from None
            tenth = derive_seed("python", "file", question) % 10
            split: Split = "test" if source == "test" or (not source and tenth == 0) else "dev" if tenth == 1 else "train"
            if question not in seen:  # asked twice, it could be in two splits
                seen.add(question)
                lines[split].append(line)
    return lines


def _parsed(line: str) -> problems.Problem:
    """A line of a file. Raises ValueError where it is not in GSM8K's format."""
    found = json.loads(line)
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("question", "answer")):
        raise ValueError("expected a JSON object with the strings `question` and `answer`")
    steps, mark, answer = found["answer"].rpartition("####")
    if not mark or not answer.strip():
        raise ValueError("the answer does not end in a line such as `#### 42`")
    sums = [expression for expression, _ in _ANNOTATION.findall(steps) if re.fullmatch(r"[\d\s.+*/()\-]+", expression)]
    return problems.Problem("file", found["question"].strip(), "".join(f"print({sum_.strip()})\n" for sum_ in sums), answer.strip())
