"""train.py with an observer: what each rank holds before and after training, a bad target, unequal starts.

FOCAL_SPY_FOLDER takes a file per rank with the parameters' digests. FOCAL_SPY_BAD_STEPS ("2,5") names the steps of the
first epoch whose last target, on the last rank only, is infinite. On ranks other than 0 the weights start from noise,
as they would if nobody told them rank 0's.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY)]

from focal.errors import run_main  # noqa: E402

RANK = int(os.environ.get("MS_NODE_ID", "0"))
LAST_RANK = int(os.environ.get("MS_WORKER_NUM", "1")) - 1


def digest(cell: Any) -> str:
    """Of every parameter's bytes, but for the counter of random masks, which differs by rank."""
    total = hashlib.sha256()
    for parameter in cell.get_parameters():
        if "random_counter" not in parameter.name:
            total.update(parameter.asnumpy().tobytes())
    return total.hexdigest()


def spy() -> None:
    """Put the observer into the modules that train.py is about to use."""
    import mindspore as ms

    import focal.data
    from focal.trainers import setup
    from focal.trainers import trainer as training

    build, run, batches = setup.build_network, training.Trainer.run, focal.data.TrainData.epoch
    bad_steps = [int(step) for step in os.environ.get("FOCAL_SPY_BAD_STEPS", "").split(",") if step]

    def build_unequal(*arguments: Any) -> Any:
        network = build(*arguments)
        if RANK:
            generator = np.random.default_rng(RANK)
            for parameter in network.trainable_params():
                noise = generator.normal(size=parameter.shape).astype(np.float32)
                parameter.set_data(ms.Tensor(noise, parameter.dtype))
        return network

    def run_watched(self: Any) -> int:
        before = digest(self.train_step)
        code = run(self)
        report = {"before": before, "after": digest(self.train_step)}
        Path(os.environ["FOCAL_SPY_FOLDER"], f"digests_{RANK}.json").write_text(json.dumps(report))
        return code

    def batches_with_bad(self: Any, epoch: int, first_step: int = 0) -> Iterator[tuple]:
        for step, (images, targets, *others) in enumerate(batches(self, epoch, first_step), first_step):
            if epoch == 0 and step in bad_steps and RANK == LAST_RANK:
                targets = targets.copy()
                targets[-1] = np.inf
            yield images, targets, *others

    setup.build_network = build_unequal
    training.Trainer.run = run_watched
    focal.data.TrainData.epoch = batches_with_bad


def main() -> Any:
    """Spy in the workers, then train as ever."""
    import train

    if LAST_RANK == 0 or "MS_NODE_ID" in os.environ:
        spy()
    return train.main()


if __name__ == "__main__":
    run_main(main)
