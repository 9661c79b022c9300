"""One parser for all tests of a file."""

from collections.abc import Iterator
from functools import cache

import pytest

from reid.config import make_parser, parsing


@pytest.fixture(autouse=True, scope="module")
def _one_parser() -> Iterator[None]:
    """Of each kind: it takes a quarter of a second, and parsing leaves it as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "make_parser", cache(make_parser))
        yield
