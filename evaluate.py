"""Door to reid.evaluate, so that `accelerate launch evaluate.py` works from the root."""

from reid.evaluate import main

if __name__ == "__main__":
    main()
