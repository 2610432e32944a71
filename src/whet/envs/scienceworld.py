"""ScienceWorld: thirty kinds of experiments of an elementary school in a simulated house (Wang et al., arXiv 2203.07540).

    task: Your task is to boil water. ... First, focus on the substance. Then, take actions that will cause it to ...
    This room is called the hallway. In it, you see: ...

    -> open door to kitchen

Tasks, their official variations for train, dev and test, and gold paths come from the package `scienceworld`, a Java program.
This speaks to its server object: the package's own `step` asks for all valid actions after every one, which takes fifty times
as long as the step.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from whet.envs.base import Action, Step
from whet.envs.command import command
from whet.envs.java import JavaEnv, Server, Servers
from whet.envs.jvm import Static
from whet.errors import ConfigError, EnvError, did_you_mean, missing_extra
from whet.types import Split, Task

try:
    import py4j  # noqa: F401
    from scienceworld.constants import ID2TASK, JAR_PATH
except ImportError as error:
    raise missing_extra("scienceworld", "scienceworld", "the environment 'scienceworld'") from error

VARIATIONS: Mapping[str, int] = {
    "boil": 30,
    "melt": 30,
    "freeze": 30,
    "change-the-state-of-matter-of": 30,
    "use-thermometer": 540,
    "measure-melting-point-known-substance": 436,
    "measure-melting-point-unknown-substance": 300,
    "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 20,
    "test-conductivity": 900,
    "test-conductivity-of-unknown-substances": 600,
    "find-living-thing": 300,
    "find-non-living-thing": 300,
    "find-plant": 300,
    "find-animal": 300,
    "grow-plant": 126,
    "grow-fruit": 126,
    "chemistry-mix": 32,
    "chemistry-mix-paint-secondary-color": 36,
    "chemistry-mix-paint-tertiary-color": 36,
    "lifespan-longest-lived": 125,
    "lifespan-shortest-lived": 125,
    "lifespan-longest-lived-then-shortest-lived": 125,
    "identify-life-stages-1": 14,
    "identify-life-stages-2": 10,
    "inclined-plane-determine-angle": 168,
    "inclined-plane-friction-named-surfaces": 1386,
    "inclined-plane-friction-unnamed-surfaces": 162,
    "mendelian-genetics-known-plant": 120,
    "mendelian-genetics-unknown-plant": 480,
}
"""Task -> how many variations it has, in the order of the paper's table."""
SIMPLIFICATIONS = ("easy", "noElectricalAction", "openContainers", "openDoors", "selfWateringFlowerPots", "teleportAction")
_ELECTRICAL = ("power-component", "conductivity")
_PLANNING_S = 500.0
"""Seconds that an expert may wait until the planner is free."""
_UNDO = {"open": "close", "close": "open", "activate": "deactivate", "deactivate": "activate"}
_PROCESSOR = "main.scala.scienceworld.runtime.SimplifierProcessor$"
_GENERATOR = Static("scala.util.Random$", "self", "java.util.Random")
_STATICS = (
    _GENERATOR,
    Static("util.UniqueIdentifier$", "count", 0),
    Static(_PROCESSOR, "simplifications", "scala.collection.mutable.ArrayBuffer"),
)
"""What the program has once for all its worlds: the generator that is seeded when a world is made and that bees, wandering animals
and inheritance go on drawing from; the counter of objects, which a new world sets back to 0; the simplifications in force."""
_golds: dict[tuple[str, int, str], list[str]] = {}


def variations(task: str, split: Split) -> range:
    """The official variations of a task: half for train, a quarter for dev, the rest for test, as the package divides them."""
    quarter = VARIATIONS[task] // 4
    return {
        "train": range(2 * quarter),
        "dev": range(2 * quarter, 3 * quarter),
        "test": range(3 * quarter, VARIATIONS[task]),
    }[split]


def _servers(**options: Any) -> Servers:
    """Worlds in Java machines.

    A constant hash makes Java's sets list their elements in the order in which they came; else the order of what is seen in a
    room would change from one process to the next.
    """
    java = ("-Xmx2g", "-XX:TieredStopAtLevel=4", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")
    world = "scienceworld.runtime.pythonapi.PythonInterface"
    return Servers("scienceworld", world, lambda: str(JAR_PATH), statics=_STATICS, options=java, **options)


class ScienceWorld(JavaEnv):
    """Do an experiment in a simulated house: boil, measure, build circuits, grow plants, find animals, mix paint.

    Options: `tasks` is `all`, or names or numbers of the thirty, such as `boil`, `1-1` or `4-1 4-2`; `simplifications` are
    the package's, such as `easy` or `openDoors teleportAction`; `limit` is how many moves of the simulation may pass before
    an episode is truncated (looking is free, `wait1` is two moves, `wait` eleven), `max_turns` how many turns; `reward` is
    `score`, by which an episode's rewards add up to the package's score over 100, which a wrong focus sets to -1, or `success`.
    """

    instructions = (
        "Do the task. Answer with one action: look around, look at OBJ, look in OBJ, examine OBJ, read OBJ, inventory, task, "
        "open OBJ, close OBJ, go to PLACE, pick up OBJ, put down OBJ, move OBJ to OBJ, pour OBJ into OBJ, dunk OBJ into OBJ, "
        "mix OBJ, activate OBJ, deactivate OBJ, use OBJ on OBJ, connect OBJ to OBJ, disconnect OBJ, eat OBJ, flush OBJ, "
        "focus on OBJ, wait, wait1. Focus only on what the task names."
    )
    max_tokens = 32
    inline = False
    max_concurrent = 64
    servers = _servers(share=16, recycle=500)
    planners: ClassVar[Servers] = _servers(size=1, share=1, recycle=100, answer_s=600.0)
    """Where the expert makes and tries its plans, some of which take half a minute, without anybody waiting who only plays."""

    def __init__(
        self,
        tasks: str = "all",
        simplifications: str = "",
        limit: int = 300,
        max_turns: int = 300,
        reward: Literal["score", "success"] = "score",
    ) -> None:
        self._tasks = _chosen(tasks)
        chosen = re.split(r"[\s,+]+", simplifications.strip()) if simplifications.strip() else []
        for name in chosen:
            if name not in SIMPLIFICATIONS:
                raise ConfigError(f"scienceworld has no simplification {name!r}. {did_you_mean(name, SIMPLIFICATIONS)}")
        if "noElectricalAction" in chosen and (needy := [t for t in self._tasks if any(word in t for word in _ELECTRICAL)]):
            raise ConfigError(f"the task {needy[0]!r} needs the electrical actions that the simplification noElectricalAction takes away")
        for option, value in (("limit", limit), ("max_turns", max_turns)):
            if value < 1:
                raise ConfigError(f"{option} is {value}; expected 1 or more")
        self._simplifications = ",".join(sorted(chosen))
        self._limit, self._by_score = limit, reward == "score"
        self.max_turns = max_turns  # type: ignore[misc]
        self._plan: Sequence[str] = ()

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """Official variations, one of each task in turn, so that any number of them is spread over the tasks."""
        rounds = itertools.zip_longest(*([(task, v) for v in variations(task, split)] for task in self._tasks))
        listed = [pair for round in rounds for pair in round if pair is not None]
        more = f"({self._simplifications})" if self._simplifications else ""
        return [
            Task(
                id=f"{self.name}/{task}{more}/{split}/{variation}",
                env=self.name,
                split=split,
                seed=variation,
                data={"task": task, "variation": variation, "simplifications": self._simplifications},
            )
            for task, variation in listed[start : start + n]
        ]

    def reset(self, task: Task) -> str:
        if (asked := task.data.get("simplifications", "")) != self._simplifications:
            raise EnvError(f"task {task.id!r} has the simplifications {asked!r}, but this environment {self._simplifications!r}")
        server = self._begin()
        self._task, self._variation = str(task.data["task"]), int(task.data["variation"])
        self._taken: list[str] = []
        self._plan, self._hopeless, self._over, self._score = (), False, False, 0.0
        self._load(server)
        return f"task: {server.call('getTaskDescription').strip()}\n{_tidy(server.call('step', 'look around'))}"

    def _load(self, server: Server, gold: bool = False) -> None:
        if problem := server.call("load", self._task, self._variation, self._simplifications, gold):
            raise EnvError(f"scienceworld cannot load {self._task!r}, variation {self._variation}: {problem}")

    def step(self, action: Action) -> Step:
        """One action, which is what follows the last colon of the text's last line."""
        if self._over:
            raise EnvError("the episode of 'ScienceWorld' is over; one object is one episode, so make another one")
        server, done, before = self._running(), command(action), self._score
        seen, score, moves, completed = server.run(_moved, server.object, done)
        self._taken.append(done)
        self._score = float(score)
        ended = bool(completed) or self._score < 0
        success = ended and self._score >= 1.0
        truncated = not ended and moves > self._limit
        self._over = ended or truncated
        reason = {"reason": "success" if success else "failure" if ended else "limit"} if self._over else {}
        return Step(
            observation=_tidy(seen),
            reward=self._score - before if self._by_score else float(success),
            terminated=ended,
            truncated=truncated,
            success=success,
            info={**reason, "score": round(100 * self._score), "moves": moves},
        )

    def random_action(self, rng: random.Random) -> Action:
        """One of the valid actions, which the package finds by trying; that takes as long as many steps."""
        return Action(text=rng.choice(sorted(self._running().aside(_GENERATOR, "getValidActionObjectCombinations"))))

    def expert(self, rng: random.Random) -> Action | None:
        """The package's gold path, made when it is first asked for, in a second or two; of plants that are crossed, in twenty.

        Where something else was done in between, the rest of the path, behind undoing it if that is needed; None once no
        such way succeeds, which is tried in a world of its own first.
        """
        done = len(self._taken)
        if not self._hopeless and (list(self._plan[:done]) != self._taken or len(self._plan) <= done):
            self._running()
            server = self.planners.take(_PLANNING_S, "planner")
            server.ready = True
            try:
                self._plan = self._way(server)
            finally:
                self.planners.give(server)
            self._hopeless = len(self._plan) <= done
        return Action(text=self._plan[done]) if len(self._plan) > done and not self._hopeless else None

    def _way(self, server: Server) -> list[str]:
        """The actions taken and what leads on from them to success; nothing but these where nothing does."""
        gold, taken = self._gold(server), self._taken
        if not taken:
            return gold
        followed, slips, rooms = 0, list[str](), list[str]()
        self._load(server)
        for action in taken:
            if followed < len(gold) and action == gold[followed]:
                followed += 1
                slips, rooms = [], []
            else:
                slips.append(action)
                rooms.append(_room(server))
            server.call("step", action)
        undo = [f"{_UNDO[verb]} {rest}" for verb, _, rest in (slip.partition(" ") for slip in reversed(slips)) if verb in _UNDO]
        trail = [*rooms, _room(server)]
        back = [f"go to {room}" for room, after in itertools.pairwise(trail) if room != after][::-1]
        for detour in ([], back, [*undo, *back], [*back, *undo]):
            if self._wins(server, plan := [*taken, *detour, *gold[followed:]]):
                return plan
        return taken

    def _gold(self, server: Server) -> list[str]:
        key = (self._task, self._variation, self._simplifications)
        if key not in _golds:
            self._load(server, gold=True)
            _golds[key] = server.call("getGoldActionSequence")
        return _golds[key]

    def _wins(self, server: Server, plan: Sequence[str]) -> bool:
        self._load(server)
        for action in plan:
            server.call("step", action)
            if server.call("getCompleted"):
                break
        return float(server.call("getScore")) >= 1.0


def _chosen(tasks: str) -> list[str]:
    """Task names from names or numbers, in the order of the paper."""
    if tasks.strip() == "all":
        return list(VARIATIONS)
    wanted = re.split(r"[\s,+]+", tasks.strip())
    for name in wanted:
        if name not in ID2TASK and name not in VARIATIONS:
            raise ConfigError(
                f"scienceworld has no task {name!r}. {did_you_mean(name, [*VARIATIONS, 'all'])} Or a number from 1-1 to 10-2."
            )
    names = {ID2TASK.get(name, name) for name in wanted}
    return [name for name in VARIATIONS if name in names]


def _moved(world: Any, action: str) -> tuple[str, float, int, bool]:
    """What is seen after an action, with the score, the number of moves, and whether the task is over."""
    return world.step(action), world.getScore(), world.getNumMoves(), world.getCompleted()


def _room(server: Server) -> str:
    """Where the agent is."""
    found = re.search(r"called the ([^.]+)\.", str(server.call("freeActionLook")))
    return found[1] if found else ""


def _tidy(text: str) -> str:
    """The text without blanks at the ends of its lines, and with blanks for tabs."""
    return "\n".join(line.rstrip() for line in text.replace("\t", "  ").strip().splitlines())
