"""Combinations of settings that cannot work are refused, and what each message suggests works."""

import pytest

from focal.config import ConfigError, load_config
from focal.config.architectures import published_archs

SEVERAL = {"node_num": 2, "device_num": 16, "master_port": 8118}

REFUSED = [
    ({"num_heads": [3, 6, 12]}, r"num_heads: \[3, 6, 12\] has 3 entries, but depths has 4"),
    ({"focal_levels": [2, 2]}, r"focal_levels: \[2, 2\] has 2 entries, but depths has 4"),
    ({"focal_windows": [7, 5, 3, 1, 1]}, "focal_windows: .* has 5 entries, but depths has 4"),
    ({"expand_sizes": []}, r"expand_sizes: \[\] has 0 entries, but depths has 4"),
    ({"depths": [], "num_heads": [], "focal_levels": [], "focal_windows": [], "expand_sizes": [], "focal_stages": []},
     r"depths: \[\] defines no stages"),
    ({"num_heads": [3, 6, 12, 25]}, "num_heads: stage 3 has 768 channels, which is not a multiple of 25 heads"),
    ({"embed_dim": 97}, "num_heads: stage 0 has 97 channels, which is not a multiple of 3 heads"),
    ({"image_size": [224]}, r"image_size: \[224\] must be one number or \[height, width\]"),
    ({"image_size": [224, 224, 3]}, "image_size: .* must be one number or"),
    ({"focal_stages": [0, 4]}, "focal_stages: stage 4 does not exist; depths has 4 stages, numbered from 0"),
    ({"freeze_stages": 5}, "freeze_stages: 5 is more than the 4 stages of depths"),
    ({"auto_augment": "augmix-m3"}, "auto_augment: 'augmix-m3' is neither none nor of the form rand-m9"),
    ({"auto_augment": "rand-m9-n1.5"}, "auto_augment: 'n1.5' of 'rand-m9-n1.5' is out of range; n takes 1..13"),
    ({"auto_augment": "rand-m11"}, "auto_augment: 'm11' of 'rand-m11' is out of range; m takes 0..10"),
    ({"crop_scale": [0.9, 0.1]}, r"crop_scale: \[0.9, 0.1\] must not decrease"),
    ({"crop_aspect": [2, 1]}, r"crop_aspect: \[2.0, 1.0\] must not decrease"),
    ({"batch_size": 63}, "batch_size: 63 must be even with mix_up or cutmix; change it, or set both of them to 0"),
    ({"batch_size": 63, "mix_up": 0}, "batch_size: 63 must be even"),
    ({"epochs": 30, "warmup_length": 20, "cool_length": 20},
     r"epochs: 30 is less than warmup_length 20 \+ cool_length 20"),
    ({"beta": [0.9, 0.99999999]}, "beta: .* rounds to 1 in float32; use at most"),
    ({"min_lr": 1e-3, "base_lr": 1e-4}, "min_lr: 0.001 is greater than base_lr 0.0001"),
    ({"amp_level": "bf16", "device_target": "CPU"}, "amp_level: bf16 is not supported on CPU; use O0"),
    ({"kernel_launch_group": 2},
     "kernel_launch_group: 2 requires jit_level O0, not auto; set it to 0"),
    ({"dataset_sink_mode": True, "device_target": "CPU"},
     "dataset_sink_mode: requires device_target Ascend, not CPU; set dataset_sink_mode to False"),
    ({"bce_sum": True}, "bce_sum: True requires loss bce, not cross_entropy"),
    ({"bce_target_thresh": 0.0}, "bce_target_thresh: 0.0 requires loss bce"),
    ({"distillation": "soft"}, "teacher: distillation soft needs the teacher's checkpoint; give --teacher CKPT"),
    ({"teacher": "t.ckpt"}, "teacher: t.ckpt is not used with distillation none; set distillation to soft or hard"),
    ({"teacher_arch": "nano"}, "teacher_arch: nano is not used with distillation none"),
    ({"node_rank": 1}, "node_rank: 1 must be less than node_num 1"),
    ({**SEVERAL, "node_rank": 2}, "node_rank: 2 must be less than node_num 2"),
    ({**SEVERAL, "device_num": 15}, "device_num: 15 .* must be a multiple of node_num 2"),
    ({**SEVERAL, "master_port": 0}, "master_port: 0 works on a single server only; .* choose a port"),
    ({"arch": "resnet50"}, "arch: 'resnet50' is not a published model; .* also set embed_dim, depths, num_heads"),
    ({"arch": "focal_tiny_patch4_window7_384"}, r"\(nearest: focal_tiny_patch4_window7_224\)"),
    ({"arch": "own", "embed_dim": 8, "depths": [1], "num_heads": [1]},
     "focal_version: arch 'own' starts with neither focal_ nor focalv2_, so set focal_version to 1 or 2"),
]  # fmt: skip

SUGGESTED = [
    {"beta": [0.9, 0.9999999]},
    {"batch_size": 63, "mix_up": 0, "cutmix": 0},
    {"batch_size": 64},
    {"epochs": 40, "warmup_length": 20, "cool_length": 20},
    {"min_lr": 1e-4, "base_lr": 1e-4},
    {"amp_level": "O0", "device_target": "CPU"},
    {"amp_level": "bf16", "device_target": "Ascend"},
    {"dataset_sink_mode": True, "device_target": "Ascend"},
    {**SEVERAL, "node_rank": 1},
    {"auto_augment": "none"},
    {"auto_augment": "rand-m9-n2-mstd0.5-inc1-p0.5-w0"},
    {"freeze_stages": 4},
    {"loss": "bce", "bce_target_thresh": 0.2, "bce_sum": True},
    {"distillation": "hard", "teacher": "t.ckpt", "teacher_arch": "focal_tiny_patch4_window7_224"},
]


@pytest.mark.parametrize(("keys", "message"), REFUSED, ids=lambda value: "".join(value) if type(value) is dict else "")
def test_a_combination_that_cannot_work_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(keys)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keys", SUGGESTED, ids=lambda keys: "-".join(keys))
def test_what_the_message_suggests_works(keys):
    load_config(keys)


def test_an_unpublished_name_implies_version_and_embedding_only():
    keys = {"embed_dim": 32, "depths": [1, 1], "num_heads": [1, 2], "focal_levels": [1, 1], "focal_windows": [3, 3],
            "expand_sizes": [1, 1], "focal_stages": []}  # fmt: skip
    assert load_config({"arch": "focal_mine", **keys}).model.focal_version == 1
    model = load_config({"arch": "focalv2_mine_useconv", **keys}).model
    assert (model.focal_version, model.use_conv_embed, model.depths) == (2, True, (1, 1))
    assert load_config({"arch": "mine", "focal_version": 1, **keys}).model.use_conv_embed is False


@pytest.mark.parametrize("arch", published_archs())
def test_given_keys_win_over_what_the_arch_implies(arch):
    model = load_config({"arch": arch, "drop_path_rate": 0.05, "use_conv_embed": False}).model
    assert (model.drop_path_rate, model.use_conv_embed, model.window_size) == (0.05, False, 7)
