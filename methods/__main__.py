"""All installed methods by name: ``python -m methods list`` and ``... fit --method cest ...``.

A method of another distribution is found by its entry point in the group ``monoface.methods``.
"""

import sys

from core.errors import MonofaceError
from methods.front import answer, chosen, fail

if __name__ == "__main__":
    answer("methods", sys.argv[1:])
    try:
        entry, arguments = chosen(sys.argv[1:])
    except MonofaceError as error:
        fail(error)
    from methods.cli import main  # after the quick answers

    main(entry.value.replace(":", "."), arguments)
