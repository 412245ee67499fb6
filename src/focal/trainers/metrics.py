"""Records of a training: metrics.jsonl, and the same figures as TensorBoard events."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any, Optional

from focal.files import finite_or_none, read_json_lines, write_text

logger = logging.getLogger("focal")


class MetricsFiles:
    """metrics.jsonl and TensorBoard events. On resume, records made after the checkpoint are removed first.

    If a file can no longer be written (disk full), the log says so once and training continues.

    Args:
        output_folder: gets metrics.jsonl.
        tensorboard_folder: gets the event files.
        epoch: where the training continues; later records are dropped, since that part will be done again.
    """

    def __init__(self, output_folder: str, tensorboard_folder: str, epoch: float = 0.0) -> None:
        self.path = Path(output_folder) / "metrics.jsonl"
        # By epoch, because another number of devices changes the number of steps.
        kept: list[dict[str, Any]] = []
        dropped: list[dict[str, Any]] = []
        for record in read_json_lines(self.path, numbers=("epoch", "update")):
            (kept if record["epoch"] <= epoch + 1e-6 else dropped).append(record)
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._cut_off = False  # whether the last record could not be written in whole
        purge = min((record["update"] for record in dropped), default=None)
        if purge is not None and any(record["update"] >= purge for record in kept):
            purge = None  # steps were counted differently before: TensorBoard would hide records that stay
        self._events = Events.open(tensorboard_folder, purge)

    def write(self, kind: str, update: int, epoch: float, values: dict[str, Any]) -> None:
        """Add one record; those of `values` that are numbers also go to TensorBoard, as `<kind>/<name>`."""
        values = finite_or_none(values)  # TensorBoard has no use for the others either
        record = {"kind": kind, "update": update, "epoch": round(epoch, 6), **values}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if self._cut_off else "") + json.dumps(record) + "\n")
            self._cut_off = False
        except OSError as error:
            if not self._cut_off:
                logger.error("metrics not recorded, training continues: %s", error)
            self._cut_off = True
        if self._events is not None:
            numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
            self._events.write({f"{kind}/{name}": value for name, value in numbers.items()}, update)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class Events:
    """A TensorBoard event file, written synchronously.

    tensorboardX's SummaryWriter writes from a thread that dies when the disk is full, and then waits for it forever.
    """

    def __init__(self, folder: str, purge_step: Optional[int]) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event = Event
        Path(folder).mkdir(parents=True, exist_ok=True)
        suffix = f".{time.time_ns() % 10**9}.{os.getpid()}"  # so that two writers in the same second differ in name
        self._writer: Optional[EventsWriter] = EventsWriter(os.path.join(folder, "events"), suffix)
        if purge_step is not None:  # TensorBoard then hides points from there on in earlier files
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=purge_step, wall_time=time.time(), session_log=start))
        self._writer.flush()

    @classmethod
    def open(cls, folder: str, purge_step: Optional[int]) -> Optional[Events]:
        """A writer, or None with a message if the package is missing or `folder` cannot be written."""
        try:
            return cls(folder, purge_step)
        except ImportError:
            logger.warning("no TensorBoard events: pip install tensorboardX; metrics.jsonl has the same figures")
        except OSError as error:
            logger.error("no TensorBoard events (%s); metrics.jsonl has the same figures", error)
        return None

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Add one point to each curve; they are on the disk when this returns."""
        if self._writer is None:
            return
        from tensorboardX.summary import scalar

        try:
            for name, value in scalars.items():
                event = self._event(step=step, wall_time=time.time(), summary=scalar(name, value))
                self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            # A truncated record makes the rest of an event file unreadable, so nothing more is added.
            logger.error(
                "no more TensorBoard events (%s), training continues; metrics.jsonl has the same figures", error
            )
            self._writer = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
