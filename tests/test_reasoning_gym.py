"""reasoning-gym: the package's tasks and scores, answers that may not run as code, splits by seed."""

import random
import warnings

import pytest

warnings.filterwarnings("ignore", category=SyntaxWarning)
package = pytest.importorskip("reasoning_gym", reason="needs the extra 'reasoning-gym'")

from whet.envs import check_env, load_env  # noqa: E402
from whet.envs import reasoning_gym as module  # noqa: E402
from whet.envs.base import Action  # noqa: E402
from whet.envs.reasoning_gym import FORMULAS, SEEDS, WITHOUT_ANSWER, ReasoningGym, plain_formula  # noqa: E402
from whet.errors import ConfigError, EnvError  # noqa: E402
from whet.types import ToolCall  # noqa: E402

NAMES = sorted(set(module.DATASETS) - {"composite"})
QUICK = ("acre", "chain_sum", "countdown", "gsm_symbolic", "list_functions", "n_queens", "spell_backward", "syllogism", "word_sorting")


def test_a_sum_by_hand():
    env = ReasoningGym("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    task = env.tasks("train", 1)[0]
    question = env.reset(task)
    a, operator, b = question.rstrip(" =").split()[-3:]
    total = int(a) + int(b) if operator == "+" else int(a) - int(b)
    right = env.step(Action(text=f" {total}\n"))
    assert (right.reward, right.success, right.terminated) == (1.0, True, True)
    with pytest.raises(EnvError, match="over"):
        env.step(Action(text="1"))
    env = ReasoningGym("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    env.reset(task)
    wrong = env.step(Action(text=str(total + 1)))
    assert (wrong.success, wrong.terminated, wrong.info["gold"]) == (False, True, str(total))
    assert wrong.info["score"] == wrong.reward < 0.5


def scored(name, n):
    """Successes of the stored answers on n test tasks; None where there are none."""
    solved = []
    factory = load_env(f"reasoning_gym:{name}")
    for task in factory.tasks("test", n):
        env = factory()
        env.reset(task)
        action = env.expert(random.Random(0))
        solved.append(None if action is None else env.step(action).success)
    return solved


@pytest.mark.parametrize("name", QUICK)
def test_stored_answers_solve_the_tasks(name):
    assert scored(name, 4) == [True] * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK])
def test_stored_answers_solve_the_tasks_of_every_generator(name):
    assert scored(name, 2) == [None if name in WITHOUT_ANSWER else True] * 2


@pytest.mark.parametrize("name", ["chain_sum", "acre", "gsm_symbolic", "list_functions", "pool_matrix", "spell_backward"])
def test_a_task_is_the_packages_item_of_its_seed(name):
    env = ReasoningGym(name)
    task = env.tasks("dev", 1)[0]
    assert SEEDS["dev"][0] <= task.seed < SEEDS["test"][0]
    assert env.reset(task) == env.reset(task)
    if name != "list_functions":  # which draws from the module's generator, too, so that whet seeds that
        assert env.reset(task) == package.create_dataset(name, seed=task.seed, size=1)[0]["question"]


def test_the_state_of_the_modules_generator_is_left_as_it_was():
    random.seed(5)
    expected = random.Random(5).random()
    env = ReasoningGym("list_functions")
    env.reset(env.tasks("train", 1)[0])
    assert random.random() == expected


def test_splits_draw_from_disjoint_seeds():
    seen = [{task.seed for task in ReasoningGym().tasks(split, 300)} for split in SEEDS]
    assert all(len(seeds) == 300 for seeds in seen)
    assert len(set.union(*seen)) == 900
    ranges = [range(first, first + count) for first, count in SEEDS.values()]
    assert all(seed in span for span, seeds in zip(ranges, seen) for seed in seeds)
    assert max(span.stop for span in ranges) <= 2**32


def test_three_ways_to_answer():
    task = ReasoningGym("chain_sum").tasks("train", 1)[0]
    tags = ReasoningGym("chain_sum", answer="tags")
    tags.reset(task)
    gold = tags._entry["answer"]
    assert tags.step(Action(text=f"It is <answer>1</answer>, no: <answer> {gold}\n</answer>.")).success, "the last one counts"
    tags.reset(task)
    tags._over = False
    bare = tags.step(Action(text=gold))
    assert (bare.success, bare.info["answer"]) == (False, None)
    call = ReasoningGym("chain_sum", answer="tool")
    call.reset(task)
    assert [t.name for t in call.tools] == ["answer"]
    assert not call.step(Action(text=gold)).terminated
    step = call.step(Action(tool_calls=(ToolCall(name="answer", arguments={"text": gold}),)))
    assert (step.success, step.info["gold"]) == (True, gold)


ATTACKS = {
    "string_insertion": "[open({path!r}, 'w').write('x')]",
    "spiral_matrix": "[open({path!r}, 'w').write('x')]",
    "binary_matrix": "[[open({path!r}, 'w').write('x')]]",
    "n_queens": "[[open({path!r}, 'w').write('x')]]",
    "countdown": "open({path!r}, 'w').write('24')",
    "puzzle24": "open({path!r}, 'w').write('24')",
    "polynomial_multiplication": "open({path!r}, 'w').write('x')",
    "simple_integration": "x + open({path!r}, 'w').write('x')",
    "intermediate_integration": "().__class__.__base__.__subclasses__() or open({path!r}, 'w').write('x')",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_answers_do_not_run_as_code(name, tmp_path):
    """Each of these checkers evaluates the answer; as the package comes, each of these files is written."""
    path = tmp_path / "written"
    env = ReasoningGym(name)
    env.reset(env.tasks("train", 1)[0])
    step = env.step(Action(text=ATTACKS[name].format(path=str(path))))
    assert not step.success
    assert step.reward <= 0.05
    assert not path.exists()


def test_lists_are_still_understood_where_the_checker_takes_them():
    env = ReasoningGym("spiral_matrix")
    env.reset(env.tasks("train", 1)[0])
    numbers = [int(n) for n in env._entry["answer"].split()]
    assert env.step(Action(text=str(numbers))).reward == pytest.approx(0.1), "the package's own score for a list"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("(3 + 4) * 5 - 12 / 6", True),
        ("2**10", True),
        ("9**9**9", False),
        ("9**(9*9*9*9*9*9)", False),
        ("((9**64)**64)**64", False),
        ("999999999999**9999", False),
        ("x**2/2 + 3*exp(2*x) - sin(x)*cos(x) + C", True),
        ("x**(3/2)", True),
        ("exp(exp(exp(x)))", False),
        ("x.__class__", False),
        ("__import__('os')", False),
        ("lambda: 1", False),
        ("N(pi)", False),
        ("factorial(9)", False),
        ("x if x else y", False),
        ("[1, 2]", False),
        ("sin", True),
        ("-3*Integral(x*sin(3*x), x) + C", True),  # so the package stores what sympy could not integrate
        ("Integral(x, (x, 0, 9))", False),
        ("1" * 30, False),
        ("", False),
    ],
)
def test_what_a_plain_formula_is(text, plain):
    assert plain_formula(text, FORMULAS["simple_integration"]) is plain
    if "x" in text:
        assert not plain_formula(text, FORMULAS["countdown"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_stored_formulas_are_plain(name):
    env = ReasoningGym(name)
    for task in env.tasks("train", 15):
        env.reset(task)
        assert plain_formula(env._entry["answer"], FORMULAS[name])


def test_checking_a_formula_ends(monkeypatch):
    monkeypatch.setattr(module, "CALLS", 2000)
    env = ReasoningGym("simple_integration")
    env.reset(env.tasks("train", 1)[0])
    step = env.step(Action(text="sin(x)**9*cos(x)**9*exp(x)"))
    assert (step.success, step.info["problem"]) == (False, "checking the formula took too long")


def test_an_answer_that_its_checker_cannot_read_is_wrong_and_says_so():
    env = ReasoningGym("prime_factorization")
    env.reset(env.tasks("train", 1)[0])
    step = env.step(Action(text="two times three"))
    assert step.reward == 0.0
    assert step.info["problem"].startswith("ValueError: invalid literal")


@pytest.mark.parametrize(
    ("dataset", "options", "text"),
    [
        ("chain_summ", {}, "Did you mean 'chain_sum'"),
        ("composite", {}, "environment 'mix'"),
        ("chain_sum", {"max_term": 3}, "Did you mean 'max_terms'"),
        ("chain_sum", {"seed": 3}, "no option 'seed'"),
        ("chain_sum", {"min_terms": 5, "max_terms": 2}, "refuses"),
    ],
)
def test_impossible_options_are_refused(dataset, options, text):
    with pytest.raises(ConfigError, match=text):
        ReasoningGym(dataset, **options)


def test_options_reach_the_generator_and_the_tasks_names():
    factory = load_env("reasoning_gym:dataset=word_sorting,min_words=3,max_words=3,answer=tool")
    task = factory.tasks("train", 1)[0]
    assert task.id == "reasoning_gym/word_sorting,max_words=3,min_words=3/train/0"
    env = factory()
    env.reset(task)
    assert len(env._entry["answer"].split(",")) == 3
    with pytest.raises(EnvError, match="plays 'chain_sum'"):
        ReasoningGym("chain_sum").reset(task)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["reasoning_gym", "reasoning_gym:basic_arithmetic,answer=tags", "reasoning_gym:word_sorting,answer=tool"])
def test_the_environment_keeps_the_contract(spec):
    report = check_env(spec, tasks=5)
    assert not report.problems, report
    assert report.expert_success == 1.0
