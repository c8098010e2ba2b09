"""A certificate authority for the servers that speak https."""

import pytest
import trustme


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority of our own."""
    return trustme.CA()


@pytest.fixture
def trusted(authority, monkeypatch, tmp_path) -> trustme.CA:
    """The same, trusted by the client."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    return authority
