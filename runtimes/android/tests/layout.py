"""Where things lie."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ANDROID = TESTS.parent
REPOSITORY = ANDROID.parents[1]
#: Sources of the library and of the sample app.
MAIN = ANDROID / "helium/src/main"
APP = ANDROID / "app/src/main"
