"""Objects to a PACS: what arrives, what is told of what does not, and what is tried again."""

from __future__ import annotations

import json
import logging
import ssl
import subprocess
import sys
from pathlib import Path

import dicom_writer as w
import numpy as np
import pydicom
import pytest
from pacs_peers import HOST, PLAIN, free_port, receiver, tidy_servers, web_server
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    SegmentationStorage,
)

from unet_med.errors import InputRefusedError, MachineError, UsageError
from unet_med.io.pacs import dimse
from unet_med.io.pacs.client import send_objects
from unet_med.io.pacs.dimse import batches, failure_text
from unet_med.io.pacs.objects import DicomObject, find_objects
from unet_med.io.pacs.target import Access, DicomTarget, Target, WebTarget, check_access, parse_target
from unet_med.workflows.send import send

pytest.importorskip("pynetdicom")

__all__ = ["tidy_servers"]
HERE = Access()
STORED = {"Content-Type": "application/dicom+json"}


def _send(target: Target, files: list[Path], access: Access = HERE) -> list[tuple[str, str]]:
    found = find_objects(files)
    return [(one.status, one.reason) for one in send_objects(target, access, found.objects, wait_seconds=0.01)]


def _dicom(place: str) -> DicomTarget:
    target = parse_target("dicom", place)
    assert isinstance(target, DicomTarget)
    return target


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return w.write(tmp_path / "series", w.Series(count=4).slices())


# ---- targets ---------------------------------------------------------------------------------------------------------


def test_targets_are_read_and_shown() -> None:
    assert parse_target("dicom", "pacs.clinic:104/MAIN PACS") == DicomTarget("pacs.clinic", 104, "MAIN PACS")
    assert parse_target("dicom", "[::1]:11112/X") == DicomTarget("::1", 11112, "X")
    assert str(parse_target("dicom", "[::1]:11112/X")) == "dicom [::1]:11112/X"
    assert parse_target("dicomweb", "https://pacs/dicom-web/studies/") == WebTarget("https://pacs/dicom-web")
    assert str(parse_target("dicomweb", "https://pacs:8043/dicom-web/")) == "dicomweb https://pacs:8043/dicom-web"


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("ftp", "host:1/A"),
        ("dicom", "host"),
        ("dicom", "host:104"),
        ("dicom", "host:0/AE"),
        ("dicom", "host:70000/AE"),
        ("dicom", "host:104/SEVENTEENLETTERSX"),
        ("dicom", "host:104/A\\B"),
        ("dicom", "http://host:104/AE"),
        ("dicomweb", "host:8042/dicom-web"),
        ("dicomweb", "ftp://host/dicom-web"),
        ("dicomweb", "http://host:99999/dicom-web"),
        ("dicomweb", "http://host/dicom-web?token=hush"),
    ],
)
def test_other_targets_are_refused(kind: str, place: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(kind, place)
    assert caught.value.remedy
    assert "hush" not in str(caught.value)


def test_secrets_are_neither_taken_from_an_address_nor_shown() -> None:
    with pytest.raises(UsageError, match="--user") as caught:
        parse_target("dicomweb", "http://medic:hush@host/dicom-web")
    assert "hush" not in str(caught.value)
    assert "hush" not in repr(Access(user="medic", password="hush"))
    web = WebTarget("http://pacs.clinic/dicom-web")
    assert "unencrypted" in check_access(web, Access(user="medic"))
    assert check_access(WebTarget("http://127.0.0.1/x"), Access(user="medic")) == ""
    assert check_access(WebTarget("https://pacs.clinic/x"), Access(user="medic")) == ""


def test_options_that_do_not_fit_the_target_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x", encoding="utf-8")
    dicom, web = DicomTarget(HOST, 104, "A"), WebTarget("https://pacs/x")
    for target, access, option in (
        (dicom, Access(user="medic"), "--user"),
        (dicom, Access(ca=tmp_path / "ca.pem"), "--ca"),
        (dicom, Access(tls=True, ca=tmp_path / "none.pem"), "--ca"),
        (web, Access(tls=True), "--tls"),
    ):
        with pytest.raises(UsageError) as caught:
            check_access(target, access)
        assert caught.value.where == option


# ---- finding objects -------------------------------------------------------------------------------------------------


def test_objects_are_found_once_under_safe_ids(tmp_path: Path, series: list[Path]) -> None:
    (series[0].parent / "notes.txt").write_text("none", encoding="utf-8")
    (series[0].parent / ".hidden.dcm").write_bytes(series[0].read_bytes())
    directory = w.new_dataset("1.2.840.10008.1.3.10")
    w.write(tmp_path / "series", [directory], ["DICOMDIR"])
    lonely = tmp_path / "SECRET^JANE.txt"
    lonely.write_text("none", encoding="utf-8")
    found = find_objects([series[2], series[0].parent, lonely])
    assert [one.path for one in found.objects] == [series[2], series[0], series[1], series[3]]
    assert found.skipped == 2
    assert [one.id for one in found.refused] == ["file-3"]
    ids = [one.id for one in found.objects]
    assert len(set(ids)) == 4
    assert all(one.startswith("s013-") for one in ids)
    data = pydicom.dcmread(series[0])
    assert not any(uid in repr(found) for uid in (data.SOPInstanceUID, data.SeriesInstanceUID, data.StudyInstanceUID))
    assert "SECRET" not in repr(found)


# ---- C-STORE ---------------------------------------------------------------------------------------------------------


def test_every_object_arrives_as_it_is(tmp_path: Path) -> None:
    slices = w.Series(count=3).slices()
    compressed = w.Series(count=1, syntax=ImplicitVRLittleEndian).slices()
    rle = w.Series(count=1).slices()[0]
    rle.compress(RLELossless)
    files = w.write(tmp_path, [*slices, *compressed, rle])
    with receiver(syntaxes=["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", RLELossless]) as peer:
        assert _send(_dicom(peer.place), files) == [("sent", "")] * 5
    assert peer.associations == 1
    for path, got in zip(files, peer.got, strict=True):
        sent = pydicom.dcmread(path)
        assert got == sent
        assert got.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID


def test_plain_objects_are_converted_for_a_peer_that_takes_implicit_only(tmp_path: Path) -> None:
    slices = [w.Series(count=1).slices()[0], w.Series(count=1, sop_class=MRImageStorage).slices()[0]]
    files = w.write(tmp_path, slices)
    with receiver(syntaxes=[ImplicitVRLittleEndian]) as peer:
        assert _send(_dicom(peer.place), files) == [("sent", "")] * 2
    for path, got in zip(files, peer.got, strict=True):
        sent = pydicom.dcmread(path)
        assert got.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        assert (got.pixel_array == sent.pixel_array).all()


def test_what_the_peer_does_not_take_is_told_and_the_rest_goes_on(tmp_path: Path, series: list[Path]) -> None:
    rle = w.Series(count=1).slices()[0]
    rle.compress(RLELossless)
    others = w.write(tmp_path / "others", [rle, w.new_dataset(SegmentationStorage)])
    big = w.Series(count=1, syntax=ExplicitVRBigEndian).slices()[0]
    big.PixelData = np.frombuffer(big.PixelData, "<i2").byteswap().tobytes()
    others.append(tmp_path / "big.dcm")
    pydicom.dcmwrite(others[-1], big, implicit_vr=False, little_endian=False, enforce_file_format=True)
    with receiver(classes=[CTImageStorage], syntaxes=PLAIN[:2]) as peer:
        results = _send(_dicom(peer.place), [*others, series[0]])
    assert [status for status, _ in results] == ["refused", "refused", "refused", "sent"]
    assert "encoding (RLE Lossless)" in results[0][1]
    assert "encoding (Explicit VR Big Endian)" in results[2][1]
    assert "kind of object (Segmentation Storage)" in results[1][1]


def test_a_peer_that_takes_nothing_is_told(series: list[Path]) -> None:
    with (
        receiver(classes=[MRImageStorage], verification=False) as peer,
        pytest.raises(InputRefusedError, match="none of these kinds"),
    ):
        _send(_dicom(peer.place), series)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (0xA700, "no room"),
        (0xA900, "does not fit its kind"),
        (0xC001, "does not understand"),
        (0x0122, "does not take this kind"),
        (0x0110, "refuses"),
    ],
)
def test_a_status_comes_back_as_words(series: list[Path], status: int, says: str) -> None:
    with receiver(answer=lambda number: status if number == 2 else 0) as peer:
        results = _send(_dicom(peer.place), series)
    assert [one for one, _ in results] == ["sent", "refused", "sent", "sent"]
    assert says in results[1][1]
    assert f"0x{status:04X}" in results[1][1]
    assert results[1][1] == failure_text(status)
    assert ": " in results[1][1]


def test_a_remark_is_no_failure(series: list[Path]) -> None:
    with receiver(answer=lambda _number: 0xB000) as peer:
        assert [one for one, _ in _send(_dicom(peer.place), series)] == ["sent"] * 4


def test_a_broken_association_is_made_again(series: list[Path]) -> None:
    with receiver(answer=lambda number: None if number == 3 else 0) as peer:
        assert _send(_dicom(peer.place), series) == [("sent", "")] * 4
    assert peer.associations == 2
    assert [one.InstanceNumber for one in peer.got] == [1, 2, 3, 4]


def test_one_object_that_breaks_every_association_does_not_stop_the_others(series: list[Path]) -> None:
    with receiver(answer=lambda number: None if number in (1, 2, 3) else 0) as peer:
        results = _send(_dicom(peer.place), series)
    assert [one for one, _ in results] == ["failed", "sent", "sent", "sent"]
    assert "broke" in results[0][1]


def test_a_peer_that_breaks_everything_is_given_up(series: list[Path]) -> None:
    with receiver(answer=lambda number: 0 if number == 1 else None) as peer:
        results = _send(_dicom(peer.place), series)
    assert [one for one, _ in results] == ["sent", "failed", "failed", "failed"]
    assert peer.asked == 1 + 2 * 3


def test_nobody_there(series: list[Path]) -> None:
    with pytest.raises(MachineError, match="no connection") as caught:
        _send(DicomTarget(HOST, free_port(), "PEER"), series)
    assert "PEER" in caught.value.where


def test_a_server_that_speaks_something_else(series: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimse, "_ANSWER_SECONDS", 0.5)
    with web_server([(200, {}, b"")]) as (address, _), pytest.raises(MachineError, match="DICOM server"):
        port = int(address.rsplit(":", 1)[1].split("/")[0])
        _send(DicomTarget(HOST, port, "PEER"), series)


def test_unknown_ae_titles_are_told_apart(series: list[Path]) -> None:
    with receiver(allow=["SOMEBODY"]) as peer:
        with pytest.raises(UsageError, match="does not answer to this AE title"):
            _send(DicomTarget(HOST, peer.port, "OTHER"), series)
        with pytest.raises(UsageError, match="does not know our AE title UNETMED"):
            _send(_dicom(peer.place), series)
        assert _send(_dicom(peer.place), series[:1], Access(aet="SOMEBODY")) == [("sent", "")]


def test_kinds_that_fill_an_association_go_through_several() -> None:
    objects = [DicomObject(f"o{n}", f"1.2.{n}", "1.2.840.10008.1.2.4.70", "1", "1", "1") for n in range(300)]
    parts = list(batches(objects))
    assert [one for part in parts for one in part] == objects
    assert max(len({one.sop_class for one in part}) for part in parts) <= 120
    assert list(batches([])) == []


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate that nobody trusts, and how a server shows it."""
    certificate, key = tmp_path / "peer.pem", tmp_path / "peer.key"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={HOST}"),
            *("-addext", f"subjectAltName=IP:{HOST}", "-keyout", str(key), "-out", str(certificate)),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("openssl is not here to make a certificate")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return certificate, context


def test_tls_checks_the_certificate(
    certificate: tuple[Path, ssl.SSLContext], tmp_path: Path, series: list[Path]
) -> None:
    authority, context = certificate
    with receiver(tls=context) as peer:
        assert _send(_dicom(peer.place), series, Access(tls=True, ca=authority)) == [("sent", "")] * 4
        with pytest.raises(MachineError, match="no connection"):
            _send(_dicom(peer.place), series, Access(tls=True))
    with pytest.raises(UsageError, match="no certificates"):
        _send(_dicom(peer.place), series, Access(tls=True, ca=tmp_path / "peer.key"))


# ---- STOW-RS ---------------------------------------------------------------------------------------------------------


def _stored(path: Path) -> bytes:
    data = pydicom.dcmread(path)
    item = {"00081155": {"vr": "UI", "Value": [data.SOPInstanceUID]}}
    return json.dumps({"00081199": {"vr": "SQ", "Value": [item]}}).encode()


def _failed(reason: int) -> bytes:
    item = {"00081197": {"vr": "US", "Value": [reason]}}
    return json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()


@pytest.mark.parametrize("kind", ["application/dicom+json", "application/json; charset=utf-8"])
def test_a_confirmed_object_is_sent(series: list[Path], kind: str) -> None:
    with web_server([(200, {"Content-Type": kind}, _stored(series[0]))]) as (address, asked):
        assert _send(WebTarget(address), series[:1], Access(user="medic", password="hush")) == [("sent", "")]
    assert asked[0]["Authorization"].startswith("Basic ")


def test_an_object_that_the_answer_does_not_name_is_not_sent(series: list[Path]) -> None:
    for answer in ((200, {}, b""), (200, STORED, _stored(series[1])), (200, STORED, b"{}"), (200, STORED, b"<html>")):
        with web_server([answer]) as (address, _):
            ((status, reason),) = _send(WebTarget(address), series[:1])
        assert status == "refused"
        assert reason


@pytest.mark.parametrize("code", [200, 202, 409])
def test_a_failure_in_the_answer_comes_back_as_words(series: list[Path], code: int) -> None:
    with web_server([(code, STORED, _failed(0xA700))]) as (address, _):
        ((status, reason),) = _send(WebTarget(address), series[:1])
    assert (status, reason) == ("refused", failure_text(0xA700))


@pytest.mark.parametrize("code", [400, 413, 415, 500])
def test_an_object_that_the_server_refuses_does_not_stop_the_others(series: list[Path], code: int) -> None:
    answers = [(code, {}, b"SECRET^JANE"), (200, STORED, _stored(series[1]))]
    with web_server(answers) as (address, _):
        results = _send(WebTarget(address), series[:2])
    assert [one for one, _ in results] == ["refused", "sent"]
    assert f"HTTP {code}" in results[0][1]
    assert "JANE" not in results[0][1]


@pytest.mark.parametrize(("code", "says"), [(401, "--user"), (403, "--user"), (404, "dicom-web"), (501, "dicom-web")])
def test_a_server_that_takes_nothing_ends_it(series: list[Path], code: int, says: str) -> None:
    with web_server([(code, {}, b"")]) as (address, asked), pytest.raises(UsageError, match=f"HTTP {code}") as caught:
        _send(WebTarget(address), series)
    assert says in caught.value.remedy
    assert len(asked) == 1


def test_a_redirect_is_not_followed(series: list[Path]) -> None:
    with web_server([(200, STORED, _stored(series[0]))]) as (elsewhere, there):
        move = [(307, {"Location": f"{elsewhere}/studies"}, b"")]
        with web_server(move) as (address, _), pytest.raises(UsageError, match="another address"):
            _send(WebTarget(address), series)
        assert there == []


def test_a_busy_or_broken_server_is_asked_again(series: list[Path]) -> None:
    fine = (200, STORED, _stored(series[0]))
    for trouble in ((503, {}, b""), (0, {}, b"")):
        with web_server([fine, trouble, fine]) as (address, asked):
            target = find_objects([series[0]]).objects
            twice = [*target, *target]
            states = [one.status for one in send_objects(WebTarget(address), Access(), twice, wait_seconds=0.01)]
        assert states == ["sent", "sent"]
        assert len(asked) == 3


def test_large_objects_go_in_chunks_and_again_whole(tmp_path: Path) -> None:
    series = w.Series(count=1, rows=800, columns=800, between_rows=0.01, between_columns=0.01)
    (path,) = w.write(tmp_path, series.slices())
    with web_server([(503, {}, b""), (200, STORED, _stored(path))]) as (address, asked):
        assert _send(WebTarget(address), [path]) == [("sent", "")]
    assert [one.get("Transfer-Encoding") for one in asked] == ["chunked", "chunked"]


def test_no_server(series: list[Path]) -> None:
    with pytest.raises(MachineError, match="no connection"):
        _send(WebTarget(f"http://{HOST}:{free_port()}/dicom-web"), series)


def test_nothing_of_a_patient_is_logged(series: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="unet_med")
    with web_server([(400, {}, b"SECRET^JANE")]) as (address, _):
        _send(WebTarget(address), series)
    with receiver(answer=lambda number: None if number == 2 else 0xC000) as peer:
        _send(_dicom(peer.place), series)
    assert "SECRET" not in caplog.text


def test_https_checks_the_certificate(
    certificate: tuple[Path, ssl.SSLContext], series: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, context = certificate
    with web_server([(200, STORED, _stored(series[0]))], tls=context) as (address, asked):
        with pytest.raises(UsageError, match="not trusted") as caught:
            _send(WebTarget(address), series[:1])
        assert "--ca" in caught.value.remedy
        assert asked == []
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", ssl.get_default_verify_paths().cafile or "")
        assert _send(WebTarget(address), series[:1], Access(ca=authority)) == [("sent", "")]


@pytest.mark.parametrize("to", [("dicom", "127.0.0.1:104/A"), ("dicomweb", "http://127.0.0.1/x")], ids=" ".join)
def test_without_the_extra_it_is_named(
    to: tuple[str, str], series: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pynetdicom", "dicomweb_client.web"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"is not installed.*unet-med\[pacs\]"):
        send(series, to)
