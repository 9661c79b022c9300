"""The training loader beside the classic path and a bare decoding loop; skipping, pools, and the plan at full scale.

python -m tests.bench.loader          prints Markdown tables; about twelve minutes on two slow cores
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

from reid.config import AugmentConfig, DataConfig
from reid.data.augmentation import Augmentation
from reid.data.joined import Joined
from reid.data.manifest import Manifest, Shard, Split, load_manifest, save_manifest
from reid.data.plan import Plan
from reid.data.shard_reader import read_identities
from reid.data.train_loader import TrainLoader
from shards.__main__ import main as shards_main
from tests.support.plans import market_like, peak_pool_images

IDENTITIES, IMAGES = 160, 16
P, K, STREAMS = 16, 4, 8
EPOCHS, REPEATS = 3, 5
SOURCES = (("128 x 64", (128, 64), (128, 64)), ("256 x 128", (256, 128), (256, 128)),
           ("128 x 64, resized to 256 x 128", (128, 64), (256, 128)))  # fmt: skip


def make_jpeg(rng: np.random.Generator, height: int, width: int) -> bytes:
    """Smooth colours with noise on top: about 4 KB at 128 x 64, as a Market-1501 crop has."""
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_dataset(folder: Path, size: tuple[int, int]) -> tuple[Path, Path]:
    """The same images as files, train/<identity>/<n>.jpg, and as shards."""
    rng = np.random.default_rng(0)
    raw = folder / "raw"
    for split, identities in (("train", IDENTITIES), ("query", 1), ("gallery", 1)):
        for pid in range(identities):
            (raw / split / f"{split}{pid:04d}").mkdir(parents=True)
            for i in range(IMAGES):
                (raw / split / f"{split}{pid:04d}" / f"{i:03d}.jpg").write_bytes(make_jpeg(rng, *size))
    arguments = ["--dataset", "bench", "--root", str(raw), "--out", str(folder / "shards"), "--shards", "16"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        shards_main(["build", "folder", *arguments])
    return raw / "train", folder / "shards"


# --- the classic path: files, Pillow, torchvision transforms in the Dataset, a sampler of identities


class Files(Dataset):
    def __init__(self, root: Path, size: tuple[int, int]) -> None:
        self.paths = sorted(root.rglob("*.jpg"))
        self.pids = [path.parent.name for path in self.paths]
        self.transform = transforms.Compose(
            [
                transforms.Resize(size),
                transforms.RandomHorizontalFlip(),
                transforms.Pad(10),
                transforms.RandomCrop(size),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
                transforms.RandomErasing(),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[i]).convert("RGB"))


class RandomIdentitySampler(Sampler):
    """P identities at random, K images of each, until the identities are used up."""

    def __init__(self, pids: list[str]) -> None:
        self.of: dict[str, list[int]] = {}
        for i, pid in enumerate(pids):
            self.of.setdefault(pid, []).append(i)

    def __iter__(self) -> Iterator[int]:
        groups = []
        for images in self.of.values():
            images = random.sample(images, len(images))
            groups += [images[i : i + K] for i in range(0, len(images) - K + 1, K)]
        random.shuffle(groups)
        return iter([i for group in groups for i in group])


def classic(root: Path, size: tuple[int, int], workers: int) -> Iterator[torch.Tensor]:
    files = Files(root, size)
    sampler = RandomIdentitySampler(files.pids)
    loader = DataLoader(files, batch_size=P * K, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    return (batch for _ in range(EPOCHS) for batch in loader)


# --- ours


def make_loader(root: Path, size: tuple[int, int], workers: int = 0) -> TrainLoader:
    joined = Joined.load([str(root)])
    split = joined.split
    plan = Plan(split.images, split.shard, len(split.shards), identities=P, images=K, streams=STREAMS)
    data = DataConfig(root=str(root), height=size[0], width=size[1], workers=workers)
    return TrainLoader(data, joined, plan, Augmentation(AugmentConfig()))


def ours(root: Path, size: tuple[int, int], workers: int) -> Iterator[torch.Tensor]:
    return (batch.images for _, _, batch in make_loader(root, size, workers).batches(EPOCHS))


def decode_into_batches(encoded: list[bytes], size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """The bound with memory: what whoever hands over batches cannot do without."""
    for start in range(0, len(encoded), P * K):
        batch = np.empty((P * K, *size, 3), dtype=np.uint8)
        images = encoded[start : start + P * K]
        for place, data in zip(batch, images, strict=False):
            decode(data, size, place)
        yield torch.from_numpy(batch[: len(images)])


def decode_alone(encoded: list[bytes], size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """The bound: nothing but the fastest decoder at hand, on bytes in memory; the pixels are dropped."""
    place = np.empty((*size, 3), dtype=np.uint8)
    for data in encoded:
        decode(data, size, place)
        yield torch.from_numpy(place)[None]


def decode(data: bytes, size: tuple[int, int], place: np.ndarray) -> None:
    if simplejpeg.decode_jpeg_header(data)[:2] == size:
        simplejpeg.decode_jpeg(data, "RGB", buffer=place)
        return
    image = torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)[0]
    place[:] = resized.permute(1, 2, 0)


def images_per_s(start: Callable[[], Iterable[torch.Tensor]]) -> float:
    begun = time.perf_counter()
    images = sum(len(batch) for batch in start())
    return images / (time.perf_counter() - begun)


def compare(runs: dict[str, Callable[[], Iterable[torch.Tensor]]]) -> dict[str, float]:
    """Median images a second of each, taking turns, so that whatever else the machine does hits all alike."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, start in runs.items():
            rates[name].append(images_per_s(start))
    return {name: statistics.median(values) for name, values in rates.items()}


def print_speed(folder: Path) -> None:
    print("| source | workers | ours, images/s | classic | ours / classic | bare decoding, one core | ours / bare "
          "| bare, into batches | ours / that |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for i, (name, source, size) in enumerate(SOURCES):
        files, shards = make_dataset(folder / str(i), source)
        split = load_manifest(shards).split("train")
        everyone = read_identities(shards, split, range(len(split.shards)))
        encoded = [bytes(identity.image(i)) for identity in everyone for i in range(len(identity.files))]
        random.Random(0).shuffle(encoded)
        for workers in (0, 1, 2):
            runs: dict[str, Callable[[], Iterable[torch.Tensor]]] = {
                "ours": lambda files=files, shards=shards, size=size, n=workers: ours(shards, size, n),
                "classic": lambda files=files, size=size, n=workers: classic(files, size, n),
            }
            if workers == 0:
                runs["bare"] = lambda encoded=encoded, size=size: decode_alone(encoded, size)
                runs["kept"] = lambda encoded=encoded, size=size: decode_into_batches(encoded, size)
            rate = compare(runs)
            bounds = [
                f"{rate[bound]:,.0f} | {rate['ours'] / rate[bound]:.0%}" for bound in ("bare", "kept") if bound in rate
            ]
            bound = " | ".join(bounds or ["|", "|"])
            ratio = rate["ours"] / rate["classic"]
            print(
                f"| {name} | {workers} | {rate['ours']:,.0f} | {rate['classic']:,.0f} | {ratio:.1f}x | {bound} |",
                flush=True,
            )


def print_skipping(folder: Path) -> None:
    print("\n| source | reading half an epoch | starting in its middle | ratio |")
    print("|---|---|---|---|")
    for i, (name, _, size) in enumerate(SOURCES[:2]):
        loader = make_loader(folder / str(i) / "shards", size)
        middle = loader.plan.steps_per_epoch // 2
        reading, skipping = [], []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            batches = loader.batches(1)
            for _ in range(middle):
                next(batches)
            reading.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            batches = loader.batches(1, (0, middle))
            next(batches)
            first = time.perf_counter()
            next(batches)
            skipping.append(2 * first - begun - time.perf_counter())  # without the batch itself
        read, skip = statistics.median(reading), statistics.median(skipping)
        print(f"| {name} | {read * 1000:,.0f} ms | {skip * 1000:,.0f} ms | {read / skip:.0f}x |", flush=True)


# --- pools: what they hold and how well they mix


def print_pools() -> None:
    print("\n| data.pool_images (a stream has about 800) | images held at most | seen in 1 epoch | in 3 epochs "
          "| pairs met in 30 epochs, of random sampling's |")  # fmt: skip
    print("|---|---|---|---|---|")
    market = market_like(np.random.default_rng(0))
    random_pairs = count_random_pairs(market)
    for pool in (0, 512, 256, 128, 64):
        plan = replace(market, pool_images=pool)
        seen: set[int] = set()
        shares, met, largest = [], np.zeros((751, 751), dtype=bool), 0
        for epoch in range(30):
            parts = [plan.stream_steps(epoch, stream) for stream in range(16)]
            largest = max(largest, *(peak_pool_images(plan, part) for part in parts))
            for rows in np.concatenate([part.identities for part in parts], axis=1):
                met[np.ix_(rows, rows)] = True
            if epoch < 3:
                for part in parts:
                    keys = part.identities[..., None] * 10_000 + part.images
                    seen |= set(keys[part.images >= 0].tolist())
                shares.append(len(seen) / plan.image_counts.sum())
        pairs = (met.sum() - 751) / random_pairs
        print(f"| {pool or 'unbounded'} | {largest} | {shares[0]:.1%} | {shares[2]:.1%} | {pairs:.1%} |", flush=True)


def count_random_pairs(plan: Plan) -> int:
    rng, share = np.random.default_rng(1), plan.groups / plan.groups.sum()
    met = np.zeros((751, 751), dtype=bool)
    for _ in range(30 * plan.steps_per_epoch):
        rows = rng.choice(751, 64, replace=False, p=share)
        met[np.ix_(rows, rows)] = True
    return int(met.sum()) - 751


# --- scale


def make_manifest(identities: int, images: int, shards: int) -> Manifest:
    counts = np.random.default_rng(0).poisson(images / identities - 1, identities) + 1
    shard_of = np.arange(identities) * shards // identities
    per_shard = np.bincount(shard_of), np.bincount(shard_of, weights=counts)
    listed = tuple(
        Shard(f"train-{i:05d}.tar", "0" * 64, 1, int(per_shard[0][i]), int(per_shard[1][i])) for i in range(shards)
    )
    cameras, names = tuple((i % 6, 6 + i % 9) for i in range(identities)), tuple(f"{i:07d}" for i in range(identities))
    split = Split(listed, np.arange(identities), counts, shard_of, cameras, names)
    return Manifest("scale", {"train": split})


def plan_at_scale(root: str) -> None:
    """Runs in a process of its own, whose memory tells."""
    imported = read_memory("VmRSS")
    begun = time.perf_counter()
    split = load_manifest(root).split("train")
    loaded = time.perf_counter()
    small = len(split.pids) < 10_000
    plan = Plan(split.images, split.shard, len(split.shards), identities=64 if small else 256, images=4,
                streams=16 if small else 64, pool_images=16_384)  # fmt: skip
    parts = [plan.stream_steps(0, stream) for stream in range(plan.streams)]
    planned = time.perf_counter()
    assert sum(part.identities.size for part in parts) == plan.steps_per_epoch * plan.identities
    print(json.dumps([loaded - begun, planned - loaded, read_memory("VmHWM") - imported]))


def read_memory(name: str) -> float:
    """GB: VmRSS now, VmHWM at most. getrusage would carry the parent's peak over into a child."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1e6


def print_scale(folder: Path) -> None:
    print("\n| identities | images | shards | manifest loaded in | an epoch planned in | memory beyond the imports |")
    print("|---|---|---|---|---|---|")
    for identities, images, shards in ((751, 12_936, 64), (1_000_000, 50_000_000, 10_000)):
        root = folder / f"scale{identities}"
        root.mkdir()
        save_manifest(make_manifest(identities, images, shards), root)
        program = f"from tests.bench.loader import plan_at_scale; plan_at_scale({str(root)!r})"
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        loading, planning, memory = json.loads(ran.stdout)
        print(f"| {identities:,} | {images:,} | {shards:,} | {loading * 1000:,.0f} ms | {planning:.2f} s "
              f"| {memory:.2f} GB |", flush=True)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    print("## Loader\n")
    with tempfile.TemporaryDirectory() as folder:
        print_speed(Path(folder))
        print_skipping(Path(folder))
        print_pools()
        print_scale(Path(folder))


if __name__ == "__main__":
    main()
