"""BFCL: a model's text is executed in the sandbox alone, and only where it is a plain call; limits are whose they should be."""

import json

import pytest

from whet.envs import Action
from whet.errors import EnvError, MissingExtra

try:
    from whet.envs.bfcl import execution, package, worker
except MissingExtra as error:
    pytest.skip(str(error), allow_module_level=True)

from bfcl_reference import answer, begin, called, needs_sandbox

pytestmark = pytest.mark.slow

METHODS = {"ls": "x_instance", "cd": "x_instance"}


@pytest.mark.parametrize(
    "text", ["x_instance.ls()", "x_instance.cd(folder='a')", "x_instance.cd('a')", "x_instance.cd(folder=x_instance.ls(a=[1, {'b': -2}]))"]
)
def test_plain_calls_are_let_through(text):
    worker.check_call(text, METHODS)


@pytest.mark.parametrize(
    "text",
    [
        *("print(x=1)", "__import__('os').system('id')", " __import__('os').system('id')", "x_instance._load_scenario(scenario={})"),
        *("x_instance.ls().__class__", "x_instance.cd(folder=print())", "x_instance.cd(folder=y)", "x_instance.cd(**{'folder': 1})"),
        *(
            "x_instance.cd(*[1])",
            "(lambda: 1)()",
            "x_instance.ls() or 1",
            "[x_instance.ls()]",
            "x_instance.ls(a=1, a-b=2)",
            "(",
            "",
            "y_instance.ls()",
        ),
        *(
            "x_instance.cd(folder=f'{1}')",
            "x_instance.cd(folder=(a := 1))",
            "x_instance.cd(folder=[i for i in 'a'])",
            "x_instance",
            "\x00",
            "(" * 500,
        ),
    ],
)
def test_everything_else_is_refused(text):
    with pytest.raises(worker.Refused):
        worker.check_call(text, METHODS)


@needs_sandbox
def test_code_in_names_and_arguments_is_never_run():
    attacks = [
        called("__import__('os').system('id') or pwd"),
        called("print", x=1),
        called("pwd", **{"x=1) or __import__('os').getpid(": 2}),
        called("eval", source="1"),
        called("importlib.import_module", name="os"),
        called("cd", folder="document') or exit("),
    ]
    for attack in attacks:
        env, _ = begin("multi_turn_base")
        (turn,) = answer(env, attack).observation
        assert "rror" in turn.content, turn.content
        assert json.loads(answer(env, called("pwd")).observation[0].content) == {"current_working_directory": "/workspace"}


@needs_sandbox
def test_arithmetic_in_text_is_evaluated_in_the_sandbox_alone():
    assert execution.evaluate("3 * 12") == 36
    for hopeless in ("1 / 0", "__import__('os') + 1", "open('/etc/passwd').read() + ''"):
        with pytest.raises(ValueError, match="has no value"):
            execution.evaluate(hopeless)
    env, _ = begin("simple_python", 1, mode="prompting")
    assert answer(env, Action(text="[math.factorial(number=2 + 3)]")).success


@needs_sandbox
def test_calls_that_would_never_end_fail_the_conversation():
    number = next(i for i, e in enumerate(package.entries("multi_turn_base").values()) if "MathAPI" in e["involved_classes"])
    env, _ = begin("multi_turn_base", number)
    step = answer(env, called("power", base=9, exponent=9**20))
    assert (step.terminated, step.success, step.info["reason"]) == (True, False, "multi_turn:limits")
    assert "(cpu)" in step.info["error"]


@needs_sandbox
def test_a_sandbox_that_fails_is_no_verdict(monkeypatch):
    """What the machine does wrong must never count against the model."""
    monkeypatch.setattr(execution, "TIMEOUT", 0.001)
    env, _ = begin("multi_turn_base")
    with pytest.raises(EnvError, match="overloaded"):
        answer(env, called("pwd"))
    env, _ = begin("simple_python", 1, mode="prompting")
    with pytest.raises(EnvError, match="overloaded"):
        answer(env, Action(text="[math.factorial(number=2 + 3)]"))
