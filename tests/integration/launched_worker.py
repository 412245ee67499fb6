"""A stand-in for train.py, as small as a job can be: launcher, process group, storage. FOCAL_TEST says what it does."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY)]

from focal.cloud.storage import open_storage, resolve_output_folder, send_unsent_results  # noqa: E402
from focal.config import Config, config_from_command_line  # noqa: E402
from focal.distributed.device import Device, setup_device, shutdown  # noqa: E402
from focal.distributed.launcher import is_worker, launch  # noqa: E402
from focal.distributed.logging import setup_logging  # noqa: E402
from focal.errors import run_main  # noqa: E402


def main() -> int:
    """The job, in the order of train.py."""
    config, unknown = config_from_command_line(sys.argv[1:], "stand-in")
    behaviour = os.environ.get("FOCAL_TEST", "")
    if "moxing" in behaviour:
        install_moxing(Path(os.environ["FOCAL_TEST_STORE"]), fails="fails" in behaviour)
    if not is_worker(config.run):
        code = launch(config.run, sys.argv[1:], resolve_output_folder(config))
        if code:
            send_unsent_results(config)
        return code
    if behaviour == "fail_at_start" and os.environ["RANK_ID"] == "1":
        sys.stderr.write("cannot find the thing I need\n")
        return 3
    device = setup_device(config.run)
    logger = setup_logging(device.rank, resolve_output_folder(config))
    with open_storage(config, device, unknown) as storage:
        logger.info("rank %d of %d is ready", device.rank, device.world_size)
        if behaviour == "collectives":
            report(config, device, collectives(device))
        elif behaviour == "moxing_dies":
            die_with_results(device, storage)
        elif "moxing" in behaviour:
            bring_data(config, device, storage)
        elif behaviour == "hang":
            work_for_ever(config, device)
        shutdown()
    return 0


def report(config: Config, device: Device, result: dict) -> None:
    """Leave a JSON file for the test."""
    path = Path(config.run.train_url) / f"result_{device.rank}.json"
    path.with_suffix(".tmp").write_text(json.dumps(result))
    path.with_suffix(".tmp").rename(path)


def collectives(device: Device) -> dict:
    """What every call gives on this rank."""
    import mindspore as ms
    import numpy as np

    from focal.distributed.collectives import all_reduce_sum, barrier, broadcast_parameters

    rank = device.rank
    generator = np.random.default_rng(rank)
    arrays = {
        "float32": np.concatenate([generator.normal(size=5), [-0.0, np.inf, 1e-42]]).astype(np.float32),
        "float16": generator.normal(size=(2, 3)).astype(np.float16),
        "int32": np.array([2**31 - 1 - rank, -rank - 1], np.int32),
        "bool": np.array([rank == 0, True, rank == 1]),
        "scalar": np.array(7 + rank, np.int32),
    }
    parameters = [ms.Parameter(ms.Tensor(array), name=name) for name, array in arrays.items()]
    broadcast_parameters(parameters)
    barrier("half way", timeout=60)
    return {
        "device": [device.rank, device.world_size, device.local_rank, device.local_size],
        "scalar": all_reduce_sum(np.float32(rank + 1)).tolist(),
        "matrix": all_reduce_sum(np.full((2, 3), rank + 0.5, np.float32)).tolist(),
        "count": all_reduce_sum(np.array([2**23 - rank], np.float32)).tolist(),
        "before": {name: array.tobytes().hex() for name, array in arrays.items()},
        "after": {p.name: p.asnumpy().tobytes().hex() for p in parameters},
        "shapes": {p.name: list(p.shape) for p in parameters},
    }


def install_moxing(store: Path, fails: bool) -> None:
    """The stand-in moxing, slow enough that a rank that does not wait would be found out."""
    from focal.cloud import upload
    from tests.unit.cloud.fake_moxing import make_moxing

    upload.FIRST_PAUSE = 0.05
    module = make_moxing(store)
    module.file.seconds = 1.5
    if fails:
        module.file.seconds = 0.2
        module.file.failures = [denied] * 99
    sys.modules["moxing"] = module


def denied() -> None:
    """What a wrong access key gives."""
    raise OSError("access denied")


def bring_data(config: Config, device: Device, storage: object) -> None:
    """Bring the data and say when, what is there, and who copied."""
    try:
        folder = Path(storage.data_folder())
        images = sorted(path.name for path in folder.rglob("*.jpg"))
        result = {"images": images, "error": ""}
    except Exception as error:
        result = {"images": [], "error": str(error)}
    result.update(copies=len(sys.modules["moxing"].file.calls), time=time.time())
    marker = Path(config.run.cache_dir) / f"result_{device.rank}.json"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(result))
    if device.is_main:
        Path(storage.output_folder, "last.ckpt").write_text("weights")
        storage.send_results()


def die_with_results(device: Device, storage: object) -> None:
    """Rank 0 is killed (out of memory, say) with results that it has not sent."""
    from focal.distributed.collectives import barrier

    barrier("both are here", timeout=60)
    if device.is_main:
        Path(storage.output_folder, "last.ckpt").write_text("weights")
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def work_for_ever(config: Config, device: Device) -> None:
    """Train on nothing, all ranks in step, until something happens."""
    import numpy as np

    from focal.distributed.collectives import all_reduce_sum

    start = time.time()
    step = 0
    while time.time() - start < 120:
        all_reduce_sum(np.ones(4, np.float32))
        step += 1
        if step == 3:
            report(config, device, {"pid": os.getpid()})


if __name__ == "__main__":
    run_main(main)
