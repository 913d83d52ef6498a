"""The tokens of the text, the held-out files, the batches, and when the cache is written again."""

import contextlib

import numpy as np
import pytest
from lm_runs import config_of, default_config, write_text

from language_model import data


@pytest.fixture
def config(tmp_path):
    return config_of(tmp_path / "run", write_text(tmp_path / "text"))


def test_tokens_are_the_text(config):
    corpus = data.load(config)
    parts = data.split(data.read_files(config), config.test_fraction)
    for tokens, files in zip((corpus.train, corpus.test), parts, strict=True):
        ends = np.flatnonzero(tokens == config.end)
        assert len(ends) == len(files)
        assert ends[-1] == len(tokens) - 1
        for piece, file in zip(np.split(tokens, ends + 1), files, strict=False):
            assert corpus.tokenizer.decode(piece[piece != config.end].tolist()) == file.content
            assert corpus.token_bytes(config.vocabulary)[piece].sum() == len(file.content.encode())


def test_text_cannot_forge_the_end_of_a_file(config):
    config_text = config.cache.parent / "text"
    (config_text / "0.txt").write_text("<|endoftext|> </s> \0 \ufffd" * 50)
    corpus = data.load(config)
    assert np.sum(np.concatenate([corpus.train, corpus.test]) == config.end) == 12


def test_what_is_not_utf_8_is_still_text(config):
    (config.cache.parent / "text" / "0.txt").write_bytes(bytes(range(256)) * 20)
    data.load(config)


@pytest.mark.parametrize("count", [2, 15, 16, 17, 18, 32, 33, 34])
def test_packed_rows_hold_every_token_once(count):
    tokens = np.arange(count, dtype=np.int32)
    rows = data.pack(tokens, 16, -1)
    assert rows.shape == (-(-(count - 1) // 16), 17)
    np.testing.assert_array_equal(rows[:, :-1].ravel()[: count - 1], tokens[:-1])
    np.testing.assert_array_equal(rows[:, 1:].ravel()[: count - 1], tokens[1:])
    assert np.all(rows[:, 1:].ravel()[count - 1 :] == -1)
    # In a row that is padded, the last token is an input too, but its label is padding.
    np.testing.assert_array_equal(rows[1:, 0], rows[:-1, -1])


def test_a_file_is_held_out_by_its_name_alone(config):
    files = data.read_files(config)
    train, test = data.split(files, 0.3)
    assert {f.name for f in train} | {f.name for f in test} == {f.name for f in files}
    fewer = [file for file in files if file.name not in {train[0].name, test[0].name}]
    assert data.split(fewer, 0.3) == (train[1:], test[1:])


def test_the_cache_is_used_until_its_inputs_change(config, monkeypatch):
    first = data.load(config)
    train_tokenizer, trained = data.train_tokenizer, []

    def counted(*arguments):
        trained.append(arguments)
        return train_tokenizer(*arguments)

    monkeypatch.setattr(data, "train_tokenizer", counted)
    again = data.load(config)
    assert trained == []
    assert again.tokenizer.to_str() == first.tokenizer.to_str()
    np.testing.assert_array_equal(again.train, first.train)
    np.testing.assert_array_equal(again.test, first.test)

    changed = config.cache.parent / "text" / "0.txt"
    changed.write_text(changed.read_text() + "More.\n")
    assert data.load(config).fingerprint != first.fingerprint
    changed.rename(changed.with_name("renamed.txt"))
    data.load(config)
    data.load(config_of(config.output, config.text, vocabulary=321))
    assert len(trained) == 3


def other_keys(path):
    np.savez(path, train=np.zeros(9, np.int32), test=np.zeros(9, np.int32))


def other_types(path):
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "train": arrays["train"].astype(float)})


def no_tokenizer(path):
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "tokenizer": np.zeros(9, np.uint8)})


@pytest.mark.parametrize(
    "spoil",
    [
        other_keys,
        other_types,
        no_tokenizer,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b"what is this?"),
    ],
    ids=["other keys", "other types", "no tokenizer", "empty", "truncated", "no zip"],
)
def test_a_cache_that_cannot_be_used_is_made_again(config, spoil):
    first = data.load(config)
    path = next(config.cache.glob("tokens-*.npz"))
    content = path.read_bytes()
    spoil(path)
    np.testing.assert_array_equal(data.load(config).train, first.train)
    assert path.read_bytes() == content


def test_what_another_run_has_cached_meanwhile_is_used(config, monkeypatch):
    first = data.load(config)
    path = next(config.cache.glob("tokens-*.npz"))
    content = path.read_bytes()
    path.unlink()

    @contextlib.contextmanager
    def lock(folder, *, wait):
        assert wait
        assert folder == config.cache
        path.write_bytes(content)
        yield

    monkeypatch.setattr(data.runs, "lock", lock)
    monkeypatch.setattr(data, "train_tokenizer", None)
    np.testing.assert_array_equal(data.load(config).train, first.train)


def test_batches_are_the_sequences_in_another_order_each_epoch(config):
    corpus = data.load(config)
    batches = data.Batches(corpus, config)
    per_epoch = len(data.pack(corpus.train, config.sequence_length, config.end)) // config.batch_size
    epochs = [np.concatenate([batches[e * per_epoch + i]["tokens"][0] for i in range(per_epoch)]) for e in range(2)]
    for rows in epochs:
        assert len({row.tobytes() for row in rows}) == per_epoch * config.batch_size
    assert epochs[0].tobytes() != epochs[1].tobytes()
    again = data.Batches(corpus, config)[per_epoch + 1]
    np.testing.assert_array_equal(again["tokens"], batches[per_epoch + 1]["tokens"])


def test_the_standard_library_is_there():
    files = data.read_files(default_config())
    names = {file.name for file in files}
    assert {"argparse.py", "json/decoder.py"} <= names
    assert not any("site-packages" in name or name.startswith("test/") for name in names)
    assert 5e6 < sum(len(file.content) for file in files) < 30e6
