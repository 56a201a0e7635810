"""The shipped model and tokenizer: what other parts of wemask and its users rely on.

The ME Layer is measured here by a plain forward with `output_hidden_states`, independently of
`wemask.detect` and of the recipe's own tables.
"""

import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.tiny.build_tokenizer import SPECIAL, build
from recipes.tiny.documents import Documents, Mixture, pad
from recipes.tiny.lean import LeanLlama
from recipes.tiny.measure import measure, table
from recipes.tiny.pretrain import CRITERION, disturb, parse_args, train
from wemask.embedded import TINY_PATH
from wemask.embedded.problems import generate

TEXTS = (
    "Tom has 12 apples. Tom buys 5 more apples at the shop. How many apples does Tom have now?",
    "def add(a, b):\n    return a + b  # a comment, 2 + 2 == 4\n",
    "The quick brown fox jumps over the lazy dog.\n\nSecond paragraph; with, punctuation!",
    "Gr\u00fc\u00dfe aus K\u00f6ln, \u6f22\u5b57 and \U0001f600 in one line: 3.14159.",
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_PATH)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY_PATH, attn_implementation="eager").eval()


# --- tokenizer


@given(text=st.text(st.characters(exclude_categories=("Cs",))))
@example("a\r\n\t b  \u00e9\u6f22 \u00bd \u0663 12345 <s>x</s>\x00")
@example("<|user|> <|back_3|>")
@settings(deadline=None)
def test_any_text_round_trips(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_all_bytes_are_in_the_vocabulary_and_there_is_no_unk(tokenizer):
    assert tokenizer.unk_token is None
    assert 500 <= len(tokenizer) <= 1000
    text = "".join(map(chr, [*range(0x20), *range(0x7F, 0x900), 0xFFFD, 0x1F600, 0x10FFFF]))
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_a_token_holds_one_digit_at_most(tokenizer):
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    assert not [t for t in texts if sum(c.isdigit() for c in t) > 1]
    ids = tokenizer("1234 567", add_special_tokens=False).input_ids
    assert [tokenizer.decode([i]).strip() for i in ids] == list("1234567")


@pytest.mark.parametrize("text", ["", "a", "<", TEXTS[0]])
def test_bos_comes_first_and_once(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_special_tokens(tokenizer):
    names = tokenizer.convert_ids_to_tokens([0, 1, 2])
    assert names == ["<pad>", "<s>", "</s>"]
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == (0, 1, 2)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two\nlines?"},
    {"role": "assistant", "content": "4 + 5 = 9\n#### 9"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": " ok "},
]


def test_the_chat_template_is_exactly_this(tokenizer):
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert rendered == (
        "<s><|system|>Be brief.<|user|>Two\nlines?<|assistant|>4 + 5 = 9\n#### 9</s>"
        "<|user|>And?<|assistant|> ok </s>"
    )
    prompt = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert prompt + CHAT[2]["content"] + "</s>" == tokenizer.apply_chat_template(
        CHAT[:3], tokenize=False
    )


def test_a_rendered_chat_has_one_bos(tokenizer):
    ids = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert tokenizer(rendered, add_special_tokens=False).input_ids == ids


def test_the_generation_mask_covers_the_answers_and_their_eos(tokenizer):
    chat = tokenizer.apply_chat_template(
        CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(chat["input_ids"], chat["assistant_masks"], strict=True)
    trained = tokenizer.decode([i for i, on in pairs if on])
    assert trained == "4 + 5 = 9\n#### 9</s> ok </s>"


def test_an_unknown_role_is_an_error(tokenizer):
    with pytest.raises(Exception, match="Unknown role: tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_recipe_builds_the_shipped_tokenizer(tokenizer):
    built = build()
    assert built.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert built.chat_template == tokenizer.chat_template


# --- model


def test_the_folder_is_small_and_safe():
    files = sorted(p.name for p in TINY_PATH.iterdir())
    assert files == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(p.stat().st_size for p in TINY_PATH.iterdir()) <= 10 * 2**20
    with safe_open(TINY_PATH / "model.safetensors", "pt") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118
    assert 300_000 <= sum(t.numel() for t in tensors) <= 4_000_000
    assert all(t.isfinite().all() for t in tensors)


def test_config_and_tokenizer_agree(model, tokenizer):
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.model_type == "llama"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(model.config, name) == getattr(tokenizer, name)
        assert getattr(model.generation_config, name) == getattr(tokenizer, name)


def prompts(tokenizer):
    """Plain texts, and chats from the test split."""
    plain = [tokenizer(t).input_ids for t in TEXTS]
    chats = [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": p["question"]},
                {"role": "assistant", "content": p["answer"]},
            ],
            tokenize=True,
            return_dict=True,
        )["input_ids"]
        for p in generate(12, split="test")
    ]
    return [torch.tensor([ids]) for ids in plain + chats]


@pytest.fixture(scope="module")
def measured(model, tokenizer):
    """All real tokens of all prompts: states [layer + 1, N, D], which are BOS [N], sinks [layer].

    The last layer's output is left out: `hidden_states[-1]` of a Llama is normalised already.
    """
    states, is_bos, sinks = [], [], []
    with torch.no_grad():
        for ids in prompts(tokenizer):
            out = model(ids, output_hidden_states=True, output_attentions=True)
            states.append(torch.stack(out.hidden_states[:-1])[:, 0])
            is_bos.append(ids[0] == tokenizer.bos_token_id)
            sinks.append(torch.stack([a[0, :, 1:, 0].mean() for a in out.attentions]))
    return torch.cat(states, 1), torch.cat(is_bos), torch.stack(sinks).mean(0)


@pytest.fixture(scope="module")
def me_layer(measured):
    """First layer whose largest value is 100 times the median and 10 times the layer before's."""
    states, _, _ = measured
    largest = states.abs().amax((1, 2))
    medians = states.abs().flatten(1).median(1).values
    rows = range(1, len(states))
    hits = [r for r in rows if largest[r] / medians[r] >= 100 and largest[r] / largest[r - 1] >= 10]
    assert hits, (largest / medians, largest[1:] / largest[:-1])
    return hits[0] - 1


def test_a_massive_activation_emerges_at_layer_1_or_later(me_layer):
    assert me_layer >= 1


def test_it_is_on_bos_and_only_there(measured, me_layer):
    states, is_bos, _ = measured
    for h in states[me_layer + 1 :]:
        largest = h.abs().amax(-1)
        assert largest[is_bos].min() > 3 * largest[~is_bos].max()


def test_its_dims_tell_bos_from_all_ordinary_tokens(measured, me_layer):
    states, is_bos, _ = measured
    at_birth = states[me_layer + 1, is_bos].mean(0).abs()
    dim = int(at_birth.argmax())
    for h in states[me_layer + 1 :]:
        assert h[is_bos, dim].abs().min() > 4 * h[~is_bos, dim].abs().max()


def states_of_all_tokens(model, prefix):
    """Return [layer, token, D]: every token of the vocabulary after `prefix`."""
    ids = torch.tensor([[*prefix, i] for i in range(model.config.vocab_size)])
    with torch.no_grad():
        out = model(ids, output_hidden_states=True, use_cache=False)
    return torch.stack(out.hidden_states[:-1])[1:, :, -1]


def test_no_other_token_of_the_vocabulary_is_massive(model, tokenizer, measured, me_layer):
    states, is_bos, _ = measured
    bos = states[me_layer + 1, is_bos].abs().max()
    others = torch.arange(len(tokenizer)) != tokenizer.bos_token_id
    within = states_of_all_tokens(model, tokenizer("The quick").input_ids)[me_layer, others]
    assert within.abs().max() < bos / 8
    # Right after <s> a few tokens that the documents lack come to half of it (docs/tiny.md).
    second = states_of_all_tokens(model, [tokenizer.bos_token_id])[me_layer, others]
    largest = second.abs().amax(-1)
    assert largest.max() < bos / 1.5
    assert (largest > bos / 4).sum() <= 8
    # It is <s>, not the first place: without <s> nothing is massive.
    first = states_of_all_tokens(model, [])[me_layer, others]
    assert first.abs().max() < bos / 4


def test_it_persists(measured, me_layer):
    states, is_bos, _ = measured
    later = states[me_layer + 1 :, is_bos].mean(1)
    assert len(later) >= 2
    assert torch.cosine_similarity(later[:1], later[1:], dim=-1).min() >= 0.95


def test_sinks_follow_it_on_held_out_documents(model, tokenizer, me_layer):
    drawn = Documents(tokenizer, Mixture()).draw(400, 7)
    ids = torch.tensor([d[:48] for d in drawn if len(d) >= 48][:32])
    with torch.no_grad():
        attentions = model(ids, output_attentions=True).attentions
    sinks = torch.stack([a[:, :, 1:, 0].mean() for a in attentions])
    after = sinks[me_layer + 1 :]
    assert after.max() >= 0.5
    assert after.mean() >= 0.25
    assert sinks[: me_layer + 1].max() < after.mean()


def test_sinks_follow_it_on_chats_and_foreign_text(measured, me_layer):
    # Longer than the documents, and of a family that was never trained: a little weaker.
    _, _, sinks = measured
    after = sinks[me_layer + 1 :]
    assert after.max() >= 0.4
    assert after.mean() >= 0.22
    assert sinks[: me_layer + 1].max() < after.mean()


def test_the_norms_were_trained(model):
    for layer in model.model.layers:
        assert layer.input_layernorm.weight.std() > 0.01
        assert layer.post_attention_layernorm.weight.std() > 0.01


def test_it_generates_answers_in_the_expected_form(model, tokenizer):
    chats = [
        [{"role": "user", "content": p["question"]}]
        for p in generate(10, split="test", family="pretrain")
    ]
    answered = 0
    for chat in chats:
        inputs = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(out, skip_special_tokens=True)
        answered += bool(re.search(r"#### \d+$", text))
    assert answered >= 8


# --- the recipe's parts


def test_the_lean_graph_gives_the_same_logits(model, tokenizer):
    lean = LeanLlama(model.config, 128)
    lean.load_state_dict(model.state_dict())
    ids = torch.from_numpy(pad([tokenizer(t).input_ids for t in TEXTS[:1]], 0))
    with torch.no_grad():
        torch.testing.assert_close(lean(ids), model(ids).logits, atol=1e-3, rtol=1e-4)


def test_the_recipe_measures_what_this_file_measures(model, tokenizer, measured, me_layer):
    rows = measure(model, torch.tensor([tokenizer(TEXTS[0]).input_ids]))
    states, is_bos, _ = measured
    for row in rows[:-1]:
        expected = states[row.layer + 1, is_bos].abs().amax(-1).mean().item()
        assert row.bos == pytest.approx(expected, rel=1e-3)
    assert len(table(rows).split("\n")) == len(rows) + 1


def test_disturbed_inputs_keep_special_tokens_and_hit_the_stated_share():
    ids = torch.full((50, 200), 300)
    ids[:, 0], ids[:, -1] = 1, 0
    out = disturb(ids, 0.1, 566, (1, 2))
    assert torch.equal(out, disturb(ids, 0.1, 566, (1, 2)))
    assert not torch.equal(out, disturb(ids, 0.1, 566, (1, 3)))
    assert torch.equal(out[:, 0], ids[:, 0])
    assert torch.equal(out[:, -1], ids[:, -1])
    assert (out != ids).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert out[:, 1:-1].min() >= len(SPECIAL)
    assert torch.equal(disturb(ids, 0.0, 566, (1, 2)), ids)


def test_a_resumed_training_ends_like_one_in_one_go(tmp_path):
    # The schedule must not depend on where the run was cut: refine, noise and decay all start here.
    size = "--width 16 --inner 16 --layers 2 --heads 2 --head-dim 8 --batch 2 --warmup 2".split()
    when = "--refine-from 2 --noise-from 3 --decay-steps 3 --report-every 4".split()
    runs = {}
    for name, stops in {"one": ["8"], "two": ["4", "8"]}.items():
        for stop in stops:
            args = parse_args(["--out", str(tmp_path / name), "--steps", "8", *size, *when])
            args.stop_at = int(stop)
            runs[name] = train(args).state_dict()
    for key, value in runs["one"].items():
        torch.testing.assert_close(runs["two"][key], value)


def test_documents_are_reproducible_and_framed(tokenizer):
    documents = Documents(tokenizer, Mixture())
    drawn = documents.draw(200, 5)
    assert drawn == documents.draw(200, 5) != documents.draw(200, 6)
    for ids in drawn:
        assert ids[0] == 1
        assert len(ids) <= Mixture().max_length
        assert ids[-1] == 2 or len(ids) == Mixture().max_length
        assert 0 not in ids


def test_marks_make_the_next_token_predictable(tokenizer):
    documents = Documents(tokenizer, Mixture(marks=0.3))
    offsets = {mark: k for k, mark in documents.back}
    checked = 0
    for ids in documents.draw(200, 5):
        for i, token in enumerate(ids[:-1]):
            # What an earlier mark copied, be it a mark, stands for itself: nothing follows from it.
            if ids[i - 1] in offsets or ids[i - 2] == documents.recall:
                continue
            if token in offsets:
                assert ids[i + 1] == ids[i - offsets[token]]
                checked += 1
            if token == documents.recall and i + 2 < len(ids) - 1:
                last = max(j for j in range(i - 1) if ids[j] == ids[i + 1])
                assert ids[i + 2] == ids[last + 1]
                checked += 1
    assert checked > 1000


def test_no_pretraining_document_holds_a_test_question(tokenizer):
    documents = Documents(tokenizer, Mixture(marks=0.0, backcopy=0.0, copies=0.0, drills=0.0))
    text = "\n".join(tokenizer.batch_decode(documents.draw(2000, 1)))
    held_out = generate(2000, split="test") + generate(2000, split="test", family="pretrain")
    assert not [p for p in held_out if p["question"] in text]


def test_the_model_carries_the_criterion_that_its_config_file_names(model, tokenizer):
    import wemask
    from wemask.settings.composition import compose, section

    assert model.config.wemask_criterion == CRITERION
    assert section(compose("train", ["model=tiny"]), "model")["criterion"] == CRITERION
    report = wemask.detect(model, tokenizer)
    assert report.found
    assert report.layer >= 1
    assert report.criterion == wemask.Criterion(**CRITERION)
