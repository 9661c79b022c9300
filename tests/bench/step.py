"""What a training step launches, sends and waits for, part by part, on a CUDA device and ranks that need not exist.

python -m tests.bench.step       prints a Markdown table; half a minute, no GPU
"""

from __future__ import annotations

from reid.config import Config
from tests.support.fake_device import Record, record_step

RANKS = 8
EARLIER = {  # operations before layouts came from the plan; then 8 ranks made 9 collectives
    "augmentation": 43, "objective, forward": 200, "objective, backward": 87, "centers": 15,
}  # fmt: skip


def describe(record: Record) -> str:
    sent = ", ".join(f"{name} of {size / 2**10:,.0f} KiB" for name, size in record.collectives) or "-"
    return f"{record.launches.total()} | {sent} | {len(record.waits)}"


def main() -> None:
    """Operations are counted where gradients can be computed (fake CPU), copies and waits on a fake CUDA device."""
    config = Config()
    counted = record_step(config, "cpu", RANKS, encoder="resnet50", precision="bf16")
    copied = record_step(config, "cuda", RANKS, encoder="resnet50")
    counted["batch to device"], counted["optimizer"] = copied["batch to device"], copied["optimizer"]
    print(
        f"ResNet-50, {config.batch.identities} x {config.batch.images} images a rank, {RANKS} ranks, bf16, default "
        "losses, a step that does not log. Beside these there are DDP's buckets of gradients.\n"
    )
    print("| part | operations | collectives, bytes of a rank | waits | operations before |")
    print("|---|---|---|---|---|")
    for part, record in counted.items():
        record.waits = copied[part].waits
        print(f"| {part} | {describe(record)} | {EARLIER.get(part, '-')} |")


if __name__ == "__main__":
    main()
