"""Texts of libraries keep their words and lose what they quote."""

from __future__ import annotations

import io
import logging

import pytest

from unet_med.errors import InputRefusedError
from unet_med.redaction import PrivateFormatter, private_traceback, redacted


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("could not broadcast (3, 4) into (3, 5)", "could not broadcast (3, 4) into (3, 5)"),
        ("can't read 12 of 13 bytes, it's cut", "can't read 12 of 13 bytes, it's cut"),
        ("Invalid value for VR UI: 'SECRET JANE'. See the standard", "Invalid value for VR UI: .... See the standard"),
        ("[Errno 2] No such file: '/data/SECRET^JANE/a b.dcm'", "[Errno 2] No such file: ..."),
        ("cannot open /data/SECRET/1.dcm now", "cannot open ... now"),
        ("cannot open C:\\data\\SECRET.dcm now", "cannot open ... now"),
        ("name SECRET^JANE, born 19450607", "name ... born ..."),
        ("value \"SECRET\" of b'JANE'", "value ... of ..."),
        ("series 1.2.840.10008.5.1.4 is odd, 1.5 is not", "series ... is odd, 1.5 is not"),
        ("a key: KeyError('SECRET')", "a key: KeyError(...)"),
    ],
)
def test_what_is_quoted_goes(text: str, left: str) -> None:
    assert redacted(text) == left


def failing() -> None:
    try:
        try:
            int("SECRET")
        except ValueError as error:
            raise OSError(2, "No such file", "/data/SECRET") from error
    except OSError as error:
        raise InputRefusedError("the file cannot be read", "s001-1234abcd", "copy it again") from error


def test_a_traceback_keeps_places_and_the_chain() -> None:
    with pytest.raises(InputRefusedError) as caught:
        failing()
    text = private_traceback(caught.value)
    assert "SECRET" not in text.replace('int("SECRET")', "").replace('"/data/SECRET"', "")  # the code itself, above
    assert text.count("Traceback (most recent call last):") == 3
    assert text.index("ValueError: invalid literal") < text.index("FileNotFoundError: [Errno 2]")
    assert text.endswith("InputRefusedError: the file cannot be read (s001-1234abcd): copy it again")
    assert "in failing" in text


def test_records_of_libraries_are_redacted_and_ours_are_not() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrivateFormatter("%(name)s: %(message)s"))
    for name in ("unet_med.io.dicom.source", "some_library"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        try:
            logger.error("a value '%s' of %d", "SECRET", 123456)
            try:
                failing()
            except InputRefusedError:
                logger.exception("stopped")
        finally:
            logger.removeHandler(handler)
    ours, theirs = stream.getvalue().split("some_library: ", 1)
    assert "a value 'SECRET' of 123456" in ours
    assert "a value ... of ..." in theirs
    for text in (ours, theirs):
        assert text.count("ValueError: invalid literal for int() with base 10: ...") == 1
        assert text.count("Traceback") == 3
