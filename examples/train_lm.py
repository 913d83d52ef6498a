"""Train a small language model on text, its loss of `softjax.linear_loss`: the logits never exist.

    python examples/train_lm.py                                # everything as in configs/lm.toml
    python examples/train_lm.py --text notes --pattern '*.md'  # any of its settings changed
    python examples/train_lm.py --mesh data=4,classes=2        # on 8 devices
    python examples/train_lm.py --resume                       # go on where a stopped or killed run was
    python examples/train_lm.py --overwrite                    # start anew in a folder that holds a run

What a step sees follows from the seed and the step's number alone. So a checkpoint holds neither the order of the data
nor a random state, and yet a resumed run is the uninterrupted one, to the bit.
"""

from common import program

if __name__ == "__main__":
    program.end_in_one_line(program.RESUMABLE)

import json
from collections.abc import Sequence

import jax
import numpy as np

from common import checkpoint
from common.settings import decisive
from language_model import data, figures
from language_model.data import Corpus
from language_model.evaluation import evaluate, sample
from language_model.settings import Config, parse
from language_model.training import State, evaluation_steps, initial_state, lately, train

# In the order of writing: where the last is there, all are.
RESULTS = ("sample.txt", *figures.NAMES, "metrics.json")


@program.exit_status(program.RESUMABLE)
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    config = options.settings
    with config.on_mesh():
        corpus = data.load(config)
        settings = decisive(config) | {"text": corpus.fingerprint}
        with checkpoint.begun(config.output, options, settings, RESULTS) as checkpoints:
            state = checkpoints.restore(initial_state(config))
            if int(state.step):
                print(f"Resumed after step {int(state.step)}.")
            publish(train(state, corpus, config, checkpoints), corpus, config)


def publish(state: State, corpus: Corpus, config: Config) -> None:
    """Writes the results. All are made before the first is written: a failure to make one leaves the old ones."""
    test = evaluate(state.model, corpus, config)
    text = sample(state.model, corpus.tokenizer, config)
    curves = {name: np.asarray(curve) for name, curve in state.curves.items()}
    lengths = corpus.token_bytes(config.vocabulary)
    metrics = {
        "settings": decisive(config),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.model)),
        "train": {
            "tokens": len(corpus.train),
            "bytes": int(lengths[corpus.train].sum()),
            "last_steps": lately(state, config),
        },
        "test": {
            "tokens": int(test.tokens.sum()),
            "bytes": test.bytes,
            "nats_per_token": test.nats_per_token,
            "bits_per_byte": test.bits_per_byte,
            "perplexity": test.perplexity,
            **test.means,
            "calibration_error": float(test.calibration.expected_error()),
        },
    }
    pictures = figures.draw(curves, evaluation_steps(config), test, config.batch_size * config.sequence_length)
    contents = {
        "sample.txt": text.encode(),
        "metrics.json": (json.dumps(metrics, indent=2) + "\n").encode(),
        **pictures,
    }
    for name in RESULTS:
        program.write(config.output / name, contents[name])
    means, error = test.means, metrics["test"]["calibration_error"]
    print(f"A sample:\n\n{text}\n")
    print(
        f"Held-out files: {test.nats_per_token:.3f} nats a token, {test.bits_per_byte:.3f} bits a byte, "
        f"perplexity {test.perplexity:.1f} ({test.bytes:,} bytes, {test.tokens.sum():,} tokens).\n"
        f"{means['accuracy']:.1%} right, {means['top_5_accuracy']:.1%} among the first 5, entropy "
        f"{means['entropy']:.3f} nats, z-loss {means['z_loss']:.3f}, expected calibration error {error:.3f}."
    )
    print(f"Results: {config.output}")


if __name__ == "__main__":
    program.leave(main())
