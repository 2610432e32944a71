"""TextWorld: text adventures made to measure (Côté et al., arXiv 1806.11532), played by the Z-machine interpreter of the package.

    task: Welcome to another fast paced session of TextWorld! First of all, you could, like, try to venture south. ...
    -= Cookhouse =- You are in a cookhouse. An ordinary kind of place. You make out a closed safe. ...
    actions: examine keycard | examine safe | go south | inventory | look | open safe | take keycard

    -> go south

A seed makes a game: rooms, objects, a quest and the words for them. With `text=full` it is compiled by Inform 7, which comes
with the package, and says what Inform says. With `text=short` the package plays the game's logic alone, which needs no
compiler, and the state is described in a few words by this file. Games are kept on disk. Splits differ by seed.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from whet.envs.base import Action, Env, Step
from whet.errors import ConfigError, EnvError, missing_extra
from whet.seeding import derive_seed
from whet.types import Split, Task

try:
    import textworld
    from textworld.generator import compile_game, make_game
except ImportError as error:
    raise missing_extra("textworld", "textworld", "the environment 'textworld'") from error

ATTEMPTS = 10
"""Seeds derived from a task's that are tried before its options are called impossible."""
STALE = 3600.0
"""Seconds after which a half-made game is taken for that of a process that died."""
_LOCK = threading.Lock()
"""Making and loading games goes through parsers and tables that the package shares between threads."""
_META = frozenset(
    (
        "quit",
        "q",
        "restart",
        "restore",
        "save",
        "undo",
        "script",
        "unscript",
        "transcript",
        "verify",
        "version",
        "notify",
        "superbrief",
        "brief",
        "verbose",
    )
)
"""Commands to the interpreter instead of to the game; some write files or end the program."""
_ENDING = "Would you like to RESTART"


class TextWorld(Env):
    """Fulfil a quest in a house of rooms, doors, containers and things that was made from a seed.

    Options: `nb_rooms`, `nb_objects` (with those that the quest needs, which may be more) and `quest_length` (commands of the
    quest) as in the package; `goal` is `steps`, by which the task tells every step, or `end`, which tells only the last;
    `text` is `full` for the compiled game's own text or `short` for the state in few words, without a compiler; `actions`
    lists the admissible commands; `max_turns` truncates; `cache` is how many games are kept on disk.
    """

    instructions = "Play the game. Answer with one command."
    max_tokens = 24
    inline = False
    reset_timeout = 180.0
    max_concurrent = 16  # games are made one after the other, and a wait for one's turn counts against reset_timeout

    def __init__(
        self,
        nb_rooms: int = 3,
        nb_objects: int = 5,
        quest_length: int = 4,
        goal: Literal["steps", "end"] = "steps",
        text: Literal["full", "short"] = "full",
        actions: bool = True,
        max_turns: int = 50,
        cache: int = 500,
    ) -> None:
        for key, value, low in (
            ("nb_rooms", nb_rooms, 1),
            ("nb_objects", nb_objects, 1),
            ("quest_length", quest_length, 1),
            ("max_turns", max_turns, 1),
            ("cache", cache, 0),
        ):
            if value < low:
                raise ConfigError(f"{key} is {value}; expected {low} or more")
        if goal not in ("steps", "end") or text not in ("full", "short"):
            raise ConfigError(f"goal is {goal!r} and text {text!r}; expected goal 'steps' or 'end', and text 'full' or 'short'")
        self.max_turns = max_turns  # type: ignore[misc]
        self._made_by = {"nb_rooms": nb_rooms, "nb_objects": nb_objects, "quest_length": quest_length, "goal": goal}
        self._full, self._listed, self._cache = text == "full", actions, cache
        self._game: Any = None
        self._state: Any = None
        self._over = True

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """Endlessly many games with these options, told apart by seed."""
        label = "-".join(map(str, self._made_by.values()))
        return [
            Task(
                id=f"{self.name}/{label}/{split}/{i}",
                env=self.name,
                split=split,
                seed=derive_seed("task", self.name, split, i),
                data=dict(self._made_by),
            )
            for i in range(start, start + n)
        ]

    def reset(self, task: Task) -> str:
        if task.data and dict(task.data) != self._made_by:
            raise EnvError(f"task {task.id!r} is a game with {dict(task.data)}, but this environment plays {self._made_by}")
        self.close()
        infos = textworld.EnvInfos(admissible_commands=True, policy_commands=True, objective=True, facts=not self._full)
        with kept(self._made_by, task.seed, compiled=self._full, limit=self._cache) as path, _LOCK:
            self._game = textworld.start(str(path), infos)
            self._state = self._game.reset()
        self._turns, self._over = 0, False
        told = f"task: {' '.join(self._state.objective.split())}\n"
        if not self._full:
            return f"{told}{self._shown(describe(self._state.facts))}"
        # What comes before the first room is a banner and the task again.
        return f"{told}{self._shown(self._state.feedback.partition('-=')[2].join(('-=', '')))}"

    def step(self, action: Action) -> Step:
        """One command: what follows the last colon of the text's last line."""
        if self._over:
            raise EnvError("the episode of 'TextWorld' is over, or has not begun; one object is one episode, so make another one")
        command = action.text.strip().rpartition("\n")[2].rpartition(":")[2].strip()
        problem = self._refused(command)
        if not problem:
            self._state, _, _ = self._game.step(command)
        state = self._state
        won, lost = bool(state.won), bool(state.lost)
        self._turns += 1
        truncated = not (won or lost) and self._turns >= self.max_turns
        self._over = won or lost or truncated
        info = {"reason": "success" if won else "failure"} if won or lost else {}
        if self._full:
            told = problem or state.feedback
        else:
            told = "\n".join(filter(None, [problem, "You won." if won else "You lost." if lost else describe(state.facts)]))
        return Step(
            observation=self._shown(told),
            reward=float(won),
            terminated=won or lost,
            truncated=truncated,
            success=won and not lost,
            info=info,
        )

    def _refused(self, command: str) -> str:
        """Why the command is not given to the game, if it is not."""
        words = re.findall(r"[\w-]+", command.lower())
        if not words or len(command) > 100:
            return "Expected one command."
        if any(word in _META or word.startswith("tw-") for word in words):
            return "That is no command of the game."
        if not self._full and command not in self._state.admissible_commands:
            return "Invalid command."
        return ""

    def _shown(self, told: str) -> str:
        lines = told.partition(_ENDING)[0].splitlines()
        # The interpreter's status line stands behind its prompt.
        text = " ".join(" ".join(line for line in lines if not line.startswith(">")).split()) if self._full else told
        return f"{text}\nactions: {' | '.join(self._state.admissible_commands)}" if self._listed and not self._over else text

    def expert(self, rng: random.Random) -> Action | None:
        """The first command of the package's plan from here on, which it mends after every command; None where it has no plan left."""
        plan: Sequence[str] = self._state.policy_commands or ()
        return Action(text=plan[0]) if plan and plan[0] in self._state.admissible_commands else None

    def random_action(self, rng: random.Random) -> Action:
        return Action(text=rng.choice(self._state.admissible_commands))

    def close(self) -> None:
        """Frees the interpreter, which is a copy of a C library in memory for every episode."""
        game, self._game = self._game, None
        if game is not None:
            game.close()


_WAYS = ("north_of", "east_of", "south_of", "west_of")


def describe(facts: Sequence[Any]) -> str:
    """The player's surroundings in four lines at most: room, things, exits, and what is carried.

    `facts` are the propositions that hold, with the names of things. What lies in a closed container is not told.
    """
    held: dict[str, list[tuple[str, ...]]] = {}
    for fact in facts:
        held.setdefault(fact.name.partition("/")[0], []).append(tuple(argument.name for argument in fact.arguments))
    room = next(place for who, place in held["at"] if who == "P")
    states = {thing: word for word in ("open", "closed", "locked") for (thing,) in held.get(word, ())}

    def named(thing: str) -> str:
        inside = sorted(what for kind in ("in", "on") for what, where in held.get(kind, ()) if where == thing)
        hidden = states.get(thing) in ("closed", "locked")
        content = f" with {' and '.join(inside)}" if inside and not hidden else ""
        return f"{states[thing]} {thing}{content}" if thing in states else f"{thing}{content}"

    doors = {(a, b): door for a, door, b in held.get("link", ())}
    exits = []
    for way in _WAYS:
        # north_of(a, b) says that a lies north of b; with a door, it stands between them.
        for ends in held.get(way, ()):
            if ends[-1] == room:
                door = doors.get((room, ends[0]), "")
                exits.append(f"{way.removesuffix('_of')}{f' through the {named(door)}' if door else ''}")
    things = sorted(who for who, place in held["at"] if place == room and who != "P")
    lines = [f"room: {room}", f"things: {', '.join(map(named, things)) or 'none'}", f"exits: {', '.join(dict.fromkeys(exits)) or 'none'}"]
    carried = sorted(what for what, where in held.get("in", ()) if where == "I")
    return "\n".join([*lines, *([f"carrying: {', '.join(carried)}"] if carried else [])])


@contextmanager
def kept(made_by: dict[str, Any], seed: int, *, compiled: bool, limit: int) -> Iterator[Path]:
    """The file of a game (`.z8`, or `.json` where not compiled), made unless it is there already; to be loaded within the context.

    Several processes may ask for the same game: each makes a directory of its own and renames it, which succeeds for one.
    The oldest games beyond `limit` are removed afterwards. Raises EnvError where the directory cannot be written to.
    """
    key = derive_seed(textworld.__version__, sorted(made_by.items()), seed, compiled)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whet" / "textworld"
    place = root / f"{key:016x}"
    file = f"game.{'z8' if compiled else 'json'}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix="making-", dir=root))
    except OSError as error:
        raise EnvError(f"games cannot be kept in {root}: {error}; set XDG_CACHE_HOME to a directory that can be written to") from error
    try:
        # A game that is found is linked into a directory of one's own, so that nobody removes it in between.
        if not _linked(place, making):
            make(made_by, seed, making / file)
            if limit:
                _publish(making, place, root)
                _forget(root, limit)
        yield making / file
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copy(file, to)


def _linked(place: Path, to: Path) -> bool:
    """Whether the game is there; then its files are in `to` as well."""
    try:
        os.utime(place)  # the oldest are those that were not used for longest
        for file in place.iterdir():
            _link(file, to / file.name)
        return True
    except FileNotFoundError:
        for file in to.iterdir():
            file.unlink()
        return False


def _publish(making: Path, place: Path, root: Path) -> None:
    copy = Path(tempfile.mkdtemp(prefix="making-", dir=root))
    for file in making.iterdir():
        if file.suffix != ".ni":
            _link(file, copy / file.name)
    try:
        copy.rename(place)
    except OSError:  # another process was first, with the same files
        shutil.rmtree(copy, ignore_errors=True)


def _forget(root: Path, limit: int) -> None:
    """Remove the games beyond `limit` that were not used for longest, and what processes that died have left."""
    games, stale = [], []
    for entry in os.scandir(root):
        with suppress(FileNotFoundError):
            age = (entry.stat().st_mtime, entry.path)
            if not entry.name.startswith("making-"):
                games.append(age)
            elif age[0] < time.time() - STALE:
                stale.append(age)
    for _, path in [*sorted(games)[: max(0, len(games) - limit)], *stale]:
        gone = tempfile.mkdtemp(prefix="making-", dir=root)
        with suppress(OSError):  # another process was first
            os.rename(path, gone)  # all at once, so that nobody finds half a game
        shutil.rmtree(gone, ignore_errors=True)


def make(made_by: dict[str, Any], seed: int, path: Path) -> None:
    """Make the game of a seed and write it to `path`, compiled where that ends in `.z8`.

    Raises ConfigError where the package makes no game of these options from any of `ATTEMPTS` seeds, EnvError where it is not
    compiled.
    """
    problem = None
    for attempt in range(ATTEMPTS):
        options = textworld.GameOptions()
        options.nb_rooms, options.nb_objects = made_by["nb_rooms"], made_by["nb_objects"]
        options.quest_length = made_by["quest_length"]
        options.grammar.only_last_action = made_by["goal"] == "end"
        options.seeds = {part: derive_seed("textworld", seed, attempt, part) % 2**31 for part in ("map", "objects", "quest", "grammar")}
        options.path = str(path)
        try:
            with _LOCK:
                game = make_game(options)
            break
        except Exception as error:  # the package raises whatever it ran into; another seed may do
            problem = error
    else:
        raise ConfigError(f"textworld makes no game of {made_by}: {type(problem).__name__}: {problem}; try more rooms or a shorter quest")
    # Ids are drawn without the seed otherwise, and the compiled game would differ.
    game.metadata["uuid"] = f"whet-{seed}"
    if path.suffix == ".json":
        game.save(str(path))
        return
    try:
        compile_game(game, options)
    except Exception as error:
        raise EnvError(f"textworld cannot compile the game of seed {seed} with {made_by}: {str(error)[-500:]}") from error
