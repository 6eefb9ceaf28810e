import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from opsin.losses.reduction import weighted_mean
from opsin.ops.gaussian import Normal, normal_log_prob


def test_shapes_and_types_of_arguments_are_checked():
    with pytest.raises(TypeCheckError, match="weights"):
        weighted_mean(jnp.ones((4, 4)), jnp.ones(4))
    with pytest.raises(TypeCheckError, match="values"):
        weighted_mean(jnp.ones(4, int), jnp.ones(4))
    normal = Normal(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    with pytest.raises(TypeCheckError, match="x"):
        normal_log_prob(jnp.zeros((2, 3), int), normal)


def test_our_own_errors_are_seen_as_by_callers():
    with pytest.raises(ValueError, match="shape of values"):
        weighted_mean(jnp.ones((4, 4)), jnp.ones(4))
    with pytest.raises(TypeCheckError):  # checked again
        weighted_mean(jnp.ones((4, 4)), jnp.ones(4))
