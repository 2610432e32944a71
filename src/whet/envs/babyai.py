"""BabyAI: a grid world with missions in a small English (Chevalier-Boisvert et al., arXiv 1810.08272), as text.

    mission: go to the red ball          the agent sees 7 x 7 cells before it, described by this file:
    wall 4 ahead 2 left                  where walls end its way, then every object it sees, nearest first
    grey key 1 right
    red ball 2 left 3 ahead              ->  red ball 2 left 3 ahead: go forward

The worlds, the missions and the bot that is the expert come from Farama's package `minigrid`. Levels have no official
split; train, dev and test differ by seed. Where a level has few worlds, seeds draw the same one: GoToObjS4 has fewer than
300, so that its test split measures nothing, while 500 test worlds of GoToLocal shared none with 3,000 of train.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from whet.envs.base import Action, Env, Step
from whet.errors import ConfigError, EnvError, did_you_mean, missing_extra
from whet.seeding import derive_seed
from whet.tools.function import Tool, tool
from whet.types import Split, Task, ToolCall

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
try:
    import gymnasium
    import minigrid  # noqa: F401  (registers the levels)
    from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT
    from minigrid.envs.babyai.core import roomgrid_level
    from minigrid.utils import baby_ai_bot as bots
except ImportError as error:
    raise missing_extra("minigrid", "envs", "the environment 'babyai'") from error

# A level that draws an impossible mission says so with a bare print; standard output is not its place.
roomgrid_level.print = lambda *args, **kwargs: None

Name = Literal["turn left", "turn right", "go forward", "pick up", "drop", "toggle", "done"]
ACTIONS: tuple[str, ...] = get_args(Name)
"""In minigrid's order, so that the index is minigrid's action."""
SEARCHES = 60
"""Path searches that the bot may make for one action; it needs fewer than 10."""
DOOR_STATES = ("open", "closed", "locked")


@functools.cache
def levels() -> Mapping[str, str]:
    """BabyAI's levels: name -> gymnasium id, such as GoToLocal -> BabyAI-GoToLocal-v0."""
    return {id.removeprefix("BabyAI-").rsplit("-v", 1)[0]: id for id in gymnasium.registry if id.startswith("BabyAI-")}


@dataclass(frozen=True, slots=True)
class Seen:
    """Something in view: `right` (negative: left) and `ahead` in cells from the agent."""

    name: str
    right: int
    ahead: int
    state: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.name, _position(self.right, self.ahead), self.state) if part)


class BabyAI(Env):
    """Walk through rooms and go to, pick up, open or put things as the mission says; text in, text or tool calls out.

    Options: `level` is one of BabyAI's levels; `tools` offers the actions as a tool instead of as plain text; `max_turns`
    caps the level's own limit, which grows with the rooms and the parts of the mission (the bot needs a third of it at
    most); `graded` pays minigrid's reward, which shrinks with the steps taken, instead of 1; `thoughts` has the expert
    name what it is heading for before its action.
    """

    instructions = f"Reach the goal. Answer with one action: {', '.join(ACTIONS)}."

    def __init__(
        self,
        level: str = "GoToLocal",
        tools: bool = False,
        max_turns: int = 600,
        graded: bool = False,
        thoughts: bool = True,
    ) -> None:
        known = levels()
        if level not in known:
            raise ConfigError(f"babyai has no level {level!r}. {did_you_mean(level, known)}")
        if max_turns < 1:
            raise ConfigError(f"max_turns is {max_turns}; expected 1 or more")
        self.level = level
        self._as_tools, self._graded, self._thoughts = tools, graded, thoughts
        self._world = _make(known[level])
        self._cap = self.max_turns = max_turns  # type: ignore[misc]
        self._view: Any = None
        self._taken: list[int] = []
        self._advisor: _Advisor | None = None
        self._truncated = False

    @property
    def tools(self) -> tuple[Tool, ...]:
        """`act`, or nothing where actions are plain text."""
        return super().tools if self._as_tools else ()

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """Endlessly many tasks of this level, told apart by seed."""
        prefix = (self.name, self.level, split)
        return [
            Task(
                id="/".join(map(str, (*prefix, i))),
                env=self.name,
                split=split,
                seed=derive_seed("task", *prefix, i),
                data={"level": self.level},
            )
            for i in range(start, start + n)
        ]

    def reset(self, task: Task) -> str:
        if task.data.get("level", self.level) != self.level:
            raise EnvError(f"task {task.id!r} is of level {task.data['level']!r}, but this environment plays {self.level!r}")
        self._seed = task.seed
        self._world.reset(seed=task.seed)
        self._view = self._world.gen_obs()["image"]  # some levels fill the agent's hands after they made their first one
        self.max_turns = min(self._cap, self._world.max_steps)  # type: ignore[misc]
        self._taken, self._advisor, self._truncated, self._over = [], None, False, False
        return self._observation()

    def step(self, action: Action) -> Any:
        """One action; anything else is answered with the valid ones and costs the turn."""
        if self._as_tools:
            step = super().step(action)
            assert isinstance(step, Step)
            self._over = self._over or self._truncated
            return replace(step, truncated=self._truncated and not step.terminated)
        if self._over:
            raise EnvError("the episode of 'BabyAI' is over; one object is one episode, so make another one")
        name = action.text.rpartition(":")[2].strip(" \t\n.!\"'`*").lower()
        if name not in ACTIONS:
            return Step(observation=f"invalid action. valid: {', '.join(ACTIONS)}\n{self._observation()}")
        self._reward = self._success = None
        observation = self._act(name)
        step = self._outcome(())
        self._over = self._over or self._truncated
        return replace(step, observation=observation, truncated=self._truncated and not step.terminated)

    @tool
    def act(self, action: Name) -> str:
        """Do one thing.

        Args:
            action: what to do
        """
        return self._act(action)

    def _act(self, name: str) -> str:
        action = ACTIONS.index(name)
        view, reward, terminated, truncated, _ = self._world.step(action)
        self._view = view["image"]
        self._taken.append(action)
        self._truncated = truncated
        if terminated:
            won = reward > 0
            self.finish(reward=float(reward if self._graded else won), success=won)
        return self._observation()

    def _observation(self) -> str:
        carried, walls, things = look(self._view)
        lines = [f"mission: {self._world.mission}"]
        if carried:
            lines.append(f"carrying {carried}")
        if walls:
            lines.append(" ".join(["wall", *walls]))
        return "\n".join([*lines, *map(str, things)])

    def expert(self, rng: random.Random) -> Action:
        """What BabyAI's bot would do now, after whatever was done before; with the line of what it is heading for.

        The bot has no plan for KeyInBox, for some tasks of UnlockToUnlock, and fails strict levels (`...Debug`) when it
        opens doors to explore; it solves every other level.
        """
        if self._advisor is None:
            self._advisor = _Advisor(_make(levels()[self.level]), self._seed)
        advice = self._advisor.advise(self._taken)
        return self._action(ACTIONS[advice.action], self._thought(advice) if self._thoughts else "")

    def random_action(self, rng: random.Random) -> Action:
        return self._action(rng.choice(ACTIONS), "")

    def _action(self, name: str, thought: str) -> Action:
        if self._as_tools:
            return Action(text=thought, tool_calls=(ToolCall(name="act", arguments={"action": name}, id="call_0"),))
        return Action(text=f"{thought}: {name}" if thought else name)

    def _thought(self, advice: _Advice) -> str:
        """What the action is for, in the words of the observation: the line of its target, if that is in view."""
        carried, _, things = look(self._view)
        at = self._world.relative_coords(*advice.target) if advice.target else None
        if at and not advice.putting_down:
            size = self._view.shape[0]
            for thing in things:
                if (thing.right, thing.ahead) == (at[0] - size // 2, size - 1 - at[1]):
                    return str(thing)
        return f"carrying {carried}" if advice.putting_down and carried else "explore"

    def close(self) -> None:
        self._world.close()


def look(view: Any) -> tuple[str, list[str], list[Seen]]:
    """What is carried, how far the walls are, and everything else in view, nearest first.

    `view` is minigrid's observation, uint8 [7, 7, 3]: type, colour and state of each cell, the agent in the middle of
    the last row and looking at the first.
    """
    size = view.shape[0]
    middle, last = size // 2, size - 1
    things = []
    for i, j in zip(*(view[:, :, 0] > 1).nonzero()):  # 0 is unseen, 1 is empty
        kind, colour, state = (int(x) for x in view[i, j])
        name = IDX_TO_OBJECT[kind]
        if name in ("wall", "floor", "agent"):
            continue
        told = DOOR_STATES[state] if name == "door" else ""
        things.append(Seen(f"{IDX_TO_COLOR[colour]} {name}", int(i) - middle, last - int(j), told))
    carried = next((thing.name for thing in things if thing.right == thing.ahead == 0), "")
    things = sorted((t for t in things if t.right or t.ahead), key=lambda t: (abs(t.right) + t.ahead, t.ahead, t.right))
    return carried, list(_walls(view)), things


def _walls(view: Any) -> Iterator[str]:
    """How far away the agent's way ends at a wall, ahead, left and right; other things in between do not matter."""
    size = view.shape[0]
    middle, last = size // 2, size - 1
    for right, ahead in ((0, 1), (-1, 0), (1, 0)):
        for steps in range(1, size):
            i, j = middle + right * steps, last - ahead * steps
            if not (0 <= i < size and 0 <= j < size):
                break
            if IDX_TO_OBJECT[int(view[i, j, 0])] == "wall":
                yield _position(right * steps, ahead * steps)
                break


def _position(right: int, ahead: int) -> str:
    sideways = f"{abs(right)} {'left' if right < 0 else 'right'}" if right else ""
    return " ".join(part for part in (sideways, f"{ahead} ahead" if ahead else "") if part)


def _make(id: str) -> Any:
    """The level without gymnasium's wrappers, which check what minigrid's own tests check already."""
    return gymnasium.make(id, disable_env_checker=True).unwrapped


@dataclass(frozen=True, slots=True)
class _Advice:
    """An action; `target` is where the thing stands that it serves (None while the bot explores)."""

    action: int
    target: tuple[int, int] | None = None
    putting_down: bool = False
    """It serves to put down what is carried, where there is room."""


class _Bot(bots.BabyAIBot):  # type: ignore[misc]
    """BabyAI's bot, which also says what it is heading for, and gives up where it would plan in circles for ever."""

    def __init__(self, world: Any) -> None:
        self._found: Any = None
        self._allowed = 0
        super().__init__(world)

    def _breadth_first_search(self, *args: Any, **kwargs: Any) -> Any:
        # Keys behind the doors that they open (UnlockToUnlock) have it push the same subgoals until memory is full.
        if self.bfs_counter >= self._allowed:
            raise AssertionError("the bot plans in circles")
        return super()._breadth_first_search(*args, **kwargs)

    def _find_obj_pos(self, obj_desc: Any, adjacent: bool = False) -> Any:
        thing, self._found = super()._find_obj_pos(obj_desc, adjacent)
        return thing, self._found

    def advise(self, action_taken: int | None) -> _Advice:
        """As `replan`. Raises AssertionError or DisappearedBoxError where the bot has no plan."""
        self._found = None
        self._allowed = self.bfs_counter + SEARCHES
        action = int(self.replan(action_taken))
        top, below = (*reversed(self.stack[-2:]), None, None)[:2]
        if isinstance(top, (bots.PickupSubgoal, bots.OpenSubgoal, bots.CloseSubgoal)):
            return _Advice(action, tuple(self.mission.front_pos))
        if isinstance(top, bots.GoNextToSubgoal) and not isinstance(top.datum, bots.ObjDesc):
            if top.reason == "Explore":
                return _Advice(action)
            thing = isinstance(top.datum, bots.WorldObj)
            return _Advice(action, tuple(top.datum.cur_pos if thing else top.datum), isinstance(below, bots.DropSubgoal))
        # What a description led to; of a drop, that is what the carried thing comes to lie beside, if anything.
        found = None if self._found is None else tuple(self._found)
        return _Advice(action, found, isinstance(top, bots.DropSubgoal) and found is None)


class _Advisor:
    """The bot in a world of its own that repeats what was done in the agent's.

    The bot remembers what it has seen and planned, so it must watch every action. In its own world it can catch up at
    any time, and its advice depends on nothing but the actions taken, not on when it was asked before.
    """

    def __init__(self, world: Any, seed: int) -> None:
        world.reset(seed=seed)
        self._world = world
        self._bot: _Bot | None = None
        self._watched = 0
        self._advice = self._ask(None)

    def advise(self, taken: Sequence[int]) -> _Advice:
        for action in taken[self._watched :]:
            self._world.step(action)
            self._watched += 1
            self._advice = self._ask(action)
        return self._advice

    def _ask(self, action: int | None) -> _Advice:
        """The bot's advice after `action`. Where it has no plan, hands are emptied and a new bot begins from here."""
        if self._bot is not None:
            with contextlib.suppress(AssertionError, bots.DisappearedBoxError):
                return self._bot.advise(action)
        self._bot = _Bot(self._world)
        if not self._world.carrying:
            with contextlib.suppress(AssertionError, bots.DisappearedBoxError):
                return self._bot.advise(None)
        self._bot = None
        free = self._world.carrying and self._world.grid.get(*self._world.front_pos) is None
        return _Advice(ACTIONS.index("drop" if free else "turn left"), putting_down=bool(self._world.carrying))
