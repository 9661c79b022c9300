"""Door to reid.evaluation.evaluate, so that `accelerate launch evaluate.py` works from the root."""

from reid.config import EvaluateConfig, parse
from reid.program import call


def main() -> None:
    """Parse first: --help and a wrong flag need no torch, which takes seconds to import."""
    options = call(lambda: parse(EvaluateConfig))
    from reid.evaluation.evaluate import start

    start(options)


if __name__ == "__main__":
    main()
