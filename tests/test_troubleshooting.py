"""docs/troubleshooting.md is indexed by the text of the messages: each message has its entry, each entry its message."""

import re
import textwrap

import pytest

from tests.messages import LETTERS, Messages, collect, covers, words
from tests.test_house import ROOT, SOURCES

DOCUMENT = ROOT / "docs" / "troubleshooting.md"

# What Hydra says in its own words, and a command line that makes it say so.
HYDRA = {
    "train_cam.epochs=many": "...: Value ... could not be converted to ...",
    "force=maybe": "...: Value ... is not a valid bool",
    "seed=${sed}": "...: Interpolation key ... not found",
    "name=${x": "...: no viable alternative at input ...",
}


@pytest.fixture(scope="module")
def messages() -> Messages:
    return collect({str(path.relative_to(ROOT)): path.read_text() for path in SOURCES})


@pytest.fixture(scope="module")
def paragraphs() -> list[str]:
    return re.split(r"\n\s*\n", DOCUMENT.read_text())


@pytest.fixture(scope="module")
def entries(paragraphs) -> list[str]:
    return [entry for paragraph in paragraphs for entry in entries_of(paragraph)]


def entries_of(text: str) -> list[str]:
    """The texts in bold code, a line break in them being a blank."""
    return [" ".join(entry.split()) for entry in re.findall(r"\*\*`(.+?)`\*\*", text, re.DOTALL)]


def lacking(templates: dict[str, list[str]], entries: list[str]) -> list[str]:
    """The templates without an entry, as lines to paste."""
    return [f"**`{textwrap.shorten(text, 110, placeholder='')}`** Why it happens and what to do.    <- {', '.join(places)}"
            for text, places in templates.items() if not any(covers(entry, text) for entry in entries)]


def test_every_message_can_be_read_from_the_source(messages):
    assert not messages.unread, "\n" + "\n".join(messages.unread)


def test_nothing_but_errors_of_ours_is_raised(messages):
    assert not messages.foreign, "\n" + "\n".join(messages.foreign)


def test_every_message_has_an_entry(messages, entries):
    without = lacking(messages.found | {text: ["Hydra"] for text in HYDRA.values()}, entries)
    assert not without, f"docs/troubleshooting.md lacks {len(without)}:\n\n" + "\n".join(without)


def test_every_entry_has_a_message(messages, entries):
    texts = [*messages.found, *HYDRA.values()]
    stale = [entry for entry in entries if not any(covers(entry, text) for text in texts)]
    assert not stale, "no message of ours begins with:\n" + "\n".join(stale)


def test_every_entry_says_enough_and_is_explained(paragraphs, entries):
    assert len(entries) == len(set(entries))
    for entry in entries:
        assert words(entry) >= LETTERS, f"{entry!r} could stand for many messages"
    for paragraph in paragraphs:
        if entries_of(paragraph):
            rest = re.sub(r"\*\*`.+?`\*\*", "", paragraph, flags=re.DOTALL)
            assert len(re.findall(r"\w+", rest)) >= 5, f"no explanation: {paragraph!r}"


@pytest.mark.parametrize(("override", "text"), HYDRA.items())
def test_hydra_says_it_so(override, text):
    from pipeline import config
    from wsss.errors import ConfigError

    with pytest.raises(ConfigError) as error:
        config.typed(config.compose([override]))
    assert covers(text, str(error.value))


# The collector itself.

def of(code: str) -> Messages:
    return collect({"wsss/errors.py": "class WsssError(Exception): ...\nclass DataError(WsssError): ...",
                    "wsss/some.py": textwrap.dedent(code)})


@pytest.mark.parametrize(("code", "text"), [
    ("raise DataError('a plain message')", "a plain message"),
    ("raise DataError(f'{path} is not what {name!r}{hint} must be') from error", "... is not what ... must be"),
    ("raise DataError('the first part, ' f'{x} and ' + more + 'the last')", "the first part, ... and ...the last"),
    ("raise DataError('shapes are {}, {x:.3g}; expected others'.format(*shapes))", "shapes are ..., ...; expected others"),
    ("raise errors.WsssError('through the module', damaged=path)", "through the module"),
    ("error = DataError('not raised where it is made')\nraise error", "not raised where it is made"),
    ("class Mine(DataError): ...\nraise Mine('of a subclass elsewhere')", "of a subclass elsewhere"),
    ("def why(x):\n    return f'{x} for that reason'\nraise DataError(why(1))", "... for that reason"),
    ("def why(x):\n    return str(error) if x else 'not enough memory'\ncontext.warn(f'{i}: {why(1)}')", "...: not enough memory"),
    ("refuse(f'list {path}, its lines', problems)", "list ..., its lines: ... problems"),
    ("problems.append(f'line {i} is wrong for us')", "line ... is wrong for us"),
    ("problems += [f'{i} comes twice in it' for i in ids]", "... comes twice in it"),
    ("failed[i] = f'{i}: not enough memory'\ncontext.warn(f'{i}: {failed[i]}')", "...: not enough memory"),
    ("log.warning('%s: ignored %d entries', folder, n)", "...: ignored ... entries"),
    ("context.runtime.warn(f'class {name} has no image')", "class ... has no image"),
])
def test_messages_are_found(code, text):
    messages = of(code)
    assert text in messages.found and not messages.unread and not messages.foreign
    assert messages.found[text][0].startswith("wsss/some.py:")
    assert lacking(messages.found, [text]) == []
    assert lacking(messages.found, [f"another {text}"])[0].startswith(f"**`{text}`** ")


def test_both_sides_of_a_condition_are_found():
    assert set(of("raise DataError('this side of it' if wrong else 'the other side')").found) == {"this side of it", "the other side"}


@pytest.mark.parametrize("code", [
    "raise DataError(message)", "raise DataError()", "raise DataError(f'{a}: {b}')", "raise DataError(str(error))",
    "raise DataError(make(1))", "context.runtime.warn(text)", "refuse(str(path), problems)", "def f(): return x\nraise DataError(f())",
])
def test_what_cannot_be_read_is_listed(code):
    assert of(code).unread


@pytest.mark.parametrize("code", ["raise ValueError('no error of ours')", "raise KeyError", "assert x > 0", "raise make(1)"])
def test_what_is_not_ours_is_listed(code):
    assert of(code).foreign


@pytest.mark.parametrize("code", [
    "raise", "raise error", "raise type(error)(f'{image_id}: {error}') from error", "raise Stopped", "context.runtime.warn(str(error))",
    "warn = lambda message: console.warning(f'{step}: {message}')",
    "def again(error): ...\nraise again(error)",
])
def test_the_same_error_again_is_no_new_message(code):
    messages = of(code)
    assert not messages.found and not messages.unread and not messages.foreign


def test_an_entry_covers_the_whole_text_or_its_beginning_and_nothing_else():
    text = "mask ... is 30 high but its image is ...; save it again"
    assert covers("mask ... is 30 high but its image is ...; save it again", text) and covers("mask ... is 30 high", text)
    assert covers("... its image is", text) and not covers("is 30 high but its image", text) and not covers("mask ... is 31", text)
    assert entries_of("**`one ...`**, **`two\nlines`** why\n") == ["one ...", "two lines"]
