"""Documents: questions answered by searching real texts and reading them.

    Which class does json.JSONDecodeError inherit from?     ->  search("json.JSONDecodeError inherit")
                                                                 read("json.decoder.JSONDecodeError")
                                                                 answer("ValueError")

The texts are the documentation of Python's standard library, which every machine has, or those of a file in the format of
SQuAD or HotpotQA that the user names. Search is BM25.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from whet.envs import corpora, pythondocs
from whet.envs.base import Action, Env, Step
from whet.envs.corpora import Item
from whet.envs.search import call_of
from whet.errors import ConfigError, EnvError, ToolError, did_you_mean
from whet.seeding import derive_seed
from whet.tools.bm25 import words
from whet.tools.function import tool
from whet.types import Split, Task

SNIPPET = 120
"""Characters of a document that a search shows."""


class Documents(Env):
    """Answer questions by searching documents and reading them: Python's own documentation, or a file that you name.

    Options: `squad` and `hotpot` name a file in the format of SQuAD (XQuAD) or of HotpotQA, `dev` and `test` further files
    for these splits; `kinds` are the kinds of questions about Python (`default,described,base,chain`); `results` is how many
    documents a search returns, `length` how many characters of a document are read at once; `reward` is `exact` or `f1`.
    """

    instructions = "Answer the question. Search the documents and read them; give a short answer, as it stands there."
    max_turns = 10
    max_tokens = 96

    def __init__(
        self,
        squad: str = "",
        hotpot: str = "",
        dev: str = "",
        test: str = "",
        kinds: str = ",".join(pythondocs.KINDS),
        results: int = 5,
        length: int = 1500,
        reward: Literal["exact", "f1"] = "exact",
    ) -> None:
        if squad and hotpot:
            raise ConfigError(f"squad is {squad!r} and hotpot is {hotpot!r}; expected one of them, for one corpus")
        if (dev or test) and not (squad or hotpot):
            raise ConfigError(f"dev is {dev!r} and test is {test!r}, which go with squad=FILE or hotpot=FILE")
        wanted = tuple(kind.strip() for kind in kinds.split(","))
        for kind in wanted:
            if kind not in pythondocs.KINDS:
                raise ConfigError(f"kinds has {kind!r}. {did_you_mean(kind, pythondocs.KINDS)}")
        for name, value, low in (("results", results, 1), ("length", length, 100)):
            if value < low:
                raise ConfigError(f"{name} is {value}; expected {low} or more")
        files = squad or hotpot
        self._corpus = corpora.load("squad" if squad else "hotpot", files, dev, test) if files else pythondocs.corpus(wanted)
        self._results, self._length, self._graded = results, length, reward == "f1"
        self._read: list[int] = []
        self._found: list[int] = []
        self._queries: list[str] = []
        self._info: dict[str, Any] = {}
        self._item: Item | None = None

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """The questions of a split, in a fixed random order. Documents of one module or article are in one split."""
        items = self._corpus.items[split]
        prefix = (self.name, self._corpus.name, split)
        return [
            Task(
                id="/".join(map(str, (*prefix, i))),
                env=self.name,
                split=split,
                seed=derive_seed("task", *prefix, i),
                data={"corpus": self._corpus.name, "question": i},
            )
            for i in range(start, min(start + n, len(items)))
        ]

    def reset(self, task: Task) -> str:
        if task.data.get("corpus") != self._corpus.name:
            raise EnvError(
                f"task {task.id!r} is about the corpus {task.data.get('corpus')!r}, but this one is {self._corpus.name!r} "
                f"(another file, other options, or another version of Python); list the tasks again"
            )
        self._item = self._corpus.items[task.split][int(task.data["question"])]
        return self._item.text

    def step(self, action: Action) -> Any:
        """As `Env.step`, with what a grader wants to know in `info`."""
        step = super().step(action)
        assert isinstance(step, Step)
        return replace(step, info=self._info) if step.terminated else step

    @tool
    def search(self, query: str) -> str:
        """Find documents by their words; returns titles, each with a line of the text."""
        self._queries.append(query)
        hits = self._corpus.index.search(query, self._results)
        self._found = [i for i, _ in hits]
        return "\n".join(f"{self._corpus.documents[i].title}: {self._snippet(i, query)}" for i in self._found) or "Nothing was found."

    @tool
    def read(self, document: str, part: int = 1) -> str:
        """Read a document.

        Args:
            document: its title
            part: of a long document, which part of it
        """
        at = self._corpus.places.get(document.strip())
        if at is None:
            near = [self._corpus.documents[i].title for i in self._found]
            hint = did_you_mean(document, near) if near else "Search for its title."
            raise ToolError(f"no document {document.strip()[:80]!r}. {hint}")
        parts = self._parts(at)
        if not 1 <= part <= len(parts):
            raise ToolError(f"part is {part}; {document.strip()!r} has parts 1 to {len(parts)}")
        self._read.append(at)
        return parts[part - 1] + (f"\n(part {part} of {len(parts)})" if len(parts) > 1 else "")

    @tool
    def answer(self, text: str) -> str:
        """Give the final answer; an empty one where the documents hold none."""
        item = self._asked
        if item.kind in pythondocs.KINDS:
            exact = written(text) in item.answers
            score = float(exact)
        else:
            exact = max(squad_exact(text, gold) for gold in item.answers or ("",))
            score = max((hotpot_f1 if item.kind == "hotpot" else squad_f1)(text, gold) for gold in item.answers or ("",))
        self._info = {
            "reason": "answered",
            "answer": text[:500],
            "gold": list(item.answers),
            "exact": exact,
            "f1": score,
            "kind": item.kind,
            "read": len(set(item.support) & set(self._read)) / len(item.support),
        }
        return self.finish("", reward=score if self._graded else float(exact), success=exact)

    @property
    def _asked(self) -> Item:
        assert self._item is not None, "reset comes first"
        return self._item

    def _parts(self, at: int) -> list[str]:
        """A document in parts of at most `length` characters, cut at blanks where there are any."""
        text, parts = self._corpus.documents[at].text, []
        while len(text) > self._length:
            cut = max(text.rfind(mark, self._length // 2, self._length) for mark in "\n ") + 1 or self._length
            parts.append(text[:cut].rstrip())
            text = text[cut:]
        return [*parts, text]

    def _snippet(self, at: int, query: str) -> str:
        """The sentence of a document that shares most words with the query, cut to a line."""
        wanted = set(words(query))
        sentences = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s|\n\n", self._corpus.documents[at].text)]
        best = max(sentences, key=lambda sentence: len(wanted & set(words(sentence))))
        return best if len(best) <= SNIPPET else best[:SNIPPET].rsplit(" ", 1)[0] + " ..."

    def expert(self, rng: random.Random) -> Action:
        """Searches with the question, then with the title of what is still to be read; reads it, and gives the stored answer."""
        item = self._asked
        for at in dict.fromkeys(item.support):
            if at in self._read:
                continue
            title = self._corpus.documents[at].title
            if at in self._found or title in self._queries:
                return self._reading(at, title)
            return call_of("", "search", query=title if item.text in self._queries else item.text)
        return call_of("", "answer", text=item.answers[0] if item.answers else "")

    def _reading(self, at: int, title: str) -> Action:
        """A call of `read` for the part that holds an answer, the first one where none does."""
        parts = self._parts(at)
        holding = [i for i, text in enumerate(parts, 1) if any(answer in text for answer in self._asked.answers)]
        part = {"part": holding[0]} if holding and holding[0] > 1 else {}
        action = call_of("", "read", document=title)
        return Action(tool_calls=(replace(action.tool_calls[0], arguments={"document": title, **part}),))

    def random_action(self, rng: random.Random) -> Action:
        """Search for some words of the question, read something that was found, or answer with a word of it."""
        kind = rng.random()
        if not self._found or kind < 0.3:
            asked = self._asked.text.split()
            return call_of("", "search", query=" ".join(rng.sample(asked, min(3, len(asked)))))
        at = rng.choice(self._found)
        if kind < 0.6:
            return call_of("", "read", document=self._corpus.documents[at].title)
        return call_of("", "answer", text=rng.choice(self._corpus.documents[at].text.split() or ["nothing"]))


def written(answer: str) -> str:
    """A name or value as one may write it, without quotes around it and brackets behind."""
    text = answer.strip()
    return text.removesuffix(".").strip("`'\"").strip().removesuffix("()") if len(text) > 1 else text


def normalize(text: str) -> str:
    """Lower case without punctuation, articles and superfluous blanks: SQuAD's official rule."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_exact(answer: str, gold: str) -> bool:
    """Whether both are the same once normalised."""
    return normalize(answer) == normalize(gold)


def squad_f1(answer: str, gold: str) -> float:
    """The harmonic mean of precision and recall over words; where either has none, whether both have none."""
    mine, theirs = normalize(answer).split(), normalize(gold).split()
    if not mine or not theirs:
        return float(mine == theirs)
    return _f1(mine, theirs)


def hotpot_f1(answer: str, gold: str) -> float:
    """As SQuAD's, but `yes`, `no` and `noanswer` are right or wrong as a whole: HotpotQA's official rule."""
    pair = (normalize(answer), normalize(gold))
    if pair[0] != pair[1] and any(text in ("yes", "no", "noanswer") for text in pair):
        return 0.0
    return _f1(pair[0].split(), pair[1].split())


def _f1(mine: Sequence[str], theirs: Sequence[str]) -> float:
    same = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * same / (len(mine) + len(theirs)) if same else 0.0
