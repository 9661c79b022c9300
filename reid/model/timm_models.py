"""Encoders of timm, an optional dependency, by their names there or on the Hugging Face hub."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from reid.config import ModelConfig
from reid.model.drop_path import drop_path_error

TIMM, HUB = "timm/", "hf-hub:"
RESNETS = ("resnet", "res2net", "resnest", "sknet")  # modules of timm that share one class


def import_timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ValueError("model.encoder = timm/...: timm is not installed; run `pip install timm`") from error


def read_card(name: str) -> dict[str, Any]:
    """Return what timm knows of a model: mean, std, interpolation, fixed_input_size, architecture, ...

    Args:
        name: with timm/ before it. timm/hf-hub:ORG/NAME is read from the hub, or from its cache without internet.

    Raises:
        ValueError: there is no such model, or the hub cannot be reached.
    """
    timm, bare = import_timm(), name.removeprefix(TIMM)
    if bare.startswith(HUB):
        try:
            card, architecture, _ = timm.models.load_model_config_from_hf(bare.removeprefix(HUB))
        except Exception as error:  # the hub's, HTTP's and timm's own errors have no common base
            raise ValueError(f"model.encoder = {name}: {_first_line(error)}; {_how_to_fetch(name)}") from error
        known = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
        return {"fixed_input_size": bool(known and known.fixed_input_size), "architecture": architecture, **card}
    if not timm.is_model(bare):
        near = ", ".join(timm.list_models(f"*{bare.split('.')[0][:6]}*")[:5]) or "timm.list_models() lists all"
        raise ValueError(f"model.encoder = timm/{bare}: timm {timm.__version__} has no such model: {near}")
    known = timm.get_pretrained_cfg(bare, allow_unregistered=True)
    return {**(known.to_dict() if known else {}), "architecture": bare.split(".")[0]}


def is_timm_resnet(name: str) -> bool:
    """Return whether an encoder is one of timm's ResNets, which have a last stage as `model.last_stride` means it."""
    if not name.startswith(TIMM):
        return False
    architecture = read_card(name)["architecture"]
    module: str = import_timm().models.model_entrypoint(architecture).__module__
    return module.removeprefix("timm.models.") in RESNETS


def build_timm(config: ModelConfig, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
    """Build a model of timm; weights = imagenet are those that timm or the hub publishes for it.

    Transformers are built for `image_size` (height, width). ResNets get `config.last_stride`.
    """
    timm, name = import_timm(), config.encoder.removeprefix(TIMM)
    card = read_card(config.encoder)
    knobs: dict[str, Any] = {"num_classes": 0, "pretrained": config.weights == "imagenet"}
    if card.get("fixed_input_size"):
        knobs["img_size"] = image_size
    if config.drop_path is not None:
        knobs["drop_path_rate"] = config.drop_path
    try:
        encoder = timm.create_model(name, **knobs)
    except Exception as error:  # see read_card
        if "drop_path_rate" in str(error):
            raise drop_path_error(config.encoder, config.drop_path or 0.0) from error
        raise ValueError(
            f"model.encoder = timm/{name}: {_first_line(error)}; {_how_to_fetch(config.encoder)}"
        ) from error
    if config.drop_path and not any(getattr(module, "drop_prob", 0) for module in encoder.modules()):
        raise drop_path_error(config.encoder, config.drop_path)
    _check_patches(encoder, config.encoder, image_size)
    if getattr(encoder, "pos_embed", None) is not None:
        encoder.grid = getattr(getattr(encoder, "patch_embed", None), "grid_size", None)
    if config.last_stride == 1 and is_timm_resnet(config.encoder):
        _remove_last_stride(encoder, config.encoder)
    dim: Any = getattr(encoder, "head_hidden_size", encoder.num_features)
    return encoder, int(dim)


def _check_patches(encoder: nn.Module, name: str, image_size: tuple[int, int]) -> None:
    """Raise ValueError if patches do not cover the images: timm leaves out the rest without a word."""
    height, width = getattr(getattr(encoder, "patch_embed", None), "patch_size", None) or (1, 1)
    if image_size[0] % height or image_size[1] % width:
        near = [round(size / patch) * patch for size, patch in zip(image_size, (height, width), strict=True)]
        raise ValueError(
            f"model.encoder = {name}: it cuts images into patches of {height} x {width} pixels; data.height = "
            f"{image_size[0]} and data.width = {image_size[1]} must be multiples, e.g. {near[0]} and {near[1]}"
        )


def _remove_last_stride(encoder: nn.Module, name: str) -> None:
    """Give the last stage the resolution of the one before, as a ResNet of timm that is built with stride 1 there."""
    block = encoder.get_submodule("layer4.0")
    if type(block).__module__ != "timm.models.resnet":
        raise ValueError(
            f"model.last_stride = 1: {name} has blocks of its own ({type(block).__name__}), in which the stride cannot "
            "be changed; set model.last_stride to 2"
        )
    for path, module in list(block.named_modules()):
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)
        elif path and getattr(module, "stride", None) in (2, (2, 2)):  # a pooling, of the shortcut or before it
            block.set_submodule(path, nn.Identity())


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _how_to_fetch(name: str) -> str:
    return (
        f"run `reid model fetch {name}` on a machine with internet and copy the Hugging Face cache (HF_HOME) "
        "here, or give model.weights a local file"
    )
