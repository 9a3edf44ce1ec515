"""The YAML at the top of a model card, as model hubs read it (github.com/huggingface/hub-docs, modelcard.md). No torch.

Every text is written in double quotes: plain YAML takes `no` for false and `1e5` for a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from okdc.runs.artefacts import StudentInfo

# What a hub takes as `license` (github.com/huggingface/huggingface_hub/issues/4218); every other name is `other`.
# fmt: off
LICENSES = frozenset({
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
    "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "lppl-1.3c",
    "ms-pl", "mpl-2.0", "odc-by", "odbl", "openmdw-1.0", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa",
    "unlicense", "zlib", "pddl", "lgpl-lr",
})
# fmt: on


def front_matter(
    student: StudentInfo,
    tags: Sequence[str],
    seed: int,
    accuracies: Mapping[str, float],
    images: tuple[int, str],
    licence: str | None,
    hub: str | None,
) -> str:
    """From `---` to `---`. `tags` are the method's, `accuracies` top-1 in % by file, `images` the number and split of
    the images that judged, `hub` the data set's name there; a name that the hub lacks would be a dead link.
    """
    count, split = images
    dataset = student.dataset
    tables = {
        **licence_of(licence),
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "onnx", "onnxruntime", "okdc", *tags],
        **({"datasets": [hub]} if hub else {}),
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": f"{student.architecture} on {dataset} ({student.method})",
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image classification"},
                        "dataset": {"type": hub or _slug(dataset), "name": dataset, "split": split},
                        "metrics": [
                            {
                                "type": "accuracy",
                                "value": round(value / 100, 6),
                                "name": f"top-1 of {name} on {count} {split} images, one run, seed {seed}",
                            }
                            for name, value in accuracies.items()
                        ],
                    }
                ],
            }
        ],
    }
    return "\n".join(["---", *_lines(tables), "---"]) + "\n"


def licence_of(licence: str | None) -> dict[str, str]:
    """`license`, and `license_name` for one that a hub has no word for. None: nobody has stated one."""
    if licence is None:
        return {"license": "unknown"}
    if licence.lower() in LICENSES:
        return {"license": licence.lower()}
    return {"license": "other", "license_name": _slug(licence).lower()}


def _slug(text: str) -> str:
    """What a hub takes as an identifier."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.") or "unnamed"


def _lines(value: Mapping[str, Any] | Sequence[Any]) -> list[str]:
    """Block YAML of nested tables and lists whose keys are plain words."""
    lines = []
    for key, inner in value.items() if isinstance(value, Mapping) else (("-", item) for item in value):
        head = key if key == "-" else f"{key}:"
        if not isinstance(inner, (Mapping, list)):
            lines.append(f"{head} {scalar(inner)}")
        elif head == "-":
            first, *rest = _lines(inner)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
        else:
            lines += [head, *(f"  {line}" for line in _lines(inner))]
    return lines


def scalar(value: str | float) -> str:
    """A text, or a number to six decimals, as YAML on one line: JSON, with what does not print escaped as in YAML."""
    if isinstance(value, float):
        return f"{value:.6f}"  # to YAML 1.1, 1e-06 is a text
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
