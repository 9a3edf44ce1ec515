"""A stranger's model file, before anything runs it. No torch.

ONNX can ask its reader for other files (external data: onnxruntime opens the path that a tensor names, relative to the
working directory, also for a model that it gets as bytes), for other people's code (custom operators) and for whole
graphs behind a name (functions). A bundle's model is one file of standard operators: everything else is refused here,
from the bytes alone. Nothing is opened, not even the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from okdc.errors import CheckFailed, quoted

LARGEST = 2**31 - 1  # bytes: no protobuf message is larger
STANDARD = frozenset({"", "ai.onnx"})  # one domain, two spellings

# Files that are taken for a model: their first bytes, their kind, the way to a model.
EXPORT = "export the run again, or copy the bundle again"
BEGINNINGS = (
    (b"PK", "a zip archive (a PyTorch checkpoint is one)", "okdc export --onnx makes an ONNX file of a run"),
    (b"\x80", "a pickle, which okdc never opens", "okdc export --onnx makes an ONNX file of a run"),
    (b"\x1f\x8b", "gzip", "unpack it with gunzip first"),
    (b"\x89HDF", "HDF5", "it is another tool's model"),
    (b"version https://git-lfs", "a pointer of git LFS, not the file itself", "git lfs pull fetches the file"),
)
INSIDE = ((b"ORTM", "onnxruntime's own format"), (b"TFL3", "TensorFlow Lite"))  # after four bytes


def model(blob: bytes, where: Path) -> onnx.ModelProto:
    """The parsed model, one self-contained file of standard operators that this version of onnx knows.

    `where` is only named. Raises CheckFailed ("structure"), or ("opset") for a file newer than the packages here.
    """
    if len(blob) > LARGEST:
        raise _refused(where, f"{len(blob):,} bytes, and no ONNX file has more than {LARGEST:,}")
    _check_beginning(blob, where)
    try:
        parsed = onnx.load_model_from_string(blob)
    except Exception:  # protobuf raises kinds of its own
        raise _refused(where, _described(blob)) from None
    if not parsed.HasField("graph") or not parsed.ir_version:
        reason = "protobuf can read it, but there is no graph in it"
        raise _refused(where, reason if blob[:1] == b"\x08" else _described(blob))
    _check_age(parsed, where)
    _check_alone(parsed, where)
    return parsed


def _refused(where: Path, reason: str, hint: str = EXPORT) -> CheckFailed:
    return CheckFailed("structure", f"{where} is no model for a bundle: {reason}", hint=hint)


def _check_beginning(blob: bytes, where: Path) -> None:
    """Refuses files of other kinds by their first bytes, also those that pass for ONNX at the same time."""
    if not blob:
        raise _refused(where, "it is empty")
    for beginning, kind, hint in BEGINNINGS:
        if blob.startswith(beginning):
            raise _refused(where, f"it is {kind}", hint)
    for beginning, kind in INSIDE:
        if blob[4:8] == beginning:
            raise _refused(where, f"it is a file of {kind}", "it is another tool's model")


def _described(blob: bytes) -> str:
    """The likely kind of a file that cannot be read as ONNX."""
    start = blob[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] == b"<":
        return "it is a web page or XML, perhaps of a download that failed"
    if start[:1] in (b"{", b"["):
        return "it is JSON"
    if blob[8:9] == b"{" and int.from_bytes(blob[:8], "little") <= len(blob):
        return "it is a safetensors file: weights without a network"
    if all(byte >= 0x20 or byte in b"\t\r\n\f" for byte in blob[:512]):
        return "it is text"
    return "it is cut short or damaged: it cannot be read as ONNX"


def _check_age(parsed: onnx.ModelProto, where: Path) -> None:
    """Neither the format nor the operators are newer than the installed packages."""
    upgrade = "a newer version of onnx and onnxruntime reads it: pip install --upgrade onnx onnxruntime"
    if parsed.ir_version > onnx.IR_VERSION:
        raise CheckFailed(
            "opset",
            f"{where}: ONNX's IR version {parsed.ir_version}, newer than {onnx.IR_VERSION}, the last known here",
            hint=upgrade,
        )
    newest = onnx.defs.onnx_opset_version()
    versions = [entry.version for entry in parsed.opset_import if entry.domain in STANDARD]
    if not versions:
        raise _refused(where, "it does not say of which version its operators are (opset_import)")
    if max(versions) > newest:
        raise CheckFailed(
            "opset", f"{where}: opset {max(versions)}, newer than {newest}, the last known here", hint=upgrade
        )


def _check_alone(parsed: onnx.ModelProto, where: Path) -> None:
    """No other file, no other code: in every part of the message, not only in the usual ones."""
    if parsed.functions:
        raise _refused(where, f"{len(parsed.functions)} functions of its own in it; expected standard operators alone")
    for message in _messages(parsed):
        if isinstance(message, onnx.TensorProto) and (
            message.data_location != onnx.TensorProto.DEFAULT or message.external_data
        ):
            places = [entry.value for entry in message.external_data if entry.key == "location"]
            asks = f"asks for {quoted(places[0])}" if places else "says so without naming one"
            raise _refused(
                where,
                f"weights in another file: the tensor {quoted(message.name)} {asks}",
                "a bundle's model is one file; do not use this one unless you know who made it",
            )
        if isinstance(message, onnx.NodeProto) and message.domain not in STANDARD:
            raise _refused(
                where,
                f"the operator {quoted(message.op_type)} of the domain {quoted(message.domain)}; "
                "expected standard operators alone",
                "an operator of another domain is another program's code",
            )


def _messages(message: Any) -> Iterator[Any]:
    """A message and all that it holds. protobuf itself refuses more than a hundred levels."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in [value] if hasattr(value, "ListFields") else value:
            yield from _messages(inner)
