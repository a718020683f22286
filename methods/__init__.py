"""The methods, one file each; each is also a command: ``python -m methods.cest``."""

import sys

# `python -m methods.cest` imports this package, then runs cest.py, whose imports of torch and
# Lightning take ten seconds. Here is the only place before them where help and plain mistakes can
# be answered at once. Python sets sys.argv[0] to "-m" only while it looks for the module to run, so
# that nothing happens in any other import.
if sys.argv[:1] == ["-m"]:
    from methods.front import answer

    answer(sys.orig_argv[-len(sys.argv)].removeprefix("-m"), sys.argv[1:])
