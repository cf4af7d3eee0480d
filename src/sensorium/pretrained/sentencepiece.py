"""Read SentencePiece model files (spiece.model, tokenizer.model) without the sentencepiece library.

The file is a protocol buffer: keys (field number << 3 | wire type), each with its value, nested.
Only the fields below are read; sentencepiece_model.proto of the sentencepiece project lists all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sensorium.errors import SensoriumError

SPACE_SYMBOL = "▁"  # a space inside of pieces
# Types of pieces.
NORMAL_PIECE = 1
UNKNOWN_PIECE = 2
CONTROL_PIECE = 3
USER_DEFINED_PIECE = 4
BYTE_PIECE = 6
# Types of models.
UNIGRAM = 1
BPE = 2
# Field numbers of the model and, after them, of its messages.
PIECE_FIELD, TRAINER_FIELD, NORMALIZER_FIELD = 1, 2, 3
PIECE_TEXT_FIELD, PIECE_SCORE_FIELD, PIECE_TYPE_FIELD = 1, 2, 3
MODEL_TYPE_FIELD = 3
CHARSMAP_FIELD, ADD_PREFIX_FIELD, REMOVE_SPACES_FIELD = 2, 3, 4
# Wire types of protocol buffers.
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
MAX_PIECES = 1_000_000


@dataclass(frozen=True)
class SentencePieceModel:
    """The content of a model file.

    Attributes:
        pieces: (text, score, type) of each piece, in the order of the ids.
        model_type: UNIGRAM or BPE.
        precompiled_charsmap: Compiled table of the normalization (NFKC and similar).
        add_dummy_prefix: Whether a space is added before the text.
        remove_extra_whitespaces: Whether runs of whitespace become one space, none at the ends.
    """

    pieces: list[tuple[str, float, int]]
    model_type: int = UNIGRAM
    precompiled_charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True

    @property
    def unk_piece(self) -> str | None:
        """The piece of unknown characters."""
        return next((piece for piece, _, kind in self.pieces if kind == UNKNOWN_PIECE), None)


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a model file.

    Raises:
        SensoriumError: If it is damaged or of a type that is not supported.
    """
    try:
        return _parse_model(path.read_bytes())
    except (ValueError, IndexError, struct.error, OSError) as error:
        raise SensoriumError(
            f"{path} is no SentencePiece model, or is damaged: {error}."
        ) from error


def build_tokenizer(model: SentencePieceModel, extra_tokens: Sequence[str] = ()) -> Tokenizer:
    """Build a tokenizer that segments as SentencePiece does.

    Args:
        model: The model.
        extra_tokens: Special tokens whose ids follow those of the pieces, as T5's <extra_id_0>.
    """
    if model.model_type == UNIGRAM:
        tokenizer = Tokenizer(_build_unigram(model, extra_tokens))
    else:
        tokenizer = Tokenizer(_build_bpe(model))
    steps: list[normalizers.Normalizer] = []
    if model.precompiled_charsmap:
        from sensorium.modalities.tokenizer_json import check_charsmap

        check_charsmap(model.precompiled_charsmap)
        steps.append(normalizers.Precompiled(model.precompiled_charsmap))
    if model.remove_extra_whitespaces:
        prepend_scheme = "always" if model.add_dummy_prefix else "never"
        space = pre_tokenizers.Metaspace(SPACE_SYMBOL, prepend_scheme)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    else:
        if model.add_dummy_prefix:
            steps.append(normalizers.Prepend(SPACE_SYMBOL))
        steps.append(normalizers.Replace(" ", SPACE_SYMBOL))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = _build_decoder(model)
    _add_special_pieces(tokenizer, model)
    tokenizer.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in extra_tokens]
    )
    return tokenizer


def _build_decoder(model: SentencePieceModel) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE_SYMBOL, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _add_special_pieces(tokenizer: Tokenizer, model: SentencePieceModel) -> None:
    is_special = {CONTROL_PIECE: True, USER_DEFINED_PIECE: False}
    tokenizer.add_tokens(
        [
            AddedToken(piece, normalized=False, special=is_special[kind])
            for piece, _, kind in model.pieces
            if kind in is_special
        ]
    )


def _build_unigram(model: SentencePieceModel, extra_tokens: Sequence[str]) -> models.Unigram:
    kinds = [kind for _, _, kind in model.pieces]
    scored = [(piece, score) for piece, score, _ in model.pieces]
    return models.Unigram(
        [*scored, *((piece, 0.0) for piece in extra_tokens)],
        kinds.index(UNKNOWN_PIECE) if UNKNOWN_PIECE in kinds else None,
        BYTE_PIECE in kinds,
    )


def _build_bpe(model: SentencePieceModel) -> models.BPE:
    """Derive the merges from the scores.

    SentencePiece merges the neighbors whose concatenation has the best score, so merges are ordered
    by the scores of their results.
    """
    piece_ids = {piece: i for i, (piece, _, _) in enumerate(model.pieces)}
    merges = [
        (score, piece_ids[left], piece_ids[right], (left, right))
        for piece, score, kind in model.pieces
        if kind not in (CONTROL_PIECE, BYTE_PIECE)
        for left, right in ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        if left in piece_ids and right in piece_ids
    ]
    merges.sort(key=lambda merge: (-merge[0], merge[1], merge[2]))
    return models.BPE(
        piece_ids,
        [pair for *_, pair in merges],
        unk_token=model.unk_piece,
        fuse_unk=True,
        byte_fallback=any(kind == BYTE_PIECE for _, _, kind in model.pieces),
    )


def _parse_model(data: bytes) -> SentencePieceModel:
    pieces: list[tuple[str, float, int]] = []
    specs: dict[int, dict[int, int | bytes]] = {}
    for number, value in _iter_fields(data):
        if number == PIECE_FIELD and isinstance(value, bytes):
            pieces.append(_parse_piece(value))
        elif number in (TRAINER_FIELD, NORMALIZER_FIELD) and isinstance(value, bytes):
            specs[number] = dict(_iter_fields(value))
    if not 0 < len(pieces) <= MAX_PIECES or len(specs) < 2:
        raise ValueError(f"{len(pieces):,} pieces and {len(specs)} of 2 specifications")
    model_type = specs[TRAINER_FIELD].get(MODEL_TYPE_FIELD, UNIGRAM)
    if model_type not in (UNIGRAM, BPE):
        raise ValueError(f"the model type {model_type} is neither unigram nor BPE")
    normalizer = specs[NORMALIZER_FIELD]
    charsmap = normalizer.get(CHARSMAP_FIELD, b"")
    return SentencePieceModel(
        pieces,
        int(model_type),
        charsmap if isinstance(charsmap, bytes) else b"",
        add_dummy_prefix=normalizer.get(ADD_PREFIX_FIELD, 1) != 0,
        remove_extra_whitespaces=normalizer.get(REMOVE_SPACES_FIELD, 1) != 0,
    )


def _parse_piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL_PIECE
    for number, value in _iter_fields(data):
        if number == PIECE_TEXT_FIELD and isinstance(value, bytes):
            text = value.decode()
        elif number == PIECE_SCORE_FIELD and isinstance(value, bytes):
            score = struct.unpack("<f", value)[0]
        elif number == PIECE_TYPE_FIELD and isinstance(value, int):
            kind = value
    return text, score, kind


def _iter_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield field number and value of a message: an integer, or the bytes of any other type."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        wire_type = key & 7
        if wire_type == VARINT:
            value, position = _read_varint(data, position)
            yield key >> 3, value
            continue
        if wire_type == FIXED64:
            size = 8
        elif wire_type == FIXED32:
            size = 4
        elif wire_type == LENGTH_DELIMITED:
            size, position = _read_varint(data, position)
        else:
            raise ValueError(f"a field of the unknown wire type {wire_type} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"a field of {size} bytes at byte {position} exceeds the file")
        yield key >> 3, data[position : position + size]
        position += size


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    """Read an integer of seven bits per byte, least significant first; return it and its end."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
    raise ValueError(f"an integer of too many bytes before byte {offset}")
