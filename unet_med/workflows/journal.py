"""What an output folder remembers: which job it belongs to, which cases are done, and who works on which.

``OUT/journal.json`` names the job. ``OUT/journal/`` holds one file for each finished case (written last, so that a
case with a record is whole) and one for each case in work. A case is claimed by creating its claim file exclusively;
the claim's age is a heartbeat. A claim is dead when its process no longer exists on this machine, or when it has not
been touched for 90 s; it is then taken over, and its deaths are counted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from unet_med.errors import UsageError
from unet_med.identity import file_sha256, file_stamp, files_sha256, write_private_table
from unet_med.io.atomic import disk_errors, remove, write_json
from unet_med.io.export.sidecars import ITKSNAP_LABELS, SLICER_COLOURS

logger = logging.getLogger(__name__)

JOURNAL = "journal.json"
FOLDER = "journal"
PAGES = "pages"
"""Folder of the pages that `unet-med page` makes of an output folder."""
MAX_DEATHS = 3
BEAT_SECONDS = 10.0
DEAD_SECONDS = 90.0
_LOCK_SECONDS = 30.0
_OF_ALL_CASES = ("report.json", "volumes.csv", "counts.csv", "metrics.json", "cases.csv")
_IGNORED = {".ds_store", "thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Claim:
    """A case that this process works on; the heartbeat runs until it is finished or released."""

    case_id: str
    token: str
    deaths: int
    staging: Path
    _stop: threading.Event = field(repr=False)


class Journal:
    """The memory of one output folder.

    Attributes:
        out: The folder.
        job: What was asked for; another job is refused.
        fresh: Whether nothing was done before.
    """

    def __init__(self, out: Path, job: Mapping[str, Any], *, fresh: bool) -> None:
        self.out = out
        self.job = dict(job)
        self.fresh = fresh
        self._folder = out / FOLDER
        self._started = time.time()
        self._us = _process()
        self._held: set[tuple[str, str]] = set()
        self._folder.mkdir(parents=True, exist_ok=True)

    # ---- finished cases -----------------------------------------------------------------------------------------

    def record(self, case_id: str) -> dict[str, Any] | None:
        """Returns what was recorded when the case was finished; ``None`` when it was not."""
        return _read(self._record_file(case_id))

    def records(self) -> dict[str, dict[str, Any]]:
        """Returns all records by case id, those of other processes included."""
        found = (_read(path) for path in sorted(self._folder.glob("*.done.json")))
        return {record["id"]: record for record in found if record is not None}

    def is_done(self, case_id: str, files: Sequence[Path]) -> bool:
        """Whether the case needs no more work: its outputs exist and its input is still the same.

        A case that was refused or failed before this start is tried again, unless it has killed its process too often;
        one whose files have changed is tried again in any case.
        """
        record = self.record(case_id)
        if record is None:
            return False
        if record["status"] != "done":
            is_final = record.get("deaths", 0) >= MAX_DEATHS or record["recorded"] >= self._started
            return bool(is_final) and ("input" not in record or same_input(record["input"], files))
        if not all((self.out / name).exists() for name in record["outputs"]):
            return False
        return same_input(record.get("input"), files)

    def finish(self, claim: Claim, record: Mapping[str, Any], outputs: Iterable[Path] = ()) -> None:
        """Moves the staged outputs into place, then writes the record, then gives the claim up.

        Args:
            claim: What :meth:`claim` returned.
            record: JSON-able; ``id``, ``status`` and ``outputs`` at least.
            outputs: Files and folders below ``claim.staging``; each goes to the same place below ``out``.

        Raises:
            MachineError: when the disk is full; nothing of the case is recorded then.
        """
        earlier = self.record(claim.case_id) or {}
        with disk_errors(claim.case_id):
            for name in set(earlier.get("outputs", [])) - set(record["outputs"]):
                _remove_output(self.out, name)
            for path in outputs:
                target = self.out / path.relative_to(claim.staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.is_dir():
                    _remove_output(self.out, target.relative_to(self.out).as_posix())
                path.replace(target)
            full = {**record, "deaths": claim.deaths, "recorded": time.time()}
            write_json(self._record_file(claim.case_id), full, claim.case_id)
        self.release(claim)
        if record["status"] != "failed":
            remove(self.kept(claim.case_id))

    def kept(self, case_id: str) -> Path:
        """Returns the folder of what is done of a large case, which outlives an interruption until it is finished."""
        return self._folder / f"{case_id}.kept"

    # ---- cases in work ------------------------------------------------------------------------------------------

    def claim(self, case_id: str) -> Claim | None:
        """Claims a case for this process; ``None`` when another living process has it.

        A dead claim is taken over; ``Claim.deaths`` then counts it.
        """
        path = self._claim_file(case_id)
        token = secrets.token_hex(8)
        self._held.add((case_id, token))
        if _create(path, self._claim_content(token, 0)):
            return self._begin(case_id, token, 0)
        held = _read(path)
        claim = self._take_over(case_id, held, token) if held is not None and self._is_dead(path, held) else None
        if claim is None:
            self._held.discard((case_id, token))
        return claim

    def died(self, claim: Claim) -> Claim:
        """Counts one more death of the worker of a case that this process keeps."""
        deaths = claim.deaths + 1
        shutil.rmtree(claim.staging, ignore_errors=True)
        write_json(self._claim_file(claim.case_id), self._claim_content(claim.token, deaths), claim.case_id)
        claim.staging.mkdir(parents=True, exist_ok=True)
        return Claim(claim.case_id, claim.token, deaths, claim.staging, claim._stop)

    def release(self, claim: Claim) -> None:
        """Gives a claim up and removes what was staged; safe to call again."""
        claim._stop.set()
        self._give_up(claim.case_id, claim.token)
        self._held.discard((claim.case_id, claim.token))

    def release_all(self) -> None:
        """Gives up what is still claimed: by an interruption between a claim and the work on it."""
        for case_id, token in self._held:
            self._give_up(case_id, token)
        self._held.clear()

    def _give_up(self, case_id: str, token: str) -> None:
        shutil.rmtree(self._staging(case_id, token), ignore_errors=True)
        path = self._claim_file(case_id)
        held = _read(path)
        if held is not None and held.get("token") == token:
            path.unlink(missing_ok=True)

    def tidy(self, case_id: str) -> None:
        """Removes the claim of a finished case whose process died before it could."""
        path = self._claim_file(case_id)
        held = _read(path) if path.exists() else None
        if held is None or not self._is_dead(path, held):
            return
        shutil.rmtree(self._staging(case_id, held.get("token")), ignore_errors=True)
        path.unlink(missing_ok=True)

    def is_claimed(self, case_id: str) -> bool:
        """Whether a living process works on the case."""
        path = self._claim_file(case_id)
        held = _read(path)
        return held is not None and not self._is_dead(path, held)

    def discard(self) -> None:
        """Forgets a job that could not begin: an output folder made for it is empty, or gone, again."""
        if not self.fresh or any(self._folder.glob("*.json")):
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        (self.out / JOURNAL).unlink(missing_ok=True)
        with suppress(OSError):
            self.out.rmdir()

    def write_file_table(self, table: Mapping[str, Sequence[Path]]) -> None:
        """Writes which files each id stands for; only this user can read it."""
        with disk_errors("files.json"):
            write_private_table(self._folder / "files.json", {k: [str(p) for p in v] for k, v in table.items()})

    # ---- inside -------------------------------------------------------------------------------------------------

    def _record_file(self, case_id: str) -> Path:
        return self._folder / f"{case_id}.done.json"

    def _claim_file(self, case_id: str) -> Path:
        return self._folder / f"{case_id}.claim.json"

    def _claim_content(self, token: str, deaths: int) -> dict[str, Any]:
        return {**self._us, "token": token, "deaths": deaths}

    def _begin(self, case_id: str, token: str, deaths: int) -> Claim:
        staging = self._staging(case_id, token)
        staging.mkdir(parents=True, exist_ok=True)
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(self._claim_file(case_id), stop), daemon=True)
        beat.start()
        return Claim(case_id, token, deaths, staging, stop)

    def _staging(self, case_id: str, token: object) -> Path:
        return self._folder / f"{case_id}.{token}.work"

    def _is_dead(self, path: Path, held: Mapping[str, Any]) -> bool:
        if held.get("machine") == self._us["machine"]:
            return not _is_alive(held.get("pid"), held.get("started"))
        try:
            probe = self._folder / f".clock-{secrets.token_hex(4)}"
            probe.touch()
            age = probe.stat().st_mtime - path.stat().st_mtime  # both by the clock of the file server
            probe.unlink()
        except OSError:
            return False
        return age > DEAD_SECONDS

    def _take_over(self, case_id: str, held: Mapping[str, Any], token: str) -> Claim | None:
        """Replaces a dead claim; of several processes that try, the one that makes the lock file does."""
        path = self._claim_file(case_id)
        lock = path.with_name(path.name + ".lock")
        if not _create(lock, self._us):
            _remove_old(lock, _LOCK_SECONDS)
            return None
        try:
            now = _read(path)
            if now is None or now.get("token") != held.get("token"):
                return None
            shutil.rmtree(self._staging(case_id, held.get("token")), ignore_errors=True)
            deaths = int(held.get("deaths", 0)) + 1
            write_json(path, self._claim_content(token, deaths), case_id)
        finally:
            lock.unlink(missing_ok=True)
        logger.info("a case was taken over from a process that died (%d times)", deaths)
        return self._begin(case_id, token, deaths)


def open_job(out: Path, job: Mapping[str, Any], overwrite: bool) -> Journal:
    """Opens an output folder for a job, or goes on with it.

    Args:
        out: Made if it does not exist.
        job: JSON-able; the same job again goes on where it stopped.
        overwrite: Start anew; what an earlier job of ours left is removed, files of others never are.

    Raises:
        UsageError: when the folder belongs to another job, holds other files, or (with ``overwrite``) another process
            still works on it.
        MachineError: when the folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError("the output is a file", out.name, "give a folder that does not exist yet")
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
    with disk_errors(JOURNAL):
        out.mkdir(parents=True, exist_ok=True)
        content = {"tool": "unet-med", "digest": digest, "job": dict(job)}
        journal = _read(out / JOURNAL)
        if overwrite and journal is not None and journal.get("tool") == "unet-med":
            _clear(out)
            journal = None
        if journal is None:
            if not overwrite:
                _refuse_foreign(out)
            if not _create(out / JOURNAL, content):
                journal = _read(out / JOURNAL)  # another process of the same job was first
        if journal is not None and journal.get("digest") != digest:
            raise UsageError(
                f"the output folder belongs to another job ({_difference(journal, job)})",
                out.name,
                "give another output folder, or --overwrite to replace what that job left",
            )
        return Journal(out, job, fresh=journal is None)


def input_state(files: Sequence[Path]) -> dict[str, Any]:
    """Returns the checksum, sizes and times by which :func:`same_input` recognises files."""
    stamps = [file_stamp(path) for path in files]
    return {
        "sha256": files_sha256(list(files)),
        "bytes": [size for size, _ in stamps],
        "mtime_ns": [time for _, time in stamps],
    }


def same_input(state: Mapping[str, Any] | None, files: Sequence[Path]) -> bool:
    """Whether files are those of :func:`input_state`: same sizes and times, or else the same checksum."""
    if state is None:
        return False
    try:
        stamps = [file_stamp(path) for path in files]
        if [size for size, _ in stamps] != state.get("bytes"):
            return False
        if [time for _, time in stamps] == state.get("mtime_ns"):
            return True
        return files_sha256(list(files)) == state.get("sha256")
    except OSError:
        return False


def folder_key(path: Path) -> str:
    """Returns what stands for a folder in a job: a checksum, so that a journal tells no path."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def file_key(path: Path) -> str:
    """Returns what stands for a file in a job: the sha256 of its content."""
    return file_sha256(path)


def _refuse_foreign(out: Path) -> None:
    names = sorted(path.name for path in out.iterdir() if path.name.lower() not in _IGNORED)
    names = [name for name in names if name not in (JOURNAL, FOLDER) and not name.endswith(f".part.{JOURNAL}")]
    if names:
        raise UsageError(
            f"the output folder holds {len(names)} other {'file' if len(names) == 1 else 'files'} already",
            out.name,
            "give an empty or a new folder, or --overwrite to write among them",
        )


def _difference(journal: Mapping[str, Any], job: Mapping[str, Any]) -> str:
    theirs = journal.get("job")
    if not isinstance(theirs, dict):
        return "of another command"
    keys = sorted(key for key in {*theirs, *job} if theirs.get(key) != job.get(key))
    return "another " + ", ".join(key.replace("_", " ") for key in keys)


def _clear(out: Path) -> None:
    """Removes what an earlier job recorded as its own, and nothing else."""
    folder = out / FOLDER
    own = _process()
    for path in folder.glob("*.claim.json"):
        held = _read(path)
        if held and held.get("machine") == own["machine"] and _is_alive(held.get("pid"), held.get("started")):
            raise UsageError(
                "another process is working on this output folder", out.name, "wait until it is done, or stop it"
            )
    for path in folder.glob("*.done.json"):
        record = _read(path) or {}
        for name in record.get("outputs", []):
            _remove_output(out, str(name))
    for name in (*_OF_ALL_CASES, ITKSNAP_LABELS, SLICER_COLOURS):
        (out / name).unlink(missing_ok=True)
        (out / "masks" / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if (out / PAGES / "index.html").is_file():
        remove(out / PAGES)
    (out / JOURNAL).unlink(missing_ok=True)


def _remove_output(out: Path, name: str) -> None:
    """Removes a file or a folder that a record names as an output; never ``out`` itself or what lies elsewhere."""
    target = out / name
    inside = target.parent.resolve().is_relative_to(out.resolve())
    if inside and target.name not in ("", "..") and target.resolve() != out.resolve():
        remove(target)


def _create(path: Path, content: Mapping[str, Any]) -> bool:
    """Creates a file exclusively and whole; ``False`` when it exists.

    The content is written to a name of its own and then linked, so that no reader sees half of it; where a file
    system has no links, exclusive opening must do.
    """
    text = json.dumps(content, indent=1)
    part = path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.part.{path.name}")
    try:
        part.write_text(text, encoding="utf-8")
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError:
            return _create_by_open(path, text)
        return True
    finally:
        part.unlink(missing_ok=True)


def _create_by_open(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _remove_old(path: Path, seconds: float) -> None:
    try:
        if time.time() - path.stat().st_mtime > seconds:
            path.unlink()
    except OSError:
        return


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        try:
            os.utime(path)
        except OSError:
            return


def _process() -> dict[str, Any]:
    """Says who we are, such that another process can see whether we still live."""
    pid = os.getpid()
    return {"machine": _machine(), "pid": pid, "started": psutil.Process(pid).create_time()}


def _machine() -> str:
    """A name for the set of processes that can see each other: host, boot and, on Linux, the process namespace."""
    parts = [platform.node()]
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        try:
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text(encoding="ascii").strip())
        except OSError:
            continue
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _is_alive(pid: Any, started: Any) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return not isinstance(started, float) or abs(process.create_time() - started) < 1.0
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
