"""SentencePiece's model file (spiece.model, tokenizer.model), read without its library, as a tokenizer of ours.

The file is a protocol buffer: a key (field number << 3 | kind) and a value, one after the other, nested. Only the
fields below are looked at; sentencepiece_model.proto of the sentencepiece project names them all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sensorium.errors import SensoriumError

SPACE_SYMBOL = "▁"  # what a space is spelt as inside of pieces
UNKNOWN_PIECE, CONTROL_PIECE, USER_DEFINED_PIECE, BYTE_PIECE = (
    2,
    3,
    4,
    6,
)  # kinds of pieces; 1 is an ordinary one
UNIGRAM, BPE = 1, 2
TRAINER_FIELD, NORMALIZER_FIELD = 2, 3  # fields of the model beside its pieces
MAX_PIECES = 1_000_000  # pieces


@dataclass(frozen=True)
class SentencePieceModel:
    """What a model file says: pieces with their scores and kinds, and how text is made ready for them."""

    pieces: list[tuple[str, float, int]]
    model_type: int = UNIGRAM
    precompiled_charsmap: bytes = b""  # a compiled table of what is replaced (NFKC and the like)
    add_dummy_prefix: bool = True  # a space before the first word
    remove_extra_whitespaces: bool = True  # runs of whitespace are one space, none at the ends

    @property
    def unk_piece(self) -> str | None:
        """The piece that stands for what cannot be spelt."""
        return next((piece for piece, _, kind in self.pieces if kind == UNKNOWN_PIECE), None)


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """The content of a model file. Raises SensoriumError where it is damaged or of a kind that is not read."""
    try:
        return _parse_model(path.read_bytes())
    except (ValueError, IndexError, struct.error, OSError) as e:
        raise SensoriumError(f"{path} is no SentencePiece model, or is damaged: {e}") from e


def build_tokenizer(model: SentencePieceModel, extra_tokens: Sequence[str] = ()) -> Tokenizer:
    """Words → ids as SentencePiece cuts them. more: special tokens numbered after the pieces (T5's <extra_id_0>)."""
    made = Tokenizer(
        _build_unigram(model, extra_tokens) if model.model_type == UNIGRAM else _build_bpe(model)
    )
    steps: list[normalizers.Normalizer] = (
        [normalizers.Precompiled(model.precompiled_charsmap)] if model.precompiled_charsmap else []
    )
    if model.remove_extra_whitespaces:
        space = pre_tokenizers.Metaspace(
            SPACE_SYMBOL, "always" if model.add_dummy_prefix else "never"
        )
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    else:
        steps += [
            *([normalizers.Prepend(SPACE_SYMBOL)] if model.add_dummy_prefix else []),
            normalizers.Replace(" ", SPACE_SYMBOL),
        ]
    made.normalizer = normalizers.Sequence(steps)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE_SYMBOL, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else []),
        ]
    )
    special = {CONTROL_PIECE: True, USER_DEFINED_PIECE: False}
    made.add_tokens(
        [
            AddedToken(piece, normalized=False, special=special[kind])
            for piece, _, kind in model.pieces
            if kind in special
        ]
    )
    made.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in extra_tokens]
    )
    return made


def _build_unigram(model: SentencePieceModel, extra_tokens: Sequence[str]) -> models.Unigram:
    kinds = [kind for _, _, kind in model.pieces]
    scored = [(piece, score) for piece, score, _ in model.pieces]
    return models.Unigram(
        [*scored, *((piece, 0.0) for piece in extra_tokens)],
        kinds.index(UNKNOWN_PIECE) if UNKNOWN_PIECE in kinds else None,
        BYTE_PIECE in kinds,
    )


def _build_bpe(model: SentencePieceModel) -> models.BPE:
    """SentencePiece merges the two neighbours whose union scores best: merges in the order of their unions' scores."""
    place = {piece: i for i, (piece, _, _) in enumerate(model.pieces)}
    merges = [
        (score, place[a], place[b], (a, b))
        for piece, score, kind in model.pieces
        if kind not in (CONTROL_PIECE, BYTE_PIECE)
        for a, b in ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        if a in place and b in place
    ]
    merges.sort(key=lambda merge: (-merge[0], merge[1], merge[2]))
    return models.BPE(
        place,
        [pair for *_, pair in merges],
        unk_token=model.unk_piece,
        fuse_unk=True,
        byte_fallback=any(kind == BYTE_PIECE for _, _, kind in model.pieces),
    )


def _parse_model(data: bytes) -> SentencePieceModel:
    found: list[tuple[str, float, int]] = []
    specs: dict[int, dict[int, int | bytes]] = {}
    for number, value in _iter_fields(data):
        if number == 1 and isinstance(value, bytes):
            found.append(_parse_piece(value))
        elif number in (TRAINER_FIELD, NORMALIZER_FIELD) and isinstance(value, bytes):
            specs[number] = dict(_iter_fields(value))
    if not 0 < len(found) <= MAX_PIECES or len(specs) < 2:
        raise ValueError(f"{len(found):,} pieces and {len(specs)} of 2 specifications")
    kind, how = specs[TRAINER_FIELD].get(3, UNIGRAM), specs[NORMALIZER_FIELD]
    if kind not in (UNIGRAM, BPE):
        raise ValueError(f"its pieces are of the kind {kind}, neither unigram nor BPE")
    charsmap, prefix, tidy = how.get(2, b""), how.get(3, 1) != 0, how.get(4, 1) != 0
    return SentencePieceModel(
        found, int(kind), charsmap if isinstance(charsmap, bytes) else b"", prefix, tidy
    )


def _parse_piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for number, value in _iter_fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode()
        elif number == 2 and isinstance(value, bytes):
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    return text, score, kind


def _iter_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of a message: an integer, or the bytes of anything else."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        if key & 7 == 0:
            value, at = _read_varint(data, at)
            yield key >> 3, value
            continue
        size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or (
            _read_varint(data, at) if key & 7 == 2 else (-1, at)
        )
        if size < 0 or at + size > len(data):
            raise ValueError(f"a field of kind {key & 7} and {size} bytes at byte {at}")
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    """An integer of seven bits a byte, least first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
    raise ValueError(f"an endless number at byte {offset}")
