"""A model as a folder for Hugging Face's hub: model.safetensors, about.json and README.md, the model card."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from reid.embedder import Embedder
from reid.export import TOLERANCE
from reid.export.card import NO_NAME, write_card
from reid.export.exporter import describe_export, write_checked
from reid.files import hash_file, make_folder, write_atomically
from reid.model.hub import ABOUT, CARD, PREFIX, check_key, is_published, push
from reid.model.saved import MODEL


def publish(checkpoint: str, out: str, repository: str, private: bool, images: str = "") -> None:
    """Write the folder of a model, and upload it.

    Args:
        checkpoint: as of `Embedder.load`. The model card of a folder of this kind is kept, so that it can be edited
            before it is uploaded.
        out: the folder; "" = a temporary one.
        repository: org/name of the hub; "" = only write the folder.
        private: make a new repository private.
        images: to compare on, as of `export`.

    Raises:
        ValueError: the model cannot be read, the folder cannot be written, or the upload is refused.
    """
    if repository:
        check_key(repository)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(out or temporary)
        make_folder(folder)
        try:
            embedder = Embedder.load(checkpoint, device="cpu")
            write_folder(embedder, folder, repository, images)
        except OSError as error:
            raise ValueError(f"{folder}: not written: {error}") from error
        if out:
            print(f"{folder}: {', '.join((MODEL, ABOUT, CARD))}, fingerprint {embedder.fingerprint[:12]}")
        if repository:
            print(f"{push(folder, repository, private)}: load it as {PREFIX}{repository}")
        elif not is_published(embedder.source):
            print(f"complete {folder / CARD}, then `reid export --checkpoint {folder} --push ORG/NAME`")


def write_folder(embedder: Embedder, folder: Path, repository: str, images: str) -> None:
    """Write the three files, after a comparison of the weights with the model. about.json is written last."""
    metadata = describe_export(embedder, "safetensors", "float32", "outside")
    result = write_checked(embedder, "safetensors", folder / MODEL, metadata, images, TOLERANCE)
    about = {**metadata, "sha256": hash_file(folder / MODEL)}
    earlier = embedder.source / CARD
    keep = is_published(embedder.source) and earlier.is_file()
    card = earlier.read_text(encoding="utf-8") if keep else write_card(embedder, about, repository)
    card = card.replace(NO_NAME, repository or NO_NAME)
    write_atomically(folder / CARD, card)
    write_atomically(folder / ABOUT, json.dumps(about, indent=2) + "\n")
    print(f"compared {result}")
