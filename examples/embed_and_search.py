"""From Python: features of pictures, similar people, and an index that grows.

    python examples/embed_and_search.py runs/quickstart pictures/

pictures/ has a sub-folder of images for each person. The first picture of each is a query; the others are searched.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from reid import Embedder
from reid.search.index import Entry, Index
from reid.search.index_files import Meta, Source
from reid.search.writer import append, create


def main(run: str, pictures: str) -> float:
    """Print what each query finds, and return the share of queries whose best match is the same person."""
    embedder = Embedder.load(run)  # device="cpu", dtype="bfloat16", batch_size=256 if you like
    print(f"{embedder.source}: {embedder.dim} numbers per image, images of {embedder.size} pixels")

    people = {folder.name: sorted(folder.glob("*.jpg")) for folder in sorted(Path(pictures).iterdir())}
    people = {name: files for name, files in people.items() if len(files) > 1}

    # Features are not normalized: divide by their length, and a product is the cosine similarity.
    queries = embedder.embed([files[0] for files in people.values()])
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    print(f"similarity of the first two people: {unit[0] @ unit[1]:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        with create(path, Meta(embedder.fingerprint, embedder.dim, embedder.size)):
            pass  # an empty index
        for name, files in people.items():  # each block is written completely or not at all
            entries = [Entry(file.name, identity=name, source=Source(str(file.parent))) for file in files[1:]]
            with append(path) as appender:
                appender.add(embedder.embed(files[1:]), entries)

        index = Index(path)
        right = 0
        for name, hits in zip(people, index.search(queries, k=3), strict=True):
            found = [f"{index.entry(hit.row).identity} ({hit.score:.3f})" for hit in hits]
            print(f"{name} looks most like {', '.join(found)}")
            right += index.entry(hits[0].row).identity == name
        for name, hits in zip(people, index.search(queries, k=1, gallery="centroids"), strict=True):
            print(f"{name} is nearest to the mean of {index.entry(hits[0].row).identity} ({hits[0].images} images)")
    print(f"best match is the same person: {right} of {len(people)}")
    return right / len(people)


if __name__ == "__main__":
    main(*sys.argv[1:])
