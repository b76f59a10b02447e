"""`python -m foreword`: the command line."""

import sys

from foreword.cli import main

if __name__ == "__main__":
    sys.exit(main())
