"""Peers of `fusion.py`, with their documented usage and defaults except as stated here.

pytorch-widedeep: TabMlp, BasicRNN and Vision joined by WideDeep; Vision has half of its usual
channels and images of 64 pixels (its own would take hours here). It has no dates and no series:
they are encoded as in `fusion_simple.py`.
AutoGluon: its default parts (FT-Transformer for tables, a text model, an image model, an MLP that
joins them) work offline if the text model is a folder (--text-model: MiniLM) and the image model
is not pretrained, so it is a ResNet-18 at 64 pixels instead of a Swin at 224. With images and
without texts its learning rate is 1e-3 instead of 1e-4, which is meant for pretrained weights.
Dates and series as above.
Ludwig: its default encoders (parallel CNN for texts, stacked CNN for images at 64 pixels) and
concat combiner; 0.11 is the newest for Python 3.11. It imports torchaudio, which does not load
with a CPU build of torch and is not used.
"""

import importlib.machinery
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
from fusion_rows import Rows, calendar
from fusion_simple import statistics

SIDE = 64  # pixels of images
EPOCHS, PATIENCE = 30, 4
AUTOGLUON_SECONDS = 1800  # of wall clock


def frame(rows: Rows) -> Any:
    """Return a pandas table; images by path, dates and series as numbers."""
    import pandas as pd

    parts = {}
    for name, values in rows.columns.items():
        if rows.kinds[name] == "datetime":
            for what, column in zip(
                ("month", "day", "weekday", "hour"),
                np.array([calendar(v) for v in values]).T,
                strict=True,
            ):
                parts[f"{name}_{what}"] = column
        elif rows.kinds[name] == "series":
            parts |= {f"{name}_{i}": column for i, column in enumerate(statistics(rows, name).T)}
        elif rows.kinds[name] == "image":
            parts[name] = [str((rows.folder / value).resolve()) for value in values]
        else:
            parts[name] = values
    return pd.DataFrame(parts)


def _numbers(table: Any, rows: Rows) -> list[str]:
    return [name for name in table if rows.kinds.get(name, "numeric") == "numeric"]


class WideDeepInput:
    """The preprocessors of pytorch-widedeep, fitted on the training rows."""

    def __init__(self, train: Rows):
        from pytorch_widedeep.preprocessing import (
            ImagePreprocessor,
            TabPreprocessor,
            TextPreprocessor,
        )

        table = frame(train)
        self.means = table[_numbers(table, train)].mean()
        numbers, classes = _numbers(table, train), list(train.of("category"))
        self.text, self.image = (next(iter(train.of(kind)), None) for kind in ("text", "image"))
        self.steps = {}
        if numbers or classes:
            self.steps["X_tab"] = TabPreprocessor(
                cat_embed_cols=classes or None,
                continuous_cols=numbers or None,
                cols_to_scale=numbers or None,
                verbose=0,
            )
        if self.text:
            self.steps["X_text"] = TextPreprocessor(
                text_col=self.text, maxlen=16, min_freq=2, n_cpus=1, verbose=0
            )
        if self.image:
            self.steps["X_img"] = ImagePreprocessor(
                img_col=self.image,
                img_path=str(train.folder.resolve()),
                width=SIDE,
                height=SIDE,
                verbose=0,
            )
        for step in self.steps.values():
            step.fit(self.filled(train))

    def filled(self, rows: Rows) -> Any:
        table = frame(rows).fillna(self.means)
        return table.assign(**{self.image: rows.columns[self.image]}) if self.image else table

    def __call__(self, rows: Rows) -> dict[str, np.ndarray]:
        return {name: step.transform(self.filled(rows)) for name, step in self.steps.items()}


def widedeep(splits: dict[str, Rows], seed: int, epochs: int = EPOCHS) -> np.ndarray:
    """Train pytorch-widedeep until val has not improved for four epochs, at most `epochs`."""
    import torch
    from pytorch_widedeep import Trainer
    from pytorch_widedeep.callbacks import EarlyStopping
    from pytorch_widedeep.models import BasicRNN, TabMlp, Vision, WideDeep

    torch.manual_seed(seed)
    train, val = splits["train"], splits["val"]
    inputs, parts = WideDeepInput(train), {}
    if "X_tab" in inputs.steps:
        tab = inputs.steps["X_tab"]
        parts["deeptabular"] = TabMlp(
            column_idx=tab.column_idx,
            cat_embed_input=getattr(tab, "cat_embed_input", None),
            continuous_cols=tab.continuous_cols,
        )
    if inputs.text:
        parts["deeptext"] = BasicRNN(
            vocab_size=len(inputs.steps["X_text"].vocab.itos), embed_dim=64, hidden_dim=64
        )
    if inputs.image:
        parts["deepimage"] = Vision(channel_sizes=[32, 64, 128, 256])
    k, (mean, spread) = len(train.classes), (float(train.target.mean()), float(train.target.std()))
    objective = "regression" if not k else "binary" if k == 2 else "multiclass"
    model = WideDeep(**parts, pred_dim=k if k > 2 else 1)
    stop = EarlyStopping(patience=PATIENCE, restore_best_weights=True)
    trainer = Trainer(
        model, objective=objective, callbacks=[stop], verbose=0, num_workers=0, seed=seed
    )
    target = {s: rows.target if k else (rows.target - mean) / spread for s, rows in splits.items()}
    trainer.fit(
        X_train={**inputs(train), "target": target["train"]},
        X_val={**inputs(val), "target": target["val"]},
        n_epochs=epochs,
        batch_size=64,
    )
    test_inputs = inputs(splits["test"])
    return (
        trainer.predict_proba(**test_inputs, batch_size=256)
        if k
        else trainer.predict(**test_inputs) * spread + mean
    )


def allow_offline_images() -> None:
    """Keep timm from asking its hub for weights, which AutoGluon does not."""
    import timm
    from autogluon.multimodal.models import timm_image

    real = timm.create_model
    timm_image.create_model = lambda *args, **keywords: real(
        *args, **{**keywords, "pretrained": False}
    )


def autogluon(splits: dict[str, Rows], seed: int, epochs: int = 0) -> np.ndarray:
    """Train AutoGluon within AUTOGLUON_SECONDS, at most `epochs` (0: its own number)."""
    from autogluon.multimodal import MultiModalPredictor

    allow_offline_images()
    tables = {split: frame(rows).assign(target=rows.target) for split, rows in splits.items()}
    train = splits["train"]
    if train.classes:
        for table, rows in zip(tables.values(), splits.values(), strict=True):
            table["target"] = [f"class{k:02}" for k in rows.target]
    parts = {
        "hf_text": train.of("text"),
        "timm_image": train.of("image"),
        "ft_transformer": train.of("numeric", "category", "datetime", "series"),
    }
    names = [name for name, there in parts.items() if there]
    settings: dict[str, Any] = {
        "model.names": [*names, "fusion_mlp"] if len(names) > 1 else names,
        "env.num_gpus": 0,
        "env.num_workers": 0,
        "env.num_workers_inference": 0,
        "env.precision": "32",
    }
    if "hf_text" in names:
        settings["model.hf_text.checkpoint_name"] = os.environ["TEXT_MODEL"]
    if "timm_image" in names:
        settings |= {
            "model.timm_image.checkpoint_name": "resnet18",
            "model.timm_image.image_size": SIDE,
        }
        settings |= {} if "hf_text" in names else {"optim.lr": 1e-3}
    if epochs:
        settings["optim.max_epochs"] = epochs
    with tempfile.TemporaryDirectory() as folder:
        model = MultiModalPredictor(
            label="target",
            path=str(Path(folder) / "run"),
            verbosity=1,
            problem_type=None if train.classes else "regression",
        )
        model.fit(
            tables["train"],
            tuning_data=tables["val"],
            hyperparameters=settings,
            seed=seed,
            time_limit=AUTOGLUON_SECONDS,
        )
        inputs = tables["test"].drop(columns="target")
        if not train.classes:
            return np.asarray(model.predict(inputs, as_pandas=False), float)
        probabilities = model.predict_proba(inputs, as_pandas=True)
    return np.stack(
        [
            probabilities.get(f"class{k:02}", np.zeros(len(inputs)))
            for k in range(len(train.classes))
        ],
        1,
    )


class _Absent(types.ModuleType):
    """A module that has every name, for a library that is imported and never called."""

    def __getattr__(self, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")


def stub_torchaudio() -> None:
    """Let Ludwig import without torchaudio."""
    for name in ("torchaudio", "torchaudio.functional", "torchaudio.transforms"):
        module = _Absent(name)
        module.__dict__.update(
            __spec__=importlib.machinery.ModuleSpec(name, None), __path__=[], __version__="2.11.0"
        )
        sys.modules[name] = module


def ludwig(splits: dict[str, Rows], seed: int) -> np.ndarray:
    """Train Ludwig until val has not improved for four epochs, at most 30."""
    from ludwig.api import LudwigModel

    train = splits["train"]
    tables = {split: frame(rows).assign(target=rows.target) for split, rows in splits.items()}
    if train.classes:
        for table, rows in zip(tables.values(), splits.values(), strict=True):
            table["target"] = [f"class{k:02}" for k in rows.target]
    small = {
        "image": {
            "preprocessing": {
                "height": SIDE,
                "width": SIDE,
                "num_channels": 3,
                "infer_image_dimensions": False,
            },
            "encoder": {"type": "stacked_cnn"},
        },
        "number": {
            "preprocessing": {"normalization": "zscore", "missing_value_strategy": "fill_with_mean"}
        },
    }
    kinds = {name: train.kinds.get(name, "numeric") for name in tables["train"] if name != "target"}
    inputs = [{"name": name, "type": kind, **small.get(kind, {})} for name, kind in kinds.items()]
    output = (
        {"name": "target", "type": "category"}
        if train.classes
        else {"name": "target", "type": "number", "preprocessing": {"normalization": "zscore"}}
    )
    config = {
        "input_features": inputs,
        "output_features": [output],
        "trainer": {"epochs": EPOCHS, "early_stop": PATIENCE, "batch_size": 64},
    }
    with tempfile.TemporaryDirectory() as folder:
        model = LudwigModel(config, backend="local", logging_level=40)
        model.train(
            training_set=tables["train"],
            validation_set=tables["val"],
            output_directory=folder,
            random_seed=seed,
            skip_save_processed_input=True,
            skip_save_progress=True,
            skip_save_log=True,
        )
        predictions, _ = model.predict(
            tables["test"], output_directory=folder, skip_save_predictions=True
        )
    if not train.classes:
        return predictions["target_predictions"].to_numpy(float)
    return np.stack(
        [predictions[f"target_probabilities_class{k:02}"] for k in range(len(train.classes))], 1
    )
