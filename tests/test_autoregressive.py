"""Next tokens: the loss looks at what it should, and what is said with a cache is what would be said without."""

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
from sensorium.nn.attention import Attention, KVCache
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


def rotary() -> Transformer:
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


def decoder(trunk: Transformer | None = None, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    parts = {"image": Encoder(PatchEmbedding(DIM, 8, 4)), "text": TextEmbedding(DIM, TEXT)}
    model = Decoder(
        parts, {"text": Linear(DIM, VOCAB)}, trunk or build_transformer(DIM, 2, 2)
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # far from uniform, so that choices are clear
    return model


def pictures(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def texts(*rows: list[int]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


PROMPTS = texts([START, 5, 6, 7], [START], [START, 9])


@pytest.mark.parametrize("trunk", [None, rotary], ids=["learned", "rotary"])
@pytest.mark.parametrize("seen", [True, False], ids=["prefix", "alone"])
def test_with_a_cache_it_says_what_it_says_without(trunk: object, seen: bool) -> None:
    model = decoder(rotary() if trunk else None)
    given = Batch({"text": PROMPTS, **({"image": pictures(3)} if seen else {})})
    cache, places = KVCache(4), torch.tensor([4, 1, 2])
    logits = model.prefill(given, "text", cache)
    said = [[5, 6, 7], [], [9]]
    for step in range(4):
        whole = texts(*[[START, *row] for row in said])
        full = model.heads["text"](model(given.with_columns({"text": whole}))["text"].x)
        at = torch.tensor([len(row) for row in said])
        torch.testing.assert_close(
            logits, full[torch.arange(3), at], atol=1e-5 * full.abs().amax().item(), rtol=1e-5
        )
        ids = torch.tensor([3 + step, 8 - step, 4])
        said = [[*row, i] for row, i in zip(said, ids.tolist(), strict=True)]
        if step < 3:
            logits = model.decode_step("text", ids, places + step, cache)


def test_a_full_cache_says_so() -> None:
    model, cache = decoder(), KVCache(1)
    model.prefill(Batch({"text": PROMPTS}), "text", cache)
    model.decode_step("text", torch.tensor([3, 3, 3]), torch.tensor([4, 1, 2]), cache)
    with pytest.raises(ValueError, match="cannot take 1 more"):
        model.decode_step("text", torch.tensor([3, 3, 3]), torch.tensor([5, 2, 3]), cache)


def test_the_prefix_is_seen_and_what_is_missing_is_not_there() -> None:
    model, ids = decoder(), texts([START, 5, 6, END], [START, 7, END])
    objective = NextTokenLoss({"image": "image", "text": "text"}, {"text": 1.0})
    with_it = Batch({"image": pictures(2), "text": ids})
    seen = model(with_it)["text"].x
    assert (
        seen - model(with_it.with_columns({"image": pictures(2) + 1}))["text"].x
    ).abs().amax() > 1e-3
    nobody = with_it.with_columns(present={"image": torch.tensor([False, False])})
    torch.testing.assert_close(model(nobody)["text"].x, model(Batch({"text": ids}))["text"].x)
    torch.testing.assert_close(
        objective(model, nobody)["model"], objective(model, Batch({"text": ids}))["model"]
    )


def test_the_loss_is_of_real_tokens_after_the_first() -> None:
    model, ids = decoder(), texts([START, 5, 6, END], [START, 7, END])
    loss = NextTokenLoss({"text": "caption"}, {"text": 1.0})(model, Batch({"caption": ids}))[
        "model"
    ]
    logits = model.heads["text"](model(Batch({"text": ids}))["text"].x)
    pairs = [(0, 0, 5), (0, 1, 6), (0, 2, END), (1, 0, 7), (1, 1, END)]
    by_hand = -torch.stack([logits[b, t].log_softmax(0)[target] for b, t, target in pairs]).mean()
    torch.testing.assert_close(loss, by_hand)
    wider = torch.cat([ids, torch.full((2, 3), PAD)], 1)
    again = NextTokenLoss({"text": "caption"}, {"text": 1.0})(model, Batch({"caption": wider}))[
        "model"
    ]
    torch.testing.assert_close(again, loss)


def test_a_batch_without_the_part_costs_nothing_and_is_finite() -> None:
    model = decoder()
    batch = Batch({"text": PROMPTS}, {"text": torch.tensor([False] * 3)})
    loss = NextTokenLoss({"text": "text"}, {"text": 1.0})(model, batch)["model"]
    assert loss.item() == 0.0
    loss.backward()


def test_dropping_a_part_leaves_the_callers_batch_alone() -> None:
    model = decoder().train()
    batch = Batch({"image": pictures(3), "text": PROMPTS.clone()})
    objective = NextTokenLoss(
        {"image": "image", "text": "text"}, {"text": 1.0}, part_dropout={"image": 1.0}
    )
    without = objective(model, batch)["model"]
    assert set(batch.columns) == {"image", "text"}
    assert not batch.present
    assert batch["text"].equal(PROMPTS)
    assert batch["image"].equal(pictures(3))
    torch.testing.assert_close(without, objective(model, Batch({"text": PROMPTS}))["model"])


@pytest.mark.parametrize(
    "how",
    [
        SamplingConfig(seed=3),
        SamplingConfig(temperature=0),
        SamplingConfig(top_k=3, temperature=0.7, seed=1),
        SamplingConfig(top_p=0.8, seed=2),
        SamplingConfig(guidance_scale=2.0, guided_parts=("image",), seed=4),
    ],
)
def test_a_row_is_said_alike_in_every_batch(how: SamplingConfig) -> None:
    model, given = decoder(), Batch({"image": pictures(3), "text": PROMPTS})
    whole = torch.stack(
        list(generate(model, given, "text", 6, how, end_token=END, suppressed_tokens=(PAD, START))),
        1,
    )
    first = Batch({"image": pictures(3)[:1], "text": PROMPTS[:1]})
    alone = torch.stack(
        list(generate(model, first, "text", 6, how, end_token=END, suppressed_tokens=(PAD, START))),
        1,
    )
    assert whole[0, : alone.shape[1]].equal(alone[0])
    assert not ((whole == PAD) | (whole == START)).any()
    assert given["text"].equal(PROMPTS)
    assert set(given.columns) == {"image", "text"}
    again = torch.stack(
        list(generate(model, given, "text", 6, how, end_token=END, suppressed_tokens=(PAD, START))),
        1,
    )
    assert again.equal(whole)


def test_after_the_end_comes_only_the_end() -> None:
    model, given = decoder(), Batch({"text": PROMPTS})
    said = torch.stack(
        list(
            generate(
                model, given, "text", 8, SamplingConfig(seed=5, temperature=2.0), end_token=END
            )
        ),
        1,
    )
    for row in said.tolist():
        if END in row:
            assert set(row[row.index(END) :]) == {END}


def test_choices_follow_the_probabilities() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]])
    p = logits.softmax(1)[0]
    even = (torch.arange(20_000) + 0.5) / 20_000
    drawn = (
        torch.bincount(sample_token(logits.expand(20_000, 4), even, SamplingConfig()), minlength=4)
        / 20_000
    )
    torch.testing.assert_close(drawn, p, atol=1e-4, rtol=0)
    for temperature in (0.5, 2.0):
        drawn = (
            torch.bincount(
                sample_token(logits.expand(20_000, 4), even, SamplingConfig(temperature)),
                minlength=4,
            )
            / 20_000
        )
        torch.testing.assert_close(drawn, (logits / temperature).softmax(1)[0], atol=1e-4, rtol=0)
    assert set(
        sample_token(logits.expand(99, 4), even[::203], SamplingConfig(top_k=2)).tolist()
    ) == {1, 2}
    assert set(
        sample_token(logits.expand(99, 4), even[::203], SamplingConfig(top_p=0.5)).tolist()
    ) == {1}
    assert set(
        sample_token(logits.expand(99, 4), even[::203], SamplingConfig(top_p=0.8)).tolist()
    ) == {1, 2}


def test_no_guidance_is_what_was_said_and_more_of_it_goes_further() -> None:
    model, given = decoder(), Batch({"image": pictures(3), "text": PROMPTS})

    def said(given: Batch, **how: float) -> Tensor:
        return torch.stack(
            list(
                generate(
                    model,
                    given,
                    "text",
                    4,
                    SamplingConfig(temperature=0, guided_parts=("image",), **how),
                )
            ),
            1,
        )

    assert said(given).equal(said(given, guidance=1.0))
    assert said(given, guidance=0.0).equal(said(Batch({"text": PROMPTS})))


def test_wide_search_finds_the_likeliest_of_all() -> None:
    model, start = decoder(seed=2), texts([START])
    legal = [i for i in range(VOCAB) if i not in (PAD, START)]

    @torch.no_grad()
    def score(ids: tuple[int, ...]) -> float:
        said = model(Batch({"text": torch.tensor([[START, *ids]])}))["text"]
        logits = model.heads["text"](said.x)[0].detach().clone()
        logits[:, [PAD, START]] = -torch.inf
        return sum(logits[i].log_softmax(0)[token].item() for i, token in enumerate(ids)) / len(ids)

    every = [
        ids
        for n in (1, 2, 3)
        for ids in product(legal, repeat=n)
        if END not in ids[:-1] and (n == 3 or ids[-1] == END)
    ]
    best = max(every, key=score)
    found = beam_search(
        model,
        Batch({"text": start}),
        "text",
        3,
        BeamConfig(81),
        end_token=END,
        suppressed_tokens=(PAD, START),
    )[0].tolist()
    assert found[: len(best)] == list(best)
    assert set(found[len(best) :]) <= {END}


def test_one_beam_is_greedy() -> None:
    model, given = decoder(), Batch({"image": pictures(3), "text": PROMPTS})
    greedy = torch.stack(
        list(generate(model, given, "text", 5, SamplingConfig(temperature=0), end_token=END)), 1
    )
    assert beam_search(model, given, "text", 5, BeamConfig(1), end_token=END)[
        :, : greedy.shape[1]
    ].equal(greedy)


def test_parts_with_a_head_stand_last() -> None:
    with pytest.raises(ValueError, match="must stand last"):
        Decoder(
            {"text": TextEmbedding(DIM, TEXT), "image": PatchEmbedding(DIM, 8, 4)},
            {"text": Linear(DIM, VOCAB)},
            rotary(),
        )


@pytest.mark.parametrize("trunk", [lambda: None, rotary], ids=["plain", "rotary"])
def test_a_decoder_ready_to_answer_says_the_same(
    trunk: Callable[[], Transformer | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On AMD its weights are turned over in memory, and it can still be saved, quantized and copied."""
    monkeypatch.setattr(linear, "amd", lambda: True)
    model, given = (
        decoder(trunk()),
        Batch({"image": pictures(2), "text": texts([START, 5], [START, 7])}),
    )
    before = torch.stack([*generate(model, given, "text", 6, SamplingConfig(temperature=0))])
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    prepare_for_inference(model)
    mlp = model.trunk.blocks[0].mlp
    assert mlp.up.weight.t().is_contiguous()
    assert mlp.down.weight.is_contiguous()
    assert torch.equal(
        torch.stack([*generate(model, given, "text", 6, SamplingConfig(temperature=0))]), before
    )
    tower = Encoder(PatchEmbedding(DIM, 8, 4), build_transformer(DIM, 1, 2))
    prepare_for_inference(tower)
    assert all(p.is_contiguous() for p in tower.parameters()), "only what answers token by token"
    copied = decoder(trunk())
    copied.load_state_dict({name: value.contiguous() for name, value in model.state_dict().items()})
    assert all(torch.equal(value, kept[name]) for name, value in copied.state_dict().items())
    prepare_for_inference(model, "int8")
    assert len([*generate(model, given, "text", 6, SamplingConfig(temperature=0))]) == 6


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_first_of_the_likeliest_is_said(kind: torch.dtype) -> None:
    logits = torch.randn(5, VOCAB).to(kind)
    logits[0, [3, 7]] = 9.0
    logits[1, 2:] = -torch.inf
    assert torch.equal(greedy(logits), logits.argmax(1))
    assert greedy(logits)[0] == 3
