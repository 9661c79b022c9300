"""Initial weights of a model: published ImageNet weights, or a file of tensors, ours or that of any other program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reid.config import ModelConfig
from reid.model.fit import ENOUGH
from reid.model.hub import resolve
from reid.model.parts import Place, find_places, flatten, join, list_rest, list_top_names
from reid.model.positions import find_stated_grid, fit_positions
from reid.model.published import fetch
from reid.model.timm_models import TIMM
from reid.model.weights_file import locate, read_file

NO_HEADS: Mapping[str, nn.Module] = {}


def initialize(encoder: nn.Module, config: ModelConfig, heads: Mapping[str, nn.Module] = NO_HEADS) -> str:
    """Give an encoder its initial weights, `config.weights`; return what they are, for the log.

    Args:
        encoder: as `build_encoder` returns it. Models of timm have their published weights already.
        config: see `load_weights`.
        heads: by name in our files; loaded from the same file with `config.weights_neck`.
    """
    if config.weights == "none" or (config.weights == "imagenet" and config.encoder.startswith(TIMM)):
        return config.weights
    path = fetch(config.encoder) if config.weights == "imagenet" else locate(Path(resolve(config.weights)))
    return load_weights(encoder, path, config, heads if config.weights_neck else NO_HEADS)


def load_weights(encoder: nn.Module, path: Path, config: ModelConfig, heads: Mapping[str, nn.Module] = NO_HEADS) -> str:
    """Load a file into an encoder: of ImageNet, of a re-ID model, or with the encoder in any other part of it.

    Tensors that are no part of the encoder, such as a classifier, are left out. Position embeddings are resized.

    Args:
        encoder: receives the tensors.
        path: a .safetensors file or one of torch.save.
        config: its `weights_key`, `weights_grid` and `weights_partial`.
        heads: modules that receive the tensors under their names, beside the encoder.

    Returns:
        What was loaded, what is new and what was left out, for the log.

    Raises:
        ValueError: the file holds too little of the encoder, more than one, or one with more layers; a tensor has
            another shape or is not finite; or the grid of its position embeddings is unknown.
    """
    content, header = read_file(path)
    flat, own = flatten(content), encoder.state_dict()
    try:
        place = choose_place(find_places(flat, own, config.weights_key), config, content)
        tensors, stated = dict(place.tensors), find_stated_grid(path, header, place.tensors)
        resized = fit_positions(encoder, own, tensors, stated, config.weights_grid)
        state = {name: tensors[name] for name in own if name in tensors and tensors[name].shape == own[name].shape}
        loaded = {place.prefix + name: value for name, value in state.items()}
        for name, head in heads.items():
            loaded |= _load_head(head, name, flat, place.prefix.removesuffix("encoder."))
        for name, value in loaded.items():
            if not value.isfinite().all():
                raise ValueError(f"{name} has values that are not finite; give another file")
    except ValueError as error:
        raise ValueError(f"model.weights = {path}: {error}") from error
    encoder.load_state_dict(state, strict=False)
    left = list_rest(flat, place.prefix, loaded.keys())
    return f"{path}: {_describe(place, own, state, heads)}{resized}; left out: {left}"


def choose_place(places: list[Place], config: ModelConfig, content: Mapping[Any, Any]) -> Place:
    """Return the only part of a file that an encoder can be loaded from.

    Args:
        places: those that hold tensors of the encoder, the best first.
        config: its `weights_key` and `weights_partial`.
        content: the file.

    Raises:
        ValueError: none fits, or several equally well.
    """
    holds, at = f"the file holds {list_top_names(content)}", config.weights_key
    if not places:
        where = f"under model.weights_key = {at} there is no tensor" if at else "it has no tensor"
        raise ValueError(f"{where} of the encoder {config.encoder}, by name; {holds}; {_suggest(config)}")
    place, fit = places[0], places[0].fit
    equal = [other for other in places if other.fit.rank == fit.rank]
    if len(equal) > 1 and (fit.share >= ENOUGH or config.weights_partial):
        raise ValueError(
            f"the encoder is in this file {len(equal)} times: under {join([other.name for other in equal])}; "
            f"choose one, e.g. model.weights_key={equal[0].name}"
        )
    if fit.is_good or (config.weights_partial and fit.fitting):
        return place
    under = f" under {place.name}" if place.prefix else ""
    what = f"{len(fit.fitting)} of the encoder's {fit.of_tensors} tensors ({fit.percent} of its numbers) fit{under}"
    if fit.other_shape:
        name = fit.other_shape[0]
        why = f"{len(fit.other_shape)} have another shape, the first {name}"
    elif fit.share < ENOUGH:
        why = f"at least {ENOUGH:.0%} are needed; the first that is missing is {fit.missing[0]}"
    else:
        why = f"the file has {len(fit.foreign)} more, the first {fit.foreign[0]}: it is of a larger or another encoder"
    raise ValueError(f"{what}; {why}; {holds}; {_suggest(config)}")


def _suggest(config: ModelConfig) -> str:
    return (
        f"change model.encoder (now {config.encoder}) to the file's, which `reid model inspect FILE` shows, "
        "or load only what fits with model.weights_partial=true"
    )


def _describe(
    place: Place, own: Mapping[str, Tensor], state: Mapping[str, Tensor], heads: Mapping[str, nn.Module]
) -> str:
    """Return how many tensors were loaded, from where, and what of the model is new."""
    fit = place.fit
    complete = len(fit.fitting) == fit.of_tensors
    count = f"{len(fit.fitting)}" if complete else f"{len(fit.fitting)} of {fit.of_tensors}"
    share = "" if complete else f" ({fit.percent} of the encoder's numbers)"
    under = f" under {place.name}" if place.prefix else ""
    new = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    with_heads = f", with its {' and '.join(heads)}" if heads else ""
    more = f", without {len(fit.foreign)} of its layers' tensors ({join(fit.foreign)})" if fit.foreign else ""
    return f"{count} tensors{share}{under}{with_heads}{more}" + (f"; new: {join(new)}" if new else "")


def _load_head(head: nn.Module, name: str, flat: Mapping[str, Any], beside: str) -> dict[str, Tensor]:
    """Load a head from the part of a file beside the encoder. Return its tensors by their names in the file."""
    own, prefix = head.state_dict(), f"{beside}{name}."
    found = {key: flat.get(prefix + key) for key in own}
    for key, value in own.items():
        stored = found[key]
        if not isinstance(stored, Tensor) or stored.shape != value.shape:
            what = f"{tuple(stored.shape)}" if isinstance(stored, Tensor) else "absent"
            raise ValueError(
                f"model.weights_neck = true: {prefix}{key} is {what} in the file, here {tuple(value.shape)}; give a "
                "run with features of the same length, or leave model.weights_neck at false"
            )
    with torch.no_grad():
        head.load_state_dict(found)
    return {prefix + key: value for key, value in found.items() if isinstance(value, Tensor)}
