"""Names of tensors: what is found, stripped and renamed is what was put there, and nothing is lost on the way."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from zoo.errors import CheckpointMismatchError
from zoo.tensor_names import KEY_NETWORKS, find_prefix, rename_keys, strip_prefix

PART = st.sampled_from(
    ["module", "backbone", "encoder_q", "model", "net", "fc", "fc2", "conv1", "0", "1", "é", "weight"]
)
NAME = st.lists(PART, min_size=1, max_size=4).map(".".join)
NETWORK = st.sets(NAME, min_size=1, max_size=8)
PREFIX = st.lists(PART, max_size=3).map(lambda parts: "".join(f"{part}." for part in parts))


def telling(network, file, times=1):
    """Names of the network that so many names of a file end in: `weight` ends others, and then tells nothing."""
    found = [name for name in network if sum(stored.endswith(name) for stored in file) == times]
    assume(found)
    return found


def numbered(names):
    return {name: number for number, name in enumerate(sorted(names))}


@given(network=NETWORK, prefix=PREFIX, beside=NETWORK)
def test_a_network_comes_out_from_behind_its_prefix(network, prefix, beside):
    """Whatever stands beside it, what is behind the prefix is the network, tensor by tensor."""
    state = numbered(network)
    file = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    file |= {f"queue.{name}": -1 for name in beside if not f"queue.{name}".startswith(prefix)}
    assert strip_prefix(file, prefix) == state


@given(network=NETWORK, prefix=PREFIX)
def test_the_prefix_of_a_network_is_found(network, prefix):
    """By any of its names that tell; those which end others, too, would make several prefixes."""
    file = dict.fromkeys(f"{prefix}{name}" for name in network)
    assert find_prefix(file, telling(network, file)) == prefix


@given(network=NETWORK, prefix=PREFIX, key=st.sampled_from(sorted(KEY_NETWORKS)))
def test_a_key_network_is_never_taken(network, prefix, key):
    """Beside the network that was trained it is passed over, alone it is refused."""
    trained, copied = (dict.fromkeys(f"{prefix}{before}{name}" for name in network) for before in ("q.", f"{key}."))
    anchors = telling(network, trained | copied, times=2)
    assert find_prefix(trained | copied, anchors) == f"{prefix}q."
    with pytest.raises(CheckpointMismatchError, match="key network alone"):
        find_prefix(copied, anchors)


@pytest.mark.slow
@given(network=NETWORK, table=st.dictionaries(NAME, NAME, max_size=4))
def test_a_renaming_loses_no_tensor_or_says_so(network, table):
    """Each tensor is there under one name, that of the longest part that fits; else it is an error."""
    state = numbered(network)
    wanted = {}
    for name in state:
        parts = name.split(".")
        heads = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        head = next((head for head in heads if head in table), None)
        wanted[name] = name if head is None else table[head] + name[len(head) :]
    if len(set(wanted.values())) < len(state):
        with pytest.raises(CheckpointMismatchError, match="the same name"):
            rename_keys(state, table)
    else:
        assert rename_keys(state, table) == {wanted[name]: tensor for name, tensor in state.items()}


@given(network=NETWORK, part=PART)
def test_a_renaming_to_a_new_part_goes_back(network, part):
    """`part -> new -> part` is the network again, in its order."""
    state = numbered(network)
    there = rename_keys(state, {part: "brand.new"})
    assert list(rename_keys(there, {"brand.new": part}).items()) == list(state.items())
