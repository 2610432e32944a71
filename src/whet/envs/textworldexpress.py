"""TextWorldExpress: eight text games at thousands of steps a second (Jansen and Côté, arXiv 2208.01174).

    task: Your task is to pick up objects, then place them in their usual locations in the environment.
    You are in the bedroom. In one part of the room you see a wardrobe that is closed. ...
    actions: inventory | look around | open wardrobe | take clean blue socks

    -> take clean blue socks

The games, their folds of 1,000 seeds each for train, dev and test, and the agents that the expert asks come from the package
`textworld-express`, a Java program. What differs between the folds besides the seed depends on the game: objects in twc,
recipes in cookingworld, problems in arithmetic and sorting.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from whet.envs.base import Action, Step
from whet.envs.command import command
from whet.envs.java import JavaEnv, Server, Servers
from whet.envs.jvm import JavaRaised
from whet.errors import ConfigError, EnvError, did_you_mean, missing_extra
from whet.types import Split, Task

try:
    import py4j  # noqa: F401
    from textworld_express.constants import JAR_PATH
except ImportError as error:
    raise missing_extra("textworld-express", "textworldexpress", "the environment 'textworldexpress'") from error

Game = Literal["cookingworld", "twc", "coin", "mapreader", "arithmetic", "sorting", "simonsays", "peckingorder"]
_HOUSE = {"includeDoors": (0, 1), "limitInventorySize": (0, 1)}
PARAMETERS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "cookingworld": {"numLocations": (1, 11), "numIngredients": (1, 5), "numDistractorItems": (0, 10), **_HOUSE},
    "twc": {"numLocations": (1, 3), "numItemsToPutAway": (1, 4), **_HOUSE},
    "coin": {"numLocations": (1, 11), "numDistractorItems": (0, 10), **_HOUSE},
    "mapreader": {"numLocations": (2, 48), "maxDistanceApart": (1, 8), "maxDistractorItemsPerLocation": (0, 3), **_HOUSE},
    "arithmetic": {},
    "sorting": {},
    "simonsays": {"gameLength": (1, 1000), "numDistractors": (0, 5), "memorization": (0, 1), "verbose": (0, 1)},
    "peckingorder": {},
}
"""Game -> its parameters with their least and largest values, as the package enforces them.

Its documentation allows up to 10 items in twc, which it then refuses, and maps of 1 to 50 locations, of which it can make
none of 1, 49 or 50.
"""
FIRST_SEED: Mapping[Split, int] = {"train": 0, "dev": 10_000, "test": 20_000}
SEEDS = 1000
"""In each fold."""
INTERFACE = "textworldexpress.runtime.PythonInterface"
_NAMES = frozenset(name for parameters in PARAMETERS.values() for name in parameters)
_MAPPED: dict[tuple[str, Split], tuple[list[int], list[int]]] = {}
"""Of mapreader, by parameters and split: the seeds that were tried, and those that have a map."""
_LOOK = "look around"
_BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}
_WALKS = 10
"""Random seeds that the package's agents get from each state; they wander, and some give up after a while."""


class TextWorldExpress(JavaEnv):
    """Eight text games: cook a recipe, tidy up, find a coin, read a map, calculate, sort, repeat, follow instructions.

    Options: `game`; the game's own parameters, under the names that the package gives them (those of another game are
    refused); `actions` lists the valid actions in every observation; `text` is `full` for the package's own descriptions or
    `short` for the same things in fewer words; `reward` is `score`, by which an episode's rewards add up to the game's
    score of at most 1 (-1 for failure in arithmetic, sorting, peckingorder and simonsays), or `success`, which pays 1 for
    success alone; `max_turns` truncates.
    """

    instructions = "Play the game. Answer with one action."
    max_tokens = 24
    servers = Servers("textworldexpress", INTERFACE, lambda: str(JAR_PATH))

    def __init__(
        self,
        game: Game = "cookingworld",
        numLocations: int | None = None,
        numIngredients: int | None = None,
        numDistractorItems: int | None = None,
        includeDoors: int | None = None,
        limitInventorySize: int | None = None,
        numItemsToPutAway: int | None = None,
        maxDistanceApart: int | None = None,
        maxDistractorItemsPerLocation: int | None = None,
        gameLength: int | None = None,
        numDistractors: int | None = None,
        memorization: int | None = None,
        verbose: int | None = None,
        actions: bool = True,
        text: Literal["full", "short"] = "full",
        reward: Literal["score", "success"] = "score",
        max_turns: int = 100,
    ) -> None:
        chosen = {key: value for key, value in locals().items() if key in _NAMES and value is not None}
        if game not in PARAMETERS:
            raise ConfigError(f"textworldexpress has no game {game!r}. {did_you_mean(game, PARAMETERS)}")
        for key, value in chosen.items():
            if key not in PARAMETERS[game]:
                raise ConfigError(f"the game {game!r} has no parameter {key!r}. {did_you_mean(key, PARAMETERS[game])}")
            low, high = PARAMETERS[game][key]
            if not low <= value <= high:
                raise ConfigError(f"{key} is {value}; the game {game!r} expects {low} to {high}")
        if max_turns < 1:
            raise ConfigError(f"max_turns is {max_turns}; expected 1 or more")
        self.game = game
        self.max_turns = max_turns  # type: ignore[misc]
        self._parameters = ",".join(f"{key}={value}" for key, value in chosen.items())
        self._key = f"{game} {self._parameters}"
        self._listed, self._short, self._by_score = actions, text == "short", reward == "score"
        self._plan: Sequence[str] = ()
        """What the expert means to do, from the first action on."""

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """The official seeds of a fold, 1,000 of them, in their order.

        Of mapreader, those for which the package finds a map: some have none where the coin may lie far away on a small one.
        """
        data = {"game": self.game, "parameters": self._parameters}
        label = f"{self.game}({self._parameters})" if self._parameters else self.game
        seeds = self._mapped(split, start + n) if self.game == "mapreader" else range(SEEDS)
        return [
            Task(id=f"{self.name}/{label}/{split}/{i}", env=self.name, split=split, seed=FIRST_SEED[split] + i, data=data)
            for i in seeds[start : start + n]
        ]

    def _mapped(self, split: Split, n: int) -> Sequence[int]:
        """The first `n` seeds that have a map, counted from the fold's first; found by trying, once in a process."""
        tried, good = _MAPPED.setdefault((self._parameters, split), ([], []))
        if len(good) >= n or len(tried) == SEEDS:
            return good
        server = self.servers.take(self.reset_timeout / 2, self._key)
        try:
            while len(good) < n and len(tried) < SEEDS:
                i = len(tried)
                with contextlib.suppress(JavaRaised):
                    _Game(server, self.game, self._parameters, FIRST_SEED[split] + i, split)
                    good.append(i)
                tried.append(i)
        finally:
            self.servers.give(server)
        return good

    def reset(self, task: Task) -> str:
        asked = (task.data.get("game", self.game), task.data.get("parameters", self._parameters))
        if asked != (self.game, self._parameters):
            raise EnvError(f"task {task.id!r} is of {asked}, but this environment plays {(self.game, self._parameters)}")
        server = self._begin(self._key)
        self._task = task
        self._taken: list[str] = []
        self._plan, self._hopeless, self._over = (), False, False
        self._play = self._new_game(server)
        return f"task: {self._play.task()}\n{self._observation()}"

    def _new_game(self, server: Server) -> _Game:
        """The task's game from its beginning, in place of the one that the server has."""
        return _Game(server, self.game, self._parameters, self._task.seed, self._task.split)

    def step(self, action: Action) -> Step:
        """One action, which is what follows the last colon of the text's last line; the game answers invalid ones itself."""
        if self._over:
            raise EnvError("the episode of 'TextWorldExpress' is over; one object is one episode, so make another one")
        self._running()
        play, before, done = self._play, self._play.score, command(action)
        play.step(done)
        self._taken.append(done)
        self._over = play.over
        reward = play.score - before if self._by_score else float(play.won)
        reason = {"reason": "success" if play.won else "failure"} if play.over else {}
        info = {**reason, "score": play.score, "moves": len(self._taken)}
        return Step(observation=self._observation(), reward=reward, terminated=play.over, success=play.won, info=info)

    def _observation(self) -> str:
        text = " ".join(self._play.state["observation"].split())
        if self._short:
            text = shorten(text)
        return f"{text}\nactions: {' | '.join(self._play.actions)}" if self._listed and not self._over else text

    def random_action(self, rng: random.Random) -> Action:
        return Action(text=rng.choice(self._play.actions))

    def expert(self, rng: random.Random) -> Action | None:
        """What the agent does that makes the package's gold paths, from here on.

        None once no path from a state leads to success any more, such as after an ingredient has been eaten. The agents
        wander until they see what they look for, so their paths are not the shortest. The package draws its own gold paths
        without a seed; these are drawn from fixed ones.
        """
        done = len(self._taken)
        if not self._hopeless and (list(self._plan[:done]) != self._taken or len(self._plan) <= done):
            server = self._running().beside()
            self._plan = _Planner(lambda: self._new_game(server), self._taken).plan()
            server.release()
            self._hopeless = len(self._plan) <= done
        return Action(text=self._plan[done]) if len(self._plan) > done and not self._hopeless else None


_FEWER_WORDS = (
    (r"(?:In (?:one|another) part of the room you see|There is also|You also see) (?:an? )?", ""),
    (r", that (?:has nothing on it|is empty)", ""),
    (r" that is closed", " (closed)"),
    (r"(?: that is open,? (?:and )?)?(?: that has|that contains) (.*?)(?: (?:on|in) it)?\.", r": \1."),
    (r"To the (North|South|East|West) you see (?:an? |the )?", r"\1: "),
)


def shorten(text: str) -> str:
    """A room's description with the same things in fewer words."""
    for pattern, to in _FEWER_WORDS:
        text = re.sub(pattern, to, text)
    return text


class _Game:
    """A game under way on a server, with what Java said about it last."""

    def __init__(self, server: Server, game: str, parameters: str, seed: int, fold: str) -> None:
        self._server = server
        if not server.ready:
            if problem := server.call("load", game, parameters):
                raise EnvError(f"textworldexpress cannot load the game {game!r} with {parameters!r}: {problem}")
            server.ready = True
        with server.machine.lock:
            if game == "sorting":
                _renew_sorting(server, seed, fold)
            self._read(server.call("generateNewGameJSON", seed, fold, False))

    def _read(self, answer: str) -> None:
        self.state: dict[str, Any] = json.loads(answer)
        if "validActions" not in self.state:
            raise EnvError(f"textworldexpress answered {answer[:200]!r}; expected a state of the game")
        self.actions = sorted(set(self.state["validActions"]))
        self.score = float(self.state["score"])
        self.won = bool(self.state["tasksuccess"])
        self.over = self.won or bool(self.state["taskfailure"])

    def task(self) -> str:
        """What the player is told to do."""
        return " ".join(self._server.call("getTaskDescription").split())

    def step(self, action: str) -> None:
        self._read(self._server.call("stepJSON", action))

    def walk(self, seed: int) -> list[str]:
        """All that was done in this game, after the package's agent has played it on to its end."""
        server, game = self._server, self._server.call("game")
        agent = f"textworldexpress.goldagent.{game.getClass().getSimpleName().removesuffix('Game')}GoldAgent"
        played = server.run(server.make(agent, game).mkGoldPath, server.make("scala.util.Random", seed))
        return list(server.run(played._2))


def _renew_sorting(server: Server, seed: int, fold: str) -> None:
    """Give the next game of this sorting problem objects of its own.

    The package makes a problem's objects once and puts them into every game of the problem, so that two games of one task
    would take them from each other. This runs the method that made them again; Java allows that by reflection only.
    """
    machine = server.machine
    java = machine.gateway.jvm.java.lang

    def renew() -> None:
        problem = getattr(machine.cls("textworldexpress.data.SortingProblemGenerator$"), "MODULE$").getProblem(seed, fold).get()
        make = problem.getClass().getDeclaredMethod("getOrderedItems", machine.gateway.new_array(java.Class, 0))
        items = problem.getClass().getDeclaredField("orderedItems")
        make.setAccessible(True)
        items.setAccessible(True)
        items.set(problem, make.invoke(problem, machine.gateway.new_array(java.Object, 0)))

    server.run(renew)


class _Planner:
    """Looks for success behind the actions taken, among the paths of the package's agents; each is tried before it is believed."""

    def __init__(self, new_game: Callable[[], _Game], taken: Sequence[str]) -> None:
        """`new_game` begins the game anew, which ends the one that it gave before."""
        self._new_game, self._taken = new_game, list(taken)

    def plan(self) -> list[str]:
        """The actions of an episode that begins with those taken and succeeds; nothing but these where none is found."""
        detours = list(self._detours())
        for seed in range(_WALKS):
            for detour in detours:
                start = [*self._taken, *detour]
                if self._behind(plan := [*start, *self._walk(start, seed)]).won:
                    return plan
        return self._taken

    def _behind(self, actions: Sequence[str]) -> _Game:
        game = self._new_game()
        for action in actions:
            if game.over:  # a lost game would go on, and may be won later
                break
            game.step(action)
        return game

    def _walk(self, start: list[str], seed: int) -> list[str]:
        """What the agent does behind `start`, without the look around that it begins with.

        Its list is of the whole game, at whose beginning most games look around themselves.
        """
        path = self._behind(start).walk(seed)
        for head in ([_LOOK, *start], start):
            if path[: len(head)] == head:
                return path[len(head) + (path[len(head) :][:1] == [_LOOK]) :]
        return []

    def _detours(self) -> Iterator[list[str]]:
        """What may help an agent that was written for the beginning of a game: nothing, to walk back there, or to empty its hands."""
        yield []
        back = self._way_back()
        for way in ([], back) if back else ([],):
            if way:
                yield way
            if rid := self._put_down([*self._taken, *way]):
                yield [*way, *rid]

    def _way_back(self) -> list[str]:
        """Moves from here to where the game began."""
        game, trail = self._new_game(), list[str]()
        for action in self._taken:
            before = game.state["look"].partition(".")[0]
            game.step(action)
            if action.startswith("move ") and game.state["look"].partition(".")[0] != before:
                way = action.removeprefix("move ")
                if trail and trail[-1] == _BACK[way]:
                    trail.pop()
                else:
                    trail.append(way)
        return [f"move {_BACK[way]}" for way in reversed(trail)]

    def _put_down(self, start: list[str]) -> list[str]:
        """Actions by which as much as possible of what is carried is put down where the agent then stands."""
        game, done = self._behind(start), list[str]()
        while len(done) < 10 and not game.over:
            puts = [action for action in game.actions if action.startswith("put ")]
            if not puts:
                break
            game.step(puts[0])
            done.append(puts[0])
        return done
