"""Random env files: everything that Compose reads, as people write it."""

from __future__ import annotations

from hypothesis import strategies as st

Text = st.SearchStrategy[str]

OURS = ["BOT_ID", "POSTGRES_HOST", "POSTGRES_PASSWORD"]
THEIRS = ["API_KEY", "API_SECRET", "MAX_POSITIONS", "lower.dotted-key", "POSTGRES_HOST_OLD", "exported"]
# No NUL: no environment can hold one.
VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
    st.text(st.sampled_from("ab \t'\"\\$#{}=:0\n\r"), max_size=12),
    st.sampled_from(
        ["", "pgbouncer", "6432", "it's", "a\\", "'\\", "$HOME", "${X:-y}", "a #b", "'a'", '"', "\\n", "é"]
    ),
)
# A dollar with which Compose fails, or which it replaces, is not for a value that we want to read back.
LITERAL = "abcXYZ019 \t'\"#=:,;&/{}()é☀\\."


def bare() -> Text:
    first = st.sampled_from([*"abc019#=é/\\", ""])
    return st.builds(
        lambda head, rest: head + rest if head else "", first, st.text(st.sampled_from(LITERAL), max_size=10)
    )


def quoted(mark: str) -> Text:
    """A value in quotation marks, over several lines at times."""
    other = '"' if mark == "'" else "'"
    piece = st.sampled_from(
        [*"abc =#:é\n", other, "\\" + mark, "\\n", "\\x", "\\\\a", *(["\\$", "$$"] if mark == '"' else ["$a"])]
    )
    return st.lists(piece, max_size=8).map(lambda pieces: mark + "".join(pieces) + mark)


@st.composite
def settings(draw: st.DrawFn, keys: list[str]) -> str:
    head = draw(st.sampled_from(["", "", "", " ", "\t", "export ", "  export\t"])) + draw(st.sampled_from(keys))
    if draw(st.integers(0, 9)) == 0:
        return head
    separator = draw(st.sampled_from(["=", "=", "=", " = ", "= ", ": ", " :"]))
    value = draw(st.one_of(bare(), quoted("'"), quoted('"')))
    comment = draw(st.sampled_from(["", "", "", " ", ' # a comment, it\'s "one"', "   #x=$y ' "]))
    return f"{head}{separator}{value}{comment}"


def lines(keys: list[str]) -> Text:
    comment = st.builds(
        "{}#{}".format, st.sampled_from(["", " "]), st.text(st.sampled_from(LITERAL + "$"), max_size=12)
    )
    blank = st.sampled_from(["", " ", "\t"])
    return st.one_of(settings(keys), settings(keys), settings(keys), comment, blank)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """An env file of valid lines with all line ends, and none at the end at times."""
    ends = draw(st.sampled_from([["\n"], ["\r\n"], ["\n", "\r\n"]]))
    parts = [line + draw(st.sampled_from(ends)) for line in draw(st.lists(lines(OURS + THEIRS), max_size=9))]
    # Compose reads a key alone without a line end behind it as a value without a key.
    last = draw(st.sampled_from(["", "LAST=without an end", "# without an end"]))
    start = draw(st.sampled_from(["", "\ufeff"]))
    return (start + "".join(parts) + last).encode()
