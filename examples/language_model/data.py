"""Text as tokens: files, a byte-pair vocabulary trained on them, and the sequences that are packed from them."""

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

from common import checkpoint, program
from common.program import WrongInput
from language_model.settings import Config

# Of the standard library: what is installed beside it, tests, and tables rather than text.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}


class File(NamedTuple):
    name: str
    content: str


class Corpus(NamedTuple):
    tokenizer: Tokenizer
    train: np.ndarray  # [tokens]: the files, each followed by the token `Config.end`
    test: np.ndarray
    fingerprint: str  # of the text and the vocabulary

    def token_bytes(self, vocabulary: int) -> np.ndarray:
        """How many bytes of text each token stands for, `[vocabulary]`; the end of a file stands for none."""
        lengths = np.zeros(vocabulary, np.int64)
        for token, index in self.tokenizer.get_vocab().items():
            lengths[index] = len(token)  # the byte-level alphabet writes each byte as one character
        return lengths


def load(config: Config) -> Corpus:
    """The corpus, from the cache if that was made of the same files and settings.

    Raises:
      WrongInput: if there is no text, or none of it is left to train or to test on.
    """
    train, test = split(read_files(config), config.test_fraction)
    fingerprint = _fingerprint(train, test, config.vocabulary)
    path = config.cache / f"tokens-{fingerprint}.npz"
    corpus = _cached(path, fingerprint)
    if corpus is None:
        config.cache.mkdir(parents=True, exist_ok=True)
        with checkpoint.held(config.cache, wait=True):
            # Another run may have made it while this one waited.
            corpus = _cached(path, fingerprint) or _make(path, fingerprint, train, test, config)
    if len(corpus.train) <= config.sequence_length * config.batch_size:
        wanted = f"a step takes {config.batch_size} sequences of {config.sequence_length}"
        raise WrongInput(f"the text has {len(corpus.train):,} tokens to train on, and {wanted}.")
    return corpus


def _make(path: Path, fingerprint: str, train: Sequence[File], test: Sequence[File], config: Config) -> Corpus:
    print(f"Training a vocabulary of {config.vocabulary:,} entries on {len(train):,} files.")
    tokenizer = train_tokenizer([file.content for file in train], config.vocabulary)
    parts = {"train": encode(train, tokenizer, config.end), "test": encode(test, tokenizer, config.end)}
    kept = np.frombuffer(tokenizer.to_str().encode(), np.uint8)
    program.write(path, checkpoint.npz({**parts, "tokenizer": kept}))
    return Corpus(tokenizer, **parts, fingerprint=fingerprint)


def read_files(config: Config) -> list[File]:
    folder = Path(config.text or sysconfig.get_path("stdlib"))
    if not folder.is_dir():
        raise WrongInput(f"`text` must be a folder, and {folder} {'is none' if folder.exists() else 'does not exist'}.")
    left_out = set() if config.text else _LEFT_OUT
    try:
        names = [path.relative_to(folder) for path in folder.glob(config.pattern) if path.is_file()]
    except ValueError as error:  # before Python 3.13, `**.py` is no pattern
        raise WrongInput(f"`pattern` {config.pattern!r} cannot be used: {error}") from error
    # What is not UTF-8 becomes U+FFFD.
    files = [
        File(name.as_posix(), (folder / name).read_bytes().decode("utf-8", "replace"))
        for name in names
        if left_out.isdisjoint(name.parts)
    ]
    if not files:
        raise WrongInput(f"no file in {folder} has a name like {config.pattern}.")
    return files


def split(files: Sequence[File], test_fraction: float) -> tuple[list[File], list[File]]:
    """A file is held out or not by its name alone, and the files lie in the order of their names' hashes."""
    hashes = {file.name: hashlib.sha256(file.name.encode()).digest() for file in files}
    ordered = sorted(files, key=lambda file: hashes[file.name])
    held_out = [int.from_bytes(hashes[file.name][:8]) < test_fraction * 2**64 for file in ordered]
    parts = {kept: [file for file, out in zip(ordered, held_out, strict=True) if out == kept] for kept in (False, True)}
    for kept, purpose in ((False, "train"), (True, "test")):
        if not any(file.content for file in parts[kept]):
            raise WrongInput(f"`test_fraction` {test_fraction} of {len(files)} files leaves no text to {purpose} on.")
    return parts[False], parts[True]


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Byte-pair encoding of bytes, so that any text has tokens; one entry is left for the end of a file."""
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
    """Rows of length + 1 tokens: the last of each is the first of the next, a label there and an input here.

    What is missing from the last row is filled with `end`, whose label never counts (`loss.last_layer`).
    """
    rows = -(-(len(tokens) - 1) // length)
    padded = np.full(rows * length + 1, end, np.int32)
    padded[: len(tokens)] = tokens
    return padded[np.arange(rows)[:, None] * length + np.arange(length + 1)]


class Batches:
    """The sequences of the training text, in another order in each epoch."""

    def __init__(self, corpus: Corpus, config: Config):
        self._rows = pack(corpus.train, config.sequence_length, config.end)
        self._config = config
        self._order = functools.lru_cache(maxsize=1)(self._order_of)

    def _order_of(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._config.seed, epoch]).permutation(len(self._rows))

    def __getitem__(self, step: int) -> np.ndarray:
        """Tokens, `[microbatches, sequences, sequence_length + 1]`."""
        return self.tokens(self.numbers(step))

    def numbers(self, step: int) -> np.ndarray:
        """Which sequences a step takes, `[microbatches, sequences]`. An epoch's last, incomplete batch is dropped."""
        epoch, batch = divmod(step, len(self._rows) // self._config.batch_size)
        first = batch * self._config.batch_size
        return self._order(epoch)[first : first + self._config.batch_size].reshape(self._config.microbatches, -1)

    def tokens(self, numbers: np.ndarray) -> np.ndarray:
        return self._rows[numbers]


def _fingerprint(train: Sequence[File], test: Sequence[File], vocabulary: int) -> str:
    digest = hashlib.sha256(f"{importlib.metadata.version('tokenizers')} {vocabulary}".encode())
    for part in (train, test):
        digest.update(len(part).to_bytes(8))
        for file in part:
            for text in file:
                digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:16]


def _cached(path: Path, fingerprint: str) -> Corpus | None:
    """The corpus in the file; None if there is no file, or it is damaged or holds something else: it is made again."""
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            tokenizer = Tokenizer.from_str(file["tokenizer"].tobytes().decode())
            train, test = file["train"], file["test"]
    except Exception:  # what is no such file fails in a dozen ways
        return None
    whole = all(tokens.ndim == 1 and tokens.dtype == np.int32 for tokens in (train, test))
    return Corpus(tokenizer, train, test, fingerprint) if whole else None
