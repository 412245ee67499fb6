"""Data: from image files to batches of NumPy arrays. One image passes through, in this order:

    layout.py       which splits a data folder holds, as folder.py (class folders) or mindrecord.py
    sampler.py      which images make up a batch, and the random numbers for them
    loader.py       TrainData, EvalData: make one batch by its number
    folder.py       the bytes of the image file
    decode.py       bytes to RGB
    transforms/     crop, RandAugment, normalise, erase; Mixup and CutMix; in the order that pipeline.py gives
    buffers.py      the memory of the batch
    engine.py       workers that make batches ahead, behind MindSpore's dataset

Everything random is a pure function of (seed, epoch, index).
"""

from focal.data.layout import DataLayout, check_data, find_class_names
from focal.data.loader import EvalData, TrainData, blank_batch, load_eval_image

__all__ = [
    "DataLayout",
    "EvalData",
    "TrainData",
    "blank_batch",
    "check_data",
    "find_class_names",
    "load_eval_image",
]
