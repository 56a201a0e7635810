"""A lean Llama for pre-training: about twice as fast as the library's on one CPU thread.

Parameter names are those of `LlamaForCausalLM`, so a state dict goes from one to the other as it
is; the recipe checks before it starts that both give the same logits.

Shapes: B batch, T tokens, D width, H heads, K key-value heads, E head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig

ROPE_THETA = 10000.0


class Matrix(nn.Module):
    """A bare weight [rows, columns], used as a linear map or as an embedding table."""

    def __init__(self, rows: int, columns: int, spread: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns) * spread)


class Norm(nn.Module):
    """RMSNorm with weight [D]."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        spread, width = config.initializer_range, config.hidden_size
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads or self.heads
        self.head_dim = int(config.head_dim or width // self.heads)
        self.q_proj = Matrix(self.heads * self.head_dim, width, spread)
        self.k_proj = Matrix(self.kv_heads * self.head_dim, width, spread)
        self.v_proj = Matrix(self.kv_heads * self.head_dim, width, spread)
        self.o_proj = Matrix(width, self.heads * self.head_dim, spread)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape

        def heads(matrix: Matrix, count: int) -> Tensor:  # -> [B, count, T, E]
            return F.linear(x, matrix.weight).view(b, t, count, self.head_dim).transpose(1, 2)

        q = _rotate(heads(self.q_proj, self.heads), cos, sin)
        k = _rotate(heads(self.k_proj, self.kv_heads), cos, sin)
        v = heads(self.v_proj, self.kv_heads)
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(out.transpose(1, 2).reshape(b, t, -1), self.o_proj.weight)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        spread, width = config.initializer_range, config.hidden_size
        inner = config.intermediate_size
        self.gate_proj = Matrix(inner, width, spread)
        self.up_proj = Matrix(inner, width, spread)
        self.down_proj = Matrix(width, inner, spread)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.silu(F.linear(x, self.gate_proj.weight))
        return F.linear(gate * F.linear(x, self.up_proj.weight), self.down_proj.weight)


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embedding, layers and final norm, under the names the library gives them."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        spread = config.initializer_range
        self.embed_tokens = Matrix(config.vocab_size, config.hidden_size, spread)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)


class LeanLlama(nn.Module):
    """`forward(ids [B, T]) -> logits [B, T, V]`; rows padded on the right, T at most `length`."""

    def __init__(self, config: LlamaConfig, length: int) -> None:
        super().__init__()
        self.model = Body(config)
        self.lm_head = Matrix(config.vocab_size, config.hidden_size, config.initializer_range)
        head_dim = int(config.head_dim or config.hidden_size // config.num_attention_heads)
        frequencies = ROPE_THETA ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, ids: Tensor) -> Tensor:
        t = ids.shape[1]
        x = F.embedding(ids, self.model.embed_tokens.weight)
        for layer in self.model.layers:
            x = layer(x, self.cos[:t], self.sin[:t])
        return F.linear(self.model.norm(x), self.lm_head.weight)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
