"""`python -m reid.training`, which is `train.py`: train one run."""

from reid.config import Config, parse
from reid.program import call


def main() -> None:
    """Parse first: --help and a wrong flag need no torch, which takes seconds to import."""
    config = call(lambda: parse(Config))
    from reid.training.train import start

    start(config)


if __name__ == "__main__":
    main()
