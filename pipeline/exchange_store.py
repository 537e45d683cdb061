"""An exchange place in an object store: an object is there whole or not at all."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.durable import appearing
from pipeline.errors import WorldError
from pipeline.exchange import check_whole
from pipeline.object_store_folder import LocalFile, StoreFolder
from pipeline.stages import digest_of


@dataclass(frozen=True, kw_only=True)
class StoreExchange:
    """Objects below an `s3://` address; every machine reaches them with credentials of its own."""

    address: str
    """The address that the operator named."""
    inside: str = ""
    """The place below it: folders, each with a slash behind."""

    def below(self, name: str) -> StoreExchange:
        """See `Exchange`."""
        return replace(self, inside=f"{self.inside}{name}/")

    def send(self, path: Path, name: str) -> int:
        """See `Exchange`."""
        self._store.upload({f"{self.inside}{name}": LocalFile(path=path, sha256=digest_of(path))})
        return path.stat().st_size

    def fetch(self, name: str, target: Path, *, size: int | None = None) -> None:
        """See `Exchange`."""
        with appearing(target) as partial:
            self._store.download(f"{self.inside}{name}", partial)
            check_whole(self._store.address(f"{self.inside}{name}"), partial.stat().st_size, size)

    def holds(self, name: str) -> bool:
        """See `Exchange`."""
        return self._store.sha256_of(f"{self.inside}{name}") is not None

    def clear(self) -> None:
        """See `Exchange`."""
        folder = self.inside.rstrip("/")
        with suppress(WorldError):
            self._store.remove(f"{self.inside}{name}" for name in self._store.listed(folder))

    @property
    def _store(self) -> StoreFolder:
        return StoreFolder(self.address)


def open_store(address: str) -> StoreExchange:
    """The exchange place at an `s3://` address.

    Raises:
        SettingsError: no address of that form.
        WorldError: it cannot be reached with the credentials of this machine.
    """
    StoreFolder(address).check_reading()
    return StoreExchange(address=address)
