"""Door to reid.evaluation.evaluate, so that `accelerate launch evaluate.py` works from the root."""

from reid.config import EvaluateConfig, parse


def main() -> None:
    """Parse first: --help and a wrong flag need no torch, which takes seconds to import."""
    options = parse(EvaluateConfig)
    from reid.evaluation.evaluate import start

    start(options)


if __name__ == "__main__":
    main()
