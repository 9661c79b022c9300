"""reid/loader.py (and read_images of reid/features.py): the plan's images, whoever reads them, and damage by name."""

import io
import json
import shutil
import tarfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reid.augment import Augmentation
from reid.features import read_images
from reid.loader import Batch, EvalLoader, Pixels, TrainLoader, join, read_shards
from reid.manifest import Manifest, Split, load_manifest, save_manifest
from reid.plan import Plan
from tests.drawn import HEIGHT, WIDTH, Drawn

PIXELS = Pixels(HEIGHT, WIDTH)
AUGMENTATION = Augmentation(pad=4, rotate_degrees=10, scale=0.1)
STEPS = 5  # more than one pass of every stream

pytestmark = pytest.mark.timeout(60)


def make_loader(root: Path, manifest: Manifest, rank=0, world_size=1, workers=0, **knobs) -> TrainLoader:
    split = manifest.split("train")
    plan = Plan(split.images, split.shard, len(split.shards), identities=8, images=3, streams=4, seed=7, steps=STEPS)
    return TrainLoader(
        root, split, replace(plan, **knobs), PIXELS, AUGMENTATION, rank=rank, world_size=world_size, workers=workers
    )


def tensors_of(batch: Batch) -> dict[str, torch.Tensor]:
    parameters = {field.name: getattr(batch.parameters, field.name) for field in fields(batch.parameters)}
    return {name: getattr(batch, name) for name in ("images", "labels", "camids", "ids")} | parameters


def assert_same(found: list[tuple[int, int, Batch]], wanted: list[tuple[int, int, Batch]]) -> None:
    assert [entry[:2] for entry in found] == [entry[:2] for entry in wanted]
    for (_, _, one), (_, _, other) in zip(found, wanted, strict=True):
        for name, tensor in tensors_of(one).items():
            assert torch.equal(tensor, tensors_of(other)[name]), name


@pytest.fixture(scope="module")
def reference(drawn: Drawn) -> list[tuple[int, int, Batch]]:
    """Two epochs of one process without workers."""
    return list(make_loader(drawn.root, drawn.manifest).batches(2))


def test_batches_follow_the_plan(drawn, reference):
    plan = make_loader(drawn.root, drawn.manifest).plan
    assert [entry[:2] for entry in reference] == [(epoch, step) for epoch in range(2) for step in range(STEPS)]
    for epoch, step, batch in reference:
        parts = [plan.stream_steps(epoch, stream) for stream in range(plan.streams)]
        wanted = [
            [int(row), int(image)]
            for part in parts
            for row, images in zip(part.identities[step], part.images[step], strict=True)
            for image in images
            if image >= 0
        ]
        assert batch.ids.tolist() == wanted
    assert any(len(batch.ids) < 24 for _, _, batch in reference)  # short groups stay short


def test_images_labels_and_cameras_are_those_of_the_sources(drawn, reference):
    sources = drawn.sources("train")
    pids = drawn.manifest.split("train").pids
    place = {pid: label for label, pid in enumerate(sorted(pids.tolist()))}
    assert pids.tolist() != sorted(pids.tolist())  # storage order is another one, or this test could not fail
    for _, _, batch in reference:
        assert batch.images.shape == (len(batch.ids), 3, HEIGHT, WIDTH) and batch.images.dtype == torch.uint8
        for i, (row, image) in enumerate(batch.ids.tolist()):
            source = sources[row][image]
            with Image.open(source) as opened:
                assert np.array_equal(batch.images[i].permute(1, 2, 0).numpy(), np.asarray(opened.convert("RGB")))
            pid, camid = source.name.split("_")[:2]
            assert batch.labels[i] == place[int(pid)]
            assert batch.camids[i] == int(camid[1])


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_global_batch_is_the_same_for_any_ranks_and_workers(drawn, reference, world_size, workers):
    ranks = [
        list(make_loader(drawn.root, drawn.manifest, rank, world_size, workers).batches(2))
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {2 * STEPS}
    together = [(*entries[0][:2], join([batch for _, _, batch in entries])) for entries in zip(*ranks, strict=True)]
    assert_same(together, reference)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [(0, 3), (1, 0), (1, 4)])
def test_a_start_in_the_middle_gives_the_same_rest(drawn, reference, start, workers):
    rest = list(make_loader(drawn.root, drawn.manifest, workers=workers).batches(2, start))
    assert_same(rest, [entry for entry in reference if entry[:2] >= start])


def test_a_start_in_the_middle_decodes_nothing_before_it(drawn, monkeypatch):
    decoded = []
    monkeypatch.setattr(Pixels, "decode", lambda self, data, where: decoded.append(where) or np.zeros((2, 2, 3), "u1"))
    (_, _, batch) = next(make_loader(drawn.root, drawn.manifest).batches(1, (0, STEPS - 1)))
    assert len(decoded) == len(batch.ids)


def test_parameters_differ_between_streams_and_steps(reference):
    turns = torch.cat([batch.parameters.affine[:, 0] for _, _, batch in reference])
    assert len(turns.unique()) == len(turns)


def test_repeated_images_of_short_identities_fill_the_batch(drawn):
    for _, _, batch in make_loader(drawn.root, drawn.manifest, repeat_short=True).batches(1):
        assert len(batch.ids) == 24


def test_decode_resizes_and_converts():
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 256, (9, 7), dtype=np.uint8))
    buffer = io.BytesIO()
    grey.save(buffer, "PNG")
    wanted = np.asarray(grey.convert("RGB").resize((5, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(Pixels(8, 5).decode(buffer.getvalue(), "x"), wanted)


# Damage: a copy of the dataset, something broken in it, and the error that must come.


@pytest.fixture
def damaged(drawn: Drawn, tmp_path: Path) -> Path:
    """A copy that a test may damage; K and the number of steps make an epoch read all of it."""
    root = tmp_path / "shards"
    shutil.copytree(drawn.root, root)
    return root


def read_all(root: Path, workers: int = 0) -> None:
    """Train's loader, long enough to use every identity."""
    for _ in make_loader(root, load_manifest(root), workers=workers, images=2, steps=20).batches(1):
        pass


def members_of(tar: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(tar) as opened:
        return opened.getmembers()


def replace_member(tar: Path, name: str, data: bytes) -> None:
    with tarfile.open(tar) as opened:
        members = [(member, opened.extractfile(member).read()) for member in opened]
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as opened:
        for member, old in members:
            content = data if member.name == name else old
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def edit_train(root: Path, **columns) -> None:
    manifest = load_manifest(root)
    split = replace(manifest.split("train"), **columns)
    save_manifest(replace(manifest, splits={**manifest.splits, "train": split}), root)


def test_an_undamaged_copy_reads(damaged):
    read_all(damaged)


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_shard(damaged, workers):
    shard = damaged / "train-0003.tar"
    last = members_of(shard)[-1]
    with shard.open("r+b") as file:
        file.truncate(last.offset_data + last.size // 2)
    with pytest.raises(ValueError, match=r"train-0003\.tar: damaged shard, after .*: .*shards verify"):
        read_all(damaged, workers)


def test_shard_without_a_beginning(damaged):
    overwrite(damaged / "train-0002.tar", 0, b"\xff" * 512)
    with pytest.raises(ValueError, match=r"train-0002\.tar: damaged shard, after .*: .*bad checksum"):
        read_all(damaged)


def test_empty_shard(damaged):
    (damaged / "train-0002.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-0002\.tar: damaged shard, after .*: .*empty"):
        read_all(damaged)


def test_identity_description_that_is_no_json(damaged):
    shard = damaged / "train-0002.tar"
    overwrite(shard, members_of(shard)[0].offset_data, b"\xff" * 20)
    with pytest.raises(ValueError, match=r"train-0002\.tar: damaged shard"):
        read_all(damaged)


def test_overwritten_header_of_an_image(damaged):
    shard = damaged / "train-0002.tar"
    member = members_of(shard)[2]
    overwrite(shard, member.offset, b"\xff" * 512)
    key, file = member.name.split(".", 1)
    with pytest.raises(
        ValueError, match=rf"train-0002\.tar: damaged shard, after .*: sample {key} lacks the image {file}"
    ):
        read_all(damaged)


def test_overwritten_header_of_an_identity(damaged):
    """WebDataset drops everything behind it without a word."""
    shard = damaged / "train-0002.tar"
    second = [member for member in members_of(shard) if member.name.endswith(".json")][1]
    overwrite(shard, second.offset, b"\xff" * 512)
    with pytest.raises(ValueError, match=r"train-0002\.tar: damaged shard: 1 identities read, the manifest says 2"):
        read_all(damaged)


@pytest.mark.parametrize("workers", [0, 1])
def test_manifest_with_another_pid(damaged, workers):
    pids = load_manifest(damaged).split("train").pids.copy()
    pids[3] = 999
    edit_train(damaged, pids=pids)
    with pytest.raises(ValueError, match=r"train-0001\.tar: .*sample drawn-train-\d+ says pid \d+ .*manifest pid 999"):
        read_all(damaged, workers)


def test_manifest_with_another_count(damaged):
    split = load_manifest(damaged).split("train")
    images = split.images.copy()
    images[0] += 1
    shards = (replace(split.shards[0], images=split.shards[0].images + 1), *split.shards[1:])
    edit_train(damaged, images=images, shards=shards)
    with pytest.raises(
        ValueError, match=rf"train-0000\.tar: .*sample drawn-train-\d+ says .*with {images[0] - 1} images.*{images[0]}"
    ):
        read_all(damaged)


def test_a_shard_that_holds_more_than_the_manifest(damaged):
    split = load_manifest(damaged).split("train")
    lacking = replace(split.shards[0], identities=1, images=int(split.images[0]))
    keep = np.arange(len(split.pids)) != 1
    short = Split(
        shards=(lacking, *split.shards[1:]),
        pids=split.pids[keep],
        images=split.images[keep],
        shard=split.shard[keep],
        cameras=split.cameras[:1] + split.cameras[2:],
        names=split.names[:1] + split.names[2:],
    )
    with pytest.raises(ValueError, match=r"train-0000\.tar: .*sample drawn-train-\d+ is not in the manifest"):
        list(read_shards(damaged, short, [0]))


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_shard(damaged, workers):
    (damaged / "train-0005.tar").unlink()
    with pytest.raises(ValueError, match=r"train-0005\.tar: .*No such file"):
        read_all(damaged, workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_is_none(damaged, workers):
    shard = damaged / "train-0004.tar"
    name = members_of(shard)[1].name
    replace_member(shard, name, b"this is no image")
    with pytest.raises(ValueError, match=rf"train-0004\.tar: {name}: image cannot be decoded"):
        read_all(damaged, workers)


def test_image_cut_short(damaged):
    shard = damaged / "train-0004.tar"
    with tarfile.open(shard) as opened:
        member = opened.getmembers()[1]
        data = opened.extractfile(member).read()
    replace_member(shard, member.name, data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"train-0004\.tar: {member.name}: image cannot be decoded: .*[Tt]runcated"):
        read_all(damaged)


def test_image_with_too_many_pixels(drawn):
    split = drawn.manifest.split("train")
    small = replace(make_loader(drawn.root, drawn.manifest), pixels=Pixels(HEIGHT, WIDTH, max_pixels=500))
    with pytest.raises(ValueError, match=r"train-\d+\.tar: drawn-train-\d+\.\d+\.jpg: .*16 x 32 pixels, more than 500"):
        next(small.batches(1))
    assert len(split.pids) == 16


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_before_the_damaged_image_come_first(damaged, workers):
    """A worker's error neither overtakes the good batches before it nor hangs the loop."""
    manifest = load_manifest(damaged)
    loader = make_loader(damaged, manifest, workers=workers)
    first_use = {}
    for _, step, batch in loader.batches(1):
        for row, image in batch.ids.tolist():
            first_use.setdefault((row, image), step)
    (row, image), step = max(first_use.items(), key=lambda item: item[1])
    assert step >= 2
    split = manifest.split("train")
    name = f"drawn-train-{split.pids[row]:06d}.{image:03d}.jpg"
    replace_member(damaged / split.shards[split.shard[row]].name, name, b"this is no image")
    batches = loader.batches(1)
    assert [next(batches)[1] for _ in range(step)] == list(range(step))
    with pytest.raises(ValueError, match=name):
        next(batches)


# Evaluation splits


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("split", ["query", "gallery"])
def test_every_image_but_junk_comes_exactly_once(drawn, split, world_size, workers):
    part = drawn.manifest.split(split)
    sources = [source for files in drawn.sources(split) for source in files]
    seen = {}
    for rank in range(world_size):
        shards = list(range(len(part.shards)))[rank::world_size]
        for batch in EvalLoader(drawn.root, part, shards, PIXELS, batch_size=7).batches(workers):
            assert len(batch.index) <= 7
            for image, index, pid, camid in zip(batch.images, batch.index, batch.pids, batch.camids, strict=True):
                assert int(index) not in seen
                seen[int(index)] = (image, int(pid), int(camid))
    wanted = [index for index, source in enumerate(sources) if not source.name.startswith("-1")]
    assert sorted(seen) == wanted
    assert len(sources) - len(wanted) == (5 if split == "gallery" else 0)
    for index, (image, pid, camid) in seen.items():
        name = sources[index].name.split("_")
        assert (pid, camid) == (int(name[0]), int(name[1][1]))
        with Image.open(sources[index]) as opened:
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(opened))


def test_evaluation_without_shards_gives_nothing(drawn):
    assert list(EvalLoader(drawn.root, drawn.manifest.split("query"), [], PIXELS, 4).batches(2)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_in_an_evaluation_split(damaged, workers):
    (damaged / "gallery-0001.tar").unlink()
    part = load_manifest(damaged).split("gallery")
    with pytest.raises(ValueError, match=r"gallery-0001\.tar: .*No such file"):
        list(EvalLoader(damaged, part, list(range(len(part.shards))), PIXELS, 4).batches(workers))


def test_read_images_opens_only_the_shards_it_needs(damaged):
    manifest = load_manifest(damaged)
    drawn_copy = Drawn(damaged, damaged, manifest)
    part = manifest.split("gallery")
    first = np.cumsum(part.images) - part.images
    rows = [int(np.flatnonzero(part.shard == shard)[0]) for shard in (2, 0)]
    index = [int(first[rows[0]]) + 1, int(first[rows[1]]), int(first[rows[0]])]  # not sorted, two of one identity
    wanted = [read_member(drawn_copy, row, image) for row, image in ((rows[0], 1), (rows[1], 0), (rows[0], 0))]
    (damaged / "gallery-0001.tar").unlink()
    found = read_images(damaged, manifest, "gallery", index, PIXELS)
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one, other)


def read_member(drawn: Drawn, row: int, image: int) -> np.ndarray:
    part = drawn.manifest.split("gallery")
    with tarfile.open(drawn.root / part.shards[part.shard[row]].name) as tar:
        for member in tar.getmembers():
            if member.name.endswith(".json") and json.load(tar.extractfile(member))["pid"] == part.pids[row]:
                with Image.open(tar.extractfile(member.name.replace(".json", f".{image:03d}.jpg"))) as opened:
                    return np.asarray(opened)
    raise AssertionError("not in the shard")
