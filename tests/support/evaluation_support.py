"""What the tests of evaluation share: a model that says what it is told, and short calls."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from wemask.embedded import problems
from wemask.evaluate.evaluation import TaskConfig, TaskResult, evaluate_arm

REPOSITORY = Path(__file__).resolve().parents[2]


class Oracle(LlamaForCausalLM):
    """Writes a prepared output for every prompt in `says`, whatever its weights."""

    def prepare(self, tokenizer: Any, says: dict[str, str]) -> "Oracle":
        self.tokenizer, self.says, self.calls = tokenizer, says, 0
        return self

    def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:  # pyright: ignore
        self.calls += len(input_ids)
        outputs = []
        for row in input_ids:
            prompt = self.tokenizer.decode(row, skip_special_tokens=True)
            (text,) = [text for question, text in self.says.items() if question in prompt]
            outputs.append(self.tokenizer.encode(text, add_special_tokens=False))
        end = self.tokenizer.eos_token_id
        width = max(len(output) for output in outputs) + 1
        tails = [output + [end] * (width - len(output)) for output in outputs]
        return torch.cat([input_ids, torch.tensor(tails)], dim=1)


def oracle(tiny: Any, says: dict[str, str]) -> Oracle:
    model = Oracle(tiny.model.config)
    return model.prepare(tiny.tokenizer, says)


def synthetic_oracle(tiny: Any, n: int, right: set[int]) -> Oracle:
    items = problems.generate(n, split="test", family="sft", seed=0)
    return oracle(
        tiny,
        {
            item["question"]: f"So it is.\n#### {int(item['gold']) + (i not in right)}"
            for i, item in enumerate(items)
        },
    )


def run(model: Any, tiny: Any, tasks: list[TaskConfig], folder: Path, **kwargs: Any) -> Any:
    settings = {"arm": "base", "fingerprint": "f", "progress": False, "batch_size": 4} | kwargs
    return evaluate_arm(model, tiny.tokenizer, tasks, folder=folder, **settings)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ask(tiny: Any, folder: Path, name: str, path: Path, says: dict[str, str]) -> TaskResult:
    """The result of the task `name` on a local file, answered as told."""
    task = TaskConfig(name=name, path=str(path))
    return run(oracle(tiny, says), tiny, [task], folder / "run")[name]
