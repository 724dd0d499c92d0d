"""A word of the command line that Hydra's grammar cannot read is taken as the text that it is."""

import pytest

from pipeline.config import compose, typed
from pipeline.words import as_meant
from wsss.errors import ConfigError

TEXTS = ("ü", "写 真", "~/photos", "photos (1)", "a=b", "it's", "back\\", "back\\' slash", "{a", "50%", "a;b", "[a", "<b>", "#1", "a!")


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_through(text):
    assert typed(compose([as_meant("data=folder"), f"data.root={text}"])).data.root == text
    assert typed(compose(["data=folder", as_meant(f"data.root={text}")])).data.root == text   # done twice is done once


@pytest.mark.parametrize(("word", "names"), [("classes=[traffic light,dé,a<b]", ["traffic light", "dé", "a<b"]),
                                             ("classes=['a,b',写]", ["a,b", "写"])])
def test_the_elements_of_a_list_too(word, names):
    assert typed(compose(["action=predict", "image=x.jpg", word])).classes == names


@pytest.mark.parametrize("word", ["seed=1", "name=a", "make_cam.scales=[1.0,0.5]", "seed=1,2", "~cam", "--cfg", "name='a b'", "name=${seed}"])
def test_what_can_be_read_stays(word):
    assert as_meant(word) == word


def test_a_comma_is_several_values_and_the_message_shows_what_to_type():
    with pytest.raises(ConfigError, match=r"""data.root=a,b is read as several values.* type "data.root='a,b'", for a list"""):
        compose(["data=folder", "data.root=a,b"])
    assert compose(["data=folder", "data.root='a,b'"]).data.root == "a,b"
    with pytest.raises(ConfigError, match="'a b=1' is not a setting of the form KEY=VALUE"):
        compose(["a b=1"])
