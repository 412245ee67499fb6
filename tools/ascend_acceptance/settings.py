"""From measurements to what a user should set: the fastest safe settings, and a row for the table of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

AS_FAST = 0.02


@dataclass(frozen=True)
class Measured:
    """One combination of settings on one card.

    Attributes:
        settings: jit_level, amp_level and others, by key.
        ms_per_step: median; 0 if it did not run.
        images_per_second: of one card.
        error: why the figures cannot be used; empty: they can.
    """

    settings: dict[str, Any]
    ms_per_step: float
    images_per_second: float
    error: str = ""

    @classmethod
    def of(cls, row: dict[str, Any]) -> Measured:
        """From a row of the record."""
        return cls(row["settings"], row.get("ms_per_step", 0.0), row.get("images_per_second", 0.0), row["error"])


def fastest_safe(measured: Sequence[Measured], unsafe: set[tuple[str, str]]) -> Optional[Measured]:
    """The combination with the most images a second among those whose results are right; None if there is none.

    Of combinations that are as fast to within `AS_FAST`, the first: a difference so small may be gone next time.

    Args:
        measured: all combinations, the defaults first.
        unsafe: (jit_level, amp_level) with wrong results; amp_level "" stands for every one.
    """
    usable = [
        row
        for row in measured
        if not row.error
        and (row.settings["jit_level"], row.settings["amp_level"]) not in unsafe
        and (row.settings["jit_level"], "") not in unsafe
    ]
    most = max((row.images_per_second for row in usable), default=0.0)
    return next((row for row in usable if row.images_per_second >= (1 - AS_FAST) * most), None)


def yaml_snippet(settings: dict[str, Any], attention: str) -> str:
    """The settings as lines of a YAML file.

    Args:
        settings: of the fastest safe combination.
        attention: what the comparison of flash and products took; empty: there was none, and no line is written.
    """
    lines = {**settings, **({"attention": attention} if attention and "attention" not in settings else {})}
    if settings.get("amp_level") == "bf16":
        lines.update(is_dynamic_loss_scale=False, loss_scale=1)
    return "".join(f"{name}: {value}\n" for name, value in lines.items())


HEADER = (
    "| model name | params(M) | cards | batch size | resolution | jit level | graph compile | ms/step | img/s "
    "| acc@top1 | acc@top5 |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def mindcv_row(figures: dict[str, Any]) -> str:
    """A measurement as a row of the table in which mindcv publishes its results (`HEADER`), without accuracies.

    Args:
        figures: of the rung "one card" (one combination) or "all cards".
    """
    height, width = figures["image_size"]
    cells = (
        figures["arch"],
        f"{figures['trained_parameters'] / 1e6:.2f}",
        figures.get("world_size", 1),
        figures["batch_size"],
        f"{height}x{width}",
        figures["jit_level"] or "default",
        f"{figures['compile_seconds']:.0f}s",
        f"{figures['ms_per_step']:.2f}",
        f"{figures['images_per_second']:.2f}",
        "",
        "",
    )
    return "| " + " | ".join(map(str, cells)) + " |"
