"""Documents: BM25 and the answers' scores by hand, questions that the running Python confirms, files in two formats."""

import importlib
import inspect
import json
import math
import random

import pytest

from whet.envs import check_env, corpora, pythondocs
from whet.envs.documents import Documents, hotpot_f1, normalize, squad_exact, squad_f1, written
from whet.envs.search import call_of
from whet.errors import ConfigError, EnvError
from whet.tools.bm25 import BM25, words
from whet.types import SPLITS


def test_bm25_by_hand():
    index = BM25(["a b", "b c c", "d"])
    # Three texts of 2, 3 and 1 words, 2 on average; `c` stands in one of them, twice; `b` once in each of two.
    c = math.log(1 + 2.5 / 1.5) * 2 / (2 + 1.2 * (0.25 + 0.75 * 3 / 2))
    b = math.log(1 + 1.5 / 2.5)
    b0, b1 = b / (1 + 1.2 * (0.25 + 0.75 * 2 / 2)), b / (1 + 1.2 * (0.25 + 0.75 * 3 / 2))
    assert (round(c, 6), round(b0, 6), round(b1, 6)) == (0.537441, 0.213638, 0.17736)
    assert index.scores("C!") == pytest.approx([0, c, 0])
    assert index.scores("b c b") == pytest.approx([2 * b0, c + 2 * b1, 0])
    assert [i for i, _ in index.search("b")] == [0, 1], "the shorter text first"
    assert index.search("b", 1) == [(0, pytest.approx(b0))]
    assert index.search("nothing here") == []
    assert len(index) == 3
    assert [i for i, _ in BM25(["x y", "x z", "x y"]).search("y x")] == [0, 2, 1], "equal ones in their order"
    assert BM25([]).search("x") == []
    assert BM25(["", "..."]).search("x") == []


def test_bm25_agrees_with_bm25s():
    bm25s = pytest.importorskip("bm25s")
    texts = [document.text for document in pythondocs.corpus().documents[:400]]
    theirs = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    theirs.index([words(text) for text in texts], show_progress=False)
    mine = BM25(texts)
    for query in texts[:20]:
        assert mine.scores(query[:200]) == pytest.approx(theirs.get_scores(words(query[:200])), abs=1e-4)


def test_words():
    assert words("Don't call json.JSON_Decode2!") == ["don", "t", "call", "json", "json", "decode2"]
    assert words("Straße ÉTÉ") == ["strasse", "été"]
    assert words("東京 tower") == ["東", "京", "tower"]


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("The Eiffel Tower.", "eiffel tower", True, 1.0),
        ("the cat sat", "a cat sat down", False, 0.8),  # 2 of 2 words right, 2 of 3 found
        ("cat cat", "cat", False, 2 / 3),  # a word counts as often as it stands in both
        ("dog", "cat", False, 0.0),
        ("", "", True, 1.0),
        ("the", "", True, 1.0),  # nothing is left of an article
        ("", "cat", False, 0.0),
        ("U.S.", "us", True, 1.0),
        ("10,000", "10000", True, 1.0),
        ("tower eiffel", "Eiffel Tower", False, 1.0),
    ],
)
def test_squad_scores_by_hand(answer, gold, exact, f1):
    assert squad_exact(answer, gold) is exact
    assert squad_f1(answer, gold) == pytest.approx(f1)


def test_hotpot_scores_by_hand():
    assert hotpot_f1("yes", "Yes.") == 1.0
    assert hotpot_f1("yes it is", "yes") == 0.0, "half right is wrong here"
    assert hotpot_f1("no", "no man") == 0.0
    assert hotpot_f1("the cat sat", "a cat sat down") == pytest.approx(0.8)
    assert squad_f1("yes it is", "yes") == 0.5
    assert normalize(" The  quick, brown-fox ") == "quick brownfox"


# Python's own documentation


IN_C = {"bisect", "datetime", "decimal", "functools", "heapq", "io", "operator", "pickle", "stat", "weakref", "xml.etree.ElementTree"}
"""Modules of which CPython runs versions in C, whose documentation is worded otherwise."""


def found(title):
    """The object of a dotted name, or None where this machine cannot import its module."""
    parts = title.split(".")
    for n in range(len(parts) - 1, 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for part in parts[n:]:
            value = inspect.getattr_static(value, part)
        return value.__func__ if isinstance(value, classmethod | staticmethod) else value
    return None


@pytest.mark.slow
def test_the_running_python_confirms_the_answers():
    """Questions are read from source; here the objects themselves are asked."""
    corpus = pythondocs.corpus()
    confirmed, wrong = dict.fromkeys(pythondocs.KINDS, 0), []
    for item in (item for split in SPLITS for item in corpus.items[split]):
        title = corpus.documents[item.support[0]].title
        thing = found(title)
        if thing is None or item.group in IN_C or getattr(thing, "__module__", "").startswith("torch"):
            continue  # torch puts its own in the place of inspect.getfile
        if item.kind == "default":
            parameter = item.text.split(" parameter ")[1].split(" of ")[0]
            right = str(inspect.signature(thing).parameters[parameter].default) == item.answers[0]
        elif item.kind == "described":
            quoted = item.text.split('"')[1]
            right = quoted in " ".join((inspect.getdoc(thing) or "").split()) and title.endswith(f".{item.answers[0]}")
            assert item.answers[0].lower() not in quoted.lower().split(), "the question does not name the answer"
        else:
            base = thing.__bases__[0] if item.kind == "base" else thing.__bases__[0].__bases__[0]
            right = base.__name__ in (item.answers[0], BUILT_IN.get(item.answers[0]))
        confirmed[item.kind] += 1
        if not right:
            wrong.append(item)
    assert not wrong
    assert all(n > 20 for n in confirmed.values()), confirmed


BUILT_IN = {"EnvironmentError": "OSError", "IOError": "OSError", "error": "OSError"}
"""Other names of the same class."""


@pytest.mark.slow
def test_python_questions_have_one_answer_in_documents_of_their_split():
    corpus = pythondocs.corpus()
    texts = [" ".join(document.text.split()).casefold() for document in corpus.documents]
    modules = {split: {item.group for item in corpus.items[split]} for split in SPLITS}
    assert sum(map(len, modules.values())) == len(set.union(*modules.values()))
    assert all(len(corpus.items[split]) >= 150 for split in SPLITS)
    everything = [item for split in SPLITS for item in corpus.items[split]]
    assert len({item.text for item in everything}) == len(everything)
    for item in everything:
        last = corpus.documents[item.support[-1]]
        assert last.title.startswith(item.group)
        assert item.answers[0] in f"{last.title} {last.text}"
    for item in random.Random(0).sample([item for item in everything if item.kind == "described"], 60):
        quoted = item.text.split('"')[1].casefold()
        assert sum(text.partition(" ")[2].startswith(quoted) or f") {quoted}" in text for text in texts) <= 1, item


@pytest.mark.slow
def test_tasks_of_another_python_are_refused():
    env = Documents()
    task = env.tasks("train", 1)[0]
    assert env.tasks("train", 1)[0].id.startswith("documents/python-3.")
    other = type(task)(
        **{**{f: getattr(task, f) for f in ("id", "env", "split", "seed")}, "data": {"corpus": "python-3.2-0", "question": 0}}
    )
    with pytest.raises(EnvError, match="another version of Python"):
        env.reset(other)
    assert Documents(kinds="base").tasks("train", 1)[0].id != Documents(kinds="chain").tasks("train", 1)[0].id
    assert len(env.tasks("train", 10**6)) == len(pythondocs.corpus().items["train"]), "finitely many"
    assert env.tasks("train", 10, 10**6) == []


@pytest.mark.parametrize("options", [{}, {"length": 120, "results": 1}, {"kinds": "chain,default"}])
def test_the_expert_answers_everything(options):
    for split in SPLITS:
        for task in Documents(**options).tasks(split, 60):
            env = Documents(**options)
            env.reset(task)
            for _ in range(env.max_turns):
                step = env.step(env.expert(random.Random(0)))
                if step.terminated:
                    break
            assert step.success, (task, step.info)
            assert step.info["read"] == 1.0


def test_what_the_tools_say():
    env = Documents(length=300, results=3)
    env.reset(env.tasks("train", 1)[0])
    say = lambda name, **given: env.step(call_of("", name, **given)).observation[0].content  # noqa: E731
    hits = say("search", query="n largest elements of a dataset heapq").splitlines()
    assert len(hits) == 3
    assert "heapq.nlargest: Find the n largest elements in a dataset." in hits
    assert say("read", document="heapq.nlargest").startswith("def heapq.nlargest(n, iterable, key=None)\n\nFind the n largest")
    assert say("read", document="heapq.nlargst").startswith("error: no document 'heapq.nlargst'. Did you mean 'heapq.nlargest'?")
    first = say("read", document="heapq")
    assert len(first) < 330
    count = int(first.rpartition(" of ")[2].rstrip(")"))
    assert first.endswith(f"(part 1 of {count})")
    assert count > 3
    assert say("read", document="heapq", part=count + 1) == f"error: part is {count + 1}; 'heapq' has parts 1 to {count}"
    assert say("search", query="qqqzzz") == "Nothing was found."
    assert [written(text) for text in ("'utf-8'", " nlargest() ", "`x`.", "-1", "")] == ["utf-8", "nlargest", "x", "-1", ""]


# Files


@pytest.fixture
def squad(tmp_path):
    def paragraph(text, *questions):
        qas = [
            {"id": q, "question": q, "answers": [{"text": a, "answer_start": text.find(a)} for a in answers]} for q, answers in questions
        ]
        return {"context": text, "qas": qas}

    nile = paragraph("The Nile is a river. It is 6,650 km long.", ("How long is the Nile?", ["6,650 km", "6,650 km long"]))
    cairo = paragraph("Cairo lies on the Nile.", ("What lies on the Nile?", ["Cairo"]), ("Who founded Cairo?", []))
    rhine = paragraph("The Rhine flows to the North Sea.", ("Where does the Rhine flow?", ["the North Sea"]))
    alps = paragraph("The Alps are mountains.", ("What are the Alps?", ["mountains"]))
    articles = [("Nile", [nile, cairo]), ("Rhine", [rhine]), ("Alps", [alps])]
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"version": "2", "data": [{"title": title, "paragraphs": parts} for title, parts in articles]}))
    return path


def play(env, task, *calls):
    env.reset(task)
    for name, given in calls:
        step = env.step(call_of("", name, **given))
    return step


def test_squad_files(squad):
    env = Documents(squad=str(squad))
    tasks = [task for split in SPLITS for task in env.tasks(split, 9)]
    assert len(tasks) == 5
    by_text = {Documents(squad=str(squad)).reset(task): task for task in tasks}
    assert by_text["How long is the Nile?"].split == by_text["Who founded Cairo?"].split, "an article stays in one split"
    assert {task.split for task in tasks} == set(SPLITS)
    long = by_text["How long is the Nile?"]
    step = play(
        Documents(squad=str(squad)),
        long,
        ("search", {"query": "Nile"}),
        ("read", {"document": "Nile"}),
        ("answer", {"text": "6650 KM long."}),
    )
    assert step.success
    assert (step.info["exact"], step.info["f1"], step.info["read"]) == (True, 1.0, 1.0)
    half = play(Documents(squad=str(squad), reward="f1"), long, ("answer", {"text": "about 6,650 km"}))
    assert half.reward == pytest.approx(0.8), "against 6,650 km: 2 of 3 words right, 2 of 2 found"
    assert not half.success
    none = by_text["Who founded Cairo?"]
    assert play(Documents(squad=str(squad)), none, ("answer", {"text": ""})).success, "it has no answer"
    assert not play(Documents(squad=str(squad)), none, ("answer", {"text": "Cairo"})).success
    titles = {document.title for document in env._corpus.documents}
    assert titles == {"Nile", "Nile (2)", "Rhine", "Alps"}


def test_files_for_the_splits(squad, tmp_path):
    other = tmp_path / "dev.json"
    content = json.loads(squad.read_text())
    content["data"] = content["data"][:1]
    content["data"][0]["paragraphs"][0]["qas"][0]["question"] = "What is the Nile's length?"
    other.write_text(json.dumps(content))
    both = Documents(squad=str(squad), dev=str(other), test=str(other))
    assert [len(both.tasks(split, 9)) for split in SPLITS] == [5, 3, 3]
    assert len(both._corpus.documents) == 4, "the same paragraph is one document"
    one = Documents(squad=str(squad), test=str(other))
    assert len(one.tasks("test", 9)) == 3
    assert len(one.tasks("train", 9)) + len(one.tasks("dev", 9)) == 5


@pytest.fixture
def hotpot(tmp_path):
    pages = {
        "Rosa": ["Rosa was born in Ulm."],
        "Ulm": ["Ulm lies on the Danube.", " It is old."],
        "Otto": ["Otto was born in Bonn."],
        "Bonn": ["Bonn lies on the Rhine."],
        "Mila": ["Mila is a singer."],
        "Nina": ["Nina is a singer."],
    }
    ask = lambda question, answer, *titles: {  # noqa: E731
        "_id": question,
        "question": question,
        "answer": answer,
        "supporting_facts": [[title, 0] for title in titles],
        "context": [[title, pages[title]] for title in titles if title in pages],
    }
    path = tmp_path / "hotpot.json"
    entries = [
        ask("On which river lies Rosa's birthplace?", "Danube", "Rosa", "Ulm"),
        ask("Is Ulm old?", "yes", "Ulm"),
        ask("On which river lies Otto's birthplace?", "the Rhine", "Otto", "Bonn"),
        ask("Are Mila and Nina both singers?", "yes", "Mila", "Nina"),
        ask("Who knows?", "nobody", "Missing"),
    ]
    path.write_text(json.dumps(entries))
    return path


def test_hotpot_files(hotpot):
    env = Documents(hotpot=str(hotpot))
    by_text = {Documents(hotpot=str(hotpot)).reset(task): task for split in SPLITS for task in env.tasks(split, 9)}
    assert len(by_text) == 4, "a question whose page is missing is left out"
    assert by_text["On which river lies Rosa's birthplace?"].split == by_text["Is Ulm old?"].split, "they share a page"
    assert {task.split for task in by_text.values()} == set(SPLITS)
    step = play(
        Documents(hotpot=str(hotpot)),
        by_text["On which river lies Otto's birthplace?"],
        ("read", {"document": "Otto"}),
        ("answer", {"text": "Rhine"}),
    )
    assert (step.success, step.info["read"]) == (True, 0.5)
    yes = play(Documents(hotpot=str(hotpot), reward="f1"), by_text["Are Mila and Nina both singers?"], ("answer", {"text": "yes, both"}))
    assert yes.reward == 0.0
    env.reset(by_text["Is Ulm old?"])
    assert env.step(call_of("", "read", document="Ulm")).observation[0].content == "Ulm lies on the Danube. It is old."


def test_files_keep_the_contract(squad, hotpot):
    for spec in (f"documents:squad={squad}", f"documents:hotpot={hotpot},reward=f1"):
        report = check_env(spec, tasks=3, processes=False)
        assert not report.problems, report
        assert report.expert_success == 1.0


def test_what_is_wrong_with_a_file_is_told(tmp_path, squad, hotpot):
    with pytest.raises(ConfigError, match="No such file"):
        Documents(squad=str(tmp_path / "missing.json"))
    with pytest.raises(ConfigError, match="not in SQuAD's format"):
        Documents(squad=str(hotpot))
    with pytest.raises(ConfigError, match="not in HotpotQA's format"):
        Documents(hotpot=str(squad))
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(ConfigError, match="is not JSON"):
        corpora.load("squad", str(tmp_path / "text.json"), "", "")


@pytest.mark.parametrize(
    "options",
    [{"squad": "a", "hotpot": "b"}, {"dev": "a"}, {"kinds": "riddle"}, {"results": 0}, {"length": 10}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError):
        Documents(**options)


@pytest.mark.slow
def test_the_environment_keeps_the_contract():
    report = check_env("documents", tasks=5)
    assert not report.problems, report
    assert report.expert_success == 1.0
