"""The chunk size follows from shapes and platform. Chunks contain each sample once and skip ignored ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softjax._linear import chunks


@pytest.mark.parametrize(
    ("samples", "features", "classes", "platform", "rows"),
    [
        (2048, 512, 32768, "cpu", 512),  # 16 MiB hold 128 samples; the least is 512
        (1000, 512, 32768, "cpu", 256),  # 512 exceeds half of the samples; the least is then 256
        (16384, 256, 4096, "cpu", 1024),  # 16 MiB
        (2000, 512, 50257, "cpu", 504),  # 4 equal chunks of 500, rounded up to a multiple of 8
        (257, 512, 32768, "cpu", 136),  # two chunks of about equal size, not 256 and 1
        (100, 512, 32768, "cpu", 100),
        (512, 1024, 262144, "cpu", 512),  # all logits take half the memory of the kernel
        (0, 512, 32768, "cpu", 1),
        (16384, 4096, 131072, "gpu", 4096),  # a quarter of the logits, 2 GiB
        (8192, 4096, 65536, "gpu", 2048),  # a quarter, 512 MiB
        (8192, 4096, 32768, "gpu", 4096),  # 512 MiB, more than a quarter
        (32768, 4096, 131072, "gpu", 4096),  # 2 GiB, less than a quarter
        (16384, 4096, 2**20, "gpu", 1024),
        (60000, 784, 10, "cpu", 60000),
    ],
)
def test_default_chunk_size(samples, features, classes, platform, rows):
    assert chunks.default_chunk_size(samples, features, classes, 4, platform) == rows


@pytest.mark.parametrize(
    ("samples", "features", "classes", "platform", "rows"),
    [
        (4096, 512, 32768, "cpu", 416),  # 10 chunks of 410, rounded up to a multiple of 8
        (2048, 512, 32768, "cpu", 256),  # 8 chunks: more would have fewer than 256 samples
        (2048, 512, 1000, "cpu", 256),  # without weights, one chunk
        (200, 512, 32768, "cpu", 200),
        (65536, 512, 131072, "cpu", 512),  # more than 10 chunks anyway
        (8192, 4096, 131072, "gpu", 896),  # a multiple of 128
    ],
)
def test_the_default_chunk_size_of_packed_samples(samples, features, classes, platform, rows):
    assert chunks.default_chunk_size(samples, features, classes, 4, platform, packed=True) == rows


def test_the_default_chunk_size_of_any_shape_is_in_its_bounds():
    rng = np.random.default_rng(0)
    for samples, features, classes in rng.integers(1, 10**6, (200, 3)):
        for platform in ("cpu", "gpu", "tpu"):
            rows = chunks.default_chunk_size(int(samples), int(features), int(classes), 4, platform)
            assert 1 <= rows <= samples
            least, target = (512, 2**24) if platform == "cpu" else (1024, 2**31)
            in_one_chunk = 2 * samples <= features
            assert in_one_chunk or rows <= least + 128 or rows * classes * 4 <= target + 128 * classes * 4


@pytest.mark.parametrize(("samples", "rows"), [(7, 1), (7, 2), (7, 7), (7, 9), (0, 1), (8, 4)])
def test_split_and_merge(samples, rows):
    x = jnp.arange(samples * 3.0).reshape(samples, 3) + 1
    split = chunks.split_into_chunks({"x": x}, samples, rows)["x"]
    assert split.shape[1:] == (rows, 3)
    assert samples == 0 or split.all()  # padded with the last sample, not with zeros
    np.testing.assert_array_equal(chunks.merge_chunks(split, (samples,)), x)


def test_scan_chunks_skips_inactive_chunks():
    def step(carry, x):
        return carry + x.sum(), x + 1

    x = jnp.arange(6.0).reshape(3, 2)
    total, out = chunks.scan_chunks(step, jnp.float32(0), x, jnp.array([True, False, True]))
    assert total == 10
    np.testing.assert_array_equal(out, [[1, 2], [0, 0], [5, 6]])
    total, out = chunks.scan_chunks(step, jnp.float32(0), x, None)
    assert total == 15
    assert chunks.scan_chunks(step, jnp.float32(0), x[:1], None)[1].shape == (1, 2)


def test_active_chunks():
    w = jnp.array([[0.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(chunks.active_chunks(w), [False, True, True])
    assert chunks.active_chunks(w.at[0, 1].set(jnp.nan)).all()
    seen = []
    # all are active where the weights are differentiated
    jax.jvp(lambda w: seen.append(chunks.active_chunks(w)) or w, (w,), (w,))
    np.testing.assert_array_equal(seen[0], [True, True, True])


def test_an_ignored_chunk_is_not_computed():
    def cost(w):
        def step(carry, chunk):
            return carry + jnp.linalg.inv(chunk).sum(), None

        return chunks.scan_chunks(step, jnp.float32(0), jnp.zeros((2, 3, 3)), chunks.active_chunks(w))[0]

    assert cost(jnp.zeros((2, 3))) == 0  # the inverse of a matrix of zeros is not finite
    assert not jnp.isfinite(cost(jnp.ones((2, 3))))
