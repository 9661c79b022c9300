"""A tar's headers, as `shards build` writes them: plain files, ustar.

WebDataset's reader (Python's tarfile) takes 26 us a member where decoding a JPEG of 64 x 128 pixels takes 62, says not
at which byte a tar is damaged, and drops everything behind an overwritten header without a word. So shards are read by
reid/data/shard_reader.py with these few lines; the files stay tars that WebDataset and tar read, too.
"""

import struct
from typing import NamedTuple

BLOCK = 512
END = bytes(BLOCK)  # a block of zeros stands behind the last member
_FIELDS = struct.Struct("100s 24x 12s 12x 8s c 188x 155s")  # name, size, checksum, type, prefix of the name


class Header(NamedTuple):
    """A member's name and the bytes of its content."""

    name: str
    size: int


def parse_header(block: bytes) -> Header | None:
    """The header in a block of 512 bytes; None where there is none, or a damaged one, or one of no plain file."""
    name, size, checksum, kind, prefix = _FIELDS.unpack_from(block)
    try:
        if int(checksum.rstrip(b" \0"), 8) != _sum(block, checksum) or kind not in (b"0", b"\0"):
            return None
        length = int(size.rstrip(b" \0"), 8)
    except ValueError:
        return None
    return Header(_text(name) if not prefix[0] else f"{_text(prefix)}/{_text(name)}", length)


def padded(size: int) -> int:
    """Bytes that a content of `size` bytes takes: whole blocks."""
    return size + -size % BLOCK


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")


def _sum(block: bytes, checksum: bytes) -> int:
    """A header's checksum: the sum of its bytes, the eight of the checksum itself counted as blanks."""
    return sum(block.translate(None, b"\0")) - sum(checksum) + 8 * ord(" ")  # most bytes are zeros, better left out
