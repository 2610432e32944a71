"""Workshop: rules to be followed part by part, mistakes that cannot be put right, subgoals, and the scripts of its roles."""

from __future__ import annotations

import random
from typing import Any

import pytest

from whet.agents import Agent
from whet.envs import EnvFactory, load_env
from whet.envs.search import call_of
from whet.envs.words import THINGS, UTENSILS
from whet.envs.workshop import Rule, Workshop, make_rules
from whet.errors import ConfigError
from whet.policies import load_policy
from whet.policies.ask import ask
from whet.policies.forms import YES_NO, quote
from whet.rewards.judges import criteria, prefer, rate
from whet.rollout import Prefix, rollout
from whet.transcript import transcript
from whet.types import Turn

LAMP = {
    "lamp": Rule(item="lamp", part="wheel", material="glass", utensil="fire", purpose="you"),
    "wheel": Rule(item="wheel", part=None, material="wood", utensil="knife", purpose="lamp"),
    "shoe": Rule(item="shoe", part=None, material="wool", utensil="fire", purpose="ice"),
}


def workshop(reward: Any = "exact") -> Workshop:
    """A lamp from a wheel: two things to be made, and a third that nobody wants."""
    env = Workshop(depth="2", rules=3, reward=reward)
    env.reset(env.tasks("train", 1)[0])
    env.chain, env.rules, env.shelf = ("lamp", "wheel"), LAMP, ["glass", "wood", "wool"]
    return env


def do(env: Workshop, *calls: str) -> list[Any]:
    return [env.step(call_of("", *call.split(" ")[:1], item=call.split(" ")[1])) for call in calls]


def told(step: Any) -> str:
    return step.observation[0].content


WAY = ("look lamp", "look wheel", "take wood", "use knife", "look lamp", "take glass", "use fire", "give lamp")


def test_words_are_one_token_and_in_one_split():
    tokenizer = load_policy("base").tokenizer
    words = [word for things in THINGS.values() for word in things]
    assert len(set(words)) == len(words) > 150
    assert not set(words) & set(UTENSILS)
    assert all(len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1 for word in (*words, *UTENSILS))


def test_the_things_of_a_split_occur_in_no_other():
    for split in ("train", "dev", "test"):
        for task in EnvFactory(Workshop).tasks(split, 30):
            env = Workshop()
            env.reset(task)
            words = {*env.rules, *(rule.material for rule in env.rules.values()), *(rule.purpose for rule in env.rules.values())}
            assert words - {"you"} <= set(THINGS[split])


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_rules_lead_from_the_thing_to_a_material_and_share_nothing(depth):
    for seed in range(40):
        chain, rules = make_rules(random.Random(seed), THINGS["train"], depth, 9)
        assert len(chain) == depth
        assert len(rules) == 9
        assert [rules[item].part for item in chain] == [*chain[1:], None]
        assert [rules[item].purpose for item in chain] == ["you", *chain[:-1]]
        assert len({rule.material for rule in rules.values()} | set(rules)) == 18


def test_other_tasks_have_other_rules():
    env, seen = Workshop(), set()
    for task in env.tasks("train", 40):
        env.reset(task)
        seen |= {str(rule) for rule in env.rules.values()}
    assert len(seen) > 0.99 * 40 * 8


def test_the_way_and_what_is_told_on_it():
    steps = do(workshop(), *WAY)
    assert told(steps[0]) == "lamp\nneed wheel\ntake glass\nuse fire\nfor you"
    assert told(steps[1]) == "wheel\ntake wood\nuse knife\nfor lamp"
    assert [told(step) for step in steps[2:4]] == ["have wood", "have wheel"]
    assert steps[-1].success
    assert steps[-1].reward == 1.0
    assert [step.info["subgoals"] for step in steps] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert steps[-1].info == {"reason": "given", "subgoals": 2, "of": 2}


def test_what_is_missing_is_said_and_nothing_is_lost_by_it():
    env = workshop()
    steps = do(env, "use fire", "look lamp", "use fire", "take glass", "use fire", "take glass", "take iron", "look iron")
    answers = [told(step) for step in steps if "\n" not in told(step)]
    assert answers == ["look first", "need wheel", "have glass", "need wheel", "no glass left", "no iron left", "no rule for iron"]
    assert env.held == {"glass"}
    assert not env.lost()
    assert do(env, "give glass")[0].reward == 0.0


def test_the_wrong_utensil_uses_up_what_it_is_tried_on_and_cannot_be_put_right():
    env = workshop()
    steps = do(env, "look wheel", "take wood", "use fire", "use knife", "take wood")
    assert [told(step) for step in steps[2:]] == ["not with fire: no wood left", "need wood", "no wood left"]
    assert env.lost() == ["wood"]
    assert env.expert(random.Random(0)).tool_calls[0].name == "give"
    assert not do(env, "give lamp")[0].success


def test_going_back_to_an_earlier_state_mends_it():
    env = load_env("workshop:depth=2")
    (task,) = env.tasks("train", 1)
    clumsy = rollout(Agent(load_policy("expert")), env, [task])[0]
    twin = env()
    twin.reset(task)
    wrong = next(utensil for utensil in UTENSILS if utensil != twin.rules[twin.chain[-1]].utensil)

    class Clumsy:
        version = actor = "clumsy"

        def observe(self, turns, new, tools):
            return tuple(new)

        async def generate(self, request):
            call = request.env.expert(random.Random(0))
            if call.tool_calls[0].name == "use":
                call = call_of("", "use", item=wrong)
            return Turn(role="assistant", tool_calls=call.tool_calls)

        def release(self, session):
            pass

    failed = rollout(Agent(Clumsy()), env, [task])[0]
    assert not failed.success
    for actions, success in ((3, True), (4, False)):  # before and after the wheel's material was wasted
        again = rollout(Agent(load_policy("expert")), env, [task], prefix=[Prefix.of(failed, actions=actions)])[0]
        assert again.success is success
    assert clumsy.success


def test_graded_reward_is_half_for_the_things_on_the_way_and_once():
    rewards = [step.reward for step in do(workshop("graded"), *WAY)]
    assert rewards == [0, 0, 0, 0.25, 0, 0, 0.25, 0.5]
    failed = do(workshop("graded"), *WAY[:4], "look shoe", "take wool", "use fire", "give shoe")
    assert [step.reward for step in failed] == [0, 0, 0, 0.25, 0, 0, 0, 0]
    assert not failed[-1].success
    assert [step.reward for step in do(workshop(), *WAY)] == [0] * 7 + [1]


@pytest.mark.parametrize("depth", ["1", "2", "3", "4"])
def test_the_expert_makes_everything_even_after_detours(depth):
    for task in EnvFactory(Workshop).tasks("test", 25):
        env, rng = Workshop(depth=depth), random.Random(task.seed)
        env.reset(task)
        for i in range(env.max_turns):
            detour = i in (1, 3) and call_of("", "look", item=rng.choice(list(env.rules)))
            step = env.step(detour or env.expert(rng))
            if step.terminated:
                break
        assert step.success


@pytest.mark.parametrize("options", [{"depth": "0"}, {"depth": "3-2"}, {"depth": "5"}, {"depth": "x"}, {"rules": 2}, {"rules": 99}])
def test_impossible_options_are_refused_with_their_value(options):
    with pytest.raises(ConfigError, match="expected"):
        Workshop(**options)


def test_the_reflection_says_what_the_log_shows_and_no_more():
    env = workshop()
    assert env.reflect(()) == "look lamp first."
    first, second = (step.observation for step in do(env, "look lamp", "look wheel"))
    assert env.reflect(first) == "lamp: need wheel, take glass, use fire."
    assert env.reflect((*first, *second)) == "lamp: need wheel, take glass, use fire. wheel: take wood, use knife."
    assert env.reflect(second) == "look lamp first.", "a rule that nothing leads to"


# -- roles -------------------------------------------------------------------------------------------------------------------


def says(env: Workshop, role: str, *turns: Turn) -> Any:
    return env.role(role, turns or (Turn(role="user", content="?"),), random.Random(0))


def test_the_planner_goes_by_what_has_been_seen():
    env = workshop()
    plans = [says(env, "planner")]
    for call in WAY[:-1]:
        do(env, call)
        plans.append(says(env, "planner"))
    assert plans == [f"next: {p}" for p in ("look lamp", "look wheel", *["make wheel"] * 2, *["make lamp"] * 3, "give lamp")]


def test_whole_plans_and_the_next_actions():
    env = workshop()
    assert says(env, "plan").splitlines() == ["look lamp", "look wheel", "make wheel", "make lamp", "give lamp"]
    assert says(env, "sage").splitlines() == [f"{c.split(' ')[0]}(item='{c.split(' ')[1]}')" for c in WAY[:5]]
    do(env, *WAY[:6])
    assert says(env, "sage").splitlines() == ["use(item='fire')", "give(item='lamp')"]
    assert says(env, "plan").splitlines() == ["make lamp", "give lamp"]
    assert env.held == {"wheel", "glass"}, "planning changes nothing"


def test_a_prompt_may_show_the_episode_instead():
    env = workshop()
    turns = [Turn(role="user", content="Make lamp.")]
    for call in WAY[:3]:
        name, item = call.split(" ")
        turns += [Turn(role="assistant", tool_calls=call_of("", name, item=item).tool_calls), Turn(role="tool", content="...")]
    assert says(env, "planner", *turns) == "next: make wheel"
    text = Turn(role="user", content=f"What now?\n\n{quote('episode', transcript(turns))}")
    assert says(env, "planner", text) == "next: make wheel"
    assert says(env, "environment", *turns) == "have wood"
    assert not env.read, "the environment itself has not moved"


def test_the_judge_says_whether_a_subgoal_is_reached():
    env = workshop()

    def done(subgoal: str) -> Any:
        return says(env, "judge", Turn(role="user", content=f"Is this done: {subgoal}?\n\n{YES_NO.ask}"))

    assert done("look lamp") == "no"
    do(env, *WAY[:4])
    assert [done(subgoal) for subgoal in ("look lamp", "make wheel", "make lamp", "give lamp")] == ["yes", "yes", "no", "no"]
    assert says(env, "judge", Turn(role="user", content="Well?")) is None


def test_the_critic_sees_what_is_lost():
    env = workshop()
    do(env, *WAY[:4])
    assert says(env, "critic") == "good: 1 of 2 made, next make lamp"
    do(env, "look lamp", "take glass", "use oil")
    assert says(env, "critic") == "lost: no glass left"


def test_judges_of_episodes_prefer_what_comes_further():
    env = load_env("workshop:depth=2-3")
    tasks = env.tasks("train", 12)
    right, wrong = (rollout(Agent(load_policy(name)), env, tasks, seed=1) for name in ("expert", "random"))
    judge = load_policy("script:judge")
    assert [verdict.score for verdict in rate(right, judge, env=env)] == [5.0] * 12
    assert all((verdict.score or 0) <= 3 for verdict in rate(wrong, judge, env=env))
    assert [verdict.score for verdict in criteria(right, judge, env=env)] == [1.0] * 12
    assert not any(verdict.score == 1.0 for verdict in criteria(wrong, judge, env=env))
    assert {preference.score for preference in prefer(list(zip(right, wrong)), judge, env=env)} == {1.0}
    assert {preference.score for preference in prefer(list(zip(right, right)), judge, env=env)} == {0.5}


def test_roles_as_policies():
    env = load_env("workshop")
    tasks = env.tasks("train", 3)
    prompts = [(Turn(role="user", content="Ask for something."),)] * 3
    answers = ask(load_policy("script:question"), prompts, env=env, tasks=tasks)
    worlds = [env() for _ in tasks]
    assert [answer and answer.content for answer in answers] == [world.reset(task) for world, task in zip(worlds, tasks)]
