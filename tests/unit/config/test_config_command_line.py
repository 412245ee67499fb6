"""Flags: every key is one, they take precedence over YAML, and mistakes are refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from focal.config import (
    ConfigError,
    command_line,
    config_and_arguments,
    config_from_command_line,
    load_config,
    to_flat_dict,
)
from focal.config.loading import all_keys
from focal.config.yaml_files import CONFIG_FOLDER


@pytest.fixture(autouse=True)
def any_machine(monkeypatch):
    """`device_target: auto` stays as it is; test_device_target.py tests what it becomes."""
    monkeypatch.setattr(command_line, "fit_to_machine", lambda config: config)


def from_flags(*argv, **options):
    return config_from_command_line(list(argv), "a test", **options)


def test_flags_win_over_yaml_and_yaml_over_the_scripts_defaults(write_yaml):
    path = write_yaml("epochs: 77\nbatch_size: 10\n")
    config, _ = from_flags("--config", path, "--batch_size", "12", defaults={"batch_size": 2, "log_steps": 3})
    assert (config.optim.epochs, config.data.batch_size, config.run.log_steps) == (77, 12, 3)
    assert config.optim.warmup_length == all_keys()["warmup_length"].field.default


def other_value(name: str) -> str:
    """A flag's text for a legal value that is not the default."""
    special = {
        "arch": "focal_small_patch4_window7_224", "depths": "1,1,3,1", "num_heads": "1,1,1,1",
        "focal_levels": "1,2,1,1", "focal_windows": "5,5,3,1", "expand_sizes": "1,2,2,1", "focal_stages": "0,2",
        "image_size": "[192, 256]", "beta": "0.8,0.99", "image_mean": "0.1,0.2,0.3", "image_std": "0.1,0.2,0.3",
        "crop_scale": "0.2,0.9", "crop_aspect": "0.5,1.5", "auto_augment": "rand-m5-n3", "qk_scale": "-0.5",
        "crop_ratio": "0.9", "set": "ImageNet", "node_rank": "1", "node_num": "2", "master_addr": "10.0.0.7",
        "base_lr": "1e-3", "min_lr": "1e-7", "eval_batch_size": "7", "device_num": "6", "freeze_stages": "2",
        "dataset_sink_mode": "True", "lr_gamma": "0.5", "layer_decay": "0.5", "embed_dim": "192",
        "use_conv_embed": "False", "bce_target_thresh": "0.2",
    }  # fmt: skip
    if name in special:
        return special[name]
    default, limits = all_keys()[name].field.default, all_keys()[name].field.metadata
    if "choices" in limits:
        return str(next(choice for choice in limits["choices"] if choice != default))
    if isinstance(default, bool):
        return str(not default)
    if isinstance(default, int):
        return str(default + 2)
    if isinstance(default, float):
        return repr(default / 2 + 0.001)
    return f"some {name}"


COMPANIONS = {"node_rank": ["--node_num=2", "--device_num=2", "--master_port=8118"],
              "kernel_launch_group": ["--jit_level=O0"], "bce_target_thresh": ["--loss=bce"], "bce_sum": ["--loss=bce"],
              "distillation": ["--teacher=t.ckpt"], "teacher": ["--distillation=hard"],
              "teacher_arch": ["--distillation=hard", "--teacher=t.ckpt"],
              "node_num": ["--device_num=2", "--master_port=8118"]}  # fmt: skip


@pytest.mark.parametrize("name", all_keys())
def test_every_key_is_a_flag_in_both_forms(name, write_yaml):
    path = write_yaml("batch_size: 64\n")
    text, companions = other_value(name), COMPANIONS.get(name, [])
    spaced, _ = from_flags("--config", path, *companions, f"--{name}", text)
    joined, _ = from_flags("--config", path, *companions, f"--{name}={text}")
    hyphened, _ = from_flags("--config", path, *companions, f"--{name.replace('_', '-')}={text}")
    assert spaced == joined == hyphened
    needed = [] if name in ("distillation", "teacher") else companions  # neither is legal without the other
    without, _ = from_flags("--config", path, *needed)
    if name != "set":  # has one legal value
        assert to_flat_dict(spaced)[name] != to_flat_dict(without)[name]
    assert spaced == load_config(path, {**{c[2:].split("=")[0]: c.split("=")[1] for c in companions}, name: text})


# ---- --arch ----


def test_the_arch_flag_implies_its_network_for_a_file_that_has_none(write_yaml):
    config, _ = from_flags("--config", write_yaml("batch_size: 8\n"), "--arch", "focal_base_patch4_window7_224")
    assert (config.model.embed_dim, config.model.focal_version) == (128, 1)


def test_the_arch_flag_with_the_file_of_another_network_is_refused():
    """The file's keys would win over what the name implies: a network that nobody published under that name."""
    small = str(CONFIG_FOLDER / "focalv2_small_useconv_patch4_window7_224.yaml")
    with pytest.raises(ConfigError, match=r"arch: focal_tiny_patch4_window7_224 has .*; omit --config or --arch"):
        from_flags("--config", small, "--arch", "focal_tiny_patch4_window7_224")
    from_flags("--config", small, "--arch", "focalv2_small_useconv_patch4_window7_224")
    from_flags("--config", small, "--arch", "focalv2_own")


def test_the_arch_flag_changes_the_network_of_a_recipe():
    recipe = str(CONFIG_FOLDER / "finetune_folder.yaml")  # suits any of the networks
    config, _ = from_flags("--config", recipe, "--arch", "focal_base_patch4_window7_224")
    assert config.model.embed_dim == 128


def test_the_arch_flag_alone_selects_its_file():
    config, _ = from_flags("--arch=focal_tiny_patch4_window7_224", "--device_num=8")
    expected = load_config(CONFIG_FOLDER / "focal_tiny_patch4_window7_224.yaml", {"device_num": 8})
    assert config == expected and config.optim.warmup_length == 20


def test_an_installed_package_knows_the_networks_but_not_the_files(tmp_path):
    """`pip install .` copies src/focal alone: names work without a file, and the flag alone says what is missing."""
    source = CONFIG_FOLDER.parent / "src" / "focal"
    (tmp_path / "lib" / "python3" / "site-packages" / "focal").mkdir(parents=True)
    site = tmp_path / "lib" / "python3" / "site-packages"
    shutil.copytree(source / "config", site / "focal" / "config")
    for name in ("__init__.py", "errors.py", "files.py"):
        shutil.copy(source / name, site / "focal" / name)
    code = """
import focal, sys
from focal.config import config_from_command_line
assert focal.__file__.startswith(sys.argv[1]), focal.__file__
assert focal.load_config({"arch": "focal_base_patch4_window7_224"}).model.embed_dim == 128
try:
    config_from_command_line(["--arch", "focal_base_patch4_window7_224"], "")
except focal.ConfigError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(site)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env={"PYTHONPATH": str(site)}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        "config: the file configs/focal_base_patch4_window7_224.yaml is part of the repository, not of the installed "
        "package; give --config FILE\n"
    )


def add_arguments(parser):
    parser.add_argument("images", nargs="*")
    parser.add_argument("--from", dest="source")
    parser.add_argument("--stage_images", type=int, default=512)


def test_a_script_may_have_arguments_of_its_own_anywhere_between_the_flags(write_yaml):
    path = str(write_yaml("epochs: 7\n"))
    line = ["a.png", "--config", path, "--from=x.pth", "b.png", "--batch-size", "6", "--stage-images", "9", "c.png"]
    config, own = config_and_arguments(line, "", add_arguments)
    assert (config.optim.epochs, config.data.batch_size) == (7, 6)
    assert vars(own) == {"images": ["a.png", "b.png", "c.png"], "source": "x.pth", "stage_images": 9}
    config, own = config_and_arguments(["--config", path], "", add_arguments, {"batch_size": 10})
    assert vars(own) == {"images": [], "source": None, "stage_images": 512} and config.data.batch_size == 10


def test_a_script_with_arguments_of_its_own_refuses_unknown_flags(write_yaml):
    with pytest.raises(ConfigError, match="unknown flag --epoch; did you mean epochs"):
        config_and_arguments(["--config", str(write_yaml("")), "a.png", "--epoch", "3"], "", add_arguments)
    with pytest.raises(ConfigError, match="argument --from: expected one argument"):
        config_and_arguments(["--from"], "", add_arguments)


# ---- mistakes ----


def test_flags_cannot_be_abbreviated(write_yaml):
    with pytest.raises(ConfigError, match="unknown flag --epoch; did you mean epochs"):
        from_flags("--config", write_yaml(""), "--epoch=3")


def test_a_flag_that_is_given_twice_is_refused_with_both_values(write_yaml):
    line = ["--config", write_yaml(""), "--epochs", "5", "--epochs=9"]
    message = "^epochs: given 2 times, as '5' and '9'; omit all but one of these flags$"
    with pytest.raises(ConfigError, match=message):
        from_flags(*line)
    with pytest.raises(ConfigError, match=message):
        config_and_arguments([*line, "a.png"], "", add_arguments)
    with pytest.raises(ConfigError, match="^config: given 2 times"):
        from_flags(*line[:4], "--config", "other.yaml")
    assert from_flags(*line[:4], "--epochs=5")[0].optim.epochs == 5  # both say the same


def test_on_a_cloud_platform_the_last_of_two_flags_counts_with_a_warning(write_yaml, caplog):
    line = ["--config", write_yaml(""), "--data_url=obs://from/platform", "--data_url=digits"]
    for options in ({"tolerate_unknown": True}, {}):
        flags = line if options else [*line, "--run_openi=True"]
        assert from_flags(*flags, **options)[0].data.data_url == "digits"
        assert "data_url: given 2 times, as 'obs://from/platform' and 'digits'; the last one counts" in caplog.text
        caplog.clear()


def test_on_a_cloud_platform_an_empty_flag_counts_as_omitted_with_a_warning(write_yaml, caplog):
    """Platforms pass their parameters on whether they are filled in or not."""
    line = [
        "--config",
        write_yaml("epochs: 7\n"),
        "--data_url=",
        "--pretrained",
        " ",
        "--epochs=",
        "--seed=",
        "--seed=5",
    ]
    for options in ({"tolerate_unknown": True}, {}):
        flags = line if options else [*line, "--run_openi=True"]
        config, _ = from_flags(*flags, **options)
        assert (config.data.data_url, config.run.pretrained) == (load_config({}).data.data_url, None)
        assert (config.optim.epochs, config.run.seed) == (7, 5)
        assert "pretrained: the flag --pretrained has no value; it counts as omitted" in caplog.text
        assert "seed: given" not in caplog.text
        caplog.clear()


def test_a_yaml_file_for_a_cloud_platform_makes_flags_tolerant_too(write_yaml):
    path = write_yaml("run_openi: True\n")
    config, unknown = from_flags("--config", path, "--epochs=5", "--epochs=9", "--resume=", "--multi_data_url=[]")
    assert config.run.run_openi and config.optim.epochs == 9 and unknown == ["--multi_data_url=[]"]
    for flags in (["--run_openi=False"], []):
        path = write_yaml("run_openi: True\n" if flags else "run_openi: False\n")
        with pytest.raises(ConfigError, match="epochs: given 2 times"):
            from_flags("--config", path, *flags, "--epochs=5", "--epochs=9")


@pytest.mark.parametrize("name", ["resume", "train_url", "epochs", "focal_stages", "config"])
def test_an_empty_flag_is_refused(name, write_yaml):
    for flag in ([f"--{name}="], [f"--{name}", " "]):
        with pytest.raises(ConfigError, match=f"^{name}: the flag --{name} has no value; give one, or omit the flag$"):
            from_flags(*([] if name == "config" else ["--config", write_yaml("")]), *flag)


def test_a_stray_argument_is_refused(write_yaml):
    with pytest.raises(ConfigError, match="unexpected argument '2'; settings are given as --key value"):
        from_flags("--config", write_yaml(""), "--epochs", "3", "2")
    with pytest.raises(ConfigError, match="--epochs.*expected one argument"):
        from_flags("--config", write_yaml(""), "--epochs")


def test_cloud_platforms_may_add_flags_of_their_own(write_yaml):
    path = write_yaml("")
    for options in (["--run_openi=True"], ["--run-openi", "true"]):
        config, unknown = from_flags("--config", path, *options, "--multi_data_url=[]", "--ckpt_url", "x")
        assert config.run.run_openi and unknown == ["--multi_data_url=[]", "--ckpt_url", "x"]
    with pytest.raises(ConfigError, match="multi_data_url"):
        from_flags("--config", path, "--run_openi=False", "--multi_data_url=[]")
    assert from_flags("--config", path, "--ckpt_url=x", tolerate_unknown=True)[1] == ["--ckpt_url=x"]


def test_help_lists_every_key():
    command = [sys.executable, str(CONFIG_FOLDER.parent / "train.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and result.stderr == ""
    assert "--config FILE" in result.stdout and "configs/<arch>.yaml" in result.stdout
    listed = {line.split()[0] for line in result.stdout.splitlines() if line.startswith("  --")}
    assert listed >= {f"--{name}" for name in all_keys()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--config", "configs/focal_tinny_patch4_window7_224.yaml"], "did you mean configs/focal_tiny_patch4"),
     (["--epoch", "3"], "error: unknown flag --epoch; did you mean epochs?"),
     (["--batch_size", "some"], "error: batch_size: 'some' is not an integer")],
)  # fmt: skip
def test_a_mistake_ends_the_script_with_one_line(arguments, message):
    command = [sys.executable, "train.py", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=Path(CONFIG_FOLDER).parent)
    assert result.returncode == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1
