"""Train a linear classifier on handwritten digits, with `softjax.cross_entropy` as its loss.

    python examples/train_classifier.py                       # everything as in configs/classifier.toml
    python examples/train_classifier.py --epochs 50 --base 2  # any of its settings changed
    python examples/train_classifier.py --mesh data=4,classes=2  # on 8 devices
    python examples/train_classifier.py --resume              # go on where a killed run stopped
    python examples/train_classifier.py --overwrite           # start anew in a folder that holds a run

The objective is convex, so that it has one optimum, which scikit-learn finds too. Per image, of N:

    ours     (1/N) Σ −log_b softmax(x W + c)_y  +  (λ/2) ‖W‖²      λ = weight_decay; the bias c goes free
    theirs       C Σ −ln softmax(x W + c)_y     +  (1/2) ‖W‖²      sklearn.linear_model.LogisticRegression

The base scales the first term only, by 1/ln b. So the two have the same optimum where C = 1 / (N λ ln b), and there
ours is λ times theirs. (With two classes their W is the one difference of our two columns, and C is twice that.)
"""

from common import program

if __name__ == "__main__":
    program.end_in_one_line(program.RESUMABLE)

import json
from collections.abc import Sequence

import numpy as np
import rich

import softjax
from classifier import figures, scores
from classifier.digits import Data
from classifier.settings import Config, parse
from classifier.training import State, initial_state, load_data, logits_of, train
from common import checkpoint
from common.settings import decisive

# In the order of writing: where the last is there, all are.
RESULTS = ("params.npz", *figures.NAMES, "metrics.json")


@program.exit_status(program.RESUMABLE)
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    config = options.settings
    with config.on_mesh():
        data = load_data(config)
        with checkpoint.begun(config.output, options, decisive(config), RESULTS) as checkpoints:
            state = checkpoints.restore(initial_state(data, config))
            if int(state.epoch):
                print(f"Resumed after epoch {int(state.epoch)}.")
            publish(train(state, data, config, checkpoints), data, config)


def publish(state: State, data: Data, config: Config) -> None:
    """Writes the results. All are made before the first is written: a failure to make one leaves the old ones."""
    logits = {part: logits_of(state.params, images.pixels) for part, images in data._asdict().items()}
    parts = {part: scores.of(logits[part], images.labels) for part, images in data._asdict().items()}
    history = {name: np.asarray(curve) for name, curve in state.history.items()}
    metrics = {"settings": decisive(config), "objective": float(history["objective"][-1]), **parts}
    pictures = figures.draw(
        history,
        np.asarray(state.params["kernel"]),
        softjax.statistics(logits["test"], data.test.labels),
        np.asarray(data.test.labels),
        scores.unit(config.base),
    )
    contents = {
        "params.npz": checkpoint.npz(state.params),
        "metrics.json": (json.dumps(metrics, indent=2) + "\n").encode(),
        **pictures,
    }
    for name in RESULTS:
        program.write(config.output / name, contents[name])
    rich.print(*scores.tables(parts), sep="\n")
    print(f"Results: {config.output}")


if __name__ == "__main__":
    program.leave(main())
