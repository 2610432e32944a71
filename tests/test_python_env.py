"""Python: problems whose answers two algorithms agree on, splits that share none, an interpreter that is confined, GSM8K's format."""

import json
import random
from fractions import Fraction

import pytest

from whet.envs import Action, EnvFactory, check_env, load_env
from whet.envs import python as module
from whet.envs.problems import KINDS, make, split_of
from whet.envs.python import Python, number, same
from whet.errors import ConfigError, EnvError
from whet.tools.sandbox import SandboxUnavailable, process
from whet.types import SPLITS, ToolCall

confining = pytest.mark.skipif(bool(process.offers()[1]), reason="this machine cannot confine a process")


def call(name, **arguments):
    return Action(tool_calls=(ToolCall(name=name, arguments=arguments, id="call_0"),))


def said(step):
    return step.observation[0].content


@pytest.fixture
def env():
    env = Python()
    env.reset(env.tasks("train", 1)[0])
    return env


@pytest.mark.slow
@confining
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_each_kind_gives_its_answer(kind):
    """The answer beside the problem comes from another algorithm than the code, which runs where a model's would."""
    rng = random.Random(kind)
    made = [KINDS[kind](rng) for _ in range(12)]
    assert len({text for text, _, _ in made}) > 8
    box = module._sandbox("zygote", ())
    for text, code, answer in made[:6]:
        result = box.run(code)
        assert (result.stdout, result.stderr) == (f"{answer}\n", ""), text


def test_answers_worked_out_by_hand():
    class Fixed(random.Random):
        """Draws what it is told, in order."""

        def __init__(self, *values):
            super().__init__(0)
            self.values = list(values)

        def randint(self, low, high):
            return self.values.pop(0)

        def sample(self, population, k):
            return self.values.pop(0)

        def choice(self, population):
            return self.values.pop(0)

    # 12 + 15 + 16 + 18 + 20
    assert KINDS["multiples"](Fixed(10, 20, [3, 4]))[2] == 81
    # 2^15 = 32768
    assert KINDS["digits_of_power"](Fixed(2, 15))[2] == 26
    # 11, 13, 17, 19, 23, 29
    assert KINDS["primes_between"](Fixed(10, 20))[2] == 6
    assert KINDS["prime_after"](Fixed(10, 3))[2] == 17
    # 3^4 = 81 = 8 * 10 + 1
    assert KINDS["last_digits"](Fixed(3, 4, 10))[2] == 1
    # six ways through a square of 2 by 2, of which four pass its middle
    assert KINDS["lattice_paths"](Fixed(2, 2, [(1, 1), (0, 2), (2, 0)]))[2] == 0
    assert KINDS["lattice_paths"](Fixed(2, 2, [(1, 1)]))[2] == 2
    # 5; 2+2+1; 2+1+1+1; 1+1+1+1+1
    assert KINDS["coins"](Fixed(3, [1, 2, 5], 5))[2] == 4
    # of 3 objects, 3 permutations leave exactly one in place
    assert KINDS["fixed_points"](Fixed(3, 1))[2] == 3
    # 1 + 2 + 3 + 4 + 6 + 12
    assert KINDS["divisors"](Fixed(1, 12))[2] == 28
    # gcd with 6 of 1..6: 1 2 3 2 1 6
    assert KINDS["greatest_common"](Fixed(6, 1, 5))[2] == 15
    # in base 2 up to 9: 1 11 101 111 1001
    assert KINDS["palindromes"](Fixed(2, 1, 8))[2] == 5
    # two dice, sum 7
    assert KINDS["dice"](Fixed(2, 6, 7))[2] == 6
    # 7 = 5+1+1 = 4+2+1 = 3+3+1 = 3+2+2
    assert KINDS["partitions"](Fixed(7, 3))[2] == 4
    # 1 10 11 100 101
    assert KINDS["digit_base"](Fixed(2, 5))[2] == 7
    # Fibonacci: 0 1 1 2 3 5 8 13 21 34 55
    assert KINDS["recurrence"](Fixed(0, 1, 1, 1, 10, 1000))[2] == 55
    # Friday the 13th: February, March and November of 2026, none before in its year
    assert KINDS["weekdays"](Fixed(2026, 0, 13, "Friday"))[2] == 3


@pytest.mark.slow
def test_no_problem_is_in_two_splits():
    texts = {split: {make(task.seed, split, tuple(KINDS)).text for task in Python().tasks(split, 300)} for split in SPLITS}
    for split in SPLITS:
        assert len(texts[split]) > 290
        assert {split_of(text) for text in texts[split]} == {split}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["dev"]
    everything = [split_of(KINDS["multiples"](random.Random(i))[0]) for i in range(2000)]
    assert 0.77 < everything.count("train") / 2000 < 0.83


@confining
@pytest.mark.parametrize("spec", ["python", "python:kinds=dice+caesar,seconds=2", "python:sandbox=process"])
def test_the_contract_is_kept(spec):
    report = check_env(spec, tasks=4)
    assert report.ok, report
    assert not report.warnings, report
    assert report.expert_success == 1.0


@confining
def test_the_expert_computes():
    for task in Python().tasks("dev", 8):
        env = Python()
        env.reset(task)
        first = env.expert(random.Random(0))
        assert first.tool_calls[0].name == "python"
        printed = said(env.step(first))
        second = env.expert(random.Random(0))
        assert second == call("answer", value=printed), "what it answers is what its code printed"
        step = env.step(second)
        assert (step.terminated, step.success, step.reward) == (True, True, 1.0)


@confining
def test_what_the_model_sees(env):
    assert said(env.step(call("python", code="print(6 * 7)"))) == "42"
    assert said(env.step(call("python", code="x = 1"))) == "(nothing was printed)"
    assert "NameError: name 'x' is not defined" in said(env.step(call("python", code="print(x)"))), "nothing is kept"
    shown = said(env.step(call("python", code="print('begun'); 1 / 0")))
    assert shown.startswith("error: begun\nTraceback")
    assert shown.endswith("ZeroDivisionError: division by zero")
    long = said(env.step(call("python", code="print('a' * 5000 + 'z')")))
    assert len(long) < 1100
    assert "[4002 characters left out]" in long
    assert long.endswith("az")
    assert "PermissionError" in said(env.step(call("python", code="open('/etc/passwd')")))
    assert said(env.step(call("python", code="import sys; sys.exit(3)"))) == "error: the code ended with exit status 3"


@confining
def test_code_that_does_not_end():
    env = Python(seconds=0.3, megabytes=128)
    env.reset(env.tasks("train", 1)[0])
    assert said(env.step(call("python", code="print('begun')\nwhile True: pass"))) == "error: the code was stopped after 0.3 s\nbegun"
    assert "MemoryError" in said(env.step(call("python", code="x = bytearray(1 << 30)")))
    assert said(env.step(call("python", code="print(1)"))) == "1"


def test_wrong_answers(env):
    step = env.step(call("answer", value="-1"))
    assert (step.terminated, step.success, step.reward) == (True, False, 0.0)


@pytest.mark.parametrize(
    ("given", "gold", "right"),
    [("42", "42", True), (" 42.0 ", "42", True), ("1,234", "1234", True), ("$12.50", "12.5", True), ("3/4", "0.75", True),
     ("40%", "40", True), ("-7", "-7", True), ("42.", "42", True), ("abc", "abc", True), ("abc ", "abc", True), ("ABC", "abc", False),
     ("41.999999", "42", False), ("42 apples", "42", False), ("", "42", False), ("1e3", "1000", False), ("1/0", "0", False),
     ("9" * 2000, "9", False), ("nan", "0", False)],
)  # fmt: skip
def test_answers_are_compared_as_numbers(given, gold, right):
    assert same(given, gold) is right


def test_numbers():
    assert number("12,345.50") == Fraction(24691, 2)
    assert number("half") is None


def test_a_number_may_be_given_as_one(env):
    env._problem = make(1, "train", ("dice",))
    step = env.step(call("answer", value=int(env._problem.answer)))
    assert step.success


def test_a_broken_sandbox_is_no_answer(env, monkeypatch):
    class Broken:
        def run(self, *a, **k):
            raise SandboxUnavailable("out of memory")

    monkeypatch.setattr(module, "_sandbox", lambda *a: Broken())
    with pytest.raises(EnvError, match="the sandbox failed: out of memory"):
        env.step(call("python", code="print(1)"))


QUESTIONS = [
    {
        "question": f"A shop has {n} boxes with {m} pens each. It sells half of the pens. How many are left?",
        "answer": f"It has {n} * {m} = <<{n}*{m}={n * m}>>{n * m} pens.\nHalf are left: <<{n * m}/2={n * m // 2}>>.\n#### {n * m // 2:,}",
    }
    for n in range(2, 42)
    for m in (20, 300)
]  # fmt: skip


def write(path, questions):
    path.write_text("".join(json.dumps(q) + "\n" for q in questions))


@confining
def test_a_file_in_the_format_of_gsm8k(tmp_path):
    write(tmp_path / "all.jsonl", [*QUESTIONS, QUESTIONS[0]])
    env = load_env(f"python:data={tmp_path / 'all.jsonl'}")
    tasks = {split: env.tasks(split, 1000) for split in SPLITS}
    assert sum(map(len, tasks.values())) == len(QUESTIONS), "a question that is there twice is one"
    assert min(map(len, tasks.values())) >= 2
    for task in tasks["test"]:
        episode = env()
        episode.reset(task)
        run = episode.step(episode.expert(random.Random(0)))
        assert said(run).splitlines()[-1].removesuffix(".0") == episode._problem.answer.replace(",", "")
        assert episode.step(episode.expert(random.Random(0))).success
    assert env.tasks("train", 3, start=2) == env.tasks("train", 5)[2:]


def test_a_directory_keeps_the_official_splits(tmp_path):
    write(tmp_path / "train.jsonl", QUESTIONS[:50])
    write(tmp_path / "test.jsonl", QUESTIONS[50:])
    env = EnvFactory(Python, {"data": str(tmp_path)})
    test = {json.loads(task.data["line"])["question"] for task in env.tasks("test", 1000)}
    assert test == {q["question"] for q in QUESTIONS[50:]}
    assert len(env.tasks("train", 1000)) + len(env.tasks("dev", 1000)) == 50


def test_options_that_cannot_work(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown kind of problem 'dise'. Did you mean 'dice'"):
        Python(kinds="dise")
    with pytest.raises(ConfigError, match="seconds is 50"):
        Python(seconds=50)
    with pytest.raises(ConfigError, match="'monty' has no packages"):
        Python(sandbox="monty", packages="numpy")
    with pytest.raises(ConfigError, match="does not exist; expected a"):
        Python(data=str(tmp_path / "none.jsonl")).tasks("train", 1)
    for line, told in (
        ("{}", "expected a JSON object"),
        ('{"question": "a", "answer": "b"}', "does not end in a line such as"),
        ("x", "line 1: Expecting"),
    ):
        (tmp_path / "bad.jsonl").write_text(line)
        module._read.cache_clear()
        with pytest.raises(ConfigError, match=told):
            Python(data=str(tmp_path / "bad.jsonl")).tasks("train", 1)


def test_calculations_on_file_are_only_arithmetic():
    line = json.dumps({"question": "q", "answer": "a <<1+2=3>> b <<__import__('os')=1>>\n#### 3"})
    assert module._parsed(line).code == "print(1+2)\n"
