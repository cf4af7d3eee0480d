"""A run of two plain towers as a CLIP that others load: Hugging Face's folder, OpenCLIP's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.modalities.image import Image, PatchEmbedding
from sensorium.modalities.text import Text
from sensorium.models.towers import Encoder, Towers
from sensorium.nn.transformer import FeedForward, Transformer
from sensorium.pretrained.clip import CLIP
from sensorium.pretrained.family import PretrainedFamily, export_from
from sensorium.pretrained.open_clip import OPEN_CLIP
from sensorium.pretrained.preprocessing import RESAMPLE_NAMES
from sensorium.pretrained.weight_mapping import QuickGELU
from sensorium.training.checkpoint import Model

MAX_VECTOR_ERROR = 1e-4  # of a unit vector, between ours and what is written


@dataclass(frozen=True)
class CLIPExport:
    """Two towers in CLIP's own layout, and what they read. `off`: how far its vectors are from the run's, at most."""

    module: Towers
    config: dict[str, Any]  # as Hugging Face writes it
    image: Image
    text: Text
    max_error: float


def build_clip(model: Model) -> CLIPExport:
    """The towers of a run as CLIP's. Raises SensoriumError saying what CLIP has no place for."""
    towers = model.module
    kinds = {type(model.schema[column]): column for column in model.recipe.data.columns}
    if not isinstance(towers, Towers) or set(kinds) != {Image, Text}:
        raise SensoriumError(
            f"{model.folder} is no pair of a picture and a text tower, which is what a CLIP is"
        )
    ours = towers.renamed({kinds[Image]: "image", kinds[Text]: "text"})
    image, text = model.schema[kinds[Image]], model.schema[kinds[Text]]
    assert isinstance(image, Image)
    assert isinstance(text, Text)
    read = _move_end_token_last(text)
    config = _build_config(ours, image, read)
    module = CLIP.build_module(config).eval()
    assert isinstance(module, Towers)
    _copy_weights(
        ours,
        module,
        f"{model.folder} was trained with {model.config.keywords}, which is no plain CLIP",
    )
    with torch.no_grad():
        rows = module.get_parameter("text.encode.embed.ids.weight")
        rows[[text.end, read.end]] = rows[[read.end, text.end]].clone()
    off = _max_error(ours, module, image, text, read)
    if off > MAX_VECTOR_ERROR:
        raise SensoriumError(
            f"as a CLIP the vectors of {model.folder} would be {off:.2g} off: nothing is written"
        )
    return CLIPExport(module, config, image, read, off)


def write_hugging_face(clip: CLIPExport, out: Path) -> None:
    """Write what transformers' CLIPModel, AutoTokenizer and CLIPImageProcessor load."""
    _write_weights(clip, CLIP, clip.config, out / "model.safetensors")
    atomic.write_json(out / "config.json", clip.config)
    _write_tokenizer(clip.text, out)
    atomic.write_json(out / "preprocessor_config.json", _processor_config(clip.image))


def write_open_clip(clip: CLIPExport, out: Path) -> None:
    """Write what open_clip loads from local-dir:OUT, weights, pictures and tokenizer."""
    vision, text = clip.config["vision_config"], clip.config["text_config"]
    config = {
        "model_cfg": {
            "embed_dim": clip.config["projection_dim"],
            "quick_gelu": vision["hidden_act"] == "quick_gelu",
            "vision_cfg": {
                "image_size": vision["image_size"],
                "layers": vision["num_hidden_layers"],
                "width": vision["hidden_size"],
                "patch_size": vision["patch_size"],
                "head_width": vision["hidden_size"] // vision["num_attention_heads"],
                "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            },
            "text_cfg": {
                "context_length": text["max_position_embeddings"],
                "vocab_size": text["vocab_size"],
                "width": text["hidden_size"],
                "heads": text["num_attention_heads"],
                "layers": text["num_hidden_layers"],
                "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
                "hf_tokenizer_name": ".",
            },
        },
        "preprocess_cfg": {
            "mean": list(clip.image.mean),
            "std": list(clip.image.std),
            "interpolation": clip.image.resample or "bicubic",
            "resize_mode": "squash" if clip.image.resize_mode == "stretch" else "shortest",
        },
    }
    _write_weights(clip, OPEN_CLIP, config, out / "open_clip_model.safetensors")
    atomic.write_json(out / "open_clip_config.json", config)
    _write_tokenizer(clip.text, out)


def _write_weights(
    clip: CLIPExport, family: PretrainedFamily, config: dict[str, Any], path: Path
) -> None:
    theirs = {
        name: value.contiguous()
        for name, value in export_from(clip.module, family.map_weights(config)).items()
    }
    atomic.write_file(path, lambda to: save_file(theirs, to, {"format": "pt"}))


def _build_config(towers: Towers, image: Image, text: Text) -> dict[str, Any]:
    eye, voice = towers["image"].encoder, towers["text"].encoder
    if not isinstance(eye.embed, PatchEmbedding):
        raise SensoriumError(
            "its picture tower is no vision transformer (train with tower=vit), and CLIP's is one"
        )
    vision = {
        **_encoder_sizes(eye),
        "model_type": "clip_vision_model",
        "image_size": image.size,
        "patch_size": eye.embed.patch_size,
    }
    words = {
        **_encoder_sizes(voice),
        "model_type": "clip_text_model",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.length,
        "bos_token_id": text.start,
        "eos_token_id": text.end,
        "pad_token_id": text.pad,
    }
    out = towers["image"].embed_dim
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "library_name": "transformers",
        "dtype": "float32",
        "projection_dim": out,
        "logit_scale_init_value": float(towers.logit_scale.detach()),
        "vision_config": {**vision, "projection_dim": out},
        "text_config": {**words, "projection_dim": out},
    }


def _encoder_sizes(encoder: Encoder) -> dict[str, Any]:
    assert isinstance(encoder.trunk, Transformer)
    block = encoder.trunk.blocks[0]
    mlp, attention, norm = (getattr(block, name) for name in ("mlp", "attention", "norm"))
    if not isinstance(mlp, FeedForward) or not isinstance(norm, nn.LayerNorm):
        raise SensoriumError("its blocks are not CLIP's: they think or norm in another way")
    quick = isinstance(mlp.act, QuickGELU)
    return {
        "hidden_size": mlp.up.in_features,
        "intermediate_size": mlp.up.out_features,
        "num_hidden_layers": len(encoder.trunk.blocks),
        "num_attention_heads": attention.heads,
        "hidden_act": "quick_gelu" if quick else "gelu",
        "layer_norm_eps": norm.eps,
    }


def _copy_weights(source: nn.Module, target: nn.Module, reason: str) -> None:
    held, wanted = source.state_dict(), target.state_dict()
    odd = sorted(set(held) ^ set(wanted)) + [
        k for k in wanted if k in held and held[k].shape != wanted[k].shape
    ]
    if odd:
        raise SensoriumError(f"{reason}: it has no place for {odd[0]}")
    target.load_state_dict(held)


def _move_end_token_last(text: Text) -> Text:
    """The same words with the end as the last id of the vocabulary.

    OpenCLIP reads a text where its highest id stands, and so does transformers where the end is said to be 2.
    """
    if text.tokenizer is None:
        raise SensoriumError("the run has no tokenizer to give along")
    last = text.vocab_size - 1
    told = json.loads(text.tokenizer.to_str())
    vocab, number = told["model"]["vocab"], {text.end: last, last: text.end}
    told["model"]["vocab"] = {token: number.get(i, i) for token, i in vocab.items()}
    told["added_tokens"] = sorted(
        ({**token, "id": number.get(token["id"], token["id"])} for token in told["added_tokens"]),
        key=lambda token: token["id"],
    )
    return replace(text, end=last, tokenizer=Tokenizer.from_str(json.dumps(told)))


@torch.inference_mode()
def _max_error(
    source: Towers, exported: Towers, image: Image, text: Text, exported_text: Text
) -> float:
    rng = torch.Generator().manual_seed(0)
    pictures, ids = image.fake(4, rng), text.fake(4, rng)
    swapped = ids.clone()
    swapped[ids == text.end], swapped[ids == exported_text.end] = exported_text.end, text.end
    pairs: list[tuple[Tensor, Tensor]] = [
        (source["image"](pictures), exported["image"](pictures)),
        (source["text"](ids), exported["text"](swapped)),
    ]
    return max(float((a - b).abs().max()) for a, b in pairs)


def _write_tokenizer(text: Text, out: Path) -> None:
    """tokenizer.json with a start, an end and padding of its own; and how transformers is to hold it."""
    assert text.tokenizer is not None
    tokenizer = Tokenizer.from_str(text.tokenizer.to_str())
    start, end, pad = (tokenizer.id_to_token(i) for i in (text.start or 0, text.end, text.pad))
    before = [] if text.start is None else [(start, text.start)]
    tokenizer.post_processor = TemplateProcessing(
        single=[*(token for token, _ in before), "$A", end],
        special_tokens=[*before, (end, text.end)],
    )
    atomic.write_file(out / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    atomic.write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": text.length,
            "pad_token": pad,
            "eos_token": end,
            **({"bos_token": start} if before else {}),
            "split_special_tokens": True,
        },
    )


def _processor_config(image: Image) -> dict[str, Any]:
    edge, stretched = image.shortest_edge or image.size, image.resize_mode == "stretch"
    filters = {name: number for number, name in RESAMPLE_NAMES.items()}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": filters[image.resample or "bicubic"],
        "size": {"height": image.size, "width": image.size}
        if stretched
        else {"shortest_edge": edge},
        "do_center_crop": not stretched,
        "crop_size": {"height": image.size, "width": image.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }
