"""Weights of a network: seeded, or matched by name."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fpgasim as fs
from fpgasim.errors import WeightsError

NAME = "efficientnet_lite0"


def initializers(model):
    return {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if "relu6" not in tensor.name
    }


@pytest.fixture(scope="module")
def given():
    return initializers(fs.zoo.build(NAME, seed=5))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(given):
    again, other = (initializers(fs.zoo.build(NAME, seed=seed)) for seed in (5, 6))
    assert all(np.array_equal(given[key], again[key]) for key in given)
    assert not any(np.array_equal(given[key], other[key]) for key in given)


def test_random_weights_are_he_normal(given):
    weight = given["_conv_head.weight"]  # (1280, 320, 1, 1): a variance of 2 / 320
    assert weight.dtype == np.float32
    assert float(weight.var()) == pytest.approx(2 / 320, rel=0.01)
    assert abs(float(weight.mean())) < 1e-3


def test_a_mapping_is_taken_by_name_whatever_its_order(given):
    reverse = dict(reversed(given.items()))
    taken = initializers(fs.zoo.build(NAME, reverse))
    assert all(np.array_equal(taken[key], given[key]) for key in given)


def test_a_path_is_read_as_a_checkpoint(given, tmp_path):
    np.savez(tmp_path / "weights.npz", **given)
    taken = initializers(fs.zoo.build(NAME, tmp_path / "weights.npz"))
    assert all(np.array_equal(taken[key], given[key]) for key in given)


def test_a_model_of_the_zoo_is_itself_a_checkpoint(given, tmp_path):
    onnx.save(fs.zoo.build(NAME, seed=5), tmp_path / "model.onnx")
    taken = initializers(fs.zoo.build(NAME, tmp_path / "model.onnx"))
    assert all(np.array_equal(taken[key], given[key]) for key in given)


def test_batch_counters_of_pytorch_may_be_there(given):
    taken = initializers(fs.zoo.build(NAME, {**given, "_bn0.num_batches_tracked": np.int64(7)}))
    assert taken.keys() == given.keys()


def test_halves_and_doubles_are_converted(given):
    halves = {key: array.astype(np.float16) for key, array in given.items()}
    taken = initializers(fs.zoo.build(NAME, halves))
    assert all(np.array_equal(taken[key], halves[key].astype(np.float32)) for key in given)
    doubles = {key: array.astype(np.float64) for key, array in given.items()}
    assert all(np.array_equal(array, given[key]) for key, array in initializers(fs.zoo.build(NAME, doubles)).items())


def changed(given, key, change):
    return {**given, key: change(given[key].copy())}


def with_first(value):
    def change(array):
        array.flat[0] = value
        return array

    return change


def test_a_missing_tensor_is_named_with_the_nearest_there(given):
    renamed = {("_fc.wieght" if key == "_fc.weight" else key): array for key, array in given.items()}
    message = "needs tensor '_fc.weight' .1000x1280., which the weights lack; the nearest name there is '_fc.wieght'"
    with pytest.raises(WeightsError, match=message):
        fs.zoo.build(NAME, renamed)


def test_an_unexpected_tensor_is_named_with_the_nearest_of_the_network(given):
    message = r"no tensor '_fc.bais' \(1000\).*the nearest name there is '_fc.bias' \(1000\)"
    with pytest.raises(WeightsError, match=message):
        fs.zoo.build(NAME, {**given, "_fc.bais": given["_fc.bias"]})


def test_all_missing_tensors_are_counted():
    with pytest.raises(WeightsError, match=r"'_conv_stem.weight' .*; it has no tensors; 246 more missing"):
        fs.zoo.build(NAME, {})


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("_fc.weight", lambda a: a.T, "'_fc.weight' is 1280x1000; efficientnet_lite0 needs 1000x1280"),
        ("_fc.bias", lambda a: a[0], "'_fc.bias' is scalar; efficientnet_lite0 needs 1000"),
        ("_fc.bias", with_first(np.nan), r"'_fc.bias' holds nan at \[0\]"),
        ("_fc.bias", with_first(-np.inf), r"'_fc.bias' holds -inf at \[0\]"),
        ("_fc.bias", lambda a: a.astype(np.float64) + 1e300, r"'_fc.bias' holds 1e\+300 at \[0\]"),
        ("_fc.bias", lambda a: a.astype(np.int8), "'_fc.bias' is int8; efficientnet_lite0 needs floating point"),
        ("_bn0.running_var", with_first(-1), "'_bn0.running_var' holds -1.0; a variance cannot be negative"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(given, key, change, message):
    with pytest.raises(WeightsError, match=message):
        fs.zoo.build(NAME, changed(given, key, change))


def test_a_checkpoint_that_does_not_fit_is_named_with_its_path(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(WeightsError, match=r"efficientnet_lite0 \(weights '.*other.npz'\) needs tensor"):
        fs.zoo.build(NAME, tmp_path / "other.npz")
