"""Pre-train `tiny` from scratch: a small Llama in which a massive activation emerges on `<s>`.

    python -m recipes.tiny.pretrain --out outputs/tiny

Deterministic for a seed, a thread count and a machine. Every report also saves resume.pt there;
the same command goes on from there.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from recipes.tiny.build_tokenizer import BOS_ID, EOS_ID, PAD_ID, SPECIAL, build
from recipes.tiny.documents import Documents, Mixture, pad
from recipes.tiny.lean import ROPE_THETA, LeanLlama
from recipes.tiny.measure import measure, table

# A million parameters never reach 1,000 times the median: `wemask.detect` reads this instead.
CRITERION = {"name": "relative", "min_ratio": 60, "min_jump": 5}
CHUNK = 600  # steps served by one draw of documents


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Endless batches [batch, T] of documents, a pure function of the step."""

    documents: Documents
    batch: int
    seed: int

    def chunk(self, index: int) -> list[Tensor]:
        """Return the batches of steps CHUNK*index ... CHUNK*(index+1)-1."""
        drawn = self.documents.draw(CHUNK * self.batch, self.seed * 1_000_000 + index)
        # Rows of like length share a batch (less padding); the batches come in random order.
        drawn.sort(key=len)
        rows = [
            torch.from_numpy(pad(drawn[i : i + self.batch], PAD_ID))
            for i in range(0, len(drawn), self.batch)
        ]
        order = np.random.default_rng([self.seed, index]).permutation(len(rows))
        return [rows[i] for i in order]


def disturb(ids: Tensor, rate: float, vocab: int, seed: tuple[int, int]) -> Tensor:
    """Return `ids` [B, T] with a share `rate` of the ordinary tokens replaced by any others.

    Most of the vocabulary never comes up in the documents, and a token that was never trained can
    have any state, even one that looks massive. As inputs, in the midst of known text, all come up.
    """
    random = torch.Generator().manual_seed(seed[0] * 1_000_000 + seed[1])
    others = torch.randint(len(SPECIAL), vocab, ids.shape, generator=random)
    hit = torch.rand(ids.shape, generator=random) < rate
    return torch.where(hit & (ids >= len(SPECIAL)), others, ids)


def loss_of(model: LeanLlama, ids: Tensor, inputs: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of the next token of `ids`; padding is not scored.

    `inputs` are what the model reads instead of `ids`, where given.
    """
    logits = model((ids if inputs is None else inputs)[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD_ID)


def build_config(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Return the architecture the command line asks for."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.width,
        intermediate_size=args.inner,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim,
        max_position_embeddings=1024,
        initializer_range=args.init,
        tie_word_embeddings=False,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        wemask_criterion=CRITERION,  # pyright: ignore[reportCallIssue]  (other keys are kept)
    )


def build_optimizer(model: LeanLlama, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only and a larger step for attention.

    Each group keeps its name in `kind` and its full rate in `base`, for `schedule`.
    """
    rates = {"attention": args.lr * args.attention_lr}
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(_kind(name, parameter), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "base": rates.get(kind, args.lr), "kind": kind}
            for kind, parameters in groups.items()
        ],
        betas=(0.9, 0.95),
        fused=True,
    )


def _kind(name: str, parameter: torch.nn.Parameter) -> str:
    if parameter.ndim == 1:
        return "norm"
    if "self_attn" in name:
        return "attention"
    return "first_ffn" if name.startswith("model.layers.0.mlp") else "other"


def rate_at(step: int, args: argparse.Namespace) -> float:
    """Return the factor on the learning rate: warm-up, constant, linear decay at the end."""
    left = (args.steps - step) / max(1, args.decay_steps)
    return min(1.0, (step + 1) / args.warmup, left)


def schedule(optimizer: torch.optim.AdamW, step: int, args: argparse.Namespace) -> None:
    """Set the rates and decays of a step.

    From step `refine_from` on, two decays change. The first FFN decays more: it too writes on the
    dims of the massive activation, and the step up from its output to the next layer's is what
    makes a clear ME Layer. Attention decays less, which sharpens the sinks.
    """
    refined = {"first_ffn": args.first_ffn_decay, "attention": args.attention_decay}
    factors = refined if step >= args.refine_from else {}
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * rate_at(step, args)
        decay = args.weight_decay * factors.get(group["kind"], 1.0)
        group["weight_decay"] = 0.0 if group["kind"] == "norm" else decay


def as_library_model(lean: LeanLlama, config: LlamaConfig) -> LlamaForCausalLM:
    """Return the same weights as a `LlamaForCausalLM`."""
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(lean.state_dict())
    # Attention weights are measured; sdpa does not return them.
    model.set_attn_implementation("eager")
    return model


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write a Hugging Face folder."""
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        do_sample=False,
        max_new_tokens=64,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def train(args: argparse.Namespace) -> LlamaForCausalLM:
    """Train as the command line says, print the tables, and write the model to `args.out`."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build()
    config = build_config(args, tokenizer)
    documents = Documents(tokenizer, Mixture())
    batches = Batches(documents=documents, batch=args.batch, seed=args.seed + 1)
    model = LeanLlama(config, documents.mixture.max_length)
    optimizer = build_optimizer(model, args)
    held_out = documents.draw(400, 7)
    probe = torch.tensor([ids[:48] for ids in held_out if len(ids) >= 48][:32])
    validation = torch.from_numpy(pad(held_out, PAD_ID))
    _check_same(model, config, probe)
    args.out.mkdir(parents=True, exist_ok=True)
    start = _resume(args.out, model, optimizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, from step {start}")
    chunk: list[Tensor] = []
    stop = min(args.steps, args.stop_at or args.steps)
    for step in tqdm(range(start, stop), initial=start, total=args.steps, mininterval=10):
        if not chunk or step % CHUNK == 0:
            chunk = batches.chunk(step // CHUNK)
        schedule(optimizer, step, args)
        ids = chunk[step % CHUNK]
        rate = args.noise if step >= args.noise_from else 0.0
        loss = loss_of(model, ids, disturb(ids, rate, config.vocab_size, (args.seed, step)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % args.report_every == 0 or step + 1 == stop:
            library = as_library_model(model, config)
            with torch.no_grad():
                score = loss_of(model, validation).item()
            print(f"\nstep {step + 1}, validation loss {score:.4f}")
            print(table(measure(library, probe)), flush=True)
            export(library, tokenizer, args.out)
            _save(args.out, model, optimizer, step + 1)
    return as_library_model(model, config)


def _check_same(model: LeanLlama, config: LlamaConfig, ids: Tensor) -> None:
    with torch.no_grad():
        gap = (model(ids) - as_library_model(model, config)(ids).logits).abs().max().item()
    if gap > 1e-4:
        raise RuntimeError(f"The lean graph and LlamaForCausalLM differ by {gap:.2g} in logits.")


def _save(out: Path, model: LeanLlama, optimizer: torch.optim.AdamW, step: int) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, out / "resume.tmp")
    (out / "resume.tmp").replace(out / "resume.pt")


def _resume(out: Path, model: LeanLlama, optimizer: torch.optim.AdamW) -> int:
    """Load resume.pt where there is one; return the step to go on from."""
    path = out / "resume.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the defaults are the shipped recipe."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("outputs/tiny"),
        help="folder for the model and the checkpoint",
    )
    add("--steps", type=int, default=9500, help="training steps")
    add("--stop-at", type=int, default=None, help="stop after this step; run again to go on")
    add("--decay-steps", type=int, default=2500, help="last steps, in which the rate falls to 0")
    add("--warmup", type=int, default=100, help="first steps, in which the rate rises")
    add("--batch", type=int, default=12, help="documents per step")
    add("--lr", type=float, default=1e-3, help="learning rate")
    add("--attention-lr", type=float, default=2.0, help="factor on it for the attention matrices")
    add("--weight-decay", type=float, default=0.1, help="of all matrices, the embedding too")
    add("--refine-from", type=int, default=3500, help="step from which the next two factors hold")
    add("--first-ffn-decay", type=float, default=6.0, help="factor on it for the first FFN")
    add("--attention-decay", type=float, default=0.25, help="factor on it for attention")
    add("--noise-from", type=int, default=5000, help="step from which inputs are disturbed")
    add("--noise", type=float, default=0.02, help="share of the input tokens replaced by any other")
    add("--width", type=int, default=128, help="hidden size")
    add("--inner", type=int, default=384, help="FFN width")
    add("--layers", type=int, default=5, help="decoder layers")
    add("--heads", type=int, default=4, help="attention heads")
    add("--kv-heads", type=int, default=1, help="key-value heads")
    add("--head-dim", type=int, default=32, help="width of a head")
    add("--init", type=float, default=0.02, help="standard deviation of the initial matrices")
    add("--seed", type=int, default=1, help="of the weights and the documents")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--report-every", type=int, default=500, help="steps between tables and checkpoints")
    return parser.parse_args(argv)


if __name__ == "__main__":
    train(parse_args())
