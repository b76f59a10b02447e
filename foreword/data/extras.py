"""Optional libraries, imported when they are first needed."""

import importlib
from types import ModuleType

from foreword.errors import MissingExtraError


def load_extra(module: str, purpose: str) -> ModuleType:
    """Return the imported module of the `eval` extra; `purpose` starts the message, as in "reading Parquet".

    Raises:
        MissingExtraError: the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0]
        raise MissingExtraError(f"{purpose} needs {library}: pip install 'foreword[eval]'") from None
