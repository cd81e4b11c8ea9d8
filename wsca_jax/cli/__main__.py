"""python -m wsca_jax.cli: the `wsca` command."""

import sys

from wsca_jax.cli import main

sys.exit(main())
