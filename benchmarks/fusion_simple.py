"""Baselines of `fusion.py`: majority, a linear model and boosted trees on handcrafted features.

Features: numbers as they are; classes one-hot; a date as month, day of the year, weekday and
hour; a text as TF-IDF of words and of 3 to 5 characters; an image as its pixels at 16 x 16, a
histogram of 64 colors and one of edge directions in 8 x 8 cells; a series as statistics of each
channel. Trees get 64 principal components of texts and images. Missing values are the mean for
linear models, and NaN for trees.
"""

from collections.abc import Callable

import numpy as np
import PIL.Image
from fusion_rows import Rows, calendar, channels

Splits = dict[str, Rows]
Block = tuple[str, np.ndarray | object]  # its kind, and [N F] for each split, dense or sparse


def majority(splits: Splits, seed: int) -> np.ndarray:
    """Predict the mean, or the class frequencies."""
    train, n = splits["train"], len(splits["test"])
    if not train.classes:
        return np.full(n, train.target.mean())
    return np.tile(np.bincount(train.target, minlength=len(train.classes)) / len(train), (n, 1))


def pixels(rows: Rows, name: str) -> np.ndarray:
    """Return float [N 16*16*3 + 64 + 8*8*8]: pixels, colors, edge directions."""
    out = []
    for path in rows.columns[name]:
        image = PIL.Image.open(rows.folder / path).convert("RGB")
        small = np.asarray(image.resize((16, 16), PIL.Image.Resampling.BOX), np.float32) / 255
        x = np.asarray(image.resize((64, 64), PIL.Image.Resampling.BILINEAR), np.float32) / 255
        color = (
            np.bincount((x * 3.999).astype(int).reshape(-1, 3) @ (16, 4, 1), minlength=64) / 64**2
        )
        dy, dx = np.gradient(x.mean(2))
        direction = (np.arctan2(dy, dx) % np.pi / np.pi * 7.999).astype(int)
        place = np.arange(64)[:, None] // 8 * 8 + np.arange(64)[None] // 8
        edges = np.bincount((place * 8 + direction).ravel(), np.hypot(dx, dy).ravel(), 512)
        out.append(np.concatenate([small.ravel(), color, edges / (np.linalg.norm(edges) + 1e-6)]))
    return np.stack(out)


def statistics(rows: Rows, name: str) -> np.ndarray:
    """Return float [N 1 + 17 C]: length, and statistics of each channel."""
    return np.stack([_statistics(channels(rows, path)) for path in rows.columns[name]])


def _statistics(x: np.ndarray) -> np.ndarray:
    filled = np.where(np.isnan(x), 0.0, x)
    steps = np.abs(np.diff(filled, axis=0)).mean(0) if len(x) > 1 else np.zeros(x.shape[1])
    slope = np.polyfit(np.arange(len(x)), filled, 1)[0] if len(x) > 1 else np.zeros(x.shape[1])
    power = np.abs(np.fft.rfft(filled - filled.mean(0), n=max(len(x), 16), axis=0)) ** 2
    bands = [np.log1p(part.mean(0)) for part in np.array_split(power[1:], 6)]
    quantiles = np.quantile(filled, [0, 0.25, 0.5, 0.75, 1], axis=0)
    return np.concatenate(
        [
            [len(x)],
            filled.mean(0),
            filled.std(0),
            *quantiles,
            filled[0],
            filled[-1],
            steps,
            slope,
            *bands,
        ]
    )


def blocks(splits: Splits) -> list[tuple[str, dict[str, object]]]:
    """Return each column's type and its features [N F] per split, fitted on the training rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import OneHotEncoder

    columns: list[tuple[str, dict[str, object]]] = []

    def dense(kind: str, features: Callable[[Rows], np.ndarray]) -> None:
        columns.append((kind, {split: features(rows) for split, rows in splits.items()}))

    def fitted(kind: str, encoder: object, values: Callable[[Rows], list]) -> None:
        encoder.fit(values(splits["train"]))  # type: ignore[attr-defined]
        columns.append(
            (kind, {split: encoder.transform(values(rows)) for split, rows in splits.items()})
        )  # type: ignore

    for name, kind in splits["train"].kinds.items():
        if name not in splits["train"].columns:
            continue
        if kind == "numeric":
            dense(kind, lambda rows, c=name: np.array(rows.columns[c], float)[:, None])
        elif kind == "category":
            fitted(
                kind,
                OneHotEncoder(handle_unknown="ignore", min_frequency=5, sparse_output=False),
                lambda rows, c=name: [[value] for value in rows.columns[c]],
            )
        elif kind == "datetime":
            dense(
                "numeric",
                lambda rows, c=name: np.array([calendar(value) for value in rows.columns[c]]),
            )
            fitted(
                "category",
                OneHotEncoder(handle_unknown="ignore", sparse_output=False),
                lambda rows, c=name: [calendar(value)[2:] for value in rows.columns[c]],
            )
        elif kind == "text":
            for analyzer, n in (("word", (1, 2)), ("char_wb", (3, 5))):
                fitted(
                    kind,
                    TfidfVectorizer(analyzer=analyzer, ngram_range=n, min_df=2, sublinear_tf=True),
                    lambda rows, c=name: rows.columns[c],
                )
        else:
            features = pixels if kind == "image" else statistics
            dense(kind, lambda rows, c=name, make=features: make(rows, c))
    return columns


def linear(splits: Splits, seed: int) -> np.ndarray:
    """Fit logistic or ridge regression; val chooses the regularization."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts: dict[str, list] = {split: [] for split in splits}
    for kind, features in blocks(splits):
        if kind in ("numeric", "image", "series"):
            scale = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()).fit(
                features["train"]
            )
            wide = features["train"].shape[1] ** 0.5 if kind == "image" else 1  # type: ignore[attr-defined]
            features = {split: scale.transform(x) / wide for split, x in features.items()}
        for split, x in features.items():
            parts[split].append(csr_matrix(x))
    x = {split: hstack(columns).tocsr() for split, columns in parts.items()}
    if sum(part.shape[1] for part in parts["train"]) < 2000:
        x = {split: part.toarray() for split, part in x.items()}
    train, val = splits["train"], splits["val"]
    if not train.classes:
        tried = [Ridge(alpha).fit(x["train"], train.target) for alpha in (0.1, 1, 10, 100)]
        best = min(tried, key=lambda m: float(np.mean((m.predict(x["val"]) - val.target) ** 2)))
        return best.predict(x["test"])
    tried = [
        LogisticRegression(C=c, max_iter=100).fit(x["train"], train.target) for c in (0.1, 1, 10)
    ]
    return max(tried, key=lambda m: _likely(m, x["val"], val.target)).predict_proba(x["test"])


def _likely(model: object, x: object, target: np.ndarray) -> float:
    p = model.predict_proba(x)[np.arange(len(target)), target]  # type: ignore[attr-defined]
    return float(np.log(np.clip(p, 1e-6, 1)).mean())


def reduced(splits: Splits, seed: int) -> dict[str, np.ndarray]:
    """Return features for trees: 64 principal components of wide blocks, the others as they are."""
    from sklearn.decomposition import TruncatedSVD

    parts: dict[str, list] = {split: [] for split in splits}
    for kind, features in blocks(splits):
        if kind in ("text", "image"):
            most = min(64, features["train"].shape[1] - 1)  # type: ignore[attr-defined]
            main = TruncatedSVD(most, random_state=seed).fit(features["train"])
            features = {split: main.transform(x) for split, x in features.items()}
        for split, x in features.items():
            parts[split].append(x)
    return {split: np.hstack(columns) for split, columns in parts.items()}


def boosting(splits: Splits, seed: int) -> np.ndarray:
    """Fit scikit-learn's boosted trees; val chooses their number."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    x, train, val = reduced(splits, seed), splits["train"], splits["val"]
    kind = HistGradientBoostingClassifier if train.classes else HistGradientBoostingRegressor
    model = kind(
        learning_rate=0.05,
        max_iter=1000,
        early_stopping=True,
        n_iter_no_change=20,
        random_state=seed,
    )
    model.fit(x["train"], train.target, X_val=x["val"], y_val=val.target)
    return model.predict_proba(x["test"]) if train.classes else model.predict(x["test"])


def lightgbm(splits: Splits, seed: int) -> np.ndarray:
    """Fit LightGBM's boosted trees; val chooses their number."""
    import lightgbm as lgb

    x, train, val = reduced(splits, seed), splits["train"], splits["val"]
    kind = lgb.LGBMClassifier if train.classes else lgb.LGBMRegressor
    model = kind(learning_rate=0.05, n_estimators=1000, n_jobs=1, random_state=seed, verbosity=-1)
    model.fit(
        x["train"],
        train.target,
        eval_X=x["val"],
        eval_y=val.target,
        callbacks=[lgb.early_stopping(20, verbose=False)],
    )
    return np.asarray(model.predict_proba(x["test"]) if train.classes else model.predict(x["test"]))
