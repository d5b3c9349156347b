"""Arguments and options that several commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unet_med.errors import UsageError

if TYPE_CHECKING:
    from unet_med.io.source import IntakeOptions

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
TARGET = "dicom HOST:PORT/AET | dicomweb URL"
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


def intake_options(
    series: Sequence[str],
    axes: str | None,
    pixel_size: str | None,
    channel: Sequence[str],
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
        channels=tuple(channel),
        untilt=untilt,
        resample_slices=resample_slices,
        allow_gaps=allow_gaps,
    )
