"""reid/model.py: shapes, strides, the neck, weights files, pooling and the colour histogram against slow versions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from reid import model as model_module
from reid.augment import normalize
from reid.model import (
    Classifier,
    ColourHistogram,
    GeneralizedMean,
    ReIDModel,
    build_encoder,
    load_encoder_weights,
    resnet10,
)
from tests.drawn import Bomb


@pytest.fixture(scope="module")
def small() -> ReIDModel:
    torch.manual_seed(0)
    return ReIDModel(100, encoder="resnet10")


def test_training_gives_feature_and_logits_evaluation_the_feature_after_the_neck(small):
    images = torch.randn(3, 3, 64, 32)
    small.train()
    feature, logits = small(images)
    assert feature.shape == (3, 512) and logits.shape == (3, 100)
    assert small.dim == 512
    after_neck = nn.functional.batch_norm(feature, None, None, small.neck.weight, small.neck.bias, training=True)
    torch.testing.assert_close(logits, after_neck @ small.classifier.weight.T)
    small.eval()
    with torch.no_grad():
        found = small(images)
        pooled = small.encoder(images)
    mean, var = small.neck.running_mean, small.neck.running_var
    torch.testing.assert_close(found, (pooled - mean) / (var + small.neck.eps).sqrt() * small.neck.weight)


def test_neck_bias_is_frozen_at_zero_and_the_classifier_has_none(small):
    assert not small.neck.bias.requires_grad and not small.neck.bias.any()
    assert small.neck.weight.requires_grad
    assert [name for name, _ in small.classifier.named_parameters()] == ["weight"]
    frozen = [name for name, parameter in small.named_parameters() if not parameter.requires_grad]
    assert frozen == ["neck.bias"]


def test_classifier_starts_small(small):
    assert small.classifier.weight.std().item() == pytest.approx(0.001, rel=0.03)  # 51,200 draws
    assert abs(small.classifier.weight.mean().item()) < 3e-5


@pytest.mark.parametrize(
    ("last_stride", "stem_stride", "reduction"), [(2, 4, 32), (1, 4, 16), (1, 2, 8), (2, 2, 16), (1, 1, 4), (2, 1, 8)]
)
def test_strides_set_the_size_of_the_feature_map(last_stride, stem_stride, reduction):
    assert map_size(build_encoder("resnet10", "none", last_stride, stem_stride)) == (64 // reduction, 32 // reduction)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_strides_of_published_encoders(name):
    """Basic blocks carry the stride in their first convolution, bottlenecks in their second."""
    assert map_size(build_encoder(name, "none", 1, 4)) == (4, 2)


def map_size(encoder: nn.Module) -> tuple[int, ...]:
    sizes = []
    encoder.layer4.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    with torch.no_grad():
        encoder.eval()(torch.randn(1, 3, 64, 32))
    return sizes[0]


def test_resnet10_has_one_block_per_stage():
    encoder = resnet10()
    assert [len(stage) for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4)] == [1, 1, 1, 1]


def test_unknown_encoder():
    with pytest.raises(ValueError, match=r"model\.encoder = 'resnet51'; choose one of resnet10, resnet18"):
        build_encoder("resnet51", "none", 1, 4)


@pytest.mark.parametrize("p", [1.0, 3.0, 6.5])
def test_generalized_mean_against_loops(p):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    wanted = np.zeros((2, 3, 1, 1))
    for image in range(2):
        for channel in range(3):
            values = [max(float(value), 1e-6) ** p for value in x[image, channel].flatten()]
            wanted[image, channel] = (sum(values) / len(values)) ** (1 / p)
    np.testing.assert_allclose(GeneralizedMean(p)(x).detach(), wanted, rtol=1e-5)


def test_generalized_mean_learns_its_exponent():
    model = ReIDModel(2, encoder="resnet10", pool="gem")
    feature, _ = model.train()(torch.randn(2, 3, 32, 16))
    feature.sum().backward()
    assert model.encoder.avgpool.p.grad.abs() > 0
    assert model.encoder.avgpool.p.item() == 3.0


# Weights files


def write_weights(path: Path, state: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return resnet10().state_dict()


def assert_encoder_holds(encoder: nn.Module, state: dict[str, torch.Tensor]) -> None:
    own = encoder.state_dict()
    for name, value in state.items():
        if not name.startswith("fc."):
            assert torch.equal(own[name], value), name


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, state, suffix):
    """A classifier of another size in the file does not matter."""
    path = write_weights(tmp_path / f"weights{suffix}", {**state, "fc.weight": torch.zeros(7, 512)})
    assert_encoder_holds(build_encoder("resnet10", str(path), 1, 4), state)
    assert_encoder_holds(ReIDModel(5, encoder="resnet10", weights=str(path)).encoder, state)


def test_weights_from_a_whole_model(tmp_path, small):
    """A checkpoint's model.safetensors will do: its encoder's tensors are called encoder.*."""
    path = write_weights(tmp_path / "model.safetensors", small.state_dict())
    encoder = resnet10()
    load_encoder_weights(encoder, path)
    assert_encoder_holds(encoder, {name[8:]: v for name, v in small.state_dict().items() if name[:8] == "encoder."})


def test_weights_of_another_encoder(tmp_path, state):
    path = write_weights(tmp_path / "resnet10.pth", state)
    with pytest.raises(ValueError, match=r"resnet10\.pth: 48 of 120 tensors .*first layer1\.1\.conv1\.weight"):
        build_encoder("resnet18", str(path), 1, 4)


def test_weights_with_a_tensor_of_another_shape(tmp_path, state):
    path = write_weights(tmp_path / "odd.safetensors", {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)})
    with pytest.raises(ValueError, match=r"odd\.safetensors: 1 of \d+ tensors .*first conv1\.weight"):
        load_encoder_weights(resnet10(), path)


def test_weights_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.pth: no such file; give imagenet, none or a local file"):
        build_encoder("resnet10", str(tmp_path / "nowhere.pth"), 1, 4)


def test_code_in_a_weights_file_does_not_run(tmp_path):
    torch.save({"conv1.weight": Bomb(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        build_encoder("resnet10", str(tmp_path / "evil.pth"), 1, 4)
    assert not (tmp_path / "ran").exists()


def test_no_imagenet_weights_for_resnet10():
    with pytest.raises(ValueError, match=r"no ImageNet weights for resnet10; use model\.weights = none"):
        build_encoder("resnet10", "imagenet", 1, 4)


def test_imagenet_weights_without_internet(monkeypatch, tmp_path):
    """What urllib raises there is an OSError; the error says how to bring the weights."""

    def download(weights):
        raise ConnectionRefusedError("no route")

    monkeypatch.setitem(model_module.ENCODERS, "resnet18", download)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=rf"weights of resnet18.*no route.*on a machine with internet.*{tmp_path}"):
        build_encoder("resnet18", "imagenet", 1, 4)


# The baseline without learning


@pytest.mark.parametrize(("stripes", "bins", "height"), [(4, (4, 4, 4), 32), (3, (3, 8, 8), 10), (1, (2, 3, 4), 5)])
def test_colour_histogram_against_numpy(stripes, bins, height):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, height, 6), dtype=np.uint8)
    images[0, :, :, :2], images[1] = 0, 255
    found = ColourHistogram(stripes, bins, side=1 / 6)(normalize(torch.from_numpy(images)))
    assert found.shape == (3, stripes * np.prod(bins))
    edges = [np.linspace(0, 256, b + 1) for b in bins]
    for image, features in zip(images, found.numpy(), strict=True):
        wanted = []
        for stripe in np.array_split(image[:, :, 1:-1], stripes, axis=1):
            counts, _ = np.histogramdd(stripe.reshape(3, -1).T, bins=edges)
            wanted.append(np.sqrt(counts.ravel() / counts.sum()))
        np.testing.assert_allclose(features, np.concatenate(wanted), atol=1e-6)


# Classifier heads


@pytest.mark.parametrize("head", ["linear", "cosine", "euclidean"])
def test_heads_against_their_definitions(head):
    torch.manual_seed(0)
    classifier = Classifier(6, 5, head, temperature=0.5)
    nn.init.normal_(classifier.weight)
    features = torch.randn(4, 6)
    logits = classifier(features)
    for row, feature in enumerate(features):
        for column, center in enumerate(classifier.weight):
            dot = (feature * center).sum()
            wanted = {
                "linear": dot,
                "cosine": dot / feature.norm() / center.norm(),
                # up to |f|^2, the same for all classes
                "euclidean": feature.square().sum() - (feature - center).square().sum(),
            }[head]
            torch.testing.assert_close(logits[row, column], wanted / 0.5)


def test_the_euclidean_head_gives_the_softmax_of_negative_squared_distances():
    torch.manual_seed(0)
    classifier = Classifier(6, 5, "euclidean")
    nn.init.normal_(classifier.weight)
    features = torch.randn(4, 6)
    distances = torch.cdist(features, classifier.weight).square()
    torch.testing.assert_close(classifier(features).softmax(dim=1), (-distances).softmax(dim=1))


def test_heads_are_float32_islands():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for head in ("cosine", "euclidean"):
            assert Classifier(6, 5, head)(torch.randn(2, 6)).dtype == torch.float32


@pytest.mark.parametrize(("knobs", "message"), [({"head": "arc"}, "model.head = 'arc'"), ({"temperature": 0}, "0")])
def test_bad_heads_are_named(knobs, message):
    with pytest.raises(ValueError, match=message):
        Classifier(6, 5, **knobs)
