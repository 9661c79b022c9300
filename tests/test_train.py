"""What training refuses before its first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reid.config import Config
from reid.train import train
from shards import market1501
from shards.build import build
from shards.pedestrians import synthesize


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    synthesize(
        folder / "drawn", identities_train=8, identities_test=2, images_per_identity=4, cameras=2, distractors=0,
        junk=0, height=32, width=16, progress=False,
    )  # fmt: skip
    build(market1501.read(folder / "drawn"), folder / "shards", num_shards=2)
    return folder / "shards"


def break_root(config: Config) -> None:
    config.data.root = "no/such/folder"


def break_streams(config: Config) -> None:
    config.batch.identities = 6


def break_shards(config: Config) -> None:
    config.batch.identities, config.batch.streams = 8, 4


def break_margin(config: Config) -> None:
    config.loss.margin = 0.0


def break_weights(config: Config) -> None:
    config.model.weights = "no/such/file.safetensors"


def break_losses(config: Config) -> None:
    config.loss.cross_entropy = config.loss.triplet = config.loss.mctl = config.loss.center = 0.0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_root, "no/such/folder"),
        (break_streams, "batch.identities = 6 does not divide among batch.streams = 4"),
        (break_shards, "2 training shards are too few for batch.streams = 4; rebuild with --shards 4"),
        (break_margin, r"loss.margin = 0.0 must be greater than 0"),
        (break_weights, "model.weights = no/such/file.safetensors: no such file"),
        (break_losses, "every loss weight is 0"),
    ],
)
def test_bad_input_is_named_before_the_first_step(
    root: Path, tmp_path: Path, damage: Callable[[Config], None], message: str
) -> None:
    config = Config(name="broken", runs=str(tmp_path))
    config.data.root = str(root)
    config.batch.identities, config.batch.streams = 4, 4 if damage is break_streams else 2
    config.model.encoder, config.model.weights = "resnet10", "none"
    config.track.wandb = "off"
    damage(config)
    with pytest.raises(ValueError, match=message):
        train(config)
    assert not (tmp_path / "broken" / "checkpoints").exists()
