"""Beginning an episode where another one was: its actions are taken again, and what comes back is compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from whet.envs.base import EnvFactory
from whet.errors import CannotReplay, ConfigError, EnvError
from whet.types import Episode, Task, Turn, chain


class ReplayDiverged(EnvError):
    """An environment that calls itself replayable answered the same actions differently. Ends the rollout."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The beginning of an episode: its opening turns, then actions with the observations that followed them.

    Taken over as recorded, with tokens, log-probs and versions; turns without tokens are given some by the policy.
    """

    turns: tuple[Turn, ...]
    """A conversation without forks, in order."""
    origin: str = ""
    """Id of the episode that it was taken from."""

    @classmethod
    def of(cls, episode: Episode, *, actions: int, leaf: int = -1) -> Prefix:
        """The first `actions` actions of an episode's walk to `leaf` (see `Episode.walks`), and what followed them.

        Raises ConfigError where the walk has fewer actions.
        """
        walk = episode.walks()[leaf]
        at = [i for i, turn in enumerate(walk) if turn.role == "assistant"]
        if not 0 <= actions <= len(at):
            raise ConfigError(f"episode {episode.id!r} has {len(at)} actions on this walk; cannot replay {actions}")
        end = at[actions] if actions < len(at) else len(walk)
        return cls(turns=chain(walk[:end]), origin=episode.id)

    @property
    def actions(self) -> int:
        return sum(turn.role == "assistant" for turn in self.turns)


Prefixes = Mapping[str, Prefix] | Sequence[Prefix | Sequence[Turn] | None]


def align(prefix: Prefixes | None, tasks: Sequence[Task], env: EnvFactory) -> list[Prefix | None]:
    """The prefix of each task. Raises CannotReplay where there is one and the environment cannot replay."""
    if prefix is None:
        return [None] * len(tasks)
    if isinstance(prefix, Mapping):
        strangers = set(prefix) - {task.id for task in tasks}
        if strangers:
            raise ConfigError(f"prefix holds task ids that are not among the tasks: {', '.join(sorted(strangers)[:3])}")
        given: list[Prefix | Sequence[Turn] | None] = [prefix.get(task.id) for task in tasks]
    else:
        given = list(prefix)
    if len(given) != len(tasks):
        raise ConfigError(f"prefix has {len(given)} entries for {len(tasks)} tasks; give one (or None) for each task")
    aligned = [p if p is None or isinstance(p, Prefix) else Prefix(turns=chain(p)) for p in given]
    must_replay(env, [task for task, p in zip(tasks, aligned) if p], by="this call")
    return aligned


def must_replay(env: EnvFactory, tasks: Iterable[Task], *, by: str) -> None:
    """Raises CannotReplay where an environment of these tasks cannot replay; `by` says in the message who needs it."""
    for factory in {env.of(task).name: env.of(task) for task in tasks}.values():
        if not factory.replayable:
            raise CannotReplay(
                f"{by} begins episodes in the midst of others, and environment {factory.name!r} cannot replay (it says "
                "`replayable = False`). That needs a `reset(task)` and a `step` that always lead the same actions to the same "
                "observations; make them so and set `replayable = True`, or use a method that works on whole episodes."
            )


def split(turns: Sequence[Turn]) -> tuple[tuple[Turn, ...], list[tuple[Turn, tuple[Turn, ...]]]]:
    """The opening turns, then each action with the observation turns that were recorded after it."""
    at = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    ends = [*at[1:], len(turns)]
    return tuple(turns[: at[0] if at else len(turns)]), [(turns[i], tuple(turns[i + 1 : end])) for i, end in zip(at, ends)]


def compare(task: Task, action: int, recorded: Sequence[Turn], seen: Sequence[Turn]) -> None:
    """Raises ReplayDiverged unless the environment showed what was recorded after this action (0: at reset).

    What an agent put before the first observation (its instructions, the hints of its memory) is not compared.
    """
    tail = recorded[len(recorded) - len(seen) :] if action == 0 else recorded
    if len(tail) == len(seen) and all(_same(a, b, opening=action == 0) for a, b in zip(tail, seen)):
        return
    where = "at reset" if action == 0 else f"after action {action}"
    raise ReplayDiverged(
        f"replay diverged: environment {task.env!r}, task {task.id!r}, {where}: recorded {_text(tail)}, now {_text(seen)}. "
        "The environment depends on something besides the task and the actions; make it deterministic, or set `replayable = False`."
    )


def _same(recorded: Turn, seen: Turn, *, opening: bool) -> bool:
    if recorded.role != seen.role:
        return False
    return recorded.content == seen.content or (opening and f"\n{seen.content}\n" in f"\n{recorded.content}\n")


def _text(turns: Sequence[Turn]) -> str:
    text = " | ".join(f"{turn.role}: {turn.content}" for turn in turns) or "nothing"
    return repr(text if len(text) <= 200 else text[:200] + "...")
