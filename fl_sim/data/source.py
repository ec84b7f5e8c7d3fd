"""The published files of a data set: fetched once, and named when they are missing or damaged."""

from __future__ import annotations

import fcntl
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

from fl_sim.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")
SILENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Source:
    """Where a data set's files are, and where they come from.

    Args:
        name: of the data set, for messages.
        files: what is read -> its MD5 sum, or None where torchvision has none.
        archives: what is downloaded, and unpacked into `files` -> its MD5 sum.
        download: has torchvision fetch and unpack the archives; those on the disk aren't fetched.
    """

    name: str
    files: Mapping[Path, str | None]
    archives: Mapping[Path, str]
    download: Callable[[], object]

    def obtain(self) -> None:
        """Download what isn't there, with a progress bar on standard error.

        Raises:
            UserError: it can't be downloaded, or can't be written.
        """
        if self._is_complete():
            return
        folder = next(iter(self.archives)).parent
        try:
            with _alone_in(folder), _time_limit():
                if not self._is_complete():  # another process had the folder until now
                    logger.info("downloading %s into %s", self.name, folder)
                    self.download()
        except (OSError, RuntimeError, HTTPException) as error:
            raise UserError(self._refusal(folder, error)) from error

    def read(self, build: Callable[[], T]) -> T:
        """Obtain the files, then build from them.

        Raises:
            UserError: `obtain`'s, or a file isn't the published one.
        """
        self.obtain()
        try:
            return build()
        # torchvision compares the MD5 sums before it unpickles or parses anything.
        except RuntimeError as error:
            damaged = _differing(self.files)
            if damaged is None:
                raise
            raise UserError(
                f"{damaged} is truncated or not the file of that name (its MD5 sum isn't the "
                "published one); delete it to have it downloaded again"
            ) from error

    def _is_complete(self) -> bool:
        return all(path.exists() for path in self.files)

    def _refusal(self, folder: Path, error: Exception) -> str:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[-1].strip("<>")  # with mirrors, the last one's
        names = [path.name for path in self.archives]
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
        damaged = _differing({p: md5 for p, md5 in self.archives.items() if p.exists()})
        found = "" if damaged is None else f", {damaged.name} there is truncated or another file,"
        return (
            f"{self.name} isn't in {folder}{found} and can't be downloaded ({reason}); connect to "
            f"the internet, or put {listed} into that folder"
        )


def _differing(files: Mapping[Path, str | None]) -> Path | None:
    """Return the first file whose MD5 sum isn't the given one."""
    from torchvision.datasets.utils import check_integrity

    return next((p for p, md5 in files.items() if md5 and not check_integrity(p, md5)), None)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process downloads into the folder, and keep others waiting."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _time_limit() -> Iterator[None]:
    """Fail when a server says nothing; torchvision would wait for ever."""
    before: Any = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
