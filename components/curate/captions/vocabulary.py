"""The vocabulary of performance captions: the words that a captioner may use for each field."""

EMOTIONS = (
    "admiration", "affection", "amazement", "amusement", "anger", "anguish", "annoyance", "anticipation", "anxiety",
    "apprehension", "awe", "bewilderment", "bitterness", "boredom", "calm", "compassion", "concern", "confidence",
    "confusion", "contemplative", "contempt", "contentment", "curiosity", "defiance", "delight", "desperation",
    "determination", "disappointment", "disbelief", "disgust", "doubt", "eagerness", "embarrassment", "empathy",
    "enthusiasm", "envy", "excitement", "explanatory", "fear", "frustration", "gratitude", "grief", "guilt",
    "happiness", "hopefulness", "hurt", "impatience", "indifference", "interest", "irritation", "joy", "longing",
    "love", "melancholy", "nervousness", "neutral", "nostalgia", "playfulness", "pride", "regret", "relief",
    "remorse", "resentment", "resignation", "sadness", "satisfaction", "seriousness", "shame", "skepticism",
    "smugness", "somberness", "surprise", "tenderness", "terror", "tiredness", "triumph", "wariness", "worry",
)  # fmt: skip
"""The 78 emotion classes."""

EXPRESSIONS = (
    "neutral", "smiling", "laughing", "grinning", "smirking", "frowning", "scowling", "pouting", "thoughtful",
    "concern", "focus", "indignation", "anger", "surprise", "fear", "disgust", "contempt", "sadness", "crying",
    "wincing", "squinting", "mouth open",
)  # fmt: skip
"""The 22 base expressions."""

MOTIONS = {
    "head": (
        "nods", "nods once", "shakes head", "turns head left", "turns head right", "looks up", "looks down",
        "tilts head left", "tilts head right", "holds head still", "moves head slightly", "moves head lively",
    ),
    "eyes": ("blinks often", "closes eyes", "opens eyes wide", "looks away", "looks at the camera"),
    "mouth": ("opens mouth wide", "smiles briefly", "presses lips", "purses lips"),
    "body": (
        "leans forward", "leans back", "shrugs", "gestures with one hand", "gestures with both hands", "points",
        "touches face", "crosses arms", "sits still",
    ),
}  # fmt: skip
"""Motion terms by body part; a caption lists them in the order in which they happen."""

SHOTS = ("extreme close-up", "close-up", "medium close-up", "medium shot", "full shot")
"""Shot types, tightest first."""
ACTIONS = ("speaking", "listening", "idle")
"""Action of a person, by state."""
LEVELS = {
    "loudness": ("soft", "calm", "loud"),
    "pitch": ("low", "middle", "high"),
    "melody": ("monotone", "even", "lively"),
    "rate": ("slow", "measured", "fast"),
}
"""Voice descriptors."""

INVARIANT = ("action", "shot", "appearance", "setting", "lighting", "camera", "personality", "relation")
"""Time-invariant fields: the only ones in a listener's caption, because reactions while listening are driven by the
audio alone."""
FREE = ("appearance", "setting", "lighting", "camera", "personality", "relation")
"""Free-text fields."""


def allowed(field: str) -> frozenset[str] | None:
    """Return the words that a field may hold; None for free text.

    Raises:
        ValueError: unknown field.
    """
    if field in FREE:
        return None
    words = {
        "action": ACTIONS,
        "shot": SHOTS,
        "emotion": EMOTIONS,
        "expression": EXPRESSIONS,
        "motion": tuple(term for terms in MOTIONS.values() for term in terms),
        **LEVELS,
    }
    if field not in words:
        raise ValueError(f"no caption field {field!r}: choose from {', '.join((*words, *FREE))}")
    return frozenset(words[field])
