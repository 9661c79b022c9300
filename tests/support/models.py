"""Small models."""

import torch
from torch import nn
from torchvision.models import VisionTransformer


def small_vit(image_size: int = 32) -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(image_size, patch_size=8, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=20)
    nn.init.normal_(vit.class_token)
    nn.init.normal_(vit.conv_proj.bias)
    nn.init.normal_(vit.encoder.pos_embedding)
    return vit
