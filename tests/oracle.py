"""The expected values: the formulas in float64 NumPy, sample by sample, independent of the code under test."""

import math

import numpy as np


def _target(labels, i, classes, exists, smoothing):
    """p of sample i: one-hot or the given distribution, smoothed over the classes that exist."""
    if np.issubdtype(labels.dtype, np.integer):
        p = np.zeros(classes)
        p[labels[i]] = 1.0
    else:
        p = np.where(exists, labels[i].astype(np.float64), 0.0)
    return np.where(exists, (1 - smoothing) * p + smoothing / exists.sum(), 0.0)


def log_softmax(x):
    """ln q of one row in float64."""
    x = np.asarray(x, np.float64)
    return x - x.max() - math.log(np.exp(x - x.max()).sum())


def cross_entropy(
    logits, labels, *, base=10.0, where=None, weights=None, label_smoothing=0.0, z_loss=0.0, cotangent=None
):
    """weight · loss of each sample of `[samples, classes]`, and the gradient of Σ cotangent · weight · loss."""
    x = np.asarray(logits).astype(np.float64)
    labels = np.asarray(labels) if np.asarray(labels).dtype.kind in "iu" else np.asarray(labels).astype(np.float64)
    samples, classes = x.shape
    exists = np.ones_like(x, bool) if where is None else np.broadcast_to(where, x.shape)
    weights = np.ones(samples) if weights is None else np.broadcast_to(weights, samples).astype(np.float64)
    cotangent = np.ones(samples) if cotangent is None else np.asarray(cotangent, np.float64)
    loss, gradient = np.zeros(samples), np.zeros_like(x)
    for i in range(samples):
        if weights[i] == 0 or not exists[i].any():
            continue
        row = x[i][exists[i]]
        p = _target(labels, i, classes, exists[i], label_smoothing)[exists[i]]
        log_q = log_softmax(row)
        z = row.max() + math.log(np.exp(row - row.max()).sum())
        loss[i] = weights[i] * (-(p[p > 0] * log_q[p > 0]).sum() / math.log(base) + z_loss * z**2)
        q = np.exp(log_q)
        dx = (p.sum() * q - p) / math.log(base) + 2 * z_loss * z * q
        gradient[i, exists[i]] = cotangent[i] * weights[i] * dx
    return loss, gradient


def linear_cross_entropy(hidden, kernel, labels, *, bias=None, logit_softcap=None, **options):
    """weight · loss of each sample, and the gradients of Σ cotangent · weight · loss by hidden, kernel and bias."""
    h, k = np.asarray(hidden).astype(np.float64), np.asarray(kernel).astype(np.float64)
    u = h @ k + (0 if bias is None else np.asarray(bias).astype(np.float64))
    x = u if logit_softcap is None else logit_softcap * np.tanh(u / logit_softcap)
    loss, dx = cross_entropy(x, labels, **options)
    du = dx if logit_softcap is None else dx / np.cosh(u / logit_softcap) ** 2
    return loss, (du @ k.T, h.T @ du, du.sum(0))


def mean(loss, weights, samples):
    """Σ weight · loss / Σ weight, for losses that are already weighted."""
    total = samples if weights is None else np.broadcast_to(weights, samples).astype(np.float64).sum()
    return loss.sum() / total


def statistics(logits, labels):
    """Each floating statistic by name: its values `[samples]` and its derivatives `[samples, classes]`."""
    x, y = np.asarray(logits).astype(np.float64), np.asarray(labels)
    classes = x.shape[1]
    log_q = np.stack([log_softmax(row) for row in x])
    q = np.exp(log_q)
    p = np.eye(classes)[y] if y.dtype.kind in "iu" else y.astype(np.float64)
    z, mass = x[:, 0] - log_q[:, 0], p.sum(1, keepdims=True)
    entropy, collision = -(q * log_q).sum(1), (q**2).sum(1)
    peak = np.eye(classes)[x.argmax(1)]
    return {
        "log_normalizer": (z, q),
        "label_logit": ((p * x).sum(1), p),
        "mean_logit": (x.mean(1), np.full_like(x, 1 / classes)),
        "entropy": (entropy, -q * (log_q + entropy[:, None])),
        "cross_entropy": (-(p * log_q).sum(1), q * mass - p),
        "collision": (collision, 2 * q * (q - collision[:, None])),
        "max_logit": (x.max(1), peak),
        "peak_entropy": (-(peak * log_q).sum(1), q - peak),
        "brier_score": (((q - p) ** 2).sum(1), 2 * q * (q - p - (q * (q - p)).sum(1, keepdims=True))),
        "label_miss": ((p * (1 - q)).sum(1), q * ((p * q).sum(1, keepdims=True) - p)),
    }
