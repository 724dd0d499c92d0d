"""Changes of small valid files that know their structure, so that what is changed gets behind a parser's first check."""

import csv
import io
import json
import math
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import yaml

DEEP = 3000   # nested brackets: beyond the recursion limit
TEXTS = ("", " ", "\0", "\n", "..", "../../x", "/etc/passwd", "\\..\\x", "a/b", ".", "é", "e\u0301", "\ud800", "\u202e", "=1+1", "@x",
         '"', "'", ";", ",", "|", "\t", "%s", "{0}", "NaN", "inf", "-inf", "1e400", "-1", "0", "255", "256", "65536", "0x10", "9" * 5000, "a" * 300,
         "A" * 70000, "<b>", "<script>", "&amp;", "None", "null", "true", "background", "ignore", "cat", "dog", "c0", "c1")
NUMBERS = (0, 1, -1, 2, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**12, 10**30, 0.5, -0.5, 1e308, 1e-320, math.inf, -math.inf, math.nan)
BYTES = (b"", b"\0", b"\xff", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\x80", b"[" * DEEP, b"{\"a\":" * DEEP, b"<a>" * DEEP,
         b"%PDF-", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a", b"PK\x03\x04", b"\x93NUMPY", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"!!python/object/apply:os.system [x]",
         b"&a [*a]", b"*a", b"<<: ", b"\x89PNG\r\n\x1a\n")


def mutate(content: bytes, form: str, draws: random.Random, seeds: list[bytes]) -> bytes:
    """A changed `content` of a form in `FORMS`; some changes are of its bytes alone."""
    structured = FORMS.get(form)
    if structured and draws.random() < 0.75:
        try:
            return structured(content, draws)
        except Exception:   # it was no valid file any more
            pass
    for _ in range(draws.choice((1, 1, 1, 2, 4))):
        content = of_bytes(content, draws, seeds)
    return content


def of_bytes(content: bytes, draws: random.Random, seeds: list[bytes]) -> bytes:
    """Bytes changed, removed, repeated, inserted, or taken from another file."""
    first, last = sorted((draws.randint(0, len(content)), draws.randint(0, len(content))))
    last = min(last, first + draws.choice((1, 2, 4, 16, 256)))
    match draws.randrange(8):
        case 0 | 1 if content:
            changed = bytearray(content)
            changed[min(first, len(changed) - 1)] ^= 1 << draws.randrange(8)
            return bytes(changed)
        case 2:
            return content[:first] + content[last:]
        case 3:
            return content[:first] + content[first:last] * draws.choice((2, 10, 300)) + content[last:]
        case 4:
            return content[:first] + draws.choice(BYTES) + content[last:]
        case 5:
            other = draws.choice(seeds)
            return content[:first] + other[draws.randint(0, len(other)):]
        case 6:
            width = draws.choice((1, 2, 4, 8))
            value = draws.choice((0, 1, 2**31 - 1, 2**63, 2**64 - 1, 2**32 - 1, draws.getrandbits(64))) % 256**width
            return content[:first] + value.to_bytes(width, draws.choice(("big", "little"))) + content[first + width:]
    return content[:first]


# Values in trees.

def value(draws: random.Random) -> Any:
    """A value that the place does not expect."""
    match draws.randrange(6):
        case 0:
            return draws.choice((None, True, False, [], {}, [[]], [None], {"a": 1}, [1, 2, 3, 4], [0] * 6))
        case 1 | 2:
            return draws.choice(NUMBERS)
        case 3 | 4:
            return draws.choice(TEXTS)
    nested: Any = []
    for _ in range(draws.choice((2, 50, 400))):
        nested = [nested]
    return nested


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value of a tree."""
    found, waiting = [], [tree]
    while waiting:
        container = waiting.pop()
        for key in list(container) if isinstance(container, dict) else range(len(container)):
            found.append((container, key))
            if isinstance(container[key], (dict, list)):
                waiting.append(container[key])
    return found


def of_tree(tree: Any, draws: random.Random) -> Any:
    """A tree of dictionaries and lists with one to three changes."""
    for _ in range(draws.choice((1, 1, 2, 3))):
        places = _places(tree) if isinstance(tree, (dict, list)) else []
        if not places:
            return value(draws)
        container, key = draws.choice(places)
        other, its = draws.choice(places)
        match draws.randrange(7):
            case 0 | 1:
                container[key] = value(draws)
            case 2:
                del container[key]
            case 3 if isinstance(container, list):
                container.insert(key, container[key])
            case 3 | 4 if isinstance(container, dict):
                container[draws.choice(TEXTS)] = container.pop(key)
            case 5:
                container[key] = json.loads(json.dumps(other[its]))
            case 6 if isinstance(container[key], (int, float)):
                container[key] = draws.choice((container[key] + 1, -container[key], container[key] * 1000, str(container[key])))
            case 6 if isinstance(container[key], str):
                container[key] = draws.choice((container[key].upper(), container[key] * 2, container[key][:-1], f"{container[key]}\u0301"))
    return tree


def of_json(content: bytes, draws: random.Random) -> bytes:
    return json.dumps(of_tree(json.loads(content), draws), ensure_ascii=draws.random() < 0.5).encode("utf-8", "surrogatepass")


def of_json_lines(content: bytes, draws: random.Random) -> bytes:
    """Of a file with a JSON value on each line, one line is changed."""
    lines = content.splitlines(keepends=True)
    at = draws.randrange(len(lines))
    lines[at] = of_json(lines[at], draws) + draws.choice((b"\n", b"\n", b"", b"\r\n"))
    return b"".join(lines)


def of_yaml(content: bytes, draws: random.Random) -> bytes:
    return yaml.safe_dump(of_tree(yaml.safe_load(content), draws), allow_unicode=True).encode("utf-8", "surrogatepass")


def of_xml(content: bytes, draws: random.Random) -> bytes:
    root = ElementTree.fromstring(content)
    nodes = list(root.iter())
    node, parent = draws.choice(nodes), draws.choice([node for node in nodes if len(node)])
    match draws.randrange(5):
        case 0 | 1:
            node.text = str(value(draws))
        case 2:
            parent.remove(draws.choice(list(parent)))
        case 3:
            parent.append(draws.choice(list(parent)))
        case 4:
            node.tag = draws.choice(("object", "annotation", "name", "size", "bndbox", "x"))
    return ElementTree.tostring(root).replace(b"&#55296;", b"\xed\xa0\x80")


def of_lines(content: bytes, draws: random.Random) -> bytes:
    """Of lines of cells, which commas or blanks separate."""
    lines = content.decode().split("\n")
    at = draws.randrange(len(lines))
    separator = max((",", " ", ";", "\t", ":"), key=lines[at].count)
    cells = lines[at].split(separator)
    match draws.randrange(6):
        case 0 | 1 | 2:
            cells[draws.randrange(len(cells))] = str(value(draws))
        case 3:
            cells.insert(draws.randrange(len(cells)), draws.choice(cells))
        case 4:
            del cells[draws.randrange(len(cells))]
        case 5:
            lines.insert(draws.randrange(len(lines)), lines[at])
    lines[at] = separator.join(cells)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# Binary files.

def of_png(content: bytes, draws: random.Random) -> bytes:
    """Chunks changed, removed, repeated and added, with right checksums."""
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at:at + 4], "big")
        chunks.append((content[at + 4:at + 8], content[at + 8:at + 8 + length]))
        at += 12 + length
    which = draws.randrange(len(chunks))
    kind, body = chunks[which]
    match draws.randrange(6):
        case 0 | 1 | 2:
            chunks[which] = kind, of_bytes(body, draws, [body])
        case 3:
            del chunks[which]
        case 4:
            chunks.insert(which, chunks[which])
        case 5:
            text = b"key\0\0" + zlib.compress(bytes(draws.choice((10, 2**21, 2**24))))
            name, body = draws.choice(((b"zTXt", text), (b"tEXt", b"a\0b"), (b"iTXt", b"k\0\1\0\0\0" + text[5:]), (b"iCCP", text), (b"eXIf", b"MM\0*\0\0\0\x08"),
                                       (b"tRNS", b"\0"), (b"PLTE", b"\0" * 768), (b"acTL", b"\xff" * 8), (b"fcTL", bytes(26)), (b"sRGB", b""), (b"cICP", b"1")))
            chunks.insert(draws.randint(1, len(chunks)), (name, body))
    return content[:8] + b"".join(len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big") for kind, body in chunks)


def of_zip(content: bytes, draws: random.Random) -> bytes:
    """Members changed, renamed, removed, made links, written again with right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [[info, archive.read(info)] for info in archive.infolist()]
    chosen = draws.choice(members)
    info = chosen[0]
    match draws.randrange(6):
        case 0 | 1:
            chosen[1] = of_npy(chosen[1], draws) if chosen[1][:6] == b"\x93NUMPY" and draws.random() < 0.7 else of_bytes(chosen[1], draws, [chosen[1]])
        case 2:
            info.filename = draws.choice((*TEXTS[:14], info.filename.upper(), f"{info.filename}/", f"../{info.filename}", f"/{info.filename}"))
        case 3:
            members.remove(chosen)
        case 4:
            info.external_attr = draws.choice((0o120777, 0o010644, 0o060644, 0o040755)) << 16
        case 5:
            info.compress_type = draws.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for info, body in members:
            archive.writestr(info, body)
    return target.getvalue()


def of_npy(content: bytes, draws: random.Random) -> bytes:
    """The header's text changed, and its length made right."""
    length = int.from_bytes(content[8:10], "little")
    header, body = content[10:10 + length].decode("latin1").rstrip(), content[10 + length:]
    old, new = draws.choice((("'descr'", "'other'"), ("'<f", "'>f"), ("'<f4'", "'|O'"), ("'<f2'", "'<f8'"), ("'<i8'", "'<U9999'"), ("'shape': (", "'shape': (9999999999, "), ("'shape': (", "'shape': (-1, "),
                             ("'shape': (", "'shape': (0, "), (", ", ", 1"), ("False", "True"), ("(", "(("), ("}", "}}"), ("{", "{" + "[" * 90), ("1", "10"), ("2", "[2]"), ("'<f4'", "[('a', '<f4'), ('b', '|O')]"),
                             ("'shape': (", "'shape': (100000, 100000, "), ("'<f4'", "'<c8'"), ("'<f4'", "'<M8[ns]'"), ("'|b1'", "'|V7'"), ("'<f2'", "'|S0'")))
    header = header.replace(old, new, 1) if draws.random() < 0.8 else of_bytes(header.encode("latin1"), draws, [b"x"]).decode("latin1")
    header = header.encode("latin1") + b"\n"
    version = content[6:8] if draws.random() < 0.9 else bytes(draws.choice(((2, 0), (3, 0), (9, 9))))
    size = struct.pack("<I", len(header)) if version[:1] > b"\1" else struct.pack("<H", len(header) % 65536)
    return content[:6] + version + size + header + (body if draws.random() < 0.8 else of_bytes(body, draws, [body]))


def of_pickle_in_npy(content: bytes, draws: random.Random) -> bytes:
    """The pickle behind a header: names, numbers and lengths in it."""
    length = 10 + int.from_bytes(content[8:10], "little")
    head, body = content[:length], content[length:]
    if draws.random() < 0.15:
        return of_npy(head, draws) + body
    names = [b"ndarray", b"dtype", b"scalar", b"_reconstruct", b"encode", b"OrderedDict", b"_rebuild_tensor_v2", b"_load_from_bytes", b"system", b"getattr"]
    match draws.randrange(4):
        case 0:
            old = draws.choice(names)
            return head + body.replace(old, draws.choice(names), draws.choice((1, -1)))
        case 1:
            codes = b"(.012FGIJKLMNPQRSTUVXabcdeghijlopqrstu}\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95"
            at = draws.randrange(len(body))
            return head + body[:at] + bytes([draws.choice(codes)]) + body[at + draws.randrange(2):]
        case 2:
            at = draws.randrange(len(body))
            code = draws.choice((b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00", b"B\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f",
                                 b"cos\nsystem\n(S'touch canary'\ntR", b"c__builtin__\neval\n", b"K\xff", b"J\xff\xff\xff\x7f", b"\x85", b"R", b"b", b"\x81"))
            return head + body[:at] + code + body[at:]
    return head + of_bytes(body, draws, [body])


def of_safetensors(content: bytes, draws: random.Random) -> bytes:
    """The header, which is JSON, changed, and its length made right."""
    length = int.from_bytes(content[:8], "little")
    header = of_json(content[8:8 + length], draws)
    return len(header).to_bytes(8, "little") + header + content[8 + length:]


def of_csv(content: bytes, draws: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode())))
    row = draws.choice(rows)
    match draws.randrange(5):
        case 0 | 1 | 2 if row:
            row[draws.randrange(len(row))] = str(draws.choice((*TEXTS, *NUMBERS)))
        case 3:
            row.insert(draws.randint(0, len(row)), draws.choice(TEXTS))
        case 4:
            rows.insert(draws.randint(0, len(rows)), list(row))
    text = io.StringIO()
    csv.writer(text, delimiter=draws.choice(",,,;\t"), lineterminator=draws.choice(("\n", "\r\n"))).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


FORMS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": of_json, "lines of json": of_json_lines, "yaml": of_yaml, "xml": of_xml, "lines": of_lines, "csv": of_csv, "png": of_png, "zip": of_zip,
    "npy": of_npy, "pickle": of_pickle_in_npy, "safetensors": of_safetensors}
