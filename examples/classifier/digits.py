"""scikit-learn's handwritten digits, 8×8 pixels, split into a training and a test part."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Images(NamedTuple):
    pixels: jax.Array  # [images, 64], ink from 0 to 1
    labels: jax.Array  # [images], the digits


class Data(NamedTuple):
    train: Images
    test: Images


def load(classes: int, test_fraction: float, seed: int) -> Data:
    """The digits 0 to `classes` − 1, each of them split in the same proportion.

    Raises:
      ValueError: if a part would be left without a digit.
    """
    pixels, digits = whole(classes)
    x_train, x_test, y_train, y_test = train_test_split(
        pixels, digits, test_size=test_fraction, random_state=seed, stratify=digits
    )
    return Data(Images(jnp.asarray(x_train), jnp.asarray(y_train)), Images(jnp.asarray(x_test), jnp.asarray(y_test)))


def whole(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels and labels of all images of the digits 0 to `classes` − 1."""
    ink, digits = load_digits(n_class=classes, return_X_y=True)
    return np.asarray(ink / 16, np.float32), np.asarray(digits, np.int32)
