"""The endpoint policy: the real client against a real server on this machine."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from whet.agents import Agent
from whet.envs.base import Env, EnvFactory
from whet.errors import ConfigError, ContextFull, PolicyError, PolicyUnavailable
from whet.policies.base import Request, Sampling
from whet.policies.endpoint import EndpointPolicy, Price, messages
from whet.rollout import Limits, arollout, rollout
from whet.tools.function import tool
from whet.types import Cost, Stop, Task, ToolCall, Turn


class Server:
    """Answers chat completions with `script(body, number)`: a message, or a Response as it is."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.script: Callable[[dict[str, Any], int], Any] = lambda body, number: {"content": "hello"}
        self.most = self._now = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        app = Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])])
        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    async def _answer(self, request: HttpRequest) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            answer = self.script(body, len(self.bodies))
            if asyncio.iscoroutine(answer):
                answer = await answer
        finally:
            self._now -= 1
        return answer if isinstance(answer, Response) else completion(answer)

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(5)


def completion(message: dict[str, Any], *, finish: str = "stop", usage: Any = (11, 3, 0), **choice: Any) -> Response:
    prompt, sampled, cached = usage
    return JSONResponse(
        {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": None, **message}, **choice}],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": sampled,
                "total_tokens": prompt + sampled,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }
    )


def refusal(status: int, message: str, code: str | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": "error", "code": code}}, status_code=status)


def called(name: str, arguments: str, call_id: str = "abc") -> dict[str, Any]:
    return {"tool_calls": [{"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}]}


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(running: Server) -> Server:
    running.bodies.clear()
    running.headers.clear()
    running.most = 0
    return running


class Shop(Env):
    """Ask for a price, then answer with it."""

    instructions = "Be brief."

    def reset(self, task: Task) -> str:
        return "What does tea cost?"

    @tool
    def price(self, item: str) -> str:
        """Price of an item.

        Args:
            item: What to look up.
        """
        return f"{item}: 7"

    @tool
    def answer(self, price: int) -> str:
        """Say what it costs."""
        return self.finish("noted", reward=float(price == 7))


SHOP = EnvFactory(Shop)


def ask(policy: EndpointPolicy, *turns: Turn, **options: Any) -> Turn:
    turns = turns or (Turn(role="user", content="hi"),)
    return asyncio.run(policy.generate(Request(turns=turns, **options)))


def quick(server: Server, **options: Any) -> EndpointPolicy:
    return EndpointPolicy("m", server.url, **{"max_retries": 1, "timeout": 5.0, **options})


@pytest.mark.slow
def test_an_episode_with_tools_over_the_wire(server: Server) -> None:
    answers = [called("price", '{"item": "tea"}', "id-1"), called("answer", '{"price": 7}', "id-2")]
    server.script = lambda body, number: completion(answers[number - 1], usage=(100, 10, 40))
    policy = quick(server, price=Price(prompt=2.0, sampled=8.0, cached=1.0), api_key="secret")
    (episode,) = rollout(Agent(policy=policy, sampling=Sampling(temperature=0.5)), SHOP, SHOP.tasks("train", 1))
    assert (episode.success, episode.stop, episode.policy) == (True, Stop.TERMINATED, f"m@{server.url}")
    first, second = server.bodies
    assert first["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What does tea cost?"}]
    assert second["messages"][2:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "id-1", "type": "function", "function": {"name": "price", "arguments": '{"item": "tea"}'}}],
        },
        {"role": "tool", "tool_call_id": "id-1", "content": "tea: 7"},
    ]
    assert [t["function"]["name"] for t in first["tools"]] == ["price", "answer"]
    assert first["tools"][0]["function"]["parameters"]["properties"]["item"]["description"] == "What to look up."
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("m", 0.5, Shop.max_tokens)
    assert 0 <= first["seed"] < 2**31
    assert first["seed"] != second["seed"]
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert episode.turns[2].cost == Cost(prompt_tokens=60, sampled_tokens=10, money=(60 * 2 + 40 * 1 + 10 * 8) / 1e6)
    assert (episode.cost.prompt_tokens, episode.cost.sampled_tokens) == (120, 20)
    assert episode.cost.money == pytest.approx(2 * 240e-6)
    assert episode.turns[2].temperature == 0.5


def test_what_a_model_gets_wrong_comes_back_to_it(server: Server) -> None:
    answers = [
        called("price", '{"item": "tea"'),
        called("price", '["tea"]'),
        {"content": "seven?"},
        {"content": 'I see. <tool_call>{"name": "answer", "arguments": {"price": 7}}</tool_call>'},
    ]
    server.script = lambda body, number: answers[number - 1]
    (episode,) = rollout(Agent(policy=quick(server)), SHOP, SHOP.tasks("train", 1))
    observed = [t.content for t in episode.turns if not t.trained][2:]
    assert observed[0].startswith("error: the arguments are not valid JSON")
    assert observed[1].startswith("error: the arguments must be a JSON object")
    assert observed[2].startswith("No tool call found")
    assert episode.success, "calls in a model's own notation are read from the text"
    assert episode.turns[-2].content == "I see."
    sent = server.bodies[1]["messages"]
    assert sent[-1] == {"role": "tool", "tool_call_id": "abc", "content": observed[0]}
    json.loads(sent[-2]["tool_calls"][0]["function"]["arguments"])


def test_a_fault_that_passes_is_tried_again(server: Server) -> None:
    server.script = lambda body, number: refusal(500, "oops") if number == 1 else {"content": "fine"}
    turn = ask(quick(server))
    assert (turn.content, turn.finish, turn.tokens, len(server.bodies)) == ("fine", "stop", (), 2)


@pytest.mark.parametrize(("status", "tries"), [(503, 2), (429, 2)])
def test_a_fault_that_stays_is_unavailable(server: Server, status: int, tries: int) -> None:
    server.script = lambda body, number: refusal(status, "too busy")
    with pytest.raises(PolicyUnavailable, match=r"failed \(tries: 2\): too busy"):
        ask(quick(server))
    assert len(server.bodies) == tries


def test_a_refusal_carries_the_servers_message(server: Server) -> None:
    server.script = lambda body, number: refusal(400, "seed must be 7")
    with pytest.raises(PolicyError, match=r"refused the request \(400\): seed must be 7") as caught:
        ask(quick(server))
    assert not isinstance(caught.value, PolicyUnavailable)
    assert len(server.bodies) == 1
    with pytest.raises(PolicyError, match="seed must be 7"):
        rollout(Agent(policy=quick(server)), SHOP, SHOP.tasks("train", 1))
    assert len(server.bodies) == 2, "what the server refuses is not tried again"


@pytest.mark.parametrize(
    "answer",
    [
        refusal(400, "too long", "context_length_exceeded"),
        refusal(400, "This model's maximum context length is 4096 tokens. However, you requested 5000."),
    ],
)
def test_a_prompt_that_is_too_long_truncates_the_episode(server: Server, answer: Response) -> None:
    server.script = lambda body, number: answer if number > 1 else called("price", '{"item": "tea"}')
    (episode,) = rollout(Agent(policy=quick(server)), SHOP, SHOP.tasks("train", 1))
    assert (episode.stop, episode.reason, episode.n_actions) == (Stop.TRUNCATED, "context", 1)
    with pytest.raises(ContextFull):
        ask(quick(server))


def test_a_server_that_hangs_meets_the_deadline(server: Server) -> None:
    async def hang(body: dict[str, Any], number: int) -> Any:
        await asyncio.sleep(3)
        return {"content": "late"}

    server.script = hang
    began = time.perf_counter()
    with pytest.raises(PolicyUnavailable, match=r"failed \(tries: 1\): Request timed out"):
        ask(quick(server, timeout=0.3, max_retries=0))
    with pytest.raises(PolicyError, match=r"still running after 0\.3 s \(Limits\.turn_s\)"):
        rollout(Agent(policy=quick(server)), SHOP, SHOP.tasks("train", 1), limits=Limits(turn_s=0.3))
    assert time.perf_counter() - began < 3


def test_nobody_listens() -> None:
    with pytest.raises(PolicyUnavailable, match=r"endpoint m@http://127\.0\.0\.1:9/v1 failed \(tries: 1\): Connection error\."):
        ask(EndpointPolicy("m", "http://127.0.0.1:9/v1", max_retries=0))


def test_an_answer_cut_short_says_so_and_options_are_sent(server: Server) -> None:
    server.script = lambda body, number: completion({"content": "and th"}, finish="length")
    policy = quick(server, extra={"min_p": 0.1})
    turn = ask(policy, sampling=Sampling(top_p=0.9, top_k=20, max_tokens=5))
    assert (turn.finish, turn.content) == ("length", "and th")
    body = server.bodies[0]
    assert (body["top_p"], body["top_k"], body["min_p"], body["max_tokens"]) == (0.9, 20, 0.1, 5)
    assert "temperature" not in body
    assert "tools" not in body


def test_openais_own_service_has_other_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    policy = EndpointPolicy("gpt", api_key="k")
    request = Request(turns=(Turn(role="user", content="hi"),))
    assert policy._body(request)["max_completion_tokens"] == 64
    with pytest.raises(ConfigError, match="top_k"):
        policy._body(Request(turns=(), sampling=Sampling(top_k=3)))


def test_log_probs_are_kept_with_token_ids_or_refused(server: Server) -> None:
    entries = [{"token": f"token_id:{i}", "logprob": -0.5 * i, "bytes": None, "top_logprobs": []} for i in (4, 2)]
    server.script = lambda body, number: completion({"content": "ok"}, logprobs={"content": entries, "refusal": None})
    turn = ask(quick(server, logprobs=True, extra={"return_tokens_as_token_ids": True}))
    assert (turn.tokens, turn.logprobs) == ((4, 2), (-2.0, -1.0))
    assert turn.versions == ((f"m@{server.url}", 2),)
    assert (server.bodies[0]["logprobs"], server.bodies[0]["return_tokens_as_token_ids"]) == (True, True)
    entries[0]["token"] = "hello"
    with pytest.raises(PolicyError, match="without token ids"):
        ask(quick(server, logprobs=True))
    server.script = lambda body, number: {"content": "ok"}
    with pytest.raises(PolicyError, match="gave none"):
        ask(quick(server, logprobs=True))


def test_episodes_overlap_and_a_policy_serves_one_loop_after_another(server: Server) -> None:
    async def slow(body: dict[str, Any], number: int) -> Any:
        await asyncio.sleep(0.1)
        return called("answer", '{"price": 7}')

    server.script = slow
    policy = quick(server)
    began = time.perf_counter()
    for _ in range(2):
        assert all(e.success for e in rollout(Agent(policy=policy), SHOP, SHOP.tasks("train", 16)))
    assert time.perf_counter() - began < 2.0
    assert server.most >= 8
    assert asyncio.run(arollout(Agent(policy=policy), SHOP, SHOP.tasks("train", 1)))[0].success


def test_every_call_is_answered_in_the_messages() -> None:
    two = (ToolCall(name="a", id="x"), ToolCall(name="b", arguments={"k": "ü"}))
    sent = messages(
        [
            Turn(role="user", content="go"),
            Turn(role="assistant", tool_calls=two),
            Turn(role="tool", content="second", call_id="call_1_1"),
            Turn(role="user", content="seen"),
            Turn(role="assistant", tool_calls=two[:1]),
            Turn(role="tool", content="first", call_id=None),
            Turn(role="tool", content="unasked"),
            Turn(role="assistant", tool_calls=two[:1]),
        ]
    )
    assert [(m["role"], m.get("tool_call_id"), m["content"]) for m in sent] == [
        ("user", None, "go"),
        ("assistant", None, ""),
        ("tool", "call_1_1", "second"),
        ("tool", "x", "(see the next message)"),
        ("user", None, "seen"),
        ("assistant", None, ""),
        ("tool", "x", "first"),
        ("user", None, "unasked"),
        ("assistant", None, ""),
        ("tool", "x", "(no answer)"),
    ]
    assert sent[1]["tool_calls"][1]["function"] == {"name": "b", "arguments": '{"k": "ü"}'}
