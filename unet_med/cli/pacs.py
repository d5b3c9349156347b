"""Commands that speak to a PACS."""

from pathlib import Path
from typing import Annotated

import typer

from unet_med.cli.options import (
    TARGET,
    AetOption,
    CaOption,
    DeidentifyOption,
    DeviceOption,
    GapsOption,
    LabelsOption,
    MemoryOption,
    OutOption,
    OverwriteOption,
    PasswordOption,
    ResampleOption,
    SegTypeOption,
    TlsOption,
    UntiltOption,
    UserOption,
    intake_options,
)
from unet_med.workflows.outcome import Outcome


def send(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", exists=True, help="DICOM files, or folders.")],
    to: Annotated[tuple[str, str], typer.Option("--to", metavar=TARGET, help="The PACS and how to speak to it.")],
    aet: AetOption = "UNETMED",
    user: UserOption = None,
    password_env: PasswordOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
) -> Outcome:
    """Send DICOM files to a PACS."""
    from unet_med.workflows.send import send as workflow

    return workflow(files, to, aet=aet, user=user, password_env=password_env, tls=tls, ca=ca)


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
        typer.Option("--send-back", metavar=TARGET, help="Send DICOM results there.", show_default=False),
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
    intake = intake_options([], None, None, [], untilt, resample_slices, allow_gaps)
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
