"""Which gradients travel together."""

from __future__ import annotations

from focal.trainers.gradient_buckets import fusion_buckets


def test_buckets_fill_from_the_last_gradient() -> None:
    assert fusion_buckets([10, 10, 10, 10, 10], bucket_bytes=20) == [3, 2, 2, 1, 1]


def test_a_large_gradient_closes_its_bucket() -> None:
    assert fusion_buckets([1, 100, 1], bucket_bytes=20) == [2, 1, 1]


def test_small_networks_send_one_message() -> None:
    assert fusion_buckets([4] * 50) == [1] * 50


def test_no_gradients_need_no_buckets() -> None:
    assert fusion_buckets([]) == []


def test_every_gradient_of_a_model_is_in_a_bucket_of_bounded_size() -> None:
    sizes = [4 * 96 * 288] * 300
    buckets = fusion_buckets(sizes, bucket_bytes=2**20)
    held = {number: sum(s for s, b in zip(sizes, buckets) if b == number) for number in buckets}
    assert sum(held.values()) == sum(sizes)
    assert all(2**20 <= amount < 2**20 + max(sizes) for number, amount in held.items() if number != max(buckets))
