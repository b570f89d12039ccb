"""Rated texts, tokenizers and preferences: what is read, and what is refused with which words."""

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
from hypothesis import given, strategies as st

from flowrl.rlhf.data import (
    FileTokenizer,
    Preference,
    RatedTexts,
    WordTokenizer,
    _pip,
    _sdist,
    generated_ratings,
    plain_chat,
    rated_snippets,
    read_preferences,
    read_prompts,
    write_preferences,
)

MOVIES = (
    "1\t2.25\tA moving film.\r\n2\t-1.5\tDull; don’t go.\r\n3\t0.5\ta  MOVING film.\r\n4\t-0.25\tAs\x85it is".encode()
)
TWEETS = b"1\t3.0\tYay &amp; more\r\n2\t1.0\ta moving film.\r\n"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
MOVIE_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
TWEET_FILE = "hutto_ICWSM_2014/tweets_GroundTruth.txt"


def _tar(members):
    """A gzipped tar archive of (name, bytes) or (name, link target as a string)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _sdist_bytes(movies=MOVIES, tweets=TWEETS):
    return _tar([(INNER, _tar([(MOVIE_FILE, movies), (TWEET_FILE, tweets)]))])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Puts bytes where the archive is looked for, and makes their hash the pinned one."""

    def put(content, *, folder=tmp_path):
        folder.mkdir(exist_ok=True)
        (folder / _sdist.FILE).write_bytes(content)
        monkeypatch.setattr(_sdist, "SHA256", hashlib.sha256(content).hexdigest())
        return tmp_path

    return put


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: `pip.content` is what it downloads, None makes it fail."""
    state = types.SimpleNamespace(content=None, commands=[], requirements=[], error=None)

    def run(command, *, cwd, **_):
        state.commands.append(command)
        state.requirements.append((cwd / command[command.index("-r") + 1]).read_text())
        if state.error is not None:
            raise state.error
        if state.content is None:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: Retrying\nERROR: No matching distribution\n")
        (cwd / _sdist.FILE).write_bytes(state.content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(_pip.subprocess, "run", run)
    return state


# Rated snippets


def test_snippets_are_read_in_order_and_once(place):
    rated = rated_snippets(place(_sdist_bytes()), download=False)
    assert rated.texts == ("A moving film.", "Dull; don’t go.", "As\x85it is")
    np.testing.assert_array_equal(rated.ratings, np.array([2.25, -1.5, -0.25], np.float32))
    assert rated.sources == ("movie",) * 3


def test_sources_come_in_the_order_asked_and_repetitions_across_them_go(place):
    root = place(_sdist_bytes())
    rated = rated_snippets(root, sources=("tweets", "movie", "tweets"))
    assert rated.texts == ("Yay &amp; more", "a moving film.", "Dull; don’t go.", "As\x85it is")
    assert rated.sources == ("tweets", "tweets", "movie", "movie")
    assert rated.ratings[1] == 1.0


def test_the_archive_may_stand_in_a_folder_of_its_own(place, tmp_path):
    place(_sdist_bytes(), folder=tmp_path / "vaderSentiment-3.3.2")
    assert len(rated_snippets(tmp_path, download=False)) == 3


def test_other_encodings_are_read(place):
    root = place(_sdist_bytes(movies=b"1\t1.0\tcaf\xe9\r\n"))
    assert rated_snippets(root).texts == ("café",)
    root = place(_sdist_bytes(movies="1\t1.0\tcafé".encode("utf-8-sig")))
    assert rated_snippets(root).texts == ("café",)


@pytest.mark.parametrize("sources", [(), ("movie", "books")])
def test_unknown_sources_are_named(tmp_path, sources):
    with pytest.raises(ValueError, match="sources must be some of movie, amazon, nyt, tweets"):
        rated_snippets(tmp_path, sources=sources)


@pytest.mark.parametrize(
    ("movies", "message"),
    [
        (b"1\t1.0\n", "line 1: expected id, rating and text"),
        (b"1\t1.0\tgood\n2\tmuch\tbad\n", r"line 2: rating must be a number in \[-4, 4\], got 'much'"),
        (b"1\tnan\tgood\n", "line 1: rating must be a number"),
        (b"1\t4.5\tgood\n", "line 1: rating must be a number"),
        (b"1\t1.0\t \n", "line 1: expected id, rating and text"),
        (b"\r\n", "no texts"),
    ],
)
def test_malformed_lines_are_named(place, movies, message):
    root = place(_sdist_bytes(movies=movies))
    with pytest.raises(ValueError, match=f"{_sdist.FILE}.*{MOVIE_FILE}.*{message}"):
        rated_snippets(root)


def test_a_file_with_another_hash_is_refused(tmp_path, pip):
    (tmp_path / _sdist.FILE).write_bytes(_sdist_bytes())
    with pytest.raises(ValueError, match=f"SHA-256 is .*, expected {_sdist.SHA256}.*Delete it"):
        rated_snippets(tmp_path)
    assert not pip.commands


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_truncated_archives_are_refused(place, keep):
    noise = np.random.default_rng(0).integers(65, 90, 20_000).astype(np.uint8).tobytes()
    content = _sdist_bytes(movies=b"1\t1.0\t" + noise)
    root = place(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=f"{_sdist.FILE}.*(damaged or truncated|has no member)"):
        rated_snippets(root)


def test_what_is_no_archive_is_refused(place):
    with pytest.raises(ValueError, match="damaged or truncated"):
        rated_snippets(place(b"<html>"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("vaderSentiment-3.3.2/setup.py", b"")], f"has no member {INNER}"),
        ([(INNER, _tar([("elsewhere/movieReviewSnippets_GroundTruth.txt", b"1\t1.0\tx")]))], "has no member hutto"),
        ([(INNER, "/etc/passwd")], "must be a regular file"),
        ([(INNER, _tar([("x", b"y"), (MOVIE_FILE, "x")]))], "must be a regular file"),
    ],
)
def test_missing_members_and_links_are_refused(place, members, message):
    with pytest.raises(ValueError, match=message):
        rated_snippets(place(_tar(members)))


def test_a_member_that_is_too_large_is_not_read(place, monkeypatch):
    monkeypatch.setattr(_sdist, "_LIMIT", 2000)
    root = place(_sdist_bytes(movies=b"1\t1.0\t" + b"a" * 3000))
    with pytest.raises(ValueError, match="at most 2000 bytes, got one of 3006 bytes"):
        rated_snippets(root)


def test_names_that_lead_out_of_the_directory_write_nothing(place, tmp_path):
    root = tmp_path / "deep" / "data"
    root.mkdir(parents=True)
    inner = _tar([("../evil", b"x"), ("/tmp/evil-flowrl", b"x"), (MOVIE_FILE, MOVIES)])
    place(_tar([("../../evil", b"x"), (INNER, inner)]), folder=root)
    assert len(rated_snippets(root)) == 3
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [_sdist.FILE]


def test_pip_is_asked_for_the_pinned_hash_and_only_once(tmp_path, pip, monkeypatch):
    pip.content = _sdist_bytes()
    monkeypatch.setattr(_sdist, "SHA256", hashlib.sha256(pip.content).hexdigest())
    assert len(rated_snippets(tmp_path)) == 3
    assert len(rated_snippets(tmp_path)) == 3
    (command,), (requirement,) = pip.commands, pip.requirements
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes"} < set(command)
    assert requirement == f"vaderSentiment==3.3.2 --hash=sha256:{_sdist.SHA256}\n"
    left = {path.name for path in (tmp_path / "vaderSentiment-3.3.2").iterdir()}
    assert left == {_sdist.FILE, ".lock"}


def test_what_pip_brings_is_checked_again(tmp_path, pip):
    pip.content = _sdist_bytes()
    with pytest.raises(ValueError, match="SHA-256"):
        rated_snippets(tmp_path)
    assert {path.name for path in (tmp_path / "vaderSentiment-3.3.2").iterdir()} == {".lock"}


@pytest.mark.parametrize("error", [None, subprocess.TimeoutExpired(["pip"], 600), FileNotFoundError("no python")])
def test_a_download_that_fails_says_how_to_get_the_file(tmp_path, pip, error):
    pip.error = error
    with pytest.raises(OSError, match="pip download --no-deps --no-binary :all: vaderSentiment==3.3.2") as caught:
        rated_snippets(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert ("No matching distribution" in str(caught.value)) == (error is None)
    assert {path.name for path in (tmp_path / "vaderSentiment-3.3.2").iterdir()} == {".lock"}


def test_without_leave_nothing_is_downloaded(tmp_path, pip):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*download=False.*data_dir"):
        rated_snippets(tmp_path, download=False)
    assert not pip.commands
    assert not list(tmp_path.iterdir())


def test_rated_texts_are_checked():
    with pytest.raises(ValueError, match="one entry each, got 1, 2 and 1"):
        RatedTexts(("a",), np.zeros(2, np.float32), ("x",))
    for wrong in (np.nan, 4.5):
        with pytest.raises(ValueError, match=r"in \[-4, 4\]"):
            RatedTexts(("a",), np.array([wrong], np.float32), ("x",))
    some = RatedTexts(("a", "b", "c"), np.arange(3, dtype=np.float32), ("x", "y", "z")).take(np.array([2, 0]))
    assert (some.texts, some.ratings.tolist(), some.sources) == (("c", "a"), [2.0, 0.0], ("z", "x"))


# Generated ratings


def test_generated_ratings_are_different_texts_and_follow_the_seed():
    rated = generated_ratings(2000, seed=3)
    again, other = generated_ratings(2000, seed=3), generated_ratings(2000, seed=4)
    assert len(rated) == len(set(rated.texts)) == 2000
    assert rated.texts == again.texts
    np.testing.assert_array_equal(rated.ratings, again.ratings)
    assert rated.texts != other.texts
    assert set(rated.sources) == {"generated"}
    assert abs(rated.ratings).max() <= 4


def test_generated_ratings_follow_the_words():
    rated = generated_ratings(3000, seed=0)
    good = rated.ratings[["brilliant" in text and "never" not in text and "hardly" not in text for text in rated.texts]]
    turned = rated.ratings[["is never brilliant" in text for text in rated.texts]]
    bad = rated.ratings[["awful" in text and "never" not in text and "hardly" not in text for text in rated.texts]]
    assert good.mean() - bad.mean() > 1.5
    assert good.mean() - turned.mean() > 1.0
    assert rated.ratings.std() > 0.8


@pytest.mark.parametrize("rows", [0, 100_001])
def test_generated_rows_have_a_range(rows):
    with pytest.raises(ValueError, match=f"got {rows}"):
        generated_ratings(rows, seed=0)


# Tokenizers


def test_words_are_cut_and_written_readably():
    text = "Don't go -- it’s a 90-minute, ''quite'' (dull) mess... $7.50, really!"
    tokenizer = WordTokenizer.fit([text])
    assert tokenizer.decode(tokenizer.encode(text)) == (
        "don't go -- it's a 90-minute, \"quite\" (dull) mess... $7.50, really!"
    )


def test_the_most_frequent_words_have_the_first_ids():
    tokenizer = WordTokenizer.fit(["b b b a a c d", "a b"], size=6)
    assert tokenizer.tokens == ("<pad>", "<unk>", "<end>", "b", "a", "c")
    assert tokenizer.size == 6
    assert (tokenizer.pad, tokenizer.unknown, tokenizer.end) == (0, 1, 2)
    assert tokenizer.encode("C b d <pad>") == [5, 3, 1, 1, 1, 1]
    assert tokenizer.decode([3, 1, 4, 2, 0, 0]) == "b <unk> a"


MARKS = WordTokenizer(
    ["good", "rock'n", "n", "7", "7.5", *(".", "...", ",", "'", '"', "-", "--", "(", ")", "$", "/", "_", "!", "é")]
)


@given(st.lists(st.sampled_from([1, *range(3, MARKS.size)]), max_size=12))
def test_what_is_written_is_cut_in_the_same_places(ids):
    assert MARKS.encode(MARKS.decode(ids)) == ids


@given(st.text(max_size=30))
def test_any_text_can_be_encoded(text):
    assert all(0 <= index < MARKS.size for index in MARKS.encode(text))


def test_a_word_tokenizer_survives_its_file():
    tokenizer = WordTokenizer(["good", "é", '"'])
    again = WordTokenizer.from_json(tokenizer.to_json())
    assert again.words == tokenizer.words
    assert again.fingerprint == tokenizer.fingerprint


def test_fingerprints_tell_the_order_of_words():
    prints = {WordTokenizer(words).fingerprint for words in (["a", "b"], ["b", "a"], ["a"])}
    assert len(prints) == 3
    assert WordTokenizer(["a", "b"]).fingerprint in prints


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a word tokenizer"),
        ("[]", "not a word tokenizer"),
        ('{"format": "flowrl.WordTokenizer", "version": 2, "words": []}', "not a word tokenizer"),
        ('{"format": "flowrl.WordTokenizer", "version": 1, "words": [1]}', "'words' must be a list of strings"),
        ('{"format": "flowrl.WordTokenizer", "version": 1, "words": ["a", "a"]}', "'a' more than once"),
        (
            '{"format": "flowrl.WordTokenizer", "version": 1, "words": ["A", "b c"]}',
            "single lower-case tokens, got 'A'",
        ),
    ],
)
def test_other_files_are_no_word_tokenizers(text, message):
    with pytest.raises(ValueError, match=message):
        WordTokenizer.from_json(text)


def test_word_tokenizers_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="size must be more than 3"):
        WordTokenizer.fit(["a"], size=3)
    with pytest.raises(ValueError, match="no words"):
        WordTokenizer.fit(["", " "])
    with pytest.raises(ValueError, match=r"ids must be in \[0, 4\), got 4"):
        WordTokenizer(["a"]).decode([4])
    with pytest.raises(ValueError, match="got -1"):
        WordTokenizer(["a"]).decode([-1])


@pytest.fixture
def model_dir(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, "</s>": 1, "<p>": 2, "good": 3, "film": 4, "late": 6}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["</s>", "<p>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.enable_truncation(2)
    made.enable_padding(length=9, pad_id=2, pad_token="<p>")
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_models_tokenizer_neither_cuts_nor_adds(model_dir):
    tokenizer = FileTokenizer.load(model_dir)
    assert tokenizer.encode("good film good bad") == [3, 4, 3, 0]
    assert tokenizer.decode([3, 4, 1, 2, 2]) == "good film"
    assert tokenizer.tokens == ("[UNK]", "</s>", "<p>", "good", "film", "", "late")
    assert tokenizer.size == 7
    assert (tokenizer.pad, tokenizer.end) == (None, None)
    assert FileTokenizer.load(model_dir / "tokenizer.json").fingerprint == tokenizer.fingerprint
    with pytest.raises(ValueError, match="got 7"):
        tokenizer.decode([7])


@pytest.mark.parametrize(
    ("files", "pad", "end"),
    [
        ({"tokenizer_config.json": {"pad_token": "<p>", "eos_token": {"content": "</s>"}}}, 2, 1),
        ({"tokenizer_config.json": {"pad_token": None}, "special_tokens_map.json": {"pad_token": "<p>"}}, 2, None),
        ({"config.json": {"pad_token_id": 4, "eos_token_id": [3, 1]}}, 4, 3),
        ({"tokenizer_config.json": {"eos_token": "</s>"}, "config.json": {"eos_token_id": 3}}, None, 1),
    ],
)
def test_special_tokens_are_read_from_the_files_beside(model_dir, files, pad, end):
    for name, content in files.items():
        (model_dir / name).write_text(json.dumps(content))
    tokenizer = FileTokenizer.load(model_dir)
    assert (tokenizer.pad, tokenizer.end) == (pad, end)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", '{"pad_token": "<none>"}', "pad_token is '<none>'"),
        ("config.json", '{"eos_token_id": 700}', r"end must be an id in \[0, 7\), got 700"),
        ("config.json", "{", "config.json: not JSON"),
        ("config.json", "[]", "config.json: expected a JSON object"),
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", "[" * 100_000, "tokenizer.json: not a tokenizer .* nested too deeply"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0, "b": 40000000}}}', "its largest id is 40000000, for 2 tokens"),
        ("tokenizer.json", '{"added_tokens": [{"id": 4294967295}]}', "its largest id is 4294967295, for 1 tokens"),
    ],
)
def test_wrong_files_of_a_model_are_named(model_dir, name, content, message):
    (model_dir / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        FileTokenizer.load(model_dir)


def test_a_pattern_that_never_ends_is_an_error_of_its_text(tmp_path):
    pytest.importorskip("tokenizers")
    pattern = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
    content = {"version": "1.0", "added_tokens": [], "pre_tokenizer": pattern, "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = FileTokenizer.load(tmp_path)
    assert tokenizer.encode("b") == [1]
    with pytest.raises(ValueError, match="failed on a text of 61 characters .*retry-limit"):
        tokenizer.encode("a" * 60 + "b")


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        FileTokenizer.load(tmp_path)


# Preferences


def _lines(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


USER, GOOD, BAD = (
    {"role": role, "content": content}
    for role, content in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "No"))
)
CHAT = Preference("user: Hi\n\nassistant:", " Hello", " No")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Is it", "chosen": " good", "rejected": " bad"}, Preference("Is it", " good", " bad")),
        ({"chosen": "It is good.", "rejected": "It is bad."}, Preference("It is", " good.", " bad.")),
        # The letter g is shared, and half a word is no prompt.
        ({"chosen": "It is good.", "rejected": "It is great."}, Preference("It is", " good.", " great.")),
        ({"chosen": "It is good", "rejected": "It is"}, Preference("It is", " good", "")),
        ({"chosen": "Q:\nyes", "rejected": "Q:\nno"}, Preference("Q:\n", "yes", "no")),
        ({"chosen": "good", "rejected": "great"}, Preference("", "good", "great")),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, CHAT),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, CHAT),
    ],
)
def test_trl_preferences_are_read(tmp_path, row, expected):
    assert read_preferences(_lines(tmp_path / "p.jsonl", row, "", row)) == [expected, expected]


def test_a_template_renders_messages(tmp_path):
    def template(messages, open_turn):
        return "".join(f"<{m['role'][0]}>{m['content']}" for m in messages) + ("<a>" if open_turn else "")

    path = _lines(tmp_path / "p.jsonl", {"chosen": [USER, GOOD], "rejected": [USER, BAD]})
    assert read_preferences(path, template=template) == [Preference("<u>Hi<a>", "Hello", "No")]


def test_a_prompt_that_the_assistant_has_begun_is_gone_on_with():
    assert plain_chat([USER, GOOD], False) == "user: Hi\n\nassistant: Hello"
    assert plain_chat([USER], True) == "user: Hi\n\nassistant:"


def test_tldr_comparisons_are_read(tmp_path):
    row = {
        "info": {"id": "x", "post": "I did.", "title": "What?", "subreddit": "tifu", "site": None},
        "summaries": [{"text": " bad one ", "policy": "sup2"}, {"text": " good one", "policy": "ref"}],
        "choice": 1,
        "worker": "w",
    }
    prompt = "SUBREDDIT: r/tifu\n\nTITLE: What?\n\nPOST: I did.\n\nTL;DR:"
    path = _lines(tmp_path / "p.jsonl", row, row | {"choice": 0})
    assert read_preferences(path, format="tldr") == [
        Preference(prompt, " good one", " bad one"),
        Preference(prompt, " bad one", " good one"),
    ]


def test_hh_dialogues_are_read(tmp_path):
    begin = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
    regular = {"chosen": f"{begin} So.", "rejected": f"{begin} No."}
    # The dialogues part at the assistant's second turn; what each says after it belongs to the answer.
    parting = {"chosen": f"{begin} So.\n\nHuman: Oh\n\nAssistant: Yes", "rejected": f"{begin} No."}
    assert read_preferences(_lines(tmp_path / "p.jsonl", regular, parting), format="hh") == [
        Preference(begin, " So.", " No."),
        Preference(begin, " So.\n\nHuman: Oh\n\nAssistant: Yes", " No."),
    ]


@pytest.mark.parametrize(
    ("format", "row", "message"),
    [
        ("trl", "{", "line 2: not JSON"),
        ("trl", "[]", "line 2: expected a JSON object, got a list"),
        ("trl", {"prompt": "a", "chosen": "b"}, "line 2: no field 'rejected'; found chosen, prompt"),
        ("trl", {"prompt": "a", "chosen": "b", "rejected": 3}, "line 2, field 'rejected': .* got the number 3"),
        ("trl", {"prompt": None, "chosen": "b", "rejected": "c"}, "line 2, field 'prompt': .* got null"),
        ("trl", {"prompt": "a", "chosen": "b", "rejected": "b"}, "line 2: fields 'chosen' and 'rejected' are the same"),
        ("trl", {"prompt": "a", "chosen": "b", "rejected": "c", "score": 1}, "line 2: unknown fields score; .*ignore"),
        ("trl", {"chosen": [], "rejected": [BAD]}, "line 2, field 'chosen': .* got an empty list"),
        ("trl", {"chosen": [GOOD], "rejected": "b"}, "line 2: fields 'chosen' and 'rejected' must both"),
        ("trl", {"prompt": "a", "chosen": [GOOD], "rejected": [BAD]}, "line 2, field 'prompt': must be a string, or"),
        ("trl", {"chosen": [USER, "x"], "rejected": [BAD]}, r"line 2, field 'chosen'\[1\]: expected a message"),
        ("trl", {"chosen": [{"role": "user"}], "rejected": [BAD]}, r"line 2, field 'chosen'\[0\]: no field 'content'"),
        ("trl", {"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, "line 2, field 'chosen': .*'assistant'"),
        ("tldr", {"summaries": [], "choice": 0}, "line 2: no field 'info'"),
        ("tldr", {"info": [], "summaries": [], "choice": 0}, "line 2, field 'info'"),
        ("tldr", {"info": {}, "summaries": [{}], "choice": 0}, "line 2, field 'summaries': expected two"),
        ("tldr", {"info": {}, "summaries": [{}, {}], "choice": 2}, "line 2, field 'choice': expected 0 or 1, got 2"),
        ("tldr", {"info": {"title": "t"}, "summaries": [{}, {}], "choice": 1}, "line 2, info: no field 'subreddit'"),
        ("hh", {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, "line 2: .* share no dialogue"),
        ("hh", {"chosen": "a"}, "line 2: no field 'rejected'"),
    ],
)
def test_malformed_preferences_are_named(tmp_path, format, row, message):
    path = _lines(tmp_path / "p.jsonl", "", row)
    with pytest.raises(ValueError, match=f"^{path}, {message}"):
        read_preferences(path, format=format)


def test_other_fields_may_be_left_out_by_name(tmp_path):
    path = _lines(tmp_path / "p.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c", "score": 1})
    assert read_preferences(path, ignore=("score",)) == [Preference("a", "b", "c")]
    with pytest.raises(ValueError, match="unknown fields chosen, rejected"):
        read_prompts(path, ignore=("score",))
    assert read_prompts(path, ignore=("score", "chosen", "rejected")) == ["a"]


def test_prompts_are_read(tmp_path):
    path = _lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": [USER]}, {"prompt": [USER, GOOD]})
    assert read_prompts(path) == ["a", "user: Hi\n\nassistant:", "user: Hi\n\nassistant: Hello"]
    assert read_prompts(path, template=None) == ["a", [USER], [USER, GOOD]]
    with pytest.raises(ValueError, match="line 1: no field 'prompt'"):
        read_prompts(_lines(tmp_path / "q.jsonl", {}))


def test_unknown_formats_and_empty_files_are_refused(tmp_path):
    path = _lines(tmp_path / "p.jsonl", "")
    with pytest.raises(ValueError, match="format must be one of trl, tldr, hh, got 'csv'"):
        read_preferences(path, format="csv")
    with pytest.raises(ValueError, match=f"{path}: no preferences"):
        read_preferences(path)
    with pytest.raises(ValueError, match=f"{path}: no prompts"):
        read_prompts(path)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read_preferences(tmp_path / "none.jsonl")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match="line 1: not UTF-8"):
        read_prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_what_is_written_is_read_again(tmp_path, name):
    preferences = [Preference("é\n\u2028", " good", ""), Preference("", '"', "\t")]
    write_preferences(tmp_path / name, preferences)
    first = (tmp_path / name).read_bytes()
    write_preferences(tmp_path / name, preferences)
    assert (tmp_path / name).read_bytes() == first
    assert read_preferences(tmp_path / name) == preferences
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_damaged_gzip_files_are_named(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    whole = gzip.compress(b'{"prompt": "a"}\n' * 100, mtime=0)
    for content in (whole[:-10], b"plain text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path}, after line .*damaged or truncated"):
            read_prompts(path)


def test_a_preference_needs_two_answers():
    with pytest.raises(ValueError, match="must differ"):
        Preference("a", "b", "b")
