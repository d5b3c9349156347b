"""Commands on data: what is in a folder, as plain files, as a manifest, and its faults."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unet_med.cli.options import FolderArgument, OverwriteOption
from unet_med.workflows.outcome import Outcome

if TYPE_CHECKING:
    from unet_med.io.source import IntakeOptions


def scan(
    folder: FolderArgument,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as a page with small pictures.")
    ] = None,
    *,
    intake: "IntakeOptions",
) -> Outcome:
    """List the images and series of a folder, and why one is refused."""
    from unet_med.workflows.scan import scan as workflow

    return workflow(folder, intake, html)


def convert(
    folder: FolderArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")],
    overwrite: OverwriteOption = False,
    *,
    intake: "IntakeOptions",
) -> Outcome:
    """Write each usable source as NIfTI, pictures as TIFF."""
    from unet_med.workflows.convert import convert as workflow

    return workflow(folder, out, intake, overwrite)


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
    *,
    intake: "IntakeOptions",
) -> Outcome:
    """Pair images with labels, hash them, store folds."""
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


def correct(
    data: Annotated[
        Path, typer.Argument(metavar="M.json", exists=True, dir_okay=False, help="Manifest that knows the images.")
    ],
    masks: Annotated[
        Path, typer.Argument(metavar="MASKS", exists=True, help="Corrected masks, each called by the id of its case.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the corrected data set.")],
    before: Annotated[
        Path | None, typer.Option("--before", metavar="DIR", exists=True, help="The masks as they were predicted.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", exists=True, help="Images that M.json does not list.")
    ] = None,
) -> Outcome:
    """Take masks corrected in 3D Slicer, ITK-SNAP, napari or QuPath back as truth."""
    from unet_med.workflows.correct import correct as workflow

    return workflow(data, masks, out, before, images)
