"""Environments by name: bundled ones, a user's file, a module, and what is said when there is no such thing."""

import subprocess
import sys
import textwrap

import pytest

from whet.envs import Env, EnvFactory, describe, load_env, names
from whet.envs.gymnasium import GymEnv
from whet.errors import ConfigError

MINE = """
import dataclasses
from typing import Literal, Optional
from whet.envs.base import Env, Step

class Mine(Env):
    def __init__(self, size: int = 3, mode: Literal["easy", "hard"] = "easy", ratio: float = 0.5, loud: bool = False,
                 names: list[str] | None = None, limit: Optional[int] = 5, loose=None) -> None:
        self.options = (size, mode, ratio, loud, names, limit, loose)
    def reset(self, task):
        return "hello"
    def step(self, action):
        return Step(observation="bye", terminated=True)

@dataclasses.dataclass
class Other:
    size: int = 1
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_bundled_environments_are_described():
    assert {"babyai", "gymnasium", "mix", "search"} <= set(names())
    info = describe("babyai")
    assert info.options["level"] == "str = 'GoToLocal'"
    assert info.summary.startswith("Walk through rooms")
    assert info.missing is None
    with pytest.raises(ConfigError, match="Did you mean 'search'"):
        describe("serch")


def test_bundled_options_are_parsed_by_annotation():
    factory = load_env("babyai:level=PickupLoc,tools=true,max_turns=12")
    assert factory.options == {"level": "PickupLoc", "tools": True, "max_turns": 12}
    assert factory.spec == "babyai:level=PickupLoc,tools=true,max_turns=12"
    assert load_env("search:hops=1-3").options == {"hops": "1-3"}
    assert isinstance(factory(), Env)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (3, "easy", 0.5, False, None, 5, None)),
        ("size=8,mode=hard,ratio=2", (8, "hard", 2.0, False, None, 5, None)),
        ("loud=true, size = 4", (4, "easy", 0.5, True, None, 5, None)),
        ('names=["a","b"],size=1', (1, "easy", 0.5, False, ["a", "b"], 5, None)),
        ("limit=none", (3, "easy", 0.5, False, None, None, None)),
        ("loose=7", (3, "easy", 0.5, False, None, 5, 7)),
        ("loose=some words, and more", (3, "easy", 0.5, False, None, 5, "some words, and more")),
    ],
)
def test_options_of_a_users_class(mine, text, expected):
    assert load_env(f"{mine}:Mine:{text}")().options == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size=big", "option 'size' is 'big'; expected int"),
        ("mode=medium", "expected Literal\\['easy', 'hard'\\]"),
        ("sise=4", "has no option 'sise'. Did you mean 'size'"),
        ("size=1,size=2", "option 'size' stands twice"),
        ("size", "'size' in .* is no option; expected key=value"),
        ("loud=maybe", "option 'loud' is 'maybe'; expected bool"),
    ],
)
def test_bad_options(mine, text, message):
    with pytest.raises(ConfigError, match=message):
        load_env(f"{mine}:Mine:{text}")


def test_the_only_class_of_a_file_needs_no_name(mine):
    assert load_env(str(mine)).name == "mine"
    mine.write_text(MINE + "\nclass Second(Mine):\n    pass\n")
    with pytest.raises(ConfigError, match="has 2 environments"):
        load_env(str(mine))
    mine.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="has no environments"):
        load_env(str(mine))


def test_a_file_is_imported_once_and_anew_when_it_changes(mine):
    first = load_env(f"{mine}:Mine").cls
    assert load_env(f"{mine}:Mine").cls is first
    mine.write_text(MINE.replace("hello", "good day"))
    second = load_env(f"{mine}:Mine").cls
    assert second is not first
    assert second().reset(None) == "good day"


def test_a_file_shadows_nothing_and_may_import_its_neighbours(tmp_path):
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong json')\n")
    (tmp_path / "neighbour_of_mine.py").write_text("WORD = 'hi'\n")
    (tmp_path / "random.py").write_text(
        "import json\nfrom neighbour_of_mine import WORD\nfrom whet.envs.base import Env\n"
        "class Mine(Env):\n    def reset(self, task):\n        return WORD\n"
    )
    before = list(sys.path)
    assert load_env(f"{tmp_path}/random.py:Mine")().reset(None) == "hi"
    assert sys.path == before
    import random

    assert hasattr(random, "Random")


def test_what_is_wrong_with_a_file(tmp_path, mine):
    with pytest.raises(ConfigError, match=r"no such file: .*mime.py. Did you mean 'mine.py'"):
        load_env(f"{tmp_path}/mime.py:Mine")
    with pytest.raises(ConfigError, match="has no Python files"):
        load_env(f"{tmp_path}/nowhere/mine.py:Mine")
    with pytest.raises(ConfigError, match=r"has no 'Mime'. Did you mean 'Mine'"):
        load_env(f"{mine}:Mime")
    with pytest.raises(ConfigError, match=r"mine.py:Other is a class; expected a subclass of whet.Env"):
        load_env(f"{mine}:Other")
    for source, message in (
        ("import nothing_of_the_kind\n", "ModuleNotFoundError: No module named 'nothing_of_the_kind' \\(line 1\\)"),
        ("x = 1\ny = 1 / 0\n", "ZeroDivisionError: division by zero \\(line 2\\)"),
        ("x = 1\n\ndef f(:\n", "SyntaxError: .*\\(line 3\\)"),
        ("raise SystemExit(3)\n", "SystemExit: 3 \\(line 1\\)"),
    ):
        (tmp_path / "broken.py").write_text(source)
        before = set(sys.modules)
        with pytest.raises(ConfigError, match=f"broken.py cannot be imported: {message}"):
            load_env(f"{tmp_path}/broken.py:Mine")
        assert not [name for name in set(sys.modules) - before if "_whet_broken" in name]


def test_modules(mine, monkeypatch):
    monkeypatch.syspath_prepend(str(mine.parent))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert load_env("mine:Mine:size=4")().options[0] == 4
    with pytest.raises(ConfigError, match=r"no module 'no.such.place' to take 'Mine' from"):
        load_env("no.such.place:Mine")
    (mine.parent / "uses_missing.py").write_text("import not_installed_here\n")
    with pytest.raises(ConfigError, match="module 'uses_missing' cannot be imported: No module named 'not_installed_here'"):
        load_env("uses_missing:Mine")


@pytest.mark.parametrize("spec", ["serch", "serch:hops=2", "serch:Mine", ""])
def test_unknown_names(spec):
    with pytest.raises(ConfigError, match=r"unknown environment .*search.*path/to/file\.py:ClassName"):
        load_env(spec)


def test_a_stock_gymnasium_class_or_function_in_a_users_file(tmp_path):
    path = tmp_path / "stock.py"
    path.write_text(
        textwrap.dedent("""
        import gymnasium

        class Line(gymnasium.Env):
            "Walk to the end of a line."
            action_space = gymnasium.spaces.Discrete(2)

            def __init__(self, size: int = 3):
                self.size = size
                self.observation_space = gymnasium.spaces.Discrete(size + 1)

            def reset(self, *, seed=None, options=None):
                super().reset(seed=seed)
                self.at = 0
                return self.at, {}

            def step(self, action):
                self.at += 1 if action else 0
                return self.at, float(self.at == self.size), self.at == self.size, False, {}

        def long_line(size: int = 9) -> gymnasium.Env:
            return Line(size)

        def nothing():
            return 3
        """)
    )
    factory = load_env(f"{path}:Line:size=2,max_turns=7")
    assert factory.cls is GymEnv
    env = factory()
    assert env.max_turns == 7
    assert env.reset(factory.tasks("train", 1)[0]) == "0"
    assert factory.tasks("train", 1)[0].id == "gymnasium/Line/train/0"
    assert load_env(f"{path}:long_line")().__dict__["_gym"].size == 9
    with pytest.raises(ConfigError, match="has no option 'sise'"):
        load_env(f"{path}:Line:sise=2")
    with pytest.raises(ConfigError, match=r"made a int; expected a gymnasium.Env"):
        load_env(f"{path}:nothing")()


def test_factories_refuse_splits_that_do_not_exist():
    with pytest.raises(ConfigError, match=r"unknown split 'tset'. Did you mean 'test'"):
        load_env("search").tasks("tset", 1)
    assert isinstance(load_env("search"), EnvFactory)


def test_environments_are_imported_when_asked_for():
    code = "import sys, whet.envs; sys.exit(any(m in sys.modules for m in ('minigrid', 'gymnasium', 'torch', 'whet.envs.babyai')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("name", "package"), [("babyai", "minigrid"), ("gymnasium:FrozenLake-v1", "gymnasium")])
def test_a_missing_package_is_named_with_its_cure(name, package):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from whet.envs import load_env, describe\nfrom whet.errors import MissingExtra\n"
        f"assert describe({name.partition(':')[0]!r}).missing\n"
        f"try: load_env({name!r})\nexcept MissingExtra as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"needs the package {package!r}, which is not installed. Run: pip install 'whet[envs]'" in done.stdout, done
