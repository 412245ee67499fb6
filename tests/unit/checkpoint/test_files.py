"""Checkpoint files: whole or recognised as not, in order, never lost."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from focal.checkpoint import files as checkpoint_module
from focal.checkpoint.files import (
    BestCheckpoints,
    CheckpointError,
    LastCheckpoints,
    read_checkpoint,
    write_checkpoint,
)

REPOSITORY = Path(__file__).resolve().parents[3]


def tensors(value=0.0):
    rng = np.random.default_rng(0)
    return {
        "head.weight": rng.standard_normal((5, 3)).astype(np.float32) + np.float32(value),
        "ema.head.weight": rng.standard_normal((5, 3)).astype(np.float32),
        "optimizer.step": np.int32(7),
    }


def numbers(folder, keep=10):
    names = [name for name in checkpoint_module.ranked_names("last", keep) if (folder / name).exists()]
    return [read_checkpoint(folder / name).meta["number"] for name in names]


def test_round_trip_to_the_bit(tmp_path):
    path = tmp_path / "deep" / "a.ckpt"
    meta = {"progress": {"epoch": 3}, "text": "naïve", "config": {"depths": [2, 2], "rate": 1e-5, "none": None}}
    write_checkpoint(path, tensors(), meta)
    read = read_checkpoint(path)
    assert {key: read.meta[key] for key in meta} == meta
    assert read.tensors.keys() == tensors().keys()
    for name, value in tensors().items():
        assert read.tensors[name].dtype == value.dtype and (read.tensors[name] == value).all()
    assert os.listdir(path.parent) == ["a.ckpt"], "no temporary file is left"
    assert os.stat(path).st_mode & 0o777 == 0o644
    assert set(ms.load_checkpoint(str(path))) >= set(tensors()), "MindSpore itself reads it"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_recognised(tmp_path, share):
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, tensors(), {})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_cut_between_two_tensors_is_recognised(tmp_path):
    """Protobuf alone would take the shorter file for whole: only the missing checksum shows it."""
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, tensors(), {})
    path.write_bytes(path.read_bytes()[:-17])
    with pytest.raises(CheckpointError, match="cut off"):
        read_checkpoint(path)


def test_one_flipped_bit_is_recognised(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, tensors(), {})
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


@pytest.mark.parametrize("name, content", [("a.ckpt", b"a picture"), ("a.pth", b"PK\x03\x04"), ("a.ckpt", b"")])
def test_foreign_files_are_refused_in_one_line(tmp_path, name, content, capfd):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(error.value) and name in str(error.value)
    assert capfd.readouterr().err == "", "MindSpore's own message would come on top"


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "no.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_weights_from_elsewhere_have_no_meta(tmp_path):
    path = tmp_path / "plain.ckpt"
    ms.save_checkpoint([Parameter(Tensor(np.ones(3, np.float32)), name="head.bias")], str(path))
    read = read_checkpoint(path)
    assert read.meta is None and list(read.tensors) == ["head.bias"]


def test_last_checkpoints_are_kept_in_order(tmp_path):
    last = LastCheckpoints(tmp_path, keep=3)
    for number in range(5):
        assert last.save(tensors(number), {"number": number})
    assert numbers(tmp_path) == [4, 3, 2]
    assert last.newest().meta["number"] == 4
    assert sorted(os.listdir(tmp_path)) == ["last.1.ckpt", "last.2.ckpt", "last.ckpt"]
    LastCheckpoints(tmp_path, keep=1).save(tensors(), {"number": 5})
    assert os.listdir(tmp_path) == ["last.ckpt"], "a smaller keep removes the surplus"


def test_a_broken_newest_falls_back_and_says_so(tmp_path, caplog):
    last = LastCheckpoints(tmp_path, keep=3)
    for number in range(3):
        last.save(tensors(number), {"number": number})
    for name in ("last.ckpt", "last.1.ckpt"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
    logging.getLogger("focal").propagate = True
    assert last.newest().meta["number"] == 0
    assert caplog.text.count("trying the one before it") == 2
    (tmp_path / "last.2.ckpt").unlink()
    assert last.newest() is None


def crash_at(monkeypatch, renames):
    """os.replace that ends the process, so to speak, instead of doing its `renames`-th rename."""
    real, done = os.replace, []

    def replace(source, target):
        done.append(target)
        if len(done) == renames:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(checkpoint_module.os, "replace", replace)


@pytest.mark.parametrize("renames", range(1, 7))
def test_a_crash_at_any_rename_loses_nothing(tmp_path, monkeypatch, renames):
    last = LastCheckpoints(tmp_path, keep=3)
    for number in range(3):
        last.save(tensors(number), {"number": number})
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        crash_at(patch, renames)
        last.save(tensors(3), {"number": 3})
    expected = 2 if renames == 1 else 3  # the first rename is the one that makes the new file whole
    assert last.newest().meta["number"] == expected
    last.save(tensors(4), {"number": 4})
    assert last.newest().meta["number"] == 4


def test_the_oldest_goes_only_after_the_newest_is_whole(tmp_path, monkeypatch):
    last = LastCheckpoints(tmp_path, keep=2)
    for number in range(2):
        last.save(tensors(number), {"number": number})

    def full(*arguments, **settings):
        assert numbers(tmp_path) == [1, 0]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module.ms, "save_checkpoint", full)
    assert last.save(tensors(), {"number": 2}) is False
    assert numbers(tmp_path) == [1, 0]


def test_disk_full_keeps_the_last_good_checkpoint(tmp_path):
    """A real write error of the operating system, by a limit on the size of files."""
    program = """
import logging, resource, signal, sys
import numpy as np
from pathlib import Path
from focal.checkpoint.files import BestCheckpoints, LastCheckpoints
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
folder = Path(sys.argv[1])
last, best = LastCheckpoints(folder, 2), BestCheckpoints(folder, 1)
assert last.save({"w": np.zeros(10, np.float32)}, {"number": 0})
assert best.offer(50.0, {"w": np.zeros(10, np.float32)}, {}) == 0
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
large = {"w": np.random.default_rng(0).standard_normal(10**6).astype(np.float32)}
assert last.save(large, {"number": 1}) is False
assert best.offer(60.0, large, {}) is None
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert last.newest().meta["number"] == 0
assert last.save(large, {"number": 2}) is True
assert last.newest().meta["number"] == 2
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
    assert "ERROR:focal:checkpoint not saved, training goes on" in done.stdout


def test_best_checkpoints_by_score(tmp_path):
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


def read_best(folder):
    names = [name for name in checkpoint_module.ranked_names("best", 5) if (folder / name).exists()]
    return [
        (read_checkpoint(folder / name).meta["score"], read_checkpoint(folder / name).meta["number"]) for name in names
    ]


def offer(best, score, number):
    return best.offer(score, tensors(), {"number": number, "progress": {"epoch": number, "update": 10 * number}})


@pytest.mark.parametrize("again, expected", [(80.0, [80.0, 75.0]), (70.0, [75.0, 70.0]), (90.0, [90.0, 75.0])])
@pytest.mark.parametrize("restarted", [False, True])
def test_an_update_offered_again_replaces_its_earlier_self(tmp_path, again, expected, restarted):
    """A training killed after `offer` and before last.ckpt does the epoch again."""
    best = BestCheckpoints(tmp_path, keep=2)
    assert offer(best, 75.0, 2) == 0 and offer(best, 80.0, 3) == 0
    if restarted:
        best = BestCheckpoints(tmp_path, keep=2)
    assert offer(best, again, 3) == expected.index(again)
    assert [score for score, _ in read_best(tmp_path)] == expected
    assert sorted(number for _, number in read_best(tmp_path)) == [2, 3]


@pytest.mark.parametrize("renames", range(1, 5))
def test_a_crash_at_any_rename_loses_none_of_the_best(tmp_path, monkeypatch, renames):
    best = BestCheckpoints(tmp_path, keep=3)
    for number, score in enumerate((70.0, 80.0)):
        offer(best, score, number)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        crash_at(patch, renames)
        offer(best, 90.0, 2)
    assert offer(BestCheckpoints(tmp_path, keep=3), 10.0, 9) is not None or renames > 1
    scores = [score for score, _ in read_best(tmp_path)]
    # The first rename is the one that makes the new file whole.
    assert scores == ([80.0, 70.0, 10.0] if renames == 1 else [90.0, 80.0, 70.0])
    assert not (tmp_path / "next.ckpt").exists()


def test_an_unreadable_best_does_not_hide_the_others(tmp_path, caplog):
    best = BestCheckpoints(tmp_path, keep=3)
    for number, score in enumerate((70.0, 80.0, 90.0)):
        offer(best, score, number)
    (tmp_path / "best.ckpt").write_bytes(b"broken")
    logging.getLogger("focal").propagate = True
    assert offer(BestCheckpoints(tmp_path, keep=3), 75.0, 5) == 1
    assert [score for score, _ in read_best(tmp_path)] == [80.0, 75.0, 70.0]
    assert "no longer among the best" in caplog.text


def test_every_cut_is_recognised_or_leaves_plain_weights(tmp_path):
    """Also at the seams between entries, where the format itself sees nothing amiss."""
    path = tmp_path / "a.ckpt"
    state = {name: np.ones(2, np.float32) for name in ("w.a", "w.b", "ema.w.a", "ema.w.b", "optimizer.step")}
    write_checkpoint(path, state, {"number": 1})
    content = path.read_bytes()
    accepted = []
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with contextlib.suppress(CheckpointError):
            accepted.append(sorted(read_checkpoint(path).tensors))
    assert accepted == [["w.a"], ["w.a", "w.b"]]  # a network tells whether that is all it has


def test_texts_in_files_from_elsewhere_are_left_out(tmp_path):
    path = tmp_path / "plain.ckpt"
    weight = Parameter(Tensor(np.ones(3, np.float32)), name="head.bias")
    ms.save_checkpoint([weight], str(path), append_dict={"note": "x", "epoch": 3})
    assert "head.bias" in read_checkpoint(path).tensors and "note" not in read_checkpoint(path).tensors


@pytest.mark.parametrize("text", ["no json", "[1]", "{}", '"x"'])
def test_damaged_metadata_is_one_error(tmp_path, text):
    path = tmp_path / "a.ckpt"
    weight = Parameter(Tensor(np.ones(3, np.float32)), name="head.bias")
    ms.save_checkpoint([weight], str(path), append_dict={"focal.meta": text}, crc_check=True)
    with pytest.raises(CheckpointError, match="focal.meta"):
        read_checkpoint(path)


@pytest.mark.parametrize("renames", range(1, 8))
def test_a_crash_while_files_are_put_in_order_loses_none(tmp_path, monkeypatch, renames):
    best = BestCheckpoints(tmp_path, keep=3)
    for number in range(3):
        offer(best, 80.0, number)
    (tmp_path / "best.ckpt").rename(tmp_path / "next.ckpt")  # as after a crash between two renames
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        crash_at(patch, renames)
        BestCheckpoints(tmp_path, keep=3)._known()
    assert len(BestCheckpoints(tmp_path, keep=3)._known()) == 3
    assert sorted(number for _, number in read_best(tmp_path)) == [0, 1, 2]
    assert sorted(os.listdir(tmp_path)) == ["best.1.ckpt", "best.2.ckpt", "best.ckpt"]


def test_equal_scores_keep_their_order_over_restarts(tmp_path):
    best = BestCheckpoints(tmp_path, keep=12)
    for number in range(12):
        offer(best, 80.0, number)
    for _ in range(2):
        BestCheckpoints(tmp_path, keep=12)._known()
        names = checkpoint_module.ranked_names("best", 12)
        assert [read_checkpoint(tmp_path / name).meta["number"] for name in names] == list(range(12))


def test_other_files_are_left_alone(tmp_path):
    best = BestCheckpoints(tmp_path, keep=1)
    offer(best, 80.0, 1)
    for name in ("best_old.ckpt", "bestof.ckpt", "best.ckpt.ckpt"):
        (tmp_path / name).write_bytes((tmp_path / "best.ckpt").read_bytes())
    offer(best, 70.0, 2)
    assert offer(BestCheckpoints(tmp_path, keep=1), 75.0, 3) is None
    assert sorted(os.listdir(tmp_path)) == ["best.ckpt", "best.ckpt.ckpt", "best_old.ckpt", "bestof.ckpt"]
    assert offer(BestCheckpoints(tmp_path, keep=1), 85.0, 3) == 0


def test_an_equal_number_of_another_epoch_is_another_place(tmp_path):
    """On twice the devices an epoch has half the updates: their numbers come again."""
    best = BestCheckpoints(tmp_path, keep=1)
    best.offer(85.0, tensors(), {"number": 1, "progress": {"epoch": 4, "update": 40}})
    assert best.offer(60.0, tensors(), {"number": 2, "progress": {"epoch": 8, "update": 40}}) is None
    assert read_best(tmp_path) == [(85.0, 1)]


def test_two_files_of_one_place_are_one(tmp_path):
    best = BestCheckpoints(tmp_path, keep=3)
    for number, score in ((1, 70.0), (2, 72.0), (3, 75.0)):
        offer(best, score, number)
    (tmp_path / "best.ckpt").replace(tmp_path / "x")
    other = tmp_path / "other"
    offer(BestCheckpoints(other, keep=1), 71.0, 3)  # epoch 3 done again, killed before the renames
    (other / "best.ckpt").replace(tmp_path / "next.ckpt")
    (tmp_path / "x").replace(tmp_path / "best.ckpt")
    again = BestCheckpoints(tmp_path, keep=3)
    assert offer(again, 60.0, 4) is None
    assert read_best(tmp_path) == [(72.0, 2), (71.0, 3), (70.0, 1)]


def test_files_of_another_training_are_put_aside(tmp_path, caplog):
    """A cloud job brings back what it finds, also what a training before the one it continues has left."""

    def offer_of(training, score, number):
        best = BestCheckpoints(tmp_path, keep=2, training=training)
        return best.offer(score, tensors(), {"number": number, "progress": {"epoch": number, "training": training}})

    offer_of(5, 83.4, 300)
    assert offer_of(0, 84.0, 301) == 0  # of a training without a number nothing is known
    logging.getLogger("focal").propagate = True
    assert offer_of(6, 40.0, 1) == 1
    assert read_best(tmp_path) == [(84.0, 301), (40.0, 1)]
    assert read_checkpoint(tmp_path / "aside.ckpt").meta["score"] == 83.4 and "aside.ckpt" in caplog.text
