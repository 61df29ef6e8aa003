"""The one module that talks to the Hugging Face hub: what a repository holds, and fetching it."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mico_exp.challenge.archive import check_free_disk, check_name
from mico_exp.common.errors import InputError, first_line


@dataclass(frozen=True)
class Hub:
    """A repository on the hub, as it is when first asked, and the folder for what is fetched.

    `repo_type` is ``dataset`` or ``model``.
    """

    repository: str
    repo_type: str
    folder: Path

    def files(self) -> dict[str, int | None]:
        """List the repository: path → bytes, None where the hub does not tell them.

        Raises:
            InputError: the hub or the repository cannot be reached, or a path leads outside.
        """
        found = {file.rfilename: file.size for file in self._listing.siblings or ()}
        for name in found:
            check_name(self.repository, name)
        return found

    @cached_property
    def _listing(self) -> Any:
        from huggingface_hub import HfApi

        try:
            return HfApi().repo_info(self.repository, repo_type=self.repo_type, files_metadata=True)
        except Exception as error:  # its HTTP library, and so what it raises, changes
            raise self._failed(_reason(error)) from error

    def fetch(self, names: Sequence[str], spare: int = 0) -> Path:
        """Fetch files, but those that an earlier attempt fetched; returns the folder of them.

        Every commit has a folder of its own, so that files of two are never mixed.

        Args:
            names: paths in the repository.
            spare: bytes of free disk that are needed besides, to unpack.

        Raises:
            InputError: a file is not there in the size that the hub tells, or the disk has no
                room.
        """
        from huggingface_hub import snapshot_download

        place, sizes = self.folder / str(self._listing.sha), self.files()
        lacking = self._lacking(place, names)
        for name in lacking:
            (place / name).unlink(missing_ok=True)  # or it would be taken for a finished one
        total = sum(sizes[name] or 0 for name in lacking)
        check_free_disk(place, total + spare)
        print(f"Fetching {total / 1e9:.1f} GB from {self.repository} into {place}")
        failure = None
        try:
            snapshot_download(
                self.repository,
                repo_type=self.repo_type,
                revision=self._listing.sha,
                allow_patterns=[glob.escape(name) for name in names],
                local_dir=place,
            )
        except Exception as error:
            failure = error
        # It returns without an error, too, when the hub fails and some files are here.
        if (lacking := self._lacking(place, names)) or failure:
            raise self._incomplete(lacking, len(names), failure) from failure
        return place

    def _lacking(self, place: Path, names: Sequence[str]) -> dict[str, str]:
        """Files that are not there whole, and what is there instead."""
        sizes = self.files()
        found = {}
        for name in names:
            path, expected = place / name, sizes[name]
            here = path.stat().st_size if path.is_file() else None
            if here is None or expected not in (None, here):
                found[name] = "missing" if here is None else f"{here:,} of {expected:,} bytes"
        return found

    def _incomplete(
        self, lacking: dict[str, str], wanted: int, failure: Exception | None
    ) -> InputError:
        reasons = [_reason(failure)] if failure else []
        if lacking:
            name, what = next(iter(lacking.items()))
            count = f"{len(lacking)} of {wanted} files are not here whole"
            reasons.append(f"{count}, first {name} ({what})")
        again = "The same command again fetches what is lacking."
        return self._failed("; ".join(reasons), again)

    def _failed(self, reason: str, *advice: str) -> InputError:
        what = f"{self.repository} on the Hugging Face hub cannot be read: {reason}."
        return InputError(" ".join([what, *advice, "With an archive at hand: --from FILE."]))


def _reason(error: Exception) -> str:
    """First line of what lies at the root: what wraps it says only that something happened."""
    root: BaseException = error
    while root.__cause__:
        root = root.__cause__
    return first_line(root).rstrip(".")
