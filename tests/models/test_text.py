"""Class-text vectors: sources, controls, cache and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from uda_seg.data.labels import CAMVID, CITYSCAPES
from uda_seg.errors import UserError
from uda_seg.models.text import SHIPPED, load_text, save_text, text_embeddings
from uda_seg.storage.user_cache import user_cache

WORDS = CITYSCAPES.words


@pytest.mark.parametrize("classes", [CITYSCAPES, CAMVID], ids=lambda c: c.name)
def test_shipped_vectors_cover_the_built_in_classes(classes: object) -> None:
    text = text_embeddings("file", classes.words)  # type: ignore[attr-defined]
    assert text.vectors.shape == (len(classes.words), 384)  # type: ignore[attr-defined]
    assert text.vectors.dtype == torch.float32
    assert "MiniLM" in text.provenance
    with np.load(SHIPPED, allow_pickle=False) as content:
        assert "Apache-2.0" in str(content["licence"])
    assert SHIPPED.stat().st_size < 100_000


def test_shipped_vectors_know_what_is_alike() -> None:
    vectors = torch.nn.functional.normalize(text_embeddings("file", WORDS).vectors, dim=1)
    like = dict(zip(WORDS, vectors @ vectors.T, strict=True))
    assert like["motorbike"][WORDS.index("bike")] > like["motorbike"][WORDS.index("sky")]
    assert like["car"][WORDS.index("truck")] > like["car"][WORDS.index("vegetation")]


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_vectors_are_the_same_but_never_a_classs_own(seed: int) -> None:
    plain, shuffled = text_embeddings("file", WORDS), text_embeddings("shuffled", WORDS, seed=seed)
    places = [int((plain.vectors == row).all(dim=1).nonzero()) for row in shuffled.vectors]
    assert sorted(places) == list(range(19))
    assert all(place != own for own, place in enumerate(places))
    assert "shuffled" in shuffled.provenance
    assert torch.equal(text_embeddings("shuffled", WORDS, seed=seed).vectors, shuffled.vectors)
    assert not torch.equal(text_embeddings("shuffled", WORDS, seed=seed + 1).vectors, shuffled.vectors)


def test_random_vectors_depend_on_the_seed_alone() -> None:
    one = text_embeddings("random", WORDS, seed=1).vectors
    assert torch.equal(one, text_embeddings("random", WORDS, seed=1).vectors)
    assert not torch.equal(one, text_embeddings("random", WORDS, seed=2).vectors)
    assert float(one.norm(dim=1).mean()) == pytest.approx(1, rel=0.05)


def test_file_is_read_by_prompt_not_by_position(tmp_path: Path) -> None:
    path = tmp_path / "text.npz"
    save_text(path, ["b", "a"], torch.tensor([[2.0], [1.0]]), "hand", "none")
    assert text_embeddings("file", ["a", "b"], template="{}", file=path).vectors.tolist() == [[1.0], [2.0]]
    assert list(tmp_path.iterdir()) == [path]


def test_errors_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="zebra"):
        text_embeddings("file", ["road", "zebra"])
    with pytest.raises(UserError, match="openclip-shuffled"):
        text_embeddings("clip", WORDS)
    with pytest.raises(UserError, match="no such file"):
        load_text(tmp_path / "none.npz", ["a"])
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"bad\.npz"):
        load_text(tmp_path / "bad.npz", ["a"])
    np.savez(tmp_path / "pickled.npz", prompts=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"pickled\.npz"):
        load_text(tmp_path / "pickled.npz", ["a"])


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("UDA_SEG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "uda_seg"
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "mine"))
    assert user_cache() == tmp_path / "mine"


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, torch.nn.Module]:
    """An OpenCLIP model of a few thousand weights, known to the library by name, and its weights file."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "tiny-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-test.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-test").eval()
    torch.save(model.state_dict(), folder / "tiny.pt")
    return "tiny-test", folder / "tiny.pt", model


def test_openclip_encodes_each_prompt_and_caches(
    tiny_clip: tuple[str, Path, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    name, weights, model = tiny_clip
    words = ("road", "traffic light")
    text = text_embeddings("openclip", words, model=name, tag=str(weights), cache=tmp_path)
    with torch.no_grad():
        for word, got in zip(words, text.vectors, strict=True):
            want = model.encode_text(open_clip.get_tokenizer(name)([f"a photo of a {word}."]))[0]
            torch.testing.assert_close(got, want)
    assert text.vectors.norm(dim=1).sub(1).abs().min() > 1e-3  # not normalised
    assert not text.vectors.requires_grad

    (kept,) = tmp_path.rglob("*.npz")
    kept.write_bytes(kept.read_bytes()[:-9])
    repaired = text_embeddings("openclip", words, model=name, tag=str(weights), cache=tmp_path)
    assert torch.equal(repaired.vectors, text.vectors)

    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(open_clip, "create_model", not_again)
    again = text_embeddings("openclip", words, model=name, tag=str(weights), cache=tmp_path)
    assert torch.equal(again.vectors, text.vectors)
    swapped = text_embeddings("openclip-shuffled", words, model=name, tag=str(weights), cache=tmp_path)
    assert torch.equal(swapped.vectors, text.vectors.flip(0))


def test_other_prompts_or_changed_weights_are_not_served_from_the_cache(
    tiny_clip: tuple[str, Path, torch.nn.Module], tmp_path: Path
) -> None:
    name, weights, _ = tiny_clip
    mine = tmp_path / "mine.pt"
    state = torch.load(weights, weights_only=True)
    torch.save(state, mine)
    ask = {"model": name, "tag": str(mine), "cache": tmp_path}
    first = text_embeddings("openclip", ["road"], **ask).vectors
    assert not torch.equal(first, text_embeddings("openclip", ["road"], template="{}", **ask).vectors)
    torch.save({**state, "text_projection": state["text_projection"] * 2, "padding": torch.zeros(9)}, mine)
    with pytest.raises(UserError, match=name):  # the changed file is read, and its foreign tensor is refused
        text_embeddings("openclip", ["road"], **ask)


def test_openclip_without_weights_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method\.text=file") as caught:
        text_embeddings("openclip", ["road"], model="RN50", tag="no-such-tag", cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.npz"))
