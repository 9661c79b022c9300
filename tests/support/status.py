"""The exit status of a program that runs in this process."""

from collections.abc import Callable, Sequence


def status_of(main: Callable[[Sequence[str]], object], *words: object) -> int:
    """Call `main` with the words that a user types, and return the exit status."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    return status if isinstance(status, int) else 0
