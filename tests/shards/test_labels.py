"""shards/labels.py: labels that are probably one, and those that are not."""

import pytest

from shards.labels import describe_lookalikes, find_lookalikes


@pytest.mark.parametrize(
    "labels",
    [
        ("1", "01"), ("7", "007", "7.0"), ("Gate", "gate"), ("gate 1", "gate  1", "gate1"), ("cam1", "cam01", "Cam001"),
        ("Ren\u00e9e", "Rene\u0301e"), ("\uff11\uff12", "12"), ("a\u200bb", "ab"), ("\u00a0x", "x"),
        ("STRASSE", "straße"), ("-1", "-01"), ("0", "00", "0.0"),
    ],
)  # fmt: skip
def test_found(labels: tuple[str, ...]) -> None:
    assert find_lookalikes([*labels, "other", *labels]) == [sorted(labels)]
    (text,) = describe_lookalikes("cameras", labels)
    assert text.startswith("1 cameras")
    assert text.isprintable() and all(repr(label) in text or ascii(label) in text for label in labels)


@pytest.mark.parametrize(
    "labels",
    [("1", "10", "100"), ("7.0", "70"), ("7.5", "75"), ("a1", "a2"), ("Ase", "Åse"), ("1-1", "11"), ("10", "1_0")],
)
def test_not_found(labels: tuple[str, ...]) -> None:
    assert find_lookalikes(labels) == describe_lookalikes("identities", labels) == []


def test_many_are_counted() -> None:
    (text,) = describe_lookalikes("identities", [f"{form}{number}" for number in range(1, 31) for form in ("", "0")])
    assert "30 identities" in text and text.endswith("and 25 more")
