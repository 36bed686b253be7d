"""Another backbone: a root of one model is taken over into a root of another, and what to expect is said before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.config.stream import ConfigError, StreamConfig, load_config
from stream_odml.exchange import expectation, pairs, upgrading
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.stored_items import StoredItems
from stream_odml.exchange.upgrading import prepare
from stream_odml.ingest.decode import decode_image
from stream_odml.learn.cross_map import CrossMap
from stream_odml.learn.embedder import build_embedder, embed
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.models.loading import load_model
from stream_odml.pipeline.messages import shard_ref
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.store import Store
from stream_odml.store.tables import decoded
from stream_odml.store.writer import Writer
from tests.ingest.pictures import picture
from tests.service.test_exact_form import ExactStream
from tests.service.tiny_stream import TinyStream

SPEC = EmbedderSpec("conv4", dim=8, image_size=32, head="discriminant")


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[ExactStream]:
    stream = ExactStream(tmp_path)
    stream.land("a", ["cat", "dog", "owl"], per_class=8)
    stream.stage()
    stream.land("b", ["elk", "fox"], per_class=4)
    yield stream
    stream.close()


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a stream with another backbone, of another length."""
    monkeypatch.setattr(expectation, "FOLDS", 3)  # what is expected of so few items is not the question here
    weights = tmp_path / "weights.safetensors"
    tensors = build_embedder(SPEC, 5).backbone.state_dict()
    save_file({k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}, weights)
    file = tmp_path / "new.yaml"
    file.write_text(
        f"root: {tmp_path}/new-root\n"
        f"model: {{backbone: conv4, dim: 8, image_size: 32, head: discriminant, lift: 16, weights: {weights}}}\n"
        "learning: {trunk: frozen}\n"
    )
    return file


def config_of(file: Path) -> StreamConfig:
    return load_config(file)


def test_every_item_is_taken_over_by_its_mapped_feature_and_once(stream: ExactStream, new: Path) -> None:
    config = config_of(new)
    prepared = prepare(stream.root, config)
    assert not Path(config.root).exists()
    assert (prepared.expected.items, prepared.expected.pairs, prepared.expected.exact) == (32, 32, 32)
    assert prepared.adopt().items == 32
    store = Store.open(config.root)
    rows = store.gallery_rows()
    old = Store.open(stream.root).gallery_rows()
    meta = ["item_id", "class_name", "attributes"]
    assert sorted(map(str, rows.select(meta).to_pylist())) == sorted(map(str, old.select(meta).to_pylist()))
    pixels = [decode_image(stream.images[item], 32, 1 << 20) for item in rows["item_id"].to_pylist()]
    exact = embed(build_embedder(config.model, config.seed), np.stack(pixels))
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert decoded(rows, 256) == pytest.approx(exact, abs=float(np.abs(exact).max()) / 100)
    assert prepare(stream.root, config).adopt().items == 0  # the same command again
    assert len(Store.open(config.root).gallery_rows()) == 32
    assert Store.open(stream.root).tree.head == stream.head  # there is a way back


def test_items_whose_images_are_not_read_are_taken_over_mapped(
    stream: ExactStream, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 32 items 18 are pairs, and the others come by the map that is kept."""
    monkeypatch.setattr(pairs, "PER_SHARD", 10)
    config = config_of(new)
    prepared = prepare(stream.root, config)
    assert (prepared.expected.items, prepared.expected.pairs, prepared.expected.exact) == (32, 18, 18)
    prepared.adopt()
    rows, old = (Store.open(root).gallery_rows() for root in (config.root, stream.root))
    h_old = dict(zip(old["item_id"].to_pylist(), decoded(old, 16), strict=True))
    ids, classes = (rows[name].to_pylist() for name in ("item_id", "class_name"))
    cross = CrossMap.from_bytes((Path(config.root) / upgrading.MAP).read_bytes())
    predicted = cross.apply(np.stack([h_old[item] for item in ids]), classes)
    off = np.abs(decoded(rows, 256) - predicted).max(axis=1)
    half_a_step = float(np.abs(predicted).max()) / 254
    assert (off <= half_a_step).sum() == 32 - 18


def test_an_image_under_the_new_model_finds_its_item(stream: ExactStream, new: Path) -> None:
    """The pictures are of noise, each unlike all others; those that were pairs are there as the model embeds them."""
    config = config_of(new)
    prepare(stream.root, config).adopt()
    snapshot = GallerySnapshot.load(Store.open(config.root))
    ids = list(stream.images)
    pixels = np.stack([decode_image(stream.images[item], 32, 1 << 20) for item in ids])
    queries = snapshot.space.embeddings(embed(build_embedder(config.model, config.seed), pixels))
    found = snapshot.search(queries, snapshot.version, k=3)
    there = [item in {hit.item_id for hit in hits} for item, hits in zip(ids, found, strict=True)]
    assert np.mean(there) > 0.9


def test_the_command_says_what_to_expect_before_anything_is_made(stream: ExactStream, new: Path) -> None:
    said = CliRunner().invoke(app, ["upgrade", stream.root, "--model", str(new), "--dry-run"])
    assert said.exit_code == 0, said.output
    assert "once all are embedded again" in said.output
    assert not Path(config_of(new).root).exists()
    done = CliRunner().invoke(app, ["upgrade", stream.root, "--model", str(new), "--json"])
    reported = json.loads(done.stdout)
    assert reported["adopted"]["items"] == reported["expected"]["items"] == 32


def test_what_cannot_be_upgraded_is_refused_with_a_remedy(
    stream: ExactStream, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(new)
    with pytest.raises(ConfigError, match="name a new one"):
        prepare(stream.root, config.model_copy(update={"root": stream.root}))
    monkeypatch.setattr(pairs, "_of_items", lambda *given: iter(()))
    with pytest.raises(ExchangeError, match="--images"):
        prepare(stream.root, config)
    plain = TinyStream(tmp_path / "plain")
    plain.close()
    with pytest.raises(ExchangeError, match="stores embeddings"):
        prepare(plain.root, config)


def test_an_item_is_a_pair_once_and_an_erased_one_never(stream: ExactStream) -> None:
    living = frozenset(list(stream.images)[1:])
    old = Store.open(stream.root)
    found = [item for _, _, item in pairs._of_items(old, living)]
    assert len(found) == len(living)
    assert set(found) == living


def test_pairs_are_taken_of_what_lives_and_can_be_decoded(
    stream: ExactStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of each shard: the first rows of either are erased, and leave their places to those behind them."""
    monkeypatch.setattr(pairs, "PER_SHARD", 4)
    old = Store.open(stream.root)
    living = frozenset(i for i in stream.images if int(i.split("/")[1]) >= 6)
    found = [item for _, _, item in pairs._of_items(old, living)]
    assert sorted(found) == ["a/6", "a/7", "a/8", "a/9", "b/6", "b/7"]
    model = build_embedder(SPEC, 0)
    broken = [(b"no image", "cat", "x"), (stream.images[found[0]], "dog", "y")]
    assert [name for name, *_ in pairs._Both(model, model, 1 << 20).decoded(iter(broken))] == [("dog", "y")]


def photos(folder: Path, images: dict[str, bytes]) -> Path:
    for number, (item, image) in enumerate(images.items()):
        (folder / f"class {number % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"class {number % 3}" / f"{item.replace('/', '-')}.png").write_bytes(image)
    return folder


def test_a_folder_of_the_streams_own_photos_is_known_to_be_that(
    stream: ExactStream, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would find itself: what is expected would be what a gallery of the queries gives. Shards are gone; one
    photo lies there twice, and some are none of the stream's."""
    shutil.rmtree(stream.inbox)
    others = {f"other-{n}": picture(90 + n, "PNG") for n in range(20)}
    own = dict(list(stream.images.items())[:20])
    folder = photos(tmp_path / "photos", {**own, "again": own["a/3"], **others})
    old = Store.open(stream.root)
    after = build_embedder(SPEC, 5).eval()
    monkeypatch.setattr(pairs, "EMBEDDED", 7)
    before = load_model(old, old.tree.head)
    found, _ = pairs.embed_pairs(StoredItems(old), folder, before, after, 1 << 20)
    assert sorted(filter(None, found.ids)) == sorted(own)
    assert len(found) == 40
    by_id = dict(zip(found.ids, found.old_nD, strict=True))
    pixels = np.stack([decode_image(image, before.spec.image_size, 1 << 20) for image in own.values()])
    assert np.allclose(np.stack([by_id[item] for item in own]), embed(before, pixels), atol=1e-5)
    prepared = prepare(stream.root, config_of(new), folder)
    assert (prepared.expected.pairs, prepared.expected.exact) == (40, 20)
    assert prepared.expected.mapped < 0.9, "pictures of noise: none but itself is like another"


def test_however_large_a_folder_half_of_the_pairs_are_items(
    stream: ExactStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(tmp_path / "photos", {f"other-{n}": picture(90 + n, "PNG") for n in range(30)})
    old = Store.open(stream.root)
    model = load_model(old, old.tree.head)
    for most, items in ((16, 8), (40, 20), (100, 32)):
        monkeypatch.setattr(pairs, "MAX_PAIRS", most)
        found, _ = pairs.embed_pairs(StoredItems(old), folder, model, model, 1 << 20)
        assert (len(found), sum(map(bool, found.ids))) == (min(most, 62), items)


def test_each_of_many_shards_has_a_part_in_the_pairs(
    stream: ExactStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "LEAST_PER_SHARD", 2)
    found = [
        item
        for _, _, item in pairs._of_items(Store.open(stream.root), frozenset(stream.images), frozenset(), 6)
    ]
    assert [item[0] for item in found] == ["a"] * 3 + ["b"] * 3


def test_an_upgrade_that_began_with_another_model_is_not_gone_on_with(
    stream: ExactStream, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its map leads into a space of the same length, in which no item of the new model would be found."""
    config = config_of(new)
    with monkeypatch.context() as patched:
        patched.setattr(upgrading, "adopt", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(stream.root, config).adopt()
    same, others = (new.with_name(f"{name}.safetensors") for name in ("same", "others"))
    same.write_bytes(Path(str(config.model.weights)).read_bytes())
    tensors = build_embedder(SPEC, 6).backbone.state_dict()
    save_file({k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}, others)
    by = {
        file: config.model_copy(update={"model": replace(config.model, weights=str(file))})
        for file in (same, others)
    }
    with pytest.raises(ExchangeError, match="another model"):
        prepare(stream.root, by[others]).adopt()
    assert prepare(stream.root, by[same]).adopt().items == 32


def ids_of(root: str) -> list[str]:
    """Of the items that are served, each as often as it is."""
    snapshot = GallerySnapshot.load(Store.open(root))
    return sorted(snapshot.columns.item_ids.take(snapshot.rows()))


def test_a_repeated_upgrade_goes_on_however_the_old_root_did(
    stream: ExactStream, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after the first shard; then the old root erases, adds and replaces. Each item is taken over once, what is
    erased is gone, and the classes of the first attempt are learnt too."""
    config = config_of(new)

    def killed(done: int, total: int | None) -> None:
        if done == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(stream.root, config).adopt(killed)
    first = sorted(stream.images)[:24]
    assert ids_of(config.root) == [item for item in first if item.startswith("a/")]
    stream.writer.forget("class", "owl")
    stream.writer.forget("item", "a/0")
    stream.land("c", ["hen"], per_class=4)
    living = ids_of(stream.root)
    assert len(living) == 32 - 8 - 1 + 4

    report = prepare(stream.root, config).adopt()
    assert (report.items, report.before) == (12, 24)
    assert ids_of(config.root) == living
    (task,) = Store.open(config.root).ledger.tasks.values()
    assert len(task.shard_ids) == 3
    again = prepare(stream.root, config).adopt()
    assert (again.items, again.before, again.version) == (0, 36, "")
    assert ids_of(config.root) == living


def test_a_large_shard_goes_on_behind_the_last_part_though_rows_before_it_were_erased(
    stream: ExactStream, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrading, "SHARD_BYTES", 0)
    monkeypatch.setattr(upgrading, "rows_at_once", lambda dim: 5)
    config = config_of(new)

    def killed(done: int, total: int | None) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(stream.root, config).adopt(killed)
    for number in (0, 3, 7):
        stream.writer.forget("item", f"a/{number}")
    prepare(stream.root, config).adopt()
    store = Store.open(config.root)
    assert ids_of(config.root) == ids_of(stream.root)
    assert len(store.gallery_rows()) == 32, "each once"


def test_an_upgrade_of_another_stream_is_not_gone_on_with(
    stream: ExactStream, new: Path, tmp_path: Path
) -> None:
    config = config_of(new)
    prepare(stream.root, config).adopt()
    other = ExactStream(tmp_path / "other")
    other.land("a", ["cat", "dog", "owl"], per_class=8)
    with pytest.raises(ExchangeError, match="another stream"):
        prepare(other.root, config)
    other.close()


def test_what_the_new_stream_found_itself_is_not_taken_over_again(stream: ExactStream, new: Path) -> None:
    """Both watch one inbox: a shard that landed since may be in the new root already, as its model embeds it."""
    config = config_of(new)
    prepare(stream.root, config).adopt()
    stream.land("c", ["hen"], per_class=4)
    shard = next(s for s in Store.open(stream.root).ledger.shards.values() if s.name.startswith("c"))
    writer = Writer.claim(config.root, "the new stream")
    writer.record_landed([shard_ref(shard)])
    writer.release()
    report = prepare(stream.root, config).adopt()
    assert (report.items, report.before) == (0, 32)
    assert not any(item.startswith("c/") for item in ids_of(config.root)), (
        "it indexes that shard when it runs"
    )


def test_a_configuration_that_cannot_run_is_refused_before_any_forecast(
    stream: ExactStream, new: Path
) -> None:
    config = config_of(new)
    learning = replace(config.learning, trunk="distilled")
    with pytest.raises(ConfigError, match="trunk: frozen"):
        prepare(stream.root, config.model_copy(update={"learning": learning}))
    assert not Path(config.root).exists()


def test_the_old_root_spelt_otherwise_is_still_the_old_root(
    stream: ExactStream, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(stream.root).parent)
    with pytest.raises(ConfigError, match="go back"):
        prepare(stream.root, config_of(new).model_copy(update={"root": f"./{Path(stream.root).name}/."}))
