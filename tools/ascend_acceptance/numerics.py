"""Tasks of the rungs that compare with stored figures; each runs in a process of its own (child.py).

The figures are those of the tests: the authors' network in PyTorch, with weights and inputs that anyone can rebuild.
"""

from __future__ import annotations

import sys
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal.checkpoint.official import load_official_state_dict
from focal.config import Config, load_config
from focal.distributed.chip import ascend_chip
from focal.distributed.device import setup_device
from focal.distributed.versions import expected_cann, version_remark
from focal.models import create_model
from focal.models.precision import apply_precision
from focal.trainers.losses import SoftTargetCrossEntropy
from focal.trainers.optimizer import create_optimizer
from focal.trainers.train_one_step import OUTPUTS, TrainOneStep, trained_parameters
from tests.numerics.reference_cases import case_config, case_input, figures, official_state

MOST_SKIPPED = 40  # steps; a loss scale of 2^32 fits float16's gradients after some twenty halvings


def start(target: str, **keys: Any) -> None:
    """Set up the device as a job does."""
    setup_device(load_config({"device_target": target, **keys}).run)


def start_up(target: str) -> dict[str, Any]:
    """Versions, the chip, and the jit_level that auto takes there."""
    device = setup_device(load_config({"device_target": target}).run)
    return {
        "mindspore": ms.__version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
        "chip": ascend_chip() if target == "Ascend" else "",
        "jit_level": device.jit_level,
        "expected_cann": list(expected_cann()),
        "remark": version_remark(ms.__version__),
    }


def matrix_product(target: str) -> dict[str, float]:
    """Largest difference of a float32 product from NumPy's, as a fraction of the largest entry."""
    start(target)
    left, right = np.random.default_rng(0).standard_normal((2, 256, 256)).astype(np.float32)
    expected = left.astype(np.float64) @ right
    found = ops.matmul(Tensor(left), Tensor(right)).asnumpy()
    return {"deviation": float(np.abs(found - expected).max() / np.abs(expected).max())}


def logits(target: str, case: str, jit_level: str, amp_levels: list[str]) -> dict[str, float]:
    """Largest difference from the stored logits, as a fraction of the largest logit, by amp_level."""
    start(target, jit_level=jit_level)
    expected = figures(case)["logits"]
    deviations, kept = {}, []  # kept: a compiled Cell that dies makes MindSpore compile the others once more
    for amp_level in amp_levels:
        network = _reference_network(case_config(case), case)
        apply_precision(network, amp_level)
        network.set_train(False)
        kept.append(network)
        found = network(Tensor(case_input(case))).asnumpy()
        deviations[amp_level] = float(np.abs(found - expected).max() / np.abs(expected).max())
    return deviations


def gradients(target: str, case: str, jit_level: str) -> dict[str, Any]:
    """Largest relative difference of a gradient's norm from the stored one, in float32, and whose it is."""
    start(target, jit_level=jit_level)
    network = _reference_network(case_config(case), case)
    network.set_train(False)  # no drop path
    parameters = network.trainable_params()

    def loss(images: Tensor) -> Tensor:
        return ops.logsumexp(network(images), -1).mean()

    _, found = ms.value_and_grad(loss, None, parameters)(Tensor(case_input(case)))
    norms = {p.name: np.linalg.norm(g.asnumpy().astype(np.float64)) for p, g in zip(parameters, found)}
    stored = dict(zip(figures(case)["grad_names"], figures(case)["grad_norms"]))
    # Smaller ones are rounding errors of a true zero: a bias that shifts all logits of a softmax alike.
    floor = 1e-5 * max(stored.values())
    deviations = {str(name): abs(norms[name] / norm - 1) for name, norm in stored.items() if norm > floor}
    worst = max(deviations, key=lambda name: deviations[name])
    return {"deviation": float(deviations[worst]), "of": worst, "compared": len(deviations)}


def trajectory(target: str, case: str, jit_level: str) -> dict[str, Any]:
    """Sixty steps of the product's training step on digits; largest relative differences of the loss."""
    from tests.numerics.reference_cases import FOLDER
    from tests.numerics.test_train_trajectory import reference_config, run

    start(target, jit_level=jit_level)
    scaling = {"loss_scale": 2**14, "is_dynamic_loss_scale": True, "scale_window": 20}
    _, rows = run(reference_config(case, device_target=target, **scaling), case)
    deviation = np.abs(rows[:, OUTPUTS.index("loss")] / np.load(FOLDER / f"train_{case}.npz")["loss"] - 1)
    return {
        "first_five": float(deviation[:5].max()),
        "all": float(deviation.max()),
        "skipped": int(rows[:, OUTPUTS.index("nonfinite")].sum()),
    }


def overflow(target: str, jit_level: str) -> dict[str, Any]:
    """Steps in float16 from a loss scale that cannot fit: what skipped steps change, and when the first one counts."""
    start(target, jit_level=jit_level)
    config = case_config("nano_v2_useconv", device_target=target, amp_level="O2", loss_scale=2**32)
    step = _training_step(config)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, 3, *config.model.image_hw)).astype(np.float32)
    batch = Tensor(images), Tensor(np.eye(config.model.num_classes, dtype=np.float32)[np.arange(8) % 10])
    before = _weights_and_averages(step)
    scales: list[float] = []
    changed = False
    for _ in range(MOST_SKIPPED):
        outputs = dict(zip(OUTPUTS, step(*batch).asnumpy().tolist()))
        scales.append(outputs["scale"])
        after = _weights_and_averages(step)
        if not outputs["nonfinite"]:
            moved = any((after[name] != before[name]).any() for name in before)
            finite = all(np.isfinite(value).all() for value in after.values())
            return _overflow_figures(scales, changed, moved and finite)
        changed = changed or any((after[name] != before[name]).any() for name in before)
    return _overflow_figures(scales, changed, None)


def _overflow_figures(scales: list[float], changed: bool, trained: Optional[bool]) -> dict[str, Any]:
    return {
        "skipped": len(scales) - (trained is not None),
        "scale_halves": all(later == earlier / 2 for earlier, later in zip(scales, scales[1:])),
        "skipped_steps_change_weights": changed,
        "finite_step_found": trained is not None,
        "finite_step_trains": bool(trained),
    }


def _weights_and_averages(step: TrainOneStep) -> dict[str, np.ndarray]:
    parameters = [*step.optimizer.parameters_to_train, *step.ema.averages]
    return {parameter.name: parameter.asnumpy().copy() for parameter in parameters}


def _training_step(config: Config) -> TrainOneStep:
    ms.set_seed(0)
    network = create_model(config)
    apply_precision(network, config.step.amp_level)
    weights = trained_parameters(network)
    optimizer = create_optimizer(weights, config.optim, config.model, np.full(MOST_SKIPPED, 1e-3))
    return TrainOneStep(network, SoftTargetCrossEntropy(), optimizer, config.step)


def _reference_network(config: Config, case: str) -> nn.Cell:
    network = create_model(config)
    load_official_state_dict(network, official_state(case, network))
    return network
