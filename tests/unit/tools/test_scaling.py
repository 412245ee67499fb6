"""The formulas of docs/scaling.md, by hand; and that its tables are those of the counts beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from focal.errors import UserError
from tools.ascend_dry_run.cases import Case
from tools.ascend_dry_run.launches import Launch
from tools.ascend_dry_run.result import DryRun, Primitive
from tools.scaling import __main__ as command
from tools.scaling.counts import Kernel, StepCounts, step_counts
from tools.scaling.machine import (
    BY_HOST,
    CHIPS,
    Machine,
    Timeline,
    all_reduce_seconds,
    exposed_seconds,
    scaling_row,
    timeline,
)
from tools.scaling.report import primitive_table, step_table

PLAIN = Machine(
    peak=100.0, bandwidth=10.0, matrix_fraction=1.0, memory_fraction=1.0, kernel_start=0.0, message=0.0, queue=100
)
PRODUCT = Kernel("MatMul", "aclnn", "", "", 300.0, 10)  # 3 s of computing, 1 s of moving
COPY = Kernel("TensorMove", "acl", "", "", 0.0, 20)  # 2 s of moving
MESSAGE = Kernel("AllReduce", "hccl", "", "", 0.0, 80_000_000)  # of 40 MB


def counts(*order: int) -> StepCounts:
    return StepCounts("x", 4, "Ascend910B1", "O0", (PRODUCT, COPY, MESSAGE), order or (0, 1, 1))


def test_a_kernel_takes_the_longer_of_computing_and_moving() -> None:
    assert timeline(counts(), PLAIN, {}) == Timeline(3.0 + 2 * 2.0, 7.0, ())
    slower = replace(PLAIN, matrix_fraction=0.5, memory_fraction=0.25, kernel_start=0.1)
    assert timeline(counts(), slower, {}).seconds == pytest.approx(6.1 + 2 * 8.1)


def test_a_kernel_waits_for_the_host_that_launches_it() -> None:
    fast = timeline(counts(0, 1, 1), PLAIN, {"aclnn": 1.0, "acl": 0.5})
    assert fast == Timeline(1.0 + 7.0, 7.0, ())  # only the first launch is not hidden
    slow = timeline(counts(0, 1, 1), PLAIN, {"aclnn": 1.0, "acl": 5.0})
    assert slow.seconds == 1.0 + 5.0 + 5.0 + 2.0 and slow.working == 7.0  # the copies end after 8 and 13 s


def test_the_host_is_ahead_of_the_device_by_the_queue_at_most() -> None:
    # Four products of 3 s, then ten copies of 0.2 s, launched in 1 s each.
    short = replace(COPY, bytes=2)
    step = replace(counts(*[0] * 4, *[1] * 10), kernels=(PRODUCT, short, MESSAGE))
    host = {"acl": 1.0}
    assert timeline(step, PLAIN, host).seconds == pytest.approx(12.0 + 10 * 0.2)  # all launched in the products' time
    waiting = timeline(step, replace(PLAIN, queue=2), host).seconds
    # The first copy is launched when the third product has ended, the second when the fourth has, after 12 s.
    assert waiting == pytest.approx(12.0 + 9 * 1.0 + 0.2)


def test_a_message_leaves_when_the_kernels_before_it_have_ended() -> None:
    step = timeline(counts(0, 2, 1, 2), PLAIN, {})
    assert step.messages == ((3.0, 40e6), (5.0, 40e6)) and step.seconds == 5.0


def test_a_ring_all_reduce_takes_the_pace_of_its_slowest_link() -> None:
    machine = replace(PLAIN, link=10.0, network=5.0, cards=4, message=0.5)
    assert all_reduce_seconds(80.0, 1, machine) == 0.0
    assert all_reduce_seconds(80.0, 4, machine) == pytest.approx(2 * 3 * (2.0 + 0.5))
    assert all_reduce_seconds(80.0, 8, machine) == pytest.approx(2 * 7 * (2.0 + 0.5))  # the network is slower


def test_only_what_outlasts_the_backward_pass_costs_time() -> None:
    machine = replace(PLAIN, link=40e6, cards=2)  # a bucket of 40 MB takes 1 s over two cards
    messages = [(2.0, 40e6), (4.0, 40e6)]  # sent after 3 and 5 s
    assert exposed_seconds(messages, 2, machine) == pytest.approx(1.0)
    assert exposed_seconds(messages, 1, machine) == 0.0
    assert exposed_seconds(messages, 2, replace(machine, link=10e6)) == pytest.approx(6.0)  # after 6 and 10 s
    loss = (4.5, 8.0)
    late = exposed_seconds([*messages, loss], 2, replace(machine, message=0.25))  # 1.5 s a bucket, 0.5 s the loss
    assert late == pytest.approx(1.5 + 0.5)


def test_the_limiting_part_of_a_cluster_is_named() -> None:
    roomy = replace(PLAIN, link=1e12, network=1e12, cards=2, cores=100, core_images=10.0)
    step = counts(0, 2, 1, 1, 2)
    row = scaling_row(step, 2, roomy, {})
    assert row.limit == "card" and row.efficiency == pytest.approx(1.0, abs=1e-3)
    assert row.images_per_second == pytest.approx(2 * 4 / 7.0, rel=1e-3)
    assert row.cores_needed == pytest.approx(2 * 4 / 7.0 / 10, rel=1e-3)
    host = scaling_row(step, 2, replace(roomy, cores=1, core_images=0.5), {})
    assert host.limit == "host" and host.images_per_second == pytest.approx(0.5)
    assert scaling_row(step, 2, replace(roomy, link=10e6), {}).limit == "links"
    assert scaling_row(step, 4, replace(roomy, network=10e6), {}).limit == "network"


def test_counts_come_from_a_dry_run_without_what_launches_nothing(tmp_path: Path) -> None:
    square = ("Float16", (2, 2), "DefaultFormat")
    product, reshape = Launch("MatMul", (square, square), (square,), 16.0), Launch("Reshape", (square,), (square,))
    message = Launch("AllReduce", (square,) * 13, (square,) * 13)
    primitives = {"MatMul": Primitive(2, "aclnn"), "Reshape": Primitive(1, "rt"), "AllReduce": Primitive(1, "hccl")}
    run = DryRun(primitives, launches=(product, reshape, message, product), batch=7)
    found = step_counts("net", Case("x.yaml", jit_level="O1"), run)
    assert (found.name, found.batch, found.soc, found.jit_level) == ("net", 7, "Ascend910B1", "O1")
    assert [kernel.primitive for kernel in found.launches()] == ["MatMul", "AllReduce", "MatMul"]
    assert found.by_kind() == {"aclnn": 2, "hccl": 1}
    assert found.by_primitive() == {"AllReduce": (1, 208), "MatMul": (2, 48)}
    assert found.kernels[1].inputs == "13 tensors"
    found.save(tmp_path / "counts.json")
    assert StepCounts.load(tmp_path / "counts.json") == found
    with pytest.raises(UserError, match="net: the dry run lists no kernels: RuntimeError"):
        step_counts("net", Case("x.yaml"), DryRun(error="RuntimeError"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        StepCounts.load(tmp_path / "none.json")
    for text in ("[]", '{"name": "x"}', "{"):
        (tmp_path / "other.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="holds no counts as --save writes them"):
            StepCounts.load(tmp_path / "other.json")


def test_tables_show_before_and_now() -> None:
    before = {"kernels": {"aclnn": 1, "acl": 2_000}, "bytes": 90e9}
    assert "| net | 2,001 -> 3 | 1 | 2,000 -> 2 | 0 | 0 | 90.0 -> 0.0 | 0.000 |" in step_table(
        {"net": counts()}, {"net": before}
    )
    assert "| net | 3 | 1 | 2 | 0 | 0 | 0.0 | 0.000 |" in step_table({"net": counts()}, {})
    both = primitive_table({"O0": counts(), "O1": counts(1)})
    assert "| TensorMove | 2 | 0.00 | 1 | 0.00 |" in both and "| MatMul | 1 | 0.00 |  |  |" in both


def test_flags_change_the_machine_of_a_chip() -> None:
    parse = command._parser().parse_args
    assert command.read_machine(parse(["--chip", "A2", "--queue", "7"])) == replace(CHIPS["A2"], queue=7)
    with pytest.raises(UserError, match="bandwidth: 0.0 must be greater than 0"):
        command.read_machine(parse(["--bandwidth", "0"]))
    assert command.read_cards("1, 8") == [1, 8]
    with pytest.raises(UserError, match="number_of_cards"):
        command.read_cards("1,x")


def test_the_document_holds_the_tables_of_its_counts() -> None:
    text = command.DOCUMENT.read_text(encoding="utf-8")
    assert f"{command.BEGIN}\n\n{command.tables_of_document()}\n\n{command.END}" in text


@pytest.mark.parametrize(("name", "chip", "milliseconds"), command.PUBLISHED)
def test_the_formula_gives_the_published_steps(name: str, chip: str, milliseconds: float) -> None:
    """One fraction per chip is set by swin_tiny; swinv2_tiny_window8 is then within a tenth."""
    step = StepCounts.load(command.COUNTS / f"{name}.json")
    error = timeline(step, CHIPS[chip], {}).seconds * 1e3 / milliseconds - 1
    assert abs(error) < (0.02 if name == "swin_tiny" else 0.1)


def test_launches_by_the_host_only_add_time() -> None:
    step = StepCounts.load(command.COUNTS / "tiny_O0.json")
    seconds = [timeline(step, CHIPS["A2"], host).seconds for host in ({}, BY_HOST.least, BY_HOST.most)]
    assert seconds == sorted(seconds)


def test_the_command_prints_the_tables_of_stored_counts() -> None:
    path = command.COUNTS / "tiny_O0.json"
    arguments = [sys.executable, "tools/scaling", "--counts", str(path), "--number_of_cards", "1,8"]
    done = subprocess.run(arguments, cwd=command.REPOSITORY, capture_output=True, text=True, check=True)
    assert json.loads(path.read_text(encoding="utf-8"))["name"] in done.stdout
    assert "| SoftmaxBackward |" in done.stdout or "FlashAttentionScore" in done.stdout
