"""The networks: `create_model(config)` and `create_backbone(config, image_size)`."""

from focal.models.backbone import create_backbone
from focal.models.focal_transformer import create_model

__all__ = ["create_backbone", "create_model"]
