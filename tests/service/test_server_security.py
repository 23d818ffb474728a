"""Who is let in: keys, certificates, both exchanged while calls go on, and what those outside are told."""

import json
import threading

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from fpgasim.errors import InputError
from fpgasim.service import ServerConfig, auth, tls, wire

from .calling import KEY, KEY2, OPEN, arrays, bearer, channel, health, made, request, serving, status, stub, write

PAIR = np.float32([[1, 2]])
KEYED = ServerConfig(port=0, auth_keys=(KEY, KEY2))


def echo():
    return made(lambda feeds: {"out:0": feeds["in:0"]})


@pytest.fixture(scope="module")
def certificate():
    return tls.self_signed()


@pytest.fixture(scope="module")
def server():
    with serving(echo(), config=KEYED) as running:
        yield running


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", KEY, f"Bearer {KEY2}", KEY2])
def test_either_key_opens_in_every_form_that_clients_send(server, header):
    with channel(server) as line:
        answer = stub(line, "Predict")(request(in__0=PAIR), metadata=(("authorization", header),))
    assert arrays(answer)["out:0"].tolist() == PAIR.tolist()


@pytest.mark.parametrize("header", [None, "", "Bearer ", "Bearer wrong-key", KEY[:-1], f"Basic {KEY}"])
def test_no_key_or_a_wrong_one_is_refused_with_an_id_and_an_audit_line(server, header, caplog):
    metadata = () if header is None else (("authorization", header),)
    with channel(server) as line, pytest.raises(grpc.RpcError) as caught:
        stub(line, "Predict")(request(in__0=PAIR), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    line = json.loads(caplog.messages[-1])
    assert line["request_id"] == dict(caught.value.initial_metadata())["request_id"]
    assert (line["event"], line["method"]) == ("refused", "Predict")
    for told in (caught.value.details(), caplog.text):
        assert KEY not in told
        assert "wrong-key" not in told


def test_two_headers_do_not_open(server):
    with channel(server) as line:
        code, _ = status(stub(line, "Predict"), request(in__0=PAIR), metadata=bearer("wrong-key") + bearer(KEY))
    assert code == "UNAUTHENTICATED"


@pytest.mark.parametrize("service", [wire.PREDICTION_SERVICE, wire.MODEL_SERVICE, wire.INFERENCE_SERVICE])
def test_every_method_but_health_asks_for_the_key(server, service):
    open_ones = {"ServerLive", "ServerReady"}
    with channel(server) as line:
        for method, (message, _) in wire.methods(service).items():
            call = stub(line, method, service)
            if method in open_ones:
                call(message())
            else:
                assert status(call, message())[0] == "UNAUTHENTICATED"
        assert status(line.unary_unary("/not/there"), b"")[0] == "UNAUTHENTICATED"
        assert health(line) == "SERVING"
        assert status(lambda: ProtoReflectionDescriptorDatabase(line).get_services())[0] == "UNAUTHENTICATED"


def test_a_message_is_not_taken_before_the_key_is_seen():
    """Else whoever has no key could fill the memory."""
    with serving(echo(), config=KEYED) as server, channel(server) as line:
        call = line.stream_unary(f"/{wire.PREDICTION_SERVICE}/Predict")
        never = threading.Event()

        def messages():
            never.wait(30)
            yield b""

        with pytest.raises(grpc.RpcError) as caught:
            call(messages(), timeout=20)
        never.set()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_keys_are_exchanged_under_load_without_a_dropped_call():
    """As Azure's users do: exchange one, tell the clients, exchange the other."""
    keys = [KEY, KEY2]
    failed, answered, stop = [], [0], threading.Event()

    def load(line):
        predict = stub(line, "Predict")
        while not stop.is_set():
            code = None
            try:
                predict(request(in__0=PAIR), metadata=bearer(keys[0]), timeout=30)
            except grpc.RpcError as error:
                code = error.code()
            if code is not None:
                failed.append(code)
                return
            answered[0] += 1

    with serving(echo(), config=KEYED) as server, channel(server) as line:
        threads = [threading.Thread(target=load, args=(line,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for i in range(30):
            fresh = f"fresh-key-{i}"
            server.reload_keys(keys[0], fresh)  # the second one is nobody's by now
            keys[0] = fresh  # the clients change over
            before = answered[0]
            while answered[0] < before + 6 and not failed:  # so that no call with the old one is on its way
                stop.wait(0.001)
        stop.set()
        for thread in threads:
            thread.join()
        assert status(stub(line, "Predict"), request(in__0=PAIR), metadata=bearer(KEY))[0] == "UNAUTHENTICATED"
    assert not failed
    assert answered[0] > 100


def test_a_keys_file_is_followed(tmp_path):
    file = tmp_path / "keys"
    auth.write_keys(file, KEY, None)
    with serving(echo(), keys_file=file) as server, channel(server) as line:
        predict = stub(line, "Predict")
        predict(request(in__0=PAIR), metadata=bearer(KEY))
        auth.write_keys(file, KEY2, None)
        server.refresh()
        predict(request(in__0=PAIR), metadata=bearer(KEY2))
        assert status(predict, request(in__0=PAIR), metadata=bearer(KEY))[0] == "UNAUTHENTICATED"
        server.reload_keys("another-key", KEY2)
        predict(request(in__0=PAIR), metadata=bearer("another-key"))
    assert auth.read_keys(file) == ("another-key", KEY2)


def test_a_server_without_keys_has_none_to_exchange():
    with serving(echo()) as server, pytest.raises(InputError, match="without keys"):
        server.reload_keys(KEY)


def test_tls_and_a_key(tmp_path, certificate):
    cert, key = write(tmp_path, certificate)
    with serving(echo(), config=KEYED, tls_cert=cert, tls_key=key) as server:
        assert server.facts == ("tls", "key")
        with channel(server, certificate.chain) as line:
            stub(line, "Predict")(request(in__0=PAIR), metadata=bearer(KEY))
            assert status(stub(line, "Predict"), request(in__0=PAIR))[0] == "UNAUTHENTICATED"


def test_tls_alone_is_open(tmp_path, certificate):
    cert, key = write(tmp_path, certificate)
    with serving(echo(), tls_cert=cert, tls_key=key) as server, channel(server, certificate.chain) as line:
        stub(line, "Predict")(request(in__0=PAIR), metadata=(("authorization", "Bearer "),))


def test_plain_text_and_strangers_certificates_do_not_come_through(tmp_path, certificate):
    cert, key = write(tmp_path, certificate)
    with serving(echo(), tls_cert=cert, tls_key=key) as server:
        for root in (None, tls.self_signed().chain):
            with channel(server, root) as line:
                assert status(stub(line, "Predict"), request(in__0=PAIR), timeout=20)[0] == "UNAVAILABLE"
        with channel(server, certificate.chain) as line:
            assert health(line) == "SERVING"


def authority():
    """A CA for clients, and one client's certificate by it."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    own = tls.self_signed(["localhost"])
    dates = x509.load_pem_x509_certificate(own.chain)

    def signed(public, subject, *, ca):
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clients")]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(dates.not_valid_before_utc)
            .not_valid_after(dates.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(ca_key, hashes.SHA256())
            .public_bytes(forms.Encoding.PEM)
        )

    private = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    return signed(ca_key.public_key(), "clients", ca=True), (private, signed(key.public_key(), "client", ca=False))


def test_only_callers_of_the_ca_come_in_where_there_is_one(tmp_path, certificate):
    cert, key = write(tmp_path, certificate)
    ca, pair = authority()
    (tmp_path / "ca.pem").write_bytes(ca)
    stranger = tls.self_signed()
    with serving(echo(), tls_cert=cert, tls_key=key, client_ca=tmp_path / "ca.pem") as server:
        assert server.facts == ("tls", "client certificate", "open")
        with channel(server, certificate.chain, pair) as line:
            stub(line, "Predict")(request(in__0=PAIR))
        for wrong in (None, (stranger.key, stranger.chain)):
            with channel(server, certificate.chain, wrong) as line:
                assert status(stub(line, "Predict"), request(in__0=PAIR), timeout=20)[0] == "UNAVAILABLE"


def test_a_certificate_is_exchanged_under_load_without_a_dropped_call(tmp_path, certificate):
    cert, key = write(tmp_path, certificate)
    failed, answered, stop = [], [0], threading.Event()

    def load(line):
        predict = stub(line, "Predict")
        while not stop.is_set():
            try:
                predict(request(in__0=PAIR), timeout=30)
            except grpc.RpcError as error:
                failed.append(error)
                return
            answered[0] += 1

    with serving(echo(), tls_cert=cert, tls_key=key) as server, channel(server, certificate.chain) as line:
        thread = threading.Thread(target=load, args=(line,))
        thread.start()
        while not answered[0] and not failed:  # it holds a connection from now on
            stop.wait(0.01)
        for _ in range(2):
            fresh = tls.self_signed()
            write(tmp_path, fresh)
            stop.wait(1.05)  # files are looked at once a second
            server.refresh()
            with channel(server, fresh.chain, use_local_subchannel_pool=1) as other:
                stub(other, "Predict")(request(in__0=PAIR), timeout=20)
        with channel(server, certificate.chain, use_local_subchannel_pool=1) as old:
            assert status(stub(old, "Predict"), request(in__0=PAIR), timeout=20)[0] == "UNAVAILABLE"
        stop.set()
        thread.join()
    assert not failed
    assert answered[0] > 20


def test_the_default_is_open_and_plain_on_this_machine_alone():
    assert (OPEN.host, OPEN.auth_keys, OPEN.tls_cert) == ("127.0.0.1", None, None)
