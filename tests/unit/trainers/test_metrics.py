"""metrics.jsonl and TensorBoard events: written whole, read back, taken back on resume, and a full disk."""

from __future__ import annotations

import json
import logging
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from focal.trainers.metrics import MetricsFiles

SOURCES = Path(__file__).resolve().parents[3] / "src"


def all_events(folder):
    """The events of all files in a folder: records of length, CRC, Event, CRC."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, offset = path.read_bytes(), 0
        while offset < len(content):
            (length,) = struct.unpack_from("<Q", content, offset)
            found.append(Event.FromString(content[offset + 12 : offset + 12 + length]))
            offset += 12 + length + 4
    return found


def read_events(folder):
    """All scalars (tag, step, value) of the event files in a folder."""
    return [(value.tag, event.step, value.simple_value) for event in all_events(folder)
            for value in event.summary.value]  # fmt: skip


def test_metrics_and_events_are_written_and_read_back(tmp_path):
    files = MetricsFiles(str(tmp_path), str(tmp_path / "tensorboard"))
    for update in (1, 2, 3):
        files.write("train", update, update / 2, {"loss": 1.0 / update, "grad_norm": None})
    files.write("val", 3, 1.5, {"top1": 75.0})
    files.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[1] == {"kind": "train", "update": 2, "epoch": 1.0, "loss": 0.5, "grad_norm": None}
    events = read_events(tmp_path / "tensorboard")
    assert ("train/loss", 2, 0.5) in events and ("val/top1", 3, 75.0) in events and len(events) == 4


def test_resuming_removes_records_that_came_after_the_checkpoint(tmp_path):
    files = MetricsFiles(str(tmp_path), str(tmp_path / "tensorboard"))
    for update in range(1, 6):
        files.write("train", update, update / 4, {"loss": float(update)})
    files.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "upd')  # the crash
    files = MetricsFiles(str(tmp_path), str(tmp_path / "tensorboard"), 3 / 4)
    files.write("train", 4, 1.0, {"loss": 40.0})
    files.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(record["update"], record["loss"]) for record in records] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    events = all_events(tmp_path / "tensorboard")
    assert [event.step for event in events if event.HasField("session_log")] == [4]  # hides the points taken back


@pytest.mark.parametrize(
    "tail",
    [b"17\n", b"\xff\xfe\x00", b"null\n[1]\n", b'{"kind": "train"}\n', b'{"update": "x", "epoch": 1}\n', b"[" * 99_999,
     b"1" * 99_999],
    ids=["a number", "no text", "no object", "no numbers", "text for a number", "deep", "long"],
)  # fmt: skip
def test_a_damaged_tail_is_dropped_with_one_warning_and_nothing_before_it(tmp_path, caplog, tail):
    files = MetricsFiles(str(tmp_path), str(tmp_path / "tensorboard"))
    for update in (1, 2):
        files.write("train", update, update / 4, {"loss": float(update)})
    files.close()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + tail)
    for _ in range(2):  # after the first time it is mended
        MetricsFiles(str(tmp_path), str(tmp_path / "tensorboard"), 1.0).close()
        assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    (warning,) = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert "left out, the first is line 3" in warning


def test_resume_on_more_devices_keeps_the_records_of_before(tmp_path):
    """8 epochs of 10 updates were done; with twice the devices these are 40 updates."""
    files = MetricsFiles(str(tmp_path), str(tmp_path / "tensorboard"))
    for epoch in range(1, 10):
        files.write("train", 10 * epoch, float(epoch), {"loss": float(epoch)})
    files.close()
    files = MetricsFiles(str(tmp_path), str(tmp_path / "tensorboard"), 8.0)
    files.write("train", 45, 9.0, {"loss": 90.0})
    files.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in records] == [1, 2, 3, 4, 5, 6, 7, 8, 90]
    hidden = [event.step for event in all_events(tmp_path / "tensorboard") if event.HasField("session_log")]
    assert hidden == [90]  # and not what came after update 41, which is what epochs 5 to 8 look like now
    MetricsFiles(str(tmp_path), str(tmp_path / "tensorboard"), 8.0).close()
    hidden = [event.step for event in all_events(tmp_path / "tensorboard") if event.HasField("session_log")]
    assert hidden == [90]  # update 45 cannot be hidden without 50 to 80, which stay


def test_everything_is_on_the_disk_after_each_record(tmp_path):
    """Whatever ends the process then."""
    files = MetricsFiles(str(tmp_path), str(tmp_path / "tensorboard"))
    for update in range(1, 4):
        files.write("train", update, 0.0, {"loss": 1.0, "lr": 0.5})
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == update
        assert len(read_events(tmp_path / "tensorboard")) == 2 * update
    files.close()


def test_a_full_disk_does_not_stop_the_training(tmp_path):
    """A real write error of the operating system, by a limit on the size of files."""
    program = """
import json, logging, resource, signal, sys
from pathlib import Path
from focal.trainers.metrics import MetricsFiles
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
files = MetricsFiles(sys.argv[1], sys.argv[1] + "/tensorboard")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for update in range(100):
    files.write("train", update, update / 100, {"loss": 1.0, "lr": 0.5})
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
files.write("train", 100, 1.0, {"loss": 7.0})
files.close()
again = MetricsFiles(sys.argv[1], sys.argv[1] + "/tensorboard", 1.0)
again.close()
losses = [json.loads(line)["loss"] for line in (Path(sys.argv[1]) / "metrics.jsonl").read_text().splitlines()]
print("went on", len(losses) > 5, set(losses[:-1]) == {1.0}, losses[-1])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=SOURCES,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "went on True True 7.0" in done.stdout
    assert done.stdout.count("ERROR:focal:metrics not recorded, training continues") == 1
    assert done.stdout.count("ERROR:focal:no more TensorBoard events") == 1


def test_without_tensorboardx_the_other_records_are_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    logging.getLogger("focal").propagate = True
    files = MetricsFiles(str(tmp_path), str(tmp_path / "tensorboard"))
    files.write("train", 1, 0.1, {"loss": 1.0})
    files.close()
    assert "pip install tensorboardX" in caplog.text and not (tmp_path / "tensorboard").exists()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 1.0
