"""Check a config before a model is built: sizes, numbers, and settings that are not supported.

A key of a config is read by its family, is fixed to the values that the family implements, or
changes no output. `ConfigRules` lists the first two; UNUSED_KEYS and `ConfigRules.unused` the
third.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.pretrained.weight_files import WeightFiles

MAX_LENGTH = 2**31 - 1  # of a text in tokens, which need not be an axis of a tensor
NEUTRAL = (None, False, 0, 0.0, "", [], {})
# Keys that are never followed, and the values that ask for nothing.
FIXED_KEYS: dict[str, Sequence[Any]] = {"quantization_config": NEUTRAL, "num_channels": (3,)}
# Keys of related architectures, which no family here has.
FOREIGN_KEYS: dict[str, Sequence[Any]] = {
    "attn_logit_softcapping": NEUTRAL,
    "final_logit_softcapping": NEUTRAL,
    "query_pre_attn_scalar": NEUTRAL,
    "embedding_multiplier": (*NEUTRAL, 1),
    "residual_multiplier": (*NEUTRAL, 1),
    "attention_multiplier": NEUTRAL,
    "logits_scaling": (*NEUTRAL, 1),
    "clip_qkv": NEUTRAL,
    "partial_rotary_factor": (None, 1),
    "rope_interleaved": NEUTRAL,
    "no_rope_layers": NEUTRAL,
    "use_qk_norm": NEUTRAL,
    "num_experts": NEUTRAL,
    "num_local_experts": NEUTRAL,
}
UNUSED_KEYS = frozenset(  # training, memory and bookkeeping
    {
        "architectures",
        "model_type",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "use_cache",
        "id2label",
        "label2id",
        "problem_type",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "initializer_range",
        "initializer_factor",
        "attention_dropout",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "tie_word_embeddings",
    }
)


@dataclass(frozen=True)
class ConfigRules:
    """What a family reads of a config.

    Attributes:
        sizes: Axes of tensors -> their default; None: the key may be missing or null.
        layers: Numbers of layers -> their default, likewise.
        heads: Numbers of attention heads -> the key that they divide ("": none) and their default.
        lengths: Whole numbers that are no axis of a tensor -> their default, likewise.
        numbers: Positive numbers -> their default.
        names: Names of activations and the like -> their default.
        fixed: Other keys -> the supported values; a missing key is supported.
        unused: Other keys that change no output.
        refuses_foreign: Refuse the keys of related architectures.
    """

    sizes: Mapping[str, int | None] = field(default_factory=dict)
    layers: Mapping[str, int | None] = field(default_factory=dict)
    heads: Mapping[str, tuple[str, int | None]] = field(default_factory=dict)
    lengths: Mapping[str, int | None] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    refuses_foreign: bool = True

    @property
    def defaults(self) -> dict[str, Any]:
        """Return the default of each key that has one."""
        parts = (
            self.sizes,
            self.layers,
            {key: default for key, (_, default) in self.heads.items()},
            self.lengths,
            self.numbers,
            self.names,
        )
        return {key: value for part in parts for key, value in part.items() if value is not None}

    @property
    def known_keys(self) -> set[str]:
        """Return every key that is read, fixed or known to change no output."""
        parts = (
            self.sizes,
            self.layers,
            self.heads,
            self.lengths,
            self.numbers,
            self.names,
            self.fixed,
            self.unused,
            FIXED_KEYS,
            FOREIGN_KEYS,
            UNUSED_KEYS,
        )
        return {key for part in parts for key in part}

    def apply(
        self, config: Mapping[str, Any], weight_files: WeightFiles, section: str = ""
    ) -> dict[str, Any]:
        """Return the config with defaults for what is missing.

        Args:
            config: The config, or a section of it.
            weight_files: The opened files, whose number and sizes of tensors bound the model's.
            section: Name of the section.

        Raises:
            SensoriumError: Naming the first key that is out of range or not supported.
        """
        checker = _Checker(f"{weight_files.path} sets {section}{'.' if section else ''}")
        self._check_fixed(config, checker)
        settings = {**self.defaults, **{k: v for k, v in config.items() if v is not None}}
        for key in settings.keys() & self.heads.keys():
            checker.check_whole(key, settings[key], MAX_LENGTH)
        num_values = sum(math.prod(entry.shape) for entry in weight_files.tensors.entries.values())
        for keys, limit in (
            (self.sizes, num_values),
            (self.layers, len(weight_files.tensors)),
            (self.lengths, MAX_LENGTH),
        ):
            for key in settings.keys() & keys.keys():
                checker.check_whole(key, settings[key], limit)
        for key in settings.keys() & self.numbers.keys():
            checker.check_number(key, settings[key])
        for key in settings.keys() & self.names.keys():
            if not isinstance(settings[key], str):
                checker.fail(key, settings[key], "Give a name.")
        for key, (width_key, _) in self.heads.items():
            if key in settings and width_key and settings[width_key] % settings[key]:
                checker.fail(
                    key, settings[key], f"Give a divisor of {width_key}={settings[width_key]}."
                )
        return settings

    def _check_fixed(self, config: Mapping[str, Any], checker: _Checker) -> None:
        foreign = FOREIGN_KEYS if self.refuses_foreign else {}
        for key, supported in {**FIXED_KEYS, **foreign, **self.fixed}.items():
            if key in config and not any(config[key] == value for value in supported):
                names = ", ".join(dict.fromkeys(json_name(v) for v in supported))
                checker.fail(key, config[key], f"It is not supported; supported are: {names}.")


def json_name(value: Any) -> str:
    """Return a value as JSON has it, such as null or false."""
    names = {None: "null", True: "true", False: "false"}
    is_plain = value is None or isinstance(value, bool)
    return names[value] if is_plain else repr(value)


def require_section(config: Mapping[str, Any], key: str, weight_files: WeightFiles) -> Any:
    """Return a section of a config, {} if it is missing.

    Raises:
        SensoriumError: If it is anything but an object.
    """
    section = config.get(key) or {}
    if not isinstance(section, Mapping):
        raise SensoriumError(f"{weight_files.path} sets {key}={section!r}. Give an object.")
    return section


@dataclass(frozen=True)
class _Checker:
    """Checks of single values; `start` begins every message."""

    start: str

    def check_whole(self, key: str, value: Any, limit: int) -> None:
        """Require a whole number from 1 to `limit`."""
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fail(key, value, "Give a whole number of at least 1.")
        if value > limit:
            self.fail(key, value, "It does not fit the weights, which are far smaller.")

    def check_number(self, key: str, value: Any) -> None:
        """Require a positive finite number."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            self.fail(key, value, "Give a number above 0.")

    def fail(self, key: str, value: Any, advice: str) -> None:
        """Raise the error for a value."""
        raise SensoriumError(f"{self.start}{key}={str(json_name(value))[:80]}. {advice}")
