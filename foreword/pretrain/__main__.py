"""`python -m foreword.pretrain RECIPE [field=value ...]`."""

import sys

from foreword.errors import ForewordError
from foreword.pretrain.job import pretrain


def main(arguments: list[str]) -> int:
    """Return the exit code: 0, or 2 after a fault of the user's that is printed in one line."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m foreword.pretrain RECIPE [field=value ...]", file=sys.stderr)
        return 2
    try:
        print(pretrain(arguments[0], arguments[1:]))
    except ForewordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
