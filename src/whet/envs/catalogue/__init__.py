"""Catalogue: what is wanted is said in words that are not the name of the API that finds it out.

    How old is who Rosa works for?      ->  boss(person="Rosa")     boss Otto
                                            age(person="Otto")      age 44
                                            answer("44")

Names of people, cities and items are disjoint between train, dev and test, and what the APIs say about them is drawn anew in
every task. Which words mean which API is the same everywhere; it must be learned, or found out by trying.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import ConfigDict, create_model

from whet.envs.base import Action, Env, Step, ToolError
from whet.envs.catalogue.apis import APIS, HELD, Call, Database, make_query, plans, reworded, understood
from whet.envs.roles import Merit, asked, behind, judged, speak
from whet.envs.search import call_of
from whet.errors import ConfigError
from whet.tools.bm25 import BM25
from whet.tools.function import Tool
from whet.types import Task, Turn

MAX_CALLS = 3
UNLISTED = {"add", "ticket"}
"""APIs of which a search finds nothing."""
Descriptions = Literal["full", "terse", "partial", "none"]


class Catalogue(Env):
    """Find out what somebody wants to know by calling APIs, the result of one often being what the next one takes.

    Options: `calls` is how many calls a query needs, such as `1` or `1-3`; `descriptions` what the tools say about
    themselves: `full` sentences, `terse` ones, `partial` (full or nothing, by half) or `none`; `hold` how many APIs no train
    query needs, of which every dev and test query then needs one; `retrieval` has one search over all that the APIs know in
    their place, which shows `results` entries; `reward` is `exact` or `graded` (half of it for the right calls).
    """

    instructions = "Find out what is asked. Then answer."
    max_turns = 8
    max_tokens = 40

    def __init__(
        self,
        calls: str = "1-2",
        descriptions: Descriptions = "terse",
        hold: int = 0,
        retrieval: bool = False,
        results: int = 2,
        reward: Literal["exact", "graded"] = "exact",
    ) -> None:
        low, _, high = str(calls).partition("-")
        if not (low.isdigit() and (high or low).isdigit() and 1 <= int(low) <= int(high or low) <= MAX_CALLS):
            raise ConfigError(f"calls is {calls!r}; expected a number from 1 to {MAX_CALLS} or a range such as '1-2'")
        if not 0 <= hold <= len(HELD):
            raise ConfigError(f"hold is {hold}; expected 0 to {len(HELD)} APIs to hold out")
        if not 1 <= results <= 20:
            raise ConfigError(f"results is {results}; expected 1 to 20 entries that a search shows")
        self._calls, self._held = (int(low), int(high or low)), HELD[:hold]
        self._descriptions, self._retrieval, self._results, self._graded = descriptions, retrieval, results, reward == "graded"

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The APIs, or the search over what they know; and `answer`."""
        found = (SEARCH,) if self._retrieval else tuple(_tool(name, self._descriptions) for name in APIS)
        return (*found, ANSWER)

    def reset(self, task: Task) -> str:
        """The query. A task whose `data` has a `query` is about that one, which may be anything."""
        rng = random.Random(task.seed)
        self.data = Database.drawn(rng, task.split)
        self.query = make_query(rng, self.data, self._calls, functools.partial(self._allowed, task.split))
        if "query" in task.data:
            self.query = understood(str(task.data["query"]), self.data)
        self.__dict__.pop("_index", None)
        self.found: list[str] = []
        self.made: list[tuple[str, ...]] = []
        self.answered: str | None = None
        return self.query.text

    def pose(self, task: Task, query: str) -> Task:
        return replace(task, data={**task.data, "query": query})

    def _allowed(self, split: str, plan: tuple[str, ...]) -> bool:
        if self._retrieval and UNLISTED.intersection(plan):
            return False
        return bool(set(self._held).intersection(plan)) == (split != "train") if self._held else True

    def call_tool(self, name: str, arguments: dict[str, Any]) -> str:
        if name == "answer":
            return self._answer(arguments["text"].strip())
        if name == "search":
            return self._search(arguments["query"])
        values = tuple(str(arguments[key]).strip() for key in APIS[name].takes)
        try:
            result = self.data.call(name, values)
        except ValueError as error:
            raise ToolError(str(error)) from None
        self.made.append((name, *values))
        self.found.append(f"{name} {result}")
        return self.found[-1]

    def _search(self, query: str) -> str:
        """The entries that fit best, in the order of the database."""
        index, entries = self._index
        hits = sorted(i for i, _ in index.search(query, self._results))
        self.found += [entries[i] for i in hits]
        return "\n".join(entries[i] for i in hits) or "nothing"

    @functools.cached_property
    def _index(self) -> tuple[BM25, list[str]]:
        """By whom or what it is about and by the API's name, and the entries themselves."""
        known = {f"{key[0]} {name}": value for name, table in self.data.tables.items() if name != "ticket" for key, value in table.items()}
        return BM25(list(known)), [f"{key} {value}" for key, value in known.items()]

    def _answer(self, text: str) -> str:
        self.answered = text
        partial = 0.5 * self._progress() / len(self.query.calls) if self._graded and self.query.calls else 0.0
        right = text == self.query.answer
        return self.finish("", reward=1.0 if right else partial, success=right)

    def step(self, action: Action) -> Any:
        """As `Env.step`, with the calls that are done and what a grader wants to know in `info`."""
        step = super().step(action)
        assert isinstance(step, Step)
        info: dict[str, Any] = {"subgoals": self._progress(), "of": len(self.query.calls)}
        if step.terminated:
            info |= {"reason": "answered", "answer": self.answered, "gold": self.query.answer}
        return replace(step, info=info)

    def _progress(self) -> int:
        """How many of the calls that the query needs are made (or their entries found), up to the first that is not."""
        done = (self._entry(c) in self.found if self._retrieval else (c.api, *c.arguments) in self.made for c in self.query.calls)
        return next((i for i, each in enumerate(done) if not each), len(self.query.calls))

    @staticmethod
    def _entry(call: Call) -> str:
        """What a search shows where it finds this."""
        return f"{call.arguments[0]} {call.api} {call.result}"

    def expert(self, rng: random.Random) -> Action:
        """The next call; a thought names the API and what it is asked about, or the result that is the answer."""
        calls, done = self.query.calls, self._progress()
        if done == len(calls):
            thought = (self._entry(calls[-1]) if self._retrieval else f"{calls[-1].api} {calls[-1].result}") if calls else ""
            return call_of(thought, "answer", text=self.query.answer or "nothing")
        call = calls[done]
        intent = f"{call.api} {' '.join(call.arguments)}"
        if not self._retrieval:
            return call_of(intent, call.api, **call.named)
        return call_of(f"{self._entry(calls[done - 1])}, {intent}" if done else intent, "search", query=intent)

    def random_action(self, rng: random.Random) -> Action:
        """Call any API about anything of its kind, or search for it, or answer with anything."""
        name = rng.choice([name for name in APIS if name != "add"])
        names = [rng.choice(self.data.entities[kind]) for kind in APIS[name].kinds]
        if rng.random() < 0.3:
            return call_of("", "answer", text=rng.choice([*self.data.tables[name].values()]))
        if self._retrieval:
            return call_of("", "search", query=f"{name} {names[0]}")
        return call_of("", name, **dict(zip(APIS[name].takes, names)))

    def role(self, role: str, turns: tuple[Turn, ...], rng: random.Random) -> str | Action | None:
        """Scripts of `imagine`, `paraphrase`, `intent`, `locate`, `judge`, and those of every world (`whet.envs.roles`).

        imagine      a query that needs the tool which the prompt names first, and is not in the prompt already
        paraphrase   the query that a line of the prompt has, in other words
        intent       what the query is about next, in the words of the catalogue: `age Otto`
        locate       the line of what was found that is needed; `none` where there is none
        judge        a rating, a preference, or yes/no (`policies.forms`): answered rightly, by what was seen, without calls in vain
        """
        if role == "judge":
            return judged(self, turns, _merit)
        if role == "imagine":
            return self._imagined(asked(turns), rng)
        if role == "paraphrase":
            lines = (understood(line, self.data) for line in asked(turns).splitlines())
            return next((reworded(rng, query) for query in lines if query.calls), None)
        if role not in ("intent", "locate"):
            return speak(self, role, turns, rng)
        now, _ = behind(self, turns)
        calls, done = now.query.calls, now._progress()
        if role == "intent":
            return f"{calls[done].api} {' '.join(calls[done].arguments)}" if done < len(calls) else "answer"
        return (now._entry(calls[done - 1]) if self._retrieval else now.found[-1]) if done else "none"

    def _imagined(self, prompt: str, rng: random.Random) -> str | None:
        """Another query, of at most the difficulty of the tasks, that needs the tool; a greeting for one that no query is about."""
        name = next((word for word in re.findall(r"\w+", prompt) if word in (*APIS, "search", "answer")), None)
        if name is None:
            return None

        def fits(plan: tuple[str, ...]) -> bool:
            return name in (*plan, "search") and not (self._retrieval and UNLISTED.intersection(plan))

        if not any(fits(plan) for n in range(1, self._calls[1] + 1) for plan in plans(n)):
            return "Hello."
        for _ in range(100):
            text = make_query(rng, self.data, (1, self._calls[1]), fits).text
            if text not in prompt:
                break
        return text


def _merit(env: Catalogue, steps: list[Step]) -> Merit:
    done = bool(steps) and steps[-1].success
    share = env._progress() / max(1, len(env.query.calls))
    vain = len(steps) - 1 - env._progress()
    faithful = env.answered is None or any(found.endswith(f" {env.answered}") for found in env.found)
    return Merit(max(0.0, 0.4 * share + 0.6 * done - 0.1 * max(0, vain)), done, faithful, vain <= 0)


def _make(name: str, keys: Sequence[str], description: str) -> Tool:
    """A tool that takes a text for each of the keys, and nothing else."""
    properties = {key: {"type": "string"} for key in keys}
    parameters = {"type": "object", "properties": properties, "required": list(keys)}
    config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    fields: dict[str, Any] = dict.fromkeys(keys, (str, ...))
    arguments = create_model(f"{name}_arguments", __config__=config, **fields)
    return Tool(name=name, description=description, parameters=parameters, arguments=arguments)


@functools.cache
def _tool(name: str, descriptions: Descriptions) -> Tool:
    api = APIS[name]
    full = descriptions == "full" or (descriptions == "partial" and list(APIS).index(name) % 2 == 0)
    text = api.says if full else f"A {api.gives}." if descriptions == "terse" else ""
    return _make(name, tuple(api.takes), text)


SEARCH = _make("search", ("query",), "Find entries.")
ANSWER = _make("answer", ("text",), "Give the final answer.")
