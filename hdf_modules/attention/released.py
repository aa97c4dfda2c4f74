"""Checkpoints of the released DAM: their names, and what their shapes say about the module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hdf_modules.errors import HDFError

_NAMES = {
    "temporal_weight": "t_weight",
    "frequency_weight": "s_weight",
    "temporal.mean_weight": "temporal_robust.alpha",
    "temporal.peak_weight": "temporal_robust.beta",
    "temporal.scale": "temporal_robust.gamma",
    "temporal.distance_scale": "temporal_robust.delta",
    "temporal.mixing.weight": "fc_t.weight",
    "temporal.query.weight": "temporal_attn.q.weight",
    "temporal.query.bias": "temporal_attn.q.bias",
    "temporal.key.weight": "temporal_attn.k.weight",
    "temporal.key.bias": "temporal_attn.k.bias",
    "temporal.value.weight": "temporal_attn.v.weight",
    "temporal.value.bias": "temporal_attn.v.bias",
    "frequency.clean_weight": "al",
    "frequency.perturbed_weight": "be",
    "frequency.noise": "adv_branch.noise",
    "frequency.noise_scale": "adv_branch.alpha",
    "frequency.spread_scale": "adv_branch.beta",
    "frequency.slope": "dynamic_tanh.alpha",
    "frequency.scale": "dynamic_tanh.gamma",
    "frequency.shift": "dynamic_tanh.beta",
}
_ONE_READOUT = {"frequency.readout.0": "freq_attn.net.weight"}
_TWO_READOUTS = {
    "frequency.readout.0": "freq_attn.net.0.weight",
    "frequency.readout.1": "freq_attn.net.2.weight",
}


def names(state_dict: Mapping[str, Any]) -> dict[str, str]:
    """Map this library's parameter names to the released ones, for this checkpoint.

    Raises:
        HDFError: naming the keys that are missing from the checkpoint or unknown.
    """
    reduced = any(key.startswith("freq_attn.net.0") for key in state_dict)
    expected = _NAMES | (_TWO_READOUTS if reduced else _ONE_READOUT)
    missing = sorted(set(expected.values()) - set(state_dict))
    unknown = sorted(set(state_dict) - set(expected.values()))
    if missing or unknown:
        found = [f"missing {missing}"] * bool(missing) + [f"unknown {unknown}"] * bool(unknown)
        hint = "strip the prefix of the module's name from the keys, if there is one"
        raise HDFError("state_dict", "the parameters of one released DAM", ", ".join(found), hint)
    return expected


def options_of(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the constructor's options from the shapes of a released checkpoint."""
    released = names(state_dict)
    gamma = state_dict[released["temporal.scale"]]
    noise = state_dict[released["frequency.noise"]]
    if gamma.ndim != 5:
        raise HDFError(
            "state_dict", "temporal_robust.gamma of shape (1, T, K, 1, 1)", tuple(gamma.shape)
        )
    readout = state_dict[released["frequency.readout.0"]]
    reduced = "frequency.readout.1" in released
    return {
        "num_frames": gamma.shape[1],
        "bins": gamma.shape[2],
        "dct_size": math.isqrt(noise.numel()),
        "reduction": noise.numel() // readout.shape[0] if reduced else 1,
        "consistency": "bins",
        "identity_start": False,
        "dtype": gamma.dtype,
    }


def translate(
    state_dict: Mapping[str, Tensor], template: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Rename and reshape a released checkpoint to the keys and shapes of ``template``."""
    translated = {}
    for name, released in names(state_dict).items():
        value, shape = state_dict[released], template[name].shape
        # Apart from axes of length one, a released parameter has this library's shape.
        if [n for n in value.shape if n != 1] != [n for n in shape if n != 1]:
            raise HDFError(
                "state_dict", f"{released} of {tuple(shape)}, axes of 1 aside", tuple(value.shape)
            )
        translated[name] = value.reshape(shape)
    return translated
