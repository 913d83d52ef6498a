"""The cross-entropy and its gradient with every digit, also where one logit stands far above the others.

float64's own 1 + Σ rounds from a gap of 37 on. So what stands beside a class is summed without it, and nothing cancels.
Each comes with the sizes of its terms, by which API.md measures an error.
"""

import numpy as np


def rows(logits):
    """For each row: q_j, 1 − q_j, and ln q_j, all relative to their own size."""
    x = np.asarray(logits).astype(np.float64)
    e = np.exp(x - x.max(1, keepdims=True))
    samples, classes = x.shape
    beside = np.array([[np.delete(e[i], j).sum() for j in range(classes)] for i in range(samples)])
    mass = beside + e
    log_q = np.where(e > beside, -np.log1p(beside / np.maximum(e, 1e-300)), x - x.max(1, keepdims=True) - np.log(mass))
    return e / mass, beside / mass, log_q


def cross_entropy(logits, labels, smoothing=0.0):
    """The loss of each row in nats, its gradient, and the sizes of the gradient's terms."""
    q, others, log_q = rows(logits)
    labels = np.asarray(labels)
    p = np.eye(q.shape[1])[labels] if labels.dtype.kind in "iu" else labels.astype(np.float64)
    p = (1 - smoothing) * p + smoothing / q.shape[1]
    mass = p.sum(1, keepdims=True)
    beside = np.array([[np.delete(row, j).sum() for j in range(len(row))] for row in p])  # Σ of the others' p
    at_peak = q > 0.5
    loss = -np.where(p > 0, p * np.where(p > 0, log_q, 0), 0).sum(1)
    gradient = np.where(at_peak, beside - mass * others, q * mass - p)
    return loss, gradient, np.where(at_peak, beside + mass * others, q * mass + p)


def entropy(logits):
    """The entropy of each row, its gradient, and the sizes of the gradient's terms."""
    q, _, log_q = rows(logits)
    value = -(q * log_q).sum(1)
    return value, q * (-log_q - value[:, None]), q * (-log_q + value[:, None])
