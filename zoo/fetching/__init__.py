"""Turns a source into one verified file in the cache."""

from zoo.fetching.cache import (
    clear_leftovers,
    converted_path,
    file_path,
    hash_file,
    make_folder,
    mark_finite,
    proven_digest,
    read_stamp,
    share,
    stamp_path,
    write_shared,
    write_stamp,
)
from zoo.fetching.digests import difference, digests_of
from zoo.fetching.download import Fetched, fetch, is_on_this_machine, is_ready_offline, state_of, take, verify_file
from zoo.fetching.hub import fetch_hub, is_hub, local_file
from zoo.fetching.pinning import other_file, proof_of, recorded_digest, unpinning
from zoo.fetching.sources import plain_addresses

__all__ = [
    "Fetched",
    "clear_leftovers",
    "converted_path",
    "difference",
    "digests_of",
    "fetch",
    "fetch_hub",
    "file_path",
    "hash_file",
    "is_hub",
    "is_on_this_machine",
    "is_ready_offline",
    "local_file",
    "make_folder",
    "mark_finite",
    "other_file",
    "plain_addresses",
    "proof_of",
    "proven_digest",
    "read_stamp",
    "recorded_digest",
    "share",
    "stamp_path",
    "state_of",
    "take",
    "unpinning",
    "verify_file",
    "write_shared",
    "write_stamp",
]
