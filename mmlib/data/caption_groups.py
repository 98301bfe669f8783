"""What captions mention, by rules of a few lines that need no tagger: length, objects, people.

Made for the wording of Flickr8k and its kin (Hodosh et al. 2013: one plain English sentence on what
can be seen).  Rules err on single captions; groups of hundreds can stand that.

Shapes: M captions.
"""

import re
from collections import Counter

import numpy as np


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


PEOPLE = ("nobody", "one person", "two people", "more people")

_DETERMINERS = _listed(
    "a an the one two three four five six several some many another his her their its this that"
)
# Words that end a noun phrase: what stands before one of them is most often a noun.
_AFTER_NOUN = _listed(
    """
    about above across after against along and around as at atop before behind below beneath beside
    between but by down during for from has have he in inside into is are was were it near next of off
    on onto or out outside over past she that they through to toward towards under up upon wearing
    when where which while who whose with
    """
)
# Not objects, though they stand where nouns do.
_NO_OBJECTS = _DETERMINERS | _AFTER_NOUN | _listed(
    "back bottom edge front left looks middle other others play right row set side top way"
)  # fmt: skip
_AFTER_DETERMINER = 0.05  # least share of a noun's uses that directly follow a determiner
_ENDS_PHRASE = 0.5  # least share that end their phrase; adjectives rarely do

_ONE = _listed(
    """
    adult baby ballerina bicyclist biker boarder boy bride chef child climber cowboy cyclist dancer
    female gentleman girl girlfriend goalie groom guy gymnast hiker infant jogger kid lady male man mom
    mother father dad musician officer performer person pitcher player policeman racer rider runner
    sailor skateboarder skater skier snowboarder soldier somebody someone son daughter student surfer
    swimmer teenager toddler vendor woman worker wrestler youngster
    """
)
_SEVERAL = _listed(
    """
    adults babies bicyclists bikers boarders boys brides children climbers crowd cyclists dancers
    family females friends gentlemen girls group guys gymnasts hikers infants joggers kids ladies males
    men musicians officers people performers persons players racers riders runners sailors
    skateboarders skaters skiers snowboarders soldiers spectators students surfers swimmers team
    teenagers toddlers women workers wrestlers youngsters
    """
)
_REACH = 3  # words between a number and what it counts: "two very young boys"


def length_bins(captions) -> tuple[np.ndarray, list[str]]:
    """Quartiles of caption length in words; punctuation that stands alone is none.

    Returns:
        The bin of each caption, int64 (M,), and the name of each bin, from short to long.  Fewer
        than four bins where many captions are equally long.
    """
    words_M = np.array([sum(map(_is_word, caption.split())) for caption in captions])
    cuts = np.unique(np.quantile(words_M, (0.25, 0.5, 0.75), method="inverted_cdf"))
    _, bin_M = np.unique(np.searchsorted(cuts, words_M), return_inverse=True)
    ends = [(words_M[bin_M == b].min(), words_M[bin_M == b].max()) for b in range(bin_M.max() + 1)]
    return bin_M, [f"{low} words" if low == high else f"{low}–{high} words" for low, high in ends]


def _is_word(token: str) -> bool:
    return any(map(str.isalnum, token))


def object_words(captions, minimum: int = 30, limit: int = 20) -> dict[str, np.ndarray]:
    """The most frequent nouns, found by position: they follow determiners and end their phrases.

    Of a word's uses at least 5 % directly follow a determiner (verbs do not) and at least half
    stand before a preposition, a conjunction, a form of "be", an -ing form, punctuation or the end
    (adjectives do not).  Words in -ing count where their plural occurs too ("building").  Singular
    and plural are two words.

    Args:
        captions: M texts.
        minimum: captions that a word must occur in.
        limit: number of words.

    Returns:
        By word, the most frequent first: which captions hold it, bool (M,).
    """
    uses, determined, ends = Counter(), Counter(), Counter()
    holders: dict[str, set[int]] = {}
    for m, caption in enumerate(captions):
        tokens = ["", *re.findall(r"[a-z]+|[^\sa-z]", caption.lower()), "."]
        for before, word, after in zip(tokens, tokens[1:], tokens[2:]):
            uses[word] += 1
            determined[word] += before in _DETERMINERS
            ends[word] += not after.isalpha() or after in _AFTER_NOUN or after.endswith("ing")
            holders.setdefault(word, set()).add(m)
    nouns = [
        word
        for word in uses
        if len(word) > 1
        and word not in _NO_OBJECTS
        and (not word.endswith("ing") or f"{word}s" in uses)
        and len(holders[word]) >= minimum
        and determined[word] >= _AFTER_DETERMINER * uses[word]
        and ends[word] >= _ENDS_PHRASE * uses[word]
    ]
    nouns.sort(key=lambda word: (-len(holders[word]), word))
    found = {}
    for word in nouns[:limit]:
        found[word] = np.zeros(len(captions), dtype=bool)
        found[word][list(holders[word])] = True
    return found


def people_mentioned(caption: str) -> int:
    """How many people a caption mentions: 0, 1, 2, or 3 for more; an index into `PEOPLE`.

    A singular ("man", "girl", "skier") counts one.  A plural counts the number up to three words
    before it ("two young boys"), "couple" two, and without a number more; so do "group", "crowd",
    "team" and "family".  "A man and two girls" are three.  The same person named twice is counted
    twice.
    """
    words = re.findall(r"[a-z]+", caption.lower())
    people, taken = 0, 0
    for place, word in enumerate(words):
        if word in _ONE:
            people += 1
        elif word == "couple" and words[place + 1 : place + 2] != ["of"]:
            people += 2
        elif word in _SEVERAL:
            before = words[max(taken, place - _REACH) : place]
            people += 2 if {"two", "both", "couple"} & set(before) else 3
        else:
            continue
        taken = place + 1
    return min(people, 3)
