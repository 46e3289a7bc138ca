"""Certificates are renewed while clients come."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import pytest

from loadtests.lab.certificates import Issued, issue, make_ca

from .program import AdminFault, until
from .town import Config, Town
from .traffic import Traffic


def _publish(directory: Path, pair: Issued, number: int) -> None:
    """As the kubelet writes a secret: files in a new directory, to which a link is renamed over the old one."""
    fresh = directory / f"..2026_{number}"
    fresh.mkdir(parents=True)
    (fresh / "tls.crt").write_bytes(pair.certificate.read_bytes())
    (fresh / "tls.key").write_bytes(pair.key.read_bytes())
    link = directory / "..data_tmp"
    link.symlink_to(fresh.name)
    link.rename(directory / "..data")
    for name in ("tls.crt", "tls.key"):
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")


async def _served(town: Town) -> int:
    """The serial number of the certificate that a new client sees."""
    _, writer = await _connect(town)
    tls = writer.get_extra_info("ssl_object")
    writer.close()
    return int(tls.getpeercert()["serialNumber"], 16)


async def _connect(town: Town) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context(cafile=town.files["ca"])
    return await asyncio.open_connection("127.0.0.1", town.program.port(), ssl=context, server_hostname="localhost")


def _town(directory: Path, workers: int) -> Town:
    directory.mkdir(exist_ok=True)
    ca = make_ca(directory)
    mount = directory / "mount"
    _publish(mount, issue(ca, names=["localhost"], file_name="first"), 1)

    def edit(config: Config) -> None:
        pair = {"certificate": str(mount / "tls.crt"), "key": str(mount / "tls.key")}
        config["listeners"][0]["tls"] = {"certificates": [pair]}

    town = Town(directory, workers=workers, edit=edit)
    town.authority, town.files = ca, {"ca": str(ca.certificate)}
    town.traffic = Traffic(town.program.port(), authority=str(ca.certificate))
    return town


async def test_a_secret_is_renewed_as_kubernetes_does_it(tmp_path: Path, workers: int) -> None:
    """A link to a directory is swapped: seen without a signal, and never a certificate with the other one's key."""
    async with _town(tmp_path, workers) as town:
        first = await _served(town)
        _publish(tmp_path / "mount", issue(town.authority, names=["localhost"], file_name="second"), 2)

        async def renewed() -> bool:
            return {await _served(town) for _ in range(8)} & {first} == set()

        await until(renewed, "the new certificate is served by every worker", 20)
        await town.traffic.more()
        assert not town.program.logged("certificates_refused")


async def test_a_reload_takes_the_new_files_at_once(tmp_path: Path, workers: int) -> None:
    """After SIGHUP nobody sees the old certificate, though the file's text has not changed."""
    async with _town(tmp_path, workers) as town:
        first = await _served(town)
        _publish(tmp_path / "mount", issue(town.authority, names=["localhost"], file_name="second"), 2)
        await town.program.hang_up()
        assert first not in [await _served(town) for _ in range(8)]


async def test_a_broken_certificate_is_refused(tmp_path: Path, workers: int) -> None:
    """A key that is another's, as while someone copies files: the old pair stays, and the log says why."""
    async with _town(tmp_path, workers) as town:
        first = await _served(town)
        mount = tmp_path / "mount"
        other = issue(town.authority, names=["localhost"], file_name="second")
        torn = mount / "..data" / "tls.key"
        kept = torn.read_bytes()
        torn.write_bytes(other.key.read_bytes())
        os.utime(torn)
        with pytest.raises(AdminFault, match="does not belong"):  # a reload reads it too, and changes nothing
            await town.program.reload()
        await town.program.event("certificates_refused")
        await town.traffic.more()
        assert await _served(town) == first
        torn.write_bytes(kept)
