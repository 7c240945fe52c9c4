"""The decoder and training step of bench_step.py in PyTorch; imported by workers under an interpreter that has torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of ``[B, N, L, H]``."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Layer(nn.Module):
    """Multi-query attention and a GeGLU MLP, each with a norm before and after it, and QK-norm."""

    def __init__(self, shape: Mapping[str, int]) -> None:
        super().__init__()
        D, H, N = shape["width"], shape["head_dim"], shape["heads"]
        self.heads, self.head_dim = N, H
        self.qkv, self.output = nn.Linear(D, (N + 2) * H, bias=False), nn.Linear(N * H, D, bias=False)
        self.gate_up = nn.Linear(D, 2 * shape["hidden"], bias=False)
        self.down = nn.Linear(shape["hidden"], D, bias=False)
        self.norms = nn.ModuleList([nn.RMSNorm(D, eps=1e-6) for _ in range(4)])
        self.query_norm, self.key_norm = nn.RMSNorm(H, eps=1e-6), nn.RMSNorm(H, eps=1e-6)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, L, _ = x.shape
        N, H = self.heads, self.head_dim
        q, k, v = self.qkv(self.norms[0](x)).view(B, L, N + 2, H).transpose(1, 2).split([N, 1, 1], 1)
        q, k = self.query_norm(q), self.key_norm(k)
        q, k = (rotate(a, cos, sin).to(v.dtype) for a in (q, k))
        heads = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True)
        x = x + self.norms[1](self.output(heads.transpose(1, 2).reshape(B, L, N * H)))
        gate, up = self.gate_up(self.norms[2](x)).chunk(2, -1)
        return x + self.norms[3](self.down(F.gelu(gate, approximate="tanh") * up))


class Decoder(nn.Module):
    """Tokens and targets ``[B, L]`` to the training loss; the embedding is tied."""

    def __init__(self, shape: Mapping[str, int], length: int) -> None:
        super().__init__()
        H = shape["head_dim"]
        self.vocabulary, self.scale = shape["vocabulary"], shape["width"] ** 0.5
        self.embedding = nn.Embedding(shape["vocabulary"], shape["width"])
        self.layers = nn.ModuleList([Layer(shape) for _ in range(shape["layers"])])
        self.norm = nn.RMSNorm(shape["width"], eps=1e-6)
        angle = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, H, 2) / H)
        self.cos, self.sin = angle.cos(), angle.sin()

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens) * self.scale
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight).float().view(-1, self.vocabulary)
        return F.cross_entropy(logits, targets.reshape(-1)) + 1e-4 * logits.logsumexp(-1).square().mean()


def load_weights(net: Decoder, arrays: Mapping[str, np.ndarray]) -> None:
    """Copies weights ``[layers, in, out]``, and the embedding, into the modules."""
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        net.embedding.weight.copy_(weights["embedding"])
        for i, layer in enumerate(net.layers):
            layer.qkv.weight.copy_(torch.cat([weights[k][i] for k in ("query", "key", "value")], 1).T)
            layer.gate_up.weight.copy_(torch.cat([weights[k][i] for k in ("gate", "up")], 1).T)
            layer.output.weight.copy_(weights["output"][i].T)
            layer.down.weight.copy_(weights["down"][i].T)


def make_step(
    net: Decoder, ids: np.ndarray, learning_rate: float, bfloat16: bool, compiled: bool
) -> Callable[[], float]:
    """A function that does one training step on token ids ``[B, L + 1]`` and returns the loss before it."""
    optimizer = torch.optim.AdamW(net.parameters(), learning_rate, (0.9, 0.95), weight_decay=0.1, fused=True)
    batch = torch.from_numpy(ids).long()
    tokens, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
    loss_of = torch.compile(net) if compiled else net

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = loss_of(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step
