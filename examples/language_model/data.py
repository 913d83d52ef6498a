"""The data: files, a byte-pair vocabulary trained on them, and batches of packed sequences."""

import functools
import hashlib
import importlib.metadata
import io
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from common import program, runs
from common.settings import WrongInput
from language_model.settings import Config

# Folders of the standard library without text to learn from: installed packages, tests and tables.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}


class File(NamedTuple):
    name: str
    content: str


class Corpus(NamedTuple):
    tokenizer: Tokenizer
    train: np.ndarray  # [tokens]: the files, each followed by `Config.end`
    test: np.ndarray
    fingerprint: str  # a hash of the text and the size of the vocabulary

    def token_bytes(self, vocabulary: int) -> np.ndarray:
        """The bytes of text in each token, `[vocabulary]`; 0 for the end of a file."""
        lengths = np.zeros(vocabulary, np.int64)
        for token, index in self.tokenizer.get_vocab().items():
            lengths[index] = len(token)  # the byte-level alphabet has one character per byte
        return lengths

    def bytes_per_token(self, vocabulary: int) -> float:
        """The mean over the training text."""
        return float(self.token_bytes(vocabulary)[self.train].mean())


def load(config: Config) -> Corpus:
    """The tokenised text, from the cache if it holds these files with this vocabulary.

    Raises:
      WrongInput: if there is not enough text to train and to test on.
    """
    train, test = split(read_files(config), config.test_fraction)
    fingerprint = _fingerprint(train, test, config.vocabulary)
    path = config.cache / f"tokens-{fingerprint}.npz"
    corpus = _cached(path, fingerprint)
    if corpus is None:
        config.cache.mkdir(parents=True, exist_ok=True)
        with runs.lock(config.cache, wait=True):
            # Another run may have written it while this one waited.
            corpus = _cached(path, fingerprint) or _tokenise(path, fingerprint, train, test, config)
    if len(corpus.train) <= config.sequence_length * config.batch_size:
        wanted = f"a step takes {config.batch_size} sequences of {config.sequence_length}"
        raise WrongInput(f"the text has {len(corpus.train):,} tokens to train on, and {wanted}.")
    return corpus


def _tokenise(path: Path, fingerprint: str, train: Sequence[File], test: Sequence[File], config: Config) -> Corpus:
    print(f"Training a vocabulary of {config.vocabulary:,} entries on {len(train):,} files.")
    tokenizer = train_tokenizer([file.content for file in train], config.vocabulary)
    parts = {"train": encode(train, tokenizer, config.end), "test": encode(test, tokenizer, config.end)}
    vocabulary = np.frombuffer(tokenizer.to_str().encode(), np.uint8)
    program.write(path, runs.npz({**parts, "tokenizer": vocabulary}))
    return Corpus(tokenizer, **parts, fingerprint=fingerprint)


def read_files(config: Config) -> list[File]:
    folder = Path(config.text or sysconfig.get_path("stdlib"))
    if not folder.is_dir():
        problem = "is not one" if folder.exists() else "does not exist"
        raise WrongInput(f"`text` must be a folder, and {folder} {problem}.")
    skipped = set() if config.text else _SKIPPED
    try:
        names = [path.relative_to(folder) for path in folder.glob(config.pattern) if path.is_file()]
    except ValueError as error:  # before Python 3.13, `**.py` is not a pattern
        raise WrongInput(f"`pattern` {config.pattern!r} cannot be used: {error}") from error
    # Bytes that are not UTF-8 become U+FFFD.
    files = [
        File(name.as_posix(), (folder / name).read_bytes().decode("utf-8", "replace"))
        for name in names
        if skipped.isdisjoint(name.parts)
    ]
    if not files:
        raise WrongInput(f"no file in {folder} matches `pattern` {config.pattern}.")
    return files


def split(files: Sequence[File], test_fraction: float) -> tuple[list[File], list[File]]:
    """The training and the test files, in the order of a hash of their names, which also decides who is held out."""
    hashes = {file.name: hashlib.sha256(file.name.encode()).digest() for file in files}
    ordered = sorted(files, key=lambda file: hashes[file.name])
    held_out = [int.from_bytes(hashes[file.name][:8]) < test_fraction * 2**64 for file in ordered]
    train, test = ([file for file, out in zip(ordered, held_out, strict=True) if out == part] for part in (False, True))
    for part, purpose in ((train, "train"), (test, "test")):
        if not any(file.content for file in part):
            raise WrongInput(f"`test_fraction` {test_fraction} of {len(files)} files leaves no text to {purpose} on.")
    return train, test


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Trains a byte-pair encoding of bytes, so that it can encode any text. One token is left for the end of a file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(files: Sequence[File], tokenizer: Tokenizer, end: int) -> np.ndarray:
    encodings = tokenizer.encode_batch([file.content for file in files])
    return np.concatenate([np.array([*encoding.ids, end], np.int32) for encoding in encodings])


def pack(tokens: np.ndarray, length: int, end: int) -> np.ndarray:
    """Cuts the text into rows of length + 1 tokens, where each row begins with the last token of the row before.

    The first `length` tokens of a row are inputs, the last `length` are labels. The last row is padded with `end`,
    after which labels have weight 0 (`model.labels_and_weights`).
    """
    rows = -(-(len(tokens) - 1) // length)
    padded = np.full(rows * length + 1, end, np.int32)
    padded[: len(tokens)] = tokens
    return padded[np.arange(rows)[:, None] * length + np.arange(length + 1)]


class Batches:
    """The batches of the training text, in another order in each epoch."""

    def __init__(self, corpus: Corpus, config: Config):
        self._rows = pack(corpus.train, config.sequence_length, config.end)
        self._config = config
        self._order = functools.lru_cache(maxsize=1)(self._shuffle)

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._config.seed, epoch]).permutation(len(self._rows))

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step, counted from 0: `tokens`, `[microbatches, sequences, sequence_length + 1]`."""
        return {"tokens": self.tokens(self.indices(step))}

    def indices(self, step: int) -> np.ndarray:
        """Which sequences a step takes, `[microbatches, sequences]`. An epoch drops its last, incomplete batch."""
        epoch, batch = divmod(step, len(self._rows) // self._config.batch_size)
        first = batch * self._config.batch_size
        return self._order(epoch)[first : first + self._config.batch_size].reshape(self._config.microbatches, -1)

    def tokens(self, indices: np.ndarray) -> np.ndarray:
        """The sequences with these indices."""
        return self._rows[indices]


def _fingerprint(train: Sequence[File], test: Sequence[File], vocabulary: int) -> str:
    digest = hashlib.sha256(f"{importlib.metadata.version('tokenizers')} {vocabulary}".encode())
    for part in (train, test):
        digest.update(len(part).to_bytes(8))
        for file in part:
            for text in file:
                digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:16]


def _cached(path: Path, fingerprint: str) -> Corpus | None:
    """The corpus in the file, or None if the file is missing, damaged or of another kind: it is then written again."""
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            tokenizer = Tokenizer.from_str(file["tokenizer"].tobytes().decode())
            train, test = file["train"], file["test"]
    except Exception:  # NumPy, zipfile and tokenizers raise many types
        return None
    valid = all(tokens.ndim == 1 and tokens.dtype == np.int32 for tokens in (train, test))
    return Corpus(tokenizer, train, test, fingerprint) if valid else None
