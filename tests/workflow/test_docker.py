"""The images: what their files say, and that prediction needs no more than the lock holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
MLFLOW_COMMAND_LINE = ("mlflow/cli/__init__.py", "mlflow/utils/cli_args.py")
HADOLINT = shutil.which("hadolint", path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", ""))))
FILES = ("predict.Dockerfile", "train.Dockerfile")
IMAGE = {
    "python_version": "3.12",
    "python_full_version": "3.12.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}
"""Where the images run, for the markers of requirements."""

pytestmark = pytest.mark.skipif(not DOCKER.is_dir(), reason="the package is installed without its checkout")


def _steps(name: str) -> list[tuple[str, str]]:
    """Returns instruction and words of each step of a Dockerfile."""
    text = re.sub(r"^#.*\n", "", (DOCKER / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def _pins(path: Path) -> dict[str, str]:
    """Returns name and version of each line of a lock."""
    lines = [line.partition(";")[0].strip() for line in path.read_text().splitlines()]
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def _needed(requirements: Iterable[str], without: str) -> set[str]:
    """Returns what is installed with requirements, by what the packages that are installed here say of themselves."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        one = todo.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key[0] == without or key in seen:
            continue
        seen.add(key)
        try:
            further = [Requirement(text) for text in distribution(one.name).requires or ()]
        except PackageNotFoundError:  # needed in the image alone
            continue
        todo += [
            other
            for other in further
            if other.marker is None
            or any(other.marker.evaluate({**IMAGE, "extra": extra}) for extra in ({*one.extras} or {""}))
        ]
    return {name for name, _ in seen}


def test_the_lock_is_what_prediction_needs_without_mlflow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = _needed([*project["dependencies"], *extras["dicom"], *extras["pacs"]], without="mlflow")
    locked = _pins(DOCKER / "predict.txt")
    assert set(locked) == wanted
    tested = _pins(ROOT / "constraints.txt")
    assert {name: version.removesuffix("+cpu") for name, version in locked.items()} == {
        name: version for name, version in tested.items() if name in wanted
    }


@pytest.mark.parametrize("name", FILES)
def test_an_image_runs_without_root_and_takes_what_the_context_holds(name: str) -> None:
    steps = _steps(name)
    last = [words for word, words in steps if word == "USER"][-1]
    assert last.split(":")[0].isdecimal()
    assert int(last.split(":")[0]) > 0
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for word, words in steps:
        if word == "COPY" and "--from" not in words:
            *sources, _ = words.split()
            assert set(sources) <= allowed
            assert all((ROOT / source).exists() for source in sources)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
@pytest.mark.parametrize("name", FILES)
def test_a_linter_of_dockerfiles_finds_nothing(name: str) -> None:
    done = subprocess.run([str(HADOLINT), str(DOCKER / name)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_services_keep_to_themselves() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    services = compose["services"]
    for service in services.values():
        build = service["build"]
        assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
        assert service["cap_drop"] == ["ALL"]
    predict = services["predict"]
    assert (predict["network_mode"], predict["read_only"]) == ("none", True)
    assert [volume.rpartition(":")[2] for volume in predict["volumes"]] == ["ro", "ro", "/out"]
    server = services["mlflow"]
    assert server["volumes"] == [f"{name}:/mlflow" for name in compose["volumes"]]
    places = [option for option in server["command"] if "/mlflow/" in option]
    assert len(places) == 2
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    mlflow = distribution("mlflow-skinny")  # to ask it for help takes five seconds
    known = "".join(Path(mlflow.locate_file(name)).read_text() for name in MLFLOW_COMMAND_LINE)
    for option in server["command"][1:]:
        assert f'"{option.partition("=")[0]}"' in known


_GUARD = """
import socket, sys
_BLOCKED = frozenset({blocked!r})

class _Guard:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in _BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

def _refused(*_):
    raise OSError("there is no network")

sys.meta_path.insert(0, _Guard)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = _refused
"""


def test_prediction_needs_only_what_is_in_the_lock(tmp_path: Path, tiny_bundle: Callable[..., Path]) -> None:
    locked = {*_pins(DOCKER / "predict.txt"), "unet-med"}
    blocked = sorted(
        module
        for module, owners in packages_distributions().items()
        if module not in sys.stdlib_module_names and not locked & {canonicalize_name(owner) for owner in owners}
    )
    assert "mlflow" in blocked
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(_GUARD.format(blocked=blocked))
    model, scans, out = tiny_bundle(), tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    image = np.random.default_rng(0).normal(size=(12, 13, 14)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), scans / "a.nii.gz")
    words = [sys.executable, "-m", "unet_med", "predict", str(model), str(scans), str(out), "--device", "cpu"]
    search = os.pathsep.join([str(tmp_path / "guard"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search},
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in scans.iterdir()] == ["a.nii.gz"]
    case = json.loads((out / "report.json").read_text())["cases"][0]
    assert case["status"] == "done"
    mask = np.asarray(nib.load(out / "a.nii.gz").dataobj)
    assert np.isin([0, 1], mask).all()


@pytest.mark.slow
@pytest.mark.skipif("UNET_MED_INSTALL" not in os.environ, reason="downloads 1 GB: set UNET_MED_INSTALL=1")
@pytest.mark.parametrize("name", FILES)
def test_the_steps_of_an_image_install_the_package(name: str, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=600)
    for source in ("docker/predict.txt", "constraints.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / source, tmp_path)
    shutil.copytree(ROOT / "unet_med", tmp_path / "unet_med", ignore=shutil.ignore_patterns("__pycache__"))
    path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
    for word, words in _steps(name):
        if word == "RUN" and "pip install" in words:
            step = words[words.index("pip install") :]
            subprocess.run(step, shell=True, check=True, cwd=tmp_path, env={**os.environ, "PATH": path}, timeout=3600)
    done = subprocess.run(
        [str(environment / "bin" / "unet-med"), "doctor"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
