"""`fpgasim score`: what it says where a service is not called as it wants to be."""

import socket

import numpy as np
import pytest
from click.testing import CliRunner

from fpgasim.cli import main
from fpgasim.service import tls

from .calling import linear_servable, serving, write


@pytest.fixture
def x(tmp_path):
    np.save(tmp_path / "x.npy", np.float32([[1, 2, 3, 4]]))
    return f"x={tmp_path / 'x.npy'}"


def score(address, *options):
    return CliRunner().invoke(main, ["score", address, "--timeout", "2", *options])


def test_a_port_that_speaks_tls_is_told_to_who_did_not_ask_for_it(tmp_path, x):
    cert, key = write(tmp_path, tls.self_signed())
    with serving(linear_servable(tmp_path), tls_cert=cert, tls_key=key) as server:
        for address in (server.address, f"localhost:{server.port}"):
            found = score(address, "--input", x)
            assert found.exit_code != 0
            assert "it speaks TLS: --tls, or --ca FILE, would do" in found.output
        assert score(f"localhost:{server.port}", "--input", x, "--ca", str(cert)).exit_code == 0


def test_a_server_that_wants_a_certificate_of_its_callers_speaks_tls_too(tmp_path):
    made = tls.self_signed()
    cert, key = write(tmp_path, made)
    with serving(linear_servable(tmp_path), tls_cert=cert, tls_key=key, client_ca=cert, rest_port=0) as server:
        assert tls.speaks_tls("127.0.0.1", server.port)
        assert tls.speaks_tls("127.0.0.1", int(server.http["rest"].rpartition(":")[2]))


def test_nobody_and_whoever_says_nothing_or_speaks_in_the_clear_do_not_speak_tls(tmp_path, x):
    with serving(linear_servable(tmp_path), rest_port=0) as server:
        assert not tls.speaks_tls("127.0.0.1", server.port)
        assert not tls.speaks_tls("127.0.0.1", int(server.http["rest"].rpartition(":")[2]))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert not tls.speaks_tls("127.0.0.1", port, timeout_s=0.2)
    found = score(f"127.0.0.1:{port}", "--input", x)
    assert found.exit_code != 0
    assert "UNAVAILABLE" in found.output
    assert "TLS" not in found.output
