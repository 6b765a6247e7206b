"""What cannot be stored and read everywhere is refused at publish, with a typed error, whatever the store."""

import pytest

from outboxkit import Settings
from outboxkit.encoding import Encoder
from outboxkit.errors import PayloadError
from tests.hostile.corpus import TEXTS, UNSTORABLE, unstorable_values
from tests.hostile.services import Note

encoder = Encoder("diary", Settings())


@pytest.mark.parametrize(("name", "value"), unstorable_values().items(), ids=list(unstorable_values()))
def test_a_value_that_some_store_or_reader_cannot_have_is_refused(name: str, value: object) -> None:
    with pytest.raises(PayloadError):
        encoder.row(Note(value))


@pytest.mark.parametrize("text", UNSTORABLE.values(), ids=UNSTORABLE.keys())
def test_such_a_key_or_header_is_refused(text: str) -> None:
    with pytest.raises(PayloadError):
        encoder.row(Note(1), key=text)
    with pytest.raises(PayloadError):
        encoder.row(Note(1), headers={"header": text})


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_any_other_text_is_taken_as_a_value_a_key_and_a_header(text: str) -> None:
    assert encoder.row(Note(text), key=text, headers={"header": text}).key == text
