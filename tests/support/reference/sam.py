"""Sharpness-aware minimization, tensor by tensor in float64, written from its definition."""

import torch


def norm(tensors):
    return sum(float((t.detach().double() ** 2).sum()) for t in tensors) ** 0.5


def sam_gradient(loss, groups):
    """Gradients at w + ε for groups of (weights, rho, adaptive); ``loss`` takes all weights."""
    weights = [w.detach().double().requires_grad_() for params, _, _ in groups for w in params]
    options = [(rho, adaptive) for params, rho, adaptive in groups for _ in params]
    grads = torch.autograd.grad(loss(*weights), weights)
    measured = [w * g if a else g for w, g, (_, a) in zip(weights, grads, options, strict=True)]
    length = norm(measured)
    moved = []
    for w, g, (rho, adaptive) in zip(weights, grads, options, strict=True):
        direction = w * w * g if adaptive else g
        moved.append((w + rho * direction / length).detach().requires_grad_())
    return torch.autograd.grad(loss(*moved), moved), norm(grads)
