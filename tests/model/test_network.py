"""The packages reid.model and its neighbours: neck, heads, frozen parts, the command line, the colour histogram."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from reid.data.normalization import Normalization
from reid.model.__main__ import main
from reid.model.encoders import ENCODERS
from reid.model.network import Classifier, ReIDModel, drop_frozen_gradients, freeze_heads
from reid.runs.models import ColourHistogram
from tests.support.models import make_model
from tests.support.narrow import use_narrow_resnet10
from tests.support.status import status_of

LOGITS = {"rtol": 0, "atol": 4e-5}  # float32: 8 roundings of sums up to 40, divided by a temperature of 0.5


@pytest.fixture
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_resnet10(monkeypatch)


@pytest.fixture
def _constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number for each weight where no value matters: 86 million random ones take a second."""
    for name in ("kaiming_uniform_", "xavier_uniform_", "trunc_normal_", "normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **knobs: nn.init.constant_(tensor, 0.01))


@pytest.fixture(scope="module")
def small() -> ReIDModel:
    torch.manual_seed(0)
    return make_model(100)


def test_training_gives_feature_and_logits_evaluation_the_feature_after_the_neck(small):
    images = torch.randn(3, 3, 64, 32)
    small.train()
    feature, after_neck, logits = small(images)
    assert feature.shape == (3, 512) and logits.shape == (3, 100)
    assert small.dim == 512
    expected = nn.functional.batch_norm(feature, None, None, small.neck.weight, small.neck.bias, training=True)
    torch.testing.assert_close(after_neck, expected)
    torch.testing.assert_close(logits, after_neck @ small.classifier.weight.T)
    small.eval()
    with torch.no_grad():
        found = small(images)
        pooled = small.encoder(images)
    mean, var = small.neck.running_mean, small.neck.running_var
    torch.testing.assert_close(found, (pooled - mean) / (var + small.neck.eps).sqrt() * small.neck.weight)


@pytest.mark.usefixtures("_narrow")
def test_an_embedding_gives_features_their_length(tmp_path):
    """It is linear, without bias, learns with the heads, and comes with the neck of a run; 0 changes no tensor."""
    torch.manual_seed(0)
    model = make_model(5, embedding=16)
    encoded: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda module, inputs, output: encoded.append(output))
    features, after_neck, logits = model(torch.randn(4, 3, 32, 16))
    torch.testing.assert_close(features, encoded[0] @ model.embedding.weight.T)
    assert model.dim == 16 and after_neck.shape == (4, 16) and logits.shape == (4, 5)
    logits.square().sum().backward()
    assert model.embedding.weight.grad.abs().sum() > 0
    save_file({**model.state_dict()}, tmp_path / "model.safetensors")
    again = make_model(7, embedding=16, weights=str(tmp_path / "model.safetensors"), weights_neck=True)
    assert torch.equal(again.embedding.weight, model.embedding.weight)
    assert torch.equal(again.neck.running_mean, model.neck.running_mean)
    assert "with its embedding and neck" in again.initial_weights
    fresh = make_model(7, embedding=16, weights=str(tmp_path / "model.safetensors"))
    assert not torch.equal(fresh.embedding.weight, model.embedding.weight)
    with pytest.raises(
        ValueError, match=r"weights_neck = true: embedding\.weight is \(16, 64\) in the file, here \(8, 64\)"
    ):
        make_model(7, embedding=8, weights=str(tmp_path / "model.safetensors"), weights_neck=True)
    assert not [name for name in make_model(5).state_dict() if "embedding" in name]


def test_neck_bias_is_frozen_at_zero_and_the_classifier_has_none(small):
    assert not small.neck.bias.requires_grad and not small.neck.bias.any()
    assert small.neck.weight.requires_grad
    assert [name for name, _ in small.classifier.named_parameters()] == ["weight"]
    frozen = [name for name, parameter in small.named_parameters() if not parameter.requires_grad]
    assert frozen == ["neck.bias"]


def test_classifier_starts_small(small):
    assert small.classifier.weight.std().item() == pytest.approx(0.001, rel=0.03)  # 51,200 draws
    assert abs(small.classifier.weight.mean().item()) < 3e-5


@pytest.mark.usefixtures("_narrow")
def test_generalized_mean_learns_its_exponent():
    model = make_model(2, pool="gem")
    feature, _, _ = model.train()(torch.randn(2, 3, 32, 16))
    feature.sum().backward()
    assert model.encoder.avgpool.p.grad.abs() > 0
    assert model.encoder.avgpool.p.item() == 3.0


# What stands still


def running_statistics(module: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for name, buffer in module.named_buffers() if "running" in name]


@pytest.mark.usefixtures("_narrow")
def test_frozen_norm_keeps_its_statistics_and_learns_its_weights():
    """Each image alone gives what the batch gives; affine weights, and the neck's statistics, still move."""
    torch.manual_seed(0)
    model = make_model(5, norm="frozen").double()
    images = torch.randn(4, 3, 32, 16, dtype=torch.float64)
    before, neck = running_statistics(model.encoder), model.neck.running_mean.clone()
    feature, _, logits = model(images)
    logits.square().sum().backward()
    assert all(map(torch.equal, running_statistics(model.encoder), before))
    assert not torch.equal(model.neck.running_mean, neck)
    torch.testing.assert_close(feature[:1], model.encoder(images[:1]))
    assert model.encoder.bn1.weight.grad.abs().sum() > 0
    model.eval().train()
    assert not model.encoder.bn1.training and model.encoder.layer1.training and model.neck.training
    assert make_model(5).encoder.bn1.training


def test_frozen_norm_without_batchnorm():
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"model\.norm = frozen: vit_b_16 has no BatchNorm; use model\.norm = batch"),
    ):
        make_model(5, encoder="vit_b_16", norm="frozen", image_size=(32, 32))


@pytest.mark.usefixtures("_narrow")
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_in_the_frozen_epochs_only_the_heads_learn(decay):
    torch.manual_seed(0)
    model = make_model(5, frozen_epochs=2)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=decay)
    for epoch in range(4):
        model.begin_epoch(epoch)
        encoder, heads = copy_of(model.encoder), copy_of(model.classifier) | copy_of(model.neck)
        _, _, logits = model(torch.randn(4, 3, 32, 16))
        logits.square().sum().backward()
        drop_frozen_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
        same = [torch.equal(value, encoder[name]) for name, value in model.encoder.state_dict().items()]
        assert all(same) if epoch < 2 else not any(same), epoch
        assert not torch.equal(model.classifier.weight, heads["weight"])
        assert not torch.equal(model.neck.running_mean, heads["running_mean"])
        assert (model.encoder.conv1.weight in optimizer.state) == (epoch >= 2)
        assert model.encoder.training == (epoch >= 2)


def copy_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.usefixtures("_narrow")
def test_freezing_survives_an_evaluation():
    model = make_model(5, frozen_epochs=1)
    model.begin_epoch(0)
    model.eval().train()
    assert model.training and not model.encoder.training and not model.encoder.bn1.training and model.neck.training
    model.begin_epoch(1)
    assert model.encoder.bn1.training
    model.eval().begin_epoch(0)
    model.begin_epoch(1)
    assert not model.encoder.bn1.training, "freezing is no way into training"


# Names


def test_names_of_tensors():
    """Checkpoints hold these names; whoever changes them cuts users off from theirs."""
    names = list(make_model(5, encoder="resnet18", pool="gem", sync_batchnorm=True, norm="frozen").state_dict())
    assert names[:3] == ["encoder.conv1.weight", "encoder.bn1.weight", "encoder.bn1.bias"]
    assert names[-7:] == [
        "encoder.avgpool.p", "neck.weight", "neck.bias", "neck.running_mean", "neck.running_var",
        "neck.num_batches_tracked", "classifier.weight",
    ]  # fmt: skip
    assert len(names) == 120 + 7


@pytest.mark.usefixtures("_constants")
@pytest.mark.parametrize("encoder", ["convnext_tiny", "swin_t", "vit_b_16"])
def test_other_encoders_train(encoder):
    model = make_model(5, encoder=encoder, image_size=(64, 32))
    feature, _, logits = model(torch.randn(2, 3, 64, 32))
    assert feature.shape == (2, 768) and logits.shape == (2, 5)
    logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["neck.bias"]


# The command line


def test_list_names_every_encoder_and_what_is_in_the_cache(capsys, monkeypatch, tmp_path):
    """Of a short list; tests/model/test_encoders.py builds all."""
    names = ("resnet10", "resnet50", "swin_t", "solider_swin_t")
    assert set(names) < set(ENCODERS)
    monkeypatch.setattr("reid.model.commands.ENCODERS", names)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    assert status_of(main, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "default size of all: 256 x 128 pixels (data.height, data.width)"
    rows = {line.split()[0]: line.split() for line in lines[2:-1]}
    assert list(rows) == list(names)
    imagenet = ["0.485", "0.456", "0.406", "0.229", "0.224", "0.225", "bilinear"]
    assert rows["resnet50"] == ["resnet50", "2048", "23,508,032", *imagenet, str(file)]
    assert rows["solider_swin_t"][3:10] == ["0.500"] * 6 + ["bicubic"] and "SOLIDER" in rows["solider_swin_t"]
    assert "none" in rows["resnet10"] and "(not" in rows["swin_t"]


def test_fetch_prints_path_and_hash(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"abc")
    assert status_of(main, "fetch", "resnet18") == 0
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc, as FIPS 180 prints it
    assert capsys.readouterr().out == f"{file} sha256 {digest}\n"


@pytest.mark.parametrize(
    ("name", "words"), [("resnet51", "resnet51 is not an encoder; choose"), ("resnet10", "no ImageNet")]
)
def test_fetch_of_what_there_is_not(capsys, name, words):
    assert status_of(main, "fetch", name) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and words in said.err


def test_inspect_shows_what_a_file_holds_and_which_encoder_it_fits(capsys, monkeypatch, tmp_path):
    """A student and a teacher of a ResNet-18, of which a ResNet-10 is a part."""
    monkeypatch.setattr("reid.model.commands.ENCODERS", ("vit_b_16", "resnet10", "resnet18"))
    with torch.device("meta"):
        state = make_model(5, encoder="resnet18").encoder.state_dict()
    state = {name: torch.zeros(()).expand(value.shape) for name, value in state.items()}
    names = {f"{part}.backbone.{name}": value for part in ("student", "teacher") for name, value in state.items()}
    torch.save({"state_dict": {**names, "head.weight": torch.zeros(7, 2)}, "epoch": 3}, tmp_path / "dino.pth")
    assert status_of(main, "inspect", str(tmp_path / "dino.pth")) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()]
    assert ["state_dict.head", "1", "14"] in rows and rows[-1][0] != "resnet18"
    best = [row for row in rows if row[:2] == ["resnet18", "yes"]]
    assert [row[6] for row in best] == ["state_dict.student.backbone", "state_dict.teacher.backbone"]
    assert next(row[:6] for row in rows if row[:1] == ["resnet10"]) == ["resnet10", "more", "layers", "60", "of", "60"]
    assert status_of(main, "inspect", tmp_path / "dino.pth", "--key=state_dict.teacher", "--encoder=resnet18") == 0
    assert capsys.readouterr().out.count("resnet18") == 1
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    assert status_of(main, "inspect", str(tmp_path / "other.pth"), "--encoder", "resnet18") == 0
    assert "none of resnet18 has tensors of these names" in capsys.readouterr().out
    assert status_of(main, "inspect", str(tmp_path / "nowhere.pth")) == 2
    assert "no such file" in capsys.readouterr().err


# The baseline without learning


@pytest.mark.parametrize(("stripes", "bins", "height"), [(4, (4, 4, 4), 32), (3, (3, 8, 8), 10), (1, (2, 3, 4), 5)])
def test_colour_histogram_against_numpy(stripes, bins, height):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, height, 6), dtype=np.uint8)
    images[0, :, :, :2], images[1] = 0, 255
    found = ColourHistogram(stripes, bins, side=1 / 6)(Normalization().apply(torch.from_numpy(images)))
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
    logits = classifier(features).double()
    for row, feature in enumerate(features.double()):
        for column, center in enumerate(classifier.weight.double()):
            dot = (feature * center).sum()
            wanted = {
                "linear": dot,
                "cosine": dot / feature.norm() / center.norm(),
                # up to |f|^2, the same for all classes
                "euclidean": feature.square().sum() - (feature - center).square().sum(),
            }[head]
            torch.testing.assert_close(logits[row, column], wanted / 0.5, **LOGITS)


def test_the_euclidean_head_gives_the_softmax_of_negative_squared_distances():
    torch.manual_seed(0)
    classifier = Classifier(6, 5, "euclidean")
    nn.init.normal_(classifier.weight)
    features = torch.randn(4, 6)
    distances = torch.cdist(features.double(), classifier.weight.double()).square()
    torch.testing.assert_close(classifier(features).double().softmax(dim=1), (-distances).softmax(dim=1), **LOGITS)


def test_heads_are_float32_islands():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for head in ("cosine", "euclidean"):
            assert Classifier(6, 5, head)(torch.randn(2, 6)).dtype == torch.float32


def test_an_unknown_head_is_named():
    with pytest.raises(ValueError, match=r"model\.head = 'arc'"):
        Classifier(6, 5, "arc")


@pytest.mark.usefixtures("_narrow")
def test_heads_without_a_loss_stay_as_they_are():
    model = make_model(5)
    encoder = {f"encoder.{name}" for name, _ in model.encoder.named_parameters()}
    for neck, others in ((False, {"neck.weight"}), (True, set())):
        freeze_heads(model, neck)
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == encoder | others
