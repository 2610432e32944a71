"""The text that the embedded model learns from: procedural, endless, made from a seed.

Four kinds of general text (looking things up, copying, calling tools, small talk) and episodes of the bundled
environments' train splits, played by experts, by actors who make mistakes and by explorers, with and without a hint.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from words import NOUNS, NUMBERS, PEOPLE, VERBS, WORDS

from whet.envs.babyai import ACTIONS, BabyAI, look
from whet.envs.base import Action, Env, Step
from whet.envs.search import NAMES, RELATIONS, Search, call_of, make_question
from whet.tools.function import Tool
from whet.types import Task, ToolCall, Turn


@dataclass(frozen=True)
class Document:
    """A conversation; what is learned is what the assistant says."""

    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()


def say(role: str, content: str) -> Turn:
    return Turn(role=role, content=content)  # type: ignore[arg-type]


def thing(rng: random.Random) -> str:
    """A word of any kind; sometimes two."""
    pool = rng.choice((PEOPLE, PEOPLE, WORDS, NOUNS, NUMBERS))
    word = rng.choice(pool)
    return word.capitalize() if rng.random() < 0.05 else word


def page(rng: random.Random, size: int) -> dict[str, str]:
    keys = rng.sample(WORDS, size)
    return {key: thing(rng) for key in keys}


def lookup(rng: random.Random) -> Document:
    """Lines of `key value`, then questions about keys; the answer repeats the line."""
    facts = page(rng, rng.randint(3, 10))
    keys = list(facts)
    title = thing(rng)
    lines = "\n".join([title, *(f"{key} {value}" for key, value in facts.items())])
    turns = [say("tool" if rng.random() < 0.5 else "user", lines)]
    asked = rng.sample(keys, rng.randint(1, len(keys)))
    style = rng.randrange(4)
    if style == 0:
        turns += [say("user", ", ".join(asked) + "?"), say("assistant", "\n".join(f"{k} {facts[k]}" for k in asked))]
    elif style == 1:
        turns += [say("user", ", ".join(asked) + "?"), say("assistant", ", ".join(f"{k} {facts[k]}" for k in asked))]
    else:
        for k in asked:
            question = rng.choice((f"{k}?", f"What is the {k}?", f"{title}'s {k}?", f"Who is {title}'s {k}?", f"Tell me the {k} please."))
            turns += [say("user", question), say("assistant", f"{k} {facts[k]}" if style == 2 else facts[k])]
    return Document(tuple(turns))


def chain(rng: random.Random) -> Document:
    """Several pages in the context; follow one relation after the other, naming each."""
    hops = rng.randint(1, 4)
    names = [thing(rng) for _ in range(hops + 1)]
    keys = rng.sample(WORDS, hops)
    pages = []
    for i in range(hops):
        facts = page(rng, rng.randint(1, 4))
        facts.pop(keys[i], None)
        facts[keys[i]] = names[i + 1]
        order = rng.sample(list(facts), len(facts))
        pages.append("\n".join([names[i], *(f"{k} {facts[k]}" for k in order)]))
    question = f"Who is {names[0]}'s " + "'s ".join(keys) + "?"
    answer = ", ".join(f"{k} {n}" for k, n in zip(keys, names[1:]))
    if rng.random() < 0.5:
        rng.shuffle(pages)
        return Document((say("tool", "\n".join(pages)), say("user", question), say("assistant", answer)))
    turns = [say("user", question)]
    for text, k, n in zip(pages, keys, names[1:]):
        turns += [say("tool", text), say("assistant", f"{k} {n}")]
    return Document(tuple(turns))


def copying(rng: random.Random) -> Document:
    words = [thing(rng) for _ in range(rng.randint(1, 12))]
    text = " ".join(words)
    ask = rng.choice(("Say", "Repeat", "Write", "Copy", "Read"))
    turns = [say("user", f"{ask} {text}"), say("assistant", text)]
    if rng.random() < 0.5:
        turns += [say("user", "Again."), say("assistant", text)]
    return Document(tuple(turns))


def calling(rng: random.Random) -> Document:
    """Tools that are new in every document: call the one that is asked for, with what was given; use its result."""
    tools = []
    for name in rng.sample([*VERBS, *NOUNS], rng.randint(1, 4)):
        args = rng.sample(NOUNS, rng.choice((1, 1, 1, 2)))
        types = [rng.choice(("string", "string", "integer")) for _ in args]
        description = " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 5))).capitalize() + "."
        properties = {a: {"type": t} for a, t in zip(args, types)}
        tools.append(Tool(name=name, description=description, parameters={"type": "object", "properties": properties}))
    tool = rng.choice(tools)
    values = {a: int(rng.choice(NUMBERS)) if s["type"] == "integer" else thing(rng) for a, s in tool.parameters["properties"].items()}
    given = " and ".join(f"{a} {v}" for a, v in values.items())
    question = rng.choice((f"{tool.name} with {given}.", f"Please {tool.name} the {given}.", f"Call {tool.name}: {given}."))
    call = ToolCall(name=tool.name, arguments=values)
    thought = rng.choice(("", given))
    turns = [say("user", question), Turn(role="assistant", content=thought, tool_calls=(call,))]
    if rng.random() < 0.6:
        result = thing(rng)
        turns += [Turn(role="tool", name=tool.name, content=result), say("assistant", result)]
    system = [say("system", rng.choice(("Use the tools.", "Answer the question.", "You are an assistant.")))] if rng.random() < 0.7 else []
    return Document((*system, *turns), tuple(tools))


def errand(rng: random.Random) -> Document:
    """Two tools that are new in every document: one finds something out, the other reports it; not always done right."""
    find, report = rng.sample(VERBS + NOUNS, 2)
    asked, told = rng.sample(NOUNS, 2)
    number = rng.random() < 0.5
    things = rng.sample(NOUNS, 3)
    values = {word: rng.choice(NUMBERS) if number else thing(rng) for word in things}
    tools = [_tool(rng, find, asked, "string"), _tool(rng, report, told, "integer" if number else "string")]
    rng.shuffle(tools)
    wanted, right = rng.choice(things), rng.random() < 0.6
    question = rng.choice((f"How much is the {wanted}?", f"What is the {wanted}?", f"Where is the {wanted}?", f"{wanted}?"))
    turns = [say("system", _instructions(rng)), say("user", question)]
    for word in [wanted] if right or rng.random() < 0.5 else rng.sample(things, rng.randint(0, 2)):
        turns.append(Turn(role="assistant", tool_calls=(ToolCall(name=find, arguments={asked: word}),)))
        result = rng.choice((f"The {word} costs {values[word]}.", f"{word} {values[word]}", f"The {word} is {values[word]}.", values[word]))
        turns.append(Turn(role="tool", name=find, content=result))
    value = values[wanted] if right else rng.choice(NUMBERS) if number else thing(rng)
    turns.append(Turn(role="assistant", tool_calls=(ToolCall(name=report, arguments={told: int(value) if number else value}),)))
    return Document(tuple(turns), tuple(tools))


def _instructions(rng: random.Random) -> str:
    words = [rng.choice(WORDS) for _ in range(rng.randint(2, 8))]
    return rng.choice(("Use the tools.", "Answer the question.", f"{' '.join(words).capitalize()}."))


def _tool(rng: random.Random, name: str, argument: str, kind: str) -> Tool:
    description = " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 6))).capitalize() + "."
    return Tool(name=name, description=description, parameters={"type": "object", "properties": {argument: {"type": kind}}})


GREETINGS = ("Hello", "Hi", "Hello there", "Good day")


def dialogue(rng: random.Random) -> Document:
    """Small talk in which what was said before must be remembered."""
    name, likes, has, place = rng.choice(PEOPLE), rng.choice(NOUNS), rng.choice(NOUNS), rng.choice(NOUNS)
    facts = [
        (f"I am {name}.", "Who am I?", f"You are {name}."),
        (f"I like the {likes}.", "What do I like?", f"You like the {likes}."),
        (f"I have a {has}.", "What do I have?", f"You have a {has}."),
        (f"I live in the {place}.", "Where do I live?", f"You live in the {place}."),
    ]
    rng.shuffle(facts)
    told = facts[: rng.randint(1, 4)]
    opening = f"{rng.choice(GREETINGS)}. " + " ".join(statement for statement, _, _ in told)
    turns = [say("user", opening), say("assistant", rng.choice(GREETINGS) + (f", {name}." if name in opening else "."))]
    for _, question, answer in rng.sample(told, len(told)):
        turns += [say("user", question), say("assistant", answer)]
    return Document(tuple(turns))


GENERAL: tuple[tuple[float, Callable[[random.Random], Document]], ...] = (
    (0.40, lookup),
    (0.20, chain),
    (0.12, copying),
    (0.12, calling),
    (0.08, errand),
    (0.08, dialogue),
)


def general(rng: random.Random) -> Document:
    weights, kinds = zip(*GENERAL)
    return rng.choices(kinds, weights)[0](rng)


# Episodes of the bundled environments, train split only.

Actor = Callable[[Env, random.Random], Action]
FAR = 10_000_000
"""Train tasks are drawn from this many, so that an episode is hardly ever seen twice."""


def play(env: Env, task: Task, act: Actor, rng: random.Random, hint: Callable[[], str] | None = None) -> Document:
    """One episode, as a conversation. `act` stands for whoever acts; a hint is put where an agent's memory goes."""
    first = env.reset(task)
    assert isinstance(first, str)
    turns = [say("system", env.instructions)] if env.instructions else []
    turns.append(say("user", f"Hint: {hint()}\n{first}" if hint else first))
    for _ in range(env.max_turns):
        action = act(env, rng)
        turns.append(Turn(role="assistant", content=action.text, tool_calls=action.tool_calls))
        step = env.step(action)
        assert isinstance(step, Step)
        if step.terminated or step.truncated:
            break
        turns += [say("user", step.observation)] if isinstance(step.observation, str) else list(step.observation)
    return Document(tuple(turns), env.tools)


def mostly(skill: float, otherwise: Actor) -> Actor:
    """Acts like the expert with probability `skill`."""

    def act(env: Env, rng: random.Random) -> Action:
        expert = env.expert(rng) if rng.random() < skill else None
        return expert or otherwise(env, rng)

    return act


def sometimes(chance: float, act: Actor, otherwise: Actor) -> Actor:
    """Acts one way with a small probability, and another way the rest of the time."""
    return lambda env, rng: act(env, rng) if rng.random() < chance else otherwise(env, rng)


def hasty(env: Env, rng: random.Random) -> Action:
    """Search: reads the first page, takes the relation asked for first (or any other), and answers at once."""
    assert isinstance(env, Search)
    question = env.question
    if not env._read:
        return call_of("", "search", query=question.path[0])
    page = {k: v for k, v in question.pages[env._read[-1]].items() if k != "age"}
    first = question.relations[0]
    key = first if first in page and rng.random() < 0.6 else rng.choice(list(page))
    return call_of(f"{key} {page[key]}", "answer", text=page[key])


def lost(env: Env, rng: random.Random) -> Action:
    """Search: follows any relation, searches anybody, sometimes answers."""
    assert isinstance(env, Search)
    if not env._read or rng.random() < 0.2:
        person = rng.choice(list(env.question.pages))
        return call_of("", "search", query=person) if rng.random() < 0.8 else call_of("", "answer", text=person)
    page = {k: v for k, v in env.question.pages[env._read[-1]].items() if k != "age"}
    key = rng.choice(list(page))
    if rng.random() < 0.6:
        return call_of(f"{key} {page[key]}", "search", query=page[key])
    return call_of(f"{key} {page[key]}", "answer", text=page[key])


def mute(env: Env, rng: random.Random) -> Action:
    """Search: says something, but calls no tool."""
    assert isinstance(env, Search)
    page = env.question.pages[env._read[-1]] if env._read else {}
    return Action(text=" ".join(rng.choice(list(page.items()))) if page else rng.choice(list(env.question.pages)))


class Pages(Search):
    """Search with any words as people and relations, so that what is learned does not depend on the names."""

    def reset(self, task: Task) -> str:
        rng = random.Random(task.seed)
        names = [*NAMES["train"], *(word.capitalize() for word in NOUNS), *WORDS]
        words = rng.sample(names, 40)
        kinds = RELATIONS if rng.random() < 0.5 else [word for word in rng.sample(WORDS, 24) if word not in words]
        hops, arithmetic = self._hops, self._arithmetic
        self.question = make_question(rng, words, hops, rng.randint(2, 5), rng.randint(6, 12), arithmetic, kinds)
        return self.question.text


def search_episode(rng: random.Random) -> Document:
    """Mostly hasty or lost, sometimes right; with a hint in the context, mostly right."""
    arithmetic = 1.0 if rng.random() < 0.08 else 0.0
    world = Pages if rng.random() < 0.6 else Search
    env = world(hops="4" if rng.random() < 0.05 else "1-3", arithmetic=arithmetic)
    task = env.tasks("train", 1, start=rng.randrange(FAR))[0]
    if rng.random() < 0.2 and not arithmetic:
        return play(env, task, mostly(0.95, lost), rng, hint=lambda: plan(env, rng))
    kind = rng.random()
    actor = mostly(0.0, hasty) if kind < 0.45 else mostly(0.2, lost) if kind < 0.75 else mostly(rng.random(), lost)
    return play(env, task, sometimes(0.02, mute, actor), rng)


def plan(env: Search, rng: random.Random) -> str:
    """What `Search.reflect` says once the first few pages are known."""
    question = env.question
    known = rng.randint(0, len(question.relations))
    steps = [f"{relation} {person}" for relation, person in zip(question.relations, question.path[1:])][:known]
    if known == len(question.relations):
        return ", ".join(steps) + "."
    return f"{', '.join(steps)}, then {question.relations[known]}." if steps else f"search {question.path[0]} first."


def wander(env: Env, rng: random.Random) -> Action:
    """BabyAI: any action, the useful ones more often."""
    return Action(text="explore: " + rng.choices(ACTIONS, (3, 3, 4, 0.5, 0.3, 0.5, 0.3))[0])


def mistake(rng: random.Random) -> Actor:
    """BabyAI: heads for something in view that need not be what the mission asks for."""
    wanted = ""

    def act(env: Env, rng: random.Random) -> Action:
        nonlocal wanted
        assert isinstance(env, BabyAI)
        _, _, things = look(env._view)
        names = [thing.name for thing in things]
        if wanted not in names:
            if not names:
                return wander(env, rng)
            wanted = rng.choice(names)
        thing = things[names.index(wanted)]
        if thing.ahead > 1 or (thing.ahead == 1 and thing.right):
            return Action(text=f"{thing}: go forward")
        if thing.right:
            return Action(text=f"{thing}: turn {'left' if thing.right < 0 else 'right'}")
        wanted = ""
        return wander(env, rng)

    return act


LEVELS = ("GoToLocal", "GoToLocal", "GoToLocal", "GoToObj", "GoToRedBall", "PickupLoc", "PutNextLocal")
WORLDS: dict[str, BabyAI] = {}


def babyai_episode(rng: random.Random, hinted: float = 0.10) -> Document:
    """Mostly mistaken or wandering, sometimes the bot; with a hint that says so, the bot."""
    level = rng.choice(LEVELS)
    env = WORLDS.setdefault(level, BabyAI(level=level, max_turns=16))
    task = env.tasks("train", 1, start=rng.randrange(FAR))[0]
    kind = rng.random()
    if kind < hinted:
        return play(env, task, mostly(1.0, wander), rng, hint=lambda: "go where the mission says.")
    if hinted > 0.10:
        kind = rng.random()
    actor = mistake(rng) if kind < 0.50 else wander if kind < 0.85 else mostly(rng.random(), mistake(rng))
    return play(env, task, actor, rng)


def coached_babyai_episode(rng: random.Random) -> Document:
    """More often than not with the hint, so that the skill is learned, but shown only to whoever asks for it."""
    return babyai_episode(rng, hinted=0.6)


Mixture = tuple[tuple[float, Callable[[random.Random], Document]], ...]
EARLY: Mixture = ((0.50, general), (0.28, search_episode), (0.22, babyai_episode))
LATE: Mixture = ((0.20, general), (0.15, search_episode), (0.65, coached_babyai_episode))
"""Grid worlds take longer to learn than pages: the second stage is mostly about them."""


def document(rng: random.Random, mixture: Mixture = EARLY) -> Document:
    weights, kinds = zip(*mixture)
    return rng.choices(kinds, weights)[0](rng)
