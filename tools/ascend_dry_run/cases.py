"""What can be compiled in a dry run, and the matrix of small networks that stands for all that a job can ask for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from tools.nano_networks import FLASH_HEADS, NANO_V1, NANO_V2

TRAIN, EVAL = "train", "eval"
ATLAS_A2, ATLAS_910A = "Ascend910B1", "Ascend910A"
LEVELS = ("O0", "O1", "O2")  # MindSpore's: kernel by kernel; with graph kernels; GE, CANN's own compiler of graphs


@dataclass(frozen=True)
class Case:
    """One compilation.

    Attributes:
        config: YAML file, or the settings themselves.
        what: train: the training step of train.py; eval: the network and its sums as eval.py runs them.
        ranks: processes of the job; rank 0 is compiled.
        soc: chip, as CANN names it.
        jit_level: one of `LEVELS`, in the place of the configuration's; "": the configuration's, by default what auto
            chooses for the chip.
        batch: images; 0: the configuration's.
        overrides: settings that replace those of `config`.
        build: "module:function" that takes the Config and the Device and returns a Cell and its inputs, compiled in
            the place of the product's. For tests that break a rule.
        flash_gives_bias_gradient: what the comparison of flash with products is taken to have found, see
            focal/models/attention_choice.py. On a card it probably finds otherwise.
    """

    config: Any
    what: str = TRAIN
    ranks: int = 1
    soc: str = ATLAS_A2
    jit_level: str = ""
    batch: int = 0
    overrides: dict[str, Any] = field(default_factory=dict)
    build: str = ""
    flash_gives_bias_gradient: bool = False


# As in the published recipes, which the small networks leave out.
RECIPE = {"enable_ema": True, "use_global_norm": True}
VARIATIONS: dict[str, dict[str, Any]] = {
    "accumulation": {"accumulation_step": 2},
    "adam_weight_decay": {"optimizer": "adam_weight_decay"},
    "momentum": {"optimizer": "momentum"},
    "lamb": {"optimizer": "lamb"},
    "layer scale, dropout": {"use_layerscale": True, "drop_rate": 0.1, "attn_drop_rate": 0.1},
}
PRODUCTS, FLASH = ({**FLASH_HEADS, "attention": attention} for attention in ("products", "flash"))


def small_case(version: int, what: str, amp_level: str, **changes: Any) -> Case:
    """A small network at batch 8 with the settings of the recipes.

    Args:
        version: 1 or 2.
        what: train or eval.
        amp_level: see StepConfig.
        changes: attributes of the Case; `overrides` are added to the recipe's, and jit_level is O0 unless given.
    """
    overrides = {**RECIPE, "amp_level": amp_level, **changes.pop("overrides", {})}
    case = Case(NANO_V1 if version == 1 else NANO_V2, what, jit_level="O0", batch=8, overrides=overrides)
    return dataclasses.replace(case, **changes)


def matrix() -> dict[str, Case]:
    """Every case of the matrix by its name: small networks of both versions, and all that changes their graph."""
    cases: dict[str, Case] = {}
    for version in (1, 2):
        name = f"version {version}"
        for what in (TRAIN, EVAL):
            for amp_level in ("O0", "O1", "O2", "O3", "bf16"):
                cases[f"{name}, {what}, {amp_level}"] = small_case(version, what, amp_level)
            cases[f"{name}, {what}, O1, graph kernels"] = small_case(version, what, "O1", jit_level="O1")
            cases[f"{name}, {what}, O1, 910A"] = small_case(version, what, "O1", soc=ATLAS_910A)
            cases[f"{name}, {what}, O1, 910A, GE"] = small_case(version, what, "O1", soc=ATLAS_910A, jit_level="O2")
        for variation, overrides in VARIATIONS.items():
            cases[f"{name}, train, O1, {variation}"] = small_case(version, TRAIN, "O1", overrides=overrides)
        cases[f"{name}, train, O3 with float16 norms"] = small_case(
            version, TRAIN, "O3", overrides={"keep_bn_fp32": False}
        )
        for what in (TRAIN, EVAL):
            cases[f"{name}, {what}, O1, products"] = small_case(version, what, "O1", overrides=PRODUCTS)
            cases[f"{name}, {what}, O1, flash"] = small_case(version, what, "O1", overrides=FLASH)
        cases[f"{name}, train, O1, flash with its gradient of the bias"] = small_case(
            version, TRAIN, "O1", overrides=FLASH, flash_gives_bias_gradient=True
        )
        cases[f"{name}, train, bf16, flash, graph kernels"] = small_case(
            version, TRAIN, "bf16", jit_level="O1", overrides=FLASH
        )
        cases[f"{name}, train, O1, 8 ranks"] = small_case(version, TRAIN, "O1", ranks=8)
        cases[f"{name}, train, O1, 8 ranks, accumulation"] = small_case(
            version, TRAIN, "O1", ranks=8, overrides=VARIATIONS["accumulation"]
        )
    return cases
