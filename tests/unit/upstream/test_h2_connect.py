"""Whom the HTTP/2 client trusts.

Pure.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi
import pytest
import trustme

from app.upstream.trust import trust


def authorities(context: ssl.SSLContext) -> set[str]:
    """Organisations of the loaded certificates."""
    return {str(certificate["subject"]) for certificate in context.get_ca_certs()}


def places(monkeypatch: pytest.MonkeyPatch, file: Path, folder: Path) -> None:
    paths = ssl.DefaultVerifyPaths("", "", "", str(file), "", str(folder))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    monkeypatch.setattr(ssl.SSLContext, "set_default_verify_paths", lambda self: None)


def test_an_empty_system_store_means_certifis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    places(monkeypatch, tmp_path / "none.pem", tmp_path)
    wanted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    wanted.load_verify_locations(cafile=certifi.where())
    assert authorities(trust()) == authorities(wanted)


def test_the_system_store_stays_and_ours_is_added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    system, ours = trustme.CA(organization_name="system"), trustme.CA(organization_name="ours")
    file = tmp_path / "cert.pem"
    system.cert_pem.write_to_path(str(file))
    places(monkeypatch, file, tmp_path / "none")
    found = authorities(trust(ours.cert_pem.bytes()))
    assert len(found) == 2
    assert any("system" in one for one in found)
    assert any("ours" in one for one in found)


def test_names_are_checked_and_old_tls_is_refused() -> None:
    context = trust()
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_no_certificate_is_not_pem() -> None:
    with pytest.raises(ssl.SSLError):
        trust(b"no certificate")
