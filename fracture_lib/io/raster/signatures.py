"""What a file is, by its leading bytes."""

from fracture_lib.io.raster import jpeg, png, tiff

__all__ = ["find_kind", "has_signature_of_format"]

_TEXT_LENGTH = 512  # bytes that are examined

# (offset, bytes there, kind), the first match counts
_KINDS = (
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a ZIP archive or an Office document"),
    (0, b"PK\x05\x06", "a ZIP archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ", "an xz file"),
    (257, b"ustar", "a tar archive"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    (4, b"ftyp", "a video"),
    (8, b"AVI ", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (0, b"\0\0\x01\xba", "a video"),
    (0, b"8BPS", "Photoshop"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"\x93NUMPY", "a NumPy array; load it with numpy.load"),
    (0, b"NRRD000", "NRRD"),
    (344, b"n+1\0", "NIfTI"),
    (0, b"MZ", "a Windows program"),
    (0, b"\x7fELF", "a program"),
    (0, b"\xd0\xcf\x11\xe0", "an Office document"),
    (0, b"SQLite format 3", "a database"),
)
_TEXT_KINDS = ((b"<svg", "SVG"), (b"<!doctype html", "HTML"), (b"<html", "HTML"), (b"<?xml", "XML"))


def has_signature_of_format(data: bytes) -> bool:
    """Return whether a file begins as one of JPEG, PNG, TIFF, GIF, BMP or WebP."""
    return (
        data.startswith((jpeg.START, png.SIGNATURE, b"GIF8"))
        or tiff.is_tiff(data)
        or (data.startswith(b"RIFF") and data[8:12] == b"WEBP")
        or (data.startswith(b"BM") and data[6:10] == bytes(4))
    )


def find_kind(data: bytes) -> str:
    """Return what an unsupported file is, such as "a PDF" or "JPEG 2000"; "" if unknown."""
    for offset, signature, kind in _KINDS:
        if data.startswith(signature, offset):
            return kind
    start = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for signature, kind in _TEXT_KINDS:
        if start.startswith(signature) or (kind == "SVG" and signature in start):
            return kind
    head = data[:_TEXT_LENGTH]
    return "text" if not any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head) else ""
