"""Names in ZIP archives: encodings without a flag, false flags, Info-ZIP's field, and separators."""

import struct
import zipfile
import zlib

import pytest

from fracture_lib.inference.archives import list_members, read_member
from fracture_lib.inference.zip_names import decode_names


def write_raw(path, names, flags=0, extra=b""):
    """Write a ZIP whose members hold their own numbers and have these bytes as names."""
    infos = [zipfile.ZipInfo(f"{number:0{len(name)}}"[-len(name) :]) for number, name in enumerate(names)]
    with zipfile.ZipFile(path, "w") as archive:
        for number, info in enumerate(infos):
            info.extra = extra
            archive.writestr(info, b"%d" % number)
    data = bytearray(path.read_bytes())
    for signature, name_at in ((b"PK\3\4", 30), (b"PK\1\2", 46)):
        start = 0
        for name in names:
            start = data.index(signature, start)
            flags_at = start + (6 if name_at == 30 else 8)
            data[flags_at : flags_at + 2] = struct.pack("<H", flags)
            data[start + name_at : start + name_at + len(name)] = name
            start += name_at
    path.write_bytes(data)
    return path


def read_back(path):
    """Return name -> content of the members that could be images."""
    return {member.name: read_member(path, member.info) for member in list_members(path)[0]}


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("utf-8", ["Mäuse.png"]),
        ("utf-8", ["左手骨折.png", "снимок.png"]),
        ("cp437", ["Röntgen Hüfte.png"]),
        ("cp437", ["café.png", "señor.png"]),
        ("cp850", ["Ângulo mão.png"]),
        ("cp1252", ["Röntgen Größe.png"]),
        ("cp1252", ["fémur fracturé.png"]),
        ("cp852", ["złamanie ręki.png", "Dvořák.png"]),
        ("cp1250", ["złamanie ręki.png", "Łódź.png"]),
        ("cp857", ["göğüs ağr\u0131s\u0131.png"]),
        ("cp1251", ["снимок левой руки.png"]),
        ("cp1251", ["ПЕРЕЛОМ.png"]),
        ("cp866", ["снимок левой руки.png"]),
        ("cp866", ["РЕНТГЕН КИСТИ.png"]),
        ("cp932", ["左手首骨折.png"]),
        ("cp932", ["レントゲン.png", "表.png", "胸部X線.png"]),
        ("gbk", ["左手骨折.png"]),
        ("gbk", ["右腿.png"]),
        ("gbk", ["右腕X光.png", "桡骨远端.png"]),
        ("cp950", ["橈骨遠端骨折.png"]),
        ("cp949", ["왼손골절.png"]),
    ],
)
def test_decode_names_without_flag_finds_the_encoding(encoding, names):
    plain = ["plain.png"]
    assert decode_names([name.encode(encoding) for name in plain + names]) == plain + names


def test_decode_names_in_no_encoding_keeps_the_others():
    names = ["左手骨折.png", "右腕骨折.png", "肘关节正位.png", "正位片.png"]
    decoded = decode_names([*(name.encode() for name in names), b"\xff\xfe.png"])
    assert decoded[:-1] == names and decoded[-1].endswith(".png")


def test_list_members_with_names_of_a_code_page_decodes_them_together(tmp_path):
    names = ["左手骨折.png", "踝.png"]
    path = write_raw(tmp_path / "x.zip", [name.encode("gbk") for name in names])
    assert read_back(path) == dict(zip(names, (b"0", b"1"), strict=True))


def test_list_members_with_false_utf_8_flag_still_reads_all(tmp_path):
    names = [b"plain.png", "左手骨折.png".encode("gbk"), b"\xff.png"]
    found = read_back(write_raw(tmp_path / "x.zip", names, flags=1 << 11))
    assert list(found.values()) == [b"0", b"1", b"2"] and "左手骨折.png" in found


def test_list_members_with_utf_8_flag_decodes_each(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Mäuse/左手.png", b"x")
    assert read_back(path) == {"Mäuse/左手.png": b"x"}


@pytest.mark.parametrize(("crc_is_right", "expected"), [(True, "左手.png"), (False, "old.png")])
def test_list_members_with_unicode_path_field_uses_it_if_it_is_of_this_name(tmp_path, crc_is_right, expected):
    raw, name = b"old.png", "左手.png".encode()
    field = struct.pack("<BL", 1, zlib.crc32(raw) if crc_is_right else 0) + name
    extra = struct.pack("<HH", 0x7075, len(field)) + field
    assert read_back(write_raw(tmp_path / "x.zip", [raw], extra=extra)) == {expected: b"0"}


def test_list_members_with_backslashes_takes_them_as_separators(tmp_path):
    names = [rb"dir\image.png", rb"__MACOSX\._image.png", rb"C:\x\y.png", b"dir\\empty\\"]
    assert list(read_back(write_raw(tmp_path / "x.zip", names))) == ["dir/image.png", "x/y.png"]


def test_list_members_with_other_name_in_the_header_still_reads_the_member(tmp_path):
    path = write_raw(tmp_path / "x.zip", [b"x.png"])
    path.write_bytes(path.read_bytes().replace(b"x.png", b"y.png", 1))
    assert read_back(path) == {"x.png": b"0"}
