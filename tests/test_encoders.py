"""Recurrent networks beside torch's own, and every encoder by name: padding changes nothing, all of it learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.squares import published as published
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
from sensorium.recipes.recipe import BadKeyword

DIM = 32
MODALITIES: dict[str, Any] = {
    "image": Image(size=48),
    "text": Text(length=12, vocab_size=300),
    "series": Series(("x", "y"), (0.0, 0.0), (1.0, 1.0), length=40, typical_length=130),
    "audio": Audio(n_mels=20, max_seconds=4.0),
}
NAMES = [(kind, name) for kind, names in ENCODERS.items() for name in names]


def tokens(batch: int, n: int, valid: Tensor | None = None) -> Tokens:
    x = torch.randn(batch, n, DIM, generator=torch.Generator().manual_seed(0))
    return Tokens(x, sequence_positions(x), valid=valid)


def until(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


# --------------------------------------------------------------------------------------------- recurrent networks


@pytest.mark.parametrize("cell", RNN_CELLS)
def test_both_ways_is_what_torch_makes_of_packed_sequences(cell: str) -> None:
    ours, lengths = Recurrent(DIM, 2, cell=cell), torch.tensor([7, 3, 1])
    theirs = RNN_CELLS[cell](DIM, DIM // 2, 2, batch_first=True, bidirectional=True)
    assert ours.backward_layers is not None
    for suffix, ways in (("", ours.forward_layers), ("_reverse", ours.backward_layers)):
        for i, way in enumerate(ways):
            for name, value in way.named_parameters():
                theirs.get_parameter(name.replace("l0", f"l{i}") + suffix).data.copy_(value)
    t = tokens(3, 7, until(*lengths.tolist()))
    packed = theirs(pack_padded_sequence(t.x, lengths, batch_first=True))[0]
    torch.testing.assert_close(ours(t).x, pad_packed_sequence(packed, batch_first=True)[0])


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("cell", RNN_CELLS)
def test_tokens_that_are_not_valid_might_as_well_not_be_there(cell: str, both: bool) -> None:
    read = Recurrent(DIM, 2, cell=cell, bidirectional=both)
    there = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    t = tokens(3, 6, there)
    said = read(t)
    for row in range(3):
        alone = t.x[row][there[row]][None]
        torch.testing.assert_close(
            said.x[row][there[row]][None], read(Tokens(alone, sequence_positions(alone))).x
        )
    assert not said.x[~there].any()
    noise = replace(t, x=torch.where(there[..., None], t.x, 1e3))
    torch.testing.assert_close(read(noise).x, said.x)


def test_read_forwards_nothing_is_known_of_what_follows() -> None:
    read, t = Recurrent(DIM, 2, bidirectional=False), make_causal(tokens(2, 6))
    changed = replace(t, x=torch.cat([t.x[:, :4], -t.x[:, 4:]], 1))
    assert read(t).x[:, :4].equal(read(changed).x[:, :4])
    assert not read(t).x[:, 4:].equal(read(changed).x[:, 4:])


def test_what_a_recurrent_network_cannot_do() -> None:
    with pytest.raises(ValueError, match="forwards only"):
        Recurrent(DIM)(make_causal(tokens(1, 3)))
    with pytest.raises(ValueError, match="no multiple of 2"):
        Recurrent(7)
    with pytest.raises(ValueError, match="gru, lstm"):
        Recurrent(DIM, cell="rnn")


def test_as_the_trunk_of_an_encoder() -> None:
    text = MODALITIES["text"]
    read = Encoder(BagEmbedding(DIM, text), Recurrent(DIM))
    ids = text.fake(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(read.pooled(ids), mean_pool(read(ids)))
    at = torch.tensor([0, 2, 1, 0])
    torch.testing.assert_close(
        Recurrent(DIM)(tokens(4, 3), query_positions=at).x.shape, torch.Size([4, 1, DIM])
    )


# ---------------------------------------------------------------------------------------------------- by name


def made(kind: str, name: str, dim: int = DIM) -> tuple[Encoder, Tensor]:
    torch.manual_seed(0)
    modality = MODALITIES[kind]
    read, batch = (
        build_encoder(modality, name, dim, 3, 0.0),
        modality.fake(4, torch.Generator().manual_seed(0)),
    )
    if isinstance(read.embed, FitsOnData):
        read.embed.fit_on_data([batch, batch])
    return read, batch


@pytest.mark.parametrize("kind, name", NAMES)
def test_every_encoder_makes_tokens_of_the_width_asked_for_and_all_of_it_learns(
    kind: str, name: str
) -> None:
    read, batch = made(kind, name)
    for shut in (
        p for p in read.parameters() if not p.any()
    ):  # a new block changes nothing at first
        nn.init.normal_(shut)
    t = read(batch)
    assert t.x.shape[0] == 4
    assert t.x.shape[2] == DIM
    assert t.order is None
    assert t.x.isfinite().all()
    assert read.pooled(batch).shape == (4, DIM)
    (t.x * torch.randn_like(t.x)).sum().backward()
    assert [n for n, p in read.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind, name", NAMES)
def test_a_value_is_read_alike_alone_and_beside_longer_ones(kind: str, name: str) -> None:
    read, batch = made(kind, name)
    read.eval()
    whole = read(batch)
    for row in range(4):
        t = read(batch[row : row + 1])
        here, beside = valid_mask(t)[0], valid_mask(whole)[row]
        torch.testing.assert_close(t.x[0][here], whole.x[row][beside], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind, name", NAMES)
def test_saved_and_loaded_it_says_the_same(kind: str, name: str) -> None:
    read, batch = made(kind, name)
    read.eval()
    said = read(batch).x
    other = build_encoder(MODALITIES[kind], name, DIM, 3, 0.0).eval()
    assert not torch.equal(other(batch).x, said)
    other.load_state_dict(read.state_dict())
    assert torch.equal(other(batch).x, said)


@pytest.mark.parametrize("size, dim", [(50, 100), (7, 12), (224, 192)])
def test_pictures_of_any_size_at_any_width(size: int, dim: int) -> None:
    image = Image(size=size)
    for name in ("vit", "cnn", "resnet"):
        with torch.no_grad():
            t = build_encoder(image, name, dim, 1, 0.0).eval()(image.fake(1, torch.Generator()))
        assert t.x.shape[2] == dim
        assert t.x.shape[1] > 0


@pytest.mark.parametrize("name", ["bag", "spelling"])
def test_a_bag_knows_no_order(name: str) -> None:
    read, batch = made("text", name)
    read.eval()
    ids = batch[:1, : int((batch[0] != 0).sum())]
    turned = torch.cat([ids[:, :-1].flip(1), ids[:, -1:]], 1)  # its end stays its end
    torch.testing.assert_close(read.pooled(ids), read.pooled(turned))


@pytest.mark.parametrize(
    "modality, how, says",
    [
        (
            Image(),
            "gru",
            "'gru' is no encoder of image: choose one of resnet, cnn, vit, resnet18, resnet50",
        ),
        (Text(), "vit", "choose one of spelling, transformer, gru, lstm, bag, or give a folder"),
        (Numeric(), "resnet", "no encoder reads a column of the kind 'number'"),
    ],
)
def test_a_name_that_is_none_of_its_kind(modality: Modality, how: str, says: str) -> None:
    with pytest.raises(BadKeyword, match=says):
        build_encoder(modality, how, DIM, 1)


# ------------------------------------------------------------------------------------------ published weights


@pytest.mark.parametrize("kind, width", [("image", 32), ("text", 24)])
@pytest.mark.parametrize("tune", ["none", "all", "lora"])
def test_published_weights_are_brought_to_the_width_asked_for(
    published: Path, kind: str, width: int, tune: str
) -> None:
    start = resolve_encoder(kind, str(published))
    assert isinstance(start, PretrainedSource)
    modality = start.preprocessing()[kind]
    read = build_encoder(modality, start, DIM, 1, train=tune).train()
    assert isinstance(read.embed, ProjectedEmbedding)
    assert read.embed.projection.in_features == width
    batch = modality.fake(3, torch.Generator().manual_seed(0))
    inner, _ = start.build_encoder(kind)
    torch.testing.assert_close(read(batch).x, read.embed.projection(inner.eval()(batch).x))
    read(batch).x.sum().backward()
    learns = {name.split(".")[1] for name, p in read.named_parameters() if p.grad is not None}
    assert learns == ({"project"} if tune == "none" else {"project", "encoder"})
    assert isinstance(read.embed.encoder, FrozenEncoder) == (tune == "none")


def test_a_run_builds_the_same_layout_from_what_it_was_told(published: Path) -> None:
    start = resolve_encoder("image", str(published))
    assert isinstance(start, PretrainedSource)
    first, again = (
        build_encoder(Image(size=16), how, DIM, 1) for how in (start, start.to_config())
    )
    again.load_state_dict(first.state_dict())
    batch = Image(size=16).fake(2, torch.Generator())
    assert torch.equal(first(batch).x, again(batch).x)


def test_the_layouts_are_the_published_ones() -> None:
    sizes = {
        name: sum(p.numel() for p in made("image", name)[0].embed.encoder.parameters())  # pyright: ignore
        for name in ("resnet18", "resnet50")
    }
    assert sizes == {
        "resnet18": 11_689_512 - 513_000,
        "resnet50": 25_557_032 - 2_049_000,
    }  # torchvision, no head


def test_of_nothing_comes_nothing() -> None:
    assert Recurrent(DIM)(Tokens(torch.zeros(2, 0, DIM), torch.zeros(2, 0, 3))).x.shape == (
        2,
        0,
        DIM,
    )
    assert isinstance(Recurrent(DIM).dropout, nn.Dropout)
