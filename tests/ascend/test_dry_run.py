"""The product, compiled for an Ascend without one, keeps every rule of tools/ascend_dry_run/rules.py.

What a rule is for stands in docs/graph.md. Here stand the cases that tell most, for the time they take; all of them:
`python tools/ascend_dry_run --matrix`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from focal.config import load_config
from focal.models.macs import actual_macs
from tools.ascend_dry_run import rules
from tools.ascend_dry_run.cases import ATLAS_910A, EVAL, FLASH, TRAIN, VARIATIONS, Case, small_case
from tools.ascend_dry_run.result import DryRun
from tools.ascend_dry_run.simulate import REPOSITORY, dry_runs
from tools.ascend_dry_run.stubs import why_unavailable
from tools.nano_networks import NANO_V1, NANO_V2

REASON = why_unavailable()
pytestmark = [pytest.mark.ascend_dry_run, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

BCE = {"loss": "bce", "bce_target_thresh": 0.2}
CASES = {
    "version 2, train, O1, 8 ranks": small_case(2, TRAIN, "O1", ranks=8),
    "version 1, train, O0, 8 ranks, accumulation, momentum": small_case(
        1, TRAIN, "O0", ranks=8, overrides={**VARIATIONS["accumulation"], **VARIATIONS["momentum"]}
    ),
    "version 2, train, bf16, layer scale, dropout, lamb, bce": small_case(
        2, TRAIN, "bf16", overrides={**VARIATIONS["layer scale, dropout"], **VARIATIONS["lamb"], **BCE}
    ),
    "version 2, train, O2, adam_weight_decay, graph kernels": small_case(
        2, TRAIN, "O2", jit_level="O1", overrides=VARIATIONS["adam_weight_decay"]
    ),
    "version 1, train, O1, 910A": small_case(1, TRAIN, "O1", soc=ATLAS_910A),
    "version 1, train, O3 with float16 norms, flash": small_case(
        1, TRAIN, "O3", overrides={**FLASH, "keep_bn_fp32": False}
    ),
    "version 2, eval, bf16, flash": small_case(2, EVAL, "bf16", overrides=FLASH),
}
# No jit_level is given: auto takes GE for the 910A.
GE_CASES = {"version 2, train, O1, 910A, GE": small_case(2, TRAIN, "O1", soc=ATLAS_910A, jit_level="")}
# Each breaks a rule; controls.py says how.
CONTROLS = {
    "breaks every rule": Case(NANO_V2, ranks=8, jit_level="O0", build="tests.ascend.controls:breaks_every_rule"),
    "without adapter": Case(NANO_V2, soc=ATLAS_910A, jit_level="O2", build="tests.ascend.controls:without_adapter"),
}

# Launches of each case as measured, without reshapes. A smaller number may replace these; a larger one needs a reason.
MOST_KERNELS = {
    "version 2, train, O1, 8 ranks": 661,
    "version 1, train, O0, 8 ranks, accumulation, momentum": 506,
    "version 2, train, bf16, layer scale, dropout, lamb, bce": 1238,
    "version 2, train, O2, adam_weight_decay, graph kernels": 571,
    "version 1, train, O1, 910A": 638,
    "version 1, train, O3 with float16 norms, flash": 615,
    "version 2, eval, bf16, flash": 155,
}
MOST_OF_EVALUATION = 142  # of version 1, O3, graph kernels, as the command compiles it

each_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def runs() -> dict[str, DryRun]:
    """Outcomes of all cases, the controls included, by name; compiled two at a time."""
    return dry_runs({**CASES, **GE_CASES, **CONTROLS})


@each_case
def test_the_graph_compiles_and_the_dry_run_step_ends(runs, name):
    assert rules.failures(runs[name]) == []
    assert runs[name].peak_memory_bytes > 0


@each_case
def test_no_operator_falls_back_to_the_cpu_of_the_host(runs, name):
    assert rules.cpu_fallbacks(runs[name]) == []


@each_case
def test_no_operator_is_one_of_the_ai_cpu(runs, name):
    assert rules.ai_cpu_operators(runs[name]) == []


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.ranks > 1])
def test_gradients_travel_in_as_many_messages_as_there_are_buckets(runs, name):
    assert rules.unfused_all_reduces(runs[name]) == []
    assert len(runs[name].all_reduces) == 3  # of tensors with weight decay, of those without, and of the loss


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.ranks > 1])
def test_the_last_graph_lists_every_kernel_that_the_log_names(runs, name):
    listed = Counter(launch.primitive for launch in runs[name].launches)
    assert listed == {primitive: found.count for primitive, found in runs[name].primitives.items()}


def test_operations_of_the_last_graph_agree_with_the_models_own_count(runs):
    """Matrix operations of forward and backward are three times those of the forward pass."""
    case = CASES["version 2, train, O1, 8 ranks"]
    forward = 2 * actual_macs(load_config(case.config, case.overrides).model) * case.batch
    operations = sum(launch.operations for launch in runs["version 2, train, O1, 8 ranks"].launches)
    # Not to the digit: the first convolution needs no gradient of the image (less), coordinate MLPs have some (more).
    assert 2.6 * forward < operations < 3.3 * forward


@each_case
def test_only_listed_primitives_take_acl_kernels(runs, name):
    assert rules.unlisted_acl_kernels(runs[name]) == []


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.soc != ATLAS_910A])
def test_only_the_learning_rate_and_the_images_to_mix_are_gathered_by_an_older_kernel(runs, name):
    """The list allows Gather for these two; rows of activations are IndexSelect's."""
    gathers = runs[name].primitives.get("Gather")
    assert gathers is None or gathers.count == 2
    assert runs[name].primitives["IndexSelect"].count >= 10


@each_case
def test_the_number_of_kernels_does_not_grow(runs, name):
    assert rules.too_many_kernels(runs[name], MOST_KERNELS[name]) == []


def test_flash_attention_takes_aclnn_kernels_forward_and_backward(runs):
    """One of each for every block, and no softmax but that which the gradient of the bias needs."""
    train = runs["version 1, train, O3 with float16 norms, flash"].primitives
    evaluation = runs["version 2, eval, bf16, flash"].primitives
    for primitive in ("FlashAttentionScore", "FlashAttentionScoreGrad", "Softmax"):
        assert (train[primitive].count, train[primitive].kernel) == (3, "aclnn")
    assert (evaluation["FlashAttentionScore"].count, evaluation["FlashAttentionScore"].kernel) == (3, "aclnn")
    assert not {"Softmax", "FlashAttentionScoreGrad"} & set(evaluation)
    assert evaluation["BatchMatMul"].count == 3  # windows are pooled by one, and the attention takes none


@pytest.mark.parametrize("name", GE_CASES)
def test_every_operator_has_an_adapter_for_ge(runs, name):
    assert runs[name].jit_level == "O2"
    assert rules.short_of_ge(runs[name]) == []  # else nothing was converted
    assert rules.missing_adapters(runs[name]) == []


def test_every_listed_acl_primitive_still_takes_an_acl_kernel_somewhere(runs):
    """A reason in the list that nothing needs any more hides the next regression."""
    taken = {
        primitive
        for name in CASES
        for primitive, found in runs[name].primitives.items()
        if "acl" in found.kernel.split("+")
    }
    assert sorted(set(rules.ACL_ALLOWED_ON_910A) - taken) == []


def test_an_error_of_the_compiler_is_caught(runs):
    """Such as the one that ends a simulation where GE would begin."""
    (failure,) = rules.failures(runs["version 2, train, O1, 910A, GE"])
    assert rules.GE_STOPS_AT in failure


def test_operators_without_a_kernel_for_the_chip_are_caught(runs):
    fallen = " ".join(rules.cpu_fallbacks(runs["breaks every rule"]))
    assert "LSTM" in fallen
    assert "LayerNorm" in fallen  # in float64


def test_an_ai_cpu_operator_is_caught(runs):
    assert rules.ai_cpu_operators(runs["breaks every rule"]) == ["RightShift (1 times) runs on the AI CPU"]


def test_an_all_reduce_per_tensor_is_caught(runs):
    caught = rules.unfused_all_reduces(runs["breaks every rule"])
    assert caught == ["4 all-reduces of 72 bytes, which fill at most 2 buckets"]


def test_an_unlisted_acl_kernel_is_caught(runs):
    assert any("BesselI0e" in violation for violation in rules.unlisted_acl_kernels(runs["breaks every rule"]))


def test_every_operator_is_counted(runs):
    """As often as the control has it; that one more than the limit is caught, test_ascend_dry_run.py shows."""
    counts = {name: primitive.count for name, primitive in runs["breaks every rule"].primitives.items()}
    assert counts.items() >= {"AllReduce": 4, "Mul": 4, "RightShift": 1, "BesselI0e": 1}.items()


def test_an_operator_without_an_adapter_for_ge_is_caught(runs):
    assert any("LSTM" in violation for violation in rules.missing_adapters(runs["without adapter"]))


def test_the_command_finds_an_evaluation_that_keeps_the_rules_and_writes_the_figures(tmp_path):
    config = tmp_path / "nano.yaml"
    config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in NANO_V1.items()), encoding="utf-8")
    figures = tmp_path / "figures.json"
    command = [sys.executable, "tools/ascend_dry_run", "--config", config, "--what", "eval", "--batch", "4"]
    command += ["--set", '{"amp_level": "O3"}', "--json", figures]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "| Softmax | 3 | aclnn |" in done.stdout and "rules: kept" in done.stdout
    result = json.loads(figures.read_text(encoding="utf-8"))
    assert result["primitives"]["Softmax"].items() >= {"count": 3, "kernel": "aclnn"}.items()
    assert result["broken_rules"] == result["fallback_to_cpu"] == []
    assert result["peak_memory_bytes"] > 0
    assert result["batch"] == 4
    assert result["jit_level"] == "O1"  # what auto takes on Atlas A2
    assert result["kernels"]["graph"] > 0
    assert sum(result["kernels"].values()) <= MOST_OF_EVALUATION
