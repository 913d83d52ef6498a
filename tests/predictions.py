"""Real predictions: a logistic regression on scikit-learn's handwritten digits, which is overconfident."""

from functools import cache

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression


@cache
def held_out(classes=10):
    """The float32 logits of images outside of the training set, and their labels."""
    x, y = load_digits(n_class=classes, return_X_y=True)
    x = x + np.random.default_rng(0).normal(size=x.shape) * 6  # noise, so that some predictions are wrong
    model = LogisticRegression(C=100.0, max_iter=200, tol=1e-2).fit(x[:300], y[:300])
    logits = model.decision_function(x[300:])
    if classes == 2:
        logits = np.stack([-logits / 2, logits / 2], 1)
    return logits.astype(np.float32), y[300:].astype(np.int32)
