"""Recurrent networks against torch's own, and every encoder by name: padding, learning, saving."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.squares import clip_folder as clip_folder
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sensorium.modalities.audio import Audio
from sensorium.modalities.base import FitsOnData, Modality
from sensorium.modalities.image import Image
from sensorium.modalities.series import Series
from sensorium.modalities.tabular import Numeric
from sensorium.modalities.text import BagEmbedding, Text
from sensorium.models.lora import FrozenEncoder
from sensorium.models.towers import Encoder
from sensorium.nn.recurrent import RNN_CELLS, Recurrent
from sensorium.nn.tokens import Tokens, make_causal, mean_pool, sequence_positions, valid_mask
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes.encoders import ENCODERS, ProjectedEmbedding, build_encoder, resolve_encoder
from sensorium.recipes.recipe import InvalidKeywordError

DIM = 32
MODALITIES: dict[str, Any] = {
    "image": Image(size=48),
    "text": Text(length=12, vocab_size=300),
    "series": Series(("x", "y"), (0.0, 0.0), (1.0, 1.0), length=40, typical_length=130),
    "audio": Audio(n_mels=20, max_seconds=4.0),
}
ENCODER_NAMES = [(kind, name) for kind, names in ENCODERS.items() for name in names]


def make_tokens(batch: int, n: int, valid: Tensor | None = None) -> Tokens:
    x = torch.randn(batch, n, DIM, generator=torch.Generator().manual_seed(0))
    return Tokens(x, sequence_positions(x), valid=valid)


# Recurrent networks -------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", RNN_CELLS)
def test_bidirectional_equals_torch_on_packed_sequences(cell: str) -> None:
    ours = Recurrent(DIM, 2, cell=cell)
    lengths = torch.tensor([7, 3, 1])
    theirs = RNN_CELLS[cell](DIM, DIM // 2, 2, batch_first=True, bidirectional=True)
    assert ours.backward_layers is not None
    for suffix, layers in (("", ours.forward_layers), ("_reverse", ours.backward_layers)):
        for i, layer in enumerate(layers):
            for name, value in layer.named_parameters():
                theirs.get_parameter(name.replace("l0", f"l{i}") + suffix).data.copy_(value)
    t = make_tokens(3, 7, torch.arange(7) < lengths[:, None])
    packed = theirs(pack_padded_sequence(t.x, lengths, batch_first=True))[0]
    torch.testing.assert_close(ours(t).x, pad_packed_sequence(packed, batch_first=True)[0])


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("cell", RNN_CELLS)
def test_recurrent_skips_invalid_tokens(cell: str, bidirectional: bool) -> None:
    recurrent = Recurrent(DIM, 2, cell=cell, bidirectional=bidirectional)
    valid = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    t = make_tokens(3, 6, valid)
    output = recurrent(t)
    for row in range(3):
        alone = t.x[row][valid[row]][None]
        expected = recurrent(Tokens(alone, sequence_positions(alone))).x
        torch.testing.assert_close(output.x[row][valid[row]][None], expected)
    assert not output.x[~valid].any()
    noisy = replace(t, x=torch.where(valid[..., None], t.x, 1e3))
    torch.testing.assert_close(recurrent(noisy).x, output.x)


def test_unidirectional_recurrent_is_causal() -> None:
    recurrent = Recurrent(DIM, 2, bidirectional=False)
    t = make_causal(make_tokens(2, 6))
    changed = replace(t, x=torch.cat([t.x[:, :4], -t.x[:, 4:]], 1))
    assert recurrent(t).x[:, :4].equal(recurrent(changed).x[:, :4])
    assert not recurrent(t).x[:, 4:].equal(recurrent(changed).x[:, 4:])


def test_bidirectional_recurrent_rejects_causal_tokens() -> None:
    with pytest.raises(ValueError, match="bidirectional=False"):
        Recurrent(DIM)(make_causal(make_tokens(1, 3)))


def test_bidirectional_recurrent_rejects_odd_width() -> None:
    with pytest.raises(ValueError, match="needs an even width"):
        Recurrent(7)


def test_unknown_cell_is_rejected() -> None:
    with pytest.raises(ValueError, match="gru, lstm"):
        Recurrent(DIM, cell="rnn")


def test_recurrent_as_trunk_of_an_encoder() -> None:
    text = MODALITIES["text"]
    encoder = Encoder(BagEmbedding(DIM, text), Recurrent(DIM))
    ids = text.fake(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder.pooled(ids), mean_pool(encoder(ids)))


def test_recurrent_returns_the_query_position_alone() -> None:
    recurrent = Recurrent(DIM)
    t = make_tokens(4, 3)
    position = torch.tensor([0, 2, 1, 0])
    output = recurrent(t, query_positions=position).x
    assert output.shape == (4, 1, DIM)
    torch.testing.assert_close(output[:, 0], recurrent(t).x[torch.arange(4), position])


def test_recurrent_accepts_an_empty_sequence() -> None:
    empty = Tokens(torch.zeros(2, 0, DIM), torch.zeros(2, 0, 3))
    assert Recurrent(DIM)(empty).x.shape == (2, 0, DIM)
    assert isinstance(Recurrent(DIM).dropout, nn.Dropout)


# Encoders by name ---------------------------------------------------------------------------------


def make_encoder(kind: str, name: str, dim: int = DIM) -> tuple[Encoder, Tensor]:
    torch.manual_seed(0)
    modality = MODALITIES[kind]
    encoder = build_encoder(modality, name, dim, 3, 0.0)
    batch = modality.fake(4, torch.Generator().manual_seed(0))
    if isinstance(encoder.embed, FitsOnData):
        encoder.embed.fit_on_data([batch, batch])
    return encoder, batch


@pytest.mark.parametrize(("kind", "name"), ENCODER_NAMES)
def test_encoder_has_the_requested_width_and_all_parameters_learn(kind: str, name: str) -> None:
    encoder, batch = make_encoder(kind, name)
    for parameter in encoder.parameters():
        if not parameter.any():  # zero-initialized residual branches
            nn.init.normal_(parameter)
    t = encoder(batch)
    assert t.x.shape[0] == 4
    assert t.x.shape[2] == DIM
    assert t.order is None
    assert t.x.isfinite().all()
    assert encoder.pooled(batch).shape == (4, DIM)
    (t.x * torch.randn_like(t.x)).sum().backward()
    frozen = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert frozen == []


@pytest.mark.parametrize(("kind", "name"), ENCODER_NAMES)
def test_value_is_encoded_alike_alone_and_in_a_batch(kind: str, name: str) -> None:
    encoder, batch = make_encoder(kind, name)
    encoder.eval()
    together = encoder(batch)
    for row in range(4):
        alone = encoder(batch[row : row + 1])
        torch.testing.assert_close(
            alone.x[0][valid_mask(alone)[0]],
            together.x[row][valid_mask(together)[row]],
            atol=1e-5,
            rtol=1e-4,
        )


@pytest.mark.parametrize(("kind", "name"), ENCODER_NAMES)
def test_state_dict_restores_an_encoder(kind: str, name: str) -> None:
    encoder, batch = make_encoder(kind, name)
    encoder.eval()
    expected = encoder(batch).x
    restored = build_encoder(MODALITIES[kind], name, DIM, 3, 0.0).eval()
    assert not torch.equal(restored(batch).x, expected)
    restored.load_state_dict(encoder.state_dict())
    assert torch.equal(restored(batch).x, expected)


@pytest.mark.parametrize(("size", "dim"), [(50, 100), (7, 12), (224, 192)])
@pytest.mark.parametrize("name", ["vit", "cnn", "resnet"])
def test_image_encoder_accepts_any_size_and_width(name: str, size: int, dim: int) -> None:
    image = Image(size=size)
    with torch.no_grad():
        t = build_encoder(image, name, dim, 1, 0.0).eval()(image.fake(1, torch.Generator()))
    assert t.x.shape[2] == dim
    assert t.x.shape[1] > 0


@pytest.mark.parametrize("name", ["bag", "subword"])
def test_bag_encoder_ignores_token_order(name: str) -> None:
    encoder, batch = make_encoder("text", name)
    encoder.eval()
    ids = batch[:1, : int((batch[0] != 0).sum())]
    reversed_ids = torch.cat([ids[:, :-1].flip(1), ids[:, -1:]], 1)  # the end token stays last
    torch.testing.assert_close(encoder.pooled(ids), encoder.pooled(reversed_ids))


@pytest.mark.parametrize(
    ("modality", "name", "message"),
    [
        (Image(), "gru", "'gru' .*image.* resnet, cnn, vit, resnet18, resnet50"),
        (Text(), "vit", "'vit' .*text.* subword, transformer, gru, lstm, bag"),
        (Numeric(), "resnet", "no encoder .*numeric"),
    ],
)
def test_unknown_encoder_is_rejected_with_the_choices(
    modality: Modality, name: str, message: str
) -> None:
    with pytest.raises(InvalidKeywordError, match=message):
        build_encoder(modality, name, DIM, 1)


# Pretrained encoders ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "width"), [("image", 32), ("text", 24)])
@pytest.mark.parametrize("train", ["none", "all", "lora"])
def test_pretrained_encoder_is_projected_to_the_requested_width(
    clip_folder: Path, kind: str, width: int, train: str
) -> None:
    source = resolve_encoder(kind, str(clip_folder))
    assert isinstance(source, PretrainedSource)
    modality: Any = source.preprocessing()[kind]
    encoder = build_encoder(modality, source, DIM, 1, train=train).train()
    assert isinstance(encoder.embed, ProjectedEmbedding)
    assert encoder.embed.projection.in_features == width
    batch = modality.fake(3, torch.Generator().manual_seed(0))
    inner, _ = source.build_encoder(kind)
    expected = encoder.embed.projection(inner.eval()(batch).x)
    torch.testing.assert_close(encoder(batch).x, expected)
    encoder(batch).x.sum().backward()
    trained = {name.split(".")[1] for name, p in encoder.named_parameters() if p.grad is not None}
    assert trained == ({"projection"} if train == "none" else {"projection", "encoder"})
    assert isinstance(encoder.embed.encoder, FrozenEncoder) == (train == "none")


def test_encoder_is_rebuilt_from_its_stored_source(clip_folder: Path) -> None:
    source = resolve_encoder("image", str(clip_folder))
    assert isinstance(source, PretrainedSource)
    first = build_encoder(Image(size=16), source, DIM, 1)
    rebuilt = build_encoder(Image(size=16), source.to_config(), DIM, 1)
    rebuilt.load_state_dict(first.state_dict())
    batch = Image(size=16).fake(2, torch.Generator())
    assert torch.equal(first(batch).x, rebuilt(batch).x)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_689_512 - 513_000), ("resnet50", 25_557_032 - 2_049_000)],
)
def test_standard_resnet_has_the_parameters_of_torchvision(name: str, parameters: int) -> None:
    """The number of torchvision, less that of its classification head."""
    embed = make_encoder("image", name)[0].embed
    assert isinstance(embed, ProjectedEmbedding)
    assert sum(p.numel() for p in embed.encoder.parameters()) == parameters
