"""Several environments in one run: whose turn it is, whose rules hold, and what is said about each."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest

from whet.agents import Agent
from whet.cli import main
from whet.envs import check_env, load_env
from whet.envs.base import Action, Env, EnvFactory, Step
from whet.envs.mixture import Mixture
from whet.errors import CannotReplay, ConfigError, EnvError
from whet.evals import Evaluation, compare, evaluate
from whet.policies import load_policy
from whet.policies.scripted import ScriptedPolicy
from whet.report import write_report
from whet.rollout import Limits, Prefix, rollout, success_rates
from whet.runs import Run
from whet.tools.function import tool
from whet.types import Cost, Episode, Split, Stop, Task


class Word(Env):
    """Say the word; text in, text out."""

    name = "word"
    instructions = "Say it."
    max_turns = 2
    max_tokens = 5

    def reset(self, task: Task) -> str:
        self.word = "yes" if task.seed % 2 else "no"
        return f"say {self.word}"

    def step(self, action: Action) -> Step:
        right = action.text == self.word
        return Step(observation="right" if right else "wrong", reward=float(right), terminated=right, success=right)

    def expert(self, rng: Any) -> Action:
        return Action(text=self.word)


class Press(Env):
    """Press the button; a tool, on a thread of its own, and few tasks."""

    name = "press"
    instructions = "Press it."
    max_turns = 7
    inline = False
    replayable = False
    threads: ClassVar[set[int]] = set()

    def __init__(self, sizes: int = 3) -> None:
        self._sizes = sizes

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        return super().tasks(split, max(0, min(n, self._sizes - start)), start)

    def reset(self, task: Task) -> str:
        Press.threads.add(threading.get_ident())
        return "a button"

    @tool
    def press(self) -> str:
        "Press the button."
        return self.finish("pressed", reward=1.0)


WORD, PRESS = EnvFactory(Word), EnvFactory(Press)


def answer(request: Any, rng: Any) -> str:
    return "yes"


def ids(tasks: Any) -> list[str]:
    return [task.id for task in tasks]


# -- tasks and their turns -----------------------------------------------------------------------------------------------


def test_tasks_come_in_turn_under_their_own_ids() -> None:
    mixture = Mixture([WORD, EnvFactory(Press, {"sizes": 99})])
    assert ids(mixture.tasks("dev", 5)) == ["word/dev/0", "press/dev/0", "word/dev/1", "press/dev/1", "word/dev/2"]
    assert mixture.tasks("dev", 40)[::2] == WORD.tasks("dev", 20)
    assert [task.env for task in mixture.tasks("dev", 2)] == ["word", "press"]


def test_a_weight_is_a_share_spread_over_the_round() -> None:
    mixture = Mixture([WORD, EnvFactory(Press, {"sizes": 99})], [3, 1])
    order = [task.env for task in mixture.tasks("train", 8)]
    assert Counter(order) == {"word": 6, "press": 2}
    # (2 given + 1) / 6 of word against (2 given + 1) / 2 of press; word first where they are equal
    assert order == ["word", "word", "press", "word", "word", "word", "press", "word"]


def test_where_one_part_ends_the_others_go_on() -> None:
    mixture = Mixture([WORD, PRESS])
    assert ids(mixture.tasks("train", 9))[5:] == ["press/train/2", "word/train/3", "word/train/4", "word/train/5"]
    finite = Mixture([PRESS, EnvFactory(Word2, {"sizes": 1})])
    assert ids(finite.tasks("test", 50)) == ["press/test/0", "word2/test/0", "press/test/1", "press/test/2"]
    assert finite.tasks("test", 50, 50) == ()


class Word2(Press):
    name = "word2"


@pytest.mark.parametrize("start", range(12))
def test_start_skips_tasks_without_changing_them(start: int) -> None:
    mixture = Mixture([WORD, PRESS, EnvFactory(Word2, {"sizes": 5})], [2, 1, 1])
    assert mixture.tasks("train", 6, start) == mixture.tasks("train", 6 + start)[start:]


def test_parts_of_one_name_are_told_apart() -> None:
    mixture = load_env("babyai:level=GoToLocal + babyai:level=PickupLoc + search:hops=1")
    tasks = mixture.tasks("train", 3)
    assert ids(tasks) == ["babyai/GoToLocal/train/0", "babyai/PickupLoc/train/0", "search/train/0"]
    assert [task.env for task in tasks] == ["babyai:level=GoToLocal", "babyai:level=PickupLoc", "search"]
    assert [mixture.of(task).options for task in tasks] == [{"level": "GoToLocal"}, {"level": "PickupLoc"}, {"hops": "1"}]
    # search numbers its tasks alike whatever its options are, so that the ids have to change
    alike = load_env("search:hops=1 + search:hops=3")
    assert ids(alike.tasks("train", 2)) == ["search:hops=1/search/train/0", "search:hops=3/search/train/0"]
    assert [alike.of(task).options["hops"] for task in alike.tasks("train", 2)] == ["1", "3"]


class TestsOnly(Press):
    """As benchmarks are: nothing to train on."""

    name = "testsonly"

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        if split != "test":
            raise ConfigError("test tasks only")
        return super().tasks(split, n, start)


def test_parts_that_refuse_a_split_can_still_be_mixed() -> None:
    mixture = Mixture([EnvFactory(TestsOnly, {"sizes": 2}, "testsonly:sizes=2"), EnvFactory(TestsOnly, spec="testsonly"), WORD])
    assert ids(mixture.tasks("test", 3)) == ["testsonly:sizes=2/testsonly/test/0", "testsonly/testsonly/test/0", "word/test/0"]
    with pytest.raises(ConfigError, match="test tasks only"):
        mixture.tasks("train", 4)


# -- what is written -----------------------------------------------------------------------------------------------------


def test_options_keep_their_commas_colons_and_equals_signs() -> None:
    text = "search:hops=1-2,facts=3 + 2*gymnasium:FrozenLake-v1,map_name=8x8,is_slippery=false + examples/shop.py:Shop"
    mixture = load_env(text)
    assert isinstance(mixture, Mixture)
    assert mixture.spec == text
    assert mixture.weights == (1, 2, 1)
    assert [part.options for part in mixture.parts][:2] == [
        {"hops": "1-2", "facts": 3},
        {"env": "FrozenLake-v1", "map_name": "8x8", "is_slippery": False},
    ]
    assert mixture.name == load_env(f"mix:{text}").name == "mix"
    assert load_env(f"mix:{text}").spec == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search + serch:hops=1", "unknown environment 'serch'. Did you mean 'search'"),
        ("search + babyai:levle=X", "no option 'levle'"),
        ("search +  + babyai", "empty part"),
        ("0*search + babyai", "weight 0"),
        ("mix:search", "a mixture has 1 environments; expected at least two"),
        ("mix:", "empty part"),
        ("search:hops=1 + search:hops=1", "'search:hops=1' twice; give it a weight"),
    ],
)
def test_what_is_wrong_with_a_mixture(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("*", r"\*")):
        load_env(text)


def test_a_mixture_is_not_nested_and_weights_fit() -> None:
    with pytest.raises(ConfigError, match="is a mixture itself"):
        Mixture([Mixture([WORD, PRESS]), EnvFactory(Word2)])
    with pytest.raises(ConfigError, match=r"weights \(1,\)"):
        Mixture([WORD, PRESS], [1])
    with pytest.raises(ConfigError, match="no tools of its own"):
        _ = Mixture([WORD, PRESS]).tools
    stranger = Task(id="x/train/0", env="x", split="train")
    with pytest.raises(ConfigError, match=r"task 'x/train/0' is of no environment in this mixture.*press, word"):
        rollout(Agent(ScriptedPolicy(answer)), Mixture([WORD, PRESS]), [stranger])


# -- episodes ------------------------------------------------------------------------------------------------------------


def test_every_episode_is_played_by_the_rules_of_its_own_environment() -> None:
    asked = []

    def act(request: Any, rng: Any) -> str:
        asked.append((request.turns[0].content, tuple(t.name for t in request.tools), request.max_tokens, type(request.env).__name__))
        return "neither"

    Press.threads.clear()
    mixture = Mixture([WORD, PRESS])
    episodes = rollout(Agent(ScriptedPolicy(act)), mixture, mixture.tasks("train", 6))
    assert [(e.task.env, e.n_actions, e.reason) for e in episodes] == [("word", 2, "max_turns"), ("press", 7, "max_turns")] * 3
    assert set(asked) == {("Say it.", (), 5, "Word"), ("Press it.", ("press",), 64, "Press")}
    # three calls that may wait had a thread each; those of the inline environment never made a second one busy
    assert len(Press.threads) == 3


def test_results_are_those_of_the_single_environments() -> None:
    """Same tasks, same seeds, same answers: turn by turn, for an agent that guesses."""

    def guess(request: Any, rng: Any) -> str:
        return rng.choice(["yes", "no"])

    agent, mixture = Agent(ScriptedPolicy(guess)), Mixture([WORD, PRESS])
    mixed = {e.id: e for e in rollout(agent, mixture, mixture.tasks("train", 12), n=2, seed=5)}
    alone = rollout(agent, WORD, WORD.tasks("train", 9), n=2, seed=5)
    assert len({e.success for e in alone}) == 2
    for episode in alone:
        assert (mixed[episode.id].turns, mixed[episode.id].seed) == (episode.turns, episode.seed)


def test_the_expert_and_chance_act_in_each() -> None:
    mixture = load_env("search:hops=1-2 + babyai:level=GoToLocal")
    expert = rollout(Agent(load_policy("expert")), mixture, mixture.tasks("train", 12))
    assert all(e.success for e in expert)
    chance = rollout(Agent(load_policy("random")), mixture, mixture.tasks("train", 12))
    assert all(e.ok for e in chance)
    assert {e.task.env for e in chance} == {"search", "babyai"}


def test_replay_is_asked_of_the_tasks_environment() -> None:
    agent, mixture = Agent(ScriptedPolicy(answer)), Mixture([WORD, PRESS])
    tasks = mixture.tasks("train", 2)
    first = rollout(agent, mixture, tasks)[0]
    again = rollout(agent, mixture, tasks[:1], prefix=[Prefix.of(first, actions=1)])[0]
    assert [t.content for t in again.turns] == [t.content for t in first.turns]
    with pytest.raises(CannotReplay, match="environment 'press' cannot replay"):
        rollout(agent, mixture, tasks, prefix=[None, Prefix.of(first, actions=0)])


def test_a_part_that_breaks_leaves_the_others_alone() -> None:
    class Broken(Env):
        def reset(self, task: Task) -> str:
            raise OSError("no such server")

    mixture = Mixture([WORD, EnvFactory(Broken)])
    limits = Limits(retries=0, max_error_rate=0.6)
    episodes = rollout(Agent(ScriptedPolicy(answer)), mixture, mixture.tasks("train", 20), limits=limits)
    assert Counter((e.task.env, e.ok) for e in episodes) == {("word", True): 10, ("broken", False): 10}
    assert "environment 'broken', task 'broken/train/0', reset: OSError: no such server" in episodes[1].error


def test_the_player_is_an_environment_like_any_other() -> None:
    mixture = Mixture([WORD, PRESS])
    env = mixture()
    with pytest.raises(EnvError, match="reset"):
        env.step(Action(text="x"))
    env.close()
    env.reset(mixture.tasks("train", 2)[1])
    assert (env.instructions, env.max_turns, [t.name for t in env.tools]) == ("Press it.", 7, ["press"])
    assert (mixture.cls.inline, mixture.cls.replayable, mixture.cls.max_turns) == (False, False, 7)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["search:hops=1-2 + babyai:level=GoToLocal", "mix:search:hops=1 + 2*search:hops=3"])
def test_mixtures_keep_the_contract(spec: str) -> None:
    report = check_env(spec, tasks=6)
    assert report.ok, report
    assert not report.warnings, report
    assert {"expert", "replay", "processes"} <= set(report.passed)


# -- how many at once ----------------------------------------------------------------------------------------------------


class Scarce(Env):
    """Holds something of which there are two; counts how many are held at once."""

    name = "scarce"
    inline = False
    max_concurrent = 2
    lock = threading.Lock()
    held: ClassVar[int] = 0
    most: ClassVar[int] = 0
    order: ClassVar[list[str]] = []

    def reset(self, task: Task) -> str:
        with Scarce.lock:
            Scarce.held += 1
            Scarce.most = max(Scarce.most, Scarce.held)
            Scarce.order.append(task.id)
        time.sleep(0.01)
        return "go"

    def step(self, action: Action) -> Step:
        time.sleep(0.005)
        return Step(observation="done", reward=1.0, terminated=True, success=True)

    def close(self) -> None:
        with Scarce.lock:
            Scarce.held -= 1


class Plenty(Env):
    """Every episode waits until eight are under way, so that fewer than eight at once would never end."""

    name = "plenty"
    most: ClassVar[int] = 0
    under_way: ClassVar[int] = 0

    async def reset(self, task: Task) -> str:
        Plenty.under_way += 1
        Plenty.most = max(Plenty.most, Plenty.under_way)
        while Plenty.most < 8:
            await asyncio.sleep(0.001)
        return "go"

    def step(self, action: Action) -> Step:
        Plenty.under_way -= 1
        return Step(observation="done", terminated=True)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Scarce.held = Scarce.most = Plenty.most = Plenty.under_way = 0
    Scarce.order = []


def test_no_more_episodes_than_the_environment_allows() -> None:
    env = EnvFactory(Scarce)
    episodes = rollout(Agent(ScriptedPolicy(answer)), env, env.tasks("train", 20))
    assert all(e.success for e in episodes)
    assert (Scarce.most, Scarce.held) == (2, 0)
    # Two begin side by side, and threads may pass each other by one place.
    begun = [int(id.rpartition("/")[2]) for id in Scarce.order]
    assert all(abs(place - number) <= 1 for place, number in enumerate(begun))


def test_a_full_environment_does_not_hold_the_others_up() -> None:
    """The scarce one's tasks come first; with a queue that waits for its head, eight of the other would never be under way."""
    scarce, plenty = EnvFactory(Scarce), EnvFactory(Plenty)
    mixture = Mixture([scarce, plenty])
    tasks = [*scarce.tasks("train", 12), *plenty.tasks("train", 12)]
    episodes = rollout(Agent(ScriptedPolicy(answer)), mixture, tasks, limits=Limits(in_flight=10, reset_s=20.0))
    assert [e.task.id for e in episodes] == ids(tasks)
    assert all(e.ok for e in episodes)
    assert (Scarce.most, Plenty.most >= 8) == (2, True)


def test_a_failed_episode_gives_its_place_back() -> None:
    class Dies(Scarce):
        max_concurrent = 1

        def step(self, action: Action) -> Step:
            if self.number % 2:
                raise OSError("gone")
            return super().step(action)

        def reset(self, task: Task) -> str:
            self.number = int(task.id.rpartition("/")[2])
            return super().reset(task)

    env = EnvFactory(Dies)
    episodes = rollout(Agent(ScriptedPolicy(answer)), env, env.tasks("train", 6), limits=Limits(retries=1))
    assert [e.ok for e in episodes] == [True, False] * 3
    assert Scarce.most == 1


def test_a_limit_below_one_is_refused() -> None:
    env = EnvFactory(type("Closed", (Scarce,), {"max_concurrent": 0}))
    with pytest.raises(ConfigError, match=r"Closed\.max_concurrent is 0"):
        rollout(Agent(ScriptedPolicy(answer)), env, env.tasks("train", 1))


# -- what is said about each ---------------------------------------------------------------------------------------------


def episode(env: str, success: bool, stop: Stop = Stop.TERMINATED) -> Episode:
    return Episode(id="e", task=Task(id="t", env=env, split="train"), turns=(), stop=stop, success=success)


def test_success_rates_by_hand() -> None:
    assert success_rates([episode("a", True), episode("a", False)]) == {"success": 0.5}
    found = success_rates([episode("b", True), episode("a", False), episode("b", True), episode("a", True), episode("a", False)])
    assert found == {"success": 0.6, "success/a": pytest.approx(1 / 3), "success/b": 1.0}
    assert success_rates([episode("a", True), episode("b", True, Stop.ERROR)]) == {"success": 1.0}
    assert success_rates([]) == {}


def mixed_evaluation(agent: Agent[Any]) -> Evaluation:
    mixture = Mixture([WORD, EnvFactory(Press, {"sizes": 10})])
    return evaluate(agent, mixture, mixture.tasks("test", 20), name="final")


def test_an_evaluation_tells_its_environments_apart(tmp_path: Path) -> None:
    e = mixed_evaluation(Agent(ScriptedPolicy(answer)))
    alone = evaluate(Agent(ScriptedPolicy(answer)), WORD, WORD.tasks("test", 10))
    assert e.parts() == ("word", "press")
    assert e.part("word").successes == alone.successes
    assert e.part("word").tasks == alone.tasks
    assert (e.part("word").success.mean, e.part("word").success.n) == (alone.success.mean, 10)
    assert e.part("press").success.mean == 0.0
    assert e.success.n == 20
    e.save(tmp_path / "e.json")
    assert Evaluation.load(tmp_path / "e.json") == e
    told = json.loads((tmp_path / "e.json").read_text())["parts"]
    assert told["word"]["success"]["mean"] == alone.success.mean
    assert alone.parts() == ()
    with pytest.raises(ConfigError, match=r"no tasks of environment 'wrod'\. Did you mean 'word'"):
        e.part("wrod")


def test_the_table_has_a_row_for_each_environment() -> None:
    good, bad = mixed_evaluation(Agent(load_policy_of("yes"))), mixed_evaluation(Agent(load_policy_of("no")))
    table = compare({"base": [bad], "better": [good]}, "base", costs={"better": Cost(episodes=7)})
    assert [(row.recipe, row.part) for row in table.rows] == [
        ("base", ""),
        ("base", "word"),
        ("base", "press"),
        ("better", ""),
        ("better", "word"),
        ("better", "press"),
    ]
    yes = sum(task.seed % 2 for task in WORD.tasks("test", 10)) / 10
    word = table.rows[4]
    assert (word.success.mean, word.success.n, word.cost) == (yes, 10, None)
    assert word.difference is not None
    assert word.difference.mean == pytest.approx(2 * yes - 1)
    assert "| · word (n=10) | " in table.markdown()
    assert "Rows with a dot are about one environment" in table.markdown()


def load_policy_of(word: str) -> ScriptedPolicy:
    return ScriptedPolicy(lambda request, rng: word)


def test_an_environment_that_failed_throughout_is_named_in_the_table() -> None:
    class Broken(Env):
        def reset(self, task: Task) -> str:
            raise OSError("no such server")

    mixture = Mixture([WORD, EnvFactory(Broken)])
    agent = Agent(load_policy_of("yes"))
    e = evaluate(agent, mixture, mixture.tasks("test", 20), limits=Limits(retries=0, max_error_rate=0.6))
    table = compare({"x": [e]}, {})
    assert [row.part for row in table.rows] == ["", "word"]
    assert "x in broken: every episode failed" in table.warnings()
    assert e.to_json()["parts"]["broken"] == {"n_errors": 10, "n_episodes": 10}


def test_curves_of_each_environment_stand_on_the_page(tmp_path: Path) -> None:
    e = mixed_evaluation(Agent(ScriptedPolicy(answer)))
    with Run.create(tmp_path / "run", {"seed": 0, "env": "word + press"}, quiet=True) as run:
        for step in run.steps(3, name="grpo"):
            each = {"success/press": 0.25} if step != 1 else {}
            run.log(step, success=0.5, **{"success/word": step / 2}, **each)
        run.save_evaluation("final", e.to_json())
    page = write_report(tmp_path / "run").read_text()
    assert "success/word by grpo: 0 at first, 1 at last" in page
    assert page.count("success/press by grpo") == 2  # its title and its label
    assert "<title>3: 0.25</title>" in page  # the step that had no episode of it is left out, not closed up
    assert "· word" in page


def test_a_role_that_is_played_differently_is_named_with_its_part() -> None:
    scripted, asked = "client:steps=2", "client:client=openai:m@http://localhost:1/v1"
    assert load_env(f"{scripted} + search").cast == {"client": "script:client"}
    by = load_env(f"{scripted} + {asked} + search").cast
    assert by == {f"client of {scripted}": "script:client", f"client of {asked}": "openai:m@http://localhost:1/v1"}


@pytest.mark.exhaustive
@pytest.mark.slow
def test_one_command_trains_on_two_and_reports_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    spec = "search:hops=1 + babyai:level=GoToLocal,max_turns=12"
    sizes = ["--train-tasks", "16", "--dev-tasks", "0", "--test-tasks", "16", "--expert-episodes", "16"]
    assert main(["run", "sft", "epochs=2", "lr=5e-4", "batch_size=8", "--env", spec, *sizes, "--out", str(out), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "· search" in shown
    assert "· babyai" in shown
    steps = ["steps=2", "tasks_per_step=4", "group_size=4", "lr=5e-4", "kl=0"]
    argv = ["run", "grpo", *steps, "--env", spec, *sizes, "--model", str(out), "--out", str(tmp_path / "grpo"), "--quiet"]
    assert main(argv) == 0
    events = [e["metrics"] for e in Run.open(tmp_path / "grpo").events("log")]
    assert len(events) == 2
    assert {key for metrics in events for key in metrics} >= {"success", "success/search", "success/babyai"}
