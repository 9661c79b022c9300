"""The evaluation program: `accelerate launch evaluate.py --run runs/quickstart`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from reid import checkpoint, metrics
from reid.config import Config, EvaluateConfig, load, parse, to_dict
from reid.features import Extracted, evaluate_over_ranks, extract, read_images
from reid.loader import Pixels
from reid.manifest import Manifest, load_manifest
from reid.metrics import Result
from reid.model import ColourHistogram, ReIDModel
from reid.report import Ranked, RankList, format_table, write_report
from reid.tracking import Tracker
from reid.train import CHECKPOINTS, start_accelerator

TRAINED, UNTRAINED, HISTOGRAM = "trained", "untrained encoder", "colour histogram"
SHOWN_RANKS, SHOWN_HEIGHT = 10, 128


def main(args: Sequence[str] | None = None) -> None:
    """The program: parse, evaluate, print the table and where the report is; one line for what the user can mend."""
    options = parse(EvaluateConfig, args)
    try:
        evaluate(options)
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


@dataclass(frozen=True)
class Evaluated:
    """One row of the table: a model's features and its results by protocol."""

    query: Extracted
    gallery: Extracted
    results: dict[str, Result]


def evaluate(options: EvaluateConfig) -> Path:
    """Evaluate a run and return the folder of its report. Raises ValueError on what the user can mend."""
    started = time.perf_counter()
    if not options.run:
        raise ValueError("--run is missing; give the folder of a training run, e.g. --run runs/quickstart")
    folder = Path(options.run)
    config = load(folder / "config.yaml")
    found = find_checkpoint(folder, options.checkpoint)
    root = Path(options.data or config.data.root)
    manifest = load_manifest(root)
    accelerator = start_accelerator(config.precision)
    say = print if accelerator.is_main_process else _silent

    rows: dict[str, Evaluated] = {}
    for name, model in build_models(config, options, found).items():
        rows[name] = evaluate_model(model.to(accelerator.device), root, manifest, config, options, accelerator)
        for protocol, result in rows[name].results.items():
            say(f"{name}, {protocol}: mAP {result.mAP:.4f}, rank-1 {result.cmc[0]:.4f}", flush=True)

    out = folder / "eval" / manifest.dataset
    if accelerator.is_main_process:
        tables = {name: {p: r.to_json() for p, r in row.results.items()} for name, row in rows.items()}
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "metrics.json", tables[TRAINED])
        write_json(out / "baselines.json", {name: table for name, table in tables.items() if name != TRAINED})
        facts = {
            "run": str(folder),
            "checkpoint": found.name,
            "data": f"{root} ({manifest.dataset}, fingerprint {manifest.fingerprint[:12]})",
            "encoder": f"{config.model.encoder}, {config.data.height}x{config.data.width} pixels",
            "processes": str(accelerator.num_processes),
            "device": f"{accelerator.device}, torch {torch.__version__}",
            "time": f"{time.perf_counter() - started:.1f} s",
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        }
        lists = rank_lists(rows[TRAINED], root, manifest, config)
        report = write_report(out, manifest.dataset, tables, lists, facts, find_warnings(rows[TRAINED], manifest))
        track(options, config, folder, manifest.dataset, tables, out)
        print(f"\n{format_table(tables)}\n\nreport: {report}", flush=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return out


def find_checkpoint(folder: Path, name: str) -> Path:
    found = checkpoint.find(folder / CHECKPOINTS)
    if not found:
        raise ValueError(f"{folder / CHECKPOINTS} holds no checkpoint yet; train the run first")
    if name == "newest":
        return found[0]
    named = [path for path in found if path.name == name]
    if not named:
        raise ValueError(f"--checkpoint={name}: {folder / CHECKPOINTS} holds {', '.join(p.name for p in found)}")
    return named[0]


def build_models(config: Config, options: EvaluateConfig, found: Path) -> dict[str, torch.nn.Module]:
    """The trained model and the baselines asked for, by their row's name."""
    classes = int(checkpoint.read_state(found)["describes"]["classes"])
    knobs: dict[str, Any] = asdict(config.model)
    trained = ReIDModel(classes, **{**knobs, "weights": "none"})
    checkpoint.load_weights(found, trained)
    models: dict[str, torch.nn.Module] = {TRAINED: trained}
    if "untrained" in options.baselines:
        torch.manual_seed(config.seed)
        models[UNTRAINED] = ReIDModel(classes, **knobs)
    if "histogram" in options.baselines:
        models[HISTOGRAM] = ColourHistogram()
    return models


def evaluate_model(
    model: torch.nn.Module,
    root: Path,
    manifest: Manifest,
    config: Config,
    options: EvaluateConfig,
    accelerator: Accelerator,
) -> Evaluated:
    pixels = Pixels(config.data.height, config.data.width, config.data.max_pixels)
    query, gallery = (
        extract(
            model, root, manifest, split, pixels, batch_size=options.batch_size, workers=options.workers,
            device=accelerator.device,
        )
        for split in ("query", "gallery")
    )  # fmt: skip
    results = evaluate_over_ranks(query.features, gallery.features, options.protocols, options.max_rank)
    return Evaluated(query, gallery, results)


def rank_lists(row: Evaluated, root: Path, manifest: Manifest, config: Config) -> list[RankList]:
    """The best, two middle and the worst queries of the image protocol with what was found for them."""
    if "image" not in row.results:
        return []
    result = row.results["image"]
    order = np.argsort(-result.ap, kind="stable")
    chosen = {"best": order[0], "upper quarter": order[len(order) // 4], "median": order[len(order) // 2]}
    chosen |= {"lower quarter": order[3 * len(order) // 4], "worst": order[-1]}
    queries = np.flatnonzero(np.asarray(result.valid))[list(chosen.values())]
    query, gallery = row.query.features, row.gallery.features
    subset = metrics.Features(
        query.embeddings[queries], query.pids[queries], query.camids[queries],
        None if query.distractors is None else query.distractors[queries],
    )  # fmt: skip
    indices, scores = metrics.top_k(subset, gallery, SHOWN_RANKS, "image")
    larger = max(1, round(SHOWN_HEIGHT / config.data.height))  # people look at more pixels than a small encoder does
    pixels = Pixels(larger * config.data.height, larger * config.data.width, config.data.max_pixels)
    query_images = read_images(root, manifest, "query", row.query.index[queries].tolist(), pixels)
    lists = []
    for i, (title, best) in enumerate(chosen.items()):
        shown = [int(j) for j in indices[i] if j >= 0]
        images = read_images(root, manifest, "gallery", row.gallery.index[shown].tolist(), pixels)
        pid, camid = int(subset.pids[i]), int(subset.camids[i])
        found = [
            Ranked(
                image=image,
                caption=f"{score:.2f} · {_who(gallery, j)} · camera {int(gallery.camids[j])}",
                correct=int(gallery.pids[j]) == pid and not _is_distractor(gallery, j),
            )
            for j, image, score in zip(shown, images, scores[i].tolist(), strict=False)
        ]
        asked = Ranked(query_images[i], f"identity {pid} · camera {camid}", True)
        lists.append(RankList(asked, found, float(result.ap[best]), title))
    return lists


def _is_distractor(features: metrics.Features, i: int) -> bool:
    return features.distractors is not None and bool(features.distractors[i])


def _who(features: metrics.Features, i: int) -> str:
    return "distractor" if _is_distractor(features, i) else f"identity {int(features.pids[i])}"


def find_warnings(row: Evaluated, manifest: Manifest) -> list[str]:
    """What a reader of the figures must know."""
    warnings = []
    for protocol, result in row.results.items():
        left_out = len(result.valid) - result.num_valid_queries
        if left_out:
            warnings.append(f"{protocol}: {left_out} of {len(result.valid)} queries have no possible match; left out")
    if bool((row.query.features.camids < 0).any()) or bool((row.gallery.features.camids < 0).any()):
        warnings.append("some images have no camera id; no same-camera rule was applied to them")
    if manifest.skipped:
        warnings.append(f"{len(manifest.skipped)} broken images were left out when the shards were built")
    return warnings


def track(
    options: EvaluateConfig, config: Config, folder: Path, dataset: str, tables: dict[str, Any], out: Path
) -> None:
    """The same figures and pictures in W&B, as a run of its own beside the training run."""
    tracker = Tracker(
        folder,
        active=True,
        mode=options.wandb,
        project=options.project,
        name=config.name,
        job_type="eval",
        config={"evaluate": to_dict(options), "train": to_dict(config), "dataset": dataset},
    )
    scalars = {}
    rows = []
    ranks = [r for r in (1, 5, 10) if r <= options.max_rank]
    for model, protocols in tables.items():
        for protocol, figures in protocols.items():
            rows.append([model, protocol, figures["mAP"], figures["mINP"], *(figures["cmc"][r - 1] for r in ranks)])
            if model == TRAINED:
                scalars[f"eval/{dataset}/{protocol}/mAP"] = figures["mAP"]
                scalars[f"eval/{dataset}/{protocol}/mINP"] = figures["mINP"]
                scalars[f"eval/{dataset}/{protocol}/rank1"] = figures["cmc"][0]
    tracker.log(0, scalars)
    columns = ["model", "protocol", "mAP", "mINP", *(f"rank-{r}" for r in ranks)]
    tracker.log_table(0, f"eval/{dataset}/table", columns, rows)
    pictures = {f"eval/{dataset}/{name}": out / f"{name}.png" for name in ("cmc", "rank_lists")}
    tracker.log_pictures(0, {name: path for name, path in pictures.items() if path.is_file()})
    tracker.summarize(scalars)
    tracker.finish()


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _silent(*args: Any, **kwargs: Any) -> None:
    pass


if __name__ == "__main__":
    main()
