"""Our model behind lm-eval's interface, and one benchmark run through it.

Imports lm_eval (seconds), so `evaluation.py` imports this module only when it evaluates.
"""

import contextlib
import copy
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import jinja2
import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    chunks,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.models.utils_hf import stop_sequences_criteria
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase, set_seed

from wemask.decoder.parts import unwrap
from wemask.errors import ModelError
from wemask.evaluate.journal import Journal
from wemask.evaluate.tasks.loading import LoadedTask, quiet
from wemask.evaluate.tasks.samples import Sent
from wemask.files import digest

_HFLM: Any = HFLM  # lm-eval's registry decorator hides the class's type

SAMPLED = {"top_k": 0}  # where a task samples: no cut at 50 tokens that nobody asked for
# What a generation_config says without consequences here: ids that are read, lengths that a task
# always gives, and what else is returned.
IDLE = {
    *("eos_token_id", "pad_token_id", "bos_token_id", "transformers_version"),
    *("max_length", "max_new_tokens", "return_dict_in_generate"),
    *GenerationConfig.extra_output_flags,
}
CHUNK = 16  # batches of multiple-choice requests that are written down together
TURN = "wemask-turn"  # stands for an assistant's words when the template is asked how a turn ends


class WemaskLM(_HFLM):
    """A loaded (and possibly softened) causal model with its tokenizer, for lm-eval.

    Differs from HFLM in what would spoil a comparison of arms: a prompt is encoded by itself, never
    by what its batch mates look like; a chat prompt gets no special tokens beyond its template, as
    in training; a prompt that is too long keeps its BOS token, where massive activations sit;
    decoding is greedy whatever the model's generation_config says; an output ends where the
    template ends a turn; and the model is left as it came (HFLM ties its weights).

    Args:
        model: causal language model on its device.
        tokenizer: its tokenizer; copied, not changed.
        batch_size: prompts per forward.
        chat: whether prompts come out of the chat template.
        progress: show progress bars.
        label: text before the bar.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 8,
        chat: bool = False,
        progress: bool = True,
        label: str = "generate",
    ) -> None:
        # HFLM's constructor would call model.tie_weights(), which overwrites a head that was
        # untied on purpose: it gets a stand-in, and the model takes its place afterwards.
        stand_in = SimpleNamespace(config=model.config, device=model.device)
        with quiet():
            super().__init__(
                pretrained=stand_in,
                tokenizer=_ready(tokenizer),
                backend="causal",
                batch_size=batch_size,
                max_length=resolve_max_length(model.config, tokenizer),
                add_bos_token=False if chat else None,
            )
        self._model = self.pretrained = model
        self.progress, self.label = progress, label
        self.journal: Journal | None = None
        self.seed = 0  # of tasks that sample
        self.scope: list[str] = []  # what sets batches apart that ask the same again, as draws do
        self.sent: dict[str, Sent] = {}
        self.shortened = 0  # multiple-choice requests that lost the beginning of their prompt
        self._ends = _end_ids(model, self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's log; HFLM's own fails where a tokenizer's name is a Path."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return one output per request, in order; each is what the prompt gives on its own."""
        outputs = [""] * len(requests)
        settings = [dict(normalize_gen_kwargs(cast(Any, r.args)[1])) for r in requests]
        prompts = [
            self._prepare(request.args[0], own)
            for request, own in zip(requests, settings, strict=True)
        ]
        with self._bar(len(requests), disable_tqdm) as bar:
            for batch in _batches(prompts, settings, self.batch_size):
                asked, own = [prompts[i] for i in batch], settings[batch[0]]
                ids = [prompt.ids for prompt in asked]
                unit = digest([own, ids, asked[0].budget, batch, *self.scope], 64)
                texts = self._once(unit, partial(self._generate, asked, own))
                for i, (text, finished) in zip(batch, texts, strict=True):
                    outputs[i] = text
                    done = replace(prompts[i], ids=[], finished=finished)
                    self.sent[requests[i].args[0]] = done
                bar.update(len(batch))
        return outputs

    def _bar(self, total: int, disable: bool) -> tqdm:
        """Items done, items per second, and how long the rest will take."""
        disable = disable or not self.progress
        return tqdm(total=total, desc=self.label, unit="item", disable=disable)

    def _once(self, unit: str, run: Callable[[], Any]) -> Any:
        """What `run` returns, or returned before the run was killed."""
        done = None if self.journal is None else self.journal.get(unit)
        if done is None:
            # So a batch that is sampled does not depend on how many were run before it.
            torch.manual_seed(int(unit[:15], 16) ^ self.seed)
            done = run()
            if self.journal is not None:
                self.journal.add(unit, done)
        return done

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return (log probability, is greedy) of each continuation."""
        outputs: list[tuple[float, bool]] = []
        size = CHUNK * self.batch_size
        with self._bar(len(requests), disable_tqdm) as bar:
            for start in range(0, len(requests), size):
                part = requests[start : start + size]
                unit = digest([start, [request.args for request in part]], 64)
                scores, shortened = self._once(unit, partial(self._likelihoods, part))
                outputs += [(score, greedy) for score, greedy in scores]
                self.shortened += shortened
                bar.update(len(part))
        return outputs

    def _likelihoods(self, requests: list[Instance]) -> tuple[list[tuple[float, bool]], int]:
        """Return the scores, and how many prompts lost their beginning."""
        before = self.shortened
        scores = super().loglikelihood(requests, disable_tqdm=True)
        shortened = self.shortened - before
        self.shortened = before  # the caller counts them, also those of a run before a kill
        return [(float(score), bool(greedy)) for score, greedy in scores], shortened

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        fitting = []
        for key, context, continuation in requests:
            # The last token is only ever predicted, so one more than max_length fits.
            short = self._cut(context, self.max_length + 1 - len(continuation))
            self.shortened += len(short) < len(context)
            fitting.append((key, short, continuation))
        disable_tqdm = disable_tqdm or not self.progress
        return super()._loglikelihood_tokens(fitting, disable_tqdm, override_bs)

    def _prepare(self, text: str, settings: dict[str, Any]) -> Sent:
        ids = self.tok_encode(text) or [self.prefix_token_id]
        budget = settings["max_gen_toks"]
        if len(ids) + budget > self.max_length:
            # A model with a short context spends half of it on the output, at most. One budget for
            # all prompts that are short of room lets them share batches inside of the context.
            budget = min(budget, self.max_length // 2)
        short = self._cut(ids, self.max_length - budget)
        cut = len(short) < len(ids)
        shown = self.tok_decode(short, skip_special_tokens=False) if cut else text
        return Sent(text=shown, ids=short, budget=budget, cut=cut)

    def _cut(self, ids: list[int], room: int) -> list[int]:
        """Shorten to `room` tokens from the left, keeping a BOS token in front."""
        if len(ids) <= room:
            return ids
        keep = 1 if room > 1 and ids[0] == self.tokenizer.bos_token_id else 0
        return ids[:keep] + ids[len(ids) - room + keep :]

    def _generate(
        self, prompts: Sequence[Sent], settings: dict[str, Any]
    ) -> list[tuple[str, bool]]:
        """Run one left-padded batch with one budget; (output, whether it ended by itself) each."""
        padded = self.tokenizer.pad(
            {"input_ids": [prompt.ids for prompt in prompts]},
            padding_side="left",
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.device)
        width = padded["input_ids"].shape[1]
        stop = [text for text in settings["until"] if text]
        ends = stop and stop_sequences_criteria(self.tokenizer, stop, width, len(prompts))
        with torch.no_grad(), plain_decoding(self.model):
            tokens = self.model.generate(
                **padded,
                generation_config=self._decoding(prompts[0].budget, settings),
                stopping_criteria=ends or None,
            )
        return [self._finish(row, stop) for row in tokens[:, width:].tolist()]

    def _decoding(self, budget: int, settings: dict[str, Any]) -> GenerationConfig:
        sampled = settings.get("do_sample")
        left_out = {"until", "max_gen_toks"} | (set() if sampled else {"temperature"})
        own = {k: v for k, v in settings.items() if k not in left_out}
        return GenerationConfig(
            **{**(SAMPLED if sampled else {}), **own},
            max_new_tokens=budget,
            eos_token_id=self._ends,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def _finish(self, row: list[int], stop: list[str]) -> tuple[str, bool]:
        end = next((i for i, token in enumerate(row) if token in self._ends), None)
        text = self.tok_decode(row[:end])
        kept = postprocess_generated_text(text, stop, None)
        return kept, end is not None or len(kept) < len(text)


@contextlib.contextmanager
def plain_decoding(model: Any) -> Iterator[None]:
    """Set the model's own generation_config aside while it writes, and give it back.

    transformers fills from it whatever a call leaves out, and penalties, a least length, a time
    limit or stop strings would apply under greedy decoding too.
    """
    own, plain = model.generation_config, GenerationConfig()
    holders: tuple[Any, ...] = (unwrap(model), model)  # PEFT hands its own on to what it wraps
    for holder in holders:
        holder.generation_config = plain
    try:
        yield
    finally:
        for holder in holders:
            holder.generation_config = own


def set_aside_words(model: Any) -> str:
    """What `plain_decoding` sets aside, in words; "" where all is as transformers has it."""
    own = model.generation_config.to_dict() if model.generation_config else {}
    plain = GenerationConfig._get_default_generation_params()
    left = {k: v for k, v in own.items() if k not in IDLE and not k.startswith("_")}
    found = [f"{k}={v!r:.40}" for k, v in left.items() if v is not None and v != plain.get(k)]
    return f"the model's generation_config was set aside ({', '.join(found)})" if found else ""


def run_task(
    lm: WemaskLM, loaded: LoadedTask, *, limit: int | None, seed: int, draw: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Ask every item and score it; return lm-eval's logged samples by (sub)task name.

    `draw` tells passes over the same prompts apart: each samples with a seed of its own.
    """
    lm.seed, lm.scope = seed, [f"draw {draw}"] if draw else []
    lm.sent = {}
    with quiet(), seeded(seed):
        for task in loaded.tasks.values():
            task.set_fewshot_seed(seed)
        results = evaluate(
            lm=lm,
            task_dict={"tasks": loaded.tasks, "groups": {}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=lm.add_bos_token is False,
            fewshot_as_multiturn=True,
        )
    assert results is not None  # None only on ranks above 0, and there is one rank
    return cast(dict[str, list[dict[str, Any]]], cast(Any, results)["samples"])


def prompts_and_items(
    lm: WemaskLM, loaded: LoadedTask, *, limit: int | None, seed: int
) -> dict[str, Any]:
    """Return what the items and prompts are: every document, and the first prompt of each task."""
    chat = lm.add_bos_token is False
    items, prompts = list[str](), list[str]()
    with quiet(), seeded(seed):
        for name, task in loaded.tasks.items():
            task.set_fewshot_seed(seed)
            docs = [doc for _, doc in task.doc_iterator(limit=limit)]
            items += [json.dumps([name, doc], sort_keys=True, default=str) for doc in docs]
            prompt = task.fewshot_context(
                docs[0],
                num_fewshot=task.get_config("num_fewshot") or 0,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                chat_template=lm.apply_chat_template if chat else None,
                gen_prefix=task.doc_to_prefix(docs[0]),
            )
            prompts.append(json.dumps(prompt))
    template = lm.tokenizer.chat_template if chat else None
    return {"items": items, "prompts": prompts, "chat_template": template}


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed python's, numpy's and torch's generators (some tasks shuffle), and restore them."""
    # Tasks of lm-eval's draw from numpy's global generator.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _batches(
    prompts: Sequence[Sent], settings: Sequence[Mapping[str, Any]], size: int
) -> Iterator[list[int]]:
    """Split into batches of one decoding and budget, longest prompts first: few pads."""
    kinds = [json.dumps(own, sort_keys=True, default=str) for own in settings]

    def rank(i: int) -> tuple[Any, ...]:
        return kinds.index(kinds[i]), -prompts[i].budget, -len(prompts[i].ids), prompts[i].ids

    order = sorted(range(len(prompts)), key=rank)
    for _, members in itertools.groupby(order, key=lambda i: (kinds[i], prompts[i].budget)):
        yield from chunks(members, size)


def _ready(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy that can pad. HFLM would invent a pad token the model has no embedding for."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "The tokenizer has no eos_token, so no output would ever end. "
            "Set tokenizer.eos_token to the token that ends a text."
        )
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Long prompts are cut, and noted, here; the tokenizer's warning about them would mislead.
    tokenizer.model_max_length = sys.maxsize
    return tokenizer


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end an output: the model's, the tokenizer's and the template's."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    found = [end for end in ends | {_end_of_turn(tokenizer)} if end is not None]
    if not all(isinstance(end, int) for end in found):
        raise ModelError(
            f"eos_token_id of the model's generation_config.json must be ids, got {own!r:.60}."
        )
    return sorted(found)


def _end_of_turn(tokenizer: Any) -> int | None:
    """Return the special token that the chat template puts behind an assistant's words, if any."""
    if not tokenizer.chat_template:
        return None
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": TURN}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except jinja2.TemplateError:  # a template that wants other roles first
        return None
    rest = tokenizer.encode(text.rpartition(TURN)[2].lstrip(), add_special_tokens=False)
    return rest[0] if rest and rest[0] in tokenizer.added_tokens_decoder else None
