"""Client: ask a client the questions of a guide, each following from the last answer, then send the page that they lead to.

    Guide / start ride / bus carry / boat sit / bag eat / box send letter / ...     I want cake.
    ride?                                                                           The bus.
    bus, carry?                                                                     box please.
    box send letter  ->  send("letter")

What is said goes to the client; only `send` is a tool. The guide is a directed graph: its nodes are questions, its edges the
answers that may be given. It is drawn anew in every task, from one of three families of graphs (booking, repair, return). What
is asked, answered and sent is disjoint between train, dev and test.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from whet.envs.base import Action, Env, Step
from whet.envs.roles import Merit, asked, behind, judged, speak
from whet.envs.words import THINGS
from whet.errors import ConfigError
from whet.policies.forms import form_of
from whet.seeding import derive_seed
from whet.tools.function import tool
from whet.types import Task, ToolCall, Turn

if TYPE_CHECKING:
    from whet.policies.base import Policy

MAX_STEPS = 5
SCRIPT = "script"
LOST = "What do you want to know?"
REPLIES = ("{0}.", "{0} please.", "The {0}.", "Make it {0}.")
_ASK = re.compile(r"\bask (\w+)")


FAMILIES = {
    "booking": "I want {0}.",
    "repair": "My {0} will not work.",
    "return": "I want to give {0} back.",
}
"""What clients come with. In a booking all answers but one lead to the same next question; in a repair each leads to any
question that is left; in a return one answer of each question is the end."""
TOPICS, ANSWERS, PAGES = 5, 3, 4


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A workflow, and what a client wants."""

    family: str
    subject: str
    topics: Mapping[str, tuple[str, ...]]
    """Topic -> the answers that there are."""
    start: str
    leads: Mapping[str, str]
    """Answer -> the next question's topic, or a page."""
    wants: Mapping[str, str]
    """Topic -> the client's answer."""

    @property
    def opening(self) -> str:
        """What the client says first."""
        return FAMILIES[self.family].format(self.subject)

    @property
    def path(self) -> tuple[str, ...]:
        """The topics to be asked about, in order, with this client."""
        topics = [self.start]
        while (following := self.leads[self.wants[topics[-1]]]) in self.topics:
            topics.append(following)
        return tuple(topics)

    @property
    def pages(self) -> list[str]:
        """All pages that the guide knows."""
        return sorted({following for following in self.leads.values() if following not in self.topics})

    @property
    def page(self) -> str:
        """What must be sent in the end."""
        return self.leads[self.wants[self.path[-1]]]

    def line(self, answer: str) -> str:
        """The guide's line for an answer; that of the beginning for `start`."""
        following = self.leads.get(answer, self.start)
        return f"{answer} {'' if following in self.topics else 'send '}{following}"

    def cut(self, answer: str) -> str:
        """The guide with the line for an answer alone."""
        return f"Guide\n{self.line(answer)}"

    def __str__(self) -> str:
        answers = [answer for topic in self.topics for answer in self.topics[topic] if answer in self.leads]
        return "\n".join(["Guide", self.line("start"), *map(self.line, answers)])


class Client(Env):
    """Ask a client question after question, as a guide and the answers say, then send the right page.

    Options: `steps` is how many questions it takes, such as `3` or `2-4`; `reward` is `exact` (1 for the right page once all
    questions were asked in order) or `graded` (half of it for the questions, where the page is wrong); `client` is who plays
    the client: the environment's script, or a policy by its name, such as `openai:MODEL@URL`.
    """

    instructions = "Ask the client by the guide. Then send the page."
    max_turns = 10
    max_tokens = 32

    def __init__(self, steps: str = "2-4", reward: Literal["exact", "graded"] = "exact", client: str = SCRIPT) -> None:
        low, _, high = str(steps).partition("-")
        if not (low.isdigit() and (high or low).isdigit() and 1 <= int(low) <= int(high or low) <= MAX_STEPS):
            raise ConfigError(f"steps is {steps!r}; expected a number from 1 to {MAX_STEPS} or a range such as '2-4'")
        self._steps, self._graded, self._client = (int(low), int(high or low)), reward == "graded", client
        self.replayable = client == SCRIPT  # type: ignore[misc]

    @property
    def cast(self) -> dict[str, str]:
        return {"client": "script:client" if self._client == SCRIPT else self._client}

    def reset(self, task: Task) -> str:
        rng = random.Random(task.seed)
        self.guide = make_guide(rng, THINGS[task.split], rng.choice(list(FAMILIES)), rng.randint(*self._steps))
        self._seed = task.seed
        self.moves = self.done = 0
        self.said: list[tuple[str, str]] = []
        return f"{self.guide}\n\n{self.guide.opening}"

    def step(self, action: Action) -> Any:
        """A call of `send`, or else something that is said to the client; a step of an awaited client must be awaited."""
        if action.tool_calls or self._over:
            step = super().step(action)
            assert isinstance(step, Step)
            self.moves += 1
            return replace(step, info=self._info() | ({"reason": "sent"} if step.terminated else {}))
        self.moves += 1
        if self._client == SCRIPT:
            return self._heard(action.text, self.reply(action.text))
        return self._told(action.text)

    async def _told(self, text: str) -> Step:
        """What a policy in the client's role answers."""
        from whet.policies.base import Request

        policy = player(self._client)
        wants = ", ".join(f"{topic}: {answer}" for topic, answer in self.guide.wants.items())
        system = f"You are a client. You want ({wants}). Answer the question that you are asked in a few words."
        turns = [Turn(role="system", content=system), Turn(role="user", content="Hello, what can I do for you?")]
        turns.append(Turn(role="assistant", content=self.guide.opening))
        for question, answer in (*self.said, (text, "")):
            turns += [Turn(role="user", content=question), Turn(role="assistant", content=answer)]
        session = f"{self.rollout_id}/client/{self.moves}"
        request = Request(
            turns=policy.observe((), tuple(turns[:-1]), ()),
            max_tokens=self.max_tokens,
            seed=derive_seed(self._seed, self.moves),
            session=session,
            env=self,
        )
        try:
            return self._heard(text, (await policy.generate(request)).content)
        finally:
            policy.release(session)

    def _heard(self, text: str, reply: str) -> Step:
        """A question and its answer have been exchanged."""
        path = self.guide.path
        if self.done < len(path) and self._topic(text) == path[self.done]:
            self.done += 1
        self.said.append((text, reply))
        return Step(observation=reply or "...", info=self._info())

    def _info(self) -> dict[str, Any]:
        path = self.guide.path
        end = f"{self.guide.line(self.guide.wants[path[-1]])} send(page={self.guide.page!r})"
        return {"subgoals": self.done, "of": len(path), "workflow": [*(self._question(i) for i in range(len(path))), end]}

    @tool
    def send(self, page: str) -> str:
        """Send a page; ends the episode."""
        share = self.done / len(self.guide.path)
        right = page.strip() == self.guide.page and share == 1
        return self.finish("", reward=1.0 if right else 0.5 * share if self._graded else 0.0, success=right)

    def _topic(self, text: str) -> str | None:
        """What is asked about: the last word that is a topic."""
        return next((word for word in reversed(re.findall(r"\w+", text.lower())) if word in self.guide.topics), None)

    def reply(self, text: str) -> str:
        """What the scripted client answers."""
        topic = self._topic(text)
        if topic is None:
            return LOST
        return random.Random(derive_seed(self._seed, topic)).choice(REPLIES).format(self.guide.wants[topic])

    @property
    def _last(self) -> str:
        """The answer by which the guide goes on."""
        return self.guide.wants[self.guide.path[self.done - 1]] if self.done else "start"

    def _question(self, i: int) -> str:
        """How the i-th question of the workflow is asked: the answer that leads to it is repeated."""
        path = self.guide.path
        return f"{self.guide.wants[path[i - 1]]}, {path[i]}?" if i else f"{path[0]}?"

    def expert(self, rng: random.Random) -> Action:
        """The next question, or the page, with a thought that is the guide's line."""
        if self.done < len(self.guide.path):
            return Action(text=self._question(self.done))
        return Action(
            text=self.guide.line(self._last), tool_calls=(ToolCall(name="send", arguments={"page": self.guide.page}, id="call_0"),)
        )

    def random_action(self, rng: random.Random) -> Action:
        """Ask anything, or send any page."""
        if rng.random() < 0.75:
            return Action(text=f"{rng.choice(list(self.guide.topics))}?")
        return Action(tool_calls=(ToolCall(name="send", arguments={"page": rng.choice(self.guide.pages)}, id="call_0"),))

    def role(self, role: str, turns: tuple[Turn, ...], rng: random.Random) -> str | Action | None:
        """Scripts of `client`, `agent`, `node`, `judge`, and those of every world (`whet.envs.roles`).

        client     answers what was said last by what this client wants
        agent      what an agent says that does what the guide says
        node       the guide cut to the line that holds now (`bus carry`, `box send letter`), to prompt an agent by
        judge      a rating, a preference, or yes/no (`policies.pages`); where it says `ask carry`, whether that step is done
        """
        if role == "client":
            return self.reply(turns[-1].content if turns else "")
        if role == "judge":
            return self._judge(turns)
        now, _ = behind(self, turns)
        if role == "node":
            return now.guide.cut(now._last)
        return now.expert(rng) if role == "agent" else speak(self, role, turns, rng)

    def _judge(self, turns: Sequence[Turn]) -> str | None:
        form, question = form_of(asked(turns)), asked(turns).partition("<")[0]
        if form is not None and form.name == "yes or no" and (named := _ASK.search(question)):
            now, _ = behind(self, turns)
            return form.write(float(named[1] in now.guide.path[: now.done]))
        return judged(self, turns, _merit)


def _merit(env: Client, steps: list[Step]) -> Merit:
    done, share = bool(steps) and steps[-1].success, env.done / len(env.guide.path)
    vain = max(0, len(env.said) - env.done)
    return Merit(max(0.0, 0.5 * share + 0.5 * done - 0.1 * vain), done, share == 1, not vain)


@functools.cache
def player(spec: str) -> Policy:
    """The policy that plays clients, loaded once in a process. Raises what `load_policy` raises."""
    from whet.policies import load_policy

    return load_policy(spec)


def make_guide(rng: random.Random, words: Sequence[str], family: str, steps: int) -> Guide:
    """A guide of a family in which this client is asked `steps` questions.

    An answer leads to a topic that comes later in a drawn order, or to a page, so no question is asked twice.
    """
    drawn = rng.sample(words, 1 + TOPICS * (1 + ANSWERS) + PAGES)
    subject, order, pages, rest = drawn[0], drawn[1 : 1 + TOPICS], drawn[1 + TOPICS : 1 + TOPICS + PAGES], drawn[1 + TOPICS + PAGES :]
    topics = {topic: tuple(rest[i * ANSWERS : (i + 1) * ANSWERS]) for i, topic in enumerate(order)}
    wants = {topic: rng.choice(answers) for topic, answers in topics.items()}
    path = [order[0], *sorted(rng.sample(order[1:], steps - 1), key=order.index)]
    leads = {}
    for i, topic in enumerate(order):
        after = path[path.index(topic) + 1 :][:1] if topic in path else order[i + 1 :][:1]
        usual = (after or [rng.choice(pages)])[0]
        ends = rng.choice([answer for answer in topics[topic] if answer != wants[topic] or topic not in path])
        for answer in topics[topic]:
            elsewhere = rng.choice([*order[i + 1 :], rng.choice(pages)])
            other = {"booking": elsewhere if answer == ends else usual, "return": rng.choice(pages) if answer == ends else elsewhere}
            leads[answer] = usual if topic in path and answer == wants[topic] else other.get(family, elsewhere)
    return Guide(family=family, subject=subject, topics=topics, start=path[0], leads=leads, wants=wants)
