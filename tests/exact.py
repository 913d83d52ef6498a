"""Expected values that have all their digits also in confident rows, where one logit is far above the others.

In float64, 1 + Σ rounds to 1 from a gap of 37 on. So the mass of the other classes is summed without the class itself,
and nothing cancels. Some functions also return the sizes of a gradient's terms, relative to which tests measure errors.
"""

import numpy as np


def rows(logits):
    """q_j, 1 − q_j and ln q_j of each row, each with a small relative error."""
    x = np.asarray(logits).astype(np.float64)
    e = np.exp(x - x.max(1, keepdims=True))
    samples, classes = x.shape
    others = np.array([[np.delete(e[i], j).sum() for j in range(classes)] for i in range(samples)])
    mass = others + e
    log_q = np.where(e > others, -np.log1p(others / np.maximum(e, 1e-300)), x - x.max(1, keepdims=True) - np.log(mass))
    return e / mass, others / mass, log_q


def cross_entropy(logits, labels, smoothing=0.0):
    """The loss of each row in nats, its gradient, and the sizes of the gradient's terms."""
    q, not_q, log_q = rows(logits)
    labels = np.asarray(labels)
    p = np.eye(q.shape[1])[labels] if labels.dtype.kind in "iu" else labels.astype(np.float64)
    p = (1 - smoothing) * p + smoothing / q.shape[1]
    mass = p.sum(1, keepdims=True)
    not_p = np.array([[np.delete(row, j).sum() for j in range(len(row))] for row in p])  # Σ_{i≠j} p_i
    at_peak = q > 0.5
    loss = -np.where(p > 0, p * np.where(p > 0, log_q, 0), 0).sum(1)
    gradient = np.where(at_peak, not_p - mass * not_q, q * mass - p)
    return loss, gradient, np.where(at_peak, not_p + mass * not_q, q * mass + p)


def scores(logits, labels):
    """`label_miss` and `brier_score`: the values of each row, and their gradients."""
    q, not_q, _ = rows(logits)
    labels = np.asarray(labels)
    p = np.eye(q.shape[1])[labels] if labels.dtype.kind in "iu" else labels.astype(np.float64)
    beside = np.where(q > 0.5, 0, p * q).sum(1, keepdims=True)  # Σ p q without the class at the peak
    total = (p * q).sum(1, keepdims=True)
    d = np.where(q > 0.5, (1 - p) - not_q, q - p)
    terms = q * d
    d_beside = np.where(q > 0.5, 0, terms).sum(1, keepdims=True)
    return {
        "label_miss": ((p * not_q).sum(1), np.where(q > 0.5, beside - not_q * total, q * (total - p))),
        "brier_score": (
            (d**2).sum(1),
            2 * q * np.where(q > 0.5, not_q * d - d_beside, d - terms.sum(1, keepdims=True)),
        ),
    }


def entropy(logits):
    """The entropy of each row, its gradient, and the sizes of the gradient's terms."""
    q, _, log_q = rows(logits)
    value = -(q * log_q).sum(1)
    return value, q * (-log_q - value[:, None]), q * (-log_q + value[:, None])


def divergence(logits, teacher, kind, beta=0.5, temperature=1.0):
    """The divergence of each row in nats, and its gradients by the logits and by the teacher's logits."""
    (q, not_q, log_q), (p, not_p, log_p) = (rows(np.asarray(x, np.float64) / temperature) for x in (logits, teacher))
    if kind == "forward_kl":
        value, dx, dy = _kl(p, q, log_q - log_p), _difference(q, not_q, p, not_p), _centred(p, not_p, log_p - log_q)
    elif kind == "reverse_kl":
        value, dx, dy = _kl(q, p, log_p - log_q), _centred(q, not_q, log_q - log_p), _difference(p, not_p, q, not_q)
    else:
        m, u = beta * p + (1 - beta) * q, log_q - log_p
        a = np.where(np.abs(u) < 0.5, np.log1p((1 - beta) * np.expm1(u)), np.log(np.maximum(m, 1e-300)) - log_p)
        value = beta * _kl(p, m, a) + (1 - beta) * _kl(q, m, a - u)
        dx, dy = -(1 - beta) * _centred(q, not_q, a - u), -beta * _centred(p, not_p, a)
    return value, dx / temperature, dy / temperature


def _kl(p, m, a):
    """Σ p ln(p / m) with a = ln(m / p), as Σ (m − p − p a), whose terms are all ≥ 0."""
    return np.where(np.abs(a) < 0.5, p * (np.expm1(a) - a), m - p - p * a).sum(1)


def _difference(q, not_q, p, not_p):
    """q − p, computed as (1 − p) − (1 − q) where q or p is above 1/2."""
    return np.where((q > 0.5) | (p > 0.5), not_p - not_q, q - p)


def _centred(q, not_q, f):
    """q_j (f_j − Σ q f)"""
    rest = np.where(q > 0.5, 0, q * f).sum(1, keepdims=True)
    return np.where(q > 0.5, q * (f * not_q - rest), q * (f - (q * f).sum(1, keepdims=True)))
