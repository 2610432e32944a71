"""Tasks from a file of JSON lines, for environments whose tasks are the user's.

    {"id": "q1", "prompt": "Who is Rosa's boss?", "split": "train", "answer": "Joe"}
    {"id": "q2", "prompt": "Book a table for two.", "split": "test", "data": {"table": 7}}

`answer` is what an answer is compared with (a text, a number, or a list of those that count); `data` goes to graders and to
the tool that sets a task up. Neither is ever shown to the model. Without any `split` in the file, tasks are dealt out by a
hash of their id: 80% train, 10% dev, 10% test.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whet.errors import ConfigError, did_you_mean
from whet.seeding import derive_seed
from whet.types import SPLITS, Split, Task

FIELDS = ("id", "prompt", "split", "answer", "data")


def read_tasks(path: str, env: str, *, prompts: bool = True) -> Mapping[Split, tuple[Task, ...]]:
    """The tasks of a file by split, in its order. Read again when the file has changed.

    Raises ConfigError, with the line, for what is no task: a missing id or (unless `prompts` is false) prompt, an unknown
    field or split, an id that came before, a prompt with the same data in two splits.
    """
    file = Path(path).expanduser()
    try:
        stamp = file.stat()
    except OSError as error:
        raise ConfigError(f"there is no task file {path!r} ({error.strerror}); expected a file of JSON lines") from error
    return _read(file, env, prompts, (stamp.st_mtime_ns, stamp.st_size))


@functools.lru_cache(maxsize=16)
def _read(file: Path, env: str, prompts: bool, stamp: tuple[int, int]) -> Mapping[Split, tuple[Task, ...]]:
    found: dict[Split, list[Task]] = {split: [] for split in SPLITS}
    entries = [(i, _entry(file, i, line, prompts)) for i, line in enumerate(_lines(file), start=1) if line.strip()]
    if not entries:
        raise ConfigError(f"the task file {file} is empty; expected one task a line, such as {_EXAMPLE}")
    with_split = sum("split" in entry for _, entry in entries)
    if 0 < with_split < len(entries):
        raise ConfigError(f"{with_split} of {len(entries)} tasks in {file} say their split; expected all of them or none")
    ids: dict[str, int] = {}
    asked: dict[str, tuple[str, Split]] = {}
    for number, entry in entries:
        split: Split = entry.get("split") or _dealt(entry["id"])
        if (first := ids.setdefault(entry["id"], number)) != number:
            raise ConfigError(f"lines {first} and {number} of {file} have the same id {entry['id']!r}")
        question = json.dumps([entry.get("prompt"), entry.get("data")], sort_keys=True)
        other, home = asked.setdefault(question, (entry["id"], split))
        if home != split:
            raise ConfigError(f"tasks {other!r} of {home} and {entry['id']!r} of {split} in {file} are the same; a split would leak")
        data: dict[str, Any] = {key: entry[key] for key in ("prompt", "answer", "data") if key in entry}
        found[split].append(Task(id=f"{env}/{entry['id']}", env=env, split=split, seed=derive_seed("task", env, entry["id"]), data=data))
    return {split: tuple(tasks) for split, tasks in found.items()}


_EXAMPLE = '{"id": "1", "prompt": "...", "split": "train", "answer": "..."}'


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the task file {file} cannot be read: {error}") from error


def _entry(file: Path, number: int, line: str, prompts: bool) -> dict[str, Any]:
    """A line as it is, with its id a text."""
    where = f"line {number} of {file}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is {type(entry).__name__}; expected an object such as {_EXAMPLE}")
    for key in entry:
        if key not in FIELDS:
            raise ConfigError(f"{where} has a field {key!r}. {did_you_mean(key, FIELDS)} What graders need goes into 'data'.")
    if not isinstance(entry.get("id"), (str, int)) or entry["id"] == "":
        raise ConfigError(f"{where} has the id {entry.get('id')!r}; expected a text or a whole number")
    if not isinstance(entry.get("prompt", "" if prompts else "-"), str) or not entry.get("prompt", "" if prompts else "-"):
        raise ConfigError(f"{where} has the prompt {entry.get('prompt')!r}; expected what the agent is asked")
    if "split" in entry and entry["split"] not in SPLITS:
        raise ConfigError(f"{where} is of split {entry['split']!r}. {did_you_mean(str(entry['split']), SPLITS)}")
    if not isinstance(entry.get("data", {}), dict):
        raise ConfigError(f"{where} has data {entry['data']!r}; expected an object")
    return entry | {"id": str(entry["id"])}


def _dealt(id: str) -> Split:
    """The split of a task that names none."""
    tenth = derive_seed("split", id) % 10
    return "train" if tenth < 8 else "dev" if tenth == 8 else "test"
