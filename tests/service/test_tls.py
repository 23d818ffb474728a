"""Certificates: read, checked, made, and followed."""

import pytest
from cryptography import x509

from fpgasim.errors import InputError
from fpgasim.service import tls


def write(folder, certificate, name="server"):
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    for path, data in zip(paths, (certificate.chain, certificate.key), strict=True):
        path.write_bytes(data)
    return paths


def test_a_made_certificate_names_its_hosts():
    made = tls.self_signed(["localhost", "127.0.0.1", "::1"])
    names = x509.load_pem_x509_certificate(made.chain).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert made.checked() == made


def test_a_certificate_is_read_from_its_files(tmp_path):
    made = tls.self_signed()
    assert tls.Certificate.read(*write(tmp_path, made)) == made


def test_what_does_not_belong_together_or_is_no_pem_is_refused(tmp_path):
    one, other = (write(tmp_path, tls.self_signed(), name) for name in ("one", "other"))
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "cut.pem").write_bytes(one[0].read_bytes()[:200])
    for chain, key, ca, says in (
        (one[0], other[1], None, "does not belong to the first certificate"),
        (tmp_path / "missing", one[1], None, "missing' cannot be read"),
        (tmp_path / "junk", one[1], None, "is not PEM"),
        (tmp_path / "cut.pem", one[1], None, "must be PEM"),
        (one[0], one[0], None, "must be PEM"),
        (*one, tmp_path / "cut.pem", "must be PEM"),
    ):
        with pytest.raises(InputError, match=says):
            tls.Certificate.read(chain, key, ca)


def test_a_key_with_a_password_is_refused(tmp_path):
    from cryptography.hazmat.primitives import serialization as forms

    made = tls.self_signed()
    key = forms.load_pem_private_key(made.key, None)
    locked = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.BestAvailableEncryption(b"x"))
    with pytest.raises(InputError, match="without a password"):
        tls.Certificate(made.chain, locked).checked()


def test_files_that_change_are_followed_and_half_written_ones_are_not(tmp_path, caplog):
    first, second = tls.self_signed(), tls.self_signed()
    chain, key = write(tmp_path, first)
    files = tls.CertificateFiles(chain, key, every_s=0)
    assert files.current == first
    chain.write_bytes(second.chain)
    files.refresh()
    assert files.current == first
    assert "the certificate stays as it was" in caplog.text
    key.write_bytes(second.key)
    files.refresh()
    assert files.current == second
