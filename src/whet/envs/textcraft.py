"""TextCraft: craft a Minecraft item by its recipes (Prasad et al., ADaPT, arXiv 2311.05772), with its commands and its answers.

    Crafting commands:
    craft 4 oak planks using 1 oak log
    craft 1 oak button using 1 oak planks
    craft 1 crafting table using 4 oak planks

    Goal: craft oak button.

    -> get 1 oak log    -> craft 4 oak planks using 1 oak log    -> craft 1 oak button using 1 oak planks

What is crafted from nothing can be got; everything else must be crafted. The depth of an item is 0 where it can be got, else
one more than that of the deepest ingredient of its shallowest recipe. Recipes come from the package `minecraft-data`, or
from a directory of recipe files in Minecraft's own format, which is what the original reads. The splits share no goal.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.envs.base import Action, Env, Step
from whet.errors import ConfigError, EnvError, did_you_mean, missing_extra
from whet.seeding import derive_seed
from whet.types import Split, Task

try:
    import minecraft_data
except ImportError as error:
    raise missing_extra("minecraft-data", "textcraft", "the environment 'textcraft'") from error

DEEPEST = 4
LONGEST = 40
"""Commands of the longest plan among the goals; the original allows 40 steps."""
SHARES: Mapping[Split, tuple[int, int]] = {"train": (0, 6), "dev": (6, 8), "test": (8, 10)}
"""Tenths of the goals, by the hash of their names."""
_COUNTED = re.compile(r"([0-9]{1,4}) (.+)")


@dataclass(frozen=True, slots=True)
class Recipe:
    """`count` of `item` from `inputs`: pairs of a name and a number, in the recipe's order. A name may be that of a group."""

    item: str
    count: int
    inputs: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"craft {self.count} {self.item} using {', '.join(f'{n} {name}' for name, n in self.inputs)}"


class Book:
    """Recipes without circles, and what follows from them.

    `groups` is item -> group; a recipe that asks for a group takes any one item of it. As in the original, recipes that take
    a block apart are left out, and so are those that would close a circle; which of these, the original leaves to the order
    of files, while here the ones that need fewest things stay.
    """

    def __init__(self, recipes: Iterable[Recipe], groups: Mapping[str, str] | None = None) -> None:
        self._members: dict[str, list[str]] = {}
        for item, group in sorted((groups or {}).items()):
            self._members.setdefault(group, []).append(item)
        self._group_of = dict(groups or {})
        self.by_item: dict[str, tuple[Recipe, ...]] = {}
        self.items: set[str] = set()
        self._depths: dict[str, int] = {}
        for recipe in sorted(set(recipes), key=lambda r: (sum(n for _, n in r.inputs), str(r))):
            names = [name for name, _ in recipe.inputs]
            self.items.update([recipe.item, *(name for name in names if name not in self._members)])
            apart = len(names) == 1 and names[0].endswith(" block")
            if not apart and not any(self._rests_on(name, recipe.item, set()) for name in names):
                self.by_item[recipe.item] = (*self.by_item.get(recipe.item, ()), recipe)
        self._uses: dict[str, list[Recipe]] = {}
        for recipe in self.recipes():
            for name, _ in recipe.inputs:
                self._uses.setdefault(name, []).append(recipe)

    def recipes(self) -> Iterator[Recipe]:
        """All of them, in the order of their items' names."""
        for item in sorted(self.by_item):
            yield from self.by_item[item]

    def members(self, name: str) -> list[str]:
        """The items that will do where a recipe asks for `name`."""
        return self._members.get(name) or [name]

    def _rests_on(self, name: str, item: str, seen: set[str]) -> bool:
        """Whether some way to `name` needs `item`."""
        if name == item or item in self.members(name):
            return True
        for member in self.members(name):
            for recipe in self.by_item.get(member, ()):
                for part, _ in recipe.inputs:
                    if part not in seen:
                        seen.add(part)
                        if self._rests_on(part, item, seen):
                            return True
        return False

    def depth(self, name: str) -> int:
        """0 for what can be got, else how many crafts lie on the longest branch of the shallowest way to it."""
        if name not in self._depths:
            found = [self.deep(recipe) for member in self.members(name) for recipe in self.by_item.get(member, ())]
            raw = any(member not in self.by_item for member in self.members(name))
            self._depths[name] = 0 if raw else min(found)
        return self._depths[name]

    def deep(self, recipe: Recipe) -> int:
        """The depth that the item has by this recipe."""
        return 1 + max(self.depth(name) for name, _ in recipe.inputs)

    def way(self, goal: str, rng: random.Random) -> dict[str, Recipe | str]:
        """One shallowest way to an item, drawn among them: name -> the recipe that makes it, or for a group the item that is taken.

        A name that is missing can be got.
        """
        chosen: dict[str, Recipe | str] = {}

        def choose(name: str) -> None:
            if name in chosen:
                return
            members = self.members(name)
            if members != [name]:
                best = [m for m in members if self.depth(m) == self.depth(name)]
                # Of several woods take one that is in use already, so that a way does not need two of them.
                chosen[name] = next((m for m in best if m in chosen), "") or rng.choice(best)
                choose(str(chosen[name]))
            elif name in self.by_item:
                recipe = rng.choice([r for r in self.by_item[name] if self.deep(r) == self.depth(name)])
                chosen[name] = recipe
                for part, _ in recipe.inputs:
                    choose(part)

        choose(goal)
        return chosen

    def distractors(self, shown: Sequence[Recipe], n: int, rng: random.Random) -> list[Recipe]:
        """Up to `n` other recipes that use something which the shown ones use, as in the original."""
        names = sorted({name for recipe in shown for name, _ in recipe.inputs})
        known = {str(recipe) for recipe in shown}
        others = sorted({str(r): r for name in names for r in self._uses[name] if str(r) not in known}.items())
        return [recipe for _, recipe in rng.sample(others, min(n, len(others)))]

    def craft(self, item: str, given: Mapping[str, int]) -> Recipe | None:
        """The recipe that makes `item` of exactly these things, if there is one."""
        return next((recipe for recipe in self.by_item.get(item, ()) if self._suits(recipe, given)), None)

    def _suits(self, recipe: Recipe, given: Mapping[str, int]) -> bool:
        rest = dict(given)
        for name, n in recipe.inputs:
            taken = next((thing for thing in rest if rest[thing] == n and (thing == name or self._group_of.get(thing) == name)), None)
            if taken is None:
                return False
            del rest[taken]
        return not rest

    def gettable(self, item: str) -> bool:
        return item in self.items and item not in self.by_item


class TextCraft(Env):
    """Craft an item from what can be got, by recipes among which some lead elsewhere.

    Options: `depth` is how many crafts follow from one another, such as `1` or `1-2`; `distractors` the largest number of
    recipes listed that do not help; `version` the Minecraft version of the recipes; `recipes` a directory of recipe files in
    Minecraft's format to be used instead; `max_turns` truncates.
    """

    instructions = "Craft the goal. Answer with one command: get N ITEM, craft N ITEM using N ITEM, N ITEM, or inventory."
    max_tokens = 48

    def __init__(
        self, depth: str = "1-2", distractors: int = 10, version: str = "1.19", recipes: str | None = None, max_turns: int = LONGEST
    ) -> None:
        low, _, high = str(depth).partition("-")
        if not (low.isdigit() and (high or low).isdigit() and 1 <= int(low) <= int(high or low) <= DEEPEST):
            raise ConfigError(f"depth is {depth!r}; expected a number from 1 to {DEEPEST} or a range such as '1-2'")
        if distractors < 0:
            raise ConfigError(f"distractors is {distractors}; expected 0 or more")
        if max_turns < 1:
            raise ConfigError(f"max_turns is {max_turns}; expected 1 or more")
        self.max_turns = max_turns  # type: ignore[misc]
        self._depths = (int(low), int(high or low))
        self._distractors = distractors
        self._source = f"recipes={recipes}" if recipes else version
        self._book = read_recipes(str(Path(recipes).expanduser().resolve())) if recipes else packaged(version)
        self._goal = ""
        self._over = True

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """Endlessly many tasks: the split's goals in a shuffled order, over and over, with other ways and distractors each time."""
        goals = goals_of(self._book, self._depths, split)
        if not goals:
            raise ConfigError(f"the recipes of {self._source!r} have no goal of depth {self._depths} for the split {split!r}")
        label = "-".join(map(str, sorted(set(self._depths))))
        return [
            Task(
                id=f"{self.name}/{label}/{split}/{i}",
                env=self.name,
                split=split,
                seed=derive_seed("task", self.name, split, i),
                data={"goal": goals[i % len(goals)]},
            )
            for i in range(start, start + n)
        ]

    def reset(self, task: Task) -> str:
        self._goal = str(task.data.get("goal", ""))
        if self._goal not in self._book.by_item:
            raise EnvError(f"the goal {self._goal!r} of task {task.id!r} is not crafted by the recipes of {self._source!r}")
        rng = random.Random(task.seed)
        self._way = self._book.way(self._goal, rng)
        needed = [recipe for recipe in self._way.values() if isinstance(recipe, Recipe)]
        self._listed = needed + self._book.distractors(needed, self._distractors, rng)
        rng.shuffle(self._listed)
        self._inventory: Counter[str] = Counter()
        self._turns, self._over = 0, False
        return "\n".join(["Crafting commands:", *map(str, self._listed), "", f"Goal: craft {self._goal}."])

    def step(self, action: Action) -> Step:
        """One command: what follows the last colon of the text's last line."""
        if self._over:
            raise EnvError("the episode of 'TextCraft' is over, or has not begun; one object is one episode, so make another one")
        command = action.text.strip().rpartition("\n")[2].rpartition(":")[2].strip()
        observation, won = self._do(command)
        self._turns += 1
        truncated = not won and self._turns >= self.max_turns
        self._over = won or truncated
        info = {"reason": "success"} if won else {}
        return Step(observation=observation, reward=float(won), terminated=won, truncated=truncated, success=won, info=info)

    def _do(self, command: str) -> tuple[str, bool]:
        """What the command leads to, and whether that was the goal."""
        if command == "inventory":
            held = " ".join(f"[{item}] ({n})" for item, n in self._inventory.items() if n)
            return f"Inventory: {held or 'You are not carrying anything.'}", False
        if match := re.fullmatch(rf"get {_COUNTED.pattern}", command):
            n, item = int(match[1]), match[2]
            if not self._book.gettable(item) or not n:
                return f"Could not find {item}" if n else "Could not get 0 of anything", False
            self._inventory[item] += n
            return f"Got {n} {item}", False
        if match := re.fullmatch(r"craft (.+?) using (.+)", command):
            return self._craft(match[1], match[2])
        return f"Could not execute {command[:80]}", False

    def _craft(self, made: str, using: str) -> tuple[str, bool]:
        counted = _COUNTED.fullmatch(made)
        item = counted[2] if counted else made
        given: Counter[str] = Counter()
        for part in using.split(","):
            match = _COUNTED.fullmatch(part.strip())
            if not match or match[2] in given:
                return f"Wrong item format: {part.strip()[:40]}", False
            given[match[2]] = int(match[1])
        if any(self._inventory[name] < n for name, n in given.items()):
            return f"Could not find enough items to craft {item}", False
        recipe = self._book.craft(item, given)
        if recipe is None:
            return f"Could not find a valid recipe for {made}", False
        self._inventory -= given
        self._inventory[item] += recipe.count
        return f"Crafted {recipe.count} {item}", item == self._goal

    def expert(self, rng: random.Random) -> Action | None:
        """The next command of the task's way from what is held now: first what has to be got, then crafts."""
        plan = plan_of(self._way, self._goal, self._inventory)
        return Action(text=plan[0])

    def random_action(self, rng: random.Random) -> Action:
        """A listed command, or to get what one of them needs, or to look into the inventory."""
        kind = rng.random()
        if kind < 0.1:
            return Action(text="inventory")
        recipe = rng.choice(self._listed)
        if kind < 0.5:
            return Action(text=str(recipe))
        name, n = rng.choice(recipe.inputs)
        return Action(text=f"get {n} {name}")


def plan_of(way: Mapping[str, Recipe | str], goal: str, held: Mapping[str, int]) -> list[str]:
    """Commands that craft `goal` on this way, beginning with `held`: everything that must be got comes first, each thing once."""
    free, gets, crafts = Counter(held), Counter[str](), list[str]()

    def take(name: str, n: int) -> str:
        """Set aside `n` of what `name` stands for, making what is missing; gives the item's name."""
        how = way.get(name)
        if isinstance(how, str):
            return take(how, n)
        if how is None and free[name] < n:
            gets[name] += n - free[name]
            free[name] = n
        while how is not None and free[name] < n:
            make(how)
        free[name] -= n
        return name

    def make(recipe: Recipe) -> None:
        used = [(take(name, n), n) for name, n in recipe.inputs]
        crafts.append(str(Recipe(recipe.item, recipe.count, tuple(used))))
        free[recipe.item] += recipe.count

    made = way[goal]
    assert isinstance(made, Recipe)
    make(made)
    return [*(f"get {n} {item}" for item, n in gets.items()), *crafts]


@functools.lru_cache(maxsize=64)
def goals_of(book: Book, depths: tuple[int, int], split: Split) -> tuple[str, ...]:
    """The goals of these depths in a split, in an order that mixes depths.

    Left out are those for which one of the ways drawn could need more than `LONGEST` commands, so that the expert is never cut off.
    """
    low, high = SHARES[split]
    found = []
    for item in book.by_item:
        if depths[0] <= book.depth(item) <= depths[1] and low <= derive_seed("textcraft goal", item) % 10 < high:
            plans = [plan_of(book.way(item, random.Random(i)), item, {}) for i in range(5)]
            if max(map(len, plans)) <= LONGEST:
                found.append(item)
    return tuple(sorted(found, key=lambda item: derive_seed("textcraft order", item)))


@functools.lru_cache(maxsize=8)
def packaged(version: str) -> Book:
    """The recipes of a Minecraft version from the package. Raises ConfigError for one without recipes by item names (before 1.13)."""
    root = Path(minecraft_data.__file__).parent / "data" / "data"
    paths: dict[str, dict[str, str]] = json.loads((root / "dataPaths.json").read_text())["pc"]
    known = [key for key, parts in paths.items() if "recipes" in parts and re.fullmatch(r"1\.(\d+)(\.\d+)?", key) and _minor(key) >= 13]
    if version not in known:
        raise ConfigError(
            f"minecraft-data has no recipes of version {version!r} with one name for each item. {did_you_mean(version, known)}"
        )

    def read(part: str) -> Any:
        return json.loads((root / paths[version][part] / f"{part}.json").read_text())

    names: dict[int, str] = {item["id"]: item["name"].replace("_", " ") for item in read("items")}
    recipes = []
    for variants in read("recipes").values():
        for entry in variants:
            ids = [id for row in entry["inShape"] for id in row if id is not None] if "inShape" in entry else entry["ingredients"]
            inputs = Counter(names[id] for id in ids)
            recipes.append(Recipe(names[entry["result"]["id"]], entry["result"]["count"], tuple(inputs.items())))
    return Book(recipes)


def _minor(version: str) -> int:
    return int(version.split(".")[1])


@functools.lru_cache(maxsize=8)
def read_recipes(directory: str) -> Book:
    """The shaped and shapeless recipes in a directory of Minecraft's recipe files (`*.json`), read as the original reads them.

    An ingredient with alternatives is the first of them; a recipe's `group` is the group of what it makes, and fills the tag of
    that name. A tag without members becomes an item that can be got. Raises ConfigError for a directory without recipes, or
    for a file that is none.
    """
    files = sorted(Path(directory).glob("*.json"))
    if not files:
        raise ConfigError(f"recipes is {directory!r}, where there are no files *.json; expected a directory of Minecraft's recipe files")
    recipes, groups = [], {}
    for file in files:
        try:
            told = json.loads(file.read_text())
            kind = told["type"].removeprefix("minecraft:")
            if kind not in ("crafting_shaped", "crafting_shapeless"):
                continue
            result = told["result"] if isinstance(told["result"], dict) else {"item": told["result"]}
            item = _plain(result.get("item") or result["id"])
            inputs: Counter[str] = Counter()
            if kind == "crafting_shaped":
                for key, ingredient in told["key"].items():
                    inputs[_ingredient(ingredient)] += sum(row.count(key) for row in told["pattern"])
            else:
                inputs.update(map(_ingredient, told["ingredients"]))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ConfigError(f"{file} is no recipe in Minecraft's format: {type(error).__name__}: {error}") from error
        recipes.append(Recipe(item, int(result.get("count") or 1), tuple(inputs.items())))
        if (group := _plain(told.get("group", ""))) and group != item:
            groups[item] = group
    return Book(recipes, groups)


def _ingredient(told: Any) -> str:
    first = told[0] if isinstance(told, list) else told
    return _plain(first.get("item") or first["tag"])


def _plain(id: str) -> str:
    """`minecraft:oak_log` as `oak log`."""
    return id.removeprefix("minecraft:").replace("_", " ")
