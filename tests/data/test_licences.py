"""Licences as people write them are one licence; what is asked for is met by it and by no other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.rights.licences import allows, asks_credit, licence_url, read_licence, read_wanted, shown_licence

BY = ["CC BY 4.0", "cc-by-4.0", "CC_BY_4.0", "https://creativecommons.org/licenses/by/4.0/",
      "Attribution 4.0 International",
      "http://creativecommons.org/licenses/by/4.0/deed.de", "Creative Commons Attribution 4.0 International",
      "licensed under the CC BY 4.0 license", "  CC  BY  4.0 "]  # fmt: skip


@pytest.mark.parametrize("text", BY)
def test_every_way_to_write_attribution_is_one_licence(text: str) -> None:
    assert read_licence(text) == ("CC-BY-4.0", True)


@pytest.mark.parametrize(
    "text, id",
    [
        ("CC BY-NC-SA 3.0 DE", "CC-BY-NC-SA-3.0-DE"),
        ("https://creativecommons.org/licenses/by-nc-sa/3.0/de/", "CC-BY-NC-SA-3.0-DE"),
        ("Creative Commons Attribution-NonCommercial-NoDerivatives 4.0", "CC-BY-NC-ND-4.0"),
        ("CC0", "CC0-1.0"),
        ("CC0 1.0 Universal", "CC0-1.0"),
        ("creativecommons.org/publicdomain/zero/1.0", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "CC-PDM-1.0"),
        ("apache license 2.0", "Apache-2.0"),
        ("mit", "MIT"),
        ("Unsplash", "LicenseRef-Unsplash"),
        ("Unsplash License", "LicenseRef-Unsplash"),
        ("All rights reserved.", "LicenseRef-Proprietary"),
        ("LicenseRef-Acme-7", "LicenseRef-Acme-7"),
        ("cc-by-sa-3.0 or gfdl-1.2-or-later", "CC-BY-SA-3.0 OR GFDL-1.2-or-later"),
    ],
)
def test_what_is_known_has_its_identifier(text: str, id: str) -> None:
    assert read_licence(text) == (id, True) and read_licence(id) == (id, True)


@pytest.mark.parametrize("text", ["", "none", "NOASSERTION", "unknown", "No licence", "n/a"])
def test_a_text_that_says_there_is_none_is_none(text: str) -> None:
    assert read_licence(text) == ("", True)


@pytest.mark.parametrize(
    "text", ["CC BY", "CC", "Our own terms", "other", "CC-BY-2.0-XX", "see website", "GPL) OR (MIT",
             "https://creativecommons.org/licenses/by/"]
)  # fmt: skip
def test_what_is_not_known_stays_as_it_is(text: str) -> None:
    """CC BY without a version is one of five licences: none is guessed."""
    assert read_licence(text) == (text, False)


@given(st.text(max_size=60))
def test_reading_is_stable_and_never_fails(text: str) -> None:
    once = read_licence(text)
    assert read_licence(once.id).id == once.id
    assert isinstance(allows(["CC-BY-*", "MIT"], once.id), bool) and isinstance(licence_url(once.id), str)


def test_a_version_is_left_open_by_a_star_and_a_restriction_is_not() -> None:
    wanted = read_wanted(["cc by-*, cc0", "LicenseRef-Acme"])
    assert wanted == ("CC-BY-*", "CC0-1.0", "LicenseRef-Acme")
    assert all(allows(wanted, one) for one in ("CC-BY-4.0", "CC-BY-2.5", "CC-BY-3.0-DE", "CC0-1.0", "licenseref-acme"))
    refused = ("CC-BY-NC-4.0", "CC-BY-SA-4.0", "CC-BY-ND-2.0", "", "CC-BY", "LicenseRef-Acme-2", "XCC-BY-4.0")
    assert not any(allows(wanted, one) for one in refused)


def test_of_alternatives_one_is_enough_and_of_conditions_all_are_needed() -> None:
    wanted = read_wanted(["MIT", "CC0-1.0"])
    assert allows(wanted, "GPL-2.0-only OR MIT") and allows(wanted, "(GPL-2.0-only OR MIT) AND CC0-1.0")
    assert not allows(wanted, "GPL-2.0-only AND MIT") and not allows(wanted, "GPL-2.0-only OR (MIT AND CC-BY-4.0)")
    assert not allows(wanted, "MIT WITH Classpath-exception-2.0"), "another licence"
    assert allows(wanted, "GPL-2.0-only WITH Classpath-exception-2.0 OR MIT"), "an exception is of its licence alone"
    assert not any(allows(wanted, text) for text in ("MIT)", "OR", "MIT foo", "(MIT", "MIT AND", "not MIT"))


@pytest.mark.parametrize("text", ["CC-BI-4.0", "anything", "CC BY", "CC-BX-*", "unknown", "*"])
def test_a_licence_that_is_not_known_cannot_be_asked_for(text: str) -> None:
    with pytest.raises(ValueError, match="is not a known licence"):
        read_wanted([text])


def test_who_must_be_named_and_where_a_licence_is_read() -> None:
    assert [asks_credit(one) for one in ("CC-BY-4.0", "CC-BY-SA-3.0 OR MIT", "CC0-1.0", "", "LicenseRef-Unsplash")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert licence_url("CC-BY-NC-SA-3.0-DE") == "https://creativecommons.org/licenses/by-nc-sa/3.0/de/"
    assert licence_url("CC0-1.0") == "https://creativecommons.org/publicdomain/zero/1.0/"
    assert licence_url("MIT") == "https://spdx.org/licenses/MIT.html"
    assert licence_url("LicenseRef-Acme") == licence_url("Our own terms") == ""
    assert shown_licence("LicenseRef-Unsplash") == "Unsplash" and shown_licence("") == "without a licence"
