"""What the subcommands share: the parser with its messages, agents on disk, tasks and experts."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from whet.config import options
from whet.errors import CheckpointError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from whet.agents import Agent
    from whet.envs.base import EnvFactory
    from whet.evals import Comparison
    from whet.methods import Method
    from whet.runs import Run
    from whet.types import Data, Episode

SIZES = {"train_tasks": 256, "dev_tasks": 64, "test_tasks": 256, "test_start": 0, "expert_episodes": 64}
"""Defaults of what a preset may set besides a method's config, with `LIMITS` and `temperature`."""
LIMITS = ("budget", "env_steps")
"""How much a stage may practise: in episodes, in environment steps."""
SMALL = 100_000_000
"""Parameters of a model below which learning rates that papers give are far too low."""
_SIZES_HELP = {"test_start": "number of the first test task: move on to tasks whose results nobody has seen while choosing settings "}


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names a default only where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Argparse with one-line errors that name the nearest valid option."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"whet {command}", description=description, allow_abbrev=False, formatter_class=_Formatter)

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (-\S+)", message):
            name = unknown[1].split("=")[0]
            message = f"unknown option {name!r}. {did_you_mean(name, [o for o in self._option_string_actions if o.startswith('--')])}"
        print(f"error: {message}", file=sys.stderr)
        print(f"{self.prog} --help shows what it takes", file=sys.stderr)
        raise SystemExit(2)


def add_agent_options(parser: argparse.ArgumentParser, *, env_required: bool = True) -> None:
    """Which agent, in which environment."""
    parser.add_argument(
        "--env",
        required=env_required,
        metavar="ENV",
        help="a name with options, such as search:hops=1-3, or path/to/file.py:MyEnv"
        + ("" if env_required else " (default: the one that --preset quick names)"),
    )
    parser.add_argument(
        "--model",
        "--policy",
        default="base",
        metavar="MODEL",
        help="base (the model that comes with whet), a directory or hub id of a Hugging Face model, a finished run, "
        "openai:MODEL@URL, expert or random",
    )
    parser.add_argument("--temperature", type=non_negative, default=None, metavar="T", help="of sampling; 0 is greedy (default: 1)")


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """How many tasks of each split, which test tasks, and how many expert episodes."""
    for name, default in SIZES.items():
        kind = positive if name == "test_tasks" else count
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=None,
            metavar="N",
            help=f"{_SIZES_HELP.get(name, '')}(default: the preset's, or {default})",
        )


def add_general_option(parser: argparse.ArgumentParser) -> None:
    """Which general conversations methods may mix in."""
    parser.add_argument(
        "--general",
        default=None,
        metavar="FILE",
        help="conversations that have nothing to do with the environment, for methods that mix them in: JSON lines of OpenAI messages, or "
        "bundled, which is the default of methods that need them",
    )


def count(text: str) -> int:
    """An integer of at least 0, for argparse."""
    return _integer(text, 0)


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    return _integer(text, 1)


def _integer(text: str, least: int) -> int:
    if not re.fullmatch(r"[0-9]+", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected an integer of at least {least}")
    return int(text)


def non_negative(text: str) -> float:
    """A number of at least 0, for argparse."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} was given; expected a number of at least 0")


def load_agent(spec: str, temperature: float | None) -> Agent[Any]:
    """The agent of a finished run, or a bare one around `load_policy(spec)`.

    Raises CheckpointError for a run without a finished agent, and what `load_policy` raises.
    """
    from whet.agents import Agent
    from whet.policies import load_policy
    from whet.policies.base import Sampling

    agent: Agent[Any]
    directory = Path(spec)
    record = _agent_record(directory)
    if record is not None:
        memory = {task: tuple(notes) for task, notes in record["memory"].items()}
        policy = load_policy(record["policy"] or str(directory / "model"))
        sampling = Sampling(**record["sampling"])
        parts = {key: record[key] for key in ("instructions", "suffix", "prefix")}
        agent = Agent(policy, memory=memory, sampling=sampling, **parts)
    elif (directory / "status").exists():
        raise CheckpointError(f"the run in {directory} has no finished agent yet. Finish it with --resume, or give another --model.")
    else:
        agent = Agent(load_policy(spec))
    if temperature is not None:
        agent = agent.replace(sampling=dataclasses.replace(agent.sampling, temperature=temperature))
    return agent


def save_agent(agent: Agent[Any], directory: Path, spec: str) -> None:
    """Write what `load_agent(directory)` reads: weights under `model`, everything else to `agent.json`.

    `spec` is where the agent came from; it names the policy again where that has no weights to save.
    """
    from whet.runs.files import write_atomic, write_directory

    save = getattr(agent.policy, "save", None)
    if save is not None:
        write_directory(directory / "model", save)
    record = {
        "policy": None if save is not None else (_agent_record(Path(spec)) or {"policy": spec})["policy"],
        "instructions": agent.instructions,
        "memory": {task: list(notes) for task, notes in agent.memory.items()},
        "sampling": dataclasses.asdict(agent.sampling),
        "suffix": agent.suffix,
        "prefix": agent.prefix,
    }
    write_atomic(directory / "agent.json", json.dumps(record, indent=1))


def _agent_record(directory: Path) -> dict[str, Any] | None:
    """The contents of agent.json; None where there is no such file."""
    path = directory / "agent.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        controls = {key: record.get(key, "") for key in ("suffix", "prefix")}
        return {key: record[key] for key in ("policy", "instructions", "memory", "sampling")} | controls
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as an agent: {error!r}") from error


def preset(name: str | None, env: EnvFactory, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The method's overrides of a preset, and what it says about sizes, budget and temperature."""
    if name is None:
        return {}, {}
    from whet import presets

    found = dict(presets.get(env.name, name, method))
    outer = {key: found.pop(key) for key in (*SIZES, *LIMITS, "temperature") if key in found}
    return found, outer


def experts(env: EnvFactory, n: int, run: Run) -> tuple[Episode, ...]:
    """Successful episodes of the environment's expert on its first `n` train tasks."""
    from whet.agents import Agent
    from whet.policies import load_policy
    from whet.rollout import rollout

    episodes = rollout(Agent(load_policy("expert")), env, env.tasks("train", n), seed=run.seed("experts"))
    good = tuple(episode for episode in episodes if episode.ok and episode.success)
    run.save_episodes(episodes, "experts")
    run.event("experts", asked=n, successful=len(good))
    if n and not good:
        why = next((f": {e.error.splitlines()[0]}" for e in episodes if e.error), "")
        raise ConfigError(f"the expert of {env.name!r} succeeded in none of {n} episodes{why}. This method needs expert episodes.")
    return good


def general(method: Method, given: str | None) -> str | None:
    """Which general conversations the method gets: those that were named, or the bundled ones if it needs any."""
    return given or ("bundled" if "general" in method.needs else None)


def make_data(env: EnvFactory, method: Method, sizes: dict[str, int], run: Run, conversations: str | None = None) -> Data:
    """The method's data: train and dev tasks, expert episodes if it needs them, and general conversations if any are named.

    Raises ConfigError where it lacks something, CannotReplay where it needs an environment that replays.
    """
    from whet.data.general import read_general
    from whet.methods import note_roles, require
    from whet.policies import load_policy
    from whet.rollout.replay import must_replay
    from whet.types import Data

    train = env.tasks("train", sizes["train_tasks"])
    if "replay" in method.needs:
        must_replay(env, train, by=f"method {method.name!r}")
    data = Data(
        train=train,
        dev=env.tasks("dev", sizes["dev_tasks"]),
        experts=experts(env, sizes["expert_episodes"], run) if "experts" in method.needs else (),
        general=read_general(conversations) if conversations else (),
    )
    require(method.needs, data, env, by=f"method {method.name!r}")
    if cast := env.cast:
        note_roles(run, **{role: load_policy(spec) for role, spec in cast.items()})
    return data


def script_note(runs: Mapping[str, Run]) -> list[str]:
    """Which roles were played by scripts in the runs of these recipes, as methods say it in their events `roles`; for under a table."""
    played: dict[str, dict[str, None]] = {}
    for recipe, run in runs.items():
        for event in run.events("roles"):
            for role, policy in event["scripted"].items():
                played.setdefault(f"{role} by {policy}", {})[recipe] = None
    texts = [f"{role} ({', '.join(recipes)})" for role, recipes in played.items()]
    return [f"Played by scripts, not by models: {'; '.join(texts)}."] if texts else []


def note_untuned(run: Run, agent: Agent[Any], method: Method, cfg: Any) -> str:
    """What to say where a small model is trained at a paper's learning rates; the run's event `untuned` keeps it for under a table."""
    size = getattr(agent.policy, "n_parameters", SMALL)
    chosen, papers = ({o.key: o.default for o in options(method.config, defaults=c) if o.key.endswith("lr")} for c in (cfg, None))
    if size >= SMALL or not method.paper or not papers or chosen != papers:
        return ""
    if not any(run.events("untuned")):
        run.event("untuned", parameters=size)
    return _untuned([method.name], size)


def untuned_note(runs: Mapping[str, Run]) -> list[str]:
    """Of these recipes, those whose last method ran untuned (`note_untuned`); for under a table."""
    found = {recipe: event["parameters"] for recipe, run in runs.items() for event in run.events("untuned")}
    return [_untuned(list(found), max(found.values()))] if found else []


def _untuned(recipes: list[str], size: int) -> str:
    return (
        f"At the paper's learning rate, which is for billions of parameters, a model of {size / 1e6:.1f} million: {', '.join(recipes)}. "
        "That says nothing about the method; choose options on dev tasks, or take a preset that has some, such as small."
    )


def print_table(comparison: Comparison) -> None:
    """The table on stdout, as wide as the terminal allows."""
    from rich.console import Console

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
    console.print(comparison.table(console.width))
