"""tau2-bench: customer service with tools under a policy (Barres et al., arXiv 2506.07982), from a checkout, by its evaluators.

    tau2:telecom,path=DIR              solo mode, which is the benchmark's own: a ticket, the tools of agent and user, no user
    tau2:retail,path=DIR               also airline and banking_knowledge: what the user would say is told at once

Environments, tasks, splits, gold actions and evaluators are the checkout's (see checkout.py). The benchmark has a model play the
user in all domains but telecom's solo mode; here nobody does, and scores of those domains are not the benchmark's.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

from whet.envs.base import Action, Env, Step
from whet.envs.benchmark import Benchmark
from whet.envs.calling import caller_of
from whet.envs.probe import made_up
from whet.envs.tau2.checkout import DOMAINS, Domain, needs_model, open_domain
from whet.errors import ConfigError, EnvError, ToolError, did_you_mean
from whet.seeding import derive_seed
from whet.tools.function import Tool, tool
from whet.types import Split, Task, ToolCall, Turn

Retrieval = Literal["bm25", "bm25_grep", "grep_only", "golden_retrieval", "full_kb", "no_knowledge"]
"""How documents are found in banking_knowledge: the benchmark's variants that need neither a paid service nor a shell."""
DONE = "done"
"""Ends an episode, as the benchmark's own tool does in solo mode."""
LONGEST = 100
"""Turns that its 200 steps leave the agent, every other one being the environment's."""
MOST_ERRORS = 10
"""Failed calls after which the benchmark gives an episode up."""
ALONE = """You serve a customer under the policy below. Nobody can be asked anything: the request holds what the customer wants, \
knows and would answer, and you make the calls that it takes, those of the customer's own tools included. Work by calls alone. \
When all is done, or the policy does not allow it, call `done` and tell the customer in its message what came of it.

<policy>
{policy}
</policy>"""


class Tau2(Env):
    """Customer service with tools under a policy: tau2-bench from a checkout, judged by the benchmark's own evaluators.

    Options: `domain`: telecom (solo mode), retail, airline or banking_knowledge; `path` of the checkout, else the environment
    variable WHET_TAU2; `dev`, how many of the official train tasks are dev tasks instead; `full` adds telecom's other 2,171
    tasks to train; `retrieval` in banking_knowledge; `max_turns` truncates.
    """

    name = "tau2"
    max_tokens = 1024
    max_output = 100_000
    inline = False
    max_concurrent = 32
    reset_timeout = step_timeout = 300.0
    """Databases are read and judged by Python alone, a second each in airline; episodes that do so at once wait for one another."""
    splits: ClassVar[tuple[Split, ...]] = ("train", "test")

    def __init__(
        self,
        domain: str = "telecom",
        *,
        path: str = "",
        dev: int = 0,
        full: bool = False,
        retrieval: Retrieval = "bm25",
        max_turns: int = LONGEST,
    ) -> None:
        if domain not in DOMAINS:
            raise ConfigError(f"tau2 has no domain {domain!r}. {did_you_mean(domain, DOMAINS)}")
        if retrieval not in get_args(Retrieval):
            raise ConfigError(f"tau2 has no retrieval {retrieval!r}. {did_you_mean(retrieval, get_args(Retrieval))}")
        if max_turns < 1:
            raise ConfigError(f"max_turns is {max_turns}; expected 1 or more")
        self.max_turns = max_turns  # type: ignore[misc]
        self._domain = open_domain(path, domain, retrieval)
        self._ids = _splits(self._domain, dev, full)
        self._task: Any = None
        self._told: dict[str, Any] = {}

    # -- tasks -----------------------------------------------------------------------------------------------------------

    def tasks(self, split: Split, n: int, start: int = 0) -> list[Task]:
        """The official split's tasks in the benchmark's order. Raises ConfigError for a split that the domain does not have."""
        if not self._ids[split]:
            help = f"dev=N takes N of its {len(self._ids['train'])} train tasks" if self._ids["train"] else "all its tasks are test tasks"
            raise ConfigError(f"tau2-bench has no {split} tasks in the domain {self._domain.name!r}; {help}")
        return [
            Task(
                id=f"tau2/{self._domain.name}/{id}",
                env=self.name,
                split=split,
                seed=derive_seed("task", self.name, self._domain.name, id),
                data={"category": self._domain.name, "task": id},
            )
            for id in self._ids[split][start : start + n]
        ]

    def benchmark(self) -> Benchmark:
        """The domain's test tasks, with pass^k; what keeps a score from being the benchmark's stands in the notes."""
        domain, ids = self._domain.name, self._ids["test"]
        notes = ["Solo mode: the agent has the tools of agent and user, and there is no user."]
        if not self._domain.solo:
            notes = ["Not a score of tau2-bench: nobody plays the user, whose instructions are told to the agent at once."]
        if unjudged := sum(needs_model(self._domain.tasks[id]) for id in ids):
            notes.append(f"In {unjudged} of {len(ids)} tasks the benchmark also has a model judge the conversation, which is left out.")
        return Benchmark(
            name=f"tau2-bench {domain}", sizes={domain: len(ids)}, headline=domain, pass_k=True, temperature=0.0, notes=tuple(notes)
        )

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools of agent and user, and `done`."""
        return self._domain.tools if self._domain.solo else (*self._domain.tools, *super().tools)

    # -- the episode -----------------------------------------------------------------------------------------------------

    def reset(self, task: Task) -> tuple[Turn, ...]:
        id = str(task.data.get("task", ""))
        if id not in self._domain.tasks:
            raise EnvError(f"task {task.id!r} is none of the domain {self._domain.name!r} in this checkout; list the tasks again")
        self._task = self._domain.tasks[id]
        self._environment = self._domain.environment(self._task)
        self._trajectory: list[Any] = []
        self._followed = 0
        if self._domain.solo:  # the prompt ends with the ticket; chat templates want a user's turn
            system, mark, ticket = self._domain.solo_prompt(self._task).rpartition("<ticket>")
            return Turn(role="system", content=system.strip()), Turn(role="user", content=mark + ticket)
        request = f"<request>\n{self._task.user_scenario}\n</request>"
        return Turn(role="system", content=ALONE.format(policy=self._environment.get_policy())), Turn(role="user", content=request)

    def step(self, action: Action) -> Step | Awaitable[Step]:
        """Make the calls, or end: with `done` alone, without any call, or after too many that failed."""
        if self._task is None or self._over:
            raise EnvError("the episode of 'Tau2' is over, or has not begun; one object is one episode, so make another one")
        if not action.tool_calls:
            self._over = True
            return Step(terminated=True, info={"reason": "agent_error"})
        ending = tuple(call for call in action.tool_calls if call.name == DONE and not call.error)[:1]
        if action.text.strip() and not (ending and self._domain.solo):
            self._trajectory.append(self._domain.message.AssistantMessage(role="assistant", content=action.text))
        for call in action.tool_calls:
            if (due := self._due) and (due.name, due.arguments) == (call.name, call.arguments):
                self._followed += 1
        step = super().step(replace(action, tool_calls=ending or action.tool_calls))
        assert isinstance(step, Step)  # no tool has to be waited for
        outcomes = caller_of(self).outcomes
        if step.terminated:
            return replace(step, info=self._told)
        if outcomes.total() - outcomes["ok"] >= MOST_ERRORS:
            self._over = True
            return replace(step, truncated=True, info={"reason": "too_many_errors"})
        return step

    def call_tool(self, name: str, arguments: dict[str, Any]) -> str:
        """What the benchmark's environment answers; `done` has its evaluators judge the conversation."""
        if name == DONE:
            return self._judged() if self._domain.solo else self.done(**arguments)
        if name == "calculate" and "**" in str(arguments.get("expression", "")):
            raise ToolError("powers are not calculated here; write them as products")  # eval would not come back from 9**9**9
        message, environment = self._domain.message, self._environment
        own = self._domain.solo or environment.tools.has_tool(name)
        speaker = message.AssistantMessage if own else message.UserMessage
        role = "assistant" if own else "user"
        call = message.ToolCall(id=f"call_{len(self._trajectory)}", name=name, arguments=copy.deepcopy(arguments), requestor=role)
        answer = environment.get_response(call.model_copy(deep=True))
        self._trajectory += [speaker(role=role, tool_calls=[call]), answer]
        if answer.error:
            raise ToolError(str(answer.content).removeprefix("Error: "))
        return str(answer.content)

    @tool
    def done(self, message: str) -> str:
        """End the work on the request.

        Args:
            message: What the customer is told: results, amounts, reasons.
        """
        if message.strip():
            self._trajectory.append(self._domain.message.AssistantMessage(role="assistant", content=message))
        return self._judged()

    def _judged(self) -> str:
        reward, parts = self._domain.judge(self._task, self._trajectory)
        self._told = {"reason": "done", "parts": parts} | ({"unjudged": "NL_ASSERTION"} if needs_model(self._task) else {})
        return self.finish(reward=reward)

    # -- who needs no model ------------------------------------------------------------------------------------------------

    @property
    def _due(self) -> Any:
        """The next of the gold actions; None after the last one."""
        criteria = self._task.evaluation_criteria
        actions = (criteria and criteria.actions) or []
        return actions[self._followed] if self._followed < len(actions) else None

    def expert(self, rng: random.Random) -> Action:
        """The next gold action, then `done` with what the benchmark wants the user told."""
        if due := self._due:
            return Action(tool_calls=(ToolCall(name=due.name, arguments=due.arguments, id=f"call_{self._followed}"),))
        criteria = self._task.evaluation_criteria
        told = "; ".join((criteria and criteria.communicate_info) or ["Done."])
        return Action(tool_calls=(ToolCall(name=DONE, arguments={} if self._domain.solo else {"message": told}, id="call_done"),))

    def random_action(self, rng: random.Random) -> Action:
        """A tool drawn by chance with made-up arguments of its types; `done` once in ten."""
        ending = rng.random() < 0.1
        return made_up(tuple(t for t in self.tools if (t.name == DONE) is ending), rng)


def _splits(domain: Domain, dev: int, full: bool) -> dict[Split, list[str]]:
    """Split -> ids of tasks in the benchmark's order. Dev tasks are drawn from the train tasks by a hash of their ids."""
    if full and "full" not in domain.splits:
        raise ConfigError(f"full is True, but the domain {domain.name!r} has no further tasks; leave it out")
    test = domain.splits.get("test", frozenset())
    train = (domain.splits["full"] if full else domain.splits.get("train", frozenset())) - test
    if not 0 <= dev <= max(0, len(train) - 1):
        raise ConfigError(f"dev is {dev}; expected 0 to {max(0, len(train) - 1)}, of the {len(train)} train tasks of {domain.name!r}")
    held = set(sorted(train, key=lambda id: derive_seed("dev", "tau2", domain.name, id))[:dev])
    parts: dict[Split, frozenset[str] | set[str]] = {"train": train - held, "dev": held, "test": test}
    return {split: [id for id in domain.tasks if id in ids] for split, ids in parts.items()}
