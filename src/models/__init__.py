"""Model zoo: `create_model(config)`, `list_models()`."""

from src.models.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
