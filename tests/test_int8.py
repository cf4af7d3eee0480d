"""Tests of int8 weights: close to the original, a quarter of the memory, clear errors."""

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
from sensorium.nn.tokens import Batch
from sensorium.nn.transformer import build_transformer
from sensorium.objectives.autoregressive import SamplingConfig, generate
from sensorium.pretrained.decoder import CausalTokenEmbedding, build_text_decoder
from sensorium.pretrained.gpt2 import GPT2
from sensorium.pretrained.siglip import AttentionPool
from sensorium.pretrained.trunk import TrunkConfig
from sensorium.pretrained.weight_mapping import export_from

VOCAB, DIM = 61, 64


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def build_decoder(tied: bool = True) -> Decoder:
    return build_text_decoder(
        CausalTokenEmbedding(VOCAB, DIM, 40), build_transformer(DIM, 3, 4), tied=tied
    ).eval()


def min_cosine(a: Tensor, b: Tensor) -> float:
    """Return the smallest cosine of two corresponding rows."""
    return F.cosine_similarity(a, b, -1).min().item()


def logits(model: Decoder, ids: Tensor) -> Tensor:
    return model.heads["text"](model(Batch({"text": ids}))["text"].x)


@pytest.mark.parametrize("bias", [True, False])
def test_int8_linear_multiplies_rounded_rows_and_weights(bias: bool) -> None:
    """A row of zeros included."""
    plain, x = Linear(48, 32, bias=bias), torch.randn(5, 48)
    x[2] = 0

    def rounded(rows: Tensor) -> Tensor:
        step = rows.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
        return (rows / step).round() * step

    with torch.no_grad():
        expected = F.linear(rounded(x), rounded(plain.weight), plain.bias)
        assert torch.allclose(Int8Linear(plain)(x), expected, atol=1e-5)
        fine = F.linear(x, rounded(plain.weight), plain.bias)
        assert torch.allclose(Int8Linear(plain, two_byte_activations=True)(x), fine, atol=2e-3)
        assert not torch.allclose(expected, fine, atol=2e-3)
        assert Int8Linear(plain)(x[:0]).shape == (0, 32)
        assert Int8Linear(plain)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("two_bytes", [False, True])
def test_row_result_does_not_depend_on_its_batch(two_bytes: bool) -> None:
    layer = Int8Linear(Linear(48, 32), two_byte_activations=two_bytes)
    x = torch.randn(2, 3, 48) * torch.tensor([1.0, 100.0, 0.01])[:, None]
    with torch.no_grad():
        for reshape in (lambda row: row, lambda row: row[None], lambda row: row[None, None]):
            single = torch.stack([layer(reshape(row)) for row in x.flatten(0, 1)]).view(2, 3, 32)
            assert torch.allclose(layer(x), single, rtol=1e-5, atol=1e-5)
        transposed = x[0].t().contiguous().t()  # the same rows, stored column by column
        assert torch.equal(layer(transposed), layer(x[0]))
        assert not transposed.is_contiguous()
        assert layer.bias is not None
        assert torch.equal(layer(torch.zeros(1, 48)), layer.bias[None])


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_one_row_of_any_magnitude_and_layout(bias: bool) -> None:
    """As in a decoding step, whatever the magnitude and the memory layout of the row."""
    plain = Linear(48, 32, bias=bias)
    layer, x = Int8Linear(plain, two_byte_activations=True), torch.randn(48, 3)
    for row in (x[:, :1].t(), x[:, 0].view(1, 1, 48), x.t()[:1].contiguous()):
        expected = layer(row.reshape(1, 48).expand(2, 48))[:1]
        assert torch.allclose(layer(row).view(1, 32), expected, rtol=1e-5, atol=1e-5)
    offset = plain.bias.detach()[None] if bias else torch.zeros(1, 32)
    for size in (1e-42, 1e-30, 1e30):
        output = layer(size * x[:, :1].t())
        assert torch.allclose(
            (output - offset) / max(size, 1),
            (plain(size * x[:, :1].t()) - offset) / max(size, 1),
            rtol=1e-2,
            atol=2e-2,
        )
    assert not layer(torch.full((1, 48), torch.nan)).isfinite().any()


def test_int8_embedding_is_close_and_forward_slice_is_a_slice() -> None:
    plain = nn.Embedding(VOCAB, DIM)
    quantized, ids = Int8Embedding(plain), torch.randint(VOCAB, (2, 7))
    assert min_cosine(quantized(ids), plain(ids)) > 0.999
    assert torch.equal(quantized(ids), quantized.weight[ids])
    layer, x = Int8Linear(Linear(DIM, 12)), torch.randn(3, DIM)
    assert torch.equal(layer.forward_slice(x, 4, None), layer(x)[:, 4:])


@torch.no_grad()
def test_quantized_image_embeddings_are_close() -> None:
    """Also with attention pooling, which uses forward_slice, and with a pooled last block."""
    x, shape = torch.randn(6, 3, 32, 32), TrunkConfig(DIM, 2, 4, 128, "gelu", 1e-6)
    for pool in (None, AttentionPool(shape).eval()):
        tower = Tower(
            Encoder(PatchEmbedding(DIM, 32, 8), build_transformer(DIM, 3, 4), pool),
            Linear(DIM, 24),
            24,
        ).eval()
        expected = tower(x)
        assert min_cosine(quantize_int8(tower)(x), expected) > 0.99


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_quantized_logits_are_close(tied: bool) -> None:
    plain, ids = build_decoder(tied), torch.randint(VOCAB, (4, 20))
    quantized = quantize_int8(copy.deepcopy(plain))
    assert isinstance(quantized, Decoder)
    assert min_cosine(logits(quantized, ids), logits(plain, ids)) > 0.999


def test_quantized_decoder_generates_what_it_learned() -> None:
    """A decoder trained to count keeps counting."""
    model = build_decoder()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    ids = (torch.arange(24) + torch.arange(VOCAB)[:, None]) % VOCAB
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(logits(model, ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()

    def continuations(model: Decoder) -> Tensor:
        steps = generate(
            model, Batch({"text": ids[:16, :4]}), "text", 16, SamplingConfig(temperature=0)
        )
        return torch.stack(list(steps), 1)

    plain = continuations(model)
    assert (plain == ids[:16, 4:20]).float().mean() > 0.95
    quantized = quantize_int8(model)
    assert isinstance(quantized, Decoder)
    assert (continuations(quantized) == plain).float().mean() > 0.9


def test_quantized_model_needs_a_quarter_of_the_memory() -> None:
    def num_bytes(module: nn.Module) -> int:
        return sum(x.numel() * x.element_size() for x in [*module.parameters(), *module.buffers()])

    trunk = build_transformer(256, 2, 4)
    before = num_bytes(trunk)
    assert num_bytes(quantize_int8(trunk)) < 0.27 * before


def test_lora_updates_are_quantized_with_the_weight() -> None:
    trunk, x = build_transformer(DIM, 1, 4), torch.randn(3, DIM)
    layer = add_lora(trunk).get_submodule("blocks.0.mlp.up")
    nn.init.normal_(layer.get_parameter("parametrizations.weight.0.lora_B"))
    expected = layer(x)
    assert min_cosine(quantize_int8(trunk).get_submodule("blocks.0.mlp.up")(x), expected) > 0.99


def test_shared_layer_stays_shared() -> None:
    layer = Linear(8, 8)
    quantized = quantize_int8(nn.Sequential(layer, layer))
    assert isinstance(quantized, nn.Sequential)
    assert isinstance(quantized[0], Int8Linear)
    assert quantized[0] is quantized[1]


def test_quantized_model_cannot_be_trained() -> None:
    quantized = quantize_int8(build_decoder())
    assert not quantized.training
    assert not any(p.requires_grad for p in quantized.parameters())
    with pytest.raises(SensoriumError, match="cannot be trained"):
        Int8Linear(Linear(8, 8))(torch.randn(2, 8, requires_grad=True))


def test_pretrained_weights_load_as_int8(tmp_path: Path) -> None:
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
    plain, quantized = (sn.load(tmp_path, quantize=dtype).module for dtype in (None, "int8"))
    assert isinstance(plain, Decoder)
    assert isinstance(quantized, Decoder)
    assert isinstance(quantized.heads["text"], Int8Linear)
    with torch.no_grad():
        assert min_cosine(logits(quantized, ids), logits(plain, ids)) > 0.99
    with pytest.raises(SensoriumError, match="Choose int8"):
        sn.load(tmp_path, quantize="int4")


def test_unknown_dtype_is_an_error() -> None:
    with pytest.raises(
        SensoriumError, match=r"^--quantize int4 is unknown\. Choose int8, or leave it out\.$"
    ):
        quantize_int8(build_decoder(), "int4")


@pytest.mark.parametrize("has_vnni", [True, False])
def test_int8_products_are_exact_integers(has_vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the largest bytes, where a saturating sum would show."""
    if has_vnni and not has_int8_dot_product():
        pytest.skip("this processor has neither VNNI nor AMX")
    monkeypatch.setattr("sensorium.models.int8.has_int8_dot_product", lambda: has_vnni)
    layer = nn.Linear(256, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-127, 128, (8, 256)))
        layer.weight[:4] = torch.tensor([127.0, -127.0, 127.0, -127.0])[:, None]
        layer.weight[4:, 0] = 127
        x = torch.randint(-127, 128, (6, 256)).float()
        x[0] = 127
        x[1] = -127
        x[:, 0] = 127
        torch.testing.assert_close(Int8Linear(layer)(x), layer(x), atol=0.5, rtol=1e-6)
