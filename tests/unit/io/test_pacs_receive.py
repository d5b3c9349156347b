"""Objects from a PACS: who is let in, what is kept and how, and when a series is complete."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import dicom_writer as w
import pydicom
import pytest
from pacs_peers import HOST, free_port, tidy_servers, wait_until
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1, RLELossless

from unet_med.errors import UsageError
from unet_med.io.pacs import inbox as inbox_module
from unet_med.io.pacs.client import send_objects
from unet_med.io.pacs.inbox import NO_OBJECT, NO_ROOM, OTHER_OBJECT, STORED, Inbox, Limits
from unet_med.io.pacs.listener import listening, syntaxes
from unet_med.io.pacs.objects import find_objects
from unet_med.io.pacs.target import Access, DicomTarget

pytest.importorskip("pynetdicom")

__all__ = ["tidy_servers"]
IDLE = 10.0


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inbox(tmp_path: Path, clock: Clock) -> Inbox:
    return Inbox(tmp_path / "incoming", IDLE, Limits(file_bytes=10**6, series_files=5, free_bytes=0), clock)


def _bytes(data: Any) -> bytes:
    stream = BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


def _keep(inbox: Inbox, sender: object, *slices: Any) -> list[int]:
    return [inbox.store(sender, data.SOPInstanceUID, _bytes(data)) for data in slices]


def _whole(inbox: Inbox) -> list[bool]:
    return [one.whole for one in inbox.due()]


# ---- the inbox -------------------------------------------------------------------------------------------------------


def test_objects_lie_under_hashes_for_this_user_alone(inbox: Inbox) -> None:
    slices = w.Series(count=3).slices()
    assert _keep(inbox, "a", *slices) == [STORED] * 3
    (folder,) = (path for path in inbox.folder.iterdir() if path.is_dir())
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 3
    assert all(len(name) == 20 and name.endswith(".dcm") for name in names)
    stored = {path.read_bytes() for path in folder.iterdir()}
    assert stored == {_bytes(data) for data in slices}
    everything = " ".join(str(path.relative_to(inbox.folder)) for path in inbox.folder.rglob("*"))
    for data in slices:
        for word in ("SECRET", data.SOPInstanceUID, data.SeriesInstanceUID, data.StudyInstanceUID):
            assert word not in everything
    if os.name != "nt":
        assert stat.S_IMODE(inbox.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())


def test_a_series_is_complete_after_silence(inbox: Inbox, clock: Clock) -> None:
    first, second, third = w.Series(count=3).slices()
    _keep(inbox, "a", first)
    clock.now += 0.9 * IDLE
    _keep(inbox, "a", second, third)
    inbox.ended("a", in_order=True)
    clock.now += 0.9 * IDLE
    assert inbox.due() == []
    clock.now += 0.2 * IDLE
    (arrived,) = inbox.due()
    assert (len(arrived.files), arrived.whole) == (3, True)
    clock.now += 10 * IDLE
    assert inbox.due() == []


def test_an_association_that_stays_open_is_waited_for_threefold(inbox: Inbox, clock: Clock) -> None:
    _keep(inbox, "a", *w.Series(count=2).slices())
    clock.now += 2.9 * IDLE
    assert inbox.due() == []
    clock.now += 0.2 * IDLE
    assert _whole(inbox) == [True]
    inbox.ended("a", in_order=False)  # long after the last image: no harm
    clock.now += 2 * IDLE
    assert inbox.due() == []


def test_two_series_may_be_mixed(inbox: Inbox, clock: Clock) -> None:
    one, two = w.Series(count=3), w.Series(count=2)
    mixed = [*one.slices()[:1], *two.slices()[:1], *one.slices()[1:2], *two.slices()[1:], *one.slices()[2:]]
    assert _keep(inbox, "a", *mixed) == [STORED] * 5
    inbox.ended("a", in_order=True)
    clock.now += IDLE
    arrived = inbox.due()
    assert sorted(len(one.files) for one in arrived) == [2, 3]
    for each in arrived:
        assert len({pydicom.dcmread(path).SeriesInstanceUID for path in each.files}) == 1


def test_the_same_series_again_is_no_news_and_more_of_it_is(inbox: Inbox, clock: Clock) -> None:
    slices = w.Series(count=3).slices()
    for number, (part, news) in enumerate([(slices[:2], [2]), (slices[:2], []), (slices, [3]), (slices, [])]):
        _keep(inbox, number, *part)
        inbox.ended(number, in_order=True)
        clock.now += IDLE
        assert [len(one.files) for one in inbox.due()] == news
    slices[1].SeriesDescription = "changed"
    _keep(inbox, "b", *slices)
    clock.now += 3 * IDLE
    assert [len(one.files) for one in inbox.due()] == [3]


def test_a_broken_connection_makes_a_series_not_whole_until_it_is_sent_again(inbox: Inbox, clock: Clock) -> None:
    slices = w.Series(count=3).slices()
    _keep(inbox, "a", *slices[:2])
    inbox.ended("a", in_order=False)
    clock.now += IDLE
    assert _whole(inbox) == [False]
    clock.now += IDLE
    assert inbox.due() == []
    _keep(inbox, "b", slices[2])
    inbox.ended("b", in_order=True)
    clock.now += IDLE
    assert _whole(inbox) == [True]


def test_a_break_after_the_last_image_is_healed_by_the_same_images(inbox: Inbox, clock: Clock) -> None:
    slices = w.Series(count=3).slices()
    _keep(inbox, "a", *slices)
    inbox.ended("a", in_order=False)
    clock.now += IDLE
    assert _whole(inbox) == [False]
    _keep(inbox, "b", *slices)
    inbox.ended("b", in_order=True)
    clock.now += IDLE
    assert _whole(inbox) == [True]


def test_a_second_sender_that_began_before_the_break_heals_nothing(inbox: Inbox, clock: Clock) -> None:
    slices = w.Series(count=4).slices()
    _keep(inbox, "a", slices[0])
    _keep(inbox, "b", slices[1])
    inbox.ended("a", in_order=False)
    inbox.ended("b", in_order=True)
    clock.now += IDLE
    assert _whole(inbox) == [False]


def test_a_new_start_knows_what_was_whole(tmp_path: Path, inbox: Inbox, clock: Clock) -> None:
    done, half = w.Series(count=2).slices(), w.Series(count=3).slices()
    _keep(inbox, "a", *done)
    inbox.ended("a", in_order=True)
    _keep(inbox, "b", *half)  # and here the process is killed
    folders = [path for path in inbox.folder.iterdir() if path.is_dir()]
    (folders[0] / "x.part").write_bytes(b"half")
    again = Inbox(inbox.folder, IDLE, clock=clock)
    assert again.due() == []
    clock.now += IDLE
    assert {len(one.files): one.whole for one in again.due()} == {2: True, 3: False}
    assert not list(inbox.folder.rglob("*.part"))


def test_what_is_no_object_of_a_series_is_refused(inbox: Inbox) -> None:
    data = w.Series(count=1).slices()[0]
    content = _bytes(data)
    uid = data.SOPInstanceUID
    assert inbox.store("a", uid, b"") == NO_OBJECT
    assert inbox.store("a", uid, b"\0" * 4000) == NO_OBJECT
    assert inbox.store("a", uid, content[:150]) == NO_OBJECT
    assert inbox.store("a", "1.2.3", content) == OTHER_OBJECT
    del data.SeriesInstanceUID
    assert inbox.store("a", uid, _bytes(data)) == NO_OBJECT
    assert list(inbox.folder.iterdir()) == []


def test_limits(tmp_path: Path, clock: Clock, inbox: Inbox) -> None:
    slices = w.Series(count=7).slices()
    assert _keep(inbox, "a", *slices) == [STORED] * 5 + [NO_ROOM] * 2
    assert _keep(inbox, "a", slices[0]) == [STORED]  # known already
    small = Inbox(tmp_path / "small", IDLE, Limits(file_bytes=500), clock)
    assert _keep(small, "a", slices[0]) == [NO_ROOM]
    full = Inbox(tmp_path / "full", IDLE, Limits(free_bytes=shutil.disk_usage(tmp_path).total), clock)
    assert _keep(full, "a", slices[0]) == [NO_ROOM]
    assert not list(full.folder.rglob("*.dcm"))


def test_a_full_disk_leaves_nothing_behind(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "SECRET^JANE")

    monkeypatch.setattr(inbox_module.Path, "replace", fail)
    assert _keep(inbox, "a", w.Series(count=1).slices()[0]) == [NO_ROOM]
    assert not [path for path in inbox.folder.rglob("*") if path.suffix in (".dcm", ".part")]


def test_many_senders_at_once(inbox: Inbox, clock: Clock) -> None:
    every = [w.Series(count=5).slices() for _ in range(6)]
    threads = [threading.Thread(target=_keep, args=(inbox, n, *slices)) for n, slices in enumerate(every)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock.now += 3 * IDLE
    assert [len(one.files) for one in inbox.due()] == [5] * 6


# ---- the listener ----------------------------------------------------------------------------------------------------


@contextmanager
def _listening(inbox: Inbox, **options: Any) -> Iterator[DicomTarget]:
    with listening(inbox, HOST, options.pop("port", 0), "UNETMED", **options) as port:
        yield DicomTarget(HOST, port, "UNETMED")


def _send(target: DicomTarget, files: list[Path], aet: str = "PACS") -> list[tuple[str, str]]:
    receipts = send_objects(target, Access(aet), find_objects(files).objects, wait_seconds=0.01)
    return [(one.status, one.reason) for one in receipts]


def test_sent_objects_lie_in_the_inbox_byte_by_byte(tmp_path: Path, inbox: Inbox, clock: Clock) -> None:
    slices = w.Series(count=3).slices()
    slices[2].compress(RLELossless, generate_instance_uid=False)
    files = w.write(tmp_path / "sent", slices)
    with _listening(inbox) as target:
        assert _send(target, files) == [("sent", "")] * 3
        wait_until(lambda: not list(inbox.folder.glob("*.open")), "the release is seen")
    clock.now += IDLE
    (arrived,) = inbox.due()
    assert arrived.whole
    got = {data.SOPInstanceUID: data for data in map(pydicom.dcmread, arrived.files)}
    for path in files:
        sent = pydicom.dcmread(path)
        same = got[sent.SOPInstanceUID]
        assert same == sent
        assert same.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID


def test_only_what_can_be_decoded_is_offered() -> None:
    offered = syntaxes()
    assert offered[:2] == [ExplicitVRLittleEndian, "1.2.840.10008.1.2"]
    assert RLELossless in offered
    assert not {"1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.102"} & set(offered)
    gdcm = pytest.importorskip("gdcm")
    assert gdcm
    assert JPEGLosslessSV1 in offered


def test_echo_is_answered(inbox: Inbox) -> None:
    from pynetdicom import AE

    entity = AE(ae_title="PACS")
    entity.add_requested_context("1.2.840.10008.1.1")
    with _listening(inbox) as target:
        association = entity.associate(target.host, target.port, ae_title="UNETMED")
        assert association.send_c_echo().Status == 0
        association.release()


def test_only_callers_on_the_list_are_let_in(inbox: Inbox, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = w.write(tmp_path / "sent", w.Series(count=1).slices())
    with _listening(inbox, allow=["PACS", "OTHER"]) as target:
        assert _send(target, files) == [("sent", "")]
        with pytest.raises(UsageError, match="does not know our AE title STRANGER"):
            _send(target, files, "STRANGER")
        with pytest.raises(UsageError, match="does not answer to this AE title"):
            _send(DicomTarget(HOST, target.port, "SOMEBODY"), files)
    assert caplog.text.count("an association was rejected") == 2


def test_a_taken_port_is_told(inbox: Inbox) -> None:
    with (
        _listening(inbox) as target,
        pytest.raises(UsageError, match="in use"),
        listening(inbox, HOST, target.port, "UNETMED"),
    ):
        pass
    with pytest.raises(UsageError, match="no such address"), listening(inbox, "203.0.113.7", free_port(), "UNETMED"):
        pass


def test_an_aborted_association_is_seen(tmp_path: Path, inbox: Inbox, clock: Clock) -> None:
    from pynetdicom import AE

    slices = w.Series(count=3).slices()
    files = w.write(tmp_path / "sent", slices)
    entity = AE(ae_title="PACS")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    with _listening(inbox) as target:
        association = entity.associate(target.host, target.port, ae_title="UNETMED")
        assert association.send_c_store(slices[0]).Status == 0
        association.abort()
        wait_until(lambda: any(one.broken for one in inbox._series.values()), "the abort is seen")
        clock.now += IDLE
        assert _whole(inbox) == [False]
        assert _send(target, files) == [("sent", "")] * 3
        wait_until(lambda: not list(inbox.folder.glob("*.open")), "the release is seen")
        clock.now += IDLE
        assert _whole(inbox) == [True]


def test_a_refusal_reaches_the_sender(tmp_path: Path, clock: Clock) -> None:
    files = w.write(tmp_path / "sent", w.Series(count=2).slices())
    inbox = Inbox(tmp_path / "incoming", IDLE, Limits(series_files=1, free_bytes=0), clock)
    with _listening(inbox) as target:
        results = _send(target, files)
    assert [status for status, _ in results] == ["sent", "refused"]
    assert "0xA700" in results[1][1]


def test_a_flood_is_cut_off_and_others_go_on(tmp_path: Path, inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    big = w.Series(count=1, rows=1500, columns=1500).slices()
    large = w.write(tmp_path / "large", big)
    small = w.write(tmp_path / "small", w.Series(count=1).slices())
    with _listening(inbox, limits=Limits(file_bytes=10**6)) as target:
        results = _send(target, [*small, *large])
        assert [status for status, _ in results] == ["sent", "failed"]
        with socket.create_connection((target.host, target.port)) as peer:
            peer.sendall(struct.pack(">BBL", 1, 0, 2**32 - 1))  # an association request of 4 GB
            peer.settimeout(10)
            assert peer.recv(100)[:1] in (b"", b"\x07")  # closed, or told of the abort
        assert _send(target, small) == [("sent", "")]
    assert "a connection was cut" in caplog.text


@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\x00\x00\x00\x04abcd", b"\xff" * 64])
def test_noise_at_the_port_is_survived(tmp_path: Path, inbox: Inbox, noise: bytes) -> None:
    files = w.write(tmp_path / "sent", w.Series(count=1).slices())
    with _listening(inbox) as target:
        with socket.create_connection((target.host, target.port)) as peer:
            peer.sendall(noise)
        assert _send(target, files) == [("sent", "")]


def test_nothing_of_a_patient_is_logged(tmp_path: Path, inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="unet_med")
    slices = w.Series(count=7).slices()
    files = w.write(tmp_path / "sent", slices)
    with _listening(inbox) as target:
        _send(target, files)
    inbox.store("a", "1.2.3", _bytes(slices[0]))
    for word in ("SECRET", slices[0].SOPInstanceUID, slices[0].SeriesInstanceUID):
        assert word not in caplog.text
