import gc
import operator
import tracemalloc
import weakref

import numpy as np
import pytest

from tvm_int8.errors import CalibrationError
from tvm_int8.quantization.data import CalibrationBatches, InputSpec
from tvm_int8.quantization.data_free import CalibrationWarning

IMAGE = [InputSpec("x", (2, 3, 4, 4))]
TWO = [InputSpec("x", (1, 3)), InputSpec("size", (1, 2), "int64")]


class FakeTensor:
    """As much of a torch tensor as is looked at."""

    def __init__(self, array):
        self._array = array

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self._array


class FakeLoader:
    """As much of a torch DataLoader as is looked at: `[images, labels]`, a new iterator each time, a length."""

    def __init__(self, images, batch_size):
        self._images, self._batch_size = images, batch_size

    def __len__(self):
        return -(-len(self._images) // self._batch_size)

    def __iter__(self):
        for start in range(0, len(self._images), self._batch_size):
            images = self._images[start : start + self._batch_size]
            yield [FakeTensor(images), FakeTensor(np.arange(len(images)))]


def _images(samples, seed=0):
    return np.random.default_rng(seed).standard_normal((samples, 3, 4, 4)).astype(np.float32)


def _joined(data, inputs=IMAGE):
    batches = list(CalibrationBatches(data, inputs))
    for batch in batches:
        assert list(batch) == [spec.name for spec in inputs]
        for spec in inputs:
            assert batch[spec.name].shape == spec.shape
            assert batch[spec.name].dtype == spec.dtype
            assert type(batch[spec.name]) is np.ndarray
            assert batch[spec.name].flags.c_contiguous
            assert batch[spec.name].flags.writeable
    return np.concatenate([batch[inputs[0].name] for batch in batches])


def _forms(x, tmp_path):
    batches = np.split(x, len(x) // 2)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    np.savez(tmp_path / "labelled.npz", x=x, labels=np.arange(len(x)))
    np.savez(tmp_path / "one.npz", x)
    return {
        "list": batches,
        "tuple": tuple(batches),
        "generator": (batch for batch in batches),
        "iterator": iter(batches),
        "list of dicts": [{"x": batch} for batch in batches],
        "list of tuples": [(batch,) for batch in batches],
        "list of lists with labels": [[batch, np.zeros(2)] for batch in batches],
        "list of tensors": [FakeTensor(batch) for batch in batches],
        "list of dicts of tensors": [{"x": FakeTensor(batch)} for batch in batches],
        "loader": FakeLoader(x, 2),
        "loader of larger batches": FakeLoader(x, 6),
        "array": x,
        "stack of batches": np.stack(batches),
        "tensor": FakeTensor(x),
        "dict of arrays": {"x": x},
        "float64": x.astype(np.float64),
        "not contiguous": np.asfortranarray(x),
        "npy": tmp_path / "x.npy",
        "npz": str(tmp_path / "x.npz"),
        "npz with labels": tmp_path / "labelled.npz",
        "npz with one array": tmp_path / "one.npz",
    }


def test_every_form_gives_the_same_stream(tmp_path):
    x = _images(12)
    for form, data in _forms(x, tmp_path).items():
        np.testing.assert_array_equal(_joined(data), x, err_msg=form)


def test_torch_itself():
    torch = pytest.importorskip("torch")
    x = _images(8)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(x).requires_grad_(), torch.arange(8))
    np.testing.assert_array_equal(_joined(torch.utils.data.DataLoader(dataset, batch_size=4)), x)


def test_several_inputs(tmp_path):
    x, size = np.ones((5, 3), np.float32), np.arange(10).reshape(5, 2)
    np.savez(tmp_path / "both.npz", size=size, x=x)
    by_position = list(zip(x[:, None], size[:, None], strict=True))
    for data in ({"size": size, "x": x}, by_position, tmp_path / "both.npz", [(x, size)]):
        batches = list(CalibrationBatches(data, TWO))
        assert len(batches) == 5
        np.testing.assert_array_equal(np.concatenate([batch["size"] for batch in batches]), size)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "float16", "bool"])
def test_integers_and_other_floats_become_float32(dtype):
    x = np.arange(96).reshape(2, 3, 4, 4).astype(dtype)
    np.testing.assert_array_equal(_joined([x]), x.astype(np.float32))


def test_integers_that_fit_another_integer_type():
    (batch,) = CalibrationBatches([(np.zeros((1, 3)), np.array([[3, 4]], np.int16))], TWO)
    assert batch["size"].dtype == np.int64
    narrow = [InputSpec("i", (2,), "uint8")]
    (batch,) = CalibrationBatches([np.array([0, 255])], narrow)
    assert batch["i"].tolist() == [0, 255]
    with pytest.raises(CalibrationError, match=r"input 'i'.*from -1 to 255.*uint8"):
        list(CalibrationBatches([np.array([-1, 255])], narrow))
    with pytest.raises(CalibrationError, match=r"dtype float64; expected uint8"):
        list(CalibrationBatches([np.array([0.0, 1.5])], narrow))


def test_a_scalar_input():
    (batch,) = CalibrationBatches([np.float32(0.5)], [InputSpec("threshold", ())])
    assert batch["threshold"].shape == ()


def test_an_incomplete_batch_is_left_out_with_a_warning():
    for data in (_images(7), FakeLoader(_images(7), 4), list(np.array_split(_images(7), [2, 4, 6]))):
        with pytest.warns(CalibrationWarning, match="1 calibration samples were left out"):
            assert len(_joined(data)) == 6


def test_too_few_samples_for_one_batch():
    with pytest.raises(CalibrationError, match=r"shape \[1, 3, 4, 4\]; expected shape \[2, 3, 4, 4\]"):
        list(CalibrationBatches(_images(1), IMAGE))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((2, 3, 4, 5)), ["shape [2, 3, 4, 5]", "shape [2, 3, 4, 4]"]),
        (np.zeros((3, 4, 4)), ["shape [3, 4, 4]", "add the batch axis"]),
        (np.zeros((2, 4, 4, 3)), ["x.transpose(0, 3, 1, 2)"]),
        (np.zeros((2, 3, 4, 4), complex), ["dtype complex128"]),
        (np.full((2, 3, 4, 4), "a"), ["dtype <U1"]),
        (np.full((2, 3, 4, 4), None), ["dtype object"]),
        (np.full((2, 3, 4, 4), np.nan), ["96 of 96 values are NaN"]),
        (np.full((2, 3, 4, 4), 1e300), ["96 of 96 values"]),
        ({"y": np.zeros((2, 3, 4, 4))}, ["missing ['x'], unknown ['y']"]),
        ({"x": np.zeros((2, 3, 4, 4)), "y": 0}, ["unknown names ['y']"]),
        ({"x": [[1.0]]}, ["input 'x'", "a list"]),
        ([], ["0 arrays", "1, for the inputs ['x']"]),
        (([1.0, 2.0], 3), ["a list; expected an array or a tensor"]),
        (3.0, ["a float", "an array, a dict"]),
        ("image.png", ["a str"]),
        (None, ["a NoneType"]),
    ],
)
def test_a_bad_batch_is_named(bad, words):
    good = np.zeros((2, 3, 4, 4), np.float32)
    stream = iter(CalibrationBatches([good, good, good, bad], IMAGE))
    for _ in range(3):
        next(stream)
    with pytest.raises(CalibrationError) as caught:
        next(stream)
    for word in ("calibration batch 3", *words):
        assert word in str(caught.value)


def test_a_bad_sample_in_an_array_is_located():
    x = _images(10)
    x[5, 0, 0, 0] = np.inf
    with pytest.raises(CalibrationError, match="calibration batch 2, input 'x': 1 of 96 values"):
        list(CalibrationBatches(x, IMAGE))


def test_inputs_of_different_length():
    with pytest.raises(CalibrationError, match="5 batches for input 'x', 4 batches for input 'size'"):
        list(CalibrationBatches({"x": np.zeros((5, 3)), "size": np.zeros((4, 2), int)}, TWO))


@pytest.mark.parametrize("empty", [[], (), iter(()), {}.values()])
def test_no_batch_at_all(empty):
    with pytest.raises(CalibrationError, match="no batch at all"):
        list(CalibrationBatches(empty, IMAGE))


@pytest.mark.parametrize("data", [3, None, object()])
def test_data_that_is_no_data(data):
    with pytest.raises(CalibrationError, match=r"calibration data: a .*expected an array"):
        CalibrationBatches(data, IMAGE)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.npy", None),
        ("missing.npz", None),
        ("text.npy", b"hello"),
        ("text.npz", b"hello"),
        ("empty.npy", b""),
        ("empty.npz", b""),
        ("zip.npz", b"PK\x03\x04 and then nothing"),
        ("pickle.npy", b"\x80\x04N."),
        ("pickle.npz", b"\x80\x04N."),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match=f"{name}: cannot be read"):
        CalibrationBatches(path, IMAGE)


def test_a_truncated_file(tmp_path):
    np.save(tmp_path / "x.npy", _images(8))
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[: len(content) // 2])
    with pytest.raises(CalibrationError, match="cannot be read"):
        CalibrationBatches(tmp_path / "x.npy", IMAGE)


def test_files_with_the_wrong_ending(tmp_path):
    np.save(tmp_path / "x.npy", _images(2))
    (tmp_path / "x.npy").rename(tmp_path / "y.npz")
    np.savez(tmp_path / "x.npz", x=_images(2))
    (tmp_path / "x.npz").rename(tmp_path / "y.npy")
    for name in ("y.npz", "y.npy"):
        with pytest.raises(CalibrationError, match="cannot be read"):
            CalibrationBatches(tmp_path / name, IMAGE)


def test_files_of_another_kind(tmp_path):
    with pytest.raises(CalibrationError, match=r"ends in \.npy or \.npz"):
        CalibrationBatches("images/", IMAGE)
    np.savez(tmp_path / "d.npz", a=_images(2), b=_images(2))
    with pytest.raises(CalibrationError, match=r"arrays \['a', 'b'\]; expected arrays named like the inputs: \['x'\]"):
        CalibrationBatches(tmp_path / "d.npz", IMAGE)


def test_length_hint():
    assert operator.length_hint(CalibrationBatches(_images(9), IMAGE)) == 4
    assert operator.length_hint(CalibrationBatches(FakeLoader(_images(9), 2), IMAGE)) == 5
    assert operator.length_hint(CalibrationBatches(iter(()), IMAGE)) == 0


def test_an_error_of_the_users_generator_passes_through():
    def broken():
        yield _images(2)
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        list(CalibrationBatches(broken(), IMAGE))


def test_nothing_is_read_ahead_or_kept():
    made, references = 0, []

    def alive():
        references[:] = [reference for reference in references if reference() is not None]
        return len(references)

    def stream():
        nonlocal made
        for _ in range(1000):
            made += 1
            batch = _images(2)
            references.append(weakref.ref(batch))
            yield batch

    for taken, _ in enumerate(CalibrationBatches(stream(), IMAGE), start=1):
        assert made == taken
        assert alive() <= 3
    assert taken == 1000
    gc.collect()
    assert alive() <= 1


def test_an_npy_file_is_not_read_as_a_whole(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((20_000, 3, 4, 4), np.float32))
    tracemalloc.start()
    try:
        for _ in CalibrationBatches(tmp_path / "x.npy", IMAGE):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000  # of 3.8 MB
