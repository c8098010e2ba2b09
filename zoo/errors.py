"""The exceptions of the zoo.

A message repeats the request and says what was expected, what came, what was done about it and what to do next.
"""


class ZooError(Exception):
    """Base of everything the zoo raises on purpose."""


class UnknownModelError(ZooError, KeyError):
    """No entry, or no tag of an entry, has this name."""

    def __str__(self) -> str:
        """The message itself: `KeyError` would print its repr."""
        return str(self.args[0]) if self.args else ""


class WeightsUnavailableError(ZooError):
    """The entry exists, but no weights can be taken for the name as it was given."""


class DownloadError(ZooError):
    """No source gave the file: HTML instead of weights, short or long body, full disk, TLS, no source left."""


class IntegrityError(ZooError):
    """A file's digest is not the one that is on record."""


class OfflineError(ZooError):
    """The file is not in the cache and opening a connection is forbidden."""


class PolicyError(ZooError):
    """The licence of the code, the weights or their training data does not allow the use that `ZOO_POLICY` names."""


class CheckpointFormatError(ZooError):
    """The file is not a checkpoint, is empty, cut short or damaged, or holds values that no network computes with."""


class UnsafeCheckpointError(ZooError):
    """The file wants code run to be opened, and was refused."""


class CheckpointMismatchError(ZooError):
    """The file is a checkpoint, but does not fill the network it was asked to fill."""


class InputContractError(ZooError, ValueError):
    """An image cannot be what the network was trained on."""


class OptionError(ZooError, ValueError):
    """An argument or option has no meaning here."""


class PathNotFoundError(OptionError, FileNotFoundError):
    """A path that was given does not exist."""
