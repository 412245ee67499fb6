"""Rungs that compare this device's results with stored figures, and the tolerances that they must keep."""

from __future__ import annotations

import importlib.util
from typing import Any

from tools.ascend_acceptance.child import run_task
from tools.ascend_acceptance.ladder import RungFailed, RungSkipped, Session

PUBLISHED_CASE = "focalv2_tiny_useconv_patch4_window7_224"  # the smallest published network with stored figures
SMALL_CASE = "nano_v2_useconv"

# Largest difference of a logit, as a fraction of the largest one. float32 differs by the order of sums. float16 and
# bfloat16 have 11 and 8 bits of mantissa, and errors add up over some hundred products.
LOGITS_FLOAT32, LOGITS_FLOAT16, LOGITS_BFLOAT16 = 1e-3, 2e-2, 1e-1
GRADIENTS_FLOAT32, GRADIENTS_FLOAT16 = 5e-3, 5e-2
# Of the loss: in the first five steps, and in all sixty, over which differences grow.
TRAJECTORY_FLOAT32, TRAJECTORY_FLOAT16 = (1e-3, 3e-2), (1e-2, 1e-1)


def float16_products(session: Session) -> bool:
    """Whether this chip computes float32 products in float16 (910A); see docs/training.md."""
    return session.figure("MindSpore", "chip", "") == "ascend910"


def jit_levels(session: Session) -> list[str]:
    """What is measured: auto first, then the levels that it may be compared with on this chip."""
    if session.target != "Ascend":
        return ["auto"]  # the levels are those of an Ascend
    chosen = session.figure("MindSpore", "jit_level", "")
    # Graph kernels (O1) are made for Atlas A2 and later.
    return ["auto", *(level for level in ("O0", "O1", "O2") if level != chosen
                      and not (level == "O1" and float16_products(session)))]  # fmt: skip


def amp_levels(session: Session) -> list[str]:
    """The precisions that this device has."""
    if session.target != "Ascend" or float16_products(session):
        return ["O0", "O1", "O2", "O3"]
    return ["O0", "O1", "O2", "O3", "bf16"]


def logits_tolerance(amp_level: str, in_float16: bool) -> float:
    if amp_level == "bf16":
        return LOGITS_BFLOAT16
    return LOGITS_FLOAT32 if amp_level == "O0" and not in_float16 else LOGITS_FLOAT16


def logits(session: Session) -> tuple[str, dict[str, Any]]:
    """The network's logits at every jit_level and amp_level; auto must be right, others may turn out unusable."""
    case = PUBLISHED_CASE if session.target == "Ascend" else SMALL_CASE
    deviations: dict[str, dict[str, float]] = {}
    wrong: dict[str, str] = {}  # "jit_level amp_level" -> why
    for jit_level in jit_levels(session):
        levels = amp_levels(session)
        try:
            found = run_task(session, "numerics:logits", f"logits_{jit_level}", target=session.target, case=case,
                             jit_level=jit_level, amp_levels=levels)  # fmt: skip
        except RungFailed as failure:
            wrong.update({f"{jit_level} {amp_level}": str(failure) for amp_level in levels})
            continue
        deviations[jit_level] = found
        for amp_level, deviation in found.items():
            if not deviation < logits_tolerance(amp_level, float16_products(session)):
                wrong[f"{jit_level} {amp_level}"] = f"logits deviate by {deviation:.1e}"
    figures = {"case": case, "deviations": deviations, "wrong": wrong}
    of_auto = [f"{key}: {why}" for key, why in wrong.items() if key.startswith("auto ")]
    if of_auto:
        raise RungFailed("; ".join(of_auto), **figures)
    told = ", ".join(f"{amp_level} {deviation:.0e}" for amp_level, deviation in deviations["auto"].items())
    others = f"; not usable: {', '.join(wrong)}" if wrong else ""
    return f"{case} deviates by {told} of the largest logit{others}", figures


def gradients(session: Session) -> tuple[str, dict[str, Any]]:
    """Norms of all gradients in float32."""
    limit = GRADIENTS_FLOAT16 if float16_products(session) else GRADIENTS_FLOAT32
    found: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for jit_level in jit_levels(session):
        try:
            found[jit_level] = run_task(session, "numerics:gradients", f"gradients_{jit_level}",
                                        target=session.target, case=SMALL_CASE, jit_level=jit_level)  # fmt: skip
        except RungFailed as failure:
            wrong[jit_level] = str(failure)
            continue
        if not found[jit_level]["deviation"] < limit:
            wrong[jit_level] = f"{found[jit_level]['of']} deviates by {found[jit_level]['deviation']:.1e}"
    figures = {"found": found, "wrong": wrong}
    if "auto" in wrong:
        raise RungFailed(wrong["auto"], **figures)
    others = f"; not usable: {', '.join(wrong)}" if wrong else ""
    return f"{found['auto']['compared']} norms deviate by at most {found['auto']['deviation']:.0e}{others}", figures


def trajectory(session: Session) -> tuple[str, dict[str, Any]]:
    """Sixty steps of training against those of the authors' network."""
    if importlib.util.find_spec("sklearn") is None:
        raise RungSkipped("needs scikit-learn, which holds the digits: pip install scikit-learn")
    found = run_task(session, "numerics:trajectory", "trajectory", target=session.target, case=SMALL_CASE,
                     jit_level="auto")  # fmt: skip
    first_five, all_steps = TRAJECTORY_FLOAT16 if float16_products(session) else TRAJECTORY_FLOAT32
    note = f"the loss deviates by {found['first_five']:.0e} in 5 steps and by {found['all']:.0e} in 60"
    if not (found["first_five"] < first_five and found["all"] < all_steps) or found["skipped"]:
        raise RungFailed(f"{note}; {found['skipped']} steps were not finite", **found)
    return note, found


def overflow(session: Session) -> tuple[str, dict[str, Any]]:
    """Overflow in float16 is noticed, a skipped step changes no weight, and training goes on."""
    found = run_task(session, "numerics:overflow", "overflow", target=session.target, jit_level="auto")
    problems = {
        "no step overflows at a loss scale of 2^32: overflow is not noticed": not found["skipped"],
        "a skipped step changes weights": found["skipped_steps_change_weights"],
        "the loss scale does not halve": not found["scale_halves"],
        f"no finite step after {found['skipped']} skipped ones": not found["finite_step_found"],
        "a finite step does not train": found["finite_step_found"] and not found["finite_step_trains"],
    }
    if any(problems.values()):
        raise RungFailed("; ".join(text for text, is_so in problems.items() if is_so), **found)
    return f"{found['skipped']} steps skipped, weights untouched, then training", found


def flash(session: Session) -> tuple[str, dict[str, Any]]:
    """Flash attention against the products; products remain where they disagree, so this rung cannot fail the card."""
    found = run_task(session, "flash:compare_flash_with_products", "flash", target=session.target,
                     config=session.config, amp_level="O1")  # fmt: skip
    if not found["available"]:
        raise RungSkipped(found["why"])
    return found["found"], found
