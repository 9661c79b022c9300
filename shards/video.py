"""Frames of videos: decoded once, in order, by PyAV, which is an optional extra."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from reid.files import open_regular_file
from shards.boxes import Cropping, cut_out
from shards.images import Encoding, to_jpeg
from shards.records import Record

SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"})
MAX_FRAME = 1 << 40
_FIX = "or extract its frames into a folder of pictures named by their numbers"


def is_video(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_frames(video: Path, wanted: Collection[int]) -> Iterator[tuple[int, Image.Image]]:
    """Yield the wanted frames, counted from 1, as upright RGB images.

    Raises ValueError if PyAV is not installed, or the file cannot be read, is no video or ends too early.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(f"{video}: needs PyAV; install it with pip install 'mctl-reid[video]', {_FIX}") from error
    missing, number = set(wanted), 0
    try:
        # no other files or network, which a playlist could name
        with open_regular_file(video) as file, av.open(file, options={"protocol_whitelist": "none"}) as container:
            for number, frame in enumerate(container.decode(video=0), 1):
                if number in missing:
                    missing.remove(number)
                    yield number, frame.to_image().rotate(frame.rotation, expand=True)
                if not missing:
                    return
    except (av.FFmpegError, OSError, IndexError) as error:  # IndexError: sound without pictures
        raise ValueError(f"{video}: cannot be read as a video ({error}); convert it to MP4, {_FIX}") from error
    raise ValueError(f"{video}: has {number} frames, and frame {min(missing)} is asked for; frames are counted from 1")


def cut_videos(
    records: Sequence[Record], root: Path, folder: Path, encoding: Encoding | None, cropping: Cropping, progress: bool
) -> tuple[list[Record], list[dict[str, str]]]:
    """Write the images of records that are frames of videos to files in `folder`.

    Returns:
        The records in the same order, with these files, and the list of those that were left out, as in the manifest.
    """
    videos: dict[Path, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))  # -> frame -> places in records
    for place, record in enumerate(records):
        if record.frame is not None:
            videos[record.path][record.frame].append(place)
    found: dict[int, Record | None] = dict(enumerate(records))
    skipped = []
    for video, frames in sorted(videos.items()):
        folder.mkdir(exist_ok=True)
        decoding = tqdm(
            read_frames(video, frames),
            desc=video.name,
            total=len(frames),
            unit="frame",
            disable=None if progress else True,
        )
        for number, image in decoding:
            for place in frames[number]:
                record, path = records[place], folder / f"{place:09d}.jpg"
                try:
                    image_of_record = image if record.box is None else cut_out(image, record.box, cropping)
                except ValueError as error:
                    skipped.append({"source": record.describe(root), "reason": str(error)})
                    found[place] = None
                    continue
                path.write_bytes(to_jpeg(image_of_record, encoding))
                found[place] = replace(record, path=path, box=None, frame=None, source=record.describe(root))
    return [record for record in found.values() if record is not None], skipped
