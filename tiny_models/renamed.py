"""One name for the KV cache in all versions of transformers that the course allows.

Up to 5.23 a model takes and returns it as `past_key_values`. From 5.24 on it is
`cache`, and the old name, which goes with 5.40, is announced in every notebook. The
lessons keep the name that works in all of them (pyproject.toml has the range), so this
one announcement is kept away.
"""

import logging
import warnings


def keep_quiet():
    """Call it once, when the package is imported."""
    warnings.filterwarnings(
        "ignore", "`past_key_values` is deprecated", category=FutureWarning
    )
    logging.getLogger("transformers.utils.generic").addFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("`past_key_values`/`cache_params` are")
