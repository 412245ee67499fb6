"""Model zoo: `create_model(config)`, `create_backbone(config, image_size)`, `list_models()`."""

from focal.models.backbone import create_backbone
from focal.models.registry import create_model, list_models

__all__ = ["create_backbone", "create_model", "list_models"]
