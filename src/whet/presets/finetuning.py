"""The comparisons of fine-tuning systems (`make leaderboard FAMILY=finetuning`), each with what its paper beats beside it.

Settings were chosen on dev tasks; `test_start` leaves out test tasks on which a result had been seen before.
"""

from __future__ import annotations

from typing import Any

from whet.presets.quick import SWITCH

LEADERBOARD: dict[str, dict[str, Any]] = {
    "coevol": {
        "env": "search:hops=1-3",
        "recipes": ("coevol:iterations=0", "coevol"),
        "baseline": "coevol:iterations=0",
        "claim": "coevol",
        "": {"train_tasks": 128, "test_tasks": 256, "test_start": 2000},
        "coevol": {"window": 8, "epochs": 4, "lr": 5e-4, "batch_size": 8},
    },
    "agent_tuning": {
        "env": "search:hops=1-3",
        "recipes": ("base", "agent_tuning:eta=1", "agent_tuning"),
        "baseline": "base",
        "claim": "agent_tuning",
        "": {"train_tasks": 32, "test_tasks": 256, "test_start": 3000},
        "agent_tuning": {"epochs": 4, "lr": 5e-4, "batch_size": 8},
        "note": (
            "Held against the agent before tuning. On the environment's own tasks agent data alone (eta=1) do as well; what the paper "
            "mixes for, that other abilities stay, is not seen either: the loss on 100 held-out conversations, which each run logs, rose "
            "by 0.014 to 0.022 nats a token with the mixture and by 0.014 to 0.017 without (3 seeds), little in both."
        ),
    },
    "agent_ohana": {
        "env": "search:hops=1-3 + workshop:depth=1",
        "recipes": ("base", "agent_ohana:balance=false:min_score=0", "agent_ohana"),
        "baseline": "base",
        "claim": "agent_ohana",
        "": {"train_tasks": 64, "test_tasks": 256, "test_start": 3000},
        "agent_ohana": {"sources": ("expert", "expert@0.7", "self"), "samples": (1, 2, 1), "epochs": 4, "lr": 5e-3, "batch_size": 8},
    },
    "fireact": {
        "env": "search:hops=1-3 + search:hops=1-2,given=6",
        "recipes": ('fireact:formats=["react"]', 'fireact:formats=["cot"]', "fireact"),
        "baseline": 'fireact:formats=["react"]',
        "claim": "fireact",
        "": {"train_tasks": 64, "test_tasks": 256, "test_start": 3000},
        "fireact": {"epochs": 6, "lr": 5e-3, "batch_size": 8},
        "note": (
            "The paper's gain over one way of prompting does not appear. A chain of thought that succeeds without a call shows a "
            "million parameters an answer that they cannot know, and they take to guessing where they should look; the paper's "
            "models know much of what they are asked. Greedily the two are not told apart."
        ),
    },
    "nat": {
        "env": "search:hops=1-3",
        "recipes": ("nat:control=none", "nat:negatives=false", "nat"),
        "baseline": "nat:control=none",
        "claim": "nat",
        "": {"train_tasks": 96, "test_tasks": 256, "test_start": 3000},
        "nat": {"teachers": ("expert", "expert@0.2"), "temperatures": (1.0,), "epochs": 8, "lr": 1e-3, "batch_size": 8},
        "note": (
            "Telling failures apart gains much over mixing them in. The paper's other claim, that failures add to what successes "
            "teach, does not appear: half of the paths come from an expert, and its successes alone teach more."
        ),
    },
    # Seen on 200 dev tasks: ste 0.785 and 0.900 (seeds 0 and 1), sft 0.005 [0.001, 0.028] (seed 0). Expert episodes are of train
    # tasks, none of which needs the APIs that dev and test tasks are about; all tools are offered in all, and STE tries each.
    "ste": {
        "env": "catalogue:calls=1-2,hold=3",
        "recipes": ("sft", "ste"),
        "baseline": "sft",
        "claim": "ste",
        "": {"train_tasks": 64, "expert_episodes": 256, "test_tasks": 256, "test_start": 2000},
        "sft": {"epochs": 8, "lr": 1e-3, "batch_size": 8},
        "ste": {"sessions": 8, "paraphrases": 2, "epochs": 3, "lr": 1e-3, "batch_size": 8},
    },
    # Lumos-I against Lumos-O, whose plans do not know the rules: 66% against 19% on 64 dev tasks (1 seed).
    "lumos": {
        "env": "workshop:depth=1-3",
        "recipes": ("sft", "lumos:iterative=false", "lumos"),
        "baseline": "lumos:iterative=false",
        "claim": "lumos",
        "": {"train_tasks": 8, "test_tasks": 256, "test_start": 3000, "expert_episodes": 64},
        "sft": {"epochs": 12, "lr": 1e-3, "batch_size": 8},
        "lumos": {"epochs": 16, "lr": 2e-3, "batch_size": 8},
        "note": (
            "Planning after each result gains much over planning at once. What the paper claims against one model that does both does not "
            "appear: `sft` is ahead. The embedded model was made with thoughts before calls, and two modules have to learn forms of "
            "their own from the same few paths."
        ),
    },
    # 95% against 23% on 64 dev tasks (1 seed), with a scripted Sage that knows the rules; 58% where giving is not held to be critical.
    "swift_sage": {
        "env": "workshop:depth=1-3",
        "recipes": ("swift_sage:slow=false", "swift_sage"),
        "baseline": "swift_sage:slow=false",
        "claim": "swift_sage",
        "": {"train_tasks": 8, "test_tasks": 256, "test_start": 3000, "expert_episodes": 32},
        "swift_sage": {
            **SWITCH,
            "epochs": 6,
            "lr": 5e-4,
            "batch_size": 8,
        },
    },
    # Seen on 200 dev tasks, seeds 0 and 1: self_talk 0.945 and 0.785; sft on the same 48 expert dialogues 0.560 and 0.470 (with 16
    # epochs 0.620, seed 0). The base follows no prompt of this kind, so that it is first shown what a node asks for
    # (`demonstrations`); without that, and from an agent that sft had made, self-talk over whole workflows did not help: 0.505.
    "self_talk": {
        "env": "client:steps=4",
        "recipes": ("sft", "self_talk"),
        "baseline": "sft",
        "claim": "self_talk",
        "": {"train_tasks": 256, "expert_episodes": 48, "test_tasks": 256, "test_start": 2000},
        "sft": {"epochs": 8, "lr": 1e-3, "batch_size": 8},
        "self_talk": {"demonstrations": 48, "epochs": 3, "lr": 1e-3, "batch_size": 8, "lora": None},
    },
    # 84% against 38% of the tuned model alone, on 64 dev tasks (2 seeds; 39% with one branch for each subtask, 1 seed), with a scripted
    # plan and judge, which know the rules. The worker is not told its subtask: it was never tuned on such an order, and with one it
    # gets nowhere (6% against 55% after 2 epochs, 1 seed).
    "llm_tmbr": {
        "env": "workshop:depth=1-3",
        "recipes": ("llm_tmbr:branching=false", "llm_tmbr:ways.branches=1", "llm_tmbr"),
        "baseline": "llm_tmbr:branching=false",
        "claim": "llm_tmbr",
        "": {"train_tasks": 32, "test_tasks": 256, "test_start": 3000},
        "llm_tmbr": {"ways.told": False, "epochs": 3, "lr": 5e-3, "batch_size": 8},
    },
    # Seen on 200 dev tasks, 2 seeds each: 0.525 and 0.450 against 0.450 and 0.495 without rounds. Weaker rounds (128 questions, lr=1e-4,
    # dpo_lr=1e-4 for one epoch) gave 0.500 and 0.535 against 0.470, 0.545 and 0.480; such of 128 steps at lr=5e-4 gave 0.150 (1 seed).
    "atm": {
        "env": "search:hops=1,given=4,copies=2,lies=2",
        "recipes": ("atm:rounds=0", "atm"),
        "baseline": "atm:rounds=0",
        "claim": "atm",
        "": {"train_tasks": 8, "expert_episodes": 256, "test_tasks": 256, "test_start": 2000},
        "atm": {
            "rounds": 2,
            "fabrications": 3,
            "steps": 48,
            "lr": 2e-4,
            "init_epochs": 2,
            "init_lr": 5e-4,
            "attacker_epochs": 6,
            "dpo_epochs": 4,
            "dpo_lr": 3e-4,
            "max_tokens": 24,
            "probes": 0,
        },
        "note": (
            "A small gain, which two seeds on dev tasks had not shown (0.525 and 0.450 against 0.450 and 0.495). The attacker gets "
            "better (the perplexity of the right answer rises from one round to the next), but the generator learns little about whom "
            "to believe that holds for people it has not seen; harder rounds make it worse. Greedily the two are not told apart."
        ),
    },
    # Seen on 200 dev tasks, 1 seed: 0.510 [0.441, 0.579], without corrections 0.350 [0.287, 0.419], rejection sampling 0.920
    # [0.874, 0.950], each by 2,304 episodes.
    "envisions": {
        "env": "search:hops=1-2",
        "recipes": ("rejection_sampling", "envisions:corrections=0", "envisions"),
        "baseline": "rejection_sampling",
        "claim": "envisions",
        "": {"train_tasks": 96, "test_tasks": 256, "test_start": 3000},
        "rejection_sampling": {"iterations": 4, "samples": 6, "keep": 4, "restart": True, "epochs": 4, "lr": 5e-4, "batch_size": 32},
        "envisions": {"iterations": 4, "samples": 3, "epochs": 4, "lr": 5e-4, "batch_size": 32},
        "note": (
            "The paper's lead over self-training on successes alone does not appear. Half of the episodes are attempts to do better what "
            "was done before, of which a million parameters make little, so that the pool holds fewer right answers. To learn "
            "from corrections, the other half of the paper's idea, does help: the row without them is lower. Greedily it is not told apart "
            "from self-training on successes."
        ),
    },
    # Seen on 200 dev tasks, 1 seed: 0.990 [0.964, 0.997] against 0.590 [0.520, 0.656] of the clone that it goes on from, by 776 episodes.
    # Aggregator and improver are scripts that read the same words as a model would; the value model is the embedded one.
    "nlrl": {
        "env": "search:hops=1-2",
        "recipes": ("sft", "sft+nlrl"),
        "baseline": "sft",
        "claim": "sft+nlrl",
        "": {"train_tasks": 48, "expert_episodes": 16, "test_tasks": 256, "test_start": 2000},
        "sft": {"epochs": 4, "lr": 5e-4, "batch_size": 8},
        "nlrl": {
            "iterations": 3,
            "continuations": 4,
            "samples": 8,
            "moments": 2,
            "reasons": False,
            "epochs": 4,
            "lr": 5e-4,
            "max_tokens": 48,
        },
        "note": "What is gained is reliability: greedily the clone does as well.",
    },
    # Seen on 150 dev tasks, seeds 0 and 1: 0.380 [0.305, 0.461] and 0.400 [0.324, 0.481] against 0.093 [0.056, 0.151] and 0.213 [0.155,
    # 0.287] of a model for each role, and 0.113 [0.072, 0.175] (seed 0) of sft, which reads all twelve documents.
    "smart": {
        "env": "search:hops=1,given=12",
        "recipes": ("sft", "smart:separate=true", "smart:short.epochs=0", "smart"),
        "baseline": "smart:separate=true",
        "claim": "smart",
        "": {"train_tasks": 8, "expert_episodes": 256, "test_tasks": 256, "test_start": 3000},
        "sft": {"epochs": 8, "lr": 1e-3, "batch_size": 8},
        "smart": {
            **{f"{stage}.{key}": value for stage in ("short", "long") for key, value in (("lr", 1e-3), ("batch_size", 8), ("lora", None))},
            "short.epochs": 6,
            "long.epochs": 5,
        },
        "note": (
            "One model for all roles gains over one for each, as in the paper. The row without the short stage says little about the order "
            "of stages: the long trajectories alone, in as many epochs, are too few to learn the roles' forms from."
        ),
    },
}
"""Method -> `env`, `recipes`, `baseline` (one of them), `claim` (the recipe that is held against it), sizes under "",
options of methods under their names, and a `note` on what a reader of the table must know besides."""
