"""Training steps of mindcv's Swin Transformers, whose published speed on Ascends docs/scaling.md is checked against.

Needs mindcv 0.3.0 (`pip install --no-deps mindcv==0.3.0 tqdm`), which is not among this project's requirements. Each
function builds what mindcv's train.py does with its published recipe: amp_level O2, AdamW, a fixed loss scale, labels
mixed on the host.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np


def swin_tiny(config: Any, device: Any) -> tuple[ms.nn.Cell, tuple[ms.Tensor, ...]]:
    """configs/swintransformer/swin_tiny_ascend.yaml: 256 images of 224 x 224."""
    return _step("swin_tiny", 256, 224)


def swinv2_tiny(config: Any, device: Any) -> tuple[ms.nn.Cell, tuple[ms.Tensor, ...]]:
    """configs/swintransformerv2/swinv2_tiny_window8_ascend.yaml: 128 images of 256 x 256."""
    return _step("swinv2_tiny_window8", 128, 256)


def _step(name: str, batch: int, size: int) -> tuple[ms.nn.Cell, tuple[ms.Tensor, ...]]:
    from mindcv.loss import create_loss
    from mindcv.models import create_model
    from mindcv.optim import create_optimizer

    network = create_model(name, num_classes=1000)
    loss = create_loss(name="CE", label_smoothing=0.1)
    optimizer = create_optimizer(
        network.trainable_params(), opt="adamw", lr=1e-3, weight_decay=0.025, weight_decay_filter="norm_and_bias"
    )
    manager = ms.FixedLossScaleManager(1024.0, drop_overflow_update=False)
    step = ms.amp.build_train_network(network, optimizer, loss, level="O2", loss_scale_manager=manager)
    images = ms.Tensor(np.zeros((batch, 3, size, size), np.float32))
    return step.set_train(), (images, ms.Tensor(np.zeros((batch, 1000), np.float32)))
