"""Starts the workers of a job on this server, watches them, and ends them together.

The workers form a dynamic cluster (dynamic_cluster.py). `msrun` does the same, but with whatever `python` is first on
PATH, without waiting unless asked, and with the whole script run once more in the scheduler.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from focal.config.schema import RunConfig
from focal.distributed import processes
from focal.distributed.dynamic_cluster import (
    LAST_WORKER_GRACE,
    SCHEDULER_COMMAND,
    check_port,
    cluster_environment,
    free_port,
    resolve,
    run_scheduler,
    scheduler_environment,
    worker_environment,
)
from focal.distributed.environment import check_device_num, detect_launch
from focal.distributed.logging import make_log_folder, setup_logging
from focal.errors import NOT_SAVED

logger = logging.getLogger("focal")

POLL_SECONDS = 0.1
INTERRUPT_GRACE = 300.0  # seconds that workers have after Ctrl-C or SIGTERM to save and to send their results
FAILURE_GRACE = 15.0  # seconds left to the other workers if one of them fails meanwhile
# Exit codes of workers that ended because they were asked to.
_STOPPED = (0, NOT_SAVED, 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
SCHEDULER_GRACE = 20.0  # seconds that the scheduler has to end after the last worker
LAST_LINES = 20


@dataclass
class Worker:
    """A process of the job that was started here."""

    name: str  # "rank 3" or "scheduler"
    process: subprocess.Popen
    log: Path  # receives its stdout and stderr
    log_start: int  # size of that file before this job


def is_worker(run: RunConfig) -> bool:
    """Whether this process does the work itself: it was launched as a worker, or is the only process of its job."""
    launched = detect_launch(os.environ)
    return run.device_num == 1 if launched is None else not launched.is_scheduler


def launch(run: RunConfig, argv: Sequence[str], output_folder: str) -> int:
    """Start the workers of a job on this server and watch them to their end. For processes that are not workers.

    Args:
        run: devices, servers and addresses of the job.
        argv: arguments of the running script, without its name; the workers get the same.
        output_folder: takes the logs of scheduler and workers.

    Returns:
        The exit code of the first worker that failed, `NOT_SAVED` if one came to its end with that, or 128 + number for
        a signal. Where msrun has started this process as the scheduler, be that, and return 0.

    Raises:
        UserError: `device_num` contradicts the environment, or the master's address or port cannot be used.
    """
    launched = detect_launch(os.environ)
    if launched is not None:
        check_device_num(run.device_num, launched)
        run_scheduler()
        return 0
    log_folder = make_log_folder(output_folder)
    setup_logging(0)
    return _Job(run, [sys.executable, os.path.abspath(sys.argv[0]), *argv], log_folder).run()


class _Job:
    """The processes of one job on this server."""

    def __init__(self, run: RunConfig, command: list[str], log_folder: Path) -> None:
        self.run_config = run
        self.command = command
        self.log_folder = log_folder
        self.workers: list[Worker] = []
        self.scheduler: Optional[Worker] = None
        self.interrupted: Optional[int] = None  # number of the signal that asked for an end
        self.deadline = 0.0  # of the workers after that signal

    def run(self) -> int:
        """Start everything, wait for the end, leave no process behind; returns the exit code."""
        handled = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # nohup, or a job in the background of a script
        ]
        old_handlers = {number: signal.signal(number, self._on_signal) for number in handled}
        try:
            self._start()
            code = self._watch()
        finally:
            everyone = [*self.workers, *([self.scheduler] if self.scheduler else [])]
            processes.end_groups([worker.process for worker in everyone])
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
        return code

    def _start(self) -> None:
        run = self.run_config
        local_size = run.device_num // run.node_num
        host = resolve("master_addr", run.master_addr)
        port = run.master_port or free_port()
        if run.node_num > 1 and host.startswith("127."):
            logger.warning("master_addr: %s is this server itself; no other server can join at it", host)
        common = {**cluster_environment(run.device_num, host, port), "PYTHONUNBUFFERED": "1"}
        if run.node_rank == 0:
            check_port(host, port)
            self.scheduler = self._spawn("scheduler", SCHEDULER_COMMAND, scheduler_environment(common))
        for local_rank in range(local_size):
            rank = run.node_rank * local_size + local_rank
            environment = worker_environment(common, rank, run.device_id + local_rank)
            self.workers.append(self._spawn(f"rank {rank}", self.command, environment))
        first, last = self.workers[0].name, self.workers[-1].name
        logger.info("started %s to %s; scheduler %s:%d; logs in %s", first, last, host, port, self.log_folder)

    def _spawn(self, name: str, command: Sequence[str], environment: dict[str, str]) -> Worker:
        log = self.log_folder / f"{name.replace('rank ', 'worker_')}.log"
        start = log.stat().st_size if log.exists() else 0
        with open(log, "ab") as stream:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own: ended with its children; Ctrl-C is passed on by us
                preexec_fn=processes.die_with_parent,
            )
        return Worker(name, process, log, start)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.interrupted is not None:  # second signal: stop waiting
            self.deadline = 0.0
            return
        self.interrupted = number
        self.deadline = time.monotonic() + INTERRUPT_GRACE
        name = signal.Signals(number).name
        logger.info("%s: the workers will save and stop; repeat it to end them at once", name)
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    def _watch(self) -> int:
        shown = processes.Follower(self.workers[0].log, self.workers[0].log_start)
        while True:
            shown.copy_new()
            states = [(worker, worker.process.poll()) for worker in self.workers]
            failed = [worker for worker, code in states if code not in (None, 0, NOT_SAVED)]
            running = [worker for worker, code in states if code is None]
            unsaved = any(code == NOT_SAVED for _, code in states)  # not a failure: the others come to their end, too
            if self.interrupted is not None:
                broken = [worker for worker in failed if worker.process.returncode not in _STOPPED]
                if broken:  # the others would wait for it forever
                    self.deadline = min(self.deadline, time.monotonic() + FAILURE_GRACE)
                if broken and (not running or time.monotonic() > self.deadline):
                    return self._report_failure(broken[0], shown)
                if not running or time.monotonic() > self.deadline:
                    shown.copy_new(to_the_end=True)
                    if unsaved:
                        return NOT_SAVED  # what rank 0 said of the disk stays the last line
                    logger.info("ended by %s", signal.Signals(self.interrupted).name)
                    return 128 + self.interrupted
            elif failed:
                return self._report_failure(failed[0], shown)
            elif not running:
                shown.copy_new(to_the_end=True)
                self._wait_for_scheduler()
                return NOT_SAVED if unsaved else 0
            elif self.scheduler and self.scheduler.process.poll() not in (None, 0):
                return self._report_failure(self.scheduler, shown)
            time.sleep(POLL_SECONDS)

    def _report_failure(self, worker: Worker, shown: processes.Follower) -> int:
        time.sleep(POLL_SECONDS)  # what it wrote last
        shown.copy_new(to_the_end=True)
        code = worker.process.returncode
        if code < 0:
            how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
            code = 128 - code
        else:
            how = f"failed with exit code {code}"
        if self.run_config.node_num > 1:
            how += " (a worker also fails when it has lost another server: see the logs of the others)"
        lines = processes.last_lines(worker.log, worker.log_start, LAST_LINES)
        quoted = "" if worker is self.workers[0] or not lines else ":\n" + "\n".join(f"    {line}" for line in lines)
        logger.error("%s %s; the other workers are ended; its log: %s%s", worker.name, how, worker.log, quoted)
        return code

    def _wait_for_scheduler(self) -> None:
        """Whatever becomes of the scheduler, the workers' results stand: no reason to fail the job."""
        if self.scheduler is None:
            return
        # Workers on other servers may still be sending their results, and would be killed without the scheduler.
        grace = SCHEDULER_GRACE if self.run_config.node_num == 1 else LAST_WORKER_GRACE
        deadline = time.monotonic() + grace
        while self.scheduler.process.poll() is None and time.monotonic() < deadline and self.interrupted is None:
            time.sleep(POLL_SECONDS)
        code = self.scheduler.process.poll()
        if code is None:
            logger.info("all workers of this server have finished; ending the scheduler, which is still running")
        elif code:
            logger.warning(
                "all workers of this server have finished, but the scheduler ended with exit code %d; its log: %s",
                code,
                self.scheduler.log,
            )
