"""Configuration files: `base:` takes another file in, and files that cannot be read are refused in one line."""

import re

import pytest
import yaml

from focal.config import ConfigError, config_from_command_line, load_config, save_config
from focal.config.yaml_files import CONFIG_FOLDER

# ---- base: ----


def test_a_file_wins_over_its_base_and_flags_win_over_both(write_yaml):
    write_yaml("epochs: 7\nbatch_size: 10\nseed: 3\n", "recipe.yaml")
    path = write_yaml("base: recipe.yaml\nbatch_size: 12\nseed: 4\n", "mine.yaml")
    config = load_config(path, {"seed": 5})
    assert (config.optim.epochs, config.data.batch_size, config.run.seed) == (7, 12, 5)
    from_flags, _ = config_from_command_line(["--config", path, "--seed", "5", "--device_target", "CPU"], "")
    assert from_flags == load_config(path, {"seed": 5, "device_target": "CPU"})


def test_the_base_wins_over_what_the_arch_implies(write_yaml):
    write_yaml("window_size: 4\narch: focal_tiny_patch4_window7_224\n", "recipe.yaml")
    path = write_yaml("base: recipe.yaml\narch: focal_base_patch4_window7_224\n", "mine.yaml")
    model = load_config(path).model
    assert (model.arch, model.embed_dim, model.window_size) == ("focal_base_patch4_window7_224", 128, 4)


def test_a_base_may_have_a_base(write_yaml):
    write_yaml("epochs: 7\nseed: 1\nlog_steps: 9\n", "shared/first.yaml")
    write_yaml("base: shared/first.yaml\nseed: 2\nbatch_size: 6\n", "second.yaml")
    config = load_config(write_yaml("base: ../second.yaml\nbatch_size: 8\n", "own/third.yaml"))
    assert (config.optim.epochs, config.run.log_steps, config.run.seed, config.data.batch_size) == (7, 9, 2, 8)


@pytest.mark.parametrize(
    "name", ["focal_base_patch4_window7_224", "focal_base_patch4_window7_224.yaml", "base/imagenet_recipe.yaml"]
)
def test_a_base_may_be_the_name_of_a_file_in_configs(name, write_yaml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(write_yaml(f"base: {name}\nseed: 3\n"))
    path = CONFIG_FOLDER / (name if name.endswith(".yaml") else f"{name}.yaml")
    assert config == load_config(path, {"seed": 3})
    assert config.optim.epochs == 320


def test_the_example_in_the_documentation_loads(write_yaml):
    text = (CONFIG_FOLDER.parent / "docs" / "configuration.md").read_text()
    config = load_config(write_yaml(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1)))
    changes = {"batch_size": 32, "accumulation_step": 2, "auto_augment": "rand-m6-mstd0.5-inc1"}
    assert config == load_config(CONFIG_FOLDER / "focalv2_tiny_useconv_patch4_window7_224.yaml", changes)


def test_a_base_beside_the_file_is_preferred_to_one_in_configs(write_yaml):
    write_yaml("epochs: 7\n", "quickstart_digits.yaml")
    assert load_config(write_yaml("base: quickstart_digits.yaml\n")).optim.epochs == 7


def test_base_is_not_a_setting(write_yaml, tmp_path):
    write_yaml("epochs: 7\n", "recipe.yaml")
    config = load_config(write_yaml("base: recipe.yaml\n"))
    save_config(config, tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert "base" not in saved and saved["epochs"] == 7
    (tmp_path / "recipe.yaml").unlink()
    assert load_config(tmp_path / "config.yaml") == config  # complete: it does not need the base
    with pytest.raises(ConfigError, match="unknown key 'base'"):
        load_config({"base": "recipe.yaml"})
    with pytest.raises(ConfigError, match="unknown flag --base"):
        config_from_command_line(["--base", "recipe.yaml"], "")


@pytest.mark.parametrize(
    ("files", "message"),
    [({"a": "base: a.yaml\n"}, "base: {}a.yaml -> {}a.yaml is a cycle; remove one of these base: lines"),
     ({"a": "base: b.yaml\n", "b": "base: ./a.yaml\n"}, "base: {}a.yaml -> {}b.yaml -> {}a.yaml is a cycle; remove"),
     ({"a": "base: b.yaml\n", "b": "base: c.yaml\n"},
      "base: {}a.yaml -> {}b.yaml -> c.yaml does not exist; give a path relative to .*, or the name of a file in "),
     ({"a": "base:\n"}, "base: None in {}a.yaml is not the name of a YAML file"),
     ({"a": "base: [b.yaml, c.yaml]\n"}, r"base: \['b.yaml', 'c.yaml'\] in {}a.yaml is not the name of a YAML file"),
     ({"a": "base: b.yaml\n", "b": "epochs: [3\n"}, "config: {}b.yaml is not valid YAML"),
     ({"a": "base: b.yaml\n", "b": "epoch: 3\n"}, r"unknown key 'epoch' in {}b.yaml; did you mean epochs\?")],
)  # fmt: skip
def test_a_base_that_cannot_be_used_is_refused_with_the_files_on_the_way(files, message, write_yaml, tmp_path):
    for name, text in files.items():
        write_yaml(text, f"{name}.yaml")
    with pytest.raises(ConfigError, match="^" + message.replace("{}", f"{tmp_path}/")) as error:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(error.value)


# ---- files that cannot be read ----


@pytest.mark.parametrize(
    ("text", "message"),
    [("epochs: 3\nbatch_size: 4\nepochs: 5\n", r"not valid YAML: key 'epochs' is given twice \(line 3\)"),
     ("epochs: [3\n", "not valid YAML"),
     ("{{ epochs }}: 3\n", "not valid YAML"),
     ("? [a, b]\n: 3\n", "not valid YAML"),
     ("- epochs\n- 3\n", "must consist of `key: value` lines, but is a list"),
     ("just words", "must consist of `key: value` lines, but is a str"),
     ("epochs: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
     ("1: 2\n", "unknown key 1"),
     # PyYAML lets exceptions of int(), datetime and the stack through.
     ("seed: 2020-13-45\n", "seed: '2020-13-45' is not an integer"),
     ("seed: 0x_\n", "seed: '0x_' is not an integer"),
     ("seed: !!int abc\n", "not valid YAML"),
     ("seed: !!timestamp x\n", "not valid YAML"),
     ("seed: !!timestamp 2020-01-02\n", "seed: datetime.date.2020, 1, 2. is not an integer"),
     ("train_url: a\0b\n", "not valid YAML: unacceptable character #x0000"),
     ('train_url: "a\\0b"\n', "train_url: 'a.x00b' is empty or holds a NUL character"),
     ("train_url: ''\n", "train_url: '' is empty"),
     ("<<: {epochs: 3}\n", "unknown key '<<'"),
     pytest.param("seed: 0x" + "f" * 80_000 + "\n", "seed: '0xf+\\.\\.\\.f+' is not an integer", id="hexadecimal"),
     pytest.param("seed: " + "9" * 80_000 + "\n", "seed: '9+\\.\\.\\.9+' is not an integer", id="80,000 digits"),
     pytest.param("seed: !!int " + "9" * 80_000 + "\n", "not valid YAML|seed", id="80,000 digits with a tag"),
     pytest.param("depths: [" + "1," * 4_000 + "]\n", "depths: 4000 stages are more than 10", id="4000 stages"),
     pytest.param("k" * 1_000 + ": 1\n", "unknown key 'k+\\.\\.\\.k+'", id="a long key"),
     pytest.param("seed: !" + "t" * 80_000 + " 1\n", "not valid YAML", id="a long tag"),
     pytest.param("base: " + "b" * 80_000 + "\n", "base: .* does not exist", id="a long base"),
     pytest.param("# " + "x" * 200_000, "has more than 100000 bytes; is it a file of settings", id="a huge file"),
     pytest.param("seed: " + "[" * 500 + "\n", "not valid YAML", id="500 brackets")],
)  # fmt: skip
def test_a_file_that_is_not_a_mapping_of_keys_is_refused(text, message, write_yaml):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(write_yaml(text))
    assert "\n" not in str(error.value) and len(str(error.value)) <= 2000


@pytest.mark.parametrize("name", ["depths", "use_ema", "qk_scale", "image_size", "arch", "epochs", "base", "beta"])
def test_aliases_that_double_again_and_again_are_one_short_error(name, write_yaml):
    """Thirty levels: a billion words if they are written out."""
    lines = ["- &a0 [lol, lol]", *(f"- &a{level} [*a{level - 1}, *a{level - 1}]" for level in range(1, 30))]
    text = f"{name}:\n" + "".join(f"  {line}\n" for line in lines)
    with pytest.raises(ConfigError, match=f"^{name}: .* is not") as error:
        load_config(write_yaml(text))
    assert len(str(error.value)) < 600


def test_numbers_are_decimal_as_in_flags(write_yaml):
    """YAML 1.1 reads 010 as 8, 1:30 as 90 and 0x10 as 16."""
    text = "epochs: 010\nwarmup_length: !!int 010\nbase_lr: 00.5\nlog_steps: 1_000\nmin_lr: +1.e-3\n"
    config = load_config(write_yaml(text))
    assert (config.optim.epochs, config.optim.warmup_length, config.optim.base_lr) == (10, 10, 0.5)
    assert (config.run.log_steps, config.optim.min_lr) == (1000, 1e-3)
    for word in ("1:30", "0x10", "0b11", "0o17", "1:30.5"):
        for name in ("epochs", "base_lr"):
            with pytest.raises(ConfigError, match=f"^{name}: '{word}' is not an? "):
                load_config(write_yaml(f"{name}: {word}\n"))
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(write_yaml("base_lr: !!float 1:30\n"))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*nothing.yaml \(No such file"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="did you mean configs/focal_base_patch4_window7_224.yaml"):
        load_config("configs/focal_base_patch4_window_224.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x93NUMPY")
    with pytest.raises(ConfigError, match="is not a text file"):
        load_config(binary)


def test_an_empty_file_means_all_defaults(write_yaml):
    config = load_config(write_yaml("# nothing\n"))
    assert config == load_config({})
    assert config.model.arch == "focalv2_small_useconv_patch4_window7_224"
