"""What `zoo export --to-hub` does: a trained network's file and its page go to the Hugging Face hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from zoo.checkpoint import export_safetensors
from zoo.commands.hub_card import card_of, licences_of, results_beside
from zoo.commands.saved_facts import facts_of
from zoo.errors import OfflineError, OptionError, ZooError
from zoo.fetching import hash_file, local_file
from zoo.loading import load_model
from zoo.messages import printable, reason_of
from zoo.policy import began_at_random
from zoo.provenance import header_of_export
from zoo.registry import get_entry
from zoo.settings import hugging_face, is_offline
from zoo.tasks.saved import WEIGHTS

log = logging.getLogger("zoo")

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def upload(
    name: str,
    repo: str,
    checkpoint: str | Path | None,
    *,
    half: bool = False,
    private: bool = False,
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> list[str]:
    """Put a trained network on the hub, for `load_model("hf://owner/name@revision")`; returns what to say of it.

    Args:
        name: `MODEL`, which the file is of.
        repo: `owner/name` of the repository, which is made if there is none.
        checkpoint: The file that a run saved.
        half: Whether to store half precision.
        private: Whether the repository must be private.
        revision: Branch, which is made if there is none; None for `main`.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        OptionError: There is no file, no token, or the repository cannot have this name.
        CheckpointFormatError: The file has no header of a run, from which the page is made.
        ZooError: A licence forbids it, the repository is public where it must be private, or the hub refuses.
    """
    if not _REPO.fullmatch(repo):
        raise OptionError(f"--to-hub {repo}: the name of a repository is expected, as ORG/NAME")
    if checkpoint is None:
        raise OptionError(
            f"--to-hub takes the file of a run of yours, --checkpoint RUN/model.safetensors: {name} alone is a name. "
            "Published weights have their own address (`zoo info` names it)"
        )
    facts = facts_of(checkpoint, cache_dir)
    if facts["model"] != get_entry(name).name:
        raise OptionError(f"--to-hub {repo}: {checkpoint} is of {facts['model']}, not of {name}: name that model")
    _check_licences(repo, facts["base"])
    token = _token(repo)
    network = load_model(name, checkpoint=checkpoint, cache_dir=cache_dir)
    header = header_of_export(name, network, checkpoint, cache_dir)
    with TemporaryDirectory(prefix="zoo-") as folder:
        file = export_safetensors(network.state_dict(), Path(folder) / WEIGHTS, half=half, metadata=header)
        card = card_of(repo, facts, results_beside(local_file(checkpoint, cache_dir)))
        commit = _commit(repo, file, card, token, private=private, revision=revision)
        digest = hash_file(file)
    address = f"hf://{repo}@{commit}"
    return [f"{address} ({WEIGHTS}, sha256 {digest})", f"load it with zoo.load_model({address!r})"]


def _token(repo: str) -> str:
    from huggingface_hub import get_token

    if is_offline():
        raise OfflineError(f"--to-hub {repo}: connections are forbidden (ZOO_OFFLINE or HF_HUB_OFFLINE)")
    if token := get_token():
        return str(token)
    raise OptionError(f"--to-hub {repo}: the hub wants to know who you are. Log in (`hf auth login`), or set HF_TOKEN")


def _check_licences(repo: str, base: Mapping[str, Any]) -> None:
    """Refuse where the licence of the code or weights that a network began with forbids to pass them on.

    The data themselves are not passed on: what their terms say of it is a warning, as is what nobody knows. Where
    nothing pre-trained is in it, there is no such licence; the page says so.
    """
    if began_at_random(base):
        return
    licences = licences_of(base)
    for layer in ("code", "weights", "data"):
        licence = licences.get(layer, {})
        may = licence.get("redistribute", "unknown")
        if may == "yes":
            continue
        said = printable(licence.get("licence", "no licence is stated"))
        note = f" ({printable(licence['note'])})" if licence.get("note") else ""
        began = f"{printable(base.get('model', '?'))}.{printable(base.get('tag') or 'user')}"
        if may == "no" and layer != "data":
            raise ZooError(
                f"--to-hub {repo}: nothing was uploaded. It was trained from {began}, of whose {layer} the licence "
                f"forbids redistribution: {said}{note}. Ask its authors for their leave; `zoo export` writes a file"
            )
        log.warning("%s: whether the %s of %s may be passed on is %s: %s%s", repo, layer, began, may, said, note)


def _commit(repo: str, file: Path, card: str, token: str, *, private: bool, revision: str | None) -> str:
    """Make the repository and branch where they lack, and commit both files at once; returns the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=hugging_face(), token=token)
    try:
        settings: dict[str, Any] = {"private": True} if private else {}  # else as the organisation has it
        api.create_repo(repo, exist_ok=True, **settings)
        if private and not api.model_info(repo).private:
            raise ZooError(f"--to-hub {repo}: nothing was uploaded, for the repository is public, not --private")
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        files = [CommitOperationAdd(WEIGHTS, str(file)), CommitOperationAdd("README.md", card.encode())]
        done = api.create_commit(repo, files, commit_message="Upload by zoo export", revision=revision)
    except ZooError:
        raise
    except Exception as error:  # httpx's, requests' or the library's own, by its version
        raise ZooError(f"--to-hub {repo}: the hub {hugging_face()} did not take it: {reason_of(error)}") from error
    return str(done.oid)
