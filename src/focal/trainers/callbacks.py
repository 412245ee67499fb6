"""What watches a training: the log, metrics.jsonl, TensorBoard events, and the stop on divergence."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any, Optional

import numpy as np

from focal.errors import UserError
from focal.files import finite_or_none
from focal.trainers.train_one_step import OUTPUTS

logger = logging.getLogger("focal")


class TrainingDiverged(UserError):
    """Too many non-finite updates in a row."""


class UpdateQueue:
    """Outputs of the step that are still on the device.

    Fetching waits for the device, so it is done every few updates, not at each.
    """

    def __init__(self) -> None:
        self._pending: list[tuple] = []

    def add(self, outputs: tuple) -> None:
        """Take the outputs of an update, as the step returned them."""
        self._pending.append(outputs)

    def __len__(self) -> int:
        return len(self._pending)

    def fetch(self) -> np.ndarray:
        """float64 (n, len(OUTPUTS)) of the n updates since the last call."""
        fetched = [[float(value.asnumpy()) for value in outputs] for outputs in self._pending]
        self._pending = []
        return np.array(fetched, np.float64).reshape(len(fetched), len(OUTPUTS))


class Summary:
    """Figures over some updates, and their speed.

    Args:
        images_per_update: over all ranks.
    """

    def __init__(self, images_per_update: int) -> None:
        self.images_per_update = images_per_update
        self._rows: list[np.ndarray] = []
        self.restart_clock()

    def add(self, rows: np.ndarray) -> None:
        """Take fetched updates (n, len(OUTPUTS))."""
        self._rows.extend(rows)
        self._timed += len(rows)

    def restart_clock(self) -> None:
        """Time from now on: what came before was no training (compilation, evaluation)."""
        self._clock = time.time()
        self._timed = 0

    def take(self) -> Optional[dict[str, Any]]:
        """Figures of the updates since the last call, None if there were none; starts anew."""
        seconds, timed = time.time() - self._clock, self._timed
        rows, self._rows = np.array(self._rows), []
        self.restart_clock()
        if not len(rows):
            return None
        columns = dict(zip(OUTPUTS, rows.T))
        finite = columns["nonfinite"] == 0
        return {
            "updates": len(rows),
            "loss": float(columns["loss"][finite].mean()) if finite.any() else None,
            "grad_norm": float(columns["grad_norm"][finite][-1]) if finite.any() else None,
            "lr": float(columns["lr"][-1]),
            "scale": float(columns["scale"][-1]),
            "nonfinite": int((~finite).sum()),
            "images_per_second": round(timed * self.images_per_update / seconds, 2) if timed and seconds > 0 else None,
        }


class DivergenceGuard:
    """Stops a training after too many non-finite updates in a row, with what one needs to find the cause."""

    KEPT = 20  # updates shown in the report

    def __init__(self, most_in_a_row: int, report: bool = True) -> None:
        self.most_in_a_row = most_in_a_row
        self.report = report  # on one rank: all see the same
        self._recent: list[tuple[int, dict[str, float]]] = []
        self._last_good: Optional[tuple[int, dict[str, float]]] = None

    def check(self, rows: np.ndarray, first_update: int) -> None:
        """Look at fetched updates (n, len(OUTPUTS)), the first of which is number `first_update` (from 1).

        Raises:
            TrainingDiverged: the limit is reached.
        """
        for number, row in enumerate(rows, start=first_update):
            values = dict(zip(OUTPUTS, row))
            self._recent = [*self._recent, (number, values)][-self.KEPT :]
            if values["nonfinite"] == 0:
                self._last_good = (number, values)
            if values["nonfinite_in_a_row"] >= self.most_in_a_row:
                if self.report:
                    self._write_report()
                good = f"update {self._last_good[0]}" if self._last_good else "none in this run"
                raise TrainingDiverged(
                    f"training diverged: {self.most_in_a_row} non-finite updates in a row, the last good one: {good}; "
                    "lower base_lr, lengthen warmup_length or use amp_level O0, then --resume auto "
                    "--allow_config_change True"
                )

    def _write_report(self) -> None:
        lines = [f"{'update':>8} {'loss':>12} {'grad norm':>12} {'lr':>12} {'scale':>12}"]
        shown = list(self._recent)
        if self._last_good is not None and self._last_good[0] < shown[0][0]:
            shown.insert(0, self._last_good)
        for number, values in shown:
            figures = " ".join(f"{values[name]:12.6g}" for name in ("loss", "grad_norm", "lr", "scale"))
            lines.append(f"{number:8d} {figures}{'' if values['nonfinite'] else '  (good)'}")
        logger.error("the last updates before the stop:\n%s", "\n".join(lines))


class MetricsFiles:
    """metrics.jsonl and TensorBoard events; on resume, what came after the checkpoint is taken back first.

    A file that can no longer be written (disk full) is an error in the log, once, and training goes on.

    Args:
        output_folder: gets metrics.jsonl.
        tensorboard_folder: gets the event files.
        epoch: records from later in the training are dropped, since that part is about to be done again.
    """

    def __init__(self, output_folder: str, tensorboard_folder: str, epoch: float = 0.0) -> None:
        self.path = Path(output_folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # By epoch: with another number of devices, updates are counted anew.
        kept, dropped = [], []
        for record in _read_records(self.path):
            (kept if record["epoch"] <= epoch + 1e-6 else dropped).append(record)
        fresh = self.path.with_suffix(".new")
        fresh.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(fresh, self.path)  # a crash here loses neither version
        self._cut_off = False  # whether the last record could not be written in whole
        purge = min((record["update"] for record in dropped), default=None)
        if purge is not None and any(record["update"] >= purge for record in kept):
            purge = None  # updates were counted anew before: TensorBoard would hide what stays
        self._events = Events.open(tensorboard_folder, purge)

    def write(self, kind: str, update: int, epoch: float, values: dict[str, Any]) -> None:
        """Add one record; `values` that are numbers also go to TensorBoard as `<kind>/<name>`."""
        values = finite_or_none(values)  # a curve has no place for the others either
        record = {"kind": kind, "update": update, "epoch": round(epoch, 6), **values}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if self._cut_off else "") + json.dumps(record) + "\n")
            self._cut_off = False
        except OSError as error:
            if not self._cut_off:
                logger.error("metrics not recorded, training goes on: %s", error)
            self._cut_off = True
        if self._events is not None:
            numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
            self._events.write({f"{kind}/{name}": value for name, value in numbers.items()}, update)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class Events:
    """A TensorBoard event file, written at once and by nobody else.

    tensorboardX's SummaryWriter writes from a thread that ends for good when the disk is full, and then waits for it.
    """

    def __init__(self, folder: str, purge_step: Optional[int]) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event = Event
        Path(folder).mkdir(parents=True, exist_ok=True)
        suffix = f".{time.time_ns() % 10**9}.{os.getpid()}"  # a second writer in the same second has another name
        self._writer: Optional[EventsWriter] = EventsWriter(os.path.join(folder, "events"), suffix)
        if purge_step is not None:  # TensorBoard then hides points from there on in earlier files
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=purge_step, wall_time=time.time(), session_log=start))
        self._writer.flush()

    @classmethod
    def open(cls, folder: str, purge_step: Optional[int]) -> Optional[Events]:
        """A writer, or None, with a word in the log, where the package is missing or `folder` cannot be written."""
        try:
            return cls(folder, purge_step)
        except ImportError:
            logger.warning("no TensorBoard events: pip install tensorboardX; metrics.jsonl has the same figures")
        except OSError as error:
            logger.error("no TensorBoard events (%s); metrics.jsonl has the same figures", error)
        return None

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Add one point to each of the curves; they are on the disk when this returns."""
        if self._writer is None:
            return
        from tensorboardX.summary import scalar

        try:
            for name, value in scalars.items():
                event = self._event(step=step, wall_time=time.time(), summary=scalar(name, value))
                self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            # A record cut off in the middle makes the rest of an event file unreadable: no more is added.
            logger.error("no more TensorBoard events (%s), training goes on; metrics.jsonl has the same figures", error)
            self._writer = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON-lines file; a last line that a crash cut off is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def format_duration(seconds: float) -> str:
    """h:mm:ss, or days in front of it."""
    days, rest = divmod(int(seconds), 86400)
    text = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} d {text}" if days else text
