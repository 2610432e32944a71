"""Texts to search and questions about them: files in the formats of SQuAD and HotpotQA, and what all corpora share."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.errors import ConfigError
from whet.seeding import derive_seed
from whet.tools.bm25 import BM25
from whet.types import SPLITS, Split

HELD_OUT = 0.15
"""Share of the documents in dev, and in test, where the files have no split of their own."""


@dataclass(frozen=True, slots=True)
class Document:
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """A question. `answers` are the accepted ones, none where the documents hold no answer; `support` are the documents to read."""

    text: str
    answers: tuple[str, ...]
    support: tuple[int, ...]
    kind: str
    group: str
    """What is kept in one split: a module, an article."""


@dataclass(frozen=True)
class Corpus:
    """Documents with their index, and the questions of each split in a fixed random order."""

    name: str
    """With a digest of documents and questions, so that tasks of other texts are told apart."""
    documents: tuple[Document, ...]
    places: Mapping[str, int]
    """Title -> index."""
    index: BM25
    items: Mapping[Split, tuple[Item, ...]]

    @classmethod
    def build(cls, name: str, documents: Sequence[Document], items: Mapping[Split, Sequence[Item]]) -> Corpus:
        digest = hashlib.blake2b(digest_size=4)
        for document in documents:
            digest.update(f"{document.title}\0{document.text}\0".encode("utf-8", "surrogatepass"))
        for split in SPLITS:
            for item in items[split]:
                digest.update(f"{item.text}\0{item.answers}\0".encode("utf-8", "surrogatepass"))
        return cls(
            name=f"{name}-{digest.hexdigest()}",
            documents=tuple(documents),
            places={document.title: i for i, document in enumerate(documents)},
            index=BM25([f"{document.title}\n{document.text}" for document in documents]),
            items={split: tuple(sorted(items[split], key=lambda item: derive_seed("item", item.text, item.support))) for split in SPLITS},
        )


def divide(items: Sequence[Item], group: Callable[[Item], str]) -> Mapping[Split, Sequence[Item]]:
    """The items by split: 15% of the groups for dev and for test, at least one each, drawn by their names."""
    names = sorted({group(item) for item in items}, key=lambda name: derive_seed("group", name))
    held = max(1, round(HELD_OUT * len(names)))
    parts: Mapping[Split, set[str]] = {"test": set(names[:held]), "dev": set(names[held : 2 * held]), "train": set(names[2 * held :])}
    return {split: [item for item in items if group(item) in parts[split]] for split in SPLITS}


@functools.cache
def load(format: str, main: str, dev: str, test: str) -> Corpus:
    """The corpus of files in a format (`squad` or `hotpot`). `dev` and `test` are the files of these splits, if they have
    any; the main file's documents are divided among the others.

    Raises ConfigError where a file is missing or in another format.
    """
    read = {"squad": _squad, "hotpot": _hotpot}[format]
    titles: dict[str, int] = {}
    documents: list[Document] = []

    def place(title: str, text: str) -> int:
        """The index of the document with this title and text; another text of the same title gets a number."""
        name, n = title, 1
        while name in titles and documents[titles[name]].text != text:
            n += 1
            name = f"{title} ({n})"
        if name not in titles:
            titles[name] = len(documents)
            documents.append(Document(name, text))
        return titles[name]

    own: dict[Split, list[Item]] = {}
    for split, file in (("dev", dev), ("test", test)):
        if file:
            own[split] = list(read(_json(file), file, place))  # type: ignore[index]
    items = list(read(_json(main), main, place))
    parts: dict[Split, Sequence[Item]] = dict(divide(items, lambda item: item.group)) if len(own) < 2 else {"train": items}
    for split in own:  # a split with a file of its own leaves its share to train
        parts["train"] = [*parts["train"], *parts.get(split, ())]
    return Corpus.build(f"{format}-{Path(main).stem}", documents, parts | own)


Place = Callable[[str, str], int]


def _json(file: str) -> Any:
    path = Path(file).expanduser()
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from error


def _squad(content: Any, file: str, place: Place) -> Iterable[Item]:
    """SQuAD 1.1 and 2.0, XQuAD: articles with paragraphs, each a document; questions without an answer have none."""
    try:
        for article in content["data"]:
            title = str(article.get("title") or "untitled").replace("_", " ")
            for paragraph in article["paragraphs"]:
                at = place(title, paragraph["context"])
                for question in paragraph["qas"]:
                    answers = tuple(dict.fromkeys(answer["text"] for answer in question.get("answers", ())))
                    answers = () if question.get("is_impossible") else answers
                    yield Item(question["question"], answers, (at,), "squad", title)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is not in SQuAD's format: {type(error).__name__} {error}; expected data, paragraphs, qas") from error


def _hotpot(content: Any, file: str, place: Place) -> Iterable[Item]:
    """HotpotQA: each question brings ten paragraphs; all of them together are the documents.

    Questions whose supporting paragraphs are in no question's context are left out: nobody could find them. Questions
    that share a supporting paragraph, directly or through others, are of one group.
    """
    found: list[tuple[str, str, tuple[str, ...]]] = []
    places: dict[str, int] = {}
    try:
        for entry in content:
            for title, sentences in entry["context"]:
                places.setdefault(title, place(title, "".join(sentences).strip()))
        for entry in content:
            titles = tuple(dict.fromkeys(title for title, _ in entry["supporting_facts"]))
            if titles and all(title in places for title in titles):
                found.append((entry["question"], entry["answer"], titles))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file} is not in HotpotQA's format: {type(error).__name__} {error}; expected question, answer, supporting_facts, context"
        ) from error
    parent: dict[str, str] = {}

    def root(title: str) -> str:
        while parent.setdefault(title, title) != title:
            parent[title] = title = parent[parent[title]]
        return title

    for _, _, titles in found:
        for title in titles[1:]:
            parent[root(title)] = root(titles[0])
    for question, answer, titles in found:
        yield Item(question, (answer,), tuple(places[title] for title in titles), "hotpot", root(titles[0]))
