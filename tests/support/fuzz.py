"""Damage files in many ways, read them, and judge what a reader makes of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from tests.support.drawn import HEIGHT, WIDTH

SECONDS = 20  # a reader that takes longer hangs
MEMORY = 4 << 30  # bytes that a reader may take beside those of this process

CLEAN, SAME, OTHER = "clean error", "identical", "other, no checksum"
NAMELESS, TRACE, HANG, SILENT = "error without the file", "stack trace", "hang", "silently wrong"
VERDICTS = (CLEAN, SAME, OTHER, NAMELESS, TRACE, HANG, SILENT)
FAULTS = (NAMELESS, TRACE, HANG, SILENT)
PHOTO = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
Bytes = Callable[[np.random.Generator, bytes], bytes]


class Hang(BaseException):
    """The time of a case is over. Not an Exception, which readers may catch."""


@dataclass(frozen=True)
class Target:
    """What is read: a folder of sound files, of which a case damages one.

    read: returns what the program makes of the folder, to be compared with ==. files: those that are damaged, relative
    to the folder. structured: how a file's text becomes a document that is damaged, too: json, jsonl or yaml.
    has_checksum: whether another result than that of the sound files is a fault.
    """

    name: str
    folder: Path
    files: Sequence[str]
    read: Callable[[Path], object]
    structured: str = ""
    has_checksum: bool = True


@dataclass(frozen=True)
class Case:
    """A damaged file and the verdict about its reader."""

    target: str
    number: int
    file: str
    damage: str
    verdict: str
    said: str = field(compare=False, default="")

    def __str__(self) -> str:
        return f"{self.target} case {self.number}: {self.file}, {self.damage}: {self.verdict}: {self.said[:300]}"


def run_cases(target: Target, numbers: Sequence[int], work: Path) -> Iterator[Case]:
    """Yield the cases of these numbers; a case depends only on the target and its number.

    work: a folder, which then holds the damaged files of the last case.
    """
    wanted = judge(target, target.folder, "")
    assert wanted[0] == SAME, f"{target.name}: sound files are refused: {wanted[2]}"
    for number in numbers:
        rng = np.random.default_rng([number, *target.name.encode()])
        file = target.files[number % len(target.files)]
        damage, data = damage_file(rng, (target.folder / file).read_bytes(), target.structured)
        copy = work / target.name
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(target.folder, copy, copy_function=os.link)
        (copy / file).unlink()
        (copy / file).write_bytes(data)
        verdict, result, said = judge(target, copy, file)
        if verdict == SAME and result != wanted[1]:
            verdict = SILENT if target.has_checksum else OTHER
        yield Case(target.name, number, file, damage, verdict, said)


def judge(target: Target, folder: Path, file: str) -> tuple[str, object, str]:
    """Read a folder. Return the verdict (SAME: it could be read), the result and the error."""
    said = io.StringIO()
    try:
        with limited(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), \
             contextlib.redirect_stderr(said):  # fmt: skip
            warnings.simplefilter("ignore")
            return SAME, target.read(folder), ""
    except Hang:
        return HANG, None, f"more than {SECONDS} s"
    except SystemExit as ended:
        text = said.getvalue()
        verdict = CLEAN if ended.code == 2 else TRACE
    except ValueError as error:
        text, verdict = str(error), CLEAN
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a reader lets through
        return TRACE, None, f"{type(error).__name__}: {error}"
    if verdict == CLEAN and str(folder) not in text and Path(file).name not in text:
        verdict = NAMELESS
    return verdict, None, " ".join(text.split())


def digest(*parts: object) -> str:
    """A hash of tensors and arrays with their shapes, and of the text of anything else."""
    total = hashlib.sha256()
    for part in parts:
        array = part.detach().numpy() if isinstance(part, Tensor) else part
        if isinstance(array, np.ndarray):
            total.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        else:
            total.update(repr(part).encode())
    return total.hexdigest()


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise Hang in the block after SECONDS, and MemoryError if it takes more than MEMORY."""

    def stop(number: int, frame: object) -> None:
        raise Hang

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, SECONDS)  # pytest's timeout uses it, too
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def damage_file(rng: np.random.Generator, data: bytes, structured: str = "") -> tuple[str, bytes]:
    """Return the name of a damage and the damaged bytes, which differ from the sound ones unless chance forbids it."""
    damages: dict[str, Bytes] = dict(DAMAGES)
    if structured:
        damages |= {name: lambda rng, data, change=change: _change_document(rng, data, structured, change)
                    for name, change in CHANGES.items()}  # fmt: skip
    for _ in range(10):
        name = str(rng.choice(list(damages)))
        damaged = damages[name](rng, data)
        if damaged != data:
            break
    return name, damaged


def _part(rng: np.random.Generator, data: bytes) -> slice:
    """A random part, up to a quarter of the file, and often whole blocks of 512 bytes, as a disk loses them."""
    unit = 512 if len(data) > 2048 and rng.random() < 0.5 else 1
    begin = int(rng.integers(0, max(1, len(data)))) // unit * unit
    return slice(begin, begin + int(rng.integers(1, max(2, len(data) // 4 // unit))) * unit)


def _flip_bits(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(0, max(1, len(data)), int(rng.choice([1, 1, 1, 2, 100]))):
        if place < len(changed):
            changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _truncate(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: int(rng.integers(0, max(1, len(data))))]


def _insert(rng: np.random.Generator, data: bytes) -> bytes:
    place = int(rng.integers(0, len(data) + 1))
    return data[:place] + rng.bytes(int(rng.choice([1, 3, 512]))) + data[place:]


def _zero(rng: np.random.Generator, data: bytes) -> bytes:
    part = _part(rng, data)
    return data[: part.start] + bytes(len(data[part])) + data[part.stop :]


def _swap(rng: np.random.Generator, data: bytes) -> bytes:
    one, other = sorted((_part(rng, data), _part(rng, data)), key=lambda part: part.start)
    size = min(one.stop - one.start, other.start - one.start, len(data) - other.start)
    a, b = data[one.start : one.start + size], data[other.start : other.start + size]
    return data[: one.start] + b + data[one.start + size : other.start] + a + data[other.start + size :]


def _duplicate(rng: np.random.Generator, data: bytes) -> bytes:
    part = _part(rng, data)
    return data[: part.stop] + data[part] + data[part.stop :]


def _change_digit(rng: np.random.Generator, data: bytes) -> bytes:
    digits = [place for place, byte in enumerate(data) if 48 <= byte < 58]
    changed = bytearray(data)
    if digits:
        changed[int(rng.choice(digits))] = int(rng.integers(48, 58))
    return bytes(changed)


DAMAGES: dict[str, Bytes] = {
    "flipped bits": _flip_bits,
    "truncated": _truncate,
    "inserted bytes": _insert,
    "zeroed block": _zero,
    "swapped blocks": _swap,
    "duplicated block": _duplicate,
    "another digit": _change_digit,
}

HUGE = (2**31, 2**63, 2**64, 10**30, 1e308)
OF_ANOTHER_TYPE = (True, 3, 2.5, "text", [], {}, [[1]], {"a": 1})
CHANGES: dict[str, Callable[[np.random.Generator, Any], Any]] = {
    "a null": lambda rng, value: None,
    "another type": lambda rng, value: OF_ANOTHER_TYPE[int(rng.integers(len(OF_ANOTHER_TYPE)))],
    "a negative number": lambda rng, value: -int(rng.integers(1, 100)),
    "a huge number": lambda rng, value: HUGE[int(rng.integers(len(HUGE)))],
    "a missing field": lambda rng, value: ...,
    "an extra field": lambda rng, value: {**value, "extra": 1} if isinstance(value, dict) else [value, 1],
}


def _change_document(rng: np.random.Generator, data: bytes, structured: str, change: Callable[..., Any]) -> bytes:
    """Change one value, at any depth, of a document; of a random line in jsonl."""
    if structured == "jsonl":
        lines = data.splitlines(keepends=True)
        at = int(rng.integers(len(lines)))
        lines[at] = _change_document(rng, lines[at], "json", change) + b"\n"
        return b"".join(lines)
    document = {"": yaml.safe_load(data) if structured == "yaml" else json.loads(data)}
    holder, key = _choose(rng, document)
    changed = change(rng, holder[key])
    if changed is ...:
        del holder[key]
    else:
        holder[key] = changed
    text = yaml.safe_dump(document.get("")) if structured == "yaml" else json.dumps(document.get(""))
    return text.encode()


def _choose(rng: np.random.Generator, document: dict[str, Any]) -> tuple[Any, Any]:
    """A random place of a document: each level is as likely as the next, so that a long list does not hide the rest."""
    holder: Any = document
    key: Any = ""
    while isinstance(value := holder[key], dict | list) and value and rng.random() < 0.8:
        holder = value
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[int(rng.integers(len(keys)))]
    return holder, key
