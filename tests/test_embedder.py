"""reid/embedder.py against the evaluator's own features, and what it does with every kind of image."""

from __future__ import annotations

import copy
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import reid
from reid import Embedder
from reid.config import load, save
from reid.evaluation.evaluator import extract
from reid.export import TOLERANCE
from reid.metrics.features import JUNK
from reid.runs import checkpoint
from tests.support.drawn import HEIGHT, WIDTH, Drawn
from tests.support.runs import make_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, drawn: Drawn) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", drawn)


@pytest.fixture(scope="module")
def embedder(run: Path) -> Embedder:
    return Embedder.load(run, device="cpu", batch_size=8)


def files(drawn: Drawn, split: str = "gallery") -> list[Path]:
    """In storage order, junk left out: as the evaluator's features stand."""
    part = drawn.manifest.split(split)
    kept = [paths for pid, paths in zip(part.pids, drawn.sources(split), strict=True) if pid != JUNK]
    return [path for paths in kept for path in paths]


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether features differ by no more than batches of other sizes and other programs may make them."""
    return bool(np.abs(one - other).max() <= TOLERANCE * np.abs(other).max())


@pytest.fixture(scope="module")
def one_by_one(run: Path) -> Embedder:
    return Embedder.load(run, device="cpu", batch_size=1)


@pytest.mark.parametrize("split", ["query", "gallery"])
def test_features_are_those_of_the_evaluator_bit_by_bit(one_by_one: Embedder, drawn: Drawn, split: str) -> None:
    """In batches of one: the last digit depends on what else is in a batch."""
    embedder = one_by_one
    wanted = extract(
        embedder.model, drawn.root, drawn.manifest, split, embedder.pixels, batch_size=1, workers=0,
        device=torch.device("cpu"),
    ).embeddings.numpy()  # fmt: skip
    found = embedder.embed(files(drawn, split))
    assert found.dtype == np.float32 and found.shape == (len(wanted), embedder.dim)
    assert np.array_equal(found, wanted)
    assert np.abs(wanted).max() > 0.01  # something to compare


def test_the_same_batch_gives_the_same_bits(embedder: Embedder, drawn: Drawn) -> None:
    paths = files(drawn)[:8]
    images = torch.stack([embedder.pixels.decode(path.read_bytes(), "x") for path in paths])
    assert np.array_equal(embedder.embed(paths), embedder.embed_pixels(images))


def test_any_mix_of_kinds_in_their_order(embedder: Embedder, drawn: Drawn) -> None:
    paths = files(drawn)[:3]
    array = picture()
    mixed = [
        paths[0],
        str(paths[1]),
        paths[2].read_bytes(),
        Image.fromarray(array),
        array,
        encoded(Image.fromarray(array), "PNG"),
    ]
    found = embedder.embed(iter(mixed))
    one_by_one = np.concatenate([embedder.embed([image]) for image in mixed])
    assert close(found, one_by_one)
    assert close(found[:3], embedder.embed(paths))
    assert close(found[4:], np.stack([found[3], found[3]]))
    assert not close(found[:1], found[1:2])


def test_batches_do_not_matter(one_by_one: Embedder, embedder: Embedder, drawn: Drawn, monkeypatch) -> None:
    paths = files(drawn)[:11]
    wanted = embedder.embed(paths)
    assert close(one_by_one.embed(paths), wanted)
    monkeypatch.setattr(one_by_one, "batch_size", 3)
    assert close(one_by_one.embed(paths), wanted)


def test_no_images(embedder: Embedder) -> None:
    found = embedder.embed([])
    assert found.shape == (0, embedder.dim) and found.dtype == np.float32


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK", "LA"])
def test_colour_modes(embedder: Embedder, mode: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    form = "TIFF" if mode == "CMYK" else "PNG"
    wanted = embedder.embed([np.asarray(image.convert("RGB"))])
    assert close(embedder.embed([image, encoded(image, form)]), np.concatenate([wanted, wanted]))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(embedder: Embedder, form: str, orientation: int) -> None:
    """As a file, and as a PIL image that was opened from it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying, upright = Image.fromarray(picture()), picture()
    back = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # Image.Transpose that undoes each orientation
    for transpose in back.get(orientation, []):
        lying = lying.transpose(Image.Transpose(transpose))
    data = encoded(lying, form, exif=exif, **({"quality": 100, "subsampling": 0} if form == "JPEG" else {}))
    found = embedder.embed([upright, data, Image.open(io.BytesIO(data))])
    size = np.abs(found[0]).max()
    allowed = 0.05 if form == "JPEG" else TOLERANCE
    assert np.abs(found[1:] - found[0]).max() <= allowed * size
    assert np.abs(embedder.embed([upright[::-1]]) - found[0]).max() > 2 * allowed * size  # upside down is far away


def test_another_size_is_resized_as_the_evaluator_does(embedder: Embedder) -> None:
    large = picture(100, 70)
    wanted = embedder.pixels.decode(encoded(Image.fromarray(large), "PNG"), "x")
    assert np.array_equal(embedder.embed([large]), embedder.embed_pixels(wanted[None]))


BAD = {
    "no such file": ("nowhere.jpg", r"nowhere\.jpg: No such file"),
    "no image": (b"not an image", "image 1: image cannot be decoded"),
    "empty file": (b"", "image 1: an empty file"),
    "zero-size array": (np.zeros((0, 5, 3), np.uint8), "image 1: a picture of 5 x 0 pixels"),
    "zero-size picture": (Image.new("RGB", (0, 4)), "image 1: a picture of 0 x 4 pixels"),
    "floats": (np.zeros((4, 4, 3)), r"image 1: an array float64 \(4, 4, 3\); give uint8"),
    "channels first": (np.zeros((3, 4, 4), np.uint8), r"image 1: an array uint8 \(3, 4, 4\); give uint8"),
    "a number": (7, "image 1: a int; give a path"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_named(embedder: Embedder, name: str) -> None:
    image, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        embedder.embed([picture(), image])
    assert "\n" not in str(error.value)


def test_a_lazily_opened_damaged_file_is_named(embedder: Embedder) -> None:
    data = encoded(Image.fromarray(picture(200, 100)), "JPEG")
    with pytest.raises(ValueError, match="image 0: image cannot be decoded"):
        embedder.embed([Image.open(io.BytesIO(data[: len(data) // 2]))])


@pytest.mark.parametrize("image", ["a.jpg", Path("a.jpg"), b"bytes", Image.new("RGB", (2, 2))])
def test_one_image_is_no_list(embedder: Embedder, image) -> None:
    with pytest.raises(ValueError, match="give a list"):
        embedder.embed(image)


def test_damage_is_handed_over_and_the_rest_goes_on(embedder: Embedder) -> None:
    images = [picture(), b"damaged", picture(seed=1), b""]
    said: dict[int, str] = {}
    readers = [lambda image=image: embedder.read(image) for image in images]
    ((places, features),) = embedder.stream(readers, said.__setitem__)
    assert places == [0, 2] and list(said) == [1, 3]
    assert close(features, embedder.embed([images[0], images[2]]))


def test_bfloat16_is_near_and_is_not_the_same(run: Path, embedder: Embedder, drawn: Drawn) -> None:
    """bfloat16 has 8 significant bits: an operation is off by up to 2^-9 of its result. The 30 operations in a row of a
    resnet10 move a feature by up to 30 * 2^-9 of its length, to a cosine of 0.998; other images' features lie below.
    """
    paths = [paths[0] for paths in drawn.sources("query")]
    low = torch.from_numpy(Embedder.load(run, device="cpu", dtype="bfloat16").embed(paths))
    full = torch.from_numpy(embedder.embed(paths))
    assert low.dtype == torch.float32 and low.isfinite().all() and not torch.equal(low, full)
    assert torch.cosine_similarity(low, full).min() > 0.998
    assert torch.cosine_similarity(low, full.roll(1, dims=0)).max() < 0.998


def test_a_checkpoint_folder_and_its_run_are_one(run: Path, embedder: Embedder) -> None:
    older, newest = sorted((run / "checkpoints").iterdir())
    assert embedder.source.resolve() == newest.resolve()
    found = Embedder.load(newest, device="cpu")
    assert found.fingerprint == embedder.fingerprint and found.size == (HEIGHT, WIDTH)
    assert Embedder.load(older, device="cpu").source == older


def test_the_fingerprint_sees_weights_and_preprocessing_but_not_the_classifier(
    run: Path, embedder: Embedder, tmp_path: Path
) -> None:
    loaded = Embedder.load(run, device="cpu")  # `embedder` may have its fingerprint already, and keeps it

    def changed(change) -> str:
        other = copy.deepcopy(loaded)
        change(other)
        return other.fingerprint

    def widen(other: Embedder) -> None:
        other.size = (HEIGHT, 2 * WIDTH)

    def set_stride(other: Embedder) -> None:
        other.knobs["last_stride"] = 2

    def set_head(other: Embedder) -> None:
        other.model.classifier.weight += 1
        other.knobs["head"] = "cosine"

    def nudge(other: Embedder) -> None:
        other.model.neck.running_mean[0] += 1e-3

    assert changed(lambda _: None) == embedder.fingerprint
    assert changed(set_head) == embedder.fingerprint
    assert len({embedder.fingerprint, *map(changed, (widen, set_stride, nudge))}) == 4


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"device": "warp"}, "device = 'warp'"),
        ({"dtype": "int8"}, "dtype = 'int8': choose float32"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_unknown_options_are_refused(run: Path, knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Embedder.load(run, **{"device": "cpu", **knobs})


def test_what_is_no_run_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        Embedder.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        Embedder.load(tmp_path)
    alone, newest = tmp_path / "alone", checkpoint.find(run / "checkpoints")[0]
    shutil.copytree(newest, alone / "checkpoints" / newest.name)
    with pytest.raises(ValueError, match=r"config\.yaml does not exist"):
        Embedder.load(alone)


def test_importing_the_package_is_quick() -> None:
    """`import reid` brings no torch; the name Embedder does."""
    code = "import sys, reid; assert not {'torch', 'numpy'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert reid.Embedder is Embedder and not hasattr(reid, "Nothing")


def test_the_flip_test_is_the_mean_of_an_image_and_its_mirror_image(run: Path, embedder: Embedder) -> None:
    flipped = Embedder.load(run, device="cpu", batch_size=8, flip=True)
    images = [picture(seed=i) for i in range(3)]
    mirrored = [image[:, ::-1].copy() for image in images]
    found = flipped.embed(images)
    assert np.allclose(found, (embedder.embed(images) + embedder.embed(mirrored)) / 2, atol=1e-6)
    assert np.array_equal(found, flipped.embed(mirrored)) and not close(found, embedder.embed(images))
    assert flipped.fingerprint != embedder.fingerprint
    assert flipped.describe()["flip"] and "flip" not in embedder.describe()


def test_features_are_cut_at_lengths_that_were_trained(tmp_path: Path, drawn: Drawn, embedder: Embedder) -> None:
    run = make_run(tmp_path / "run", drawn, model__nested=[16, 64])
    whole, cut = (Embedder.load(run, device="cpu", flip=True, dimensions=n) for n in (0, 16))
    images = [picture(seed=i) for i in range(3)]
    assert np.array_equal(cut.embed(images), whole.embed(images)[:, :16]) and cut.dim == 16
    assert cut.fingerprint != whole.fingerprint == Embedder.load(run, "cpu", flip=True, dimensions=512).fingerprint
    assert cut.describe()["dimensions"] == 16 and "dimensions" not in whole.describe()
    assert "nested" not in whole.describe()["model"]  # it changes how the model learned
    for path, length, message in [
        (run, 32, "512 numbers, and were trained at 16, 64, too; choose one of these"),
        (run, -1, "choose one"),
        (embedder.source, 16, r"trained as one; leave it out, or train with model\.nested = \[16\]"),
    ]:
        with pytest.raises(ValueError, match=f"dimensions = {length}: .*{message}"):
            Embedder.load(path, device="cpu", dimensions=length)
    with pytest.raises(ValueError, match=r"model\.nested = \[16, 512\]: a feature of resnet10 has 512 numbers"):
        make_run(tmp_path / "other", drawn, model__nested=[16, 512])


def test_an_embedding_of_another_length(tmp_path: Path, drawn: Drawn) -> None:
    """A knob that is part of the fingerprint, except where it does nothing: indexes of earlier versions stay."""
    run = make_run(tmp_path / "run", drawn, model__embedding=24)
    embedder = Embedder.load(run, device="cpu")
    assert embedder.dim == 24 and embedder.embed([drawn.sources("query")[0][0]]).shape == (1, 24)
    assert embedder.describe()["model"]["embedding"] == 24
    plain = Embedder.load(make_run(tmp_path / "plain", drawn), device="cpu")
    assert "embedding" not in plain.describe()["model"]
    config = load(run / "config.yaml")
    config.model.embedding = 0
    save(config, run / "config.yaml")
    with pytest.raises(ValueError, match=r"another model: its embedding is 24, the run's config\.yaml says 0"):
        Embedder.load(run, device="cpu")
