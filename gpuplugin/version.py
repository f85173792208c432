"""The version of both distributions, which their builds read from here.

Asking the installed metadata for it would cost every start 4 MiB and 10 ms.
"""

VERSION = "0.1.0"
