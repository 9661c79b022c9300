"""`python -m reid.evaluation`, which is `evaluate.py`: evaluate a run, or compare reports."""

from reid.config import EvaluateConfig, parse
from reid.program import call


def main() -> None:
    """Parse first: --help and a wrong flag need no torch, which takes seconds to import."""
    options = call(lambda: parse(EvaluateConfig))
    from reid.evaluation.evaluate import start

    start(options)


if __name__ == "__main__":
    main()
