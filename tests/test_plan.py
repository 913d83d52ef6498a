"""`linear_cross_entropy` refuses wrong arguments by name. NumPy arrays and traced options work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax

H, K, Y = jnp.ones((6, 4)), jnp.ones((4, 5)), jnp.zeros(6, jnp.int32)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((H, K.T, Y), {}, ValueError, r"`kernel` .* 4 features of `hidden` \(6, 4\), got \(5, 4\).*kernel\.T"),
        ((H, K[0], Y), {}, ValueError, r"`kernel` must be \[features, classes\], got shape \(5,\)"),
        ((H, jnp.ones((3, 5)), Y), {}, ValueError, r"`kernel` .*got \(3, 5\)\."),
        ((H, K[:, :0], Y), {}, ValueError, r"`kernel` must have at least one class, got shape \(4, 0\)"),
        ((jnp.float32(1), K, Y), {}, ValueError, "`hidden` must have an axis of features"),
        ((H.astype(int), K, Y), {}, TypeError, "`hidden` must be a real floating array, got int32"),
        ((H, K.astype(complex), Y), {}, TypeError, "`kernel` must be a real floating array, got complex64"),
        ((H, "kernel", Y), {}, TypeError, "`kernel` must be an array, got str"),
        ((H, K, Y[:3]), {}, ValueError, r"`hidden @ kernel` \(6, 5\) without its class axis, \(6,\); got \(3,\)"),
        ((H, K, jnp.ones(6)), {}, ValueError, r"Floating `labels` .* \(6, 5\); got \(6,\).*astype\(int\)"),
        ((H, K, Y), {"bias": jnp.ones(4)}, ValueError, r"`bias` .* one entry for each class, \(5,\); got \(4,\)"),
        ((H, K, Y), {"bias": 1}, TypeError, "`bias` must be a real floating array"),
        ((H, K, Y), {"weights": jnp.ones(5)}, ValueError, r"`weights` must broadcast"),
        ((H, K, Y), {"logit_softcap": 0}, ValueError, "`logit_softcap` must be positive and finite, got 0"),
        ((H, K, Y), {"logit_softcap": jnp.float32(3)}, TypeError, "`logit_softcap` must be a Python number"),
        ((H, K, Y), {"logit_softcap": float("nan")}, ValueError, "`logit_softcap`"),
        ((H, K, Y), {"block_size": 0}, ValueError, "`block_size` must be at least 1, got 0"),
        ((H, K, Y), {"block_size": 2.5}, TypeError, "`block_size` must be an integer, got float"),
        ((H, K, Y), {"reduction": "avg"}, ValueError, "`reduction` must be one of"),
        ((H, K, Y), {"base": 1}, ValueError, "`base`"),
        ((H, K, Y), {"label_smoothing": 1.5}, ValueError, "`label_smoothing` must be in"),
        ((H, K, Y), {"z_loss": -1.0}, ValueError, "`z_loss`"),
    ],
)  # fmt: skip
def test_refused_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        softjax.linear_cross_entropy(*arguments, **options)
    with pytest.raises(error, match=message):
        jax.jit(lambda: softjax.linear_cross_entropy(*arguments, **options))()


def test_numpy_arrays_and_traced_options():
    value = softjax.linear_cross_entropy(np.ones((6, 4)), np.ones((4, 5)), np.zeros(6, int), block_size=np.int64(2))
    np.testing.assert_allclose(value, np.log10(5), rtol=1e-6)
    schedule = jax.jit(lambda e: softjax.linear_cross_entropy(H, K, Y, label_smoothing=e))(0.3)
    np.testing.assert_allclose(schedule, np.log10(5), rtol=1e-6)


def test_float8_is_refused():
    for call in (
        lambda x: softjax.cross_entropy(x, Y),
        lambda x: softjax.softmax(x),
        lambda x: softjax.linear_cross_entropy(x, K, Y),
        lambda p: softjax.cross_entropy(H, p),  # a distribution
    ):
        with pytest.raises(TypeError, match="must be a floating array of 16 bits or more, got float8_e4m3fn; cast it"):
            call(H.astype(jnp.float8_e4m3fn))
