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

SPACE = "▁"                                             # what a space is spelt as inside of pieces
UNKNOWN, CONTROL, OWN, BYTE = 2, 3, 4, 6                # kinds of pieces; 1 is an ordinary one
UNIGRAM, BPE = 1, 2
TRAINER, NORMALIZER = 2, 3                             # fields of the model beside its pieces
MOST = 1_000_000                                        # pieces


@dataclass(frozen=True)
class Pieces:
    """What a model file says: pieces with their scores and kinds, and how text is made ready for them."""

    pieces: list[tuple[str, float, int]]
    kind: int = UNIGRAM
    charsmap: bytes = b""                               # a compiled table of what is replaced (NFKC and the like)
    prefix: bool = True                                 # a space before the first word
    tidy: bool = True                                   # runs of whitespace are one space, none at the ends

    @property
    def unknown(self) -> str | None:
        """The piece that stands for what cannot be spelt."""
        return next((piece for piece, _, kind in self.pieces if kind == UNKNOWN), None)


def read(path: Path) -> Pieces:
    """The content of a model file. Raises SensoriumError where it is damaged or of a kind that is not read."""
    try:
        return _model(path.read_bytes())
    except (ValueError, IndexError, struct.error, OSError) as e:
        raise SensoriumError(f"{path} is no SentencePiece model, or is damaged: {e}") from e


def tokenizer(found: Pieces, more: Sequence[str] = ()) -> Tokenizer:
    """Words → ids as SentencePiece cuts them. more: special tokens numbered after the pieces (T5's <extra_id_0>)."""
    made = Tokenizer(_unigram(found, more) if found.kind == UNIGRAM else _merging(found))
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(found.charsmap)] if found.charsmap else []
    if found.tidy:
        space = pre_tokenizers.Metaspace(SPACE, "always" if found.prefix else "never")
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    else:
        steps += [*([normalizers.Prepend(SPACE)] if found.prefix else []), normalizers.Replace(" ", SPACE)]
    made.normalizer = normalizers.Sequence(steps)
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                      *([decoders.Strip(" ", 1, 0)] if found.prefix else [])])
    special = {CONTROL: True, OWN: False}
    made.add_tokens([AddedToken(piece, normalized=False, special=special[kind])
                     for piece, _, kind in found.pieces if kind in special])
    made.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in more])
    return made


def _unigram(found: Pieces, more: Sequence[str]) -> models.Unigram:
    kinds = [kind for _, _, kind in found.pieces]
    scored = [(piece, score) for piece, score, _ in found.pieces]
    return models.Unigram([*scored, *((piece, 0.0) for piece in more)],
                          kinds.index(UNKNOWN) if UNKNOWN in kinds else None, BYTE in kinds)


def _merging(found: Pieces) -> models.BPE:
    """SentencePiece merges the two neighbours whose union scores best: merges in the order of their unions' scores."""
    place = {piece: i for i, (piece, _, _) in enumerate(found.pieces)}
    merges = [(score, place[a], place[b], (a, b)) for piece, score, kind in found.pieces if kind not in (CONTROL, BYTE)
              for a, b in ((piece[:i], piece[i:]) for i in range(1, len(piece))) if a in place and b in place]
    merges.sort(key=lambda merge: (-merge[0], merge[1], merge[2]))
    return models.BPE(place, [pair for *_, pair in merges], unk_token=found.unknown, fuse_unk=True,
                      byte_fallback=any(kind == BYTE for _, _, kind in found.pieces))


def _model(data: bytes) -> Pieces:
    found: list[tuple[str, float, int]] = []
    specs: dict[int, dict[int, int | bytes]] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            found.append(_piece(value))
        elif number in (TRAINER, NORMALIZER) and isinstance(value, bytes):
            specs[number] = dict(_fields(value))
    if not 0 < len(found) <= MOST or len(specs) < 2:
        raise ValueError(f"{len(found):,} pieces and {len(specs)} of 2 specifications")
    kind, how = specs[TRAINER].get(3, UNIGRAM), specs[NORMALIZER]
    if kind not in (UNIGRAM, BPE):
        raise ValueError(f"its pieces are of the kind {kind}, neither unigram nor BPE")
    charsmap, prefix, tidy = how.get(2, b""), how.get(3, 1) != 0, how.get(4, 1) != 0
    return Pieces(found, int(kind), charsmap if isinstance(charsmap, bytes) else b"", prefix, tidy)


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode()
        elif number == 2 and isinstance(value, bytes):
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of a message: an integer, or the bytes of anything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or (_varint(data, at) if key & 7 == 2 else (-1, at))
        if size < 0 or at + size > len(data):
            raise ValueError(f"a field of kind {key & 7} and {size} bytes at byte {at}")
        yield key >> 3, data[at:at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, least first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"an endless number at byte {at}")
