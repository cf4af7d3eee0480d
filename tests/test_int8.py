"""Weights as bytes: nearly the same answers, a quarter of the memory, and no surprise where it cannot be had."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import sensorium as sn
from sensorium.errors import SensoriumError
from sensorium.modalities.image import PatchEmbedding
from sensorium.models.decoder import Decoder
from sensorium.models.int8 import Int8Embedding, Int8Linear, quantize_int8
from sensorium.models.lora import add_lora
from sensorium.models.towers import Encoder, Tower
from sensorium.nn.cpu_dispatch import has_int8_dot_product
from sensorium.nn.linear import Linear
from sensorium.nn.transformer import build_transformer
from sensorium.objectives.autoregressive import SamplingConfig, generate
from sensorium.pretrained.decoder import CausalTokenEmbedding, build_text_decoder
from sensorium.pretrained.family import export_from
from sensorium.pretrained.gpt2 import GPT2
from sensorium.pretrained.siglip import AttentionPool
from sensorium.pretrained.weight_mapping import TrunkConfig

VOCAB, DIM = 61, 64


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def decoder(tied: bool = True) -> Decoder:
    return build_text_decoder(
        CausalTokenEmbedding(VOCAB, DIM, 40), build_transformer(DIM, 3, 4), tied=tied
    ).eval()


def likeness(a: Tensor, b: Tensor) -> float:
    """The least cosine of two rows that belong together."""
    return F.cosine_similarity(a, b, -1).min().item()


def logits(model: Decoder, ids: Tensor) -> Tensor:
    return model.heads["text"](model(Batch({"text": ids}))["text"].x)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_the_product_of_what_was_rounded(bias: bool) -> None:
    """The nearest steps of rows and weights, multiplied exactly; a row of zeros has steps too."""
    plain, x = Linear(48, 32, bias=bias), torch.randn(5, 48)
    x[2] = 0

    def stepped(rows: Tensor) -> Tensor:
        step = rows.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
        return (rows / step).round() * step

    with torch.no_grad():
        expected = F.linear(stepped(x), stepped(plain.weight), plain.bias)
        assert torch.allclose(Int8Linear(plain)(x), expected, atol=1e-5)
        fine = F.linear(x, stepped(plain.weight), plain.bias)
        assert torch.allclose(Int8Linear(plain, two_byte_activations=True)(x), fine, atol=2e-3)
        assert not torch.allclose(expected, fine, atol=2e-3)
        assert Int8Linear(plain)(x[:0]).shape == (0, 32)
        assert Int8Linear(plain)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("fine", [False, True])
def test_a_row_says_the_same_alone_and_in_company(fine: bool) -> None:
    layer, x = (
        Int8Linear(Linear(48, 32), two_byte_activations=fine),
        torch.randn(2, 3, 48) * torch.tensor([1.0, 100.0, 0.01])[:, None],
    )
    with torch.no_grad():
        for lonely in (lambda row: row, lambda row: row[None], lambda row: row[None, None]):
            alone = torch.stack([layer(lonely(row)) for row in x.flatten(0, 1)]).view(2, 3, 32)
            assert torch.allclose(layer(x), alone, rtol=1e-5, atol=1e-5)
        turned = x[0].t().contiguous().t()  # the same rows, columns together
        assert torch.equal(layer(turned), layer(x[0]))
        assert not turned.is_contiguous()
        assert torch.equal(layer(torch.zeros(1, 48)), layer.bias[None])


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_one_row_of_any_size_and_layout(bias: bool) -> None:
    """As when a decoder reads one more token: however large or small its numbers, and wherever they lie in memory."""
    plain = Linear(48, 32, bias=bias)
    layer, x = Int8Linear(plain, two_byte_activations=True), torch.randn(48, 3)
    for row in (x[:, :1].t(), x[:, 0].view(1, 1, 48), x.t()[:1].contiguous()):
        expected = layer(row.reshape(1, 48).expand(2, 48))[:1]
        assert torch.allclose(layer(row).view(1, 32), expected, rtol=1e-5, atol=1e-5)
    nothing = torch.zeros(1, 32) if plain.bias is None else plain.bias.detach()[None]
    for size in (1e-42, 1e-30, 1e30):
        answer = layer(size * x[:, :1].t())
        assert torch.allclose(
            (answer - nothing) / max(size, 1),
            (plain(size * x[:, :1].t()) - nothing) / max(size, 1),
            rtol=1e-2,
            atol=2e-2,
        )
    assert not layer(torch.full((1, 48), torch.nan)).isfinite().any()


def test_embeddings_are_near_and_parts_are_parts() -> None:
    plain = nn.Embedding(VOCAB, DIM)
    small, ids = Int8Embedding(plain), torch.randint(VOCAB, (2, 7))
    assert likeness(small(ids), plain(ids)) > 0.999
    assert torch.equal(small(ids), small.weight[ids])
    layer, x = Int8Linear(Linear(DIM, 12)), torch.randn(3, DIM)
    assert torch.equal(layer.forward_slice(x, 4, None), layer(x)[:, 4:])


@torch.no_grad()
def test_embeddings_of_pictures_are_alike() -> None:
    """Also by a pool that looks with a part of its layer, and where only one token leaves the last block."""
    x, shape = torch.randn(6, 3, 32, 32), TrunkConfig(DIM, 2, 4, 128, "gelu", 1e-6)
    for pool in (None, AttentionPool(shape).eval()):
        tower = Tower(
            Encoder(PatchEmbedding(DIM, 32, 8), build_transformer(DIM, 3, 4), pool),
            Linear(DIM, 24),
            24,
        ).eval()
        expected = tower(x)
        assert likeness(quantize_int8(tower)(x), expected) > 0.99


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_alike(tied: bool) -> None:
    plain, ids = decoder(tied), torch.randint(VOCAB, (4, 20))
    small = quantize_int8(copy.deepcopy(plain))
    assert isinstance(small, Decoder)
    assert likeness(logits(small, ids), logits(plain, ids)) > 0.999


def test_what_was_learned_is_still_said() -> None:
    """A decoder that has learned to count goes on counting, token by token, with weights of bytes."""
    model = decoder()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    ids = (torch.arange(24) + torch.arange(VOCAB)[:, None]) % VOCAB
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(logits(model, ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()

    def said(model: Decoder) -> Tensor:
        steps = generate(
            model, Batch({"text": ids[:16, :4]}), "text", 16, SamplingConfig(temperature=0)
        )
        return torch.stack(list(steps), 1)

    plain = said(model)
    assert (plain == ids[:16, 4:20]).float().mean() > 0.95
    small = quantize_int8(model)
    assert isinstance(small, Decoder)
    assert (said(small) == plain).float().mean() > 0.9


def test_a_quarter_of_the_memory() -> None:
    def held(module: nn.Module) -> int:
        return sum(x.numel() * x.element_size() for x in [*module.parameters(), *module.buffers()])

    trunk = build_transformer(256, 2, 4)
    before = held(trunk)
    assert held(quantize_int8(trunk)) < 0.27 * before


def test_corrections_of_low_rank_are_kept() -> None:
    trunk, x = build_transformer(DIM, 1, 4), torch.randn(3, DIM)
    layer = add_lora(trunk).get_submodule("blocks.0.mlp.up")
    nn.init.normal_(layer.get_parameter("parametrizations.weight.0.up"))
    expected = layer(x)
    assert likeness(quantize_int8(trunk).get_submodule("blocks.0.mlp.up")(x), expected) > 0.99


def test_a_layer_in_two_places_stays_one() -> None:
    both = nn.Sequential(layer := Linear(8, 8), layer)
    small = quantize_int8(both)
    assert isinstance(small, nn.Sequential)
    assert isinstance(small[0], Int8Linear)
    assert small[0] is small[1]


def test_it_cannot_learn() -> None:
    small = quantize_int8(decoder())
    assert not small.training
    assert not any(p.requires_grad for p in small.parameters())
    with pytest.raises(SensoriumError, match="cannot learn"):
        Int8Linear(Linear(8, 8))(torch.randn(2, 8, requires_grad=True))


def test_published_weights_load_as_bytes(tmp_path: Path) -> None:
    config = {
        "model_type": "gpt2",
        "n_embd": DIM,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 40,
        "vocab_size": VOCAB,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(
        export_from(GPT2.build_module(config), GPT2.map_weights(config)),
        tmp_path / "model.safetensors",
    )
    ids = torch.randint(VOCAB, (2, 9))
    plain, small = (sn.load(tmp_path, quantize=how).module for how in (None, "int8"))
    assert isinstance(plain, Decoder)
    assert isinstance(small, Decoder)
    assert isinstance(small.heads["text"], Int8Linear)
    with torch.no_grad():
        assert likeness(logits(small, ids), logits(plain, ids)) > 0.99
    with pytest.raises(SensoriumError, match="choose 'int8'"):
        sn.load(tmp_path, quantize="int4")


def test_an_unknown_way_is_refused_in_one_line() -> None:
    with pytest.raises(SensoriumError, match="^quantize='int4': choose 'int8', or leave it out$"):
        quantize_int8(decoder(), "int4")


@pytest.mark.parametrize("quick", [True, False])
def test_products_of_bytes_are_whole_numbers_without_a_loss(
    quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where every byte is as large as it can be, so that sums that saturate would show."""
    if quick and not has_int8_dot_product():
        pytest.skip("this processor has neither VNNI nor AMX")
    monkeypatch.setattr("sensorium.models.towers.int8.multiplies_bytes", lambda: quick)
    layer = nn.Linear(256, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-127, 128, (8, 256)))
        layer.weight[:4], layer.weight[4:, 0] = (
            torch.tensor([127.0, -127.0, 127.0, -127.0])[:, None],
            127,
        )
        x = torch.randint(-127, 128, (6, 256)).float()
        x[0], x[1], x[:, 0] = 127, -127, 127
        torch.testing.assert_close(Int8Linear(layer)(x), layer(x), atol=0.5, rtol=1e-6)
