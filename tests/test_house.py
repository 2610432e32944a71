"""The house rules that a machine can keep: imports point down, imports are light, files stay readable."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import whet
from whet import load_env, methods, presets
from whet.cli.common import LIMITS, SIZES
from whet.config import configure

SOURCE = Path(whet.__file__).parent
FLOOR = {
    **dict.fromkeys(("errors", "seeding", "transcript", "types", "userfile"), 0),
    **dict.fromkeys(("tools", "config"), 1),
    **dict.fromkeys(("envs", "policies", "runs"), 2),
    **dict.fromkeys(("agents", "rewards"), 3),
    **dict.fromkeys(("rollout", "data"), 4),
    **dict.fromkeys(("learn", "evals"), 5),
    **dict.fromkeys(("methods", "presets"), 6),
    "report": 7,
    "cli": 8,
}
OUTER = {*SIZES, *LIMITS, "temperature"}
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path):
    if path == SOURCE / "__init__.py":
        return
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name and name.startswith("whet."):
                target = name.split(".")[1]
                assert FLOOR[target] <= FLOOR[room(path)], f"{path.name} in {room(path)} imports {name} from above"


def test_the_report_sees_only_records_runs_and_scores():
    for path in (SOURCE / "report").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("whet."):
                assert node.module.split(".")[1] in ("types", "runs", "report", "errors", "evals"), f"{path.name} imports {node.module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_stay_readable(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 500, "a file of more than 500 lines is two files"
    if room(path) == "methods":
        assert len(text.splitlines()) <= 130, "a method is one page: the rest belongs into the layers below"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 70, f"{node.name} is longer than a screen"


def test_every_module_can_be_imported():
    for module in pkgutil.walk_packages(whet.__path__, "whet."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_importing_whet_is_quick_and_brings_no_torch():
    code = "import sys, time; t = time.perf_counter(); import whet; print(time.perf_counter() - t, 'torch' in sys.modules)"
    best = 9.0
    for _ in range(3):
        seconds, torch = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert torch == "False"
        best = min(best, float(seconds))
    assert best < 0.3


def test_what_is_exported_exists():
    for name in whet.__all__:
        assert getattr(whet, name) is not None
    assert whet.__all__ == sorted(whet.__all__)


def test_the_half_without_weights_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from whet import Agent, load_env, load_policy\nfrom whet.rollout import rollout\n"
        "env = load_env('search:hops=2')\n"
        "episodes = rollout(Agent(load_policy('expert')), env, env.tasks('train', 4))\n"
        "print(sum(e.success for e in episodes))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "4", done.stderr


def test_presets_are_options_that_their_methods_have():
    for name in methods.names():
        config = methods.get(name).config
        assert not OUTER & set(config.__dataclass_fields__), f"an option of {name} could not be told from one of the command line"
        for (env, preset), found in presets.PRESETS.items():
            assert set(found) <= {"", *methods.names()}
            assert set(found[""]) <= OUTER
            assert not OUTER & set(found.get(name, {}))
            configure(config, {k: v for k, v in presets.get(env, preset, name).items() if k not in OUTER}, of=name)
        assert presets.home("quick", name), f"the preset quick has no {name}"
        configure(config, {k: v for k, v in presets.get("", "quick", name).items() if k not in OUTER}, of=name)


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, board in presets.FAMILIES.items() for name in board])
def test_leaderboards_compare_what_exists(family, name):
    from whet.cli.compare import _method, _stages

    entry = presets.FAMILIES[family][name]
    assert presets.shown(name) in methods.names()
    stages = _stages(list(entry["recipes"]))
    assert {entry["baseline"], entry["claim"]} <= set(stages)
    for part in {part for stage in stages for part in stage.split("+")} - {"base"}:
        method, own = _method(part)
        found = {k: v for k, v in presets.get("", f"{family}/{name}", method).items() if k not in OUTER}
        configure(methods.get(method).config, found | own, of=method)
    assert load_env(entry["env"])
