"""Declarations of the keys: their help, and which of them may change when a training is resumed."""

import pytest

from focal.config.loading import all_keys
from focal.config.schema import may_change_on_resume

MAY_CHANGE = [
    "allow_config_change", "attention", "cache_dir", "compile_cache", "crop_ratio", "data_url", "dataset_sink_mode",
    "device_id", "device_num", "device_target", "dry_run", "eval_batch_size", "eval_every", "file_format", "file_name",
    "graph_mode", "jit_level", "json", "keep_best_max", "keep_checkpoint_max", "kernel_launch_group", "log_steps",
    "master_addr", "master_port", "max_nonfinite_steps", "max_steps", "node_num", "node_rank", "num_parallel_workers",
    "predictions", "pretrained", "recompute", "report", "resume", "run_openi", "save_every", "save_steps", "set",
    "skip_unreadable", "step_timeout", "teacher",
    "train_url", "use_ema", "worker_processes",
]  # fmt: skip


def test_only_keys_that_do_not_affect_the_training_may_change_on_resume():
    assert sorted(name for name in all_keys() if may_change_on_resume(name)) == MAY_CHANGE
    assert not may_change_on_resume("no_such_key")


@pytest.mark.parametrize("name", all_keys())
def test_help_is_a_sentence(name):
    text = all_keys()[name].field.metadata["help"]
    assert len(text) > 10 and text.endswith(".") and "\n" not in text
    assert text[0].isupper() or text.split(":")[0] in ("multistep_lr", "polynomial", "train.py", "eval.py", "export.py")


@pytest.mark.parametrize("name", all_keys())
def test_defaults_are_legal_values_of_their_type(name):
    key = all_keys()[name]
    assert key.coerce(key.field.default) == key.field.default
