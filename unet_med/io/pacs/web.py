"""STOW-RS as the sending side."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from unet_med.errors import MachineError, UnetMedError, UsageError
from unet_med.io.pacs.client import LostError, Receipt
from unet_med.io.pacs.dimse import failure_text
from unet_med.io.pacs.objects import DicomObject
from unet_med.io.pacs.target import Access, WebTarget, needed

_TIMEOUTS = (15.0, 300.0)  # to connect, to answer
_TRY_AGAIN = frozenset({408, 425, 429, 502, 503, 504})
_NO_ACCESS = frozenset({401, 403, 407})
_NO_SERVICE = frozenset({301, 302, 303, 307, 308, 404, 405, 410, 501})
_UNCONFIRMED = "the server does not confirm it: check that this is the address of a DICOMweb service"


class WebConnection:
    """A DICOMweb service; one request for each object, so that each has its own answer.

    Args:
        target: The PACS.
        access: User, password and certificates.
    """

    def __init__(self, target: WebTarget, access: Access) -> None:
        web = needed("dicomweb_client.web")
        self._http = needed("requests")
        for library in ("dicomweb_client", "retrying"):
            logging.getLogger(library).setLevel(logging.CRITICAL)  # they quote UIDs and answers
        self._target = target
        session = self._http.Session()
        session.headers["Accept"] = "application/dicom+json"
        session.hooks["response"].append(_without_parameters)
        session.max_redirects = 0  # objects go where they were sent, and a redirected POST becomes a GET
        if access.user is not None:
            session.auth = (access.user, access.password or "")
        if access.ca is not None:
            _trust(session, str(access.ca))
        self._session = session
        self._client = web.DICOMwebClient(target.url, session=session, timeout=_TIMEOUTS)
        self._client.set_http_retry_params(retry=False)  # its second attempt would send an exhausted body

    def store(self, one: DicomObject) -> Receipt:
        """Sends one object and reads the answer; see :class:`~unet_med.io.pacs.client.Connection`."""
        errors = self._http.exceptions
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's texts may quote values of the header
            try:
                answer = self._client.store_instances([one.read()])
            except errors.HTTPError as error:
                return self._refused(one, error.response)
            except errors.TooManyRedirects as error:
                raise self._no_service("the server sends us to another address") from error
            except errors.SSLError as error:
                what = "the certificate of the server is not trusted"
                raise UsageError(what, self._where, "give the certificate of its authority with --ca") from error
            except errors.JSONDecodeError:
                return Receipt(one.id, "refused", _UNCONFIRMED)
            except errors.RequestException as error:
                remedy = "check the address, that the PACS is running, and proxies and firewalls on the way"
                raise LostError(MachineError("no connection", self._where, remedy), reached=False) from error
            except Exception:  # noqa: BLE001 - malformed data, or an answer that is no DICOM JSON
                reason = "the object cannot be read, or the answer is not one of DICOMweb: see the log of the PACS"
                return Receipt(one.id, "refused", reason)
        return _receipt(one, answer)

    def close(self) -> None:
        """Closes the connections that are kept open between requests."""
        self._session.close()

    @property
    def _where(self) -> str:
        return str(self._target)

    def _refused(self, one: DicomObject, response: Any) -> Receipt:
        code = int(response.status_code)
        if code in _NO_ACCESS:
            remedy = "give --user and its password, and check what the user may do"
            raise UsageError(f"the server refuses access (HTTP {code})", self._where, remedy)
        if code in _NO_SERVICE:
            raise self._no_service(f"there is no STOW-RS at this address (HTTP {code})")
        if code in _TRY_AGAIN:
            error = MachineError(f"the server is busy (HTTP {code})", self._where, "try again later")
            raise LostError(error, reached=True)
        if code == 413:
            return Receipt(one.id, "refused", "it is too large for the server (HTTP 413): raise its limit")
        reason = _failure(_dataset(response))
        return Receipt(one.id, "refused", reason or f"the server refuses it (HTTP {code}): see the log of the PACS")

    def _no_service(self, what: str) -> UnetMedError:
        remedy = "give the address of its DICOMweb service, for example http://127.0.0.1:8042/dicom-web"
        return UsageError(what, self._where, remedy)


def _trust(session: Any, ca: str) -> None:
    """Makes a session trust these certificates, whatever the environment says of others."""
    merge = session.merge_environment_settings

    def merged(url: str, proxies: Any, stream: Any, _verify: Any, cert: Any) -> Any:
        return merge(url, proxies, stream, ca, cert)

    session.merge_environment_settings = merged


def _without_parameters(response: Any, *_more: Any, **_options: Any) -> None:
    """Leaves ``; charset=...`` out of the type of an answer, which the client does not expect."""
    kind = response.headers.get("Content-Type", "")
    response.headers["Content-Type"] = kind.partition(";")[0].strip()


def _dataset(response: Any) -> Any:
    """Returns the answer as a data set; an empty one when it is none."""
    import pydicom

    try:
        return pydicom.Dataset.from_json(response.json())
    except Exception:  # noqa: BLE001 - an error page, or anything
        return pydicom.Dataset()


def _failure(answer: Any) -> str:
    """Returns why the object was refused, by the answer; nothing when it does not say."""
    failed = answer.get("FailedSOPSequence")
    if not failed:
        return ""
    reason = failed[0].get("FailureReason")
    return failure_text(int(reason)) if reason else "the PACS refuses it and says no reason: see the log of the PACS"


def _receipt(one: DicomObject, answer: Any) -> Receipt:
    """Reads the answer to a request that succeeded: an object is stored when the answer names it."""
    failure = _failure(answer)
    if failure:
        return Receipt(one.id, "refused", failure)
    stored = answer.get("ReferencedSOPSequence") or []
    if not any(str(item.get("ReferencedSOPInstanceUID", "")) == one.sop_uid for item in stored):
        return Receipt(one.id, "refused", _UNCONFIRMED)
    remark = stored[0].get("WarningReason")
    return Receipt(one.id, "sent", f"the PACS stored it with a remark (0x{int(remark):04X})" if remark else "")
