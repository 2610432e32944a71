"""Episodes per second of multi-turn GRPO with tools: `whet.methods.grpo` against TRL's `GRPOTrainer`.

    python benchmarks/bench_grpo.py [--model DIR] [--rounds 3] [--threads 1] [--json out.json]

What is compared: whole training steps (sampling, tools, rewards, advantages, backward, one AdamW step) on the same
checkpoint in float32. Each side has a process of its own with the same number of threads; they take turns, one step each,
while the other one waits. The first step of each is a warm-up and is not counted.

What is equal, apart from sampling: the questions of each step and the prompts (both checked, prompts token for token), group
size, temperature 1, the limits of tokens per turn and of turns per episode, the pages behind the tools, float32, the loss
(clipped, averaged per row, then over rows; advantages divided by the group's deviation; no KL term), AdamW, its learning
rate, clipping of gradients. An episode ends with the first turn that does not search, as TRL ends it; whet's environment is
made to do the same. The learning rate is so small that the policy, and with it the length of episodes, stays what it was;
the table shows the means, which must agree up to sampling.

What is set in TRL's favour: `answer` is read from the final text, because as a tool it would cost TRL a further turn; turns
are limited by `generation_kwargs`, because `max_completion_length` would let one turn take the whole episode's tokens; a
noise of 0.001 on rewards keeps them from being equal within a group, since whet leaves rows of advantage zero out of the
backward pass and TRL does not (`--ties` gives natural rewards). Gradient checkpointing, logging, saving and tqdm are off,
and log-probs of what was sampled are not computed again (`steps_per_generation` is the number of micro-batches). Of
micro-batches of 8, 16, 32 and 128 episodes, float32 and bfloat16, generate and continuous batching, SDPA and eager
attention, those were taken that were fastest on a processor (`--trl-micro-batch`, `--trl-bf16`,
`--trl-continuous-batching` set others).

What is not equal: TRL computes each token's entropy and keeps completions for its log; whet writes every episode to an
in-memory store and returns the log-probs that it sampled by. On a GPU, TRL would sample with vLLM: the comparison holds for
a processor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common import machine, spread

from whet.envs.base import Action, EnvFactory, Step
from whet.envs.search import Search
from whet.policies.chat import read_calls
from whet.runs import Run
from whet.tools.function import Tool, tool
from whet.types import Cost, Episode, Task, ToolCall

SIDES = ("trl", "whet")
NOISE = 1e-3


@dataclass(frozen=True)
class Work:
    """What both sides do."""

    model: str
    steps: int
    """The first of them is the warm-up."""
    hops: str
    tasks: int
    """Per step."""
    group: int
    turns: int
    max_tokens: int
    """Per turn."""
    kl: float
    lr: float
    threads: int
    ties: bool
    trl_micro_batch: int
    trl_bf16: bool
    trl_continuous_batching: bool

    @property
    def episodes(self) -> int:
        return self.tasks * self.group

    def env(self) -> EnvFactory:
        noise = 0.0 if self.ties else NOISE
        return EnvFactory(Lookup, {"hops": self.hops, "turns": self.turns, "tokens": self.max_tokens, "noise": noise})


@dataclass
class Report:
    """One step of one side. Means are per episode."""

    seconds: float = 0.0
    processor: float = 0.0
    rollout: float = 0.0
    """Of `seconds`, those before the rewards were known."""
    turns: float = 0.0
    sampled: float = 0.0
    """Tokens that the policy produced."""
    context: float = 0.0
    """Tokens of the whole conversation."""
    success: float = 0.0
    tasks: str = ""
    """Hash of the tasks, each as often as it was played."""
    prompts: str = ""
    """Hash of the token ids of the prompts."""

    @property
    def update(self) -> float:
        return self.seconds - self.rollout


class Lookup(Search):
    """Search as TRL plays it: tools in the order of their names, and over with the first turn that does not search."""

    def __init__(self, hops: str, turns: int, tokens: int, noise: float) -> None:
        super().__init__(hops=hops)
        self.max_turns, self.max_tokens, self._noise = turns, tokens, noise

    @property
    def tools(self) -> tuple[Tool, ...]:
        return tuple(sorted(super().tools, key=lambda t: t.name))

    @tool
    def search(self, query: str) -> str:
        """Read the page of a person.

        Args:
            query: Whose page.
        """
        return super().search(query)

    @tool
    def answer(self, text: str) -> str:
        """Give the final answer.

        Args:
            text: A name.
        """
        raise AssertionError("an answer is the last text of an episode, not a call")

    def step(self, action: Action) -> Step:
        searches = tuple(call for call in action.tool_calls if call.name == "search" and not call.error)
        if searches:
            step = super().step(Action(text=action.text, tool_calls=searches))
            return Step(observation=step.observation, reward=self.noise())
        right = self.is_right(action.tool_calls)
        return Step(reward=right + self.noise(), terminated=True, success=right)

    def is_right(self, calls: Sequence[ToolCall]) -> bool:
        """Whether the first of the calls that are answers is right."""
        answers = [call.arguments for call in calls if call.name == "answer"]
        return bool(answers) and str(answers[0].get("text", "")).strip() == self.question.answer

    def noise(self) -> float:
        return self._noise * random.random()


class Stopwatch:
    """A side's end of the line: waits for its turn, does a step, and tells how long it took."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self.report = Report()

    def start(self) -> None:
        self._line.recv()
        self.report = Report()
        self._began, self._processor = time.perf_counter(), time.process_time()

    def since(self) -> float:
        return time.perf_counter() - self._began

    def stop(self) -> None:
        self.report.seconds = self.since()
        self.report.processor = time.process_time() - self._processor
        self._line.send(self.report)


def fingerprint(items: Sequence[Any]) -> str:
    """A hash of the items in whatever order they come."""
    return hashlib.blake2b(json.dumps(sorted(items)).encode(), digest_size=8).hexdigest()


# -- whet ----------------------------------------------------------------------------------------------------------------


class PacedRun(Run):
    """A run in memory whose steps begin when it is their turn."""

    watch: Stopwatch

    def steps(self, n: int, state: Any = None, **options: Any) -> Iterator[int]:
        for step in super().steps(n, state, **options):
            self.watch.start()
            self._episodes: list[Episode] = []
            yield step
            self.watch.stop()

    def spend(self, cost: Cost) -> None:
        self.watch.report.rollout += cost.seconds  # episodes share their rollout's seconds among them
        super().spend(cost)

    def save_episodes(self, episodes: Any, tag: str) -> None:
        super().save_episodes(episodes, tag)
        self._episodes += episodes

    def log(self, step: int, **metrics: Any) -> None:
        super().log(step, **metrics)
        episodes, report = self._episodes, self.watch.report
        report.turns = statistics.fmean(e.n_actions for e in episodes)
        report.sampled = statistics.fmean(sum(len(t.tokens) for t in e.turns if t.trained) for e in episodes)
        report.context = statistics.fmean(sum(len(t.tokens) for t in e.turns) for e in episodes)
        report.success = statistics.fmean(e.success for e in episodes)
        report.tasks = fingerprint([e.task.id for e in episodes])
        report.prompts = fingerprint([[i for t in e.turns[:2] for i in t.tokens] for e in episodes])


def run_whet(work: Work, watch: Stopwatch) -> None:
    from whet.agents import Agent
    from whet.methods.grpo import GRPOConfig, grpo
    from whet.policies import load_policy
    from whet.types import Data

    env = work.env()
    run = PacedRun.scratch(seed=0)
    run.watch = watch
    config = GRPOConfig(steps=work.steps, tasks_per_step=work.tasks, group_size=work.group, lr=work.lr, kl=work.kl)
    grpo(Agent(load_policy(work.model)), Data(train=train_tasks(work, env)), env=env, run=run, cfg=config)


def train_tasks(work: Work, env: EnvFactory) -> tuple[Task, ...]:
    return env.tasks("train", work.tasks * work.steps)


# -- TRL -----------------------------------------------------------------------------------------------------------------

RESPONSES = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r'<tool_call>(?=\s*\{\s*"name":\s*"search")',
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
"""How TRL reads an answer of the model: only searches are calls; anything else is the final text."""


def run_trl(work: Work, watch: Stopwatch) -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import transformers
    from datasets import Dataset

    from whet.data import batches

    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    env = work.env()
    order = batches(train_tasks(work, env), work.tasks, seed=Run.scratch(seed=0).seed("tasks"))  # as `grpo` draws them
    tasks = [task for batch in order for task in batch]
    prompt = [{"role": "system", "content": Lookup.instructions}, {"role": "user", "content": ""}]
    path = model_path(work.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.response_template = RESPONSES
    trainer_class, pace = paced_trainer(watch)

    def reward(completions: list[Any], environments: list[Any], **columns: Any) -> list[float]:
        watch.report.rollout = watch.since()
        episodes = [environment._search for environment in environments]
        right = [e.is_right(read_calls(messages[-1]["content"])[1]) for e, messages in zip(episodes, completions)]
        watch.report.success = statistics.fmean(right)
        watch.report.tasks = fingerprint([tasks[index].id for index in columns["index"]])
        return [r + e.noise() for r, e in zip(right, episodes)]

    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_class(
            model=path,
            args=trl_config(work, scratch),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": prompt, "index": i} for i in range(len(tasks))]),
            environment_factory=trl_environment(env, tasks),
            reward_funcs=reward,
            callbacks=[pace],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def trl_environment(env: EnvFactory, tasks: Sequence[Task]) -> Any:
    """An episode, as TRL takes it: what `reset` returns is the question, and public methods are tools."""

    class Knowledge:
        def reset(self, index: int, **row: Any) -> str:
            self._search = env()
            return self._search.reset(tasks[index])

        def search(self, query: str) -> str:
            return self._search.search(query)

        def answer(self, text: str) -> str:
            return self._search.answer(text)

        search.__doc__, answer.__doc__ = Lookup.search.__doc__, Lookup.answer.__doc__

    return Knowledge


def paced_trainer(watch: Stopwatch) -> tuple[Any, Any]:
    """TRL's trainer, which counts what was sampled, and the callback that lets its steps begin when it is their turn."""
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    class Trainer(GRPOTrainer):
        def _generate(self, prompts: list[Any]) -> Any:
            result = super()._generate(prompts)
            prompt_ids, completion_ids, sampled, completions = result[:4]
            report = watch.report
            report.turns = statistics.fmean(sum(m["role"] == "assistant" for m in messages) for messages in completions)
            report.sampled = statistics.fmean(map(sum, sampled))
            report.context = statistics.fmean(len(p) + len(c) for p, c in zip(prompt_ids, completion_ids))
            report.prompts = fingerprint(prompt_ids)
            return result

    class Pace(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            watch.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            watch.stop()

    return Trainer, Pace()


def trl_config(work: Work, directory: str) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=directory,
        max_steps=work.steps,
        per_device_train_batch_size=work.trl_micro_batch,
        gradient_accumulation_steps=work.episodes // work.trl_micro_batch,
        num_generations=work.group,
        max_completion_length=2048,
        generation_kwargs={"max_new_tokens": work.max_tokens},
        max_tool_calling_iterations=work.turns - 1,
        temperature=1.0,
        loss_type="grpo",
        beta=work.kl,
        learning_rate=work.lr,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        model_init_kwargs={"dtype": "float32"},
        bf16=work.trl_bf16,
        use_cpu=True,
        gradient_checkpointing=False,
        use_transformers_continuous_batching=work.trl_continuous_batching,
        shuffle_dataset=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def model_path(model: str) -> str:
    """The directory that `whet.policies.load_policy` reads."""
    import whet

    return str(Path(whet.__file__).parent / "base") if model == "base" else model


# -- both ----------------------------------------------------------------------------------------------------------------


def side(name: str, work: Work, line: Connection) -> None:
    """The process of one side."""
    import torch

    torch.set_num_threads(work.threads)
    try:
        {"whet": run_whet, "trl": run_trl}[name](work, Stopwatch(line))
    except Exception:
        line.send(traceback.format_exc())


def measure(work: Work) -> Iterator[dict[str, Report]]:
    """One step of each side, in alternation; the first pair is the warm-up. Raises RuntimeError where a side failed."""
    context = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    processes = []
    for name in SIDES:
        lines[name], theirs = context.Pipe()
        processes.append(context.Process(target=side, args=(name, work, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
    for _ in range(work.steps):
        reports = {}
        for name in SIDES:
            try:
                lines[name].send("go")
                answer = lines[name].recv()
            except (EOFError, OSError):
                answer = "its process died"
            if not isinstance(answer, Report):
                raise RuntimeError(f"{name} failed: {answer}")
            reports[name] = answer
        trl, whet = reports["trl"], reports["whet"]
        if trl.tasks != whet.tasks or trl.prompts != whet.prompts:
            raise RuntimeError("the two sides were not given the same tasks and the same prompts, so their times cannot be compared")
        yield reports
    for process in processes:
        process.join(timeout=60)


def summary(rounds: Sequence[dict[str, Report]], work: Work) -> dict[str, Any]:
    """Medians over the rounds, and the ratio within each round's pair."""
    keys = ("seconds", "rollout", "update", "processor", "turns", "sampled", "context", "success")
    sides = {name: {key: statistics.median(getattr(r[name], key) for r in rounds) for key in keys} for name in SIDES}
    for medians in sides.values():
        medians["episodes_per_second"] = work.episodes / medians["seconds"]
    ratios = {key: spread([getattr(r["trl"], key) / getattr(r["whet"], key) for r in rounds]) for key in keys[:4]}
    return {"sides": sides, "ratios": ratios}


def show(result: dict[str, Any]) -> None:
    columns = ("episodes_per_second", "seconds", "rollout", "update", "processor", "turns", "sampled", "context", "success")
    heads = ("episodes/s", "step s", "rollout s", "update s", "processor", "turns", "sampled", "context", "success")
    print("\nmedians; turns and tokens (sampled, whole context) are means per episode")
    print(f"{'':<6}" + "".join(f"{head:>11}" for head in heads))
    for name in SIDES:
        print(f"{name:<6}" + "".join(f"{result['sides'][name][column]:>11.2f}" for column in columns))
    print("\nwhet is faster by (median, range over rounds)")
    for key, ratio in result["ratios"].items():
        print(f"  {'step' if key == 'seconds' else key:<10}{ratio['median']:>6.1f}  ({ratio['min']:.1f}-{ratio['max']:.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", help="checkpoint directory, or `base`: the model that comes with whet")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of steps that are measured")
    parser.add_argument("--hops", default="1-3")
    parser.add_argument("--tasks", type=int, default=16, help="questions per step")
    parser.add_argument("--group", type=int, default=8, help="episodes per question")
    parser.add_argument("--turns", type=int, default=8, help="limit per episode")
    parser.add_argument("--max-tokens", type=int, default=32, help="limit per turn")
    parser.add_argument("--kl", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--ties", action="store_true", help="rewards without noise, so that whet may leave rows out")
    parser.add_argument("--trl-micro-batch", type=int, default=16, help="episodes per backward pass in TRL")
    parser.add_argument("--trl-bf16", action="store_true")
    parser.add_argument("--trl-continuous-batching", action="store_true")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = vars(parser.parse_args())
    rounds, out = options.pop("rounds"), options.pop("json")
    work = Work(steps=rounds + 1, **options)
    if rounds < 1 or work.group < 2 or work.episodes % work.trl_micro_batch:
        parser.error(
            f"--rounds is {rounds}, --group {work.group} and --trl-micro-batch {work.trl_micro_batch}; expected at least 1 round and "
            f"2 episodes per question, and a micro-batch that divides the {work.episodes} episodes of a step"
        )
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(work.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    about = machine("whet", "torch", "transformers", "trl")
    print(
        f"{about['cpu']}, {about['cores']} cores, {work.threads} thread(s) each; trl {about['trl']}, transformers {about['transformers']}"
    )
    print(f"{work.episodes} episodes per step ({work.tasks} questions x {work.group}), model {work.model}")
    measured = []
    for number, reports in enumerate(measure(work)):
        speeds = "   ".join(f"{name} {work.episodes / r.seconds:7.1f} episodes/s ({r.seconds:.2f} s)" for name, r in reports.items())
        print(f"{f'round {number}' if number else 'warm-up':<8} {speeds}", flush=True)
        measured.append(reports)
    result = summary(measured[1:], work)
    show(result)
    if out:
        each = [{name: asdict(r) for name, r in reports.items()} for reports in measured]
        out.write_text(json.dumps({"benchmark": "grpo", "machine": about, "work": asdict(work), **result, "rounds": each}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(str(error))
