"""Whatever the counts, ranks and steps: each image once."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from focal.data.sampler import EvalSampler, TrainSampler, epoch_order

COUNTS = {"count": st.integers(0, 400), "batch": st.integers(1, 40), "world": st.integers(1, 20)}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(**COUNTS)
def test_evaluation_counts_each_image_once_in_equally_many_batches(count: int, batch: int, world: int) -> None:
    samplers = [EvalSampler(count, batch, rank, world) for rank in range(world)]
    (steps,) = {sampler.steps for sampler in samplers}
    batches = [sampler.indices(step) for sampler in samplers for step in range(steps)]
    assert all(len(indices) <= batch for indices in batches)
    assert sorted(np.concatenate([*batches, []]).tolist()) == list(range(count))
    assert all(not len(sampler.indices(steps)) for sampler in samplers)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(**COUNTS, seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**40))
def test_training_takes_each_image_at_most_once_and_leaves_out_less_than_a_step(
    count: int, batch: int, world: int, seed: int, epoch: int
) -> None:
    samplers = [TrainSampler(seed, count, batch, rank, world) for rank in range(world)]
    (steps,) = {sampler.batches_per_epoch for sampler in samplers}
    taken = [sampler.indices(epoch, step) for step in range(steps) for sampler in samplers]
    assert all(len(indices) == batch for indices in taken)
    seen = np.concatenate([*taken, []]).astype(np.int64)
    assert len(set(seen.tolist())) == len(seen) == steps * batch * world and count - len(seen) < batch * world
    # Ranks together follow one order, so another number of ranks sees the same images in a step of the same size.
    assert (seen == epoch_order(seed, epoch, count)[: len(seen)]).all() and (seen < max(count, 1)).all()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(**COUNTS, repeats=st.integers(2, 7), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**40))
def test_repeated_augmentation_takes_each_chosen_image_as_often_as_timm(
    count: int, batch: int, world: int, repeats: int, seed: int, epoch: int
) -> None:
    """timm's RepeatAugSampler: every image of the order `repeats` times in a row, dealt to the ranks in turns."""
    samplers = [TrainSampler(seed, count, batch, rank, world, repeats) for rank in range(world)]
    steps = TrainSampler(seed, count, batch, 0, world).batches_per_epoch
    assert {sampler.batches_per_epoch for sampler in samplers} == {steps}  # as many as without repeats
    dealt = np.repeat(epoch_order(seed, epoch, count), repeats)[: steps * batch * world]
    taken: list[tuple[int, int]] = []
    for rank, sampler in enumerate(samplers):
        indices = np.concatenate([*(sampler.indices(epoch, step) for step in range(steps)), []]).astype(np.int64)
        copies = np.concatenate([*(sampler.copies(step) for step in range(steps)), []]).astype(np.int64)
        assert (indices == dealt[rank::world]).all() and len(indices) == steps * batch
        taken += zip(indices.tolist(), copies.tolist())
    assert len(set(taken)) == len(taken)  # no two ranks, and no rank twice, make the same copy
    times = Counter(image for image, _ in taken)
    whole = dealt[: len(dealt) // repeats * repeats : repeats]  # but for the last image, whose copies may not all fit
    assert all(times[image] == repeats for image in whole.tolist())
    assert len(times) == -(-len(taken) // repeats) and max(times.values(), default=0) <= repeats
    assert all(0 <= copy < times[image] for image, copy in taken)
