"""Retrospex: the critic's losses against known values, what its memory holds, and how it scores a policy's actions again."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import tiny_policy, tiny_tokenizer
from whet.agents import Agent
from whet.agents.rescoring import Rescored, Rescoring, normalised, rescored
from whet.data import to_examples
from whet.envs.base import Action, Env, EnvFactory
from whet.errors import CheckpointError, ConfigError
from whet.learn.critic import Critic, CriticLearner, expectile_loss
from whet.learn.iql import IQL, Transition, action_of, state_of, transitions
from whet.methods.retrospex import RetrospexConfig, retrospex
from whet.policies import ScriptedPolicy, load_policy
from whet.policies.base import Request
from whet.rollout import rollout
from whet.runs import Run
from whet.tools.function import tool
from whet.types import Data, Episode, Stop, Task, ToolCall, Turn, chain

SMALL = IQL(embedding=8, hidden=8, lr=2e-2, batch_size=16, alpha=0.1, steps=1)
TOKENIZER = tiny_tokenizer()


def step(action: str, reward: float, following: str = "", state: str = "here") -> Transition:
    return Transition(state=state, action=action, reward=reward, following=following, done=not following)


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9])
def test_the_expectile_of_a_known_distribution(tau: float) -> None:
    """Of 0 and 1, equally likely, it is tau: there tau (1 - v) = (1 - tau) v."""
    values, v = torch.tensor([0.0, 1.0]), torch.tensor(0.0, requires_grad=True)
    optimizer = torch.optim.SGD([v], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        expectile_loss(values - v, tau).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(v.detach()) == pytest.approx(tau, abs=1e-4)
    assert float(expectile_loss(torch.tensor([2.0, -1.0]), tau)) == pytest.approx((tau * 4 + (1 - tau) * 1) / 2)


@pytest.mark.slow
def test_a_critic_learns_what_actions_bring_and_the_expectile_of_the_state() -> None:
    memory = [step("good", 1.0), step("bad", 0.0)]
    learner = CriticLearner(TOKENIZER, SMALL)
    learner.train(memory, 150, seed=0)
    metrics = learner.train(memory, 50, seed=1)
    critic = learner.sample()
    with torch.no_grad():
        q = critic.q(critic.tokens(["here", "here"]), critic.tokens(["good", "bad"])).tolist()
        v = float(critic.v(critic.tokens(["here"])))
    assert q == pytest.approx([1.0, 0.0], abs=0.05)
    assert v == pytest.approx(0.7, abs=0.05)
    assert metrics["q_loss"] < 0.01
    state, actions = (Turn(role="user", content="x"),), [Turn(role="assistant", content=word) for word in ("good", "bad")]
    better, worse = critic.advantages(state, actions)
    assert better > worse


@pytest.mark.slow
def test_values_go_back_over_steps_by_gamma() -> None:
    memory = [step("go", 0.0, following="there"), step("take", 1.0, state="there")]
    learner = CriticLearner(TOKENIZER, dataclasses.replace(SMALL, gamma=0.5))
    learner.train(memory, 200, seed=0)
    critic = learner.sample()
    with torch.no_grad():
        assert critic.v(critic.tokens(["there", "here"])).tolist() == pytest.approx([1.0, 0.5], abs=0.07)


def test_the_target_follows_by_alpha_and_gives_the_values_goal() -> None:
    learner = CriticLearner(TOKENIZER, SMALL)
    before = [p.clone() for p in learner.target.parameters()]
    first = learner.step([step("good", 1.0)])
    for old, target, q in zip(before, learner.target.parameters(), learner.critic.q.parameters(), strict=True):
        assert torch.allclose(target, old + 0.1 * (q - old), atol=1e-6)
    assert set(first) >= {"loss", "v_loss", "q_loss", "grad_norm", "skipped"}
    assert all(math.isfinite(value) for value in first.values())


def test_the_same_seed_makes_the_same_critic_and_training_resumes_bit_by_bit(tmp_path: Path) -> None:
    def train(parts: int) -> list[float]:
        learner = CriticLearner(TOKENIZER, SMALL, seed=1)
        learner.train([step("good", 1.0), step("bad", 0.0)], 3, seed=0)
        if parts > 1:
            learner.save_state(tmp_path / "state")
            learner = CriticLearner(TOKENIZER, SMALL, seed=2)
            learner.load_state(tmp_path / "state")
        learner.train([step("good", 1.0), step("bad", 0.0)], 3, seed=1)
        return [float(p.sum()) for p in (*learner.critic.q.parameters(), *learner.critic.v.parameters(), *learner.target.parameters())]

    assert train(1) == train(2)
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        CriticLearner(TOKENIZER, SMALL).load_state(tmp_path)
    with pytest.raises(ConfigError, match="the memory holds no step to learn from"):
        CriticLearner(TOKENIZER, SMALL).train([], 1, seed=0)


def logged() -> Episode:
    call = ToolCall(name="answer", arguments={"x": 1}, id="call_0")
    said = [
        ("system", "Play.", ()),
        ("user", "Go.", ()),
        ("assistant", "left", ()),
        ("user", "A wall.", ()),
        ("assistant", "right", ()),
        ("user", "A door.", ()),
        ("assistant", "I think", (call,)),
        ("tool", "no", ()),
    ]
    turns = [Turn(role=r, content=c, tool_calls=calls, reward=0.5 if calls else 0.0) for r, c, calls in said]  # type: ignore[arg-type]
    return Episode(id="e", task=Task(id="t", env="e", split="train"), turns=chain(turns), stop=Stop.TRUNCATED, reward=0.5)


def test_every_step_of_a_log_is_a_transition() -> None:
    one, two, three = transitions([logged()])
    assert (one.state, one.action, one.reward, one.done) == ("user: Go.", "left", 0.0, False)
    assert one.following == two.state == "user: Go.\nassistant: left\nuser: A wall."
    assert two.following == three.state == "user: Go.\nassistant: right\nuser: A door.", "one exchange besides the opening"
    assert (three.action, three.reward, three.following, three.done) == ("answer(x=1)", 0.5, "", True)
    assert state_of(logged().turns[:6], window=2) == "user: Go.\nassistant: left\nuser: A wall.\nassistant: right\nuser: A door."
    assert action_of(Turn(role="assistant", content="left")) == "left"
    unpaid = dataclasses.replace(logged(), turns=tuple(dataclasses.replace(turn, reward=0.0) for turn in logged().turns))
    assert [t.reward for t in transitions([unpaid])] == [0.0, 0.0, 0.5], "nobody said which step brought the reward"


def test_a_long_state_is_read_from_its_end() -> None:
    critic = Critic(TOKENIZER, IQL(embedding=8, hidden=8, longest=4, steps=1))
    ids = TOKENIZER.encode("A wall. A door.", add_special_tokens=False)
    tokens, lengths = critic.tokens(["A wall. A door.", ""])
    assert tokens[0].tolist() == ids[-4:]
    assert lengths.tolist() == [4, 1]


def test_scores_by_hand() -> None:
    assert normalised([2.0, 4.0, 3.0]) == [0.0, 1.0, 0.5]
    assert normalised([0.3]) == normalised([0.3, 0.3])[:1] == [0.0]
    assert rescored([0.5, 0.1, 0.3], [-1.0, 1.0, 0.0], 0.6) == pytest.approx([0.6, 0.4, 0.6 * 0.5 + 0.4 * 0.5])


class Fork(Env):
    """Left pays after a while, right never."""

    instructions = "Choose."
    max_turns = 3
    max_tokens = 16

    def reset(self, task: Task) -> str:
        return "Where to?"

    @tool
    def go(self, way: str) -> str:
        """Go somewhere."""
        return "on" if way == "on" else self.finish(reward=float(way == "left"))

    def expert(self, rng: random.Random) -> Action:
        return go("left")

    def random_action(self, rng: random.Random) -> Action:
        return go(rng.choice(["left", "right"]))


def go(way: str) -> Action:
    return Action(tool_calls=(ToolCall(name="go", arguments={"way": way}, id="call_0"),))


FORK = EnvFactory(Fork)


class Likes:
    """A critic with an opinion."""

    def __init__(self, *ways: str) -> None:
        self.ways, self.asked = ways, list[list[str]]()

    def advantages(self, turns: Any, actions: Any) -> list[float]:
        self.asked.append([action_of(turn) for turn in actions])
        return [float(any(f"'{way}'" in action_of(turn) for way in self.ways)) for turn in actions]


def proposing(*actions: Action | str) -> ScriptedPolicy:
    """Goes on at first, and then proposes one after the other."""
    left = list(actions)

    def speak(request: Request, rng: random.Random) -> Action | str:
        if not any(turn.trained for turn in request.turns):
            return go("on")
        left.append(left.pop(0))
        return left[-1]

    return ScriptedPolicy(speak)


def acted(critic: Likes, speaker: ScriptedPolicy, **options: Any) -> Episode:
    (episode,) = rollout(Agent(Rescored(speaker=speaker, critic=critic, **options)), FORK, FORK.tasks("train", 1))
    return episode


def test_the_critic_decides_between_actions_that_are_as_likely() -> None:
    critic = Likes("left")
    assert acted(critic, proposing(go("right"), go("left"), go("right")), k=3).success
    assert critic.asked[1:] == [["go(way='right')", "go(way='left')"]], "what is repeated counts once"
    assert not acted(Likes("right"), proposing(go("right"), go("left")), k=2).success


def test_calls_that_no_tool_takes_are_left_out_where_others_are_valid() -> None:
    critic = Likes("up")
    assert acted(critic, proposing(Action(tool_calls=(ToolCall(name="fly", arguments={"way": "up"}),)), go("left")), k=2).success
    assert critic.asked[1:] == [["go(way='left')"]]
    assert not acted(Likes(), proposing("I do not know", "nothing"), k=2).success


def test_the_policy_is_believed_first_and_the_critic_later(monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[float] = []
    real = rescored
    monkeypatch.setattr("whet.agents.rescoring.rescored", lambda p, a, w: weights.append(w) or real(p, a, w))
    acted(Likes(), proposing(go("on")), k=1, decay=0.8, floor=0.7)
    assert weights == pytest.approx([1.0, 0.8, 0.7]), "max(b, d^t)"


def test_probabilities_are_those_of_the_sampled_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    monkeypatch.setattr("whet.agents.rescoring.rescored", lambda p, a, w: seen.append(list(p)) or p)
    policy = tiny_policy()
    (episode,) = rollout(Agent(Rescored(speaker=policy, critic=Likes(), k=3)), FORK, FORK.tasks("train", 1))
    chosen = max(seen[0])
    rows = to_examples(episode, policy, tools=FORK.tools, stop=1)
    assert 0 < chosen < 1
    assert len(seen) == 3
    assert len(rows) == 1


def test_an_agent_with_a_critic_is_saved_and_loaded(tmp_path: Path) -> None:
    critic = Critic(TOKENIZER, SMALL, seed=3)
    workflow = Rescored(speaker=tiny_policy(), critic=critic, floor=0.5)
    workflow.save(tmp_path / "agent")
    loaded: Any = load_policy(str(tmp_path / "agent"))
    assert (loaded.floor, loaded.k, loaded.critic.cfg) == (0.5, 4, SMALL)
    turns, actions = (Turn(role="user", content="Go."),), [Turn(role="assistant", content="left")]
    assert loaded.critic.advantages(turns, actions) == critic.advantages(turns, actions)
    (tmp_path / "agent" / "critic" / "critic.json").write_text("{}x")
    with pytest.raises(CheckpointError, match="cannot be read as a"):
        load_policy(str(tmp_path / "agent"))


def test_the_memory_holds_experts_and_logs_whatever_became_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    memories: list[list[Transition]] = []
    real = CriticLearner.train

    def train(self: CriticLearner, memory: Any, steps: int, *, seed: int) -> dict[str, float]:
        memories.append(list(memory))
        return real(self, memory, steps, seed=seed)

    monkeypatch.setattr(CriticLearner, "train", train)
    experts = rollout(Agent(load_policy("expert")), FORK, FORK.tasks("train", 2))
    cfg = RetrospexConfig(actors=("random",), samples=4, lr=0.0, critic=IQL(embedding=8, hidden=8, steps=3, batch_size=4), report=2)
    run = Run.scratch()
    tuned = retrospex(Agent(tiny_policy()), Data(train=FORK.tasks("train", 2), experts=tuple(experts)), env=FORK, run=run, cfg=cfg)
    assert [len(memory) for memory in memories] == [10, 10]
    assert {t.reward for t in memories[0]} == {0.0, 1.0}
    assert [e["metrics"].get("v_loss") is not None for e in run.events("log")] == [False, True, True]
    assert isinstance(tuned.policy, Rescored)
    (roles,) = run.events("roles")
    assert roles["scripted"] == {"actor random": "random"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IQL(tau=1.0), "tau is 1.0"),
        (lambda: IQL(alpha=0.0), "alpha is 0.0"),
        (lambda: Rescoring(floor=1.5), r"floor is 1.5; expected a number in \[0, 1\]"),
        (lambda: Rescoring(k=0), "k is 0"),
    ],
)
def test_options_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
