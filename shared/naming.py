"""What a machine, a server or a daemon may be called: the names are parts of paths, blob names, certificates and URLs."""

from __future__ import annotations

import re
from typing import Final

NAME: Final = r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"
"""A regular expression, to be matched at the beginning."""
SAYS: Final = "a name is 1 to 63 ASCII letters, digits, dots, hyphens and underscores, begins with a letter or digit, and has no '..'"

_NAME: Final = re.compile(NAME)


def is_name(text: str) -> bool:
    return _NAME.match(text) is not None
