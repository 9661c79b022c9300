"""reid/model/encoders.py: every encoder against torchvision's (or timm's) own model with the same weights."""

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from reid.config import Config, parse
from reid.data.normalization import IMAGENET_STD
from reid.model.depths import find_depths
from reid.model.encoders import ENCODERS, GeneralizedMean, ImageTransformer, build_encoder, resnet10
from reid.model.preprocessing import own_preprocessing
from reid.model.pretrained import load_weights
from tests.support.models import make_encoder, model_config, small_vit

ROOT = Path(__file__).parents[2]
HAS_TIMM_REASON = "timm, an optional dependency, is not installed"


def classifier_input(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the last linear layer of an ImageNet model receives: the feature of each image."""
    seen = []
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "convnext_tiny", "swin_t"])
def test_features_are_those_of_torchvision(name):
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, weights=None)
    encoder, dim = build_on_meta(name, last_stride=2) if name.startswith("res") else build_on_meta(name)
    own = {key: value for key, value in reference.state_dict().items() if key in encoder.state_dict()}
    assert len(own) == len(encoder.state_dict()) == len(reference.state_dict()) - 2  # the classifier's two
    encoder.load_state_dict(own, assign=True)
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        found = encoder.eval()(images)
    assert found.shape == (2, dim)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, classifier_input(reference, images), rtol=0, atol=0)


def build_on_meta(name, **knobs):
    """An encoder without weights, for what does not depend on them: initializing them takes most of the time."""
    with torch.device("meta"):
        return make_encoder(name, **knobs)


@pytest.fixture(scope="module")
def build():
    """(name, pool) -> encoder for 32 x 32 pixels, dimension; both pools share weights, which are initialized once."""

    @cache
    def initialize(name):
        pool = "gap" if name == "vit_b_16" else "gem"
        return make_encoder(name, pool=pool, image_size=(32, 32))[0].state_dict()

    def build(name, pool):
        encoder, dim = build_on_meta(name, pool=pool, image_size=(32, 32))
        assert not encoder.load_state_dict(initialize(name), strict=False, assign=True).missing_keys
        return encoder, dim

    return build


@pytest.mark.parametrize("recipe", ["resnet50_ibn", "vit_s", "swin_s"])
def test_encoders_of_the_recipes(recipe):
    config = parse(Config, [f"--config={ROOT / 'configs' / 'recipes' / recipe}.yaml"])
    config.model.weights = "none"
    if recipe == "vit_s":
        pytest.importorskip("timm", reason=HAS_TIMM_REASON)
    with torch.device("meta"):
        encoder, dim = build_encoder(config.model, (384, 128))
        assert encoder(torch.zeros(2, 3, 384, 128)).shape == (2, dim)
    depths = find_depths(encoder, config.model.encoder)
    assert min(depths.values()) == 1 and max(depths.values()) > 4


@pytest.mark.parametrize("name", [name for name in ENCODERS if name in torchvision.models.list_models()])
def test_parameters_are_those_that_torchvision_publishes_less_the_classifier(name):
    encoder, dim = build_on_meta(name, image_size=(224, 224))
    published = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].meta["num_params"]
    assert sum(parameter.numel() for parameter in encoder.parameters()) == published - 1000 * dim - 1000


def test_names_are_those_of_torchvision():
    with torch.device("meta"):
        reference = torchvision.models.resnet18()
    wanted = [name for name in reference.state_dict() if not name.startswith("fc.")]
    assert list(build_on_meta("resnet18")[0].state_dict()) == wanted
    assert set(build_on_meta("resnet18", pool="gem")[0].state_dict()) == {*wanted, "avgpool.p"}


def test_unknown_encoder():
    with pytest.raises(ValueError, match=r"model\.encoder = 'resnet51'; choose one of resnet10, resnet18.* or timm/<"):
        make_encoder("resnet51")


@pytest.mark.parametrize("name", ["resnet10", "convnext_tiny", "swin_t", "vit_b_16"])
@pytest.mark.parametrize("pool", ["gap", "gem"])
def test_bfloat16_autocast(build, name, pool):
    if pool == "gem" and name == "vit_b_16":
        return
    encoder, dim = build(name, pool)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = encoder.eval()(torch.randn(2, 3, 32, 32))
    assert found.shape == (2, dim) and found.isfinite().all()


# Strides


@pytest.mark.parametrize(
    ("last_stride", "stem_stride", "reduction"), [(2, 4, 32), (1, 4, 16), (1, 2, 8), (2, 2, 16), (1, 1, 4), (2, 1, 8)]
)
def test_strides_set_the_size_of_the_feature_map(last_stride, stem_stride, reduction):
    encoder, _ = make_encoder("resnet10", last_stride=last_stride, stem_stride=stem_stride)
    assert map_size(encoder) == (64 // reduction, 32 // reduction)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("res")])
def test_last_stride_1_doubles_the_map(name):
    """Basic blocks carry the stride in their first convolution, bottlenecks in their second, both in the shortcut."""
    with torch.device("meta"):
        sizes = [map_size(build_on_meta(name, last_stride=stride)[0]) for stride in (2, 1)]
    assert sizes == [(2, 1), (4, 2)]


def map_size(encoder: nn.Module) -> tuple[int, ...]:
    sizes = []
    encoder.layer4.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    with torch.no_grad():
        encoder.eval()(torch.randn(1, 3, 64, 32))
    return sizes[0]


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "vit_b_16", "osnet_x1_0", "timm/vit_tiny_patch16_224"])
@pytest.mark.parametrize(("knob", "value"), [("last_stride", 2), ("stem_stride", 2)])
def test_strides_of_other_encoders_are_refused(name, knob, value):
    with pytest.raises(ValueError, match=rf"model\.{knob} = 2: only ResNets have it, not {name}; leave it at"):
        make_encoder(name, **{knob: value})


def test_resnet10_has_one_block_per_stage():
    encoder = resnet10()
    assert [len(stage) for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4)] == [1, 1, 1, 1]


# Pooling


@pytest.mark.parametrize("p", [1.0, 3.0, 6.5])
def test_generalized_mean_against_loops(p):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    wanted = np.zeros((2, 3, 1, 1))
    for image in range(2):
        for channel in range(3):
            values = [max(float(value), 1e-6) ** p for value in x[image, channel].flatten()]
            wanted[image, channel] = (sum(values) / len(values)) ** (1 / p)
    np.testing.assert_allclose(GeneralizedMean(p)(x).detach(), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "map_module"), [("resnet10", "layer4"), ("convnext_tiny", "features"), ("swin_t", "permute")]
)
def test_gem_pools_the_map(build, name, map_module):
    """The mean of cubes of what the map module gives; ConvNeXt normalizes after pooling."""
    encoder, dim = build(name, "gem")
    maps = []
    module = encoder.get_submodule(map_module)
    with torch.no_grad(), module.register_forward_hook(lambda module, inputs, output: maps.append(output)):
        found = encoder.eval()(torch.randn(2, 3, 64, 64))
        wanted = maps[0].clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)
        if name == "convnext_tiny":
            wanted = nn.functional.layer_norm(wanted, (dim,), eps=1e-6)
    assert maps[0].shape[1] == dim and maps[0][0, 0].numel() > 1
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("name", "why"), [("vit_b_16", "class token"), ("timm/resnet18", "pool by themselves")])
def test_gem_is_refused_where_nothing_is_pooled(name, why):
    with pytest.raises(ValueError, match=rf"model\.pool = gem: .*{why}.*pool = gap with {name}"):
        make_encoder(name, pool="gem")


# ViT


def test_vit_of_the_size_that_it_was_built_for_is_torchvisions():
    vit = small_vit(48)
    images = torch.randn(2, 3, 48, 48)
    wanted = classifier_input(vit, images)  # before the two share their layers
    with torch.no_grad():
        found = ImageTransformer(vit, 48, 48).eval()(images)
    assert found.shape == (2, 12)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_vit_of_images_that_are_not_square_patch_by_patch():
    vit = small_vit()
    encoder = ImageTransformer(vit, 48, 16).eval()
    assert encoder.grid == (6, 2) and encoder.encoder.pos_embedding.shape == (1, 13, 12)
    assert 0.01 < encoder.encoder.pos_embedding.std() < 0.03
    images = torch.randn(2, 3, 48, 16)
    with torch.no_grad():
        tokens = [encoder.class_token.expand(2, -1, -1)[:, 0]]
        for row in range(6):
            for column in range(2):
                patch = images[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                weight, bias = encoder.conv_proj.weight, encoder.conv_proj.bias
                tokens.append(patch.flatten(1) @ weight.flatten(1).T + bias)
        tokens = torch.stack(tokens, dim=1) + encoder.encoder.pos_embedding
        wanted = encoder.encoder.ln(encoder.encoder.layers(tokens))[:, 0]
        torch.testing.assert_close(encoder(images), wanted)


def test_vit_of_sizes_that_are_not_multiples_of_a_patch():
    with pytest.raises(ValueError, match=r"16 x 16 pixels; data\.height = 250 and data\.width = 128 must be multiples"):
        build_on_meta("vit_b_16", image_size=(250, 128))


def test_vit_of_another_size_than_it_was_built_for():
    with pytest.raises(AssertionError, match=r"\(16, 48\) pixels, built for \(6, 2\) patches"):
        ImageTransformer(small_vit(), 48, 16)(torch.randn(1, 3, 16, 48))


# timm


def test_without_timm_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as Python marks a module that cannot be imported
    with pytest.raises(ValueError, match=r"timm is not installed; run `pip install timm`"):
        make_encoder("timm/resnet18")


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "repvgg_a0"])
def test_timm_features(name):
    """The model of timm with the same seed; a ViT is built for the images' size."""
    timm = pytest.importorskip("timm", reason=HAS_TIMM_REASON)
    torch.manual_seed(0)
    stride = 2 if name == "resnet10t" else 1
    encoder, dim = make_encoder(f"timm/{name}", image_size=(64, 32), last_stride=stride)
    torch.manual_seed(0)
    size = {"img_size": (64, 32)} if name.startswith("vit") else {}
    reference = timm.create_model(name, num_classes=0, **size)
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        found = encoder.eval()(images)
        torch.testing.assert_close(found, reference.eval()(images), rtol=0, atol=0)
    assert found.shape == (2, dim)


def test_last_stride_of_timms_resnets():
    """Features are torchvision's, whose names and layers are the same; a variant with pools doubles its map, too."""
    pytest.importorskip("timm", reason=HAS_TIMM_REASON)
    own, _ = make_encoder("resnet18")
    encoder, _ = make_encoder("timm/resnet18")
    encoder.load_state_dict(own.state_dict())
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(images), own.eval()(images))
    for name in ("resnet26d", "resnetaa50"):
        with torch.device("meta"):
            sizes = [map_size(make_encoder(f"timm/{name}", last_stride=stride)[0]) for stride in (2, 1)]
            names = [list(make_encoder(f"timm/{name}", last_stride=stride)[0].state_dict()) for stride in (2, 1)]
        assert sizes == [(2, 1), (4, 2)] and names[0] == names[1]
    with torch.device("meta"), pytest.raises(ValueError, match=r"model\.last_stride = 1: timm/res2net.*set .* to 2"):
        make_encoder("timm/res2net50_26w_4s")


TOWERS = {
    "vit_small_patch16_dinov3": (16, 8), "vit_small_patch14_dinov2": None, "vit_base_patch16_clip_224.openai": (16, 8),
    "vit_base_patch16_siglip_224": (16, 8), "vit_small_patch16_224.augreg_in21k": (16, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", TOWERS)
def test_towers_of_timm_take_pictures_that_are_not_square(name):
    pytest.importorskip("timm", reason=HAS_TIMM_REASON)
    with torch.device("meta"):
        if TOWERS[name] is None:  # timm would leave out what its patches do not cover
            with pytest.raises(
                ValueError, match=r"14 x 14 pixels; data\.height = 256 .* multiples, e\.g\. 252 and 126"
            ):
                make_encoder(f"timm/{name}")
        size = (252, 126) if TOWERS[name] is None else (256, 128)
        encoder, dim = make_encoder(f"timm/{name}", image_size=size)
        assert encoder.eval()(torch.zeros(2, 3, *size)).shape == (2, dim)
    assert encoder.patch_embed.grid_size == (TOWERS[name] or (18, 9))


def fill_hub(folder, architecture, **card):
    """The Hugging Face cache with one model, "people/tiny"."""
    timm = pytest.importorskip("timm", reason=HAS_TIMM_REASON)
    torch.manual_seed(3)
    model = timm.create_model(architecture, num_classes=0)
    snapshot = folder / "models--people--tiny" / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (folder / "models--people--tiny" / "refs").mkdir()
    (folder / "models--people--tiny" / "refs" / "main").write_text("1234")
    config = {"architecture": architecture, "num_classes": 0, "pretrained_cfg": {"num_classes": 0, **card}}
    (snapshot / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), snapshot / "model.safetensors")
    return model


def test_a_model_of_the_hub(monkeypatch, tmp_path):
    """Offline: from the cache, with its own mean; without one, an error that says how to fill it."""
    for name, value in (("HF_HUB_OFFLINE", True), ("HF_HUB_CACHE", str(tmp_path))):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    model = fill_hub(tmp_path, "vit_tiny_patch16_224", mean=[0.4, 0.5, 0.6], interpolation="bilinear")
    encoder, dim = make_encoder("timm/hf-hub:people/tiny", "imagenet", image_size=(64, 32))
    assert torch.equal(encoder.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight) and encoder.grid == (4, 2)
    assert own_preprocessing("timm/hf-hub:people/tiny") == ((0.4, 0.5, 0.6), IMAGENET_STD, "bilinear")
    assert not torch.equal(
        make_encoder("timm/hf-hub:people/tiny", image_size=(64, 32))[0].norm.weight, torch.zeros(dim)
    )
    with pytest.raises(ValueError, match=r"timm/hf-hub:people/none: .*reid model fetch timm/hf-hub:people/none"):
        make_encoder("timm/hf-hub:people/none")


def test_timm_position_embeddings_from_a_file_of_another_size(tmp_path):
    timm = pytest.importorskip("timm", reason=HAS_TIMM_REASON)
    square = timm.create_model("vit_tiny_patch16_224")
    torch.save(square.state_dict(), tmp_path / "vit.pth")
    encoder, _ = make_encoder("timm/vit_tiny_patch16_224", str(tmp_path / "vit.pth"), image_size=(256, 128))
    wanted = timm.layers.resample_abs_pos_embed(square.pos_embed, new_size=[16, 8], num_prefix_tokens=1)
    torch.testing.assert_close(encoder.pos_embed, wanted)
    assert torch.equal(encoder.blocks[3].attn.qkv.weight, square.blocks[3].attn.qkv.weight)


def test_timm_errors(monkeypatch):
    pytest.importorskip("timm", reason=HAS_TIMM_REASON)
    with pytest.raises(ValueError, match=r"model\.encoder = timm/resnet51.* no such model: .*resnet"):
        make_encoder("timm/resnet51")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"timm/resnet10t: .*run `reid model fetch timm/resnet10t`"):
        make_encoder("timm/resnet10t", "imagenet")


def test_a_vit_learns_positions_from_a_file_of_another_size(tmp_path):
    """End to end for torchvision's names; the resizing itself is in test_weights.py."""
    vit = small_vit()
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    encoder = ImageTransformer(small_vit(), 48, 16)
    load_weights(encoder, tmp_path / "vit.pth", model_config())
    positions = encoder.encoder.pos_embedding
    assert positions.shape == (1, 13, 12)
    assert torch.equal(positions[:, :1], vit.encoder.pos_embedding[:, :1])
    torch.testing.assert_close(positions[:, 1:].mean(), vit.encoder.pos_embedding[:, 1:].mean(), rtol=0, atol=0.1)
