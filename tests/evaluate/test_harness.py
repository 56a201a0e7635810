"""Our model behind lm-eval: batching, decoding, prompts as sent, and what it leaves alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_support import run, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from wemask.checkpoint.pretrained import load_model
from wemask.embedded import TINY_PATH, problems
from wemask.errors import ModelError
from wemask.evaluate import harness
from wemask.evaluate.evaluation import TaskConfig
from wemask.evaluate.harness import WemaskLM
from wemask.evaluate.tasks.samples import Sent

PROMPTS = (
    "Tom has 3 apples.",
    "There are 16 apples in a box at the school. Then 9 apples break. How many apples?",
    "x",
    "Sam fills 2 bags with 5 balls each. Sam finds 9 balls. How many balls does Sam have now?\n",
    "Tom has 3 apples and a pear.",
)


def requests(prompts: tuple[str, ...], **settings: Any) -> list[Instance]:
    settings = {"until": [], "max_gen_toks": 12} | settings
    return [
        Instance(request_type="generate_until", doc={}, arguments=(prompt, settings), idx=0)  # pyright: ignore
        for prompt in prompts
    ]


def answers_of(model: Any, tokenizer: Any, prompts: tuple[str, ...], size: int) -> list[str]:
    lm = WemaskLM(model, tokenizer, batch_size=size, chat=True, progress=False)
    return lm.generate_until(requests(prompts))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_batches_with_left_pads_equal_prompts_alone(tiny: Any, size: int) -> None:
    alone = answers_of(tiny.model, tiny.tokenizer, PROMPTS, 1)
    assert answers_of(tiny.model, tiny.tokenizer, PROMPTS, size) == alone
    assert answers_of(tiny.model, tiny.tokenizer, PROMPTS[::-1], size) == alone[::-1]
    assert len(set(alone)) > 1


def test_outputs_are_those_of_a_plain_greedy_loop(tiny: Any) -> None:
    """An independent decoder: no cache, no padding, no generate()."""
    expected = []
    for prompt in PROMPTS:
        ids = tiny.tokenizer.encode(prompt, add_special_tokens=False)
        start = len(ids)
        while len(ids) < start + 12 and ids[-1] != tiny.tokenizer.eos_token_id:
            with torch.no_grad():
                logits = tiny.model(torch.tensor([ids]), use_cache=False).logits
            ids = [*ids, int(logits[0, -1].argmax())]
        expected.append(tiny.tokenizer.decode(ids[start:], skip_special_tokens=True))
    assert answers_of(tiny.model, tiny.tokenizer, PROMPTS, 3) == expected


WATERMARK = {"bias": 9.0, "hashing_key": 3, "context_width": 1}


@pytest.mark.parametrize(
    "wanted",
    [
        {"do_sample": True, "temperature": 2.0, "top_k": 7, "repetition_penalty": 3.0},
        {"min_new_tokens": 12},
        {"max_time": 1e-4},
        {"guidance_scale": 3.0, "no_repeat_ngram_size": 2},
        {"watermarking_config": WATERMARK},
        {"stop_strings": ["a"], "suppress_tokens": [*range(5, 99)]},
        {"num_beams": 3, "num_return_sequences": 3},
        {"forced_bos_token_id": 5, "sequence_bias": [[[30], 10.0]]},
        {"prompt_lookup_num_tokens": 3, "cache_implementation": "quantized"},
        {"penalty_alpha": 0.6, "exponential_decay_length_penalty": [1, 5.0]},
        {"return_dict_in_generate": True, "dola_layers": "low"},
    ],
    ids=lambda wanted: next(iter(wanted)),
)
def test_a_generation_config_changes_no_output_and_is_named(
    tiny: Any, tmp_path: Path, wanted: dict[str, Any]
) -> None:
    """Of a model folder: what it says would change these outputs, or end in an error."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_PATH, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wanted))
    model: Any = load_model(str(folder))
    before = model.generation_config.to_dict()
    expected = answers_of(tiny.model, tiny.tokenizer, PROMPTS, 3)
    assert answers_of(model, tiny.tokenizer, PROMPTS, 3) == expected
    assert model.generation_config.to_dict() == before
    for name in wanted.keys() - harness.IDLE:
        assert f"{name}=" in harness.set_aside_words(model)
    assert harness.set_aside_words(tiny.model) == ""


def test_what_a_task_asks_for_stays_and_what_is_set_aside_is_noted(
    fresh_tiny: Any, tmp_path: Path
) -> None:
    tiny = fresh_tiny()
    lm = WemaskLM(tiny.model, tiny.tokenizer, chat=True, progress=False)
    (plain,) = lm.generate_until(requests(PROMPTS[:1]))
    (asked,) = lm.generate_until(requests(PROMPTS[:1], repetition_penalty=9.0))
    assert asked != plain
    tiny.model.generation_config.update(min_new_tokens=9)
    task = TaskConfig(name="synthetic", limit=1, max_new_tokens=99)
    said = list[str]()
    note = run(tiny.model, tiny, [task], tmp_path, say=said.append)["synthetic"].note
    assert note == "the model's generation_config was set aside (min_new_tokens=9)"
    assert said == [f"base: {note}."]


def test_an_adapter_hands_its_generation_config_back(fresh_tiny: Any) -> None:
    model, tokenizer = fresh_tiny()
    expected = answers_of(model, tokenizer, PROMPTS, 3)
    model.generation_config.update(min_new_tokens=12, do_sample=True)
    own = model.generation_config
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    assert answers_of(adapted, tokenizer, PROMPTS, 3) == expected
    assert adapted.generation_config is model.generation_config is own


def test_an_end_that_is_no_token_is_refused(fresh_tiny: Any) -> None:
    model, tokenizer = fresh_tiny()
    model.generation_config.eos_token_id = [1, "y"]
    with pytest.raises(ModelError, match=r"generation_config.json must be ids, got \[1, 'y'\]"):
        WemaskLM(model, tokenizer)


def test_stop_strings_end_an_output(tiny: Any) -> None:
    lm = WemaskLM(tiny.model, tiny.tokenizer, chat=True, progress=False)
    (whole,) = lm.generate_until(requests(PROMPTS[:1]))
    stop = whole[3:5]
    (cut,) = lm.generate_until(requests(PROMPTS[:1], until=[stop]))
    assert cut == whole[: whole.index(stop)]
    assert lm.sent[PROMPTS[0]].finished


def test_the_model_and_tokenizer_are_left_as_they_came(tiny: Any, tmp_path: Path) -> None:
    config = LlamaConfig(**{**tiny.model.config.to_dict(), "tie_word_embeddings": True})
    model = LlamaForCausalLM(config).train()
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    head, before = model.lm_head.weight, repr(tiny.tokenizer)
    run(model, tiny, [TaskConfig(name="synthetic", limit=1, max_new_tokens=2)], tmp_path)
    assert model.lm_head.weight is head
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert model.training
    assert repr(tiny.tokenizer) == before


def test_random_generators_are_restored(tiny: Any, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tiny.model, tiny, [TaskConfig(name="synthetic", limit=2, max_new_tokens=2)], tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_a_short_context_cuts_prompts_behind_their_bos(tiny: Any, tmp_path: Path) -> None:
    """Learned positions crash past the context, so no batch may run past it."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tiny.tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2
    )
    model = GPT2LMHeadModel(config).eval()
    task = TaskConfig(name="synthetic", limit=8, max_new_tokens=50)
    (result,) = run(model, tiny, [task], tmp_path).values()
    assert result.note is not None
    assert "did not fit into the model's context of 64 tokens" in result.note
    assert "32 tokens instead of 50" in result.note
    cut = [s for s in result.samples if not s["prompt"].startswith("<s><|user|>")]
    assert cut
    for sample in cut:
        assert sample["prompt"].startswith("<s>")
        ids = tiny.tokenizer.encode(sample["prompt"], add_special_tokens=False)
        assert len(ids) <= 32


def test_an_output_that_runs_out_says_so(tiny: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny.model.config).eval()
    task = TaskConfig(name="synthetic", limit=6, max_new_tokens=3)
    (result,) = run(model, tiny, [task], tmp_path).values()
    failed = [sample for sample in result.samples if sample["extracted"] is None]
    assert failed
    assert all("ran into its limit of 3 tokens" in str(sample["reason"]) for sample in failed)
    assert result.note == "6 of 6 outputs ran into their limit"


def test_a_turn_ends_where_the_template_ends_it(fresh_tiny: Any) -> None:
    model, tokenizer = fresh_tiny()
    turn = tokenizer.encode("<|user|>", add_special_tokens=False)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content'] + eos_token", "message['content'] + '<|user|>'"
    )
    assert WemaskLM(model, tokenizer, progress=False)._ends == sorted(
        {*turn, tokenizer.eos_token_id}
    )


def test_a_tokenizer_without_an_end_is_refused(fresh_tiny: Any) -> None:
    model, tokenizer = fresh_tiny()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no eos_token"):
        WemaskLM(model, tokenizer)


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=30),
    size=st.integers(1, 7),
    asked=st.integers(1, 200),
)
def test_batches_hold_every_prompt_once_and_fit_the_context(
    tiny: Any, lengths: list[int], size: int, asked: int
) -> None:
    lm = WemaskLM.__new__(WemaskLM)
    lm._max_length, lm.tokenizer = 64, tiny.tokenizer
    bos = tiny.tokenizer.bos_token_id
    lm.tok_encode = lambda text: [bos, *range(3, 2 + int(text))]
    prompts = [lm._prepare(str(n), {"max_gen_toks": asked}) for n in lengths]
    kinds = [{"do_sample": n % 3 == 0} for n in lengths]
    batches = list(harness._batches(prompts, kinds, size))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        budgets = {prompts[i].budget for i in batch}
        assert len(budgets) == 1
        assert len({kinds[i]["do_sample"] for i in batch}) == 1
        assert len(batch) <= size
        assert max(len(prompts[i].ids) for i in batch) + budgets.pop() <= 64
    for prompt, length in zip(prompts, lengths, strict=True):
        assert prompt.ids[0] == bos
        assert prompt.cut == (len(prompt.ids) < length)
        assert 1 <= prompt.budget <= asked


def test_a_prompt_is_never_empty(tiny: Any) -> None:
    lm = WemaskLM(tiny.model, tiny.tokenizer, chat=True, progress=False)
    prompt = lm._prepare("", {"max_gen_toks": 4})
    assert prompt == Sent(text="", ids=[tiny.tokenizer.bos_token_id], budget=4, cut=False)


def test_nothing_is_printed_without_progress(
    tiny: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tiny.model, tiny, [TaskConfig(name="synthetic", limit=2, max_new_tokens=2)], tmp_path)
    assert capfd.readouterr() == ("", "")
    run(
        tiny.model,
        tiny,
        [TaskConfig(name="synthetic", limit=3, max_new_tokens=2)],
        tmp_path,
        progress=True,
    )
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "synthetic [base]: 100%" in captured.err
    assert "3/3" in captured.err
    assert "Building contexts" not in captured.err


def test_a_chat_prompt_is_the_template_and_nothing_else(tiny: Any, tmp_path: Path) -> None:
    (result,) = run(
        tiny.model, tiny, [TaskConfig(name="synthetic", limit=2, max_new_tokens=1)], tmp_path
    ).values()
    items = problems.generate(2, split="test", family="sft", seed=0)
    for sample, item in zip(result.samples, items, strict=True):
        chat = [{"role": "user", "content": item["question"]}]
        render = tiny.tokenizer.apply_chat_template
        assert sample["prompt"] == render(chat, tokenize=False, add_generation_prompt=True)
        lm = WemaskLM(tiny.model, tiny.tokenizer, chat=True, progress=False)
        ids = render(chat, add_generation_prompt=True, return_dict=False)
        assert lm._prepare(sample["prompt"], {"max_gen_toks": 1}).ids == ids


def test_fewshot_examples_become_turns_or_text(tiny: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "g.jsonl", [{"question": "How many?", "answer": "#### 3"}])
    chat = TaskConfig(name="gsm8k", path=str(path), fewshot=3, max_new_tokens=1)
    plain = TaskConfig(name="gsm8k", path=str(path), fewshot=2, max_new_tokens=1, chat=False)
    (a,) = run(tiny.model, tiny, [chat], tmp_path / "a").values()
    (b,) = run(tiny.model, tiny, [plain], tmp_path / "b").values()
    assert (a.fewshot, b.fewshot) == (3, 2)
    text = a.samples[0]["prompt"]
    assert (text.count("<|user|>"), text.count("<|assistant|>")) == (4, 4)
    assert text.endswith("<|user|>How many?<|assistant|>")
    assert b.samples[0]["prompt"].startswith("Question: There are 15 trees in the grove.")
    assert b.samples[0]["prompt"].endswith("\n\nQuestion: How many?\nAnswer:")
    assert "The answer is 6." in b.samples[0]["prompt"]
    assert a.template_sha256 != b.template_sha256
