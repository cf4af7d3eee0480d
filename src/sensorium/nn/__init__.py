"""Neural network building blocks: tokens, attention, transformers, fusion and quantizers."""

from sensorium.nn.attention import (
    Attention,
    AttentionContext,
    CrossAttention,
    PositionEncoding,
    attention_context,
)
from sensorium.nn.conv1d import Convolutions
from sensorium.nn.decoder_block import DecoderBlock
from sensorium.nn.denoising import Channels, Conditioning, Denoiser
from sensorium.nn.dit import DiT
from sensorium.nn.fusion import FUSIONS
from sensorium.nn.kv_cache import KVCache
from sensorium.nn.linear import Linear
from sensorium.nn.positional import RelativeBias, Rotary, sinusoidal_positions
from sensorium.nn.projection import (
    PROJECTIONS,
    LinearProjection,
    MLPProjection,
    TokenAndGlobalProjection,
)
from sensorium.nn.recurrent import Recurrent
from sensorium.nn.resampler import Resampler
from sensorium.nn.resnet import ResNet
from sensorium.nn.sdpa import attend, self_attend
from sensorium.nn.stochastic_depth import StochasticDepth, set_stochastic_depth
from sensorium.nn.tokens import (
    CAUSAL,
    Batch,
    ColumnKey,
    Order,
    Tokens,
    grid_positions,
    join,
    make_causal,
    mean_pool,
    sequence_positions,
)
from sensorium.nn.transformer import (
    Block,
    FeedForward,
    GatedCrossAttention,
    GatedFeedForward,
    PostNormBlock,
    Transformer,
    build_transformer,
    num_heads,
)
from sensorium.nn.unet import UNet
from sensorium.nn.vector_quantize import FSQ, VQ, GumbelQuantizer, Quantizer, QuantizerOutput

__all__ = [
    "CAUSAL",
    "FSQ",
    "FUSIONS",
    "PROJECTIONS",
    "VQ",
    "Attention",
    "AttentionContext",
    "Batch",
    "Block",
    "Channels",
    "ColumnKey",
    "Conditioning",
    "Convolutions",
    "CrossAttention",
    "DecoderBlock",
    "Denoiser",
    "DiT",
    "FeedForward",
    "GatedCrossAttention",
    "GatedFeedForward",
    "GumbelQuantizer",
    "KVCache",
    "Linear",
    "LinearProjection",
    "MLPProjection",
    "Order",
    "PositionEncoding",
    "PostNormBlock",
    "Quantizer",
    "QuantizerOutput",
    "Recurrent",
    "RelativeBias",
    "ResNet",
    "Resampler",
    "Rotary",
    "StochasticDepth",
    "TokenAndGlobalProjection",
    "Tokens",
    "Transformer",
    "UNet",
    "attend",
    "attention_context",
    "build_transformer",
    "grid_positions",
    "join",
    "make_causal",
    "mean_pool",
    "num_heads",
    "self_attend",
    "sequence_positions",
    "set_stochastic_depth",
    "sinusoidal_positions",
]
