"""Certificates for tests: an authority, and a server certificate that it has signed.

Rule: generated per process, valid for a day, for 127.0.0.1 and for no name: `localhost` leads to the same server, and is the
wrong name for it.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """PEM files: a client trusts `authority`; `certificate` and `key` are the server's; `stranger` is an authority that has
    signed neither."""

    authority: Path
    certificate: Path
    key: Path
    stranger: Path


def make(folder: Path) -> Certificates:
    """Write all of them into `folder`."""
    ours, strange = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    server = ec.generate_private_key(ec.SECP256R1())
    made = Certificates(
        authority=folder / "authority.pem",
        certificate=folder / "server.pem",
        key=folder / "server-key.pem",
        stranger=folder / "stranger.pem",
    )
    made.authority.write_bytes(_pem(_authority("the tests' authority", ours)))
    made.stranger.write_bytes(_pem(_authority("another authority", strange)))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = _begun("the tests' server", "the tests' authority", server).add_extension(address, critical=False)
    made.certificate.write_bytes(_pem(signed.sign(ours, hashes.SHA256())))
    made.key.write_bytes(
        server.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    made.key.chmod(0o600)
    return made


def _authority(name: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    usage = x509.KeyUsage(
        key_cert_sign=True, crl_sign=True, digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    begun = _begun(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return begun.add_extension(usage, critical=True).sign(key, hashes.SHA256())


def _begun(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    subject_name, issuer_name = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer))
    return (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
