"""CPython's own documentation: the long text of the demo and of `kvist eval`."""

from functools import cache
from pydoc_data.topics import topics


@cache
def documentation() -> str:
    """All topics of the language reference that `help()` knows, in alphabetical order."""
    return "\n\n".join(topics[name] for name in sorted(topics))
