"""MiniWoB++: pages as text, experts, chance, exact replay, what a model gets wrong, and browsers that die in mid-episode."""

import gc
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("miniwob")

from browsers import comes_true, leftovers, main_process, missing, processes, renderer

if missing():
    pytest.skip(missing(), allow_module_level=True)

from whet import Agent, check_env, load_env
from whet.envs import Action, miniwob
from whet.envs.calling import caller_of
from whet.envs.check import CHECKS
from whet.envs.chromium import ANSWER
from whet.envs.miniwob import CODES, HTML, PAGES, VISUAL, MiniWoB, pages
from whet.envs.miniwob_experts import EXPERTS
from whet.errors import ConfigError, EnvError
from whet.evals import evaluate
from whet.policies import load_policy
from whet.policies.scripted import ExpertPolicy, ScriptedPolicy
from whet.rollout import Limits, rollout
from whet.types import Stop, Task, ToolCall

slow = pytest.mark.slow
CHANCE = ("tic-tac-toe",)
"""Pages on which the best that can be done may still fail: the opponent plays at random, and a draw is no success."""
TIMED = ("click-collapsible", "click-menu", "click-pie", "click-tab-2-hard", "login-user-popup", "tic-tac-toe", "use-autocomplete")
"""Pages that wait, fade, or draw random numbers after their beginning."""


@pytest.fixture(scope="module", autouse=True)
def nothing_stays():
    """After all tests of this file, no browser and no profile of one is left."""
    before = leftovers()
    yield
    gc.collect()
    pool = miniwob._pool()
    browsers = {record.item.browser for record in pool._records.values()}
    pool.close()
    miniwob._pool.cache_clear()
    assert comes_true(lambda: not any(processes(browser) for browser in browsers))
    assert comes_true(lambda: leftovers() <= before), leftovers() - before


def call(name: str, **arguments) -> Action:
    return Action(tool_calls=(ToolCall(name=name, arguments=arguments, id="c"),))


def text(step) -> str:
    return step.observation if isinstance(step.observation, str) else step.observation[0].content


def begin(page: str, index: int = 0, split: str = "train", **options) -> MiniWoB:
    env = MiniWoB(task=page, **options)
    env.seen = env.reset(env.tasks(split, 1, index)[0])
    return env


def play(env: MiniWoB, task: Task, act, pause: float = 0.0):
    """Every observation of an episode with its rewards and ends, and the actions."""
    seen, done = [env.reset(task)], []
    try:
        while True:
            done.append(act(env, len(done)))
            step = env.step(done[-1])
            seen.append((text(step), step.reward, step.terminated, step.truncated, step.success))
            if step.terminated or step.truncated:
                return seen, done
            time.sleep(pause)
    finally:
        env.close()


# -- what it is ------------------------------------------------------------------------------------------------------------


def test_pages_are_those_of_the_package_but_for_those_that_need_eyes_or_haste():
    every = {path.stem for path in HTML.glob("*.html")}
    assert set(VISUAL) < every
    assert set(pages()) == every - set(VISUAL)
    assert set(EXPERTS) < set(pages())
    assert len(pages()) > 100
    assert len(EXPERTS) > 60


def test_tasks_take_the_pages_in_turn_and_splits_share_no_seed():
    env = MiniWoB(task="click-test + enter-text")
    tasks = env.tasks("train", 4)
    assert [task.id for task in tasks] == [f"miniwob/{page}/train/{i}" for i in (0, 1) for page in ("click-test", "enter-text")]
    assert env.tasks("train", 2, start=1) == tasks[1:3]
    seeds = [task.seed for split in ("train", "dev", "test") for task in env.tasks(split, 50)]
    assert len(set(seeds)) == 150
    assert tasks[0] == MiniWoB(task="click-test").tasks("train", 1)[0], "a task does not depend on what it stands beside"
    assert len({t.data["page"] for t in MiniWoB(task="all").tasks("dev", len(pages()))}) == len(pages())
    assert {t.data["page"] for t in MiniWoB(task="experts").tasks("dev", len(EXPERTS))} == set(EXPERTS)


def test_mistakes_of_the_user():
    for options, says in (
        ({"task": "click-buton"}, "has no page 'click-buton'. Did you mean 'click-button'?"),
        ({"task": "click-test+"}, "has no page ''"),
        ({"task": "bisect-angle"}, "cannot be played as text: it wants a click at a place, not on an element"),
        ({"max_turns": 0}, "max_turns is 0"),
    ):
        with pytest.raises(ConfigError, match=re.escape(says)):
            MiniWoB(**options)
    env = MiniWoB()
    with pytest.raises(EnvError, match="was not reset"):
        env.click(1)
    with pytest.raises(EnvError, match="on the page 'nowhere', which miniwob does not have"):
        env.reset(Task(id="x", env="miniwob", split="train", seed=0, data={"page": "nowhere"}))
    env.close()


def test_without_a_browser_the_error_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImportError, match="apt-get install -y chromium"):
        MiniWoB()


# -- the contract ----------------------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("spec", ["miniwob", "miniwob:task=click-checkboxes+choose-list+login-user-popup+use-spinner,max_turns=12"])
def test_the_contract(spec):
    report = check_env(spec, tasks=4, deadline=60)
    assert report.ok, report
    assert not report.warnings, report
    assert set(report.passed) == set(CHECKS) - {"speed"}, report
    assert report.skipped == {"speed": "inline is False"}
    assert report.expert_success == 1.0


# -- what the agent sees and does ------------------------------------------------------------------------------------------


@slow
def test_a_page_as_text_and_an_episode_by_hand():
    env = begin("login-user")
    user, password = re.findall('"([^"]+)"', env.seen.splitlines()[0])
    assert env.seen.splitlines() == [
        f'goal: Enter the username "{user}" and the password "{password}" into the text fields and press login.',
        "Username",
        "[1] textbox:",
        "Password",
        "[2] password:",
        "[3] button Login",
    ]
    assert f"[1] textbox: {user}" in text(env.step(call("type", element=1, text=user)))
    assert f"[1] textbox: {password}" in text(env.step(call("type", element=1, text=password))), "in place of what it held"
    env.step(call("type", element=1, text=user))
    env.step(call("press", key="Tab"))
    env.step(call("type", element=2, text=password))
    step = env.step(call("click", element=3))
    assert (text(step), step.reward, step.terminated, step.success) == ("done", 1.0, True, True)
    assert step.info == {"reason": "done"}
    with pytest.raises(EnvError, match="is over"):
        env.step(call("click", element=3))
    env.close()


@slow
def test_a_wrong_end_costs_what_the_page_says():
    env = begin("click-test-2")
    wrong = next(e for e in env._view.elements if e.name == "TWO")
    step = env.step(call("click", element=wrong.id))
    assert (step.reward, step.terminated, step.success) == (-1.0, True, False)
    env.close()


@slow
def test_running_out_of_turns_costs_what_running_out_of_time_costs():
    env = begin("enter-text", max_turns=2)
    assert not env.step(call("press", key="Tab")).truncated
    step = env.step(call("press", key="Tab"))
    assert (step.reward, step.truncated, step.terminated, step.success) == (-1.0, True, False, False)
    assert step.info == {"reason": "max_turns"}
    with pytest.raises(EnvError, match="is over"):
        env.step(call("press", key="Tab"))
    env.close()


@slow
def test_what_a_model_gets_wrong_is_told_to_it():
    def told(env, *actions):
        steps = [env.step(action) for action in actions]
        assert not any(step.reward or step.terminated for step in steps)
        return [text(step) for step in steps]

    env = begin("choose-list")
    assert told(
        env,
        call("click", element=3),
        call("click", element=0),
        call("click", element=-1),
        call("hover", element=99),
        call("drag", element=2, onto=7),
        call("scroll", element=8, to="top"),
        call("type", element=5, text="x"),
        call("select", element=4, option="x"),
    ) == [f"error: there is no element {n}; the page has 1 to 2" for n in (3, 0, -1, 99, 7, 8, 5, 4)]
    assert told(
        env,
        call("type", element=2, text="x"),
        call("type", element=1, text="x"),
        call("select", element=2, option="x"),
        call("drag", element=1, onto=2),
    ) == [
        "error: element 2 is a button; it cannot be written into",
        "error: element 1 is a list; it cannot be written into",
        "error: element 2 is a button, not a list",
        "error: element 1 is a list; it cannot be dragged",
    ]
    option = env._view.elements[0].options[1]
    (wrong,) = told(env, call("select", element=1, option=option + "x"))
    assert wrong.startswith(f"error: element 1 has no option '{option}x'. Did you mean '{option}'? Valid: ")
    for action, says in (
        (call("click", element="two"), "error: bad arguments for click: element: "),
        (call("click"), "error: bad arguments for click: element: Field required"),
        (call("press", key="F13"), "error: bad arguments for press: key: "),
        (call("klick", element=1), "error: unknown tool 'klick'. Did you mean 'click'?"),
        (Action(text="I click on it."), "No tool call found."),
    ):
        (got,) = told(env, action)
        assert got.startswith(says), got
    env.close()


@slow
def test_fields_that_cannot_be_changed_and_elements_that_are_covered():
    env = begin("choose-date")
    assert (
        text(env.step(call("type", element=1, text="5"))) == "error: element 1 is a field that cannot be changed; it cannot be written into"
    )
    env.close()
    env = begin("login-user-popup")
    assert "[5] button Cancel" in text(env.step(call("click", element=1))), "a dialog comes up"
    assert text(env.step(call("type", element=2, text="x"))) == "error: element 2 is a disabled field; it cannot be written into"
    field = env._view.of("textbox")[0].id
    assert text(env.step(call("click", element=field))) == f"error: element {field} cannot be reached: something else covers it"
    env.close()


@slow
def test_texts_that_no_keyboard_has():
    env = begin("enter-text")
    for written in ("é ü 漢字 🙂", "<b>&amp;</b>", "\\ \" ' ` $", "a" * 300):
        assert f"[1] textbox: {written}" in text(env.step(call("type", element=1, text=written)))
    assert "[1] textbox:" in text(env.step(call("type", element=1, text=""))).splitlines()[0]
    env.close()


# -- experts and chance ----------------------------------------------------------------------------------------------------


@slow
@pytest.mark.timeout(900)
def test_every_expert_solves_its_page():
    """Two dev tasks of each page."""
    factory = load_env("miniwob:task=experts")
    found = evaluate(Agent(ExpertPolicy()), factory, factory.tasks("dev", 2 * len(EXPERTS)))
    assert not found.errors
    failed = {task for task, won in zip(found.tasks, found.successes) if not all(won)}
    assert {task.split("/")[1] for task in failed} <= set(CHANCE), failed


@slow
def test_an_expert_against_chance_usually_wins():
    factory = load_env("miniwob:task=tic-tac-toe")
    found = evaluate(Agent(ExpertPolicy()), factory, factory.tasks("dev", 30))
    assert found.success.mean > 0.75


@slow
def test_pages_without_a_solution_have_no_expert():
    (page, *_) = (page for page in pages() if page not in EXPERTS)
    env = begin(page)
    assert env.expert(random.Random(0)) is None
    env.close()


@slow
@pytest.mark.parametrize(
    ("page", "low", "high"),
    [("click-test", 1.0, 1.0), ("click-button", 0.3, 0.9), ("click-checkboxes", 0.0, 0.2), ("login-user", 0.0, 0.2)],
)
def test_chance(page, low, high):
    factory = load_env(f"miniwob:task={page}")
    found = evaluate(Agent(load_policy("random")), factory, factory.tasks("dev", 30))
    assert not found.errors
    assert low <= found.success.mean <= high


# -- replay ----------------------------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("page", TIMED)
def test_replay_is_exact_however_long_it_takes(page):
    """The same actions, slowly: the page's clock counts actions, and its random numbers follow from the seed."""
    for index in range(2):
        task = MiniWoB(task=page).tasks("train", 1, index)[0]
        rng = random.Random(index)
        seen, done = play(MiniWoB(task=page, max_turns=6), task, lambda env, turn, rng=rng: env.random_action(rng))
        again, _ = play(MiniWoB(task=page, max_turns=6), task, lambda env, turn, done=done: done[turn], pause=0.4)
        assert again == seen


def wild(env: MiniWoB, rng: random.Random) -> Action:
    """Anything that a model may do, sensible or not."""
    elements = [element.id for element in env._view.elements] or [1]
    one, other = rng.choice(elements), rng.choice(elements)
    options = next(iter(e.options for e in env._view.elements if e.id == one), ())
    return rng.choice((
        call("press", key=rng.choice(list(CODES))), call("drag", element=one, onto=other), call("click", element=one),
        call("hover", element=one), call("scroll", element=one, to=rng.choice(("top", "bottom"))),
        call("select", element=one, option=rng.choice(options)) if options else call("click", element=other),
        call("type", element=one, text=rng.choice(("", "é\n", "<b>\t", *env._view.goal.split()))),
    ))  # fmt: skip


@slow
@pytest.mark.timeout(900)
def test_wild_episodes_on_every_page_break_nothing_and_replay_exactly():
    def differs(page: str) -> bool:
        task, rng = MiniWoB(task=page).tasks("train", 1)[0], random.Random(page)
        seen, done = play(MiniWoB(task=page, max_turns=10), task, lambda env, turn: wild(env, rng))
        again, _ = play(MiniWoB(task=page, max_turns=10), task, lambda env, turn: done[turn])
        return again != seen

    with ThreadPoolExecutor(6) as threads:
        found = dict(zip(pages(), threads.map(differs, pages())))
    assert not [page for page, different in found.items() if different]


@slow
def test_every_move_of_a_drag_reaches_the_page():
    """A browser merges moves that wait for the same frame; what is dragged past would then depend on how busy the machine is."""
    env = MiniWoB(task="drag-sort-numbers", max_turns=100)
    try:
        env.reset(env.tasks("train", 1)[0])
        env._page().evaluate("void document.addEventListener('mousemove', () => { window.moves += 1; }, true)")
        for turn in range(20):
            env._page().evaluate("void (window.moves = 0)")
            env.drag(1 + turn % 3, 2 + turn % 3)
            assert env._page().evaluate("window.moves") == 6
    finally:
        env.close()


@slow
@pytest.mark.parametrize("page", ["click-scroll-list", "order-food", "scroll-text-2", "social-media-all"])
def test_scrolling_is_exact_too(page):
    for index in range(3):
        task, rng = MiniWoB(task=page).tasks("train", 1, index)[0], random.Random(index)
        seen, done = play(MiniWoB(task=page), task, lambda env, turn, rng=rng: wild(env, rng))
        again, _ = play(MiniWoB(task=page), task, lambda env, turn, done=done: done[turn])
        assert again == seen


@slow
def test_the_clock_stands_still_between_actions_and_seeds_draw_the_numbers():
    def drawn(index):
        env = begin("click-button", index)
        numbers = env._lease.evaluate("[Math.random(), Math.random()]")
        env.close()
        return numbers

    env = begin("click-button")
    clock = "[Date.now(), new Date().getFullYear(), performance.now()]"
    first = env._lease.evaluate(clock)
    time.sleep(0.3)
    assert env._lease.evaluate(clock) == first
    assert first[1] == 2016
    env.step(call("press", key="Tab"))
    assert env._lease.evaluate(clock)[0] == first[0] + 1000
    env.close()
    assert drawn(0) == drawn(0) != drawn(1)


@slow
def test_the_test_split_uses_the_pages_test_mode():
    for split, mode in (("train", "default"), ("dev", "default"), ("test", "test")):
        env = begin("click-test", split=split)
        assert env._lease.evaluate("WOB_DATA_MODE") == mode
        env.close()


@slow
def test_the_time_of_day_and_a_page_before_leave_no_trace():
    """The same task on a fresh tab and on one that another page was on."""
    task = MiniWoB(task="click-collapsible-2").tasks("train", 1)[0]

    def beginning():
        env = MiniWoB(task="click-collapsible-2")
        seen = env.reset(task)
        env.close()
        return seen

    seen = beginning()
    for page in ("social-media", "use-spinner"):
        env = begin(page)
        for key in ("Tab", "End", "PageDown"):
            env.step(call("press", key=key))
        env.close()
        assert beginning() == seen


# -- how many at once ------------------------------------------------------------------------------------------------------


@slow
def test_no_more_episodes_at_once_than_there_are_pages(monkeypatch):
    monkeypatch.setattr(MiniWoB, "max_concurrent", 3)
    factory, taken = load_env("miniwob:task=click-checkboxes"), []

    def act(request, rng):
        taken.append(miniwob._pool().counts().taken)
        return request.env.expert(rng)

    episodes = rollout(Agent(ScriptedPolicy(act)), factory, factory.tasks("train", 12))
    assert all(episode.success for episode in episodes)
    assert 1 < max(taken) <= 3
    assert MiniWoB.__dict__["max_concurrent"] == 3
    assert miniwob._pool().size == PAGES


@slow
def test_whoever_comes_when_all_pages_are_taken_waits_and_is_then_told(monkeypatch):
    monkeypatch.setattr(miniwob, "PATIENCE", 0.3)
    envs = [begin("click-test") for _ in range(PAGES)]
    with pytest.raises(EnvError, match=f"nothing free for 0.3 s: all {PAGES} are in use"):
        begin("click-test")
    envs.pop()  # never closed, but nobody holds it any more
    gc.collect()
    begin("click-test").close()
    for env in envs:
        env.close()
    assert miniwob._pool().counts().taken == 0


# -- what dies and hangs ---------------------------------------------------------------------------------------------------


def page_of(request):
    return request.env._lease._borrowed.page


def first(request) -> bool:
    """Whether an episode is of the first task."""
    return caller_of(request.env).situation.task.id.endswith("/0")


def killing(kill, attempts: int = 1):
    """The expert, which before its second turn kills something in the first attempts at the first task."""
    left = {"n": attempts}

    def act(request, rng):
        env = request.env
        if first(request) and len(env._view.taken) == 1 and left["n"]:
            left["n"] -= 1
            kill(page_of(request))
        return env.expert(rng)

    return Agent(ScriptedPolicy(act, version="killer"))


KILLS = {
    "browser": lambda page: main_process(page.browser).kill(),
    "tab": lambda page: renderer(page).kill(),
}


@slow
@pytest.mark.parametrize("what", KILLS)
def test_an_episode_whose_browser_is_killed_is_played_again(what):
    factory = load_env("miniwob:task=enter-password")
    episodes = rollout(killing(KILLS[what]), factory, factory.tasks("train", 10))
    assert [(episode.stop, episode.success) for episode in episodes] == [(Stop.TERMINATED, True)] * 10
    assert episodes[0].tags["attempts"] == 2
    assert episodes[0].tags["broken"] == {"BrowserLost": 1}
    also = [episode for episode in episodes[1:] if "broken" in episode.tags]
    assert all(episode.tags["broken"] == {"BrowserLost": 1} for episode in also)
    if what == "tab":
        assert not also, "a tab takes no other one with it"
    assert miniwob._pool().counts().taken == 0


@slow
@pytest.mark.parametrize("what", KILLS)
def test_one_that_is_killed_again_and_again_is_dropped_and_counted(what):
    factory = load_env("miniwob:task=enter-password")
    found = evaluate(killing(KILLS[what], attempts=9), factory, factory.tasks("dev", 3), limits=Limits(in_flight=1, retries=1))
    assert found.errors == {"BrowserLost": 1}
    assert found.rewards[0] == (), "no reward of zero"
    assert found.success.mean == 1.0
    assert found.success.n == 2


HANGING = """<!DOCTYPE html>
<html><head>
<link rel="stylesheet" type="text/css" href="{core}/core.css">
<script src="{core}/core.js"></script>
<script src="{core}/d3.v3.min.js"></script>
<script>
var genProblem = function() {{
  d3.select('#query').html('Click.');
  d3.select('#hang').on('click', function() {{ for (;;); }});
  d3.select('#end').on('click', function() {{ core.endEpisode(1.0, true); }});
}};
window.onload = function() {{ core.startEpisode(); }};
</script></head>
<body><div id="wrap"><div id="query"></div>
<div id="area"><button id="hang">Hang</button><button id="end">End</button></div></div></body></html>
"""


@pytest.fixture
def hanging(monkeypatch, tmp_path):
    """A page of which one button never returns."""
    (tmp_path / "hanging.html").write_text(HANGING.format(core=(HTML.parent / "core").as_uri()))
    monkeypatch.setattr(miniwob, "HTML", Path(tmp_path))
    pages.cache_clear()
    yield load_env("miniwob:task=hanging")
    pages.cache_clear()


@slow
def test_a_page_that_hangs_ends_by_its_deadline_and_is_no_zero(hanging):
    def act(request, rng):
        (button,) = [e.id for e in request.env._view.elements if e.name == ("Hang" if first(request) else "End")]
        return call("click", element=button)

    begun = time.monotonic()
    episodes = rollout(Agent(ScriptedPolicy(act)), hanging, hanging.tasks("train", 3), limits=Limits(retries=1))
    assert time.monotonic() - begun < 3 * ANSWER, "two attempts, each given up after ANSWER seconds"
    assert [(e.stop, e.reason, e.ok) for e in episodes] == [(Stop.ERROR, "BrowserHung", False), *[(Stop.TERMINATED, "done", True)] * 2]
    assert episodes[0].tags["broken"] == {"BrowserHung": 2}
    assert "did not answer" in episodes[0].error
    assert miniwob._pool().counts().taken == 0


@slow
def test_a_page_that_broke_is_not_lent_again():
    env = begin("click-test")
    page = env._lease._borrowed.page
    with pytest.raises(EnvError, match="a script on the page failed"):
        env._lease.evaluate("nothing.at.all")
    env.close()
    env = begin("click-test")
    assert env._lease._borrowed.page is not page
    env.close()


@slow
def test_pages_are_replaced_after_many_episodes(monkeypatch):
    """A tab serves so many episodes and no more, so that what a page leaves in its process does not add up."""
    before = miniwob._pool().counts().recycled
    tabs = set()
    for _ in range(miniwob.RECYCLE + 2):
        env = begin("click-test")
        tabs.add(env._lease._borrowed.page._target)
        env.close()
    assert len(tabs) > 1
    assert miniwob._pool().counts().recycled > before
