"""Write docs/keys.md, the reference of all keys, from the schema: python tools/keys_document.py"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from focal.config import load_config, to_flat_dict  # noqa: E402
from focal.config.describe import describe_range, describe_type, describe_value  # noqa: E402
from focal.config.help import script_parser  # noqa: E402
from focal.config.loading import all_keys, read_keys  # noqa: E402
from focal.config.schema import DEFAULT_ARCH, SECTIONS  # noqa: E402
from focal.errors import run_main  # noqa: E402

DOCUMENT = ROOT / "docs" / "keys.md"
RECIPE = ROOT / "configs" / "base" / "imagenet_recipe.yaml"
HEAD = f"""# All keys

This page is made by `python tools/keys_document.py` from
[`src/focal/config/schema.py`](../src/focal/config/schema.py); a test fails if it is out of date.
[configuration.md](configuration.md) explains where a value comes from and how it is written.

Every key is a line of a YAML file (`batch_size: 64`) and a flag (`--batch_size 64`). In the tables:

- **default** is the value of the schema. Where the ImageNet recipe
  ([`configs/base/imagenet_recipe.yaml`](../configs/base/imagenet_recipe.yaml)) or, for the network, the name
  `{DEFAULT_ARCH}` sets another, that follows after an arrow.
- **values** are the legal ones; bounds of a list hold for each entry.
- **resume**: "free" means that a resumed training may use another value; any other key needs
  `--allow_config_change True`.
"""


def main() -> None:
    """Write the document."""
    script_parser(__doc__).parse_args()
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(f"wrote {DOCUMENT}")


def document() -> str:
    """The text of docs/keys.md."""
    published = to_flat_dict(load_config({**read_keys(RECIPE), "arch": DEFAULT_ARCH}))
    parts = [HEAD]
    for name, section in SECTIONS.items():
        assert section.__doc__ is not None
        rows = [_row(field.name, published[field.name]) for field in dataclasses.fields(section)]
        head = "| key | type | default | values | resume | meaning |\n| --- | --- | --- | --- | --- | --- |\n"
        parts.append(f"\n## {name}\n\n{section.__doc__}\n\n{head}" + "".join(rows))
    return "".join(parts)


def _row(name: str, published: object) -> str:
    key = all_keys()[name]
    default, wanted = describe_value(key.field.default), describe_value(published)
    if wanted != default:
        default += f" → {wanted}"
    free = "free" if key.field.metadata["may_change"] else ""
    cells = (f"`{name}`", describe_type(key), default, describe_range(key), free, key.field.metadata["help"])
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "\\<") for cell in cells) + " |\n"


if __name__ == "__main__":
    run_main(main)
