"""Door to reid.training, so that `accelerate launch train.py` works from the root."""

from reid.training.__main__ import main

if __name__ == "__main__":
    main()
