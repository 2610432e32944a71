"""Episodes turn by turn: what was sampled stands out from what was observed."""

from __future__ import annotations

import json
from html import escape

from whet.report.page import badge
from whet.runs import EpisodeStore
from whet.types import Episode, Stop, Turn

_SHOWN = 3
"""Episodes of each outcome under one tag."""
_TAGS = 8
"""Tags shown in full: the first, and the last ones."""
_LONGEST = 4000
"""Characters of one turn."""
LEGEND = (
    '<div class="legend"><span><i style="background:var(--accent-soft);border-left:3px solid var(--accent)"></i>sampled by the policy'
    '</span><span><i style="background:var(--tool)"></i>observed: prompts, tools, environment</span></div>'
)


def tag_sections(store: EpisodeStore) -> str:
    """For each tag: how many episodes, how good, and the latest few successes, failures and errors."""
    tags = store.tags()
    shown = tags if len(tags) <= _TAGS else [*tags[:2], *tags[2 - _TAGS :]]
    parts = []
    for tag in shown:
        facts = [f"{tag.n:,} episodes"]
        facts += (
            [f"{tag.success:.1%} succeeded", f"mean reward {tag.reward:.3f}"] if tag.success is not None and tag.reward is not None else []
        )
        facts += [f"{tag.errors} failed"] if tag.errors else []
        episodes = store.select(tag.tag, success=True, limit=_SHOWN) + store.select(tag.tag, success=False, limit=_SHOWN)
        episodes += store.select(tag.tag, ok=False, limit=2)
        name = escape(tag.tag or "(no tag)")
        parts.append(f'<h3>{name} <span class="note">{" · ".join(facts)}</span></h3>' + "".join(map(episode_view, episodes)))
    if len(shown) < len(tags):
        parts.append(f'<p class="note">{len(tags) - len(shown)} more tags are in episodes.db.</p>')
    return LEGEND + "".join(parts) if parts else ""


def episode_view(episode: Episode) -> str:
    """One episode, folded up."""
    sampled = sum(len(turn.tokens) for turn in episode.turns if turn.trained)
    meta = [f"reward {episode.reward:g}", f"{episode.n_actions} actions", f"{sampled} tokens sampled"] if sampled else []
    meta = meta or [f"reward {episode.reward:g}", f"{episode.n_actions} actions"]
    meta.append(f"{episode.stop.value}{f' ({episode.reason})' if episode.reason else ''}")
    actor = episode.tags.get("actor", "self")
    who = badge(f"scripted: {actor}", "warn") if actor != "self" else ""
    error = f'<pre class="missing">{escape(episode.error)}</pre>' if episode.error else ""
    turns = "".join(_turn(turn, i) for i, turn in enumerate(episode.turns))
    return (
        f'<details><summary>{_outcome(episode)}<span class="task">{escape(episode.task.id)}</span>{who}'
        f'<span class="meta">{escape(" · ".join(meta))}</span></summary><div class="turns">{turns}{error}</div></details>'
    )


def _outcome(episode: Episode) -> str:
    if episode.stop is Stop.ERROR:
        return badge("error", "warn")
    return badge("success", "good") if episode.success else badge("failure", "bad")


def _turn(turn: Turn, index: int) -> str:
    facts = []
    if turn.parent is not None and turn.parent != index - 1:
        facts.append(f"goes on from turn {turn.parent + 1}")
    if turn.trained and turn.tokens:
        facts.append(f"{len(turn.tokens)} tokens")
        if turn.logprobs:
            facts.append(f"mean log-prob {sum(turn.logprobs) / len(turn.logprobs):.2f}")
    if turn.finish == "length":
        facts.append("cut off at its token limit")
    if turn.reward:
        facts.append(f"reward {turn.reward:+g}")
    who = f"{turn.role} · {turn.name}" if turn.name else turn.role
    calls = "".join(f'\n<span class="call">{escape(_call(call.name, call.arguments, call.error))}</span>' for call in turn.tool_calls)
    text = escape(turn.content[:_LONGEST])
    if len(turn.content) > _LONGEST:
        text += f'<span class="missing"> … {len(turn.content) - _LONGEST:,} characters more</span>'
    header = f"<header><b>{index + 1} {escape(who)}</b><span>{escape(' · '.join(facts))}</span></header>"
    return f'<div class="turn {turn.role}">{header}<pre>{(text + calls).strip()}</pre></div>'


def _call(name: str, arguments: object, error: str | None) -> str:
    if error:
        return f"unreadable call: {error}"
    values = dict(arguments) if hasattr(arguments, "keys") else {}  # type: ignore[call-overload]
    return f"{name}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False, default=repr)}' for key, value in values.items())})"
