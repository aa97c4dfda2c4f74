"""The loss side of the method as naive loops over scalars, in the precision of the inputs."""

import math

import numpy as np
import torch
from scipy.optimize import brentq, linprog


def agreement(a, b):
    """1 for equal class ids, y·y' for soft labels."""
    return float(a == b) if a.ndim == 0 else float(a @ b)


def contrastive(
    features, target, temperature, eta, memory=None, groups=None, weight_gradient=False
):
    unit = [f / f.norm() if f.norm() > 0 else f * 0 for f in features]
    keys, labels, sources = list(unit), list(target), None if groups is None else list(groups)
    if memory is not None:
        keys += [f / f.norm() for f in memory[0]]
        labels += list(memory[1])
        if groups is not None:
            sources += list(memory[2])
    losses = []
    for i in range(len(unit)):
        others = [j for j in range(len(keys)) if j != i]
        agree = {j: agreement(labels[i], labels[j]) for j in others}
        if groups is not None:
            agree = {j: a if sources[i] != sources[j] else 0 for j, a in agree.items()}
        if sum(agree.values()) == 0:
            continue
        cosine = {j: (unit[i] * keys[j]).sum() for j in others}
        denominator = 0
        for j in others:
            weight = torch.exp(-((cosine[j] - eta) ** 2) / (2 * eta**2))
            weight = weight if weight_gradient else weight.detach()
            denominator = denominator + weight * torch.exp(cosine[j] / temperature)
        total = 0
        for j in others:
            total = total + agree[j] * torch.log(torch.exp(cosine[j] / temperature) / denominator)
        losses.append(-total / sum(agree.values()))
    return sum(losses) / len(losses) if losses else features.sum() * 0


def covariance_trace(features):
    n, dimensions = features.shape
    mean = sum(features) / n
    matrix = features.new_zeros(dimensions, dimensions)
    for row in features:
        matrix = matrix + torch.outer(row - mean, row - mean) / n
    return torch.trace(matrix)


def heterogeneity_aware(losses, weights, features, target, *, lambda_ce, lambda_sc, b, tau, eta):
    unit = torch.stack([f / f.norm() for f in features])
    classification = sum(w * loss for w, loss in zip(weights, losses, strict=True))
    representation = contrastive(features, target, tau, eta) + b * covariance_trace(unit)
    return lambda_ce * classification + lambda_sc * representation


def divergence(weights):
    """KL(weights ‖ uniform)."""
    n = len(weights)
    return sum(w * math.log(n * w) for w in weights if w > 0)


def softmax(losses, temperature):
    shifted = np.exp((losses - losses.max()) / temperature)
    return shifted / shifted.sum()


def kl_ball(losses, radius):
    ties = losses == losses.max()
    if radius >= math.log(len(losses) / ties.sum()):
        return ties / ties.sum()
    spread = losses.max() - losses.min()
    low = math.log((losses.max() - losses[~ties].max()) / 800)
    high = math.log(spread / math.sqrt(8 * radius)) + 1e-3
    root = brentq(
        lambda t: divergence(softmax(losses, math.exp(t))) - radius, low, high, xtol=1e-14
    )
    return softmax(losses, math.exp(root))


def chi2_ball(losses, radius):
    n, ties = len(losses), losses == losses.max()
    if 1 + 2 * radius >= n / ties.sum():
        return ties / ties.sum()
    spread = losses.max() - losses.min()

    def weights(log_depth):  # η = maximum − depth
        excess = np.maximum(losses - losses.max() + math.exp(log_depth), 0)
        return excess / excess.sum()

    def gap(log_depth):
        return ((n * weights(log_depth) - 1) ** 2).sum() / (2 * n) - radius

    low = math.log((losses.max() - losses[~ties].max()) / 2)
    return weights(brentq(gap, low, math.log(spread) + 25, xtol=1e-14))


def cvar(losses, share):
    """The optimum and its value by linear programming, ties then shared equally."""
    n = len(losses)
    bounds = [(0, min(1 / (share * n), 1))] * n
    found = linprog(-losses, A_eq=np.ones((1, n)), b_eq=[1], bounds=bounds)
    weights = found.x.copy()
    for value in np.unique(losses):
        weights[losses == value] = found.x[losses == value].mean()
    return weights
