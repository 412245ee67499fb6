"""Data: from image files to batches of 8-bit images, and from these to what the network sees. An image passes through:

    layout.py       which splits a data folder holds, as folder.py (class folders) or mindrecord.py
    sampler.py      which images make up a batch, and the random numbers for them
    agreement.py    whether all ranks of a job have the same data
    loader.py       TrainData, EvalData: make one batch by its number
    folder.py       the bytes of the image file
    decode.py       bytes to RGB
    transforms/     crop, RandAugment, erase, in the order that pipeline.py gives; also how a batch will be mixed
    engine.py       workers that make batches ahead, behind MindSpore's dataset
    transforms/on_device.py: normalise, erase, mix, as the first operations of the compiled step

Everything random is a pure function of (seed, epoch, index).
"""

from focal.data.agreement import check_ranks_agree
from focal.data.layout import DataLayout, check_data, find_class_names, with_classes_of
from focal.data.loader import EvalData, TrainBatch, TrainData, blank_batch, load_eval_image

__all__ = [
    "DataLayout",
    "EvalData",
    "TrainBatch",
    "TrainData",
    "blank_batch",
    "check_data",
    "check_ranks_agree",
    "find_class_names",
    "load_eval_image",
    "with_classes_of",
]
