"""Next-token loss, cached decoding, sampling, guidance and beam search."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from sensorium.loading import prepare_for_inference
from sensorium.modalities.image import PatchEmbedding
from sensorium.modalities.text import END, PAD, START, Text, TextEmbedding
from sensorium.models.decoder import Decoder
from sensorium.models.towers import Encoder
from sensorium.nn import linear
from sensorium.nn.attention import Attention
from sensorium.nn.kv_cache import KVCache
from sensorium.nn.linear import Linear
from sensorium.nn.positional import Rotary
from sensorium.nn.tokens import Batch
from sensorium.nn.transformer import Block, FeedForward, Transformer, build_transformer
from sensorium.objectives.autoregressive import (
    BeamConfig,
    NextTokenLoss,
    SamplingConfig,
    beam_search,
    generate,
    greedy,
    sample_token,
)

DIM, VOCAB, LENGTH = 32, 11, 12
TEXT = Text(length=LENGTH, vocab_size=VOCAB)


def rotary_trunk() -> Transformer:
    return Transformer(
        [
            Block(
                Attention(DIM, 2, kv_heads=1, position=Rotary(16)),
                FeedForward(DIM, 64),
                (nn.LayerNorm(DIM), nn.LayerNorm(DIM)),
            )
            for _ in range(2)
        ]
    )


def build_decoder(trunk: Transformer | None = None, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    parts = {"image": Encoder(PatchEmbedding(DIM, 8, 4)), "text": TextEmbedding(DIM, TEXT)}
    model = Decoder(
        parts, {"text": Linear(DIM, VOCAB)}, trunk or build_transformer(DIM, 2, 2)
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # far from uniform, so that choices are clear
    return model


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def pad_texts(*rows: list[int]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


PROMPTS = pad_texts([START, 5, 6, 7], [START], [START, 9])


@pytest.mark.parametrize("rotary", [False, True], ids=["learned", "rotary"])
@pytest.mark.parametrize("prefix", [True, False], ids=["prefix", "no prefix"])
def test_cached_decoding_equals_full_forward(rotary: bool, prefix: bool) -> None:
    model = build_decoder(rotary_trunk() if rotary else None)
    inputs = Batch({"text": PROMPTS})
    if prefix:
        inputs = inputs.with_columns({"image": images(3)})
    cache, lengths = KVCache(4), torch.tensor([4, 1, 2])
    logits = model.prefill(inputs, "text", cache)
    rows = [[5, 6, 7], [], [9]]
    for step in range(4):
        full_ids = pad_texts(*[[START, *row] for row in rows])
        full = model.heads["text"](model(inputs.with_columns({"text": full_ids}))["text"].x)
        at = torch.tensor([len(row) for row in rows])
        torch.testing.assert_close(
            logits, full[torch.arange(3), at], atol=1e-5 * full.abs().amax().item(), rtol=1e-5
        )
        ids = torch.tensor([3 + step, 8 - step, 4])
        rows = [[*row, i] for row, i in zip(rows, ids.tolist(), strict=True)]
        if step < 3:
            logits = model.decode_step("text", ids, lengths + step, cache)


def test_full_cache_raises() -> None:
    model, cache = build_decoder(), KVCache(1)
    model.prefill(Batch({"text": PROMPTS}), "text", cache)
    model.decode_step("text", torch.tensor([3, 3, 3]), torch.tensor([4, 1, 2]), cache)
    with pytest.raises(ValueError, match=r"cannot take 1 more"):
        model.decode_step("text", torch.tensor([3, 3, 3]), torch.tensor([5, 2, 3]), cache)


def test_prefix_is_attended_to_unless_missing() -> None:
    model, ids = build_decoder(), pad_texts([START, 5, 6, END], [START, 7, END])
    objective = NextTokenLoss({"image": "image", "text": "text"}, {"text": 1.0})
    batch = Batch({"image": images(2), "text": ids})
    output = model(batch)["text"].x
    assert (
        output - model(batch.with_columns({"image": images(2) + 1}))["text"].x
    ).abs().amax() > 1e-3
    missing = batch.with_columns(present={"image": torch.tensor([False, False])})
    torch.testing.assert_close(model(missing)["text"].x, model(Batch({"text": ids}))["text"].x)
    torch.testing.assert_close(
        objective(model, missing)["model"], objective(model, Batch({"text": ids}))["model"]
    )


def test_loss_is_mean_over_real_tokens_after_the_first() -> None:
    model, ids = build_decoder(), pad_texts([START, 5, 6, END], [START, 7, END])
    loss = NextTokenLoss({"text": "caption"}, {"text": 1.0})(model, Batch({"caption": ids}))[
        "model"
    ]
    logits = model.heads["text"](model(Batch({"text": ids}))["text"].x)
    pairs = [(0, 0, 5), (0, 1, 6), (0, 2, END), (1, 0, 7), (1, 1, END)]
    expected = -torch.stack([logits[b, t].log_softmax(0)[target] for b, t, target in pairs]).mean()
    torch.testing.assert_close(loss, expected)
    wider = torch.cat([ids, torch.full((2, 3), PAD)], 1)
    repeated = NextTokenLoss({"text": "caption"}, {"text": 1.0})(model, Batch({"caption": wider}))[
        "model"
    ]
    torch.testing.assert_close(repeated, loss)


def test_loss_without_present_rows_is_zero() -> None:
    model = build_decoder()
    batch = Batch({"text": PROMPTS}, {"text": torch.tensor([False] * 3)})
    loss = NextTokenLoss({"text": "text"}, {"text": 1.0})(model, batch)["model"]
    assert loss.item() == 0.0
    loss.backward()


def test_part_dropout_does_not_modify_batch() -> None:
    model = build_decoder().train()
    batch = Batch({"image": images(3), "text": PROMPTS.clone()})
    objective = NextTokenLoss(
        {"image": "image", "text": "text"}, {"text": 1.0}, part_dropout={"image": 1.0}
    )
    without = objective(model, batch)["model"]
    assert set(batch.columns) == {"image", "text"}
    assert not batch.present
    assert batch["text"].equal(PROMPTS)
    assert batch["image"].equal(images(3))
    torch.testing.assert_close(without, objective(model, Batch({"text": PROMPTS}))["model"])


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(seed=3),
        SamplingConfig(temperature=0),
        SamplingConfig(top_k=3, temperature=0.7, seed=1),
        SamplingConfig(top_p=0.8, seed=2),
        SamplingConfig(guidance_scale=2.0, guided_parts=("image",), seed=4),
    ],
)
def test_sampling_does_not_depend_on_batch_size(sampling: SamplingConfig) -> None:
    model, inputs = build_decoder(), Batch({"image": images(3), "text": PROMPTS})
    full_batch = torch.stack(
        list(
            generate(
                model, inputs, "text", 6, sampling, end_token=END, suppressed_tokens=(PAD, START)
            )
        ),
        1,
    )
    first = Batch({"image": images(3)[:1], "text": PROMPTS[:1]})
    single_row = torch.stack(
        list(
            generate(
                model, first, "text", 6, sampling, end_token=END, suppressed_tokens=(PAD, START)
            )
        ),
        1,
    )
    assert full_batch[0, : single_row.shape[1]].equal(single_row[0])
    assert not ((full_batch == PAD) | (full_batch == START)).any()
    assert inputs["text"].equal(PROMPTS)
    assert set(inputs.columns) == {"image", "text"}
    repeated = torch.stack(
        list(
            generate(
                model, inputs, "text", 6, sampling, end_token=END, suppressed_tokens=(PAD, START)
            )
        ),
        1,
    )
    assert repeated.equal(full_batch)


def test_end_token_repeats_after_end() -> None:
    model, inputs = build_decoder(), Batch({"text": PROMPTS})
    output = torch.stack(
        list(
            generate(
                model, inputs, "text", 8, SamplingConfig(seed=5, temperature=2.0), end_token=END
            )
        ),
        1,
    )
    for row in output.tolist():
        if END in row:
            assert set(row[row.index(END) :]) == {END}


def test_samples_follow_probabilities() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]])
    p = logits.softmax(1)[0]
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    frequency = (
        torch.bincount(
            sample_token(logits.expand(20_000, 4), uniform, SamplingConfig()), minlength=4
        )
        / 20_000
    )
    torch.testing.assert_close(frequency, p, atol=1e-4, rtol=0)
    for temperature in (0.5, 2.0):
        frequency = (
            torch.bincount(
                sample_token(logits.expand(20_000, 4), uniform, SamplingConfig(temperature)),
                minlength=4,
            )
            / 20_000
        )
        torch.testing.assert_close(
            frequency, (logits / temperature).softmax(1)[0], atol=1e-4, rtol=0
        )
    assert set(
        sample_token(logits.expand(99, 4), uniform[::203], SamplingConfig(top_k=2)).tolist()
    ) == {1, 2}
    assert set(
        sample_token(logits.expand(99, 4), uniform[::203], SamplingConfig(top_p=0.5)).tolist()
    ) == {1}
    assert set(
        sample_token(logits.expand(99, 4), uniform[::203], SamplingConfig(top_p=0.8)).tolist()
    ) == {1, 2}


def test_guidance_scale_one_is_unguided_and_zero_ignores_part() -> None:
    model, inputs = build_decoder(), Batch({"image": images(3), "text": PROMPTS})

    def generate_greedily(inputs: Batch, guidance_scale: float = 1.0) -> Tensor:
        return torch.stack(
            list(
                generate(
                    model,
                    inputs,
                    "text",
                    4,
                    SamplingConfig(
                        temperature=0, guided_parts=("image",), guidance_scale=guidance_scale
                    ),
                )
            ),
            1,
        )

    without_image = generate_greedily(Batch({"text": PROMPTS}))
    assert generate_greedily(inputs).equal(generate_greedily(inputs, guidance_scale=1.0))
    assert generate_greedily(inputs, guidance_scale=0.0).equal(without_image)
    assert not generate_greedily(inputs, guidance_scale=8.0).equal(without_image)


def test_wide_beam_search_equals_exhaustive_search() -> None:
    model, start = build_decoder(seed=2), pad_texts([START])
    tokens = [i for i in range(VOCAB) if i not in (PAD, START)]

    @torch.no_grad()
    def score(ids: tuple[int, ...]) -> float:
        output = model(Batch({"text": torch.tensor([[START, *ids]])}))["text"]
        logits = model.heads["text"](output.x)[0].detach().clone()
        logits[:, [PAD, START]] = -torch.inf
        return sum(logits[i].log_softmax(0)[token].item() for i, token in enumerate(ids)) / len(ids)

    sequences = [
        ids
        for n in (1, 2, 3)
        for ids in product(tokens, repeat=n)
        if END not in ids[:-1] and (n == 3 or ids[-1] == END)
    ]
    best = max(sequences, key=score)
    result = beam_search(
        model,
        Batch({"text": start}),
        "text",
        3,
        BeamConfig(81),
        end_token=END,
        suppressed_tokens=(PAD, START),
    )[0].tolist()
    assert result[: len(best)] == list(best)
    assert set(result[len(best) :]) <= {END}


def test_one_beam_equals_greedy_decoding() -> None:
    model, inputs = build_decoder(), Batch({"image": images(3), "text": PROMPTS})
    expected = torch.stack(
        list(generate(model, inputs, "text", 5, SamplingConfig(temperature=0), end_token=END)), 1
    )
    assert beam_search(model, inputs, "text", 5, BeamConfig(1), end_token=END)[
        :, : expected.shape[1]
    ].equal(expected)


def test_part_with_head_before_others_raises() -> None:
    with pytest.raises(ValueError, match="must come last"):
        Decoder(
            {"text": TextEmbedding(DIM, TEXT), "image": PatchEmbedding(DIM, 8, 4)},
            {"text": Linear(DIM, VOCAB)},
            rotary_trunk(),
        )


@pytest.mark.parametrize("trunk", [lambda: None, rotary_trunk], ids=["plain", "rotary"])
def test_prepare_for_inference_keeps_outputs(
    trunk: Callable[[], Transformer | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On AMD weights are transposed in memory; the model can still be saved and quantized."""
    monkeypatch.setattr(linear, "is_amd_cpu", lambda: True)
    model, inputs = (
        build_decoder(trunk()),
        Batch({"image": images(2), "text": pad_texts([START, 5], [START, 7])}),
    )
    before = torch.stack([*generate(model, inputs, "text", 6, SamplingConfig(temperature=0))])
    values = {name: value.clone() for name, value in model.state_dict().items()}
    prepare_for_inference(model)
    mlp = model.trunk.block_list()[0].mlp
    assert isinstance(mlp, FeedForward)
    assert mlp.up.weight.t().is_contiguous()
    assert mlp.down.weight.is_contiguous()
    assert torch.equal(
        torch.stack([*generate(model, inputs, "text", 6, SamplingConfig(temperature=0))]), before
    )
    tower = Encoder(PatchEmbedding(DIM, 8, 4), build_transformer(DIM, 1, 2))
    prepare_for_inference(tower)
    assert all(p.is_contiguous() for p in tower.parameters()), "only decoders"
    copied = build_decoder(trunk())
    copied.load_state_dict({name: value.contiguous() for name, value in model.state_dict().items()})
    assert all(torch.equal(value, values[name]) for name, value in copied.state_dict().items())
    prepare_for_inference(model, "int8")
    assert len([*generate(model, inputs, "text", 6, SamplingConfig(temperature=0))]) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_returns_first_of_equal_logits(dtype: torch.dtype) -> None:
    logits = torch.randn(5, VOCAB).to(dtype)
    logits[0, [3, 7]] = 9.0
    logits[1, 2:] = -torch.inf
    assert torch.equal(greedy(logits), logits.argmax(1))
    assert greedy(logits)[0] == 3
