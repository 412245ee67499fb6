"""YAML and flags to a Config: precedence, names, refusals, and back to YAML."""

import dataclasses
import random

import pytest
import yaml

from focal.config import Config, ConfigError, config_from_command_line, load_config, save_config, to_flat_dict
from focal.config.loading import CONFIG_FOLDER
from focal.config.schema import SECTIONS

KEYS = {field.name: (section, field) for section, kind in SECTIONS.items() for field in dataclasses.fields(kind)}

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


def value(config: Config, name: str) -> object:
    return getattr(getattr(config, KEYS[name][0]), name)


def write(tmp_path, text: str) -> str:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return str(path)


def from_flags(*argv, **options):
    return config_from_command_line(list(argv), "a test", **options)


# ---- what loads ----


def test_report_yaml_loads_verbatim(tmp_path):
    config = load_config(write(tmp_path, REPORT))
    expected = yaml.safe_load(REPORT)
    assert len(expected) == 53
    for name, raw in expected.items():
        loaded = value(config, name)
        assert loaded == (tuple(raw) if isinstance(raw, list) else raw), name
        assert type(loaded) is type(tuple(raw) if isinstance(raw, list) else KEYS[name][1].default), name
    assert config.model.focal_version == 2  # from the arch: the report has no such key


def test_shipped_config_of_the_report_is_the_reports(tmp_path):
    shipped = CONFIG_FOLDER / "focalv2_small_useconv_patch4_window7_224.yaml"
    assert load_config(shipped) == load_config(write(tmp_path, REPORT))


def test_report_listing_without_use_conv_embed(tmp_path):
    """The report's document leaves the key out; the arch name says it."""
    text = REPORT.replace("use_conv_embed: True\n", "")
    assert load_config(write(tmp_path, text)) == load_config(write(tmp_path, REPORT))


def test_precedence(tmp_path):
    path = write(tmp_path, "epochs: 77\nbatch_size: 10\n")
    config, _ = from_flags("--config", path, "--batch_size", "12", defaults={"batch_size": 2, "log_steps": 3})
    assert (config.optim.epochs, config.data.batch_size, config.run.log_steps) == (77, 12, 3)
    assert config.optim.warmup_length == KEYS["warmup_length"][1].default
    assert load_config({"epochs": 5, "seed": 1}, {"epochs": 6}).optim.epochs == 6
    assert from_flags("--config", path, "--epochs", "5", "--epochs", "9")[0].optim.epochs == 9  # the last flag


def test_flags_choose_the_arch_before_its_defaults_apply(tmp_path):
    path = write(tmp_path, "batch_size: 8\n")
    config, _ = from_flags("--config", path, "--arch", "focal_base_patch4_window7_224")
    assert (config.model.embed_dim, config.model.focal_version) == (128, 1)


def test_arch_flag_beside_the_config_of_another_network_is_refused():
    """The file's keys would win over what the name implies: a network that nobody published under that name."""
    small = str(CONFIG_FOLDER / "focalv2_small_useconv_patch4_window7_224.yaml")
    with pytest.raises(ConfigError, match=r"arch: focal_tiny_patch4_window7_224 has .*leave out --config, or --arch"):
        from_flags("--config", small, "--arch", "focal_tiny_patch4_window7_224")
    from_flags("--config", small, "--arch", "focalv2_small_useconv_patch4_window7_224")
    from_flags("--config", small, "--arch", "focalv2_own")
    recipe = str(CONFIG_FOLDER / "finetune_folder.yaml")  # a recipe for any of the networks
    config, _ = from_flags("--config", recipe, "--arch", "focal_base_patch4_window7_224")
    assert config.model.embed_dim == 128


def test_arch_alone_names_its_config():
    config, _ = from_flags("--arch=focal_tiny_patch4_window7_224", "--device_num=8")
    expected = load_config(CONFIG_FOLDER / "focal_tiny_patch4_window7_224.yaml", {"device_num": 8})
    assert config == expected and config.optim.warmup_length == 20


def other_value(name: str) -> str:
    """A flag's text for a legal value that is not the default."""
    special = {
        "arch": "focal_small_patch4_window7_224", "depths": "1,1,3,1", "num_heads": "1,1,1,1", "focal_levels":
        "1,2,1,1",
        "focal_windows": "5,5,3,1", "expand_sizes": "1,2,2,1", "focal_stages": "0,2", "image_size": "[192, 256]",
        "beta": "0.8,0.99", "image_mean": "0.1,0.2,0.3", "image_std": "0.1,0.2,0.3", "crop_scale": "0.2,0.9",
        "crop_aspect": "0.5,1.5", "auto_augment": "rand-m5-n3", "qk_scale": "-0.5", "crop_ratio": "0.9",
        "set": "ImageNet", "node_rank": "1", "node_num": "2", "master_addr": "10.0.0.7", "base_lr": "1e-3",
        "min_lr": "1e-7", "eval_batch_size": "7", "device_num": "6", "freeze_stages": "2",
        "dataset_sink_mode": "True", "lr_gamma": "0.5", "layer_decay": "0.5", "embed_dim": "192",
        "use_conv_embed": "False",
    }  # fmt: skip
    if name in special:
        return special[name]
    default, limits = KEYS[name][1].default, KEYS[name][1].metadata
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
              "node_num": ["--device_num=2", "--master_port=8118"]}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_every_key_is_a_flag_in_both_forms(name, tmp_path):
    path = write(tmp_path, "batch_size: 64\n")
    text, companions = other_value(name), COMPANIONS.get(name, [])
    spaced, _ = from_flags("--config", path, *companions, f"--{name}", text)
    joined, _ = from_flags("--config", path, *companions, f"--{name}={text}")
    hyphened, _ = from_flags("--config", path, *companions, f"--{name.replace('_', '-')}={text}")
    assert spaced == joined == hyphened
    without, _ = from_flags("--config", path, *companions)
    if name != "set":  # has one legal value
        assert value(spaced, name) != value(without, name)
    assert spaced == load_config(path, {**{c[2:].split("=")[0]: c.split("=")[1] for c in companions}, name: text})


# ---- what is refused: names ----


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("epoch", "epochs"), ("batchsize", "batch_size"), ("focal_topk", "focal_topK"), ("lr", "base_lr"),
     ("drop_path", "drop_path_rate"), ("img_size", "image_size"), ("Depths", "depths"), ("mixup", "mix_up"),
     ("weight-decay", "weight_decay")],
)  # fmt: skip
def test_unknown_name_gets_the_nearest(name, nearest, tmp_path):
    path = write(tmp_path, f"{name}: 1\n")
    with pytest.raises(ConfigError, match=rf"^unknown key '{name}'; did you mean '{nearest}'\?$"):
        load_config(path)
    with pytest.raises(ConfigError, match=rf"unknown key '{name}'"):
        load_config({}, {name: 1})
    if name != "weight-decay":  # as a flag, a hyphen is as good as an underscore
        with pytest.raises(ConfigError, match=rf"^unknown flag --{name}; did you mean {nearest}\?$"):
            from_flags("--config", write(tmp_path, ""), f"--{name}", "1")


def test_unknown_name_like_nothing_points_to_help(tmp_path):
    with pytest.raises(ConfigError, match="unknown key 'zzzzqqqq'; python train.py --help lists the keys"):
        load_config(write(tmp_path, "zzzzqqqq: 1\n"))


def test_no_abbreviations_of_flags(tmp_path):
    with pytest.raises(ConfigError, match="unknown flag --epoch; did you mean epochs"):
        from_flags("--config", write(tmp_path, ""), "--epoch=3")


def test_stray_argument(tmp_path):
    with pytest.raises(ConfigError, match="unexpected argument '2'; settings are given as --key value"):
        from_flags("--config", write(tmp_path, ""), "--epochs", "3", "2")
    with pytest.raises(ConfigError, match="--epochs.*expected one argument"):
        from_flags("--config", write(tmp_path, ""), "--epochs")


def test_cloud_platforms_may_add_flags(tmp_path):
    path = write(tmp_path, "")
    for options in (["--run_openi=True"], ["--run-openi", "true"]):
        config, unknown = from_flags("--config", path, *options, "--multi_data_url=[]", "--ckpt_url", "x")
        assert config.run.run_openi and unknown == ["--multi_data_url=[]", "--ckpt_url", "x"]
    with pytest.raises(ConfigError, match="multi_data_url"):
        from_flags("--config", path, "--run_openi=False", "--multi_data_url=[]")
    assert from_flags("--config", path, "--ckpt_url=x", tolerate_unknown=True)[1] == ["--ckpt_url=x"]


# ---- what is refused: files ----


@pytest.mark.parametrize(
    ("text", "message"),
    [("epochs: 3\nbatch_size: 4\nepochs: 5\n", r"not YAML: key 'epochs' is given twice \(line 3\)"),
     ("epochs: [3\n", "not YAML"),
     ("{{ epochs }}: 3\n", "not YAML"),
     ("? [a, b]\n: 3\n", "not YAML"),
     ("- epochs\n- 3\n", "must hold `key: value` lines, not a list"),
     ("just words", "must hold `key: value` lines, not a str"),
     ("epochs: !!python/object/apply:os.system ['true']\n", "not YAML"),
     ("1: 2\n", "unknown key 1"),
     ("seed: 2020-13-45\n", "not YAML"),  # what follows is read by int(), datetime and the stack
     ("seed: 0x_\n", "not YAML"),
     ("seed: !!int abc\n", "not YAML"),
     ("seed: !!timestamp x\n", "not YAML"),
     pytest.param("seed: " + "9" * 5000 + "\n", "not YAML|seed", id="5000 digits"),
     pytest.param("seed: " + "[" * 2000 + "\n", "not YAML", id="2000 brackets")],
)  # fmt: skip
def test_bad_files(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_unreadable_files(tmp_path):
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


def test_empty_file_is_all_defaults(tmp_path):
    config = load_config(write(tmp_path, "# nothing\n"))
    assert config == load_config({})
    assert config.model.arch == "focalv2_small_useconv_patch4_window7_224"


# ---- and back ----


def test_flat_dict_has_every_key_once():
    assert list(to_flat_dict(load_config({}))) == list(KEYS)


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_saved_config_loads_equal(path, tmp_path):
    config = load_config(path)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def draw(name: str, rng: random.Random) -> object:
    """A value within the limits of `name`, of its declared type; None: leave the key out."""
    default, limits = KEYS[name][1].default, KEYS[name][1].metadata
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
    if name in ("pretrained", "resume", "file_name", "json", "train_url", "data_url", "cache_dir", "master_addr"):
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
            "device_num", "master_port", "freeze_stages"}  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_random_config_survives_saving(seed, tmp_path):
    rng = random.Random(seed)
    given = {name: draw(name, rng) for name in KEYS if name not in TOGETHER and rng.random() < 0.8}
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
        device_num=8 * nodes, master_port=rng.randint(1, 65535),
    )  # fmt: skip
    config = load_config(given)
    path = tmp_path / "saved.yaml"
    save_config(config, path)
    assert load_config(path) == config
    assert load_config(to_flat_dict(config)) == config
    assert set(yaml.safe_load(path.read_text())) == set(KEYS)


def test_config_is_frozen():
    config = load_config({})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.embed_dim = 3
