"""reid/model/positions.py: position embeddings keep their rows and columns, whatever the grid of a file is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from reid.model.encoders import ImageTransformer
from reid.model.positions import Grid, infer_grid, resize_positions
from reid.model.pretrained import load_weights
from reid.runs import checkpoint
from reid.runs.checkpoint import Parts, TrainState
from tests.support.models import make_encoder, model_config, small_vit

PATCH = 8  # of small_vit
PAIRS = [((24, 8), (16, 12)), ((18, 8), (12, 12)), ((16, 8), (8, 16)), ((12, 12), (18, 8)), ((16, 12), (24, 8))]


def resize_with_pillow(positions: Tensor, stored: Grid, grid: Grid) -> np.ndarray:
    """(rows * columns, D) of another grid, channel by channel."""
    channels = [Image.fromarray(channel.reshape(stored).numpy()) for channel in positions.T]
    resized = [np.asarray(image.resize((grid[1], grid[0]), Image.Resampling.BICUBIC)) for image in channels]
    return np.stack(resized, axis=-1).reshape(grid[0] * grid[1], -1)


@pytest.mark.parametrize(("stored", "grid"), [((14, 14), (16, 8)), ((14, 14), (24, 24)), ((16, 8), (24, 12)), *PAIRS])
def test_resized_positions_against_pillow(stored: Grid, grid: Grid) -> None:
    positions = torch.randn(1, 2 + stored[0] * stored[1], 3, generator=torch.Generator().manual_seed(0))
    found = resize_positions(positions, grid, num_prefix=2, stored_grid=stored)
    assert torch.equal(found[:, :2], positions[:, :2])
    np.testing.assert_allclose(found[0, 2:], resize_with_pillow(positions[0, 2:], stored, grid), atol=1e-5)


@pytest.mark.parametrize("grid", [(16, 8), (24, 8), (12, 12), (8, 16)])
def test_positions_of_an_equal_grid_stay(grid: Grid) -> None:
    positions = torch.randn(1, 1 + grid[0] * grid[1], 3)
    assert resize_positions(positions, grid, stored_grid=grid) is positions


@pytest.mark.parametrize(
    ("patches", "grid", "wanted"),
    [
        (196, (16, 8), (14, 14)), (196, (28, 7), (14, 14)), (196, (8, 16), (14, 14)), (256, (16, 8), (16, 16)),
        (128, (16, 8), (16, 8)), (128, (24, 12), (16, 8)), (1369, (16, 8), (37, 37)), (16, (6, 2), (4, 4)),
        *((count, grid, None) for count in (192, 144) for grid in ((24, 8), (16, 12), (12, 12), (18, 8))),
        (128, (8, 16), None), (128, (12, 12), None), (576, (24, 24), None), (15, (16, 8), None), (7, (16, 8), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_only_one_likely_grid_is_taken(patches: int, grid: Grid, wanted: Grid | None, prefix: int) -> None:
    if wanted:
        assert infer_grid(prefix + patches, grid, prefix) == wanted
    else:
        with pytest.raises(ValueError, match=rf"{prefix + patches} position embeddings.*{grid[0]} x {grid[1]} patches"):
            infer_grid(prefix + patches, grid, prefix)


@pytest.mark.parametrize(
    ("count", "prefix", "tokens"),
    [(1 + 288, 0, 1), (1 + 196, 0, 1), (144, 0, 1), (196, 1, 1), (210, 1, 1), (144, 1, 1), (256, 1, 1), (128, 1, 1)],
)
def test_positions_with_and_without_those_of_tokens_are_not_confused(count: int, prefix: int, tokens: int) -> None:
    """289 may be 17 x 17, or 24 x 12 and a class token; 144 less a token 13 x 11."""
    with pytest.raises(ValueError, match="position embeddings is unknown"):
        infer_grid(count, (16, 8), prefix, tokens)


@pytest.mark.parametrize(("count", "tokens"), [(196, 1), (256, 4), (128, 1)])
def test_positions_without_those_of_tokens(count: int, tokens: int) -> None:
    """As in CaiT and in ViTs with registers."""
    assert infer_grid(count, (16, 8), 0, tokens) == {196: (14, 14), 256: (16, 16), 128: (16, 8)}[count]


def vit(grid: Grid) -> ImageTransformer:
    encoder = ImageTransformer(small_vit(), PATCH * grid[0], PATCH * grid[1])
    torch.nn.init.normal_(encoder.encoder.pos_embedding)
    return encoder


def tensors(encoder: torch.nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: value.clone() for name, value in encoder.state_dict().items()}


def assert_resized(encoder: ImageTransformer, stored: ImageTransformer) -> None:
    found, positions = encoder.encoder.pos_embedding[0].detach(), stored.encoder.pos_embedding[0].detach()
    assert torch.equal(found[0], positions[0])
    np.testing.assert_allclose(found[1:], resize_with_pillow(positions[1:], stored.grid, encoder.grid), atol=1e-5)


def save_bare(stored: ImageTransformer, folder: Path) -> Path:
    torch.save(tensors(stored), folder / "vit.pth")
    return folder / "vit.pth"


def save_export(stored: ImageTransformer, folder: Path, **header: str) -> Path:
    size = {"height": str(PATCH * stored.grid[0]), "width": str(PATCH * stored.grid[1])}
    save_file(tensors(stored, "encoder."), folder / "vit.safetensors", {**size, **header})
    return folder / "vit.safetensors"


def save_run(stored: ImageTransformer, folder: Path) -> Path:
    model = torch.nn.Sequential()
    model.encoder = stored
    parts = Parts(model, {"classes": 3}, torch.nn.Linear(1, 1), torch.optim.SGD(model.parameters()))
    return checkpoint.save(folder / "checkpoints", parts, TrainState(1, 0), keep=1) / "model.safetensors"


def save_early_run(stored: ImageTransformer, folder: Path) -> Path:
    """Without a grid in the header of model.safetensors: the run's configuration has the size of its images."""
    path = save_run(stored, folder)
    save_file(tensors(stored, "encoder."), path)
    state = json.loads((path.parent / "state.json").read_text())
    state["files"]["model.safetensors"] = checkpoint.hash_file(path)
    (path.parent / "state.json").write_text(checkpoint.format_state(state))
    (folder / "config.yaml").write_text(
        f"data: {{height: {PATCH * stored.grid[0]}, width: {PATCH * stored.grid[1]}}}\n"
    )
    return path


@pytest.mark.parametrize(
    ("write", "stored_grid", "grid"),
    [*((write, *pair) for write in (save_export, save_run) for pair in PAIRS), (save_early_run, *PAIRS[0])],
)
def test_our_own_files_say_their_grid(tmp_path: Path, write, stored_grid: Grid, grid: Grid) -> None:
    stored = vit(stored_grid)
    path = write(stored, tmp_path)
    assert_resized(vit_loaded(grid, path), stored)
    assert torch.equal(vit_loaded(stored_grid, path).encoder.pos_embedding, stored.encoder.pos_embedding)
    with pytest.raises(ValueError, match=r"model\.weights_grid = \[9, 9\], but the file says"):
        vit_loaded(grid, path, (9, 9))


def vit_loaded(grid: Grid, path: Path, given: Grid | None = None) -> ImageTransformer:
    encoder = vit(grid)
    load_weights(encoder, path, model_config(weights_grid=given))
    return encoder


@pytest.mark.parametrize(("stored_grid", "grid"), PAIRS)
def test_a_bare_file_with_several_likely_grids_needs_the_knob(tmp_path: Path, stored_grid: Grid, grid: Grid) -> None:
    stored = vit(stored_grid)
    path = save_bare(stored, tmp_path)
    with pytest.raises(ValueError, match=r"vit\.pth: the grid of .*; give .* model\.weights_grid=\[rows,columns\]"):
        vit_loaded(grid, path)
    assert_resized(vit_loaded(grid, path, stored_grid), stored)
    assert torch.equal(vit_loaded(stored_grid, path, stored_grid).encoder.pos_embedding, stored.encoder.pos_embedding)
    with pytest.raises(ValueError, match=r"are not those of 9 x 9 patches and 1 more; give its model\.weights_grid"):
        vit_loaded(grid, path, (9, 9))


def test_a_grid_that_is_assumed_is_said_in_the_log(tmp_path: Path) -> None:
    path = save_bare(vit((4, 4)), tmp_path)
    assert "of 4 x 4 patches (assumed: the file does not say), resized to 6 x 2" in load_weights(
        vit((6, 2)), path, model_config()
    )
    assert "of 4 x 4 patches;" in load_weights(vit((4, 4)), path, model_config(weights_grid=(4, 4)))


def test_a_header_that_is_no_grid(tmp_path: Path) -> None:
    path = save_export(vit((4, 4)), tmp_path, grid="x")
    with pytest.raises(ValueError, match=r"vit\.safetensors: its header has grid = 'x'"):
        load_weights(vit((4, 4)), path, model_config())


@pytest.mark.parametrize("name", ["class_token", "conv_proj.weight", "encoder.pos_embedding"])
@pytest.mark.parametrize("shape", [(), (0,), (3,)])
def test_a_file_with_odd_shapes_is_refused_by_name(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    size = {"height": "32", "width": "32"}
    save_file({**tensors(vit((4, 4))), name: torch.zeros(shape)}, tmp_path / "vit.safetensors", size)
    with pytest.raises(ValueError, match=rf"vit\.safetensors: .* have another shape, the first {name};"):
        load_weights(vit((4, 4)), tmp_path / "vit.safetensors", model_config())


def test_an_encoder_without_positions_refuses_the_knob(tmp_path: Path) -> None:
    torch.save(make_encoder("resnet10")[0].state_dict(), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"model\.weights_grid = \[4, 4\]: the encoder has no grid"):
        make_encoder("resnet10", str(tmp_path / "x.pth"), weights_grid=(4, 4))
