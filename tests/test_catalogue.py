"""Catalogue: executable APIs over a database, queries in other words, held-out APIs, the variant with retrieval, and the roles."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.agents import Agent
from whet.envs import load_env
from whet.envs.catalogue import Catalogue
from whet.envs.catalogue.apis import APIS, CITIES, HELD, ITEMS, PEOPLE, SUMS, Database, make_query, reworded, understood
from whet.envs.search import call_of
from whet.errors import ConfigError
from whet.policies import load_policy
from whet.policies.ask import ask
from whet.policies.forms import YES_NO, quote
from whet.rewards.judges import criteria, prefer, rate
from whet.rollout import rollout
from whet.types import Task, Turn


def at(env: Catalogue, query: str, split: Any = "train", seed: int = 5) -> Task:
    """A task about this query."""
    return env.pose(Task(id=f"catalogue/{split}/q", env="catalogue", split=split, seed=seed), query)


def told(env: Catalogue, name: str, **arguments: str) -> str:
    return env.step(call_of("", name, **arguments)).observation[0].content


def test_no_query_has_the_name_of_an_api_and_every_api_is_asked_for():
    for api in APIS.values():
        texts = api.asks or (SUMS if api.name == "add" else ())
        assert len(texts) >= 2
        for text in texts:
            assert not set(re.findall(r"\w+", text.lower())) & set(APIS), text


def test_the_names_of_the_splits_are_disjoint():
    for kind in (PEOPLE, CITIES, ITEMS):
        assert len({name for names in kind.values() for name in names}) == sum(map(len, kind.values()))
    assert not {n for names in PEOPLE.values() for n in names} & {n for names in CITIES.values() for n in names}
    for split in ("train", "dev", "test"):
        env = Catalogue()
        for task in env.tasks(split, 20):
            env.reset(task)
            allowed = {"person": PEOPLE, "city": CITIES, "item": ITEMS}
            assert all(set(names) <= set(allowed[kind][split]) for kind, names in env.data.entities.items())


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**40), st.integers(1, 3))
def test_queries_are_understood_as_they_were_meant_in_any_wording(seed, n):
    rng = random.Random(seed)
    data = Database.drawn(rng, "train")
    query = make_query(rng, data, (n, n), lambda plan: True)
    assert len(query.calls) == n
    assert understood(query.text, data) == query
    other = reworded(rng, query)
    assert other != query.text
    assert understood(other, data).calls == query.calls
    for i, call in enumerate(query.calls):  # each call gives what was noted, and the next one takes it
        assert data.call(call.api, call.arguments) == call.result
        assert i == 0 or call.api == "price" or query.calls[i - 1].result in call.arguments
    assert query.calls[-1].api != "add" or int(query.answer or "") == sum(int(price.result) for price in query.calls[:2])


@pytest.mark.parametrize("text", ["", "Hello.", "How old is Nobody?", "How old is that one?", "Who does {0} work for, and how much is it?"])
def test_what_nobody_understands_has_no_answer(text):
    env = Catalogue()
    text = text.format(PEOPLE["train"][0])
    assert env.reset(at(env, text)) == text
    assert env.query.answer is None
    step = env.step(env.expert(random.Random(0)))
    assert step.terminated
    assert not step.success


def test_apis_answer_about_what_there_is_and_say_what_there_is_not():
    env = Catalogue()
    env.reset(env.tasks("train", 1)[0])
    person, other = env.data.entities["person"][:2]
    item, (start, end) = env.data.entities["item"][0], env.data.entities["city"][:2]
    assert told(env, "boss", person=person) == f"boss {env.data.tables['boss'][person,]}"
    assert told(env, "boss", person=f" {other} ").startswith("boss ")
    assert told(env, "price", item=item) == f"price {env.data.tables['price'][item,]}"
    assert told(env, "ticket", start=start, end=end) == f"ticket {env.data.tables['ticket'][start, end]}"
    assert told(env, "add", first="12", last="30") == "add 42"
    assert told(env, "add", first="12", last="x") == "error: no number in 12 and x"
    assert told(env, "ticket", start=start, end=start) == f"error: no ticket {start} {start}"
    assert told(env, "boss", person=item) == f"error: no person {item}"
    assert told(env, "boss", item=item).startswith("error: bad arguments for boss")
    assert told(env, "bos", person=person).startswith("error: unknown tool 'bos'. Did you mean 'boss'")


@pytest.mark.parametrize(
    "options", [{"calls": "1"}, {"calls": "2"}, {"calls": "3"}, {"hold": 3}, {"retrieval": True}, {"calls": "1-3", "retrieval": True}]
)
def test_the_expert_answers_everything(options):
    env = load_env("catalogue:" + ",".join(f"{key}={value}" for key, value in options.items()))
    for split in ("train", "dev"):
        episodes = rollout(Agent(load_policy("expert")), env, env.tasks(split, 40))
        assert all(episode.success for episode in episodes)
        assert all(episode.tags["info"]["subgoals"] == episode.tags["info"]["of"] for episode in episodes)


@pytest.mark.parametrize("hold", [1, 4])
def test_held_out_apis_are_needed_by_every_dev_query_and_no_train_query(hold):
    env, held = Catalogue(hold=hold), set(HELD[:hold])
    for split, needed in (("train", False), ("dev", True), ("test", True)):
        for task in env.tasks(split, 60):
            env.reset(task)
            assert bool({call.api for call in env.query.calls} & held) is needed
    assert held <= {tool.name for tool in env.tools}, "they may be tried in train tasks"


def test_how_much_the_tools_say_about_themselves():
    says = {d: [t.description for t in Catalogue(descriptions=d).tools if t.name in APIS] for d in ("full", "terse", "partial", "none")}
    assert says["full"] == [api.says for api in APIS.values()]
    assert set(says["none"]) == {""}
    assert says["partial"][::2] == says["full"][::2]
    assert set(says["partial"][1::2]) == {""}
    assert set(says["terse"]) == {"A number.", "A person.", "A city.", "A weather."}


def test_rewards_exact_and_graded():
    for reward, expected in (("exact", 0.0), ("graded", 0.25)):
        env = Catalogue(calls="2", reward=reward)
        env.reset(env.tasks("train", 1)[0])
        env.step(env.expert(random.Random(0)))
        step = env.step(call_of("", "answer", text="nothing"))
        assert step.reward == expected
        assert not step.success
        assert step.info == {"subgoals": 1, "of": 2, "reason": "answered", "answer": "nothing", "gold": env.query.answer}


def test_with_retrieval_the_entry_is_among_others_and_the_words_of_the_query_do_not_find_it():
    missed = 0
    for task in Catalogue(calls="1", retrieval=True).tasks("train", 40):
        env = Catalogue(calls="1", retrieval=True)
        text, (call,) = env.reset(task), env.query.calls
        entry = f"{call.arguments[0]} {call.api} {call.result}"
        missed += entry not in told(env, "search", query=text).splitlines()
        lines = told(env, "search", query=f"{call.api} {call.arguments[0]}").splitlines()
        assert entry in lines
        assert len(lines) == 2
    assert missed > 15
    assert [tool.name for tool in env.tools] == ["search", "answer"]
    assert told(env, "search", query="xyz") == "nothing"


@pytest.mark.parametrize("options", [{"calls": "0"}, {"calls": "4"}, {"calls": "2-1"}, {"hold": 5}, {"results": 0}])
def test_impossible_options_are_refused_with_their_value(options):
    with pytest.raises(ConfigError, match="expected"):
        Catalogue(**options)


# -- roles -------------------------------------------------------------------------------------------------------------------


def says(env: Catalogue, role: str, text: str, seed: int = 0) -> Any:
    return env.role(role, (Turn(role="user", content=text),), random.Random(seed))


def test_imagined_queries_need_the_api_can_be_solved_and_are_new():
    env = load_env("catalogue:hold=2")
    tasks = env.tasks("train", 20)
    prompts = [(Turn(role="user", content=f"Make up a query for the API {HELD[i % 2]}."),) for i in range(20)]
    answers = ask(load_policy("script:imagine"), prompts, env=env, tasks=tasks, seed=1)
    queries = [answer.content for answer in answers if answer]
    imagined = [env().pose(replace(task, id=f"{task.id}/q"), query) for task, query in zip(tasks, queries)]
    episodes = rollout(Agent(load_policy("expert")), env, imagined)
    assert all(episode.success for episode in episodes)
    for i, episode in enumerate(episodes):
        assert HELD[i % 2] in {call.name for turn in episode.turns for call in turn.tool_calls}
        assert HELD[i % 2] not in queries[i]
    world = Catalogue(calls="1")
    world.reset(tasks[0])
    memory: list[str] = []
    for seed in range(12):
        memory.append(says(world, "imagine", "\n".join(["API: phone", *memory]), seed))
    assert len(set(memory)) == 12
    assert says(world, "imagine", "Make up a query.") is None
    assert {says(world, "imagine", f"{tool}: make up a query.") for tool in ("add", "answer")} == {"Hello."}
    assert understood(says(world, "imagine", "search: make up a query."), world.data).calls


def test_paraphrases_ask_the_same():
    env = Catalogue()
    for task in env.tasks("train", 20):
        text = env.reset(task)
        other = says(env, "paraphrase", f"Say this in other words.\n{text}")
        assert other != text
        assert understood(other, env.data).calls == env.query.calls
    assert says(env, "paraphrase", "Say hello.") is None


@pytest.mark.parametrize("retrieval", [False, True])
def test_intents_and_what_is_located(retrieval):
    env = Catalogue(calls="2", retrieval=retrieval)
    env.reset(env.tasks("train", 1)[0])
    first, second = env.query.calls
    assert says(env, "intent", "?") == f"{first.api} {first.arguments[0]}"
    assert says(env, "locate", "?") == "none"
    env.step(env.expert(random.Random(0)))
    assert says(env, "intent", "?") == f"{second.api} {first.result}"
    assert says(env, "locate", "?") == (f"{first.arguments[0]} {first.api} {first.result}" if retrieval else f"{first.api} {first.result}")
    env.step(env.expert(random.Random(0)))
    assert says(env, "intent", "?") == "answer"


def test_judges_tell_right_faithful_and_needless_apart():
    env = load_env("catalogue:calls=1")
    (task,) = env.tasks("train", 1)
    world = env()
    world.reset(task)
    call = world.query.calls[0]
    right = f"{call.api}({', '.join(f'{key}={value!r}' for key, value in call.named.items())})"
    asks = {"done": "Did the assistant do it?", "faithful": "Does it follow from what was shown?", "fitting": "Was each call needed?"}

    def judged(*calls: str) -> dict[str, str]:
        text = "\n".join(["user: ...", *(line for call in calls for line in (f"assistant: {call}", "tool: ..."))])
        prompts = [(Turn(role="user", content=f"{ask}\n\n{quote('episode', text)}\n\n{YES_NO.ask}"),) for ask in asks.values()]
        answers = ask(load_policy("script:judge"), prompts, env=env, tasks=[task] * 3)
        return dict(zip(asks, [answer.content for answer in answers if answer]))

    end = f"answer(text={call.result!r})"
    assert judged(right, end) == {"done": "yes", "faithful": "yes", "fitting": "yes"}
    assert judged(end) == {"done": "yes", "faithful": "no", "fitting": "yes"}, "guessed"
    assert judged(right, "answer(text='nothing')") == {"done": "no", "faithful": "no", "fitting": "yes"}
    assert judged("add(first='1', last='2')", right, end) == {"done": "yes", "faithful": "yes", "fitting": "no"}


def test_judges_of_episodes():
    env = load_env("catalogue")
    tasks, judge = env.tasks("train", 12), load_policy("script:judge")
    right, wrong = (rollout(Agent(load_policy(name)), env, tasks, seed=1) for name in ("expert", "random"))
    assert [verdict.score for verdict in rate(right, judge, env=env)] == [5.0] * 12
    assert all((verdict.score or 0) < 4 for verdict in rate(wrong, judge, env=env))
    assert {verdict.score for verdict in criteria(right, judge, env=env)} == {1.0}
    assert {preference.score for preference in prefer(list(zip(wrong, right)), judge, env=env)} == {0.0}
