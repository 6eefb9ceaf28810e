import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from opsin.analysis.views import mirror_views
from opsin.losses.reduction import weighted_mean
from opsin.models.classification.lenet import LeNet5
from opsin.ops.gaussian import Normal, normal_log_prob
from opsin.train.tasks.classify import Classify


def test_shapes_and_types_of_arguments_are_checked():
    with pytest.raises(TypeCheckError, match="weights"):
        weighted_mean(jnp.ones((4, 4)), jnp.ones(4))
    with pytest.raises(TypeCheckError, match="values"):
        weighted_mean(jnp.ones(4, int), jnp.ones(4))
    normal = Normal(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    with pytest.raises(TypeCheckError, match="x"):
        normal_log_prob(jnp.zeros((2, 3), int), normal)


def test_constructors_are_checked_where_code_of_ours_calls_them():
    with pytest.raises(TypeCheckError, match="mean"):
        Normal(jnp.zeros((2, 3), int), jnp.zeros((2, 3)))
    with pytest.raises(TypeCheckError, match="log_std"):
        Normal(jnp.zeros((2, 3)), jnp.zeros((7, 5)))
    with pytest.raises(TypeCheckError, match="mean"):
        dataclasses.replace(Normal(jnp.zeros(3), jnp.zeros(3)), mean=jnp.zeros(3, int))
    normal = Normal(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    assert jax.tree.map(lambda leaf: leaf.shape, normal).mean == (2, 3)  # which rebuilds it
    assert jax.eval_shape(lambda: normal).mean.shape == (2, 3)


def test_tasks_and_measurements_are_checked():
    with pytest.raises(TypeCheckError, match="key"):
        Classify(LeNet5()).init(jnp.zeros(3), {})
    with pytest.raises(TypeCheckError, match="keys"):
        Classify(LeNet5()).evaluate({}, {}, {}, jnp.zeros(3))
    with pytest.raises(TypeCheckError, match="images"):
        mirror_views(jnp.zeros((2, 3)))


def test_our_own_errors_are_seen_as_by_callers():
    with pytest.raises(ValueError, match="shape of values"):
        weighted_mean(jnp.ones((4, 4)), jnp.ones(4))
    with pytest.raises(TypeCheckError):  # checked again
        weighted_mean(jnp.ones((4, 4)), jnp.ones(4))
