"""Questions about Python's standard library, over the documentation strings that come with every Python.

The documents are modules, classes, functions and methods, read from the library's source without importing it. Questions
are made so that each has one answer that stands in a document:

    default    What is the default value of the parameter width of textwrap.wrap?                       70
    described  Which function of the module heapq is described so: "Find the n largest elements ..."?   nlargest
    base       Which class does json.JSONDecodeError inherit from?                                      ValueError
    chain      Which class does the base class of ... inherit from?                    two documents to read

The texts are those of the Python that runs, so that another version of Python has other questions; `Corpus.name` holds the
version and a digest of the texts, and every task carries it.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from whet.envs.corpora import Corpus, Document, Item, divide
from whet.errors import EnvError

KINDS = ("default", "described", "base", "chain")
MODULES = """
abc argparse ast asyncio.events asyncio.locks asyncio.queues asyncio.runners asyncio.streams asyncio.subprocess asyncio.tasks base64 bdb
bisect bz2 calendar cmd code codecs collections concurrent.futures._base concurrent.futures.thread configparser contextlib copy csv
ctypes.util dataclasses datetime decimal difflib dis doctest email.charset email.header email.message email.utils enum filecmp fileinput
fnmatch fractions ftplib functools getopt getpass gettext glob graphlib gzip heapq hmac html.parser http.client http.cookiejar
http.cookies http.server imaplib importlib.abc importlib.resources inspect io ipaddress json.decoder json.encoder linecache locale
logging logging.config logging.handlers lzma mailbox mimetypes modulefinder multiprocessing.managers multiprocessing.pool netrc
numbers opcode operator optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib posixpath pprint profile pstats
pyclbr pydoc queue quopri random reprlib rlcompleter runpy sched secrets selectors shelve shlex shutil site smtplib socket
socketserver sqlite3.dump ssl stat statistics string stringprep subprocess symtable sysconfig tabnanny tarfile tempfile textwrap
threading timeit token tokenize trace traceback types typing unittest.case unittest.loader unittest.mock unittest.result unittest.runner
unittest.suite urllib.parse urllib.request urllib.robotparser uuid warnings wave weakref webbrowser wsgiref.headers wsgiref.util
xml.dom.minidom xml.dom.pulldom xml.etree.ElementTree xml.sax.handler xml.sax.saxutils xmlrpc.client xmlrpc.server zipapp zipfile
zipimport zoneinfo._common
""".split()  # noqa: SIM905
"""Modules that are written in Python; those that a version of Python does not have are left out."""
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that is documented: a function, method or class, with its dotted name."""

    title: str
    module: str
    owner: str
    """The class of a method, dotted; empty for anything else."""
    node: Definition
    doc: str

    @property
    def name(self) -> str:
        return self.title.rpartition(".")[2]

    @property
    def head(self) -> str:
        """`def wrap(text, width=70, **kwargs)`, `class OrderedDict(dict)`"""
        if isinstance(self.node, ast.ClassDef):
            bases = ", ".join(ast.unparse(base) for base in self.node.bases)
            return f"class {self.title}({bases})" if bases else f"class {self.title}"
        return f"def {self.title}({ast.unparse(self.node.args)})"


@functools.cache
def corpus(kinds: tuple[str, ...] = KINDS) -> Corpus:
    """The documents and questions of the Python that runs. Raises EnvError where its source cannot be found."""
    documents, entries = _library()
    places = {document.title: i for i, document in enumerate(documents)}
    items = [item for item in _items(entries, places) if item.kind in kinds]
    version = ".".join(map(str, sys.version_info[:3]))
    return Corpus.build(f"python-{version}", documents, divide(items, lambda item: item.group))


@functools.cache
def _library() -> tuple[tuple[Document, ...], tuple[Entry, ...]]:
    root = Path(sysconfig.get_path("stdlib"))
    documents: list[Document] = []
    entries: list[Entry] = []
    for module in MODULES:
        tree = _parse(root, module)
        if tree is None:
            continue
        found = list(_entries(module, tree))
        entries += found
        listed = "\n".join(entry.head for entry in found if not entry.owner)
        documents.append(Document(module, "\n\n".join(part for part in (ast.get_docstring(tree) or "", listed) if part)))
        documents += [Document(entry.title, f"{entry.head}\n\n{entry.doc}") for entry in found]
    if not entries:
        raise EnvError(f"the source of Python's standard library was not found under {root}; its documentation cannot be searched")
    return tuple(documents), tuple(entries)


def _parse(root: Path, module: str) -> ast.Module | None:
    path = root.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return ast.parse(file.read_bytes())
    return None


def _entries(module: str, tree: ast.Module) -> Iterator[Entry]:
    """What the module documents: public functions, classes and their methods, each defined once and without conditions."""
    public = _declared(tree)
    for node in _once(tree.body):
        if public is not None and node.name not in public:
            continue
        title = f"{module}.{node.name}"
        if doc := ast.get_docstring(node):
            yield Entry(title, module, "", node, doc)
        if isinstance(node, ast.ClassDef):
            for method in _once(node.body):
                if not isinstance(method, ast.ClassDef) and (doc := ast.get_docstring(method)):
                    yield Entry(f"{title}.{method.name}", module, title, method, doc)


def _once(body: Sequence[ast.stmt]) -> Iterator[Definition]:
    """Public definitions whose name is bound once."""
    nodes = [node for node in body if isinstance(node, Definition)]
    times = Counter(node.name for node in nodes)
    assigned = {target.id for node in body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)}
    for node in nodes:
        if times[node.name] == 1 and node.name not in assigned and not node.name.startswith("_"):
            yield node


def _declared(tree: ast.Module) -> set[str] | None:
    """The names in `__all__`, or None where it is not a plain list."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            try:
                return set(ast.literal_eval(node.value))
            except (ValueError, TypeError):
                return None
    return None


def _items(entries: Sequence[Entry], places: Mapping[str, int]) -> Iterator[Item]:
    known = {entry.title: entry for entry in entries}
    sentences = Counter(_sentence(entry.doc).casefold() for entry in entries)
    for entry in entries:
        at = (places[entry.title],)
        for parameter, value in _defaults(entry):
            text = f"What is the default value of the parameter {parameter} of {entry.title}?"
            yield Item(text, (value,), at, "default", entry.module)
        sentence = _sentence(entry.doc)
        if sentences[sentence.casefold()] == 1 and _telling(sentence, entry.name):
            what = "class" if isinstance(entry.node, ast.ClassDef) else "method" if entry.owner else "function"
            where = f"class {entry.owner}" if entry.owner else f"module {entry.module}"
            text = f'Which {what} of the {where} is described so: "{sentence}"?'
            yield Item(text, (entry.name, entry.title), at, "described", entry.module)
        if base := _base(entry):
            short = base.rpartition(".")[2]
            yield Item(f"Which class does {entry.title} inherit from?", (short, base), at, "base", entry.module)
            above = known.get(f"{entry.module}.{base}")
            if above is not None and (second := _base(above)):
                answers = (second.rpartition(".")[2], second)
                text = f"Which class does the base class of {entry.title} inherit from?"
                yield Item(text, answers, (*at, places[above.title]), "chain", entry.module)


def _defaults(entry: Entry) -> Iterator[tuple[str, str]]:
    """Parameters whose default is a number or a word, as (name, value); True, False and None are too easy to guess."""
    if isinstance(entry.node, ast.ClassDef):
        return
    arguments = entry.node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(reversed(positional), reversed(arguments.defaults)), *zip(arguments.kwonlyargs, arguments.kw_defaults)]
    for argument, default in pairs:
        try:
            value = ast.literal_eval(default) if default is not None else None
        except ValueError:
            continue
        if type(value) in (int, float) or (isinstance(value, str) and re.fullmatch(r"\w[\w.:/-]*", value)):
            yield argument.arg, str(value)


def _sentence(doc: str) -> str:
    """The first sentence of a documentation string, on one line."""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph)[0]


def _telling(sentence: str, name: str) -> bool:
    """Whether a sentence can be asked about: long enough, not the name in other words, and no line of code."""
    plain = re.sub(r"[\W_]+", "", sentence).casefold()
    own = re.sub(r"[\W_]+", "", name).casefold()
    return 5 <= len(sentence.split()) <= 40 and own not in plain and '"' not in sentence and "->" not in sentence


def _base(entry: Entry) -> str:
    """The one public class that a class inherits from, as its source names it; empty where there is none or there are several."""
    if not isinstance(entry.node, ast.ClassDef) or len(entry.node.bases) != 1 or entry.node.keywords:
        return ""
    base = ast.unparse(entry.node.bases[0])
    return base if re.fullmatch(r"(?:\w+\.)*[A-Za-z]\w*", base) and base != "object" else ""
