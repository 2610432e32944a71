"""Tools from typed functions: schemas, what a wrong call is told, coroutines, deadlines."""

import asyncio
import random
import warnings
from typing import Annotated, Literal, Optional

import pytest
from pydantic import BaseModel, Field

from whet.envs.base import Action, Env, Step
from whet.errors import ConfigError, EnvError
from whet.tools import tool
from whet.tools.function import describe, is_tool, to_text
from whet.types import Task, ToolCall


class Point(BaseModel):
    x: int
    y: int = 0


def properties(function):
    return describe(function).parameters["properties"]


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (Literal["red", "blue"], {"type": "string", "enum": ["red", "blue"]}),
        (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}),  # noqa: UP045
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (Annotated[int, Field(ge=1, le=6)], {"type": "integer", "minimum": 1, "maximum": 6}),
    ],
)
def test_schema_of_a_type(annotation, schema):
    def function(value):
        "Use a value."

    function.__annotations__["value"] = annotation
    described = describe(function)
    assert described.parameters == {"type": "object", "properties": {"value": schema}, "required": ["value"]}


def test_schema_of_a_model():
    def move(to: Point) -> str:
        "Move."

    parameters = describe(move).parameters
    assert parameters["properties"]["to"] == {"$ref": "#/$defs/Point"}
    assert parameters["$defs"]["Point"]["properties"]["x"]["type"] == "integer"
    checked = describe(move).check({"to": {"x": "3"}})
    assert checked == {"to": Point(x=3, y=0)}


def test_defaults_are_optional_and_applied():
    def look(where: str = "here", times: int = 2) -> str:
        "Look."

    described = describe(look)
    assert "required" not in described.parameters
    assert described.parameters["properties"]["times"] == {"type": "integer", "default": 2}
    assert described.check({}) == {"where": "here", "times": 2}
    assert described.check({"times": "5"}) == {"where": "here", "times": 5}


def test_docstring_describes_tool_and_arguments():
    def ship(item: str, days: int = 3) -> str:
        """Send an item
        to the customer.

        This paragraph is for programmers.

        Args:
            item: What to send,
            days (int): how long it may take.

        Returns:
            nothing: of interest.
        """

    described = describe(ship)
    assert described.description == "Send an item to the customer."
    assert described.parameters["properties"]["item"]["description"] == "What to send,"
    assert described.parameters["properties"]["days"]["description"] == "how long it may take."
    assert described.schema()["function"]["name"] == "ship"
    assert describe(lambda: None).description == ""


def test_functions_that_cannot_be_tools():
    def untyped(item) -> str:
        "Take."

    with pytest.raises(ConfigError, match="argument 'item' of tool 'untyped' has no type; annotate it, such as `item: str`"):
        describe(untyped)

    def many(*items: str) -> str:
        "Take."

    with pytest.raises(ConfigError, match=r"tool 'many' takes \*items"):
        describe(many)

    def unknown(item: "NoSuchType") -> str:  # noqa: F821
        "Take."

    with pytest.raises(ConfigError, match=r"tool 'unknown'.*NoSuchType"):
        describe(unknown)

    def odd(item: asyncio.Future) -> str:
        "Take."

    with pytest.raises(ConfigError, match=r"tool 'odd'.*Future"):
        describe(odd)


def test_names_that_pydantic_keeps_for_itself():
    def save(copy: bool, json: str, schema: int = 1, model_name: str = "y") -> str:
        "Save."

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        described = describe(save)
    assert described.check({"copy": True, "json": "x"}) == {"copy": True, "json": "x", "schema": 1, "model_name": "y"}

    def hide(_secret: str) -> str:
        "Hide."

    with pytest.raises(ConfigError, match="argument '_secret' of tool 'hide' begins with an underscore"):
        describe(hide)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "bad arguments for put: item: Field required"),
        ({"item": "cup", "count": "many"}, "count: Input should be a valid integer"),
        ({"item": 3}, "item: Input should be a valid string"),
        ({"item": "cup", "place": "x"}, "place: Extra inputs are not permitted"),
        ({"item": "cup", "colour": "pink"}, "colour: Input should be 'red' or 'blue'"),
    ],
)
def test_wrong_arguments_are_explained_to_the_model(arguments, message):
    def put(item: str, count: int = 1, colour: Literal["red", "blue"] = "red") -> str:
        "Put."

    with pytest.raises(ValueError, match=message):
        describe(put).check(arguments)


def test_equal_tools_are_equal_by_what_a_model_sees():
    def take(item: str) -> str:
        "Take."

    assert describe(take) == describe(take)
    assert len({describe(take), describe(take)}) == 1


def test_results_become_text():
    assert to_text("as it is") == "as it is"
    assert to_text({"a": [1, None]}) == '{"a": [1, null]}'
    assert to_text("grün") == "grün"
    assert to_text(None) == "null"


class Kitchen(Env):
    tool_timeout = 0.05

    def reset(self, task):
        self.done = []
        return "cook"

    @tool
    def stir(self, times: int = 1) -> str:
        "Stir."
        self.done.append(f"stir {times}")
        return f"stirred {times}"

    @tool
    async def boil(self, seconds: float) -> dict[str, float]:
        "Boil."
        await asyncio.sleep(seconds)
        self.done.append("boil")
        return {"boiled": seconds}

    @tool
    async def serve(self) -> str:
        "Serve; ends the episode."
        return self.finish("served", reward=0.5, success=True)

    def helper(self) -> str:
        return "not a tool"


def call(name, error=None, **arguments):
    return ToolCall(name=name, arguments=arguments, error=error, id=f"id_{name}")


def play(*calls, text=""):
    env = Kitchen()
    env.reset(Task(id="k", env="kitchen", split="train"))
    step = env.step(Action(text=text, tool_calls=calls))
    return env, asyncio.run(step) if asyncio.iscoroutine(step) else step


def told(step: Step) -> list[str]:
    return [turn.content for turn in step.observation]


def test_tools_of_an_environment_are_its_marked_methods():
    class Restaurant(Kitchen):
        @tool
        def pay(self, amount: int) -> str:
            "Pay."

        @tool
        def stir(self, slowly: bool) -> str:
            "Stir otherwise."

    assert [t.name for t in Kitchen().tools] == ["stir", "boil", "serve"]
    assert [t.name for t in Restaurant().tools] == ["stir", "boil", "serve", "pay"]
    assert Restaurant().tools[0].description == "Stir otherwise."
    assert is_tool(Kitchen.stir)
    assert not is_tool(Kitchen.helper)


def test_plain_tools_answer_at_once():
    _, step = play(call("stir", times=2), call("stir"))
    assert told(step) == ["stirred 2", "stirred 1"]
    assert [(t.role, t.name, t.call_id) for t in step.observation] == [("tool", "stir", "id_stir")] * 2
    assert (step.reward, step.terminated, step.truncated, step.success) == (0.0, False, False, False)


def test_coroutine_tools_run_in_order_and_end_the_episode():
    env, step = play(call("boil", seconds=0.0), call("stir"), call("serve"), call("stir"))
    assert told(step) == ['{"boiled": 0.0}', "stirred 1", "served"]
    assert env.done == ["boil", "stir 1"]
    assert (step.reward, step.terminated, step.success) == (0.5, True, True)


def test_a_coroutine_tool_that_takes_too_long_is_given_up():
    env, step = play(call("boil", seconds=5.0), call("stir"))
    assert told(step) == ["error: boil did not answer within 0.05 s", "stirred 1"]
    assert env.done == ["stir 1"]


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ((call("bake"),), "error: unknown tool 'bake'. Valid: boil, serve, stir."),
        ((call("stirr"),), "error: unknown tool 'stirr'. Did you mean 'stir'? Valid: boil, serve, stir."),
        ((call("helper"),), "error: unknown tool 'helper'."),
        ((call("reset", task=None),), "error: unknown tool 'reset'."),
        ((call("stir", times="a lot"),), "error: bad arguments for stir: times: Input should be a valid integer"),
        ((call("boil"),), "error: bad arguments for boil: seconds: Field required"),
        ((call("", error="the tool call is not valid JSON"),), "error: the tool call is not valid JSON"),
    ],
)
def test_wrong_calls_come_back_as_observations(calls, expected):
    env, step = play(*calls)
    assert told(step)[0].startswith(expected)
    assert not step.terminated
    assert env.done == []


def test_an_answer_without_a_call_is_told_the_tools():
    _, step = play(text="let me think")
    assert step.observation == "No tool call found. Call one of: stir, boil, serve."


def test_what_a_tool_raises_is_not_hidden():
    class Broken(Env):
        def reset(self, task):
            return ""

        @tool
        def fail(self) -> str:
            "Fail."
            raise RuntimeError("the disk is gone")

    env = Broken()
    env.reset(None)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        env.step(Action(tool_calls=(call("fail"),)))


def test_an_environment_without_tools_and_step_says_so():
    with pytest.raises(EnvError, match="'Empty' has no tools and no step"):
        type("Empty", (Env,), {})().step(Action(text="hello"))
    with pytest.raises(EnvError, match="'Empty' has no reset"):
        type("Empty", (Env,), {})().reset(None)


def test_hooks_default_to_nothing():
    env = Kitchen()
    assert env.expert(random.Random(0)) is None
    assert env.random_action(random.Random(0)) is None
    assert env.reflect(()) is None


# -- docstrings ----------------------------------------------------------------------------------------------------------


def google(item: str, days: int = 3) -> str:
    """Send an item
    to the customer.

    This is for programmers.

    Args:
        item: What to send,
            and from where:
            the warehouse.
        days (int, optional): how long it may take.

    Returns:
        item: of no interest here.
    """


def numpy_style(item: str, days: int = 3) -> str:
    """Send an item
    to the customer.

    This is for programmers.

    Parameters
    ----------
    item : str
        What to send,
        and from where:
        the warehouse.
    days : int, optional
        how long it may take.

    Returns
    -------
    item
        of no interest here.
    """


def sphinx(item: str, days: int = 3) -> str:
    """Send an item
    to the customer.

    This is for programmers.

    :param str item: What to send,
        and from where:
        the warehouse.
    :param days: how long it may take.
    :returns: item: of no interest here.
    """


@pytest.mark.parametrize("function", [google, numpy_style, sphinx])
def test_docstrings_of_three_styles_say_the_same(function):
    described = describe(function)
    assert described.description == "Send an item to the customer."
    told = {name: spec.get("description") for name, spec in described.parameters["properties"].items()}
    assert told == {"item": "What to send, and from where: the warehouse.", "days": "how long it may take."}


def test_docstrings_that_begin_with_their_arguments_or_share_a_line():
    def move(x: int, y: int, how: str) -> str:
        """
        Parameters
        ----------
        x, y : int
            Where to.
        how
            In what manner.
        """

    described = describe(move)
    assert described.description == ""
    told = [spec["description"] for spec in described.parameters["properties"].values()]
    assert told == ["Where to.", "Where to.", "In what manner."]

    def note(ratio: str) -> str:
        "Note: this is prose, and so is Args: here."

    assert describe(note).description == "Note: this is prose, and so is Args: here."


# -- schemas -------------------------------------------------------------------------------------------------------------


class Place(BaseModel):
    """Somewhere."""

    title: str = Field(description="Its name.")
    at: Point


class Chain(BaseModel):
    next: Optional["Chain"] = None


def travel(to: Place, via: list[Place], hurry: bool = False, note: str | None = None) -> str:
    """Go there.

    Args:
        hurry: whether to run
    """


POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer", "default": 0}}, "required": ["x"]}
PLACE = {
    "type": "object",
    "description": "Somewhere.",
    "properties": {"title": {"type": "string", "description": "Its name."}, "at": POINT},
    "required": ["title", "at"],
}


def test_nested_models_keep_their_definitions_without_titles():
    parameters = describe(travel).parameters
    assert parameters["properties"]["to"] == {"$ref": "#/$defs/Place"}
    assert parameters["$defs"]["Place"]["properties"] == {
        "title": {"type": "string", "description": "Its name."},
        "at": {"$ref": "#/$defs/Point"},
    }, "a field called title stays, the titles that pydantic makes up go"
    assert parameters["$defs"]["Point"] == POINT


def test_a_flat_schema_has_no_references():
    flat = describe(travel).styled("flat")
    assert flat.parameters == {
        "type": "object",
        "properties": {
            "to": PLACE,
            "via": {"type": "array", "items": PLACE},
            "hurry": {"type": "boolean", "default": False, "description": "whether to run"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        },
        "required": ["to", "via"],
    }
    assert "strict" not in flat.schema()["function"]
    checked = flat.check({"to": {"title": "inn", "at": {"x": 1}}, "via": []})
    assert checked == {"to": Place(title="inn", at=Point(x=1)), "via": [], "hurry": False, "note": None}


def test_a_strict_schema_demands_everything_and_allows_nothing_else():
    strict = describe(travel).styled("strict")
    assert strict.schema()["function"]["strict"] is True
    parameters = strict.parameters
    assert parameters["required"] == ["to", "via", "hurry", "note"]
    assert parameters["additionalProperties"] is False
    assert parameters["properties"]["hurry"] == {"type": "boolean", "description": "whether to run Default: False."}
    assert parameters["properties"]["note"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    point = parameters["properties"]["via"]["items"]["properties"]["at"]
    assert point == {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "integer", "description": "Default: 0."}},
        "required": ["x", "y"],
        "additionalProperties": False,
    }

    def empty() -> str:
        "Nothing to say."

    assert describe(empty).styled("strict").parameters == {
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    }


def test_schemas_that_have_no_such_form():
    def follow(chain: Chain) -> str:
        "Follow."

    with pytest.raises(ConfigError, match="tool 'follow' cannot be written flat: 'Chain' contains itself"):
        describe(follow).styled("flat")

    def weigh(weights: dict[str, float]) -> str:
        "Weigh."

    with pytest.raises(ConfigError, match="tool 'weigh' cannot be strict: an argument is a dict with any keys"):
        describe(weigh).styled("strict")

    def pair(both: tuple[int, str]) -> str:
        "Pair."

    with pytest.raises(ConfigError, match="tool 'pair' cannot be strict: its schema needs 'prefixItems'"):
        describe(pair).styled("strict")
    with pytest.raises(ConfigError, match="tool_schema is 'curly'"):
        describe(pair).styled("curly")


def test_an_environment_chooses_how_its_tools_are_described():
    class Trip(Env):
        tool_schema = "flat"

        @tool
        def go(self, to: Point) -> str:
            "Go."

    assert Trip().tools[0].parameters["properties"]["to"] == POINT
    trip = Trip()
    trip.tool_schema = "strict"
    assert trip.tools[0].strict
    assert not Trip().tools[0].strict


def test_options_of_a_tool():
    class Library(Env):
        @tool(pure=True, max_output=100)
        def read(self, page: int) -> str:
            "Read."

        @tool(pure="global")
        def define(self, word: str) -> str:
            "Define."

    assert [(t.name, t.pure, t.max_output) for t in Library().tools] == [("read", True, 100), ("define", "global", None)]
    with pytest.raises(ConfigError, match="pure is 'always'; expected True, False or 'global'"):
        tool(pure="always")
    with pytest.raises(ConfigError, match="max_output is 0"):
        tool(max_output=0)
