"""Text that tokenisers often get wrong."""

import string

from hypothesis import strategies as st

# A vocabulary that splits ordinary words into pieces and lacks some characters.
VOCAB = {
    piece: index
    for index, piece in enumerate(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        + list(string.ascii_lowercase + string.digits + string.punctuation)
        + ["##" + character for character in string.ascii_lowercase + string.digits]
        + ["the", "old", "house", "##house", "##ing", "light", "straße", "é", "ß", "ς", "σ", "##ς", "##σ", "##ß"]
        + ["中", "国", "##国", "あ", "ᄒ", "##ᅡ", "##ᆫ", "😀", "’", "–", "ﬁ", "##ﬁ", "Zoë", "A", "##B", "i̇"]
    )
}

CHARACTERS = [
    *"abtheABT019",
    *" \t\n\r",
    *".,'\"()-#$^_[]",
    *"\u00a0\u202f\u2003\u3000\u2028\u2029",  # many kinds of white space
    *"\x00\x07\x1c\x1f\x7f\x85\ufffd",  # control characters and the replacement character
    *"\u200b\u200c\u200d\u2060\ufeff\u00ad\u202e",  # zero width
    *"éÉñüßſİıΣσς",  # accents and letters whose case is special
    *"\u0301\u0323\u0338\u20dd",  # combining marks
    *"ﬁﬀŒǆ½²Ⅷ",  # ligatures and compatibility characters
    *"中国\uf900\U00020000あアー한각\u1112\u1161",
    *"😀👩🏽❤\ufe0f",
    *"“”’–—…。、؟।",
    *"हिं" + "ไทย" + "עִ" + "لا",
    "\ud83d",  # half a surrogate pair, which JSON can hold
    "\U0010ffff",
]
WORDS = ["the", "The", "old", "house", "lighthouse", "Straße", "Zoë", "1895-1943", "[UNK]", "##ing", "ΟΔΟΣ", "a" * 201]

texts = st.lists(
    st.one_of(st.sampled_from(WORDS), st.sampled_from(CHARACTERS), st.just(" "), st.characters()), max_size=40
).map("".join)

# One example of each kind, for tests that need all of them in every run.
EXAMPLES = [
    "",
    " \t\r\n ",
    "The old lighthouse",
    "中国人 in 東京\U00020000\uf900.",
    "Crème brûlée, Zoë's; a\u0301e\u0323\u0301 İstanbul ΟΔΟΣ Σ ſ",
    "👩🏽‍🚀 flew ❤\ufe0f😀!",
    "ﬁne ﬀ eﬃcient Œuvre ½",
    "bell\x07 nul\x00 del\x7f nel\x85 unit\x1fsep \ufffd",
    "zero\u200bwidth joined\u200d \ufeffmark soft\u00adhyphen \u202eright",
    "no\u00a0break narrow\u202fspace wide\u3000space line\u2028para\u2029graph",
    "runs    of \t\t blanks \n\n\n here",
    "half \ud83d a pair\ude00",
    "x" * 200 + " " + "x" * 201,
    "[UNK] [CLS] ##ing # ## $5.00 ^_^ a_b",
    "한국어 각 ひらがな カタカナ हिंदी ไทย",
]
