"""reid/config/parsing.py: how flags may be written."""

import pytest

from reid.config import normalize_flags


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["--batch-size=4"], ["--batch_size=4"]),
        (["--batch-size", "4"], ["--batch_size", "4"]),
        (["--data.val-identities=4", "--on-d"], ["--data.val_identities=4", "--on_d"]),
        (["--out=my-index --batch-size=4"], ["--out=my-index --batch-size=4"]),
        (["query", "my-index", "-x-y", "--out", "a-b.html"], ["query", "my-index", "-x-y", "--out", "a-b.html"]),
        (["--batch-size=4", "--", "--a-photo.jpg"], ["--batch_size=4", "--", "--a-photo.jpg"]),
        (("--", "--", "--a-b"), ["--", "--", "--a-b"]),
        ([], []),
    ],
)
def test_flags_may_be_written_with_dashes(typed: list[str], read: list[str]) -> None:
    assert normalize_flags(typed) == read
