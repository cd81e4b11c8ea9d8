"""The methods there are: one line each."""

from wsca_jax.methods import wsca

METHODS = {"wsca": wsca}
