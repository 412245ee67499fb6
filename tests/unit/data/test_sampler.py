"""Order, shards and random numbers are functions of seed, epoch and index, and of nothing else."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from focal.data.sampler import BATCH, ORDER, SAMPLE, EvalSampler, TrainSampler, epoch_order, generator


def test_numbers_do_not_depend_on_what_was_drawn_before() -> None:
    expected = generator(3, 5, 7, SAMPLE).random(4)
    generator(3, 5, 6, SAMPLE).random(1000)
    assert (generator(3, 5, 7, SAMPLE).random(4) == expected).all()


def test_every_argument_changes_the_numbers() -> None:
    seen = {
        generator(seed, epoch, index, stream, copy).random()
        for seed, epoch, index, stream, copy in itertools.product(
            range(3), range(3), range(10), (ORDER, SAMPLE, BATCH), range(3)
        )
    }
    assert len(seen) == 3 * 3 * 10 * 3 * 3


def test_a_seed_keeps_its_meaning() -> None:
    """Stored values: the numbers of a seed must not change unnoticed, neither by this code nor by NumPy."""
    assert generator(0, 0, 0, SAMPLE).random(2).tolist() == [0.34218278474233466, 0.5765144536585864]
    assert generator(0, 0, 0, SAMPLE, copy=1).random(2).tolist() == [0.1360783448500149, 0.1521586574569137]
    assert epoch_order(0, 0, 8).tolist() == [5, 0, 6, 1, 7, 2, 4, 3]


def test_order_is_a_permutation_that_changes_with_epoch_and_seed() -> None:
    first, second = epoch_order(0, 0, 1000), epoch_order(0, 1, 1000)
    assert sorted(first) == sorted(second) == list(range(1000))
    # Two random permutations agree in about one place.
    assert (first == second).sum() < 10
    assert (epoch_order(1, 0, 1000) == first).sum() < 10


@pytest.mark.parametrize("world", (1, 2, 3, 8))
def test_training_shards_are_disjoint_and_equally_long(world: int) -> None:
    samplers = [TrainSampler(0, 50, 2, rank, world) for rank in range(world)]
    steps = {sampler.batches_per_epoch for sampler in samplers}
    assert steps == {50 // (2 * world)}
    seen = [i for sampler in samplers for step in range(*steps) for i in sampler.indices(5, step).tolist()]
    assert len(seen) == len(set(seen)) == 50 // (2 * world) * 2 * world
    # All ranks together follow the epoch's order, so what one rank sees does not depend on the others' progress.
    first_step = [i for sampler in samplers for i in sampler.indices(5, 0).tolist()]
    assert first_step == epoch_order(0, 5, 50)[: 2 * world].tolist()


def timm_repeat_aug_indices(order: list[int], world: int, rank: int, repeats: int) -> list[int]:
    """What timm's RepeatAugSampler (timm/data/distributed_sampler.py, selected_round=0) gives a rank for this order."""
    repeated = [index for index in order for _ in range(repeats)]
    per_rank = -(-len(order) * repeats // world)
    repeated += repeated[: per_rank * world - len(repeated)]
    return repeated[rank : per_rank * world : world][: -(-len(order) // world)]


@pytest.mark.parametrize(("world", "repeats"), [(1, 3), (2, 2), (4, 3), (3, 3), (2, 5)])
def test_repeated_augmentation_visits_the_samples_that_timm_does_in_its_order(world: int, repeats: int) -> None:
    order = epoch_order(0, 5, 50).tolist()
    seen = Counter()
    for rank in range(world):
        sampler = TrainSampler(0, 50, 2, rank, world, repeats)
        assert sampler.batches_per_epoch == 50 // (2 * world)  # as without repeats
        entries = [
            entry
            for step in range(sampler.batches_per_epoch)
            for entry in zip(sampler.indices(5, step).tolist(), sampler.copies(step).tolist())
        ]
        assert [index for index, _ in entries] == timm_repeat_aug_indices(order, world, rank, repeats)[: len(entries)]
        seen.update(entries)
    # Each sample in turn with all its copies, each once; only the last may lack some.
    total = 50 // (2 * world) * 2 * world
    expected = [(index, copy) for index in order for copy in range(repeats)][:total]
    assert seen == Counter(expected)


def test_copies_of_a_sample_go_to_different_ranks() -> None:
    ranks = [TrainSampler(0, 64, 4, rank, 4, 3) for rank in range(4)]
    where = [
        (index, rank) for rank, sampler in enumerate(ranks) for step in range(4) for index in sampler.indices(0, step)
    ]
    assert len(set(where)) == len(where) == 64


@pytest.mark.parametrize("world", (1, 3))
def test_without_repeats_the_ranks_take_consecutive_slices_as_ever(world: int) -> None:
    order = epoch_order(1, 2, 50).tolist()
    for rank, step in itertools.product(range(world), range(50 // (4 * world))):
        sampler = TrainSampler(1, 50, 4, rank, world)
        start = (step * world + rank) * 4
        assert sampler.indices(2, step).tolist() == order[start : start + 4]
        assert not sampler.copies(step).any()


@pytest.mark.parametrize(("world", "batch"), [(1, 4), (1, 13), (2, 1), (4, 3), (5, 4), (16, 2)])
def test_evaluation_shards_hold_every_sample_once_in_equally_many_batches(world: int, batch: int) -> None:
    samplers = [EvalSampler(13, batch, rank, world) for rank in range(world)]
    (steps,) = {sampler.steps for sampler in samplers}
    batches = [sampler.indices(step).tolist() for sampler in samplers for step in range(steps)]
    assert all(len(indices) <= batch for indices in batches)
    assert sorted(index for indices in batches for index in indices) == list(range(13))
    assert any(sampler.indices(steps - 1).size for sampler in samplers)  # no step too many
