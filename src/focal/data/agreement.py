"""Compares settings, data and code of all ranks before they work together."""

from __future__ import annotations

from collections.abc import Sequence

from focal.config.schema import Config
from focal.data.folder import ImageSource
from focal.data.layout import DataLayout
from focal.distributed.agreement import Listing, check_agreement, settings_listing, source_listing
from focal.distributed.device import Device


def check_ranks_agree(config: Config, device: Device, layout: DataLayout, others: Sequence[Listing] = ()) -> None:
    """Refuse a job whose servers have other settings, classes, images or code. Every rank must call it.

    Images are compared by name and label, not by content; one server may have them in MindRecord files, however many,
    and another in folders.

    Args:
        config: without `num_classes` -1, see `with_classes_of`.
        layout: the data of this server, which may lie in another folder than that of the others.
        others: what else must be the same, for example files that each server reads for itself; of the same names on
            every rank.

    Raises:
        UserError: on every rank, see `check_agreement`.
    """
    if device.world_size == 1:
        return
    splits = {"images of train": layout.train, "images of val": layout.val}
    check_agreement(
        [
            source_listing(),
            settings_listing(config),
            *others,
            Listing.of("class names", [repr(name) for name in layout.class_names]),
            *(_images(name, source) for name, source in splits.items() if source is not None),
        ],
        device,
    )


def _images(name: str, source: ImageSource) -> Listing:
    """The images of a split in their order, each with its label."""
    labels = source.labels.tolist()

    def entry(index: int) -> str:
        return f"{source.relative_name(index)!r} of class {labels[index]}"

    return Listing(name, len(source), entry)
