"""Batch normalisation over the images of all ranks, exact for any number of ranks and any split of the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reid.distributed import gather_rows, is_distributed


class SyncBatchNorm(_BatchNorm):
    """SyncBatchNorm in plain tensor operations for any device; torch's runs only on GPUs.

    Ranks send their mean, variance and count (2 C + 1 numbers), which are combined into those of the global batch (Chan
    et al., 1979) without the cancellation of E[x^2] - E[x]^2. The gather is differentiable, so the gradient equals that
    of one process. Statistics are at least float32. In evaluation, or on one rank, it is plain BatchNorm.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and is_distributed()):
            return super().forward(x)
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        wide = x if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(wide, dim=[0, *range(2, x.ndim)], correction=0)
        local_count = mean.new_full((1,), x.numel() / x.shape[1])
        means, variances, counts = gather_rows(torch.cat([mean, var, local_count])[None]).tensor_split(
            [self.num_features, 2 * self.num_features], dim=1
        )
        count = counts.sum()
        mean = (counts * means).sum(dim=0) / count
        var = (counts * (variances + (means - mean).square())).sum(dim=0) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        shape = (1, -1) + (1,) * (x.ndim - 2)
        scale = (var + self.eps).rsqrt() * self.weight
        return ((wide - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    def _check_input_dim(self, x: Tensor) -> None:
        assert x.ndim >= 2, f"expected (B, C, ...), got {tuple(x.shape)}"


def convert_sync(model: nn.Module) -> None:
    """Make every BatchNorm of a model normalise over the images of all ranks.

    Call it when the model is on its device, and before DDP wraps it. Parameters, buffers and their names stay. On CUDA
    the layers become torch's own, which have fused kernels. Layers in evaluation mode (model.norm = frozen) still use
    running statistics.
    """
    for name, child in list(model.named_modules()):
        if isinstance(child, _BatchNorm) and type(child) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            raise ValueError(
                f"model.sync_batchnorm: {name} is a {type(child).__name__}, which does more than BatchNorm; choose "
                "an encoder of torchvision, or model.sync_batchnorm = false"
            )
    if any(parameter.is_cuda for parameter in model.parameters()):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.__class__ = SyncBatchNorm  # which adds a forward pass and no state
