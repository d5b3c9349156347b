"""Which image belongs to which label: by folder names, file names, or two patterns."""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unet_med.errors import NothingUsableError
from unet_med.identity import safe_name
from unet_med.io.object_truth import MASK_FILES, object_ref
from unet_med.io.source import Discovery, SourceRef
from unet_med.manifest.channels import modality_keys
from unet_med.manifest.places import CHANNEL, IMAGE_SUFFIX, Item, item_of, label_stem

CONVENTIONS = (
    "put images into images/ and labels of the same names into labels/ (or imagesTr/ and labelsTr/; or NAME and "
    "NAME_mask, NAME_label, NAME_seg or NAME_gt side by side; channels as NAME_0000, NAME_0001 or by their names, as "
    "NAME_T1, NAME_T2 or NAME/T1, NAME/T2; a DICOM series as the folder images/NAME/ with labels/NAME.nii.gz; one mask "
    "for each object in masks/NAME/; outlines as NAME.geojson, NAME.zip of ImageJ, or a COCO JSON), or "
    "say which are which with --images 'GLOB' --labels 'GLOB'"
)


@dataclass(frozen=True)
class Pair:
    """An image (one source for each channel file) and its label.

    Attributes:
        stem: Name of the case; empty for DICOM, whose folder may name a patient.
        images: Sources, in the order of their channels.
        label: Source of the label, if there is one.
        relative: Path of the first image below the folder, for ``--group-by``; never stored.
        test: Whether it lies in a folder for test images.
        channels: What the names of its files say of their channels: ``0000``, ``0001``, ..., or modalities; empty where
            they say nothing.
        annotated: Picture that is 0 where nobody labelled, if there is one.
    """

    stem: str
    images: tuple[SourceRef, ...]
    label: SourceRef | None
    relative: str
    test: bool = False
    channels: tuple[str, ...] = ()
    annotated: SourceRef | None = None


@dataclass(frozen=True)
class Pairing:
    """What was paired, what is left over, each with a reason, and what a person should know."""

    pairs: tuple[Pair, ...]
    left_over: tuple[tuple[str, str], ...] = field(default=())
    notes: tuple[str, ...] = ()


def pair_sources(root: Path, discovery: Discovery, images: str | None, labels: str | None) -> Pairing:
    """Pairs the usable sources of a folder.

    Args:
        root: The folder that was searched.
        discovery: What was found in it.
        images: Pattern of the image files relative to ``root`` (``*`` crosses folders); ``None``: by convention.
        labels: Pattern of the label files.

    Raises:
        NothingUsableError: if there is no image at all; the message shows the conventions.
    """
    left: list[tuple[str, str]] = [(ref.id, ref.reason) for ref in discovery.sources if not ref.usable]
    items = [item_of(root, ref) for ref in discovery.usable]
    by_pattern = images is not None or labels is not None
    pairing = _by_pattern(items, images, labels) if by_pattern else _by_convention(items)
    if not pairing.pairs:
        raise NothingUsableError(_nothing(discovery, pairing), remedy=CONVENTIONS)
    return Pairing(pairing.pairs, (*left, *pairing.left_over))


def _nothing(discovery: Discovery, pairing: Pairing) -> str:
    if not discovery.sources:
        return "no image was found in the folder"
    refused = [ref for ref in discovery.sources if not ref.usable]
    if len(refused) == len(discovery.sources):
        return f"none of the {len(refused)} images found can be used (the first, {refused[0].id}: {refused[0].reason})"
    first = f" ({pairing.left_over[0][0]}: {pairing.left_over[0][1]})" if pairing.left_over else ""
    return f"images found: {len(discovery.sources)}, but none is known to be the image of a case{first}"


# ---- by convention --------------------------------------------------------------------------------------------------


def _by_convention(items: Sequence[Item]) -> Pairing:
    """Pairs within each set (what lies beside each other); a set without any label holds images to be predicted."""
    sets: dict[tuple[str, bool], list[Item]] = defaultdict(list)
    for item in items:
        sets[item.base, item.test].append(item)
    _join_image_folders_of_other_names(sets)
    pairs: list[Pair] = []
    left: list[tuple[str, str]] = []
    several = any(_one_mask_for_each_object(*_images_and_labels(members)) for members in sets.values())
    for members in sets.values():
        images, labels = _images_and_labels(members)
        if any(item.role == "image" for item in members):
            strays = [item.ref.id for item in members if item.role is None]
            left += [(stray, "lies beside the folders of images and labels") for stray in strays]
        found, unused, why = _with_object_masks(images, labels, alone=several)
        left += [(item.ref.id, why) for item in unused]
        found, unused = _with_annotated(found, [item for item in members if item.role == "annotated"])
        left += [(item.ref.id, _STRAY_REGION) for item in unused]
        pairs += found
    return Pairing(tuple(sorted(_numbered(pairs), key=lambda pair: pair.relative)), tuple(left))


def _images_and_labels(members: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    labels = [item for item in members if item.role == "label"]
    has_folders = any(item.role == "image" for item in members)
    return [item for item in members if item.role == "image" or (item.role is None and not has_folders)], labels


def _join_image_folders_of_other_names(sets: dict[tuple[str, bool], list[Item]]) -> None:
    """``anything/NAME`` beside ``labels/NAME``: labels that have no images in their set take the ones around them."""
    for (base, test), members in list(sets.items()):
        if any(item.role not in ("label", "annotated") for item in members):
            continue
        for other in list(sets):
            inside = other[0].startswith(f"{base}/") if base else other[0] != ""
            if inside and not other[1] and all(item.role is None for item in sets[other]):
                members += sets.pop(other)
        sets[base, test] = members


_STRAY_REGION = "an annotated region without a labelled image of the same name"


def _with_annotated(pairs: Sequence[Pair], regions: Sequence[Item]) -> tuple[list[Pair], list[Item]]:
    """Gives each labelled pair the picture of the same name that says where somebody labelled it."""
    by_stem: dict[str, list[Item]] = defaultdict(list)
    for region in regions:
        by_stem[region.stem].append(region)
    done = []
    for pair in pairs:
        found = by_stem.get(pair.stem, []) if pair.label is not None else []
        done.append(replace(pair, annotated=found.pop().ref) if len(found) == 1 else pair)
    return done, [region for rest in by_stem.values() for region in rest]


# ---- one mask for each object ---------------------------------------------------------------------------------------


_OBJECT_MASKS = (
    "one mask file for each object: these are read from PNG and TIFF in a folder of their own (NAME/masks beside "
    "NAME/images, or masks/NAME); else combine them into one label image with a number for each object"
)
_MASK_KINDS = ("png", "jpeg", "tiff")


def _with_object_masks(
    images: Sequence[Item], labels: Sequence[Item], alone: bool
) -> tuple[list[Pair], Sequence[Item], str]:
    """Pairs images with folders of masks, one for each object, and what is left by name.

    They lie in ``NAME/masks`` beside ``NAME/images`` (as in the Data Science Bowl 2018), or in ``masks/NAME``.

    Args:
        images: Of one set.
        labels: Of one set.
        alone: Whether a single mask of another name than its image is one of these, because other sets have several.

    Returns:
        The pairs, the labels without image, and why they have none.
    """
    if _one_mask_for_each_object(images, labels) or (alone and _one_mask_alone(images, labels)):
        if _in_a_folder_of_their_own(images[0], labels):
            return [_mask_pair(images[0], labels)], [], ""
        return [], [*images, *labels], _OBJECT_MASKS
    folders: dict[str, list[Item]] = defaultdict(list)
    for label in labels:
        folders[label.below].append(label)
    stems = {image.stem for image in images}
    pairs: list[Pair] = []
    taken: set[int] = set()
    for image in images:
        masks = folders.get(f"{image.below}/{image.stem}".lstrip("/"), [])
        named = any(mask.stem in stems or label_stem(mask) in stems for mask in masks)
        if masks and not named and _in_a_folder_of_their_own(image, masks):
            pairs.append(_mask_pair(image, masks))
            taken |= {id(item) for item in (image, *masks)}
    found, unused = _match([i for i in images if id(i) not in taken], [i for i in labels if id(i) not in taken])
    return pairs + found, unused, "a label without an image of the same name"


def _one_mask_for_each_object(images: Sequence[Item], labels: Sequence[Item]) -> bool:
    names = {image.stem for image in images}
    return len(images) == 1 and len(labels) > 1 and not any(label_stem(label) in names for label in labels)


def _one_mask_alone(images: Sequence[Item], labels: Sequence[Item]) -> bool:
    return len(images) == len(labels) == 1 and label_stem(labels[0]) != images[0].stem


def _in_a_folder_of_their_own(image: Item, masks: Sequence[Item]) -> bool:
    folders = {mask.ref.files[0].parent for mask in masks}
    pictures = all(item.ref.kind in _MASK_KINDS for item in (image, *masks))
    return pictures and len(folders) == 1 and image.ref.files[0].parent not in folders


def _mask_pair(image: Item, masks: Sequence[Item]) -> Pair:
    return _pair(image.stem, [image], object_ref(MASK_FILES, masks[0].ref.files[0].parent))


def _match(images: Sequence[Item], labels: Sequence[Item]) -> tuple[list[Pair], list[Item]]:
    """Finds for each label its image: the same folder and stem, the same stem, or the stem of a group of channels."""
    waiting = {id(image): image for image in images}
    pairs: list[Pair] = []
    unused: list[Item] = []
    channels = _channel_groups(images)
    for label in labels:
        found = _image_of(label, list(waiting.values()), channels, alone=len(images) == len(labels) == 1)
        if not found or any(id(image) not in waiting for image in found):
            unused.append(label)
            continue
        for image in found:
            del waiting[id(image)]
        stem = found[0].stem if len(found) == 1 and found[0].stem == label.stem else _case_stem(found, label)
        pairs.append(_pair(stem, found, label.ref, _numbers(found, label)))
    more, unused = _by_modality(unused, waiting)
    pairs += more
    rest = list(waiting.values())
    for group in _channel_groups(rest).values():
        if len(group) > 1:
            match = CHANNEL.match(group[0].stem)
            pairs.append(_pair(match["stem"] if match else group[0].stem, group, None, _numbers(group)))
            rest = [item for item in rest if item not in group]
    pairs += [_pair(item.stem, [item], None) for item in rest]
    return pairs, unused


def _image_of(
    label: Item, images: Sequence[Item], channels: Mapping[tuple[str, str], list[Item]], alone: bool
) -> list[Item]:
    for stem in dict.fromkeys((label.stem, label_stem(label))):
        exact = [image for image in images if image.stem == stem and image.below == label.below]
        loose = [image for image in images if image.stem == stem]
        if len(exact) == 1 or len(loose) == 1:
            return exact if len(exact) == 1 else loose
        group = channels.get((label.below, stem))
        if group:
            return group
        named = [image for image in images if stem in image.aliases]
        named += [image for image in images if stem and IMAGE_SUFFIX.sub("", image.stem) == stem]
        if len(named) == 1:
            return named
    return [images[0]] if alone and images else []


def _channel_groups(images: Sequence[Item]) -> dict[tuple[str, str], list[Item]]:
    """Groups ``NAME_0000``, ``NAME_0001``, ... by folder and NAME, in the order of their numbers."""
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for image in sorted(images, key=lambda item: item.stem):
        match = CHANNEL.match(image.stem)
        if match and image.ref.kind != "dicom":
            groups[image.below, match["stem"]].append(image)
    return groups


def _case_stem(images: Sequence[Item], label: Item) -> str:
    match = CHANNEL.match(images[0].stem)
    stem = label_stem(label)
    return stem if stem and match and match["stem"] == stem else images[0].stem


def _by_modality(labels: Sequence[Item], waiting: dict[int, Item]) -> tuple[list[Pair], list[Item]]:
    """Pairs labels with images of which each is named by a modality; takes them from ``waiting``."""
    pairs: list[Pair] = []
    unused: list[Item] = []
    for label in labels:
        for stem in dict.fromkeys((label.stem, label_stem(label))):
            inside = [image for image in waiting.values() if image.parts[-1:] == (stem,)]
            beside = [image for image in waiting.values() if image.stem.startswith(f"{stem}_")]
            near = [image for image in beside if image.below == label.below]
            found = next((group for group in (inside, near) if modality_keys([one.stem for one in group], stem)), [])
            if found:
                break
        if not found:
            unused.append(label)
            continue
        for image in found:
            del waiting[id(image)]
        pairs.append(_pair(stem, found, label.ref, modality_keys([one.stem for one in found], stem) or ()))
    return pairs, unused


def _numbered(pairs: Sequence[Pair]) -> list[Pair]:
    """Takes the channel number from the names of images without label, where labelled ones of one channel have it."""
    if not any(pair.label is not None and pair.channels == ("0000",) for pair in pairs):
        return list(pairs)
    done = []
    for pair in pairs:
        match = CHANNEL.match(pair.stem)
        single = pair.label is None and len(pair.images) == 1 and not pair.channels
        if single and match and match["channel"] == "0000":
            pair = replace(pair, stem=match["stem"], channels=("0000",))
        done.append(pair)
    return done


def _numbers(images: Sequence[Item], label: Item | None = None) -> tuple[str, ...]:
    """Returns the numbers of channel files; none where the names say nothing, or are the label's own."""
    found = [CHANNEL.match(image.stem) for image in images if image.ref.kind != "dicom"]
    stems = {match["stem"] for match in found if match}
    if len(found) != len(images) or None in found or len(stems) != 1:
        return ()
    named = label is None or stems <= {label.stem, label_stem(label)}
    return tuple(match["channel"] for match in found if match) if named else ()


def _pair(stem: str, images: Sequence[Item], label: SourceRef | None, channels: tuple[str, ...] = ()) -> Pair:
    first = images[0]
    name = "" if first.ref.kind == "dicom" else safe_name(stem)
    return Pair(name, tuple(image.ref for image in images), label, first.relative, first.test, channels)


# ---- by pattern -----------------------------------------------------------------------------------------------------


def _by_pattern(items: Sequence[Item], images: str | None, labels: str | None) -> Pairing:
    """Pairs what two patterns select: by stem, else by what the wildcards stand for, else the only two."""
    label_items = [item for item in items if labels is not None and _matches(item, labels)]
    chosen = {id(item) for item in label_items}
    if labels is None:
        label_items = [item for item in items if item.role == "label" and not (images and _matches(item, images))]
        chosen = {id(item) for item in label_items}
    image_items = [
        item
        for item in items
        if id(item) not in chosen and (_matches(item, images) if images is not None else item.role in (None, "image"))
    ]
    if images is None and any(item.role == "image" for item in image_items):
        image_items = [item for item in image_items if item.role == "image"]
    left = [
        (item.ref.id, "matches neither --images nor --labels")
        for item in items
        if id(item) not in chosen and item not in image_items and item.role != "annotated"
    ]
    pairs, unused = _match(image_items, label_items)
    if unused and images is not None and labels is not None:
        pairs, unused = _by_wildcards(pairs, unused, image_items, images, labels)
    left += [(item.ref.id, "a label without an image of the same name") for item in unused]
    regions = [item for item in items if item.role == "annotated" and item not in image_items]
    pairs, unused = _with_annotated(pairs, [item for item in regions if id(item) not in chosen])
    left += [(item.ref.id, _STRAY_REGION) for item in unused]
    return Pairing(tuple(sorted(_numbered(pairs), key=lambda pair: pair.relative)), tuple(left))


def _matches(item: Item, pattern: str) -> bool:
    relative = item.relative
    return fnmatch.fnmatchcase(relative, pattern) or fnmatch.fnmatchcase(relative, pattern.rstrip("/") + "/*")


def _by_wildcards(
    pairs: Sequence[Pair], unused: Sequence[Item], images: Sequence[Item], image_glob: str, label_glob: str
) -> tuple[list[Pair], list[Item]]:
    by_source = {id(image.ref): image for image in images}
    free = {
        _captured(by_source[id(pair.images[0])], image_glob): pair
        for pair in pairs
        if pair.label is None and len(pair.images) == 1
    }
    result, rest = list(pairs), []
    for label in unused:
        key = _captured(label, label_glob)
        pair = free.pop(key, None) if key is not None else None
        if pair is None:
            rest.append(label)
        else:
            result[result.index(pair)] = Pair(pair.stem, pair.images, label.ref, pair.relative, pair.test)
    return result, rest


def _captured(item: Item, pattern: str) -> tuple[str, ...] | None:
    """Returns what the wildcards of a pattern stand for in the item's path."""
    expression = "".join(
        "(.*)" if part == "*" else "(.)" if part == "?" else re.escape(part) for part in re.split(r"([*?])", pattern)
    )
    match = re.fullmatch(expression, item.relative)
    return match.groups() if match else None
