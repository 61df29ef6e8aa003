"""The one module that talks to the Hugging Face hub: what a repository holds, and fetching it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mico_exp.archive import check_free_disk
from mico_exp.errors import InputError, first_line


@dataclass(frozen=True)
class Hub:
    """A repository on the hub, and the folder that its files are fetched into.

    `repo_type` is ``dataset`` or ``model``.
    """

    repository: str
    repo_type: str
    folder: Path

    def files(self) -> dict[str, int]:
        """List the repository: path → bytes.

        Raises:
            InputError: the hub or the repository cannot be reached.
        """
        from huggingface_hub import HfApi

        try:
            info = HfApi().repo_info(self.repository, repo_type=self.repo_type, files_metadata=True)
        except Exception as error:  # its HTTP library, and so what it raises, changes
            raise self._unreachable(error) from error
        siblings = getattr(info, "siblings", None)
        return {file.rfilename: file.size or 0 for file in siblings or ()}

    def fetch(self, names: Sequence[str], sizes: Mapping[str, int]) -> Path:
        """Fetch files, going on where an earlier attempt stopped; returns the folder of them.

        Raises:
            InputError: they cannot be fetched, or the disk has no room for them and as much again
                to unpack.
        """
        from huggingface_hub import snapshot_download

        total = sum(sizes[name] for name in names)
        here = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        check_free_disk(self.folder, 2 * total - min(here, total))
        print(f"Fetching {total / 1e9:.1f} GB from {self.repository} into {self.folder}")
        try:
            snapshot_download(
                self.repository,
                repo_type=self.repo_type,
                allow_patterns=list(names),
                local_dir=self.folder,
            )
        except Exception as error:
            raise self._unreachable(error) from error
        return self.folder

    def _unreachable(self, error: Exception) -> InputError:
        reason = first_line(error)
        return InputError(
            f"{self.repository} on the Hugging Face hub cannot be read: {reason}. "
            "With an archive at hand: --from FILE."
        )
