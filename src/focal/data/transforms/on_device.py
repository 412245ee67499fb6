"""The last transforms, which the device computes as the first operations of the compiled step: normalise, erase, mix.

So images cross to the device as bytes: a quarter of what they would take as float32. Everything random has been drawn
on the host. What was drawn arrives as boxes, each as the product of a mask over rows and one over columns.

Shape legend: B batch; R boxes per image; H, W height and width.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal.config.schema import DataConfig
from focal.data.transforms.erasing import CODE_OF_ZERO, CODES_PER_UNIT
from focal.data.transforms.normalize import scale_and_shift


class Normalize(nn.Cell):
    """Images uint8 (B, 3, H, W) -> float32 (pixel / 255 - mean) / std, per channel."""

    def __init__(self, data: DataConfig) -> None:
        super().__init__()
        self.scale, self.shift = map(Tensor, scale_and_shift(data))

    def construct(self, images: Tensor) -> Tensor:
        return images.astype(ms.float32) * self.scale + self.shift


class PrepareImages(nn.Cell):
    """The images of a `TrainBatch` -> what the network is trained on, float32 (B, 3, H, W).

    Args:
        data: mean, standard deviation and batch size are used.
    """

    def __init__(self, data: DataConfig) -> None:
        super().__init__()
        self.normalize = Normalize(data)
        self.partners = Tensor(np.arange(data.batch_size)[::-1].copy(), ms.int32)

    def construct(
        self,
        images: Tensor,
        erased_rows: Tensor,
        erased_columns: Tensor,
        partner_rows: Tensor,
        partner_columns: Tensor,
    ) -> Tensor:
        """Every argument is described at `TrainBatch`."""
        erased = ops.matmul(erased_rows, erased_columns) > 0  # (B, 1, H, W)
        noise = (images.astype(ms.float32) - CODE_OF_ZERO) * (1 / CODES_PER_UNIT)
        images = ops.where(erased, noise, self.normalize(images))
        partners = ops.gather(images, self.partners, 0)
        return images + partner_rows * partner_columns * (partners - images)
