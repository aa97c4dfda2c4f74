"""Distributional attention in float64 loops, written from the formulas."""

from math import ceil, cos, floor, pi, sqrt

import torch


def attention(x, p, *, bins, size=7, consistency="time", perturbed=True):
    """Return (y, g, f) for x (batch, time, channels, height, width) and parameters by symbol."""
    g = torch.stack([_temporal(clip, p, bins, consistency) for clip in x])
    f = torch.stack([_frequency(clip, p, size, perturbed) for clip in x])
    y = torch.empty_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            gate = (p["w_t"] * (1 + g[b, t]) + p["w_s"] * (1 + f[b])) / 2
            y[b, t] = x[b, t] * (1 + p["r"] * (gate - 1))
    return y, g, f


def _resample(values, length):
    """Linear interpolation of a list of tensors, align_corners=False."""
    frames = len(values)
    out = []
    for i in range(length):
        at = min(max((i + 0.5) * frames / length - 0.5, 0), frames - 1)
        low = floor(at)
        high = min(low + 1, frames - 1)
        out.append(values[low] + (at - low) * (values[high] - values[low]))
    return out


def _temporal(clip, p, bins, consistency):
    frames, channels = clip.shape[:2]
    mean, peak = [], []
    for frame in clip:
        of_bin = [
            frame[floor(i * channels / bins) : ceil((i + 1) * channels / bins)] for i in range(bins)
        ]
        mean.append(torch.stack([values.mean() for values in of_bin]))
        peak.append(torch.stack([values.max() for values in of_bin]))
    length = p["mixing"].shape[0]
    mean, peak = _resample(mean, length), _resample(peak, length)
    importance = []
    for t in range(length):
        distance = torch.linalg.norm(mean[t] - mean[t].mean())
        gap = []
        for k in range(bins):
            before = mean[max(t - 1, 0)][k] if consistency == "time" else mean[t][max(k - 1, 0)]
            gap.append((mean[t][k] - before).abs())
        pooled = p["alpha_p"] * mean[t] + p["beta_p"] * peak[t]
        logit = p["gamma"][t] * pooled + p["delta"][t] * distance - torch.stack(gap)
        importance.append(1 / (1 + torch.exp(-logit)))
    tokens = [sum(p["mixing"][t, s] * importance[s] for s in range(length)) for t in range(length)]
    query, key, value = (
        [p[f"{name}_weight"] @ token + p[f"{name}_bias"] for token in tokens] for name in "qkv"
    )
    gate = []
    for t in range(length):
        score = torch.stack([query[t] @ key[s] / sqrt(bins) for s in range(length)])
        share = torch.exp(score) / torch.exp(score).sum()
        attended = sum(share[s] * value[s] for s in range(length))
        gate.append(1 / (1 + torch.exp(-attended.mean())))
    return torch.stack(_resample(gate, frames))


def _wave(u, i, size):
    return sqrt((1 if u == 0 else 2) / size) * cos(pi * u * (i + 0.5) / size)


def _correlate(maps, kernel):
    """Sum over maps of the zero-padded correlation: (c, h, w), (c, k, k) -> (h, w)."""
    height, width = maps.shape[-2:]
    half = kernel.shape[-1] // 2
    padded = torch.nn.functional.pad(maps, (half,) * 4)
    side = kernel.shape[-1]
    return torch.stack(
        [
            torch.stack(
                [(padded[:, h : h + side, w : w + side] * kernel).sum() for w in range(width)]
            )
            for h in range(height)
        ]
    )


def _frequency(clip, p, size, perturbed):
    total = clip.sum(1).mean(0)
    spectrum = []
    for v in range(size):
        for u in range(size):
            basis = torch.tensor(
                [[_wave(u, i, size) * _wave(v, j, size) for j in range(size)] for i in range(size)],
                dtype=clip.dtype,
                device=clip.device,
            )
            # A DCT value that is zero in exact arithmetic must not pass its rounding on to sign().
            basis = torch.where(basis.abs() < 1e-12, 0.0, basis)
            spectrum.append(_correlate(total[None], basis[None]))
    mixed = []
    for k, d in enumerate(spectrum):
        adverse = d
        if perturbed:
            deviation = torch.linalg.norm(d - d.mean())
            adverse = d + d.sign() * (p["nu"][k] * p["a"][k] + 0.05 * p["b"][k] * deviation)
        mixed.append((p["alpha_d"] * d + p["beta_d"] * adverse) / 2)
    mixed = torch.stack(mixed)
    spread = (((mixed - mixed.mean(0)) ** 2).sum(0) / (len(mixed) - 1) + 1e-6).sqrt()
    maps = torch.tanh(p["kappa"] / (spread + 1e-6) * mixed)
    maps = maps * p["gamma_f"][:, None, None] + p["beta_f"][:, None, None]
    for i, kernels in enumerate(p["readout"]):
        maps = torch.relu(maps) if i else maps
        maps = torch.stack([_correlate(maps, kernel) for kernel in kernels])
    return 1 / (1 + torch.exp(-maps[0]))
