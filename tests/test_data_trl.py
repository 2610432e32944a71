"""What whet exports trains in TRL's own trainers as it is, and teaches what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commandline import BASE, done, needs_base
from whet.agents import Agent
from whet.envs import load_env
from whet.policies import load_policy
from whet.rollout import rollout
from whet.runs import EpisodeStore

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = [needs_base, pytest.mark.slow]

COMMON: dict[str, Any] = {"report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no"}
COMMON |= {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1, "disable_tqdm": True, "seed": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attempts of an expert and of chance at the same tasks."""
    path = tmp_path_factory.mktemp("trl") / "x.db"
    env = load_env("search:hops=2")
    made = EpisodeStore(path)
    for actor in ("expert", "random"):
        made.save(rollout(Agent(load_policy(actor)), env, env.tasks("train", 48), tag=actor), actor)
    made.close()
    return path


def load_data(store: Path, tmp_path: Path, to: str, kind: str, *argv: str) -> Any:
    """What a user of TRL does with the file: nothing but loading it."""
    done("data", "export", str(store), f"x{kind}", "--to", to, *argv, cwd=tmp_path)
    if kind == ".jsonl":
        return datasets.load_dataset("json", data_files=str(tmp_path / "x.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    return datasets.load_from_disk(str(tmp_path / "x"))


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trainer_of(kind: Any, config: Any, data: Any, tmp_path: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    args = config(output_dir=str(tmp_path / "out"), **COMMON, **options)
    return kind(model=model, args=args, train_dataset=data, processing_class=tokenizer)


@pytest.mark.parametrize(
    ("to", "kind", "options"), [("trl", ".jsonl", {"assistant_only_loss": True}), ("trl", "", {}), ("trl-completion", ".jsonl", {})]
)
def test_sft_trainer_takes_it(store: Path, tmp_path: Path, to: str, kind: str, options: dict[str, Any]) -> None:
    data = load_data(store, tmp_path, to, kind, "--tag", "expert")
    assert len(data) == 48
    trainer = trainer_of(trl.SFTTrainer, trl.SFTConfig, data, tmp_path, **options)
    found = losses(trainer)
    assert all(np.isfinite(found))
    assert np.mean(found[-3:]) < 0.8 * np.mean(found[:3]), found


def test_trl_tokenises_what_whet_does(store: Path, tmp_path: Path) -> None:
    """The tokens and the loss mask that TRL makes of the export are those of `to_examples` for the same episodes."""
    from whet.data import to_examples
    from whet.data.provenance import tools_of

    data = load_data(store, tmp_path, "trl", ".jsonl", "--tag", "expert", "--bare")
    prepared = trainer_of(trl.SFTTrainer, trl.SFTConfig, data, tmp_path, assistant_only_loss=True, max_length=None).train_dataset
    policy = load_policy("base")
    for record, episode in zip(prepared, EpisodeStore(store, read_only=True).load("expert"), strict=True):
        (row,) = to_examples(episode, policy, tools=tools_of(episode))
        n = len(row.tokens)
        assert record["input_ids"][:n] == row.tokens.tolist(), "what TRL has behind the last answer teaches nothing"
        trained = np.array(record["labels"]) != -100
        assert (trained[:n] == row.mask).all()
        assert not trained[n:].any()


def test_dpo_trainer_takes_it(store: Path, tmp_path: Path) -> None:
    data = load_data(store, tmp_path, "trl-preference", ".jsonl")
    assert 30 < len(data) <= 48, "chance fails nearly always"
    trainer = trainer_of(trl.DPOTrainer, trl.DPOConfig, data, tmp_path, beta=0.1)
    found = losses(trainer)
    assert found[0] == pytest.approx(np.log(2), abs=0.02)
    assert np.mean(found[-3:]) < 0.5 * found[0], found


@pytest.mark.parametrize("kind", [".jsonl", ""])
@pytest.mark.parametrize("to", ["trl", "trl-preference"])
def test_what_went_to_trl_comes_back_equal(store: Path, tmp_path: Path, to: str, kind: str) -> None:
    done("data", "export", str(store), f"x{kind}", "--to", to, cwd=tmp_path)
    done("data", "import", "y.db", f"x{kind}", cwd=tmp_path)
    ours = {e.id: e for e in EpisodeStore(store, read_only=True).load()}
    back = list(EpisodeStore(tmp_path / "y.db", read_only=True).load())
    assert len(back) == (96 if to == "trl" else 2 * len({e.task.id for e in back}))
    for e in back:
        assert {**e.tags, "source": None} == {**ours[e.id].tags, "source": None}
        assert (e.task, e.turns, e.reward, e.cost) == (ours[e.id].task, ours[e.id].turns, ours[e.id].reward, ours[e.id].cost)


def test_openai_messages_by_way_of_trl_come_back_equal(store: Path, tmp_path: Path) -> None:
    """A .json of OpenAI messages, imported, trained on in TRL's form, and imported again from there."""
    done("data", "export", str(store), "chats.json", "--to", "openai", cwd=tmp_path)
    rows = json.loads((tmp_path / "chats.json").read_text())
    rows[0]["messages"][0]["content"] = [{"type": "text", "text": "parts"}]
    rows[1]["parallel_tool_calls"] = False
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    done("data", "import", "a.db", "chats.json", cwd=tmp_path)
    data = load_data(tmp_path / "a.db", tmp_path, "trl", "")
    trainer = trainer_of(trl.SFTTrainer, trl.SFTConfig, data, tmp_path)
    assert all(np.isfinite(losses(trainer)))
    done("data", "import", "b.db", "x", cwd=tmp_path)
    done("data", "export", "b.db", "back.json", "--to", "openai", "--strict", cwd=tmp_path)
    assert json.loads((tmp_path / "back.json").read_text()) == rows
