"""Rules, log and set-up of tools/ascend_dry_run, without compiling anything; tests/ascend compiles."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from focal.config import load_config
from focal.errors import UserError
from focal.trainers.buckets import BUCKET_BYTES
from tools.ascend_dry_run import rules, stubs
from tools.ascend_dry_run.cases import TRAIN, Case, matrix
from tools.ascend_dry_run.launches import Launch
from tools.ascend_dry_run.report import as_dict, as_matrix, as_text
from tools.ascend_dry_run.result import COMPILING, AllReduce, DryRun, Primitive, read_dry_run
from tools.ascend_dry_run.simulate import REPOSITORY, simulation_environment

SOUND = DryRun(
    {"MatMul": Primitive(4, "aclnn"), "AddN": Primitive(2, "acl"), "Reshape": Primitive(9, "rt")},
    all_reduces=(AllReduce(78, 108_000), AllReduce(1, 8)),
    peak_memory_bytes=1000,
)

LOG = f"""
[INFO] DEVICE(1,x,python) GenerateKernelMod] kernel opname:Gather, kernel type:acl_kernel
{COMPILING}
[INFO] DEVICE(1,x,python) GenerateKernelMod] kernel opname:MatMul, kernel type:opapi_kernel
[INFO] DEVICE(1,x,python) GenerateKernelMod] kernel opname:MatMul, kernel type:opapi_kernel
[INFO] DEVICE(1,x,python) GenerateKernelMod] kernel opname:MatMul, kernel type:acl_kernel
[INFO] DEVICE(1,x,python) GenerateKernelMod] kernel opname:AllReduce, kernel type:hccl_kernel
[INFO] DEVICE(1,x,python) GenerateKernelMod] kernel opname:Reshape, kernel type:rt_kernel
[INFO] DEVICE(1,x,python) SelectKernelInfo] node is Default/net/LSTM-op0 should backoff
[INFO] DEVICE(1,x,python) SelectKernelInfo] node is Default/net/LSTM-op0 should backoff
[WARNING] DEVICE(1,x,python) FindAdapter] Can't find OpAdapter for LSTM
"""
GRAPH = """
  %8(CNode_7) = AllReduce(%6, %7) primitive_attrs: {fusion: I64(1), op: "sum"} cnode_attrs: {}
      : (<Tensor[Float32], (16, 3)>, <Tensor[Float16], (5)>) -> (<Tuple[Tensor[Float32]*2], TupleShape((16, 3), (5))>)
      : (<Float32xDefaultFormat[const vector]{16, 3}>, <Float16xNCHW[const vector]{5}>) -> (<Int8xND[const vector]{7}>)
  %9(CNode_8) = PrimFunc_MatMul(%8, %8) primitive_attrs: {} cnode_attrs: {}
      : (<Float32xDefaultFormat[const vector]{2, 2}>) -> (<Float32xDefaultFormat[const vector]{2, 2}>)
"""


def read(tmp_path: Path, **result: object) -> DryRun:
    (tmp_path / "log.txt").write_text(LOG, encoding="utf-8")
    (tmp_path / "graph.ir").write_text(GRAPH, encoding="utf-8")
    return read_dry_run(tmp_path / "log.txt", [tmp_path / "graph.ir"], result)


def test_kernels_are_counted_from_the_line_on_where_the_graph_is_compiled(tmp_path):
    run = read(tmp_path, batch=3, arch="nano", peak_memory_bytes=7)
    assert run.primitives == {
        "MatMul": Primitive(3, "acl+aclnn"),
        "AllReduce": Primitive(1, "hccl"),
        "Reshape": Primitive(1, "rt"),
    }
    assert run.kernels() == {"acl+aclnn": 3, "hccl": 1}  # a reshape launches nothing
    assert (run.batch, run.arch, run.peak_memory_bytes) == (3, "nano", 7)


def test_fallbacks_and_missing_adapters_are_named_once(tmp_path):
    run = read(tmp_path)
    assert run.fallback_to_cpu == ("Default/net/LSTM-op0",)
    assert run.without_adapter == ("LSTM",)


def test_all_reduces_are_read_with_the_sizes_of_their_tensors(tmp_path):
    assert read(tmp_path).all_reduces == (AllReduce(2, 4 * 48 + 2 * 5),)


def test_a_sound_outcome_breaks_no_rule():
    assert rules.violations(SOUND, "O0") == []
    assert rules.too_many_kernels(SOUND, 6) == []


@pytest.mark.parametrize(
    ("broken", "violation"),
    [
        (DryRun(error="RuntimeError: shapes"), "compiles: RuntimeError: shapes"),
        (DryRun(fallback_to_cpu=("Default/LSTM-op0",)), "no fallback to the host's CPU: Default/LSTM-op0 falls back"),
        (DryRun({"RightShift": Primitive(1, "aclnn")}), "no AI CPU operators: RightShift (1 times)"),
        (DryRun({"New": Primitive(2, "aicpu")}), "no AI CPU operators: New (2 times)"),
        (
            DryRun(all_reduces=(AllReduce(1, 8),) * 4),
            "all-reduces fused: 4 all-reduces of 32 bytes, which fill at most 2",
        ),
        (DryRun({"New": Primitive(2, "acl+aclnn")}), "acl kernels listed: New (2 times) takes an acl kernel"),
    ],
)
def test_each_rule_names_what_breaks_it(broken, violation):
    found = rules.violations(broken, "O0")
    assert len(found) == 1
    assert found[0].startswith(violation)


def test_the_older_kernels_of_the_network_are_a_violation_on_every_chip_but_the_910a():
    norms = {"LayerNorm": Primitive(3, "acl")}
    assert rules.violations(DryRun(norms, soc="Ascend910A"), "O0") == []
    for soc in ("Ascend910B1", "Ascend910_9391", ""):
        assert len(rules.violations(DryRun(norms, soc=soc), "O0")) == 1


def test_one_kernel_more_than_the_limit_is_a_violation():
    assert rules.too_many_kernels(SOUND, 5) == ["6 kernels, more than 5"]


def test_large_gradients_may_fill_several_messages():
    full, rest = AllReduce(40, BUCKET_BYTES + 1), AllReduce(9, 100)
    assert rules.unfused_all_reduces(DryRun(all_reduces=(full, rest, AllReduce(1, 8)))) == []
    assert rules.unfused_all_reduces(DryRun(all_reduces=(full, rest, rest, AllReduce(1, 8)))) == []
    assert len(rules.unfused_all_reduces(DryRun(all_reduces=(full, rest, rest, rest, AllReduce(1, 8))))) == 1


def test_a_compilation_for_ge_must_end_at_ge_and_nowhere_else():
    stopped = DryRun(error=f"RuntimeError: {rules.GE_STOPS_AT}. C++ Call Stack")
    assert rules.violations(stopped, "O2") == []
    assert rules.violations(DryRun(error="TypeError"), "O2") == ["reaches GE: TypeError"]
    assert rules.violations(DryRun(), "O2") == ["reaches GE: the compilation ended without GE"]
    missing = DryRun(error=rules.GE_STOPS_AT, without_adapter=("LSTM",))
    assert rules.violations(missing, "O2") == ["has adapters for GE: LSTM has no adapter for GE"]


def test_every_acl_primitive_that_is_allowed_has_a_reason():
    assert all(len(reason.split()) > 3 for reason in rules.ACL_ALLOWED_ON_910A.values())
    assert not rules.AI_CPU & set(rules.ACL_ALLOWED_ON_910A)


def test_the_report_shows_counts_messages_memory_and_broken_rules():
    case = Case("x.yaml", ranks=8)
    text = as_text(case, SOUND)
    assert "| MatMul | 4 | aclnn | 0.0 |" in text
    assert "all-reduces: 2, MiB (tensors): 0.103 (78), 0.000 (1)" in text
    assert text.rstrip().endswith("rules: kept")
    assert "rule broken: compiles: TypeError" in as_text(case, DryRun(error="TypeError"))
    assert "| case | 6 | 4 | 2 | 0 | 0 | 2 | kept |" in as_matrix({"case": case}, {"case": SOUND})


def test_kernels_are_listed_with_their_tensors_equal_ones_once():
    square = ("Float16", (2, 2), "DefaultFormat")
    product = Launch("MatMul", (square, square), (square,), 16.0)
    run = dataclasses.replace(SOUND, launches=(product, product, Launch("LayerNorm", (square,), (square,)), product))
    found = as_dict(Case("x.yaml"), run)
    assert found["primitives"]["MatMul"] == {"count": 4, "kernel": "aclnn", "bytes": 3 * 24}
    assert found["primitives"]["Reshape"]["bytes"] == 0
    assert [(entry["primitive"], entry["count"]) for entry in found["launches"]] == [("MatMul", 3), ("LayerNorm", 1)]
    assert found["launches"][0] == {
        "primitive": "MatMul", "count": 3, "inputs": "Float16 2x2, Float16 2x2", "outputs": "Float16 2x2",
        "bytes": 24, "operations": 16.0,
    }  # fmt: skip
    assert "moved: 0.00 GB" in as_text(Case("x.yaml"), run)


def test_the_matrix_holds_every_choice_that_changes_a_graph():
    cases = matrix().values()
    configs = {version: [] for version in (1, 2)}
    for case in cases:
        config = load_config(case.config, {**case.overrides, "batch_size": case.batch})
        configs[config.model.focal_version].append((case, config))
    for found in configs.values():
        train = [config for case, config in found if case.what == TRAIN]
        for what in ("train", "eval"):
            levels = {config.step.amp_level for case, config in found if case.what == what}
            assert levels == {"O0", "O1", "O2", "O3", "bf16"}
        assert {config.optim.optimizer for config in train} == {"adamw", "adam_weight_decay", "momentum", "lamb"}
        assert {config.step.accumulation_step for config in train} == {1, 2}
        assert any(config.model.use_layerscale and config.model.drop_rate for config in train)
        assert {case.ranks for case, _ in found} == {1, 8}
        assert {(case.soc, case.jit_level) for case, _ in found} == {
            ("Ascend910B1", "O0"), ("Ascend910B1", "O1"), ("Ascend910A", "O0"), ("Ascend910A", "O2"),
        }  # fmt: skip


def test_another_processor_is_a_reason_not_to_run(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert stubs.why_unavailable() == "the stubs are for Linux on x86-64, this is linux on aarch64"
    with pytest.raises(UserError, match="ascend_dry_run: the stubs are for Linux on x86-64"):
        stubs.prepare_stubs()


def test_without_a_compiler_the_command_says_so_in_one_line(tmp_path):
    command = [sys.executable, "tools/ascend_dry_run", "--config", "configs/quickstart_digits.yaml"]
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ascend_dry_run: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_plugin_that_asks_for_other_functions_of_cann_is_refused_in_one_line():
    with pytest.raises(UserError, match="asks for other C\\+\\+ functions of CANN") as refused:
        stubs._check_known(["_ZN2ge8OperatorC1Ev", "aclnnAdd"])
    assert "\n" not in str(refused.value)
    assert f"install mindspore=={stubs.WRITTEN_FOR}" in str(refused.value)


def test_the_folder_of_the_stubs_can_be_chosen_and_names_version_and_sources(tmp_path, monkeypatch):
    monkeypatch.setenv(stubs.CACHE_VARIABLE, str(tmp_path))
    folder = stubs.stubs_folder()
    assert folder.parent == tmp_path
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "cann_answers.cc").write_text("changed", encoding="utf-8")
    monkeypatch.setattr(stubs, "SOURCES", sources)
    assert stubs.stubs_folder() != folder


def test_a_simulated_process_knows_nothing_of_the_launcher_around_it(tmp_path, monkeypatch):
    for name in ("MS_ROLE", "RANK_TABLE_FILE", "RANK_ID", "DEVICE_ID", "HCCL_CONNECT_TIMEOUT"):
        monkeypatch.setenv(name, "3")
    alone = simulation_environment(tmp_path, "Ascend910A", 1)
    assert not {"MS_ROLE", "RANK_TABLE_FILE", "RANK_ID", "DEVICE_ID", "HCCL_CONNECT_TIMEOUT"} & set(alone)
    assert alone["ASCEND_DRY_RUN_SOC"] == "Ascend910A"
    assert simulation_environment(tmp_path, "Ascend910B1", 8)["RANK_SIZE"] == "8"
