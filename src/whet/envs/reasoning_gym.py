"""reasoning-gym: over a hundred generators of reasoning tasks with checkers (Stojanovski et al., arXiv 2505.24760).

    State the final answer to the following arithmetic problem: 4 + 3 =      ->  7

Tasks, scores and expert answers are the package's own. Some of its checkers evaluate the answer as Python or through
sympy, which does the same; whet lets only literals and plain formulas get that far, and bounds the work.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import json
import random
import re
import string
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, Literal

from whet.envs.base import Action, Env, Step
from whet.errors import ConfigError, EnvError, did_you_mean, missing_extra
from whet.seeding import derive_seed
from whet.tools.function import Tool, tool
from whet.types import Split, Task, ToolCall

try:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
except ImportError as error:
    raise missing_extra("reasoning-gym", "reasoning-gym", "the environment 'reasoning_gym'") from error

WITHOUT_ANSWER = ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour")
"""Generators that store no answer, so that there is no expert for them."""
VARYING = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")
"""Generators that depend on the order of sets: their tasks are others in a process with another hash seed."""
SEEDS: Mapping[Split, tuple[int, int]] = {"train": (0, 2**31), "dev": (2**31, 2**30), "test": (3 * 2**30, 2**30)}
"""First seed and number of seeds of each split. Some generators take seeds below 2**32 only."""

# Checkers that call eval on the answer where it is not the stored one. They mean lists, so literals are all they get.
for _module in ("algorithmic.string_insertion", "algorithmic.spiral_matrix", "algorithmic.binary_matrix", "games.n_queens"):
    vars(importlib.import_module(f"reasoning_gym.{_module}"))["eval"] = ast.literal_eval
# Generators that report with bare prints; standard output is not their place.
for _module in ("code.contrib.bfit.Compiler.Optimizer", "code.codeio"):
    vars(importlib.import_module(f"reasoning_gym.{_module}"))["print"] = lambda *args, **kwargs: None

_FUNCTIONS = ("sin", "cos", "tan", "exp", "log", "ln", "sqrt", "asin", "acos", "atan", "sinh", "cosh", "tanh", "pi", "Abs", "Integral")
FORMULAS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("countdown", "puzzle24"), frozenset()),
    **dict.fromkeys(
        ("polynomial_multiplication", "simple_integration", "intermediate_integration"),
        frozenset({*string.ascii_lowercase, *"XYZCE", *_FUNCTIONS}),
    ),
}
"""Generators whose checker hands the answer to sympy's parser -> the names that may occur in it."""
CALLS = 2_000_000
"""Calls of functions that checking a formula may take; a second or two. Counted, so that the outcome does not depend on the clock."""


class ReasoningGym(Env):
    """Answer one task of a reasoning-gym generator; scored by the package, and solved at a score of 1.

    Options: `dataset` is one of the package's generators, and every other option is passed on to it, such as
    `chain_sum,max_terms=3`; `answer` is how the answer is given: the whole reply (`text`), what stands between
    <answer> and </answer> in it (`tags`), or a tool call (`tool`).
    """

    name = "reasoning_gym"
    max_tokens = 512

    def __init__(self, dataset: str = "chain_sum", *, answer: Literal["text", "tags", "tool"] = "text", **options: Any) -> None:
        known = set(DATASETS) - {"composite"}
        if dataset not in known:
            mixed = " To practise on several, use the environment 'mix'." if dataset == "composite" else ""
            raise ConfigError(f"reasoning_gym has no dataset {dataset!r}.{mixed} {did_you_mean(dataset, known)}")
        self._options = json.dumps(options, sort_keys=True)
        _create(dataset, self._options)  # wrong options are told now
        self.dataset, self._form = dataset, answer
        self._name = ",".join([dataset, *(f"{key}={json.dumps(value)}" for key, value in sorted(options.items()))])
        self.replayable = dataset not in VARYING  # type: ignore[misc]
        self.max_turns = 4 if answer == "tool" else 1  # type: ignore[misc]
        self.instructions = {  # type: ignore[misc]
            "text": "Solve the task. Reply with the answer only.",
            "tags": "Solve the task. Give the answer between <answer> and </answer>.",
            "tool": "Solve the task, then call answer.",
        }[answer]
        self._entry: dict[str, Any] = {}
        self._info: dict[str, Any] = {}

    @property
    def tools(self) -> tuple[Tool, ...]:
        """`answer`, or nothing where the reply is the answer."""
        return super().tools if self._form == "tool" else ()

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """Endlessly many tasks of this generator; the splits draw from disjoint ranges of seeds."""
        first, count = SEEDS[split]
        prefix = (self.name, self._name, split)
        return [
            Task(
                id="/".join(map(str, (*prefix, i))),
                env=self.name,
                split=split,
                seed=first + derive_seed("task", *prefix, i) % count,
                data={"dataset": self._name},
            )
            for i in range(start, start + n)
        ]

    def reset(self, task: Task) -> str:
        if task.data.get("dataset", self._name) != self._name:
            raise EnvError(f"task {task.id!r} is of {task.data['dataset']!r}, but this environment plays {self._name!r}")
        self._entry = _item(self.dataset, self._options, task.seed)
        return str(self._entry["question"])

    def step(self, action: Action) -> Any:
        """Scores the reply; with the tool, as `Env.step`."""
        if self._form == "tool":
            step = super().step(action)
            assert isinstance(step, Step)
            return dataclasses.replace(step, info=self._info) if step.terminated else step
        if self._over:
            raise EnvError("the episode of 'ReasoningGym' is over; one object is one episode, so make another one")
        found = re.findall(r"<answer>(.*?)</answer>", action.text, re.DOTALL) if self._form == "tags" else [action.text]
        self._reward = self._success = None
        self.finish(reward=self._score(found[-1].strip() if found else None), success=self._solved)
        return dataclasses.replace(self._outcome(()), observation="", info=self._info)

    @tool
    def answer(self, text: str) -> str:
        """Give the final answer."""
        return self.finish("", reward=self._score(text.strip()), success=self._solved)

    @property
    def _solved(self) -> bool:
        return bool(self._info["score"] >= 0.999)

    def _score(self, answer: str | None) -> float:
        """The package's score in [0, 1]. A checker that stumbles over the answer's form gives 0, and `info` says so."""
        problem = ""
        if answer is not None and self.dataset in FORMULAS and not plain_formula(answer, FORMULAS[self.dataset]):
            answer, problem = None, "the answer is no plain formula"
        score, spent = 0.0, _Budget(CALLS if self.dataset in FORMULAS else None)
        try:
            with spent:
                score = float(_create(self.dataset, self._options).score_answer(answer, self._entry))
        except _TooMuch:
            pass
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"[:200]
        if spent.over:
            score, problem = 0.0, "checking the formula took too long"
        if not 0 <= score <= 1:
            raise EnvError(f"reasoning-gym's checker of {self.dataset!r} gave {score!r} for {answer!r:.80}; expected 0 to 1")
        gold = self._entry.get("answer")
        self._info = {
            "reason": "answered",
            "score": score,
            "answer": answer and answer[:2000],
            "gold": gold if isinstance(gold, str) else None,
        }
        if problem:
            self._info["problem"] = problem
        return score

    def expert(self, rng: random.Random) -> Action | None:
        """The stored answer, or None for the generators that store none."""
        gold = self._entry.get("answer")
        return self._action(gold) if isinstance(gold, str) else None

    def random_action(self, rng: random.Random) -> Action:
        """A short answer of the kinds that occur: a number, a letter, yes or no."""
        return self._action(
            rng.choice((str(rng.randint(0, 9)), str(rng.randint(10, 99)), rng.choice("ABCD"), "True", "False", "yes", "no"))
        )

    def _action(self, text: str) -> Action:
        if self._form == "tool":
            return Action(tool_calls=(ToolCall(name="answer", arguments={"text": text}, id="call_0"),))
        return Action(text=f"<answer>{text}</answer>" if self._form == "tags" else text)


@functools.lru_cache(maxsize=256)
def _create(dataset: str, options: str) -> Any:
    """The generator with seed 0. Raises ConfigError for options that it does not have or refuses."""
    given = json.loads(options)
    accepted = {field.name for field in dataclasses.fields(DATASETS[dataset][1])} - {"seed", "size"}
    for key in given:
        if key not in accepted:
            raise ConfigError(f"reasoning_gym's dataset {dataset!r} has no option {key!r}. {did_you_mean(key, accepted)}")
    try:
        return reasoning_gym.create_dataset(dataset, seed=0, size=1, **given)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"reasoning_gym's dataset {dataset!r} refuses {given}: {error or type(error).__name__}") from error


def _item(dataset: str, options: str, seed: int) -> dict[str, Any]:
    """The task of this seed: item `seed` of the generator with seed 0, which is item 0 of the one with seed `seed`.

    Generators that make all their items in advance have no such item, and are made anew.
    """
    state = random.getstate()
    random.seed(seed)  # some generators draw from the module's generator, too
    try:
        try:
            entry: dict[str, Any] = _create(dataset, options)[seed]
        except IndexError:
            entry = reasoning_gym.create_dataset(dataset, seed=seed, size=1, **json.loads(options))[0]
    except Exception as error:
        raise EnvError(f"reasoning-gym's generator {dataset!r} failed for seed {seed}: {type(error).__name__}: {error}") from error
    finally:
        random.setstate(state)
    return entry


def plain_formula(text: str, names: frozenset[str]) -> bool:
    """Whether the text is a formula of numbers, `names`, + - * / ** and calls of `names`, with powers of a sane size.

    sympy's parser evaluates what it is given as Python; a text that passes this cannot reach anything but formulas.
    """
    if len(text) > 500 or not re.fullmatch(r"(?:\s|\d{1,12}(?:\.\d{1,12})?(?![\w.])|[A-Za-z]+(?![\w.])|\*\*|[-+*/(),])*", text):
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return _bits(tree, names) <= 4096
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _bits(node: ast.AST, names: frozenset[str]) -> int:
    """About how many bits the whole numbers in the value have. Raises ValueError for what is no plain formula."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return int(abs(node.value)).bit_length() + 1
    if isinstance(node, ast.Name) and node.id in names:
        return 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        return _bits(node.operand, names)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and len(node.func.id) > 1:
        inner, others = (node.args[0], node.args[1:]) if node.args else (None, [])
        lone = not others or (node.func.id == "Integral" and len(others) == 1 and isinstance(others[0], ast.Name))
        if inner is None or not lone or node.keywords or (node.func.id != "Integral" and _calls(inner)):
            raise ValueError("call")
        return 1 + _bits(inner, names)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
        return _bits(node.left, names) + _bits(node.right, names)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _bits(node.left, names) * _exponent(node.right, names) + 1
    raise ValueError(type(node).__name__)


def _calls(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Call) for part in ast.walk(node))


def _exponent(node: ast.AST, names: frozenset[str]) -> int:
    """A bound of an exponent: a number, a quotient of two whole ones, or a name, perhaps times a number."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        return _exponent(node.operand, names)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return int(abs(node.value)) + 1
    if isinstance(node, ast.Name) and node.id in names:
        return 1
    if isinstance(node, ast.BinOp):
        parts = (node.left, node.right)
        if isinstance(node.op, ast.Div) and all(isinstance(part, ast.Constant) and type(part.value) is int for part in parts):
            return _exponent(node.left, names)
        if (
            isinstance(node.op, ast.Mult)
            and any(isinstance(p, ast.Name) for p in parts)
            and any(isinstance(p, ast.Constant) for p in parts)
        ):
            return max(_exponent(part, names) for part in parts)
    raise ValueError("exponent")


class _TooMuch(BaseException):
    """Raised inside a checker; no Exception, because checkers catch those and go on."""


class _Budget:
    """Raises _TooMuch in what runs inside once it has called `calls` functions of Python or C; None for no limit.

    A checker may catch even that, so `over` tells whether it happened.
    """

    def __init__(self, calls: int | None) -> None:
        self._limit = self._left = calls
        self._before: Any = None

    @property
    def over(self) -> bool:
        return self._left is not None and self._left < 0

    def __enter__(self) -> None:
        if self._limit is not None:
            self._before = sys.getprofile()
            sys.setprofile(self._count)

    def __exit__(self, *error: object) -> None:
        if self._limit is not None:
            sys.setprofile(self._before)

    def _count(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call") and self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise _TooMuch
