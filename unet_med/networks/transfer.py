"""Weights of a trained network for one that sees other channels or knows other labels, to train it further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unet_med.errors import ModelError
from unet_med.networks.segmenter import Segmenter

_REMEDY = "start from a model of the same network, or plan the new one from the old"


def transferred(
    state: Mapping[str, Tensor],
    target_network: Segmenter,
    channels_before: Sequence[str],
    channels_after: Sequence[str],
    outputs_before: Sequence[str],
    outputs_after: Sequence[str],
) -> tuple[dict[str, Tensor], list[str]]:
    """Fits trained weights to a network that differs in its channels and its outputs alone.

    Channels and outputs are known by their names. A channel that is new starts from the mean of the trained ones'
    weights, an output that is new from the fresh weights of ``target_network``, as do heads of deep supervision that
    were not trained.

    Args:
        state: ``state_dict`` of the trained network.
        target_network: With fresh weights; it stays as it is.
        channels_before: Of the trained network's images; each may stand for several neighbouring slices.
        channels_after: Of the images of ``target_network``.
        outputs_before: Names of the trained outputs, background included, or of the regions.
        outputs_after: The same of ``target_network``.

    Returns:
        A ``state_dict`` for ``target_network`` whose tensors are copies, and one sentence about each kind of thing that
        differs; none where all weights were taken over as they are.

    Raises:
        ModelError: if the networks differ in more than that, or if names and weights do not agree.
    """
    fresh = target_network.state_dict()
    _check_counts(state, fresh, target_network.entry, (channels_before, channels_after), "channels")
    _check_counts(state, fresh, "heads.0.bias", (outputs_before, outputs_after), "outputs")
    fitted = {name: _fitting(name, state, value) for name, value in fresh.items() if not _differs(name, target_network)}
    fitted[target_network.entry] = _with_channels(
        state[target_network.entry], fresh[target_network.entry], channels_before, channels_after
    )
    heads = [name for name in fresh if name.startswith("heads.")]
    for name in heads:
        trained = state.get(name)
        fitted[name] = (
            fresh[name].clone()
            if trained is None
            else _with_outputs(name, trained, fresh[name], outputs_before, outputs_after)
        )
    notes = [
        *_note("channel", channels_before, channels_after, "starts from the mean of the trained ones"),
        *_note("output", outputs_before, outputs_after, "starts fresh"),
    ]
    if any(name not in state for name in heads):
        notes.append("heads of deep supervision that were not trained start fresh")
    return {name: fitted[name] for name in fresh}, notes


def _differs(name: str, network: Segmenter) -> bool:
    return name == network.entry or name.startswith("heads.")


def _check_counts(
    state: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    weights: str,
    names: tuple[Sequence[str], Sequence[str]],
    what: str,
) -> None:
    """Raises where weights have other numbers of channels or outputs than are named, or a name comes twice."""
    for tensors, given, whose in ((state, names[0], "the trained network"), (fresh, names[1], "the new network")):
        if weights not in tensors:
            raise ModelError(f"{whose} has no {weights}", "network", _REMEDY)
        tensor = tensors[weights]
        count = tensor.shape[1] if what == "channels" else tensor.shape[0]
        wrong = count % max(1, len(given)) if what == "channels" else count != len(given)
        if not given or wrong or len(set(given)) < len(given):
            raise ModelError(
                f"{whose} has {count} {what}, {len(given)} are named: {', '.join(given)}",
                "network",
                f"name each of its {what} once",
            )


def _fitting(name: str, state: Mapping[str, Tensor], like: Tensor) -> Tensor:
    trained = state.get(name)
    if trained is None or trained.shape != like.shape:
        found = "does not exist" if trained is None else f"is of shape {tuple(trained.shape)}"
        raise ModelError(f"in the trained network {name} {found}, here {tuple(like.shape)}", "network", _REMEDY)
    return trained.detach().clone()


def _with_channels(trained: Tensor, like: Tensor, before: Sequence[str], after: Sequence[str]) -> Tensor:
    """Weights of the first convolution, (features, channels * slices, *kernel)."""
    features, _, *kernel = trained.shape
    by_channel = trained.detach().reshape(features, len(before), -1, *kernel)
    mean = by_channel.mean(1)
    picked = [by_channel[:, before.index(name)] if name in before else mean for name in after]
    weights = torch.stack(picked, dim=1).flatten(1, 2)
    if weights.shape != like.shape:
        raise ModelError(
            f"the first convolutions differ: {tuple(weights.shape)} trained, {tuple(like.shape)} here",
            "network",
            _REMEDY,
        )
    return weights


def _with_outputs(name: str, trained: Tensor, fresh: Tensor, before: Sequence[str], after: Sequence[str]) -> Tensor:
    """Weights or biases of a head, (outputs, ...)."""
    if trained.shape[1:] != fresh.shape[1:] or len(trained) != len(before):
        raise ModelError(
            f"{name} is of shape {tuple(trained.shape)} in the trained network, here {tuple(fresh.shape)}",
            "network",
            _REMEDY,
        )
    return torch.stack([trained[before.index(one)] if one in before else fresh[n] for n, one in enumerate(after)])


def _note(kind: str, before: Sequence[str], after: Sequence[str], start: str) -> list[str]:
    new = [name for name in after if name not in before]
    gone = [name for name in before if name not in after]
    notes = [f"{kind} {name} is new, it {start}" for name in new]
    return notes + [f"{kind} {name} of the trained network is left out" for name in gone]
