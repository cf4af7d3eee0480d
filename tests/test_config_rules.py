"""Configs of pretrained models: every key is followed, known to be unused, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.parity import assert_close, load_ours, randomize_weights
from safetensors.torch import save_file
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.nn.tokens import Batch
from sensorium.pretrained import bert, clip, gpt2, llama, siglip, t5, vit, whisper
from sensorium.pretrained.config_rules import ConfigRules
from sensorium.pretrained.load import load_pretrained_model

transformers = pytest.importorskip("transformers")
RULES: list[tuple[str, ConfigRules]] = [
    ("GPT2Config", gpt2.CONFIG_RULES),
    ("LlamaConfig", llama.CONFIG_RULES),
    ("MistralConfig", llama.CONFIG_RULES),
    ("Qwen2Config", llama.CONFIG_RULES),
    ("WhisperConfig", whisper.CONFIG_RULES),
    ("BertConfig", bert.CONFIG_RULES),
    ("T5Config", t5.CONFIG_RULES),
    ("ViTConfig", vit.CONFIG_RULES),
    ("CLIPVisionConfig", clip.VISION_RULES),
    ("CLIPTextConfig", clip.TEXT_RULES),
    ("CLIPConfig", clip.EMBED_RULES),
    ("SiglipVisionConfig", siglip.VISION_RULES),
    ("SiglipTextConfig", siglip.TEXT_RULES),
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = SIZES | {"image_size": 16, "patch_size": 4}
TEXT = SIZES | {"vocab_size": 50, "max_position_embeddings": 9}
GPT2_SIZES = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 16, "vocab_size": 61}
LLAMA_SIZES = TEXT | {"num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0}
WHISPER_SIZES = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "vocab_size": 61,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 24,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    "begin_suppress_tokens": None,
}
T5_SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", GPT2_SIZES),
    "llama": ("LlamaForCausalLM", LLAMA_SIZES),
    "bert": ("BertModel", TEXT),
    "t5": ("T5EncoderModel", T5_SIZES),
    "vit": ("ViTModel", VISION),
    "clip": ("CLIPModel", {"vision_config": VISION, "text_config": TEXT, "projection_dim": 8}),
    "clip text": ("CLIPTextModel", TEXT),
    "siglip": ("SiglipModel", {"vision_config": VISION, "text_config": TEXT}),
    "whisper": ("WhisperForConditionalGeneration", WHISPER_SIZES),
    "roberta": ("RobertaModel", TEXT | {"max_position_embeddings": 20}),
    "dinov2": ("Dinov2Model", VISION),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny folder of each model."""
    root = tmp_path_factory.mktemp("models")
    for name, (class_name, settings) in MODELS.items():
        model_class = getattr(transformers, class_name)
        model_class(model_class.config_class(**settings)).save_pretrained(root / name)
    return {name: root / name for name in MODELS}


def changed_copy(folder: Path, target: Path, changes: dict[str, Any]) -> Path:
    """Copy a folder with changes of its config; "a.b" names a key of a section."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = config
        for section in sections:
            place = place[section]
        place[name] = value
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(("config_class", "rules"), RULES, ids=[name for name, _ in RULES])
def test_all_keys_of_the_config_class_are_known(config_class: str, rules: ConfigRules) -> None:
    config = getattr(transformers, config_class)().to_dict()
    known = rules.known_keys | {"vision_config", "text_config", "_name_or_path"}
    assert config.keys() - known == set()


@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_refusal_tests_load(name: str, folders: dict[str, Path]) -> None:
    load_pretrained_model(folders[name])


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gpt2", "add_cross_attention", True),
        ("gpt2", "activation_function", "sin"),
        ("gpt2", "quantization_config", {"quant_method": "gptq"}),
        ("llama", "hidden_act", "sin"),
        ("llama", "attn_logit_softcapping", 50.0),
        ("llama", "layer_types", ["sliding_attention", "full_attention"]),
        ("llama", "rope_parameters", {"rope_type": "yarn", "factor": 4.0}),
        ("llama", "rope_parameters", {"rope_type": "linear"}),
        ("llama", "rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("bert", "is_decoder", True),
        ("bert", "position_embedding_type", "relative_key"),
        ("t5", "is_decoder", True),
        ("t5", "feed_forward_proj", "gated-sin"),
        ("vit", "qkv_bias", False),
        ("vit", "num_channels", 1),
        ("clip", "vision_config.num_channels", 4),
        ("clip", "text_config.hidden_act", "sin"),
        ("siglip", "vision_config.vision_use_head", False),
        ("whisper", "scale_embedding", True),
        ("dinov2", "num_channels", 4),
        ("roberta", "quantization_config", {"quant_method": "gptq"}),
    ],
)
def test_key_that_changes_the_output_is_refused_by_name(
    name: str, key: str, value: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed_copy(folders[name], tmp_path / "changed", {key: value})
    with pytest.raises(SensoriumError) as caught:
        load_pretrained_model(folder)
    message = str(caught.value)
    wanted = str(value) if isinstance(value, str) else key.rpartition(".")[2]
    is_named = wanted.rpartition("-")[2] in message or "positions by" in message
    assert is_named or "rotates a part" in message
    assert "\n" not in message


@pytest.mark.parametrize("value", [2**31, 10**9, 0, -1, "big", 1.5, True, [32], {"a": 1}])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("gpt2", "n_embd"),
        ("gpt2", "n_layer"),
        ("gpt2", "n_head"),
        ("gpt2", "n_positions"),
        ("llama", "hidden_size"),
        ("llama", "num_hidden_layers"),
        ("llama", "num_attention_heads"),
        ("llama", "num_key_value_heads"),
        ("llama", "vocab_size"),
        ("bert", "hidden_size"),
        ("bert", "num_hidden_layers"),
        ("bert", "max_position_embeddings"),
        ("t5", "d_model"),
        ("t5", "num_heads"),
        ("t5", "relative_attention_num_buckets"),
        ("vit", "patch_size"),
        ("vit", "image_size"),
        ("clip", "vision_config.hidden_size"),
        ("clip", "text_config.num_hidden_layers"),
        ("clip", "projection_dim"),
        ("clip text", "num_attention_heads"),
        ("siglip", "vision_config.image_size"),
        ("siglip", "text_config.vocab_size"),
        ("whisper", "d_model"),
        ("whisper", "decoder_layers"),
        ("roberta", "hidden_size"),
        ("roberta", "num_hidden_layers"),
        ("roberta", "num_attention_heads"),
        ("dinov2", "hidden_size"),
        ("dinov2", "num_hidden_layers"),
    ],
)
def test_size_out_of_range_is_refused_before_the_model_is_built(
    name: str, key: str, value: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed_copy(folders[name], tmp_path / "changed", {key: value})
    with pytest.raises(SensoriumError) as caught:
        load_pretrained_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gpt2", "layer_norm_epsilon", "small"),
        ("llama", "rms_norm_eps", -1),
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": "big"}),
        ("llama", "hidden_act", 7),
        ("clip", "vision_config", "big"),
        ("clip", "text_config.eos_token_id", [1, 2]),
        ("vit", "id2label", {"LABEL_0": 0}),
        ("roberta", "vocab_size", "many"),
    ],
)
def test_value_of_another_type_is_refused(
    name: str, key: str, value: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed_copy(folders[name], tmp_path / "changed", {key: value})
    with pytest.raises(SensoriumError) as caught:
        load_pretrained_model(folder)
    assert "\n" not in str(caught.value)


def test_model_far_larger_than_its_files_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "vit", "image_size": 100_000, "patch_size": 1, "hidden_size": 2048}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    tensors = {f"layer.{i}": torch.zeros(2048, 4) for i in range(12)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SensoriumError, match="parameters, but the files hold"):
        load_pretrained_model(tmp_path)


def logits(module: Any, ids: Tensor) -> Tensor:
    return module.heads["text"](module(Batch({"text": ids}))["text"].x)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt2", {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"activation_function": "swish"}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
        ("llama", {"hidden_act": "relu"}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
    ],
)
def test_key_that_is_followed_gives_the_logits_of_the_reference(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    class_name, settings = MODELS[name]
    model_class = getattr(transformers, class_name)
    reference = randomize_weights(model_class(model_class.config_class(**settings, **changes)))
    reference.save_pretrained(tmp_path)
    ids = torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    family = gpt2.GPT2 if name == "gpt2" else llama.LLAMA
    assert_close(logits(load_ours(family, tmp_path)[0], ids), reference(input_ids=ids).logits)
