"""The update rule: AdamW, Muon or Adafactor, with decay, factors and freezing by parameter name.

The rules see flat dicts of arrays by parameter name, such as `layers/attention/query/kernel`, and
only those that they update: the state of a frozen parameter does not exist.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from glm_jax.config import OptimizerConfig
from glm_jax.errors import UserError
from glm_jax.parallel.sharding import Sharding, param_name
from glm_jax.training.muon import MatrixAxes, matrix_axes, scale_by_muon

DECAY_EXPONENT = 0.8
"""Adafactor averages squares with decay 1 - t^-0.8 (Shazeer & Stern 2018, section 7.2)."""

SQUARE_EPS = 1e-30
"""Adafactor adds this to squared gradients (Shazeer & Stern 2018, epsilon_1)."""


class Treatment(NamedTuple):
    """What happens to one parameter."""

    rule: str  # adamw | muon | adafactor | frozen
    decays: bool
    factor: float  # of the learning rate


def treatments(config: OptimizerConfig, shapes: dict) -> dict[str, Treatment]:
    """What happens to each parameter, by name.

    Args:
      shapes: tree of parameters or of their shapes.

    Raises:
      UserError: a regex that matches no parameter (the defaults may: not every model has a bias); a
        parameter that both `decay` and `no_decay` match, or neither; one that two
        `learning_rate_factors` match; nothing left to train; with the name muon, a `muon` regex
        that names what is no matrix, or none that names one.
    """
    named = _named(shapes)
    factors = [entry.rpartition("=")[::2] for entry in config.learning_rate_factors]
    _check_patterns(config, [pattern for pattern, _ in factors], named)
    treated = {}
    for name in named:
        rule = "frozen" if _matches(config.frozen, name) else config.name
        if rule == "muon" and not _matches(config.muon, name):
            rule = "adamw"
        decays = _decays(config, name) and rule != "frozen"
        treated[name] = Treatment(rule, decays, _factor(factors, name))
    if all(treatment.rule == "frozen" for treatment in treated.values()):
        raise UserError(f"config.optimizer.frozen {config.frozen} leaves no parameter to train")
    if config.name == "muon":
        _check_muon(config, treated, _matrices(config, named))
    return treated


def make_optimizer(config: OptimizerConfig, shapes: dict) -> optax.GradientTransformation:
    """The update of `params - learning_rate * update`: without learning rate and sign.

    Gradients of frozen parameters are left out, the others clipped by their global norm. Then

    - adamw: Adam (Kingma & Ba 2015) with b1, b2 and eps;
    - muon: `scale_by_muon` for the matrices that `config.muon` names, Adam for the rest;
    - adafactor: `scale_by_factored_rms` with b2 and eps, then, unless b1 is 0, Adam's average of
      the updates with b1. That is Adafactor (Shazeer & Stern 2018) with the changes of Zhai et al.
      2021 (arXiv 2106.04560): not scaled by the size of the parameter, so that AdamW's learning
      rates fit, a cap on its decay, and a first moment. Updates are not clipped, gradients are.

    Decay is decoupled (Loshchilov & Hutter 2019): `weight_decay * parameter` is added to the update
    of the parameters that decay, whatever the rule, and `learning_rate_factors` scale the sum.

    The state is a dict by rule. Moments, and updates, are float32 or wider whatever the parameters.
    The update of a frozen parameter is zero.

    Args:
      shapes: tree of parameters or of their shapes.

    Raises:
      UserError: see `treatments`.
    """
    treated = treatments(config, shapes)
    rules = _rules(config, _matrices(config, _named(shapes)))
    members = {
        rule: names
        for rule in rules
        if (names := [name for name, treatment in treated.items() if treatment.rule == rule])
    }
    clip = optax.clip_by_global_norm(config.clip_norm)

    def init(params: dict) -> dict:
        named = {name: _widen(x) for name, x in _named(params).items()}
        return {rule: rules[rule].init(_pick(named, names)) for rule, names in members.items()}

    def update(gradients: dict, state: dict, params: dict) -> tuple[dict, dict]:
        named = {
            name: _widen(x)
            for name, x in _named(gradients).items()
            if treated[name].rule != "frozen"
        }
        clipped, _ = clip.update(named, clip.init(named))
        directions, new_state = {}, {}
        for rule, names in members.items():
            direction, new_state[rule] = rules[rule].update(_pick(clipped, names), state[rule])
            directions |= direction

        def finish(path, param: jax.Array) -> jax.Array:
            name = param_name(path)
            treatment, param = treated[name], _widen(param)
            if treatment.rule == "frozen":
                return jnp.zeros_like(param)
            x = directions[name]
            if treatment.decays:
                x = x + config.weight_decay * param
            return x if treatment.factor == 1.0 else treatment.factor * x

        return jax.tree_util.tree_map_with_path(finish, params), new_state

    return optax.GradientTransformation(init, update)


def _rules(
    config: OptimizerConfig, matrices: Mapping[str, MatrixAxes]
) -> dict[str, optax.GradientTransformation]:
    adafactor = [scale_by_factored_rms(config.b2, config.eps, matrices)]
    if config.b1:
        adafactor.append(optax.ema(config.b1))
    return {
        "adamw": optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        "muon": scale_by_muon(config.muon_momentum, config.muon_rms, matrices),
        "adafactor": optax.chain(*adafactor),
    }


class FactoredState(NamedTuple):
    """Averages of squared gradients; a matrix has `row` and `column`, other parameters `full`."""

    count: jax.Array  # int32, updates done
    row: dict[str, jax.Array]  # the axes of a parameter without its outputs: their mean
    column: dict[str, jax.Array]  # the axes of a parameter without its inputs
    full: dict[str, jax.Array]  # as the parameter


def scale_by_factored_rms(
    b2: float, eps: float, axes: Mapping[str, MatrixAxes]
) -> optax.GradientTransformation:
    """g / (sqrt(v) + eps), where v of an i x o matrix is kept as i + o numbers.

    v = row column^T / mean(row), with the averages of squares over outputs and over inputs (Shazeer
    & Stern 2018, section 3), for each matrix of a stack. Their decay grows as 1 - t^-0.8, up to b2.
    Other than in `optax.scale_by_factored_rms`, which factors the two largest axes if both have 128
    or more, every matrix is factored, and as the matrix that it is: head_dim is no axis of its own.

    Args:
      axes: of the matrices, by name; parameters and gradients are dicts by name.
    """

    def init(params: dict) -> FactoredState:
        def zeros(x: jax.Array, without: tuple[int, ...]) -> jax.Array:
            kept = [size for axis, size in enumerate(x.shape) if axis not in without]
            return jnp.zeros(kept, x.dtype)

        matrices = {name: x for name, x in params.items() if name in axes}
        return FactoredState(
            jnp.zeros((), jnp.int32),
            {name: zeros(x, axes[name].outputs) for name, x in matrices.items()},
            {name: zeros(x, axes[name].inputs) for name, x in matrices.items()},
            {name: jnp.zeros_like(x) for name, x in params.items() if name not in axes},
        )

    def update(gradients: dict, state: FactoredState, params=None) -> tuple[dict, FactoredState]:
        count = optax.safe_increment(state.count)
        decay = jnp.minimum(b2, 1.0 - count.astype(jnp.float32) ** -DECAY_EXPONENT)
        squares = {name: jnp.square(g) + SQUARE_EPS for name, g in gradients.items()}

        def average(old: jax.Array, name: str, over: tuple[int, ...]) -> jax.Array:
            return decay * old + (1.0 - decay) * squares[name].mean(over)

        new = FactoredState(
            count,
            {name: average(x, name, axes[name].outputs) for name, x in state.row.items()},
            {name: average(x, name, axes[name].inputs) for name, x in state.column.items()},
            {name: average(x, name, ()) for name, x in state.full.items()},
        )

        def scaled(name: str, gradient: jax.Array) -> jax.Array:
            if name not in axes:
                return gradient / (jnp.sqrt(new.full[name]) + eps)
            inputs, outputs = axes[name]
            # Inputs come before outputs, so in `row` they are the axes that they are here.
            share = new.row[name] / new.row[name].mean(inputs, keepdims=True)
            root = jnp.expand_dims(jnp.sqrt(share), outputs) * jnp.expand_dims(
                jnp.sqrt(new.column[name]), inputs
            )
            return gradient / (root + eps)

        return {name: scaled(name, gradient) for name, gradient in gradients.items()}, new

    return optax.GradientTransformation(init, update)


def opt_state_shardings(
    config: OptimizerConfig, shapes: dict, axes: dict, sharding: Sharding
) -> dict:
    """Shardings of the state of `make_optimizer`: a tree of its structure.

    Moments lie as their parameters, Adafactor's rows and columns as the axes that they keep, counts
    are replicated.

    Args:
      shapes, axes: the two trees of `model.glm.abstract_params`.

    Raises:
      UserError: see `treatments` and `Sharding.tree`.
    """
    params = _named(sharding.tree(shapes, axes))
    matrices = _matrices(config, _named(shapes))

    def lay(path, _) -> NamedSharding:
        if not isinstance(path[-1], jax.tree_util.DictKey):
            return sharding.replicated
        field, name = path[-2].name, path[-1].key
        if field not in ("row", "column"):
            return params[name]
        without = matrices[name].outputs if field == "row" else matrices[name].inputs
        kept = [axis for i, axis in enumerate(params[name].spec) if i not in without]
        return NamedSharding(sharding.mesh, P(*kept))

    state = jax.eval_shape(make_optimizer(config, shapes).init, shapes)
    return jax.tree_util.tree_map_with_path(lay, state)


def describe_optimizer(config: OptimizerConfig, shapes: dict) -> str:
    """A table for people: how many arrays and numbers each rule, decay and factor applies to.

    Raises:
      UserError: see `treatments`.
    """
    treated = treatments(config, shapes)
    sizes = {name: math.prod(leaf.shape) for name, leaf in _named(shapes).items()}
    groups: dict[str, list[int]] = {}
    for name, treatment in treated.items():
        groups.setdefault(treatment.rule, []).append(sizes[name])
    for name, treatment in treated.items():
        if treatment.decays and config.weight_decay:
            groups.setdefault(f"weight decay {config.weight_decay:g}", []).append(sizes[name])
        if treatment.factor != 1.0 and treatment.rule != "frozen":
            groups.setdefault(f"learning rate x {treatment.factor:g}", []).append(sizes[name])
    lines = [f"{'optimizer':24} {'arrays':>8} {'parameters':>16}"]
    lines += [f"{label:24} {len(held):8,} {sum(held):16,}" for label, held in groups.items()]
    return "\n".join(lines)


def _check_patterns(config: OptimizerConfig, factors: list[str], names: Mapping) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    fields = {field: getattr(config, field) for field in ("frozen", "muon", "decay", "no_decay")}
    for field, patterns in (fields | {"learning_rate_factors": factors}).items():
        for pattern in patterns:
            if pattern not in defaults[field] and not any(
                re.search(pattern, name) for name in names
            ):
                raise UserError(f"config.optimizer.{field}: {pattern!r} matches no parameter")


def _check_muon(
    config: OptimizerConfig, treated: dict[str, Treatment], matrices: Mapping[str, MatrixAxes]
) -> None:
    chosen = [name for name, treatment in treated.items() if treatment.rule == "muon"]
    if not chosen:
        raise UserError(f"config.optimizer.muon {config.muon} names no parameter that is trained")
    for name in chosen:
        if name not in matrices:
            raise UserError(f"config.optimizer.muon {config.muon} names {name}, which is no matrix")


def _matrices(config: OptimizerConfig, named: dict) -> dict[str, MatrixAxes]:
    return {} if config.name == "adamw" else matrix_axes(named)


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _decays(config: OptimizerConfig, name: str) -> bool:
    yes, no = _matches(config.decay, name), _matches(config.no_decay, name)
    if yes == no:
        which = "both match" if yes else "neither matches"
        raise UserError(
            f"parameter {name}: {which} in config.optimizer.decay {config.decay} and "
            f"no_decay {config.no_decay}"
        )
    return yes


def _factor(factors: list[tuple[str, str]], name: str) -> float:
    found = [(pattern, factor) for pattern, factor in factors if re.search(pattern, name)]
    if len(found) > 1:
        raise UserError(
            f"parameter {name}: config.optimizer.learning_rate_factors "
            f"{' and '.join('='.join(entry) for entry in found)} both match"
        )
    return float(found[0][1]) if found else 1.0


def _named(tree: dict) -> dict:
    return {param_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _pick(named: dict, names: list[str]) -> dict:
    return {name: named[name] for name in names}


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
