"""Files made to do harm: none runs code, takes gigabytes of memory, or never ends."""

import contextlib
import io
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from hostile import MEGABYTES, in_child, parts_of, put_together

import prepare
from songci import cli, evaluate
from songci.corpus import quansongci
from songci.corpus.vocabulary import Vocabulary, load_dataset
from songci.forms.templates import Forms
from songci.generation import read_start, samples
from songci.training.checkpoint import load_checkpoint, load_model


class Planted:
    """As a pickle: a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def planted(marker: Path) -> list[bytes]:
    """Pickles that would make the file `marker`, in many ways to say so."""
    code = f"open({str(marker)!r}, 'w').close()"
    calls = [
        Planted(os.system, f"touch {marker}"),
        Planted(exec, code),
        Planted(eval, code),
        Planted(subprocess.call, ["touch", str(marker)]),
        Planted(pickle.loads, pickle.dumps(Planted(exec, code))),
        Planted(torch.serialization.load, str(marker)),
        Planted(torch.hub.load, str(marker.parent), "planted", "local"),
    ]
    made = [pickle.dumps({"config": call, "vocab_size": call}, version) for call in calls for version in range(6)]
    touch = f"touch {marker}".encode()
    by_hand = [
        b"cos\nsystem\n(X%b%btR." % (struct.pack("<I", len(touch)), touch),
        b"(cos\nsystem\nX%b%bo." % (struct.pack("<I", len(touch)), touch),
        b"(S'" + touch + b"'\nios\nsystem\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c" + bytes([len(code)]) + code.encode() + b"\x85R.",
        b"\x80\x02ctorch._dynamo\nrun\n(tR.",
        b"\x80\x02\x82\x01.",  # a class by number, of copyreg's registry
    ]
    return made + by_hand


@pytest.fixture
def marker(tmp_path):
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


def refused(function, *args) -> None:
    status, err, megabytes = in_child(function, *args)
    assert status == 2 and err.count("\n") == 1 and "error: " in err, (status, err)
    assert megabytes < MEGABYTES, (megabytes, err)


def test_the_planted_code_would_run_if_it_were_let(tmp_path):
    """Or the tests below would show nothing."""
    ran = 0
    for content in planted(tmp_path / "marker"):
        try:
            pickle.loads(content)
        except Exception:
            continue
        finally:
            ran += (tmp_path / "marker").exists()
            (tmp_path / "marker").unlink(missing_ok=True)
    assert ran > 25


@pytest.mark.parametrize("checked", [True, False])
def test_no_code_is_run_from_a_vocabulary(tmp_path, marker, monkeypatch, checked):
    """Nor would it be if check_pickle() let something through: the unpickler knows no names."""
    if not checked:
        monkeypatch.setattr(prepare, "check_pickle", lambda content: None)
    for content in planted(marker):
        (tmp_path / "meta.pkl").write_bytes(content)
        with pytest.raises(prepare.UserError, match="damaged"):
            Vocabulary.load(tmp_path / "meta.pkl")


def test_no_code_is_run_from_a_checkpoint(tmp_path, tuned_ckpt, marker):
    """In the zip file of today, in its other parts, and in the plain pickles of earlier versions of torch."""
    parts, path = parts_of(tuned_ckpt / "best.pt"), tmp_path / "best.pt"
    scripted = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Identity()), scripted)
    files = [scripted.getvalue()]
    for content in planted(marker):
        files += [content, pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + content]
        for changed in ({"data.pkl": content}, {"DATA.PKL": content}, {"constants.pkl": content, "data.pkl": content}):
            files.append(put_together(path, parts | changed).read_bytes())
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("best/data.pkl", content)
        files.append(path.read_bytes())
    for content in files:
        path.write_bytes(content)
        with pytest.raises(prepare.UserError, match="damaged"):
            load_checkpoint(path)


def test_no_code_is_run_from_any_other_file(tmp_path, tuned_root, tuned_ckpt, marker):
    """None of them is a pickle: nothing should ever take one for it."""
    data = shutil.copytree(tuned_root, tmp_path / "data")
    run = shutil.copytree(tuned_ckpt, tmp_path / "run")
    readers = {
        data / "train.bin": lambda path: load_dataset(data),
        data / "val.bin": lambda path: load_dataset(data),
        data / "forms.json": lambda path: Forms.load(data),
        run / "result.json": lambda path: evaluate.read_run(run),
        run / "log.csv": lambda path: evaluate.read_run(run),
        run / "prompt.txt": lambda path: read_start(f"FILE:{path}"),
        run / "poems.txt": cli.read_text,
        data / "input.txt": lambda path: prepare.prepare(data),
        data / "ci.song.0.json": lambda path: quansongci.obtain(data, "file:///nowhere"),
    }
    for name in quansongci.FILES[1:]:
        (data / name).write_bytes(b"")
    for path, read in readers.items():
        good = path.read_bytes() if path.exists() else b""
        for content in planted(marker):
            path.write_bytes(content)
            with contextlib.suppress(prepare.UserError):
                read(path)
        path.write_bytes(good)


# --- memory and time --------------------------------------------------------------------------------------------------


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def tuples(depth: int) -> bytes:
    """A tuple of the same tuple twice, and so on: 2**depth steps to hash; every other one is a key of a dict."""
    again = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(depth))
    return b"}()q\0" + again + b"u"


PICKLE_BOMBS = {
    "a bytearray": b"\x80\5\x96" + u64(2 << 30) + b".",
    "a long string": b"\x80\4\x8d" + u64(2 << 30) + b".",
    "long bytes": b"\x80\4\x8e" + u64(2 << 30) + b".",
    "a short file of a long string": b"\x80\2X" + u32((1 << 31) - 1) + b".",
    "a long number": b"\x80\2\x8b" + u32((1 << 31) - 1) + b".",
    "a long frame": b"\x80\4\x95" + u64(2 << 30) + b".",
    "a huge memo": b"\x80\2K\0r" + u32(1 << 26) + b".",  # of a number, which both kinds of file may hold
    "a huge memo in words": b"Np268435456\n.",
    "a tuple of tuples": b"\x80\2" + tuples(61) + b".",
    "lists in lists": b"\x80\2" + b"]" * 500_000 + b"a" * 499_999 + b".",
    "one string many times": pickle.dumps(
        {"vocab_size": 2000, "itos": dict.fromkeys(range(2000), "x" * 1_000_000), "stoi": {}}, 4
    ),
    "a call of bytearray": b"\x80\2cbuiltins\nbytearray\nJ" + u32((1 << 31) - 1) + b"\x85R.",
    "a storage": b"\x80\2ctorch.storage\nUntypedStorage\nJ" + u32((1 << 31) - 1) + b"\x85R.",
    "a tensor": b"\x80\2ctorch\nFloatTensor\nJ" + u32(1 << 29) + b"\x85R.",
}


@pytest.mark.parametrize("name", PICKLE_BOMBS)
def test_a_small_pickle_takes_no_gigabytes_and_no_years(tmp_path, tuned_ckpt, name):
    (tmp_path / "meta.pkl").write_bytes(PICKLE_BOMBS[name])
    refused(Vocabulary.load, tmp_path / "meta.pkl")
    put_together(tmp_path / "best.pt", parts_of(tuned_ckpt / "best.pt") | {"data.pkl": PICKLE_BOMBS[name]})
    refused(load_checkpoint, tmp_path / "best.pt")


def saved(checkpoint: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


CONFIGS = [
    *({"n_layer": n} for n in (10**9, 0, -1, 2.0, None)),
    *({"vocab_size": n} for n in (10**12, 0, -91)),
    *({"max_seq_len": n} for n in (10**12, 10**9, 0, -1)),
    *({"n_embd": n} for n in (10**6, 0, -16)),
    *({"n_head": n} for n in (-2, 0, 3, 2.0, True)),
    *({"dropout": p} for p in (1.0, -0.1, float("nan"), "0")),
    {"no_pos": None},
    {"no_res": 1},
    {"unknown": 1},
    {"no_pos": True, "max_seq_len": 10**12},
]


@pytest.mark.parametrize("values", CONFIGS, ids=str)
def test_a_configuration_that_cannot_be_is_refused(tmp_path, tuned_ckpt, values):
    good = torch.load(tuned_ckpt / "best.pt")
    weights = dict(good["model"])
    if "no_pos" in values:
        del weights["position_embedding.weight"]
    if "n_layer" in values:
        weights[f"layers.{10**9 - 1}.attention.out.weight"] = torch.zeros(16, 16)
    torch.save(good | {"config": good["config"] | values, "model": weights}, tmp_path / "best.pt")
    refused(load_checkpoint, tmp_path / "best.pt")


def one_number(good: dict) -> dict:
    """A model of 10⁴ channels, of whose matrices one number each is stored."""
    shapes, C = {}, 10_000
    for name, weight in good["model"].items():
        if "layers.1" not in name:
            shapes[name] = [C * (size // 16) if size in (16, 48, 64) else size for size in weight.shape]
    shapes["position_embedding.weight"] = [16, C]
    config = good["config"] | {"n_embd": C, "n_layer": 1, "n_head": 1}
    return good | {"config": config, "model": {name: torch.ones(1).expand(shape) for name, shape in shapes.items()}}


def other(good: dict, name: str, change) -> dict:
    return good | {"model": good["model"] | {name: change(good["model"][name])}}


WEIGHTS = {
    "one number as a matrix": one_number,
    "no numbers": lambda good: other(good, "norm.weight", lambda w: w * torch.nan),
    "double precision": lambda good: other(good, "norm.weight", torch.Tensor.double),
    "transposed": lambda good: other(good, "layers.0.attention.out.weight", lambda w: w.mT),
    "a number": lambda good: other(good, "norm.weight", lambda w: 1.0),
    "one row too many": lambda good: other(good, "head.weight", lambda w: torch.cat([w, w[:1]])),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_cannot_be_are_refused(tmp_path, tuned_ckpt, name):
    content = saved(WEIGHTS[name](torch.load(tuned_ckpt / "best.pt")))
    assert len(content) < 200_000
    (tmp_path / "best.pt").write_bytes(content)
    refused(load_checkpoint, tmp_path / "best.pt")


def test_a_tensor_larger_than_what_is_stored_is_refused(tmp_path, tuned_ckpt):
    """torch would lengthen the storage."""
    parts = parts_of(tuned_ckpt / "best.pt")
    norm = b"K\x10\x85"  # the shape (16,)
    assert norm in parts["data.pkl"]
    put_together(tmp_path / "best.pt", parts | {"data.pkl": parts["data.pkl"].replace(norm, b"J\0\0\0\x20\x85", 1)})
    refused(load_checkpoint, tmp_path / "best.pt")


def zipped(parts: dict[str, bytes], **options) -> bytes:
    """By Python's writer, with the three records at the end that torch's writes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        for name, content in parts.items():
            file.writestr(f"archive/{name}", content)
    return ended(buffer.getvalue())


def ended(content: bytes, start: int | None = None) -> bytes:
    """The records at the end anew, in 64 bits and in 32; start: where they say that the directory begins."""
    count, size, found = struct.unpack_from("<HII", content, len(content) - 12)
    start, place = found if start is None else start, len(content) - 22
    new = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    new += struct.pack("<4sIQI", b"PK\6\7", 0, place, 1)
    return content[:place] + new + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, size, start, 0)


def two_directories(bomb: bytes, harmless: bytes) -> bytes:
    """One where the end says that it begins, for torch; and one just before the end, for Python."""
    bomb, start = bomb[:-98], struct.unpack_from("<I", bomb, len(bomb) - 6)[0]
    own_start = struct.unpack_from("<I", harmless, len(harmless) - 6)[0]
    files, directory = harmless[:own_start], bytearray(harmless[own_start:-98])
    shift, place = len(bomb) + len(files) - start, 0  # which Python adds to the offsets
    while place < len(directory):
        offset, lengths = (
            struct.unpack_from("<I", directory, place + 42)[0],
            struct.unpack_from("<HHH", directory, place + 28),
        )
        struct.pack_into("<I", directory, place + 42, len(bomb) + offset - shift)
        place += 46 + sum(lengths)
    return ended(bomb + files + bytes(directory) + harmless[-22:], start)


DEFLATED = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
ARCHIVES = {
    "deflated": lambda parts: zipped(parts | {"data/0": bytes(400 << 20)}, **DEFLATED),
    "bzipped": lambda parts: zipped(parts, compression=zipfile.ZIP_BZIP2),
    "two directories": lambda parts: two_directories(
        zipped(parts | {"data/0": bytes(400 << 20)}, **DEFLATED), zipped(parts)
    ),
    "two directories, not compressed": lambda parts: two_directories(zipped(parts), zipped(parts)),
    "two pickles": lambda parts: zipped(parts | {"DATA.PKL": parts["data.pkl"]}),
    "two tensors of one name": lambda parts: zipped(parts | {"DATA/0": parts["data/0"]}),  # but for the case
    "two more pickles": lambda parts: zipped(parts | {"more/data.pkl": parts["data.pkl"]}),
    "no pickle": lambda parts: zipped({name: content for name, content in parts.items() if name != "data.pkl"}),
    "a comment": lambda parts: zipped(parts) + b"comment",
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_torch_does_not_write_are_refused(tmp_path, tuned_ckpt, name):
    (tmp_path / "best.pt").write_bytes(ARCHIVES[name](parts_of(tuned_ckpt / "best.pt")))
    refused(load_checkpoint, tmp_path / "best.pt")


def test_an_archive_as_torch_writes_it_is_read(tmp_path, tuned_ckpt):
    """The tests above are of what they say, and not of the way in which they write a zip file."""
    for content in (zipped, lambda parts: put_together(tmp_path / "best.pt", parts).read_bytes()):
        (tmp_path / "best.pt").write_bytes(content(parts_of(tuned_ckpt / "best.pt")))
        load_checkpoint(tmp_path / "best.pt")


def test_a_large_window_without_positions_takes_memory_only_when_used(tmp_path, tuned_ckpt):
    """No weight tells that its size is a lie."""
    good = torch.load(tuned_ckpt / "best.pt")
    del good["model"]["position_embedding.weight"]
    good["config"] |= {"no_pos": True, "max_seq_len": 1_000_000}
    torch.save(good, tmp_path / "best.pt")

    def write():
        assert len(list(samples(load_model(tmp_path), "+++清平乐", 20, 100))) == 20

    status, err, megabytes = in_child(write)
    assert (status, err) == (0, "") and megabytes < MEGABYTES
