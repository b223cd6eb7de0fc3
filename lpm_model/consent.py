"""What a `consent_ref` states: a reference to the consent of the people shown, or that nobody has consented."""

from typing import Final

NO_CONSENT: Final = "none on file"
"""Prefix of a consent_ref which states that no consent is on file, such as that of a published recording."""


def has_consent(consent_ref: str | None) -> bool:
    """Return whether a consent_ref refers to a consent; empty ones and those that begin with NO_CONSENT do not."""
    text = (consent_ref or "").strip().lower()
    return bool(text) and not text.startswith(NO_CONSENT)
