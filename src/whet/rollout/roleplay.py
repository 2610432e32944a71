"""Dialogues of three roles without an environment behind them, as data to learn from (LLM-TMBR, arXiv:2403.19962).

    question       sees what the world is and what can be done in it, and poses a task
    maker          acts: a thought and a call
    environment    says what comes of the action, `done` when the task is done, `over` when it cannot be any more

They take turns until the environment agent ends the dialogue, or for as many actions as an episode may have. Everything that is
seen in it was said by somebody; that a task is done is what the environment agent says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from whet.envs.base import EnvFactory
from whet.policies.ask import ask
from whet.policies.base import Policy, Sampling
from whet.seeding import derive_seed
from whet.types import Cost, Episode, Stop, Task, Turn, chain

QUESTION = (
    "{instructions}\n\nWhat can be done: {tools}.\n\nPose one task that can be done so, as somebody asks for it, and say nothing else."
)
FEEDBACK = (
    "You are the world that the assistant acts in. Say what it sees after its last action, and nothing else. "
    "Say `done` alone when the task is done, and `over` when it cannot be done any more."
)
ENDS = ("done", "over")


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Who plays which role."""

    question: Policy
    maker: Policy
    environment: Policy

    @property
    def policies(self) -> Mapping[str, Policy]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass
class _Dialogue:
    """A dialogue under way. `ended` is what the environment agent ended it with, or why nobody could go on."""

    task: Task
    turns: list[Turn]
    ended: str = ""
    cost: Cost = Cost(episodes=1)

    def heard(self, answer: Turn | None) -> Turn | None:
        """An answer, with its cost counted; without one the dialogue is over."""
        if answer is None:
            self.ended = "context"
            return None
        self.cost += replace(answer.cost, seconds=0.0)
        return answer


def roleplay(cast: Cast, env: EnvFactory, tasks: Sequence[Task], *, seed: int, tag: str, sampling: Sampling = Sampling()) -> list[Episode]:
    """A dialogue for each task, with `tag` in its id. Scripted roles look at the environment at that task; models invent one.

    The tools are the environment's. Raises what `ask` raises.
    """
    found: dict[int, Episode] = {}
    for name in dict.fromkeys(task.env for task in tasks):
        places = [i for i, task in enumerate(tasks) if task.env == name]
        played = _played(cast, env.of(tasks[places[0]]), [tasks[i] for i in places], derive_seed(seed, name), sampling)
        for i, dialogue in zip(places, played):
            found[i] = _episode(dialogue, cast, f"{tag}/{dialogue.task.id}#{i}", derive_seed(seed, i))
    return [found[i] for i in range(len(tasks))]


def _played(cast: Cast, env: EnvFactory, tasks: Sequence[Task], seed: int, sampling: Sampling) -> list[_Dialogue]:
    system = env.cls.instructions
    begin = [Turn(role="system", content=system)] if system else []
    tools = ", ".join(f"{tool.name} ({tool.description})" for tool in env.tools)
    posed = Turn(role="user", content=QUESTION.format(instructions=system, tools=tools))
    dialogues = [_Dialogue(task, list(begin)) for task in tasks]
    questions = ask(cast.question, [(posed,)] * len(tasks), sampling=sampling, seed=derive_seed(seed, "question"), env=env, tasks=tasks)
    for dialogue, question in zip(dialogues, questions):
        if said := dialogue.heard(question):
            dialogue.turns.append(Turn(role="user", content=said.content.strip()))
    for step in range(env.cls.max_turns):
        if not (open_ := [dialogue for dialogue in dialogues if not dialogue.ended]):
            break
        _act(cast.maker, open_, env, derive_seed(seed, "act", step), sampling)
        _answer(cast.environment, [dialogue for dialogue in open_ if not dialogue.ended], env, derive_seed(seed, "answer", step), sampling)
    return dialogues


def _act(maker: Policy, dialogues: Sequence[_Dialogue], env: EnvFactory, seed: int, sampling: Sampling) -> None:
    """One action of each dialogue: the first call, where there are several."""
    told = [dialogue.turns for dialogue in dialogues]
    actions = ask(maker, told, tools=env.tools, sampling=sampling, seed=seed, env=env, tasks=[d.task for d in dialogues])
    for dialogue, action in zip(dialogues, actions):
        if made := dialogue.heard(action):
            calls = tuple(replace(call, id="call_0") for call in made.tool_calls[:1])
            dialogue.turns.append(Turn(role="assistant", content=made.content, tool_calls=calls, finish="stop"))


def _answer(environment: Policy, dialogues: Sequence[_Dialogue], env: EnvFactory, seed: int, sampling: Sampling) -> None:
    """What comes of each dialogue's last action."""
    told = [(*dialogue.turns, Turn(role="user", content=FEEDBACK)) for dialogue in dialogues]
    answers = ask(environment, told, sampling=sampling, seed=seed, env=env, tasks=[d.task for d in dialogues])
    for dialogue, answer in zip(dialogues, answers):
        if said := dialogue.heard(answer):
            content, last = said.content.strip(), dialogue.turns[-1]
            if content.lower().strip(".`") in ENDS:
                dialogue.ended = content.lower().strip(".`")
            elif last.tool_calls:
                call = last.tool_calls[0]
                dialogue.turns.append(Turn(role="tool", content=content, name=call.name, call_id=call.id))
            else:
                dialogue.turns.append(Turn(role="user", content=content))


def _episode(dialogue: _Dialogue, cast: Cast, id: str, seed: int) -> Episode:
    done = dialogue.ended == "done"
    return Episode(
        id=id,
        task=dialogue.task,
        turns=chain(dialogue.turns),
        stop=Stop.TERMINATED if dialogue.ended in ENDS else Stop.TRUNCATED,
        reason=dialogue.ended or "max_turns",
        reward=float(done),
        success=done,
        policy=cast.maker.version,
        seed=seed,
        cost=dialogue.cost,
        tags={"actor": "roleplay", "roles": {name: policy.version for name, policy in cast.policies.items()}},
    )
