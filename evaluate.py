"""Door to reid.evaluation, so that `accelerate launch evaluate.py` works from the root."""

from reid.evaluation.__main__ import main

if __name__ == "__main__":
    main()
