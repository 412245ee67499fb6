"""A YAML file or a mapping becomes a Config, and a Config becomes YAML."""

import os
import random

import pytest
import yaml

from focal.config import ConfigError, config_from_command_line, load_config, save_config, to_flat_dict
from focal.config.loading import all_keys
from focal.config.yaml_files import CONFIG_FOLDER

# The settings of the report's run, as its YAML file writes them.
REPORT = """
arch: focalv2_small_useconv_patch4_window7_224
data_url: ./data/imagenet
set: ImageNet
num_classes: 1000
mix_up: 0.8
cutmix: 1.0
auto_augment: rand-m9-mstd0.5-inc1
interpolation: bicubic
re_prob: 0.25
re_mode: pixel
re_count: 1
mixup_prob: 1.
switch_prob: 0.5
mixup_mode: batch
crop_ratio: 0.875
optimizer: adamw
lr_scheduler: cosine_lr
base_lr: 0.0005
min_lr: 0.000005
warmup_length: 20
warmup_lr: 0.00001
cool_length: 20
cool_lr: 0.000005
amp_level: O1
keep_bn_fp32: True
beta: [ 0.9, 0.999 ]
is_dynamic_loss_scale: True
use_global_norm: True
clip_global_norm_value: 5.
enable_ema: True
ema_decay: 0.99992
loss_scale: 1024
weight_decay: 0.05
momentum: 0.9
label_smoothing: 0.1
epochs: 320
batch_size: 64
num_parallel_workers: 16
device_target: Ascend
image_size: 224
patch_size: 4
drop_path_rate: 0.3
embed_dim: 96
depths: [ 2, 2, 18, 2 ]
num_heads: [ 3, 6, 12, 24 ]
window_size: 7
focal_stages: [ 0, 1, 2, 3 ]
focal_levels: [ 2, 2, 2, 2 ]
focal_windows: [ 7, 5, 3, 1 ]
expand_sizes: [ 3, 3, 3, 3 ]
focal_topK: 128
focal_pool: "fc"
use_conv_embed: True
"""


# ---- what loads ----


def test_the_reports_yaml_loads_verbatim(write_yaml):
    config = load_config(write_yaml(REPORT))
    loaded, expected = to_flat_dict(config), yaml.safe_load(REPORT)
    assert len(expected) == 53
    for name, raw in expected.items():
        assert loaded[name] == raw, name
        default = all_keys()[name].field.default
        assert type(loaded[name]) is (list if isinstance(default, tuple) else type(default)), name
    assert config.model.focal_version == 2  # from the arch: the report has no such key


def test_the_published_config_of_the_reports_network_equals_the_reports_yaml(write_yaml):
    published = CONFIG_FOLDER / "focalv2_small_useconv_patch4_window7_224.yaml"
    # On an Ascend, auto is what the report's YAML asks for.
    assert load_config(published, {"device_target": "Ascend"}) == load_config(write_yaml(REPORT))


def test_the_reports_listing_may_leave_use_conv_embed_to_the_arch(write_yaml):
    text = REPORT.replace("use_conv_embed: True\n", "")
    assert load_config(write_yaml(text)) == load_config(write_yaml(REPORT, "whole.yaml"))


def test_overrides_win_over_the_source(write_yaml):
    assert load_config({"epochs": 5, "seed": 1}, {"epochs": 6}).optim.epochs == 6
    assert load_config(write_yaml("epochs: 5\n"), {"epochs": 6}).optim.epochs == 6


# ---- unknown keys ----


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("epoch", "epochs"), ("batchsize", "batch_size"), ("focal_topk", "focal_topK"), ("lr", "base_lr"),
     ("drop_path", "drop_path_rate"), ("img_size", "image_size"), ("Depths", "depths"), ("mixup", "mix_up"),
     ("weight-decay", "weight_decay"), ("checkpoint_path", "pretrained"), ("bce_loss", "loss")],
)  # fmt: skip
def test_an_unknown_key_is_refused_with_the_nearest_known_one(name, nearest, write_yaml):
    path = write_yaml(f"{name}: 1\n")
    with pytest.raises(ConfigError, match=rf"^unknown key '{name}' in {path}; did you mean {nearest}\?$"):
        load_config(path)
    with pytest.raises(ConfigError, match=rf"^unknown key '{name}'; did you mean {nearest}\?$"):
        load_config({}, {name: 1})
    if name != "weight-decay":  # as a flag, a hyphen is as good as an underscore
        with pytest.raises(ConfigError, match=rf"^unknown flag --{name}; did you mean {nearest}\?$"):
            config_from_command_line(["--config", write_yaml(""), f"--{name}", "1"], "")


def test_an_unknown_key_like_no_other_is_refused_with_a_hint_to_the_help(write_yaml):
    with pytest.raises(ConfigError, match="unknown key 'zzzzqqqq' in .*; python train.py --help lists all keys"):
        load_config(write_yaml("zzzzqqqq: 1\n"))


# ---- and back ----


def test_the_flat_keys_are_those_of_the_schema_in_its_order():
    assert list(to_flat_dict(load_config({}))) == list(all_keys())


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_saved_config_loads_equal(path, tmp_path):
    config = load_config(path)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_a_config_that_cannot_be_written_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    save_config(load_config({"epochs": 7}), path)

    def full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_config(load_config({"epochs": 8}), path)
    assert load_config(path).optim.epochs == 7 and os.listdir(tmp_path) == ["config.yaml"]


def draw(name: str, rng: random.Random) -> object:
    """A value within the limits of `name`, of its declared type; None: leave the key out."""
    default, limits = all_keys()[name].field.default, all_keys()[name].field.metadata
    if "choices" in limits:
        return rng.choice(limits["choices"])
    if isinstance(default, bool):
        return rng.random() < 0.5
    low = limits.get("low", limits.get("above", 0))
    high = limits.get("high", limits.get("below", low + 10 ** rng.uniform(-9, 9)))
    if isinstance(default, int):
        return rng.randint(int(low), int(min(high, 2**31 - 1)) if high > low else int(low) + 5)
    if isinstance(default, float):
        return min(max(rng.uniform(low, high), low + 1e-12), high - 1e-12)
    if name in (
        "pretrained", "resume", "file_name", "json", "predictions", "train_url", "data_url", "cache_dir", "master_addr"
    ):  # fmt: skip
        words = ["a b", "yes", "1e5", "0x1F", "null_", "# no", "x: y", "ä/ö", "~", "'", '"', "[1]", "-", "12:30",
                 "2020-01-01",
                 "!tag", "&a", "*b", "%", "@", "a\nb", "true_", "0o17", "=", "<<", " lead", "trail "]  # fmt: skip
        return rng.choice(words)
    return None


# Keys with conditions between them are drawn together, below.
TOGETHER = {"arch", "depths", "num_heads", "focal_levels", "focal_windows", "expand_sizes", "focal_stages",
            "image_size",
            "embed_dim", "auto_augment", "crop_scale", "crop_aspect", "batch_size", "epochs", "warmup_length",
            "cool_length", "min_lr", "base_lr", "amp_level", "device_target", "dataset_sink_mode", "node_num",
            "node_rank",
            "device_num", "master_port", "freeze_stages", "attention", "jit_level",
            "kernel_launch_group", "loss", "bce_target_thresh", "bce_sum", "distillation", "teacher",
            "teacher_arch"}  # fmt: skip
LOSSES = [{}, {"loss": "bce", "bce_target_thresh": 0.25, "bce_sum": True}]
TEACHERS = [{}, {"distillation": "soft", "teacher": "best.ckpt"},
            {"distillation": "hard", "teacher": "best.ckpt", "teacher_arch": "own"}]  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_any_legal_config_survives_saving(seed, tmp_path):
    rng = random.Random(seed)
    given = {name: draw(name, rng) for name in all_keys() if name not in TOGETHER and rng.random() < 0.8}
    given = {name: raw for name, raw in given.items() if raw is not None}
    stages, warmup, cool, nodes = rng.randint(1, 5), rng.randint(0, 9), rng.randint(0, 9), rng.randint(1, 3)
    per_stage = ("depths", "focal_levels", "focal_windows", "expand_sizes")
    given.update({name: [rng.randint(1, 7) for _ in range(stages)] for name in per_stage})
    low, base = sorted((rng.uniform(1e-9, 1), rng.uniform(1e-9, 1)))
    given.update(
        arch="focalv2_own", num_heads=[2 ** rng.randint(0, 4)] * stages, embed_dim=16 * rng.randint(1, 9),
        focal_stages=[s for s in range(stages) if rng.random() < 0.5], freeze_stages=rng.randint(0, stages),
        image_size=rng.choice([224, [64, 96]]), auto_augment=rng.choice(["none", "rand-m9-n2-mstd0.5-inc1", "rand"]),
        crop_scale=sorted(rng.uniform(1e-6, 1) for _ in range(2)),
        crop_aspect=sorted(rng.uniform(0.1, 4) for _ in range(2)),
        batch_size=2 * rng.randint(1, 99), warmup_length=warmup, cool_length=cool, epochs=max(1, warmup + cool),
        min_lr=low, base_lr=base, amp_level=rng.choice(["O0", "O3", "bf16"]), device_target="Ascend",
        dataset_sink_mode=rng.random() < 0.5, node_num=nodes, node_rank=rng.randrange(nodes),
        jit_level="O0", kernel_launch_group=rng.randint(0, 4),
        device_num=8 * nodes, master_port=rng.randint(1, 65535), attention=rng.choice(["auto", "products"]),
        **rng.choice(LOSSES), **rng.choice(TEACHERS),
    )  # fmt: skip
    config = load_config(given)
    path = tmp_path / "saved.yaml"
    save_config(config, path)
    assert load_config(path) == config
    assert load_config(to_flat_dict(config)) == config
    assert set(yaml.safe_load(path.read_text())) == set(all_keys())
