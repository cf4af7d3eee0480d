"""Parity with diffusers: trajectories of its schedulers, its DiT and its prior on equal weights."""

import pytest
import torch
from torch import Tensor, nn

from sensorium.models.prior import DiffusionPrior, PriorCondition
from sensorium.nn.denoising import Channels, Conditioning
from sensorium.nn.dit import DiT, DiTBlock
from sensorium.nn.tokens import Tokens, sequence_positions
from sensorium.objectives.diffusion import DiffusionProcess, DiscreteSchedule, FlowSchedule
from sensorium.objectives.samplers import SamplerConfig, Threshold, sample

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
STEPS = 10
SCHEDULE = DiscreteSchedule.linear(1000)
NAMES = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


def _network(x: Tensor, times: Tensor) -> Tensor:
    """Return a smooth function of x and time in place of a trained denoiser."""
    return torch.tanh(0.7 * x.roll(1, -1) + 0.2 * x) * (0.5 + times.view(-1, 1, 1, 1) / 1500)


def _reference(scheduler: object, x: Tensor, noises: list[Tensor] | None = None) -> Tensor:
    """Return the end of a trajectory of diffusers, whose steps start from step index i of 1000."""
    scheduler.set_timesteps(STEPS)  # pyright: ignore[reportAttributeAccessIssue]
    for i, t in enumerate(scheduler.timesteps):  # pyright: ignore[reportAttributeAccessIssue]
        prediction = _network(x, torch.full(x.shape[:1], float(t) + 1))
        options = {} if noises is None else {"variance_noise": noises[i]}
        x = scheduler.step(prediction, t, x, **options).prev_sample  # pyright: ignore[reportAttributeAccessIssue]
    return x


def _times(scheduler: object) -> list[float]:
    """Return the times of a diffusers scheduler, whose step i is our (i + 1) / 1000."""
    scheduler.set_timesteps(STEPS)  # pyright: ignore[reportAttributeAccessIssue]
    return [(float(t) + 1) / 1000 for t in scheduler.timesteps] + [0.0]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(prediction: str, eta: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    noises = [torch.randn(2, 3, 4, 4) for _ in range(STEPS)]
    scheduler = diffusers.DDIMScheduler(
        prediction_type=NAMES[prediction], clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(STEPS)
    expected = x
    for i, t in enumerate(scheduler.timesteps):
        output = _network(expected, torch.full((2,), float(t) + 1))
        noise = noises[i] if eta else None
        expected = scheduler.step(output, t, expected, eta=eta, variance_noise=noise).prev_sample
    process = DiffusionProcess(SCHEDULE, prediction)  # pyright: ignore[reportArgumentType]
    draws = iter(noises)
    found = sample(
        _network,
        process,
        x,
        SamplerConfig("ddim", eta=eta, timesteps=_times(scheduler)),
        step_noise=lambda: next(draws),
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("clip", [False, True])
def test_ddpm(clip: bool) -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.DDPMScheduler(clip_sample=clip, variance_type="fixed_small")
    scheduler.set_timesteps(STEPS)
    times = _times(scheduler)
    process = DiffusionProcess(SCHEDULE, "epsilon")
    random, expected = torch.Generator().manual_seed(5), x
    for t in scheduler.timesteps:
        output = _network(expected, torch.full((2,), float(t) + 1))
        expected = scheduler.step(output, t, expected, generator=random).prev_sample
    random = torch.Generator().manual_seed(5)
    config = SamplerConfig(
        "ddpm", threshold=Threshold("static" if clip else "none"), timesteps=times
    )
    found = sample(
        _network,
        process,
        x,
        config,
        step_noise=lambda: torch.randn(x.shape, generator=random),
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_dynamic_thresholding() -> None:
    scheduler = diffusers.DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e9
    )
    x0 = 3 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = scheduler._threshold_sample(x0)
    torch.testing.assert_close(Threshold("dynamic", 0.9)(x0), expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_dpm_solver(prediction: str) -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=NAMES[prediction],
        final_sigmas_type="zero",
    )
    process = DiffusionProcess(SCHEDULE, prediction)  # pyright: ignore[reportArgumentType]
    found = sample(_network, process, x, SamplerConfig("dpm++", timesteps=_times(scheduler)))
    torch.testing.assert_close(found, _reference(scheduler, x), atol=1e-5, rtol=1e-5)


def test_flow_euler() -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    expected = x
    for t in scheduler.timesteps:
        output = _network(expected, torch.full((2,), float(t)))
        expected = scheduler.step(output, t, expected).prev_sample
    process = DiffusionProcess(FlowSchedule(), "flow")
    times = [float(sigma) for sigma in scheduler.sigmas]
    found = sample(_network, process, x, SamplerConfig("euler", timesteps=times))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_zero_terminal_snr() -> None:
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, beta_schedule="linear")
    found = DiscreteSchedule.linear(1000, zero_snr=True).alphas_cumprod
    torch.testing.assert_close(found, scheduler.alphas_cumprod, atol=1e-6, rtol=1e-5)


def test_dit() -> None:
    torch.manual_seed(0)
    reference = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.05)
    blocks = list(reference.transformer_blocks)
    for block in blocks[1:]:  # diffusers repeats the embedding of time and class in each block
        block.norm1.emb.load_state_dict(blocks[0].norm1.emb.state_dict())
    for block in blocks:  # the rates of the authors' code, which diffusers spaces differently
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    model = DiT(8, Channels(4, 4, vector=11), 32, 2, 2).eval()
    _copy_dit(reference, model)
    x, time, label = torch.randn(2, 4, 8, 8), torch.tensor([10, 800]), torch.tensor([3, 7])
    with torch.no_grad():
        expected = reference(x, time, label).sample
        condition = model.prepare(vector=nn.functional.one_hot(label, 11).float())
        found = model(x, time.float(), condition)
    assert isinstance(condition, Conditioning)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def _copy_dit(reference: nn.Module, model: DiT) -> None:
    """Copy the weights of diffusers' DiT."""
    source = reference.state_dict()

    def copy(layer: nn.Module, *names: str) -> None:
        for kind in ("weight", "bias"):
            value = torch.cat([source[f"{name}.{kind}"] for name in names])
            layer.get_parameter(kind).data.copy_(value)

    patch = source["pos_embed.proj.weight"].permute(0, 2, 3, 1).flatten(1)
    model.embed.weight.data.copy_(patch)
    model.embed.bias.data.copy_(source["pos_embed.proj.bias"])
    embedding = "transformer_blocks.0.norm1.emb"
    copy(model.time.up, f"{embedding}.timestep_embedder.linear_1")
    copy(model.time.down, f"{embedding}.timestep_embedder.linear_2")
    assert model.vector is not None
    model.vector.weight.data.copy_(source[f"{embedding}.class_embedder.embedding_table.weight"].t())
    nn.init.zeros_(model.vector.bias)
    for i, block in enumerate(model.blocks):
        assert isinstance(block, DiTBlock)
        name = f"transformer_blocks.{i}"
        copy(block.modulation, f"{name}.norm1.linear")
        copy(block.attention.qkv, *(f"{name}.attn1.to_{part}" for part in "qkv"))
        copy(block.attention.out, f"{name}.attn1.to_out.0")
        copy(block.mlp.up, f"{name}.ff.net.0.proj")
        copy(block.mlp.down, f"{name}.ff.net.2")
    copy(model.modulation, "proj_out_1")
    copy(model.head, "proj_out_2")


def test_prior() -> None:
    torch.manual_seed(0)
    reference = diffusers.PriorTransformer(
        num_attention_heads=1,
        attention_head_dim=48,
        num_layers=2,
        embedding_dim=12,
        num_embeddings=5,
        additional_embeddings=4,
    ).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.1)
    model = DiffusionPrior(12, 12, 5, 48, 2).eval()
    _copy_prior(reference, model)
    x, text, tokens = torch.randn(2, 12), torch.randn(2, 12), torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    time = torch.tensor([20, 700])
    with torch.no_grad():
        expected = reference(x, time, text, tokens, mask).predicted_image_embedding
        condition = PriorCondition(
            Tokens(tokens, sequence_positions(tokens), valid=mask), text, torch.ones(2) > 0
        )
        found = model(x, time.float(), condition)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def _copy_prior(reference: nn.Module, model: DiffusionPrior) -> None:
    """Copy the weights of diffusers' prior."""
    source = reference.state_dict()

    def copy(layer: nn.Module, *names: str) -> None:
        for kind in ("weight", "bias"):
            value = torch.cat([source[f"{name}.{kind}"] for name in names])
            layer.get_parameter(kind).data.copy_(value)

    copy(model.text_projection, "encoder_hidden_states_proj")
    copy(model.text_embedding_projection, "embedding_proj")
    copy(model.image_projection, "proj_in")
    copy(model.time.up, "time_embedding.linear_1")
    copy(model.time.down, "time_embedding.linear_2")
    copy(model.out, "proj_to_clip_embeddings")
    copy(model.trunk.final_norm, "norm_out")
    model.query.data.copy_(source["prd_embedding"].flatten())
    model.positions.data.copy_(source["positional_embedding"][0])
    for i, block in enumerate(model.trunk.block_list()):
        name = f"transformer_blocks.{i}"
        copy(block.norm, f"{name}.norm1")
        copy(block.mlp_norm, f"{name}.norm3")
        copy(block.attention.qkv, *(f"{name}.attn1.to_{part}" for part in "qkv"))
        copy(block.attention.out, f"{name}.attn1.to_out.0")
        copy(block.mlp.get_submodule("up"), f"{name}.ff.net.0.proj")
        copy(block.mlp.get_submodule("down"), f"{name}.ff.net.2")
