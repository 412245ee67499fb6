"""Run by the rung "all cards": the training step on several cards, and its all-reduce alone.

Usage: python all_cards.py --config ... --device_num N ..., as train.py; OUT/all_cards.json gets the figures of rank 0.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "src"), str(Path(__file__).resolve().parents[2])]

from focal.errors import run_main  # noqa: E402
from focal.job import Job, run_job  # noqa: E402

ALL_REDUCE_ROUNDS = 10


def main() -> int:
    return run_job(__doc__, work, log_to_file=False)


def work(job: Job) -> int:
    """Time the step as one card does, then an all-reduce of as many bytes as there are gradients."""
    from focal.distributed.collectives import all_reduce_sum
    from tools.ascend_acceptance.step_time import time_step

    # `log_steps` and `save_steps` mean nothing here otherwise: they carry the numbers of steps and rounds.
    steps, rounds = job.config.run.log_steps, job.config.run.save_steps
    result = time_step(job.config, job.device, steps, rounds)
    result["all_reduce_ms"] = 1000 * all_reduce_seconds(result["trained_parameters"])
    last = float(result["losses"][-1])
    result["ranks_agree"] = bool(all_reduce_sum([last])[0] == job.device.world_size * last)
    result["world_size"] = job.device.world_size
    if job.device.is_main:
        file = Path(job.config.run.train_url) / "all_cards.json"
        file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


def all_reduce_seconds(numbers: int) -> float:
    """Median seconds of an all-reduce of so many float32 numbers on the device, by itself: nothing hides it here."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor, nn, ops

    class Reduce(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.reduce = ops.AllReduce()

        def construct(self, values: Tensor) -> Tensor:
            return self.reduce(values)[:1]  # one number comes back to the host, after all have been summed

    reduce, values = Reduce(), Tensor(np.ones(numbers, np.float32), ms.float32)
    seconds = []
    for _ in range(ALL_REDUCE_ROUNDS + 2):
        start = time.perf_counter()
        reduce(values).asnumpy()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[2:]))


if __name__ == "__main__":
    run_main(main)
