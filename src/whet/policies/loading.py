"""Reads checkpoints, and says plainly what is wrong with those that cannot be read."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from whet.errors import CheckpointError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model", "vocab.txt")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bar that transformers draws for every checkpoint."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def load_parts(path_or_hub_id: str | Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The module (on the CPU, in evaluation mode) and the tokenizer of a directory or hub id; adapters are merged.

    Raises CheckpointError.
    """
    name = str(path_or_hub_id)
    path = Path(name).expanduser()
    local = path.is_dir()
    if not local:
        _check_hub_id(name, path)
    source = str(path) if local else name
    if local and (path / "adapter_config.json").is_file():
        return _load_adapter(path, dtype)
    if local and not (path / "config.json").is_file():
        raise CheckpointError(
            f"{name!r} has no config.json, so it is not a Hugging Face checkpoint; expected config.json, weights and a tokenizer"
        )
    offline = local or not _hub_in_reach()  # what is in the hub's cache loads without a network, too
    tokenizer = _load_tokenizer(source, local=local, offline=offline)
    return _load_module(source, dtype, offline=offline), tokenizer


def _hub_in_reach() -> bool:
    """Whether the hub's name resolves. Without a network its client would try again and again for a minute."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _check_hub_id(name: str, path: Path) -> None:
    if path.exists():
        raise CheckpointError(f"{name!r} is a file; expected the directory of a Hugging Face checkpoint")
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise CheckpointError(f"no such directory: {name!r}; expected a checkpoint directory or a hub id such as 'Qwen/Qwen3-0.6B'")


def _load_module(source: str, dtype: torch.dtype, *, offline: bool) -> Any:
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=offline)
        _check_kind(source, config)
        with _quiet():
            module, report = AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=dtype, local_files_only=offline, output_loading_info=True
            )
    except CheckpointError:
        raise
    except SafetensorError as error:
        raise CheckpointError(f"the weights of {source!r} are truncated or damaged ({error}); copy or download them again") from error
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, RuntimeError and more for damaged checkpoints
        raise CheckpointError(f"could not load {source!r}: {error}") from error
    wrong = {kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "mismatched_keys") if report.get(kind)}
    if wrong:
        raise CheckpointError(f"the weights of {source!r} are incomplete: {wrong}; expected all weights of {type(module).__name__}")
    return module.eval()


def _check_kind(source: str, config: Any) -> None:
    """That the checkpoint holds a causal language model rather than an encoder, a classifier or something else."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    architectures = config.architectures or []
    generative = [a for a in architectures if a.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))]
    if known is None or (architectures and not generative):
        kind = ", ".join(architectures) or config.model_type
        raise CheckpointError(f"{source!r} is not a causal language model but {kind}; expected an architecture that ends in ForCausalLM")


def _load_tokenizer(source: str, *, local: bool, offline: bool) -> Any:
    if local and not any((Path(source) / file).is_file() for file in _TOKENIZER_FILES):
        raise CheckpointError(f"{source!r} has no tokenizer; expected tokenizer.json and tokenizer_config.json beside the weights")
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=offline)
    except OSError as error:
        if local:
            raise CheckpointError(f"could not load the tokenizer of {source!r}: {error}") from error
        raise CheckpointError(f"no directory {source!r} here, and the hub has no such model or cannot be asked: {error}") from error
    except Exception as error:  # whatever a damaged tokenizer file makes the parsers raise
        raise CheckpointError(f"could not load the tokenizer of {source!r}: {error}") from error


def _load_adapter(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """A peft adapter merged into its base model; the tokenizer is the adapter's own, or else the base model's."""
    from peft import PeftModel

    try:
        base = str(json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{str(path / 'adapter_config.json')!r} does not name a base model: {error!r}") from error
    if (path / base).is_dir():
        base = str(path / base)
    base_local = Path(base).is_dir()
    if not base_local and (Path(base).is_absolute() or base.count("/") != 1):
        raise CheckpointError(f"the adapter {str(path)!r} was trained on {base!r}, which is not there; put its base model back")
    module = _load_module(base, dtype, offline=True)
    try:
        module = PeftModel.from_pretrained(module, str(path), local_files_only=True).merge_and_unload()
    except Exception as error:  # SafetensorError, KeyError, RuntimeError: depends on what is damaged
        raise CheckpointError(f"could not load the adapter {str(path)!r}: {error}") from error
    own = any((path / file).is_file() for file in _TOKENIZER_FILES)
    return module.eval(), _load_tokenizer(str(path) if own else base, local=own or base_local, offline=True)
