"""Door to reid.train, so that `accelerate launch train.py` works from the root."""

from reid.train import main

if __name__ == "__main__":
    main()
