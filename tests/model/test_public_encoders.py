"""reid/model/ibn.py, osnet.py, solider.py: names and shapes of the public files, and slow forward passes from them.

The files are made here: public names and shapes, random values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import SwinTransformer

from reid.model.osnet import OSNet
from reid.model.published import fetch, url_of
from reid.model.solider import SoliderSwin
from tests.support.models import load_encoder, make_encoder

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def fill(shapes: Shapes) -> dict[str, Tensor]:
    """A file's tensors: small random weights, and variances above 0."""
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(shape, generator=draw) + 0.5
        if name.endswith(("running_var", "bn.weight"))
        else torch.randn(shape, generator=draw) * (0.3 if len(shape) < 2 else 1 / math.sqrt(math.prod(shape[1:])))
        for name, shape in shapes
    }


def without_counters(encoder: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(v.shape) for n, v in encoder.state_dict().items() if not n.endswith("num_batches_tracked")}


# IBN-a


def ibn_shapes(depths: tuple[int, ...]) -> Shapes:
    """Of torchvision's ResNet, but for the first normalization of the blocks of three stages."""
    with torch.device("meta"):
        resnet = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, list(depths))
    for name, value in resnet.state_dict().items():
        stage, _, rest = name.partition(".")
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        if stage in ("layer1", "layer2", "layer3") and ".bn1." in name:
            half = (value.shape[0] // 2,)
            if not rest.endswith(("running_mean", "running_var")):
                yield name.replace("bn1.", "bn1.IN."), half
            yield name.replace("bn1.", "bn1.BN."), half
        else:
            yield name, tuple(value.shape)


@pytest.mark.parametrize(("name", "depths"), [("resnet50_ibn_a", (3, 4, 6, 3)), ("resnet101_ibn_a", (3, 4, 23, 3))])
def test_names_of_ibn_resnets(name: str, depths: tuple[int, ...]) -> None:
    with torch.device("meta"):
        encoder, dim = make_encoder(name)
    assert without_counters(encoder) == dict(ibn_shapes(depths)) and dim == 2048
    assert encoder.layer4[0].conv2.stride == (1, 1)


def test_ibn_normalizes_half_of_the_channels_within_each_image(tmp_path: Path) -> None:
    """The file loads, and a file of a plain ResNet is refused for it, as the reverse."""
    file = fill(ibn_shapes((3, 4, 6, 3)))
    torch.save({"state_dict": {f"module.{name}": value for name, value in file.items()}}, tmp_path / "ibn.pth")
    encoder, _, loaded = load_encoder("resnet50_ibn_a", str(tmp_path / "ibn.pth"))
    assert f"{len(file)} tensors under state_dict.module" in loaded
    bn1, x = encoder.eval().layer2[1].bn1, torch.randn(2, 128, 5, 4)
    found = bn1(x)
    alone = (x[1, 3] - x[1, 3].mean()) / (x[1, 3].var(correction=0) + 1e-5).sqrt()
    name = "layer2.1.bn1."
    torch.testing.assert_close(found[1, 3], alone * file[f"{name}IN.weight"][3] + file[f"{name}IN.bias"][3])
    mean, var = file[f"{name}BN.running_mean"][6], file[f"{name}BN.running_var"][6]
    both = (x[:, 70] - mean) / (var + 1e-5).sqrt()
    torch.testing.assert_close(found[:, 70], both * file[f"{name}BN.weight"][6] + file[f"{name}BN.bias"][6])
    with torch.device("meta"), pytest.raises(ValueError, match=r"more, the first layer1\.0\.bn1\.IN\.weight"):
        make_encoder("resnet50", str(tmp_path / "ibn.pth"))


def test_where_weights_are_published() -> None:
    assert url_of("resnet50_ibn_a").endswith("/v1.0/resnet50_ibn_a-d9d0bb7b.pth")
    for name, page in (("osnet_ain_x1_0", "torchreid"), ("solider_swin_t", "SOLIDER")):
        with pytest.raises(ValueError, match=rf"no ImageNet weights for {name} to fetch; .*{page}.* as model\.weights"):
            fetch(name)


# OSNet


def osnet_shapes(channels: tuple[int, ...], ain: bool) -> Shapes:
    """Names and shapes of torchreid's files."""

    def norm(name: str, size: int, instance: bool = False) -> Shapes:
        for part in ("weight", "bias") if instance else ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{part}", (size,)

    def unit(name: str, before: int, after: int, kernel: int = 1, instance: bool = False) -> Shapes:
        yield f"{name}.conv.weight", (after, before, kernel, kernel)
        yield from norm(f"{name}.bn", after, instance)

    def light(name: str, size: int) -> Shapes:
        yield f"{name}.conv1.weight", (size, size, 1, 1)
        yield f"{name}.conv2.weight", (size, 1, 3, 3)
        yield from norm(f"{name}.bn", size)

    def block(name: str, before: int, after: int, instance: bool) -> Shapes:
        middle = after // 4
        yield from unit(f"{name}.conv1", before, middle)
        for depth, letter in enumerate("abcd", start=1):
            for i in range(depth):
                plain = f"{name}.conv2{letter}" + (f".{i}" if depth > 1 else "")
                yield from light(f"{name}.conv2.{depth - 1}.layers.{i}" if ain else plain, middle)
        for layer, size, source in (("fc1", middle // 16, middle), ("fc2", middle, middle // 16)):
            yield f"{name}.gate.{layer}.weight", (size, source, 1, 1)
            yield f"{name}.gate.{layer}.bias", (size,)
        yield f"{name}.conv3.conv.weight", (after, middle, 1, 1)
        yield from norm(f"{name}.IN" if instance else f"{name}.conv3.bn", after, instance)
        if before != after:
            yield from unit(f"{name}.downsample", before, after)

    yield from unit("conv1", 3, channels[0], 7, instance=ain)
    instances = {"conv2.0", "conv2.1", "conv3.1", "conv4.0"} if ain else set()
    for stage, (before, after) in enumerate(itertools.pairwise(channels), start=2):
        for i, source in enumerate((before, after)):
            yield from block(f"conv{stage}.{i}", source, after, f"conv{stage}.{i}" in instances)
        if stage < 4:
            yield from unit(f"pool{stage}.0" if ain else f"conv{stage}.2.0", after, after)
    yield from unit("conv5", channels[3], channels[3])
    yield "fc.0.weight", (512, channels[3])
    yield "fc.0.bias", (512,)
    yield from norm("fc.1", 512)


def osnet_forward(w: dict[str, Tensor], x: Tensor, ain: bool) -> Tensor:
    """From a file's tensors alone, with plain functions."""

    def norm(name: str, x: Tensor) -> Tensor:
        if f"{name}.running_mean" not in w:
            return F.instance_norm(x, weight=w[f"{name}.weight"], bias=w[f"{name}.bias"])
        return F.batch_norm(x, *(w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    def light(name: str, x: Tensor) -> Tensor:
        x = F.conv2d(F.conv2d(x, w[f"{name}.conv1.weight"]), w[f"{name}.conv2.weight"], padding=1, groups=x.shape[1])
        return norm(f"{name}.bn", x).relu()

    def block(name: str, x: Tensor) -> Tensor:
        narrow = norm(f"{name}.conv1.bn", F.conv2d(x, w[f"{name}.conv1.conv.weight"])).relu()
        total = torch.zeros(())
        for depth, letter in enumerate("abcd", start=1):
            y = narrow
            for i in range(depth):
                plain = f"{name}.conv2{letter}" + (f".{i}" if depth > 1 else "")
                y = light(f"{name}.conv2.{depth - 1}.layers.{i}" if ain else plain, y)
            means = y.mean(dim=(2, 3))
            hidden = (means @ w[f"{name}.gate.fc1.weight"].flatten(1).T + w[f"{name}.gate.fc1.bias"]).relu()
            gate = (hidden @ w[f"{name}.gate.fc2.weight"].flatten(1).T + w[f"{name}.gate.fc2.bias"]).sigmoid()
            total = total + gate[:, :, None, None] * y
        out = F.conv2d(total, w[f"{name}.conv3.conv.weight"])
        out = norm(f"{name}.IN" if f"{name}.IN.weight" in w else f"{name}.conv3.bn", out)
        if f"{name}.downsample.conv.weight" in w:
            x = norm(f"{name}.downsample.bn", F.conv2d(x, w[f"{name}.downsample.conv.weight"]))
        return (out + x).relu()

    def unit(name: str, x: Tensor) -> Tensor:
        return norm(f"{name}.bn", F.conv2d(x, w[f"{name}.conv.weight"])).relu()

    x = norm("conv1.bn", F.conv2d(x, w["conv1.conv.weight"], stride=2, padding=3)).relu()
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage in (2, 3, 4):
        x = block(f"conv{stage}.1", block(f"conv{stage}.0", x))
        if stage < 4:
            x = F.avg_pool2d(unit(f"pool{stage}.0" if ain else f"conv{stage}.2.0", x), 2)
    x = unit("conv5", x).mean(dim=(2, 3))
    return norm("fc.1", x @ w["fc.0.weight"].T + w["fc.0.bias"]).relu()


CHANNELS = {"x1_0": (64, 256, 384, 512), "x0_75": (48, 192, 288, 384), "x0_5": (32, 128, 192, 256)}
CHANNELS |= {"x0_25": (16, 64, 96, 128), "ain_x1_0": CHANNELS["x1_0"]}


@pytest.mark.parametrize("name", CHANNELS)
def test_names_of_osnet(name: str) -> None:
    with torch.device("meta"):
        encoder, dim = make_encoder(f"osnet_{name}")
    assert without_counters(encoder) == dict(osnet_shapes(CHANNELS[name], name.startswith("ain"))) and dim == 512


@pytest.mark.parametrize("ain", [False, True])
def test_features_of_osnet(tmp_path: Path, ain: bool) -> None:
    """Of a file as torchreid writes it, with a classifier."""
    width = "ain_x1_0" if ain else "x0_25"
    file = fill(osnet_shapes(CHANNELS[width], ain))
    classifier = {"classifier.weight": torch.zeros(7, 512), "classifier.bias": torch.zeros(7)}
    torch.save({"state_dict": {**file, **classifier}, "epoch": 60, "rank1": 0.9}, tmp_path / "model.pth.tar-60")
    encoder, _, loaded = load_encoder(f"osnet_{width}", str(tmp_path / "model.pth.tar-60"))
    assert f": {len(file)} tensors under state_dict; left out: state_dict.classifier (2), epoch, rank1" in loaded
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        found, wanted = encoder.eval()(images), osnet_forward(file, images, ain)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_osnet_starts_at_random_and_learns() -> None:
    encoder = OSNet(0.25)
    encoder(torch.randn(3, 3, 64, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


# SOLIDER


def solider_shapes(dim: int, depths: tuple[int, ...], heads: tuple[int, ...]) -> Shapes:
    """Names and shapes of SOLIDER's files, with its index tables and normalizations of all stages."""

    def pair(name: str, *shape: int) -> Shapes:
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]

    yield from pair("patch_embed.projection", dim, 3, 4, 4)
    yield from pair("patch_embed.norm", dim)
    last = len(depths) - 1
    for stage, depth in enumerate(depths):
        size = dim * 2**stage
        for i in range(depth):
            block = f"stages.{stage}.blocks.{i}"
            yield f"{block}.attn.w_msa.relative_position_bias_table", (169, heads[stage])
            yield f"{block}.attn.w_msa.relative_position_index", (49, 49)
            for name, *shape in (
                ("norm1", size), ("norm2", size), ("attn.w_msa.qkv", 3 * size, size), ("attn.w_msa.proj", size, size),
                ("ffn.layers.0.0", 4 * size, size), ("ffn.layers.1", size, 4 * size),
            ):  # fmt: skip
                yield from pair(f"{block}.{name}", *shape)
        if stage < last:
            yield f"stages.{stage}.downsample.reduction.weight", (2 * size, 4 * size)
            yield from pair(f"stages.{stage}.downsample.norm", 4 * size)
        yield from pair(f"norm{stage}", size)
        for name in ("w", "b"):
            yield from pair(f"semantic_embed_{name}.{stage}", dim * 2 ** min(stage + 1, last), 2)


def test_names_of_solider(tmp_path: Path) -> None:
    """A teacher's file loads without remainder; earlier stages' normalizations are for other tasks."""
    with torch.device("meta"):
        encoder, dim = make_encoder("solider_swin_t")
        base, _ = make_encoder("solider_swin_b")
    wanted = {
        name: shape
        for name, shape in solider_shapes(96, (2, 2, 6, 2), (3, 6, 12, 24))
        if not name.startswith(("norm0", "norm1", "norm2")) and "index" not in name
    }
    assert without_counters(encoder) == wanted and dim == 768
    assert base.stages[2].blocks[17].attn["w_msa"].qkv.weight.shape == (1536, 512)


@pytest.fixture(scope="module")
def swin() -> SwinTransformer:
    torch.manual_seed(0)
    swin = SwinTransformer([4, 4], 16, [2, 2], [2, 4], [7, 7], num_classes=3).eval()
    for parameter in swin.parameters():
        nn.init.normal_(parameter, std=0.2)
    swin.head = nn.Identity()
    return swin


def to_solider(swin: SwinTransformer) -> dict[str, Tensor]:
    """The tensors of torchvision's Swin under SOLIDER's names, and in its order of the channels of 2 x 2 places."""
    names = {
        "features.0.0.": "patch_embed.projection.", "features.0.2.": "patch_embed.norm.",
        "features.1.": "stages.0.blocks.", "features.2.": "stages.0.downsample.", "features.3.": "stages.1.blocks.",
        "attn.": "attn.w_msa.", "mlp.0.": "ffn.layers.0.0.", "mlp.3.": "ffn.layers.1.",
    }  # fmt: skip
    state = {}
    for name, value in swin.state_dict().items():
        if name.endswith("relative_position_index"):
            continue
        name = f"norm1.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        for theirs, solider in names.items():
            name = name.replace(theirs, solider)
        # torchvision: column, row, channel; SOLIDER: channel, row, column.
        state[name] = value.unflatten(-1, (2, 2, 16)).transpose(-3, -1).flatten(-3) if "downsample" in name else value
    return state


def test_solider_is_torchvisions_swin_in_another_order(swin: SwinTransformer) -> None:
    """At a size whose maps are larger than a window: 24 x 16, padded to 28 x 21; 12 x 8, padded to 14 x 14."""
    own = SoliderSwin(16, (2, 2), (2, 4)).eval()
    missing = own.load_state_dict(to_solider(swin), strict=False).missing_keys
    assert all(name.startswith("semantic_embed") for name in missing)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        found, wanted = own(images), swin(images)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_solider_shifts_a_map_of_one_window(swin: SwinTransformer) -> None:
    """As in its own code. Of 7 rows or columns that are rolled by 3, 0 to 2 do not see 3 to 6."""
    own = SoliderSwin(16, (2, 2), (2, 4)).eval()
    own.load_state_dict(to_solider(swin), strict=False)
    block, attention = own.stages[1].blocks[1], own.stages[1].blocks[1].attn["w_msa"]
    x = torch.randn(1, 5, 4, 32)
    padded = F.pad(block.norm1(x), (0, 0, 0, 3, 0, 2))[0].reshape(49, 32)
    q, k, v = (padded @ attention.qkv.weight.T + attention.qkv.bias).reshape(49, 3, 4, 8).unbind(dim=1)
    wanted = torch.zeros(49, 32)
    for i, head in itertools.product(range(49), range(4)):
        scores = []
        for j in range(49):
            (a, b), (c, d) = divmod(i, 7), divmod(j, 7)
            # places after the roll by 3, in which offsets are counted
            rows, columns = (a - 3) % 7 - (c - 3) % 7, (b - 3) % 7 - (d - 3) % 7
            bias = attention.relative_position_bias_table[(rows + 6) * 13 + columns + 6, head]
            apart = (a < 3) != (c < 3) or (b < 3) != (d < 3)
            scores.append(q[i, head] @ k[j, head] / math.sqrt(8) + bias - 100 * apart)
        wanted[i, 8 * head : 8 * head + 8] = torch.stack(scores).softmax(0) @ v[:, head]
    wanted = (wanted @ attention.proj.weight.T + attention.proj.bias).reshape(7, 7, 32)[:5, :4]
    y = x + wanted
    with torch.no_grad():
        torch.testing.assert_close(block(x), y + block.ffn(block.norm2(y)), atol=1e-5, rtol=1e-4)


def test_the_semantic_embedding_scales_and_moves_what_enters_the_next_stage() -> None:
    own = SoliderSwin(16, (2, 2), (2, 4)).eval()
    entered: list[Tensor] = []
    own.stages[1].blocks.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    images = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        own(images)
        for layers in (own.semantic_embed_w, own.semantic_embed_b):
            for parameter in layers.parameters():
                assert not parameter.requires_grad
                nn.init.normal_(parameter)
        own(images)
        scale, offset = (layers[0] for layers in (own.semantic_embed_w, own.semantic_embed_b))
        factor = (1 + (0.2 * scale.weight[:, 0] + 0.8 * scale.weight[:, 1] + scale.bias).exp()).log()
        moved = 0.2 * offset.weight[:, 0] + 0.8 * offset.weight[:, 1] + offset.bias
    torch.testing.assert_close(entered[1], entered[0] * factor + moved)


def test_a_file_of_solider(tmp_path: Path) -> None:
    shapes = list(solider_shapes(96, (2, 2, 6, 2), (3, 6, 12, 24)))
    file = {f"backbone.{name}": torch.zeros(()).expand(shape) for name, shape in shapes}
    torch.save({"teacher": {**file, "head.mlp.0.weight": torch.zeros(2)}, "epoch": 100}, tmp_path / "swin_tiny_tea.pth")
    _, _, loaded = load_encoder("solider_swin_t", str(tmp_path / "swin_tiny_tea.pth"))
    assert "tensors under teacher.backbone; left out: teacher.backbone.norm0 (2)" in loaded and "new" not in loaded
    with torch.device("meta"), pytest.raises(ValueError, match=r"\(0\.0% of its .* is features\.0\.0\.weight"):
        make_encoder("swin_t", str(tmp_path / "swin_tiny_tea.pth"))
