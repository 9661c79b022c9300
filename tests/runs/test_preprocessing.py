"""Mean, std and interpolation of an encoder: from its card through training, evaluation, embedder and exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from reid import Embedder
from reid.config import AugmentConfig, DataConfig, load, save
from reid.data.augmentation import Augmentation
from reid.data.images import Pixels
from reid.data.normalization import IMAGENET_MEAN, IMAGENET_STD, Normalization, describe_pixels
from reid.evaluation.evaluator import extract
from reid.export.exporter import export
from reid.metrics.features import JUNK
from reid.model.preprocessing import complete, own_preprocessing
from reid.runs import checkpoint
from reid.runs.models import ColourHistogram, build_models, find_run, read_config
from tests.support.drawn import HEIGHT, WIDTH, Drawn
from tests.support.runs import make_run

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
BIGGER = {"height": HEIGHT + 8, "width": WIDTH + 4}  # pictures are resized


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, drawn: Drawn) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "clip", drawn, **CLIP, **BIGGER, interpolation="bicubic")


def as_input(path: Path) -> Tensor:
    """A picture as the encoder should see it, without the code of the product."""
    picture = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
    resized = F.interpolate(picture, tuple(BIGGER.values()), mode="bicubic", antialias=True).float() / 255
    mean, std = (torch.tensor(CLIP[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (resized - mean) / std


@pytest.mark.parametrize(
    ("encoder", "wanted"),
    [
        ("resnet50", (IMAGENET_MEAN, IMAGENET_STD, "bilinear")),
        ("osnet_ain_x1_0", (IMAGENET_MEAN, IMAGENET_STD, "bilinear")),
        ("solider_swin_b", ((0.5,) * 3, (0.5,) * 3, "bicubic")),
        ("timm/vit_base_patch16_clip_224.openai", (CLIP["mean"], CLIP["std"], "bicubic")),
        ("timm/vit_base_patch16_siglip_224", ((0.5,) * 3, (0.5,) * 3, "bicubic")),
        ("timm/vit_small_patch16_dinov3", (IMAGENET_MEAN, IMAGENET_STD, "bicubic")),
    ],
)
def test_each_encoder_has_its_own(encoder: str, wanted: object) -> None:
    if encoder.startswith("timm/"):
        pytest.importorskip("timm", reason="timm, an optional dependency, is not installed")
    own = own_preprocessing(encoder)
    assert own == wanted
    assert complete(DataConfig(), encoder) == DataConfig(**own._asdict())
    given = DataConfig(mean=(0.1, 0.2, 0.3), interpolation="bilinear")
    assert complete(given, encoder) == DataConfig(mean=(0.1, 0.2, 0.3), std=own.std, interpolation="bilinear")


def test_training_and_evaluation_see_the_same_pixels(run: Path, drawn: Drawn) -> None:
    """Without changes, augmentation gives what evaluation gives; erased pixels have the mean colour."""
    data = load(run / "config.yaml").data
    pixels, path = Pixels.from_config(data), drawn.sources("query")[0][0]
    image, wanted = pixels.decode(path.read_bytes(), "x")[None], as_input(path)
    still = Augmentation(AugmentConfig(flip=0, pad=0, erase=0), pixels.normalization)
    drawn_changes = still.expand(still.draw(np.random.default_rng(0), 1, *data.image_size), *data.image_size)
    torch.testing.assert_close(still.apply(image, drawn_changes), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels.normalization.apply(image), wanted, atol=1e-5, rtol=0)
    seen = ColourHistogram(normalization=pixels.normalization)(wanted)
    torch.testing.assert_close(seen, ColourHistogram()(Normalization().apply(image)))


def test_evaluation_and_embedder_give_the_models_features(run: Path, drawn: Drawn) -> None:
    embedder = Embedder.load(run, device="cpu")
    part = drawn.manifest.split("query")
    paths = [path for pid, some in zip(part.pids, drawn.sources("query"), strict=True) if pid != JUNK for path in some]
    with torch.no_grad():
        wanted = embedder.model(torch.cat([as_input(path) for path in paths]))
    np.testing.assert_allclose(embedder.embed(paths), wanted, atol=1e-4)
    features = extract(
        embedder.model, drawn.root, drawn.manifest, "query", embedder.pixels, batch_size=8, workers=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    torch.testing.assert_close(features.embeddings, wanted, atol=1e-4, rtol=0)
    described = embedder.describe()
    assert described["mean"] == CLIP["mean"] and described["resize"].startswith("bicubic with antialiasing")


def test_exports_carry_them(run: Path, drawn: Drawn, tmp_path: Path) -> None:
    path = drawn.sources("query")[0][0]
    embedder = Embedder.load(run, device="cpu")
    with torch.no_grad():
        wanted = embedder.model(as_input(path))
    bare = embedder.read(path)[None].float() / 255
    export(str(run), "torch_export", tmp_path / "m.pt2")  # compares the file with the model
    graph = torch.export.load(tmp_path / "m.pt2").module()
    torch.testing.assert_close(graph(bare).detach(), wanted, atol=1e-4, rtol=0)
    export(str(run), "safetensors", tmp_path / "m.safetensors")
    assert json.loads((tmp_path / "m.safetensors.json").read_text())["std"] == list(CLIP["std"])


def rewrite_state(run: Path, **knobs: object) -> Path:
    """Make the newest checkpoint one of an earlier version, of which `knobs` of the model are noted."""
    newest = checkpoint.find(run / "checkpoints")[0]
    state = json.loads((newest / "state.json").read_text())
    del state["describes"]["pixels"]
    state["describes"]["model"] |= knobs
    (newest / "state.json").write_text(checkpoint.format_state(state))
    return newest


def test_a_run_of_an_earlier_version_saw_imagenets(tmp_path: Path, drawn: Drawn) -> None:
    run = make_run(tmp_path / "old", drawn)
    newest = rewrite_state(run)
    config = load(run / "config.yaml")
    assert config.data.mean is None and describe_pixels(config.data)["data.mean"] == list(IMAGENET_MEAN)
    folder, found = find_run(str(run), "newest")
    build_models(found, read_config(folder, found))
    facts = checkpoint.read_facts(newest)["pixels"]
    assert facts == {
        "data.mean": list(IMAGENET_MEAN), "data.std": list(IMAGENET_STD), "data.interpolation": "bilinear",
    }  # fmt: skip


def test_an_earlier_version_left_the_stride_of_timms_resnets(tmp_path: Path, drawn: Drawn) -> None:
    pytest.importorskip("timm", reason="timm, an optional dependency, is not installed")
    run = make_run(tmp_path / "old", drawn, encoder="timm/resnet10t")
    folder, found = find_run(str(run), "newest")
    assert read_config(folder, found).model.last_stride == 1
    rewrite_state(run)
    config = read_config(folder, found)
    assert config.model.last_stride == 2
    assert build_models(found, config)["trained"].get_submodule("encoder.layer4.0.conv1").stride == (2, 2)


def test_a_configuration_with_other_pixels_is_of_another_run(tmp_path: Path, drawn: Drawn) -> None:
    run = make_run(tmp_path / "run", drawn)
    config = load(run / "config.yaml")
    config.data.mean = (0.5, 0.5, 0.5)
    save(config, run / "config.yaml")
    with pytest.raises(
        ValueError, match=r"another model: it was trained with .*0\.485.*config\.yaml says .*0\.5, 0\.5"
    ):
        Embedder.load(run, device="cpu")
