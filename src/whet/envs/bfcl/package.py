"""What is taken from the package `bfcl-eval`: its data, its prompts, its decoders and its checker of single calls.

The package is installed without its dependencies (they pin another numpy and bring a dozen vendors' clients). Two of its
modules are loaded as private copies: the checker, which asks a table of vendors' models whether dots in names become
underscores, and the functions for prompts and decoding, which call `eval` on parts of the model's text. The copies get a
table of our own, and an `eval` that runs in the sandbox. Nothing else in them is changed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from types import ModuleType, SimpleNamespace
from typing import Any

from whet.errors import EnvError, MissingExtra
from whet.tools.function import Tool
from whet.tools.sandbox import SandboxUnavailable
from whet.types import ToolCall

PINS = ("tree_sitter==0.21.3", "tree-sitter-java==0.21.0", "tree-sitter-javascript==0.21.4", "tenacity", "filelock", "mpmath==1.3.0")
INSTALL = f"pip install --no-deps bfcl-eval && pip install {' '.join(PINS)}"

Entry = Mapping[str, Any]
"""A task as the package stores it: `id`, `question` (turns of messages), `function` (the docs), and its initial state."""


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name.partition(".")[0] if error.name else name
        raise MissingExtra(
            f"the environment 'bfcl' needs the package {missing.replace('_', '-')!r}, which is not installed. Run: {INSTALL} "
            "(--no-deps, because bfcl-eval's own dependencies pin another numpy and pull another torch)"
        ) from error


def _private(name: str, **given: object) -> ModuleType:
    """A copy of a module of the package with globals of its own, `given` among them."""
    original = importlib.util.find_spec(name)
    assert original is not None
    assert original.origin is not None
    spec = importlib.util.spec_from_file_location(f"_whet_{name.replace('.', '_')}", original.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module).update(given)
    spec.loader.exec_module(module)
    return module


_scratch = tempfile.TemporaryDirectory(prefix="whet-bfcl-")


def _load_utils() -> ModuleType:
    """`bfcl_eval.utils`, whose import makes directories for results and locks: in a temporary place, not beside the package."""
    _import("bfcl_eval")
    for needed in ("filelock", "tenacity", "tree_sitter", "tree_sitter_java", "tree_sitter_javascript", "mpmath"):
        _import(needed)
    if "BFCL_PROJECT_ROOT" in os.environ:
        return _import("bfcl_eval.utils")
    os.environ["BFCL_PROJECT_ROOT"] = _scratch.name
    try:
        return _import("bfcl_eval.utils")
    finally:
        del os.environ["BFCL_PROJECT_ROOT"]


_utils = _load_utils()
_categories = _import("bfcl_eval.constants.category_mapping")
_defaults = _import("bfcl_eval.constants.default_prompts")
_enums = _import("bfcl_eval.constants.enums")
_types = _import("bfcl_eval.constants.type_mappings")

STEP_LIMIT: int = _defaults.MAXIMUM_STEP_LIMIT
"""Steps with calls within one user turn; one more ends the conversation."""
SINGLE_TURN: tuple[str, ...] = tuple(_categories.SINGLE_TURN_CATEGORY)
MULTI_TURN: tuple[str, ...] = tuple(_categories.MULTI_TURN_CATEGORY)
SUPPORTED = (*SINGLE_TURN, *MULTI_TURN)
AGENTIC: tuple[str, ...] = tuple(_categories.AGENTIC_CATEGORY)


def collection(name: str) -> tuple[str, ...]:
    """The categories of one of the package's collections, such as `live`, as far as they are supported; () for another name."""
    found = _categories.TEST_COLLECTION_MAPPING.get(name, ())
    return tuple(category for category in SUPPORTED if category in found)


def version() -> str:
    """The version of the package that is installed."""
    return importlib.metadata.version("bfcl-eval")


# -- data -----------------------------------------------------------------------------------------------------------------


@functools.cache
def size(category: str) -> int:
    """How many tasks the category has, as the package counts them."""
    if category in SUPPORTED:
        return len(entries(category))
    return len(_utils.load_dataset_entry(category, include_prereq=False, include_language_specific_hint=False))


@functools.cache
def entries(category: str) -> dict[str, Entry]:
    """Id -> entry, in the package's order, as its checker sees them. Not to be changed."""
    found = _utils.load_dataset_entry(category, include_prereq=False, include_language_specific_hint=False)
    return {entry["id"]: entry for entry in found}


@functools.cache
def prompts(category: str) -> dict[str, Entry]:
    """Id -> entry as the model is shown it: descriptions name the language, arguments of Java and JavaScript are strings."""
    return {entry["id"]: entry for entry in _utils.load_dataset_entry(category, include_prereq=False)}


@functools.cache
def answers(category: str) -> dict[str, list[Any]]:
    """Id -> possible answers (calls with lists of accepted values), or the turns' calls; empty where a category has none.

    The package matches them by position, for a few have another id than their task.
    """
    if "relevance" in category:
        return {}
    return dict(zip(entries(category), (answer["ground_truth"] for answer in _utils.load_ground_truth_entry(category)), strict=True))


# -- the package's functions ------------------------------------------------------------------------------------------------


@functools.cache
def _handler() -> ModuleType:
    """Prompts and decoders. `eval`, which the decoder calls on arithmetic in arguments, is the sandbox's."""
    from whet.envs.bfcl.execution import evaluate

    return _private("bfcl_eval.model_handler.utils", eval=evaluate)


@functools.cache
def _checker() -> ModuleType:
    name = "bfcl_eval.constants.model_config"
    kept = sys.modules.get(name)
    stub = ModuleType(name)
    # Names with dots are not allowed in function calling, so they are shown, and expected back, with underscores.
    vars(stub)["MODEL_CONFIG_MAPPING"] = {mode: SimpleNamespace(underscore_to_dot=mode == "fc") for mode in ("fc", "prompting")}
    sys.modules[name] = stub
    try:
        return _private("bfcl_eval.eval_checker.ast_eval.ast_checker")
    finally:
        del sys.modules[name]
        if kept is not None:
            sys.modules[name] = kept


def tools(functions: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Function docs as the package gives them to OpenAI's chat completions."""
    made = _handler().convert_to_tool(list(functions), _types.GORILLA_TO_OPENAPI, _enums.ModelStyle.OPENAI_COMPLETIONS)
    return tuple(
        Tool(name=f["name"], description=f.get("description", ""), parameters=f["parameters"]) for f in (tool["function"] for tool in made)
    )


def opening(entry: Entry, mode: str) -> list[dict[str, str]]:
    """The messages of the first user turn; in the mode `prompting` with the package's system prompt, which holds the docs.

    A few tasks of live_irrelevance begin with answers of an assistant's. Those are no turns of the policy's, so there the
    conversation so far is told in one message of the user's.
    """
    messages: list[dict[str, str]] = deepcopy(entry["question"][0])
    if any(message["role"] == "assistant" for message in messages):
        system = [message for message in messages if message["role"] == "system"]
        told = "\n".join(f"{message['role']}: {message['content']}" for message in messages if message["role"] != "system")
        messages = [*system, {"role": "user", "content": told}]
    if mode == "prompting":
        messages = _handler().system_prompt_pre_processing_chat_model(messages, entry["function"], entry["id"])
    return messages


def added(functions: Sequence[Mapping[str, Any]], mode: str) -> str:
    """What the user says when functions come along in the middle of a conversation.

    In function calling, too, their docs stand in the message: what a policy was told about tools stands at the beginning.
    """
    prompting: str = _defaults.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING
    if mode == "prompting":
        return prompting.format(functions=list(functions))
    return prompting.format(functions="\n".join(json.dumps(tool.schema()["function"]) for tool in tools(functions)))


def language_of(category: str) -> str:
    """`python`, `java` or `javascript`."""
    return {"simple_java": "java", "simple_javascript": "javascript"}.get(category, "python")


def decode(answer: str | Sequence[ToolCall], category: str, mode: str) -> list[Any]:
    """The calls of a single-turn answer, `[{name: arguments}]`, as the package's decoders read text or tool calls.

    Raises whatever those raise where there is nothing to be read, which the package counts as "no call".
    """
    if not isinstance(answer, str):
        if bad := next((call for call in answer if call.error), None):
            raise ValueError(bad.error)
        return [{call.name: dict(call.arguments)} for call in answer]
    if mode == "prompting":
        calls: list[Any] = _handler().default_decode_ast_prompting(answer, _enums.ReturnFormat(language_of(category)))
        return calls
    if answer:
        raise ValueError("the answer has no tool calls")
    return []


def decode_executable(answer: str | Sequence[ToolCall], mode: str) -> list[str]:
    """The calls of a step of a conversation, as Python expressions; none where there is nothing to be read.

    Raises EnvError or SandboxUnavailable where the sandbox fails.
    """
    handler = _handler()
    try:
        if isinstance(answer, str) and mode == "prompting":
            calls: list[str] = handler.default_decode_execute_prompting(answer)
        else:
            calls = handler.convert_to_function_call(decode(answer, "", mode))
    except (EnvError, SandboxUnavailable):
        raise
    except Exception:  # whatever it is: the package takes any exception for "no call"
        return []
    return [] if calls == [""] else calls


def results_message(calls: Sequence[str], results: Sequence[str]) -> str:
    """What the calls of a step returned, as the package tells a model in the mode `prompting`."""
    text: str = _handler().format_execution_results_prompting({}, list(results), {"model_responses_decoded": list(calls)})
    return text


def judge(category: str, id: str, answer: str | Sequence[ToolCall], mode: str) -> dict[str, Any]:
    """The package's verdict on a single-turn answer: `valid`, and where it is false `error_type` and `error`."""
    decoded: Any = None
    problem = ""
    try:
        decoded = decode(answer, category, mode)
    except (EnvError, SandboxUnavailable):
        raise
    except Exception as error:  # whatever it is: the package takes any exception for "cannot be decoded"
        problem = f"{type(error).__name__}: {error}"
    if "relevance" in category:
        called = not problem and not _utils.is_empty_output(decoded)
        if called != ("irrelevance" in category):
            return {"valid": True}
        kind = "irrelevance_error:decoder_success" if called else "relevance_error:decoder_failed"
        return {"valid": False, "error_type": kind, "error": problem or "a call was made" if called else problem or "no call was made"}
    if problem:
        return {"valid": False, "error_type": "ast_decoder:decoder_failed", "error": problem}
    if not _utils.is_function_calling_format_output(decoded):
        return {"valid": False, "error_type": "ast_decoder:decoder_wrong_output_format", "error": repr(decoded)}
    language = _enums.Language(language_of(category))
    entry = entries(category)[id]
    try:
        verdict = _checker().ast_checker(entry["function"], decoded, answers(category)[id], language, category, mode)
    except Exception as error:  # values that the package's checker cannot compare: there, they end the whole evaluation
        return {"valid": False, "error_type": f"checker:{type(error).__name__}", "error": str(error)}
    return {"valid": True} if verdict["valid"] else {key: verdict[key] for key in ("valid", "error_type", "error")}
