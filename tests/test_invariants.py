"""Invariants that hold for any weights: causality, padding, masking, permutation."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sensorium.modalities.image import PatchEmbedding
from sensorium.modalities.text import Text, TextEmbedding
from sensorium.nn.attention import Attention
from sensorium.nn.positional import RelativeBias, Rotary
from sensorium.nn.resampler import Resampler
from sensorium.nn.sdpa import attend
from sensorium.nn.tokens import (
    CAUSAL,
    Tokens,
    attention_mask,
    join,
    make_causal,
    mean_pool,
    order_tensor,
    sequence_positions,
    take_last,
)
from sensorium.nn.transformer import (
    Block,
    FeedForward,
    GatedCrossAttention,
    GatedFeedForward,
    PostNormBlock,
    Transformer,
    build_transformer,
)

DIM, HEADS = 32, 2


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(batch: int, n: int, seed: int = 0) -> Tokens:
    x = random_tensor(batch, n, DIM, seed=seed)
    return Tokens(x, sequence_positions(x))


def llama_like(position: nn.Module) -> Transformer:
    blocks = [
        Block(
            Attention(DIM, HEADS, kv_heads=1, bias=False, position=position),
            GatedFeedForward(DIM, 48),
            (nn.RMSNorm(DIM), nn.RMSNorm(DIM)),
        )
        for _ in range(2)
    ]
    return Transformer(blocks, final_norm=nn.RMSNorm(DIM))


def bert_like() -> Transformer:
    blocks = [
        PostNormBlock(
            Attention(DIM, HEADS), FeedForward(DIM, 64), (nn.LayerNorm(DIM), nn.LayerNorm(DIM))
        )
        for _ in range(2)
    ]
    return Transformer(blocks)


def t5_like() -> Transformer:
    shared = RelativeBias(HEADS)
    blocks = [
        Block(
            Attention(DIM, HEADS, width=64, bias=False, scale=1.0, position=shared),
            FeedForward(DIM, 64, nn.ReLU(), bias=False),
            (nn.RMSNorm(DIM), nn.RMSNorm(DIM)),
        )
        for _ in range(2)
    ]
    return Transformer(blocks, final_norm=nn.RMSNorm(DIM))


TRUNKS = {
    "clip": lambda: build_transformer(DIM, 2, HEADS, input_norm=True),
    "llama": lambda: llama_like(Rotary(DIM // HEADS)),
    "bert": bert_like,
    "t5": t5_like,
}


@pytest.fixture(params=TRUNKS)
def trunk(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(0)
    return TRUNKS[request.param]()


def assert_same(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


def test_causal_output_does_not_depend_on_later_tokens(trunk: Transformer) -> None:
    t = make_causal(tokens(2, 9))
    changed = replace(t, x=t.x.clone())
    changed.x[:, 6] += random_tensor(2, DIM, seed=5)
    a, b = trunk(t).x, trunk(changed).x
    assert_same(a[:, :6], b[:, :6])
    assert (a[:, 6:] - b[:, 6:]).abs().amax() > 1e-3


def test_prefix_output_does_not_depend_on_causal_continuation(trunk: Transformer) -> None:
    prefix, text = tokens(2, 5), make_causal(tokens(2, 4, seed=1))
    a = trunk(join(prefix, text)).x
    b = trunk(join(prefix, replace(text, x=text.x.flip(-1)))).x
    assert_same(a[:, :5], b[:, :5])
    assert (a[:, 5:] - b[:, 5:]).abs().amax() > 1e-3


def test_causal_flag_equals_order_tensor(trunk: Transformer) -> None:
    t = tokens(2, 7)
    assert_same(trunk(make_causal(t)).x, trunk(replace(t, order=order_tensor(make_causal(t)))).x)


@pytest.mark.parametrize("order", [None, CAUSAL])
def test_padding_does_not_change_outputs(trunk: Transformer, order: object) -> None:
    t = replace(tokens(3, 8), order=order)
    lengths = torch.tensor([8, 3, 5])
    valid = torch.arange(8) < lengths[:, None]
    out = trunk(replace(t, valid=valid)).x
    assert out.isfinite().all()
    for i, n in enumerate(lengths.tolist()):
        unpadded = Tokens(t.x[i : i + 1, :n], t.pos[i : i + 1, :n], t.order)
        assert_same(out[i, :n], trunk(unpadded).x[0])


@pytest.mark.parametrize("order", [None, CAUSAL])
@pytest.mark.parametrize("padded", [False, True])
def test_single_query_equals_full_forward(trunk: Transformer, order: object, padded: bool) -> None:
    t = replace(
        tokens(3, 8),
        order=order,
        valid=torch.arange(8) < torch.tensor([[8], [2], [4]]) if padded else None,
    )
    at = torch.tensor([7, 1, 3])
    assert_same(trunk(t, query_positions=at).x[:, 0], trunk(t).x[torch.arange(3), at])


def test_single_query_has_same_gradient_as_full_forward() -> None:
    torch.manual_seed(0)
    trunk, at = build_transformer(DIM, 2, HEADS), torch.tensor([7, 1])
    t = replace(tokens(2, 8), order=CAUSAL, valid=torch.arange(8) < torch.tensor([[8], [2]]))
    params = list(trunk.parameters())
    single = torch.autograd.grad(trunk(t, query_positions=at).x.square().sum(), params)
    full = torch.autograd.grad(trunk(t).x[torch.arange(2), at].square().sum(), params)
    for a, b in zip(single, full, strict=True):
        assert_same(a, b, atol=1e-4)


def test_fully_masked_query_returns_zero() -> None:
    q = random_tensor(1, 2, 3, 8)
    mask = torch.tensor([[True, True, True], [False, False, False], [False, True, False]])[
        None, None
    ]
    out = attend(q, q, q, mask=mask)
    assert (out[:, :, 1] == 0).all()
    assert out.isfinite().all()
    assert_same(out[:, :, 2], q[:, :, 1])


def test_attention_equals_softmax_of_scaled_dot_product() -> None:
    q = random_tensor(2, 2, 5, 8)
    k, v = random_tensor(2, 2, 7, 8, seed=1), random_tensor(2, 2, 7, 8, seed=2)
    assert_same(attend(q, k, v), (q @ k.mT / 8**0.5).softmax(-1) @ v)
    permutation = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert_same(attend(q, k, v), attend(q, k[:, :, permutation], v[:, :, permutation]))
    assert_same(attend(q, k, torch.ones_like(v)), torch.ones(2, 2, 5, 8))  # rows sum to one
    exact = (300 * q.double() @ k.double().mT / 8**0.5).softmax(-1) @ v.double()
    # Logits in the hundreds stay accurate.
    assert (attend(300 * q, k, v) - exact).abs().max() < 1e-3
    # With one key, the query does not matter.
    assert_same(attend(q, k[:, :, :1], v[:, :, :1]), v[:, :, :1].expand(-1, -1, 5, -1))


def test_closed_cross_attention_gate_changes_nothing() -> None:
    torch.manual_seed(0)
    trunk = build_transformer(
        DIM, 2, HEADS, build_cross_attention=lambda i: GatedCrossAttention(DIM, HEADS)
    )
    t = make_causal(tokens(2, 6))
    assert torch.equal(trunk(t, tokens(2, 3, seed=1)).x, trunk(t).x)
    gated = trunk.block_list()[0].gated_cross_attention
    assert gated is not None
    nn.init.ones_(gated.gate)
    assert not torch.equal(trunk(t, tokens(2, 3, seed=1)).x, trunk(t).x)


def test_cross_attention_before_first_context_token_is_zero() -> None:
    gated = GatedCrossAttention(DIM, HEADS)
    t, context = make_causal(tokens(1, 4)), tokens(1, 2, seed=1)
    late = replace(context, order=torch.full((1, 2), 3))  # visible from the third token on
    mask = attention_mask(order_tensor(t), order_tensor(late), None)
    output = gated.attention(gated.norm(t.x), late.x, mask)
    assert (output[:, :2] == 0).all()
    assert (output[:, 2:] != 0).any()


def test_resampler_is_invariant_to_order_of_parts() -> None:
    torch.manual_seed(0)
    pool, a, b = Resampler(DIM), tokens(2, 5), tokens(2, 4, seed=1)
    assert_same(pool(join(a, b)).x, pool(join(b, a)).x)


def test_resampler_ignores_absent_modality() -> None:
    torch.manual_seed(0)
    pool, present = Resampler(DIM, 4), tokens(2, 5)
    absent = replace(tokens(2, 3, seed=1), valid=torch.zeros(2, 3, dtype=torch.bool))
    assert_same(pool(present).x, pool(join(present, absent)).x)
    assert pool(absent).x.isfinite().all()
    assert (mean_pool(absent) == 0).all()


def test_take_last_keeps_order() -> None:
    t = make_causal(tokens(1, 5))
    assert order_tensor(take_last(t, 2)).tolist() == [[4, 5]]


def test_rotary_logits_depend_on_distance_only() -> None:
    rotary = Rotary(8)
    q, k = random_tensor(1, 1, 4, 8), random_tensor(1, 1, 4, 8, seed=1)
    pos = sequence_positions(random_tensor(1, 4, 1))
    near, far = (rotary(q, k, pos + shift, pos + shift) for shift in (0.0, 37.0))
    assert_same(near[0] @ near[1].mT, far[0] @ far[1].mT, atol=1e-4)
    assert_same(rotary(q, k, pos * 0, pos * 0)[0], q)


def test_relative_bias_buckets() -> None:
    bias = RelativeBias(2)
    distance = torch.arange(-200, 201)
    bucket = bias.bucket(distance)
    assert bucket[200] == 0
    assert bucket.max() == 31
    assert bucket.min() == 0
    ahead, behind = bucket[distance > 0], bucket[distance < 0].flip(0)
    assert torch.equal(ahead - 16, behind)
    assert (ahead.diff() >= 0).all()
    assert bucket[distance == 7].item() == 16 + 7
    assert bucket[distance == 130].item() == 31


def test_text_embedding_stops_at_end_token() -> None:
    text = Text(length=8, vocab_size=50)
    embedding = TextEmbedding(DIM, text)
    t = embedding(torch.tensor([[1, 9, 8, 2, 0, 0, 0], [1, 9, 2, 0, 0, 0, 0]]))
    assert t.x.shape[1] == 4
    assert t.valid is not None
    assert t.valid.sum(1).tolist() == [4, 3]
    ids = torch.tensor([[1, 9, 8, 2, 0], [1, 9, 9, 9, 9]])
    assert embedding.pool_index(ids).tolist() == [3, 4]


def test_patches_are_in_row_major_order() -> None:
    patches = PatchEmbedding(DIM, 8, 4)
    image = torch.zeros(1, 3, 8, 8)
    image[:, :, :4, 4:] = 1  # top right
    t = patches(image)
    difference = (t.x - patches(image * 0).x).abs().sum(-1)[0]
    assert difference.gt(0).tolist() == [False, False, True, False, False]
    assert t.pos[0, 2].tolist() == [0, 0, 1]


def test_wrong_shape_raises() -> None:
    with pytest.raises(Exception, match=r"type|shape"):
        attention_mask(
            torch.zeros(2, 3, dtype=torch.long),
            torch.zeros(2, 4, dtype=torch.long),
            torch.ones(2, 5, dtype=torch.bool),
        )


def test_transformer_runs_on_meta_device() -> None:
    with torch.device("meta"):
        trunk = build_transformer(64, 2, 2)
        out = trunk(Tokens(torch.empty(2, 5, 64), torch.empty(2, 5, 3), CAUSAL))
    assert out.x.device.type == "meta"
    assert out.x.shape == (2, 5, 64)
