"""Headers of tars, as reid/data/shard_reader.py reads them, against tarfile."""

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid.data.shard_reader import BLOCK, padded, parse_header

names = st.text("abcdefgh/._-0123456789é", min_size=1, max_size=120).filter(
    lambda name: not name.startswith("/") and not name.endswith("/") and "//" not in name
)


def header_of(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.USTAR_FORMAT)


@given(names, st.integers(0, 2**33 - 1))
def test_agrees_with_tarfile(name, size):
    try:
        block = header_of(name, size)
    except ValueError:  # ustar cannot hold every long name
        return
    assert parse_header(block) == (name, size)


@pytest.mark.parametrize("place", [0, 99, 130, 150, 156, 511])
def test_one_changed_byte_of_a_header_is_noticed(place):
    block = bytearray(header_of("a.json", 700))
    block[place] ^= 1
    assert parse_header(bytes(block)) is None


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.XHDTYPE])
def test_only_plain_files_are_members(kind):
    assert parse_header(header_of("x", 0, kind)) is None


@pytest.mark.parametrize("block", [bytes(BLOCK), b"\xff" * BLOCK, b"{" * BLOCK])
def test_what_is_no_header(block):
    assert parse_header(block) is None


def test_contents_fill_whole_blocks():
    assert [padded(size) for size in (0, 1, 511, 512, 513)] == [0, 512, 512, 512, 1024]
