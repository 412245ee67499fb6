"""What must hold for a case that was compiled for an Ascend; docs/graph.md says what each rule is for.

Every rule is a pure function of the outcome, and returns its violations, one line each; none: the rule is kept.
"""

from __future__ import annotations

import math

from focal.trainers.buckets import BUCKET_BYTES
from tools.ascend_dry_run.result import DryRun

# Operators for which CANN has no kernel on the AI Core of the 910A and of Atlas A2, so that they run on the chip's few
# ordinary cores. From CANN's public sources (repositories ops-math and ops-nn): the launch in `op_api/NAME.cpp` is
# ADD_TO_LAUNCHER_LIST_AICPU alone, or, for RightShift, for every chip but those with vector registers (Ascend 950).
AI_CPU = frozenset((
    "AffineGrid", "Cummax", "CumProd", "Digamma", "FillDiagonal", "Histogram", "IndexPut", "LeftShift", "Lgamma",
    "LogMatrixDeterminant", "MaskedSelect", "MatrixInverse", "MultinomialWithReplacement", "Qr", "RightShift",
    "SearchSorted", "Svd", "TriangularSolve",
))  # fmt: skip

# Primitives that may take a kernel of CANN's older path (`acl`), and why. CANN probably builds each distinct signature
# of them at its first launch, and a launch costs the host more than that of an `aclnn` kernel. "None": MindSpore 2.8.0
# registers no aclnn kernel for the primitive. "Not compared": another primitive has one; only a card can say which of
# them is faster.
ACL_ALLOWED = {
    "AdamApplyOneWithDecayAssign": "none; MindSpore fuses an AdamWeightDecay into it. AdamW (aclnn): not compared",
    "AddN": "none; MindSpore's differentiation adds the gradients that meet in a tensor by it. Fused away at O1",
    "Assign": "none; the counters and the state of the step",
    "AssignAdd": "none; InplaceAddExt (aclnn): not compared",
    "AssignSub": "none; the weights' update of LAMB and of SGD with momentum",
    "Gather": "none; twice a step: the learning rate, and the batch's images in the order to mix them",
    "MulNoNan": "none; zero times infinity is zero in it, which a skipped update relies on",
    "Stack": "none; once, for the sum over ranks and for the sums of an evaluation",
    "StridedSlice": "none; once a step, from the sum over ranks",
    "TensorMove": "none; MindSpore copies a parameter that is read before it is assigned",
}

# The same, and besides, on a 910A. Its default is GE, which does not know the primitives with newer kernels
# (models/ascend_forms.py); so its network is made of the others, kernel by kernel as well.
ACL_ALLOWED_ON_910A = {
    **ACL_ALLOWED,
    **dict.fromkeys(
        ("BiasAdd", "BiasAddGrad", "Conv2D", "Conv2DBackpropFilter", "Conv2DBackpropInput", "LayerNorm",
         "LayerNormGrad", "RealDiv", "ReduceMean", "UnsortedSegmentSum"),
        "none; GE, the default of this chip, has no adapter for the newer primitive, or fuses this one itself",
    ),
    "NPUClearFloatStatusV2": "none; the 910A's overflow flag",
    "NPUGetFloatStatusV2": "none; the 910A's overflow flag",
}  # fmt: skip

GE_STOPS_AT = "Can not found GraphRunner"  # MindSpore 2.8.0, once it has converted the graph for CANN's compiler


def failures(run: DryRun) -> list[str]:
    """The compilation, or the dry-run step after it, did not end."""
    return [run.error] if run.error else []


def cpu_fallbacks(run: DryRun) -> list[str]:
    """Operators without any kernel for the chip: the host computes them, with copies there and back."""
    return [f"{name} falls back to the host's CPU" for name in run.fallback_to_cpu]


def ai_cpu_operators(run: DryRun) -> list[str]:
    """Operators that CANN runs on the chip's AI CPU: a few ordinary cores, many times slower than the AI Core."""
    return [
        f"{name} ({primitive.count} times) runs on the AI CPU"
        for name, primitive in run.primitives.items()
        if name in AI_CPU or "aicpu" in primitive.kernel.split("+")
    ]


def unfused_all_reduces(run: DryRun) -> list[str]:
    """More messages between ranks than buckets of gradients (see buckets.py), and one for the loss.

    Tensors with and without weight decay are in buckets of their own.
    """
    size = sum(reduce.bytes for reduce in run.all_reduces)
    buckets = math.ceil(size / BUCKET_BYTES) + 1
    if len(run.all_reduces) <= buckets + 1:
        return []
    return [f"{len(run.all_reduces)} all-reduces of {size} bytes, which fill at most {buckets} buckets"]


def unlisted_acl_kernels(run: DryRun) -> list[str]:
    """Primitives that take a kernel of CANN's older path, and that the chip's list does not name."""
    allowed = ACL_ALLOWED_ON_910A if run.soc.startswith("Ascend910A") else ACL_ALLOWED
    return [
        f"{name} ({primitive.count} times) takes an acl kernel, and ACL_ALLOWED names no reason"
        for name, primitive in run.primitives.items()
        if "acl" in primitive.kernel.split("+") and name not in allowed
    ]


def too_many_kernels(run: DryRun, limit: int) -> list[str]:
    """More launches than `limit`: kernel by kernel, the host's time for a step grows with their number."""
    count = sum(run.kernels().values())
    return [f"{count} kernels, more than {limit}"] if count > limit else []


def missing_adapters(run: DryRun) -> list[str]:
    """Operators that MindSpore cannot hand on to GE, CANN's compiler of graphs."""
    return [f"{name} has no adapter for GE" for name in run.without_adapter]


def short_of_ge(run: DryRun) -> list[str]:
    """A compilation at jit_level O2 that did not get as far as GE, where simulation ends."""
    return [] if GE_STOPS_AT in run.error else [run.error or "the compilation ended without GE"]


# What holds for every case; at jit_level O2, of which GE does all but the conversion, another set does.
RULES = {
    "compiles": failures,
    "no fallback to the host's CPU": cpu_fallbacks,
    "no AI CPU operators": ai_cpu_operators,
    "all-reduces fused": unfused_all_reduces,
    "acl kernels listed": unlisted_acl_kernels,
}
GE_RULES = {"reaches GE": short_of_ge, "has adapters for GE": missing_adapters}


def violations(run: DryRun, jit_level: str) -> list[str]:
    """Violations of the rules that hold for a jit_level, each after the name of its rule."""
    rules = GE_RULES if jit_level == "O2" else RULES
    return [f"{name}: {violation}" for name, rule in rules.items() for violation in rule(run)]
