"""Last and best checkpoints: in order, never lost, whatever happens between two renames."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from focal.checkpoint.files import CheckpointError, ms, read_checkpoint
from focal.checkpoint.series import BestCheckpoints, LastCheckpoints

REPOSITORY = Path(__file__).resolve().parents[3]


def tensors(value=0.0):
    return {"head.weight": np.full((5, 3), value, np.float32), "optimizer.step": np.int32(7)}


def state_meta(number):
    """The least that the metadata of a training's state must hold, and a number to tell files apart."""
    config = {"batch_size": 4, "accumulation_step": 1}
    return {"progress": {"epoch": number}, "config": config, "world_size": 1, "number": number}


def saved_numbers(folder):
    return [read_checkpoint(path).meta["number"] for path in LastCheckpoints(folder, 0).existing().values()]


def best_scores(folder):
    metas = [read_checkpoint(path).meta for path in BestCheckpoints(folder, 0).existing().values()]
    return [(meta["score"], meta["number"]) for meta in metas]


def offer(best, score, number):
    return best.offer(score, tensors(), {"number": number, "progress": {"epoch": number, "step": 10 * number}})


class Crash(BaseException):
    """Ends the process, so to speak."""


@contextlib.contextmanager
def crash_at(monkeypatch, renames):
    """Let os.replace crash instead of doing its `renames`-th rename; what was being written stays, as in a crash."""
    real, done = os.replace, []

    def replace(source, target):
        done.append(target)
        if len(done) >= renames:
            raise Crash
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        patch.setattr(Path, "unlink", lambda *arguments, **options: None)
        try:
            yield
        except Crash:
            return
    pytest.fail(f"there were only {len(done)} renames")


def test_last_checkpoints_are_kept_in_order(tmp_path):
    last = LastCheckpoints(tmp_path, keep=3)
    for number in range(5):
        assert last.save(tensors(number), state_meta(number))
    assert saved_numbers(tmp_path) == [4, 3, 2]
    assert last.newest().meta["number"] == 4
    assert sorted(os.listdir(tmp_path)) == ["last.1.ckpt", "last.2.ckpt", "last.ckpt"]
    LastCheckpoints(tmp_path, keep=1).save(tensors(), {"number": 5})
    assert os.listdir(tmp_path) == ["last.ckpt"], "a smaller keep removes the surplus"


def test_a_broken_newest_checkpoint_falls_back_to_the_one_before_it(tmp_path, caplog):
    last = LastCheckpoints(tmp_path, keep=3)
    for number in range(3):
        last.save(tensors(number), state_meta(number))
    for name in ("last.ckpt", "last.1.ckpt"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
    logging.getLogger("focal").propagate = True
    assert last.newest().meta["number"] == 0
    assert caplog.text.count("trying the one before it") == 2
    (tmp_path / "last.2.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoint\(s\) .* start from the beginning, leave out"):
        last.newest()
    assert LastCheckpoints(tmp_path / "new", keep=3).newest() is None


@pytest.mark.parametrize("renames", range(1, 5))
def test_a_crash_at_any_rename_leaves_what_was_saved_before(tmp_path, monkeypatch, renames):
    """Three files make room, the oldest one beyond the end, and the new one takes its name."""
    last = LastCheckpoints(tmp_path, keep=3)
    for number in range(3):
        last.save(tensors(number), state_meta(number))
    with crash_at(monkeypatch, renames):
        last.save(tensors(3), state_meta(3))
    assert saved_numbers(tmp_path) == [2, 1, 0]
    assert last.newest().meta["number"] == 2
    last.save(tensors(4), state_meta(4))
    assert saved_numbers(tmp_path) == [4, 2, 1]
    assert sorted(os.listdir(tmp_path)) == ["last.1.ckpt", "last.2.ckpt", "last.ckpt"]


def test_a_gap_that_a_crash_left_is_filled_first(tmp_path):
    last = LastCheckpoints(tmp_path, keep=3)
    for number in range(3):
        last.save(tensors(number), state_meta(number))
    (tmp_path / "last.1.ckpt").unlink()
    last.save(tensors(3), state_meta(3))
    assert saved_numbers(tmp_path) == [3, 2, 0]


def test_the_oldest_goes_only_after_the_newest_is_whole(tmp_path, monkeypatch):
    last = LastCheckpoints(tmp_path, keep=2)
    for number in range(2):
        last.save(tensors(number), state_meta(number))

    def full(*arguments, **settings):
        assert saved_numbers(tmp_path) == [1, 0]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ms, "save_checkpoint", full)
    assert last.save(tensors(), state_meta(2)) is False
    assert saved_numbers(tmp_path) == [1, 0]


def test_lost_weights_of_score_0_are_lost_too(tmp_path, monkeypatch):
    """All images of val may be wrong. A lower score, lost later, takes nobody's place."""

    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ms, "save_checkpoint", full)
    best = BestCheckpoints(tmp_path, 1)
    assert best.offer(0.0, tensors(), {}) is None and best.lost == 0.0
    assert best.offer(-0.5, tensors(), {}) is None and best.lost == 0.0


def test_disk_full_keeps_the_last_good_checkpoint(tmp_path):
    """A real write error of the operating system, by a limit on the size of files."""
    program = """
import logging, resource, signal, sys
import numpy as np
from pathlib import Path
from focal.checkpoint.series import BestCheckpoints, LastCheckpoints
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
folder = Path(sys.argv[1])
def state_meta(number):
    config = {"batch_size": 4, "accumulation_step": 1}
    return {"progress": {}, "config": config, "world_size": 1, "number": number}
last, best = LastCheckpoints(folder, 2), BestCheckpoints(folder, 1)
assert last.save({"w": np.zeros(10, np.float32), "optimizer.step": np.int32(1)}, state_meta(0))
assert best.offer(50.0, {"w": np.zeros(10, np.float32)}, {}) == 0
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
large = {"w": np.random.default_rng(0).standard_normal(10**6).astype(np.float32), "optimizer.step": np.int32(1)}
assert last.save(large, state_meta(1)) is False
assert best.offer(60.0, large, {}) is None and best.lost == 60.0
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert last.newest().meta["number"] == 0
assert last.save(large, state_meta(2)) is True
assert last.newest().meta["number"] == 2
assert best.offer(40.0, large, {}) is None and best.lost == 60.0
assert best.offer(70.0, large, {}) == 0 and best.lost is None
print("went on", sorted(path.name for path in folder.iterdir()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=REPOSITORY / "src",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "went on ['best.ckpt', 'last.1.ckpt', 'last.ckpt']" in done.stdout
    assert "ERROR:focal:checkpoint not saved, training continues" in done.stdout


ON_A_SMALL_DISK = """
import logging, os, sys
import numpy as np
from pathlib import Path
from focal.checkpoint.series import LastCheckpoints
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
meta = {"progress": {}, "config": {"batch_size": 4, "accumulation_step": 1}, "world_size": 1}
last, sizes = LastCheckpoints(Path(sys.argv[1]) / "checkpoints", 3), (20_000, 20_000, 50_000, 20_000)
saved = [last.save({"w": np.ones(size, np.float32), "optimizer.step": np.int32(1)}, meta) for size in sizes]
print(saved, sorted(os.listdir(last.folder)), last.newest().tensors["w"].size)
(Path(sys.argv[1]) / "filler").write_bytes(b"x" * os.statvfs(sys.argv[1]).f_bavail * os.statvfs(sys.argv[1]).f_bsize)
print(last.save({"w": np.ones(10, np.float32), "optimizer.step": np.int32(1)}, meta), sorted(os.listdir(last.folder)))
"""


def test_a_really_full_disk_keeps_what_was_saved_and_leaves_no_parts(tmp_path):
    """A file system of 300 kB, mounted in a name space of its own that ends with the process."""
    mount = f"mount -t tmpfs -o size=300k none {tmp_path} && exec "
    in_name_space = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        possible = subprocess.run([*in_name_space, mount + "true"], timeout=60, capture_output=True).returncode == 0
    except OSError:
        possible = False
    if not possible:
        pytest.skip("this system does not let its users mount a tmpfs (unshare --user --mount)")
    line = [*in_name_space, mount + '"$@"', "sh", sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)]
    done = subprocess.run(line, cwd=REPOSITORY / "src", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[True, True, False, True] ['last.1.ckpt', 'last.2.ckpt', 'last.ckpt'] 20000" in done.stdout
    assert "False ['last.1.ckpt', 'last.2.ckpt', 'last.ckpt']" in done.stdout
    assert done.stdout.count("checkpoint not saved, training continues") == 2 and "CRITICAL" not in done.stderr


def test_the_best_checkpoints_are_ordered_by_score(tmp_path):
    best = BestCheckpoints(tmp_path, keep=2)
    ranks = [
        best.offer(score, tensors(), {"number": i}) for i, score in enumerate((70.0, 60.0, 65.0, 80.0, 64.0, 80.0))
    ]
    assert ranks == [0, 1, 1, 0, None, 1]  # an equal score does not displace the earlier one
    found = [read_checkpoint(tmp_path / name).meta for name in ("best.ckpt", "best.1.ckpt")]
    assert [(meta["score"], meta["number"]) for meta in found] == [(80.0, 3), (80.0, 5)]
    assert sorted(os.listdir(tmp_path)) == ["best.1.ckpt", "best.ckpt"]
    again = BestCheckpoints(tmp_path, keep=2)  # after a resume
    assert again.offer(79.0, tensors(), {}) is None
    assert again.offer(81.0, tensors(), {"number": 9}) == 0


@pytest.mark.parametrize("again, expected", [(80.0, [80.0, 75.0]), (70.0, [75.0, 70.0]), (90.0, [90.0, 75.0])])
@pytest.mark.parametrize("restarted", [False, True])
def test_an_evaluation_done_again_replaces_the_first_one(tmp_path, again, expected, restarted):
    """A training killed after `offer` and before last.ckpt does the epoch again."""
    best = BestCheckpoints(tmp_path, keep=2)
    assert offer(best, 75.0, 2) == 0 and offer(best, 80.0, 3) == 0
    if restarted:
        best = BestCheckpoints(tmp_path, keep=2)
    assert offer(best, again, 3) == expected.index(again)
    assert [score for score, _ in best_scores(tmp_path)] == expected
    assert sorted(number for _, number in best_scores(tmp_path)) == [2, 3]


@pytest.mark.parametrize("keep, renames", [(3, 1), (3, 2), (3, 3), (2, 1), (2, 2), (2, 3)])
def test_a_crash_at_any_rename_loses_none_of_the_best(tmp_path, monkeypatch, keep, renames):
    best = BestCheckpoints(tmp_path, keep)
    for number, score in enumerate((70.0, 80.0)):
        offer(best, score, number)
    with crash_at(monkeypatch, renames):
        offer(best, 90.0, 2)
    assert best_scores(tmp_path) == [(80.0, 1), (70.0, 0)]
    assert offer(BestCheckpoints(tmp_path, keep), 60.0, 3) == (2 if keep == 3 else None)
    assert best_scores(tmp_path)[:2] == [(80.0, 1), (70.0, 0)] and (tmp_path / "best.ckpt").exists()
    assert offer(BestCheckpoints(tmp_path, keep), 90.0, 2) == 0, "a resumed training evaluates it again"
    assert best_scores(tmp_path) == [(90.0, 2), (80.0, 1), (70.0, 0)][:keep]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_dropped_file_is_replaced_in_one_rename(tmp_path, monkeypatch, keep):
    best, last = BestCheckpoints(tmp_path, keep), LastCheckpoints(tmp_path, 1)
    scores = (90.0, 70.0)[-keep:]
    for number, score in enumerate(scores):
        offer(best, score, number)
    last.save(tensors(), state_meta(0))
    real, renamed = os.replace, []
    monkeypatch.setattr(os, "replace", lambda source, target: (renamed.append(target.name), real(source, target)))
    assert offer(best, 80.0, 2) == keep - 1 and last.save(tensors(), state_meta(1))
    assert renamed == [best.path(keep - 1).name, "last.ckpt"]


@pytest.mark.parametrize("renames", range(1, 4))
def test_a_crash_while_an_evaluation_is_replaced_loses_none_of_the_others(tmp_path, monkeypatch, renames):
    best = BestCheckpoints(tmp_path, keep=3)
    for number, score in enumerate((70.0, 80.0, 90.0)):
        offer(best, score, number)
    with crash_at(monkeypatch, renames):
        offer(best, 60.0, 2)
    assert best_scores(tmp_path)[-2:] == [(80.0, 1), (70.0, 0)]
    assert offer(BestCheckpoints(tmp_path, keep=3), 60.0, 2) == 2
    assert best_scores(tmp_path) == [(80.0, 1), (70.0, 0), (60.0, 2)]


@pytest.mark.parametrize("renames", range(1, 4))
def test_a_crash_while_a_gap_is_closed_loses_none(tmp_path, monkeypatch, renames):
    best = BestCheckpoints(tmp_path, keep=4)
    for number in range(4):
        offer(best, 80.0, number)
    (tmp_path / "best.ckpt").unlink()  # an earlier crash left this gap
    with crash_at(monkeypatch, renames):
        offer(BestCheckpoints(tmp_path, keep=4), 10.0, 9)
    assert [number for _, number in best_scores(tmp_path)] == [1, 2, 3]
    assert offer(BestCheckpoints(tmp_path, keep=4), 10.0, 9) == 3
    assert [number for _, number in best_scores(tmp_path)] == [1, 2, 3, 9]
    assert sorted(os.listdir(tmp_path)) == ["best.1.ckpt", "best.2.ckpt", "best.3.ckpt", "best.ckpt"]


def test_an_unreadable_best_checkpoint_does_not_hide_the_others(tmp_path, caplog):
    best = BestCheckpoints(tmp_path, keep=3)
    for number, score in enumerate((70.0, 80.0, 90.0)):
        offer(best, score, number)
    (tmp_path / "best.ckpt").write_bytes(b"broken")
    logging.getLogger("focal").propagate = True
    assert offer(BestCheckpoints(tmp_path, keep=3), 75.0, 5) == 1
    assert [score for score, _ in best_scores(tmp_path)] == [80.0, 75.0, 70.0]
    assert "no longer among the best" in caplog.text


def test_equal_scores_keep_their_order_over_restarts(tmp_path):
    for number in range(12):
        assert offer(BestCheckpoints(tmp_path, keep=12), 80.0, number) == number
    assert [number for _, number in best_scores(tmp_path)] == list(range(12))


def test_other_files_are_left_alone(tmp_path):
    best = BestCheckpoints(tmp_path, keep=1)
    offer(best, 80.0, 1)
    for name in ("best_old.ckpt", "bestof.ckpt", "best.01.ckpt"):
        (tmp_path / name).write_bytes((tmp_path / "best.ckpt").read_bytes())
    offer(best, 70.0, 2)
    assert offer(BestCheckpoints(tmp_path, keep=1), 75.0, 3) is None
    assert sorted(os.listdir(tmp_path)) == ["best.01.ckpt", "best.ckpt", "best_old.ckpt", "bestof.ckpt"]
    assert offer(BestCheckpoints(tmp_path, keep=1), 85.0, 3) == 0


def test_an_equal_step_of_another_epoch_is_another_evaluation(tmp_path):
    """On twice the devices an epoch has half the updates: their numbers come again."""
    best = BestCheckpoints(tmp_path, keep=1)
    best.offer(85.0, tensors(), {"number": 1, "progress": {"epoch": 4, "step": 40}})
    assert best.offer(60.0, tensors(), {"number": 2, "progress": {"epoch": 8, "step": 40}}) is None
    assert best_scores(tmp_path) == [(85.0, 1)]


def test_files_of_another_training_are_set_aside(tmp_path, caplog):
    """A cloud job brings back what it finds, also what a training before the one it continues has left."""

    def offer_of(training, score, number):
        best = BestCheckpoints(tmp_path, keep=2, training=training)
        return best.offer(score, tensors(), {"number": number, "progress": {"epoch": number, "training": training}})

    offer_of(5, 83.4, 300)
    assert offer_of(0, 84.0, 301) == 0  # of a training without a number nothing is known
    logging.getLogger("focal").propagate = True
    assert offer_of(6, 40.0, 1) == 1
    assert best_scores(tmp_path) == [(84.0, 301), (40.0, 1)]
    assert read_checkpoint(tmp_path / "aside.ckpt").meta["score"] == 83.4 and "aside.ckpt" in caplog.text
