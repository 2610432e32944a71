"""The decode engine: the same numbers as transformers, whatever shares the batch and the cache."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from helpers import tiny_module, tiny_policy
from whet.errors import ContextFull, PolicyError
from whet.policies.base import Sampling
from whet.policies.engine import Engine, Result, Session, cache
from whet.policies.engine.architectures import architecture_of
from whet.policies.engine.fallback import ModuleDecoder
from whet.policies.engine.sampling import sample, uniform
from whet.policies.engine.transformer import Transformer
from whet.policies.gate import current_gate
from whet.policies.local import LocalPolicy

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {}),
    "qwen3-untied-biased": ("qwen3", {"tie_word_embeddings": False, "attention_bias": True}),
    "qwen3-windows": ("qwen3", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
    "qwen2": ("qwen2", {}),
    "llama": ("llama", {}),
    "llama-tied-biased": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-yarn": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}},
    ),
    "mistral": ("mistral", {"sliding_window": 20}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 24}),
    "gemma3": ("gemma3_text", {"sliding_window": 16, "query_pre_attn_scalar": 24, "num_hidden_layers": 3, "sliding_window_pattern": 2}),
}


def random_tokens(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 320, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def transformer(policy: LocalPolicy, **options: Any) -> Transformer:
    decoder = policy.engine.decoder
    assert isinstance(decoder, Transformer)
    return decoder


@torch.no_grad()
def reference_logprobs(module: Any, tokens: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """[T, vocab]: what a fresh forward pass over all tokens predicts after each."""
    return torch.log_softmax(module(torch.tensor([list(tokens)])).logits[0].float() / temperature, -1)


@torch.no_grad()
def check_logits(module: Any, session: Session, logits: torch.Tensor) -> None:
    """That they are what a fresh forward pass over the session's cached tokens ends with."""
    expected = module(torch.tensor([session.tokens[: session.length]])).logits[0, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", FAMILY)
def test_logits_agree_with_transformers(shape: str) -> None:
    arch, config = FAMILY[shape]
    policy = tiny_policy(arch, **config)
    module = policy.module()
    decoder = transformer(policy)
    # Ragged prompts, then more of the same sessions, some idle, one token and several at a time.
    sessions = [Session(key=i, tokens=random_tokens(50, seed=i)) for i in range(5)]
    for session in sessions:
        decoder.place(session)
    for step in ({0: 7, 1: 23, 2: 1, 3: 24, 4: 30}, {0: 1, 1: 1, 3: 1}, {4: 1}, {0: 9, 2: 40, 4: 1}, {2: 1, 1: 20}):
        taking = [sessions[i] for i in step]
        logits = decoder.forward(taking, list(step.values()))
        for session, row in zip(taking, logits, strict=True):
            check_logits(module, session, row)


def test_unknown_architectures_go_through_their_module() -> None:
    policy = tiny_policy("gpt2", max_position_embeddings=128)
    assert architecture_of(policy.config) is None
    assert isinstance(policy.engine.decoder, ModuleDecoder)
    assert policy.context == 128
    histories = converse(policy.engine, [random_tokens(20, seed=i) for i in range(3)], turns=2)
    for history in histories:
        check_logprobs(policy.module(), history)


def test_rope_that_depends_on_the_length_is_left_to_transformers() -> None:
    dynamic = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
    assert architecture_of(tiny_module("llama", **dynamic).config) is None


def test_bfloat16_is_close_to_float32() -> None:
    policy = tiny_policy("qwen3")
    half = policy.with_weights({name: w.bfloat16().float() for name, w in policy.weights.items()})
    rounded = LocalPolicy.from_module(half.module().bfloat16(), half.tokenizer)
    logits = []
    for handle in (half, rounded):
        decoder, session = transformer(handle), Session(key=0, tokens=random_tokens(40))
        decoder.place(session)
        decoder.forward([session], [30])
        logits.append(decoder.forward([session], [10]))
    assert logits[1].dtype == torch.float32
    assert (logits[0] - logits[1]).abs().max() < 0.05 * logits[0].abs().max()


def converse(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    *,
    turns: int = 3,
    samplings: Sequence[Sampling] = (Sampling(),),
    max_tokens: int = 9,
    observation: int = 6,
    release: bool = True,
    leave_early: bool = False,
) -> list[list[Any]]:
    """Episodes at once: prompt, answer, observation, answer, ... Gives each as [(tokens before, sampling, result), ...].

    With `leave_early` the i-th has one turn, two turns and so on up to `turns`, and again.
    """

    async def episode(i: int) -> list[Any]:
        history, said = list(prompts[i]), []
        for turn in range(1 + i % turns if leave_early else turns):
            sampling = samplings[(i + turn) % len(samplings)]
            result = await engine.generate(history, sampling, max_tokens=max_tokens, seed=100 * i + turn, session=f"s{i}")
            said.append((list(history), sampling, result))
            history += [*result.tokens, *random_tokens(observation, seed=1000 + 10 * i + turn)]
        if release:
            engine.release(f"s{i}")
        return said

    async def everything() -> list[list[Any]]:
        return list(await asyncio.gather(*(episode(i) for i in range(len(prompts)))))

    return asyncio.run(everything())


def check_logprobs(module: Any, said: Sequence[Any]) -> None:
    """What the engine reported equals a fresh forward pass over the final tokens."""
    for before, sampling, result in said:
        whole = [*before, *result.tokens]
        expected = reference_logprobs(module, whole, sampling.temperature or 1.0)[len(before) - 1 : -1]
        picked = expected.gather(-1, torch.tensor(result.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(result.logprobs), picked, atol=1e-4, rtol=1e-4)
        if sampling.temperature == 0:
            assert list(result.tokens) == expected.argmax(-1).tolist()


MIXED = (
    Sampling(),
    Sampling(temperature=0.0),
    Sampling(temperature=0.7, top_p=0.9),
    Sampling(temperature=1.3, top_k=5),
    Sampling(temperature=2.0, top_k=20, top_p=0.5),
)


@pytest.mark.parametrize("arch", ["qwen3", "gemma2", "llama"])
def test_sampled_logprobs_equal_a_fresh_forward_pass(arch: str) -> None:
    policy = tiny_policy(arch, **({"sliding_window": 16} if arch == "gemma2" else {}))
    shared = random_tokens(40, seed=7)
    prompts = [[*shared, *random_tokens(i // 3 * 5, seed=i // 3)] for i in range(12)]  # groups of 3 share all of theirs
    for said in converse(policy.engine, prompts, samplings=MIXED):
        check_logprobs(policy.module(), said)


def test_only_new_tokens_are_computed() -> None:
    engine = tiny_policy().engine
    [said] = converse(engine, [random_tokens(50)], turns=4, max_tokens=5, observation=6)
    # After the first turn: the observation, and the last sampled token, which was never fed.
    assert [result.prefilled for *_, result in said] == [50, 7, 7, 7]
    assert engine.stats.prefilled == 50 + 3 * 7


def test_the_prompt_of_a_group_is_computed_once() -> None:
    engine = tiny_policy().engine
    prompt = random_tokens(64)
    group = converse(engine, [prompt] * 8, turns=1)
    # The leader computes all of it; the others copy all but the last token, which each feeds for its own logits.
    assert sorted(said[0][2].prefilled for said in group) == [1] * 7 + [64]
    assert engine.stats.copied == 7 * 63
    assert len({said[0][2].tokens for said in group}) == 8, "eight seeds should give eight answers"


def test_a_common_beginning_is_copied_from_a_running_session() -> None:
    engine = tiny_policy().engine
    beginning = random_tokens(40)
    prompts = [[*beginning, *random_tokens(10, seed=i)] for i in range(1, 5)]
    said = converse(engine, prompts, turns=1)
    assert [s[0][2].prefilled for s in said] == [50, 10, 10, 10]
    assert engine.stats.copied == 3 * 40


def test_a_rewritten_history_is_computed_again_from_where_it_differs() -> None:
    policy = tiny_policy()
    engine = policy.engine
    first, second = random_tokens(30), random_tokens(30)
    second[12] += 1 if second[12] < 300 else -1

    async def run() -> list[Any]:
        said = []
        for i, prompt in enumerate((first, second, second)):
            result = await engine.generate(prompt, Sampling(), max_tokens=4, seed=i, session="s")
            said.append((prompt, Sampling(), result))
        return said

    said = asyncio.run(run())
    assert [result.prefilled for *_, result in said] == [30, 18, 1]
    check_logprobs(policy.module(), said)


@pytest.mark.parametrize("sessions", [1, 3])
def test_more_episodes_than_places(sessions: int) -> None:
    policy = tiny_policy()
    prompts = [random_tokens(20 + i, seed=i) for i in range(8)]
    roomy = converse(policy.engine, prompts, samplings=MIXED)
    engine = Engine(policy.engine.decoder, stops=policy.chat.stops, max_sessions=sessions)
    crowded = converse(engine, prompts, samplings=MIXED)
    for a, b in zip(roomy, crowded, strict=True):
        check_logprobs(policy.module(), b)
        assert [r.tokens for *_, r in a] == [r.tokens for *_, r in b]


def test_idle_sessions_are_evicted_and_come_back() -> None:
    policy = tiny_policy()
    engine = Engine(policy.engine.decoder, stops=frozenset(), max_sessions=2)

    async def run() -> list[Any]:
        said = []
        for i in (0, 1, 2, 0, 1):
            prompt = random_tokens(24, seed=i)
            said.append((prompt, Sampling(), await engine.generate(prompt, Sampling(), max_tokens=4, seed=i, session=f"s{i}")))
        return said

    said = asyncio.run(run())
    assert engine.stats.evicted == 3
    assert [result.prefilled for *_, result in said] == [24] * 5
    assert said[0][2].tokens == said[3][2].tokens
    check_logprobs(policy.module(), said)


def test_sessions_that_outgrow_the_cache_send_others_back_to_the_queue() -> None:
    policy = tiny_policy()
    decoder = transformer(policy)
    small = Transformer(decoder.arch, decoder.stack, policy.config, context=512, max_bytes=3 * 128 * 2 * 2 * 2 * 8 * 4)
    assert (small.capacity(100), small.capacity(200)) == (3, 1)
    engine = Engine(small, stops=frozenset())
    prompts = [random_tokens(100, seed=i) for i in range(3)]
    for said in converse(engine, prompts, turns=1, max_tokens=60):
        assert len(said[0][2].tokens) == 60
        check_logprobs(policy.module(), said)
    assert engine.stats.evicted == 2


def test_greedy_answers_and_seeds_do_not_depend_on_company() -> None:
    engine = tiny_policy().engine
    prompts = [random_tokens(10 + 3 * i, seed=i) for i in range(9)]
    together = converse(engine, prompts, samplings=MIXED)
    for i, said in enumerate(together):

        async def alone(i: int = i, said: list[Any] = said) -> None:
            for turn, (before, sampling, result) in enumerate(said):
                again = await engine.generate(before, sampling, max_tokens=9, seed=100 * i + turn)
                assert again.tokens == result.tokens

        asyncio.run(alone())


def test_the_same_arrivals_give_the_same_bits() -> None:
    def run() -> Any:
        return converse(tiny_policy().engine, [random_tokens(10 + i, seed=i // 2) for i in range(10)], samplings=MIXED)

    assert run() == run()


def test_what_was_decoded_before_in_this_process_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run that is resumed has not decoded what the undisturbed one had."""
    monkeypatch.setattr(cache, "_POOL", {})
    shapes: list[list[tuple[int, ...]]] = []

    def run(engine: Engine, lengths: Sequence[int]) -> Any:
        seen: list[tuple[int, ...]] = []
        forward = engine.decoder.forward

        def watched(sessions: Sequence[Session], counts: Sequence[int]) -> torch.Tensor:
            logits = forward(sessions, counts)
            seen.append((*engine.decoder.cache.data.shape, *(s.row for s in sessions)))  # type: ignore[attr-defined]
            return logits

        with monkeypatch.context() as patched:
            patched.setattr(engine.decoder, "forward", watched)
            shapes.append(seen)
            return converse(engine, [random_tokens(n, seed=n) for n in lengths], turns=4, samplings=MIXED, leave_early=True)

    policy = tiny_policy()
    short = range(90, 114, 2)  # they outgrow 128 tokens on the way, some when others have left
    first = run(policy.engine, short)
    run(policy.engine, range(300, 330))
    again, fresh = run(policy.engine, short), run(tiny_policy().engine, short)
    assert first == again == fresh
    assert shapes[0] == shapes[2] == shapes[3]
    assert len({shape[:6] for shape in shapes[0]}) > 1


def test_it_stops_at_stop_tokens_and_at_its_limits() -> None:
    policy = tiny_policy(max_position_embeddings=64)
    prompt = random_tokens(20)

    def answer(stops: frozenset[int], max_tokens: int, prompt: list[int] = prompt) -> Result:
        engine = Engine(policy.engine.decoder, stops=stops)
        return asyncio.run(engine.generate(prompt, Sampling(), max_tokens=max_tokens, seed=3))

    free = answer(frozenset(), 12)
    assert (len(free.tokens), free.finish) == (12, "length")
    stopped = answer(frozenset({free.tokens[4]}), 12)
    assert (stopped.tokens, stopped.finish) == (free.tokens[: free.tokens.index(free.tokens[4]) + 1], "stop")
    assert answer(frozenset(), 1).tokens == free.tokens[:1]
    full = answer(frozenset(), 100)
    assert (len(prompt) + len(full.tokens), full.finish) == (64, "length")
    check_logprobs(policy.module(), [(prompt, Sampling(), full)])
    with pytest.raises(ContextFull, match="64 tokens"):
        answer(frozenset(), 1, random_tokens(64))
    with pytest.raises(PolicyError, match="no tokens"):
        answer(frozenset(), 1, [])
    with pytest.raises(PolicyError, match="vocabulary of 320"):
        answer(frozenset(), 1, [3, 320])


def chi_square(counts: Counter[int], probabilities: torch.Tensor, n: int) -> tuple[float, int]:
    """Statistic and degrees of freedom, with rare tokens (fewer than 5 expected) put together."""
    rare = probabilities * n < 5
    observed = [counts[i] for i in range(len(probabilities)) if not rare[i]] + [sum(counts[i] for i in rare.nonzero().flatten().tolist())]
    expected = [*(probabilities[~rare] * n).tolist(), float(probabilities[rare].sum()) * n]
    terms = [(o - e) ** 2 / e for o, e in zip(observed, expected, strict=True) if e > 0]
    assert all(o == 0 for o, e in zip(observed, expected, strict=True) if e == 0)
    return sum(terms), len(terms) - 1


@pytest.mark.parametrize("sampling", [Sampling(), *MIXED[2:]], ids=str)
def test_tokens_come_from_the_distribution_that_was_asked_for(sampling: Sampling) -> None:
    n, vocab = 20_000, 50
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(1)) * 2
    tokens, logprobs = sample(logits.expand(n, -1).clone(), [sampling] * n, [uniform(17, i) for i in range(n)])
    full = torch.softmax(logits / sampling.temperature, -1)
    torch.testing.assert_close(logprobs, full.log()[tokens], atol=1e-5, rtol=1e-5)
    order = full.argsort(descending=True)
    kept = order[: sampling.top_k or vocab]
    mass = full[kept] / full[kept].sum()
    kept = kept[(mass.cumsum(0) - mass) < sampling.top_p]
    assert set(tokens.tolist()) <= set(kept.tolist())
    probabilities = torch.zeros(vocab).index_copy_(0, kept, full[kept] / full[kept].sum())
    statistic, freedom = chi_square(Counter(tokens.tolist()), probabilities, n)
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5 + 4, f"{statistic:.1f} with {freedom} degrees of freedom"


def test_extreme_uniforms_never_pick_an_impossible_token() -> None:
    logits = torch.full((3, 8), float("-inf"))
    logits[:, 2], logits[:, 5] = 0.0, 30.0
    tokens, logprobs = sample(logits, [Sampling()] * 3, [0.0, 0.5, 1 - 2.0**-23])
    assert tokens.tolist() == [2, 5, 5]
    assert torch.isfinite(logprobs).all()


def test_uniforms_are_uniform_and_apart() -> None:
    draws = torch.tensor([[uniform(stream, i) for i in range(2000)] for stream in (0, 1, 2**63 - 1)])
    assert 0 <= draws.min() <= draws.max() < 1
    assert (draws.mean(1) - 0.5).abs().max() < 4 * (1 / 12 / 2000) ** 0.5
    assert torch.corrcoef(draws).triu(1).abs().max() < 4 / 2000**0.5


class Closed:
    """A gate that opens when told to."""

    def __init__(self) -> None:
        self.shut = True

    def blocked(self) -> bool:
        return self.shut


def test_nothing_is_decoded_while_the_gate_is_shut() -> None:
    engine = tiny_policy().engine

    async def run() -> None:
        gate = Closed()
        token = current_gate.set(gate)
        task = asyncio.create_task(engine.generate(random_tokens(10), Sampling(), max_tokens=3, seed=0))
        current_gate.reset(token)
        for _ in range(300):
            await asyncio.sleep(0)
        assert engine.stats.steps == 0
        assert not task.done()
        gate.shut = False
        assert len((await asyncio.wait_for(task, 5)).tokens) == 3

    asyncio.run(run())


def test_a_failing_model_fails_its_requests_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_policy().engine
    forward = engine.decoder.forward

    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("out of memory")

    async def run() -> list[Any]:
        requests = [engine.generate(random_tokens(9, seed=i), Sampling(), max_tokens=3, seed=0, session=str(i)) for i in range(3)]
        return await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 5)

    monkeypatch.setattr(engine.decoder, "forward", broken)
    for error in asyncio.run(run()):
        assert isinstance(error, PolicyError)
        assert "out of memory" in str(error)
    monkeypatch.setattr(engine.decoder, "forward", forward)
    assert all(isinstance(result, Result) for result in asyncio.run(run()))


def test_diverged_weights_are_reported() -> None:
    policy = tiny_policy()
    broken = policy.with_weights({name: w * float("nan") for name, w in policy.weights.items()})
    with pytest.raises(PolicyError, match="not finite"):
        asyncio.run(broken.engine.generate(random_tokens(9), Sampling(), max_tokens=3, seed=0))
    # Its cache holds NaN now, and must not be handed to the next engine of this shape.
    converse(policy.engine, [random_tokens(9)])


def test_cancelled_and_released_requests_leave_nothing_behind() -> None:
    policy = tiny_policy()
    engine = policy.engine

    async def run() -> None:
        prompts = [random_tokens(30, seed=i // 2) for i in range(4)]
        tasks = [asyncio.create_task(engine.generate(p, Sampling(), max_tokens=400, seed=i, session=str(i))) for i, p in enumerate(prompts)]
        while engine.stats.steps < 20:
            await asyncio.sleep(0)
        tasks[0].cancel()
        engine.release("1")
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(r, asyncio.CancelledError) for r in results] == [True, True, False, False]
        # The session of a cancelled request goes on where it was.
        result = await engine.generate(prompts[0], Sampling(), max_tokens=4, seed=9, session="0")
        check_logprobs(policy.module(), [(prompts[0], Sampling(), result)])
        for key in "0123":
            engine.release(key)

    asyncio.run(asyncio.wait_for(run(), 20))
    assert not engine._sessions
    assert not engine._gates
    assert transformer(policy).cache.rows == 0


def test_two_answers_to_one_conversation_at_once() -> None:
    policy = tiny_policy()
    engine = policy.engine
    prompt = random_tokens(40)

    async def run() -> list[Result]:
        return list(await asyncio.gather(*(engine.generate(prompt, Sampling(), max_tokens=6, seed=seed, session="s") for seed in range(3))))

    results = asyncio.run(run())
    check_logprobs(policy.module(), [(prompt, Sampling(), r) for r in results])
    assert list(engine._sessions) == ["s"], "only the first keeps a place"


def test_an_engine_survives_an_interrupted_event_loop() -> None:
    policy = tiny_policy()
    engine = Engine(policy.engine.decoder, stops=frozenset())

    async def interrupted() -> None:
        asyncio.get_running_loop().call_later(0.02, _raise)
        await engine.generate(random_tokens(10), Sampling(), max_tokens=490, seed=0, session="s")

    def _raise() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(interrupted())
    for said in converse(engine, [random_tokens(10, seed=i) for i in range(3)]):
        check_logprobs(policy.module(), said)


def test_idle_sessions_do_not_disturb_and_are_moved_aside() -> None:
    policy = tiny_policy("gemma2", sliding_window=16)
    decoder = transformer(policy)
    module = policy.module()
    sessions = [Session(key=i, tokens=random_tokens(120, seed=i)) for i in range(12)]
    for i, session in enumerate(sessions):
        decoder.place(session)
        decoder.forward([session], [10 + 5 * i])
    few = [sessions[11], sessions[2], sessions[7]]
    for _ in range(8):
        logits = decoder.forward(few, [1, 2, 1])
        for session, row in zip(few, logits, strict=True):
            torch.testing.assert_close(
                row, module(torch.tensor([session.tokens[: session.length]])).logits[0, -1].detach(), atol=1e-4, rtol=1e-4
            )
    assert sorted(s.row or 0 for s in few) == [0, 1, 2]
    logits = decoder.forward(sessions, [1] * 12)
    for session, row in zip(sessions, logits, strict=True):
        torch.testing.assert_close(
            row, module(torch.tensor([session.tokens[: session.length]])).logits[0, -1].detach(), atol=1e-4, rtol=1e-4
        )


def test_a_long_prompt_is_taken_in_by_and_by(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    monkeypatch.setattr(transformer(policy), "chunk", lambda length: 16)
    prompts = [random_tokens(70, seed=1), random_tokens(5, seed=2), random_tokens(33, seed=3), random_tokens(70, seed=1)]
    histories = converse(policy.engine, prompts, samplings=MIXED)
    for said in histories:
        check_logprobs(policy.module(), said)
    first, _, _, same = (said[0][2].prefilled for said in histories)
    assert first == 70
    assert same < 16, "what the first computed is copied once it is nearly complete"
