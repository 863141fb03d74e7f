"""What a load needs by its model's file, where there is no figure of a person's and none was measured."""

from __future__ import annotations

from collections.abc import Mapping

from events.catalogue import Estimate, Option
from events.limits import GPU_CONTEXT_BYTES

HOST = "host"
ANY = ""
"""In what a model needs: the device is left open (the GPU with most room, else the host)."""


def context_tokens(estimate: Estimate, options: Mapping[str, Option]) -> int:
    """The context of a load, for all slots together; 0: left to the server."""
    if not estimate.context:
        return estimate.context_tokens
    return max(0, _count(options.get(estimate.context), 0))


def gpu_layers(estimate: Estimate, options: Mapping[str, Option]) -> int:
    """How many layers go to a GPU; negative: left to the server."""
    return _count(options.get(estimate.gpu), -1) if estimate.gpu else estimate.gpu_layers


def _count(value: Option | None, otherwise: int) -> int:
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and len(value) <= 12 else otherwise
    return otherwise if value is None else int(value)


def total_bytes(estimate: Estimate, options: Mapping[str, Option]) -> int:
    """All of it, wherever it lies; with the context that it was trained for where that is left open."""
    tokens = context_tokens(estimate, options) or estimate.trained_context
    return estimate.weights_bytes + estimate.buffers_bytes + tokens * estimate.context_bytes


def least_bytes(estimate: Estimate, options: Mapping[str, Option]) -> int:
    """What it takes at least: a server that may choose its context makes do with what there is."""
    return total_bytes(estimate, options) if context_tokens(estimate, options) else estimate.weights_bytes


def estimated_bytes(estimate: Estimate, options: Mapping[str, Option], gpus: bool) -> dict[str, int]:
    """What a load takes of the host, and of the one device that is left open; of the host alone where there
    are no `gpus`, or no layer is to be there. Layers count alike, and the context goes with them."""
    total, layers, all_layers = total_bytes(estimate, options), gpu_layers(estimate, options), estimate.layers
    if not gpus or layers == 0:
        return {HOST: total}
    if layers < 0 or layers >= all_layers:
        return {ANY: total + GPU_CONTEXT_BYTES}
    there = total * layers // all_layers
    return {ANY: there + GPU_CONTEXT_BYTES, HOST: total - there}


def raised(footprint: Mapping[str, int], estimate: Estimate) -> dict[str, int]:
    """What was measured, but no less than the weights: of a file that is mapped into memory, pages that were
    not needed yet, or were taken away again, do not count as used."""
    found = dict(footprint)
    missing = estimate.weights_bytes - sum(found.values())
    if missing > 0:
        where = max(found, key=lambda device: (device != HOST, found[device]), default=HOST)
        found[where] = found.get(where, 0) + missing
    return found
