"""nbformat, without what makes its import slow.

It validates with jsonschema, which loads two optional checkers: one compiles a grammar
of web addresses (1.5 s), one loads a library of dates. No notebook needs either.
"""

import sys

_SLOW = [name for name in ("rfc3987_syntax", "isoduration") if name not in sys.modules]

sys.modules.update(dict.fromkeys(_SLOW))  # None: an import of it is an ImportError
try:
    import nbformat
finally:
    for _name in _SLOW:
        del sys.modules[_name]

__all__ = ["nbformat"]
