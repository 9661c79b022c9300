"""The loaders of reid/data: the plan's images, whoever reads them, and damage by name."""

import io
import json
import re
import shutil
import tarfile
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from reid.data import workers
from reid.data.eval_loader import EvalLoader, read_images
from reid.data.images import Pixels
from reid.data.manifest import Manifest, Split, load_manifest, save_manifest
from reid.data.pool import Pool
from reid.data.shard_reader import damage_advice, read_identities, read_sound_identities
from reid.data.train_loader import Batch, TrainLoader, join
from reid.data.workers import count_workers, explain_killed_worker, receive
from tests.support.drawn import HEIGHT, WIDTH, Drawn
from tests.support.loading import PIXELS, STEPS, assert_same, make_loader, tensors_of
from tests.support.plans import peak_pool_images
from tests.support.programs import Program


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


def test_images_and_labels_are_those_of_the_sources(drawn, reference):
    sources = drawn.sources("train")
    pids = drawn.manifest.split("train").pids
    place = {pid: label for label, pid in enumerate(sorted(pids.tolist()))}
    assert pids.tolist() != sorted(pids.tolist())  # storage order is another one, or this test could not fail
    for _, _, batch in reference:
        assert batch.images.shape == (len(batch.ids), 3, HEIGHT, WIDTH) and batch.images.dtype == torch.uint8
        for i, (row, image) in enumerate(batch.ids.tolist()):
            source = sources[row][image]
            assert largest_difference(batch.images[i], source) <= 1
            pid = source.name.split("_")[0]
            assert batch.labels[i] == place[int(pid)]


def largest_difference(image: torch.Tensor, file: Path | io.BytesIO) -> int:
    """From what Pillow decodes; its libjpeg need not be torchvision's, and those round differently by 1."""
    with Image.open(file) as opened:
        wanted = np.asarray(opened.convert("RGB")).astype(int)
    return int(np.abs(image.permute(1, 2, 0).numpy() - wanted).max())


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_global_batch_is_the_same_for_any_ranks_and_workers(drawn, reference, world_size, workers):
    assert_same(read_on_ranks(drawn.root, drawn.manifest, world_size, workers), reference)


def read_on_ranks(root: Path, manifest: Manifest, world_size: int, workers: int, start=(0, 0), **knobs):
    """The global batches of two epochs, put together from those of the ranks."""
    ranks = [
        list(make_loader(root, manifest, rank, world_size, workers, **knobs).batches(2, start))
        for rank in range(world_size)
    ]
    return [(*entries[0][:2], join([batch for _, _, batch in entries])) for entries in zip(*ranks, strict=True)]


@pytest.mark.parametrize(
    ("cpus", "ranks", "most", "number"), [(1, 1, 8, 1), (16, 1, 8, 8), (16, 4, 8, 3), (2, 2, 8, 1)]
)
def test_auto_workers_share_the_cpus_that_this_process_may_use(monkeypatch, cpus, ranks, most, number):
    monkeypatch.setattr("joblib.cpu_count", lambda: cpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert count_workers("auto", most) == number
    assert count_workers(0, most) == 0 and count_workers(99, most) == most


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # more than there are cores
@pytest.mark.parametrize(("world_size", "workers"), [(8, 0), (8, 4), (2, 4), (1, 4)])
def test_as_many_ranks_or_workers_as_streams(drawn, world_size, workers):
    wanted = list(make_loader(drawn.root, drawn.manifest, streams=8).batches(2))
    assert len(wanted) == 2 * STEPS
    assert_same(read_on_ranks(drawn.root, drawn.manifest, world_size, workers, streams=8), wanted)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0), (4, 0)])
@pytest.mark.parametrize("start", [(0, 3), (1, 0), (1, 4)])
def test_a_start_in_the_middle_gives_the_same_rest(drawn, reference, start, world_size, workers):
    rest = read_on_ranks(drawn.root, drawn.manifest, world_size, workers, start)
    assert_same(rest, [entry for entry in reference if entry[:2] >= start])


def test_a_start_in_the_middle_decodes_nothing_before_it(drawn, monkeypatch):
    decoded = []
    monkeypatch.setattr(Pixels, "decode_into", lambda self, place, data, where: decoded.append(where()))
    (_, _, batch) = next(make_loader(drawn.root, drawn.manifest).batches(1, (0, STEPS - 1)))
    assert len(decoded) == len(batch.ids)


def test_parameters_differ_between_streams_and_steps(reference):
    turns = torch.cat([batch.changes.affine[:, 0, 1] for _, _, batch in reference])
    assert len(turns.unique()) == len(turns)


def test_repeated_images_of_short_identities_fill_the_batch(drawn):
    for _, _, batch in make_loader(drawn.root, drawn.manifest, repeat_short=True).batches(1):
        assert len(batch.ids) == 24


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
    """In the shard, and in the manifest the shard's size."""
    with tarfile.open(tar) as opened:
        members = [(member, opened.extractfile(member).read()) for member in opened]
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as opened:
        for member, old in members:
            content = data if member.name == name else old
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    shards = load_manifest(tar.parent).split("train").shards
    sizes = [tar.stat().st_size if shard.name == tar.name else shard.bytes for shard in shards]
    edit_train(tar.parent, shards=tuple(replace(shard, bytes=size) for shard, size in zip(shards, sizes, strict=True)))


def replace_image(tar: Path, name: str, data: bytes) -> None:
    """As `shards build` would have stored these bytes: with their checksum."""
    key, _, file = name.partition(".")
    with tarfile.open(tar) as opened:
        description = json.load(opened.extractfile(f"{key}.json"))
    (entry,) = (entry for entry in description["images"] if entry["file"] == file)
    entry["crc32"], entry["bytes"] = zlib.crc32(data), len(data)
    replace_member(tar, f"{key}.json", json.dumps(description).encode())
    replace_member(tar, name, data)


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


def truncate(root: Path) -> str:
    shard = root / "train-0003.tar"
    last = members_of(shard)[-1]
    with shard.open("r+b") as file:
        file.truncate(last.offset_data + last.size // 2)
    return r"train-0003\.tar: .*ends at byte \d+, inside the images of drawn-train-\d+\.json; .*verify.*skip"


def empty(root: Path) -> str:
    (root / "train-0002.tar").write_bytes(b"")
    return r"train-0002\.tar: 2 identities .*ends at byte 0"


def remove(root: Path) -> str:
    (root / "train-0005.tar").unlink()
    return r"train-0005\.tar: .*No such file"


def overwrite_the_first_header(root: Path) -> str:
    overwrite(root / "train-0002.tar", 0, b"\xff" * 512)
    return r"train-0002\.tar: byte 0, after its beginning: expected the description of an identity"


def overwrite_a_later_header(root: Path) -> str:
    """tarfile, and so WebDataset, silently drops everything after it."""
    shard = root / "train-0002.tar"
    second = [member for member in members_of(shard) if member.name.endswith(".json")][1]
    overwrite(shard, second.offset, b"\xff" * 512)
    return rf"train-0002\.tar: byte {second.offset}, after drawn-train-\d+\.\d+\.jpg: expected"


def overwrite_a_description(root: Path) -> str:
    shard = root / "train-0002.tar"
    overwrite(shard, members_of(shard)[0].offset_data, b"\xff" * 20)
    return r"train-0002\.tar: drawn-train-\d+\.json \(byte 512\): its JSON is missing or damaged"


def change_an_image(root: Path) -> str:
    """A decoder would return a picture."""
    shard = root / "train-0004.tar"
    member = members_of(shard)[1]
    overwrite(shard, member.offset_data + member.size // 2, b"\x12\x34")
    return rf"train-0004\.tar: {member.name} \(byte {member.offset_data}\): its checksum"


def store_no_image(root: Path) -> str:
    shard = root / "train-0004.tar"
    name = members_of(shard)[1].name
    replace_image(shard, name, b"this is no image")
    return (
        rf"^{shard}: {name} \(byte \d+\): image cannot be decoded: .*; "
        rf"`reid shards verify --decode {root}` lists all damage"
    )


def change_a_pid_of_the_manifest(root: Path) -> str:
    pids = load_manifest(root).split("train").pids.copy()
    pids[3] = 999
    edit_train(root, pids=pids)
    return r"train-0001\.tar: .*sample drawn-train-\d+ has pid \d+ .*manifest has pid 999"


def change_a_count_of_the_manifest(root: Path) -> str:
    split = load_manifest(root).split("train")
    images = split.images.copy()
    images[0] += 1
    shards = (replace(split.shards[0], images=split.shards[0].images + 1), *split.shards[1:])
    edit_train(root, images=images, shards=shards)
    return rf"train-0000\.tar: .*sample drawn-train-\d+ has .*with {images[0] - 1} images.*{images[0]}"


IN_A_WORKER = (truncate, remove, store_no_image)
DAMAGES = (
    *IN_A_WORKER, empty, overwrite_the_first_header, overwrite_a_later_header, overwrite_a_description,
    change_an_image, change_a_pid_of_the_manifest, change_a_count_of_the_manifest,
)  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "workers"), [*((each, 0) for each in DAMAGES), *((each, 1) for each in IN_A_WORKER)]
)
def test_damage_is_named(damaged, damage, workers):
    message = damage(damaged)
    with pytest.raises(ValueError, match=message):
        read_all(damaged, workers)


def test_damage_of_remote_shards_is_listed_after_a_copy():
    assert "copy the shards to a local folder, where `reid shards verify" in damage_advice("http://host/x")


def set_in_image(**values):
    return lambda said: said["images"][0].update(values)


@pytest.mark.parametrize("on_damage", ["stop", "skip"])
@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (set_in_image(bytes=10**15), r"ends at byte \d+, inside the images of {member}"),
        (set_in_image(bytes=10**30), r"{member} \(byte 512\): .*bytes is not an integer"),
        (set_in_image(bytes=-1), r"{member} \(byte 512\): .*bytes is not an integer"),
        (set_in_image(crc32=1.5), r"{member} \(byte 512\): .*crc32 is not an integer"),
        (set_in_image(camid=2**70), r"{member} \(byte 512\): .*camid is not an integer"),
        (set_in_image(camid=77), r"sample {key} has pid .* cameras \(2, 77\); .*cameras \(1, 2\)"),
        (lambda said: said.update(pid=float("inf")), r"{member} \(byte 512\): .*pid is not an integer"),
        (lambda said: said.update(pid=[1]), r"{member} \(byte 512\): .*pid is not an integer"),
        (lambda said: said.update(images=[]), r"{member} \(byte 512\): .*no images"),
        (None, r"{member} \(byte 512\): .*recursion"),
    ],
    ids=["bytes", "more bytes", "negative", "crc", "large camid", "camid", "infinity", "list", "no images", "deep"],
)
def test_wrong_json(damaged, lie, message, on_damage):
    """Whatever it says, the loader names the shard and the member, and `skip` loses only identities of this shard."""
    shard = damaged / "train-0003.tar"
    member = members_of(shard)[0].name
    with tarfile.open(shard) as tar:
        said = json.load(tar.extractfile(member))
    if lie:
        lie(said)
    replace_member(shard, member, json.dumps(said).encode() if lie else b"[" * 200_000)
    message = rf"{shard}: .*" + message.format(member=member, key=member.removesuffix(".json"))
    if on_damage == "stop":
        with pytest.raises(ValueError, match=message):
            read_all(damaged)
        return
    dropped = [each for _, _, batch in skipping(damaged).batches(1) for each in batch.dropped]
    assert re.match(message, dropped[0].reason)
    lost = {row for each in dropped for row in each.rows}
    rows = np.flatnonzero(load_manifest(damaged).split("train").shard == 3)
    assert rows[0] in lost and lost <= set(rows.tolist())


def test_a_changed_bit_of_a_description_is_found_or_changes_nothing(damaged):
    """Also one of a camera id that leaves the identity's set of cameras as it was."""
    shard, split = damaged / "train-0003.tar", load_manifest(damaged).split("train")
    member, before = members_of(shard)[0], shard.read_bytes()
    wanted = next(read_identities(damaged, split, [3]))
    refused = []
    for bit in range(0, 8 * member.size, 5):
        at, mask = member.offset_data + bit // 8, 1 << bit % 8
        overwrite(shard, at, bytes([before[at] ^ mask]))
        try:
            assert next(read_identities(damaged, split, [3])) == wanted
        except ValueError as error:
            refused.append(str(error))
        overwrite(shard, at, before[at : at + 1])
    assert all(str(shard) in reason for reason in refused)
    assert len(refused) > 0.9 * (8 * member.size // 5)


def test_descriptions_of_earlier_versions_have_no_checksum(damaged):
    shard, split = damaged / "train-0003.tar", load_manifest(damaged).split("train")
    wanted = [(each.pid, each.camids, each.checksums) for each in read_identities(damaged, split, [3])]
    for member in members_of(shard):
        if member.name.endswith(".json"):
            with tarfile.open(shard) as tar:
                text = tar.extractfile(member.name).read()
            assert text.count(b',"checksum":') == 1
            replace_member(shard, member.name, text.partition(b',"checksum":')[0] + b"}")
    split = load_manifest(damaged).split("train")
    assert [(each.pid, each.camids, each.checksums) for each in read_identities(damaged, split, [3])] == wanted


def test_a_header_that_claims_gigabytes_takes_no_memory(damaged):
    shard = damaged / "train-0003.tar"
    header = members_of(shard)[0]
    header.size = 0o77777777777
    overwrite(shard, 0, header.tobuf(tarfile.USTAR_FORMAT))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"{shard}: .* ends at byte \d+, inside {header.name}"):
            read_all(damaged)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_of_another_build(damaged, workers):
    """The same identities with as many images under the same cameras, but other images: their sizes tell."""
    shard = damaged / "train-0003.tar"
    size = shard.stat().st_size
    with shard.open("ab") as file:
        file.write(bytes(tarfile.RECORDSIZE))
    message = rf"{shard}: .*has {size + tarfile.RECORDSIZE} bytes, the manifest says {size}: it is of another build"
    with pytest.raises(ValueError, match=message):
        read_all(damaged, workers)
    rows = np.flatnonzero(load_manifest(damaged).split("train").shard == 3)
    dropped = [each for _, _, batch in skipping(damaged).batches(1) for each in batch.dropped]
    assert [each.rows for each in dropped] == [tuple(rows.tolist())] and re.match(message, dropped[0].reason)


def test_images_that_are_read_when_they_are_used(damaged):
    """As after a start in the middle of an epoch: the same bytes, and what is gone by then is named."""
    shard, split = damaged / "train-0003.tar", load_manifest(damaged).split("train")
    eager, *later = (list(read_sound_identities(damaged, split, [3], lazily=lazily)) for lazily in (False, True, True))
    for one, other in zip(eager, later[0], strict=True):
        assert [bytes(one.image(i)) for i in range(len(one.files))] == [other.image(i) for i in range(len(one.files))]
    shard.write_bytes(shard.read_bytes()[: later[1][-1].begin + 600])
    ends = rf"{shard}: it ends at byte {later[1][-1].begin + 600}, inside the images of {later[1][-1].key}\.json"
    with pytest.raises(ValueError, match=ends):
        later[1][-1].image(0)
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard}: No such file"):
        later[1][0].image(0)


def test_overwritten_header_of_an_image(damaged, drawn):
    """It costs nothing: the JSON gives the place of the image, and the checksum shows that it is complete."""
    shard = damaged / "train-0002.tar"
    overwrite(shard, members_of(shard)[2].offset, b"\xff" * 512)
    found = list(make_loader(damaged, load_manifest(damaged)).batches(1))
    assert_same(found, list(make_loader(drawn.root, drawn.manifest).batches(1)))


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
    with pytest.raises(ValueError, match=r"train-0000\.tar: .*drawn-train-\d+ has pid .*; the manifest has no more"):
        list(read_identities(damaged, short, [0]))


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
    replace_image(damaged / split.shards[split.shard[row]].name, name, b"this is no image")
    batches = loader.batches(1)
    assert [next(batches)[1] for _ in range(step)] == list(range(step))
    with pytest.raises(ValueError, match=name):
        next(batches)


# A damaged dataset with on_damage = skip


def damage_three_identities(root: Path) -> set[int]:
    """A wrong JSON, an image whose bytes were changed, a shard cut short; returns the rows that are lost."""
    split = load_manifest(root).split("train")
    lying = members_of(root / "train-0001.tar")[0]
    with tarfile.open(root / "train-0001.tar") as tar:
        text = tar.extractfile(lying.name).read()
    replace_member(root / "train-0001.tar", lying.name, text.replace(b'"pid":', b'"pid":1'))
    changed = members_of(root / "train-0004.tar")[1]
    overwrite(root / "train-0004.tar", changed.offset_data + 40, b"\x00\x01\x02")
    cut = members_of(root / "train-0003.tar")[-1]
    with (root / "train-0003.tar").open("r+b") as file:
        file.truncate(cut.offset_data)
    first = np.searchsorted(split.shard, [1, 4, 4])
    return {int(first[0]), int(first[1]), int(first[2]) - 1}


def skipping(root: Path, **knobs) -> TrainLoader:
    return make_loader(root, load_manifest(root), on_damage="skip", images=2, steps=20, **knobs)


def test_skip_leaves_out_complete_identities_and_nothing_else(damaged, drawn):
    wanted = list(make_loader(drawn.root, drawn.manifest, images=2, steps=20).batches(2))
    lost = damage_three_identities(damaged)
    found = list(skipping(damaged).batches(2))
    assert [entry[:2] for entry in found] == [entry[:2] for entry in wanted]  # as many steps as ever
    changed_row = int(np.searchsorted(drawn.manifest.split("train").shard, 4))
    gone = lost - {changed_row}
    for (epoch, _, batch), (_, _, undamaged) in zip(found, wanted, strict=True):
        dropped = {row for each in batch.dropped for row in each.rows}
        gone |= dropped
        rows = undamaged.ids[:, 0]
        keep = torch.tensor([int(row) not in gone for row in rows])
        for name, tensor in tensors_of(batch).items():
            assert torch.equal(tensor, tensors_of(undamaged)[name][keep]), (epoch, name)
        if batch is found[19][2]:
            assert gone == lost
            gone -= {changed_row}  # a new epoch tries it again
    reasons = " ".join(each.reason for _, _, batch in found for each in batch.dropped)
    for text in ("has pid 1", "checksum is wrong", "ends at byte"):
        assert text in reasons


@pytest.mark.parametrize(("world_size", "workers"), [(2, 0), (4, 2), (1, 2)])
def test_skip_gives_the_same_batches_on_any_ranks_and_workers(damaged, world_size, workers):
    damage_three_identities(damaged)
    reference = list(skipping(damaged).batches(1))
    ranks = [
        list(skipping(damaged, rank=rank, world_size=world_size, workers=workers).batches(1))
        for rank in range(world_size)
    ]
    together = [(*entries[0][:2], join([batch for _, _, batch in entries])) for entries in zip(*ranks, strict=True)]
    assert_same(together, reference)


def test_a_resumed_run_that_knows_what_was_dropped_gives_the_same_rest(damaged):
    damage_three_identities(damaged)
    reference = list(skipping(damaged).batches(1))
    before = {row for _, step, batch in reference if step < 12 for each in batch.dropped for row in each.rows}
    assert_same(list(skipping(damaged).batches(1, (0, 12), before)), reference[12:])


def test_a_missing_shard_under_skip_loses_its_identities(damaged):
    (damaged / "train-0005.tar").unlink()
    rows = np.flatnonzero(load_manifest(damaged).split("train").shard == 5)
    seen = set()
    dropped = []
    for _, _, batch in skipping(damaged).batches(1):
        seen |= set(batch.ids[:, 0].tolist())
        dropped += batch.dropped
    assert seen == set(range(16)) - set(rows.tolist())
    assert [each.rows for each in dropped] == [tuple(rows.tolist())] and "No such file" in dropped[0].reason


def test_a_rank_with_nothing_left_is_an_error(damaged):
    for shard in damaged.glob("train-*.tar"):
        shard.unlink()
    with pytest.raises(ValueError, match=r"epoch 1, step 1: every identity of rank 0 is damaged; repair"):
        next(skipping(damaged).batches(1))


def test_a_virtual_rank_with_nothing_left_is_an_error(damaged):
    loader = skipping(damaged)
    loader.ranks = 4
    shards = sorted(damaged.glob("train-*.tar"))
    for shard in loader.plan.deal(0)[2]:
        shards[shard].unlink()
    with pytest.raises(
        ValueError, match=r"epoch 1, step 1: every identity of rank 2 is damaged; .*lower .*batch.ranks"
    ):
        next(loader.batches(1))


# The run and its surroundings


@pytest.mark.parametrize("workers", [0, 1])
def test_a_manifest_that_is_swapped_under_a_run_stops_it(damaged, workers):
    batches = make_loader(damaged, load_manifest(damaged), workers=workers).batches(50)
    next(batches)
    edit_train(damaged, names=tuple(f"other {i}" for i in range(16)))
    with pytest.raises(ValueError, match=r"manifest\.json was replaced while this run read the shards"):
        for _ in batches:
            pass


TRAINING = "TrainLoader(data, joined, plan, Augmentation(AugmentConfig())).batches(10**6)"
EVALUATION = "EvalLoader(root, split, list(range(8)) * 1000, Pixels(32, 16), batch_size=1).batches(2)"


def run_with_workers(drawn: Drawn, folder: Path, at_step_2: str, batches: str = TRAINING) -> tuple[int, str]:
    """The exit status and the output of a program that does `at_step_2` while two workers decode, and continues."""
    (folder / "program.py").write_text(f"""
import multiprocessing, os, signal, sys
from reid.config import AugmentConfig, DataConfig
from reid.data.augmentation import Augmentation
from reid.data.eval_loader import EvalLoader
from reid.data.train_loader import TrainLoader
from reid.data.workers import explain_killed_worker
from reid.data.joined import Joined
from reid.data.images import Pixels
from reid.data.plan import Plan
root = {str(drawn.root)!r}
data = DataConfig(root=root, height=32, width=16, workers=2)
joined = Joined.load([root])
split = joined.split
plan = Plan(split.images, split.shard, len(split.shards), identities=8, images=3, streams=4)
sys.kept = batches = {batches}  # to the end, as the stack trace of an error keeps it
try:
    for step, _ in enumerate(batches):
        if step == 2:
            {at_step_2}
except RuntimeError as error:
    print(explain_killed_worker(error))
""")
    return Program(str(folder / "program.py")).end()


@pytest.mark.parametrize("batches", [TRAINING, EVALUATION], ids=["training", "evaluation"])
def test_a_killed_worker_is_an_error_and_no_hang(drawn, tmp_path, batches):
    """Of several kinds, at whatever line the main thread is: torch raises it from a signal handler."""
    kill = "os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)"
    status, said = run_with_workers(drawn, tmp_path, kill, batches)
    assert status == 0, said
    assert "a decoding process was killed" in said and "lower data.workers" in said
    assert explain_killed_worker(RuntimeError("out of memory")) is None
    caught = (
        "Caught {} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ...\n{}: no {}\n"
    )
    assert explain_killed_worker(RuntimeError(caught.format("KeyError", "KeyError", 5))) is None
    explained = explain_killed_worker(RuntimeError(caught.format("MemoryError", "MemoryError", 5)))
    assert "(MemoryError: no 5); if the machine ran out of memory" in explained


def test_an_error_ends_the_program_and_its_workers(drawn, tmp_path):
    """Its stack trace keeps the iterator alive, so that nothing but the program's end can end the workers."""
    status, said = run_with_workers(drawn, tmp_path, "raise MemoryError('too much')")
    assert status == 1 and "MemoryError: too much" in said


@pytest.mark.parametrize("free", [10 << 20, 10 << 30])
def test_memory_of_a_worker_that_is_gone_is_explained(monkeypatch, free):
    """Shared memory is named if it may be the cause: a process that writes to a full one is killed, too."""
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: SimpleNamespace(total=64 << 20, used=0, free=free))

    def parts():
        raise ConnectionResetError(104, "Connection reset by peer")
        yield

    monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=lambda seconds: None))
    with pytest.raises(RuntimeError) as raised:
        receive(parts())
    said = explain_killed_worker(raised.value)
    assert "a decoding process was killed" in said
    assert ("/dev/shm" in said and "data.workers=0" in said) == (free < 64 << 20)
    assert ("out of memory" in said) == (free > 64 << 20)


def test_full_shared_memory_is_named(drawn, monkeypatch):
    """Every tensor is moved where an error reaches the program: in the queue's own thread a batch would be lost."""

    def full(tensor):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    monkeypatch.setattr(workers, "SMALL_BYTES", 0)
    with pytest.raises(ValueError, match=r"/dev/shm.*need 0\.\d MiB.*data.workers=0"):
        next(make_loader(drawn.root, drawn.manifest, workers=1).batches(1))
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...")
    with pytest.raises(RuntimeError) as raised:
        list(EvalLoader(drawn.root, drawn.manifest.split("query"), [0], PIXELS, batch_size=1).batches(1))
    for error in (killed, raised.value):
        explained = explain_killed_worker(error)
        for text in ("/dev/shm", "MiB", "data.workers=0", "--shm-size"):
            assert text in explained


def test_the_global_random_numbers_are_kept(drawn):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    next(make_loader(drawn.root, drawn.manifest, workers=1).batches(1))
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("start", [0, 7, 15])
def test_a_bounded_pool_gives_the_plans_images(drawn, start):
    loader = make_loader(drawn.root, drawn.manifest, pool_images=8, images=2, identities=4, steps=16)
    steps = [loader.plan.stream_steps(0, stream) for stream in range(4)]
    assert all(part.readings.max() for part in steps)
    for _, step, batch in loader.batches(1, (0, start)):
        wanted = [
            [int(row), int(image)]
            for part in steps
            for row, images in zip(part.identities[step], part.images[step], strict=True)
            for image in images
            if image >= 0
        ]
        assert batch.ids.tolist() == wanted


def test_a_pool_holds_what_the_plan_says(drawn, monkeypatch):
    """The most images held at once, counted in the pool itself."""
    loader = make_loader(drawn.root, drawn.manifest, pool_images=8, images=2, identities=4, steps=16)
    largest = 0

    def release(self, step, original=Pool.release):
        nonlocal largest
        largest = max(largest, sum(len(identity.files) for identity in self.held.values()))
        original(self, step)

    monkeypatch.setattr(Pool, "release", release)
    for stream in range(4):
        largest = 0
        for _ in loader.read_streams(0, {stream: loader.plan.stream_steps(0, stream)}):
            pass
        assert largest == peak_pool_images(loader.plan, loader.plan.stream_steps(0, stream))


@pytest.mark.parametrize("pool_images", [0, 8])
def test_what_concerns_no_identity_is_told_once_an_epoch(damaged, pool_images):
    """A bounded pool reads the shards anew in each pass, and meets the damage each time."""
    damage_three_identities(damaged)
    loader = skipping(damaged, pool_images=pool_images, identities=4)
    readings = [int(loader.plan.stream_steps(0, stream).readings.max()) + 1 for stream in range(4)]
    assert min(readings) > 1 if pool_images else max(readings) == 1
    told = [each for epoch, _, batch in loader.batches(1) for each in batch.dropped]
    assert any(not each.rows for each in told) and any(each.rows for each in told)
    assert len(told) == len(set(told))
    assert [each for _, _, batch in loader.batches(2, (1, 0)) for each in batch.dropped] != []


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
        assert largest_difference(image, sources[index]) <= 1


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
        assert largest_difference(torch.from_numpy(one).permute(2, 0, 1), other) <= 1


def read_member(drawn: Drawn, row: int, image: int) -> io.BytesIO:
    part = drawn.manifest.split("gallery")
    with tarfile.open(drawn.root / part.shards[part.shard[row]].name) as tar:
        for member in tar.getmembers():
            if member.name.endswith(".json") and json.load(tar.extractfile(member))["pid"] == part.pids[row]:
                return io.BytesIO(tar.extractfile(member.name.replace(".json", f".{image:03d}.jpg")).read())
    raise AssertionError("not in the shard")
