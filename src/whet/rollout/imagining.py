"""Tools tried out on queries that were made up for them, with two memories (STE, arXiv:2403.04746).

    trials      for each tool, sessions of some trials; in each trial a speaker makes up a query, an explorer acts on it, and the
                speaker says whether that fulfilled it
    short-term  the running dialogue of the session: the next query may build on what was found out, and so may the explorer
    long-term   `Query: ... | Solved: Yes` of all trials of the tool so far, none of which the next query may come close to

All tools are explored beside each other, since each has memories of its own. A session takes place in the world of one task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, Protocol

from whet.agents import Agent, without_notes
from whet.data import filters, opening, reopened
from whet.errors import ConfigError, did_you_mean
from whet.policies.ask import ask
from whet.policies.base import Policy, Sampling
from whet.rewards.judges import criteria, self_check, tally
from whet.rollout.runner import Recorder, rollout
from whet.tools.function import Tool
from whet.transcript import transcript
from whet.types import Cost, Episode, Task, Turn

if TYPE_CHECKING:
    from whet.envs.base import EnvFactory

TRIED = "You have tried this before: "
"""How a note about an earlier trial of the session begins."""
IMAGINE = (
    "Make up what a user could ask for which this tool is needed. Do not name the tool, be specific, and give all values that it takes. "
    "Answer with the query alone. Users ask such things as this:"
)
PAST = "This was asked before. Your query must not be close to any of it:"
SESSION = "In this session there has been this. Make up another query, by what you have found out from it:"
PARAPHRASE = "Say the following in other words, with the same values. Answer with the new wording alone.\n"
FULFILLED = "Did you do what the user asked for?"
CRITERIA = (
    "Does the final answer do what the user asked for?",
    "Does all that the final answer says follow from what was shown?",
    "Was each call appropriate to what the user asked for?",
)
"""What a trial must meet to be learned from: it answers, faithfully, by the right calls."""


class Phases(Recorder, Protocol):
    """What exploring needs of a run (`whet.runs.Run`)."""

    def seed(self, *names: object) -> int: ...
    def event(self, kind: str, **data: Any) -> None: ...
    def load_episodes(self, tag: str) -> Iterator[Episode]: ...


@dataclass(frozen=True, kw_only=True)
class Exploring:
    """How much is tried, and by what memories."""

    trials: int = 4
    short: bool = True
    """Show the running dialogue of the session."""
    long: bool = True
    """Show what was asked before."""
    sampling: Sampling = Sampling(temperature=1.0, max_tokens=128)
    """Of queries that are made up."""


@dataclass
class Memory:
    """What is remembered of a tool's trials."""

    past: list[tuple[str, bool]] = field(default_factory=list)
    """Long-term: each query, and whether it was fulfilled."""
    session: list[str] = field(default_factory=list)
    """Short-term: the dialogue of each trial of the session."""

    def prompt(self, tool: Tool | None, example: str, how: Exploring) -> str:
        """What a speaker is asked for the next query."""
        parts = [*([described(tool)] if tool else []), f"{IMAGINE}\n{example}"]
        if how.long and self.past:
            parts.append("\n".join([PAST, *(f"Query: {query} | Solved: {'Yes' if solved else 'No'}" for query, solved in self.past)]))
        if how.short and self.session:
            parts.append("\n".join([SESSION, *self.session]))
        return "\n\n".join(parts)

    def notes(self, how: Exploring) -> tuple[str, ...]:
        """What the explorer is reminded of, a line for each trial."""
        return tuple(TRIED + " | ".join(dialogue.splitlines()) for dialogue in self.session) if how.short else ()


def described(tool: Tool) -> str:
    """A tool with what it takes, and what its description says."""
    return f"{tool.name}({', '.join(tool.parameters.get('properties', {}))})" + (f": {tool.description}" if tool.description else "")


@dataclass(frozen=True)
class Explorer:
    """Who makes up queries (`imagine`), acts on them (`agent`), and says whether they were fulfilled (`check`)."""

    agent: Agent[Any]
    imagine: Policy
    check: Policy
    env: EnvFactory
    run: Phases
    how: Exploring

    def session(self, number: int, memories: Mapping[str, Memory], worlds: Mapping[str, Task]) -> None:
        """Session `number` of every tool (by its name), in its world. The memories grow by what was tried.

        Episodes are saved under `explore` with the numbers of the session and of the trial. Raises what `ask` and `rollout`
        raise, and ConfigError for an environment that takes no queries of others.
        """
        for memory in memories.values():
            memory.session.clear()
        for trial in range(self.how.trials):
            posed = self._queries(f"{number}.{trial}", memories, worlds)
            for episode, solved in self._tried(f"{number}.{trial}", posed):
                memory = posed[episode.task]
                memory.past.append((asked(episode.task), solved))
                memory.session.append(transcript(tuple(turn for turn in episode.turns if turn.role != "system")))

    def _queries(self, name: str, memories: Mapping[str, Memory], worlds: Mapping[str, Task]) -> dict[Task, Memory]:
        """A new task for each tool, with what the tool's memory is."""
        prompts = []
        for tool, memory in memories.items():
            tools = {each.name: each for each in self.env.of(worlds[tool]).tools}
            shown = filters.first_sight(worlds[tool], self.env)
            prompts.append((Turn(role="user", content=memory.prompt(tools.get(tool), shown, self.how)),))
        seed, order = self.run.seed("imagine", name), [worlds[tool] for tool in memories]
        answers = ask(self.imagine, prompts, sampling=self.how.sampling, seed=seed, env=self.env, tasks=order)
        self.run.spend(_cost(answers))
        made = zip(memories.items(), answers)
        queries = ((tool, memory, " ".join(answer.content.split())) for (tool, memory), answer in made if answer is not None)
        return {pose(self.env, worlds[tool], query, tool, name): memory for tool, memory, query in queries if query}

    def _tried(self, name: str, posed: Mapping[Task, Memory]) -> list[tuple[Episode, bool]]:
        """What the explorer did about each query, and whether that fulfilled it."""
        notes = {task.id: memory.notes(self.how) for task, memory in posed.items()}
        actor, seed = self.agent.replace(memory={**self.agent.memory, **notes}), self.run.seed("explore", name)
        found = rollout(actor, self.env, list(posed), seed=seed, run=self.run, tag=f"explore{name}")
        acted = [plain(episode) for episode in found if episode.ok]
        verdicts = self_check(acted, self.check, env=self.env, question=FULFILLED, seed=seed)
        self.run.spend(sum((verdict.cost for verdict in verdicts), Cost()))
        return [(episode, verdict.score == 1) for episode, verdict in zip(acted, verdicts, strict=True)]


def tools_in(env: EnvFactory, tasks: Sequence[Task], only: Sequence[str] = ()) -> dict[str, list[Task]]:
    """Each tool's name with the tasks in which there is one of that name, or `only` these; an environment without tools is one, `""`.

    Raises ConfigError for a tool that there is not.
    """
    found: dict[str, list[Task]] = {}
    for task in tasks:
        for name in [tool.name for tool in env.of(task).tools] or [""]:
            found.setdefault(name, []).append(task)
    for name in only:
        if name not in found:
            raise ConfigError(f"there is no tool {name!r} to explore. {did_you_mean(name, found)}")
    return {name: found[name] for name in only or found}


def tried(run: Phases, sessions: int, trials: int) -> list[Episode]:
    """What explorers did in all sessions, in their order, as if nothing had been tried before it."""
    tags = [f"explore{number}.{trial}" for number in range(sessions) for trial in range(trials)]
    return [plain(e) for tag in tags for e in sorted(run.load_episodes(tag), key=lambda e: e.id) if e.ok]


def approved(trials: Sequence[Episode], judge: Policy, *, env: EnvFactory, run: Phases) -> list[Episode]:
    """The trials that meet all criteria, different ones; what was dropped, and why, is written down."""
    verdicts = criteria(trials, judge, env=env, questions=CRITERIA, seed=run.seed("criteria"))
    run.spend(sum((verdict.cost for verdict in verdicts), Cost()))
    found = {episode.id: verdict for episode, verdict in zip(trials, verdicts, strict=True)}
    kept, audit = filters.select(trials, filters.judged(lambda page: [found[e.id] for e in page], at_least=1.0), filters.deduplicate())
    run.event("judge", **tally(verdicts))
    run.event("filter", **audit.summary())
    return kept


def wordings(
    speaker: Policy, episodes: Sequence[Episode], n: int, *, env: EnvFactory, run: Phases, sampling: Sampling = Exploring.sampling
) -> dict[str, list[str]]:
    """Up to `n` other wordings of each episode's query, by its id. Raises what `ask` raises."""
    found: dict[str, list[str]] = {episode.id: [] for episode in episodes}
    prompts = [(Turn(role="user", content=PARAPHRASE + asked(episode.task)),) for episode in episodes]
    tasks = [episode.task for episode in episodes]
    for i in range(n):
        answers = ask(speaker, prompts, sampling=sampling, seed=run.seed("paraphrase", i), env=env, tasks=tasks)
        run.spend(_cost(answers))
        for episode, answer in zip(episodes, answers):
            text = " ".join(answer.content.split()) if answer else ""
            if text and text not in (asked(episode.task), *found[episode.id]):
                found[episode.id].append(text)
    return found


def lessons(episodes: Sequence[Episode], others: Mapping[str, Sequence[str]], most: int) -> dict[str, list[Episode]]:
    """What is learned of each tool, at most `most`: its episodes, then each in its first other wording, in its second and so on."""
    found: dict[str, list[Episode]] = {}
    for i in range(1 + max(map(len, others.values()), default=0)):
        for episode in episodes:
            of_tool = found.setdefault(episode.task.data["tool"], [])
            texts = (asked(episode.task), *others[episode.id])
            if i < len(texts) and len(of_tool) < most:
                of_tool.append(reworded(episode, texts[i]) if i else episode)
    return found


def examples(episodes: Iterable[Episode]) -> tuple[tuple[str, str], ...]:
    """What each was asked for first, with its dialogue in a line."""
    shown = (tuple(turn for turn in episode.turns if turn.role != "system") for episode in episodes)
    return tuple((turns[0].content, " | ".join(transcript(turns).splitlines())) for turns in shown)


def reworded(episode: Episode, query: str) -> Episode:
    """The episode as if it had been asked for in these words."""
    told = (replace(turn, content=turn.content.replace(asked(episode.task), query)) for turn in opening(episode))
    return reopened(episode, tuple(told))


def pose(env: EnvFactory, world: Task, query: str, tool: str, name: str) -> Task:
    """A task of its own id about this query in a task's world. Raises ConfigError where the environment takes no queries."""
    task = env.of(world)().pose(world, query)
    if task is None:
        raise ConfigError(
            f"environment {env.of(world).name!r} takes no queries that others make up; define `pose(self, task, query)` that returns "
            "the task with the query, or choose one that does, such as 'catalogue'"
        )
    return replace(task, id=f"{world.id}/{tool}/{name}", data={**task.data, "imagined": query, "tool": tool})


def asked(task: Task) -> str:
    """The query that was made up for a task."""
    return str(task.data["imagined"])


def plain(episode: Episode) -> Episode:
    """The episode as if nothing had been tried before it in its session."""
    return reopened(episode, without_notes(opening(episode), TRIED))


def _cost(answers: Sequence[Turn | None]) -> Cost:
    return reduce(add, (answer.cost for answer in answers if answer), Cost())
