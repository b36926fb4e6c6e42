"""Exceptions of kvist. Every message names what was expected and what was found."""


class KvistError(Exception):
    """Base of every error kvist raises."""


class ShapeError(KvistError, ValueError):
    """A tensor or list has the wrong rank, shape or length."""


class DTypeError(KvistError, TypeError):
    """A tensor has the wrong element type. Nothing is cast silently."""


class BudgetError(KvistError, MemoryError):
    """The byte budget of a tier would be exceeded. The sequence is unchanged."""


class PositionError(KvistError, ValueError):
    """Tokens in the wrong order, or a length outside the sequence."""


class RangeError(KvistError, IndexError):
    """A layer, head, frame or slot number outside its range."""


class OptionError(KvistError, ValueError):
    """An option outside its range, or options that do not go together."""


class UnknownNameError(OptionError):
    """A name that does not exist; a near miss comes with a suggestion."""


class ClosedError(KvistError, RuntimeError):
    """The sequence or cache was closed."""


class ForkedError(KvistError, RuntimeError):
    """The object was made before the process was forked; make another one in the child."""


class StoreError(KvistError, OSError):
    """A store's directory cannot be used."""


class InUseError(StoreError):
    """Another process has the directory."""


class StorePermissionError(StoreError, PermissionError):
    """The directory belongs to somebody else, or others may write to it, or it cannot be written."""


class VersionError(StoreError):
    """The directory was written by another version of kvist."""


class CorruptError(StoreError):
    """The directory is damaged; seen on an explicit check, or so that it cannot be opened at all."""


class DeviceError(KvistError, RuntimeError):
    """A GPU cannot be used, or what it needs (driver, compiler, memory) is missing."""


class UnsupportedError(KvistError, NotImplementedError):
    """A model, device or mode kvist cannot serve; the message says what to do instead."""
