"""Types and limits of single settings, as YAML values and as the text of flags."""

import pytest
import yaml

from focal.config import ConfigError, config_from_command_line, load_config


def loaded(name, raw):
    config = load_config({name: raw})
    return next(getattr(section, name) for section in vars(config).values() if hasattr(section, name))


@pytest.mark.parametrize("raw", ["true", "True", "TRUE", True])
def test_true_in_any_usual_spelling_means_true(raw):
    assert loaded("qkv_bias", raw) is True


@pytest.mark.parametrize("raw", ["false", "False", "FALSE", False])
def test_false_in_any_usual_spelling_means_false(raw):
    assert loaded("qkv_bias", raw) is False


@pytest.mark.parametrize("raw", [1, 0, "yes", "1", "", None, 0.0, "off", [True]])
def test_anything_else_is_not_a_boolean(raw):
    with pytest.raises(ConfigError, match="^qkv_bias: .* is not True or False$"):
        load_config({"qkv_bias": raw})


def test_text_that_yaml_does_not_read_as_a_number_may_be_one(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("base_lr: 5e-4\nmin_lr: 1E-6\nlr_power: .5\nloss_scale: 1e3\nepochs: 3e2\n")
    assert isinstance(yaml.safe_load(path.read_text())["base_lr"], str)  # YAML 1.1 wants a dot
    config = load_config(path)
    assert (config.optim.base_lr, config.optim.min_lr, config.optim.lr_power) == (5e-4, 1e-6, 0.5)
    assert config.step.loss_scale == 1000.0
    assert config.optim.epochs == 300 and isinstance(config.optim.epochs, int)


@pytest.mark.parametrize("raw", [[2, 2], (2, 2), "2,2", "[2, 2]", "(2,2)", " 2 , 2 ", ["2", 2.0]])
def test_a_list_may_be_given_as_text(raw):
    keys = {"arch": "focal_own", "embed_dim": 8, "num_heads": raw, "focal_levels": raw, "focal_windows": raw}
    model = load_config({**keys, "expand_sizes": raw, "depths": raw, "focal_stages": []}).model
    assert model.depths == (2, 2) and all(type(entry) is int for entry in model.depths)
    assert model.focal_stages == ()


def test_a_list_may_be_a_flag(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("")
    for text in ("0.7,0.8", "[0.7, 0.8]"):
        config, _ = config_from_command_line(["--config", str(path), f"--beta={text}"], "")
        assert config.optim.beta == (0.7, 0.8)


@pytest.mark.parametrize("raw", [None, "none", "None", "null", ""])
def test_none_null_and_the_empty_text_mean_none(raw):
    assert loaded("qk_scale", raw) is None and loaded("eval_batch_size", raw) is None and loaded("resume", raw) is None


def test_the_image_size_is_a_number_or_a_pair():
    assert loaded("image_size", 96) == 96
    assert load_config({"image_size": 96}).model.image_hw == (96, 96)
    assert loaded("image_size", [96, 128]) == (96, 128)
    assert load_config({"image_size": "96,128"}).model.image_hw == (96, 128)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("epochs", "many", "epochs: 'many' is not an integer"),
        ("epochs", 2.5, "epochs: 2.5 is not an integer"),
        ("epochs", True, "epochs: True is not an integer"),
        ("epochs", [3], r"epochs: \[3\] is not an integer"),
        ("epochs", None, "epochs: None is not an integer"),
        ("epochs", float("inf"), "epochs: inf is not an integer"),
        ("base_lr", "0,1", "base_lr: '0,1' is not a number"),
        ("base_lr", float("nan"), "base_lr: nan is not a number"),
        ("base_lr", "nan", "base_lr: 'nan' is not a number"),
        ("base_lr", float("inf"), "base_lr: inf is not a number"),
        ("clip_global_norm_value", "inf", "clip_global_norm_value: 'inf' is not a number"),
        ("base_lr", 10**400, "base_lr: an integer of 1329 bits is not a number"),
        ("base_lr", False, "base_lr: False is not a number"),
        ("base_lr", {"a": 1}, "base_lr: .* is not a number"),
        ("depths", 2, "depths: 2 is not a list of integers"),
        ("depths", "2,,2", "depths: '2,,2' is not a list of integers"),
        ("depths", [2, "x"], r"depths: \[2, 'x'\] is not a list of integers"),
        ("depths", [[2, 2]], "depths: .* is not a list of integers"),
        ("beta", [0.9, None], "beta: .* is not a list of numbers"),
        ("data_url", 3, "data_url: 3 is not a string"),
        ("arch", None, "arch: None is not a string"),
        ("arch", ["focal"], "arch: .* is not a string"),
        ("data_url", " ", "data_url: ' ' is empty or holds a NUL character; give a value, or omit it"),
        ("train_url", "a\0b", r"train_url: 'a\\x00b' is empty or holds a NUL character; give a value, or omit it"),
        ("pretrained", 3, "pretrained: 3 is not a string or none"),
        ("qk_scale", "big", "qk_scale: 'big' is not a number or none"),
        ("image_size", "wide", "image_size: 'wide' is not an integer or a list of integers"),
        ("image_size", 224.5, "image_size: 224.5 is not an integer or a list of integers"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(name, raw, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        load_config({name: raw})


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("batch_size", 0, "batch_size: 0 must be at least 1"),
        ("batch_size", -64, "batch_size: -64 must be at least 1"),
        ("crop_ratio", 0, "crop_ratio: 0.0 must be greater than 0.0"),
        ("crop_ratio", 1.01, "crop_ratio: 1.01 must be at most 1.0"),
        ("drop_path_rate", 1, "drop_path_rate: 1.0 must be less than 1.0"),
        ("drop_path_rate", -0.1, "drop_path_rate: -0.1 must be at least 0.0"),
        ("label_smoothing", 1.0, "label_smoothing: 1.0 must be less than 1.0"),
        ("ema_decay", 1.0, "ema_decay: 1.0 must be less than 1.0"),
        ("beta", [0.9, 1.0], "beta: 1.0 must be less than 1.0"),
        ("beta", [0.9], r"beta: \[0.9\] must have 2 entries"),
        ("image_std", [0.2, 0.0, 0.2], "image_std: 0.0 must be greater than 0.0"),
        ("image_mean", [0.2, 0.3], r"image_mean: \[0.2, 0.3\] must have 3 entries"),
        ("depths", [2, 0, 2, 2], "depths: 0 must be at least 1"),
        ("image_size", [0, 224], "image_size: 0 must be at least 1"),
        ("seed", 2**31, f"seed: {2**31} must be at most {2**31 - 1}"),
        ("seed", -1, "seed: -1 must be at least 0"),
        ("master_port", 65536, "master_port: 65536 must be at most 65535"),
        ("loss_scale", 1e39, "loss_scale: 1e\\+39 must be at most 4294967296.0"),
        ("epochs", 1e18, "epochs: 1000000000000000000 must be at most 1000000"),
        ("loss_scale", 0.5, "loss_scale: 0.5 must be at least 1.0"),
        ("eval_batch_size", 0, "eval_batch_size: 0 must be at least 1"),
        ("focal_version", 3, "focal_version: 3 is not one of 1, 2"),
        ("focal_pool", "avg", "focal_pool: 'avg' is not one of fc, conv, mean, max, none"),
        ("optimizer", "AdamW", "optimizer: 'AdamW' is not one of adamw, adam_weight_decay, momentum, lamb"),
        ("amp_level", "O4", "amp_level: 'O4' is not one of O0, O1, O2, O3, bf16"),
        ("set", "cifar", "set: 'cifar' is not one of ImageNet"),
        ("device_target", "NPU", "device_target: 'NPU' is not one of auto, Ascend, CPU, GPU"),
    ],
)
def test_a_value_beyond_its_limits_is_refused(name, raw, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        load_config({name: raw})


@pytest.mark.parametrize(
    ("name", "raw"),
    [("drop_path_rate", 0), ("re_prob", 1), ("crop_ratio", 1), ("seed", 2**31 - 1), ("min_lr", 0), ("layer_decay", 1)],
)
def test_inclusive_limits_are_legal(name, raw):
    assert loaded(name, raw) == raw
