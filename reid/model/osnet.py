"""OSNet: streams of several receptive fields, weighted by a shared gate.

Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019, and OSNet-AIN, "Learning
Generalisable Omni-Scale Representations for Person Re-Identification", TPAMI 2021. Layers have the names of torchreid's
files.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

CHANNELS = (64, 256, 384, 512)  # of the stem and the three stages
DIM = 512
REDUCTION, GATE_REDUCTION = 4, 16
# Blocks of OSNet-AIN that normalize each instance, found by its authors' search; of the three stages.
AIN_BLOCKS = ((True, True), (False, True), (True, False))


def conv_unit(
    channels: int, out_channels: int, kernel: int = 1, stride: int = 1, *, norm: str = "batch", relu: bool = True
) -> nn.Sequential:
    """Return a convolution with its normalization (batch, instance or none) and ReLU."""
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    }
    if norm != "none":
        is_batch = norm == "batch"
        layers["bn"] = nn.BatchNorm2d(out_channels) if is_batch else nn.InstanceNorm2d(out_channels, affine=True)
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(OrderedDict(layers))


def light_conv(channels: int) -> nn.Sequential:
    """Return a 3 x 3 convolution in two: across channels, then within each."""
    layers = {
        "conv1": nn.Conv2d(channels, channels, 1, bias=False),
        "conv2": nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        "bn": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(inplace=True),
    }
    return nn.Sequential(OrderedDict(layers))


class Gate(nn.Module):
    """Weights each channel of (B, C, H, W) by a number from 0 to 1, which depends on the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // GATE_REDUCTION, 1)
        self.fc2 = nn.Conv2d(channels // GATE_REDUCTION, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)
        gated: Tensor = x * self.fc2(self.fc1(means).relu()).sigmoid()
        return gated


class OmniScaleBlock(nn.Module):
    """Residual block of four streams of 1 to 4 light convolutions: 3 x 3 to 9 x 9 pixels.

    Args:
        channels: of the input.
        out_channels: of the output.
        ain: the names of OSNet-AIN's files.
        instance: normalize each instance before the addition, instead of the batch.
    """

    def __init__(self, channels: int, out_channels: int, ain: bool, instance: bool) -> None:
        super().__init__()
        middle = out_channels // REDUCTION
        self.conv1 = conv_unit(channels, middle)
        streams = [nn.Sequential(*(light_conv(middle) for _ in range(depth))) for depth in (1, 2, 3, 4)]
        if ain:
            self.conv2 = nn.ModuleList(nn.Sequential(OrderedDict(layers=stream)) for stream in streams)
        else:
            self.conv2a, self.conv2b, self.conv2c, self.conv2d = streams[0][0], *streams[1:]
        self.gate = Gate(middle)
        self.conv3 = conv_unit(middle, out_channels, norm="none" if instance else "batch", relu=False)
        if channels != out_channels:
            self.downsample = conv_unit(channels, out_channels, relu=False)
        if instance:
            self.IN = nn.InstanceNorm2d(out_channels, affine=True)
        self.ain, self.instance, self.widens = ain, instance, channels != out_channels

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.conv1(x)
        streams = self.conv2 if self.ain else (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        out = self.conv3(sum(self.gate(stream(narrow)) for stream in streams))
        if self.instance:
            out = self.IN(out)
        summed: Tensor = out + (self.downsample(x) if self.widens else x)
        return summed.relu()


class OSNet(nn.Module):
    """Images (B, 3, H, W) to features (B, 512), at a sixteenth of their height and width before the pooling.

    Args:
        width: factor of the channels: 1, 0.75, 0.5 or 0.25 in published files.
        ain: OSNet-AIN, with instance normalization.
    """

    def __init__(self, width: float = 1.0, ain: bool = False) -> None:
        super().__init__()
        stem, *widths = (int(width * channels) for channels in CHANNELS)
        self.conv1 = conv_unit(3, stem, 7, stride=2, norm="instance" if ain else "batch")
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = stem
        for number, (after, instances) in enumerate(zip(widths, AIN_BLOCKS, strict=True), start=2):
            first, second = instances if ain else (False, False)
            blocks = [OmniScaleBlock(before, after, ain, first), OmniScaleBlock(after, after, ain, second)]
            halve = nn.Sequential(conv_unit(after, after), nn.AvgPool2d(2)) if number < 4 else None
            self.add_module(f"conv{number}", nn.Sequential(*blocks, *([halve] if halve and not ain else [])))
            if halve and ain:
                self.add_module(f"pool{number}", halve)
            before = after
        self.conv5 = conv_unit(before, before)
        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(before, DIM), nn.BatchNorm1d(DIM), nn.ReLU(inplace=True))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for name, layer in self.named_children():  # in the order in which they are made
            x = layer(x.flatten(1) if name == "fc" else x)
        return x
