"""Desk: what advice pays and tells, what notes are shown, and that each question is a context of its own."""

from __future__ import annotations

import random
from typing import Any

import pytest

from helpers import tiny_policy
from whet.agents import Agent
from whet.data import to_examples
from whet.envs import EnvFactory, Step
from whet.envs.desk import Desk
from whet.envs.search import NAMES, call_of
from whet.errors import ConfigError
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.rollout import Prefix, rollout
from whet.types import Episode, Turn

DESK = EnvFactory(Desk)
PAGES = {
    "Rosa": {"boss": "Joe", "friend": "Otto"},
    "Otto": {"tailor": "Mila", "rival": "Joe"},
}


def desk(*questions: tuple[str, str], **options: Any) -> Desk:
    """Rosa is known to the colleague alone, Otto has a page."""
    env = Desk(**options)
    env.reset(env.tasks("train", 1)[0])
    env.pages, env.hidden, env.questions, env._n = PAGES, {"Rosa"}, list(questions), len(questions)
    return env


def do(env: Desk, *calls: tuple[str, str]) -> list[Step]:
    key = {"search": "query", "remember": "note", "answer": "text"}
    return [env.step(call_of("", name, **({key[name]: value} if name in key else {}))) for name, value in calls]


def text(step: Step) -> str:
    return step.observation if isinstance(step.observation, str) else step.observation[0].content


def test_advice_settles_a_question_for_less_and_tells_more_and_what_is_kept_is_shown_where_it_matters() -> None:
    env = desk(("Rosa", "boss"), ("Otto", "tailor"), ("Rosa", "friend"))
    page, advice, kept = do(env, ("search", "Rosa"), ("advise", ""), ("remember", "Rosa: boss Joe, friend Otto"))
    assert [s.reward for s in (page, advice, kept)] == pytest.approx([0, 0.7 / 3, 0])
    assert (text(page), text(advice)) == ("No page of Rosa.", "Rosa: boss Joe, friend Otto")
    assert [s.fresh for s in (page, advice, kept)] == [False, False, True]
    assert text(kept) == "Note: Rosa: boss Joe, friend Otto\nQuestion 2 of 3, 1 notes: Who is Otto's tailor?"
    found, answered, last = do(env, ("search", "Otto"), ("answer", "Mila"), ("answer", "Otto"))
    assert text(found) == "Otto\ntailor Mila\nrival Joe"
    assert text(answered).endswith("Question 3 of 3, 1 notes: Who is Rosa's friend?")
    assert [s.reward for s in (found, answered, last)] == pytest.approx([0, 1 / 3, 1 / 3])
    assert (last.terminated, last.success) == (True, True)
    assert last.info == {"reason": "closed", "right": 2, "asked": 1, "of": 3, "par": pytest.approx(2.7 / 3)}


def test_who_keeps_nothing_has_to_ask_again_and_that_is_no_success() -> None:
    env = desk(("Rosa", "boss"), ("Rosa", "friend"))
    _, forgot, _, last = do(env, ("advise", ""), ("answer", "Joe"), ("advise", ""), ("search", "Rosa"))
    assert forgot.reward == 0.0, "the advice was paid already, and the answer is not paid again"
    assert text(forgot) == "Question 2 of 2, 0 notes: Who is Rosa's friend?"
    assert (last.terminated, last.success) == (True, False)
    assert env.score == pytest.approx(0.7)


def test_a_wrong_answer_goes_on_to_the_next_question() -> None:
    env = desk(("Rosa", "boss"), ("Otto", "rival"))
    (wrong,) = do(env, ("answer", "Otto"))
    assert (wrong.reward, wrong.fresh, wrong.terminated) == (0.0, True, False)


@pytest.mark.parametrize(("option", "tools"), [("advice", {"search", "remember", "answer"}), ("memory", {"search", "advise", "answer"})])
def test_without_a_colleague_or_a_notebook_par_is_lower(option: str, tools: set[str]) -> None:
    env = desk(("Rosa", "boss"), ("Rosa", "friend"), ("Otto", "rival"), **{option: False})
    assert {tool.name for tool in env.tools} == tools
    assert env._par() == pytest.approx({"advice": 1 / 3, "memory": (3 - 0.6) / 3}[option])
    factory = EnvFactory(Desk, {option: False})
    assert all(e.success for e in rollout(Agent(load_policy("expert")), factory, factory.tasks("dev", 8)))


def test_people_of_a_split_occur_in_no_other() -> None:
    for split in ("train", "dev", "test"):
        for task in DESK.tasks(split, 5):
            env = Desk()
            env.reset(task)
            assert set(env.pages) <= set(NAMES[split])


@pytest.mark.parametrize("options", [{"questions": 13}, {"hidden": 4}, {"facts": 0, "questions": 1}, {"cost": 1.5}])
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Desk(**options)


# -- contexts ----------------------------------------------------------------------------------------------------------------------


def expert(seen: list[tuple[Turn, ...]]) -> ScriptedPolicy:
    """Acts as the expert does, and notes what it was shown."""

    def act(request: Request, rng: random.Random) -> Any:
        seen.append(request.turns)
        assert request.env is not None
        return request.env.expert(rng)

    return ScriptedPolicy(act)


def played(policy: Any = None) -> Episode:
    agent = Agent(policy or load_policy("expert"), instructions="Be quick.", memory={"": ("It is Monday.",)})
    (episode,) = rollout(agent, DESK, DESK.tasks("train", 1))
    return episode


def test_each_question_is_a_context_behind_the_agents_prompt() -> None:
    seen: list[tuple[Turn, ...]] = []
    episode = played(expert(seen))
    assert episode.success
    walks = episode.walks()
    assert len(walks) == 6
    assert sum(map(len, walks)) == len(episode.turns), "they share nothing"
    for number, walk in enumerate(walks, 1):
        assert walk[0].role == "system"
        assert "Be quick." in walk[0].content
        assert walk[1].content.startswith("Hint: It is Monday.\n")
        assert f"Question {number} of 6" in walk[1].content
    for turns in seen:
        assert sum("Question" in turn.content for turn in turns) == 1, "no policy sees two questions"
    asked = [i for i, walk in enumerate(walks) if any(turn.tool_calls and turn.tool_calls[0].name == "advise" for turn in walk)]
    assert any("Note: " in walks[i + 1][1].content for i in asked)


def test_a_policy_on_tokens_reads_each_context_by_itself() -> None:
    policy = tiny_policy(seed=1)
    (episode,) = rollout(Agent(policy), EnvFactory(Fickle), EnvFactory(Fickle).tasks("train", 1))
    rows = to_examples(episode, policy)
    assert len(rows) == 2
    for row, word in zip(rows, ("one", "two"), strict=True):
        text = policy.tokenizer.decode(row.tokens[: row.mask.argmax()])
        assert f"user\nSay {word}." in text
        assert text.count("user\n") == 1
        assert row.logprobs is not None


class Fickle(Desk):
    """Forgets after every action."""

    max_turns = 2

    def __init__(self) -> None:
        self.n = 0

    @property
    def tools(self) -> Any:
        return ()

    def reset(self, task: Any) -> str:
        return "Say one."

    def step(self, action: Any) -> Step:
        self.n += 1
        return Step(observation="Say two.", fresh=True, terminated=self.n == 2)


@pytest.mark.parametrize("actions", [2, 3, 5, 8])
def test_an_episode_can_begin_behind_contexts_of_another(actions: int) -> None:
    whole = played()
    agent = Agent(load_policy("expert"), instructions="Be quick.", memory={"": ("It is Monday.",)})
    at = [i for i, turn in enumerate(whole.turns) if turn.trained]
    prefix = Prefix(turns=whole.turns[: at[actions]], origin=whole.id)
    (again,) = rollout(agent, DESK, [whole.task], prefix=[prefix])
    assert [(t.role, t.content, t.parent) for t in again.turns] == [(t.role, t.content, t.parent) for t in whole.turns]
    assert again.success
