"""Several datasets as one: the same batches whoever reads them, and the batches of one dataset as they always were."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.config import Config, DataConfig
from reid.data.images import Pixels
from reid.data.joined import Joined
from reid.data.manifest import load_manifest, save_manifest
from reid.data.train_loader import Batch, TrainLoader, join
from reid.training.data import TrainData, load_data
from tests.support.drawn import HEIGHT, WIDTH, Drawn, draw_dataset
from tests.support.loading import AUGMENTATION, assert_same, hash_batches, make_loader
from tests.support.plans import market_like

# Of the batches of a single dataset before there could be several.
OF_DRAWN = "8364432f0454a045ffaf0364ad9ecefa5cf0e05e8b0d3261811fecba353e9e14"
OF_REPEATED = "687de6d4fedea83aad12c0d272636effdb301ce18a9f4b50e6e2b245cc29e143"
OF_MARKET = "78ca8d261da8ef4f94a42b05e4377f1710d03b9a790d75ae67e310300c1e5b10"
OF_BOUNDED = "bc5683166da7a8ec37d1bcb74082601b3f2446acd48e1d84ab1989625c510c2f"


def test_one_dataset_gives_the_batches_that_it_always_gave(drawn):
    assert hash_batches(make_loader(drawn.root, drawn.manifest).batches(2)) == OF_DRAWN
    other = make_loader(drawn.root, drawn.manifest, repeat_short=True, pool_images=12)
    assert hash_batches(other.batches(2)) == OF_REPEATED
    plan = market_like(np.random.default_rng(0))
    for same, wanted in ((plan, OF_MARKET), (replace(plan, pool_images=300, seed=5), OF_BOUNDED)):
        digest = hashlib.sha256()
        for steps in (same.stream_steps(1, stream) for stream in range(same.streams)):
            for column in (steps.shards, steps.identities, steps.images, steps.passes, steps.readings):
                digest.update(column.astype("<i8").tobytes())
        assert digest.hexdigest() == wanted


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """A dataset of the same name with people of the same numbers, in larger images."""
    folder = tmp_path_factory.mktemp("other")
    return draw_dataset(
        folder, (3, 4, 5, 2, 6, 4, 3, 5), num_test=2, num_shards=4, size=(2 * HEIGHT, 2 * WIDTH), seed=1
    )


def load(*roots: Path, world_size: int = 1, **batch: object) -> tuple[Config, TrainData]:
    config = Config(runs="nowhere", seed=7)
    config.data = DataConfig(root=[str(root) for root in roots], height=HEIGHT, width=WIDTH, workers=0)
    config.batch = replace(config.batch, **{"identities": 12, "images": 3, "streams": 6, "steps_per_epoch": 5} | batch)
    return config, load_data(config, world_size)


def read(
    found: tuple[Config, TrainData], world_size=1, workers=0, start=(0, 0), **knobs
) -> list[tuple[int, int, Batch]]:
    """The global batches of two epochs, put together from those of the ranks."""
    config, data = found
    settings = replace(config.data, workers=workers, **knobs)
    loaders = (TrainLoader(settings, data.joined, data.plan, AUGMENTATION, r, world_size) for r in range(world_size))
    parts = [list(loader.batches(2, start)) for loader in loaders]
    return [(*entries[0][:2], join([batch for _, _, batch in entries])) for entries in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def both(drawn, other) -> tuple[Config, TrainData]:
    return load(drawn.root, other.root)


def test_every_step_has_the_share_of_each_dataset_and_its_images(both, drawn, other):
    config, data = both
    joined, pixels = data.joined, Pixels.from_config(config.data)
    assert data.plan.shares == tuple(8 if dataset.root == str(drawn.root) else 4 for dataset in joined.datasets)
    assert len(set(joined.split.pids.tolist())) == data.num_classes == 24
    sources = [path for dataset in joined.datasets
               for path in (drawn if dataset.root == str(drawn.root) else other).sources("train")]  # fmt: skip
    pids = [dataset.train.pids for dataset in joined.datasets]
    for _, _, batch in read(both):
        rows = batch.ids[:, 0].unique().numpy()
        assert np.bincount(joined.dataset_of_row[rows]).tolist() == list(data.plan.shares)
        for image, label, (row, number) in zip(batch.images, batch.labels.tolist(), batch.ids.tolist(), strict=True):
            path = sources[row][number]
            assert torch.equal(image, pixels.decode(path.read_bytes(), str(path)))
            assert int(path.name.split("_")[0]) == np.concatenate(pids)[row]
            assert data.dataset_of_class[label] == joined.dataset_of_row[row]
    cameras = [{camera for seen in part for camera in seen} for part in np.split(
        np.array(joined.split.cameras, dtype=object), [len(pids[0])])]  # fmt: skip
    assert not cameras[0] & cameras[1]


def test_the_batches_are_the_same_for_any_ranks_workers_start_and_order(both, drawn, other):
    wanted = read(both)
    for world_size, workers in ((2, 0), (3, 1), (6, 0), (1, 2)):
        assert_same(read(both, world_size, workers), wanted)
    assert_same(read(both, 2, start=(1, 2)), [entry for entry in wanted if entry[:2] >= (1, 2)])
    swapped = load(other.root, drawn.root)
    assert swapped[1].joined.fingerprint == both[1].joined.fingerprint
    assert_same(read(swapped), wanted)


def test_shares_belong_to_the_folders_as_they_are_listed(drawn, other):
    for roots, shares in (((drawn, other), [4, 8]), ((other, drawn), [8, 4])):
        data = load(*(each.root for each in roots), shares=shares, streams=3)[1]
        taken = dict(zip((dataset.root for dataset in data.joined.datasets), data.plan.shares, strict=True))
        assert taken == {str(drawn.root): 4, str(other.root): 8}
    chosen = load(drawn.root, other.root, identities=16, shares=[8, 8], streams="auto")[1].plan
    assert (chosen.streams, chosen.shares) == (8, (8, 8))
    with pytest.raises(ValueError, match=r"drawn-\w{8}: a share = 12, and only 8 identities .*other batch\.shares"):
        load(drawn.root, other.root, identities=16, shares=[4, 12], streams="auto")


def test_datasets_of_one_name_have_labels_and_their_identities_names_of_their_own(both):
    joined = both[1].joined
    assert joined.labels == tuple(f"drawn-{fingerprint[:8]}" for fingerprint in joined.fingerprints)
    assert {name.split("/")[0] for name in joined.split.names} == set(joined.labels)


def test_the_same_data_twice_is_refused(drawn, other, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(other.root, copy)
    save_manifest(replace(load_manifest(copy), dataset="renamed"), copy)
    for roots in ((other.root, drawn.root, other.root), (other.root, copy), (other.root, f"{other.root}/")):
        with pytest.raises(ValueError, match=r"(twice|holds the same data as .*); give each dataset once"):
            Joined.load([str(root) for root in roots])


def test_a_dataset_without_train_is_named_by_its_folder(drawn, other, tmp_path):
    tests = {name: split for name, split in load_manifest(other.root).splits.items() if name != "train"}
    save_manifest(replace(load_manifest(other.root), splits=tests), tmp_path)
    for roots in ([drawn.root, tmp_path], [tmp_path]):
        with pytest.raises(ValueError, match=rf"{tmp_path}: has no split train, only query, gallery; give data.root"):
            load(*roots)


def test_damage_and_a_new_manifest_of_any_dataset_are_found(drawn, other, tmp_path):
    root = tmp_path / "other"
    shutil.copytree(other.root, root)
    (root / "train-0002.tar").unlink()
    found = load(drawn.root, root)
    with pytest.raises(ValueError, match=rf"{root}/train-0002\.tar: .*verify --decode {root}` lists"):
        read(found)
    joined = found[1].joined
    (number,) = (number for number, dataset in enumerate(joined.datasets) if dataset.root == str(root))
    gone = np.concatenate(
        [np.where(each.train.shard == 2, i == number, False) for i, each in enumerate(joined.datasets)]
    )
    skipped = read(found, on_damage="skip")
    lost = {row for _, _, batch in skipped for dropped in batch.dropped for row in dropped.rows}
    assert lost == set(np.flatnonzero(gone).tolist())
    assert not lost & {row for _, _, batch in skipped for row in batch.ids[:, 0].tolist()}
    batches = TrainLoader(replace(found[0].data, on_damage="skip"), joined, found[1].plan, AUGMENTATION).batches(2)
    next(batches)
    save_manifest(replace(load_manifest(root), notice="new"), root)
    with pytest.raises(ValueError, match=rf"{root}: manifest\.json was replaced"):
        list(batches)


def test_identities_are_held_out_of_each_dataset(drawn, other):
    config, _ = load(drawn.root, other.root)
    config.data.val_identities, config.batch.streams, config.batch.identities = 6, "auto", 8
    data = load_data(config)
    held = [int(rows.sum()) for rows in data.joined.divide(data.held_out)]
    assert sorted(held) == [2, 4] and held.index(2) == [d.root for d in data.joined.datasets].index(str(other.root))
    config.data.val_identities = 3
    with pytest.raises(ValueError, match=r"val_identities = 3: give at least two for each of 2 datasets"):
        load_data(config)
    config.data.val_identities = 23
    with pytest.raises(ValueError, match=r".*: its share of data\.val_identities = \d+: \d+ of the .*smaller number"):
        load_data(config)
