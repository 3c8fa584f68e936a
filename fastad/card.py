"""The dataset card that stands in every set: README.md with YAML front matter, as dataset hubs read it.

Owns its words and layout; the facts are the manifest's.
Use: `write_text(folder / "README.md", card(facts))`.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")


def card(facts: Mapping[str, Any]) -> str:
    """The card of a set, from the facts of its manifest."""
    total = sum(facts["splits"].values())
    size = SIZES[max(0, len(str(total)) - 3)]
    front = {
        "pretty_name": facts["name"],
        "license": "other",
        "license_name": facts["licence"],
        "size_categories": [size],
    }
    shape = facts["shape_hwc"]
    lines = [
        "---",
        # JSON is YAML.
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()),
        "---",
        "",
        f"# {facts['name']}",
        "",
        facts["about"],
        "",
        *(f"**Note:** {notice}\n" for notice in facts["notices"]),
        f"- Source: {facts['source']}",
        f"- Licence: {facts['licence']}",
        f"- Images: {', '.join(f'{count:,} {split}' for split, count in facts['splits'].items())}",
        f"- Size: {'×'.join(map(str, shape)) if shape else 'various'}; {len(facts['shards'])} shards, "
        f"{shard_bytes(facts['shards']):,} bytes",
        f"- Classes: {len(facts['classes'])}",
        f"- Arguments: {json.dumps(facts['arguments'])}",
        f"- Converted: {', '.join(f'{count:,} {what}' for what, count in sorted(facts['changes'].items())) or 'none'}",
        f"- Left out as unusable: {len(facts['rejects']):,} (named in manifest.json)",
        "",
        _form(facts),
    ]
    return "\n".join(lines) + "\n"


def _form(facts: Mapping[str, Any]) -> str:
    if facts["arguments"].get("in_place"):
        form = "Links to the source's own file, in which DALI's webdataset reader finds the images by the indices"
    else:
        form = "WebDataset shards written by fastad"
    return f"{form}; `manifest.json` holds every fact, `fastad verify` checks them."


def shard_bytes(shards: Iterable[Mapping[str, Any]]) -> int:
    """The bytes of all shards; a file to which several are links counts once."""
    return sum({shard["sha256"]: shard["bytes"] for shard in shards}.values())
