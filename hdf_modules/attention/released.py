"""Checkpoints of the released DAM: their names, and what their shapes say about the module.

    python -m hdf_modules.attention.released released.pt converted.pt

converts every DAM of a checkpoint to the names of this library, under the prefix that it has there,
and prints the module that it fits; what else the checkpoint holds is kept as it is.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdf_modules.errors import HDFError, keys_apart
from hdf_modules.files import whole

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
    apart = keys_apart(expected.values(), state_dict)
    if apart:
        hint = "python -m hdf_modules.attention.released converts a file, whatever its prefixes"
        raise HDFError("state_dict", "the parameters of one released DAM", apart, hint)
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


_MARK = "temporal_robust.gamma"  # one key that each released DAM has, and nothing else


def convert(state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Translate every DAM of a checkpoint.

    Returns:
        The checkpoint in this library's names, and the options of each DAM by its prefix.

    Raises:
        HDFError: if there is none, or one of them is not as released.
    """
    from hdf_modules.attention.module import DistributionalAttention  # noqa: PLC0415 (a cycle)

    prefixes = [key.removesuffix(_MARK) for key in state_dict if key.endswith(_MARK)]
    if not prefixes:
        hint = "give the state dict itself, or a file with one under 'state_dict' or 'model'"
        found = f"{len(state_dict)} other keys"
        raise HDFError("state_dict", f"keys that end with {_MARK}", found, hint)
    rest, options = dict(state_dict), {}
    for prefix in prefixes:
        mine = {k: rest.pop(k) for k in state_dict if k.startswith(prefix) and k in rest}
        dam = {key.removeprefix(prefix): value for key, value in mine.items()}
        options[prefix] = options_of(dam)
        # its parameters depend on no number of channels
        template = DistributionalAttention(1, **options[prefix]).state_dict()
        rest |= {prefix + name: value for name, value in translate(dam, template).items()}
    return rest, options


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("released", type=Path, help="checkpoint of the authors' code")
    parser.add_argument("converted", type=Path, help="file to write")
    paths = parser.parse_args(arguments)
    try:
        loaded = torch.load(paths.released, map_location="cpu", weights_only=True)
        inner = (loaded[key] for key in ("state_dict", "model") if key in loaded)
        converted, options = convert(next(inner, loaded))
        with whole(paths.converted) as file:
            torch.save(converted, file)
    except (HDFError, OSError) as error:
        sys.exit(f"error: {error}")
    for prefix, found in options.items():
        shown = ", ".join(f"{name}={value!r}" for name, value in found.items() if name != "dtype")
        print(f"{prefix.rstrip('.') or 'the module'}: DistributionalAttention(channels, {shown})")


if __name__ == "__main__":
    main()
