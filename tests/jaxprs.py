"""What a traced program is made of."""

import jax


def operations(jaxpr):
    """Every operation of a program, those of programs inside it included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from operations(inner)
