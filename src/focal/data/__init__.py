"""Data: from files to batches. Everything random is a pure function of (seed, epoch, index)."""

from focal.data.batches import blank_batch
from focal.data.folder import DataLayout, check_data
from focal.data.loader import EvalData, TrainData
from focal.data.pipeline import load_eval_image

__all__ = ["DataLayout", "EvalData", "TrainData", "blank_batch", "check_data", "load_eval_image"]
