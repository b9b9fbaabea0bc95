// Tests over a real bundle: HELIUM_BUNDLE is the path of one of samples/helium-docs-7m.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>

int main(int count, char** arguments) {
    if (!std::getenv("HELIUM_BUNDLE")) {
        std::fputs("HELIUM_BUNDLE is not set: the path of a bundle of samples/helium-docs-7m\n", stderr);
        return 2;
    }
    return doctest::Context(count, arguments).run();
}
