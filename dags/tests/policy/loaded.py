"""The real locations, loaded once for all tests of the policies."""

import pytest

from dags.definitions import load_locations

LOCATIONS = load_locations()

# The location's name is part of the test's name, so that `-k growth` selects the tests of one team.
of_each_location = pytest.mark.parametrize("location", list(LOCATIONS))
