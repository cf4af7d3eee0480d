"""Export of a clip run as a CLIP model of Hugging Face transformers or of OpenCLIP."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from sensorium.errors import SensoriumError, require_type
from sensorium.io import atomic
from sensorium.io.tensors import save_tensors
from sensorium.modalities.image import Image, PatchEmbedding
from sensorium.modalities.subword_bag import SubwordBagEmbedding
from sensorium.modalities.text import Text
from sensorium.models.towers import Encoder, Towers
from sensorium.nn.transformer import Block, FeedForward, Transformer
from sensorium.pretrained.clip import CLIP
from sensorium.pretrained.family import PretrainedFamily
from sensorium.pretrained.image_processor import RESAMPLE_NAMES
from sensorium.pretrained.open_clip import OPEN_CLIP
from sensorium.pretrained.trunk import QuickGELU
from sensorium.pretrained.weight_mapping import export_from
from sensorium.training.checkpoint import Model

MAX_VECTOR_ERROR = 1e-4  # between the unit-length embeddings of the run and of its export


@dataclass(frozen=True)
class CLIPExport:
    """Two towers in the layout of CLIP.

    Attributes:
        module: the towers "image" and "text".
        config: config.json of Hugging Face.
        image: settings of the images.
        text: settings of the texts.
        max_error: largest difference between its embeddings and those of the run.
    """

    module: Towers
    config: dict[str, Any]
    image: Image
    text: Text
    max_error: float


def build_clip(model: Model) -> CLIPExport:
    """Convert the towers of a run to the layout of CLIP.

    Raises:
        SensoriumError: where the model is no CLIP, or its embeddings would change.
    """
    towers = model.module
    columns = {type(model.schema[column]): column for column in model.recipe.data.columns}
    if not isinstance(towers, Towers) or set(columns) != {Image, Text}:
        raise SensoriumError(
            f"{model.folder} is not a pair of an image and a text encoder, which a CLIP export "
            "needs. Use --format onnx or torch."
        )
    towers = towers.renamed({columns[Image]: "image", columns[Text]: "text"})
    _check_layout(towers, model)
    image, text = model.schema[columns[Image]], model.schema[columns[Text]]
    image = require_type(image, Image)
    text = require_type(text, Text)
    exported_text = _move_end_token_last(text)
    config = _build_config(towers, image, exported_text)
    module = require_type(CLIP.build_module(config).eval(), Towers)
    _copy_weights(towers, module, model)
    with torch.no_grad():
        embedding = module.get_parameter("text.encoder.embed.token_embedding.weight")
        swapped = [text.end, exported_text.end]
        embedding[swapped] = embedding[swapped[::-1]].clone()
    max_error = _max_error(towers, module, image, text, exported_text)
    if max_error > MAX_VECTOR_ERROR:
        raise SensoriumError(
            f"The embeddings of {model.folder} would differ by {max_error:.2g} as a CLIP model, "
            f"more than {MAX_VECTOR_ERROR:.0e}. Nothing was written."
        )
    return CLIPExport(module, config, image, exported_text, max_error)


def write_hugging_face(clip: CLIPExport, out: Path) -> None:
    """Write a folder for CLIPModel, AutoTokenizer and CLIPImageProcessor of transformers."""
    _write_weights(clip, CLIP, clip.config, out / "model.safetensors")
    atomic.write_json(out / "config.json", clip.config)
    write_tokenizer(clip.text, out)
    atomic.write_json(out / "preprocessor_config.json", processor_config(clip.image))


def write_open_clip(clip: CLIPExport, out: Path) -> None:
    """Write a folder that OpenCLIP loads as local-dir:OUT: weights, preprocessing, tokenizer."""
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
    write_tokenizer(clip.text, out)


def _write_weights(
    clip: CLIPExport, family: PretrainedFamily, config: dict[str, Any], path: Path
) -> None:
    tensors = {
        name: value.contiguous()
        for name, value in export_from(clip.module, family.map_weights(config)).items()
    }
    atomic.write_file(path, partial(save_tensors, tensors, {"format": "pt"}))


def _check_layout(towers: Towers, model: Model) -> None:
    """Raise SensoriumError naming all parts that CLIP of transformers and OpenCLIP lacks."""
    unsupported: dict[str, str] = {}  # part -> the option that leaves it out
    if not isinstance(towers["image"].encoder.embed, PatchEmbedding):
        unsupported["an image encoder that is no vision transformer"] = "--image-encoder vit"
    if any(isinstance(module, SubwordBagEmbedding) for module in towers["text"].modules()):
        unsupported["subword features"] = "--no-subword-features"
    if unsupported:
        raise SensoriumError(
            f"{model.folder} has {' and '.join(unsupported)}, for which the CLIP of transformers "
            "and OpenCLIP has no place. Export it with --format onnx or torch, which keep them, or "
            f"train it with {' '.join(unsupported.values())}."
        )


def _build_config(towers: Towers, image: Image, text: Text) -> dict[str, Any]:
    """Return config.json of transformers' CLIPModel."""
    image_encoder, text_encoder = towers["image"].encoder, towers["text"].encoder
    patches = require_type(image_encoder.embed, PatchEmbedding)
    embed_dim = towers["image"].embed_dim
    vision_config = {
        **_encoder_sizes(image_encoder),
        "model_type": "clip_vision_model",
        "image_size": image.size,
        "patch_size": patches.patch_size,
        "projection_dim": embed_dim,
    }
    text_config = {
        **_encoder_sizes(text_encoder),
        "model_type": "clip_text_model",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.length,
        "bos_token_id": text.start,
        "eos_token_id": text.end,
        "pad_token_id": text.pad,
        "projection_dim": embed_dim,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "library_name": "transformers",
        "dtype": "float32",
        "projection_dim": embed_dim,
        "logit_scale_init_value": float(towers.logit_scale.detach()),
        "vision_config": vision_config,
        "text_config": text_config,
    }


def _encoder_sizes(encoder: Encoder) -> dict[str, Any]:
    trunk = require_type(encoder.trunk, Transformer)
    block = require_type(trunk.blocks[0], Block)
    mlp, norm = block.mlp, block.norm
    if not isinstance(mlp, FeedForward) or not isinstance(norm, nn.LayerNorm):
        raise SensoriumError(
            "The transformer blocks have another MLP or norm than CLIP's. "
            "Use --format onnx or torch."
        )
    quick = isinstance(mlp.act, QuickGELU)
    return {
        "hidden_size": mlp.up.in_features,
        "intermediate_size": mlp.up.out_features,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": block.attention.heads,
        "hidden_act": "quick_gelu" if quick else "gelu",
        "layer_norm_eps": norm.eps,
    }


def _copy_weights(source: nn.Module, target: nn.Module, model: Model) -> None:
    weights, expected = source.state_dict(), target.state_dict()
    unsupported = sorted(set(weights) ^ set(expected)) + [
        name for name in expected if name in weights and weights[name].shape != expected[name].shape
    ]
    if unsupported:
        raise SensoriumError(
            f"{model.folder} is not a plain CLIP model, which has no place for {unsupported[0]}. "
            f"It was trained with {model.config.keywords}. Use --format onnx or torch."
        )
    target.load_state_dict(weights)


def _move_end_token_last(text: Text) -> Text:
    """Return the text settings with the EOS token as the last id of the vocabulary.

    OpenCLIP pools a text at its highest id; so does transformers where the EOS id is 2.
    """
    if text.tokenizer is None:
        raise SensoriumError(
            "The run has no tokenizer, which a CLIP export needs. Use --format onnx or torch."
        )
    last = text.vocab_size - 1
    new_ids = {text.end: last, last: text.end}
    tokenizer = json.loads(text.tokenizer.to_str())
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: new_ids.get(i, i) for token, i in vocab.items()}
    tokenizer["added_tokens"] = sorted(
        (
            {**token, "id": new_ids.get(token["id"], token["id"])}
            for token in tokenizer["added_tokens"]
        ),
        key=lambda token: token["id"],
    )
    return replace(text, end=last, tokenizer=Tokenizer.from_str(json.dumps(tokenizer)))


@torch.inference_mode()
def _max_error(
    source: Towers, exported: Towers, image: Image, text: Text, exported_text: Text
) -> float:
    """Return the largest difference between the embeddings of both on example inputs."""
    rng = torch.Generator().manual_seed(0)
    images, ids = image.fake(4, rng), text.fake(4, rng)
    exported_ids = ids.clone()
    exported_ids[ids == text.end] = exported_text.end
    exported_ids[ids == exported_text.end] = text.end
    pairs: list[tuple[Tensor, Tensor]] = [
        (source["image"](images), exported["image"](images)),
        (source["text"](ids), exported["text"](exported_ids)),
    ]
    return max(float((a - b).abs().max()) for a, b in pairs)


def write_tokenizer(text: Text, out: Path) -> None:
    """Write tokenizer.json, which adds BOS and EOS tokens, and tokenizer_config.json."""
    tokenizer = Tokenizer.from_str(require_type(text.tokenizer, Tokenizer).to_str())
    eos, pad = tokenizer.id_to_token(text.end), tokenizer.id_to_token(text.pad)
    bos = None if text.start is None else tokenizer.id_to_token(text.start)
    tokenizer.post_processor = TemplateProcessing(
        single=["$A", eos] if bos is None else [bos, "$A", eos],
        special_tokens=[(eos, text.end)] if bos is None else [(bos, text.start), (eos, text.end)],
    )
    atomic.write_file(out / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    atomic.write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": text.length,
            "pad_token": pad,
            "eos_token": eos,
            **({} if bos is None else {"bos_token": bos}),
            "split_special_tokens": True,
        },
    )


def processor_config(image: Image) -> dict[str, Any]:
    """Return preprocessor_config.json of transformers' CLIPImageProcessor."""
    edge = max(image.shortest_edge, image.stored_size)  # before cropping
    stretched = image.resize_mode == "stretch"
    square = {"height": image.size, "width": image.size}
    filters = {name: number for number, name in RESAMPLE_NAMES.items()}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": filters[image.resample or "bicubic"],
        "size": {"height": edge, "width": edge} if stretched else {"shortest_edge": edge},
        "do_center_crop": not stretched or edge > image.size,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }
