"""Every test here runs on both event loops: the default one and uvloop, whose transports differ in their corners."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The event loop under test."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
def until() -> Callable[..., object]:
    """Wait, turn by turn of the loop, for something that has no event of its own."""

    async def wait(claim: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not claim():  # noqa: ASYNC110 - the claims are about sockets, which set no event
                await asyncio.sleep(0)

    return wait


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority of our own, made by the openssl command; in CI its absence is a failure."""
    if shutil.which("openssl") is None:
        reason = "the openssl command is not installed, so no test certificates can be made"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return Authority(tmp_path_factory.mktemp("authority"))


class Authority:
    """Signs certificates for tests; files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._openssl("req", "-x509", *_NEW_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")

    def sign(self, name: str, days: int = 30) -> tuple[Path, Path]:
        """Certificate and key for `name` in subjectAltName form, such as `DNS:localhost` or `IP:127.0.0.1`.

        Of -1 days, it ran out yesterday.
        """
        stem = f"{name.replace(':', '-').replace('.', '-')}-{days}"
        (self.folder / f"{stem}.ext").write_text(f"subjectAltName={name}\n")
        self._openssl("req", *_NEW_KEY, "-keyout", f"{stem}.key", "-out", f"{stem}.csr", "-subj", "/CN=test")
        issuer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{stem}.ext")
        self._openssl("x509", "-req", "-in", f"{stem}.csr", *issuer, "-days", str(days), "-out", f"{stem}.pem")
        return self.folder / f"{stem}.pem", self.folder / f"{stem}.key"

    def sign_self(self) -> tuple[Path, Path]:
        """A certificate that vouches for itself."""
        names = ("-addext", "subjectAltName=IP:127.0.0.1")
        self._openssl("req", "-x509", *_NEW_KEY, "-keyout", "self.key", "-out", "self.pem", "-subj", "/CN=self", *names)
        return self.folder / "self.pem", self.folder / "self.key"

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=30)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
