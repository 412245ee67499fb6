"""Data: from files to batches. Everything random is a pure function of (seed, epoch, index)."""

from src.data.archive import unpack_archive
from src.data.imagenet import EvalData, TrainData
from src.data.layout import DataLayout, check_data
from src.data.pipeline import load_eval_image

__all__ = ["DataLayout", "EvalData", "TrainData", "check_data", "load_eval_image", "unpack_archive"]
