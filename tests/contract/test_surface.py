"""What users may rely on: commands, options, exit codes, public names. A change here is a change of the contract."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time

import pytest
import typer.main

import unet_med
from unet_med import cli, errors

COMMON = "--debug --help --json --verbose"
INTAKE = "--allow-gaps --axes --channel --pixel-size --resample-slices --series --untilt"
SURFACE = {
    "scan": f"folder --html {INTAKE}",
    "convert": f"folder out {INTAKE} --overwrite",
    "manifest": f"folder --out --images --labels --folds --group-by --task --label-values --label-names --classes "
    f"--ignore-label --nnunet {INTAKE}",
    "check": "data --fix --html --pictures",
    "correct": "data masks out --before --images",
    "plan": "pipeline --data --memory-gb --device --explain --set",
    "plan-diff": "plan_a plan_b",
    "train": "pipeline --from-run --data --out --fold --max-minutes --resume "
    "--start-from --teacher --device --memory-gb --set "
    "--overwrite",
    "evaluate": "model --data --out --fold --split --allow-training-cases --device --overwrite",
    "predict": "model input_ out --also --format --seg-type --labels --deidentify --tta --device --memory-gb --part "
    f"--pages {INTAKE} --overwrite",
    "page": "out --model --data --pdf",
    "score": "predictions references --task --tolerance-mm --ignore-label --axes --membrane --classes",
    "track": "masks out --images --max-move --max-gap --no-divisions --series --axes --pixel-size --overwrite",
    "run": f"pipeline folder --out --max-minutes --device --set --format {INTAKE} --overwrite",
    "demo": "kind --out --max-minutes --overwrite",
    "doctor": "target input_",
    "info": "model",
    "import-nnunet": "folder out --fold --checkpoint --name --orientation --overwrite",
    "export": "model out --format --overwrite",
    "compare": "run_a run_b --out --data --store --device",
    "match": "pipeline --data --out --kinds --fold --max-minutes --device --set",
    "retune": "folder --set --data",
    "learning-curve": "pipeline --data --out --sizes --fold --max-minutes --device --set",
    "explain": f"model case out --also --label --block-mm --dropout-samples --device {INTAKE} --overwrite",
    "rank": f"model folder out --also --labelled --device {INTAKE} --overwrite",
    "ui": "--store --port --no-browser",
    "send": "files --to --aet --user --password-env --tls --ca",
    "receive": (
        "--model --out --port --aet --host --allow --idle-seconds --max-file-mb --format --seg-type --labels"
        " --deidentify --send-back --user --password-env --tls --ca --once --device --memory-gb"
        " --untilt --resample-slices --allow-gaps --overwrite"
    ),
}
HEAVY = (
    "torch",
    "monai",
    "mlflow",
    "numpy",
    "scipy",
    "pydicom",
    "SimpleITK",
    "skimage",
    "pandas",
    "pynetdicom",
    "requests",
)

_IMPORTS_OF_HELP = f"""
import sys
from unet_med import cli
code = cli.main([sys.argv[1], "--help"])
heavy = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(code or (f"imported {{heavy}}" if heavy else 0))
"""


def _long_names(command: object) -> set[str]:
    names = set()
    for parameter in command.params:  # type: ignore[attr-defined]
        options = [name for name in parameter.opts if name.startswith("--")]
        names.add(options[0] if options else parameter.name)
    return names | {"--help"}


def test_commands_and_options_are_those_of_the_contract() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert list(commands) == list(SURFACE)
    for name, expected in SURFACE.items():
        assert _long_names(commands[name]) == set(f"{expected} {COMMON}".split()), name


@pytest.mark.parametrize("command", SURFACE)
def test_help_needs_no_library(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS_OF_HELP, command], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: unet-med {command}" in done.stdout
    for option in SURFACE[command].split():
        if option.startswith("--"):
            assert option in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["predict", "--help"], ["--version"]], ids=" ".join)
def test_help_answers_within_a_second(words: list[str]) -> None:
    best = float("inf")
    for _ in range(3):
        started, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, "-m", "unet_med", *words], capture_output=True, check=True, timeout=60)
        after = os.times()
        computed = after.children_user + after.children_system - before.children_user - before.children_system
        best = min(best, computed or time.perf_counter() - started)  # other tests may keep the processors busy
    assert best < 1.0


def test_the_version_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unet_med", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"unet-med {unet_med.__version__}\n"


def test_public_names_are_those_of_the_contract() -> None:
    assert unet_med.__all__ == ["Model", "__version__", "load_model", "read", "scan", "score"]
    parameters = {
        "load_model": "path device",
        "read": "path",
        "scan": "folder",
        "score": "mask truth spacing_mm tolerance_mm",
    }
    for name, expected in parameters.items():
        assert list(inspect.signature(getattr(unet_med, name)).parameters) == expected.split()
    assert list(inspect.signature(unet_med.Model.predict).parameters) == ["self", "array", "spacing_mm", "affine"]


def test_importing_the_package_imports_no_library() -> None:
    code = f"import sys, unet_med; sys.exit(', '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_exit_codes_are_those_of_the_contract() -> None:
    codes = {
        name: found.exit_code
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.UnetMedError)
    }
    assert codes == {
        "UnetMedError": 1,
        "UsageError": 2,
        "ConfigError": 2,
        "InputRefusedError": 3,
        "NothingUsableError": 4,
        "ModelError": 2,
        "MachineError": 5,
        "TrainingError": 1,
    }
    assert not issubclass(errors.Terminated, Exception)
