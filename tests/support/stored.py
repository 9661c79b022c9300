"""The pictures in a folder of shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from PIL import Image


def stored(out: Path, split: str = "train") -> dict[str, Image.Image]:
    """Source -> the stored picture."""
    found = {}
    for path in sorted(out.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in (name for name in content if name.endswith(".json")):
            for image in json.loads(content[name])["images"]:
                data = content[name.removesuffix("json") + image["file"]]
                found[image["source"]] = Image.open(io.BytesIO(data))
    return found
