"""The one place that knows how flash is compared with the products: `compare_flash_with_products`.

Its rung and its figures do not depend on how the comparison is made. A checkout without the fused attention says so.
"""

from __future__ import annotations

from typing import Any


def compare_flash_with_products(target: str, config: Any, amp_level: str) -> dict[str, Any]:
    """Compare flash with the products on the shapes of a network; a task, see child.py.

    Args:
        target: Ascend.
        config: YAML file or settings of the network.
        amp_level: of which the number format is taken.

    Returns:
        `available`: whether this checkout has flash; `why` if not; `attention`: what auto takes, products or flash; and
        `found`: the line that the comparison writes into a job's log.
    """
    try:
        from focal.models import attention_choice  # noqa: F401
    except ImportError:
        return {"available": False, "why": "not available in this checkout"}
    import logging

    from focal.config import load_config
    from focal.distributed.device import setup_device
    from focal.models import create_model
    from focal.models.precision import apply_precision

    settings = load_config(config, {"device_target": target, "amp_level": amp_level, "attention": "auto"})
    setup_device(settings.run)
    network = create_model(settings)
    apply_precision(network, settings.step.amp_level, settings.step.keep_bn_fp32)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("focal").addHandler(handler)
    logging.getLogger("focal").setLevel(logging.INFO)
    attention_choice.choose_attention(network, settings.step, training=True)
    found = next((line for line in reversed(lines) if line.startswith("attention:")), "attention: nothing said")
    attention = "flash" if found.startswith("attention: flash") else "products"
    return {"available": True, "why": "", "found": found, "attention": attention}
