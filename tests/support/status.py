"""The exit status of a program that runs in this process."""

from collections.abc import Callable, Sequence


def status_of(main: Callable[[Sequence[str]], object], *words: object) -> int:
    """Call `main` with the words that a user types, and return the exit status."""
    try:
        main([str(word) for word in words])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0
