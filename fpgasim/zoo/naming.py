"""Weights under the names and in the layout of the library that trained them, brought to the zoo's own.

A `Naming` says how one library calls the parameters of one kind of network; `naming_tables` holds them. Which one a
file uses is told by its names.
"""

import logging
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fpgasim.errors import WeightsError
from fpgasim.zoo.building import Parameter, Role
from fpgasim.zoo.weights import Array, match_weights

#: The epsilon of the zoo's batch normalisations; another library's difference is added to its variances.
EPSILON = 1e-5


class Leaves(NamedTuple):
    """What follows a layer's name, by the parameter's role."""

    weight: str
    bias: str
    scale: str
    shift: str
    mean: str
    variance: str


PYTORCH = Leaves(".weight", ".bias", ".weight", ".bias", ".running_mean", ".running_var")


@dataclass(frozen=True)
class Naming:
    """One library's names for the parameters of one kind of network.

    `layers` are (pattern of the zoo's layer, the library's layer), where a group `b` of the pattern gives `{b}` and,
    one higher, `{b1}`, and `{own}` is the zoo's name; a layer without an entry keeps its name. `leaves` makes a
    parameter's name from its layer's and its role; `whole` names single parameters. `aliases` are substitutions that
    older or other forms of the names get first, `unused` what a file may hold beside weights. `channels_last` is
    TensorFlow's layout: (height, width, in, out) and (in, out). `folded_bias` finds, from the name of a mean, that of
    the bias that its convolution may have.
    `network` is the one of the zoo that the library's own weights were trained on, if there are several of a kind.
    """

    library: str
    layers: tuple[tuple[str, str], ...] = ()
    leaves: Leaves = PYTORCH
    whole: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    unused: str = r"(?!)"
    channels_last: bool = False
    epsilon: float = EPSILON
    folded_bias: tuple[str, str] | None = None
    network: str = ""

    def name(self, own: str, role: Role) -> str:
        """The library's name of the zoo's parameter `own`."""
        whole = dict(self.whole).get(own)
        return whole or self._layer(own.rpartition(".")[0]) + str(getattr(self.leaves, role))

    def bias_name(self, name: str, parameter: Parameter) -> str | None:
        """Of a normalisation's mean, by the library's name: that of a bias of the convolution before it."""
        return re.sub(*self.folded_bias, name) if self.folded_bias and parameter.role == "mean" else None

    def _layer(self, own: str) -> str:
        for pattern, theirs in self.layers:
            if found := re.fullmatch(pattern, own):
                numbers = {key: int(value) for key, value in found.groupdict().items()}
                return theirs.format(own=own, **numbers, **{f"{key}1": value + 1 for key, value in numbers.items()})
        return own

    def canonical(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays by the names that the table uses, without the unused; two of one name are an error."""
        result: dict[str, Any] = {}
        origin: dict[str, str] = {}
        for given, array in arrays.items():
            name = given
            for pattern, replacement in self.aliases:
                name = re.sub(pattern, replacement, name)
            if re.search(self.unused, name):
                continue
            if name in result:
                raise WeightsError(f"tensors {origin[name]!r} and {given!r} both mean {name!r}; keep one of them")
            result[name], origin[name] = array, given
        return result


#: For networks whose names no other library has.
OWN = (Naming("the zoo"),)


def match_named(
    parameters: Mapping[str, Parameter],
    arrays: Mapping[str, Any],
    namings: Sequence[Naming],
    *,
    network: str,
    what: str,
    rest: Mapping[str, Parameter] | None = None,
    constants: Container[str] = (),
) -> dict[str, Array]:
    """The float32 array of each parameter by the zoo's name and in its layout, whichever of `namings` the names follow.

    Parameters of the `rest` of the network and `constants` may be there and are left out. A fully connected weight may
    be stored as a matrix or as the convolution it equals. Where the library's own weights belong to another variant of
    the network, a warning is logged. Raises WeightsError where no naming fits or two fit equally, else as
    `match_weights` does, with the library's names.
    """
    naming, given = _recognise({**parameters, **(rest or {})}, arrays, namings, what)
    if naming.network not in ("", network):
        message = "%s: the names are those of %s, whose own weights belong to %s; load that one unless yours differ"
        logging.getLogger(__name__).warning(message, what, naming.library, naming.network)
    names = {own: naming.name(own, parameter.role) for own, parameter in parameters.items()}
    theirs = {
        name: replace(parameters[own], shape=_their_shape(parameters[own], np.ndim(given.get(name, ())), naming))
        for own, name in names.items()
    }
    biases = {own: bias for own, name in names.items() if (bias := naming.bias_name(name, parameters[own])) in given}
    theirs |= {bias: Parameter(parameters[own].shape, "bias") for own, bias in biases.items()}
    unneeded = {naming.name(own, parameter.role): parameter for own, parameter in (rest or {}).items()}
    left_out = {*unneeded, *(str(naming.bias_name(name, parameter)) for name, parameter in unneeded.items())}
    left_out |= {name for name in given if name in constants}
    matched = match_weights(theirs, given, what=what, optional=left_out)
    result = {own: _restore(matched[name], parameters[own], naming) for own, name in names.items()}
    return result | {own: result[own] - matched[bias] for own, bias in biases.items()}


def _recognise(
    parameters: Mapping[str, Parameter], arrays: Mapping[str, Any], namings: Sequence[Naming], what: str
) -> tuple[Naming, dict[str, Any]]:
    """The naming whose names most of the arrays have, and the arrays by them."""
    fits = []
    for naming in namings:
        given = naming.canonical(arrays)
        found = [name for own, parameter in parameters.items() if (name := naming.name(own, parameter.role)) in given]
        fits.append((len(found), naming, given, found))
    best = max(count for count, *_ in fits)
    ahead = [fit for fit in fits if fit[0] == best]
    if best and len(ahead) > 1:
        both = " and ".join(f"of {naming.library} ({found[0]!r})" for _, naming, _, found in ahead)
        raise WeightsError(f"{what}: {best} names are those {both} alike; keep those of one")
    if not best and len(namings) > 1 and arrays:
        own, parameter = next(iter(parameters.items()))
        known = ", ".join(f"{naming.library} ({naming.name(own, parameter.role)!r})" for naming in namings)
        raise WeightsError(f"{what}: the weights hold {next(iter(arrays))!r}, a name of none known: {known}")
    _, naming, given, _ = ahead[0]
    return naming, given


def _their_shape(parameter: Parameter, dimensions: int, naming: Naming) -> tuple[int, ...]:
    """The parameter's shape in the naming's layout, where the array given has so many dimensions."""
    shape = parameter.shape
    if parameter.role == "scale":
        return shape[:1]
    if parameter.role != "weight":
        return shape
    if len(shape) == 2 and dimensions == 4:
        shape = (shape[0], *parameter.window)
    if naming.channels_last:
        return shape[::-1] if len(shape) == 2 else (*shape[2:], shape[1], shape[0])
    return shape


def _restore(array: Array, parameter: Parameter, naming: Naming) -> Array:
    if parameter.role == "variance":
        return array + np.float32(naming.epsilon - EPSILON)
    if parameter.role == "weight" and naming.channels_last:
        if array.ndim == 2:
            channels, height, width = parameter.window
            array = array.reshape(height, width, channels, -1)
        array = array.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(array.reshape(parameter.shape))
