"""The command line: what it prints, its exit codes, and whole runs and comparisons with a method that needs no torch."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from whet.cli import COMMANDS, main
from whet.config import configure, options, parse_overrides
from whet.errors import ConfigError
from whet.evals import Comparison, Evaluation
from whet.runs import Run

# Imported by every Python process that has its directory on PYTHONPATH: a method and a policy whose only weight is the
# probability of doing right, so that whole comparisons take seconds and the pool, the resuming and the table are real.
_TOYS = '''
import json, os, time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

@dataclass(frozen=True)
class Config:
    """Of the toy method."""
    steps: int = 3
    """How often to practise."""
    gain: float = 0.2
    sleep: float = 0.0
    lr: float = 1e-6

class Skill:
    actor = "self"
    n_parameters = int(os.environ.get("TOY_PARAMETERS", 10**9))
    def __init__(self, p):
        self.p, self.version = p, f"skill-{p:.2f}"
    def observe(self, turns, new, tools):
        return tuple(new)
    async def generate(self, request):
        import random
        from whet.types import Cost, Turn
        right = random.Random(request.seed).random() < self.p
        return Turn(role="assistant", content="yes" if right else "no", finish="stop", cost=Cost(sampled_tokens=2))
    def release(self, session):
        pass
    def save(self, directory):
        Path(directory).mkdir(exist_ok=True)
        (Path(directory) / "skill.json").write_text(json.dumps(self.p))

def practise(agent, data, *, env, run, cfg):
    from whet.rollout import rollout
    from whet.runs import JsonState
    state = JsonState(p=agent.policy.p)
    if cfg.gain < 0:
        raise ArithmeticError("the gain is negative")
    for step in run.steps(cfg.steps, state, name="practice", every=1):
        agent = agent.replace(policy=Skill(state["p"]))
        episodes = rollout(agent, env, data.train[:4], seed=run.seed("practice", step), run=run, tag="practice")
        time.sleep(cfg.sleep)
        state["p"] = min(1.0, state["p"] + cfg.gain)
        run.log(step, success=sum(e.success for e in episodes) / len(episodes))
    return agent.replace(policy=Skill(state["p"]), memory={"": ("practised",)})

def install():
    from whet import methods, policies
    made = {
        name: methods.Method(
            name=name, function=practise, config=Config, title="Toy", paper="none", needs=("train",), parts=methods.Parts(source="self")
        )
        for name in ("sft", "grpo")
    }
    load = policies.load_policy
    def get(name):
        from whet.errors import ConfigError, did_you_mean
        if name not in made:
            raise ConfigError(f"unknown method {name!r}. {did_you_mean(name, made)}")
        return made[name]
    methods.get, methods.names = get, lambda: sorted(made)
    def load_policy(spec, **options):
        if spec == "weak":
            return Skill(0.1)
        if (Path(spec) / "skill.json").exists():
            return Skill(json.loads((Path(spec) / "skill.json").read_text()))
        return load(spec, **options)
    policies.load_policy = load_policy
    return methods, policies, get, load_policy
'''

_ENV = """
from whet.envs.base import Env, Step

class Coin(Env):
    def __init__(self, fair: bool = True):
        self.fair = fair
    def reset(self, task):
        return "say yes"
    def step(self, action):
        return Step(reward=float(action.text == "yes"), terminated=True, success=action.text == "yes")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an environment in a file, and the toys installed here and in child processes."""
    (tmp_path / "coin.py").write_text(_ENV)
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "whet_toys.py").write_text(_TOYS)
    (hook / "sitecustomize.py").write_text("import whet_toys\nwhet_toys.install()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])]))
    spec = importlib.util.spec_from_file_location("whet_toys", hook / "whet_toys.py")
    assert spec is not None
    assert spec.loader is not None
    toys = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "whet_toys", toys)
    spec.loader.exec_module(toys)
    from whet import methods, policies

    real = [(methods, "get"), (methods, "names"), (policies, "load_policy")]
    before = [(module, name, getattr(module, name, None)) for module, name in real]
    toys.install()
    yield tmp_path
    for module, name, value in before:
        if value is None:
            delattr(module, name)
        else:
            setattr(module, name, value)


COIN = ("--env", "coin.py:Coin")


def fails(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 1) -> str:
    """The one line that a failing command prints."""
    assert main(argv) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    first = captured.err.splitlines()[0]
    assert first.startswith("error: ")
    return first


# -- messages ------------------------------------------------------------------------------------------------------------


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert all(main([name, "--help"]) == 0 for name in COMMANDS)


def test_typos_get_the_nearest_valid_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'compare'" in fails(capsys, "comparre", code=2)
    assert "Did you mean '--seed'" in fails(capsys, "run", "sft", *COIN, "--sed", "3", code=2)
    assert "unknown method 'grop'. Did you mean 'grpo'" in fails(capsys, "run", "grop", *COIN, "--model", "weak")
    assert "unknown environment 'serch'. Did you mean 'search'" in fails(capsys, "run", "sft", "--env", "serch")
    assert "Did you mean 'steps'" in fails(capsys, "run", "sft", *COIN, "--model", "weak", "stepps=3")
    assert "unknown method 'grop'" in fails(capsys, "methods", "grop")
    assert "Did you mean 'search'" in fails(capsys, "envs", "serch")
    assert "Did you mean 'fair'" in fails(capsys, "eval", "--env", "coin.py:Coin:fare=1", "--model", "weak")
    assert not (place / "runs").exists()


def test_wrong_values_are_refused_before_anything_is_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "run", "sft", *COIN, "--model", "weak", "steps=many")
    assert "option 'steps' of method 'sft' is 'many'; expected int" in message
    assert "'steps' is not an override" in fails(capsys, "run", "sft", *COIN, "--model", "weak", "steps")
    assert "expected an integer of at least 0" in fails(capsys, "run", "sft", *COIN, "--seed", "-1", code=2)
    assert "expected an integer of at least 1" in fails(capsys, "compare", *COIN, "--recipes", "sft", "--out", "o", "--seeds", "0", code=2)
    assert "--env is missing" in fails(capsys, "run", "sft", code=2)
    assert "no such directory: './nowhere'" in fails(capsys, "run", "sft", *COIN, "--model", "./nowhere")
    assert sorted(os.listdir(place)) == ["coin.py", "hook"]


def test_reports_and_agents_of_nothing_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "neither a run nor a comparison" in fails(capsys, "report", str(place))
    Run.create(place / "half", {"seed": 0}, quiet=True).close()
    assert "has no finished agent yet" in fails(capsys, "eval", *COIN, "--model", "half")
    (place / "half" / "agent.json").write_text("{}")
    assert "cannot be read as an agent" in fails(capsys, "eval", *COIN, "--model", "half")


def test_an_unexpected_error_is_one_line_and_leaves_the_run_intact(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "run", "sft", *COIN, "--model", "weak", "--out", "r", "--quiet", "--test-tasks", "4", "gain=-1")
    assert "ArithmeticError: the gain is negative" in message
    assert Run.open("r").status == "failed"
    assert len(list(Run.open("r").load_episodes("eval/before"))) == 4


_BROKEN = """
from whet.envs.base import Env

class Broken(Env):
    def reset(self, task):
        raise RuntimeError("no disk in drive A")
"""


def test_an_environment_that_raises_is_told_in_one_line_with_its_place(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "broken.py").write_text(_BROKEN)
    assert main(["run", "sft", "--env", "broken.py:Broken", *SMALL, "--out", "r"]) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert "reset: RuntimeError: no disk in drive A" in message
    assert message.endswith("broken.py, line 6)")
    assert Run.open("r").status == "failed"


def test_debug_shows_the_traceback(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_DEBUG", "1")
    with pytest.raises(ConfigError):
        main(["run", "grop", *COIN])


def test_lists(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    assert "steps=3 gain=0.2" in capsys.readouterr().out
    assert main(["methods", "sft"]) == 0
    assert "How often to practise." in capsys.readouterr().out
    assert main(["envs", "search"]) == 0
    assert "hops: str = '1-3'" in capsys.readouterr().out


def test_doctor_looks_at_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("python", "torch", "transformers", "peft", "minigrid", "openai", "base model", "sqlite", "disk", "temp dir"):
        assert f" {name} " in out


def test_importing_whet_and_its_help_is_fast_and_without_torch() -> None:
    code = "import sys, whet.cli, whet.runs, whet.evals, whet.report, whet.config; whet.cli.main(['--help']); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"


# -- runs ----------------------------------------------------------------------------------------------------------------

SMALL = ("--model", "weak", "--test-tasks", "40", "--train-tasks", "8", "--dev-tasks", "4", "--quiet")


def test_run_improves_evaluates_and_writes_everything(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "sft", "steps=3", *COIN, *SMALL, "gain=0.25", "--seed", "5"]) == 0
    out = capsys.readouterr().out
    assert "before" in out
    assert "report.html" in out
    run = Run.open("runs/coin-sft-seed5")
    assert run.status == "done"
    assert run.config["cfg"] == {"steps": 3, "gain": 0.25, "sleep": 0.0, "lr": 1e-6}
    found = {name: Evaluation.from_json(record) for name, record in run.evaluations().items()}
    assert found["before"].success.mean < 0.4 < found["final"].success.mean
    assert found["final"].split == "test"
    assert (run.cost.episodes, run.cost.sampled_tokens) == (12, 24)
    assert len(list(run.load_episodes("practice"))) == 12
    assert (place / "runs/coin-sft-seed5/report.html").exists()
    assert main(["eval", *COIN, "--model", "runs/coin-sft-seed5", "-n", "12", "--out", "e", "--quiet"]) == 0
    agent = json.loads((place / "runs/coin-sft-seed5/agent.json").read_text())
    assert agent["memory"] == {"": ["practised"]}


def test_run_refuses_a_taken_directory_and_resumes_a_finished_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", "sft", *COIN, *SMALL, "--out", "r"]
    assert main(argv) == 0
    before = list(Run.open("r").events())
    assert "holds a run already" in fails(capsys, *argv)
    assert main([*argv, "--resume"]) == 0
    assert list(Run.open("r").events()) == before
    assert "was begun with another config (cfg" in fails(capsys, *argv, "--resume", "gain=0.3")


def test_budget_ends_the_practice(place: Path) -> None:
    assert main(["run", "sft", *COIN, *SMALL, "--out", "r", "--budget", "5", "steps=50"]) == 0
    assert Run.open("r").cost.episodes == 8


def _child(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "whet.cli", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _after(path: Path, kind: str, n: int) -> None:
    """Wait until a run has logged `n` events of a kind."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if (path / "config.json").exists() and sum(1 for _ in Run.open(path).events(kind)) >= n:
            return
        time.sleep(0.02)
    pytest.fail(f"{path} never logged {n} events of kind {kind!r}")


@pytest.mark.slow
def test_a_run_killed_in_the_middle_ends_like_an_undisturbed_one(place: Path) -> None:
    argv = ["run", "sft", *COIN, *SMALL, "steps=4", "gain=0.1", "sleep=0.15"]
    assert main([*argv, "--out", "whole"]) == 0
    process = _child(*argv, "--out", "cut")
    _after(place / "cut", "log", 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert Run.open("cut").status == "interrupted"
    assert main([*argv, "--out", "cut", "--resume"]) == 0
    whole, cut = Run.open("whole"), Run.open("cut")
    assert [e.id for e in cut.load_episodes()] == [e.id for e in whole.load_episodes()]
    for name in ("before", "final"):
        one, other = (Evaluation.from_json(run.evaluations()[name]) for run in (whole, cut))
        assert one.successes == other.successes


def test_ctrl_c_says_how_to_go_on(place: Path) -> None:
    process = _child("run", "sft", *COIN, *SMALL, "steps=50", "sleep=0.1", "--out", "r")
    _after(place / "r", "log", 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.decode().splitlines()[-1].startswith("error: interrupted. Go on with: whet run sft --env coin.py:Coin")
    assert errors.decode().strip().endswith("--resume")
    assert Run.open("r").status == "interrupted"


# -- comparisons ---------------------------------------------------------------------------------------------------------

COMPARE = ("compare", *COIN, "--model", "weak", "--test-tasks", "60", "--train-tasks", "8", "--out", "c")


@pytest.mark.slow
def test_compare_runs_every_stage_once_and_prints_the_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*COMPARE, "--recipes", "base,sft,sft+grpo", "--seeds", "2", "grpo.steps=2", "sft.gain=0.1"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    c = Comparison.load("c/comparison.json")
    assert list(c.evaluations) == ["base", "sft", "sft+grpo"]
    assert dict(c.baselines) == {"sft": "base", "sft+grpo": "sft"}
    base, sft, grpo = c.rows
    assert base.success.mean < sft.success.mean < grpo.success.mean
    assert grpo.success.seeds == 2
    assert grpo.success.n == 60
    assert grpo.difference is not None
    assert grpo.difference.low > 0
    # 3 steps of sft and 2 of grpo, 4 episodes each
    assert (sft.cost.episodes, grpo.cost.episodes) == (12, 20)  # type: ignore[union-attr]
    assert Run.open("c/seed1/sft+grpo").config["model"] == "c/seed1/sft"
    assert "sft+grpo" in out
    assert (place / "c/report.html").exists()
    seeds = [Evaluation.from_json(Run.open(f"c/seed{i}/base").evaluations()["final"]) for i in (0, 1)]
    assert seeds[0].successes != seeds[1].successes
    assert seeds[0].tasks == seeds[1].tasks
    times = {path: path.stat().st_mtime_ns for path in place.glob("c/seed*/*/commit.json")}
    assert main(argv) == 0
    assert {path: path.stat().st_mtime_ns for path in place.glob("c/seed*/*/commit.json")} == times


def test_other_test_tasks_for_every_recipe(place: Path) -> None:
    assert main([*COMPARE, "--recipes", "base,sft", "--seeds", "1", "--test-start", "100"]) == 0
    found = [Evaluation.from_json(Run.open(f"c/seed0/{recipe}").evaluations()["final"]).tasks for recipe in ("base", "sft")]
    assert found[0] == found[1]
    assert [task.rpartition("/")[2] for task in found[0]] == [str(i) for i in range(100, 160)]


@pytest.mark.slow
def test_variants_of_a_method_stand_side_by_side(place: Path) -> None:
    argv = [*COMPARE, "--recipes", "sft:steps=1,sft:steps=2+grpo:steps=1", "--seeds", "1", "sft.gain=0.2", "--baseline", "sft:steps=1"]
    assert main(argv) == 0
    assert Run.open("c/seed0/sft:steps=1").config["cfg"] == {"steps": 1, "gain": 0.2, "sleep": 0.0, "lr": 1e-6}
    assert Run.open("c/seed0/sft:steps=2").config["cfg"] == {"steps": 2, "gain": 0.2, "sleep": 0.0, "lr": 1e-6}
    assert Run.open("c/seed0/sft:steps=2+grpo:steps=1").config["model"] == "c/seed0/sft:steps=2"
    assert dict(Comparison.load("c/comparison.json").baselines) == {"sft:steps=2+grpo:steps=1": "sft:steps=1"}


@pytest.mark.slow
def test_options_that_nobody_chose_for_a_small_model_are_named_under_the_table(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOY_PARAMETERS", "1000000")
    monkeypatch.setattr("whet_toys.Skill.n_parameters", 1_000_000)
    common = (*COIN, "--model", "weak", "--train-tasks", "4", "--dev-tasks", "1", "--test-tasks", "4")
    assert main(["compare", *common, "--recipes", "sft:gain=0.1,grpo:lr=0.1", "--seeds", "1", "--out", "c"]) == 0
    [note] = [text for text in Comparison.load("c/comparison.json").notes if "billions" in text]
    assert "a model of 1.0 million: sft:gain=0.1. " in note
    capsys.readouterr()
    assert main(["run", "sft", "lr=0.1", *common, "--out", "r"]) == 0
    assert "billions" not in capsys.readouterr().out
    assert main(["run", "sft", *common, "--out", "s"]) == 0
    shown = capsys.readouterr()
    assert "note: At the paper's learning rate" in shown.err
    assert "billions" in shown.out
    assert main(["run", "sft", *common, "--out", "s", "--resume"]) == 0
    assert len(list(Run.open(Path("s")).events("untuned"))) == 1


def test_compare_refuses_wrong_names_before_it_begins(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown method 'sfft'. Did you mean 'sft'" in fails(capsys, *COMPARE, "--recipes", "base,sfft+grpo")
    assert "Did you mean 'steps'" in fails(capsys, *COMPARE, "--recipes", "sft:stes=3")
    assert "'base', which stands alone" in fails(capsys, *COMPARE, "--recipes", "base+sft")
    assert "Did you mean 'steps'" in fails(capsys, *COMPARE, "--recipes", "sft", "sft.stes=3")
    assert "names no method of the recipes" in fails(capsys, *COMPARE, "--recipes", "sft", "grpo.steps=3")
    assert "--baseline 'bse' is not among the recipes" in fails(capsys, *COMPARE, "--recipes", "base,sft", "--baseline", "bse")
    assert not (place / "c").exists()


@pytest.mark.slow
def test_compare_shows_what_could_be_finished(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*COMPARE, "--recipes", "base,sft,sft+grpo", "--seeds", "1", "grpo.gain=-1"]
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert "error: sft+grpo with seed 0 failed: ArithmeticError: the gain is negative" in captured.err
    assert "sft+grpo is left out" in captured.out
    assert list(Comparison.load("c/comparison.json").evaluations) == ["base", "sft"]
    assert "holds a comparison with other settings (overrides" in fails(capsys, *COMPARE, "--recipes", "base,sft", "--seeds", "1")


@pytest.mark.slow
def test_an_interrupted_comparison_ends_its_processes_and_goes_on(place: Path) -> None:
    argv = [*COMPARE, "--recipes", "sft", "--seeds", "2", "sft.sleep=0.2", "sft.steps=6"]
    process = _child(*argv)
    _after(place / "c/seed0/sft", "log", 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "error: interrupted. Go on with: whet compare" in errors.decode()
    assert Run.open("c/seed0/sft").status == "interrupted"
    assert main(argv) == 0
    assert Run.open("c/seed0/sft").status == "done"
    assert [e["step"] for e in Run.open("c/seed0/sft").events("log")] == list(range(6))


# -- overrides -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    """Learning rate."""
    warmup: int | None = 5

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; expected a positive number")


@dataclass(frozen=True)
class Outer:
    steps: int = 3
    """How many."""
    mode: Literal["sum", "mean"] = "sum"
    sizes: tuple[int, ...] = (1, 2)
    shuffle: bool = True
    name: str = "x"
    inner: Inner = field(default_factory=Inner)
    extra: Inner | None = None
    """Left out unless a part of it is set."""
    given: Inner | None = Inner(lr=0.25)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=7", Outer(steps=7)),
        ("mode=mean", Outer(mode="mean")),
        ("sizes=[3, 4]", Outer(sizes=(3, 4))),
        ("shuffle=false", Outer(shuffle=False)),
        ("name=12", Outer(name="12")),
        ("name=none", Outer(name="none")),
        ("inner.lr=1e-3", Outer(inner=Inner(lr=1e-3))),
        ("inner.warmup=none", Outer(inner=Inner(warmup=None))),
        ("extra.lr=0.5", Outer(extra=Inner(lr=0.5))),
        ("extra=none", Outer()),
        ("given.warmup=3", Outer(given=Inner(lr=0.25, warmup=3))),
        ("given=none", Outer(given=None)),
    ],
)
def test_overrides_are_read_by_the_fields_type(text: str, expected: Outer) -> None:
    assert configure(Outer, parse_overrides([text])) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step=7", "no option 'step'. Did you mean 'steps'"),
        ("inner.l=7", "no option 'inner.l'. Did you mean 'lr'"),
        ("steps.x=7", "'steps' is a int and has no parts"),
        ("inner=7", "give them one by one: inner.lr, inner.warmup"),
        ("inner=none", "give them one by one: inner.lr, inner.warmup"),
        ("extra=true", "give them one by one: extra.lr, extra.warmup, or extra=none"),
        ("extra.l=7", "no option 'extra.l'. Did you mean 'lr'"),
        ("steps=1.5", "option 'steps' of Outer is '1.5'; expected int"),
        ("mode=median", "expected Literal"),
        ("inner.lr=-1", "expected a positive number"),
        ("steps", "expected key=value"),
    ],
)
def test_overrides_that_do_not_fit_are_explained(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(Outer, parse_overrides([text]))
    assert message in str(caught.value)


def test_an_override_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        parse_overrides(["a=1", "a=2"])


def test_options_are_listed_with_their_docstrings() -> None:
    found = {option.key: option for option in options(Outer)}
    assert (found["steps"].type, found["steps"].default, found["steps"].doc) == ("int", "3", "How many.")
    assert found["inner.lr"].doc == "Learning rate."
    assert (found["extra"].type, found["extra"].default, found["extra"].doc) == (
        "Inner | None",
        "None",
        "Left out unless a part of it is set.",
    )
    assert (found["extra.lr"].default, found["given"].default, found["given.lr"].default) == ("0.1", "Inner", "0.25")
