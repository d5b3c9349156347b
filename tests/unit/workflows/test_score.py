from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_med.errors import NothingUsableError, UsageError
from unet_med.io.tracks import REFERENCE_TABLE, Track, write_tracked
from unet_med.workflows.score import score
from unet_med.workflows.scoring import pairs

SPACING = np.diag([2.0, 1.0, 0.5, 1.0])


def ball(shift: int = 0, value: int = 1, dtype: type = np.uint8) -> np.ndarray:
    array = np.zeros((12, 14, 16), dtype=dtype)
    array[3:7, 4 + shift : 9 + shift, 5:11] = value
    return array


def save(folder: Path, name: str, array: np.ndarray, affine: np.ndarray = SPACING) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "masks", tmp_path / "truth"


def listing(*roots: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for root in roots for path in root.rglob("*") if path.is_file()}


def test_pairs_by_stem_and_scores_in_millimetres(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    save(masks, "x.nii.gz", ball(1))
    save(truth, "x.nii", ball(0).astype(np.int16))
    save(masks, "only_mask.nii.gz", ball())
    save(truth, "only_truth.nii.gz", ball())
    before = listing(*folders)
    outcome = score(masks, truth)
    result = outcome.result
    json.dumps(result, allow_nan=False)
    assert outcome.exit_code == 0
    assert (result["n_cases"], result["cases"][0]["id"]) == (1, "x")
    assert result["per_label"]["label_1"]["dice"] == pytest.approx(0.8)
    assert result["cases"][0]["hd95_mm"]["label_1"] == pytest.approx(1.0)
    assert result["mean"]["nsd"] == 1.0
    assert score(masks, truth, tolerance_mm=0.5).result["mean"]["nsd"] < 1.0
    assert result["unpaired"] == {"predictions": ["only_mask"], "references": ["only_truth"]}
    assert any("only_truth" in line for line in outcome.lines)
    assert listing(*folders) == before


def test_a_mask_elsewhere_is_refused_and_the_others_are_scored(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    elsewhere = SPACING.copy()
    elsewhere[0, 3] = 30.0
    for name, mask, affine in (("a", ball(), SPACING), ("b", ball(), elsewhere), ("c", ball()[1:], SPACING)):
        save(masks, f"{name}.nii.gz", mask, affine)
        save(truth, f"{name}.nii.gz", ball())
    outcome = score(masks, truth)
    assert outcome.exit_code == 3
    assert [case["id"] for case in outcome.result["cases"]] == ["a"]
    assert [(entry["id"], entry["status"]) for entry in outcome.result["refused"]] == [
        ("b", "refused"),
        ("c", "refused"),
    ]
    assert "elsewhere" in outcome.result["refused"][0]["reason"]
    assert "shape" in outcome.result["refused"][1]["reason"]
    alone = score(masks / "b.nii.gz", truth / "b.nii.gz")
    assert (alone.exit_code, alone.result["n_cases"]) == (3, 0)


def test_the_same_place_in_another_axis_order_is_compared(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    save(truth, "x.nii.gz", ball())
    turned = np.ascontiguousarray(ball().transpose(2, 0, 1)[::-1])
    affine = np.zeros((4, 4))
    affine[:3, :3] = SPACING[:3, :3][:, [2, 0, 1]]
    affine[:3, 0] *= -1
    affine[2, 3] = 0.5 * (ball().shape[2] - 1)
    affine[3, 3] = 1
    save(masks, "x.nii.gz", turned, affine)
    assert score(masks, truth).result["mean"]["dice"] == 1.0


def test_labels_are_those_of_the_references_with_names_of_the_sidecar(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    both = ball() + ball(5, 7)
    save(truth, "x.nii.gz", ball() + ball(5, 2))
    save(truth, "y.nii.gz", ball())
    for name in ("x", "y"):
        save(masks, f"{name}.nii.gz", both)
    (masks / "x.json").write_text(json.dumps({"labels": [{"value": 1, "name": "liver"}, {"value": 7, "name": "no"}]}))
    (truth / "y.json").write_text("not JSON")
    outcome = score(masks, truth)
    result = outcome.result
    assert list(result["per_label"]) == ["liver", "label_2"]
    assert result["per_label"]["label_2"]["n_empty"] == 1
    assert result["per_label"]["label_2"]["n_hd95_undefined"] == 1
    assert result["notes"] == [f"{name}: values that no reference has are not scored: [7]" for name in ("x", "y")]


@pytest.mark.parametrize(("value", "true_value"), [(1, 255), (255, 1)])
def test_pictures_with_0_and_255_agree_with_0_and_1(folders: tuple[Path, Path], value: int, true_value: int) -> None:
    masks, truth = folders
    masks.mkdir()
    truth.mkdir()
    for name, filled in (("x", 1), ("empty", 0)):
        Image.fromarray(ball(value=value)[4]).save(masks / f"{name}.png")
        tifffile.imwrite(truth / f"{name}.tif", ball(value=true_value)[4] * filled, photometric="minisblack")
    outcome = score(masks, truth)
    row = outcome.result["per_label"][f"label_{true_value}"]
    assert [case["dice"][f"label_{true_value}"] for case in outcome.result["cases"]] == [0.0, 1.0]
    assert row["n_hd95_undefined"] == 1
    assert outcome.result["mean"]["hd95_mm"] is None
    assert outcome.result["mean"]["hd95_px"] == 0.0
    assert "HD95 px" in outcome.lines[1]


def test_a_preview_beside_a_mask_is_no_second_mask(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    save(masks, "x.nii.gz", ball())
    (masks / "previews").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(masks / "previews" / "x.png")
    save(truth, "x.nii.gz", ball())
    assert score(masks, truth).result["mean"]["dice"] == 1.0


def test_two_files_of_one_name_are_no_guess(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    save(masks, "x.nii.gz", ball())
    save(truth, "x.nii.gz", ball())
    save(truth, "x.nii", ball(1))
    outcome = score(masks, truth)
    assert outcome.exit_code == 3
    assert "2 files have this name" in outcome.result["refused"][0]["reason"]


def test_damaged_and_fractional_masks_are_refused(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    for name in ("good", "cut", "soft"):
        save(truth, f"{name}.nii.gz", ball())
    save(masks, "good.nii.gz", ball())
    save(masks, "soft.nii.gz", ball().astype(np.float32) * 0.5)
    whole = save(masks, "cut.nii.gz", np.random.default_rng(0).integers(0, 2, (30, 30, 30)).astype(np.uint8))
    whole.write_bytes(whole.read_bytes()[:900])
    outcome = score(masks, truth)
    assert outcome.exit_code == 3
    assert {entry["id"] for entry in outcome.result["refused"]} == {"cut", "soft"}
    assert outcome.result["mean"]["dice"] == 1.0


def test_pages_of_a_stack_are_cases(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    masks.mkdir()
    truth.mkdir()
    pages = ball()[2:8].astype(np.uint16)
    for folder in folders:
        tifffile.imwrite(folder / "movie.tif", pages, imagej=True, metadata={"axes": "TYX"})
    result = score(masks, truth).result
    assert result["n_cases"] == 6
    assert result["cases"][1]["id"] == "movie-f001"
    assert result["per_label"]["label_1"]["n_empty"] == 2


def test_objects(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    masks.mkdir()
    truth.mkdir()
    label = np.zeros((20, 30), dtype=np.uint16)
    label[2:8, 2:8], label[2:8, 9:15], label[12:18, 2:8] = 10, 20, 30
    mask = label.copy()
    mask[mask == 30] = 0
    mask[12:14, 20:25] = 4
    tifffile.imwrite(truth / "x.tif", label)
    tifffile.imwrite(masks / "x.tif", mask)
    outcome = score(masks, truth, task="instance")
    instance = outcome.result["instance"]
    assert instance["ap"]["0.50"] == pytest.approx(2 / 4)
    assert instance["pq"] == pytest.approx(2 / 3)
    assert set(outcome.result["per_label"]) == {"object"}
    assert outcome.result["cases"][0]["instance"]["ap"]["0.50"] == pytest.approx(2 / 4)
    assert instance["aji"] == pytest.approx(72 / (72 + 36 + 10))
    assert any("AP@0.50 0.5000" in line for line in outcome.lines)


def class_table(path: Path, kinds: dict[int, str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("label,class\n" + "".join(f"{number},{kind}\n" for number, kind in kinds.items()))
    return path


def test_objects_of_each_class(folders: tuple[Path, Path], tmp_path: Path) -> None:
    masks, truth = folders
    label = np.kron(np.array([[10, 0, 20, 30]]), np.ones((6, 6), dtype=int)).astype(np.uint16)
    for folder, array in zip(folders, (label // 10, label), strict=True):
        folder.mkdir()
        tifffile.imwrite(folder / "x.tif", array)
    class_table(masks / "objects" / "x.csv", {1: "cell", 2: "cell", 3: "mitosis"})
    listed = tmp_path / "classes.csv"
    listed.write_text("id,object,class\nx,10,cell\nx,20,mitosis\nx,30,mitosis\n")
    assert "classes" not in score(masks, truth, task="instance").result["instance"]
    outcome = score(masks, truth, task="instance", classes=listed)
    instance = outcome.result["instance"]
    assert instance["ap"]["0.50"] == 1.0
    assert {kind: own["ap"]["0.50"] for kind, own in instance["classes"].items()} == {"cell": 1 / 2, "mitosis": 1 / 2}
    assert any(line.startswith("mitosis, 2 true, 1 predicted: AP@0.50 0.5000") for line in outcome.lines)
    beside = class_table(truth / "objects" / "x.csv", {10: "cell", 20: "cell", 30: "mitosis"})
    assert score(masks, truth, task="instance").result["instance"]["classes"]["cell"]["ap"]["0.50"] == 1.0
    beside.write_text("label,class\n10,cell\n")
    assert "2 objects have no class" in score(masks, truth, task="instance").result["refused"][0]["reason"]
    beside.write_text("number\n10\n")
    assert "no columns label and class" in score(masks, truth, task="instance").result["refused"][0]["reason"]
    (masks / "objects" / "x.csv").unlink()
    assert "of what class" in score(masks, truth, task="instance", classes=listed).result["notes"][0]
    with pytest.raises(UsageError, match="only objects have classes"):
        score(masks, truth, classes=listed)


@pytest.mark.parametrize("ignored", [None, 30])
def test_large_pictures_are_scored_in_blocks(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, ignored: int | None
) -> None:
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 40, (12, 9)), np.ones((6, 7), dtype=int)).astype(np.uint16)
    for folder, array in zip(folders, (np.roll(label, 2, 0), label), strict=True):
        folder.mkdir()
        tifffile.imwrite(folder / "x.tif", array)
    whole = score(*folders, task="instance", ignore_label=ignored).result
    monkeypatch.setattr(pairs, "_WHOLE_VOXELS", 1000)
    monkeypatch.setattr(pairs, "_BLOCK_VOXELS", 500)
    monkeypatch.setattr(pairs.Pair, "read_mask", None)  # not read as a whole
    blocks = score(*folders, task="instance", ignore_label=ignored).result
    assert blocks["instance"] == whole["instance"]
    assert blocks["mean"]["dice"] == whole["mean"]["dice"]
    assert (blocks["mean"]["nsd"], whole["mean"]["nsd"] is None) == (None, False)


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_what_nobody_labelled_is_not_scored(folders: tuple[Path, Path], task: str) -> None:
    masks, truth = folders
    sparse = ball()
    sparse[:, 8:] = 255
    save(truth, "x.nii.gz", sparse)
    save(masks, "x.nii.gz", ball())
    scores = score(masks, truth, task=task, ignore_label=255).result
    assert (set(scores["per_label"]), scores["mean"]["dice"]) == ({"label_1" if task == "semantic" else "object"}, 1.0)
    assert scores["notes"] == []
    assert score(masks, truth, task=task).result["mean"]["dice"] < 1.0


def test_nothing_pairs(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    save(masks, "x.nii.gz", ball())
    save(truth, "y.nii.gz", ball())
    with pytest.raises(NothingUsableError, match="none of 1 masks") as caught:
        score(masks, truth)
    assert (caught.value.exit_code, bool(caught.value.remedy)) == (4, True)


def test_wrong_use_is_explained(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    many = np.arange(1, 1 + 12 * 14 * 16, dtype=np.uint16).reshape(12, 14, 16)
    save(masks, "x.nii.gz", many)
    save(truth, "x.nii.gz", many)
    with pytest.raises(UsageError, match="2688 different values"):
        score(masks, truth)
    with pytest.raises(UsageError, match="unknown task 'panoptic'"):
        score(masks, truth, task="panoptic")


# ---- membranes ------------------------------------------------------------------------------------------------------


def wall(column: int = 10, width: int = 1) -> np.ndarray:
    """A picture (Y, X) of two cells with a membrane between them."""
    membrane = np.zeros((16, 20), dtype=bool)
    membrane[:, column : column + width] = True
    return membrane


def pictures(folder: Path, **arrays: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        tifffile.imwrite(folder / f"{name}.tif", array, photometric="minisblack")


def test_membranes_by_name_by_convention_and_by_option(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    pictures(truth, x=np.where(wall(), 0, 255).astype(np.uint8))
    pictures(masks, x=wall(9, 3).astype(np.uint8))
    (masks / "x.json").write_text(json.dumps({"labels": [{"value": 1, "name": "membrane"}]}))
    outcome = score(masks, truth, task="membrane")
    result = outcome.result
    json.dumps(result, allow_nan=False)
    assert (result["membrane"]["v_rand"], result["membrane"]["v_info"], result["notes"]) == (1.0, 1.0, [])
    assert result["per_label"]["membrane"]["dice"] == pytest.approx(2 * 16 / (16 + 48))
    assert any("V_rand 1.0000" in line for line in outcome.lines)
    (masks / "x.json").unlink()
    wrong = score(masks, truth, task="membrane").result["membrane"]
    assert wrong["v_rand"] < 0.9
    pictures(truth, x=wall().astype(np.uint8))
    assert score(masks, truth, task="membrane", membrane=1).result["membrane"]["v_rand"] == 1.0
    assert "membrane: check which value" in score(masks, truth, task="membrane").result["notes"][0]


def test_maps_of_membranes_are_cut_at_the_best_threshold(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    pictures(truth, x=np.where(wall(), 0, 1).astype(np.uint8), y=np.where(wall(4), 0, 1).astype(np.uint8))
    chances = {"x": wall() * 0.3, "y": wall(4) * 0.65 + 0.25}
    pictures(masks, **{name: array.astype(np.float32) for name, array in chances.items()})
    both = score(masks, truth, task="membrane").result
    assert [case["membrane"]["v_rand_threshold"] for case in both["cases"]] == ["0.10", "0.30"]
    assert [case["membrane"]["v_rand"] for case in both["cases"]] == [1.0, 1.0]
    assert both["membrane"]["v_rand"] < 1.0  # there is none that fits both
    assert both["membrane_watershed"]["v_rand"] == 1.0
    pictures(masks, y=(1 - chances["y"]).astype(np.float32))
    cells = score(masks / "y.tif", truth / "y.tif", task="membrane", membrane=0).result["membrane"]
    assert cells["v_rand"] == 1.0
    pictures(masks, y=(chances["y"] * 2).astype(np.float32))
    refused = score(masks / "y.tif", truth / "y.tif", task="membrane")
    assert (refused.exit_code, "fractions from 0.5" in refused.result["refused"][0]["reason"]) == (3, True)


def test_membranes_of_numbered_cells_and_of_unlabelled_places(folders: tuple[Path, Path]) -> None:
    masks, truth = folders
    numbers = np.where(wall(), 0, np.where(np.arange(20) < 10, 5, 3)).astype(np.uint16)
    numbers[:4] = np.where(wall()[:4], 0, 9)  # a cell of two parts
    pictures(truth, x=numbers)
    pictures(masks, x=numbers)
    assert score(masks, truth, task="membrane").result["membrane"]["v_rand"] == 1.0
    pictures(masks, x=numbers.astype(np.uint8))
    refused = score(masks, truth, task="membrane")
    assert "may hold probabilities or numbers of cells" in refused.result["refused"][0]["reason"]
    sparse = np.where(wall(), 0, 255).astype(np.uint8)
    sparse[8:] = 7
    pictures(truth, x=sparse)
    broken = np.where(wall(), 0, 255).astype(np.uint8)
    broken[12:] = 255
    pictures(masks, x=broken)
    scores = score(masks, truth, task="membrane", ignore_label=7).result
    assert (scores["membrane"]["v_rand"], scores["mean"]["dice"]) != (1.0, 1.0)
    broken[12:] = 0
    pictures(masks, x=broken)
    scores = score(masks, truth, task="membrane", ignore_label=7).result
    assert (scores["membrane"]["v_rand"], scores["mean"]["dice"], scores["notes"]) == (1.0, 1.0, [])


def test_stacks_of_sections_need_their_axes(folders: tuple[Path, Path]) -> None:
    sections = np.stack([np.where(wall(column), 0, 255) for column in (4, 9, 14)]).astype(np.uint8)
    for folder in folders:
        pictures(folder, stack=sections)
    assert score(*folders, task="membrane").exit_code == 3
    result = score(*folders, task="membrane", axes="IYX").result
    assert (result["n_cases"], result["membrane"]["n_images"], result["membrane"]["v_rand"]) == (3, 3, 1.0)
    assert result["cases"][1]["membrane"]["v_rand"] == 1.0


# ---- tracks ---------------------------------------------------------------------------------------------------------

TWO = (Track(1, 0, 2), Track(2, 0, 2))


def movie(*labels: int) -> list[np.ndarray]:
    frame = np.zeros((12, 10), dtype=np.uint16)
    for place, label in enumerate(labels):
        frame[1 + 5 * place : 5 + 5 * place, 2:8] = label
    return [frame] * 3


def test_sequences_are_paired_and_scored(tmp_path: Path) -> None:
    masks, truth = tmp_path / "results", tmp_path / "references"
    for name in ("01", "02"):
        write_tracked(masks / f"{name}_RES", movie(1, 2), TWO, 3)
        write_tracked(truth / f"{name}_GT" / "TRA", movie(1, 2), TWO, 3, REFERENCE_TABLE)
    write_tracked(masks / "03_RES", movie(1, 2), TWO, 3)
    before = listing(masks, truth)
    outcome = score(masks, truth, task="tracking")
    result = outcome.result
    json.dumps(result, allow_nan=False)
    assert [case["id"] for case in result["cases"]] == ["01", "02"]
    assert (result["tracking"]["tra"], result["tracking"]["seg"], result["tracking"]["n_sequences"]) == (1.0, 1.0, 2)
    assert result["unpaired"]["predictions"] == ["03"]
    assert "no SEG folder" in result["notes"][0]
    assert any(line.startswith("SEG 1.0000, DET 1.0000, TRA 1.0000") for line in outcome.lines)
    assert listing(masks, truth) == before
    single = score(masks / "03_RES", truth / "02_GT" / "TRA", task="tracking").result
    assert (single["n_cases"], single["cases"][0]["id"]) == (1, "02")


def test_whole_objects_are_taken_from_their_own_folder(tmp_path: Path) -> None:
    write_tracked(tmp_path / "a", [np.stack([frame] * 3, axis=-1) for frame in movie(1, 2)], TWO, 3)
    truth = tmp_path / "b"
    write_tracked(truth / "TRA", [np.stack([frame] * 3, axis=-1) for frame in movie(1, 2)], TWO, 3, REFERENCE_TABLE)
    (truth / "SEG").mkdir()
    larger = movie(1, 2)[0]
    larger[1:5, 2:10] = 1
    tifffile.imwrite(truth / "SEG" / "man_seg_001_002.tif", larger.T)
    result = score(tmp_path / "a", truth, task="tracking").result
    assert (result["tracking"]["tra"], result["notes"]) == (1.0, [])
    assert result["tracking"]["seg"] == pytest.approx((24 / 32 + 1) / 2)
    (truth / "SEG" / "man_seg_001_002.tif").rename(truth / "SEG" / "man_seg_007_002.tif")
    refused = score(tmp_path / "a", truth, task="tracking")
    assert (refused.exit_code, "belongs to no frame" in refused.result["refused"][0]["reason"]) == (3, True)


@pytest.mark.parametrize(
    ("tracks", "frames", "reason"),
    [
        (TWO, 2, "2 frames and the reference 3"),
        ((Track(1, 0, 2),), 3, "object 2 of the result is in the masks of frame 0"),
        ((*TWO, Track(5, 1, 1)), 3, "track 5 of the result has no mask in frame 1"),
        ((Track(1, 0, 2), Track(2, 0, 2, 1)), 3, "parent of track 2"),
    ],
)
def test_results_that_contradict_themselves_are_refused(
    tmp_path: Path, tracks: tuple[Track, ...], frames: int, reason: str
) -> None:
    write_tracked(tmp_path / "a", movie(1, 2)[:frames], TWO, frames)
    table = "".join(f"{track.label} {track.begin} {track.end} {track.parent}\n" for track in tracks)
    (tmp_path / "a" / "res_track.txt").write_text(table)
    write_tracked(tmp_path / "b" / "TRA", movie(1, 2), TWO, 3, REFERENCE_TABLE)
    outcome = score(tmp_path / "a", tmp_path / "b", task="tracking")
    assert outcome.exit_code == 3
    assert reason in outcome.result["refused"][0]["reason"]


def test_options_of_another_task_are_refused(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        save(folder, "x.nii.gz", ball())
    with pytest.raises(UsageError, match="only membranes"):
        score(*folders, membrane=1)
    with pytest.raises(UsageError, match="no such option"):
        score(*folders, task="tracking", ignore_label=3)
    with pytest.raises(NothingUsableError, match="none of 0 masks"):
        score(*folders, task="tracking")
