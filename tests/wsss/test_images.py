"""Files as people have them: every kind of JPEG and PNG is read the one right way or refused with words that help."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from wsss.data.images import (
    IMAGENET,
    _looked_up,
    _normalised_bytes,
    check_image,
    encode_jpeg,
    image_size,
    is_upright_jpeg,
    normalise,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
    scaled_size,
    write_mask,
)
from wsss.errors import ArgumentError, DataError
from wsss.palette import VOC_PALETTE


@pytest.fixture
def picture():
    """(20, 30, 3) uint8, no symmetry."""
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "LA", "RGBA", "P"])
def test_png_modes(tmp_path, picture, mode):
    path = save(tmp_path / "a.png", picture, mode)
    image = read_image(path)
    expected = np.asarray(Image.open(path).convert("RGBA"))[..., :3]
    assert image.dtype == np.uint8 and image.flags.c_contiguous and np.array_equal(image, expected)
    assert image_size(path) == check_image(path) == (20, 30)


def test_transparency_is_dropped_not_blended(tmp_path, picture):
    save(tmp_path / "a.png", np.concatenate([picture, np.zeros((20, 30, 1), np.uint8)], axis=2))
    assert np.array_equal(read_image(tmp_path / "a.png"), picture)
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    image.putpalette(VOC_PALETTE.tobytes())
    image.save(tmp_path / "a.png", transparency=bytes([0, 128] + [255] * 254))
    assert np.array_equal(read_image(tmp_path / "a.png"), VOC_PALETTE[np.arange(6).reshape(2, 3)])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_modes(tmp_path, picture, mode):
    path = save(tmp_path / "a.JPG", picture, mode, format="JPEG")
    assert np.array_equal(read_image(path), np.asarray(Image.open(path).convert("RGB")))


def test_a_jpeg_with_a_second_picture_or_a_broken_exif_block(tmp_path, picture):
    first, second = Image.fromarray(picture), Image.fromarray(picture[:10, :10])
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert read_image(tmp_path / "a.jpg").shape == (20, 30, 3)
    assert check_image(tmp_path / "a.jpg") == (20, 30)
    save(tmp_path / "a.jpg", picture, exif=b"Exif\x00\x00rubbish")
    assert read_image(tmp_path / "a.jpg").shape == (20, 30, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation(tmp_path, picture, orientation, mode, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation  # 0 and 9 are invalid: as stored
    path = save(tmp_path / f"a.{suffix}", picture, mode, exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert np.array_equal(read_image(path), shown)
    assert image_size(path) == check_image(path) == shown.shape[:2]


@pytest.mark.parametrize("colour", [0, 2], ids=["grey", "colour"])
def test_16_bits_are_refused(tmp_path, colour):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    rows = zlib.compress(bytes(5 * (1 + 2 * 6 * (1 + colour))))   # 5 x 6 pixels of zeros
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 5, 16, colour, 0, 0, 0))
                                     + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    for read in (read_image, check_image):
        with pytest.raises(DataError, match=r"a\.png has 16 bits per channel( in colour \(RGB\))?; expected 8"):
            read(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png") == (5, 6)


def test_other_formats_are_refused(tmp_path):
    Image.new("L", (5, 6)).save(tmp_path / "a.png", format="GIF")
    with pytest.raises(DataError, match=r"a\.png is a GIF file; expected JPEG, PNG, WebP, TIFF or BMP"):
        read_image(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"b\.jpg is damaged or not a JPEG, PNG, WebP, TIFF or BMP"):
        check_image(tmp_path / "b.jpg")
    with pytest.raises(DataError, match=r"c\.jpg: No such file"):
        read_image(tmp_path / "c.jpg")
    with pytest.raises(DataError, match=r"no image at .*c\.jpg"):
        image_size(tmp_path / "c.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_files_are_refused(tmp_path, suffix):
    noise = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", noise)
    path.write_bytes(path.read_bytes()[:-500])
    for read in (read_image, check_image):
        with pytest.raises(DataError, match=rf"a\.{suffix} is truncated or damaged"):
            read(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"a\.{suffix} is damaged or not a JPEG, PNG, WebP, TIFF or BMP"):
        check_image(path)


def test_a_few_bytes_after_the_end_are_accepted(tmp_path, picture):
    for suffix, extra in (("jpg", 20), ("jpg", 500), ("png", 20), ("png", 500)):  # beyond the tail the file is decoded
        path = save(tmp_path / f"a.{suffix}", picture)
        path.write_bytes(path.read_bytes() + bytes(extra))
        assert check_image(path) == (20, 30)


def test_masks_are_numbers_not_colours(tmp_path):
    mask = np.array([[0, 1, 20], [255, 7, 128]], np.uint8)
    write_mask(tmp_path / "palette.png", mask)
    save(tmp_path / "grey.png", mask)
    assert Image.open(tmp_path / "palette.png").mode == "P"
    for name in ("palette.png", "grey.png"):
        assert np.array_equal(read_mask(tmp_path / name), mask)
    few = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
    few.putpalette(VOC_PALETTE[:4].tobytes())
    few.save(tmp_path / "two_bits.png", bits=2)
    assert np.array_equal(read_mask(tmp_path / "two_bits.png"), [[0, 1, 2, 3]])


def test_unusable_masks_are_refused(tmp_path, picture):
    save(tmp_path / "a.png", picture)
    with pytest.raises(DataError, match=r"a\.png holds colours \(RGB\), expected class numbers.*look each colour up.*write_mask"):
        read_mask(tmp_path / "a.png")
    save(tmp_path / "a.jpg", picture[..., 0])
    with pytest.raises(DataError, match=r"a\.jpg is a JPEG file, whose compression changes class numbers"):
        read_mask(tmp_path / "a.jpg")
    save(tmp_path / "b.png", picture[..., 0], "1")
    with pytest.raises(DataError, match=r"b\.png is grey with 1 bits; expected 8-bit grey or a palette PNG"):
        read_mask(tmp_path / "b.png")


def test_write_mask_is_deterministic_and_leaves_no_temporary(tmp_path):
    mask = np.random.default_rng(0).integers(0, 256, (33, 17), dtype=np.uint8)
    write_mask(tmp_path / "a.png", mask)
    write_mask(tmp_path / "b.png", np.asfortranarray(mask))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]
    shown = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert np.array_equal(shown, VOC_PALETTE[mask])
    with pytest.raises(ArgumentError, match=r"mask: expected a uint8 array \(H, W\), got int64 \(2, 2\)"):
        write_mask(tmp_path / "c.png", np.zeros((2, 2), np.int64))
    assert not (tmp_path / "c.png").exists()


def test_which_images_are_upright_jpegs(tmp_path, picture):
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 3
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    Image.fromarray(picture).save(tmp_path / "b.jpg", exif=turned)
    Image.fromarray(picture).save(tmp_path / "c.jpg", format="PNG")   # the content counts, not the name
    assert [is_upright_jpeg(tmp_path / f"{name}.jpg") for name in "abc"] == [True, False, False]


def test_encode_jpeg_is_near_the_picture_and_keeps_colour():
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, ::2, 0] = 255   # single columns of red, which half the colour resolution would lose
    read = np.array(Image.open(io.BytesIO(encode_jpeg(picture))))
    assert np.abs(np.int32(read) - picture).mean() < 12
    with pytest.raises(ArgumentError, match=r"image: expected a uint8 array \(H, W, 3\)"):
        encode_jpeg(picture[..., 0])


def test_resizing_is_pillows(picture):
    assert scaled_size((5, 7), 0.5) == (2, 4)  # 2.5 and 3.5: half to even
    assert scaled_size((700, 1), 0.1) == (70, 1)
    for size in [(10, 15), (41, 33), (1, 1)]:
        expected = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC))
        assert np.array_equal(resize_image(picture, size), expected)
        nearest = np.asarray(Image.fromarray(picture[..., 0]).resize(size[::-1], Image.Resampling.NEAREST))
        assert np.array_equal(resize_mask(np.ascontiguousarray(picture[..., 0]), size), nearest)
    assert resize_image(picture, (20, 30)) is picture
    with pytest.raises(ArgumentError, match=r"image: expected a uint8 array \(H, W, 3\), got float32"):
        resize_image(picture.astype(np.float32), (3, 3))


def test_normalise_is_the_official_formula_bit_for_bit(picture):
    expected = np.empty(picture.shape, np.float32)
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))):
        expected[..., channel] = (picture[..., channel] / 255.0 - mean) / std
    result = normalise(picture)
    assert result.dtype == torch.float32 and result.is_contiguous()
    assert np.array_equal(result.numpy(), expected.transpose(2, 0, 1))
    assert torch.equal(_looked_up(torch.from_numpy(picture), _normalised_bytes(IMAGENET)), result)   # as on a GPU
    with pytest.raises(ArgumentError, match=r"image: expected a uint8 array \(H, W, 3\), got list"):
        normalise([[0]])


def test_palette_is_vocs():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128),
             64: (32, 0, 0), 255: (224, 224, 192)}
    assert VOC_PALETTE.shape == (256, 3) and VOC_PALETTE.dtype == np.uint8
    assert {index: tuple(map(int, VOC_PALETTE[index])) for index in known} == known
    assert len(np.unique(VOC_PALETTE, axis=0)) == 256


def test_the_reason_of_a_file_that_is_no_image_is_the_same_at_every_reading(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="a.jpg is damaged or not a JPEG, PNG, WebP, TIFF or BMP image; restore or remove it$"):
        read_image(tmp_path / "a.jpg")
