"""MCTL in a training loop of your own: any encoder, accelerate, one process or several.

python examples/own_loop.py data/quickstart/shards 3  # epochs
accelerate launch --config_file launch/cpu.yaml examples/own_loop.py data/quickstart/shards
"""

import sys

import torch
import torchvision
from accelerate import Accelerator
from torch import Tensor, nn

import reid
from reid.losses import modified_centroid_triplet


class Network(nn.Module):
    """Your encoder, a neck and a classifier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.encoder = torchvision.models.resnet18()
        self.encoder.fc = nn.Identity()
        self.neck = nn.BatchNorm1d(512)
        self.classifier = nn.Linear(512, num_classes, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.neck(self.encoder(images))
        return features, self.classifier(features)


def main(root: str, epochs: int = 3) -> float:
    """Train on a folder of shards. Return the loss of the last step, of rank 0."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # without cpu=True it starts no gloo processes
    loader = reid.open_loader(root, accelerator.device, identities=8, images=4, height=64, width=32)
    network = Network(loader.num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    network, optimizer = accelerator.prepare(network, optimizer)  # not the loader: it reads this rank's part already
    accelerator.print(loader)
    for epoch in range(epochs):
        for images, pids, _camids in loader:
            features, logits = network(images)
            # The centroids are those of the global batch; the mean over ranks that DDP takes is the exact gradient.
            loss = modified_centroid_triplet(features, pids, w1=0.3, margin=1.414, space="unit")
            loss = loss + nn.functional.cross_entropy(logits, pids, label_smoothing=0.1)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    accelerator.end_training()
    return loss.item()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
