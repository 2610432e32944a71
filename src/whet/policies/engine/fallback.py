"""Any causal language model, through its own transformers module and cache: one session at a time, slow but right."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from whet.policies.engine.base import Session


class ModuleDecoder:
    """Runs architectures that `engine.transformer` does not know. Takes any module that `AutoModelForCausalLM` makes."""

    def __init__(self, module: torch.nn.Module, *, context: int, vocab_size: int, max_sessions: int = 64) -> None:
        self.module = module.eval()
        self.context = context
        self.vocab_size = vocab_size
        self._max_sessions = max_sessions

    def capacity(self, length: int) -> int:
        return self._max_sessions

    def place(self, session: Session) -> None:
        session.cache, session.length = None, 0

    def drop(self, session: Session) -> None:
        session.cache, session.length = None, 0

    def truncate(self, session: Session, length: int) -> None:
        # Not every cache can be cropped (recurrent states, sliding windows), so whatever is not a pure extension starts anew.
        if length < session.length:
            session.cache, session.length = None, 0

    def match(self, tokens: Sequence[int]) -> tuple[Session | None, int, int]:
        return None, 0, 0

    def copy(self, source: Session, target: Session, length: int) -> None:
        raise NotImplementedError("the caches of transformers modules are not copied; match() offers nothing to copy")

    def chunk(self, length: int) -> int:
        return 1 << 30

    @torch.inference_mode()
    def forward(self, sessions: Sequence[Session], counts: Sequence[int]) -> torch.Tensor:
        device = next(self.module.parameters()).device
        logits = []
        for session, count in zip(sessions, counts, strict=True):
            start = session.length if session.cache is not None else 0  # a model without such a cache reads everything again
            new = torch.tensor([session.tokens[start : session.length + count]], device=device)
            out = self.module(input_ids=new, past_key_values=session.cache, use_cache=True)
            session.cache = getattr(out, "past_key_values", None)
            session.length += count
            logits.append(out.logits[0, -1].float())
        return torch.stack(logits)

    def close(self, *, healthy: bool = True) -> None:
        pass
