"""Local Hugging Face weights as a policy: an immutable handle, with the decode engine behind it."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from whet.errors import CheckpointError, ConfigError, StorageError
from whet.policies.base import Request
from whet.policies.chat import ChatFormat
from whet.policies.engine import Engine
from whet.policies.engine.select import context_of, decoder_for
from whet.policies.loading import load_parts
from whet.tools.function import Tool
from whet.types import Cost, Turn


@dataclass(frozen=True, eq=False, repr=False)
class LocalPolicy:
    """A causal language model that never changes. `load` one, or make the next with `with_weights`.

    Two handles may share a tokenizer and a config, never weights that somebody still trains: `with_weights` copies.
    """

    config: Any
    """The model's `PretrainedConfig`; shared, so not to be written to."""
    tokenizer: Any
    weights: Mapping[str, torch.Tensor]
    """Parameters and persistent buffers by their state-dict names, without the second name of tied ones. Read only."""
    chat: ChatFormat
    version: str = ""
    """Names the weights; a hash of them unless a name was given."""
    generation_config: Any = None
    max_sessions: int = field(default=1024, kw_only=True)
    """Conversations that the engine keeps in its cache at once, if its memory holds them; of more, idle ones are computed again.

    A conversation waits there while its tools work, so this should not be less than the episodes in flight.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))
        if not self.version:
            object.__setattr__(self, "version", fingerprint(self.weights))

    def __repr__(self) -> str:
        return f"LocalPolicy({self.config.model_type}, {self.n_parameters:,} parameters, version={self.version!r})"

    @property
    def n_parameters(self) -> int:
        return sum(w.numel() for w in self.weights.values())

    @classmethod
    def load(cls, path_or_hub_id: str | Path, *, dtype: str | torch.dtype = "float32", device: str | torch.device = "cpu") -> LocalPolicy:
        """A checkpoint directory (full weights or a `peft` adapter, which is merged) or the id of one on the hub.

        A directory is read without touching the network. Raises CheckpointError where anything is missing, damaged
        or not a causal language model, ConfigError for an unknown dtype.
        """
        kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise ConfigError(f"unknown dtype {dtype!r}; expected a floating point type of torch, such as 'float32' or 'bfloat16'")
        module, tokenizer = load_parts(path_or_hub_id, kind)
        return cls.from_module(module.to(device), tokenizer)

    @classmethod
    def from_module(cls, module: Any, tokenizer: Any, version: str = "") -> LocalPolicy:
        """A handle over the present weights of a transformers module, which are copied."""
        return cls(
            config=module.config,
            tokenizer=tokenizer,
            weights={name: tensor.detach().clone() for name, tensor in own_tensors(module).items()},
            chat=ChatFormat(tokenizer),
            version=version,
            generation_config=getattr(module, "generation_config", None),
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(w.dtype for w in self.weights.values() if w.is_floating_point())

    @property
    def device(self) -> torch.device:
        return next(iter(self.weights.values())).device

    @property
    def context(self) -> int:
        """Tokens that a conversation can hold, answer included."""
        return context_of(self.config)

    def with_weights(self, weights: Mapping[str, torch.Tensor], version: str = "") -> LocalPolicy:
        """A handle with a copy of other weights of the same names and shapes; a module's `state_dict()` will do.

        They are cast to this handle's dtype and moved to its device. Raises ConfigError where names or shapes differ.
        """
        copies = {}
        for name, old in self.weights.items():
            new = weights.get(name)
            if new is None or new.shape != old.shape:
                found = "is missing" if new is None else f"has shape {tuple(new.shape)}"
                raise ConfigError(f"weight {name!r} {found}; expected shape {tuple(old.shape)} as in {self!r}")
            copies[name] = new.detach().to(device=old.device, dtype=old.dtype, copy=True)
        return replace_fields(self, weights=copies, version=version)

    def module(self, *, share: bool = False) -> Any:
        """A transformers module in evaluation mode with a copy of these weights, to train or to compare with.

        With `share` it holds the handle's own tensors, which must then not be written to.
        """
        with no_init_weights():
            module = AutoModelForCausalLM.from_config(copy.deepcopy(self.config), dtype=self.dtype)
        module.to(self.device)
        missing, unexpected = module.load_state_dict(dict(self.weights), strict=False, assign=share)
        module.tie_weights()
        if unexpected or set(missing) & own_tensors(module).keys():
            raise CheckpointError(f"weights do not fit {type(module).__name__}: missing {missing}, unexpected {unexpected}")
        module.generation_config = copy.deepcopy(self.generation_config) or module.generation_config
        return module.eval()

    def save(self, directory: str | Path) -> None:
        """Write an ordinary Hugging Face checkpoint: whole or not at all, replacing one that is there.

        Raises StorageError where it cannot be written.
        """
        target = Path(directory)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
                fresh, old = Path(scratch) / "new", Path(scratch) / "old"
                fresh.mkdir()
                self._write(fresh)
                _replace(target, fresh, old)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"could not write the checkpoint {str(target)!r}: {error}; free space or choose another place") from error

    def _write(self, directory: Path) -> None:
        config = copy.deepcopy(self.config)
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
        config.dtype = self.dtype
        config.save_pretrained(directory)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights.items()}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    @functools.cached_property
    def engine(self) -> Engine:
        """The decode engine of these weights, made when first asked for."""
        decoder = decoder_for(self.config, self.weights, lambda: self.module(share=True))
        return Engine(decoder, stops=self.chat.stops, max_sessions=self.max_sessions)

    def observe(self, turns: Sequence[Turn], new: Sequence[Turn], tools: Sequence[Tool]) -> tuple[Turn, ...]:
        """`new` turns with tokens. Of turns that are rendered together, the last one holds the tokens of all.

        Assistant turns without tokens (written, not sampled) are tokenised as the template writes answers. What has
        tokens already keeps them.
        """
        last = next((t for t in reversed(turns) if t.tokens), None)
        rendered: list[Turn] = []
        for assistant, members in itertools.groupby(new, key=lambda t: t.role == "assistant"):
            group = list(members)
            if assistant:
                group = [t if t.tokens else replace_fields(t, tokens=self.chat.answer(t)) for t in group]
            elif not any(t.tokens for t in group):
                if last is None:
                    tokens = self.chat.open(group, tools)
                else:
                    tokens = self.chat.extend(group, closed=not last.trained or last.tokens[-1] == self.chat.end)
                group[-1] = replace_fields(group[-1], tokens=tokens)
            rendered += group
            last = group[-1]
        return tuple(rendered)

    async def generate(self, request: Request) -> Turn:
        """The next assistant turn, with its tokens and their exact log-probs.

        Raises ContextFull where the conversation leaves no room, PolicyError where decoding fails.
        """
        sampling = request.sampling
        result = await self.engine.generate(
            [token for turn in request.turns for token in turn.tokens],
            sampling,
            max_tokens=sampling.max_tokens or request.max_tokens,
            seed=request.seed,
            session=request.session,
        )
        content, calls = self.chat.read(result.tokens)
        return Turn(
            role="assistant",
            content=content,
            tool_calls=calls,
            tokens=result.tokens,
            logprobs=result.logprobs,
            versions=((self.version, len(result.tokens)),),
            temperature=sampling.temperature or 1.0,
            finish=result.finish,
            cost=Cost(prompt_tokens=result.prefilled, sampled_tokens=len(result.tokens)),
        )

    def release(self, session: str) -> None:
        """Forget what is cached for a session."""
        if "engine" in self.__dict__:
            self.engine.release(session)


def _replace(target: Path, fresh: Path, old: Path) -> None:
    """Put the directory `fresh` in the place of `target`; what was there goes to `old`, and back if that fails."""
    if not target.exists():
        fresh.rename(target)
        return
    target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        old.rename(target)
        raise


def own_tensors(module: Any) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers of a module by name, each tied parameter under its first name only."""
    own = dict(module.named_parameters())
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return own | {name: tensor for name, tensor in module.state_dict().items() if name not in every}


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """A hash of names, types, shapes and contents: equal for equal weights, on every machine."""
    digest = hashlib.blake2b(digest_size=6)
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
