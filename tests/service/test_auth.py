"""Keys: which headers open, what is kept, and exchanging them."""

import json
import os
import stat

import pytest

from fpgasim.errors import InputError
from fpgasim.service import auth

PRIMARY, SECONDARY = "primary-key-0001", "secondary-key-02"


def header(value, name="authorization"):
    return [("user-agent", "test"), (name, value)]


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER {}", "{}", " {} "])
@pytest.mark.parametrize("key", [PRIMARY, SECONDARY])
def test_both_keys_open_in_every_form_that_clients_send(form, key):
    assert auth.Keys(PRIMARY, SECONDARY).opens(header(form.format(key)))


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        header(""),
        header("Bearer "),
        header("Bearer wrong-key-00001"),
        header(PRIMARY[:-1]),
        header(PRIMARY + "x"),
        header(f"Basic {PRIMARY}"),
        header(f"Bearer Bearer {PRIMARY}"),
        header(PRIMARY, "x-authorization"),
        header(PRIMARY.encode()),
        header("\udcff\udcfe"),
        [*header(PRIMARY), *header("wrong-key-00001")],
    ],
)
def test_nothing_else_opens(metadata):
    assert not auth.Keys(PRIMARY, SECONDARY).opens(metadata)


def test_without_a_secondary_key_only_the_primary_opens():
    keys = auth.Keys(PRIMARY)
    assert keys.opens(header(PRIMARY))
    assert not keys.opens(header("None"))


def test_exchanged_keys_no_longer_open():
    keys = auth.Keys(PRIMARY, SECONDARY)
    keys.replace("another-key-0001", SECONDARY)
    assert not keys.opens(header(PRIMARY))
    assert keys.opens(header("another-key-0001"))
    assert keys.opens(header(SECONDARY))


def test_no_key_is_kept():
    keys = auth.Keys(PRIMARY, SECONDARY)
    assert PRIMARY not in repr(vars(keys))
    assert PRIMARY.encode() not in b"".join(keys._digests)


@pytest.mark.parametrize(
    "key", ["", "short", "with space 123", "tab\tinside12", "ümlaut-key-1", "x" * 513, None, 12345678]
)
def test_what_cannot_be_a_key_is_refused_without_showing_it(key):
    with pytest.raises(InputError, match="the primary key must be 8 to 512") as caught:
        auth.Keys(key)
    assert not key or str(key) not in str(caught.value)


def test_made_keys_differ_and_open():
    keys = {auth.make_key() for _ in range(10)}
    assert len(keys) == 10
    assert auth.Keys(*list(keys)[:2]).opens(header(list(keys)[1]))


def test_a_keys_file_is_its_owners_and_is_followed(tmp_path):
    path = tmp_path / "keys.json"
    auth.write_keys(path, PRIMARY, SECONDARY)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    keys = auth.KeysFile(path, every_s=0)
    assert keys.opens(header(PRIMARY))
    auth.write_keys(path, "another-key-0001", SECONDARY)
    assert not keys.opens(header(PRIMARY))
    assert keys.opens(header("another-key-0001"))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"primary": 3}', '{"primary": "x"}', '{"primary": "12345678", "more": 1}']
)
def test_a_broken_keys_file_leaves_the_old_keys_in_force(tmp_path, text, caplog):
    path = tmp_path / "keys.json"
    auth.write_keys(path, PRIMARY, None)
    keys = auth.KeysFile(path, every_s=0)
    path.write_text(text)
    assert keys.opens(header(PRIMARY))
    assert "the keys stay as they were" in caplog.text
    with pytest.raises(InputError):
        auth.Keys.read(path)


def test_a_keys_file_that_is_gone_leaves_the_old_keys_in_force(tmp_path):
    path = tmp_path / "keys.json"
    auth.write_keys(path, PRIMARY, None)
    keys = auth.KeysFile(path, every_s=0)
    path.unlink()
    assert keys.opens(header(PRIMARY))


def test_an_audit_line_is_json(caplog):
    auth.audit("refused", peer="ipv4:127.0.0.1:1", method="/x/Predict", reason="no key")
    line = json.loads(caplog.records[0].getMessage())
    assert line["event"] == "refused"
    assert line["time"] > 1e9
