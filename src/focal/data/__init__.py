"""Data: from files to batches. Everything random is a pure function of (seed, epoch, index)."""

from focal.data.folder import DataLayout, check_data
from focal.data.loader import EvalData, TrainData
from focal.data.pipeline import load_eval_image

__all__ = ["DataLayout", "EvalData", "TrainData", "check_data", "load_eval_image"]
