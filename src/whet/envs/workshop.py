"""Workshop: make a thing by rules that are other ones in every task, part by part, from materials of which there is one each.

    Make lamp.      ->  look("lamp")                            lamp / need wheel / take glass / use fire / for you
                        look("wheel")                           wheel / take wood / use knife / for lamp
                        take("wood"), use("knife")              have wheel
                        look("lamp"), take("glass"), use("fire"), give("lamp")

Things are disjoint between train, dev and test; utensils are shared. The wrong utensil uses up what it is tried on, so some
mistakes cannot be put right, and who notices one must go back to an earlier state.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from whet.envs.base import Action, Env, Step
from whet.envs.roles import Merit, asked, behind, judged, speak
from whet.envs.search import call_of
from whet.envs.words import THINGS, UTENSILS
from whet.errors import ConfigError
from whet.policies.forms import form_of
from whet.tools.function import tool
from whet.types import Task, Turn

MAX_DEPTH, MAX_RULES = 4, 24
_SUBGOAL = re.compile(r"\b(look|make|give) (\w+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How a thing is made: of a material and at most one part that must be made first, with a utensil."""

    item: str
    part: str | None
    material: str
    utensil: str
    purpose: str
    """The thing that it is a part of; `you` where it is asked for, and some material where it leads nowhere."""

    @property
    def needs(self) -> set[str]:
        """What must be in hand."""
        return {self.material, self.part} if self.part else {self.material}

    def __str__(self) -> str:
        part = [f"need {self.part}"] if self.part else []
        return "\n".join([self.item, *part, f"take {self.material}", f"use {self.utensil}", f"for {self.purpose}"])


class Workshop(Env):
    """Make a thing in a workshop with rules of its own: look them up, and make parts before what they are needed for.

    Options: `depth` is how many things must be made one from the other, such as `2` or `1-3`; `rules` how many rules there
    are (the others are distractors); `reward` is `exact` (1 for the thing asked for) or `graded` (half of it is paid in
    equal parts as soon as each of the things on the way is made).
    """

    instructions = "Make it by the rules. Look each rule up first."
    max_turns = 20
    max_tokens = 40

    def __init__(self, depth: str = "1-3", rules: int = 8, reward: Literal["exact", "graded"] = "exact") -> None:
        low, _, high = str(depth).partition("-")
        if not (low.isdigit() and (high or low).isdigit() and 1 <= int(low) <= int(high or low) <= MAX_DEPTH):
            raise ConfigError(f"depth is {depth!r}; expected a number from 1 to {MAX_DEPTH} or a range such as '1-3'")
        if not int(high or low) <= rules <= MAX_RULES:
            raise ConfigError(f"rules is {rules}; expected {high or low} (as many as the greatest depth) to {MAX_RULES}")
        self._depth, self._n_rules, self._graded = (int(low), int(high or low)), rules, reward == "graded"

    def reset(self, task: Task) -> str:
        rng = random.Random(task.seed)
        self.chain, self.rules = make_rules(rng, THINGS[task.split], rng.randint(*self._depth), self._n_rules)
        self.shelf = [rule.material for rule in self.rules.values()]
        self.held: set[str] = set()
        self.read: list[str] = []
        self.made: set[str] = set()
        return f"Make {self.chain[0]}."

    def step(self, action: Action) -> Any:
        """As `Env.step`; pays for parts where that is asked for, and tells in `info` how many of the things are made."""
        before = self._paid()
        step = super().step(action)
        assert isinstance(step, Step)
        info = {"subgoals": len(self.made.intersection(self.chain)), "of": len(self.chain)}
        if step.terminated:
            return replace(step, info={"reason": "given", **info})
        return replace(step, reward=step.reward + self._paid() - before, info=info)

    @tool
    def look(self, item: str) -> str:
        """Look up how a thing is made."""
        rule = self.rules.get(item.strip())
        if rule is None:
            return f"no rule for {item.strip()[:40]}"
        self.read.append(rule.item)
        return str(rule)

    @tool
    def take(self, item: str) -> str:
        """Take a material from the shelf."""
        item = item.strip()
        if item not in self.shelf:
            return f"no {item[:40]} left"
        self.shelf.remove(item)
        self.held.add(item)
        return f"have {item}"

    @tool
    def use(self, item: str) -> str:
        """Make the thing whose rule was looked up last, with this."""
        if not self.read:
            return "look first"
        rule = self.rules[self.read[-1]]
        if missing := [thing for thing in (rule.part, rule.material) if thing and thing not in self.held]:
            return f"need {missing[0]}"
        self.held -= rule.needs
        if item.strip() != rule.utensil:
            return f"not with {item.strip()[:40]}: no {' and no '.join(sorted(rule.needs))} left"
        self.held.add(rule.item)
        self.made.add(rule.item)
        return f"have {rule.item}"

    @tool
    def give(self, item: str) -> str:
        """Hand over what was asked for; ends the episode."""
        right = item.strip() == self.chain[0] and item.strip() in self.held
        return self.finish("", reward=1.0 - self._paid() if right else 0.0, success=right)

    def _paid(self) -> float:
        """What has been paid for the things that are made."""
        return 0.5 * len(self.made.intersection(self.chain)) / len(self.chain) if self._graded else 0.0

    def _open(self) -> int:
        """How many of the chain's things, the one asked for first, are still to be made."""
        return next((i for i, item in enumerate(self.chain) if item in self.held), len(self.chain))

    def lost(self) -> list[str]:
        """Materials that are needed and used up."""
        materials = [self.rules[item].material for item in self.chain[: self._open()]]
        return [material for material in materials if material not in self.held and material not in self.shelf]

    def subgoal(self) -> tuple[str, str]:
        """What to do next, by what has been read and made: look a rule up, make a thing, or give it."""
        left = self.chain[: self._open()]
        if not left or self.lost():
            return "give", self.chain[0]
        unread = next((item for item in left if item not in self.read), None)
        return ("look", unread) if unread else ("make", left[-1])

    def expert(self, rng: random.Random) -> Action:
        """The next step of the shortest way; a thought names the line of the rule that it follows. Gives up what is lost."""
        what, item = self.subgoal()
        if what == "give":
            return call_of("for you", "give", item=item)
        if what == "look":
            return call_of("" if item == self.chain[0] else f"need {item}", "look", item=item)
        rule = self.rules[item]
        if self.read[-1] != item:
            return call_of(f"for {item}", "look", item=item)
        if rule.material not in self.held:
            return call_of(f"take {rule.material}", "take", item=rule.material)
        return call_of(f"use {rule.utensil}", "use", item=rule.utensil)

    def random_action(self, rng: random.Random) -> Action:
        """Look up, take, use or give anything that there is in the workshop."""
        name = rng.choices(("look", "take", "use", "give"), (4, 4, 4, 1))[0]
        things = {"take": [rule.material for rule in self.rules.values()], "use": list(UTENSILS)}.get(name, list(self.rules))
        return call_of("", name, item=rng.choice(things))

    def reflect(self, turns: tuple[Turn, ...]) -> str | None:
        """The rules on the way to the thing, as far as the log shows them."""
        read = [turn.content.split("\n") for turn in turns if turn.role == "tool"]
        pages = {head: lines for head, *lines in read if lines}
        plan, at = [], f"need {self.chain[0]}"
        while at.startswith("need ") and (lines := pages.get(at.removeprefix("need "))):
            plan.append(f"{at.removeprefix('need ')}: {', '.join(lines[:-1])}.")
            at = lines[0]
        return " ".join(plan) or f"look {self.chain[0]} first."

    def role(self, role: str, turns: tuple[Turn, ...], rng: random.Random) -> str | Action | None:
        """Scripts of `planner`, `plan`, `judge`, `critic`, `question`, and those of every world (`whet.envs.roles`).

        planner    the next subgoal by what has been seen: `next: make wheel`
        plan       all subgoals from here on, one a line, by what the rules are
        judge      a rating, a preference or yes/no (`policies.forms`); where the question names a subgoal, whether it is reached
        critic     what the state is worth in words: `good: 1 of 2 made, next make lamp` or `lost: no wood left`
        question   the task, as a customer puts it
        """
        if role == "question":
            return f"Make {self.chain[0]}."
        if role == "judge":
            return self._judge(turns)
        if role not in ("planner", "plan", "critic"):
            return speak(self, role, turns, rng)
        now, _ = behind(self, turns)
        what, item = now.subgoal()
        if role == "planner":
            return f"next: {what} {item}"
        if role == "plan":
            return "\n".join(f"{what} {item}" for what, item in now._subgoals())
        made = f"{len(now.made.intersection(now.chain))} of {len(now.chain)} made"
        return f"lost: no {now.lost()[0]} left" if now.lost() else f"good: {made}, next {what} {item}"

    def _subgoals(self) -> list[tuple[str, str]]:
        left = self.chain[: self._open()]
        unread = [item for item in left if item not in self.read]
        return [*(("look", item) for item in unread), *(("make", item) for item in reversed(left)), ("give", self.chain[0])]

    def _judge(self, turns: Sequence[Turn]) -> str | None:
        """Of a subgoal, or of an episode: its score is half for what is made and half for its end, less what was in vain."""
        form, question = form_of(asked(turns)), asked(turns).partition("<")[0]
        if form is not None and form.name == "yes or no" and (named := _SUBGOAL.search(question)):
            now, steps = behind(self, turns)
            what, item = named.groups()
            done = {"look": item in now.read, "make": item in now.made, "give": bool(steps) and steps[-1].success}[what]
            return form.write(float(done))
        return judged(self, turns, _merit)


def _merit(env: Workshop, steps: list[Step]) -> Merit:
    done = bool(steps) and steps[-1].success
    vain = sum(_in_vain(step) for step in steps)
    share = len(env.made.intersection(env.chain)) / len(env.chain)
    return Merit(0.5 * share + 0.5 * done - min(0.4, 0.1 * vain) * (share > 0), done, not env.lost(), not vain)


def _in_vain(step: Step) -> bool:
    """Whether a step got nothing: not a page, not a thing."""
    told = "\n".join(turn.content for turn in step.observation if isinstance(turn, Turn))
    return not step.success and not told.startswith("have ") and "\n" not in told


def make_rules(rng: random.Random, things: Sequence[str], depth: int, n: int) -> tuple[tuple[str, ...], dict[str, Rule]]:
    """The chain of things that are made one from the other, the one asked for first; and `n` rules, its own among them."""
    names = rng.sample(things, 2 * n)
    items, materials = names[:n], names[n:]
    chains, left = [items[:depth]], items[depth:]
    while left:
        size = rng.randint(1, 3)
        chains, left = [*chains, left[:size]], left[size:]
    rules: dict[str, Rule] = {}
    for chain in chains:
        purposes = ["you" if chain is chains[0] else rng.choice(materials), *chain]
        for item, part, purpose in zip(chain, [*chain[1:], None], purposes):
            material = materials[len(rules)]
            rules[item] = Rule(item=item, part=part, material=material, utensil=rng.choice(UTENSILS), purpose=purpose)
    return tuple(chains[0]), rules
