"""``unet-med export``: a model in the format of another tool, which is proven to say the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from unet_med.errors import UsageError
from unet_med.exporting.exported import Exported, open_exported
from unet_med.exporting.monai_bundle import INFERENCE, NETWORK, write_monai_bundle
from unet_med.exporting.plain import DESCRIPTION, write_onnx, write_openvino
from unet_med.io.atomic import whole_files
from unet_med.workflows.outcome import Outcome

Format = Literal["monai-bundle", "onnx", "openvino"]

_WRITERS: dict[Format, Callable[[Exported, Path], float]] = {
    "monai-bundle": write_monai_bundle,
    "onnx": write_onnx,
    "openvino": write_openvino,
}
_LEFT_BY_US = (DESCRIPTION, INFERENCE)


def export(model: str, out: Path, kind: Format, overwrite: bool = False) -> Outcome:
    """Writes a model in another format, and compares the two.

    Args:
        model: Bundle folder, run folder, or an MLflow address. Of an ensemble the mean is written.
        out: Folder that receives it, whole or not at all.
        kind: ``monai-bundle``: from an image to a mask; ``onnx``, ``openvino``: the network alone, with a description
            of what goes in and comes out.
        overwrite: Replace what an earlier export left in ``out``.

    Returns:
        ``format``, ``model_sha256``, ``files`` and ``check``: ``equal_voxels`` of an invented image, or the
        ``largest_relative_difference`` of logits on invented windows.

    Raises:
        UsageError: ``out`` holds something else, or a package is missing.
        ModelError: The model is damaged, cannot be written so, or says something else in that format.
        MachineError: The disk is full.
    """
    _check_place(out, overwrite)
    exported = open_exported(model)
    with whole_files([out], out.name) as (part,):
        part.mkdir()
        measured = _WRITERS[kind](exported, part)
        files = sorted(path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file())
    is_bundle = kind == "monai-bundle"
    check = {"equal_voxels" if is_bundle else "largest_relative_difference": measured}
    said = f"{measured:.4%} of the voxels of an invented image are equal"
    lines = [
        f"{exported.info.config.name} as {kind}: {out}",
        said if is_bundle else f"outputs differ by {measured:.1e} of the largest one at most",
    ]
    if is_bundle:
        lines.append(f"in that folder: python -m monai.bundle run --config_file {INFERENCE} --dataset_dir IMAGES")
        lines.append(f"the network alone is {NETWORK}")
    return Outcome(
        {"format": kind, "model_sha256": exported.info.sha256, "files": files, "check": check},
        lines,
    )


def _check_place(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not any((out / name).is_file() for name in _LEFT_BY_US):
        raise UsageError("the output folder holds something else", "OUT", "give a folder that does not exist yet")
    if not overwrite:
        raise UsageError("the output folder holds an export already", "OUT", "choose another, or add --overwrite")
