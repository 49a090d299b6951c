"""Histology encoders: the published layout against a plain forward pass, files, and the download."""

import dataclasses
import hashlib
import http.server
import math
import threading

import numpy as np
import pytest
import torch
from images import SIZE, read
from scipy.special import erf
from weight_server import Handler, cached_files

import sagefm as sg
from sagefm.histology import vit as _vit
from sagefm.models import Encoder, _registry

SHAPE = _vit.Shape(size=SIZE, patch=16, width=128, depth=3)


def published(shape, seed=0):
    """Random weights under the published names, all of them far from what initialisation gives."""
    random = torch.Generator().manual_seed(seed)
    width, patch = shape.width, shape.patch
    n_tokens = (shape.size // patch) ** 2 + 1
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, n_tokens, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(shape.depth):
        for name, n_in, n_out in (
            ("attn.qkv", width, 3 * width),
            ("attn.proj", width, width),
            ("mlp.fc1", width, 4 * width),
            ("mlp.fc2", 4 * width, width),
        ):
            shapes |= {f"blocks.{i}.{name}.weight": (n_out, n_in), f"blocks.{i}.{name}.bias": (n_out,)}
        shapes |= {f"blocks.{i}.{name}.{kind}": (width,) for name in ("norm1", "norm2") for kind in ("weight", "bias")}
    return {name: 0.1 * torch.randn(size, generator=random) for name, size in shapes.items()}


def plain_forward(weights, pixels, shape):
    """A ViT written out, in float64: convolution by loops, attention by head, exact GELU."""
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}

    def norm(x, name):
        centered = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6)
        return centered / spread * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    out = []
    for image in pixels:
        patch, tokens = shape.patch, [w["cls_token"][0, 0]]
        for top in range(0, shape.size, patch):
            for left in range(0, shape.size, patch):
                cut = image[top : top + patch, left : left + patch].astype(float) / 255
                kernel = w["patch_embed.proj.weight"]
                tokens.append(np.einsum("kcyx,yxc->k", kernel, cut, optimize=False) + w["patch_embed.proj.bias"])
        x = np.stack(tokens) + w["pos_embed"][0]
        for i in range(shape.depth):
            q, k, v = np.split(linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv"), 3, axis=1)
            heads = []
            for start in range(0, shape.width, 64):
                part = slice(start, start + 64)
                score = np.exp(q[:, part] @ k[:, part].T / 8)
                heads.append(score / score.sum(axis=1, keepdims=True) @ v[:, part])
            x = x + linear(np.hstack(heads), f"blocks.{i}.attn.proj")
            hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
            x = x + linear(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, f"blocks.{i}.mlp.fc2")
        out.append(norm(x, "norm")[0])
    return np.stack(out)


def checkpoint(path, weights, prefix="", **more):
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in weights.items()}, **more}, path)
    return path


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_like_a_plain_forward_pass(prefix, pixels, tmp_path):
    weights = published(SHAPE)
    encoder = sg.models.load_encoder(checkpoint(tmp_path / "vit.pth", weights, prefix))
    assert (encoder.size, encoder.width, encoder.name) == (SIZE, 128, "vit")
    expected = plain_forward(weights, pixels, SHAPE)
    np.testing.assert_allclose(encoder.embed(pixels, "cpu"), expected, atol=1e-5 * np.abs(expected).max())


def test_published_size():
    network = _vit.build(_vit.Shape())
    assert 85.75e6 < Encoder("vit-b", network).n_parameters < 85.85e6
    named = _vit.to_published(network.state_dict())
    assert len(named) == 4 + 2 + 12 * 12
    assert named["blocks.11.attn.qkv.weight"].shape == (3 * 768, 768)


def test_names_there_and_back():
    weights = published(SHAPE)
    back = _vit.to_published(_vit.from_published(weights))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_saved_and_loaded(pixels, tmp_path):
    network, _ = _vit.read(checkpoint(tmp_path / "vit.pth", published(SHAPE)))
    encoder = Encoder("mine", network, {"slides": 3})
    again = sg.models.load_encoder(encoder.save(tmp_path / "vit.safetensors"))
    assert (again.name, again.card) == ("mine", {"slides": 3})
    np.testing.assert_array_equal(again.embed(pixels, "cpu"), encoder.embed(pixels, "cpu"))
    with pytest.raises(ValueError, match="has to end in .safetensors"):
        encoder.save(tmp_path / "vit.pth")
    content = bytearray((tmp_path / "vit.safetensors").read_bytes())
    content[-100] ^= 1
    (tmp_path / "vit.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        sg.models.load_encoder(tmp_path / "vit.safetensors")


def test_what_pretraining_leaves_is_left_out(pixels, tmp_path):
    weights = published(SHAPE)
    more = {"head.mlp.0.weight": torch.ones(3, 3), "masked_embed": torch.ones(1, 128)}
    with_head = sg.models.load_encoder(checkpoint(tmp_path / "a.pth", weights | more, epoch=3))
    without = sg.models.load_encoder(checkpoint(tmp_path / "b.pth", weights))
    np.testing.assert_array_equal(with_head.embed(pixels, "cpu"), without.embed(pixels, "cpu"))


WRONG = {
    "lacks a layer": (lambda w: w.pop("blocks.1.mlp.fc1.bias"), "lacks"),
    "lacks a block": (lambda w: [w.pop(name) for name in list(w) if name.startswith("blocks.1.")], "lacks"),
    "no positions": (lambda w: w.pop("pos_embed"), "doesn't hold a vision transformer"),
    "unknown": (lambda w: w.update({"blocks.0.gate.weight": torch.ones(2)}), "no weight of a ViT"),
    "shape": (lambda w: w.update({"norm.weight": torch.ones(64)}), "norm.*shape"),
    "qkv": (lambda w: w.update({"blocks.0.attn.qkv.bias": torch.ones(128)}), r"shape \(128,\), not of three layers"),
    "not three": (lambda w: w.update({"blocks.0.attn.qkv.bias": torch.ones(128 * 3 - 1)}), "not of three"),
    "twice": (lambda w: w.update({"module.norm.bias": torch.ones(128)}), "there twice"),
    "NaN": (lambda w: w["norm.bias"].fill_(np.nan), "not finite"),
    "whole numbers": (lambda w: w.update({"norm.bias": torch.ones(128, dtype=torch.int64)}), "not the floating"),
    "huge": (lambda w: w.update({"norm.bias": torch.ones(1).expand(10**9)}), "fewer values"),
    "a deep name": (lambda w: w.update({"blocks.999.norm1.bias": torch.ones(128)}), "not all before it"),
    "odd width": (lambda w: [w.clear(), w.update(published_of_width_100())], "multiple of 64"),
}


def published_of_width_100():
    return {"pos_embed": torch.ones(1, 17, 100), "patch_embed.proj.weight": torch.ones(100, 3, 16, 16)}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_weights_are_refused(case, tmp_path):
    weights = published(SHAPE)
    change, message = WRONG[case]
    change(weights)
    with pytest.raises(ValueError, match=message):
        sg.models.load_encoder(checkpoint(tmp_path / "vit.pth", weights))


def test_other_files_are_refused(tmp_path):
    torch.save({"model_state_dict": {}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="no 'state_dict'"):
        sg.models.load_encoder(tmp_path / "a.pth")
    (tmp_path / "b.pt").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="can't be read as a PyTorch checkpoint"):
        sg.models.load_encoder(tmp_path / "b.pt")

    class Gadget:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {"cls_token": Gadget()}}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="can't be read"):
        sg.models.load_encoder(tmp_path / "c.pth")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match="no encoder at"):
        sg.models.load_encoder(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="unknown encoder 'uni'"):
        sg.models.load_encoder("uni")
    with pytest.raises(TypeError, match="got int"):
        sg.models.load_encoder(3)
    mini = sg.models.load("sagefm-mini").save(tmp_path / "mini.safetensors")
    with pytest.raises(ValueError, match="no vision transformer but 'sage'"):
        sg.models.load_encoder(mini)
    vit = Encoder("vit", _vit.read(checkpoint(tmp_path / "vit.pth", published(SHAPE)))[0])
    with pytest.raises(ValueError, match="unknown architecture 'vit'"):
        sg.models.load(vit.save(tmp_path / "vit.safetensors"))
    with pytest.raises(ValueError, match=r"sg.tl.histology_embed\(adata, 'spafoundation'\)"):
        sg.models.load("spafoundation")


def test_without_transformers(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install -U transformers"):
        sg.models.load_encoder("spafoundation")


def test_with_transformers_of_other_names(monkeypatch):
    monkeypatch.setattr("transformers.__version__", "5.8.1")
    with pytest.raises(ImportError, match="5.8.1 names the parts of a ViT differently; 5.9 or later"):
        sg.models.load_encoder("spafoundation")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Loopback server of a file in the published layout, registered as spafoundation."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.content = checkpoint(tmp_path / "served.pth", published(SHAPE), "module.").read_bytes()
    httpd.modes, httpd.requests = [], 0
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{httpd.server_port}/spafoundation_1m_vitb16.pth"
    entry = dataclasses.replace(_registry.registry()["spafoundation"], url=url)
    monkeypatch.setitem(_registry.registry(), "spafoundation", entry)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def test_first_digest_is_recorded_and_held_to(server, pixels, tmp_path, log):
    assert not sg.models.available().loc["spafoundation", "local"]
    encoder = sg.models.load_encoder("spafoundation")
    expected = plain_forward(published(SHAPE), pixels, SHAPE)
    np.testing.assert_allclose(encoder.embed(pixels, "cpu"), expected, atol=1e-5 * np.abs(expected).max())
    digest = hashlib.sha256(server.content).hexdigest()
    assert digest in log.text
    assert "another file will be refused" in log.text
    record = sg.settings.cache_dir / "spafoundation_1m_vitb16.pth.sha256"
    assert record.read_text().strip() == digest
    assert sg.models.available().loc["spafoundation", "local"]

    log.clear()
    sg.models.load_encoder("spafoundation")
    assert server.requests == 1, "downloaded again"
    assert "recorded" not in log.text
    # Lost on this machine, and another one there now.
    (sg.settings.cache_dir / "spafoundation_1m_vitb16.pth").unlink()
    server.content = checkpoint(tmp_path / "other.pth", published(SHAPE, seed=1)).read_bytes()
    with pytest.raises(RuntimeError, match="not spafoundation and was discarded"):
        sg.models.load_encoder("spafoundation")
    assert cached_files() == [record.name]


def test_file_that_changed_here_is_fetched_again(server, pixels):
    first = sg.models.load_encoder("spafoundation").embed(pixels, "cpu")
    path = sg.settings.cache_dir / "spafoundation_1m_vitb16.pth"
    path.write_bytes(path.read_bytes()[:-10])
    np.testing.assert_array_equal(sg.models.load_encoder("spafoundation").embed(pixels, "cpu"), first)
    assert server.requests == 2
    path.with_name(path.name + ".sha256").write_text("nothing")
    with pytest.raises(ValueError, match="is damaged: it holds no sha256"):
        sg.models.load_encoder("spafoundation")


def test_login_page_is_no_encoder(server):
    server.modes = ["html"]
    with pytest.raises(ValueError, match="can't be read as a PyTorch checkpoint"):
        sg.models.load_encoder("spafoundation")
    assert not cached_files(), "it was recorded"
    assert sg.models.load_encoder("spafoundation").width == 128


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    network, _ = _vit.read(checkpoint(tmp_path_factory.mktemp("vit") / "vit.pth", published(SHAPE)))
    return Encoder("mine", network)


def test_spots_are_embedded(vit, tmp_path):
    adata = sg.datasets.simulated_visium(5, 5, n_genes=300, image=True)
    sg.pp.histology_patches(adata, size=SIZE)
    sg.tl.histology_embed(adata, vit, device="cpu", batch_size=4)
    found = adata.obsm["X_histology"].copy()
    assert found.shape == (25, 128)
    assert found.dtype == np.float32
    assert adata.uns["X_histology"]["params"]["model"] == "mine"
    np.testing.assert_allclose(found, vit.embed(read(adata), "cpu"), atol=1e-5 * np.abs(found).max())
    path = vit.save(tmp_path / "vit.safetensors")
    sg.tl.histology_embed(adata, path, device="cpu")
    np.testing.assert_allclose(adata.obsm["X_histology"], found, atol=1e-5 * np.abs(found).max())
    assert adata.uns["X_histology"]["params"]["model"] == str(path)
    adata.write_h5ad(tmp_path / "slide.h5ad")


def test_patches_of_another_size_are_refused(vit):
    adata = sg.datasets.simulated_visium(5, 5, n_genes=300, image=True)
    sg.pp.histology_patches(adata, size=48)
    with pytest.raises(ValueError, match=r"patches are of 48 pixels, mine takes 64.*size=64"):
        sg.tl.histology_embed(adata, vit, device="cpu")
    assert "X_histology" not in adata.obsm
