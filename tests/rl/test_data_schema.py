"""The checks every data set passes on its way in."""

import json

import jax
import numpy as np
import pytest

from flowrl.rl.data import DataInfo, Transitions, episode_ends, from_dict


def _arrays(rows=6):
    rng = np.random.default_rng(0)
    terminals = np.zeros(rows, np.float32)
    terminals[[2, -1]] = 1
    return {
        "observations": rng.normal(size=(rows, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(rows, 2)).astype(np.float32),
        "rewards": -np.ones(rows, np.float32),
        "next_observations": rng.normal(size=(rows, 3)).astype(np.float32),
        "masks": np.ones(rows, np.float32),
        "terminals": terminals,
    }


def test_valid_data_pass_unchanged():
    arrays = _arrays()
    data = from_dict(arrays, source="x.npz")
    assert len(data) == 6
    for name, array in arrays.items():
        got = getattr(data, name)
        assert isinstance(got, np.ndarray)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, array)


def test_float64_and_bool_flags_become_float32():
    arrays = {key: value.astype(np.float64) for key, value in _arrays().items()}
    arrays["terminals"] = arrays["terminals"].astype(bool)
    arrays["masks"] = arrays["masks"].astype(bool)
    data = from_dict(arrays, source="x.npz")
    assert {leaf.dtype for leaf in jax.tree.leaves(data)} == {np.dtype(np.float32)}


def test_actions_are_clipped_so_that_atanh_is_finite():
    arrays = _arrays()
    arrays["actions"][0] = [1.0 + 5e-5, -1.0]
    data = from_dict(arrays, source="x.npz")
    np.testing.assert_allclose(data.actions[0], [1 - 1e-5, -(1 - 1e-5)], rtol=1e-7)
    assert np.isfinite(np.arctanh(data.actions)).all()


def test_transitions_are_a_pytree():
    data = jax.tree.map(lambda x: x[:2], from_dict(_arrays(), source="x.npz"))
    assert isinstance(data, Transitions)
    assert len(data) == 2


def _change(key, value):
    def change(arrays):
        arrays[key] = value(arrays[key])

    return change


def _put(key, row, value):
    def put(arrays):
        arrays[key][row] = value

    return put


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a: a.pop("masks"), ["missing masks", "found actions"]),
        (lambda a: a.update(qpos=np.ones(6)), ["unknown keys qpos", "ignore"]),
        (_change("observations", lambda x: x[:, 0]), ["observations has shape (6,)", "(rows, features)"]),
        (_change("rewards", lambda x: x[:, None]), ["rewards has shape (6, 1)", "(rows,)"]),
        (_change("actions", lambda x: x[:, :0]), ["actions has shape (6, 0)", "at least one feature"]),
        (_change("rewards", lambda x: x[:-1]), ["rewards has 5 rows", "observations has 6"]),
        (_change("next_observations", lambda x: x[:, :2]), ["next_observations has shape (6, 2)", "(6, 3)"]),
        (_change("actions", lambda x: np.zeros(x.shape, np.int64)), ["actions has dtype int64", "floating"]),
        (_change("masks", lambda x: x.astype(np.int32)), ["masks has dtype int32", "bool"]),
        (_change("observations", lambda x: x.astype(object)), ["observations has dtype object"]),
        (_put("observations", [3, 5], np.nan), ["observations", "2 of 6 rows", "first row 3", "finite"]),
        (_put("rewards", 4, -np.inf), ["rewards", "first row 4", "-inf"]),
        (_change("rewards", lambda x: x.astype(np.float64) * 1e300), ["rewards", "6 of 6 rows", "finite"]),
        (_put("actions", 1, 1.001), ["actions", "1 of 6 rows", "first row 1", "[-1, 1]"]),
        (_put("masks", 2, 0.5), ["masks", "first row 2", "expected 0 or 1"]),
        (_put("terminals", 0, 2.0), ["terminals", "first row 0", "expected 0 or 1"]),
        (_put("terminals", -1, 0.0), ["terminals is 0 on the last row (5)"]),
    ],
)
def test_bad_data_are_refused_with_source_field_and_row(spoil, words):
    arrays = _arrays()
    spoil(arrays)
    with pytest.raises(ValueError, match=r"^some/file\.npz: ") as caught:
        from_dict(arrays, source="some/file.npz")
    for word in words:
        assert word in str(caught.value)


def test_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        from_dict({key: value[:0] for key, value in _arrays().items()}, source="x.npz")


def test_named_extra_keys_are_ignored():
    from_dict({**_arrays(), "qpos": np.ones(6)}, source="x.npz", ignore=("qpos",))


def test_episode_ends():
    ends = episode_ends(np.array([0, 0, 1, 1, 0, 1], np.float32))
    assert ends.tolist() == [2, 2, 2, 3, 5, 5]
    assert ends.dtype == np.int32
    assert episode_ends(np.ones(1, np.float32)).tolist() == [0]


@pytest.mark.parametrize("terminals", [[], [1.0, 0.0]])
def test_episode_ends_needs_a_closed_last_trajectory(terminals):
    with pytest.raises(ValueError, match="last row"):
        episode_ends(np.array(terminals, np.float32))


def test_info_gives_one_line_of_json():
    info = DataInfo("a-v0", "b-v0", "local", "00", {"numpy": "2"}, None, 0, 5, "success")
    text = info.to_json()
    assert "\n" not in text
    assert json.loads(text)["versions"] == {"numpy": "2"}
    assert json.loads(text)["success_timing"] is None
