"""The transformer against softmax attention written out."""

import math

import pytest
import torch
from torch.nn import functional as F

from dpk_det.distill.dpk.transformer import Block, Transformer


def layer_norm(x, norm):
    mean = x.mean(-1, keepdim=True)
    var = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * norm.weight + norm.bias


def literal_block(block, x, valid=None):
    """One image, (N, D), one head and one query at a time."""
    n, dim = x.shape
    size = dim // block.heads
    y = layer_norm(x, block.norm1)
    q, k, v = (y @ block.qkv.weight.T + block.qkv.bias).split(dim, 1)
    out = torch.zeros_like(x)
    for head in range(block.heads):
        at = slice(head * size, (head + 1) * size)
        for i in range(n):
            keys = [j for j in range(n) if valid is None or valid[j]]
            weights = torch.stack([(q[i, at] * k[j, at]).sum() / math.sqrt(size) for j in keys])
            weights = weights.exp() / weights.exp().sum()
            out[i, at] = sum(a * v[j, at] for a, j in zip(weights, keys, strict=True))
    x = x + out @ block.proj.weight.T + block.proj.bias
    first, _, second = block.mlp
    y = layer_norm(x, block.norm2) @ first.weight.T + first.bias
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    return x + y @ second.weight.T + second.bias


def scrambled(module, seed=0):
    """The module in float64 with no weight at 0 or 1, where a mistake would hide."""
    torch.manual_seed(seed)
    for p in module.parameters():
        torch.nn.init.normal_(p, 0.1, 0.4)
    return module.double()


@torch.no_grad()
@pytest.mark.parametrize(("dim", "heads", "mlp_ratio"), [(8, 1, 2.0), (12, 3, 1.5), (8, 8, 4.0)])
@pytest.mark.parametrize("padded", [False, True])
def test_block_equals_literal_softmax_attention(dim, heads, mlp_ratio, padded):
    block = scrambled(Block(dim, heads, mlp_ratio))
    x = torch.randn(2, 5, dim, dtype=torch.float64)
    valid = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]]).bool() if padded else None
    got = block(x, valid[:, None, None] if padded else None)
    want = [literal_block(block, x[i], valid[i] if padded else None) for i in range(2)]
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_transformer_is_its_blocks_and_a_layer_norm():
    net = scrambled(Transformer(8, 3, 2, 2.0))
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    want = x[0]
    for block in net.blocks:
        want = literal_block(block, want)
    torch.testing.assert_close(net(x)[0], layer_norm(want, net.norm), rtol=1e-9, atol=1e-9)
    assert len(net.blocks) == 3


@torch.no_grad()
def test_transformer_of_depth_zero_is_the_layer_norm():
    net = scrambled(Transformer(8, 0, 2, 2.0))
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    want = layer_norm(x, net.norm)
    torch.testing.assert_close(net(x), want)
    torch.testing.assert_close(net(x, torch.tensor([[1, 0, 1], [0, 0, 0]]).bool()), want)


def test_padding_tokens_have_no_influence_on_the_others():
    net = scrambled(Transformer(8, 2, 2, 2.0))
    valid = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    other = x.detach().clone()
    other[~valid] = 50 * torch.randn(2, 8, dtype=torch.float64)
    got = net(x, valid)
    torch.testing.assert_close(net(other, valid)[valid], got[valid], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[0, :3], net(x[:1, :3])[0])  # as if they were not there
    got[valid].square().sum().backward()
    assert x.grad[~valid].count_nonzero() == 0
    assert x.grad[valid].count_nonzero() == valid.sum() * 8


@torch.no_grad()
def test_a_mask_of_all_valid_tokens_changes_nothing():
    net, x = scrambled(Transformer(8, 1, 2, 2.0)), torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(net(x, torch.ones(2, 5, dtype=torch.bool)), net(x))


def test_an_image_without_valid_tokens_stays_finite_and_apart():
    net = scrambled(Transformer(8, 1, 2, 2.0))
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[0, 0, 0], [1, 1, 0]]).bool()
    got = net(x, valid)
    got.sum().backward()
    assert got.isfinite().all() and x.grad.isfinite().all()
    torch.testing.assert_close(got[1, :2], net(x[1:, :2])[0])


def test_no_query_is_left_without_keys(monkeypatch):
    # not every torch and device has a softmax over nothing that is not NaN
    masks, attention = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *args, attn_mask: masks.append(attn_mask) or attention(*args, attn_mask=attn_mask),
    )
    valid = torch.tensor([[0, 0, 0], [1, 1, 0]]).bool()
    Transformer(8, 2, 2, 2.0)(torch.randn(2, 3, 8), valid)
    assert len(masks) == 2 and all(m.any(-1).all() for m in masks)
    assert all(torch.equal(m[1].flatten(), valid[1]) for m in masks)


def test_order_of_tokens_does_not_matter():
    # DPK encodes tokens in the order of its draw
    net, x = scrambled(Transformer(8, 2, 4, 2.0)), torch.randn(1, 6, 8, dtype=torch.float64)
    order = torch.randperm(6)
    torch.testing.assert_close(net(x[:, order]), net(x)[:, order])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        Transformer(8, 1, 3, 2.0)


def test_every_parameter_starts_finite_and_linear_biases_at_zero():
    net = Transformer(8, 2, 2, 2.0)
    assert all(p.isfinite().all() for p in net.parameters())
    linears = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == 8
    assert all(m.bias.count_nonzero() == 0 and m.weight.std() > 0.05 for m in linears)
