"""Certificates: an authority and what it signs, as files for operators or in memory for one run."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lowdimfa.errors import InputError

Purpose = Literal["server", "client", "peer"]

_USAGES = {
    "server": [ExtendedKeyUsageOID.SERVER_AUTH],
    "client": [ExtendedKeyUsageOID.CLIENT_AUTH],
    "peer": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
}
_PEM = serialization.Encoding.PEM

_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
"""Names of hosts, without ports, schemes and paths, which no client could match."""

MOST_DAYS = 36_500
"""A certificate ends before the year 10,000, and nobody means a later one."""


class Authority:
    """A certificate authority that lasts as long as this object.

    Parameters
    ----------
    name
        In its certificate.
    days
        For which it and all that it signs are valid.
    """

    def __init__(self, name: str, days: float) -> None:
        self._days = days
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name(name)
        certificate = self._builder(self._name, self._key.public_key())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self._certificate = (
            certificate.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate(self) -> bytes:
        """Its own certificate, PEM."""
        return self._certificate.public_bytes(_PEM)

    @property
    def key(self) -> bytes:
        """Its private key, PEM."""
        return _private(self._key)

    def issue(self, name: str, hosts: Sequence[str], purpose: Purpose) -> tuple[bytes, bytes]:
        """Return PEM of a certificate and of its private key.

        Parameters
        ----------
        name
            Of whom the certificate is.
        hosts
            Names and addresses by which a server is reached.
        purpose
            What it may be used for; a peer is server and client.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            self._builder(_common_name(name), key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts or [name]]), critical=False
            )
            .add_extension(x509.ExtendedKeyUsage(_USAGES[purpose]), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(_PEM), _private(key)

    def _builder(self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        end = now + datetime.timedelta(days=self._days)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            # The clocks of a cluster's machines may differ.
            .not_valid_before(min(now, end) - datetime.timedelta(hours=1))
            .not_valid_after(end)
        )


def write_certificates(folder: Path, hosts: Sequence[str], days: float) -> list[Path]:
    """Make an authority, a server's certificate and a client's, and write all six files into a folder.

    Parameters
    ----------
    folder
        Made where there is none.
    hosts
        Names and addresses by which clients reach the server.
    days
        For which all of them are valid.

    Returns
    -------
    ``ca.crt``, ``ca.key``, ``server.crt``, ``server.key``, ``client.crt``, ``client.key``; the keys are readable by
    their owner alone.

    Raises
    ------
    InputError
        One of the files is there already, a host is neither name nor address, the days are none that a certificate can
        have, or nothing can be written.
    """
    names = [f"{who}.{what}" for who in ("ca", "server", "client") for what in ("crt", "key")]
    for host in hosts:
        _host(host)
    if not 0 < days <= MOST_DAYS:
        raise InputError("--days", f"{days:g}", f"a number above 0, {MOST_DAYS:,} at most")
    authority = Authority("lowdimfa", days)
    contents = [
        authority.certificate,
        authority.key,
        *authority.issue("lowdimfa-coordinator", hosts, "server"),
        *authority.issue("lowdimfa-client", ["lowdimfa-client"], "client"),
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if present := [name for name in names if (folder / name).exists()]:
            raise InputError(str(folder), f"{', '.join(present)} already there", "a folder without them")
        for name, content in zip(names, contents, strict=True):
            mode = 0o600 if name.endswith(".key") else 0o644
            with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
    except OSError as error:
        raise InputError(str(folder), f"no place to write ({error.strerror})", "a writable folder") from error
    return [folder / name for name in names]


def server_credentials(certificate: Path, key: Path, client_ca: Path | None) -> Any:
    """Return `grpc.ServerCredentials` of files.

    Parameters
    ----------
    certificate, key
        The server's own, PEM.
    client_ca
        Authority of the certificates that clients must show; None asks for none.

    Raises
    ------
    InputError
        A file can't be read or isn't what it should be, key and certificate don't belong together, or the
        certificate isn't valid today.
    """
    own = _pair(certificate, key)
    authority = None if client_ca is None else _authority(client_ca)
    return grpc.ssl_server_credentials(
        [own], root_certificates=authority, require_client_auth=authority is not None
    )


def channel_credentials(authority: Path | None, certificate: Path | None, key: Path | None) -> Any:
    """Return `grpc.ChannelCredentials` of files.

    Parameters
    ----------
    authority
        Of the server's certificate, PEM; None for the public ones.
    certificate, key
        The client's own, PEM; None for a server that asks for none.

    Raises
    ------
    InputError
        As for `server_credentials`.
    """
    own = (None, None) if certificate is None or key is None else _pair(certificate, key)
    return grpc.ssl_channel_credentials(None if authority is None else _authority(authority), *own)


def _pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Return key and certificate, PEM, which belong together and are valid today."""
    chain, private = _read(certificate), _read(key)
    own = _certificate(certificate, chain)
    try:
        loaded = serialization.load_pem_private_key(private, None)
    except (ValueError, TypeError) as error:
        raise InputError(str(key), "no private key in the clear", "a PEM file with one") from error
    if loaded.public_key() != own.public_key():
        raise InputError(
            str(key), f"a key of another certificate than {certificate}", "the key that belongs to it"
        )
    now = datetime.datetime.now(datetime.UTC)
    if not own.not_valid_before_utc <= now <= own.not_valid_after_utc:
        raise InputError(
            str(certificate),
            f"a certificate valid from {own.not_valid_before_utc:%Y-%m-%d} to {own.not_valid_after_utc:%Y-%m-%d}",
            "one that is valid today",
            "'lowdimfa certs' makes one.",
        )
    return private, chain


def _authority(path: Path) -> bytes:
    data = _read(path)
    _certificate(path, data)
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"a file that can't be read ({error.strerror})", "a PEM file") from error


def _certificate(path: Path, data: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise InputError(str(path), "no certificate", "a PEM file with one") from error


def _host(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    if _NAME.fullmatch(host):
        return x509.DNSName(host)
    raise InputError(
        f"--host {host}", "neither a name nor an address", "such as 'cluster.example.org' or '10.0.0.7'"
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
