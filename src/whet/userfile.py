"""Python files of the user's: environments, graders, judges and methods of their own, by `path/to/file.py:name`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from whet.errors import ConfigError, did_you_mean


def load_file(path: str) -> ModuleType:
    """The file as a module of its own. Its name holds the path and the content, so that nothing else is shadowed,
    asking twice gives the same classes, and an edited file gives new ones.

    Raises ConfigError where there is no such file, or where it cannot be imported, with the line.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        near = [p.name for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        where = did_you_mean(file.name, near) if near else f"The directory {file.parent} has no Python files."
        raise ConfigError(f"no such file: {path}. {where}")
    source = file.read_bytes()
    name = f"_whet_{re.sub(r'[^0-9A-Za-z_]', '_', file.stem)}_{hashlib.blake2b(str(file).encode() + source, digest_size=6).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look a class's module up by name
    # The file may import its neighbours; they come last, so that they hide no installed module.
    beside = str(file.parent)
    added = beside not in sys.path
    if added:
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception) and not isinstance(error, SystemExit):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        at = f" (line {line})" if line else ""
        raise ConfigError(f"{path} cannot be imported: {type(error).__name__}: {error}{at}") from error
    finally:
        if added and beside in sys.path:
            sys.path.remove(beside)
    return module


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `path/to/file.py:name` or `package.module:name` names. Raises ConfigError where there is none."""
    path, _, name = spec.rpartition(":")
    if not path or not name:
        raise ConfigError(f"{spec!r} names no function; expected path/to/file.py:name or package.module:name")
    module = load_file(path) if path.endswith(".py") else load_module(path)
    if module is None:
        raise ConfigError(f"no module {path!r} to take {name!r} from; is it installed, or on PYTHONPATH?")
    found = getattr(module, name, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(f"{path} has no function {name!r}. {did_you_mean(name, known)}")
    return found  # type: ignore[no-any-return]


def load_module(path: str) -> ModuleType | None:
    """The module, or None where there is none. An import that fails inside it is an error of its own (ConfigError)."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(f"{error.name}.")):
            return None
        raise ConfigError(f"module {path!r} cannot be imported: {error}") from error
    except Exception as error:
        raise ConfigError(f"module {path!r} cannot be imported: {type(error).__name__}: {error}") from error
