"""The index of a tar archive: where each of its files lies. Only headers are read.

Nothing is ever unpacked to a disk. What an archive may hold beside regular files (links, devices,
names that lead out of a folder) is listed, not followed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sensorium.errors import SensoriumError
from sensorium.io.tar_files import Archive, TarMember

BLOCK_BYTES = 512
MAX_MEMBERS = 20_000_000
MAX_EXTENDED_HEADER_BYTES = 1 << 20  # of a long name or of PAX records
MAX_NAME_BYTES = 4096
_PACKED_MAGIC = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_REGULAR_TYPES = (b"0", b"\0", b"7")
_TYPES_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
_END_BLOCKS = 64  # searched for another archive behind the end mark
_SKIPPED_TYPES = {
    b"1": "a link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}


class TarIndex(NamedTuple):
    """What an archive holds.

    Attributes:
        members: its regular files, in order.
        skipped: the name of each other entry and why it is not read; folders are left out.
        damage: why the rest of the archive could not be read, "" if all of it was.
    """

    members: list[TarMember]
    skipped: list[tuple[str, str]]
    damage: str


class _Header(NamedTuple):
    """An entry of an archive, its long name and PAX records applied."""

    name: str
    type_flag: bytes
    offset: int  # of the content
    size: int
    is_sparse: bool


class _DamageError(ValueError):
    """The rest of an archive cannot be read."""


def read_tar_index(path: Path) -> TarIndex:
    """Return what a tar archive holds; only its headers are read.

    Of two members of one name, the first is kept.

    Raises:
        SensoriumError: if it is not a tar archive, or is packed.
        OSError: if it cannot be opened.
    """
    archive = Archive.from_path(path)
    _check_is_tar(archive)
    members: list[TarMember] = []
    skipped: list[tuple[str, str]] = []
    damage = ""
    names: set[str] = set()
    try:
        for header in _iter_headers(archive):
            reason = _skip_reason(header, names)
            if reason:
                skipped.append((header.name, reason))
            elif header.type_flag != b"5":
                names.add(header.name)
                members.append(TarMember(archive, header.name, header.offset, header.size))
            if len(members) + len(skipped) > MAX_MEMBERS:
                raise _DamageError(f"more than {MAX_MEMBERS:,} entries")
    except _DamageError as e:
        damage = str(e)
    return TarIndex(members, skipped, damage)


def _check_is_tar(archive: Archive) -> None:
    """Check the first header."""
    block = archive.read(0, BLOCK_BYTES)
    if len(block) == BLOCK_BYTES and (not block.strip(b"\0") or _has_valid_checksum(block)):
        return
    for magic, name in _PACKED_MAGIC.items():
        if block.startswith(magic):
            raise SensoriumError(
                f"{archive.path} is packed by {name}, so its files cannot be read in place. "
                "Unpack it to a plain .tar."
            )
    raise SensoriumError(f"{archive.path} is not a tar archive, or its beginning is damaged.")


def _skip_reason(header: _Header, names: set[str]) -> str:
    """Return why an entry is not read, "" if it is."""
    if header.type_flag == b"5":
        return ""
    if header.is_sparse:
        return _SKIPPED_TYPES[b"S"]
    if header.type_flag not in _REGULAR_TYPES:
        return _SKIPPED_TYPES.get(header.type_flag, f"an entry of type {header.type_flag!r}")
    if header.name.startswith("/") or ".." in header.name.split("/"):
        return "its name leads out of the archive"
    return "the name occurs twice; the first file is read" if header.name in names else ""


def _iter_headers(archive: Archive) -> Iterator[_Header]:
    """Yield the entries in order.

    Raises:
        _DamageError: where the archive is cut or damaged.
    """
    position = 0
    long_name = ""
    records: dict[str, str] = {}
    shared_records: dict[str, str] = {}
    while position < archive.size:
        block = archive.read(position, BLOCK_BYTES)
        if len(block) < BLOCK_BYTES:
            raise _DamageError(f"cut at byte {position:,}, inside a header")
        if not block.strip(b"\0"):
            _check_end(archive, position)
            return
        if not _has_valid_checksum(block):
            raise _DamageError(f"damaged at byte {position:,}: the header has a wrong checksum")
        type_flag = block[156:157]
        size = _parse_size(block[124:136], position)
        offset = position + BLOCK_BYTES
        if type_flag in (b"x", b"g", b"L", b"K"):
            content = _read_extension(archive, offset, size)
            if type_flag == b"L":
                long_name = _decode_name(content)
            elif type_flag == b"x":
                records = _parse_pax(content)
            elif type_flag == b"g":
                shared_records |= _parse_pax(content)
        else:
            own = {**shared_records, **records}
            name = own.get("path") or long_name or _header_name(block)
            size = _parse_decimal(own["size"], position) if "size" in own else size
            is_sparse = any(key.startswith("GNU.sparse.") for key in own)
            is_file = type_flag in _REGULAR_TYPES
            if is_file and type_flag == b"\0" and name.endswith("/"):
                type_flag = b"5"  # as archives from before 1988 mark a folder
            if type_flag in _TYPES_WITHOUT_CONTENT:
                size = 0
            elif type_flag == b"S":
                offset = _skip_sparse_map(archive, block, offset)
            if offset + size > archive.size:
                raise _DamageError(f"cut inside {name}, which has {size:,} bytes")
            name = name[:MAX_NAME_BYTES].removeprefix("./")
            yield _Header(name, type_flag, offset, size, is_sparse)
            long_name = ""
            records = {}
        position = offset + -(-size // BLOCK_BYTES) * BLOCK_BYTES
    raise _DamageError("it has no end mark, so that its last files may be missing")


def _check_end(archive: Archive, position: int) -> None:
    """Check that no other archive was appended behind the end mark and its padding.

    Raises:
        _DamageError: if there is one.
    """
    tail = archive.read(position, _END_BLOCKS * BLOCK_BYTES)
    for start in range(0, len(tail) - BLOCK_BYTES + 1, BLOCK_BYTES):
        block = tail[start : start + BLOCK_BYTES]
        if block.strip(b"\0"):
            if _has_valid_checksum(block):
                raise _DamageError("another archive follows its end mark and is not read")
            return


def _skip_sparse_map(archive: Archive, block: bytes, offset: int) -> int:
    """Return where the content of a sparse file begins, behind the rest of its map."""
    has_more = block[482]
    while has_more and offset < archive.size:
        has_more = archive.read(offset + 504, 1) not in (b"", b"\0")
        offset += BLOCK_BYTES
    return offset


def _read_extension(archive: Archive, offset: int, size: int) -> bytes:
    """Return the content of a long name or of PAX records."""
    if size > MAX_EXTENDED_HEADER_BYTES:
        raise _DamageError(f"an extended header of {size:,} bytes at byte {offset:,}")
    content = archive.read(offset, size)
    if len(content) < size:
        raise _DamageError(f"cut at byte {offset:,}, inside an extended header")
    return content


def _has_valid_checksum(block: bytes) -> bool:
    """Return whether a header has the right sum of its bytes, signed or unsigned."""
    match = re.match(rb"[ \0]*([0-7]+)[ \0]*$", block[148:156])
    if match is None:
        return False
    expected = int(match[1], 8)
    rest = block[:148] + block[156:]
    unsigned = sum(rest) + 8 * ord(" ")
    return expected == unsigned or expected == unsigned - 256 * sum(byte > 127 for byte in rest)


def _parse_size(digits: bytes, position: int) -> int:
    """Return a size: octal digits or, for a large one, a binary number."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:], "big")
    match = re.match(rb"[ \0]*([0-7]*)[ \0]*$", digits)
    if match is None:
        raise _DamageError(f"damaged at byte {position:,}: {digits!r} is not a size")
    return int(match[1] or b"0", 8)


def _parse_decimal(digits: str, position: int) -> int:
    if not re.fullmatch(r"\d{1,20}", digits):
        raise _DamageError(f"damaged at byte {position:,}: {digits[:20]!r} is not a size")
    return int(digits)


def _header_name(block: bytes) -> str:
    """Return the name in a header, with the prefix of the ustar format."""
    name = _decode_name(block[:100])
    prefix = _decode_name(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _decode_name(content: bytes) -> str:
    return content.split(b"\0", 1)[0].decode("utf-8", "replace")


def _parse_pax(content: bytes) -> dict[str, str]:
    """Return PAX records, which are written as 'LENGTH KEY=VALUE' and a line break."""
    records: dict[str, str] = {}
    position = 0
    while position < len(content):
        digits, space, _ = content[position : position + 20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = content[position + len(digits) + 1 : position + length]
        if length <= len(digits) + 1 or not record.endswith(b"\n"):
            raise _DamageError("damaged: a PAX header cannot be read")
        key, _, value = record[:-1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        position += length
    return records
