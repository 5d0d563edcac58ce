"""Upload a saved merge to the hub: in one commit, never over another model unasked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id

from merge_plugins.errors import MergeError, first_line
from merge_plugins.outputs.card_text import scored
from merge_plugins.outputs.scores import as_results, scores_of
from merge_plugins.recipe import files

CARD = "README.md"
CLIENTS = ("huggingface_hub", "hf_xet", "httpx", "httpx2", "requests", "urllib3")
"""Whose errors are those of a conversation with the hub, which releases hold with other clients."""
DIGEST = re.compile(r"digest `([0-9a-f]{12})`")
SCORES = re.compile(r"^## Scores\n.*?(?=^## )", re.DOTALL | re.MULTILINE)
LOGIN = "log in with 'hf auth login', or set HF_TOKEN to a token that may write"


def push(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    overwrite: bool = False,
    results: Sequence[str | os.PathLike[str]] = (),
) -> str:
    """Upload a folder that `save` wrote to the hub; return its address there.

    ``private``: whether a new repository is. ``overwrite``: whether it may take the place of
    another model. ``results``: folders of lm-eval or OpenCompass, whose scores of this merge are
    added to the card. Raises `MergeError` before anything is written where it cannot be done.
    """
    saved = Saved.read(Path(folder))
    target = Target.check(repo, lambda: saved.digest, private=private, overwrite=overwrite)
    return target.upload(saved.published(repo, [Path(result) for result in results]))


@dataclass(frozen=True)
class Saved:
    """A folder that `save` wrote."""

    folder: Path
    digest: str
    card: str

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """Read what a folder is, or raise `MergeError` if `save` did not write it."""
        card = folder / CARD
        if not (card.is_file() and (folder / files.NAME).is_file()):
            raise MergeError(
                f"{folder} holds no merge that was saved; write one with merge-plugins save RECIPE "
                f"{folder}"
            )
        text = card.read_text(encoding="utf-8")
        found = DIGEST.search(text)
        if found is None:
            raise MergeError(f"{card} does not have the digest of the merge; save it again")
        if not any(folder.glob("*.safetensors")):
            raise MergeError(f"{folder} holds no weights; save the merge in place of mounting it")
        return cls(folder, found[1], text)

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self._files)

    @property
    def _files(self) -> list[Path]:
        found = sorted(self.folder.rglob("*"))
        parts = [(file, file.relative_to(self.folder).parts) for file in found if file.is_file()]
        return [file for file, names in parts if not any(name.startswith(".") for name in names)]

    def published(self, repo: str, results: Sequence[Path] = ()) -> Mapping[str, Path | bytes]:
        """Return what is uploaded, by its path: the files, with card and recipe made public."""
        found: dict[str, Path | bytes] = {
            file.relative_to(self.folder).as_posix(): file for file in self._files
        }
        recipe = (self.folder / files.NAME).read_text(encoding="utf-8")
        card = published_card(self.card, self.folder.name, repo, results, self.digest)
        return {**found, CARD: card.encode(), files.NAME: published_recipe(recipe).encode()}


def published_card(
    text: str, old: str, name: str, results: Sequence[Path] = (), digest: str = ""
) -> str:
    """Name the model in a card as it will be called, and add scores in place of older ones."""
    scores = scores_of(results, digest)
    card = ModelCard(text)
    data: Any = card.data
    body = card.text.replace(f"# {old}\n", f"# {name}\n", 1)
    body = body.replace(f'("{old}"', f'("{name}"')
    if scores:
        body = SCORES.sub("", body)
        before, heading, after = body.partition("## Recipe\n")
        body = f"{before}{scored(scores)}{heading}{after}"
        data.eval_results = as_results(scores, data.pipeline_tag or "text-generation")
        data.model_name = name.rpartition("/")[2]
    return f"---\n{data.to_yaml()}\n---\n{body}"


def published_recipe(text: str) -> str:
    """Replace paths of this machine in a saved recipe by the last part of each."""
    lines = text.splitlines(keepends=True)
    needed = "".join(line for line in lines if line.startswith("#"))
    content = _without_paths(yaml.safe_load(text))
    return needed + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    if isinstance(value, str) and value.startswith(("../", "./", "/")):
        return "+".join(Path(part).name for part in value.split("+"))
    return value


@dataclass(frozen=True)
class Target:
    """A repository of the hub that was looked at, and may be written to."""

    repo: str
    api: HfApi
    digest: str
    private: bool = False
    """Whether the repository is to be private, or is."""
    commit: str | None = None
    """Last commit of a repository that is there; None: it is to be made."""
    remove: frozenset[str] = field(default_factory=frozenset)
    """Files of another model that are there."""

    @classmethod
    def check(
        cls,
        repo: str,
        digest: Callable[[], str],
        *,
        private: bool = False,
        overwrite: bool = False,
    ) -> Target:
        """Check login, name and what is there already, or raise `MergeError`; writes nothing.

        ``digest``: computes that of the merge, which may take long.
        """
        try:
            validate_repo_id(repo)
        except HFValidationError as exc:
            raise MergeError(f"{repo!r} is no name on the hub: {first_line(exc)}") from exc
        if repo.count("/") != 1:
            raise MergeError(f"{repo!r}: write the owner too, as in org/name")
        api = HfApi(library_name="merge-plugins")
        _check_owner(api, repo)
        with _hub_errors(f"{repo} could not be looked at"):
            try:
                found = api.model_info(repo)
            except RepositoryNotFoundError:
                return cls(repo, api, digest(), private)
        if private and not found.private:
            raise MergeError(f"{repo} is there already, and public; make it private on the hub")
        own = digest()
        names = {sibling.rfilename for sibling in found.siblings or ()}
        is_private, commit = bool(found.private), found.sha
        is_empty = not names - {".gitattributes", CARD}
        if is_empty or _digest_of(repo, commit) == own:
            return cls(repo, api, own, is_private, commit)
        if not overwrite:
            raise MergeError(
                f"{repo} is there already, with {len(names)} files of another model. Choose a new "
                "name; --overwrite (overwrite=True) replaces it, and keeps it in the history"
            )
        return cls(repo, api, own, is_private, commit, frozenset(names))

    def __str__(self) -> str:
        state = "private" if self.private else "public"
        return f"{self.api.endpoint}/{self.repo} ({state}{', new' if self.commit is None else ''})"

    def upload(self, content: Mapping[str, Path | bytes]) -> str:
        """Upload files, by their paths, in one commit; return the address of the model.

        Raises `MergeError` where the hub refuses, or if somebody wrote to it since it was checked.
        """
        gone = self.remove - content.keys() - {".gitattributes"}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, given if isinstance(given, bytes) else str(given))
            for path, given in content.items()
        ]
        operations += [CommitOperationDelete(path) for path in sorted(gone)]
        with _hub_errors(f"{self.repo} was not uploaded"):
            if self.commit is None:
                self.api.create_repo(self.repo, private=self.private, exist_ok=False)
            self.api.create_commit(
                self.repo,
                operations,
                commit_message=f"Merge {self.digest}, by merge-plugins",
                parent_commit=self.commit,
            )
        return f"{self.api.endpoint}/{self.repo}"


def _check_owner(api: HfApi, repo: str) -> None:
    """Raise `MergeError` unless somebody is logged in who may write there."""
    owner = repo.partition("/")[0]
    with _hub_errors("the hub did not say who is logged in"):
        try:
            user = api.whoami()
        except LocalTokenNotFoundError as exc:
            raise MergeError(f"nobody is logged in to the hub; {LOGIN}") from exc
    token = user.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise MergeError(f"the token of {user['name']} may only read; {LOGIN}")
    organisations = {each["name"]: each.get("roleInOrg") for each in user.get("orgs", ())}
    if owner != user["name"] and organisations.get(owner) == "read":
        raise MergeError(f"{user['name']} may only read in {owner}; ask an admin of it")
    if owner not in (user["name"], *organisations):
        mine = ", ".join([user["name"], *organisations])
        raise MergeError(f"{user['name']} is no member of {owner}; there are {mine}")


def _digest_of(repo: str, commit: str | None) -> str | None:
    """Read the digest of a merge that is on the hub; None if it is no merge of ours."""
    with _hub_errors(f"{repo} could not be looked at"):
        try:
            card = Path(hf_hub_download(repo, CARD, revision=commit))
        except EntryNotFoundError:
            return None
    found = DIGEST.search(card.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else None


@contextmanager
def _hub_errors(doing: str) -> Iterator[None]:
    """Turn the errors of a conversation with the hub into a `MergeError`."""
    try:
        yield
    except MergeError:
        raise
    except Exception as exc:
        is_clients = type(exc).__module__.partition(".")[0] in CLIENTS
        if not (is_clients or isinstance(exc, OSError | ValueError | RuntimeError)):
            raise
        why = " ".join(f"{exc} {exc.__cause__ or ''}".split())
        raise MergeError(f"{doing}: {why}") from exc
