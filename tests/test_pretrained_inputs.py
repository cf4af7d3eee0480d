"""Folders of pretrained weights as they are found: halves, prefixes, unsupported architectures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.parity import assert_close, randomize_weights
from safetensors.torch import load_file, save_file

from sensorium.errors import SensoriumError
from sensorium.io.pickles import convert_checkpoint
from sensorium.io.wrapper_prefixes import strip_wrapper_prefixes
from sensorium.nn.tokens import l2_normalize
from sensorium.pretrained.generate_text import find_stop_ids, prompt_preprocessing
from sensorium.pretrained.load import load_pretrained_model
from sensorium.pretrained.tensor_source import LazyTensors
from sensorium.pretrained.transcribe import load_transcript_prompt
from sensorium.pretrained.weight_files import WeightFiles, open_weights

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = SIZES | {"image_size": 16, "patch_size": 4}
TEXT = SIZES | {"vocab_size": 50, "max_position_embeddings": 9}
BOTH = {"vision_config": VISION, "text_config": TEXT}
CLIP_TEXT = TEXT | {"eos_token_id": 49, "bos_token_id": 48}
HALVES: dict[str, tuple[dict[str, Any], str]] = {
    "CLIPVisionModel": (VISION, "pooler_output"),
    "CLIPVisionModelWithProjection": (VISION | {"projection_dim": 8}, "image_embeds"),
    "CLIPTextModel": (CLIP_TEXT, "pooler_output"),
    "CLIPTextModelWithProjection": (CLIP_TEXT | {"projection_dim": 8}, "text_embeds"),
    "SiglipVisionModel": (VISION, "pooler_output"),
    "SiglipTextModel": (TEXT | {"projection_size": 24}, "pooler_output"),
}
UNEVEN = VISION | {"image_size": 30, "patch_size": 7}


def build(class_name: str, settings: dict[str, Any]) -> Any:
    model_class = getattr(transformers, class_name)
    return randomize_weights(model_class(model_class.config_class(**settings)))


def rename_tensors(folder: Path, rename: Any) -> None:
    """Save a folder's weights under other names."""
    path = folder / "model.safetensors"
    tensors = {rename(name): value.clone() for name, value in load_file(path).items()}
    path.unlink()
    save_file(tensors, path, {"format": "pt"})


def inputs_of(kind: str, size: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if kind == "image":
        return {"pixel_values": torch.randn(3, 3, size, size, generator=generator)}
    ids = torch.randint(2, 48, (3, 9), generator=generator)
    ids[:, -1] = 49
    ids[1, 5] = 49
    return {"input_ids": ids}


@pytest.mark.parametrize("is_old", [False, True], ids=["transformers 5", "transformers 4"])
@pytest.mark.parametrize("class_name", HALVES)
def test_half_of_a_dual_encoder_matches_reference(
    class_name: str, is_old: bool, tmp_path: Path
) -> None:
    settings, output = HALVES[class_name]
    kind = "image" if "Vision" in class_name else "text"
    reference = build(class_name, settings)
    reference.save_pretrained(tmp_path)
    prefix = "vision_model." if kind == "image" else "text_model."
    if is_old and "WithProjection" not in class_name:
        rename_tensors(tmp_path, lambda name: prefix + name)
    inputs = inputs_of(kind)
    expected = l2_normalize(reference(**inputs)[output]).detach()
    module: Any = load_pretrained_model(tmp_path).module
    assert list(module) == [kind]
    assert_close(module[kind](next(iter(inputs.values()))), expected)


def test_half_without_its_projection_is_refused(tmp_path: Path) -> None:
    build("CLIPVisionModelWithProjection", VISION).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {k: v.clone() for k, v in load_file(path).items() if "visual_projection" not in k}
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(SensoriumError, match=r"visual_projection\.weight"):
        load_pretrained_model(tmp_path)


@pytest.mark.parametrize("class_name", ["CLIPModel", "CLIPVisionModel"])
def test_unknown_tensor_is_refused_by_name(class_name: str, tmp_path: Path) -> None:
    settings = BOTH | {"projection_dim": 8} if class_name == "CLIPModel" else VISION
    build(class_name, settings).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {k: v.clone() for k, v in load_file(path).items()} | {"extra.w": torch.zeros(2)}
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(SensoriumError, match=r"extra\.w"):
        load_pretrained_model(tmp_path)


def test_backbone_refuses_a_tensor_that_it_does_not_use(tmp_path: Path) -> None:
    build("RobertaModel", TEXT | {"max_position_embeddings": 20}).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    tensors["text_projection.weight"] = torch.zeros(8, 32)
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(SensoriumError, match=r"text_projection\.weight"):
        load_pretrained_model(tmp_path)


RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
BLIP_TEXT = TEXT | {"encoder_hidden_size": 32, "projection_dim": 8}
UNSUPPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip2": ("Siglip2Model", BOTH),
    "chinese_clip": ("ChineseCLIPModel", BOTH | {"projection_dim": 8}),
    "blip": ("BlipModel", {"vision_config": VISION, "text_config": BLIP_TEXT}),
    "resnet": ("ResNetModel", RESNET),
    "resnet classifier": ("ResNetForImageClassification", RESNET),
    "bart": (
        "BartModel",
        {"vocab_size": 50, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
        | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 9}
        | {"encoder_ffn_dim": 40, "decoder_ffn_dim": 40},
    ),
    "siglip2 vision": ("Siglip2VisionModel", SIZES | {"patch_size": 4, "num_patches": 16}),
    "chinese_clip vision": ("ChineseCLIPVisionModel", VISION),
    "wav2vec2": (
        "Wav2Vec2Model",
        SIZES
        | {"vocab_size": 20, "conv_dim": (8, 8), "conv_stride": (2, 2)}
        | {"conv_kernel": (3, 3), "num_feat_extract_layers": 2}
        | {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_architecture_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    class_name, settings = UNSUPPORTED[name]
    build(class_name, settings).save_pretrained(tmp_path)
    with pytest.raises(SensoriumError) as caught:
        load_pretrained_model(tmp_path)
    assert name.split()[0] in str(caught.value)
    assert "\n" not in str(caught.value)


PREFIXES = ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["clip", "gpt2", "roberta"])
def test_prefixes_of_wrappers_are_stripped(name: str, prefix: str, tmp_path: Path) -> None:
    class_name, settings = {
        "clip": ("CLIPModel", BOTH | {"projection_dim": 8}),
        "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50}),
        "roberta": ("RobertaModel", TEXT | {"max_position_embeddings": 20}),
    }[name]
    build(class_name, settings).save_pretrained(tmp_path)
    expected = load_pretrained_model(tmp_path).module.state_dict()
    rename_tensors(tmp_path, lambda name: prefix + name)
    actual = load_pretrained_model(tmp_path).module.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_converted_checkpoint_has_no_prefixes_of_wrappers(prefix: str, tmp_path: Path) -> None:
    torch.save(
        {f"{prefix}a.weight": torch.ones(2), f"{prefix}b": torch.zeros(1)}, tmp_path / "x.pt"
    )
    result = convert_checkpoint(tmp_path / "x.pt")
    assert set(open_weights(result.path).tensors) == {"a.weight", "b"}


def test_prefix_that_not_all_names_have_is_kept() -> None:
    names = {"module.a": 1, "b": 2}
    assert strip_wrapper_prefixes(names) == names
    assert strip_wrapper_prefixes({"model.a": 1, "model.b": 2}) == {"model.a": 1, "model.b": 2}


UNEVEN_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTModel", UNEVEN),
    "clip": ("CLIPVisionModelWithProjection", UNEVEN | {"projection_dim": 8}),
    "siglip": ("SiglipVisionModel", UNEVEN),
    "dinov2": ("Dinov2Model", UNEVEN),
}


@pytest.mark.parametrize("name", UNEVEN_MODELS)
def test_pixels_that_make_no_whole_patch_are_dropped(name: str, tmp_path: Path) -> None:
    class_name, settings = UNEVEN_MODELS[name]
    reference = build(class_name, settings)
    reference.save_pretrained(tmp_path)
    inputs = inputs_of("image", 30)
    output = reference(**inputs)
    expected = {
        "vit": lambda: output.last_hidden_state[:, 0],
        "clip": lambda: output.image_embeds,
        "siglip": lambda: output.pooler_output,
        "dinov2": lambda: output.last_hidden_state.mean(1),
    }[name]()
    module: Any = load_pretrained_model(tmp_path).module
    assert_close(module["image"](inputs["pixel_values"]), l2_normalize(expected).detach())


def whisper_files(folder: Path, config: dict[str, Any], generation: Any) -> WeightFiles:
    """Opened files of a Whisper with a small tokenizer."""
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a"))
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {"tokenizer.json": folder / "tokenizer.json"}
    if generation is not None:
        files["generation_config.json"] = folder / "generation_config.json"
        files["generation_config.json"].write_text(json.dumps(generation))
    return WeightFiles(folder, LazyTensors({}), config, files)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"suppress_tokens": []}, {"suppress_tokens": [3, 5]}, (3, 5)),
        ({"suppress_tokens": [7]}, {"suppress_tokens": [3, 5]}, (3, 5)),
        ({"suppress_tokens": [7]}, {"suppress_tokens": []}, ()),
        ({"suppress_tokens": [7]}, {"suppress_tokens": None}, (7,)),
        ({"suppress_tokens": [7]}, {}, (7,)),
        ({"suppress_tokens": [7]}, None, (7,)),
        ({"suppress_ids": [], "suppress_tokens": [9]}, None, ()),
        ({"suppress_ids": [8]}, None, (8,)),
        ({}, None, ()),
    ],
)
def test_suppressed_tokens_are_those_of_the_generation_config(
    config: dict[str, Any], generation: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    text = load_transcript_prompt(whisper_files(tmp_path, config, generation), 20)
    assert text is not None
    assert text.suppressed_tokens == expected


def test_first_suppressed_tokens_are_found_likewise(tmp_path: Path) -> None:
    config, generation = {"begin_suppress_tokens": []}, {"begin_suppress_tokens": [4]}
    text = load_transcript_prompt(whisper_files(tmp_path, config, generation), 20)
    assert text is not None
    assert text.begin_suppressed_tokens == (4,)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (2, None, (2,)),
        (2, {}, (2,)),
        (2, {"eos_token_id": None}, (2,)),
        (2, {"eos_token_id": 5}, (5,)),
        (2, {"eos_token_id": [5, 2]}, (2, 5)),
        ([3, 4], {"eos_token_id": [4, 7]}, (4, 7)),
        (None, {"eos_token_id": 0}, (0,)),
        (None, None, ()),
    ],
)
def test_stop_ids_are_those_of_the_generation_config(
    config: Any, generation: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    files = whisper_files(tmp_path, {}, generation)
    assert find_stop_ids(files, config) == expected
    text = prompt_preprocessing(files, 20, config)["text"]
    assert vars(text)["stop_ids"] == expected


@pytest.mark.parametrize("value", ["</s>", [1, "2"], -1, True, 1.5])
def test_stop_ids_of_another_type_are_refused(value: Any, tmp_path: Path) -> None:
    files = whisper_files(tmp_path, {}, {"eos_token_id": value})
    with pytest.raises(SensoriumError, match=r"generation_config.json sets eos_token_id="):
        find_stop_ids(files, 2)


@pytest.mark.parametrize("value", ["all", [1, "2"], [-1], 5])
def test_suppressed_tokens_of_another_type_are_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="suppress_tokens"):
        load_transcript_prompt(whisper_files(tmp_path, {}, {"suppress_tokens": value}), 20)
