"""One table: what may be wrong with a data set, and what is done about it in each form that data come in.

A fault is refused by a ValueError that names the file and what is wrong, or repaired and counted in `info.notes`.
"""

import io
import shutil
import zipfile

import numpy as np
import pytest

from flowrl.rl import data
from flowrl.runs import DamagedError

h5py = pytest.importorskip("h5py")

ROWS, ENDS = 24, (7, 15, 23)
WIDTHS = {"npz": (3, 2), "hdf5": (3, 2), "d4rl": (11, 3), "local": (17, 6)}


def columns(form):
    """Three trajectories of eight rows, the second of which truly ends, as this form holds them."""
    rng = np.random.default_rng(0)
    obs, act = WIDTHS[form]
    states = [rng.normal(size=(9, obs)).astype(np.float32) for _ in ENDS]
    ends, true_end = np.isin(np.arange(ROWS), ENDS), np.arange(ROWS) == ENDS[1]
    arrays = {
        "observations": np.concatenate([s[:-1] for s in states]),
        "actions": rng.uniform(-0.9, 0.9, (ROWS, act)).astype(np.float32),
        "rewards": rng.normal(size=ROWS).astype(np.float32),
        "next_observations": np.concatenate([s[1:] for s in states]),
    }
    if form == "d4rl":
        return arrays | {"terminals": true_end, "timeouts": ends & ~true_end}
    return arrays | {"masks": (~true_end).astype(np.float32), "terminals": ends.astype(np.float32)}


def write(form, folder, arrays):
    if form in ("npz", "local"):
        path = folder / "mine.npz"
        np.savez(path, **arrays)
        np.savez(folder / "mine-val.npz", **columns(form))
        return path
    path = folder / "mine.hdf5"
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value.astype("S8") if value.dtype.kind == "U" else value
    return path


def load(form, path):
    if form == "d4rl":
        return data.load("d4rl:hopper-medium-v2", dataset_path=path, validation=0)
    if form == "local":
        return data.load("halfcheetah-medium-local-v0", dataset_path=path)
    return data.load_arrays(path, validation=0)


def put(key, row, number):
    def spoil(arrays):
        arrays[key] = arrays[key].copy()
        arrays[key][row] = number

    return spoil


def change(key, function):
    def spoil(arrays):
        if key in arrays:
            arrays[key] = function(arrays[key])

    return spoil


def shift(arrays):
    for key in ("terminals", "timeouts", "masks"):
        if key in arrays:
            arrays[key] = np.roll(arrays[key], 1)


def unfinished(arrays):
    for key in ("terminals", "timeouts"):
        if key in arrays:
            arrays[key] = arrays[key].copy()
            arrays[key][-1] = 0


def unmarked(arrays):
    for key in ("terminals", "timeouts"):
        if key in arrays:
            arrays[key] = arrays[key].copy()
            arrays[key][ENDS[0]] = 0


ALL = ("npz", "hdf5", "d4rl", "local")
#: What is spoilt, and in which forms it is refused with which words.
REFUSED = {
    "missing observations": (lambda a: a.pop("observations"), dict.fromkeys(ALL, "missing observations")),
    "missing rewards": (lambda a: a.pop("rewards"), dict.fromkeys(ALL, "missing rewards")),
    "missing terminals": (
        lambda a: (a.pop("terminals"), a.pop("masks", None), a.pop("timeouts", None)),
        {"npz": r"missing flags", "hdf5": r"missing flags", "d4rl": "missing terminals", "local": "missing masks"},
    ),
    "NaN in observations": (put("observations", 3, np.nan), dict.fromkeys(ALL, "observations is wrong on 1 of")),
    "infinity in rewards": (put("rewards", 5, np.inf), dict.fromkeys(ALL, "rewards is wrong on 1 of .*first row 5")),
    "NaN in actions": (put("actions", 2, np.nan), dict.fromkeys(ALL, "actions is wrong on 1 of")),
    "NaN in next observations": (put("next_observations", 2, np.nan), dict.fromkeys(ALL, "next_observations is wrong")),
    "NaN in flags": (
        lambda a: a.update(terminals=np.where(np.arange(ROWS) == 3, np.nan, a["terminals"])),
        {
            "npz": "terminals must be 24 values",
            "hdf5": "terminals must be 24 values",
            "d4rl": "terminals must hold values that are 0 or 1",
            "local": "terminals is wrong on 1 of",
        },
    ),
    "actions outside the box": (put("actions", 4, 1.5), dict.fromkeys(ALL, r"actions is wrong .*within \[-1, 1\]")),
    "a float64 beyond float32": (
        lambda a: a.update(rewards=np.full(ROWS, 1e300)),
        dict.fromkeys(ALL, "rewards is wrong on 2. of .*finite float32"),
    ),
    "a row too few": (
        change("rewards", lambda x: x[:-1]),
        {
            "npz": r"rewards has shape \(23,\), but observations has 24 rows",
            "hdf5": r"rewards has shape \(23,\), but observations has 24 rows",
            "d4rl": r"rewards has shape \(23,\), expected \(24,\)",
            "local": "rewards has 23 rows, but observations has 24",
        },
    ),
    "another width of next observations": (
        change("next_observations", lambda x: x[:, :-1]),
        dict.fromkeys(ALL, r"next_observations has shape .*expected"),
    ),
    "no rows": (
        lambda a: a.update({k: v[:0] for k, v in a.items()}),
        dict.fromkeys(ALL, r"no rows|has 0 rows"),
    ),
    "words for numbers": (
        change("rewards", lambda x: x.astype("U8")),
        {
            "npz": "rewards has dtype <U8",
            "hdf5": r"rewards has dtype \|S8, expected numbers",
            "d4rl": r"rewards has dtype \|S8, expected numbers",
            "local": "rewards has dtype <U8",
        },
    ),
    "complex numbers": (
        change("rewards", lambda x: x.astype(complex)),
        dict.fromkeys(ALL, "rewards has dtype complex128"),
    ),
    "discrete actions": (
        change("actions", lambda x: np.ones(x.shape, np.int64)),
        {"npz": "discrete actions", "hdf5": "discrete actions", "d4rl": "actions has dtype", "local": "actions has dt"},
    ),
    "flags that are no flags": (
        put("terminals", slice(None), 0.5),
        {"npz": "terminals must be", "hdf5": "terminals must be", "local": "terminals is wrong"},
    ),
    "flags one row late": (
        shift,
        {
            "npz": "flags seem to stand on the first row of the next trajectory",
            "hdf5": "flags seem to stand on the first row of the next trajectory",
            "local": r"terminals is 0 on the last row",
        },
    ),
    "an unfinished end, in a form that has no place for it": (unfinished, {"local": "terminals is 0 on the last row"}),
    "an unknown key": (
        lambda a: a.update(secret=np.ones(ROWS)),
        {"npz": "unknown keys secret", "hdf5": "unknown keys secret", "local": "unknown keys secret"},
    ),
}
#: What is spoilt, and in which forms it is repaired, with which note and how many trajectories there are then.
REPAIRED = {
    "no end on the last row": (
        unfinished,
        dict.fromkeys(("npz", "hdf5"), ("the last trajectory was unfinished: 1 end added", 3)),
    ),
    "an end that no flag marks": (
        unmarked,
        dict.fromkeys(("npz", "hdf5"), ("terminals: 1 ends added where the next row does not go on", 3)),
    ),
    "no next observations": (
        lambda a: a.pop("next_observations"),
        dict.fromkeys(("npz", "hdf5"), ("next_observations: taken from the next row; 2 last rows without one", 3))
        | {"d4rl": ("left out, as in qlearning_dataset: the last row, and 1 more at time limits", 3)},
    ),
    "rewards in a column": (
        change("rewards", lambda x: x[:, None]),
        dict.fromkeys(("npz", "hdf5"), (r"rewards: shape (n, 1) became (n,)", 3)),
    ),
    "a trajectory of one row": (
        put("terminals", 0, 1),
        dict.fromkeys(("npz", "hdf5"), ("no environment", 4)),
    ),
}


def cases(table):
    return [
        pytest.param(spoil, form, words, id=f"{name}, {form}")
        for name, (spoil, forms) in table.items()
        for form, words in forms.items()
    ]


@pytest.mark.parametrize("form", ALL)
def test_without_a_fault_they_load(tmp_path, form):
    loaded = load(form, write(form, tmp_path, columns(form)))
    assert len(loaded.train) == (ROWS - 2 if form == "d4rl" else ROWS)
    assert int(loaded.train.terminals.sum()) == 3


@pytest.mark.parametrize(("spoil", "form", "words"), cases(REFUSED))
def test_a_fault_is_refused_with_file_and_reason(tmp_path, spoil, form, words):
    arrays = columns(form)
    spoil(arrays)
    path = write(form, tmp_path, arrays)
    with pytest.raises(ValueError, match=rf"mine\.(npz|hdf5): .*{words}|mine\.(npz|hdf5): {words}"):
        load(form, path)


@pytest.mark.parametrize(("spoil", "form", "words"), cases(REPAIRED))
def test_a_fault_is_repaired_and_counted(tmp_path, spoil, form, words):
    arrays = columns(form)
    spoil(arrays)
    loaded = load(form, write(form, tmp_path, arrays))
    note, trajectories = words
    assert any(note in found for found in loaded.info.notes), loaded.info.notes
    assert int(loaded.train.terminals.sum()) == trajectories
    assert loaded.train.terminals[-1] == 1


@pytest.mark.parametrize("form", ALL)
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path, form):
    path = write(form, tmp_path, columns(form))
    whole = path.read_bytes()
    for share in np.linspace(0, 0.999, 25):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DamagedError, match=r"mine\.(npz|hdf5): "):
            load(form, path)


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["npz", "hdf5"])
def test_a_flipped_bit_is_refused_by_name_or_changes_a_number(tmp_path, form):
    """An npz has a checksum of every array, so it is refused or the same; an HDF5 file has none of its numbers."""
    path = write(form, tmp_path, columns(form))
    whole, before, rng = path.read_bytes(), load(form, path).train, np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        content[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            after = load(form, path).train
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
            continue
        if form == "npz":
            assert all(np.array_equal(getattr(after, key), getattr(before, key)) for key in columns(form))
    assert refused > 10


def test_nothing_in_a_file_is_run_or_read_from_elsewhere(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **columns("npz"), evil=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"mine\.npz: evil cannot be read"):
        data.load_arrays(path)
    # A member that leads out of the archive is a name like any other: nothing is extracted.
    inside = io.BytesIO()
    np.save(inside, np.ones(ROWS))
    np.savez(path, **columns("npz"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../escaped.npy", inside.getvalue())
    with pytest.raises(ValueError, match=r"unknown keys \.\./escaped"):
        data.load_arrays(path)
    assert not (tmp_path.parent / "escaped.npy").exists()
    # An archive that says it holds more than it can.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("observations.npy", b"\0" * 3_000_000)
    content = path.read_bytes()
    size = (3_000_000).to_bytes(4, "little")
    path.write_bytes(content.replace(size, (4_000_000_000).to_bytes(4, "little")))
    with pytest.raises(DamagedError, match="claims to hold more than it can"):
        data.load_arrays(path)
    linked = tmp_path / "linked.hdf5"
    other = write("hdf5", tmp_path, columns("hdf5"))
    shutil.copy(other, linked)
    with h5py.File(linked, "a") as file:
        del file["rewards"]
        file["rewards"] = h5py.ExternalLink(str(other), "rewards")
    with pytest.raises(ValueError, match=r"linked\.hdf5: rewards is a link to elsewhere"):
        data.load_arrays(linked)
