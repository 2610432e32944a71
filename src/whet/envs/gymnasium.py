"""A stock `gymnasium.Env` as an environment of text: observations are described, actions are named.

    load_env("gymnasium:FrozenLake-v1,is_slippery=false")

    class Lake(GymEnv):                          # or with words of your own
        instructions = "Cross the ice. Answer with one of: left, down, right, up."

        def __init__(self) -> None:
            names = {"left": 0, "down": 1, "right": 2, "up": 3}
            super().__init__("FrozenLake-v1", describe=lambda obs: f"you stand on field {obs}", actions=names)

Observations of any space have a plain description; the toy-text environments have a better one. Actions of `Discrete`
spaces have names (their numbers, unless given); those of other spaces are written as numbers.
"""

from __future__ import annotations

import json
import random
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from whet.envs.base import Action, Env, Step
from whet.errors import ConfigError, EnvError, did_you_mean, missing_extra
from whet.seeding import derive_seed
from whet.types import Split, Task

try:
    import gymnasium
    import numpy as np
    from gymnasium import spaces
except ImportError as error:
    raise missing_extra("gymnasium", "envs", "the environment 'gymnasium'") from error

NAMES: dict[str, tuple[str, ...]] = {
    "FrozenLake": ("left", "down", "right", "up"),
    "CliffWalking": ("up", "right", "down", "left"),
    "Taxi": ("south", "north", "east", "west", "pickup", "dropoff"),
    "Blackjack": ("stick", "hit"),
    "CartPole": ("left", "right"),
    "MountainCar": ("left", "wait", "right"),
    "Acrobot": ("left", "wait", "right"),
}
"""What the actions of stock environments mean, in the order of their numbers."""
MAX_TURNS = 100
"""Where the gymnasium environment states no limit of its own."""


class GymEnv(Env):
    """One episode of a gymnasium environment, seeded by the task.

    `env` is an id, a class or a function that makes the environment, and `kwargs` are its arguments. `describe` turns
    an observation into text, `actions` maps what the agent may write to what the environment takes (spaces other than
    Discrete need none: the agent writes numbers). An episode succeeds when its `info` says so (`is_success`,
    `success`), or when its return reaches the `reward_threshold` that the id is registered with, or, where there is
    neither, when its return is positive.
    """

    name = "gymnasium"

    def __init__(
        self,
        env: str | Callable[..., Any],
        *,
        describe: Callable[[Any], str] | None = None,
        actions: Mapping[str, Any] | None = None,
        max_turns: int | None = None,
        **kwargs: Any,
    ) -> None:
        made_of = env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)
        self._title = f"{self.name}/{made_of}" if type(self) is GymEnv else self.name
        self._gym = _make(env, kwargs)
        spec = self._gym.spec
        self._kind = "" if spec is None else spec.name
        self._threshold = None if spec is None else spec.reward_threshold
        limit = None if spec is None else spec.max_episode_steps
        own = type(self).max_turns if type(self).max_turns != Env.max_turns else None
        self.max_turns = max_turns or own or limit or MAX_TURNS  # type: ignore[misc]
        self._names = dict(actions) if actions is not None else _names(self._gym.action_space, self._kind)
        self._describe = describe or self._description
        if not type(self).instructions:
            self.instructions = f"Play {self._kind or self._title}. Answer with one action: {self._form()}."  # type: ignore[misc]
        self._return = 0.0

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """Endlessly many, told apart by the seed that the environment is reset with."""
        prefix = (self._title, split)
        return [
            Task(id=f"{self._title}/{split}/{i}", env=self.name, split=split, seed=derive_seed("task", *prefix, i))
            for i in range(start, start + n)
        ]

    def reset(self, task: Task) -> str:
        # Many environments hand their seed to numpy's RandomState, which takes 32 bits.
        observation, _ = self._gym.reset(seed=task.seed % 2**32)
        self._return, self._over = 0.0, False
        return self._describe(observation)

    def step(self, action: Action) -> Step:
        """One action of the environment; text that names none is answered with the valid ones and costs the turn."""
        if self._over:
            raise EnvError(f"the episode of {self._title!r} is over; one object is one episode, so make another one")
        try:
            chosen = self._read(action.text)
        except ValueError as error:
            return Step(observation=f"{error}; valid: {self._form()}")
        observation, reward, terminated, truncated, info = self._gym.step(chosen)
        self._return += float(reward)
        self._over = bool(terminated or truncated)
        return Step(
            observation=self._describe(observation),
            reward=float(reward),
            terminated=bool(terminated),
            truncated=bool(truncated and not terminated),
            success=self._over and self._success_of(info),
        )

    def random_action(self, rng: random.Random) -> Action:
        if self._names:
            return Action(text=rng.choice(list(self._names)))
        space = self._gym.action_space
        space.seed(rng.getrandbits(31))
        return Action(text=_plain(space.sample()))

    def close(self) -> None:
        self._gym.close()

    def _read(self, text: str) -> Any:
        """The action that the text names. Raises ValueError, with a message for the agent."""
        said = text.rpartition(":")[2].strip(" \t\n.!\"'`*") if not isinstance(self._gym.action_space, spaces.Text) else text
        if self._names:
            if said.lower() not in self._names and said not in self._names:
                raise ValueError(f"invalid action {said[:40]!r}")
            return self._names.get(said, self._names.get(said.lower()))
        space = self._gym.action_space
        if isinstance(space, spaces.Text):
            action: Any = said
        else:
            numbers = [float(x) for x in re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", said)]
            if len(numbers) != int(np.prod(space.shape)):
                raise ValueError(f"invalid action {said[:40]!r}")
            action = np.asarray(numbers, dtype=space.dtype).reshape(space.shape)
        if not space.contains(action):
            raise ValueError(f"action {said[:40]!r} is out of range")
        return action

    def _form(self) -> str:
        """How an action is written, in words."""
        space = self._gym.action_space
        if self._names:
            return ", ".join(self._names)
        if isinstance(space, spaces.Text):
            return f"text of at most {space.max_length} characters"
        count = int(np.prod(space.shape))
        return f"{count} numbers" if isinstance(space, spaces.MultiBinary) else f"{count} numbers in {space}"

    def _success_of(self, info: Mapping[str, Any]) -> bool:
        for key in ("is_success", "success"):
            if key in info:
                return bool(info[key])
        return self._return >= self._threshold if self._threshold is not None else self._return > 0

    def _description(self, observation: Any) -> str:
        world = self._gym.unwrapped
        if self._kind == "FrozenLake":
            return _lake(world.desc, int(observation))
        if self._kind == "CliffWalking":
            row, column = divmod(int(observation), world.shape[1])
            return f"row {row} column {column}; goal row {world.shape[0] - 1} column {world.shape[1] - 1}; cliff between start and goal"
        if self._kind == "Taxi":
            row, column, passenger, goal = (int(x) for x in world.decode(int(observation)))
            where = "in the taxi" if passenger == len(world.locs) else "at row {} column {}".format(*world.locs[passenger])
            return f"taxi at row {row} column {column}; passenger {where}; goal at row {world.locs[goal][0]} column {world.locs[goal][1]}"
        if self._kind == "Blackjack":
            own, dealer, ace = (int(x) for x in observation)
            return f"your sum {own}, dealer shows {dealer}, {'a' if ace else 'no'} usable ace"
        return _plain(observation)


def _make(env: str | Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    """The gymnasium environment. Raises ConfigError for an unknown id or arguments that it does not take."""
    try:
        if not isinstance(env, str):
            made = env(**kwargs)
            if not isinstance(made, gymnasium.Env):
                raise ConfigError(f"{env!r} made a {type(made).__name__}; expected a gymnasium.Env")
            return made
        # gymnasium tells about newer versions and rendering with warnings that belong to whoever develops the environment.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gymnasium.make(env, disable_env_checker=True, **kwargs)
    except gymnasium.error.Error as error:
        known = sorted(gymnasium.registry)
        hint = did_you_mean(str(env), known).split(" Valid:")[0] if str(env) not in known else ""
        raise ConfigError(f"gymnasium cannot make {env!r}: {error} {hint}".rstrip()) from error
    except ConfigError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no arguments"
        raise ConfigError(f"gymnasium environment {env!r} cannot be made with {given}: {error}") from error


def _names(space: Any, kind: str) -> dict[str, int]:
    """Names of a Discrete space's actions; empty for other spaces."""
    if not isinstance(space, spaces.Discrete):
        if space.shape is None and not isinstance(space, spaces.Text):
            raise ConfigError(f"actions of the space {space} have no written form; give `actions`, a mapping from names to actions")
        return {}
    names = NAMES.get(kind, ())
    start = int(space.start)
    words = names if len(names) == space.n else tuple(str(start + i) for i in range(int(space.n)))
    return {word: start + i for i, word in enumerate(words)}


def _plain(value: Any) -> str:
    """Any observation or action as short text: numbers to three digits, arrays row by row, dictionaries as `key: value`."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(part)}" for key, part in value.items())
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_plain, value))
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype == object:
        return json.dumps(value, default=str)
    if array.ndim >= 2:
        return "\n".join(_plain(row) for row in array)
    if array.dtype.kind in "iub":
        return " ".join(str(int(x)) for x in array.reshape(-1))
    return " ".join(f"{float(x):.3g}" for x in array.reshape(-1))


def _lake(desc: Any, position: int) -> str:
    """FrozenLake's map with the agent in it."""
    rows = ["".join(cell.decode() for cell in row) for row in desc]
    row, column = divmod(position, len(rows[0]))
    rows[row] = f"{rows[row][:column]}A{rows[row][column + 1 :]}"
    return f"row {row} column {column} (A agent, S start, F ice, H hole, G goal)\n" + "\n".join(rows)
