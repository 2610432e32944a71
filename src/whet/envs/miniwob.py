"""MiniWoB++: small tasks on web pages (Shi et al. 2017; Liu et al., arXiv 1802.08802) in a real browser, as text.

    goal: Click on the "Next" button.    what can be acted on has a number; the rest is the page's text
    lobortis mauris: (...)               in reading order
    [1] textbox:
    [2] button Next                      ->  click(element=2)

The pages come from Farama's package `miniwob` and run in Chromium (`whet.envs.chromium`) with real mouse and keyboard events.
Reward and end are the page's own, without its decay over time. A page's timers run on a clock that moves one second per
action, so that neither the machine's speed nor today's date has a part in an episode. Instances are drawn by seed; train,
dev and test differ by seed, and test also uses the pages' own test mode, which a few of them have.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import random
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from whet.envs import chromium
from whet.envs.base import Action, Env, Step, ToolError
from whet.envs.chromium_process import executable
from whet.envs.miniwob_experts import EXPERTS, FIELDS, Element, View
from whet.envs.pool import Pool
from whet.errors import ConfigError, EnvError, did_you_mean, missing_extra
from whet.seeding import derive_seed
from whet.tools.function import tool
from whet.types import Split, Task, ToolCall

_SPEC = importlib.util.find_spec("miniwob")  # its code is not imported, because that brings selenium
if _SPEC is None or _SPEC.origin is None:
    raise missing_extra("miniwob", "miniwob", "the environment 'miniwob'")
HTML = Path(_SPEC.origin).parent / "html" / "miniwob"

_WHY = {
    "wants a click at a place, not on an element": "bisect-angle circle-center find-midpoint hot-cold right-angle",
    "wants a drag by a distance": "draw-circle draw-line drag-circle drag-cube drag-single-shape",
    "wants a drag within an element": "resize-textarea highlight-text highlight-text-2",
    "shows its question as a picture only": "count-sides number-checkboxes visual-addition use-colorwheel-2",
    "is about timing": "button-delay chase-circle hover-shape moving-items simon-says stock-market",
    "takes keys without an element to type into": "terminal",
    "has menus that take what the mouse rests on, which differs between runs": "book-flight book-flight-nodelay",
}
VISUAL = {page: why for why, group in _WHY.items() for page in group.split()}
"""Pages that cannot be played by acting on elements of a page that stands still, and why."""
Key = Literal[
    "Enter", "Tab", "Escape", "Backspace", "Delete", "Space", "Home", "End",
    "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "PageUp", "PageDown",
]  # fmt: skip
CODES = dict(zip(get_args(Key), (13, 9, 27, 8, 46, 32, 36, 35, 38, 40, 37, 39, 33, 34)))
"""Windows' codes of the keys, which pages read as `event.keyCode`."""
SECOND = 1000
"""Milliseconds of the page's clock that an action takes."""
PAGES = 16
"""Browser pages, and so episodes, at once."""
RECYCLE = 50
"""Episodes after which a page is closed and another one opened."""
PATIENCE = 50.0
"""Seconds to wait for a free page; below `reset_timeout`."""


@functools.cache
def pages() -> tuple[str, ...]:
    """The pages that can be played here, in alphabetical order."""
    return tuple(sorted(path.stem for path in HTML.glob("*.html") if path.stem not in VISUAL))


@functools.cache
def _pool() -> Pool[chromium.Page]:
    script = Path(__file__).with_suffix(".js").read_text()
    return Pool(
        lambda: chromium.open_page(script),
        lambda page: page.close(),
        size=PAGES,
        recycle=RECYCLE,
        alive=lambda page: page.alive,
        name="miniwob",
    )


class MiniWoB(Env):
    """Click, type, select and drag on small web pages until the goal is reached; a real browser, text in, tool calls out.

    Options: `task` is a page such as `click-button`, several joined by `+`, `all`, or `experts`, which are those with a
    hand-written solution; `max_turns` stands for the page's own time limit, and running out of turns costs what the page takes
    for it, a reward of -1.
    """

    instructions = "Reach the goal on the web page. Elements are named by their numbers."
    max_tokens = 48
    inline = False
    reset_timeout = 120.0
    step_timeout = 60.0
    max_concurrent = PAGES

    def __init__(self, task: str = "click-button", max_turns: int = 20) -> None:
        sets = {"all": pages(), "experts": tuple(sorted(EXPERTS))}
        chosen = sets.get(task) or tuple(part.strip() for part in task.split("+"))
        for page in chosen:
            if page in VISUAL:
                raise ConfigError(f"miniwob's page {page!r} cannot be played as text: it {VISUAL[page]}. Choose another one.")
            if page not in pages():
                raise ConfigError(f"miniwob has no page {page!r}. {did_you_mean(page, (*pages(), *sets))}")
        if max_turns < 1:
            raise ConfigError(f"max_turns is {max_turns}; expected 1 or more")
        executable()
        self.max_turns = max_turns  # type: ignore[misc]
        self._chosen = chosen
        self._lease: _Lease | None = None
        self._view = View("", (), (), ())
        self._turns = 0

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """Endlessly many; where there are several pages, one of each in turn."""
        found = []
        for i in range(start, start + n):
            page, number = self._chosen[i % len(self._chosen)], i // len(self._chosen)
            seed = derive_seed("task", self.name, page, split, number)
            found.append(Task(id=f"{self.name}/{page}/{split}/{number}", env=self.name, split=split, seed=seed, data={"page": page}))
        return found

    def reset(self, task: Task) -> str:
        page = task.data["page"]
        if page not in pages():
            raise EnvError(f"task {task.id!r} is on the page {page!r}, which miniwob does not have")
        self.close()
        self._lease = _Lease(self)
        self._name, self._turns, self._over = page, 0, False
        self._mouse([("mouseMoved", 0, 0)])  # where it was left belongs to the episode before
        self._lease.load((HTML / f"{page}.html").as_uri())
        mode = "test" if task.split == "test" else "default"
        self._lease.evaluate(f"whet.begin({json.dumps(str(task.seed))}, {json.dumps(mode)})")
        self._view = View("", (), (), ())
        if self._report() is not None:
            raise EnvError(f"the page {page!r} ended before anything was done (task {task.id!r})")
        return f"goal: {self._view.goal}\n{self._shown()}"

    def step(self, action: Action) -> Any:
        """As `Env.step`. In the last turn the page is told that its time is up."""
        self._turns += 1
        step = super().step(action)
        assert isinstance(step, Step)
        if step.terminated:
            return replace(step, info=self._ending)
        if self._turns < self.max_turns:
            return step
        self._over = True
        ending = self._page().evaluate("whet.timeout()")
        return replace(step, reward=float(ending["reward"]), truncated=True, info={"reason": "max_turns"})

    @tool
    def click(self, element: int) -> str:
        """Click an element.

        Args:
            element: its number
        """
        place = self._place(element)
        self._mouse([("mouseMoved", *place), ("mousePressed", *place), ("mouseReleased", *place)])
        return self._after("click", element=element)

    @tool
    def hover(self, element: int) -> str:
        """Move the mouse over an element, which may open a menu.

        Args:
            element: its number
        """
        self._mouse([("mouseMoved", *self._place(element))])
        return self._after("hover", element=element)

    @tool
    def type(self, element: int, text: str) -> str:
        """Write into a text field, in place of what it holds.

        Args:
            element: its number
            text: what to write
        """
        found = self._page().evaluate(f"whet.focus({element}, {json.dumps(text)})")
        if found == "gone":
            raise self._missing(element)
        if found:
            raise ToolError(f"element {element} is {_a(found)}; it cannot be written into")
        keys = [_stroke(letter) for letter in text] or [_press("Delete")]
        self._page().do(*(event for stroke in keys for event in stroke))
        return self._after("type", element=element, text=text)

    @tool
    def select(self, element: int, option: str) -> str:
        """Choose an option of a list.

        Args:
            element: the list's number
            option: one of its options
        """
        found = self._page().evaluate(f"whet.select({element}, {json.dumps(option)})")
        if found["error"] == "gone":
            raise self._missing(element)
        if found["error"] == "option":
            raise ToolError(f"element {element} has no option {option!r}. {did_you_mean(option, [o for o in found['options'] if o])}")
        if found["error"]:
            raise ToolError(f"element {element} is {_a(found['error'])}, not a list")
        return self._after("select", element=element, option=option)

    @tool
    def press(self, key: Key) -> str:
        """Press a key; it goes to what was last clicked or written into.

        Args:
            key: which one
        """
        self._page().do(*_press(key))
        return self._after("press", key=key)

    @tool
    def drag(self, element: int, onto: int) -> str:
        """Drag an element onto another one.

        Args:
            element: what to drag
            onto: where to drop it
        """
        start, end = self._place(element, grab=True), self._place(onto)
        between = [tuple(a + (b - a) * part / 5 for a, b in zip(start, end)) for part in range(1, 6)]
        self._mouse(
            [("mouseMoved", *start), ("mousePressed", *start), *(("mouseMoved", x, y) for x, y in between), ("mouseReleased", *end)]
        )
        return self._after("drag", element=element, onto=onto)

    @tool
    def scroll(self, element: int, to: Literal["top", "bottom"]) -> str:
        """Scroll an element's content.

        Args:
            element: its number
            to: where
        """
        if not self._page().evaluate(f"whet.scroll({element}, {json.dumps(to)})"):
            raise self._missing(element)
        return self._after("scroll", element=element, to=to)

    def _after(self, name: str, **arguments: Any) -> str:
        """What the page is like after an action; ends the episode where the page did."""
        call = ToolCall(name=name, arguments=arguments)
        self._view = replace(self._view, taken=(*self._view.taken, call))
        ending = self._report()
        if ending is None:
            return self._shown()
        reward = float(ending["reward"])
        self._ending = {"reason": "done", **({"page_says": ending["reason"]} if ending["reason"] else {})}
        return self.finish("done", reward=reward, success=reward >= 1.0)

    def _report(self) -> Mapping[str, Any] | None:
        """Let a second pass on the page's clock and look at it; how it ended, if it did."""
        seen: dict[str, Any] = self._page().evaluate(f"whet.report({SECOND})")
        if seen["done"]:
            return seen
        elements = tuple(Element(e["id"], e["role"], e["name"], e.get("value"), tuple(e.get("options", ()))) for e in seen["elements"])
        self._view = replace(self._view, goal=seen["goal"], lines=tuple(seen["lines"]), elements=elements)
        return None

    def _shown(self) -> str:
        return "\n".join(self._view.lines) or "(an empty page)"

    def _page(self) -> _Lease:
        if self._lease is None:
            raise EnvError("the environment 'miniwob' was not reset, or is closed")
        return self._lease

    def _place(self, element: int, grab: bool = False) -> tuple[float, float]:
        """Where to press the mouse for an element, in pixels from the window's upper left corner; `grab` it to drag it away."""
        found = self._page().evaluate(f"whet.point({element})")
        if found is None:
            raise self._missing(element)
        if found["covered"]:
            raise ToolError(f"element {element} cannot be reached: something else covers it")
        if grab and found["field"]:
            raise ToolError(f"element {element} is {_a(found['field'])}; it cannot be dragged")
        return float(found["x"]), float(found["y"])

    def _mouse(self, events: Sequence[tuple[str, float, float]]) -> None:
        down = False
        for kind, x, y in events:
            down = kind == "mousePressed" or (down and kind != "mouseReleased")
            moved = kind == "mouseMoved"
            button = "none" if moved and not down else "left"
            event = {"type": kind, "x": x, "y": y, "button": button, "buttons": int(down), "clickCount": int(not moved)}
            # One at a time: of moves that wait together, the browser keeps as many as it has frames for.
            self._page().do(("Input.dispatchMouseEvent", event))

    def _missing(self, element: int) -> ToolError:
        return ToolError(f"there is no element {element}; the page has 1 to {len(self._view.elements)}")

    def expert(self, rng: random.Random) -> Action | None:
        """What a hand-written solution of this page does next; None for pages without one.

        It reads what the agent reads: the goal, the numbered elements and the text, never the page's own solution.
        """
        solve = EXPERTS.get(self._name)
        call = solve(self._view) if solve else None
        return Action(tool_calls=(replace(call, id="call_0"),)) if call else None

    def random_action(self, rng: random.Random) -> Action:
        """Something that can be done with a random element; what is written are words of the goal."""
        view = self._view
        if not view.elements:
            return _action("press", key=rng.choice(("Tab", "Enter")))
        element = rng.choice(view.elements)
        if element.options:
            return _action("select", element=element.id, option=rng.choice(element.options))
        if element.role in FIELDS:
            words = [word.strip("\"'.,:") for word in view.goal.split()]
            return _action("type", element=element.id, text=rng.choice(words))
        if rng.random() < 0.1:
            return _action("drag", element=element.id, onto=rng.choice(view.elements).id)
        return _action("click", element=element.id)

    def close(self) -> None:
        if self._lease is not None:
            self._lease.end()
            self._lease = None


@dataclass(frozen=True)
class _Borrowed:
    page: chromium.Page
    broken: list[bool]


class _Lease:
    """A page of the pool for one episode. It goes back when the episode is closed or nobody holds its environment any more."""

    def __init__(self, env: MiniWoB) -> None:
        pool = _pool()
        self._borrowed = _Borrowed(pool.take(PATIENCE), [])
        self.end = weakref.finalize(env, _give_back, pool, self._borrowed)

    def load(self, url: str) -> None:
        self._guard(lambda page: page.load(url))

    def evaluate(self, expression: str) -> Any:
        return self._guard(lambda page: page.evaluate(expression))

    def do(self, *commands: tuple[str, Mapping[str, Any]]) -> None:
        self._guard(lambda page: page.do(*commands))

    def _guard(self, use: Any) -> Any:
        """The page is not lent again once anything went wrong on it."""
        try:
            return use(self._borrowed.page)
        except BaseException:
            self._borrowed.broken.append(True)
            raise


def _give_back(pool: Pool[chromium.Page], borrowed: _Borrowed) -> None:
    pool.give(borrowed.page, broken=bool(borrowed.broken))


def _action(name: str, **arguments: Any) -> Action:
    return Action(tool_calls=(ToolCall(name=name, arguments=arguments, id="call_0"),))


def _a(role: str) -> str:
    return f"an {role}" if role[0] in "aeiou" else f"a {role}"


Events = list[tuple[str, Mapping[str, Any]]]


def _press(key: str) -> Events:
    code = CODES[key]
    written = {"Enter": "\r", "Space": " "}.get(key, "")
    name = {"Space": " "}.get(key, key)
    event = {"key": name, "code": key, "windowsVirtualKeyCode": code, **({"text": written} if written else {})}
    return [("Input.dispatchKeyEvent", {"type": "keyDown", **event}), ("Input.dispatchKeyEvent", {"type": "keyUp", **event})]


def _stroke(letter: str) -> Events:
    """One character as it is written on a keyboard."""
    if letter in "\n\r":
        return _press("Enter")
    if letter == "\t":
        return _press("Tab")
    # Codes of other characters' keys differ between keyboards, and some are those of keys without a character.
    code = {"windowsVirtualKeyCode": ord(letter.upper())} if letter.isascii() and letter.isalnum() else {}
    event = {"key": letter, "text": letter, **code}
    return [("Input.dispatchKeyEvent", {"type": "keyDown", **event}), ("Input.dispatchKeyEvent", {"type": "keyUp", **event})]
