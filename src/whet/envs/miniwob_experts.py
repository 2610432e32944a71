"""Hand-written solutions of MiniWoB++ pages. Each maps what the agent sees to the next tool call; none looks into the page.

They know how the goals of a page are worded, so they are solutions of these pages and of nothing else.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from whet.types import ToolCall


@dataclass(frozen=True, slots=True)
class Element:
    """What can be acted on: its number, kind, name, and for fields and lists the value and the options."""

    id: int
    role: str
    name: str
    value: str | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """What an agent has seen by now, parsed: the goal, the page's lines and elements, and its own calls."""

    goal: str
    lines: tuple[str, ...]
    elements: tuple[Element, ...]
    taken: tuple[ToolCall, ...]

    def of(self, *roles: str) -> list[Element]:
        return [element for element in self.elements if element.role in roles]

    def named(self, name: str, *roles: str) -> Element | None:
        return next((e for e in self.elements if e.name == name and (not roles or e.role in roles)), None)

    @property
    def quoted(self) -> list[str]:
        return re.findall(r'"([^"]*)"', self.goal)

    def done(self, name: str, **arguments: Any) -> bool:
        """Whether this call was made already."""
        return any(call.name == name and dict(call.arguments) == arguments for call in self.taken)


Solution = Callable[[View], ToolCall | None]
EXPERTS: dict[str, Solution] = {}
"""Page -> its solution."""
FIELDS = ("textbox", "password", "textarea", "time", "date")


def _solves(*names: str) -> Callable[[Solution], Solution]:
    def register(solution: Solution) -> Solution:
        EXPERTS.update(dict.fromkeys(names, solution))
        return solution

    return register


def _click(element: Element | None) -> ToolCall | None:
    return ToolCall(name="click", arguments={"element": element.id}) if element else None


def _type(element: Element, text: str) -> ToolCall:
    return ToolCall(name="type", arguments={"element": element.id, "text": text})


def _button(view: View, name: str = "Submit") -> ToolCall | None:
    return _click(view.named(name, "button"))


def _fill(view: View, texts: Sequence[str], submit: str = "Submit") -> ToolCall | None:
    """Write the texts into the fields in their order, then press the button."""
    for field, text in zip(view.of(*FIELDS), texts):
        if field.value != text:
            return _type(field, text)
    return _button(view, submit)


def _ordinal(text: str) -> int:
    """`the 3rd word` -> 3. Of several, the first."""
    match = re.search(r"(\d+)(?:st|nd|rd|th)", text)
    return int(match[1]) if match else 1


@_solves("click-test", "click-test-2", "click-test-transfer", "click-button", "unicode-test", "click-dialog", "click-dialog-2")
def _named_button(view: View) -> ToolCall | None:
    wanted = view.quoted[0] if view.quoted else (re.findall(r"button (\w+)\.$", view.goal) or ["Click Me!"])[0]
    return _button(view, "Close" if wanted == "x" else wanted)


@_solves("click-button-sequence")
def _one_two(view: View) -> ToolCall | None:
    return _button(view, ("ONE", "TWO")[min(len(view.taken), 1)])


@_solves("click-link")
def _link(view: View) -> ToolCall | None:
    return _click(view.named(view.quoted[0]))


@_solves("click-tab")
def _tab(view: View) -> ToolCall | None:
    return _click(view.named(view.goal.removeprefix("Click on ").removesuffix(".")))


@_solves("click-tab-2", "click-tab-2-easy", "click-tab-2-medium", "click-tab-2-hard")
def _search_tabs(view: View) -> ToolCall | None:
    return _click(view.named(view.quoted[0], "item")) or _click(next(iter(view.of("link")[len(view.taken) :]), None))


@_solves("click-collapsible", "click-collapsible-nodelay")
def _expand(view: View) -> ToolCall | None:
    return _button(view) if view.taken else _click(next(iter(view.of("item")), None))


@_solves("click-collapsible-2", "click-collapsible-2-nodelay")
def _search_sections(view: View) -> ToolCall | None:
    found = [e for e in view.elements if e.name == view.quoted[0] and not e.name.startswith("Section #")]
    sections = [e for e in view.elements if e.name.startswith("Section #")]
    return _click(found[0]) if found else _click(next(iter(sections[len(view.taken) :]), None))


@_solves("click-checkboxes", "click-checkboxes-large", "click-checkboxes-transfer")
def _checkboxes(view: View) -> ToolCall | None:
    wanted = re.sub(r"^Select | and click Submit\.$", "", view.goal).split(", ")
    left = [box for box in view.of("checkbox") if box.name in wanted and box.value == "off"]
    return _click(left[0]) if left else _button(view)


@_solves("click-option")
def _option(view: View) -> ToolCall | None:
    wanted = re.sub(r"^Select | and click Submit\.$", "", view.goal)
    radio = view.named(wanted, "radio")
    return _click(radio) if radio and radio.value == "off" else _button(view)


@_solves("choose-list", "click-scroll-list")
def _list(view: View) -> ToolCall | None:
    wanted = re.sub(r"^Select | from the (?:scroll )?list and click Submit\.$", "", view.goal).split(", ")
    menu = view.of("list", "listbox")[0]
    left = [option for option in wanted if option not in (menu.value or "").split(", ")]
    return ToolCall(name="select", arguments={"element": menu.id, "option": left[0]}) if left else _button(view)


@_solves("click-color")
def _color(view: View) -> ToolCall | None:
    wanted = re.sub(r"^Click on the | colored box\.$", "", view.goal)
    return _click(next((e for e in view.elements if f" {wanted} " in e.name), None))


@_solves("click-widget")
def _widget(view: View) -> ToolCall | None:
    role = {"text": "textbox"}.get(view.quoted[0], view.quoted[0])
    return _click(next(iter(view.of(role)), None))


@_solves("click-menu")
def _menu(view: View) -> ToolCall | None:
    *parents, leaf = view.goal.removeprefix("Select ").split(">")
    if len(view.taken) < len(parents):
        parent = view.named(parents[len(view.taken)])
        return ToolCall(name="hover", arguments={"element": parent.id}) if parent else None
    return _click(view.named(leaf))


@_solves("focus-text", "focus-text-2")
def _focus(view: View) -> ToolCall | None:
    return _click(view.of(*FIELDS)[_ordinal(view.goal) - 1])


@_solves("enter-text", "enter-text-dynamic")
def _enter(view: View) -> ToolCall | None:
    return _fill(view, view.quoted)


@_solves("enter-text-2")
def _enter_case(view: View) -> ToolCall | None:
    text = view.quoted[0]
    return _fill(view, [text.lower() if "lower case" in view.goal else text.upper()])


@_solves("enter-password")
def _password(view: View) -> ToolCall | None:
    return _fill(view, view.quoted * 2)


@_solves("login-user", "login-user-popup")
def _login(view: View) -> ToolCall | None:
    """A dialog that comes in between is sent away."""
    if (cancel := view.named("Cancel", "button")) is not None:
        return _click(cancel)
    return _fill(view, view.quoted, view.of("button")[0].name)


@_solves("enter-date")
def _date(view: View) -> ToolCall | None:
    field, wanted = view.of("date")[0], view.goal.split()[1]
    return _button(view) if field.value else _type(field, wanted)


@_solves("enter-time")
def _time(view: View) -> ToolCall | None:
    field, wanted = view.of("time")[0], re.findall(r"(\d+:\d+)\s([AP]M)", view.goal)[0]
    return _button(view) if field.value else _type(field, "".join(wanted).rjust(7, "0"))


@_solves("text-transform")
def _transcribe(view: View) -> ToolCall | None:
    return _fill(view, [view.lines[0].replace(" ", "")])


@_solves("read-table", "read-table-2")
def _table(view: View) -> ToolCall | None:
    rows = dict(line.split(" | ") for line in view.lines if " | " in line)
    asked = re.findall(r"value of (.+) into", view.goal) or [line[:-1] for line in view.lines if line.endswith(":") and line[:-1] in rows]
    return _fill(view, [rows[label] for label in asked])


@_solves("simple-arithmetic")
def _arithmetic(view: View) -> ToolCall | None:
    a, sign, b = view.lines[0].removesuffix("=").split()
    left, right = int(a), int(b)
    return _fill(view, [str({"+": left + right, "-": left - right}.get(sign, left * right))])


@_solves("simple-algebra")
def _algebra(view: View) -> ToolCall | None:
    left, right = view.lines[0].split(" = ")
    a, sign, b = left.split()
    total = int(right)
    if sign == "+":
        answer = total - int(b if a == "x" else a)
    else:
        answer = total + int(b) if a == "x" else int(a) - total
    return _fill(view, [str(answer)])


@_solves("find-word")
def _word(view: View) -> ToolCall | None:
    return _fill(view, [view.lines[0].split()[_ordinal(view.goal) - 1].strip(",.")])


@_solves("copy-paste", "copy-paste-2")
def _copy(view: View) -> ToolCall | None:
    source = view.of("textarea")[_ordinal(view.goal) - 1]
    target = view.of("textbox")[0]
    return _button(view) if target.value == source.value else _type(target, source.value or "")


@_solves("scroll-text")
def _last_word(view: View) -> ToolCall | None:
    target = view.of("textbox")[0]
    word = (view.of("textarea")[0].value or "").split()[-1].strip(",.")
    return _button(view) if target.value == word else _type(target, word)


@_solves("scroll-text-2")
def _scroll(view: View) -> ToolCall | None:
    area = view.of("textarea")[0]
    end = "top" if "top" in view.goal else "bottom"
    return _button(view) if view.taken else ToolCall(name="scroll", arguments={"element": area.id, "to": end})


@_solves("find-greatest")
def _greatest(view: View) -> ToolCall | None:
    cards = [e for e in view.elements if e.name.isdigit()]
    return _button(view) if view.taken else _click(max(cards, key=lambda e: int(e.name), default=None))


@_solves("buy-ticket")
def _ticket(view: View) -> ToolCall | None:
    """By the price, or by the duration, which stands in the line before the button."""
    offers = view.of("button")
    best = max if "longest" in view.goal or "most expensive" in view.goal else min
    if "duration" not in view.goal:
        return _click(best(offers, key=lambda e: float(e.name.rpartition("$")[2])))
    times = [int(h) * 60 + int(m) for h, m in re.findall(r"(\d+)h (\d+)m", "\n".join(view.lines))]
    return _click(offers[times.index(best(times))])


@_solves("odd-or-even")
def _odd_or_even(view: View) -> ToolCall | None:
    numbers = [int(line) for line in view.lines if re.fullmatch(r"-?\d+", line)]
    buttons = [e for e in view.of("button") if e.name in ("Odd", "Even")]
    if len(view.taken) == len(numbers):
        return _button(view)
    i = len(view.taken)
    return _click(buttons[2 * i + (numbers[i] % 2 == 0)])


@_solves("guess-number")
def _guess(view: View) -> ToolCall | None:
    """Halve the interval that the answers leave."""
    low, high = 0, 9
    guesses = [int(call.arguments["text"]) for call in view.taken if call.name == "type"]
    field = view.of("textbox")[0]
    told = [re.search(r"(higher|lower) than (\d+)", line) for line in view.lines]
    clue = next((match for match in told if match), None)
    if len(view.taken) % 2:
        return _button(view)
    for number in guesses[:-1]:  # of earlier guesses, the later ones say on which side the number is
        low, high = (number + 1, high) if guesses[-1] > number else (low, number - 1)
    if clue:
        number = int(clue[2])
        low, high = (max(low, number + 1), high) if clue[1] == "higher" else (low, min(high, number - 1))
    return _type(field, str((low + high) // 2))


@_solves("grid-coordinate")
def _grid(view: View) -> ToolCall | None:
    match = re.search(r"\((-?\d+),(-?\d+)\)", view.goal)
    dots = {}
    for dot in view.of("circle"):
        x, y = dot.name.rpartition(" at ")[2].split(",")
        dots[int(x), int(y)] = dot
    columns, rows = sorted({x for x, _ in dots}), sorted({y for _, y in dots})
    assert match is not None
    return _click(dots[columns[int(match[1]) + 2], rows[2 - int(match[2])]])


@_solves("identify-shape")
def _shape(view: View) -> ToolCall | None:
    drawn = next(line for line in view.lines if not line.startswith("["))
    kinds = {"rectangle": "Rectangle", "circle": "Circle", "polygon": "Triangle"}
    return _button(view, kinds.get(drawn.split()[0]) or ("Number" if drawn.split()[1].isdigit() else "Letter"))


@_solves("social-media")
def _post(view: View) -> ToolCall | None:
    """A button of a user's post; some stand in a menu that opens first."""
    user, wanted = re.findall(r"@(\w+)", view.goal)[0], view.quoted[0]
    own = _below(view, f"@{user} ")
    kinds = {"Reply": "reply", "Retweet": "retweet", "Like": "like"}
    if wanted in kinds:
        return _click(next((e for e in own if e.name == kinds[wanted]), None))
    listed = [e for e in view.of("item") if e.name == wanted or e.name == f"{wanted} @{user}"]
    return _click(next(iter(listed), None)) or _click(next((e for e in own if e.name == "more"), None))


@_solves("social-media-all", "social-media-some")
def _posts(view: View) -> ToolCall | None:
    user, kind = re.findall(r"@(\w+)", view.goal)[0], view.quoted[0].lower()
    count = re.search(r"on (\d+) posts?", view.goal)
    own = [e for block in _blocks(view) if f"@{user}" in block[0].split() for e in block[1] if e.name.split()[0] == kind]
    wanted = own[: int(count[1])] if count else own
    left = [e for e in wanted if not view.done("click", element=e.id)]
    return _click(left[0]) if left else _button(view)


def _blocks(view: View) -> list[tuple[str, list[Element]]]:
    """Posts: the line of the user, and the buttons below it."""
    blocks: list[tuple[str, list[Element]]] = []
    for line in view.lines:
        if match := re.match(r"\[(\d+)\]", line):
            if blocks:
                blocks[-1][1].append(view.elements[int(match[1]) - 1])
        elif re.search(r"(^|\s)@\w+", line):
            blocks.append((line, []))
    return blocks


def _below(view: View, name: str) -> list[Element]:
    return next((buttons for line, buttons in _blocks(view) if name in f"{line} "), [])


@_solves("email-inbox-delete", "email-inbox-important")
def _email(view: View) -> ToolCall | None:
    sender = re.findall(r"email by (\S+)", view.goal)[0]
    icon = "trash" if "trash" in view.goal else "star"
    at = next(i for i, e in enumerate(view.elements) if e.name.startswith(f"{sender} "))
    return _click(next(e for e in view.elements[at + 1 :] if e.name.split()[0] == icon))


@_solves("form-sequence-2")
def _radio_and_number(view: View) -> ToolCall | None:
    which, where = (int(n) for n in re.findall(r"(\d+)(?:st|nd|rd|th)", view.goal))
    radio, field, number = view.of("radio")[which - 1], view.of("textbox")[where - 1], view.quoted[0]
    if radio.value == "off":
        return _click(radio)
    return _type(field, number) if field.value != number else _button(view)


@_solves("multi-layouts", "multi-orderings")
def _movie(view: View) -> ToolCall | None:
    """Each field stands below its label, or above it on pages that begin with a field; what sends the form comes last."""
    match = re.search(r"for (.+) movies directed by (.+) from year (\d+)", view.goal)
    assert match is not None
    wanted = {"genre": match[1], "director": match[2], "year": match[3], "date": match[3]}
    label = ""
    lines = (
        view.lines if not view.lines[0].startswith("[1]") else [line for pair in zip(view.lines[1::2], view.lines[::2]) for line in pair]
    )
    for line in lines:
        if number := re.match(r"\[(\d+)\]", line):
            element = view.elements[int(number[1]) - 1]
            about = next((text for key, text in wanted.items() if key in f"{label} {element.name}".lower()), None)
            if element.role in FIELDS and about and element.value != about:
                return _type(element, about)
        else:
            label = line
    return _click([e for e in view.elements if e.role not in FIELDS][-1])


@_solves("use-spinner")
def _spinner(view: View) -> ToolCall | None:
    """The field takes no typing, only its two arrows."""
    missing = int(re.findall(r"-?\d+", view.goal)[0]) - int(view.of("textbox")[0].value or 0)
    up, down = view.of("link")
    return _click(up if missing > 0 else down) if missing else _button(view)


@_solves("tic-tac-toe")
def _tic_tac_toe(view: View) -> ToolCall | None:
    """The best move against an opponent who plays at random, by looking at every way the game may go on."""
    board = "".join({"mark-x": "X", "mark-o": "O"}.get(element.name, " ") for element in view.elements[:9])
    moves = [i for i, mark in enumerate(board) if mark == " "]
    return _click(view.elements[max(moves, key=lambda i: _chances(board[:i] + "X" + board[i + 1 :], "O"))]) if moves else None


_ROWS = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


@functools.cache
def _chances(board: str, turn: str) -> float:
    """How likely X wins from here, X playing its best and O at random."""
    for mark, worth in (("X", 1.0), ("O", 0.0)):
        if any(all(board[i] == mark for i in row) for row in _ROWS):
            return worth
    other = "O" if turn == "X" else "X"
    next_ones = [_chances(board[:i] + turn + board[i + 1 :], other) for i, mark in enumerate(board) if mark == " "]
    if not next_ones:
        return 0.0
    return max(next_ones) if turn == "X" else sum(next_ones) / len(next_ones)
