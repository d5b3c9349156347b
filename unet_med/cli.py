"""The command line: parse, call one workflow, map errors to exit codes.

Every import of a workflow stands inside its command, so that ``--help`` answers at once. This is the one module that
configures logging, installs signal handlers and decides what a person sees of an error.
"""

import errno
import functools
import inspect
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unet_med.errors import ConfigError, MachineError, Terminated, UnetMedError, UsageError
from unet_med.io.atomic import disk_errors, write_json
from unet_med.redaction import PrivateFormatter, private_traceback, redacted
from unet_med.version import __version__
from unet_med.workflows.outcome import Outcome

if TYPE_CHECKING:
    from unet_med.io.source import IntakeOptions

USAGE = UsageError.exit_code
MACHINE = MachineError.exit_code
BUG = 1
INTERRUPTED = 130
TERMINATED = 143
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="A folder of scans in, masks that open in a viewer out, every experiment reviewable. Research use only.",
)

# ---- arguments and options that several commands share ---------------------------------------------------------------

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", exists=True, help="Folder of images, or one file.")]
PipelineArgument = Annotated[
    Path, typer.Argument(metavar="PIPELINE.yaml", exists=True, dir_okay=False, help="Pipeline file.")
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Bundle folder, run folder, or models:/... or runs:/... address.")
]
DataOption = Annotated[
    Path, typer.Option("--data", metavar="M.json", exists=True, dir_okay=False, help="Manifest of the data set.")
]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier, different job left in the output folder.")
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="A.B=C", help="Change one value of the pipeline (repeatable).")
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], typer.Option("--device", help="Where to compute; auto takes a GPU if any.")
]
MinutesOption = Annotated[
    float | None, typer.Option("--max-minutes", metavar="T", min=0.01, help="Training time for each fold, in minutes.")
]
MemoryOption = Annotated[
    float | None, typer.Option("--memory-gb", metavar="G", min=0.1, help="Memory budget in GB; default: what is free.")
]
PlanMemoryOption = Annotated[
    float | None,
    typer.Option(
        "--memory-gb",
        metavar="G",
        min=0.1,
        help="Memory to plan the training for, in GB, for example 8, 24 or 80; default: 3 on a CPU, 8 on a GPU, "
        "and 8, 24 or 40 for network.size M, L or XL.",
    ),
]
SeriesOption = Annotated[
    list[str], typer.Option("--series", metavar="ID", help="Use only this source, by its id in `scan` (repeatable).")
]
AxesOption = Annotated[
    str | None, typer.Option("--axes", metavar="AXES", help="Stored axes of undeclared stacks: ZYX, TYX, IYX, ...")
]
PixelSizeOption = Annotated[
    str | None,
    typer.Option(
        "--pixel-size", metavar="MM", help='Size of a pixel where files have none, in mm or "0.65um", "0.65,0.65,2um".'
    ),
]
ChannelOption = Annotated[
    list[str], typer.Option("--channel", metavar="NAME", help="Use this channel, by name or number (repeatable).")
]
UntiltOption = Annotated[
    bool, typer.Option("--untilt", help="Regrid DICOM stacks that are tilted (gantry tilt) onto a rectangular grid.")
]
ResampleOption = Annotated[
    bool, typer.Option("--resample-slices", help="Interpolate DICOM stacks of uneven steps onto even ones.")
]
GapsOption = Annotated[
    bool, typer.Option("--allow-gaps", help="Fill missing DICOM slices by interpolating between their neighbours.")
]
FormatOption = Annotated[
    list[str],
    typer.Option(
        "--format",
        metavar="NAME,...",
        help="Formats of the masks: nifti (default; of pictures TIFF), label-tiff, ome-zarr, geojson (QuPath), "
        "imagej-roi, coco; of volumes seg-nrrd; of DICOM series dicom-seg, rtstruct, dicom-sr, dicom-sc.",
    ),
]
SegTypeOption = Annotated[
    Literal["binary", "labelmap", "fractional"], typer.Option("--seg-type", help="Kind of DICOM SEG.")
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE.yaml",
        exists=True,
        dir_okay=False,
        help="Colours and codes of the labels, as a `labels` block.",
    ),
]
DeidentifyOption = Annotated[
    bool, typer.Option("--deidentify", help="Leave the patient out of DICOM outputs; UIDs become keyed hashes.")
]
_TARGET = "dicom HOST:PORT/AET | dicomweb URL"
AetOption = Annotated[str, typer.Option("--aet", metavar="AET", help="Our own AE title.")]
UserOption = Annotated[
    str | None,
    typer.Option("--user", metavar="NAME", help="User of a DICOMweb service; its password is asked for, or piped in."),
]
PasswordOption = Annotated[
    str | None,
    typer.Option("--password-env", metavar="VARIABLE", help="Environment variable that holds the password."),
]
TlsOption = Annotated[bool, typer.Option("--tls", help="C-STORE through TLS.")]
CaOption = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE.pem", help="Trust these certificates, not the machine's own.")
]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result for machines.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the warnings of libraries.")]
VerboseOption = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; -vv says all.")]

_COMMON = (
    inspect.Parameter("json_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=JsonOption),
    inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=VerboseOption),
    inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption),
)


def _command(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Registers a command: adds the options that all have, prints its outcome, turns errors into exit codes."""

    @functools.wraps(function)
    def run(**values: Any) -> int:
        json_file, verbose, debug = (values.pop(parameter.name) for parameter in _COMMON)
        try:
            _configure_logging(verbose, debug)
            outcome = function(**values)
            if json_file is not None:
                write_json(json_file, _plain(outcome.result), json_file.name)
                _write_private(json_file, outcome)
            _say(outcome.lines)
        except (Exception, KeyboardInterrupt, Terminated) as error:  # noqa: BLE001 - the one place where all errors end
            return _report(error, debug)
        return outcome.exit_code

    signature = inspect.signature(function)
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in signature.parameters.values()]
    run.__signature__ = inspect.Signature([*own, *_COMMON])  # type: ignore[attr-defined]
    app.command()(run)
    return function


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        _say([f"unet-med {__version__}"])
    elif context.invoked_subcommand is None:
        _say([context.get_help()])
    else:
        return
    raise typer.Exit


# ---- the commands ----------------------------------------------------------------------------------------------------


@_command
def scan(
    folder: FolderArgument,
    series: SeriesOption = [],
    axes: AxesOption = None,
    pixel_size: PixelSizeOption = None,
    channel: ChannelOption = [],
    untilt: UntiltOption = False,
    resample_slices: ResampleOption = False,
    allow_gaps: GapsOption = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as a page with small pictures.")
    ] = None,
) -> Outcome:
    """List the images and series of a folder, and why one is refused."""
    intake = _intake(series, axes, pixel_size, channel, untilt, resample_slices, allow_gaps)
    from unet_med.workflows.scan import scan as workflow

    return workflow(folder, intake, html)


@_command
def convert(
    folder: FolderArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")],
    series: SeriesOption = [],
    axes: AxesOption = None,
    pixel_size: PixelSizeOption = None,
    channel: ChannelOption = [],
    untilt: UntiltOption = False,
    resample_slices: ResampleOption = False,
    allow_gaps: GapsOption = False,
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Write each usable source as NIfTI, pictures as TIFF."""
    intake = _intake(series, axes, pixel_size, channel, untilt, resample_slices, allow_gaps)
    from unet_med.workflows.convert import convert as workflow

    return workflow(folder, out, intake, overwrite)


@_command
def manifest(
    folder: FolderArgument,
    out: Annotated[Path, typer.Option("--out", metavar="M.json", help="The manifest to write.")],
    images: Annotated[str | None, typer.Option("--images", metavar="GLOB", help="Which files are images.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", metavar="GLOB", help="Which files are labels.")] = None,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Number of folds of the cross-validation.")] = 5,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by", metavar="REGEX|CSV", help="Cases of one patient stay in one fold: a pattern, or a table."
        ),
    ] = None,
    task: Annotated[
        Literal["semantic", "instance"] | None,
        typer.Option("--task", help="What label values mean: kinds of things, or single objects."),
    ] = None,
    label_values: Annotated[
        str | None, typer.Option("--label-values", metavar="A=B,...", help='Read stored values as: "255=1".')
    ] = None,
    label_names: Annotated[
        str | None,
        typer.Option(
            "--label-names",
            metavar="N=NAME,...",
            help='Name the labels: "1=liver,2=kidney". Segments in DICOM: "1=liver,1=Leber,0=couch"; 0 leaves out.',
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            "--classes", metavar="CSV", exists=True, dir_okay=False, help="Class of each object: id, object, class."
        ),
    ] = None,
    ignore_label: Annotated[
        int | None,
        typer.Option("--ignore-label", metavar="VALUE", min=1, max=65535, help="Value where nobody labelled."),
    ] = None,
    nnunet: Annotated[
        Path | None,
        typer.Option("--nnunet", metavar="DIR", help="Also write the data set as nnU-Net's raw layout here."),
    ] = None,
    series: SeriesOption = [],
    axes: AxesOption = None,
    pixel_size: PixelSizeOption = None,
    channel: ChannelOption = [],
    untilt: UntiltOption = False,
    resample_slices: ResampleOption = False,
    allow_gaps: GapsOption = False,
) -> Outcome:
    """Pair images with labels, hash them, store folds."""
    intake = _intake(series, axes, pixel_size, channel, untilt, resample_slices, allow_gaps)
    from unet_med.workflows.manifest import make_manifest

    return make_manifest(
        folder,
        out,
        images=images,
        labels=labels,
        folds=folds,
        group_by=group_by,
        task=task,
        label_values=label_values,
        label_names=label_names,
        classes=classes,
        ignore_label=ignore_label,
        nnunet=nnunet,
        intake=intake,
    )


@_command
def check(
    data: Annotated[Path, typer.Argument(metavar="M.json", exists=True, dir_okay=False, help="Manifest to examine.")],
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="DIR", help="Write corrected labels and a manifest here.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write what was found as a page with pictures.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", metavar="DIR", help="Write pictures of the suspicious cases here.")
    ] = None,
) -> Outcome:
    """Find faults of images and labels that spoil training."""
    from unet_med.workflows.check import check as workflow

    return workflow(data, fix, html, pictures)


@_command
def plan(
    pipeline: PipelineArgument,
    data: DataOption,
    memory_gb: PlanMemoryOption = None,
    device: DeviceOption = "auto",
    explain: Annotated[bool, typer.Option("--explain", help="Give the reason for each value.")] = False,
    set_: SetOption = [],
) -> Outcome:
    """Resolve every `auto` of a pipeline from the data."""
    from unet_med.workflows.plan import plan as workflow

    return workflow(pipeline, data, memory_gb=memory_gb, explain=explain, overrides=set_, device=device)


@_command
def plan_diff(
    plan_a: Annotated[str, typer.Argument(metavar="A", help="Pipeline file, JSON of a plan, run, or model.")],
    plan_b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
) -> Outcome:
    """Say in what two plans differ, and why."""
    from unet_med.workflows.plan_diff import plan_diff as workflow

    return workflow(plan_a, plan_b)


def _fold(text: str | None) -> str | None:
    if text is None or text in ("cv", "all") or text.isdecimal():
        return text
    raise typer.BadParameter("give the number of a fold, `cv` or `all`")


FoldOption = Annotated[
    str | None,
    typer.Option(
        "--fold",
        metavar="N|cv|all",
        callback=_fold,
        help="N holds fold N out, cv trains every fold, all trains on all cases.",
    ),
]


@_command
def train(
    pipeline: PipelineArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder of the run.")],
    fold: FoldOption = None,
    max_minutes: MinutesOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on exactly where the run was stopped.")] = False,
    start_from: Annotated[
        str | None,
        typer.Option("--start-from", metavar="MODEL", help="Begin with the weights of this model and keep its plan."),
    ] = None,
    device: DeviceOption = "auto",
    memory_gb: PlanMemoryOption = None,
    set_: SetOption = [],
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Train a network; RUN/model is the result."""
    from unet_med.workflows.train import train as workflow

    return workflow(
        pipeline,
        data,
        out,
        fold=fold,
        max_minutes=max_minutes,
        resume=resume,
        device=device,
        overrides=set_,
        overwrite=overwrite,
        start_from=start_from,
        memory_gb=memory_gb,
    )


@_command
def evaluate(
    model: ModelArgument,
    data: DataOption,
    out: OutOption,
    fold: Annotated[int | None, typer.Option("--fold", metavar="N", min=0, help="Score the cases of fold N.")] = None,
    split: Annotated[Literal["test"] | None, typer.Option("--split", help="Score the test cases.")] = None,
    allow_training_cases: Annotated[
        bool, typer.Option("--allow-training-cases", help="Score cases that the model was trained on, too.")
    ] = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Predict held-out cases of a manifest and score them."""
    if fold is not None and split is not None:
        raise UsageError("--fold and --split exclude each other", "evaluate", "give one of them")
    from unet_med.workflows.evaluate import evaluate as workflow

    return workflow(
        model,
        data,
        fold=fold,
        split=split,
        out=out,
        allow_training_cases=allow_training_cases,
        device=device,
        overwrite=overwrite,
    )


@_command
def predict(
    model: ModelArgument,
    input_: Annotated[Path, typer.Argument(metavar="INPUT", exists=True, help="Folder of images, or one file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")],
    also: Annotated[
        list[str], typer.Option("--also", metavar="MODEL2", help="Average with this model (repeatable).")
    ] = [],
    formats: FormatOption = [],
    seg_type: SegTypeOption = "binary",
    labels: LabelsOption = None,
    deidentify: DeidentifyOption = False,
    tta: Annotated[bool, typer.Option("--tta", help="Average over mirrored copies: slower, a little better.")] = False,
    device: DeviceOption = "auto",
    memory_gb: MemoryOption = None,
    part: Annotated[
        str | None, typer.Option("--part", metavar="I/N", help="Do the I-th of N shares of the folder.")
    ] = None,
    series: SeriesOption = [],
    axes: AxesOption = None,
    pixel_size: PixelSizeOption = None,
    channel: ChannelOption = [],
    untilt: UntiltOption = False,
    resample_slices: ResampleOption = False,
    allow_gaps: GapsOption = False,
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Segment every image of a folder, each on its own grid."""
    intake = _intake(series, axes, pixel_size, channel, untilt, resample_slices, allow_gaps)
    from unet_med.workflows.predict import predict as workflow

    return workflow(
        model,
        input_,
        out,
        also=also,
        formats=formats,
        seg_type=seg_type,
        labels=labels,
        deidentify=deidentify,
        tta=tta,
        device=device,
        memory_gb=memory_gb,
        part=part,
        intake=intake,
        overwrite=overwrite,
    )


@_command
def score(
    predictions: Annotated[Path, typer.Argument(metavar="PRED_DIR", exists=True, help="Masks to score.")],
    references: Annotated[Path, typer.Argument(metavar="REF_DIR", exists=True, help="True labels.")],
    task: Annotated[
        Literal["semantic", "instance", "tracking", "membrane"] | None,
        typer.Option(
            "--task",
            help="What label values mean: kinds of things (default), single objects, objects followed through time "
            "(folders of the Cell Tracking Challenge), or membranes between cells.",
        ),
    ] = None,
    tolerance_mm: Annotated[
        float, typer.Option("--tolerance-mm", metavar="MM", min=0.0, help="Tolerance of the surface Dice (NSD).")
    ] = 1.0,
    ignore_label: Annotated[
        int | None,
        typer.Option("--ignore-label", metavar="VALUE", min=1, help="Value in the true labels that is not scored."),
    ] = None,
    axes: AxesOption = None,
    membrane: Annotated[
        int | None,
        typer.Option("--membrane", metavar="VALUE", min=0, help="Value of membranes; default: by its name, else 0."),
    ] = None,
) -> Outcome:
    """Score masks made by anything against true labels."""
    from unet_med.workflows.score import score as workflow

    return workflow(
        predictions,
        references,
        task=task,
        tolerance_mm=tolerance_mm,
        ignore_label=ignore_label,
        axes=axes,
        membrane=membrane,
    )


@_command
def track(
    masks: Annotated[Path, typer.Argument(metavar="MASKS", exists=True, help="Label images of objects, in time.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")],
    images: Annotated[
        Path | None, typer.Option("--images", metavar="INPUT", exists=True, help="Draw the tracks on these images.")
    ] = None,
    max_move: Annotated[
        float, typer.Option("--max-move", metavar="D", min=0.01, help="Largest move to the next frame, in diameters.")
    ] = 1.0,
    max_gap: Annotated[
        int, typer.Option("--max-gap", metavar="N", min=0, help="Most frames in which an object may be missing.")
    ] = 2,
    no_divisions: Annotated[bool, typer.Option("--no-divisions", help="Objects do not divide.")] = False,
    series: SeriesOption = [],
    axes: AxesOption = None,
    pixel_size: PixelSizeOption = None,
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Follow objects through time: divisions, gaps, entering, leaving."""
    intake = _intake(series, axes, pixel_size, [], False, False, False)
    from unet_med.instances.linking import LinkSettings
    from unet_med.workflows.track import track as workflow

    settings = LinkSettings(max_move=max_move, max_gap=max_gap, divisions=not no_divisions)
    return workflow(masks, out, images, settings, intake, overwrite)


@_command
def run(
    pipeline: PipelineArgument,
    folder: FolderArgument,
    out: OutOption,
    max_minutes: MinutesOption = None,
    device: DeviceOption = "auto",
    set_: SetOption = [],
    formats: FormatOption = [],
    series: SeriesOption = [],
    axes: AxesOption = None,
    pixel_size: PixelSizeOption = None,
    channel: ChannelOption = [],
    untilt: UntiltOption = False,
    resample_slices: ResampleOption = False,
    allow_gaps: GapsOption = False,
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Go the whole way on a folder, from scan to masks."""
    intake = _intake(series, axes, pixel_size, channel, untilt, resample_slices, allow_gaps)
    from unet_med.workflows.run import run as workflow

    return workflow(
        pipeline,
        folder,
        out,
        max_minutes=max_minutes,
        device=device,
        overrides=set_,
        intake=intake,
        overwrite=overwrite,
        formats=formats,
    )


@_command
def demo(
    kind: Annotated[
        Literal["3d", "2d", "cells"],
        typer.Argument(metavar="[3d|2d|cells]", help="Organs in CT, nuclei, or movies of cells that divide."),
    ] = "3d",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Output folder; default: demo_3d, demo_2d, demo_cells.")
    ] = None,
    max_minutes: MinutesOption = None,
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Go the whole way on a phantom data set, in minutes."""
    from unet_med.workflows.demo import demo as workflow

    return workflow(kind, out or Path(f"demo_{kind}"), max_minutes=max_minutes, overwrite=overwrite)


@_command
def doctor(
    target: Annotated[
        str | None, typer.Argument(metavar="[MODEL|PIPELINE]", help="Estimate time and memory of this one.")
    ] = None,
    input_: Annotated[
        Path | None, typer.Argument(metavar="[INPUT]", exists=True, help="... on these images.", show_default=False)
    ] = None,
) -> Outcome:
    """Look at the machine, or estimate a prediction."""
    from unet_med.workflows.doctor import doctor as workflow

    return workflow(target, input_)


@_command
def info(model: ModelArgument) -> Outcome:
    """Say what a model knows: labels, data, results, limits."""
    from unet_med.workflows.info import info as workflow

    return workflow(model)


@_command
def import_nnunet(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", exists=True, file_okay=False, help="Of a trainer: plans.json, fold_*."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the model to write.")],
    fold: Annotated[
        list[str], typer.Option("--fold", metavar="N|all", help="Only this fold (repeatable); default: all together.")
    ] = [],
    checkpoint: Annotated[
        Literal["final", "best"], typer.Option("--checkpoint", help="Of the last epoch, or the one thought best.")
    ] = "final",
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the model.")] = None,
    orientation: Annotated[
        str | None,
        typer.Option(
            "--orientation",
            metavar="LPS",
            help="How the training images were stored; default: as each file is.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Turn a model that nnU-Net v2 trained into one of ours."""
    from unet_med.workflows.import_nnunet import import_nnunet as workflow

    return workflow(folder, out, folds=fold, which=checkpoint, name=name, orientation=orientation, overwrite=overwrite)


@_command
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", exists=True, help="Run, evaluation, or metrics.json.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", exists=True, help="The other one, on the same cases.")],
) -> Outcome:
    """Say whether one run is better than another, case by case."""
    from unet_med.workflows.compare import compare as workflow

    return workflow(run_a, run_b)


@_command
def match(
    pipeline: PipelineArgument,
    data: DataOption,
    out: OutOption,
    kinds: Annotated[
        str, typer.Option("--kinds", metavar="NAME,...", help="Kinds of networks; the first is planned as it is.")
    ] = "unet,dilated,naive",
    fold: FoldOption = None,
    max_minutes: MinutesOption = None,
    device: DeviceOption = "auto",
    set_: SetOption = [],
) -> Outcome:
    """Train networks of other kinds with as many parameters and minutes, and compare them."""
    from unet_med.workflows.match import match as workflow

    return workflow(
        pipeline,
        data,
        out,
        tuple(kinds.split(",")),
        fold=fold,
        max_minutes=max_minutes,
        device=device,
        overrides=set_,
    )


@_command
def retune(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN|OUT", exists=True, file_okay=False, help="A run, or what `predict` wrote.")
    ],
    set_: SetOption = [],
) -> Outcome:
    """Cut objects out with other thresholds: seconds, no network is run."""
    from unet_med.workflows.retune import retune as workflow

    return workflow(folder, set_)


def _whole_numbers(text: str | None) -> tuple[int, ...]:
    parts = text.split(",") if text else []
    if not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter("give whole numbers, for example 12,36,96")
    return tuple(int(part) for part in parts)


@_command
def learning_curve(
    pipeline: PipelineArgument,
    data: DataOption,
    out: OutOption,
    sizes: Annotated[
        Any,
        typer.Option(
            "--sizes",
            metavar="N,...",
            parser=_whole_numbers,
            help="Numbers of training images; default: 1/8, 1/4, 1/2 and all.",
        ),
    ] = (),
    fold: Annotated[int, typer.Option("--fold", min=0, metavar="N", help="The fold held out.")] = 0,
    max_minutes: MinutesOption = None,
    device: DeviceOption = "auto",
    set_: SetOption = [],
) -> Outcome:
    """Train on more and more of the images, and say whether more would help."""
    from unet_med.workflows.learning_curve import learning_curve as workflow

    return workflow(
        pipeline,
        data,
        out,
        sizes,
        fold=fold,
        max_minutes=max_minutes,
        device=device,
        overrides=set_,
    )


@_command
def ui(
    store: Annotated[
        str | None, typer.Option("--store", metavar="URI", help="MLflow store; default: sqlite:///mlflow.db here.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the pages.")] = 5000,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
) -> Outcome:
    """Open the review of all experiments (`mlflow ui`)."""
    from unet_med.workflows.ui import ui as workflow

    return workflow(store, port, open_browser=not no_browser)


@_command
def send(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", exists=True, help="DICOM files, or folders.")],
    to: Annotated[tuple[str, str], typer.Option("--to", metavar=_TARGET, help="The PACS and how to speak to it.")],
    aet: AetOption = "UNETMED",
    user: UserOption = None,
    password_env: PasswordOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
) -> Outcome:
    """Send DICOM files to a PACS."""
    from unet_med.workflows.send import send as workflow

    return workflow(files, to, aet=aet, user=user, password_env=password_env, tls=tls, ca=ca)


@_command
def receive(
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Bundle folder, run folder, or models:/... or runs:/...")
    ],
    out: OutOption,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen at.")] = 11112,
    aet: AetOption = "UNETMED",
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen at; by default this machine alone.")
    ] = "127.0.0.1",
    allow: Annotated[
        list[str],
        typer.Option("--allow", metavar="AET", help="AE title that may send (repeatable); default: all here."),
    ] = [],
    idle_seconds: Annotated[
        float, typer.Option("--idle-seconds", metavar="S", min=0.1, help="A series is complete after so much silence.")
    ] = 15.0,
    max_file_mb: Annotated[
        int, typer.Option("--max-file-mb", metavar="MB", min=1, help="Refuse larger objects.")
    ] = 1024,
    formats: Annotated[
        list[str],
        typer.Option("--format", metavar="NAME,...", help="Formats of the masks, as for predict; default: dicom-seg."),
    ] = [],
    seg_type: SegTypeOption = "binary",
    labels: LabelsOption = None,
    deidentify: DeidentifyOption = False,
    send_back: Annotated[
        tuple[str, str] | None,
        typer.Option("--send-back", metavar=_TARGET, help="Send DICOM results there.", show_default=False),
    ] = None,
    user: UserOption = None,
    password_env: PasswordOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
    once: Annotated[bool, typer.Option("--once", help="End after the first series.")] = False,
    device: DeviceOption = "auto",
    memory_gb: MemoryOption = None,
    untilt: UntiltOption = False,
    resample_slices: ResampleOption = False,
    allow_gaps: GapsOption = False,
    overwrite: OverwriteOption = False,
) -> Outcome:
    """Receive series from a PACS, segment each, send masks back."""
    intake = _intake([], None, None, [], untilt, resample_slices, allow_gaps)
    from unet_med.workflows.receive import receive as workflow

    return workflow(
        model,
        out,
        port=port,
        aet=aet,
        host=host,
        allow=allow,
        idle_seconds=idle_seconds,
        formats=formats,
        seg_type=seg_type,
        labels=labels,
        deidentify=deidentify,
        send_back=send_back,
        user=user,
        password_env=password_env,
        tls=tls,
        ca=ca,
        once=once,
        device=device,
        memory_gb=memory_gb,
        max_file_mb=max_file_mb,
        intake=intake,
        overwrite=overwrite,
    )


def _intake(
    series: Sequence[str],
    axes: str | None,
    pixel_size: str | None,
    channels: Sequence[str],
    untilt: bool,
    resample_slices: bool,
    allow_gaps: bool,
) -> "IntakeOptions":
    """Builds the intake options; the pixel size is one number for all axes of a picture, or one for each axis."""
    from unet_med.io.pixel_size import parsed_sizes
    from unet_med.io.source import IntakeOptions

    sizes: tuple[float, ...] | None = None
    if pixel_size is not None:
        sizes = parsed_sizes(pixel_size)
        if len(sizes) == 1:
            sizes *= 2
        if len(sizes) not in (2, 3):
            raise UsageError(
                "the pixel size is no list of positive numbers",
                "--pixel-size",
                'give mm as "0.5" or "0.5,0.5,2", or name the unit: "0.65um"',
            )
    return IntakeOptions(
        series=tuple(series),
        axes=axes.upper() if axes else None,
        pixel_size_mm=sizes,
        channels=tuple(channels),
        untilt=untilt,
        resample_slices=resample_slices,
        allow_gaps=allow_gaps,
    )


# ---- what a person and a machine see ---------------------------------------------------------------------------------


def _write_private(json_file: Path, outcome: Outcome) -> None:
    """Writes the table from ids to files beside the result, where a command has one; only this user can read it."""
    if outcome.private is None:
        return
    from unet_med.identity import write_private_table

    table = json_file.with_name(json_file.name + ".sources.json")
    with disk_errors(table.name):
        write_private_table(table, outcome.private())


def _say(lines: Sequence[str]) -> None:
    """Prints to stdout; a reader that went away (``| head``) is no error."""
    try:
        for line in lines:
            typer.echo(line)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()


def _drop_stdout() -> None:
    """Points stdout to nowhere, so that the interpreter's last flush does not fail either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _plain(value: Any) -> Any:
    """Returns ``value`` in JSON's own types; a number that does not exist (NaN, infinity) becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, (str, int)):
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    return str(value)


def _report(error: BaseException, debug: bool) -> int:
    """Prints one line about ``error`` on stderr and returns the exit code."""
    if debug:
        typer.echo(private_traceback(error), err=True)
    code, message, details = _explain(error)
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    for detail in details:
        typer.echo(f"  - {detail}", err=True)
    if isinstance(error, ConfigError) and error.example:
        typer.echo(f"\n{error.example}", err=True)
    return code


def _explain(error: BaseException) -> tuple[int, str, tuple[str, ...]]:
    """Returns exit code, one line and further lines; nothing of an unexpected error but its kind and its place."""
    if isinstance(error, UnetMedError):
        problems = error.problems if isinstance(error, ConfigError) and len(error.problems) > 1 else ()
        return error.exit_code, str(error), problems
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted: what was finished is kept, the same command goes on from there", ()
    if isinstance(error, Terminated):
        return TERMINATED, "terminated: what was finished is kept, the same command goes on from there", ()
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return MACHINE, "the disk is full: free some space, then run the same command again", ()
    if isinstance(error, OSError) and error.errno in _NOT_ALLOWED:
        return MACHINE, "no permission to read or write a file: check the rights of the input and output folders", ()
    if _is_out_of_memory(error):
        return MACHINE, "out of memory: close other programs, or give a smaller --memory-gb or patch", ()
    if hasattr(error, "format_message"):  # what the command-line parser says
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "unet-med"
        what = error.format_message().strip().rstrip(".")
        return USAGE, f"{what[:1].lower()}{what[1:]} ({command}): see `{command} --help`", ()
    return BUG, f"internal error {type(error).__name__} ({_place(error)}): run again with --debug and report it", ()


def _is_out_of_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from unet_med.inference.predictor import is_out_of_memory

    return is_out_of_memory(error)


def _place(error: BaseException) -> str:
    """Returns the line of this package where ``error`` came from, ``module:line``; a place in code is never private."""
    package = Path(__file__).parent
    place = "unknown place"
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if file.is_relative_to(package) and file.name != "cli.py":
            place = f"{file.relative_to(package).as_posix()}:{frame.lineno}"
    return place


def _configure_logging(verbose: int, debug: bool) -> None:
    """Shows this package's own log; libraries stay silent without ``--debug``, and with it their words are redacted."""
    logger = logging.getLogger("unet_med")
    root = logging.getLogger()
    for owner in (logger, root):
        for earlier in [earlier for earlier in owner.handlers if earlier.get_name() == "unet-med-cli"]:
            owner.removeHandler(earlier)
    handler = logging.StreamHandler()
    handler.set_name("unet-med-cli")
    handler.setFormatter(PrivateFormatter("%(levelname)s %(name)s: %(message)s"))
    logger.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))
    if debug:
        root.addHandler(handler)
        warnings.showwarning = _show_warning
    else:
        logger.addHandler(handler)
        root.addHandler(logging.NullHandler())
        warnings.simplefilter("ignore")


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    """Shows the warning of a library without what it quotes."""
    typer.echo(f"{category.__name__} {Path(filename).name}:{lineno}: {redacted(str(message))}", err=True)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Within, SIGTERM raises :class:`Terminated`, so that ``finally`` blocks run; forked workers just end."""
    owner = os.getpid()

    def on_sigterm(_number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, on_sigterm)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        arguments: Words after the program's name; those of the process when left out.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that lacks a letter is no reason to fail
    with _sigterm_raises():
        try:
            return int(app(args=words, prog_name="unet-med", standalone_mode=False) or 0)
        except (Exception, KeyboardInterrupt, Terminated) as error:  # noqa: BLE001 - errors before a command began
            return _report(error, "--debug" in words)


if __name__ == "__main__":
    sys.exit(main())
